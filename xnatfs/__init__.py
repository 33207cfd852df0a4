"""An XNAT server as a local folder."""

__version__ = "0.1.0"
