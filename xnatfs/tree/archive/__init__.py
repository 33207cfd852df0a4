"""The view archive/, in the layout of the server's own directories."""
