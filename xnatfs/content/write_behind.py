"""Files that have come whole: read from memory at once, written to the directory a little later, many at a time.

A download of its own takes a file, a rename, a transaction and a hop to a thread, which together were half of what a
small file cost. A member of a tar needs none of that to be read, and shares it with others to be kept.

Invariants:
- A file that is in here is complete, and its bytes are in memory: nothing that happens on the disk harms its readers,
  so it needs no lock there.
- About MOST bytes wait to be written, at most RETAINED stay after that, and for some seconds.
- What waits when the cache is closed is written then.
"""

from collections import deque
from collections.abc import Callable, Sequence

import trio

from xnatfs.content.disk.index import Row
from xnatfs.content.disk.store import Store
from xnatfs.content.entry import Entry

# Files in one transaction: another process that writes waits for it, some 10 ms.
BATCH = 64
# Seconds that the first of them waits for more: the hop and the commit cost as much as writing five files.
GATHER = 0.05
# Bytes that may wait: what 1 Gbit/s brings while they are gathered.
MOST = 8 * 2**20
# Bytes that stay once they are written: readers are a few files behind the tar, and open each file several times.
RETAINED = 4 * 2**20


class Writeback:
    """Whole files between the network and the disk."""

    def __init__(
        self,
        store: Store,
        nursery: trio.Nursery,
        row: Callable[[Entry], Row | None],
        let_go: Callable[[Entry, bool], None],
    ) -> None:
        self._store = store
        self._nursery = nursery
        self._row = row  # ask the cache: what to keep it under, if it is still wanted
        self._let_go = let_go  # tell the cache: it is not in here any more; whether it was kept
        self._waiting: deque[Entry] = deque()
        self._written: deque[Entry] = deque()
        self.waiting_bytes = 0  # of what nobody has written yet
        self._written_bytes = 0
        self._running = False
        self._room = trio.Event()
        self._lock = trio.Lock()  # held while a batch is written

    def add(self, entry: Entry) -> None:
        """Its blob is complete, and in memory."""
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
        """Let go of written files, the first ones first, until only so many bytes are left."""
        while self._written_bytes > most:
            entry = self._written.popleft()
            self._written_bytes -= entry.blob.size
            self._let_go(entry, True)

    async def write(self) -> None:
        """All that waits, in batches."""
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
