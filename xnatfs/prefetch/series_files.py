"""Prefetch the files of a series from one streamed tar, once a client is seen to read it.

A request costs a round trip, and a series has hundreds of files. So the third file of a resource that is opened starts
its tar, in whatever order they are read. Members go into the content cache as they arrive, verified like any other
download. A reader waits for the member of its file, as long as `prefetch/series_tar.py` says; then its file is
requested singly, while the tar goes on. The resources that follow in a session are begun before they are
opened.

`prefetch/read_pattern.py` bounds what is fetched ahead. Beyond the bound the stream pauses, and the network applies its
own back pressure, until more is read. The stream ends when the client stops reading.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import Protocol

import trio

from xnatfs.common.errors import BadReply, XnatError
from xnatfs.common.tasks import background, run_and_log_errors
from xnatfs.content import ContentCache, Version
from xnatfs.content.source import identity
from xnatfs.prefetch.file_version import version
from xnatfs.prefetch.read_pattern import (
    MAX_MEMBER_BYTES,
    MIN_FILES_LEFT,
    NEXT_BEGUN_AT,
    Groups,
    Series,
    SessionReads,
)
from xnatfs.prefetch.series_tar import Arrivals, PrefetchStats, SeriesTar
from xnatfs.prefetch.tar_names import TarNames
from xnatfs.prefetch.tar_stream import Member, members
from xnatfs.rest.client import Xnat
from xnatfs.rest.models import FileRow

log = logging.getLogger(__name__)

# Tars in parallel: half of the requests in flight stays for files. With 50 ms a request, three
# tars of 5 MB fill a line of 1 Gbit/s, so that no more of them are begun early.
PARALLEL_TARS, EARLY_TARS = 4, 3
# Seconds without a read after which the reader counts as gone; the connection of a tar that pauses is released.
IDLE_READER_SECONDS = 5.0
# Seconds without a retry for a resource whose tar has failed, or a session whose files the cache does not retain.
NO_TAR_SECONDS = 60.0
# The part of the cache that may hold files that no program has opened: more would evict each other.
CACHE_SHARE = 4
# Sessions that are remembered, with their listings: a program reads a few at a time. So many files are 90 MB.
MAX_SESSIONS, MAX_SESSION_FILES = 32, 1_000_000


class ResourceDirectory(Protocol):
    """The directory of a resource, as far as prefetching needs it."""

    def reading_order(self) -> Sequence[tuple[str, str]]:
        """Return the ID and label of each resource of the session, in the order in which a traversal meets them."""


class SeriesPrefetch:
    """Prefetch files from one server: callers announce each open to `before_open`."""

    def __init__(self, xnat: Xnat, content: ContentCache, nursery: trio.Nursery) -> None:
        self.stats = PrefetchStats()
        self._xnat = xnat
        self._content = content
        self._nursery = nursery
        self._sessions: OrderedDict[tuple[str, ...], SessionReads] = OrderedDict()
        self._tars: dict[Series, SeriesTar] = {}
        self._slots = trio.CapacityLimiter(PARALLEL_TARS)

    def counters(self) -> dict[str, int]:
        """Return the number of tars that are being fetched."""
        return {"tars": len(self._tars)}

    async def before_open(
        self, item: Sequence[str], groups: Groups, row: FileRow, directory: ResourceDirectory
    ) -> None:
        """Prefetch around a file that a reader is about to open.

        Return when the file can be opened without waiting, or is to be requested singly.

        Args:
            item: The segments of the item's URL.
            groups: The files of the item, by resource ID.
            row: The file.
            directory: The directory of the file's resource.
        """
        session = self._session(tuple(item), groups, directory)
        series = session.get_series(row.resource_id)
        is_here = self._content.has(version(row))
        if series.counts and (not is_here or row.path in series.unread):
            self._note(session, series, row, is_here)
        tar = self._tars.get(series)
        if tar is None or is_here or tar.is_late or session.count_allowed_bytes(series) < tar.left:
            return
        if not (tar.is_elsewhere and await self._content.find_available([version(row)])):
            await tar.wait(row)

    def _note(self, session: SessionReads, series: Series, row: FileRow, is_here: bool) -> None:
        if row.path in series.unread:
            self.stats.used += row.size or 0
            if not is_here:
                log.info("no tars of %s for now: the cache does not retain its files", "/".join(session.item))
                session.no_archive_until = trio.current_time() + NO_TAR_SECONDS
        elif row.path in series.opened and series.is_complete:
            series.begin_anew()  # read once, evicted since, and read again
        if not session.open(series, row):
            # The resources that were begun early are not those that are read next.
            self._stop([each for each in session.series.values() if each.label == series.label and not each.opened])
        if session.is_read and len(series.rows) - len(series.opened) >= MIN_FILES_LEFT - 1:
            self._begin(session, series)
        self._begin_following(session)

    # Starting tars.

    def _session(self, item: tuple[str, ...], groups: Groups, directory: ResourceDirectory) -> SessionReads:
        session = self._sessions.get(item)
        if session is None:
            session = self._sessions[item] = SessionReads(item, self._content.limit // CACHE_SHARE)
        if session.groups is not groups:
            self._stop(session.relist(groups, directory.reading_order()))
        session.last_read = trio.current_time()
        self._sessions.move_to_end(item)
        while len(self._sessions) > MAX_SESSIONS or (
            len(self._sessions) > 1 and sum(each.files for each in self._sessions.values()) > MAX_SESSION_FILES
        ):
            _, oldest = self._sessions.popitem(last=False)
            self._stop(oldest.series.values())
        return session

    def _stop(self, ended: Collection[Series]) -> None:
        for series in ended:
            if (tar := self._tars.get(series)) is not None:
                log.info(
                    "the tar of resource %s is stopped: its session is read elsewhere, or was listed anew",
                    series.resource,
                )
                tar.scope.cancel()

    def _begin_following(self, session: SessionReads) -> None:
        """Begin the resources that the reader comes to next."""
        series = session.current
        if series is None or not (session.is_scattered or (series.is_read and series.is_past(NEXT_BEGUN_AT))):
            return
        pending = 0  # bytes of those that are begun already
        for resource in session.upcoming(series.label):
            following = session.get_series(resource)
            if following in self._tars:
                pending += following.size - following.unread_bytes
            elif not (following.is_complete or following.is_read):
                if len(self._tars) >= EARLY_TARS or session.count_allowed_bytes(following) <= pending:
                    return
                if not self._begin(session, following):
                    return
                following.is_early = True
                pending += following.size

    def _begin(self, session: SessionReads, series: Series) -> bool:
        """Begin the tar of a resource, and return whether one is running."""
        if series in self._tars:
            return True
        if series.is_complete or trio.current_time() < max(series.no_archive_until, session.no_archive_until):
            return False
        if session.count_allowed_bytes(series) <= 0 or not series.size:
            return False
        self._tars[series] = tar = SeriesTar(series, self.stats)
        self._nursery.start_soon(self._run, session, tar)
        return True

    # Tars.

    async def _run(self, session: SessionReads, tar: SeriesTar) -> None:
        series = tar.series
        try:
            with tar.scope:
                async with self._slots:
                    tar.began = trio.current_time()
                    series.is_complete = await self._stream(session, tar)
        except Exception as error:  # any error ends this tar only
            _log(error, series)
            series.no_archive_until = trio.current_time() + NO_TAR_SECONDS
        finally:
            del self._tars[series]
            series.is_early = series.is_early and (series.is_complete or bool(series.opened))
            tar.stop_waits()
        if self._sessions.get(session.item) is session:
            self._begin_following(session)

    async def _stream(self, session: SessionReads, tar: SeriesTar) -> bool:
        """Fetch the tar, and return whether nothing is left of it. Raises what the client raises.

        While another process or machine fetches it, the files that it stores are served.
        """

        def wake_stored() -> bool:
            for path, row in list(tar.wanted.items()):
                if self._content.has(version(row)):
                    tar.members += 1
                    tar.wake(path)
            return False

        async with AsyncExitStack() as turn:
            waited = await turn.enter_async_context(self._content.turn(f"tar-{tar.series.resource}", wake_stored))
            async with self._machine_turn(tar) as followed:
                tar.is_elsewhere = False
                # Files that readers of any process request singly are still missing, and are no reason for a tar.
                least = len(tar.series.rows) // 2 if waited or followed else MIN_FILES_LEFT - 1
                is_complete = await self._read_members(session, tar, least)
            self._nursery.start_soon(self._end_turn, turn.pop_all())
        return is_complete

    async def _end_turn(self, turn: AsyncExitStack) -> None:
        """Release a claim once the other processes find what was put."""
        async with turn:
            await run_and_log_errors("an archive's files are not written", logging.WARNING, self._content.write)

    def _machine_turn(self, tar: SeriesTar) -> AbstractAsyncContextManager[bool]:
        """Fetch a tar in turn with the machines that share a store, as `SharedStore.turn`; without one, at once."""
        if self._content.shared is None or not all(row.digest for row in tar.series.rows):
            return nullcontext(False)
        arrivals = Arrivals(tar, self._content)
        return self._content.shared.turn(arrivals.name, arrivals.check_arrivals)

    async def _read_members(self, session: SessionReads, tar: SeriesTar, least: int) -> bool:
        series = tar.series
        claimed = self._content.claimed()  # before the look at what is available: a claimed file may be at any time
        versions = [version(row) for row in series.rows]
        kept = await self._content.find_available(versions)
        missing = [each for each in versions if each not in kept]
        if len(missing) < least + len(claimed):  # of a long list no hash is computed
            missing = [each for each in missing if identity(each).hex() not in claimed]
        if len(missing) < least:
            return True
        tar.requested_at = self._content.clock()
        async with self._xnat.archive(session.item, series.resource) as chunks:
            names = await TarNames.build([(series.label or series.resource, series.rows)])
            async with aclosing(members(chunks)) as archive:
                async for member in archive:
                    if member.size > MAX_MEMBER_BYTES:  # skipping it may take hours, and the next listing has it
                        raise BadReply(f"it has a file of {member.size} bytes, which is not listed")
                    tar.is_late, tar.members, tar.left = False, tar.members + 1, tar.left - member.size
                    self.stats.members += 1
                    await self._receive(session, tar, member, [row for _, row in names.find(member)], kept)
                    if session.count_allowed_bytes(series) <= 0 and not await self._pause(session, tar):
                        return False
        return True

    async def _receive(
        self, session: SessionReads, tar: SeriesTar, member: Member, rows: Sequence[FileRow], kept: Collection[Version]
    ) -> None:
        """Put a member into the cache, and wake its readers; a damaged one is to be requested singly.

        Where several files can have the member's name, its digest decides.
        """
        series = tar.series
        fit = [row for row in rows if row.size == member.size] if _are_distinct(rows) else []
        unread = (row for row in fit if row.path in tar.waits or row.path not in series.opened)
        wanted = [row for row in unread if version(row) not in kept]
        if wanted:
            data = await member.read_rest()
            self.stats.ahead += len(data)
            digest = await _md5(data) if any(row.digest for row in wanted) else ""
            if (row := next((row for row in wanted if row.digest in ("", digest)), None)) is not None:
                if row.path in series.opened:
                    self.stats.used += len(data)
                series.receive(row)
                tar.wake(row.path)  # a task that this wakes runs later than the first step of `put`
                await self._content.put(version(row), data, tar.requested_at)
                return
            log.info("%s is damaged in the tar of its resource", wanted[0].path)
        if len(rows) == 1 or not fit:
            for row in rows:  # the member may have been any of these
                tar.wake(row.path)

    async def _pause(self, session: SessionReads, tar: SeriesTar) -> bool:
        """Wait until more of the tar may come; return False when no reader opens a file for IDLE_READER_SECONDS."""
        tar.stop_waits()
        while session.count_allowed_bytes(tar.series) <= 0:
            moved = session.moved
            with trio.move_on_after(IDLE_READER_SECONDS):
                await moved.wait()
            if trio.current_time() - session.last_read >= IDLE_READER_SECONDS:
                log.info("the tar of resource %s is given up: its reader has stopped", tar.series.resource)
                return False
        return True


@asynccontextmanager
async def open_series_prefetch(xnat: Xnat, content: ContentCache) -> AsyncIterator[SeriesPrefetch]:
    """Open the prefetch of files from one server; tars end when the context does."""
    async with background() as nursery:
        yield SeriesPrefetch(xnat, content, nursery)


def _are_distinct(rows: Sequence[FileRow]) -> bool:
    """Return whether a member of this name can be identified among the files."""
    return len(rows) == 1 or all(row.digest for row in rows)


async def _md5(data: bytes) -> str:
    """Return the MD5 of a member: of a long one in a thread, since a mebibyte takes 2 ms of the event loop."""
    digest = partial(hashlib.md5, data, usedforsecurity=False)
    return (await trio.to_thread.run_sync(digest) if len(data) > 2**20 else digest()).hexdigest()


def _log(error: Exception, series: Series) -> None:
    """Log a failure as information, because a single request follows, and a fault of xnatfs itself as an error."""
    text = "no tar of resource %s: %s"
    if isinstance(error, XnatError):
        log.info(text, series.resource, error)
    else:
        log.error(text, series.resource, error, exc_info=error)
