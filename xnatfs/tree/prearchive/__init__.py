"""Show the prearchive: sessions that the server has received, and that are in no project yet."""

from xnatfs.tree.prearchive.sessions import PrearchiveDir

__all__ = ["PrearchiveDir"]
