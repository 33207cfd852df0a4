"""Series in bulk: whoever reads one small file of a resource after another gets the rest out of one streamed tar.

A request costs a round trip, and a series has hundreds of files. So the second file that is opened of a resource
starts its tar; members go into the content cache as they arrive, checked like any other download, and a file that is
asked for while its member is on the way waits for that. Where no tar is to be had, several single requests run ahead.

What is fetched ahead is bounded by what was read: ALLOWANCE, and a quarter of that. The stream waits, which is the
network's own back pressure, until more is read, and ends when nobody reads any more. The resources that follow in a
session are begun early, once one of it was read to its middle.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate

import trio

from xnatfs.client import Xnat, has_url
from xnatfs.content import Body, ContentCache, Version
from xnatfs.errors import XnatError
from xnatfs.models import FileRow
from xnatfs.untar import members

log = logging.getLogger(__name__)

# The largest file that comes this way: it is held in memory until it is whole.
LARGEST = 2 * 2**20
# A resource with fewer files left costs no more singly.
FEWEST = 4
# Bytes that may be fetched and not yet asked for: a fraction of a second on any line, and a quarter of what was read
# on top. Of a resource that nobody has touched, before its turn, less.
ALLOWANCE, SHARE, EARLY = 512 * 1024, 4, 128 * 1024
MOST = 32 * 2**20
# Tars at once: the other half of what the client has in flight stays for single files.
STREAMS = 3
# A reader that has not come for so long is gone; the connection is given back.
IDLE = 5.0
# How long a file is waited for whose member should be near. Then it is asked for singly.
PATIENCE = 2.0
# No second try for a resource whose tar has failed.
NO_TAR_FOR = 60.0
# Walks that are remembered: a program reads a few resources at a time.
WALKS = 256


# The files of an item, by resource.
Groups = Mapping[Hashable, Sequence[FileRow]]


@dataclass
class Stats:
    """Bytes that came in tars, and of these, bytes of files that were opened."""

    ahead: int = 0
    used: int = 0
    tars: int = 0


@dataclass(eq=False)
class _Claim:
    """A download that waits for its member."""

    made: float = field(default_factory=trio.current_time)
    ready: trio.Event = field(default_factory=trio.Event)
    data: bytes | None = None


class _Walk:
    """One resource that is being read: what of it was opened, and its tar, if there is one."""

    def __init__(self, session: "_Session", item: Sequence[str], resource: str, rows: Sequence[FileRow]) -> None:
        self.session = session
        self.item = tuple(item)
        self.resource = resource
        self.listed = rows
        self.rows = {row.path: row for row in rows}
        self.places = {row.path: place for place, row in enumerate(rows)}
        self.begins = [0, *accumulate(row.size or 0 for row in rows)]  # bytes before each file, in listing order
        self.fit = len(rows) >= FEWEST and all(row.size is not None and row.size <= LARGEST for row in rows)
        self.opened: set[str] = set()
        self.read = 0
        self.ahead: set[str] = set()  # fetched and not yet opened
        self.ahead_bytes = 0
        self.claims: dict[str, _Claim] = {}
        self.front = 0  # the place of the member that is to come, if the tar is in the order of the listing
        self.scope: trio.CancelScope | None = None  # of the tar, while it runs
        self.done = False  # the tar has come to its end
        self.no_tar_until = float("-inf")
        self.moved = trio.Event()  # something was opened since
        self.last_read = trio.current_time()

    def allowance(self) -> int:
        return min(ALLOWANCE + self.read // SHARE, MOST) if self.opened else EARLY

    def held_back(self) -> bool:
        """Whether enough is there that nobody has asked for."""
        if self.ahead_bytes < self.allowance():
            return False
        now = trio.current_time()
        return not any(now - claim.made < PATIENCE and not claim.ready.is_set() for claim in self.claims.values())

    def note(self, row: FileRow) -> None:
        """A file was opened."""
        self.last_read = trio.current_time()
        if row.path not in self.opened:
            self.opened.add(row.path)
            self.read += row.size or 0
        if row.path in self.ahead:
            self.ahead.remove(row.path)
            self.ahead_bytes -= row.size or 0
        self.wake()

    def claim(self, row: FileRow) -> None:
        """Its member is wanted by a download that is about to begin."""
        now = trio.current_time()
        for path in [path for path, claim in self.claims.items() if now - claim.made > PATIENCE]:
            del self.claims[path]  # whoever made it has found the file elsewhere
        self.claims.setdefault(row.path, _Claim())

    def passes(self, row: FileRow) -> None:
        """Its member is here."""
        self.front = max(self.front, self.places[row.path] + 1)

    def brings(self, row: FileRow) -> None:
        """It is in the cache, and nobody has asked for it."""
        self.ahead.add(row.path)
        self.ahead_bytes += row.size or 0

    def wake(self) -> None:
        self.moved.set()
        self.moved = trio.Event()

    def give_up(self) -> None:
        """Its tar does not come, or not fast enough."""
        log.info("the tar of resource %s does not come, its files are fetched singly", self.resource)
        self.no_tar_until = trio.current_time() + NO_TAR_FOR
        if self.scope is not None:
            self.scope.cancel()

    def near(self, row: FileRow) -> bool:
        """Whether its member can be expected before long."""
        place = self.places.get(row.path, -1)
        if self.scope is None or place < self.front:
            return False
        return self.begins[place] - self.begins[self.front] <= max(self.allowance(), LARGEST)


@dataclass
class _Session:
    """The resources of an item, in the order in which they are listed, and those of them that are read."""

    order: list[str]
    groups: Groups
    walks: dict[str, _Walk] = field(default_factory=dict)


class Bulk:
    """The tars of one server. `opened` and `member` are all that anybody calls."""

    def __init__(self, xnat: Xnat, content: ContentCache, nursery: trio.Nursery) -> None:
        self.stats = Stats()
        self._xnat = xnat
        self._content = content
        self._nursery = nursery
        self._sessions: OrderedDict[tuple[str, ...], _Session] = OrderedDict()
        self._running = 0

    def opened(self, item: Sequence[str], groups: Groups, row: FileRow) -> None:
        """A reader opens this file; `groups` are the files of the item by resource. May start a tar."""
        walk = self._walk(tuple(item), groups, row.resource_id)
        if row.path not in walk.rows:
            return
        if row.path in walk.ahead:
            self.stats.used += row.size or 0
        walk.note(row)
        if not self._content.has(version(row)):
            if len(walk.opened) >= 2:
                self._start(walk, walk.places[row.path])
            if walk.near(row):  # claimed at once: the download that wants it begins a moment later
                walk.claim(row)
        if 2 * len(walk.opened) >= len(walk.rows) and walk.done:
            self._stride(walk)

    @asynccontextmanager
    async def member(self, row: FileRow, item: Sequence[str]) -> AsyncIterator[Body | None]:
        """The file out of its resource's tar, if that is on the way; else None."""
        session = self._sessions.get(tuple(item))
        walk = session.walks.get(row.resource_id) if session else None
        claim = walk.claims.get(row.path) if walk else None
        if walk is None or claim is None:
            yield None
            return
        walk.wake()
        front = walk.front
        try:
            with trio.move_on_after(PATIENCE) as patience:
                await claim.ready.wait()
        finally:
            if walk.claims.get(row.path) is claim:
                del walk.claims[row.path]
        if patience.cancelled_caught and walk.front == front:
            walk.give_up()
        yield _body(claim.data) if claim.data is not None else None

    def _walk(self, item: tuple[str, ...], groups: Groups, resource: str) -> _Walk:
        session = self._sessions.get(item)
        if session is None or session.groups is not groups:
            session = self._sessions[item] = self._listed(session, groups)
        self._sessions.move_to_end(item)
        while len(self._sessions) > WALKS:
            self._sessions.popitem(last=False)
        if resource not in session.walks:
            session.walks[resource] = _Walk(session, item, resource, groups.get(resource, ()))
        return session.walks[resource]

    def _listed(self, old: _Session | None, groups: Groups) -> _Session:
        """A new listing: of the old one counts what is the same in both."""
        session = _Session([str(key) for key in groups], groups)
        for resource, walk in old.walks.items() if old else ():
            if groups.get(resource) == walk.listed:
                session.walks[resource], walk.session = walk, session
            elif walk.scope is not None:
                walk.scope.cancel()
        return session

    def _start(self, walk: _Walk, place: int = 0) -> None:
        """Begin the tar of a resource, unless there is a reason not to; it is read from this place on."""
        if walk.scope is not None or walk.done or not walk.fit or self._running >= STREAMS:
            return
        if trio.current_time() < walk.no_tar_until or self._missing(walk, place) < FEWEST:
            return
        if 3 * (walk.begins[-1] - walk.begins[place]) < walk.begins[-1]:
            return  # most of the tar would be what was had before
        walk.scope, walk.front = trio.CancelScope(), 0
        self._running += 1
        self.stats.tars += 1
        self._nursery.start_soon(self._run, walk)

    def _missing(self, walk: _Walk, place: int) -> int:
        """How many of the files around this place the cache does not have."""
        near = walk.listed[max(0, place - 2 * FEWEST) : place + 2 * FEWEST]
        return sum(not self._content.has(version(row)) for row in near if row.path not in walk.opened)

    def _stride(self, walk: _Walk) -> None:
        """This one is read to its middle, and has come: begin what follows in the session."""
        order = walk.session.order
        for resource in order[order.index(walk.resource) + 1 :]:
            following = self._walk(walk.item, walk.session.groups, resource)
            if following.fit and not following.done:
                self._start(following)
                return

    async def _run(self, walk: _Walk) -> None:
        assert walk.scope is not None
        try:
            with walk.scope:
                walk.done = await self._stream(walk)
        except XnatError as error:
            log.info("no tar of resource %s, its files are fetched singly: %s", walk.resource, error)
            walk.no_tar_until = trio.current_time() + NO_TAR_FOR
        finally:
            walk.scope = None
            self._running -= 1
            for claim in walk.claims.values():
                claim.ready.set()
        if walk.done and 2 * len(walk.opened) >= len(walk.rows):
            self._stride(walk)

    async def _stream(self, walk: _Walk) -> bool:
        """Take the tar, member by member; whether to its end. Raises what the client raises."""
        async with self._xnat.archive(walk.item, walk.resource) as chunks:
            async with aclosing(members(chunks)) as archive:
                async for member in archive:
                    row = _row(walk, member.name)
                    if row is None or member.size != row.size:
                        continue  # nothing that was listed: what comes by itself has no place
                    if row.path not in walk.claims and (row.path in walk.opened or self._content.has(version(row))):
                        walk.passes(row)
                        continue
                    data: bytes | None = b"".join([chunk async for chunk in member.chunks()])
                    assert data is not None
                    self.stats.ahead += len(data)
                    if row.digest and hashlib.md5(data, usedforsecurity=False).hexdigest() != row.digest:
                        log.info("%s is damaged in the tar of its resource", row.path)
                        data = None
                    # Nothing is awaited from here until the file is known to the cache or to who has claimed it.
                    walk.passes(row)
                    claim = walk.claims.get(row.path)
                    if claim is not None:
                        self.stats.used += len(data or b"")
                        claim.data = data  # None: it is asked for singly
                        claim.ready.set()
                    elif data is not None:
                        walk.brings(row)
                        await self._keep(row, data)
                    if not await self._may_go_on(walk):
                        return False
        return True

    async def _keep(self, row: FileRow, data: bytes) -> None:
        """Put a file into the cache that nobody has asked for yet. One that is damaged will be asked for singly."""
        try:
            blob = await self._content.open(version(row), _Given(data))
        except XnatError as error:
            log.info("a member of the tar of resource %s was not kept: %s", row.resource_id, error)
        else:
            blob.close()

    async def _may_go_on(self, walk: _Walk) -> bool:
        """Wait until more is wanted; False when nobody comes."""
        while walk.held_back():
            moved = walk.moved
            with trio.move_on_after(IDLE):
                await moved.wait()
                continue
            if trio.current_time() - walk.last_read >= IDLE:
                log.info("the tar of resource %s is given up: nobody reads on", walk.resource)
                return False
        return True


@asynccontextmanager
async def open_bulk(xnat: Xnat, content: ContentCache) -> AsyncIterator[Bulk]:
    """Its tars end with it."""
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield Bulk(xnat, content, nursery)
        except Exception as error:
            raised = error  # past the nursery, which would wrap it in a group
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


def version(row: FileRow) -> Version:
    """What the content cache knows a file by."""
    return Version(f"{row.resource_id}/{row.path}", row.size, row.digest)


def _row(walk: _Walk, name: str) -> FileRow | None:
    """The file that a member is, by its path; None where that is nobody's. Its path in the tar begins with labels."""
    _, found, path = name.partition("/files/")
    while found:
        row = walk.rows.get(path)
        if row is not None and has_url(row.path):
            return row
        _, found, path = path.partition("/files/")
    return None


def _body(data: bytes) -> Body:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    return Body(0, len(data), "", chunks())


@dataclass(frozen=True, slots=True)
class _Given:
    """A file whose bytes are here."""

    data: bytes

    @property
    def seekable(self) -> bool:
        return False

    @property
    def grants(self) -> bool:
        return False

    @asynccontextmanager
    async def open(
        self, start: int, size: int | None = None, unless_modified_since: str = "", stop: int | None = None
    ) -> AsyncIterator[Body | None]:
        yield _body(self.data)
