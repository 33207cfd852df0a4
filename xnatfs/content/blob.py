"""Serve one open file to its readers: a local file that fills while it is read.

Reader and download share no queue and no buffer. They meet at a file, a set of byte ranges, and a parking lot; so
streaming, caching and many readers of one file are one code path.

Invariants:
- `size` is the true length from the moment `ready` is set. A read returns exactly its bytes or raises.
- Nothing of a blob that `is_served_whole` is served before it is `complete`.
- Otherwise bytes are served as they arrive, in any order, except for the last HOLD_BACK_BYTES that no reader has had
  yet: a read that would leave less waits until the whole file is verified. So all readers together lack a piece of a
  damaged file, wherever each of them began.
- A failure, once stored, is what every later read raises; a complete blob has none.
"""

import os
from collections.abc import Callable
from typing import Protocol

import trio

from xnatfs.common.errors import CacheError, XnatError
from xnatfs.content.byte_ranges import ByteRanges

# One kernel read at the default read-ahead: what a reader misses of a damaged file is at least its last read.
HOLD_BACK_BYTES = 128 * 1024

# Up to here a file is fetched whole and verified before its first byte is served: programs read the end of a file first
# and its beginning next (dcm2niix), so there is nothing to gain by less, and 8 MiB take 0.1-1 s.
SMALL_FILE_BYTES = 8 * 1024 * 1024


def is_small(size: int) -> bool:
    """Return whether a file of this size is verified before its first byte is served."""
    return size <= SMALL_FILE_BYTES


class Filler(Protocol):
    """The downloads of a blob, as it sees them."""

    def on_wait(self, offset: int) -> None:
        """Fetch the byte at an offset: a reader is about to wait for it, or looks again after a change."""

    def on_read(self, start: int, end: int) -> None:
        """Note that a reader requests a range, present or not."""


class Blob:
    """An open file; all readers of one version share one blob, and each open is paired with one `close`.

    Args:
        key: The name of the file in error texts.
        on_unused: Called when the last reader has closed it.
        strict: True to serve no byte before all of them are verified, whatever the size.
    """

    def __init__(self, key: str, on_unused: "Callable[[Blob], None]", *, strict: bool = False) -> None:
        self.size = -1  # the true length
        self.complete = False  # all bytes are here, and verified
        self.stamp = ""  # distinguishes this content from others of its version; "" where that has a digest
        # The rest is for this package.
        self.key = key
        self.strict = strict
        self.users = 0
        self.fd = -1
        self.memory: bytes | None = None  # all of it, in place of a file
        self.failure: XnatError | None = None
        self.filler: Filler | None = None  # None where the blob is complete from the start
        self.present = ByteRanges()
        self.served = ByteRanges()  # to any reader, before the file was verified
        self.ready = trio.Event()  # `size` is known, or `failure`
        self.waits: list[tuple[int, int]] = []  # ranges that readers wait for
        self._on_unused = on_unused
        self._progress = trio.lowlevel.ParkingLot()

    async def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of a range: b"" at or after the end, and never fewer than there are before it.

        Raises XnatError: what the download failed with, or that the cached copy was cut short.
        """
        return self._read_present(offset, await self._received(offset, length))

    async def read_into(self, buffer: memoryview, offset: int) -> memoryview:
        """Return as many bytes as a buffer has room for, as `read` does, in a part of it or of the blob's own memory.

        A new object for each reply of 128 KiB or more would have its pages mapped and given back: reads of 1 MiB from
        the cache took three times as long.
        """
        end = await self._received(offset, len(buffer))
        if self.memory is not None:
            return memoryview(self.memory)[offset:end]
        part = buffer[: max(end - offset, 0)]
        if part and os.preadv(self.fd, (part,), offset) != len(part):
            raise self._cut_short()
        return part

    async def _received(self, offset: int, length: int) -> int:
        """Wait for the bytes of a range, and return its end, at most that of the file."""
        self._raise_failure()
        end = min(offset + length, self.size)
        if not self.complete and (offset < end or self.size == 0):
            # An empty file is waited for too: more may arrive than was announced.
            await self._wait(offset, end, lambda: self._is_servable(offset, end))
            if not self.complete:
                self.served.add(offset, end)
        return end

    def read_now(self, offset: int, length: int) -> bytes | None:
        """Return the bytes of a range as `read` does if the file is complete, else None. It may run in any thread."""
        return self._read_present(offset, min(offset + length, self.size)) if self.complete else None

    def _read_present(self, offset: int, end: int) -> bytes:
        if offset >= end:
            return b""
        if self.memory is not None:
            return self.memory[offset:end]
        data = os.pread(self.fd, end - offset, offset)
        if len(data) != end - offset:
            raise self._cut_short()
        return data

    def _cut_short(self) -> CacheError:
        return CacheError(f"{self.key}: another program cut its cached copy short; open it again")

    async def wait_until_verified(self) -> None:
        """Wait until the whole file has been received and verified. Raises what a read raises."""
        self._raise_failure()
        if not self.complete:
            await self._wait(0, 1, lambda: self.complete)

    def close(self) -> None:
        """End a reader's use of it."""
        self.users -= 1
        if self.users == 0:
            self._on_unused(self)

    async def _wait(self, start: int, end: int, is_ready: Callable[[], bool]) -> None:
        if self.filler is not None:
            self.filler.on_read(start, end)
        wait = (start, end)
        self.waits.append(wait)
        try:
            while not is_ready():
                if self.filler is not None:
                    self.filler.on_wait(start)
                await self._progress.park()
                self._raise_failure()
        finally:
            self.waits.remove(wait)

    def _is_servable(self, start: int, end: int) -> bool:
        if self.complete:
            return True
        if self.is_served_whole or not self.present.covers(start, end):
            return False
        new = sum(stop - first for first, stop in self.served.gaps(start, end))
        return self.served.total + new <= self.size - HOLD_BACK_BYTES

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure.with_traceback(None)

    # For this package.

    @property
    def is_served_whole(self) -> bool:
        """Return whether all of the file is verified before any of it is served."""
        return self.strict or is_small(self.size)

    @property
    def has_held_back_read(self) -> bool:
        """Return whether a read waits for the file to be verified, since its own bytes are present."""
        return not self.is_served_whole and any(self.present.covers(start, end) for start, end in self.waits)

    @property
    def contiguous_end(self) -> int:
        """Return the first missing byte."""
        return self.present.first_missing(0)

    def wake(self) -> None:
        """Let readers that wait look again."""
        self._progress.unpark_all()

    def hold(self, data: bytes) -> None:
        """Serve these bytes, which are the whole file, from memory."""
        self.memory, self.size = data, len(data)
        self.finish()

    def finish(self) -> None:
        """Serve all bytes: they are present and verified."""
        self.complete = True
        self.ready.set()
        self.wake()

    def fail(self, failure: XnatError) -> None:
        """Raise this error at all readers from now on."""
        self.failure = failure
        self.ready.set()
        self.wake()


def blob_of(key: str, data: bytes) -> Blob:
    """Return a blob of bytes that need no download, open once."""
    blob = Blob(key, lambda _: None)
    blob.users = 1
    blob.hold(data)
    return blob
