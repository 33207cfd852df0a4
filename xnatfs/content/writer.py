"""What comes of a file: written where it is missing, hashed as far as it is contiguous, verified when it is all there.

Invariants:
- A byte that is present is never written again, so what readers saw is what is verified.
- The hash only takes bytes that it saw being written; all others are read back from the file. Those of a large file
  all are: in a thread that follows the download, since MD5 of a gigabyte keeps a core busy for 0.6 s or more.
- A download above SMALL is counted in the cache's total before it is written.
- Where the directory takes no file, or no more of it, the file is in memory: all of a `whole` blob, which begins anew;
  of another one what is near its readers, and what is not hashed yet.
"""

import contextlib
import hashlib
import mmap
import os

import trio

from xnatfs.common.errors import BadReply, CacheError
from xnatfs.content.blob import Blob
from xnatfs.content.byte_ranges import Spans
from xnatfs.content.disk.directory import SPARE, is_full, write_all
from xnatfs.content.disk.store import Partial, Store
from xnatfs.content.source import Version
from xnatfs.content.stats import Stats

# Up to here a file is fetched whole and verified before its first byte is handed out: programs read the end of a
# file first and its beginning next (dcm2niix), so there is nothing to gain by less, and 8 MiB take 0.1-1 s.
SMALL = 8 * 1024 * 1024

# Read back at a time for the digest, in a thread.
HASH_PIECE = 1024 * 1024
# How far the thread that hashes may be behind before it is sent after the download: 6 ms of its work.
HASH_BEHIND = 4 * HASH_PIECE

# Of a big file in memory: so much is behind a reader (read-ahead of the kernel comes out of order, by 1 MiB or two),
# so much ahead (half a second of 256 Mbit/s), and so much in all, with two downloads and what waits to be hashed.
BEHIND, THIN_AHEAD, WINDOW = 8 * 1024 * 1024, 16 * 1024 * 1024, 64 * 1024 * 1024


class Intake:
    """The file behind a blob while it fills."""

    def __init__(self, blob: Blob, version: Version, store: Store, stats: Stats, nursery: trio.Nursery) -> None:
        self.partial: Partial | None = None
        self.count = 0  # bytes that came, whether missing or not
        self._blob = blob
        self._version = version
        self._store = store
        self._stats = stats
        self._hash = hashlib.md5(usedforsecurity=False)
        self._hashed = 0  # the hash covers this much of the file
        self._nursery = nursery
        self._following: trio.Event | None = None  # set when the thread that hashes is back

    async def begin(self) -> None:
        """Make room once the first reply is in. Raises CacheError where there is neither a disk nor memory."""
        self.partial = await self._created()
        self._blob.fd = self.partial.fd

    async def _created(self) -> Partial:
        try:
            try:
                return self._store.create()
            except OSError as exc:
                await self.make_room(exc)
                return self._store.create()
        except OSError as exc:
            self._store.error(exc)
        except CacheError:
            pass  # it has been told
        return self._store.create_in_memory()

    @property
    def in_memory(self) -> bool:
        return self.partial is not None and self.partial.in_memory

    @property
    def thin(self) -> bool:
        """Return whether not all of it is here at the same time."""
        return self.in_memory and not self._blob.whole

    async def to_memory(self) -> None:
        """Go on without the directory, after all downloads have ended. What is there comes again, unless it is hashed.

        Raises CacheError.
        """
        while self._following is not None:
            await self._following.wait()
        blob, partial = self._blob, self.partial
        self.partial = self._store.create_in_memory()
        if blob.whole:
            self._hash, self._hashed = hashlib.md5(usedforsecurity=False), 0
        else:
            blob.floor = self._hashed if self._version.digest else blob.came
        blob.fd, blob.spans = self.partial.fd, Spans()
        if partial is not None:
            await self._store.discard(partial)

    def forget(self, near: list[tuple[int, int]]) -> None:
        """Have only these places in memory, and what is not hashed yet."""
        blob, keep = self._blob, Spans()
        blob.floor = self._hashed if self._version.digest else blob.came
        for start, stop in [*near, (blob.floor, blob.came)]:
            keep.add(max(start, 0), stop)
        for start, stop in blob.spans.parts():
            for low, high in keep.gaps(start, stop):
                first, last = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE, high // mmap.PAGESIZE * mmap.PAGESIZE
                if first < last:
                    with mmap.mmap(blob.fd, last - first, offset=first) as pages:
                        pages.madvise(mmap.MADV_REMOVE)
                    blob.spans.remove(first, last)

    async def keep_up(self) -> None:
        """Wait for the thread that hashes, where there is no room for what it has not seen."""
        while self.thin and self._following is not None and self._blob.came - self._hashed > THIN_AHEAD:
            await self._following.wait()

    async def put(self, offset: int, chunk: bytes) -> None:
        """Bytes have come; store those that are missing."""
        spans, end = self._blob.spans, offset + len(chunk)
        self._counted(len(chunk))
        await self.reserve(end)
        for start, stop in spans.gaps(offset, end):
            await self._write(memoryview(chunk)[start - offset : stop - offset], start)
            spans.add(start, stop)
        self._arrived()

    def has_same(self, offset: int, chunk: bytes) -> bool:
        """Compare the beginning of a chunk with the bytes that are there already, as far as they go without a gap."""
        there = chunk[: self._blob.spans.next_gap(offset) - offset]
        return not there or os.pread(self._blob.fd, len(there), offset) == there

    def came(self, offset: int, count: int) -> None:
        """Bytes have come that somebody else has written."""
        self._counted(count)
        self._blob.spans.add(offset, offset + count)
        self._arrived()

    async def verify(self) -> None:
        """Compare the digest. Raises BadReply."""
        if not self._version.digest:
            return
        while self._following is not None:
            await self._following.wait()
        if self._blob.size - self._hashed <= HASH_PIECE:  # not worth the way to a thread
            self._read_back(self._blob.fd, self._blob.size)
        else:
            await trio.to_thread.run_sync(self._read_back, self._blob.fd, self._blob.size)
        found = self._hash.hexdigest()
        if found != self._version.digest:
            raise BadReply(
                f"{self._version.key}: its MD5 is {found}, the catalogue says {self._version.digest};"
                " nothing was kept, ask the site's manager to refresh the catalogue"
            )

    async def reserve(self, end: int) -> None:
        """Count the file in the total, before it grows to this."""
        # Of unknown length: in doubling steps.
        size = self._blob.size if self._blob.size >= 0 else 2 * end
        if self.thin:
            size, end = min(size, WINDOW), min(end, WINDOW)
        if self.partial is not None and self.partial.reserved < end and (size > SMALL or self.in_memory):
            await self._store.reserve(self.partial, size)

    async def make_room(self, exc: OSError, wanted: int = 0) -> None:
        """Evict after a failed write, where that may help. Raises CacheError where it cannot."""
        if not is_full(exc):
            raise self._store.error(exc) from exc
        await self._store.evict(self._store.total() - max(SPARE, wanted))

    def _counted(self, count: int) -> None:
        self.count += count
        self._stats.fetched += count

    def _arrived(self) -> None:
        self._blob.wake()
        if self._apart and self._following is None and self._blob.came - self._hashed >= HASH_BEHIND:
            self._following = trio.Event()
            self._nursery.start_soon(self._follow, self._following)

    async def _write(self, data: memoryview, offset: int) -> None:
        try:
            write_all(self._blob.fd, data, offset)
        except OSError as exc:
            await self.make_room(exc, len(data))
            try:
                write_all(self._blob.fd, data, offset)
            except OSError as again:
                raise self._store.error(again) from again
        if self._version.digest and self._hashed == offset and not self._apart:
            self._hash.update(data)
            self._hashed += len(data)

    @property
    def _apart(self) -> bool:
        """Return whether the file is hashed in a thread."""
        return bool(self._version.digest) and self._blob.size > SMALL

    async def _follow(self, back: trio.Event) -> None:
        """Hash what has come, and what comes meanwhile. Where that fails, `verify` does it, and says so if it fails."""
        try:
            with contextlib.suppress(OSError):
                await self._read_after()
        finally:
            self._following = None
            back.set()

    async def _read_after(self) -> None:
        fd = os.dup(self._blob.fd)  # the blob may be closed while the thread reads
        try:
            while (end := self._blob.came) - self._hashed >= HASH_BEHIND:
                before = self._hashed
                await trio.to_thread.run_sync(self._read_back, fd, end)
                if self._hashed == before:
                    return  # somebody has cut the file short
        finally:
            os.close(fd)

    def _read_back(self, fd: int, end: int) -> None:
        while data := os.pread(fd, min(HASH_PIECE, end - self._hashed), self._hashed):
            self._hash.update(data)
            self._hashed += len(data)
