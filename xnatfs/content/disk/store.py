"""Use the cache directory from the event loop: point reads inline, blocking work in a thread, one call at a time.

Invariants:
- `_lock` is held while a thread uses the shelf, so the index has one writing thread per process.
- An error of the index or the disk alone never makes a read fail: it is logged once, and files are fetched but not
  cached until the directory works again. A file that the directory cannot store is in memory while it is open.
"""

import contextlib
import errno
import fcntl
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

import trio

from xnatfs.common import locks
from xnatfs.common.errors import CacheError
from xnatfs.common.locks import lock
from xnatfs.content.disk.directory import Shelf, is_full, why_locked
from xnatfs.content.disk.index import Index, Row, is_busy, is_damage

log = logging.getLogger(__name__)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Bytes of files in memory because the directory cannot store them: four big files that are fetched in parallel, with
# `writer.WINDOW` each, or some thirty files that are fetched whole.
MEMORY = 256 * 1024 * 1024

# Seconds without an error after which a stored file ends the trouble: a disk that is full accepts one file, and not
# the next.
QUIET = 60.0


@dataclass(slots=True)
class Partial:
    """The file of a download, open and locked; once `kept`, the same file under blobs/."""

    name: str
    fd: int
    reserved: int = 0
    kept: bool = False
    in_memory: bool = False


class Store:
    """The cache directory of this process, with its partials."""

    def __init__(self, shelf: Shelf) -> None:
        self.limit = shelf.limit
        self._shelf = shelf
        self._lock = trio.Lock()
        self._partials: dict[str, Partial] = {}
        self._in_memory = 0
        self._troubled = -math.inf  # the time of the last error
        self._told = False  # the current trouble has been logged

    # Inline.

    @property
    def crowded(self) -> bool:
        """Return whether open files kept the last eviction from reaching the limit."""
        return self._shelf.crowded

    def counters(self) -> dict[str, int]:
        """Return the downloads of this process, and the bytes that all processes have in the directory."""
        return {
            "partials": len(self._partials),
            "reserved": sum(partial.reserved for partial in self._partials.values()),
            "kept_bytes": self.total(),
            "limit": self.limit,
            "evicted": self._shelf.evicted,
        }

    def lookup(self, ident: bytes) -> Row | None:
        """Return the row of an identity; None without one, or where its file may not have survived a reboot."""
        return next(iter(self._counting(lambda index: [row] if (row := index.get(ident)) else [])), None)

    def have(self, idents: Sequence[bytes]) -> list[Row]:
        """Return the existing rows of a batch of identities, no more than SQLite accepts in one statement."""
        return self._counting(lambda index: index.have(idents))

    def _counting(self, look: Callable[[Index], list[Row]]) -> list[Row]:
        index = self._shelf.index
        if index.damaged:
            return []
        try:
            rows = look(index)
        except sqlite3.Error as exc:
            self._trouble(exc, index)
            return []
        return [row for row in rows if row.boot in ("", self._shelf.boot)]

    def total(self) -> int:
        """Return the bytes that are cached or reserved, over all processes."""
        index = self._shelf.index
        if index.damaged:
            return 0
        try:
            return index.total()
        except sqlite3.Error as exc:
            self._trouble(exc, index)
            return 0

    def touch(self, ident: bytes, now: float) -> None:
        """Record that a file was opened; the index is updated later, in a batch."""
        self._shelf.recent[ident] = now

    def open(self, row: Row) -> int | None:
        """Open a cached file and return its locked descriptor; None if it is gone, being evicted, or was changed."""
        try:
            fd = os.open(self._shelf.path(row.ident), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise self.error(exc) from exc
            self._trouble(exc)
            return None
        if lock(fd, fcntl.LOCK_SH):
            status = os.fstat(fd)
            if (status.st_size, status.st_mtime_ns) == (row.size, row.written):
                return fd
        os.close(fd)
        return None

    def create(self) -> Partial:
        """Create an empty file for a download. Raises OSError."""
        name, fd = self._shelf.create_partial()
        partial = self._partials[name] = Partial(name, fd)
        return partial

    def create_in_memory(self) -> Partial:
        """Create a file in memory for a download where the directory accepts none; `reserve` counts its bytes.

        Raises CacheError.
        """
        try:
            fd = os.memfd_create("xnatfs", os.MFD_CLOEXEC)
        except OSError as exc:
            raise self.error(exc) from exc
        name = f"memory {fd}"
        partial = self._partials[name] = Partial(name, fd, in_memory=True)
        return partial

    def error(self, exc: OSError) -> CacheError:
        """Return the exception for an error of the disk, with a remedy, and log the error once."""
        if is_full(exc):
            what = f"{exc.strerror}; make room there or choose another cache directory"
        elif exc.errno in (errno.EMFILE, errno.ENFILE):
            what = f"{exc.strerror}; raise the limit (ulimit -n) or close files"
        else:
            what = f"{exc.strerror}; correct that or choose another cache directory"
        self._trouble(exc)
        return CacheError(f"cache directory {self._shelf.directory}: {what}")

    # In a thread.

    async def reserve(self, partial: Partial, size: int) -> None:
        """Reserve the bytes of a download before they are written, evicting other files.

        Raises CacheError where the download is in memory and no more of that may be used.
        """
        grown, partial.reserved = size - partial.reserved, size
        if partial.in_memory:
            self._in_memory += grown
            if self._in_memory > MEMORY:
                raise CacheError(f"cache directory {self._shelf.directory}: there is no room, and none left in memory")
            return
        await self._write(self._shelf.reserve, partial.name, size, grown)

    async def keep(self, partial: Partial, row: Row) -> bool:
        """Turn a verified download into a cached file; return False if it cannot be cached."""
        if not partial.in_memory and row.size <= self.limit and await self._write(self._shelf.keep, partial.name, row):
            partial.kept = True
            partial.reserved = 0
            del self._partials[partial.name]
            self._no_trouble()
        return partial.kept

    async def keep_whole(self, files: Sequence[tuple[Row, bytes]]) -> set[bytes]:
        """Write verified files that are in memory, and return the identities of those that were written."""
        fit = [(row, data) for row, data in files if row.size <= self.limit]
        if not fit or not await self._write(self._shelf.keep_whole, fit):
            return set()
        self._no_trouble()
        return {row.ident for row, _ in fit}

    async def discard(self, partial: Partial) -> None:
        """Remove a download and close its descriptor."""
        if partial.in_memory:
            self._in_memory -= partial.reserved
            os.close(partial.fd)
            del self._partials[partial.name]
            return
        await self._in_thread(_unlink, self._shelf.partial_path(partial.name), partial.fd)
        del self._partials[partial.name]  # not before: `close` repeats a discard that was cancelled
        if partial.reserved:
            await self._write(self._shelf.release, partial.name)

    async def renew(self, row: Row) -> None:
        """Update a row after the server has confirmed the version."""
        await self._write(self._shelf.renew, row)

    async def evict(self, target: int) -> None:
        """Evict files that are not open until the total is at most `target` bytes."""
        await self._write(self._shelf.evict, target)

    async def drop(self, owners: Collection[str]) -> None:
        """Remove the files of these owners."""
        await self._write(self._shelf.drop, owners)

    async def owners(self) -> set[str]:
        """Return the owners of the cached files, as their rows have them."""
        return await self._write(self._shelf.owners) or set()

    async def tidy(self) -> None:
        """Remove leftovers of crashes, and evict down to the limit."""
        await self.tidy_partials()
        for first in range(256):
            await self._write(self._shelf.tidy_blobs, first)
        await self._trim()

    async def _trim(self) -> None:
        """Evict down to this process's limit: other processes may have another one."""
        if self.total() > self.limit:
            await self.evict(self.limit)

    async def tidy_partials(self) -> None:
        """Remove the downloads of processes that share the directory and have ended."""
        await self._write(self._shelf.tidy_partials, set(self._partials))

    async def flush(self) -> None:
        """Write recency, sync new files to the disk, and remove leftovers of other processes."""
        await self.tidy_partials()
        await self._trim()
        if self._shelf.recent:
            await self._write(self._shelf.touch)
        while await self._write(self._shelf.sync):
            await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Remove this process's partials, write recency, and close the index."""
        for partial in list(self._partials.values()):
            await self.discard(partial)
        await self._write(self._shelf.touch)
        await self._in_thread(self._shelf.close)

    async def _write(self, work: Callable[[*Ts], T], *args: *Ts) -> T | None:
        return await self._in_thread(self._at_healed, work, *args)

    def _at_healed(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        if (old := self._shelf.heal()) is not None:
            if not old.damaged:
                self._tell("its index was removed by others; what was kept is fetched anew")
            own = [(each.name, each.reserved) for each in list(self._partials.values()) if not each.in_memory]
            self._shelf.adopt(own)
        return work(*args)

    async def _in_thread(self, work: Callable[[*Ts], T], *args: *Ts) -> T | None:
        await trio.lowlevel.checkpoint_if_cancelled()
        # Shielded from here on: it is short, and the state of the waiting task depends on its result.
        with trio.CancelScope(shield=True):
            async with self._lock:
                try:
                    return await trio.to_thread.run_sync(work, *args)
                except (sqlite3.Error, OSError) as exc:
                    self._trouble(exc, self._shelf.index)
        return None

    def _trouble(self, exc: Exception, index: Index | None = None) -> None:
        if isinstance(exc, TimeoutError) or is_busy(exc):
            self._tell(f"{why_locked(exc, self._shelf.directory)}; files are fetched but not kept", locks.log)
        else:
            self._tell(f"{exc}; files are fetched but not kept")
        if index is not None and is_damage(exc):
            index.damaged = True  # the next write sets it aside

    def _tell(self, what: str, to: logging.Logger = log) -> None:
        self._troubled = time.monotonic()
        if not self._told:
            self._told = True
            to.warning("cache directory %s: %s", self._shelf.directory, what)

    def _no_trouble(self) -> None:
        if self._told and time.monotonic() - self._troubled > QUIET:
            self._told = False
            log.info("cache directory %s: files are kept again", self._shelf.directory)


def _unlink(path: str, fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.close(fd)
