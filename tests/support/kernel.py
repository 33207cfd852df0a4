"""Simulate the kernel's part of a mount: it caches names and attributes until their timeouts, and pages.

It sends requests as Linux does: it resolves a path name by name from its cache, fetches expired attributes before it
returns pages, READs whole pages, and looks a name up again if an open is stale. So its cache can be wrong, as in Linux.
"""

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyfuse3
import pytest
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ReaddirToken, RequestContext

from xnatfs.fuse.inodes import ROOT
from xnatfs.fuse.operations import Operations

CONTEXT = cast(RequestContext, None)
READ_ONLY = FlagT(0)
PAGE = 4096
ROOM = 7  # entries in one answer to READDIR: so few that listings take several


@dataclass
class CachedAttributes:
    """Cached attributes of an inode."""

    size: int
    modified: int
    expires: float


@dataclass
class Opened:
    """An open file description."""

    inode: InodeT
    handle: FileHandleT


class Replies:
    """Entries of one reply to READDIR, as many as there is room for."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, pyfuse3.EntryAttributes, int]] = []

    def take(self, token: object, name: bytes, attributes: pyfuse3.EntryAttributes, next_id: int) -> bool:
        assert attributes.entry_timeout == attributes.attr_timeout
        if len(self.entries) == ROOM:
            return False
        self.entries.append((name.decode(), attributes, next_id))
        return True


@contextmanager
def answered() -> Iterator[None]:
    """Have pyfuse3 reply to kernels in this block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyfuse3, "readdir_reply", lambda token, *entry: token.take(token, *entry))
        yield


class Kernel:
    """One mount as the kernel sees it. Every method raises OSError, as a system call does."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        operations._invalidate, operations._store = self._let_go, self._store
        self.seen: dict[InodeT, CachedAttributes] = {}
        self.opened: list[Opened] = []
        self._names: dict[tuple[InodeT, str], tuple[InodeT, float]] = {}
        self._lookups: Counter[InodeT] = Counter()
        self._pages: dict[InodeT, dict[int, bytes]] = {}

    # -- names ---------------------------------------------------------------------------------------------------

    async def find(self, path: tuple[str, ...], *, anew: bool = False) -> InodeT:
        """Find the inode of a path; with `anew`, without cached names."""
        inode = ROOT
        for name in path:
            found, expires = self._names.get((inode, name), (InodeT(0), 0.0))
            if anew or expires <= trio.current_time():
                attributes = await self._call("lookup", inode, FileNameT(name.encode()), CONTEXT)
                found = self._enter(inode, name, attributes)
            if not found:
                raise OSError(errno.ENOENT, "/".join(path))
            inode = found
        return inode

    def _enter(self, parent: InodeT, name: str, attributes: pyfuse3.EntryAttributes) -> InodeT:
        expires = trio.current_time() + attributes.entry_timeout
        inode = attributes.st_ino
        self._names[parent, name] = inode, expires
        if inode:
            self._lookups[inode] += 1
            self._see(inode, attributes)
        return inode

    def _see(self, inode: InodeT, attributes: pyfuse3.EntryAttributes) -> None:
        """Cache attributes; another size or time drops the pages, as with FUSE_AUTO_INVAL_DATA."""
        seen = CachedAttributes(
            attributes.st_size, attributes.st_mtime_ns, trio.current_time() + attributes.attr_timeout
        )
        before = self.seen.get(inode, seen)
        if (before.size, before.modified) != (seen.size, seen.modified):
            self._pages.pop(inode, None)
        self.seen[inode] = seen

    def _let_go(self, inode: InodeT, attributes_only: bool) -> None:
        """Invalidate attributes, so that they are fetched before they are used again."""
        assert attributes_only, "a page that waits for a READ would be waited for"
        self.seen[inode].expires = trio.current_time()

    def _store(self, inode: InodeT, offset: int, data: bytes) -> None:
        """Put bytes into pages, as FUSE_NOTIFY_STORE does: of a page that is not there only a part is nothing."""
        assert all(each.inode != inode for each in self.opened), "a page that waits for a READ would be waited for"
        seen, pages = self.seen[inode], self._pages.setdefault(inode, {})
        end = offset + len(data)
        seen.size = max(seen.size, end)
        for start in range(offset - offset % PAGE, end, PAGE):
            place, piece = start // PAGE, data[max(start - offset, 0) : start + PAGE - offset]
            if start >= offset and (len(piece) == PAGE or end == seen.size):
                pages[place] = piece
            elif place in pages:
                at = max(offset - start, 0)
                pages[place] = pages[place][:at] + piece + pages[place][at + len(piece) :]

    async def names(self, path: tuple[str, ...]) -> list[str]:
        """List a directory."""
        inode = await self.find(path)
        handle = await self._call("opendir", inode, CONTEXT)
        found: list[str] = []
        place = 0
        try:
            while True:
                replies = Replies()
                await self._call("readdir", handle, place, cast(ReaddirToken, replies))
                if not replies.entries:
                    return found
                for name, attributes, place in replies.entries:  # noqa: B007  (the last one is where to go on)
                    if name not in (".", ".."):  # which the kernel looks up by itself
                        self._enter(inode, name, attributes)
                        found.append(name)
        finally:
            await self._call("releasedir", handle)

    async def size(self, path: tuple[str, ...]) -> int:
        """Return a file's size, as stat(2) does."""
        inode = await self.find(path)
        await self.look(inode)
        return self.seen[inode].size

    async def look(self, inode: InodeT) -> None:
        """Fetch the attributes of an inode if they have expired."""
        if self.seen[inode].expires <= trio.current_time():
            self._see(inode, await self._call("getattr", inode, CONTEXT))

    def fresh(self) -> list[InodeT]:
        """Return the inodes whose attributes are valid for at least another second."""
        return [inode for inode, seen in self.seen.items() if seen.expires > trio.current_time() + 1]

    async def forget(self) -> None:
        """Drop everything that is not open, as the kernel does when memory is short."""
        held = {each.inode for each in self.opened}
        gone = [(inode, count) for inode, count in self._lookups.items() if inode not in held]
        for inode, _ in gone:
            del self._lookups[inode], self.seen[inode]
            self._pages.pop(inode, None)
        self._names.clear()
        await self.operations.forget(gone)

    # -- files ---------------------------------------------------------------------------------------------------

    async def open(self, path: tuple[str, ...]) -> Opened:
        inode = await self.find(path)
        try:
            return await self.open_inode(inode)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        return await self.open_inode(await self.find(path, anew=True))

    async def open_inode(self, inode: InodeT) -> Opened:
        """Open an inode without looking up a name, as /proc/self/fd does."""
        info = await self._call("open", inode, READ_ONLY, CONTEXT)
        if not info.keep_cache:
            self._pages.pop(inode, None)
        opened = Opened(inode, info.fh)
        self.opened.append(opened)
        return opened

    async def read(self, opened: Opened, offset: int, length: int) -> bytes:
        """Read from the cached pages, and fetch the missing ones, as pread(2) does."""
        await self.look(opened.inode)
        size = self.seen[opened.inode].size
        end = min(offset + length, size)
        if offset >= end:
            return b""
        pages = self._pages.setdefault(opened.inode, {})
        wanted = range(offset // PAGE, (end - 1) // PAGE + 1)
        missing = [page for page in wanted if page not in pages]
        if missing:
            start, stop = missing[0] * PAGE, (missing[-1] + 1) * PAGE
            # Copied before another task runs, as pyfuse3 does: the next read uses the same memory.
            data = bytes(await self._call("read", opened.handle, start, stop - start))
            # Of fewer bytes the kernel would make a shorter file, without an error.
            assert len(data) == min(stop, size) - start, "a short read before the end of the file"
            for page in missing:
                pages[page] = data[page * PAGE - start : (page + 1) * PAGE - start]
        whole = b"".join(pages[page] for page in wanted)
        return whole[offset - wanted[0] * PAGE : end - wanted[0] * PAGE]

    def whole(self) -> list[bytes]:
        """Return the contents of files without a missing page: a reader can map these without a request."""
        found = []
        for inode, pages in self._pages.items():
            size = self.seen[inode].size
            if size and len(pages) == -(-size // PAGE):
                found.append(b"".join(pages[page] for page in sorted(pages))[:size])
        return found

    async def close(self, opened: Opened) -> None:
        self.opened.remove(opened)
        await self._call("release", opened.handle)

    async def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return await getattr(self.operations, name)(*arguments)
        except pyfuse3.FUSEError as error:
            raise OSError(error.errno, errno.errorcode[error.errno]) from None
