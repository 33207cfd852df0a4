"""Show the server's facts as extended attributes, `user.xnat.*`."""

import errno
from collections.abc import Sequence
from datetime import UTC, datetime

import pyfuse3
from pyfuse3 import FileNameT, InodeT, RequestContext

from xnatfs.fuse.errnos import handler
from xnatfs.fuse.operations import Operations
from xnatfs.tree.names import encode
from xnatfs.tree.node import Node

PREFIX = b"user.xnat."
ERROR_NAME = PREFIX + b"error"
# Bytes in a value that the kernel passes on: XATTR_SIZE_MAX. A longer one fails with E2BIG.
LONGEST_VALUE_BYTES = 65536
# Bytes of names and values that are listed of one entry: ext4 has a block of 4 KiB for all, each with 16 bytes more
# and rounded up, and `rsync -X` fails where one does not fit.
LISTED_BYTES = 3072


class OperationsWithXattrs(Operations):
    """The calls of the kernel, with extended attributes."""

    @handler
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[FileNameT]:
        """Return the attribute names to list; omit the longest values beyond LISTED_BYTES."""
        found = await self._facts(self.known(inode).node)
        room, names = LISTED_BYTES, []
        for name in sorted(found, key=lambda name: len(found[name])):
            room -= len(name) + len(found[name])
            if found[name] and room >= 0:
                names.append(name)
        return sorted(names)

    @handler
    async def getxattr(self, inode: InodeT, name: FileNameT, ctx: RequestContext) -> bytes:
        # `ls -l` requests security labels and ACLs of every entry, unless the first reply is that the file system has
        # none: that saves 120 us an entry. (After ENOSYS, the kernel would request no attribute at all.)
        if not name.startswith(b"user."):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        node = self.known(inode).node
        if name == ERROR_NAME:  # no request is sent for it, since it may be a request that has failed
            value = encode(self.errors.reason(node.path)) or None
        else:
            value = (await self._facts(node)).get(name) if name.startswith(PREFIX) else None
        if value is None or len(value) > LONGEST_VALUE_BYTES:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    async def _facts(self, node: Node) -> dict[FileNameT, bytes]:
        """Return all that a node can have. A value that has gone since its name was listed is empty, not an error."""
        facts = await node.all_xattrs()
        since = node.get_stale_time()
        facts["stale"] = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds") if since else ""
        facts["error"] = self.errors.reason(node.path)
        return {FileNameT(PREFIX + key.encode()): encode(value) for key, value in facts.items()}
