"""Open files through the cache: serve trusted ones, fetch others, and store what was fetched.

All tasks run in the nursery of `open_cache`; the failure or cancellation of one reader does not affect another.
"""

import logging
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import trio

from xnatfs.common.errors import BadReply, CacheError
from xnatfs.common.tasks import background
from xnatfs.content.blob import Blob
from xnatfs.content.disk.index import BlobRow
from xnatfs.content.disk.shared_store import SharedStore
from xnatfs.content.disk.store import Store, open_or_replace
from xnatfs.content.disk.upkeep import Upkeep
from xnatfs.content.entry import Entry
from xnatfs.content.fill import Fill
from xnatfs.content.open_files import OpenFiles
from xnatfs.content.source import Source, Version, identity
from xnatfs.content.stats import MAX_DAMAGED_NAMES, CacheStats
from xnatfs.content.write_behind import WriteBehind
from xnatfs.content.writer import Backing

log = logging.getLogger(__name__)

# Seconds between writes of recency, with an fdatasync of new files. A crash of the machine loses the files of about
# this period; the order of eviction needs no better accuracy.
FLUSH_SECONDS = 30.0

# Recently dropped folders, to which nothing is added: their downloads end before as many more are dropped.
MOST_DROPPED = 1000

# Versions that are looked up between two checkpoints: 2 to 4 ms. Every SQLite accepts 999 in a statement.
LOOKUP_BATCH = 500


class ContentCache:
    """A cache of file bytes, by version of the file; `open_cache` makes it and describes its options."""

    def __init__(self, store: Store, nursery: trio.Nursery, revalidate: float, strict: bool) -> None:
        self.stats = CacheStats()
        self.clock = time.time  # the clock of the dates in the index, which outlive the process
        self.tidied = trio.Event()  # set once the leftovers of crashes are removed
        self.shared = store.shared  # with other machines
        self._store = store
        self._backing = Backing(store, self.stats, nursery, self.shared)
        self._revalidate = revalidate
        self._strict = strict
        self._files = OpenFiles(store, nursery)
        self._disproved: deque[bytes] = deque(maxlen=MAX_DAMAGED_NAMES)  # of which readers may have received bad bytes
        self._dropped: deque[str] = deque(maxlen=MOST_DROPPED)  # folders of which no file is opened since
        self._distrusted: set[bytes] = set()  # identities to be fetched anew, even if a copy is cached
        self._write_behind = WriteBehind(store, nursery, self._files)
        self.turn = store.claims.turn  # fetch files in turn with the other processes
        self.claimed = store.claims.names  # what they fetch now; a single file's name is its identity in hex
        self.write = self._write_behind.write  # what was put: then the other processes find it
        self.upkeep = Upkeep(store, self.write)

    @property
    def bytes_used(self) -> int:
        """Return the bytes that are cached or reserved in the directory, over all processes."""
        return self._store.total()

    @property
    def limit(self) -> int:
        """Return the most bytes that the directory may hold."""
        return self._store.limit

    def counters(self) -> dict[str, int]:
        """Return the current counters of the cache.

        `open_bytes` is the amount by which the directory may exceed its limit. `readers`, `fills` and `unwritten` are 0
        while the cache is at rest.
        """
        entries = self._files.entries.values()
        return {
            "readers": sum(entry.blob.users for entry in entries),
            "fills": sum(entry.fill is not None and entry.fill.is_running for entry in entries),
            "unwritten": self._write_behind.unwritten_bytes,
            "idle": len(self._files.idle),
            "open_bytes": sum(max(entry.blob.size, 0) for entry in entries),
            "hits": self.stats.hits,
            "misses": self.stats.misses,
            "fetched": self.stats.fetched,
            **self._store.counters(),
        }

    def filling(self) -> list[Blob]:
        """Return the files that are being fetched singly."""
        return [each.blob for each in self._files.entries.values() if each.fill is not None and each.fill.is_running]

    def has(self, version: Version) -> bool:
        """Return whether an open would need no request to the server. It takes one point read."""
        ident = identity(version)
        entry = self._joinable(ident, version)
        return entry.blob.complete if entry is not None else self._is_trusted(self._store.lookup(ident), version)

    async def find_cached(self, versions: Sequence[Version]) -> set[Version]:
        """Return the versions for which `has` is true; a checkpoint between batches lets other tasks run."""
        found: set[Version] = set()
        for start in range(0, len(versions), LOOKUP_BATCH):
            batch = [(identity(version), version) for version in versions[start : start + LOOKUP_BATCH]]
            rows = {row.ident: row for row in self._store.find_rows([ident for ident, _ in batch])}
            for ident, version in batch:
                entry = self._joinable(ident, version)
                if entry.blob.complete if entry is not None else self._is_trusted(rows.get(ident), version):
                    found.add(version)
            await trio.lowlevel.checkpoint()
        return found

    async def find_available(self, versions: Sequence[Version]) -> set[Version]:
        """Return the versions that need no request: those that `find_cached` returns, and those of the shared store."""
        found = await self.find_cached(versions)
        if self.shared is not None:
            found |= await self.shared.find([version for version in versions if version not in found])
        return found

    async def open(self, version: Version, source: Source) -> Blob:
        """Open a file, and return its blob: at once if it is cached and trusted, else when its length is known.

        The caller must close the blob.

        Args:
            version: The version of the file.
            source: The source of its bytes, for what is not cached.

        Raises:
            XnatError: What the source raises: NotFound, Denied, Unreachable and so on.
            CacheError: The cache has been closed, or no directory has room for the file.
        """
        if self._files.is_closed:
            raise CacheError(f"{version.key}: the cache has been closed")
        while version.folder in self._dropped:
            self._dropped.remove(version.folder)
        ident = identity(version)
        entry = self._joinable(ident, version)
        if entry is None:
            entry = self._begin(ident, version, source)
        else:
            self._join(entry, source)
        blob = entry.blob
        self._store.touch(ident, self.clock())
        try:
            if not blob.ready.is_set():
                await blob.ready.wait()
            if blob.failure is not None:
                raise blob.failure.with_traceback(None)
        except BaseException:
            blob.close()
            raise
        return blob

    async def open_local(self, blob: Blob) -> tuple[Path, int]:
        """Return the path of an open file's verified bytes, and a descriptor; while that is open the file stays there.

        Raises CacheError if the directory has no room for the file, and what the download of the file raises.
        """
        await blob.wait_until_verified()
        entry = self._files.entries[blob]
        if entry.fill is not None:
            await entry.fill.stored.wait()
        await self._write_behind.write()
        row = self._store.lookup(entry.ident)
        fd = self._store.open(row) if row is not None else None
        if fd is None:
            raise CacheError(f"{blob.key}: the cache directory has no room for it, so it has no path there")
        return Path(os.readlink(f"/proc/self/fd/{fd}")), fd

    async def put(self, version: Version, data: bytes, checked: float | None = None) -> None:
        """Add a complete file that the caller has fetched and verified.

        The next open finds it at once; it is written to the directory a little later. Wait while too many bytes are
        unwritten. Do nothing for a file that is open, being fetched or waiting to be written.

        Args:
            version: The version of the file.
            data: All of its bytes.
            checked: When they were requested, by `clock`; None for now.
        """
        ident = identity(version)
        if self._files.is_closed or version.folder in self._dropped or self._joinable(ident, version) is not None:
            return
        entry = self._add(ident, version, self.clock() if checked is None else checked)
        entry.row = entry.make_row(len(data), "")
        entry.blob.stamp = version.stamp(entry.row.stamp)
        entry.blob.hold(data)
        self.stats.fetched += len(data)
        self.stats.record_repair(version.key)
        self._write_behind.add(entry)
        if self.shared is not None:
            await self.shared.put(version, data)
        await self._write_behind.wait_for_room()

    def distrust(self, version: Version) -> None:
        """Fetch a file anew at its next open, because the server has another version; open readers continue."""
        ident = identity(version)
        self._distrusted.add(ident)
        if (entry := self._files.current.get(ident)) is not None:
            self._files.forget(entry)

    async def evict(self, target: int) -> None:
        """Evict files that are not open until `bytes_used` is at most `target`."""
        await self._write_behind.write()
        self._write_behind.release_written()
        self._files.dispose_idle()
        await self._store.evict(target)

    async def drop(self, folders: Collection[str]) -> None:
        """Remove all files in these folders, and add none to them until one is opened. Open readers continue."""
        self._dropped.extend(folders)
        self._forget_in(folders)  # files that are to be written reach the store before it drops them, or not at all
        await self._store.remove(lambda index: index.in_folders(folders))
        self._forget_in(folders)  # files that were opened meanwhile

    def _forget_in(self, folders: Collection[str]) -> None:
        for entry in list(self._files.current.values()):
            if entry.folder in folders:
                self._files.forget(entry)

    # Opening.

    def _joinable(self, ident: bytes, version: Version) -> Entry | None:
        """Return the entry that an open joins."""
        entry = self._files.current.get(ident)
        if entry is None or version.digest:
            return entry
        has_its_length = version.size in (entry.listed, entry.blob.size)
        return entry if has_its_length and self._is_fresh(entry.checked) else None

    def _is_trusted(self, row: BlobRow | None, version: Version) -> bool:
        if row is None or version.digest:
            return row is not None
        # A listing that now has the true size is as good as the one with which the file was stored.
        return version.size in (row.listed, row.size) and self._is_fresh(row.checked)

    def _is_fresh(self, checked: float) -> bool:
        return 0 <= self.clock() - checked < self._revalidate

    def _join(self, entry: Entry, source: Source) -> None:
        self.stats.hits += 1
        entry.blob.users += 1
        if entry.fill is not None:
            entry.fill.resume(source)
            if entry in self._files.idle:
                self._files.idle.remove(entry)

    def _begin(self, ident: bytes, version: Version, source: Source) -> Entry:
        """Serve a cached copy that is trusted, or begin to download the file."""
        older = None if ident in self._distrusted else self._open_copy(ident)
        self._distrusted.discard(ident)
        if older is not None and self._is_trusted(older[0], version):
            self.stats.hits += 1
            entry = self._add(ident, version, older[0].checked, users=1)
            self._serve_copy(entry, version, *older)
            return entry
        self.stats.misses += 1
        self._files.make_way(version.size or 0)
        entry = self._add(ident, version, self.clock(), users=1)
        # Bytes of a damaged file that readers have received must not be completed by another download: that one is
        # verified before any of it is served.
        entry.blob.strict = self._strict or ident in self._disproved
        entry.fill = Fill(entry.blob, version, source, self._backing, self, older)
        if not entry.fill.planner.is_small:
            self._files.end_lingering()
        entry.fill.start()
        return entry

    def _open_copy(self, ident: bytes) -> tuple[BlobRow, int] | None:
        """Open a complete copy of any age; the caller must close the descriptor."""
        old = self._files.current.get(ident)
        if old is not None and old.row is not None and old.blob.fd >= 0:
            return old.row, os.dup(old.blob.fd)  # it may not be in the index yet; a duplicate shares the lock
        row = self._store.lookup(ident)
        fd = self._store.open(row) if row is not None else None
        return (row, fd) if row is not None and fd is not None else None

    def _serve_copy(self, entry: Entry, version: Version, row: BlobRow, fd: int) -> None:
        entry.row, entry.listed = row, row.listed
        entry.blob.fd, entry.blob.size, entry.blob.stamp = fd, row.size, version.stamp(row.stamp)
        entry.blob.finish()

    def _add(self, ident: bytes, version: Version, checked: float, users: int = 0) -> Entry:
        entry = Entry(ident, version, Blob(version.key, self._files.release_if_unused), checked)
        entry.blob.users = users
        self._files.add(entry)
        return entry

    # For fills, as their owner.

    def row_for(self, blob: Blob) -> BlobRow | None:
        """Return the row under which to store a blob that has been verified, or confirmed by the server."""
        entry = self._files.entries[blob]
        assert entry.fill is not None
        self.stats.record_repair(blob.key)
        if entry.ident in self._disproved:
            self._disproved.remove(entry.ident)
        if not self._files.is_current(entry):
            return None  # the listing has changed; a newer download is under way
        entry.row = entry.make_row(blob.size, entry.fill.date)
        return entry.row

    def on_idle(self, blob: Blob) -> None:
        """Note a failure, and release what is no longer needed: nothing of a fill runs."""
        entry, failure = self._files.entries.get(blob), blob.failure
        if entry is None:
            return
        if isinstance(failure, BadReply) and blob.served.total and entry.ident not in self._disproved:
            self._disproved.append(entry.ident)
        if failure is not None and self._files.forget(entry) and isinstance(failure, BadReply):
            log.warning("damaged file %s: %s", blob.key, failure)
            self.stats.record_damage(blob.key)
        self._files.release_if_unused(blob)

    def adopt(self, blob: Blob) -> bool:
        """Serve the copy of a blob that another process has stored meanwhile; return False if there is none."""
        entry = self._files.entries[blob]
        copy = self._open_copy(entry.ident)
        if copy is not None and entry.fill is not None:
            self._serve_copy(entry, entry.fill.version, *copy)
        return copy is not None

    def is_alone(self) -> bool:
        """Return whether only one big file is being downloaded."""
        return sum(entry.is_big_download for entry in self._files.entries.values()) == 1

    # The life of the cache.

    async def _maintain(self) -> None:
        await self._store.tidy()
        self.tidied.set()
        while True:
            await trio.sleep(FLUSH_SECONDS)
            self._write_behind.release_written()
            await self._store.flush()
            if self.shared is not None:
                await self.shared.tidy()

    def _shut(self) -> None:
        # Before the tasks are cancelled: from here on nothing is started, and reads fail.
        self._files.is_closed = True
        for blob in self._files.entries:
            if blob.failure is None:
                blob.fail(CacheError(f"{blob.key}: the cache has been closed"))

    async def _close(self) -> None:
        # After all tasks have ended.
        await self._write_behind.write()
        for entry in self._files.entries.values():
            entry.release()  # the store removes the partials
        await self._store.close()


@asynccontextmanager
async def open_cache(
    directory: Path,
    limit: int,
    *,
    revalidate: float = 3600.0,
    strict: bool = False,
    wait: float = math.inf,
    shared: Path | None = None,
) -> AsyncIterator[ContentCache]:
    """Open the cache in a directory, for as long as the context is open.

    Args:
        directory: The path of the cache directory.
        limit: The most bytes that it may hold; half of the disk's free space is a limit, too.
        revalidate: Seconds for which a file without a digest is trusted before it is checked on the server.
        strict: True to serve no byte of a file before all of it has been verified.
        wait: Seconds to wait for a lock of another process. Where that has locked the whole directory for longer, a
            temporary directory takes its place.
        shared: A directory that caches of several machines share, None for none.

    Raises:
        CacheError: The directory cannot be used.
    """
    with ExitStack() as temporary:
        shared_store = SharedStore(shared) if shared else None
        store = Store(await trio.to_thread.run_sync(open_or_replace, directory, limit, wait, temporary), shared_store)
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
