"""Mount a minimal pyfuse3 file system, a tree that is answered from memory, as a lower bound.

    python -m scripts.benchmarks.bare MOUNTPOINT (--entries N | --paths FILE) [--size BYTES] [--timeout S] [--no-xattr]

Prints `ready` when it is mounted, and serves until it is unmounted. It lists names, attributes and timeouts as xnatfs
does, and answers for extended attributes as xnatfs does: for those of users, not for security labels and ACLs. The
content of a file goes to the kernel with the reply to its open, as that of a small file does in xnatfs.
"""

import argparse
import errno
import itertools
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ReaddirToken, RequestContext


class Directory:
    """The entries of a directory, in order and by name."""

    def __init__(self) -> None:
        self.entries: list[tuple[FileNameT, pyfuse3.EntryAttributes]] = []
        self.by_name: dict[bytes, pyfuse3.EntryAttributes] = {}

    def add(self, name: bytes, attributes: pyfuse3.EntryAttributes) -> None:
        self.entries.append((FileNameT(name), attributes))
        self.by_name[name] = attributes


class Bare(pyfuse3.Operations):
    """A tree whose answers are computed in advance.

    Args:
        paths: Its entries, each below one that came before; those of directories end in a slash.
        size: The size of each file, in bytes; 0 for sizes from 0 to 49.
        timeout: Seconds for which the kernel may keep entries and attributes.
    """

    def __init__(self, paths: Iterable[str], size: int, timeout: float) -> None:
        super().__init__()
        self._content = bytes(size)
        numbers = itertools.count(pyfuse3.ROOT_INODE)
        self._attributes = {pyfuse3.ROOT_INODE: _attributes(next(numbers), None, timeout)}
        self._directories = {pyfuse3.ROOT_INODE: Directory()}
        places = {"": self._directories[pyfuse3.ROOT_INODE]}
        for inode, path in zip(numbers, paths, strict=False):
            above, _, name = path.rstrip("/").rpartition("/")
            attributes = _attributes(inode, None if path.endswith("/") else size or inode % 50, timeout)
            self._attributes[InodeT(inode)] = attributes
            places[above].add(name.encode(), attributes)
            if path.endswith("/"):
                places[path.rstrip("/")] = self._directories[InodeT(inode)] = Directory()

    async def lookup(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        found = self._directories[parent].by_name.get(name)
        if found is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return found

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes[inode]

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        entries = self._directories[InodeT(fh)].entries
        for place in range(start_id, len(entries)):
            name, attributes = entries[place]
            if not pyfuse3.readdir_reply(token, name, attributes, place + 1):
                return

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> pyfuse3.FileInfo:
        pyfuse3.notify_store(inode, 0, self._content)
        return pyfuse3.FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return self._content[off : off + size]

    async def release(self, fh: FileHandleT) -> None:
        pass

    async def releasedir(self, fh: FileHandleT) -> None:
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
    parser = argparse.ArgumentParser(description="A tree of files, from memory.")
    parser.add_argument("mountpoint")
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument("--entries", type=int, metavar="N", help="one directory of so many files")
    shape.add_argument("--paths", type=Path, metavar="FILE", help="a path a line; those of directories end in a slash")
    parser.add_argument("--size", type=int, default=0, metavar="BYTES", help="of each file (default: 0)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of entries and attributes")
    parser.add_argument("--no-xattr", action="store_true", help="no extended attributes at all")
    arguments = parser.parse_args()
    names = (f"IM-{number:06}.dcm" for number in range(arguments.entries or 0))
    paths = arguments.paths.read_text().splitlines() if arguments.paths else names
    kind = Bare if arguments.no_xattr else BareWithXattrs
    operations = kind(paths, arguments.size, arguments.timeout)
    pyfuse3.init(operations, arguments.mountpoint, {*pyfuse3.default_options, "ro"})
    try:
        trio.run(_serve)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
