"""Compose one server: its client, both caches, and the listings that the tree is made of.

Real servers take 50 ms to seconds for a call, so the number of calls is the cost, and then how many of them wait for
each other: listings are requested in bulk, cached whole, and begun together. All the resources and all the files of a
session come with one request each; a client that iterates over sessions has them from `prefetch/session_listings.py`,
under the same keys.
"""

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, LoginRequired, NotFound, Unreachable, first_error
from xnatfs.common.tasks import background, unattended
from xnatfs.content import ContentCache, open_cache
from xnatfs.listings.keys import (
    AllExperimentsKey,
    AllSubjectsKey,
    AssessorsKey,
    ChangeKey,
    ExperimentsKey,
    FilesKey,
    ListKey,
    ProjectsKey,
    ResourcesKey,
    ScansKey,
    SizeKey,
    SubjectsKey,
)
from xnatfs.listings.persisted import Kept
from xnatfs.listings.revocation import Access
from xnatfs.listings.stale import Past
from xnatfs.listings.ttl_cache import Listing, MetadataCache, listing
from xnatfs.prefetch.series_files import Bulk, open_bulk
from xnatfs.prefetch.session_listings import Walk
from xnatfs.rest.address import base
from xnatfs.rest.client import Xnat, open_xnat
from xnatfs.rest.file_table import Catalogue, Catalogues
from xnatfs.rest.models import Accession, Assessor, Experiment, FileRow, Item, Project, Resource, Scan, Subject
from xnatfs.settings.config import Config, server_directory
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import SessionStore

log = logging.getLogger(__name__)

# A listing of an earlier mount is shown for so long, in seconds, and no longer than until the server has answered.
KEPT_FOR = 5.0

# Nodes of files that are kept because they were listed lately, 250 bytes each; the next listing is three times as fast.
SHOWN = 50_000

# A local file system dates what is written with the kernel's last tick, in seconds at 100 Hz. What is made of a new
# version at once is to be no older than that.
TICK = 0.01


@dataclass(frozen=True, slots=True)
class TrueSize:
    """What a file's reply said of its length, against a catalogue that lacks it or has it wrong."""

    size: int
    expires: float = math.inf

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Change:
    """Tell that a file was replaced while this mount looked on.

    Attributes:
        stated: What its listing says of it now, as a number.
        stamp: What tells its content from the one before; '' where the listing does.
        at: When that was found out, in seconds since the epoch; 0 where it may be the same content all the same.
    """

    stated: int
    stamp: str
    at: float
    expires: float = math.inf

    def __len__(self) -> int:
        return 1


class Site:
    """The client, both caches, and cached listings. Each listing method raises what `Xnat` raises."""

    def __init__(
        self,
        xnat: Xnat,
        metadata: MetadataCache,
        content: ContentCache,
        bulk: Bulk,
        ttl: float,
        nursery: trio.Nursery,
        directory: Path,
    ) -> None:
        self.xnat = xnat
        self.bulk = bulk
        self.metadata = metadata
        self.content = content
        self.ttl = ttl
        self.opened_at = time.time()
        self.sizes_learnt = False  # whether any file was found to be another than its listing says
        self.sizes_right: dict[str, bool] = {}  # by resource, of those that were looked at more closely
        self.shown = MetadataCache(SHOWN)
        self._contradicted: dict[str, tuple[int | None, int]] = {}  # counts of resources, and how many files they list
        self._nursery = nursery
        self._directory = directory
        self._walks: dict[str, Walk] = {}
        self._kept: Kept | None = None
        self._past: Past | None = None
        self._seen: set[ListKey] = set()  # listings that were asked for before
        self.access = Access(
            content, bulk, lambda: xnat.login.username, self._known, self._ids, self._forget_kept, nursery
        )

    def stay(self, offline: bool = False) -> None:
        """For who lives long, as mounts do: memory is given back when nobody looks any more, and listings are kept.

        From now on what was kept is shown while it is asked for anew, and what comes is kept; if it is known who we
        are. With `offline` it is shown, too, while the server is away.
        """
        self._nursery.start_soon(self._tidy)
        self.access.begin(self.access.recall)
        if account := self.xnat.login.username:
            self._kept = Kept(self._directory, account)
            self._past = Past(self._kept) if offline else None
            self._nursery.start_soon(self._kept.run)

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(max(self.ttl, 10.0))  # nobody is in need of it sooner
            self.metadata.expire()
            self.shown.expire()

    def counters(self) -> dict[str, int]:
        """What is held and what is under way, by name; see those who count it."""
        return {
            **self.content.counters(),
            **self.bulk.counters(),
            **self.xnat.counters(),
            "listings": len(self.metadata),
        }

    async def projects(self) -> Listing[Project]:
        return await self._listing(ProjectsKey())

    async def subjects(self, project: str) -> Listing[Subject]:
        return await self._listing(SubjectsKey(project))

    async def experiments(self, project: str) -> Listing[Experiment]:
        """By accession ID of the subject."""
        return await self._listing(ExperimentsKey(project))

    async def people(self, project: str) -> tuple[Listing[Subject], Listing[Experiment]]:
        """The subjects and the experiments of a project, asked for at the same time."""
        self._begin(lambda: self.experiments(project))
        return await self.subjects(project), await self.experiments(project)

    def known_experiments(self, project: str) -> Listing[Experiment] | None:
        """The same if it is there already; nothing is asked."""
        found = self.metadata.peek(ExperimentsKey(project))
        return found if isinstance(found, Listing) else None

    def known_subjects(self, project: str) -> Listing[Subject] | None:
        found = self.metadata.peek(SubjectsKey(project))
        return found if isinstance(found, Listing) else None

    async def accessions(self, key: AllSubjectsKey | AllExperimentsKey) -> Listing[Accession]:
        return await self._listing(key)

    async def scans(self, experiment: str) -> Listing[Scan]:
        return await self._listing(ScansKey(experiment))

    async def assessors(self, experiment: str) -> Listing[Assessor]:
        return await self._listing(AssessorsKey(experiment))

    async def resources(self, item: Item, below: bool) -> Listing[Resource]:
        """By what they hang on: (category, cat_id); ('resources', '') are the item's own."""
        return await self._listing(ResourcesKey(item, below))

    async def files(self, item: Item, below: bool) -> Listing[FileRow]:
        """Return the files of an item, by resource. A resource that cannot be listed is named by `Listing.broken`."""
        key = FilesKey(item, below)

        async def fetch() -> Listing[FileRow]:
            try:
                return await self._ask_files(item, below)
            except (NotFound, Denied):
                self._forget_kept(key)
                raise
            except (LoginRequired, Unreachable) as error:
                return await self._as_it_was(key, error)

        return self._noted(key, await self.metadata.get(key, fetch))

    async def _ask_files(self, item: Item, below: bool) -> Listing[FileRow]:
        """Request one list, then each resource by itself that the list lacks; one broken catalogue spoils it whole."""
        started = now()
        try:
            files = await self.xnat.files(item, below=below)
            lacking = await self._lacking(item, below, files)
        except (NotFound, BadReply) as error:
            log.info("asking each resource for its files, because: %s", error)
            self.metadata.forget(ResourcesKey(item, below))
            files, lacking = Catalogues(), (await self.resources(item, below)).rows
        broken = await self._list_singly(item, below, lacking, files)
        empty = {row.id for row in lacking if row.id not in broken and not files.groups.get(row.id)}
        if empty:
            broken |= await self._lost(item, below, empty, started)
        return Listing(files, files.groups, started, started + self.ttl, broken)

    async def _lacking(self, item: Item, below: bool, files: Catalogues) -> Sequence[Resource]:
        """Return the resources of which the server states more files than it lists."""
        try:
            rows = (await self.resources(item, below)).rows
        except (NotFound, Denied, BadReply):
            return ()  # nothing is stated
        listed = {row.id: len(files.groups.get(row.id, ())) for row in rows}
        lacking = [row for row in rows if row.lacks(listed[row.id])]
        return [row for row in lacking if self._contradicted.get(row.id) != (row.file_count, listed[row.id])]

    async def _list_singly(
        self, item: Item, below: bool, resources: Sequence[Resource], files: Catalogues
    ) -> dict[str, str]:
        """Add the files of these resources, each from a list of its own; return why one could not be listed."""
        found: dict[str, Catalogue] = {}
        broken: dict[str, str] = {}

        async def ask(resource: Resource) -> None:
            where = base(item, resource.group) if below else item
            try:
                found[resource.id] = await self.xnat.resource_files(where, resource.id)
            except (NotFound, Denied, BadReply) as error:
                log.warning("the files of resource %s cannot be listed: %s", resource.id, error)
                if not files.groups.get(resource.id):
                    broken[resource.id] = f"the server cannot read the catalogue of resource {resource.id}"

        try:
            async with trio.open_nursery() as nursery:
                for row in resources:
                    nursery.start_soon(ask, row)
        except ExceptionGroup as group:
            raise first_error(group) from None
        for number in sorted(found):
            if len(found[number]) >= len(files.groups.get(number, ())):
                files.join(found[number])
        # A count that the resource's own list contradicts is stale: it is not compared again while both stay so.
        listed = {row.id: len(files.groups.get(row.id, ())) for row in resources}
        self._contradicted |= {row.id: (row.file_count, listed[row.id]) for row in resources if listed[row.id]}
        return broken

    async def _lost(self, item: Item, below: bool, empty: Collection[str], started: float) -> dict[str, str]:
        """Return which of these resources, of which no file is listed, have some by a list made after `started`."""
        key = ResourcesKey(item, below)

        def is_older(found: object) -> bool:
            return isinstance(found, Listing) and (found.pieced or found.fetched < started)

        await self.metadata.renew(key, lambda: self._ask(key), is_older)
        reasons: dict[str, str] = {}
        for row in (await self.resources(item, below)).rows:
            if row.id in empty and row.lacks(0):
                count = row.file_count or "some"
                reasons[row.id] = f"the server states that resource {row.id} has {count} files, and lists none"
                log.warning("%s", reasons[row.id])
        return reasons

    async def confirm(self, keys: Sequence[ListKey], expires: float = math.inf) -> bool:
        """Of these listings have the server's own; whether what was made of them until `expires` is to be made anew."""
        for key in keys:
            if _is_pieced(self.metadata.peek(key)):
                await self.metadata.renew(key, lambda key=key: self._ask(key), _is_pieced)  # type: ignore[misc]
        found = [each for key in keys if (each := self.metadata.peek(key))]
        return min((each.expires for each in found), default=expires) != expires

    # -- what is asked ahead -------------------------------------------------------------------------------------

    async def look_into(self, project: str, experiment: str) -> None:
        """Somebody does: its listings are begun together, or, on a walk, those of many sessions."""
        try:
            await self._walk(project).session(experiment)
        except Unreachable:
            if self._past is None:
                raise  # else what is known of it is shown

    async def look_into_subject(self, project: str, subject: str) -> None:
        """Somebody lists its resources."""
        await self._walk(project).subject(subject)

    def _walk(self, project: str) -> Walk:
        if project not in self._walks:
            self._walks[project] = Walk(project, self.xnat, self.metadata, self.ttl, self._ask_all)
        return self._walks[project]

    def _ask_all(self, experiment: str, imaging: bool) -> None:
        item = ("experiments", experiment)
        if imaging:
            self._begin(lambda: self.scans(experiment))
            self._begin(lambda: self.assessors(experiment))
        self._begin(lambda: self.resources(item, True))
        self._begin(lambda: self.files(item, True))

    def _begin(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Ask for a listing that somebody is about to want; how it fails, is told then."""
        self._nursery.start_soon(unattended, "a listing that was asked ahead", logging.DEBUG, ask)

    # -- listings ------------------------------------------------------------------------------------------------

    def stale(self, key: ListKey) -> float:
        """Of when a listing is that is shown for want of a server, in seconds since the epoch; 0: it is fresh."""
        found = self.metadata.peek(key)
        if found is None and self._past is not None and self.xnat.away:
            found = self._past.peek(key)  # is what will be shown
        return found.stale if isinstance(found, Listing) else 0.0

    def _noted(self, key: ListKey, found: Listing[Any]) -> Listing[Any]:
        if self._past is not None:
            self._past.note(key, found)
        return found

    async def _listing(self, key: ListKey) -> Listing[Any]:
        return self._noted(key, await self.metadata.get(key, lambda: self._first(key)))

    async def _first(self, key: ListKey) -> Listing[Any]:
        """A listing that is asked for the first time may be that of the last mount, for as long as it takes to ask."""
        if self._kept is None or key in self._seen or (self._past is not None and self.xnat.away):
            return await self._ask(key)
        self._seen.add(key)
        _, group, kind = self._source(key)
        found: tuple[float, list[Any]] | None = await self._kept.dated(key, kind)
        if found is None:
            return await self._ask(key)
        self._begin(lambda: self.metadata.renew(key, lambda: self._ask(key), _is_pieced))
        at, rows = found
        shown = listing(rows, group, now(), min(KEPT_FOR, self.ttl), pieced=True)
        return shown if self._past is None else replace(shown, stale=at)

    async def _ask(self, key: ListKey) -> Listing[Any]:
        ask, group, _ = self._source(key)
        started = now()
        try:
            rows = await ask()
        except (NotFound, Denied):
            self._forget_kept(key)
            self.access.refused(key)
            raise
        except (LoginRequired, Unreachable) as error:
            return await self._as_it_was(key, error)
        if self._kept is not None:
            self._kept.put(key, rows)
        self.access.listed(key, (row.id for row in rows))
        return listing(rows, group, started, self.ttl)

    async def _as_it_was(self, key: ListKey, error: LoginRequired | Unreachable) -> Listing[Any]:
        """What is shown while the server is away, to who wants that. Raises the error where nothing is."""
        if self._past is None:
            raise error
        if isinstance(error, LoginRequired):
            self._past.forget_all()
            raise error
        _, group, kind = self._source(key)
        return await self._past.get(key, kind, group, error)

    async def _known(self) -> bool:
        """Whether the server knows us. What it has refused may have been refused to a guest, and is asked anew."""
        lives = await self.xnat.session_lives()
        self.metadata.forget_refusals()
        return lives

    async def _ids(self, key: ListKey) -> list[str]:
        """Of the server's list of now, kept by nobody."""
        ask, _, _ = self._source(key)
        return [row.id for row in await ask()]

    def _forget_kept(self, key: ListKey) -> None:
        if self._kept is not None:
            self._kept.put(key, ())
        if self._past is not None:
            self._past.forget(key)

    def _source(self, key: ListKey) -> tuple[Callable[[], Awaitable[Sequence[Any]]], Callable[[Any], Hashable], type]:
        """How a listing is asked for, by what its rows are grouped, and what they are."""
        xnat = self.xnat
        match key:
            case ProjectsKey():
                return xnat.projects, lambda row: row.id, Project
            case SubjectsKey(project):
                return lambda: xnat.subjects(project), lambda row: row.id, Subject
            case ExperimentsKey(project):
                return lambda: xnat.experiments(project), lambda row: row.subject_id, Experiment
            case AllSubjectsKey():
                return xnat.all_subjects, lambda row: row.project, Accession
            case AllExperimentsKey():
                return xnat.all_experiments, lambda row: row.project, Accession
            case ScansKey(experiment):
                return lambda: xnat.scans(experiment), lambda row: row.id, Scan
            case AssessorsKey(experiment):
                return lambda: xnat.assessors(experiment), lambda row: row.id, Assessor
            case ResourcesKey(item, below):
                return lambda: xnat.resources(item, below=below), lambda row: row.group, Resource
            case FilesKey(item, below):
                return lambda: xnat.files(item, below=below), lambda row: row.resource_id, FileRow
        raise KeyError(key)

    def learn_change(self, key: ChangeKey, stated: int, stamp: str, at: float | None = None) -> Change:
        """Remember that a file is another one than it was before, from now on or since then."""
        change = Change(stated, stamp, time.time() - TICK if at is None else at)
        self.metadata.put(key, change)
        self.sizes_learnt = True
        return change

    def learn_size(self, key: SizeKey, size: int) -> None:
        """A file is longer or shorter than its listing says, for as long as that says so."""
        self.metadata.put(key, TrueSize(size))
        self.sizes_learnt = True


def _is_pieced(value: object) -> bool:
    return isinstance(value, Listing) and value.pieced


@asynccontextmanager
async def open_site(
    config: Config,
    credentials: Credentials | None,
    wire: httpx.AsyncBaseTransport | None = None,
    sessions: SessionStore | None = None,
) -> AsyncIterator[Site]:
    """A server, opened for use; `wire` replaces the network in tests. Raises CacheError; nothing is sent yet."""
    directory = config.cache_dir / server_directory(config.url)
    async with (
        open_xnat(config, credentials, wire, sessions) as xnat,
        open_cache(
            directory, config.cache_size, revalidate=config.revalidate, strict=config.strict, wait=config.lock_timeout
        ) as content,
        open_bulk(xnat, content) as bulk,
        background() as nursery,
    ):
        yield Site(xnat, MetadataCache(), content, bulk, config.ttl, nursery, directory)
