"""Share verified files between machines: a directory of files by digest and length, on a disk that all of them mount.

    DIR/<md5>-<size>

The store is neither trusted nor required: an entry is compared with the listing's digest and length before it enters a
cache, and a failure costs a download at most. It has no index; entries are written under temporary names and renamed.
If the mode of DIR lets other users enter and write but not list it, an entry is found only by its digest, which a
listing of the server states. There are no directories in DIR: the user that makes one can list it, whatever DIR allows.
"""

import hashlib
import logging
import os
import stat
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
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
# Seconds after which a claim counts as one of a machine that has ended. Clocks of machines differ by less, and no claim
# is waited for that long.
CLAIM_AGE_SECONDS = 600.0


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

    async def open(self, version: Version) -> int | None:
        """Return a descriptor of an entry whose bytes were verified just now; None if there is none."""
        return await self._in_thread(self._open_verified, version) if is_shareable(version) else None

    async def find(self, versions: Collection[Version]) -> set[Version]:
        """Return the versions that have an entry."""

        def exist() -> set[Version]:
            return {version for version in versions if is_shareable(version) and self._path(version).exists()}

        return await self._in_thread(exist) or set()

    async def put(self, version: Version, source: int | bytes) -> None:
        """Add a verified file, given as its bytes or as a descriptor, unless it is there."""
        if is_shareable(version):
            await self._in_thread(self._put, version, source)

    @asynccontextmanager
    async def turn(self, name: str, is_over: Callable[[], Awaitable[bool]]) -> AsyncIterator[bool]:
        """Claim a name among the machines for the context, once no other has claimed it; yield whether one had.

        Wait no longer than until `is_over`, which is called at each look; then the context has no claim. A claim only
        saves requests: it is a file, which a machine that ends at once leaves behind for CLAIM_AGE_SECONDS.
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
                with trio.CancelScope(shield=True):
                    await self._in_thread(partial(path.unlink, missing_ok=True))

    def _path(self, version: Version) -> Path:
        return self._directory / f"{version.digest}-{version.size}"

    def _open_verified(self, version: Version) -> int | None:
        path = self._path(version)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            if not self._directory.is_dir():
                raise
            return None
        if self._is_sound(fd, version):
            self.hits += 1
            return fd
        os.close(fd)
        self.poisoned += 1
        log.warning("shared cache: the content of %s does not match its name; the file is not used", path)
        with suppress(OSError):  # of another user: it stays, and is reported again
            path.unlink()
        return None

    def _is_sound(self, fd: int, version: Version) -> bool:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != version.size:
            return False
        found = hashlib.md5(usedforsecurity=False)
        offset = 0
        while data := os.pread(fd, COPY_PIECE_BYTES, offset):
            found.update(data)
            offset += len(data)
        return found.hexdigest() == version.digest

    def _put(self, version: Version, source: int | bytes) -> None:
        path = self._path(version)
        if path.exists():
            return
        mode = self._directory.stat().st_mode
        beside = path.with_name(f".{uuid.uuid4().hex}")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if isinstance(source, bytes):
                write_all(fd, memoryview(source), 0)
            else:
                copy_range(source, fd, 0, version.size or 0)
            # Readable for those that may enter the directory.
            os.fchmod(fd, 0o400 | (mode & 0o011) << 2)
            os.rename(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T | None:
        """Run blocking work; return None if the store cannot be used, which is logged once."""
        try:
            return await trio.to_thread.run_sync(work, *args)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                why = f"{error.strerror}: {error.filename or self._directory}"
                log.warning("shared cache %s: %s; files come from the server", self._directory, why)
            return None


def _claim(path: Path) -> bool | None:
    """Create a claim; return False if another machine has one, None if only its user can remove an old one."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return True
    try:
        if time.time() - path.lstat().st_mtime > CLAIM_AGE_SECONDS:
            path.unlink()
    except FileNotFoundError:
        pass  # it is free now
    except OSError:
        return None
    return False


def is_shareable(version: Version) -> bool:
    """Return whether digest and length identify a file."""
    return bool(version.digest) and version.size is not None
