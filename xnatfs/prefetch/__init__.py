"""What is fetched before it is requested: listings of sessions, files of a series."""
