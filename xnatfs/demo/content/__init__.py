"""Serve the files of resources, and store new ones."""
