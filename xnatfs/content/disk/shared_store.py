"""Share verified files between machines: a directory of files by digest and length, on a disk that all of them mount.

    DIR/<2 hex>/<md5>-<size>

The store is not trusted, and not needed: an entry is compared with the listing's digest and length before it enters a
cache, and whatever fails there only costs a download. It has no index and no locks; entries are written beside their
place and renamed. Its directories have the mode of DIR. Where that lets other users enter and write but not list it,
only those find an entry that know its digest, from a listing of the server.
"""

import hashlib
import logging
import os
import stat
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trio

from xnatfs.content.disk.files import COPY_PIECE_BYTES, copy_range, write_all
from xnatfs.content.source import Version

log = logging.getLogger(__name__)

T = TypeVar("T")


class SharedStore:
    """The store in a directory.

    Attributes:
        hits: Files that came from it.
        poisoned: Entries whose content was not that of their name.
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

    def _path(self, version: Version) -> Path:
        return self._directory / version.digest[:2] / f"{version.digest}-{version.size}"

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
        log.warning("shared cache: %s is not what its name says: it is not used", path)
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
        with suppress(FileExistsError):
            path.parent.mkdir()
            path.parent.chmod(stat.S_IMODE(mode))
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


def is_shareable(version: Version) -> bool:
    """Return whether digest and length identify a file."""
    return bool(version.digest) and version.size is not None
