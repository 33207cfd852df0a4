"""Open files through the cache: serve trusted ones, fetch others, and release them when they are closed.

Invariants:
- `_live` has at most one entry per identity: the one that the next open joins. Failed and outdated entries are no
  longer in it, but live until their readers close them.
- An entry without users and without downloads that is complete or has failed is released: closed files hold nothing.
  The exceptions are IDLE partly fetched ones.
- All tasks run in the nursery of `open_cache`; the failure or cancellation of one reader does not affect another.
"""

import logging
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from xnatfs.common import locks
from xnatfs.common.errors import BadReply, CacheError, CacheLocked
from xnatfs.common.tasks import background
from xnatfs.content.blob import Blob
from xnatfs.content.disk.directory import Shelf, open_shelf
from xnatfs.content.disk.index import Row
from xnatfs.content.disk.store import Store
from xnatfs.content.entry import Entry, identity
from xnatfs.content.fill import Fill
from xnatfs.content.source import Source, Version
from xnatfs.content.stats import DAMAGED, Stats
from xnatfs.content.write_behind import Writeback

log = logging.getLogger(__name__)

# Seconds between writes of recency, with an fdatasync of new files. A crash of the machine loses the files of about
# this period; the order of eviction needs no better accuracy.
FLUSH = 30.0

# Partly fetched files without a reader that are retained, and for how long: for a viewer that is opened again.
IDLE = 4
IDLE_SECONDS = 600.0

# Versions that are looked up between two checkpoints: 2 to 4 ms. Every SQLite accepts 999 in a statement.
AT_ONCE = 500


class ContentCache:
    """A cache of file bytes, by version of the file; `open_cache` makes it and describes its options."""

    def __init__(self, store: Store, nursery: trio.Nursery, revalidate: float, strict: bool) -> None:
        self.stats = Stats()
        self.clock = time.time  # the clock of the dates in the index, which outlive the process
        self.tidied = trio.Event()  # set once the leftovers of crashes are removed
        self._store = store
        self._nursery = nursery
        self._revalidate = revalidate
        self._strict = strict
        self._disproved: deque[bytes] = deque(maxlen=DAMAGED)  # versions of which readers may have received bad bytes
        self._live: dict[bytes, Entry] = {}
        self._entries: set[Entry] = set()
        self._idle: list[Entry] = []
        self._resting: set[Entry] = set()  # big files that are closed, and whose downloads still run
        self._distrusted: set[bytes] = set()  # identities to be fetched anew, even if a copy is cached
        self._trimming = False
        self._closed = False
        self._writeback = Writeback(store, nursery, self._row_to_write, self._let_go)

    @property
    def bytes_used(self) -> int:
        """Return the bytes that are cached or reserved in the directory, over all processes."""
        return self._store.total()

    @property
    def limit(self) -> int:
        """Return the limit of `bytes_used`, which only open files can exceed."""
        return self._store.limit

    def counters(self) -> dict[str, int]:
        """Return the current counters of the cache.

        `open_bytes` is the amount by which the directory may exceed its limit. `readers`, `fills` and `unwritten` are 0
        while the cache is at rest.
        """
        return {
            "readers": sum(entry.blob.users for entry in self._entries),
            "fills": sum(entry.fill is not None and entry.fill.running for entry in self._entries),
            "unwritten": self._writeback.waiting_bytes,
            "idle": len(self._idle),
            "open_bytes": sum(max(entry.blob.size, 0) for entry in self._entries),
            "hits": self.stats.hits,
            "misses": self.stats.misses,
            "fetched": self.stats.fetched,
            **self._store.counters(),
        }

    def has(self, version: Version) -> bool:
        """Return whether an open would need no request to the server. It takes one point read."""
        ident = identity(version)
        live = self._live_has(ident, version)
        return self._counts(self._store.lookup(ident), version) if live is None else live

    async def kept(self, versions: Sequence[Version]) -> set[Version]:
        """Return the versions for which `has` is true; a checkpoint between batches lets other tasks run."""
        found: set[Version] = set()
        for start in range(0, len(versions), AT_ONCE):
            part = [(identity(version), version) for version in versions[start : start + AT_ONCE]]
            rows = {row.ident: row for row in self._store.have([ident for ident, _ in part])}
            for ident, version in part:
                live = self._live_has(ident, version)
                if self._counts(rows.get(ident), version) if live is None else live:
                    found.add(version)
            await trio.lowlevel.checkpoint()
        return found

    def _live_has(self, ident: bytes, version: Version) -> bool | None:
        """Return whether an open entry has all of the file; None where no such entry decides, but the index."""
        entry = self._live.get(ident)
        return entry.blob.complete if entry is not None and self._current(entry, version) else None

    def _counts(self, row: Row | None, version: Version) -> bool:
        return row is not None and self._trusted(row, version)

    async def open(self, version: Version, source: Source) -> Blob:
        """Open a file, and return its blob: at once if it is cached and trusted, else when its length is known.

        The caller must close the blob.

        Args:
            version: The version of the file.
            source: The source of its bytes, for what is not cached.

        Raises:
            XnatError: What the source raises: NotFound, Denied, Unreachable and so on.
            CacheError: The cache has been closed, or the file can be stored neither on the disk nor in memory.
        """
        if self._closed:
            raise CacheError(f"{version.key}: the cache has been closed")
        ident = identity(version)
        entry = self._live.get(ident)
        if entry is not None and self._current(entry, version):
            self._join(entry, source)
        else:
            entry = self._begin(ident, version, source)
        blob = entry.blob
        self._store.touch(ident, self.clock())
        if not blob.ready.is_set():
            try:
                await blob.ready.wait()
            except BaseException:
                blob.close()
                raise
        if blob.failure is not None:
            blob.close()
            raise blob.failure.with_traceback(None)
        return blob

    async def put(self, version: Version, data: bytes) -> None:
        """Add a complete file that the caller has fetched and verified.

        The next open finds it at once; it is written to the directory a little later. Wait while too many bytes are
        unwritten. Do nothing for a file that is open, being fetched or waiting to be written.
        """
        ident = identity(version)
        entry = self._live.get(ident)
        if self._closed or (entry is not None and self._current(entry, version)):
            return
        entry = self._enter(ident, version, self.clock(), users=0)
        entry.in_memory = True
        entry.row = self._new_row(entry, len(data), "")
        entry.blob.stamp = version.stamp(entry.row.stamp)
        entry.blob.hold(data)
        self.stats.fetched += len(data)
        self.stats.sound(version.key)
        self._writeback.add(entry)
        await self._writeback.room()

    def distrust(self, version: Version) -> None:
        """Fetch a file anew at its next open, because the server has another version; open readers continue."""
        ident = identity(version)
        self._distrusted.add(ident)
        entry = self._live.get(ident)
        if entry is not None and self._forget(entry) and not entry.blob.users:
            self._left(entry)

    async def evict(self, target: int) -> None:
        """Evict files that are not open until `bytes_used` is at most `target`."""
        await self._writeback.write()
        self._writeback.retain(0)
        while self._idle:
            self._dispose(self._idle[0])
        await self._store.evict(target)

    async def drop(self, owners: Collection[str]) -> None:
        """Remove all files of these owners: the next open asks the server. Open readers continue."""
        self._disown(owners)  # files that are to be written reach the store before it drops them, or not at all
        await self._store.drop(owners)
        self._disown(owners)  # files that were opened meanwhile

    def _disown(self, owners: Collection[str]) -> None:
        for entry in [entry for entry in self._live.values() if not set(entry.owners).isdisjoint(owners)]:
            self._forget(entry)
            if not entry.blob.users:
                self._left(entry)

    async def owners(self) -> set[tuple[str, ...]]:
        """Return the owners of the cached files, each combination once. Reads all of the index."""
        return {tuple(owners.split("\n")) for owners in await self._store.owners()}

    # Finding an entry.

    def _current(self, entry: Entry, version: Version) -> bool:
        if version.digest:
            return True
        return version.size in (entry.listed, entry.blob.size) and self._fresh(entry.checked)

    def _trusted(self, row: Row, version: Version) -> bool:
        # A listing that now has the true size is as good as the one with which the file was stored.
        return bool(version.digest) or (version.size in (row.listed, row.size) and self._fresh(row.checked))

    def _fresh(self, checked: float) -> bool:
        return 0 <= self.clock() - checked < self._revalidate

    def _join(self, entry: Entry, source: Source) -> None:
        self.stats.hits += 1
        entry.blob.users += 1
        if entry.fill is not None:
            self._resting.discard(entry)
            entry.fill.stay(source)
            if entry in self._idle:
                self._idle.remove(entry)

    def _begin(self, ident: bytes, version: Version, source: Source) -> Entry:
        kept = None if ident in self._distrusted else self._kept(ident)
        self._distrusted.discard(ident)
        if kept is not None and self._trusted(kept[0], version):
            row, fd = kept
            self.stats.hits += 1
            entry = self._enter(ident, version, row.checked)
            entry.row, entry.listed = row, row.listed
            entry.blob.fd, entry.blob.size, entry.blob.stamp = fd, row.size, version.stamp(row.stamp)
            entry.blob.finish()
            return entry
        self.stats.misses += 1
        self._make_way(version.size or 0)
        entry = self._enter(ident, version, self.clock())
        entry.fill = Fill(
            entry.blob,
            version,
            source,
            self._store,
            self.stats,
            self._nursery,
            # Bytes of a damaged file that readers have received must not be completed by another download: that one is
            # verified before any of it is served.
            strict=self._strict or ident in self._disproved,
            kept=kept,
            alone=self._one_big_download,
            changed=partial(self._changed, entry),
            keep=partial(self._row, entry),
        )
        if not entry.fill.small:
            self._end_resting()
        entry.fill.start()
        return entry

    def _end_resting(self) -> None:
        # The next big file is begun: it may need the download slots of closed ones.
        while self._resting:
            fill = self._resting.pop().fill
            if fill is not None:
                fill.linger(0.0)

    def _one_big_download(self) -> bool:
        fills = [entry.fill for entry in self._entries if entry.fill is not None]
        return sum(fill.running and not fill.small for fill in fills) == 1

    def _kept(self, ident: bytes) -> tuple[Row, int] | None:
        # A complete copy of any age; the caller must close the descriptor.
        old = self._live.get(ident)
        if old is not None and old.row is not None and old.blob.fd >= 0:
            return old.row, os.dup(old.blob.fd)  # it may not be in the index yet; a duplicate shares the lock
        row = self._store.lookup(ident)
        fd = self._store.open(row) if row is not None else None
        return (row, fd) if row is not None and fd is not None else None

    def _enter(self, ident: bytes, version: Version, checked: float, users: int = 1) -> Entry:
        entry = Entry(ident, version, checked)
        entry.blob = Blob(version.key, partial(self._left, entry))
        entry.blob.users = users
        old = self._live.get(ident)
        self._live[ident] = entry
        self._entries.add(entry)
        if old is not None and not old.blob.users:
            self._left(old)
        return entry

    # Storing and releasing.

    def _row(self, entry: Entry, fill: Fill) -> Row | None:
        # Called when a fill has been verified, or confirmed by the server.
        if fill.renewed:
            self.stats.renewed += 1
        self.stats.sound(fill.version.key)
        if entry.ident in self._disproved:
            self._disproved.remove(entry.ident)
        if self._live.get(entry.ident) is not entry:
            return None  # the listing has changed; a newer fill is under way
        entry.row = self._new_row(entry, entry.blob.size, fill.date)
        return entry.row

    def _new_row(self, entry: Entry, size: int, modified: str) -> Row:
        key = entry.blob.key.encode("utf-8", "backslashreplace").decode()  # SQLite takes no lone surrogates
        checked, owners = entry.checked, "\n".join(entry.owners)
        return Row(entry.ident, key, entry.listed, size, modified, checked, checked, "", owners=owners)

    def _row_to_write(self, entry: Entry) -> Row | None:
        return entry.row if self._live.get(entry.ident) is entry else None

    def _let_go(self, entry: Entry, kept: bool) -> None:
        # From now on only the entry's readers need its bytes in memory.
        entry.in_memory = False
        if not kept:
            self._forget(entry)
        if not entry.blob.users:
            self._left(entry)

    def _changed(self, entry: Entry) -> None:
        # A fill has failed, or none of its downloads runs any more.
        failure = entry.blob.failure
        if isinstance(failure, BadReply) and entry.blob.handed_out and entry.ident not in self._disproved:
            self._disproved.append(entry.ident)
        if failure is not None and self._forget(entry) and isinstance(failure, BadReply):
            log.warning("damaged file %s: %s", entry.blob.key, failure)
            self.stats.damage(entry.blob.key)
        if not entry.blob.users:
            self._left(entry)

    def _forget(self, entry: Entry) -> bool:
        if self._live.get(entry.ident) is not entry:
            return False
        del self._live[entry.ident]
        return True

    def _left(self, entry: Entry) -> None:
        # The last reader has closed it.
        blob, fill = entry.blob, entry.fill
        if self._closed or entry.in_memory or entry not in self._entries:
            return
        if fill is not None and fill.running:
            if not fill.small:
                fill.linger()
                self._resting.add(entry)
            return
        self._resting.discard(entry)
        wanted = self._live.get(entry.ident) is entry and 0 <= blob.size <= self._store.limit
        wanted = wanted and not (fill is not None and fill.intake.in_memory)
        if blob.complete or not wanted:
            self._dispose(entry)
        elif entry not in self._idle:
            entry.left_at = trio.current_time()
            self._idle.append(entry)
            while len(self._idle) > IDLE:
                self._dispose(self._idle[0])

    def _make_way(self, size: int) -> None:
        # Partly fetched files without a reader are released before anything else: as many as necessary by their own
        # sizes, because the total includes them for a little longer.
        over = self._store.total() + size - self._store.limit
        while self._idle and over > 0:
            over -= self._idle[0].reserved
            self._dispose(self._idle[0])

    def _dispose(self, entry: Entry) -> None:
        self._forget(entry)
        self._entries.discard(entry)
        if entry in self._idle:
            self._idle.remove(entry)
        if (part := entry.release()) is not None:
            self._nursery.start_soon(self._store.discard, part)
        if self._store.crowded and not self._trimming:
            self._trimming = True
            self._nursery.start_soon(self._trim)

    async def _trim(self) -> None:
        self._trimming = False
        await self._store.evict(self._store.limit)

    async def _maintain(self) -> None:
        await self._store.tidy()
        self.tidied.set()
        while True:
            await trio.sleep(FLUSH)
            while self._idle and trio.current_time() - self._idle[0].left_at > IDLE_SECONDS:
                self._dispose(self._idle[0])
            self._writeback.retain(0)
            await self._store.flush()

    def _shut(self) -> None:
        # Before the tasks are cancelled: from here on nothing is started, and reads fail.
        self._closed = True
        for entry in self._entries:
            if entry.blob.failure is None:
                entry.blob.fail(CacheError(f"{entry.blob.key}: the cache has been closed"))

    async def _close(self) -> None:
        # After all tasks have ended.
        await self._writeback.write()
        for entry in self._entries:
            entry.release()  # the store removes the partials
        await self._store.close()


@asynccontextmanager
async def open_cache(
    directory: Path, limit: int, *, revalidate: float = 3600.0, strict: bool = False, wait: float = math.inf
) -> AsyncIterator[ContentCache]:
    """Open the cache in a directory, for as long as the context is open.

    Args:
        directory: The path of the cache directory.
        limit: The most bytes that it may hold; half of the disk's free space is a limit, too.
        revalidate: Seconds for which a file without a digest is trusted before the server is asked if it has changed.
        strict: True to serve no byte of a file before all of it has been verified.
        wait: Seconds to wait for a lock of another process. Where that has locked the whole directory for longer, a
            temporary directory takes its place.

    Raises:
        CacheError: The directory cannot be used.
    """
    with ExitStack() as temporary:
        store = Store(await trio.to_thread.run_sync(_open_shelf, directory, limit, wait, temporary))
        try:
            async with background() as nursery:
                cache = ContentCache(store, nursery, revalidate, strict)
                nursery.start_soon(cache._maintain)
                try:
                    yield cache
                finally:
                    cache._shut()
        finally:
            with trio.CancelScope(shield=True):
                await cache._close()


def _open_shelf(directory: Path, limit: int, wait: float, temporary: ExitStack) -> Shelf:
    try:
        return open_shelf(directory, limit, wait)
    except CacheLocked as error:
        locks.log.warning("%s; until the end of this process its files are kept elsewhere, for it alone", error)
        other = tempfile.TemporaryDirectory(prefix="xnatfs-", ignore_cleanup_errors=True)
        return open_shelf(Path(temporary.enter_context(other)), limit, wait)
