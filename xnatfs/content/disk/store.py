"""Use the cache directory from the event loop: point reads inline, blocking work in a thread, one call at a time.

Invariants:
- `_lock` is held while a thread uses the directory, so the index has one writing thread per process.
- An error of the index or the disk alone never makes a read fail: it is logged once, and files are fetched but not
  cached until the directory works again. A file that the directory cannot store is elsewhere while it is open.
"""

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import trio

from xnatfs.common import locks
from xnatfs.common.errors import CacheLocked
from xnatfs.common.locks import lock
from xnatfs.content.disk.claims import Claims
from xnatfs.content.disk.directory import CacheDirectory, open_directory
from xnatfs.content.disk.index import BlobRow, Index, is_damage
from xnatfs.content.disk.partial import Elsewhere, Partial
from xnatfs.content.disk.shared_store import SharedStore
from xnatfs.content.disk.trouble import Trouble

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Store:
    """The cache directory of this process, with its partials."""

    def __init__(self, directory: CacheDirectory, shared: SharedStore | None = None) -> None:
        self.limit = directory.limit
        self._directory = directory
        self._lock = trio.Lock()
        self._partials: dict[str, Partial] = {}
        self._elsewhere = Elsewhere(directory.directory)
        self._trouble = Trouble(directory.directory)
        self.error = self._trouble.error
        self.shared = shared  # with other machines
        self.claims = Claims(directory.directory / "partial")

    # Inline.

    def counters(self) -> dict[str, int]:
        """Return the downloads of this process, and the bytes that all processes have in the directory."""
        return {
            "partials": len(self._partials),
            "reserved": sum(partial.reserved for partial in self._partials.values()),
            "kept_bytes": self.total(),
            "limit": self.limit,
            "evicted": self._directory.evicted,
            "shared_hits": self.shared.hits if self.shared else 0,
            "shared_poisoned": self.shared.poisoned if self.shared else 0,
        }

    def find_rows(self, idents: Sequence[bytes]) -> list[BlobRow]:
        """Return the existing rows of a batch of identities, no more than SQLite accepts in one statement.

        Rows whose file may not have survived a reboot are left out.
        """
        rows: list[BlobRow] = self._query(lambda index: index.find_rows(idents), [])
        return [row for row in rows if row.boot in ("", self._directory.boot)]

    def lookup(self, ident: bytes) -> BlobRow | None:
        """Return the row of an identity, as `find_rows` does."""
        return next(iter(self.find_rows([ident])), None)

    def total(self) -> int:
        """Return the bytes that are cached or reserved, over all processes."""
        return self._query(lambda index: index.total(), 0)

    def _query(self, query: Callable[[Index], T], otherwise: T) -> T:
        index = self._directory.index
        if index.damaged:
            return otherwise
        try:
            return query(index)
        except sqlite3.Error as exc:
            self._note_error(exc, index)
            return otherwise

    def touch(self, ident: bytes, now: float) -> None:
        """Record that a file was opened; the index is updated later, in a batch."""
        self._directory.recent[ident] = now

    def open(self, row: BlobRow) -> int | None:
        """Open a cached file and return its locked descriptor; None if it is gone, being evicted, or was changed."""
        try:
            path = self._directory.path(row.ident)
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise self.error(exc) from exc
            self._trouble.report(exc)
            return None
        if lock(fd, is_shared=True):
            status = os.fstat(fd)
            if (status.st_size, status.st_mtime_ns) == (row.size, row.written):
                return fd
        os.close(fd)
        return None

    def create(self) -> Partial:
        """Create an empty file for a download. Raises OSError."""
        partial = Partial(*self._directory.create_partial())
        self._partials[partial.name] = partial
        return partial

    def create_elsewhere(self, size: int) -> Partial:
        """Create a file for a download that the directory does not accept, as `Elsewhere.create` does."""
        try:
            partial = self._elsewhere.create(size)
        except OSError as exc:
            raise self.error(exc) from exc
        self._partials[partial.name] = partial
        return partial

    # In a thread.

    async def reserve(self, partial: Partial, size: int) -> None:
        """Reserve the bytes of a download before they are written, evicting other files.

        Raises CacheError where the download is in memory and no more of that may be used.
        """
        if partial.is_elsewhere:
            self._elsewhere.resize(partial, size)
            return
        grown, partial.reserved = size - partial.reserved, size
        await self._write(self._directory.reserve, partial.name, size, grown)

    async def keep(self, partial: Partial, row: BlobRow) -> bool:
        """Turn a verified download into a cached file; return False if it cannot be cached."""
        if partial.is_elsewhere or row.size > self.limit:
            return False
        if await self._write(self._directory.keep, partial.name, row):
            partial.kept = True
            partial.reserved = 0
            del self._partials[partial.name]
            self._trouble.end()
        return partial.kept

    async def keep_whole(self, files: Sequence[tuple[BlobRow, bytes]]) -> set[bytes]:
        """Write verified files that are in memory, and return the identities of those that were written."""
        fit = [(row, data) for row, data in files if row.size <= self.limit]
        if not fit or not await self._write(self._directory.keep_whole, fit):
            return set()
        self._trouble.end()
        return {row.ident for row, _ in fit}

    async def discard(self, partial: Partial) -> None:
        """Remove a download and close its descriptor."""
        path = "" if partial.is_elsewhere else self._directory.partial_path(partial.name)
        await self._in_thread(_remove, path, partial.fd)
        del self._partials[partial.name]  # not before: `close` repeats a discard that was cancelled
        if partial.is_elsewhere:
            self._elsewhere.resize(partial, 0)
        elif partial.reserved:
            await self._write(self._directory.release, partial.name)

    async def renew(self, row: BlobRow) -> None:
        """Update a row after the server has confirmed the version."""
        await self._write(self._directory.renew, row)

    async def remove(self, find: Callable[[Index], Sequence[bytes]]) -> None:
        """Remove the files whose identities `find` returns, open or not."""
        await self._write(self._directory.remove, find)

    async def with_index(self, work: Callable[[Index], T]) -> T | None:
        """Do some work with the index; return None if that is unusable."""
        return await self._write(self._directory.with_index, work)

    async def tidy(self) -> None:
        """Remove leftovers of crashes, and evict down to the limit."""
        await self.tidy_partials()
        for first in range(256):
            await self._write(self._directory.tidy_blobs, first)
        await self.evict()

    async def evict(self, target: int | None = None) -> None:
        """Evict files that are not open until the total is at most `target` bytes.

        By default that is the limit of this process, if it is exceeded: other processes may have another one.
        """
        if target is not None or self.total() > self.limit:
            await self._write(self._directory.evict, self.limit if target is None else target)

    async def tidy_partials(self) -> None:
        """Remove the downloads of processes that share the directory and have ended."""
        await self._write(self._directory.tidy_partials, set(self._partials))

    async def flush(self) -> None:
        """Write recency, sync new files to the disk, and remove leftovers of other processes."""
        await self.tidy_partials()
        await self.evict()
        if self._directory.recent:
            await self._write(self._directory.touch)
        while await self._write(self._directory.sync):
            await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Remove this process's partials, write recency, and close the index."""
        for partial in list(self._partials.values()):
            await self.discard(partial)
        await self._write(self._directory.touch)
        await self._in_thread(self._directory.close)

    async def _write(self, work: Callable[[*Ts], T], *args: *Ts) -> T | None:
        def with_index() -> T:
            if self._directory.reopen_if_lost():
                self._trouble.report("its index was removed by others; what was kept is fetched anew")
            return work(*args)

        return await self._in_thread(with_index)

    async def _in_thread(self, work: Callable[[*Ts], T], *args: *Ts) -> T | None:
        await trio.lowlevel.checkpoint_if_cancelled()
        # Shielded from here on: it is short, and the state of the waiting task depends on its result.
        with trio.CancelScope(shield=True):
            async with self._lock:
                try:
                    return await trio.to_thread.run_sync(work, *args)
                except (sqlite3.Error, OSError) as exc:
                    self._note_error(exc, self._directory.index)
        return None

    def _note_error(self, exc: Exception, index: Index) -> None:
        self._trouble.report(exc)
        if is_damage(exc):
            index.damaged = True  # the next write sets it aside


def _remove(path: str, fd: int) -> None:
    try:
        if path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    finally:
        os.close(fd)


def open_or_replace(directory: Path, limit: int, wait: float, temporary: ExitStack) -> CacheDirectory:
    """Open a cache directory, or one that `temporary` removes if another process keeps it locked. Raises CacheError."""
    try:
        return open_directory(directory, limit, wait)
    except CacheLocked as error:
        locks.log.warning("%s; until the end of this process its files are kept elsewhere, for it alone", error)
        other = tempfile.mkdtemp(prefix="xnatfs-")
        temporary.callback(shutil.rmtree, other, ignore_errors=True)
        return open_directory(Path(other), limit, wait)
