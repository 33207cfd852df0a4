"""Read an open file from any thread: a complete file directly, any other through the portal."""

import errno
import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xnatfs.api import paths
from xnatfs.api.endpoint import Endpoint
from xnatfs.api.paths import OpenBlob
from xnatfs.api.portal import Portal, get_portal
from xnatfs.common.clock import now, now_in_thread
from xnatfs.common.errnos import errno_of
from xnatfs.common.errors import CacheError, NotFound, Stale, XnatError

# What a buffered reader requests at a time, in bytes: as much as the kernel requests of a mount.
BUFFER_BYTES = 1024 * 1024


@contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Raise the OSError that a mount would raise, with the text of the XnatError, which is its cause."""
    try:
        yield
    except XnatError as error:
        raise OSError(errno_of(error), str(error), path) from error
    except IsADirectoryError as error:
        raise IsADirectoryError(errno.EISDIR, str(error), path) from None


class XnatFile(io.RawIOBase):
    """A file on a server, open for reading. Threads may share it like any Python file.

    Args:
        endpoint: The server.
        path: The path of the file.

    Attributes:
        name: The path.
        size: The length in bytes.
        version: Differs between two contents of the file, as `DirEntry.version`.

    Raises:
        OSError: As `open(2)` in a mount.
    """

    def __init__(self, endpoint: Endpoint, path: str) -> None:
        super().__init__()
        self.name = path
        self._endpoint = endpoint
        self._position = 0
        self._portal, self._opened = self._open()
        self.size = self._opened.blob.size
        self.version = self._opened.version

    def _open(self) -> tuple[Portal, OpenBlob]:
        with os_errors(self.name):
            portal = get_portal(self._endpoint)
            opened = portal.call(paths.open_file, portal.root, self.name)
        self._permitted_until = 0.0  # on the clock of `now_in_thread`; then permission is requested anew
        return portal, opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position of the next read. Raises OSError (EINVAL) before the beginning."""
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.name)
        self._position = position
        return position

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer with bytes, up to the end of the file."""
        view = memoryview(buffer).cast("B")
        data = self.pread(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Read up to the end of the file."""
        data = self.pread(self._position, max(self.size - self._position, 0))
        self._position += len(data)
        return data

    def pread(self, offset: int, length: int) -> bytes:
        """Read a range without moving the position: fewer bytes than `length` only at the end of the file.

        Raises:
            OSError: As read(2) in a mount. Wrong or missing bytes are never returned.
        """
        if self.closed:
            raise ValueError("I/O operation on closed file")
        with os_errors(self.name):
            if now_in_thread() < self._permitted_until:
                data = self._opened.blob.read_now(offset, length)
                if data is not None:
                    return data
            return self._read_by_portal(offset, length)

    def _read_by_portal(self, offset: int, length: int) -> bytes:
        portal = get_portal(self._endpoint)
        if portal is not self._portal:  # after a fork, or when the connection was closed in between
            version = self.version
            self._portal, self._opened = self._open()
            if self._opened.version != version:
                raise Stale(f"{self.name} has changed since it was opened")
        data, seconds = portal.call(_read, self._opened, offset, length)
        self._permitted_until = now_in_thread() + seconds
        return data

    def close(self) -> None:
        """Close the file. Any thread may call it, and so may the garbage collector."""
        if not self.closed:
            if hasattr(self, "_opened"):
                self._portal.post(self._opened.blob.close)
            super().close()


class BufferedFile(io.BufferedReader):
    """An XnatFile, `raw`, with a buffer."""

    raw: XnatFile

    @property
    def size(self) -> int:
        """Return the length in bytes."""
        return self.raw.size


def local_path(endpoint: Endpoint, path: str) -> Path:
    """Fetch and verify a file, and return its path in the cache, where it stays until the portal ends.

    Raises OSError.
    """
    with os_errors(path):
        portal = get_portal(endpoint)
        found, descriptor = portal.call(paths.keep_local, portal.root, path)
    if portal.local_files.setdefault(str(found), descriptor) != descriptor:
        os.close(descriptor)
    return found


def copy_file(endpoint: Endpoint, path: str, target: str | os.PathLike[str]) -> None:
    """Copy a verified file to a local path. Raises OSError; then no part of the file is left there.

    A file that is there already, and cannot be opened for writing, stays.
    """
    try:
        with os_errors(path):
            portal = get_portal(endpoint)
            found, descriptor = portal.call(paths.keep_local, portal.root, path)
            source: io.RawIOBase = io.FileIO(descriptor)
    except OSError as error:
        if not isinstance(error.__cause__, CacheError):
            raise
        source = XnatFile(endpoint, path)  # the cache has no room for it
    with source, open(target, "wb") as file:
        try:
            shutil.copyfileobj(source, file, BUFFER_BYTES)
            file.flush()
        except BaseException:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # /dev/stdout is not to be removed
                Path(target).unlink(missing_ok=True)
            raise


async def _read(opened: OpenBlob, offset: int, length: int) -> tuple[bytes, float]:
    """Read a range; also return the seconds for which the file may be read without a request."""
    if opened.permit.until <= now():
        await opened.permit.renew()
    try:
        data = await opened.blob.read(offset, length)
    except NotFound as error:  # read(2) has no such error for an open file
        raise Stale(f"the file no longer exists: {error}") from error
    return data, opened.permit.until - now()
