"""A cache directory: its files, their locks, the byte limit. Everything here blocks: store.py calls it in a thread.

    directory/blobs/ab/abcd...     a kept file, named by the sha256 of its identity
    directory/partial/<unique>     a download under way, or one that must not be kept
    directory/index.sqlite         see index.py

Invariants:
- Whoever has a file open holds a shared flock on it, a downloader on its partial too. Nobody removes a file that it
  cannot lock exclusively, so what is open in any process stays, and a partial that can be locked belongs to the dead.
- Files under blobs/ change only inside an index transaction. A crash leaves a row and its file, or a file without a
  row, or (evicted) a row without a file; `tidy` removes the latter two.
- No fdatasync before the rename: measured 0.55 ms a file on an SSD, several times all the rest of keeping one. A crash
  of the process loses nothing (the kernel has the pages); for a crash of the machine the row names the boot, and rows
  of another boot do not count. `sync` clears that mark later, when the kernel has written most pages by itself.
- The total exceeds the limit only by files that are open.
- What others remove below us is made anew by the next that needs it; what they change is as good as gone.
"""

import contextlib
import dataclasses
import errno
import fcntl
import math
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from xnatfs.common.errors import CacheError, CacheLocked
from xnatfs.common.locks import holder, lock, lock_within
from xnatfs.common.private_files import make_private
from xnatfs.content.disk.index import Index, Row, is_busy, open_index, set_aside, wal_locks

T = TypeVar("T")

INDEX = "index.sqlite"

# What is freed at least when the disk is full, so that not every chunk evicts.
SPARE = 64 * 1024 * 1024

# Files per call of `sync`. Each may cost 10 ms on a hard disk, and leaving the cache waits for the call to end.
SYNC_BATCH = 32


class Shelf:
    """One process's hold on a cache directory."""

    def __init__(self, directory: Path, limit: int, index: Index, wait: float = math.inf) -> None:
        self.directory = directory
        self._wait = wait  # for the locks of other processes
        self._blocked = False  # the last wait for the directory's was in vain: it is only tried until it is acquired
        self.limit = limit
        self.index = index
        self.boot = _boot_id()
        self.recent: dict[bytes, float] = {}  # opens that the index has not been told of
        self.crowded = False  # the last eviction met open files and stayed above the limit
        self.evicted = 0  # files, since it was opened

    def path(self, ident: bytes) -> str:
        """Where a kept file is."""
        name = ident.hex()
        return f"{self.directory}/blobs/{name[:2]}/{name}"

    def partial_path(self, name: str) -> str:
        """Where a download is."""
        return f"{self.directory}/partial/{name}"

    def create_partial(self) -> tuple[str, int]:
        """An empty file to download into: its name and locked descriptor."""
        while True:
            name = uuid.uuid4().hex
            fd = _in_folder(self.partial_path(name), lambda path: _create(path, os.O_RDWR))
            # Another process's tidy may have taken it between these two steps.
            if lock(fd, fcntl.LOCK_SH) and os.fstat(fd).st_nlink:
                return name, fd
            os.close(fd)

    def reserve(self, name: str, size: int, grown: int) -> None:
        """Count a download before it is written, having made room for it."""
        with self.index.transaction():
            if size > self.limit:
                # It will not be kept, so nothing else need go for it: it is above the limit while it is open.
                self.index.release([name])
                return
            self._make_room(self.limit - grown)
            self.index.reserve(name, size)

    def release(self, name: str) -> None:
        """A download is over."""
        with self.index.transaction():
            self.index.release([name])

    def keep(self, name: str, row: Row) -> bool:
        """Turn a verified download into a kept file."""
        source, target = self.partial_path(name), self.path(row.ident)
        with self.index.transaction():
            self.index.release([name])
            self._make_room(self.limit - row.size)
            _in_folder(target, lambda path: os.rename(source, path))
            self.index.put(self._written(row))
        return True

    def keep_whole(self, files: Sequence[tuple[Row, bytes]]) -> bool:
        """Write verified files, all of them or none; where the disk is full, in place of others."""
        try:
            return self._keep_whole(files)
        except (OSError, sqlite3.Error) as exc:
            if not is_full(exc):
                raise
            self.evict(self.index.total() - max(SPARE, sum(row.size for row, _ in files)))
            return self._keep_whole(files)

    def _keep_whole(self, files: Sequence[tuple[Row, bytes]]) -> bool:
        """In one transaction.

        Straight to their places: who looks for one before its row is there finds nothing, `tidy_blobs` waits for the
        transaction, and what a crash leaves is a file without a row.
        """
        written: list[str] = []
        try:
            with self.index.transaction():
                for row, data in files:
                    self._make_room(self.limit - row.size)
                    written.append(self.path(row.ident))
                    _write_new(written[-1], data)
                    self.index.put(self._written(row))
        except BaseException:
            for path in written:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            raise
        return True

    def renew(self, row: Row) -> None:
        """The server says that it is still this version."""
        with self.index.transaction():
            self.index.renew(row)

    def evict(self, target: int) -> None:
        """Bring the total down to this, as far as files are not open."""
        with self.index.transaction():
            self._make_room(target)

    def drop(self, owners: Collection[str]) -> None:
        """Remove what belongs to one of these, open or not: who has it open keeps the bytes, nobody else gets them."""
        with self.index.transaction():
            idents = self.index.owned(owners)
            for ident in idents:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path(ident))
            self.index.drop(idents)

    def owners(self) -> set[str]:
        """See the index."""
        with self.index.transaction():
            return self.index.owners()

    def touch(self) -> None:
        """Write down what was opened when."""
        with self.index.transaction():
            self._touch()

    def sync(self) -> bool:
        """See some new files to the disk; False if there are none left. Not in a transaction: it may take long."""
        blobs = self.index.unsynced(self.boot, SYNC_BATCH)
        for ident, _ in blobs:
            with contextlib.suppress(FileNotFoundError), opened(self.path(ident)) as fd:
                os.fdatasync(fd)
        with self.index.transaction():
            self.index.synced(blobs)
        return bool(blobs)

    def tidy_partials(self, own: set[str]) -> None:
        """Remove downloads of processes that are gone, and what was counted for them. Nothing to do costs a look."""
        if self.index.reserved() | set(os.listdir(self.directory / "partial")) <= own:
            return
        with self.index.transaction():
            names = set(os.listdir(self.directory / "partial"))
            self.index.release(self.index.reserved() - names)
            for name in names:
                with contextlib.suppress(FileNotFoundError), opened(self.partial_path(name)) as fd:
                    if lock(fd, fcntl.LOCK_EX):
                        os.unlink(self.partial_path(name))
                        self.index.release([name])

    def tidy_blobs(self, first: int) -> None:
        """Remove rows without their files and files without rows, of one folder: others wait for the lock meanwhile."""
        folder = self.directory / "blobs" / f"{first:02x}"
        with self.index.transaction():
            rows = {ident.hex(): row for ident, row in self.index.shard(first).items()}
            files = _sizes(folder)
            bad = [name for name, row in rows.items() if files.get(name) != row]
            self.index.drop(bytes.fromhex(name) for name in bad)
            for name in files.keys() - (rows.keys() - set(bad)):
                os.unlink(folder / name)

    def heal(self) -> Index | None:
        """See to it that there is an index, for us as for others; the one that was before, if there is a new one."""
        old = self.index
        if old.in_place() and not old.damaged:
            return None
        make_directories(self.directory)
        with self._locked():
            if old.in_place():
                set_aside(self.directory / INDEX)
            self.index = open_index(self.directory / INDEX, self._wait)
        return old  # closed when nobody has it any more: the event loop may be reading there

    def adopt(self, partials: list[tuple[str, int]]) -> None:
        """Have a new index agree with what there is: our downloads, and none of the files."""
        with self.index.transaction():
            for name, size in partials:
                self.index.reserve(name, size)
        for first in range(256):
            self.tidy_blobs(first)

    def close(self) -> None:
        """After everything else."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                stack.enter_context(self._locked())
            self.index.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The directory, which is not waited for a second time where a process keeps it."""
        wait, self._blocked = 0.0 if self._blocked else self._wait, True
        with locked(self.directory, wait):
            self._blocked = False
            yield

    def _written(self, row: Row) -> Row:
        """The row of a file that has just been put to its place."""
        return dataclasses.replace(row, boot=self.boot, written=os.stat(self.path(row.ident)).st_mtime_ns)

    def _touch(self) -> None:
        used, self.recent = self.recent, {}
        self.index.touch(used)

    def _make_room(self, target: int) -> None:
        over = self.index.total_now() - target
        self.crowded = False
        if over <= 0:
            return
        self._touch()
        after = (-1.0, b"")
        while over > 0 and (batch := self.index.oldest(after)):
            for used, ident, size in batch:
                after = (used, ident)
                if over > 0 and self._remove(ident):
                    over -= size
        self.crowded = over > 0

    def _remove(self, ident: bytes) -> bool:
        path = self.path(ident)
        with contextlib.suppress(FileNotFoundError), opened(path) as fd:
            if not lock(fd, fcntl.LOCK_EX):
                return False
            os.unlink(path)
            self.evicted += 1
        self.index.drop([ident])
        return True


def open_shelf(directory: Path, limit: int, wait: float = math.inf) -> Shelf:
    """Make or open a cache directory of at most `limit` bytes and half the free disk.

    Raises CacheLocked where another process keeps a lock there for longer than `wait` seconds, else CacheError.
    """
    try:
        make_directories(directory)
        with locked(directory, wait):
            index = open_index(directory / INDEX, wait)
    except (OSError, sqlite3.Error) as exc:
        if isinstance(exc, TimeoutError) or is_busy(exc):
            raise CacheLocked(f"cache directory {directory}: {why_locked(exc, directory)}") from exc
        raise _unusable(directory, exc) from exc
    shelf = Shelf(directory, min(limit, _share_of_disk(directory, index.total())), index, wait)
    try:
        name, fd = shelf.create_partial()  # can it be written, and locked?
        os.unlink(shelf.partial_path(name))
        os.close(fd)
    except OSError as exc:
        shelf.close()
        raise _unusable(directory, exc) from exc
    return shelf


def make_directories(directory: Path) -> None:
    """All that are needed, for nobody else to look into."""
    for folder in (directory, directory / "blobs", directory / "partial"):
        make_private(folder)
        status = folder.stat()
        if status.st_uid != os.geteuid():  # who owns it could put other bytes there
            raise PermissionError(errno.EPERM, f"{folder} belongs to another user")
        if status.st_mode & 0o077:
            folder.chmod(0o700)


@contextlib.contextmanager
def locked(directory: Path, wait: float) -> Iterator[None]:
    """One at a time: switching to WAL, and setting an index aside or closing it, are not safe in company.

    Raises TimeoutError where another process keeps it for longer than `wait` seconds.
    """
    with opened(directory) as fd:
        if not lock_within(fd, wait):
            raise TimeoutError(f"locked by {holder(directory)}")
        yield


def why_locked(exc: Exception, directory: Path) -> str:
    """What to say after the name of a directory of which the index or all is locked."""
    return str(exc) if isinstance(exc, TimeoutError) else f"locked by {holder(wal_locks(directory / INDEX))}"


def _share_of_disk(directory: Path, used: int) -> int:
    """Half of what would be free without the cache: whatever was asked for, others need room, too."""
    return (shutil.disk_usage(directory).free + used) // 2


def _unusable(directory: Path, exc: Exception) -> CacheError:
    why = exc.strerror if isinstance(exc, OSError) else exc
    return CacheError(f"cache directory {directory} cannot be used: {why}; correct that or choose another")


def _write_new(path: str, data: bytes) -> None:
    """A file of its own, whatever is there: others may have that open."""
    try:
        fd = _in_folder(path, _create)
    except FileExistsError:
        os.unlink(path)
        fd = _create(path)
    try:
        write_all(fd, memoryview(data), 0)
    finally:
        os.close(fd)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """All of it, there; pwrite(2) may take less at a time. Raises OSError."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _create(path: str, access: int = os.O_WRONLY) -> int:
    return os.open(path, access | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _in_folder(path: str, make: Callable[[str], T]) -> T:
    """What needs the folder of a file, which is made for its first one, and anew if somebody has removed it."""
    try:
        return make(path)
    except FileNotFoundError:
        for folder in reversed(Path(path).parents[:4]):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(0o700)
        return make(path)


def _sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """What is in a folder: size, and when it was written to last."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """A descriptor for reading, closed at the end."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def is_full(exc: Exception) -> bool:
    """Whether the disk has no room, or no inode, for what was to be written."""
    if isinstance(exc, OSError):
        return exc.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex  # unknown: then only what has been synced outlives the process
