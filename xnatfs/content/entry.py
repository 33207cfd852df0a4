"""A file that is open, filling, or idle: what the cache remembers of it besides its bytes."""

import hashlib
import os
from functools import lru_cache

from xnatfs.content.blob import Blob
from xnatfs.content.disk.index import Row
from xnatfs.content.disk.store import Partial
from xnatfs.content.fill import Fill
from xnatfs.content.source import Version


class Entry:
    """One version of one file."""

    __slots__ = ("blob", "checked", "fill", "ident", "in_memory", "left_at", "listed", "owners", "row")

    def __init__(self, ident: bytes, version: Version, checked: float) -> None:
        self.ident = ident
        self.blob: Blob
        self.fill: Fill | None = None
        self.row: Row | None = None  # once it is whole
        self.listed = version.size
        self.owners = version.owners
        self.checked = checked
        self.left_at = 0.0
        self.in_memory = False  # and not to be closed before writeback.py lets go of it

    @property
    def reserved(self) -> int:
        """Bytes that its download is counted with."""
        part = self.fill.intake.partial if self.fill is not None else None
        return part.reserved if part is not None else 0

    def release(self) -> Partial | None:
        """Close the file, unless it is a partial: then it is the caller's to discard."""
        part = None
        if self.fill is not None:
            self.fill.drop_kept()
            part = self.fill.intake.partial
        fd, self.blob.fd = self.blob.fd, -1
        if part is not None and not part.kept:
            return part
        if fd >= 0:
            os.close(fd)
        return None


@lru_cache(maxsize=1024)  # it is asked for four times while a file is on its way
def identity(version: Version) -> bytes:
    """What makes two opens the same file. Hashed: of one length, and fit for a file name."""
    text = f"{version.key}\0{version.digest}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
