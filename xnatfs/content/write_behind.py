"""Serve complete files from memory at once, and write them to the directory a little later, in batches.

A single download needs a file, a rename, a transaction and a hop to a thread, which together were half of the cost of a
small file. A member of a tar needs none of these to be read, and shares them with other members to be stored.

Invariants:
- A file in here is complete, and its bytes are in memory: no event on the disk affects its readers, so it needs no lock
  there.
- About MAX_UNWRITTEN_BYTES wait to be written; at most MAX_RETAINED_BYTES stay after that, for some seconds.
- Files that are unwritten when the cache is closed are written then.
"""

from collections import deque

import trio

from xnatfs.content.disk.index import BlobRow
from xnatfs.content.disk.store import Store
from xnatfs.content.entry import Entry
from xnatfs.content.open_files import OpenFiles

# Files in one transaction: another process that writes waits for it, some 10 ms.
BATCH_FILES = 64
# Seconds that the first file of a batch waits for more: the hop and the commit cost as much as writing five files.
GATHER_SECONDS = 0.05
# Bytes that may wait: the amount that arrives at 1 Gbit/s while a batch is gathered.
MAX_UNWRITTEN_BYTES = 8 * 2**20
# Written bytes that stay in memory: readers are up to three tars of a usual series behind the network. From the
# directory, a file costs them two look-ups in the index, five calls of the kernel and a READ more.
MAX_RETAINED_BYTES = 32 * 2**20


class WriteBehind:
    """A queue of complete files between the network and the disk."""

    def __init__(self, store: Store, nursery: trio.Nursery, files: OpenFiles) -> None:
        self.unwritten_bytes = 0
        self._store = store
        self._nursery = nursery
        self._files = files
        self._waiting: deque[Entry] = deque()
        self._written: deque[Entry] = deque()
        self._written_bytes = 0
        self._is_running = False
        self._room = trio.Event()
        self._lock = trio.Lock()  # held while a batch is written

    def add(self, entry: Entry) -> None:
        """Add an entry whose blob is complete and in memory."""
        entry.is_queued = True
        self._waiting.append(entry)
        self.unwritten_bytes += entry.blob.size
        if not self._is_running:
            self._is_running = True
            self._nursery.start_soon(self._run)

    async def wait_for_room(self) -> None:
        """Wait until more may be added."""
        while self.unwritten_bytes > MAX_UNWRITTEN_BYTES:
            await self._room.wait()

    def release_written(self, most: int = 0) -> None:
        """Release written files, oldest first, until at most `most` bytes of them are left."""
        while self._written_bytes > most:
            entry = self._written.popleft()
            self._written_bytes -= entry.blob.size
            self._release(entry)

    async def write(self) -> None:
        """Write all waiting files, in batches."""
        async with self._lock:
            while self._waiting:
                await self._write_batch([self._waiting[place] for place in range(min(BATCH_FILES, len(self._waiting)))])
        self.release_written(MAX_RETAINED_BYTES)

    async def _write_batch(self, batch: list[Entry]) -> None:
        stored = await self._store.keep_whole([_contents(entry) for entry in batch if self._files.is_current(entry)])
        for entry in batch:
            self._waiting.popleft()
            self.unwritten_bytes -= entry.blob.size
            if entry.ident in stored:
                self._written.append(entry)
                self._written_bytes += entry.blob.size
            else:
                self._files.forget(entry)
                self._release(entry)
        self._room.set()
        self._room = trio.Event()

    def _release(self, entry: Entry) -> None:
        entry.is_queued = False  # only its readers still need the bytes in memory
        self._files.release_if_unused(entry.blob)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await trio.sleep(GATHER_SECONDS)
                await self.write()
        finally:
            self._is_running = False


def _contents(entry: Entry) -> tuple[BlobRow, bytes]:
    assert entry.row is not None
    assert entry.blob.memory is not None
    return entry.row, entry.blob.memory
