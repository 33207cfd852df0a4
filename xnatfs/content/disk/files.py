"""Create, write and measure files of the cache, and recognize the errors of a full disk."""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Copied at a time, in bytes.
COPY_PIECE_BYTES = 1024 * 1024


def write_new(path: str, data: bytes) -> None:
    """Write a new file, replacing any file at that path, which another process may have open."""
    try:
        fd = in_folder(path, create)
    except FileExistsError:
        os.unlink(path)
        fd = create(path)
    try:
        write_all(fd, memoryview(data), 0)
    finally:
        os.close(fd)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of the data at an offset; pwrite(2) may write less at a time. Raises OSError."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def copy_range(source: int, target: int, start: int, stop: int) -> None:
    """Copy a range of one file into another, between any two file systems. Raises OSError."""
    while start < stop:
        data = os.pread(source, min(COPY_PIECE_BYTES, stop - start), start)
        if not data:
            raise OSError(errno.EIO, "a file in the cache directory was cut short")
        write_all(target, memoryview(data), start)
        start += len(data)


def create(path: str, access: int = os.O_WRONLY) -> int:
    """Create a private file that does not exist, and return its descriptor."""
    return os.open(path, access | os.O_CREAT | os.O_EXCL, 0o600)


def in_folder(path: str, make: Callable[[str], T]) -> T:
    """Call `make` for a path; where its folder is missing, create that, and call it again."""
    try:
        return make(path)
    except FileNotFoundError:
        for folder in reversed(Path(path).parents[:4]):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(0o700)
        return make(path)


def measure_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size in bytes and the modification time in ns of each file in a folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """Open a file or directory for reading, and close its descriptor at the end."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def duplicated(fd: int) -> Iterator[int]:
    """Duplicate a descriptor, and close the duplicate at the end."""
    copy = os.dup(fd)
    try:
        yield copy
    finally:
        os.close(copy)


def is_full(exc: Exception) -> bool:
    """Return whether an error means that the disk has no room, or no inode, left."""
    if isinstance(exc, OSError):
        return exc.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
