"""Create the files of downloads outside of a cache directory that does not accept them.

Such a file has no name, and is gone once it is closed. A big one is in a directory for temporary files whose disk has
twice the room, so that it is not full afterwards; others are in memory.
"""

import contextlib
import enum
import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from xnatfs.common.errors import CacheFull

# The most bytes of files in memory because the directory does not accept them: some thirty files that are fetched
# whole, or one big file where no other directory has room for it either.
MAX_MEMORY_BYTES = 256 * 1024 * 1024

# Where a big file is that the directory does not accept; None: $TMPDIR, or else /tmp.
TEMPORARY_FOLDERS = (None, "/var/tmp")

# Files up to this size are rather in memory than in another directory, in bytes.
MEMORY_FILE_BYTES = 8 * 1024 * 1024


class FilePlace(enum.Enum):
    """The places of a download's file."""

    DIRECTORY = enum.auto()
    TEMPORARY = enum.auto()  # in another directory, without a name
    MEMORY = enum.auto()


@dataclass(slots=True)
class Partial:
    """The file of a download, open and locked; once `kept`, the same file under blobs/."""

    name: str
    fd: int
    reserved: int = 0
    kept: bool = False
    place: FilePlace = FilePlace.DIRECTORY

    @property
    def is_elsewhere(self) -> bool:
        """Return whether the file is outside of the cache directory, and gone once it is closed."""
        return self.place is not FilePlace.DIRECTORY


class Elsewhere:
    """The places for files that a cache directory does not accept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._memory_used = 0  # bytes

    def create(self, size: int) -> Partial:
        """Create a file for `size` bytes; 0 if its length is unknown.

        Raises:
            CacheFull: There is no room.
            OSError: The process has no descriptor left.
        """
        for folder in TEMPORARY_FOLDERS if size > MEMORY_FILE_BYTES else ():
            with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
                disk = os.fstatvfs(file.fileno())
                if disk.f_bavail * disk.f_frsize >= 2 * size:
                    return Partial(uuid.uuid4().hex, os.dup(file.fileno()), size, place=FilePlace.TEMPORARY)
        partial = Partial(uuid.uuid4().hex, os.memfd_create("xnatfs", os.MFD_CLOEXEC), place=FilePlace.MEMORY)
        try:
            self.resize(partial, size)
        except CacheFull:
            os.close(partial.fd)
            raise
        return partial

    def resize(self, partial: Partial, size: int) -> None:
        """Count the bytes of a file, before they are written. Raises CacheFull where there is no room."""
        if partial.place is FilePlace.MEMORY:
            used = self._memory_used + size - partial.reserved
            if used > MAX_MEMORY_BYTES and size:
                raise CacheFull(
                    f"cache directory {self._directory}: there is no room, none in $TMPDIR (/tmp) or /var/tmp,"
                    " and none left in memory; make room in one of them"
                )
            self._memory_used = used
        partial.reserved = size
