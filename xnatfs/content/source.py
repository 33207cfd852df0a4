"""What the cache is told about a file and how it asks for one; it knows nothing of servers.

A `Source` is one file somewhere; a `Body` is one download of it that has begun. `Body` is taken at its word: what it
says of offset, length and date is checked against what other replies said, never against what was asked for.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

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


class Source(Protocol):
    """One file on the server."""

    @property
    def seekable(self) -> bool:
        """False once it is known that the server does not grant ranges."""

    @property
    def grants(self) -> bool:
        """True once it is known that it does."""

    def open(
        self, start: int, size: int | None = None, unless_modified_since: str = "", stop: int | None = None
    ) -> AbstractAsyncContextManager[Body | None]:
        """Start a download; None says "not modified".

        A `start` above 0 is a wish: a Body from 0 may come instead. `size` is the file's length if it is known, so
        that nothing is asked for beyond it. From `stop` on nothing is wanted, but it may come.
        """


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
