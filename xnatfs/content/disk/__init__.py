"""Store cached files in a directory: its index, its blobs, its locks."""
