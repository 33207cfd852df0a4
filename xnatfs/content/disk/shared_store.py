"""Share verified files between machines: a directory of files by digest and length, on a disk that all of them mount.

    DIR/<md5>-<size>

The store is neither trusted nor required: an entry is compared with the listing's digest and length before it enters a
cache, and a failure costs a download at most, also where the disk hangs: no call is waited for longer than
DISK_CALL_SECONDS, and none is made while an earlier one hangs. It has no index; entries are written under temporary
names and renamed.
If the mode of DIR lets other users enter and write but not list it, an entry is found only by its digest, which a
listing of the server states. There are no directories in DIR: the user that makes one can list it, whatever DIR allows.
"""

import hashlib
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from xnatfs.content.disk.files import COPY_PIECE_BYTES, copy_range, write_all
from xnatfs.content.source import Version

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between looks at a claim of another machine: a round trip to a disk elsewhere is a tenth of it.
MACHINE_POLL_SECONDS = 0.02
# Seconds for which the file of another machine's claim is waited for: a file of 8 MiB takes so long on a slow line.
FILE_WAIT_SECONDS = 5.0
# Seconds after which a claim, or an entry that is being written, counts as one of a machine that has ended. Clocks of
# machines differ by less, and no claim is waited for that long.
LEFTOVER_SECONDS = 600.0
# Seconds between searches for leftovers, which list the directory.
TIDY_SECONDS = 3600.0
# The longest wait for one call of the disk, in seconds; while a call has taken half of it, no other one is made. A
# server of files that is restarted answers later, and is missed until it does.
DISK_CALL_SECONDS = 10.0
# Calls at a time, and names that are looked up or listed in one: 0.1 s of a disk elsewhere.
PARALLEL_CALLS, NAMES_PER_CALL = 16, 100


@dataclass(frozen=True)
class SharedFile:
    """A file of the store that is open; it is closed with its last reference, which a call that hangs may have."""

    path: Path
    fd: int

    def __del__(self) -> None:
        os.close(self.fd)


class SharedStore:
    """The store in a directory.

    Attributes:
        hits: Files that came from it.
        poisoned: Entries whose content did not match their name.
    """

    def __init__(self, directory: Path) -> None:
        self.hits = 0
        self.poisoned = 0
        self._directory = directory
        self._has_warned = False
        self._slots = trio.CapacityLimiter(PARALLEL_CALLS)
        self._calls: dict[object, float] = {}  # calls that have not returned, by the time when they began
        self._next_tidy = 0.0

    async def open(self, version: Version) -> SharedFile | None:
        """Open the entry of a version for `copy`; return None if there is none."""
        return await self._in_thread(self._open, version) if is_shareable(version) else None

    async def copy(self, entry: SharedFile, version: Version, target: int) -> bool:
        """Copy an entry into a file; return False if its content is not that of the version, or cannot be read.

        Raises OSError if the target cannot be written.
        """
        found, offset, size = hashlib.md5(usedforsecurity=False), 0, version.size or 0
        while offset < size:
            data = await self._in_thread(_read, entry, offset, min(COPY_PIECE_BYTES, size - offset), found)
            if not data:  # it cannot be read, or was cut short
                return False
            write_all(target, memoryview(data), offset)
            offset += len(data)
        if found.hexdigest() != version.digest:
            await self._in_thread(self._reject, entry.path)
            return False
        self.hits += 1
        return True

    async def find(self, versions: Sequence[Version]) -> set[Version]:
        """Return the versions that have an entry."""

        def exist(batch: Sequence[Version]) -> set[Version]:
            return {version for version in batch if is_shareable(version) and self._path(version).exists()}

        found = set[Version]()
        for start in range(0, len(versions), NAMES_PER_CALL):
            found |= await self._in_thread(exist, versions[start : start + NAMES_PER_CALL]) or set()
        return found

    async def put(self, version: Version, source: int | bytes) -> None:
        """Add a verified file, given as its bytes or as a descriptor, unless it is there."""
        if is_shareable(version):
            await self._in_steps(self._put(version, source))

    async def tidy(self) -> None:
        """Remove what machines that have ended left here, if this user may list the directory; once an hour."""
        if trio.current_time() >= self._next_tidy:
            self._next_tidy = trio.current_time() + TIDY_SECONDS
            await self._in_steps(self._tidy())

    @asynccontextmanager
    async def turn(self, name: str, is_over: Callable[[], Awaitable[bool]]) -> AsyncIterator[bool]:
        """Claim a name among the machines for the context, once no other has claimed it; yield whether one had.

        Wait no longer than until `is_over`, which is called at each look; then the context has no claim. A claim only
        saves requests: it is a file, which a machine that ends at once leaves behind for LEFTOVER_SECONDS.
        """
        path = self._directory / f"{name}.claim"
        is_ours = await self._in_thread(_claim, path)
        waited = is_ours is False
        while is_ours is False and not await is_over():
            await trio.sleep(MACHINE_POLL_SECONDS)
            is_ours = await self._in_thread(_claim, path)
        try:
            yield waited
        finally:
            if is_ours:
                await self._in_thread(partial(path.unlink, missing_ok=True))

    @asynccontextmanager
    async def file_turn(self, version: Version) -> AsyncIterator[bool]:
        """Claim a file as `turn` does; wait no longer than until its entry is there, or for FILE_WAIT_SECONDS."""
        until = trio.current_time() + FILE_WAIT_SECONDS

        async def is_over() -> bool:
            return trio.current_time() >= until or bool(await self.find([version]))

        async with self.turn(f"{version.digest}-{version.size}", is_over) as waited:
            yield waited

    # In a thread.

    def _path(self, version: Version) -> Path:
        return self._directory / f"{version.digest}-{version.size}"

    def _open(self, version: Version) -> SharedFile | None:
        path = self._path(version)
        try:
            entry = SharedFile(path, os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
        except FileNotFoundError:
            if not self._directory.is_dir():
                raise
            return None
        status = os.fstat(entry.fd)
        if stat.S_ISREG(status.st_mode) and status.st_size == version.size:
            return entry
        self._reject(path)
        return None

    def _reject(self, path: Path) -> None:
        self.poisoned += 1
        log.warning("shared cache: the content of %s does not match its name; the file is not used", path)
        with suppress(OSError):  # of another user: it stays, and is reported again
            path.unlink()

    def _put(self, version: Version, source: int | bytes) -> Iterator[None]:
        path = self._path(version)
        if path.exists():
            return
        mode = self._directory.stat().st_mode
        beside, size = path.with_name(f".{uuid.uuid4().hex}"), version.size or 0
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try:
                for start in range(0, size, COPY_PIECE_BYTES):
                    stop = min(start + COPY_PIECE_BYTES, size)
                    if isinstance(source, bytes):
                        write_all(fd, memoryview(source)[start:stop], start)
                    else:
                        copy_range(source, fd, start, stop)
                    yield
                # Readable for those that may enter the directory.
                os.fchmod(fd, 0o400 | (mode & 0o011) << 2)
            finally:
                os.close(fd)  # before it has its name: NFS sends what is written when a file is closed
            os.rename(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def _tidy(self) -> Iterator[None]:
        before = time.time() - LEFTOVER_SECONDS
        with suppress(PermissionError), os.scandir(self._directory) as entries:
            for count, entry in enumerate(entries, 1):
                if _LEFTOVER.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < before:
                    with suppress(OSError):  # of another user in a sticky directory, or removed meanwhile
                        os.unlink(entry.path)
                if not count % NAMES_PER_CALL:
                    yield

    # Calls.

    async def _in_steps(self, steps: Iterator[None]) -> None:
        """Run blocking work that yields after each step which the disk may take DISK_CALL_SECONDS for."""
        while await self._in_thread(_has_next, steps):
            pass

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T | None:
        """Run blocking work; return None if the store cannot be used, which is logged once.

        Work that has taken DISK_CALL_SECONDS goes on in its thread, and its result is dropped.
        """

        def run() -> T:
            self._calls[call] = time.monotonic()
            try:
                return work(*args)
            finally:
                del self._calls[call]

        call = object()
        if any(time.monotonic() - began > DISK_CALL_SECONDS / 2 for began in list(self._calls.values())):
            return None
        try:
            with trio.CancelScope(deadline=trio.current_time() + DISK_CALL_SECONDS, shield=True):
                return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._slots)
            why = f"no answer for {DISK_CALL_SECONDS:g} s"
        except OSError as error:
            why = f"{error.strerror}: {error.filename or self._directory}"
        if not self._has_warned:
            self._has_warned = True
            log.warning("shared cache %s: %s; files come from the server", self._directory, why)
        return None


def is_shareable(version: Version) -> bool:
    """Return whether digest and length identify a file."""
    return bool(version.digest) and version.size is not None


# Entries that are being written, and claims.
_LEFTOVER = re.compile(r"\.[0-9a-f]{32}|.*\.claim")


def _claim(path: Path) -> bool | None:
    """Create a claim; return False if another machine has one, None if only its user can remove an old one."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return True
    try:
        if time.time() - path.lstat().st_mtime > LEFTOVER_SECONDS:
            path.unlink()
    except FileNotFoundError:
        pass  # it is free now
    except OSError:
        return None
    return False


def _read(entry: SharedFile, offset: int, length: int, found: "hashlib._Hash") -> bytes:
    data = os.pread(entry.fd, length, offset)
    found.update(data)
    return data


def _has_next(steps: Iterator[None]) -> bool:
    return next(steps, steps) is None
