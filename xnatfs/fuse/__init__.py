"""The tree as a file system: the only place that knows pyfuse3."""
