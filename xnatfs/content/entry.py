"""Describe a file that is open, filling or idle: the state that the cache holds besides its bytes."""

import os

from xnatfs.content.blob import Blob
from xnatfs.content.disk.index import BlobRow
from xnatfs.content.disk.partial import Partial
from xnatfs.content.fill import Fill
from xnatfs.content.source import Version


class Entry:
    """One version of one file in the cache.

    Args:
        ident: The hash that `identity` returns for the version.
        version: The version.
        blob: The blob that readers share.
        checked: When it was last checked on the server, in seconds since the epoch.
    """

    def __init__(self, ident: bytes, version: Version, blob: Blob, checked: float) -> None:
        self.ident = ident
        self.blob = blob
        self.fill: Fill | None = None
        self.row: BlobRow | None = None  # None until the file is complete
        self.listed = version.size
        self.folder = version.folder
        self.checked = checked
        self.is_queued = False  # in `WriteBehind`, which needs its bytes

    @property
    def is_big_download(self) -> bool:
        """Return whether a big file is being downloaded."""
        return self.fill is not None and self.fill.is_running and not self.fill.planner.is_small

    def make_row(self, size: int, modified: str) -> BlobRow:
        """Return the row of the index under which a complete file of this size and date is stored."""
        key = self.blob.key.encode("utf-8", "backslashreplace").decode()  # SQLite takes no lone surrogates
        return BlobRow(self.ident, key, self.listed, size, modified, self.checked, self.checked, "")

    def release(self) -> Partial | None:
        """Close the file; a partial stays open and is returned, for the caller to discard."""
        part = None
        if self.fill is not None:
            self.fill.close_older()
            part = self.fill.writer.partial
        fd, self.blob.fd = self.blob.fd, -1
        if part is not None and not part.kept:
            return part
        if fd >= 0:
            os.close(fd)
        return None
