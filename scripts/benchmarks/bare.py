"""Mount a minimal pyfuse3 file system, one directory of files answered from memory, as a lower bound.

    python scripts/benchmarks/bare.py MOUNTPOINT --entries N [--size BYTES] [--timeout S] [--no-xattr]

Prints `ready` when it is mounted, and serves until it is unmounted. It lists names, attributes and timeouts as xnatfs
does, and answers for extended attributes as xnatfs does: for those of users, not for security labels and ACLs. The
content of a file goes to the kernel with the reply to its open, as that of a small file does in xnatfs.
"""

import argparse
import errno
import stat
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ReaddirToken, RequestContext

FIRST = 1000  # the inode number of the first file


class Bare(pyfuse3.Operations):
    """A directory whose answers are computed in advance."""

    def __init__(self, entries: int, size: int, timeout: float) -> None:
        super().__init__()
        self._content = bytes(size)
        self._names = [FileNameT(f"IM-{number:06}.dcm".encode()) for number in range(entries)]
        self._attributes = [_attributes(FIRST + number, size or number % 50, timeout) for number in range(entries)]
        self._places = {name: place for place, name in enumerate(self._names)}
        self._root = _attributes(pyfuse3.ROOT_INODE, None, timeout)

    async def lookup(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        place = self._places.get(name)
        if place is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes[place]

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        return self._root if inode == pyfuse3.ROOT_INODE else self._attributes[inode - FIRST]

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(1)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        for place in range(start_id, len(self._names)):
            if not pyfuse3.readdir_reply(token, self._names[place], self._attributes[place], place + 1):
                return

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> pyfuse3.FileInfo:
        pyfuse3.notify_store(inode, 0, self._content)
        return pyfuse3.FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return self._content[off : off + size]

    async def release(self, fh: FileHandleT) -> None:
        pass

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        pass


class BareWithXattrs(Bare):
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[FileNameT]:
        return []

    async def getxattr(self, inode: InodeT, name: FileNameT, ctx: RequestContext) -> bytes:
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR if name.startswith(b"user.") else errno.EOPNOTSUPP)


def _attributes(inode: int, size: int | None, timeout: float) -> pyfuse3.EntryAttributes:
    """Return the attributes of a file of this size or, without a size, of the directory."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = InodeT(inode)
    attributes.st_mode = stat.S_IFDIR | 0o755 if size is None else stat.S_IFREG | 0o644
    attributes.st_size = size or 0
    attributes.st_nlink = 1
    attributes.entry_timeout = attributes.attr_timeout = timeout
    return attributes


async def _serve() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        await trio.lowlevel.checkpoint()
        print("ready", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="One directory of files, from memory.")
    parser.add_argument("mountpoint")
    parser.add_argument("--entries", type=int, required=True, metavar="N")
    parser.add_argument("--size", type=int, default=0, metavar="BYTES", help="of each file (default: 0)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of entries and attributes")
    parser.add_argument("--no-xattr", action="store_true", help="no extended attributes at all")
    arguments = parser.parse_args()
    kind = Bare if arguments.no_xattr else BareWithXattrs
    operations = kind(arguments.entries, arguments.size, arguments.timeout)
    pyfuse3.init(operations, arguments.mountpoint, {*pyfuse3.default_options, "ro"})
    try:
        trio.run(_serve)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
