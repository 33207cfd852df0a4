"""Serve the files of resources, and take new ones."""
