"""Hold the archive in memory and change it."""
