"""Read a server from Python: blocking calls for any thread, and a file system for fsspec."""
