"""Manage the files of a cache directory, their locks and the byte limit.

Every function here blocks; `store.py` calls them in a thread.

    directory/blobs/ab/abcd...     a cached file, named by the sha256 of its identity
    directory/partial/<unique>     a download under way, or one that must not be cached
    directory/index.sqlite         see index.py

Invariants:
- A process with an open file holds a shared flock on it, and a downloading one on its partial, too. A process evicts
  only files that it can lock exclusively. So a file that is open in any process stays, and a partial that can be locked
  belongs to a process that has ended.
- Files under blobs/ change only inside an index transaction. A crash leaves a row and its file, or a file without a
  row, or (evicted) a row without a file; `tidy` removes the latter two.
- There is no fdatasync before the rename: it took 0.55 ms per file on an SSD, several times the rest of caching it. A
  crash of the process loses nothing (the kernel has the pages). For a crash of the machine the row names the boot, and
  rows of another boot do not count. `sync` clears that mark later, when the kernel has written most pages by itself.
- The total exceeds the limit only by files that are open.
- A file or folder that another program removes is created anew when it is next needed. A file that another program
  changes counts as absent.
"""

import contextlib
import dataclasses
import errno
import math
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from xnatfs.common.errors import CacheError, CacheLocked
from xnatfs.common.files import make_private
from xnatfs.common.locks import holder, lock, lock_within
from xnatfs.content.disk.files import create, in_folder, is_full, measure_files, opened, write_new
from xnatfs.content.disk.index import BlobRow, Index, is_busy, open_index, set_aside, wal_locks

T = TypeVar("T")

INDEX_NAME = "index.sqlite"

# Bytes that are freed at least when the disk is full, so that not every write evicts.
SPARE_BYTES = 64 * 1024 * 1024

# Files per call of `sync`. Each may take 10 ms on a hard disk, and closing the cache waits for the call to end.
SYNC_BATCH_FILES = 32


class CacheDirectory:
    """A cache directory as one process uses it.

    Args:
        directory: Its path.
        limit: The most bytes that it may hold, except for open files.
        index: Its open index.
        wait: Seconds to wait for the locks of other processes.
    """

    def __init__(self, directory: Path, limit: int, index: Index, wait: float = math.inf) -> None:
        self.directory = directory
        self._wait = wait
        self._blocked = False  # the last wait for the directory's lock timed out: no waiting until it is acquired again
        self.limit = limit
        self.index = index
        self.boot = _boot_id()
        self.recent: dict[bytes, float] = {}  # the times of opens that the index does not have yet
        self.evicted = 0  # evicted files since the directory was opened

    def path(self, ident: bytes) -> str:
        """Return the path of a cached file."""
        name = ident.hex()
        return f"{self.directory}/blobs/{name[:2]}/{name}"

    def partial_path(self, name: str) -> str:
        """Return the path of a download."""
        return f"{self.directory}/partial/{name}"

    def create_partial(self) -> tuple[str, int]:
        """Create an empty file for a download, and return its name and locked descriptor."""
        while True:
            name = uuid.uuid4().hex
            fd = in_folder(self.partial_path(name), lambda path: create(path, os.O_RDWR))
            # The tidying of another process may have removed it between these two steps.
            if lock(fd, is_shared=True) and os.fstat(fd).st_nlink:
                return name, fd
            os.close(fd)

    def reserve(self, name: str, size: int, grown: int) -> None:
        """Reserve the bytes of a download before they are written, evicting other files.

        Args:
            name: The name of the partial.
            size: The bytes to reserve in all.
            grown: The bytes by which `size` exceeds the earlier reservation.
        """
        with self.index.transaction():
            if size > self.limit:
                # It will not be cached, so no other file is evicted for it: it exceeds the limit while it is open.
                self.index.release([name])
                return
            self._make_room(self.limit - grown)
            self.index.reserve(name, size)

    def release(self, name: str) -> None:
        """End the reservation of a download."""
        with self.index.transaction():
            self.index.release([name])

    def keep(self, name: str, row: BlobRow) -> bool:
        """Turn a verified download into a cached file."""
        source, target = self.partial_path(name), self.path(row.ident)
        with self.index.transaction():
            self.index.release([name])
            self._make_room(self.limit - row.size)
            in_folder(target, lambda path: os.rename(source, path))
            self.index.put(self._written(row))
        return True

    def keep_whole(self, files: Sequence[tuple[BlobRow, bytes]]) -> bool:
        """Write verified files, all or none; where the disk is full, evict others and retry once."""
        try:
            return self._keep_whole(files)
        except (OSError, sqlite3.Error) as exc:
            if not is_full(exc):
                raise
            self.evict(self.index.total() - max(SPARE_BYTES, sum(row.size for row, _ in files)))
            return self._keep_whole(files)

    def _keep_whole(self, files: Sequence[tuple[BlobRow, bytes]]) -> bool:
        """Write the files in one transaction.

        They are written under their final names: a reader finds none without its row, `tidy_blobs` waits for the
        transaction, and a crash leaves files without rows.
        """
        written: list[str] = []
        try:
            with self.index.transaction():
                for row, data in files:
                    self._make_room(self.limit - row.size)
                    written.append(self.path(row.ident))
                    write_new(written[-1], data)
                    self.index.put(self._written(row))
        except BaseException:
            for path in written:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            raise
        return True

    def renew(self, row: BlobRow) -> None:
        """Update a row after the server has confirmed the version."""
        with self.index.transaction():
            self.index.renew(row)

    def evict(self, target: int) -> None:
        """Evict files that are not open until the total is at most `target` bytes."""
        with self.index.transaction():
            self._make_room(target)

    def remove(self, find: Callable[[Index], Sequence[bytes]]) -> None:
        """Remove the files whose identities `find` returns, open or not.

        Readers that have such a file open keep its bytes; later opens do not find it.
        """
        with self.index.transaction():
            idents = find(self.index)
            for ident in idents:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path(ident))
            self.index.drop(idents)

    def with_index(self, work: Callable[[Index], T]) -> T:
        """Do some work with the index, in one transaction."""
        with self.index.transaction():
            return work(self.index)

    def touch(self) -> None:
        """Write the times of recent opens to the index."""
        with self.index.transaction():
            self._touch()

    def sync(self) -> bool:
        """Sync some new files to the disk, and return False if none are left.

        It runs outside of a transaction, because it may take long.
        """
        blobs = self.index.unsynced(self.boot, SYNC_BATCH_FILES)
        for ident, _ in blobs:
            with contextlib.suppress(FileNotFoundError), opened(self.path(ident)) as fd:
                os.fdatasync(fd)
        with self.index.transaction():
            self.index.synced(blobs)
        return bool(blobs)

    def tidy_partials(self, own: set[str]) -> None:
        """Remove downloads of processes that have ended, and their reservations; `own` are those of this process.

        Without any this costs one query and one directory listing.
        """
        if self.index.reserved() | set(os.listdir(self.directory / "partial")) <= own:
            return
        with self.index.transaction():
            names = set(os.listdir(self.directory / "partial"))
            self.index.release(self.index.reserved() - names)
            for name in names:
                with contextlib.suppress(FileNotFoundError), opened(self.partial_path(name)) as fd:
                    if lock(fd):
                        os.unlink(self.partial_path(name))
                        self.index.release([name])

    def tidy_blobs(self, first: int) -> None:
        """Remove rows without files, and files without rows, of one folder.

        Other processes wait for the write lock meanwhile, which is why it is one folder at a time.

        Args:
            first: The first byte of the identities in the folder.
        """
        folder = self.directory / "blobs" / f"{first:02x}"
        with self.index.transaction():
            rows = {ident.hex(): row for ident, row in self.index.shard(first).items()}
            files = measure_files(folder)
            bad = [name for name, row in rows.items() if files.get(name) != row]
            self.index.drop(bytes.fromhex(name) for name in bad)
            for name in files.keys() - (rows.keys() - set(bad)):
                os.unlink(folder / name)

    def reopen_if_lost(self) -> bool:
        """Begin with an empty index where the current one was removed or damaged; return whether that was so.

        Downloads that run are not counted in the new one: like any open file they may exceed the limit.
        """
        if self.index.is_in_place() and not self.index.damaged:
            return False
        make_directories(self.directory)
        with self._locked():
            if self.index.is_in_place():
                set_aside(self.directory / INDEX_NAME)
            # The old one closes with its last reference: the event loop may be reading from it.
            self.index = open_index(self.directory / INDEX_NAME, self._wait)
        for first in range(256):
            self.tidy_blobs(first)
        return True

    def close(self) -> None:
        """Close the index; call it after everything else."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                stack.enter_context(self._locked())
            self.index.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the directory, without a second wait where another process keeps the lock."""
        wait, self._blocked = 0.0 if self._blocked else self._wait, True
        with locked(self.directory, wait):
            self._blocked = False
            yield

    def _written(self, row: BlobRow) -> BlobRow:
        """Complete the row of a file that has just been written under its final name."""
        return dataclasses.replace(row, boot=self.boot, written=os.stat(self.path(row.ident)).st_mtime_ns)

    def _touch(self) -> None:
        used, self.recent = self.recent, {}
        self.index.touch(used)

    def _make_room(self, target: int) -> None:
        over = self.index.total_now() - target
        if over <= 0:
            return
        self._touch()
        after = (-1.0, b"")
        while over > 0 and (batch := self.index.oldest(after)):
            for used, ident, size in batch:
                after = (used, ident)
                if over > 0 and self._remove(ident):
                    over -= size

    def _remove(self, ident: bytes) -> bool:
        path = self.path(ident)
        with contextlib.suppress(FileNotFoundError), opened(path) as fd:
            if not lock(fd):
                return False
            os.unlink(path)
            self.evicted += 1
        self.index.drop([ident])
        return True


def open_directory(directory: Path, limit: int, wait: float = math.inf) -> CacheDirectory:
    """Create or open a cache directory.

    Args:
        directory: Its path.
        limit: The most bytes that it may hold; half of the disk's free space is a limit, too.
        wait: Seconds to wait for the locks of other processes.

    Raises:
        CacheLocked: Another process keeps a lock there for longer.
        CacheError: The directory cannot be used.
    """
    try:
        make_directories(directory)
        with locked(directory, wait):
            index = open_index(directory / INDEX_NAME, wait)
    except (OSError, sqlite3.Error) as exc:
        if isinstance(exc, TimeoutError) or is_busy(exc):
            raise CacheLocked(f"cache directory {directory}: {why_locked(exc, directory)}") from exc
        raise _unusable(directory, exc) from exc
    made = CacheDirectory(directory, min(limit, _share_of_disk(directory, index.total())), index, wait)
    try:
        name, fd = made.create_partial()  # can it be written, and locked?
        os.unlink(made.partial_path(name))
        os.close(fd)
    except OSError as exc:
        made.close()
        raise _unusable(directory, exc) from exc
    return made


def make_directories(directory: Path) -> None:
    """Create a cache directory's folders with mode 0700. Raises OSError, also where another user owns one."""
    for folder in (directory, directory / "blobs", directory / "partial"):
        make_private(folder)
        status = folder.stat()
        if status.st_uid != os.geteuid():  # the owner could replace the cached bytes
            raise PermissionError(errno.EPERM, f"{folder} belongs to another user")
        if status.st_mode & 0o077:
            folder.chmod(0o700)


@contextlib.contextmanager
def locked(directory: Path, wait: float) -> Iterator[None]:
    """Lock a cache directory: to switch an index to WAL, set it aside or close it is not safe concurrently.

    Raises TimeoutError where another process keeps the lock for longer than `wait` seconds.
    """
    with opened(directory) as fd:
        if not lock_within(fd, wait):
            raise TimeoutError(f"locked by {holder(directory)}")
        yield


def why_locked(exc: Exception, directory: Path) -> str:
    """Return the error text for a directory that is locked, or whose index is."""
    return str(exc) if isinstance(exc, TimeoutError) else f"locked by {holder(wal_locks(directory / INDEX_NAME))}"


def _share_of_disk(directory: Path, used: int) -> int:
    """Return half of the space that would be free without the cache: other files need room, whatever its limit."""
    return (shutil.disk_usage(directory).free + used) // 2


def _unusable(directory: Path, exc: Exception) -> CacheError:
    why = exc.strerror if isinstance(exc, OSError) else exc
    return CacheError(f"cache directory {directory} cannot be used: {why}; correct that or choose another")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex  # unknown: then only synced files outlive the process
