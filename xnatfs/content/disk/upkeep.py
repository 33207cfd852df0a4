"""Pin cached files, verify them again, and count them, on behalf of a user.

A pinned file is not evicted, by this mount or another one that shares the directory, until it is unpinned. It goes all
the same when the account loses it, and when the cache directory is removed.
"""

import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

import trio

from xnatfs.content.disk.index import PINNED_USE, BlobRow
from xnatfs.content.disk.store import Store
from xnatfs.content.source import Version, identity

# Bytes that are read and hashed at a time.
HASHED_BYTES = 2**20
# Files that are looked up together: every SQLite accepts 999 values in a statement.
LOOKED_UP_TOGETHER = 500


class Upkeep:
    """The upkeep of one cache.

    Args:
        store: The files.
        flush: Write the files that are still in memory.
    """

    def __init__(self, store: Store, flush: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._flush = flush

    async def usage(self) -> dict[str, int]:
        """Return the number of cached files, and number and bytes of the pinned ones, over all processes."""
        files, pinned, size = await self._store.with_index(lambda index: index.usage()) or (0, 0, 0)
        return {"files": files, "pinned_files": pinned, "pinned_bytes": size}

    async def pin(self, versions: Iterable[Version]) -> int:
        """Exclude complete files from eviction; return how many of them are in the directory."""
        await self._flush()
        idents = list(map(identity, versions))
        await self._store.with_index(lambda index: index.touch(dict.fromkeys(idents, PINNED_USE)))
        return sum(1 for _ in self._rows(idents))

    def pinned_bytes(self, versions: Iterable[Version]) -> int:
        """Return how many bytes of these files are pinned."""
        return sum(row.size for row in self._rows(list(map(identity, versions))) if row.used >= PINNED_USE)

    def _rows(self, idents: Sequence[bytes]) -> Iterator[BlobRow]:
        for start in range(0, len(idents), LOOKED_UP_TOGETHER):
            yield from self._store.find_rows(idents[start : start + LOOKED_UP_TOGETHER])

    async def unpin(self, versions: Iterable[Version] | None = None) -> int:
        """Have files evicted again, by default all; return how many were pinned."""
        idents = None if versions is None else list(map(identity, versions))
        return await self._store.with_index(lambda index: index.unpin(idents, time.time())) or 0

    async def rehash(self, version: Version) -> str | None:
        """Return the MD5 of a file's cached bytes, in hexadecimal; None if it is not cached."""
        await self._flush()
        row = self._store.lookup(identity(version))
        descriptor = self._store.open(row) if row is not None else None
        if descriptor is None:
            return None
        try:
            return await trio.to_thread.run_sync(_md5, descriptor)
        finally:
            os.close(descriptor)

    async def remove(self, versions: Iterable[Version]) -> None:
        """Remove files, which are damaged: the next open fetches them."""
        idents = list(map(identity, versions))
        await self._store.remove(lambda index: idents)


def _md5(descriptor: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    offset, buffer = 0, memoryview(bytearray(HASHED_BYTES))
    while size := os.preadv(descriptor, (buffer,), offset):
        digest.update(buffer[:size])
        offset += size
    return digest.hexdigest()
