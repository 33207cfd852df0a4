"""Make the replies to stat(2): attributes, and how long the kernel may keep them."""

import stat
from dataclasses import dataclass

import pyfuse3
from pyfuse3 import InodeT

from xnatfs.common.clock import now
from xnatfs.tree.names import encode
from xnatfs.tree.node import Dir, File, Link, Node

# Seconds for which the kernel may cache what never expires; a longer time only delays that it forgets nodes.
MAX_TIMEOUT_SECONDS = 3600.0
# Permissions as other mounts show them, read-only mounts included: a copy gets these, and must be writable; an overlay
# checks them before it accepts a change. A change here fails with EROFS, in the kernel.
DIRECTORY_MODE, FILE_MODE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
# What the kernel requests at a time by default, in bytes.
BLOCK_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Ownership:
    """The owner of all files, and the permissions that are withheld."""

    uid: int
    gid: int
    umask: int = 0

    def attributes(self, node: Node, inode: InodeT, timeout: float) -> pyfuse3.EntryAttributes:
        """Return the attributes of a node whose size is known; the kernel may keep them for `timeout` seconds."""
        made = pyfuse3.EntryAttributes()
        made.st_ino = inode
        made.st_uid, made.st_gid = self.uid, self.gid
        # For a directory 1, which find(1) takes as a number that is not counted.
        made.st_nlink = node.site.views.links if node.is_in_views else 1
        if isinstance(node, File):
            made.st_mode = FILE_MODE & ~self.umask
            size = made.st_size = node.measured_size
            made.st_blocks = (size + 511) // 512
        elif isinstance(node, Link):
            made.st_mode = stat.S_IFLNK | 0o777
            made.st_size = len(encode(node.target))
        elif isinstance(node, Dir):
            made.st_mode = DIRECTORY_MODE & ~self.umask
        made.st_blksize = BLOCK_BYTES
        made.st_atime_ns = made.st_mtime_ns = made.st_ctime_ns = node.modified_ns()
        made.entry_timeout = made.attr_timeout = timeout
        return made


def dot(inode: InodeT) -> pyfuse3.EntryAttributes:
    """Return the reply for an entry "." or "..", of which the kernel takes number and type only."""
    made = pyfuse3.EntryAttributes()
    made.st_ino = inode
    made.st_mode = DIRECTORY_MODE
    return made


def seconds_left(expires: float) -> float:
    """Return for how many seconds the kernel may cache what expires at a time of `common/clock.py`."""
    return min(max(expires - now(), 0.0), MAX_TIMEOUT_SECONDS)


def absent(timeout: float) -> pyfuse3.EntryAttributes:
    """Return the reply for a name that does not exist, for the kernel to remember."""
    made = pyfuse3.EntryAttributes()
    made.st_ino = 0
    made.entry_timeout = made.attr_timeout = timeout
    return made
