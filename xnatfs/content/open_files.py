"""Manage the files that are open, filling, or closed but not complete; release what no reader needs.

Invariants:
- `current` has at most one entry per identity: the one that the next open joins. Failed and outdated entries are no
  longer in it, but live until their readers close them.
- An entry without users and without downloads that is complete or has failed is released: closed files hold nothing.
  The exceptions are MAX_IDLE_FILES partly fetched ones.
"""

import trio

from xnatfs.content.blob import Blob
from xnatfs.content.disk.store import Store
from xnatfs.content.entry import Entry

# Partly fetched files without a reader that are retained, for a viewer that is opened again.
MAX_IDLE_FILES = 4


class OpenFiles:
    """The entries of a cache.

    Args:
        store: The store of their files.
        nursery: The nursery in which partials are discarded.
    """

    def __init__(self, store: Store, nursery: trio.Nursery) -> None:
        self.current: dict[bytes, Entry] = {}  # by identity
        self.entries: dict[Blob, Entry] = {}
        self.idle: list[Entry] = []  # partly fetched, without a reader; the oldest first
        self.is_closed = False
        self._store = store
        self._nursery = nursery
        self._is_trimming = False

    def add(self, entry: Entry) -> None:
        """Make an entry the current one of its identity."""
        old = self.current.get(entry.ident)
        self.current[entry.ident] = entry
        self.entries[entry.blob] = entry
        if old is not None:
            self.release_if_unused(old.blob)

    def is_current(self, entry: Entry) -> bool:
        """Return whether the next open joins an entry."""
        return self.current.get(entry.ident) is entry

    def forget(self, entry: Entry) -> bool:
        """Let no later open join an entry, and release it if it is unused; return False if none would."""
        if not self.is_current(entry):
            return False
        del self.current[entry.ident]
        self.release_if_unused(entry.blob)
        return True

    def release_if_unused(self, blob: Blob) -> None:
        """Release a blob that has no reader, or retain it for a while if it is partly fetched."""
        entry = self.entries.get(blob)
        if entry is None or blob.users or self.is_closed or entry.is_queued:
            return
        fill = entry.fill
        if fill is not None and fill.is_running:
            if entry.is_big_download:
                fill.linger()
            return
        is_reusable = self.is_current(entry) and 0 <= blob.size <= self._store.limit
        if blob.complete or not is_reusable or (fill is not None and fill.writer.is_elsewhere):
            self._dispose(entry)
        elif entry not in self.idle:
            self.idle.append(entry)
            self.dispose_idle(MAX_IDLE_FILES)

    def make_way(self, size: int) -> None:
        """Release partly fetched files without a reader before any other, if a file of `size` bytes needs room."""
        if self._store.total() + size > self._store.limit:
            self.dispose_idle()

    def end_lingering(self) -> None:
        """End the downloads of closed big files: the next one is opened, and may need their connections."""
        for entry in self.entries.values():
            if entry.is_big_download and not entry.blob.users and entry.fill is not None:
                entry.fill.linger(0.0)

    def dispose_idle(self, most: int = 0) -> None:
        """Release the oldest partly fetched files without a reader, until at most `most` are left."""
        while len(self.idle) > most:
            self._dispose(self.idle[0])

    def _dispose(self, entry: Entry) -> None:
        if self.is_current(entry):
            del self.current[entry.ident]
        del self.entries[entry.blob]
        if entry in self.idle:
            self.idle.remove(entry)
        if (part := entry.release()) is not None:
            self._nursery.start_soon(self._store.discard, part)
        # Open files may have exceeded the limit; those in memory hold none in the directory.
        if entry.blob.memory is None and not self._is_trimming and self._store.total() > self._store.limit:
            self._is_trimming = True
            self._nursery.start_soon(self._trim)

    async def _trim(self) -> None:
        self._is_trimming = False
        await self._store.evict()
