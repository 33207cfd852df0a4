"""The cache directory as the event loop sees it: point reads inline, everything that blocks in a thread, one at a time.

Invariants:
- `_lock` is held while a thread uses the shelf, so the index has one writing thread per process.
- Trouble with the index or the disk never fails a reader by itself: it is logged once, and files are fetched but not
  kept until something is kept again.
"""

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

import trio

from xnatfs.content.index import Index, Row, set_aside
from xnatfs.content.shelf import Shelf, lock
from xnatfs.errors import CacheError

log = logging.getLogger(__name__)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class Partial:
    """A download's file, open and locked; once kept, the same file under blobs/."""

    name: str
    fd: int
    reserved: int = 0
    kept: bool = False


class Store:
    """Owns the partials of this process and the way to the shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self.limit = shelf.limit
        self._shelf = shelf
        self._lock = trio.Lock()
        self._partials: dict[str, Partial] = {}
        self._troubled = False
        self._damaged = False  # the index; it is left alone from then on

    # Inline.

    @property
    def crowded(self) -> bool:
        """Open files kept the last eviction from reaching the limit."""
        return self._shelf.crowded

    def lookup(self, ident: bytes) -> Row | None:
        """The row, unless it is from before a crash of the machine."""
        return next(iter(self._counting(lambda index: [row] if (row := index.get(ident)) else [])), None)

    def have(self, idents: Sequence[bytes]) -> list[Row]:
        """The rows that there are, of many; as many as SQLite takes in one statement."""
        return self._counting(lambda index: index.have(idents))

    def _counting(self, look: Callable[[Index], list[Row]]) -> list[Row]:
        if self._damaged:
            return []
        try:
            rows = look(self._shelf.index)
        except sqlite3.Error as exc:
            self._trouble(exc)
            return []
        return [row for row in rows if row.boot in ("", self._shelf.boot)]

    def total(self) -> int:
        """Bytes kept or reserved, over all processes."""
        if self._damaged:
            return 0
        try:
            return self._shelf.index.total()
        except sqlite3.Error as exc:
            self._trouble(exc)
            return 0

    def touch(self, ident: bytes, now: float) -> None:
        """It was opened; written down later, with others."""
        self._shelf.recent[ident] = now

    def open(self, row: Row) -> int | None:
        """A locked descriptor of a kept file; None if it is gone, being evicted, or not of its size."""
        try:
            fd = os.open(self._shelf.path(row.ident), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self.error(exc) from exc
        if lock(fd, fcntl.LOCK_SH) and os.fstat(fd).st_size == row.size:
            return fd
        os.close(fd)
        return None

    def create(self) -> Partial:
        """An empty file to download into."""
        try:
            name, fd = self._shelf.create_partial()
        except OSError as exc:
            raise self.error(exc) from exc
        partial = self._partials[name] = Partial(name, fd)
        return partial

    def error(self, exc: OSError) -> CacheError:
        """The one line for a user, and once in the log."""
        if exc.errno in NO_SPACE:
            what = f"{exc.strerror}; make room there or choose another cache directory"
        elif exc.errno in (errno.EMFILE, errno.ENFILE):
            what = f"{exc.strerror}; raise the limit (ulimit -n) or close files"
        else:
            what = f"{exc.strerror}; correct that or choose another cache directory"
        self._trouble(exc)
        return CacheError(f"cache directory {self._shelf.directory}: {what}")

    # In a thread.

    async def reserve(self, partial: Partial, size: int) -> None:
        """Count a download before it is written, and make room for it."""
        grown, partial.reserved = size - partial.reserved, size
        await self._write(self._shelf.reserve, partial.name, size, grown)

    async def keep(self, partial: Partial, row: Row) -> bool:
        """Make a verified download a kept file; False if it cannot be kept."""
        if row.size <= self.limit and await self._write(self._shelf.keep, partial.name, row):
            partial.kept = True
            partial.reserved = 0
            del self._partials[partial.name]
            self._troubled = False
        return partial.kept

    async def keep_whole(self, files: Sequence[tuple[Row, bytes]]) -> set[bytes]:
        """Keep verified files that are in memory; which of them are kept, by identity."""
        fit = [(row, data) for row, data in files if row.size <= self.limit]
        if not fit or not await self._write(self._shelf.keep_whole, fit):
            return set()
        self._troubled = False
        return {row.ident for row, _ in fit}

    async def discard(self, partial: Partial) -> None:
        """Remove a download; its descriptor is closed with it."""
        await self._in_thread(_unlink, self._shelf.partial_path(partial.name), partial.fd)
        del self._partials[partial.name]  # only now: a cancelled discard is made up for by `close`
        if partial.reserved:
            await self._write(self._shelf.release, partial.name)

    async def renew(self, row: Row) -> None:
        """The server says that it is still this version."""
        await self._write(self._shelf.renew, row)

    async def evict(self, target: int) -> None:
        """Bring the total down to this, as far as files are not open."""
        await self._write(self._shelf.evict, target)

    async def drop(self, owners: Collection[str]) -> None:
        """Remove what belongs to one of these."""
        await self._write(self._shelf.drop, owners)

    async def owners(self) -> set[str]:
        """What the kept files belong to, as their rows have it."""
        return await self._write(self._shelf.owners) or set()

    async def tidy(self) -> None:
        """Remove what crashes left."""
        await self._write(self._shelf.tidy_partials)
        for first in range(256):
            await self._write(self._shelf.tidy_blobs, first)

    async def flush(self) -> None:
        """Write recency, and see new files to the disk."""
        if self._shelf.recent:
            await self._write(self._shelf.touch)
        while await self._write(self._shelf.sync):
            await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Remove own partials, write recency, close the index."""
        for partial in list(self._partials.values()):
            await self.discard(partial)
        await self._write(self._shelf.touch)
        await self._in_thread(self._shelf.index.close)

    async def _write(self, work: Callable[[*Ts], T], *args: *Ts) -> T | None:
        return None if self._damaged else await self._in_thread(work, *args)

    async def _in_thread(self, work: Callable[[*Ts], T], *args: *Ts) -> T | None:
        await trio.lowlevel.checkpoint_if_cancelled()
        # Shielded from here: it is short, and the state of whoever waits depends on how it ended.
        with trio.CancelScope(shield=True):
            async with self._lock:
                try:
                    return await trio.to_thread.run_sync(work, *args)
                except (sqlite3.Error, OSError) as exc:
                    self._trouble(exc)
        return None

    def _trouble(self, exc: Exception) -> None:
        if self._troubled:
            return
        self._troubled = True
        log.warning("cache directory %s: %s; files are fetched but not kept", self._shelf.directory, exc)
        if type(exc) is sqlite3.DatabaseError:  # not a subclass: "malformed" or "not a database"
            self._damaged = True
            with contextlib.suppress(OSError):
                set_aside(self._shelf.directory / "index.sqlite")  # the next start makes a new one


def _unlink(path: str, fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.close(fd)
