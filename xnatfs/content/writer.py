"""Write the arriving bytes of a file where they are missing, hash them, and verify the file when it is complete.

Invariants:
- A byte that is present is never written again, so what readers were served is what is verified.
- The hash is of what the file has, read back: of a big file by a thread that follows the download, since MD5 of a
  gigabyte keeps a core busy for 0.6 s or more.
- A download of a big file is counted in the cache's total before it is written.
- Where the cache directory accepts no file, or no more of it, the file moves elsewhere (`Store.create_elsewhere`).
"""

import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass

import trio

from xnatfs.common.errors import BadReply, CacheError, CacheFull
from xnatfs.content.blob import Blob, is_small
from xnatfs.content.disk.directory import SPARE_BYTES
from xnatfs.content.disk.files import copy_range, duplicated, is_full, write_all
from xnatfs.content.disk.partial import Partial
from xnatfs.content.disk.shared_store import SharedFile, SharedStore
from xnatfs.content.disk.store import Store
from xnatfs.content.source import Version
from xnatfs.content.stats import CacheStats

log = logging.getLogger(__name__)

# Read back at a time for the digest, in a thread.
HASH_PIECE_BYTES = 1024 * 1024
# How far the hash may be behind before a thread is started to follow the download: 6 ms of its work.
HASH_LAG_BYTES = 4 * HASH_PIECE_BYTES


@dataclass(frozen=True, slots=True)
class Backing:
    """The parts of the cache that all its files use."""

    store: Store
    stats: CacheStats
    nursery: trio.Nursery
    shared: SharedStore | None = None


class Writer:
    """The file behind a blob while it fills."""

    def __init__(self, blob: Blob, version: Version, backing: Backing) -> None:
        self.store = backing.store
        self.partial: Partial | None = None  # None until the first reply
        self._blob = blob
        self._version = version
        self._stats = backing.stats
        self._nursery = backing.nursery
        self._hash = hashlib.md5(usedforsecurity=False)
        self._hashed = 0  # the hash covers this much of the file
        self._has_made_room = False
        self._following: trio.Event | None = None  # set when the thread that hashes has ended

    async def begin(self, size: int | None) -> None:
        """Create the file, once the first reply has stated its size, or None. Raises CacheError."""
        wanted = size or 0
        try:
            self.partial = self.store.create()
        except OSError as exc:
            self.store.error(exc)
            if is_full(exc):
                await self._evict(wanted)  # for the next file
            self.partial = self.store.create_elsewhere(wanted)
        self._blob.fd = self.partial.fd

    async def copy(self, shared: SharedStore, entry: SharedFile) -> bool:
        """Take the whole file from the store that machines share; return False if it is to be downloaded."""
        size, is_sound = self._version.size or 0, False
        try:
            await self.begin(size)
            assert self.partial is not None
            if not is_small(size):
                await self.store.reserve(self.partial, size)
            is_sound = await shared.copy(entry, self._version, self._blob.fd)
        except (OSError, CacheError) as exc:
            log.info("%s is not copied from the shared cache: %s", self._version.key, exc)
        finally:
            if not is_sound and self.partial is not None:  # the download begins with another file
                self._blob.fd = -1
                with trio.CancelScope(shield=True):
                    await self.store.discard(self.partial)
                self.partial = None
        if is_sound:
            self._blob.size = size
            self._blob.present.add(0, size)
        return is_sound

    @property
    def is_elsewhere(self) -> bool:
        """Return whether the file is outside of the cache directory, which accepts no more of it."""
        return self.partial is not None and self.partial.is_elsewhere

    async def recover(self, error: CacheError) -> None:
        """Make room where the disk is full for the first time; else move the file out of the cache directory.

        Call it after all downloads have ended. What is present stays.

        Args:
            error: The error of a write.

        Raises:
            CacheError: There is no room elsewhere.
            OSError: The file cannot be copied.
        """
        blob, old = self._blob, self.partial
        if old is None:
            raise error  # before the first reply: there is no room elsewhere either
        if isinstance(error.__cause__, OSError) and is_full(error.__cause__) and not self._has_made_room:
            self._has_made_room, before = True, self.store.total()
            await self._evict(blob.size)
            if self.store.total() < before:
                return
        while self._following is not None:
            await self._following.wait()
        new = self.store.create_elsewhere(max(blob.size, blob.contiguous_end))
        try:
            for start, stop in blob.present:
                await trio.to_thread.run_sync(copy_range, blob.fd, new.fd, start, stop)
        except BaseException:
            await self.store.discard(new)
            raise
        self.partial, blob.fd = new, new.fd
        await self.store.discard(old)

    async def _evict(self, wanted: int) -> None:
        await self.store.evict(self.store.total() - max(SPARE_BYTES, wanted))

    async def put(self, offset: int, chunk: bytes) -> None:
        """Write those bytes of a chunk that are missing. Raises CacheError."""
        present, end = self._blob.present, offset + len(chunk)
        self._stats.fetched += len(chunk)
        await self.reserve(end)
        for start, stop in present.gaps(offset, end):
            try:
                write_all(self._blob.fd, memoryview(chunk)[start - offset : stop - offset], start)
            except OSError as exc:
                raise self.error(exc) from exc
            present.add(start, stop)
        self._on_progress()

    def error(self, exc: OSError) -> CacheError:
        """Return the exception for a write that failed, with a remedy."""
        if self.is_elsewhere and is_full(exc):
            return CacheFull(f"{self._version.key}: {exc.strerror}: $TMPDIR (/tmp) or /var/tmp; make room there")
        return self.store.error(exc)

    def has_same(self, offset: int, chunk: bytes) -> bool:
        """Compare the beginning of a chunk with the bytes that are present, as far as they go without a gap."""
        there = chunk[: self._blob.present.first_missing(offset) - offset]
        return not there or os.pread(self._blob.fd, len(there), offset) == there

    def note_written(self, offset: int, count: int) -> None:
        """Note that another process has written bytes that arrived."""
        self._stats.fetched += count
        self._blob.present.add(offset, offset + count)
        self._on_progress()

    async def verify(self) -> None:
        """Compare the digest. Raises BadReply."""
        if not self._version.digest:
            return
        while self._following is not None:
            await self._following.wait()
        if self._blob.size - self._hashed <= HASH_PIECE_BYTES:  # less work than a thread takes to start
            self._hash_file(self._blob.fd, self._blob.size)
        else:
            await trio.to_thread.run_sync(self._hash_file, self._blob.fd, self._blob.size)
        found = self._hash.hexdigest()
        if found != self._version.digest:
            raise BadReply(
                f"{self._version.key}: its MD5 is {found}, the catalogue says {self._version.digest};"
                " nothing was kept, ask the site's manager to refresh the catalogue"
            )

    async def reserve(self, end: int) -> None:
        """Count the file in the total before it grows to `end` bytes. One of unknown length grows in doubling steps.

        Raises CacheError where the file is elsewhere and there is no room.
        """
        size = self._blob.size if self._blob.size >= 0 else 2 * end
        if self.partial is not None and self.partial.reserved < end and (not is_small(size) or self.is_elsewhere):
            await self.store.reserve(self.partial, size)

    def _on_progress(self) -> None:
        self._blob.wake()
        lag = self._blob.contiguous_end - self._hashed
        if self._version.digest and self._following is None and lag >= HASH_LAG_BYTES:
            self._following = trio.Event()
            self._nursery.start_soon(self._follow, self._following)

    async def _follow(self, ended: trio.Event) -> None:
        """Hash what has arrived, and what arrives meanwhile. What fails here, `verify` repeats and reports."""
        try:
            # The blob may be closed while the thread reads.
            with contextlib.suppress(OSError), duplicated(self._blob.fd) as fd:
                while (end := self._blob.contiguous_end) - self._hashed >= HASH_LAG_BYTES:
                    before = self._hashed
                    await trio.to_thread.run_sync(self._hash_file, fd, end)
                    if self._hashed == before:
                        return  # another program has cut the file short
        finally:
            self._following = None
            ended.set()

    def _hash_file(self, fd: int, end: int) -> None:
        # One buffer for all pieces: each new one would have its pages mapped and given back.
        buffer = memoryview(bytearray(min(HASH_PIECE_BYTES, end - self._hashed)))
        while size := os.preadv(fd, (buffer[: end - self._hashed],), self._hashed):
            self._hash.update(buffer[:size])
            self._hashed += size
