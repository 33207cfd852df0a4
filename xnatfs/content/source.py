"""What the cache is told about a file and how it asks for one; it knows nothing of servers.

A `Source` is one file somewhere; a `Body` is one download of it that has begun. What a `Body` says of offset, length,
date and validator is checked against what other replies said, and its length against the listing.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

# Writes so many of the next bytes into a descriptor at an offset, or without one nowhere; yields how many more have
# come. Raises XnatError, and the OSError of the file: then the same bytes can be told to go there again.
Into = Callable[[int | None, int, int], AsyncGenerator[int]]


@dataclass(frozen=True, slots=True)
class Body:
    """A download that has begun; valid while the context that gave it is open.

    Its bytes come as `chunks`, or, where there is one and `size` is known, go where `into` is told.
    """

    start: int  # offset in the file of the first byte that comes
    size: int | None  # the whole file's length according to the reply; None if it did not say
    modified: str  # Last-Modified as sent, "" if absent
    chunks: AsyncIterator[bytes]  # to the end, or to `stop`; raises an XnatError when it breaks
    into: Into | None = None
    validator: str = ""  # the same in two replies: they are of one version; "" if nothing tells that
    framed: bool = True  # False: only the end of the connection tells its end, which may be a break
    whole: bool = False  # the server sends all of the file, whatever `start` and `stop` were requested


class Head(NamedTuple):
    """Hold the length and date that a HEAD states."""

    size: int | None
    modified: str  # Last-Modified as sent, "" if absent


class Source(Protocol):
    """One file on the server."""

    @property
    def seekable(self) -> bool:
        """False once it is known that the server does not grant ranges."""

    @property
    def grants(self) -> bool:
        """True once it is known that it does."""

    def open(self, start: int, size: int | None = None, stop: int | None = None) -> AbstractAsyncContextManager[Body]:
        """Start a download.

        `start` and `stop` are a wish: a whole Body may come instead. `size` is the file's length if it is known, so
        that nothing is requested beyond it.
        """

    async def head(self) -> Head:
        """Request what the server states of the file now."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a file as the listing has it."""

    key: str  # where it is: resource id and path, "34/a/b.dcm"
    size: int | None  # as listed; may be stale or unknown
    digest: str  # MD5 in lower-case hex, "" if the server computes none
    # What it belongs to, in any words without a line break: `ContentCache.drop` takes one. It is the same file without.
    owners: tuple[str, ...] = field(default=(), compare=False)

    def stamp(self, stamp: str) -> str:
        """What tells a content of this version from another one of it: this, or nothing where the digest does."""
        return "" if self.digest else stamp
