"""Define the interface by which the cache fetches files, without knowledge of servers.

A `Source` is one file on a server; a `Body` is one download of it that has begun. The offset, length, date and
validator of a `Body` are checked against those of other replies, and its length against the listing.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

# Write the next bytes into a descriptor: the arguments are the descriptor (None to discard the bytes), the offset and
# the number of bytes. Yields the number of bytes of each write. Raises XnatError, and the OSError of the file: then the
# same bytes can be written again.
WriteInto = Callable[[int | None, int, int], AsyncGenerator[int]]


@dataclass(frozen=True, slots=True)
class Body:
    """A download that has begun; valid while the context that returned it is open.

    Its bytes arrive as `chunks`, or are written by `into`, where there is one and `size` is known.
    """

    start: int  # the offset in the file of the first byte
    size: int | None  # the whole file's length according to the reply; None if that does not state it
    modified: str  # Last-Modified as sent, "" if absent
    chunks: AsyncIterator[bytes]  # to the end, or to `stop`; raises an XnatError when it breaks
    into: WriteInto | None = None
    validator: str = ""  # equal in two replies only if they are of one version; "" where the reply has none
    framed: bool = True  # False: only the end of the connection marks its end, which may be a break
    whole: bool = False  # the server sends all of the file, whatever `start` and `stop` were requested


class Head(NamedTuple):
    """The length and date that a HEAD states."""

    size: int | None
    modified: str  # Last-Modified as sent, "" if absent


class Source(Protocol):
    """A file on the server."""

    @property
    def seekable(self) -> bool:
        """Return False once it is known that the server does not grant ranges."""

    @property
    def grants(self) -> bool:
        """Return True once it is known that the server grants ranges."""

    def open(self, start: int, size: int | None = None, stop: int | None = None) -> AbstractAsyncContextManager[Body]:
        """Start a download.

        Args:
            start: The offset of the first byte to request.
            size: The length of the file if it is known, so that no byte beyond it is requested.
            stop: The offset after the last byte to request; None for the end of the file. The server may send the whole
                file all the same.
        """

    async def head(self) -> Head:
        """Request what the server states of the file now."""


def folder_of(key: str) -> str:
    """Return the first part of a key."""
    return key.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a file as the listing has it."""

    key: str  # its place: resource ID and path, "34/a/b.dcm"
    size: int | None  # as listed; may be stale or unknown
    digest: str  # MD5 in lower-case hex, "" if the server computes none

    @property
    def folder(self) -> str:
        """Return the first part of the key, by which `ContentCache.drop` finds the file."""
        return folder_of(self.key)

    def stamp(self, stamp: str) -> str:
        """Return what distinguishes contents of this version: the given stamp, or '' where the digest does."""
        return "" if self.digest else stamp


@lru_cache(maxsize=1024)  # it is called four times while a file is fetched
def identity(version: Version) -> bytes:
    """Return what identifies a version, hashed: of one length, and fit for a file name."""
    text = f"{version.key}\0{version.digest}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


async def find_contradiction(version: Version, length: int, source: Source, *, framed: bool = False) -> str:
    """Return how the length of a body differs from the listed one, unless a digest or a HEAD settles it; else ''.

    Args:
        version: The version that was requested.
        length: The length of the body, in bytes.
        source: The source to request it from.
        framed: The body has an end of its own, which counts where nothing has stated any length.
    """
    if version.digest or length == version.size:
        return ""
    stated = (await source.head()).size
    if stated == length or (stated is version.size is None and framed):
        return ""
    by_listing, by_head = ("nothing" if size is None else size for size in (version.size, stated))
    return f"{length} bytes arrived, the listing states {by_listing}, a HEAD {by_head}; nothing was kept"
