"""The cache directory: its index, its blobs, its locks."""
