"""Write listings to their file a moment after they were made, and read them, in a thread: for mounts."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from xnatfs.common.tasks import background
from xnatfs.listings.keys import ListKey
from xnatfs.listings.store import ListingFile, ReadPlace, Resources

# Listings are collected for so long before they are written: an iteration over a project makes hundreds in it.
COLLECT_SECONDS = 1.0

R = TypeVar("R")


class ListingStore(ListingFile):
    """The stored listings of one account on one server, for a program that must not wait for the disk.

    Its own methods read and write in a thread, one at a time; see `ListingFile` for the arguments.
    """

    def __init__(self, directory: Path, account: Callable[[], str], clock: Callable[[], float] = time.time) -> None:
        super().__init__(directory, account, clock)
        self._one = trio.CapacityLimiter(1)
        self._waiting: dict[ListKey, Sequence[Any]] = {}
        self._reads: dict[ReadPlace, Resources] = {}  # to be written; an empty text is to be removed
        self._emptied = False  # the stored listings are to be deleted
        self._more = trio.Event()

    async def find(self, key: ListKey, kind: type[R]) -> tuple[float, list[R]] | None:
        """Return what `read` does, in a thread; None for a listing that is about to be replaced or removed."""
        if self._emptied or key in self._waiting:
            return None
        return await trio.to_thread.run_sync(self.read, key, kind, limiter=self._one)

    def put(self, key: ListKey, rows: Sequence[object]) -> None:
        """Store the rows of a listing in place of earlier ones, a moment later; an empty one is only removed."""
        self._waiting[key] = rows
        self._more.set()

    def note_read(self, place: ReadPlace, resources: Resources) -> None:
        """Record which resources were read through a place; an empty text deletes the record."""
        self._reads[place] = resources
        self._more.set()

    async def reads(self) -> dict[ReadPlace, Resources]:
        """Return which resources were read through each place, also by earlier mounts and commands."""
        return await trio.to_thread.run_sync(self.read_reads, limiter=self._one)

    def forget_all(self) -> None:
        """Delete all listings so far."""
        self._waiting, self._emptied = {}, True
        self._more.set()

    async def flush(self) -> None:
        """Write the pending changes."""
        waiting, self._waiting, self._more = self._waiting, {}, trio.Event()
        emptied, self._emptied = self._emptied, False
        reads, self._reads = self._reads, {}
        if not (waiting or emptied or reads):
            return
        if not await trio.to_thread.run_sync(self.write, waiting, emptied, reads, limiter=self._one):
            self._reads = reads | self._reads  # for the next time: unlike listings, they are not requested again

    async def _write_behind(self) -> None:
        while True:
            await self._more.wait()
            await trio.sleep(COLLECT_SECONDS)
            await self.flush()

    async def _shut(self) -> None:
        await self.flush()
        async with self._one:  # SQLite must not be closed while a thread reads
            self.close()


@asynccontextmanager
async def open_store(directory: Path, account: Callable[[], str]) -> AsyncIterator[ListingStore]:
    """Open the store of an account, and write what is put into it until the context ends. See `ListingStore`."""
    store = ListingStore(directory, account)
    try:
        async with background() as nursery:
            nursery.start_soon(store._write_behind)
            yield store
    finally:
        with trio.CancelScope(shield=True):
            await store._shut()
