"""Prefetch the listings of upcoming sessions when a client iterates over a project.

A session that is opened alone costs its own four requests, sent together. An iteration is recognised at the second
session if that is the next one in order, and at the fourth in quick succession in any order. Then sessions are
requested in batches of 2, 4 ... 64: their files with one list, their scans and their assessors from lists of the
project.

Invariants:
- The prefetch only puts listings into the cache that single requests would have put there, under the same keys. It
  leaves out every listing that it cannot confirm; that is then requested singly. Any failure here is such a case.
- A list of files is compared with the list of their resources, which states how many files each has. A session that
  lacks one is requested singly; so is the whole batch where it is not known to which session the missing files belong.
  An absence of files counts only from a server that has listed those of several sessions at once.
- Other lists are compared with single answers until they agreed about something (`prefetch/checked_batch.py`). All
  listings from a list that disagrees are dropped, with everything that was derived from them.
- No more is fetched ahead than an iteration at its pace reaches in half of the TTL.

A batch cannot show a resource without files of anything but a scan. So everything put here is marked `pieced`, and for
a name that it lacks the item itself is requested (`Dir.child` in `tree/node.py`).
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, NotFound, Unreachable, XnatError, first_error
from xnatfs.listings.keys import (
    AssessorsKey,
    ChildrenKey,
    ExperimentsKey,
    FilesKey,
    ListKey,
    ResourcesKey,
    ScansKey,
    SubjectsKey,
    experiment_keys,
)
from xnatfs.listings.ttl_cache import Expiring, Listing, MetadataCache, listing
from xnatfs.prefetch.checked_batch import TOO_SLOW, Many
from xnatfs.rest.client import Xnat
from xnatfs.rest.file_table import Catalogue, Catalogues
from xnatfs.rest.models import Assessor, Experiment, Item, JoinedScans, Resource, Subject, natural

log = logging.getLogger(__name__)

# Sessions in one list of files. The server parses the catalogues of all before it answers. Each batch is two requests,
# so that an iteration over 1,000 sessions takes 54 in all; with 64 sessions a batch it took 69.
LARGEST_BATCH = 128
# With fewer sessions ahead before a listing expires, a list of the whole project costs the server more than it saves.
FEWEST = 4
# A batch that takes longer than this, in seconds, is followed by smaller ones.
SLOW = 5.0
# Characters of IDs in a URL: servers and proxies accept URLs of 8 KB, and the rest of the URL needs some of it.
LONGEST_LIST = 7000
# Out of order, this many sessions with pauses of at most so many seconds are an iteration, too: no person opens folders
# so fast.
HASTE, IN_HASTE = 10.0, 4

R = TypeVar("R")


@dataclass
class _Steps:
    """The items that a client opens one after the other, and whether that is an iteration."""

    ttl: float
    walking: bool = False
    last: str = ""
    alone: str = ""  # the item that was opened last outside of an iteration
    at: float = -float("inf")
    gap: float = 0.0  # seconds between the last two
    haste: int = 0
    orders: tuple[dict[str, int], ...] = field(default=())  # the place of each item, for each order

    def order(self, labels: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Set the items, by their labels, and return them in the order of the mount's listing.

        A step to the next item counts in that order and in plain string order, which programs use as well.
        """
        listed = sorted(labels, key=lambda key: [natural(label) for label in labels[key]])
        self.orders = tuple(
            {key: place for place, key in enumerate(order)}
            for order in (listed, sorted(labels, key=labels.__getitem__))
        )
        return listed

    def take(self, key: str) -> bool:
        """Record that an item is opened, and return whether that is a step of an iteration."""
        gap, self.at = now() - self.at, now()
        if key != self.last:
            self.gap = gap
            self.haste = self.haste + 1 if gap <= HASTE else 1
            follows = any(places.get(key, -1) - 1 == places.get(self.last, -3) for places in self.orders)
            self.walking = gap <= self.ttl and (follows or self.haste >= IN_HASTE or (self.walking and gap <= HASTE))
            self.last = key
        if not self.walking:
            self.alone = key
        return self.walking


class Walk:
    """Recognise iterations over the sessions of one project and the resources of its subjects, and prefetch listings.

    Args:
        project: The ID of the project.
        xnat: The client of the server.
        metadata: The cache that receives the listings.
        ttl: Seconds for which a listing is valid.
        ahead: Begin single requests for all listings of a session, in the background; the flag tells whether the
            session can have scans.
    """

    def __init__(
        self, project: str, xnat: Xnat, metadata: MetadataCache, ttl: float, ahead: Callable[[str, bool], None]
    ) -> None:
        self._project = project
        self._xnat = xnat
        self._metadata = metadata
        self._ttl = ttl
        self._ahead = ahead
        self._sessions: dict[str, Experiment] = {}
        self._listed: tuple[object, list[str]] = (None, [])  # the listing that has these sessions, and their order
        self._subjects: object = None
        self._labelled = ""  # a subject that has resources
        self._steps, self._subject_steps = _Steps(ttl), _Steps(ttl)
        self._looked_at: set[str] = set()  # sessions opened during this iteration
        self._begun: dict[str, float] = {}  # when the single requests for a session began
        self._under_way: dict[str, trio.Event] = {}
        self._batch, self._batch_begun = 1, -float("inf")
        self._many_files = False  # the server has listed the files of several sessions at once
        self._scans = Many(
            "scans of a project", ttl, self._join, self._scans_of, lambda: self._withdraw(ScansKey), whole=True
        )
        self._assessors = Many(
            "assessors of sessions", ttl, self._ask_assessors, self._assessors_of, lambda: self._withdraw(AssessorsKey)
        )
        self._labels = Many(
            "subjects' resources", ttl, self._ask_labels, self._labels_of, lambda: self._withdraw(), whole=True
        )

    # -- items that are opened -----------------------------------------------------------------------------------

    async def session(self, accession: str) -> None:
        """Prefetch for a session that a client opens; its listings are cached on return, or being requested singly."""
        self._order()
        walking = self._steps.take(accession)
        if not walking:
            self._batch = 1
            self._looked_at.clear()
        self._looked_at.add(accession)
        if accession in self._under_way:
            await self._under_way[accession].wait()
        asked_at = now()
        if self._known(accession) or asked_at - self._begun.get(accession, -float("inf")) < self._ttl:
            return
        if walking and accession in self._sessions and (size := self._size()):
            await self._ask_batch(accession, size)
        if not self._known(accession):
            self._begun[accession] = asked_at
            self._ahead(accession, self._imaging(accession))

    async def subject(self, accession: str) -> None:
        """Prefetch for a subject whose resources a client lists: an absence of resources is cached on return."""
        found = self._metadata.peek(SubjectsKey(self._project))
        if isinstance(found, Listing) and found is not self._subjects:
            self._subjects = found
            subjects: Sequence[Subject] = found.rows
            self._subject_steps.order({row.id: (row.label,) for row in subjects})
        key = ResourcesKey(("subjects", accession), False)
        if not self._subject_steps.take(accession) or self._metadata.peek(key) is not None:
            return
        labels = await self._labels.of([accession], [self._subject_steps.alone, self._labelled])
        if labels and labels.get(accession):
            self._labelled = accession
        if labels is not None and labels.get(accession) == set() and self._metadata.peek(key) is None:
            self._metadata.put(key, Listing([], {}, self._labels.fetched, self._labels.expires, pieced=True))

    def _order(self) -> None:
        found = self._metadata.peek(ExperimentsKey(self._project))
        if isinstance(found, Listing) and found is not self._listed[0]:
            self._sessions = {row.id: row for row in found.rows}
            labels = {row.id: (row.subject_label, row.label) for row in self._sessions.values()}
            self._listed = found, self._steps.order(labels)
            self._begun = {each: begun for each, begun in self._begun.items() if now() - begun < self._ttl}

    def _known(self, accession: str) -> bool:
        return all(self._metadata.peek(key) is not None for key in experiment_keys(accession))

    def _imaging(self, accession: str) -> bool:
        row = self._sessions.get(accession)
        return row is None or row.is_imaging

    # -- batches -------------------------------------------------------------------------------------------------

    async def _ask_batch(self, accession: str, size: int) -> None:
        chosen = self._choose(accession, size)
        self._batch = len(chosen)
        self._batch_begun, done = now(), trio.Event()
        self._under_way |= dict.fromkeys(chosen, done)
        try:
            await self._take(chosen)
        finally:
            for each in chosen:
                self._under_way.pop(each, None)
            done.set()
        if now() - self._batch_begun > SLOW:
            self._batch = max(1, self._batch // 2)

    def _choose(self, accession: str, size: int) -> list[str]:
        """Choose this session and the next ones without listings; where there are no more, those before it."""
        order = self._listed[1]
        at = order.index(accession)
        chosen: list[str] = []
        for each in (*order[at:], *reversed(order[:at])):
            if len(chosen) == size or len(quote(",".join([*chosen, each]))) > LONGEST_LIST:
                break
            if each == accession or not (each in self._looked_at or each in self._under_way or self._known(each)):
                chosen.append(each)
        return chosen

    def _size(self) -> int:
        """Return the size of the next batch: twice the last, if so many are reached in half of the TTL at its pace.

        0 where so few are reached that single requests cost the least.
        """
        elapsed = self._steps.gap if self._batch == 1 else now() - self._batch_begun
        reached = LARGEST_BATCH if elapsed <= 0 else int(self._ttl / 2 * self._batch / elapsed)
        return min(2 * self._batch, LARGEST_BATCH, reached) if reached >= FEWEST else 0

    async def _take(self, chosen: Sequence[str]) -> None:
        """Request all listings of these sessions, and cache those that are confirmed."""
        scans: dict[str, JoinedScans] | None = None
        assessors: dict[str, tuple[Assessor, ...]] | None = None
        files: Catalogues | None = None
        stated: dict[str, Resource] | None = None
        started = now()

        async def ask_scans() -> None:
            nonlocal scans
            scans = await self._scans.of(chosen, [self._steps.alone])

        async def ask_assessors() -> None:
            nonlocal assessors
            imaging = [each for each in chosen if self._imaging(each)]
            assessors = await self._assessors.of(imaging, [self._steps.alone])

        async def ask_files() -> None:
            nonlocal files
            files = await self._in_one(self._xnat.files_of_many, chosen) if len(chosen) > 1 else None

        async def ask_resources() -> None:
            nonlocal stated
            stated = await self._in_one(self._xnat.resources_of_many, chosen) if len(chosen) > 1 else None

        try:
            async with trio.open_nursery() as nursery:
                for ask in (ask_scans, ask_assessors, ask_files, ask_resources):
                    nursery.start_soon(ask)
        except ExceptionGroup as group:
            raise first_error(group) from None
        if scans is not None and self._scans.believed:
            self._give_scans(chosen, scans)
        if assessors is not None and self._assessors.believed:
            self._give_assessors(chosen, assessors)
        if files is not None and stated is not None:
            lacking = await self._lacking(chosen, files, stated)
            if all(number in files.groups for number in lacking):
                self._give_files(chosen, files, started, scans or {}, assessors or {}, stated, lacking)
            else:
                log.info("a list of the files of %d sessions lacks those of resources %s", len(chosen), sorted(lacking))
                self._batch = 1

    async def _in_one(self, ask: Callable[[Sequence[str]], Awaitable[R]], chosen: Sequence[str]) -> R | None:
        """Request one list; None where it fails.

        One broken catalogue makes the whole list fail. Then the next batch is small, and later ones do not contain it.
        """
        try:
            with trio.move_on_after(TOO_SLOW):
                return await ask(chosen)
        except (NotFound, Denied, BadReply, Unreachable) as error:
            log.info("requesting the files of %d sessions one by one, because: %s", len(chosen), error)
        self._batch = 1
        return None

    async def _lacking(self, chosen: Sequence[str], files: Catalogues, stated: Mapping[str, Resource]) -> set[str]:
        """Return the resources that have more files than are listed; the files of one without a count are requested."""
        lacking = {row.id for row in stated.values() if row.lacks(len(files.groups.get(row.id, ())))}
        item = ("experiments", chosen[0])  # any session: the server finds a resource's number below each

        async def ask(resource: str) -> None:
            try:
                if await self._xnat.resource_files(item, resource):
                    lacking.add(resource)
            except XnatError:  # its session is requested singly, which reports the error
                lacking.add(resource)

        try:
            async with trio.open_nursery() as nursery:
                for row in stated.values():
                    if row.file_count is None and row.id not in files.groups and row.id not in lacking:
                        nursery.start_soon(ask, row.id)
        except ExceptionGroup as group:
            raise first_error(group) from None
        return lacking

    # -- confirmed listings --------------------------------------------------------------------------------------

    def _give(self, key: ListKey, made: Expiring) -> None:
        """Put a listing into the cache, unless there is one: that is as good, or better."""
        if self._metadata.peek(key) is None:
            self._metadata.put(key, made)

    def _give_scans(self, chosen: Sequence[str], scans: Mapping[str, JoinedScans]) -> None:
        """Cache the scans of sessions in the list, and none for an absent experiment that is no imaging session.

        An imaging session that is absent is requested singly.
        """
        for each in chosen:
            if each in scans or not self._imaging(each):
                rows = list(scans[each].scans.values()) if each in scans else []
                made = listing(rows, lambda scan: scan.id, self._scans.fetched, self._ttl, pieced=True)
                self._give(ScansKey(each), made)

    def _give_assessors(self, chosen: Sequence[str], assessors: Mapping[str, tuple[Assessor, ...]]) -> None:
        for each in chosen:
            if each in assessors or not self._imaging(each):
                rows = list(assessors.get(each, ()))
                made = listing(rows, lambda row: row.id, self._assessors.fetched, self._ttl, pieced=True)
                self._give(AssessorsKey(each), made)

    def _give_files(
        self,
        chosen: Sequence[str],
        files: Catalogues,
        started: float,
        scans: Mapping[str, JoinedScans],
        assessors: Mapping[str, Sequence[Assessor]],
        stated: Mapping[str, Resource],
        lacking: Collection[str],
    ) -> None:
        if len(files.groups) == 1:
            return  # the URI of a single resource does not tell what it belongs to
        owners = {row.id: each for each, rows in assessors.items() for row in rows}
        by_session: dict[str, list[tuple[Catalogue, Item]]] = {each: [] for each in chosen}
        for catalogue in files.groups.values():
            session, *place = _place(catalogue.home)
            if session in owners:
                session, place = owners[session], ["assessors", session, *place]
            if session not in by_session:
                log.info("a list of the files of %s contains some of %s", ",".join(chosen), catalogue.home)
                return
            by_session[session].append((catalogue, tuple(place)))
        self._many_files = self._many_files or sum(map(bool, by_session.values())) > 1
        for each, found in by_session.items():
            joined = scans.get(each) if self._scans.believed else None
            if not found and not (self._many_files and not (joined and joined.labels)):
                continue  # an absence of files is not confirmed
            if any(catalogue.resource_id in lacking for catalogue, _ in found):
                continue
            rows = self._resources(found, joined, {row.id for row in assessors.get(each, ())}, stated)
            if rows is None:
                continue
            own = Catalogues()
            for catalogue, _ in found:
                own.join(catalogue)
            self._give(FilesKey(("experiments", each), True), Listing(own, own.groups, started, started + self._ttl))
            made = listing(rows, lambda row: row.group, started, self._ttl, pieced=True)
            self._give(ResourcesKey(("experiments", each), True), made)

    def _resources(
        self,
        found: Iterable[tuple[Catalogue, Item]],
        joined: JoinedScans | None,
        assessors: set[str],
        stated: Mapping[str, Resource],
    ) -> list[Resource] | None:
        """Return the resources to which these files belong; None where that is not certain."""
        rows: list[Resource] = []
        labels: dict[str, set[str]] = {}
        for catalogue, place in found:
            row = stated.get(catalogue.resource_id)
            if row is None and place[2:3] == ("in",):
                continue  # what an assessor was made of is not among its resources
            if row is None or (row.category == "assessors" and row.cat_id not in assessors):
                return None
            if row.category == "scans" and joined is not None:
                if row.cat_id not in joined.scans:
                    self._scans.disbelieve(f"scan {row.cat_id} has files and is not in it")
                    return None
                labels.setdefault(row.cat_id, set()).add(row.label)
            rows.append(row)
        told = joined.labels if joined else {}
        return rows if all(named <= labels.get(scan, set()) for scan, named in told.items()) else None

    def _withdraw(self, *kinds: type[ListKey]) -> None:
        """Forget all `pieced` listings of these kinds after a list was wrong, and the children of every directory.

        Directories are built again from the listings that stay, without a request.
        """
        kinds = (*kinds, ResourcesKey)

        def doubtful(key: Hashable, value: Expiring) -> bool:
            pieced = isinstance(value, Listing) and value.pieced
            return isinstance(key, ChildrenKey) or (isinstance(key, kinds) and pieced)

        self._metadata.forget_all(doubtful)

    # -- requests for the lists ----------------------------------------------------------------------------------

    async def _join(self, wanted: Sequence[str]) -> dict[str, JoinedScans]:
        """Fetch the scans of the project's own sessions and, where there are several, of those shared into it."""
        found = await self._xnat.scans_of_project(self._project)
        absent = [row.id for row in self._sessions.values() if row.is_imaging and row.id not in found]
        if len(absent) > 1:
            try:
                found |= await self._xnat.scans_of_project(self._project, shared=True)
            except (NotFound, Denied, BadReply) as error:
                log.info("scans of sessions that are shared into %s are requested singly: %s", self._project, error)
        return found

    async def _own(
        self, key: ListKey, ask: Callable[[], Awaitable[Sequence[R]]], group: Callable[[R], Hashable]
    ) -> Sequence[R]:
        """Return the rows of an item's own listing, from the cache or else from the server."""

        async def asked() -> Listing[R]:
            started = now()
            return listing(await ask(), group, started, self._ttl)

        found = self._metadata.peek(key)
        if not isinstance(found, Listing) or found.pieced:
            await self._metadata.renew(key, asked, lambda found: isinstance(found, Listing) and found.pieced)
            found = self._metadata.peek(key)
        assert isinstance(found, Listing)
        return found.rows

    async def _scans_of(self, accession: str) -> JoinedScans:
        key = ScansKey(accession)
        return JoinedScans.of(await self._own(key, lambda: self._xnat.scans(accession), lambda scan: scan.id))

    async def _ask_assessors(self, wanted: Sequence[str]) -> dict[str, tuple[Assessor, ...]]:
        """Fetch the assessors of these sessions, and of as many more of the project as fit into the URL."""
        chosen = list(wanted)
        room = LONGEST_LIST - len(quote(",".join(chosen)))
        asked = set(chosen)
        order = self._listed[1]
        at = order.index(wanted[0]) if wanted[0] in self._sessions else 0  # a new listing may lack it by now
        for each in order[at:]:
            room -= len(quote(each)) + 3
            if room < 0:
                break
            if each not in asked and self._imaging(each):
                chosen.append(each)
        if self._steps.alone and self._imaging(self._steps.alone):
            chosen.append(self._steps.alone)
        found = await self._xnat.assessors_of_many(list(dict.fromkeys(chosen)))
        return {each: tuple(sorted(rows, key=lambda row: row.id)) for each, rows in found.items()}

    async def _assessors_of(self, accession: str) -> tuple[Assessor, ...]:
        key = AssessorsKey(accession)
        rows = await self._own(key, lambda: self._xnat.assessors(accession), lambda row: row.id)
        return tuple(sorted(rows, key=lambda row: row.id))

    async def _ask_labels(self, wanted: Sequence[str]) -> dict[str, set[str]]:
        return await self._xnat.subject_resource_labels(self._project)

    async def _labels_of(self, accession: str) -> set[str]:
        item = ("subjects", accession)
        rows = await self._own(ResourcesKey(item, False), lambda: self._xnat.resources(item), lambda row: row.group)
        return {row.label for row in rows}


def _place(home: str) -> list[str]:
    """Return the segments of a URI after /experiments/; what is before differs from call to call."""
    _, found, place = home.partition("/experiments/")
    return place.split("/") if found else [home]
