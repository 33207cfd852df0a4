"""One file as its readers see it: a local file that fills while it is read.

Reader and fetcher share no queue and no buffer. They meet at a file, a set of spans, and a parking lot; so streaming,
caching and many readers of one file are one code path.

Invariants:
- `size` is the true length from the moment `ready` is set. A read returns exactly its bytes or raises.
- Nothing of a `whole` blob is handed out before `complete`.
- Otherwise bytes are handed out as they come, in any order, but for the last HOLD_BACK of those that no reader has had
  yet: a read that would leave less waits until the whole is verified. So all readers together miss a piece of a file
  that is not as it should be, wherever each of them began.
- A failure, once stored, is what every later read raises; a complete blob has none.
- A big file that no disk takes is never complete: only what is near its readers is here, in memory. All before `floor`
  has come once, and is asked for again by who goes back.
"""

import os
from collections.abc import Callable

import trio

from xnatfs.common.errors import CacheError, XnatError
from xnatfs.content.byte_ranges import Spans

# One kernel read at the default read-ahead: what a reader misses of a damaged file is at least its last read.
HOLD_BACK = 128 * 1024


class Blob:
    """An open file. All who have one version open share one; each open is paired with one `close`."""

    __slots__ = (
        "_handed_count",
        "_handed_out",
        "_left",
        "_progress",
        "complete",
        "failure",
        "fd",
        "floor",
        "key",
        "memory",
        "ready",
        "seen",
        "size",
        "spans",
        "stamp",
        "users",
        "verified",
        "waits",
        "want",
        "whole",
    )

    def __init__(self, key: str, left: Callable[[], None]) -> None:
        self.size = -1  # the true length
        self.complete = False  # whole and verified
        self.stamp = ""  # what tells this content from others of its version; "" where that has a digest
        # The rest is for fill.py and cache.py.
        self.key = key
        self.users = 0
        self.fd = -1
        self.memory: bytes | None = None  # all of it, in place of a file
        self.whole = True
        self.failure: XnatError | None = None
        self.spans = Spans()
        self.floor = 0  # all before this has come, and need not be here any more
        self.verified = False  # all has come and was as it should be, but is not all here
        self.ready = trio.Event()  # `size` is known, or `failure`
        self.waits: list[tuple[int, int]] = []  # ranges that readers wait for
        self.want: Callable[[int], None] = _nothing  # see to it that the byte at this offset comes
        self.seen: Callable[[int, int], None] = _nothing  # somebody reads this range
        self._handed_out = Spans()  # to any reader, before it was verified
        self._handed_count = 0  # bytes of that
        self._left = left
        self._progress = trio.lowlevel.ParkingLot()

    async def read(self, offset: int, length: int) -> bytes:
        """Return the bytes there, b"" at or after the end, never fewer than there are."""
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        end = min(offset + length, self.size)
        if not self.complete and (offset < end or self.size == 0):
            # An empty file is waited for too: more may come than was announced.
            self.seen(offset, end)
            await self._arrival(offset, end, lambda: self._servable(offset, end))
            self._note_handed_out(offset, end)
        if offset >= end:
            return b""
        if self.memory is not None:
            return self.memory[offset:end]
        data = os.pread(self.fd, end - offset, offset)
        if len(data) != end - offset:
            raise CacheError(f"{self.key}: its cached copy was cut short by someone else; open it again")
        return data

    async def verdict(self) -> None:
        """Wait until the whole file has been received and verified. Raises what a read raises."""
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        if not self._is_verified:
            self.seen(0, 1)
            await self._arrival(0, 1, lambda: self._is_verified)

    def close(self) -> None:
        """End a reader's use of it."""
        self.users -= 1
        if self.users == 0:
            self._left()

    async def _arrival(self, offset: int, end: int, is_ready: Callable[[], bool]) -> None:
        wait = (offset, end)
        self.waits.append(wait)
        try:
            while not is_ready():
                self.want(offset)
                await self._progress.park()
                if self.failure is not None:
                    raise self.failure.with_traceback(None)
        finally:
            self.waits.remove(wait)

    def _servable(self, offset: int, end: int) -> bool:
        if self.complete:
            return True
        if self.whole or not self.spans.covers(offset, end):
            return False
        return self.verified or self._handed_count + self._new(offset, end) <= self.size - HOLD_BACK

    def _new(self, offset: int, end: int) -> int:
        """Count the bytes of a range that no reader has had yet."""
        return sum(stop - start for start, stop in self._handed_out.gaps(offset, end))

    def _note_handed_out(self, offset: int, end: int) -> None:
        if not self._is_verified:
            self._handed_count += self._new(offset, end)
            self._handed_out.add(offset, end)

    @property
    def _is_verified(self) -> bool:
        return self.complete or self.verified

    # For fill.py and cache.py.

    @property
    def handed_out(self) -> bool:
        """Return whether any byte was served before all were verified."""
        return self._handed_count > 0

    @property
    def handed_count(self) -> int:
        """Return how many bytes were served before all were verified."""
        return self._handed_count

    @property
    def awaited(self) -> bool:
        """Return whether a read is held back until the file is verified."""
        return not self.whole and any(self.spans.covers(start, end) for start, end in self.waits)

    @property
    def came(self) -> int:
        """All before this has come."""
        return self.spans.next_gap(self.floor)

    def wake(self) -> None:
        """Something has changed: readers look again."""
        self._progress.unpark_all()

    def hold(self, data: bytes) -> None:
        """All of it is here, as it should be, and nowhere else yet."""
        self.memory, self.size = data, len(data)
        self.finish()

    def finish(self) -> None:
        """All has come and is as it should be."""
        self.complete = True
        self.ready.set()
        self.wake()

    def fail(self, failure: XnatError) -> None:
        """Readers get this from now on."""
        self.failure = failure
        self.ready.set()
        self.wake()


def _nothing(*place: int) -> None:
    """Nobody to ask: the blob came from the cache."""
