"""Prefetch the files of a series from one streamed tar, once a client reads one after another.

A request costs a round trip, and a series has hundreds of files. So the second of two neighbours that is opened starts
the tar of its resource. Its members go into the content cache as they arrive, verified like any other download; a file
that is opened while its member is near waits for it. Where no tar is available, single requests run ahead instead.
The resources that follow in a session are begun before they are opened, more of them in one request each time.

`prefetch/read_pattern.py` bounds the read-ahead. Beyond the bound the stream pauses, and the network applies its own
back pressure, until more is read. The stream ends when the client stops reading.
"""

import hashlib
import logging
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from xnatfs.common.errors import XnatError
from xnatfs.common.tasks import background
from xnatfs.content import ContentCache, Source, Version
from xnatfs.prefetch.read_pattern import FEWEST, LARGEST, Groups, Session, Walk
from xnatfs.prefetch.tar_names import TarNames
from xnatfs.prefetch.tar_stream import members
from xnatfs.rest.client import Xnat
from xnatfs.rest.models import FileRow

log = logging.getLogger(__name__)

# Tars in parallel: the other half of the client's requests in flight stays for single files.
STREAMS = 3
# Single files that are read ahead in parallel: of the client's eight downloads two stay for the current reader.
SINGLES = 6
# Seconds without a read after which the reader counts as gone; the connection is released.
IDLE = 5.0
# Seconds that an open waits for a member that should be near. If no bytes at all arrived meanwhile, the tar is ended.
PATIENCE = 2.0
# Seconds without a retry for a resource whose tar has failed.
NO_TAR_FOR = 60.0
# Opens in a row that the tar could not serve, after which it is of no use to its reader.
MISSES = 3
# Resources in one request, and files in them: the server reads all their catalogues before it sends the first byte.
STRIDE, STRIDE_FILES = 8, 2000
# Sessions that are remembered, with their listings: a program reads a few at a time.
SESSIONS = 32


@dataclass
class Stats:
    """Counters of read-ahead: bytes that were fetched, bytes of these that were opened, and tars."""

    ahead: int = 0
    used: int = 0
    tars: int = 0


class Around(Protocol):
    """The directory of a resource, as far as prefetching needs it."""

    def source(self, row: FileRow, groups: Groups) -> Source:
        """Return the source that downloads one of its files singly."""

    def has_name(self, row: FileRow, groups: Groups) -> bool:
        """Return whether one of its files is requested by name, which transfers no more than its bytes."""

    def reading_order(self) -> Sequence[tuple[str, str]]:
        """Return the ID and label of each resource of the session, in the order in which a traversal meets them."""


class _Tar:
    """A tar that is being streamed, of one resource or of several."""

    def __init__(self, session: Session, walks: Sequence[Walk]) -> None:
        self.session = session
        self.walks = walks
        self.scope = trio.CancelScope()
        self.starts: dict[Walk, int] = {}  # bytes before each resource, if they arrive in the requested order
        self.size = 0
        for walk in walks:
            self.starts[walk] = self.size
            self.size += walk.size
        self.front = 0  # bytes of the files whose members have passed
        self.came: set[Walk] = set()
        self.kept: set[Version] = set()  # versions that were in the cache before, or were put there since
        self.waits: dict[FileRow, trio.Event] = {}
        self.side_by_side = False  # readers have waited for several files at once
        self.misses = 0  # in a row
        self.last_read = trio.current_time()

    def is_read(self) -> bool:
        return any(walk.opened for walk in self.walks)

    def offset(self, walk: Walk, row: FileRow) -> int:
        return self.starts[walk] + walk.begins[walk.places[row.path]]

    def passes(self, walk: Walk, row: FileRow) -> None:
        """Advance to behind the member of a file, which has arrived or was left out."""
        self.came.add(walk)
        self.front = max(self.front, self.offset(walk, row) + (row.size or 0))
        self.wake(row)

    def wake(self, row: FileRow) -> None:
        """Wake the readers that wait for a file: it has arrived, or is to be requested singly."""
        if (waits := self.waits.pop(row, None)) is not None:
            waits.set()

    def is_near(self, walk: Walk, row: FileRow) -> bool:
        """Return whether the file's member arrives before the read-ahead exceeds its bound."""
        end = self.offset(walk, row)
        if end < self.front:
            return False
        unasked = 0
        for other in self.walks:
            start = self.starts[other]
            first = bisect_left(other.begins, self.front - start, hi=len(other.listed))
            last = bisect_left(other.begins, end - start, hi=len(other.listed))
            unasked += sum(each.size or 0 for each in other.listed[first:last] if each.path not in other.opened)
        # With several readers side by side, the files in between are those that another reader opens next.
        return unasked <= max(self.session.allowance(), 0) + (LARGEST if self.side_by_side else 0)


class Bulk:
    """Prefetch files from one server: callers report each open to `opened`."""

    def __init__(self, xnat: Xnat, content: ContentCache, nursery: trio.Nursery) -> None:
        self.stats = Stats()
        self._xnat = xnat
        self._content = content
        self._nursery = nursery
        self._sessions: OrderedDict[tuple[str, ...], Session] = OrderedDict()
        self._tars: dict[Walk, _Tar] = {}
        self._running = 0
        self._singles = 0

    def counters(self) -> dict[str, int]:
        """Return the numbers of tars and of single files that are being fetched ahead."""
        return {"tars": self._running, "ahead": self._singles}

    async def opened(self, item: Sequence[str], groups: Groups, row: FileRow, around: Around) -> None:
        """Prefetch around a file that a reader is about to open.

        Return when the file can be opened without waiting, or is to be requested singly.

        Args:
            item: The segments of the item's URL.
            groups: The files of the item, by resource ID.
            row: The file.
            around: The directory of the file's resource.
        """
        session = self._session(tuple(item), groups, around)
        walk = session.walk(row.resource_id)
        if not walk.counts:
            return
        here = self._content.has(version(row))
        self._note(session, walk, row, here)
        if walk.done and walk.half_read():
            self._stride(session, walk)
        if here or row.path in walk.coming:
            return
        if walk.walked(row) and not self._start(session, walk, row):
            self._run_ahead(session, walk, row, around)
        tar = self._tars.get(walk)
        if tar is not None:
            await self._arrival(tar, walk, row)

    def _note(self, session: Session, walk: Walk, row: FileRow, here: bool) -> None:
        if not here and walk.done and row.path in walk.opened:
            walk.opened.clear()  # read once, evicted since, and read again
            walk.done = False
        if not here and row.path in walk.ahead - walk.coming:
            log.info("no read-ahead in resource %s for now: the cache does not retain its files", walk.resource)
            session.nothing_until = trio.current_time() + NO_TAR_FOR
        if session.opens(walk, row):
            self.stats.used += row.size or 0
        if (tar := self._tars.get(walk)) is not None:
            tar.last_read = trio.current_time()

    async def _arrival(self, tar: _Tar, walk: Walk, row: FileRow) -> None:
        """Wait for the member of a file, if it is near."""
        if not tar.is_near(walk, row):
            tar.misses += 1
            if tar.misses >= MISSES:
                self._give_up(tar, "is not read in its order")
            return
        tar.misses, tar.side_by_side = 0, tar.side_by_side or bool(tar.waits)
        arrived, front = tar.waits.setdefault(row, trio.Event()), tar.front
        tar.session.wake()
        try:
            with trio.move_on_after(PATIENCE) as patience:
                await arrived.wait()
        finally:  # a reader that has left must not extend the read-ahead
            if not arrived.is_set() and not arrived.statistics().tasks_waiting:
                tar.waits.pop(row, None)
        if patience.cancelled_caught and tar.front == front:
            self._give_up(tar, "does not arrive")

    def _give_up(self, tar: _Tar, why: str) -> None:
        log.info("the tar of resource %s %s: its files are fetched singly", tar.walks[0].resource, why)
        for walk in tar.walks:
            if len(tar.walks) > 1:
                tar.session.in_order = False  # a wrong guess is no reason against a tar of what is being read
            else:
                walk.no_tar_until = trio.current_time() + NO_TAR_FOR
        tar.scope.cancel()

    # Starting tars.

    def _session(self, item: tuple[str, ...], groups: Groups, around: Around) -> Session:
        session = self._sessions.get(item)
        if session is None:
            session = self._sessions[item] = Session(item, groups, around.reading_order())
        elif session.groups is not groups:
            new = self._sessions[item] = session.relisted(groups, around.reading_order())
            for tar in {tar for tar in self._tars.values() if tar.session is session}:
                if all(new.walks.get(walk.resource) is walk for walk in tar.walks):
                    tar.session = new
                else:
                    tar.scope.cancel()
            session.wake()  # tasks that wait for the old session continue with the new one
            session = new
        self._sessions.move_to_end(item)
        while len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def _start(self, session: Session, walk: Walk, row: FileRow) -> bool:
        """Begin the tar of a resource that is read from this file on, and return whether one is running."""
        if walk in self._tars:
            return True
        place = walk.places[row.path]
        if walk.done or not self._may_begin(session, walk, place):
            return False
        if 3 * (walk.size - walk.begins[place]) < walk.size:
            return False  # most of the tar would be files that have passed
        for other in {tar for tar in self._tars.values() if tar.session is session and not tar.is_read()}:
            session.in_order = False  # the resources that were begun early are not those that are read next
            other.scope.cancel()
        self._begin(session, [walk])
        return True

    def _may_begin(self, session: Session, walk: Walk, place: int) -> bool:
        now = trio.current_time()
        if not walk.fit or self._running >= STREAMS or now < walk.no_tar_until or now < session.nothing_until:
            return False
        beside = walk.listed[max(0, place - 2 * FEWEST) : place + 2 * FEWEST]
        missing = (row for row in beside if row.path not in walk.opened and not self._content.has(version(row)))
        return sum(1 for _ in missing) >= FEWEST

    def _begin(self, session: Session, walks: Sequence[Walk]) -> None:
        tar = _Tar(session, walks)
        self._tars.update((walk, tar) for walk in walks)
        self._running += 1
        self.stats.tars += 1
        self._nursery.start_soon(self._run, tar)

    def _stride(self, session: Session, walk: Walk) -> None:
        """Begin the tar of the following resources, once this one has arrived and is half read.

        Each time it has up to twice as many resources as the time before.
        """
        if not session.in_order:
            return
        chosen: list[Walk] = []
        files = 0
        for following in session.following(walk):
            if following in self._tars or following.begun_early:
                break
            files += len(following.listed)
            if chosen and (files > STRIDE_FILES or not session.lists or len(chosen) >= min(2 * session.stride, STRIDE)):
                break
            if not self._may_begin(session, following, 0) or not _told_apart(chosen, following):
                break
            chosen.append(following)
        if chosen:
            session.stride = len(chosen)
            for following in chosen:
                following.begun_early = True
            self._begin(session, chosen)

    # Tars.

    async def _run(self, tar: _Tar) -> None:
        ended = False
        try:
            try:
                with tar.scope:
                    ended = await self._stream(tar)
            finally:
                self._running -= 1
                for walk in tar.walks:
                    del self._tars[walk]
                for waits in tar.waits.values():
                    waits.set()
            if ended and not tar.scope.cancel_called:
                self._ended(tar)
        except Exception as error:  # any error ends this tar only
            self._failed(tar, error)

    def _failed(self, tar: _Tar, error: Exception) -> None:
        """Note that a tar has failed: with several, one may be at fault for all, or the server takes one at a time."""
        _log(error, "no tar of resource %s: %s", ",".join(walk.resource for walk in tar.walks), error)
        if len(tar.walks) > 1:
            tar.session.lists = False
            for walk in tar.walks:
                walk.begun_early = False  # they are begun again, one by one
        else:
            tar.walks[0].no_tar_until = trio.current_time() + NO_TAR_FOR

    def _ended(self, tar: _Tar) -> None:
        for walk in tar.walks:
            walk.done = walk in tar.came or len(tar.walks) == 1
        if not all(walk.done for walk in tar.walks):
            tar.session.lists = False
        last = next((walk for walk in reversed(tar.walks) if walk.opened), None)
        if last is not None and last.half_read():
            self._stride(tar.session, last)

    async def _stream(self, tar: _Tar) -> bool:
        """Read the tar, member by member, and return whether it was read to its end. Raises what the client raises."""
        tar.kept |= await self._content.kept([version(row) for walk in tar.walks for row in walk.listed])
        async with self._xnat.archive(tar.session.item, *(walk.resource for walk in tar.walks)) as chunks:
            names = await TarNames.of([(walk.label or walk.resource, walk.listed) for walk in tar.walks])
            async with aclosing(members(chunks)) as archive:
                async for member in archive:
                    found = [(tar.walks[number], row) for number, row in names.find(member)]
                    fit = _fit(found, member.size)
                    wanted = [(walk, row) for walk, row in fit if self._is_wanted(tar, walk, row)]
                    if wanted:
                        await self._take(tar, wanted, await member.rest(), sole=len(found) == 1)
                    elif len(found) == 1:
                        tar.passes(*found[0])
                    elif not fit:
                        for _, row in found:  # the member may have been any of these
                            tar.wake(row)
                    if not await self._may_go_on(tar):
                        return False
        return True

    def _is_wanted(self, tar: _Tar, walk: Walk, row: FileRow) -> bool:
        return row in tar.waits or (row.path not in walk.opened and version(row) not in tar.kept)

    async def _take(self, tar: _Tar, wanted: Sequence[tuple[Walk, FileRow]], data: bytes, *, sole: bool) -> None:
        """Put a member into the cache, and wake its readers; a damaged one is to be requested singly.

        Where several files can have the member's name, its digest decides. Unless `sole` is true, the member may belong
        to none of the `wanted` files.
        """
        self.stats.ahead += len(data)
        digest = ""
        if any(row.digest for _, row in wanted):
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        walk, row = next(((walk, row) for walk, row in wanted if row.digest in ("", digest)), wanted[0])
        if row.path in walk.opened:
            self.stats.used += len(data)
        if row.digest not in ("", digest):
            if sole:
                log.info("%s is damaged in the tar of its resource", row.path)
                tar.passes(walk, row)
            return
        if row.path not in walk.opened:
            tar.session.fetches_ahead(walk, row)
        tar.passes(walk, row)  # a task that this wakes runs later than the first step of `put`
        tar.kept.add(version(row))
        await self._content.put(version(row), data)

    async def _may_go_on(self, tar: _Tar) -> bool:
        """Wait until more of the tar is wanted; return False when no reader opens a file for IDLE seconds."""
        while not tar.waits and tar.session.allowance() <= 0:
            moved = tar.session.moved
            with trio.move_on_after(IDLE):
                await moved.wait()
            # A tar that was begun early waits for a slow reader of the files before it.
            last_read = tar.last_read if tar.is_read() else tar.session.last_read
            if trio.current_time() - last_read >= IDLE:
                log.info("the tar of resource %s is given up: its reader has stopped", tar.walks[0].resource)
                return False
        return True

    # Single files.

    def _run_ahead(self, session: Session, walk: Walk, row: FileRow, around: Around) -> None:
        """Request the next files of a resource, a few in parallel."""
        place = walk.places[row.path] + 1
        for following in walk.listed[place : place + SINGLES]:
            if self._singles >= SINGLES or following.size is None or following.size > session.allowance():
                return
            if following.path in walk.opened or following.path in walk.ahead or self._content.has(version(following)):
                continue
            if not around.has_name(following, session.groups):
                continue  # it would take a tar of the whole resource
            self._singles += 1
            session.fetches_ahead(walk, following)
            walk.coming.add(following.path)
            self.stats.ahead += following.size
            self._nursery.start_soon(self._fetch, session, walk, following, around.source(following, session.groups))

    async def _fetch(self, session: Session, walk: Walk, row: FileRow, source: Source) -> None:
        try:
            blob = await self._content.open(version(row), source)
            try:
                await blob.read(0, 1)  # returns, for a small file, when all of it has arrived
            finally:
                blob.close()
            if (tar := self._tars.get(walk)) is not None:
                tar.kept.add(version(row))
        except Exception as error:
            _log(error, "%s was not fetched ahead: %s", row.path, error)
            session.forget_ahead(walk, row)
            self.stats.ahead -= row.size or 0
            self.stats.used -= (row.size or 0) if row.path in walk.opened else 0
        finally:
            walk.coming.discard(row.path)
            self._singles -= 1


@asynccontextmanager
async def open_bulk(xnat: Xnat, content: ContentCache) -> AsyncIterator[Bulk]:
    """Open the prefetch of files from one server; tars end when the context does."""
    async with background() as nursery:
        yield Bulk(xnat, content, nursery)


def _log(error: Exception, text: str, *values: object) -> None:
    """Log a failure as information, because a single request follows, and a fault of xnatfs itself as an error."""
    if isinstance(error, XnatError):
        log.info(text, *values)
    else:
        log.error(text, *values, exc_info=error)


def version(row: FileRow) -> Version:
    """Return the version by which the content cache knows a file; its folder there is the resource's number."""
    return Version(f"{row.resource_id}/{row.path}", row.size, row.digest)


def _fit(found: Sequence[tuple[Walk, FileRow]], size: int) -> list[tuple[Walk, FileRow]]:
    """Return the files that a member can be, by its length; none where nothing can tell them apart."""
    if len(found) > 1 and not all(row.digest for _, row in found):
        return []
    return [(walk, row) for walk, row in found if row.size == size]


def _told_apart(chosen: Iterable[Walk], following: Walk) -> bool:
    """Return whether files of equal path can be told apart in one tar, whose paths have labels and not numbers."""
    same = [(row, other) for walk in chosen for row in following.listed if (other := walk.row(row.path)) is not None]
    return all(row.digest and other.digest for row, other in same)
