"""Serve complete files from memory at once, and write them to the directory a little later, in batches.

A single download needs a file, a rename, a transaction and a hop to a thread, which together were half of the cost of a
small file. A member of a tar needs none of these to be read, and shares them with other members to be stored.

Invariants:
- A file in here is complete, and its bytes are in memory: no event on the disk affects its readers, so it needs no lock
  there.
- About MOST bytes wait to be written; at most RETAINED stay after that, for some seconds.
- Files that are unwritten when the cache is closed are written then.
"""

from collections import deque
from collections.abc import Callable, Sequence

import trio

from xnatfs.content.disk.index import Row
from xnatfs.content.disk.store import Store
from xnatfs.content.entry import Entry

# Files in one transaction: another process that writes waits for it, some 10 ms.
BATCH = 64
# Seconds that the first file of a batch waits for more: the hop and the commit cost as much as writing five files.
GATHER = 0.05
# Bytes that may wait: the amount that arrives at 1 Gbit/s while a batch is gathered.
MOST = 8 * 2**20
# Written bytes that stay in memory: readers are a few files behind the tar, and open each file several times.
RETAINED = 4 * 2**20


class Writeback:
    """A queue of complete files between the network and the disk.

    Args:
        store: The store to write to.
        nursery: The nursery of the writing task.
        row: Return the row under which to store an entry; None where it is outdated.
        let_go: Called when an entry leaves the queue; the flag tells whether it was stored.
    """

    def __init__(
        self,
        store: Store,
        nursery: trio.Nursery,
        row: Callable[[Entry], Row | None],
        let_go: Callable[[Entry, bool], None],
    ) -> None:
        self._store = store
        self._nursery = nursery
        self._row = row
        self._let_go = let_go
        self._waiting: deque[Entry] = deque()
        self._written: deque[Entry] = deque()
        self.waiting_bytes = 0  # bytes that are not written yet
        self._written_bytes = 0
        self._running = False
        self._room = trio.Event()
        self._lock = trio.Lock()  # held while a batch is written

    def add(self, entry: Entry) -> None:
        """Add an entry whose blob is complete and in memory."""
        self._waiting.append(entry)
        self.waiting_bytes += entry.blob.size
        if not self._running:
            self._running = True
            self._nursery.start_soon(self._run)

    async def room(self) -> None:
        """Wait until more may be added."""
        while self.waiting_bytes > MOST:
            await self._room.wait()

    def retain(self, most: int) -> None:
        """Release written files, oldest first, until at most `most` bytes of them are left."""
        while self._written_bytes > most:
            entry = self._written.popleft()
            self._written_bytes -= entry.blob.size
            self._let_go(entry, True)

    async def write(self) -> None:
        """Write all waiting files, in batches."""
        async with self._lock:
            while self._waiting:
                await self._write_batch([self._waiting[place] for place in range(min(BATCH, len(self._waiting)))])
        self.retain(RETAINED)

    async def _write_batch(self, batch: Sequence[Entry]) -> None:
        rows = [(self._row(entry), entry.blob.memory) for entry in batch]
        kept = await self._store.keep_whole([(row, data) for row, data in rows if row and data is not None])
        for entry in batch:
            self._waiting.popleft()
            self.waiting_bytes -= entry.blob.size
            if entry.ident in kept:
                self._written.append(entry)
                self._written_bytes += entry.blob.size
            else:
                self._let_go(entry, False)
        self._room.set()
        self._room = trio.Event()

    async def _run(self) -> None:
        try:
            while self._waiting:
                await trio.sleep(GATHER)
                await self.write()
        finally:
            self._running = False
