"""Compose one server: its client, both caches, and the listings that the tree is made of.

Real servers take 50 ms to seconds for a request, so the number of requests is the cost, and then the number of requests
that wait for each other: listings are requested in bulk, cached whole, and begun together. All resources and all files
of a session come with one request each; if a client iterates over sessions, `prefetch/session_listings.py` prefetches
them under the same keys.
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

# A listing of an earlier mount is served for at most so many seconds, and only until the server has answered.
KEPT_FOR = 5.0

# Nodes of recently listed files that are cached, 250 bytes each; the next listing is three times as fast.
SHOWN = 50_000

# A local file system dates a write with the kernel's last tick: its length in seconds at 100 Hz. A file made from a new
# version at once must not be older than that version.
TICK = 0.01


@dataclass(frozen=True, slots=True)
class TrueSize:
    """The length of a file by its reply, for a catalogue that lacks it or has it wrong."""

    size: int
    expires: float = math.inf

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Change:
    """A replacement of a file that was observed during this mount.

    Attributes:
        stated: What the file's listing states now, as a number.
        stamp: Distinguishes the content from the one before; '' if the listing does.
        at: When the replacement was found, in seconds since the epoch; 0 if the content may still be the same.
    """

    stated: int
    stamp: str
    at: float
    expires: float = math.inf

    def __len__(self) -> int:
        return 1


class Site:
    """The client, both caches, and cached listings of one server. Each listing method raises as those of `Xnat`.

    Args:
        xnat: The client.
        metadata: The cache of listings.
        content: The cache of file contents.
        bulk: Fetches the files of a series together.
        ttl: How long a listing is fresh, in seconds.
        nursery: Runs requests ahead of their use, and background tasks.
        directory: Where the server's listings are persisted.
    """

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
        self.sizes_learnt = False  # whether any file was found to differ from its listing
        self.sizes_right: dict[str, bool] = {}  # by resource, of those that were examined more closely
        self.shown = MetadataCache(SHOWN)
        self._contradicted: dict[str, tuple[int | None, int]] = {}  # stated and listed number of files, by resource
        self._nursery = nursery
        self._directory = directory
        self._walks: dict[str, Walk] = {}
        self._kept: Kept | None = None
        self._past: Past | None = None
        self._seen: set[ListKey] = set()  # listings that were requested before
        self.access = Access(
            content, bulk, lambda: xnat.login.username, self._known, self._ids, self._forget_kept, nursery
        )

    def stay(self, offline: bool = False) -> None:
        """Start background expiry and listing persistence, for long-lived processes.

        From now on persisted listings are served while they are requested anew, and new listings are persisted, if the
        account is known. With `offline` they are also served while the server is unreachable.
        """
        self._nursery.start_soon(self._tidy)
        self.access.begin(self.access.recall)
        if account := self.xnat.login.username:
            self._kept = Kept(self._directory, account)
            self._past = Past(self._kept) if offline else None
            self._nursery.start_soon(self._kept.run)

    def reload(self, credentials: Credentials | None) -> None:
        """Drop the cached listings and refusals, and use this login; None leaves the login as it is."""
        if credentials is not None:
            self.xnat.login.use(credentials)
        # What was learnt of single files is no listing's, and stays.
        self.metadata.forget_all(lambda key, _: not isinstance(key, ChangeKey | SizeKey))
        self.shown.forget_all(lambda *_: True)

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(max(self.ttl, 10.0))  # memory is not needed sooner
            self.metadata.expire()
            self.shown.expire()

    def counters(self) -> dict[str, int]:
        """Return the counters of the caches, the downloads and the client, by name."""
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
        """Return the experiments of a project, grouped by the subject's accession ID."""
        return await self._listing(ExperimentsKey(project))

    async def people(self, project: str) -> tuple[Listing[Subject], Listing[Experiment]]:
        """Return the subjects and the experiments of a project, requested at the same time."""
        self._begin(lambda: self.experiments(project))
        return await self.subjects(project), await self.experiments(project)

    def known_experiments(self, project: str) -> Listing[Experiment] | None:
        """Return the experiments of a project if they are cached; no request is sent."""
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
        """Return the resources of an item, grouped by (category, cat_id); ('resources', '') are the item's own."""
        return await self._listing(ResourcesKey(item, below))

    async def files(self, item: Item, below: bool) -> Listing[FileRow]:
        """Return the files of an item, grouped by resource. `Listing.broken` names those that cannot be listed."""
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
        """Request one list, then singly each resource that it lacks; a single broken catalogue makes the list fail."""
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
        """Return the resources for which the server states more files than it lists."""
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
        """Add the files of these resources, each from a list of its own; return the reasons of those that failed."""
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
        # A count that the resource's own list contradicts is stale: it is not compared again while both are unchanged.
        listed = {row.id: len(files.groups.get(row.id, ())) for row in resources}
        self._contradicted |= {row.id: (row.file_count, listed[row.id]) for row in resources if listed[row.id]}
        return broken

    async def _lost(self, item: Item, below: bool, empty: Collection[str], started: float) -> dict[str, str]:
        """Return those of the `empty` resources that have files by a list fetched after `started`, with the reason."""
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
        """Replace listings that were derived from batches by the server's own.

        Return whether the listings changed since data was made of them that expires at `expires`.
        """
        for key in keys:
            if _is_pieced(self.metadata.peek(key)):
                await self.metadata.renew(key, lambda key=key: self._ask(key), _is_pieced)  # type: ignore[misc]
        found = [each for key in keys if (each := self.metadata.peek(key))]
        return min((each.expires for each in found), default=expires) != expires

    # -- prefetching ---------------------------------------------------------------------------------------------

    async def look_into(self, project: str, experiment: str) -> None:
        """Begin the listings of a session together; for a client that iterates over sessions, those of a batch."""
        try:
            await self._walk(project).session(experiment)
        except Unreachable:
            if self._past is None:
                raise  # else the persisted listings are served

    async def look_into_subject(self, project: str, subject: str) -> None:
        """Prefetch for a subject whose resources a client lists."""
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
        """Request a listing ahead of its use; an error is reported when it is used."""
        self._nursery.start_soon(unattended, "a listing that was asked ahead", logging.DEBUG, ask)

    # -- listings ------------------------------------------------------------------------------------------------

    def stale(self, key: ListKey) -> float:
        """Return the time of a listing served while the server is unreachable (seconds since the epoch); 0 if fresh."""
        found = self.metadata.peek(key)
        if found is None and self._past is not None and self.xnat.away:
            found = self._past.peek(key)  # this is what will be served
        return found.stale if isinstance(found, Listing) else 0.0

    def _noted(self, key: ListKey, found: Listing[Any]) -> Listing[Any]:
        if self._past is not None:
            self._past.note(key, found)
        return found

    async def _listing(self, key: ListKey) -> Listing[Any]:
        return self._noted(key, await self.metadata.get(key, lambda: self._first(key)))

    async def _first(self, key: ListKey) -> Listing[Any]:
        """Serve the listing of the last mount, if there is one, while the first request for it is in flight."""
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
        """Return the persisted listing while the server is unreachable (stale-if-error), or raise the error."""
        if self._past is None:
            raise error
        if isinstance(error, LoginRequired):
            self._past.forget_all()
            raise error
        _, group, kind = self._source(key)
        return await self._past.get(key, kind, group, error)

    async def _known(self) -> bool:
        """Return whether the session is alive. Forget refusals, which may have been meant for a guest."""
        lives = await self.xnat.session_lives()
        self.metadata.forget_refusals()
        return lives

    async def _ids(self, key: ListKey) -> list[str]:
        """Fetch the IDs in the server's current list, without caching it."""
        ask, _, _ = self._source(key)
        return [row.id for row in await ask()]

    def _forget_kept(self, key: ListKey) -> None:
        if self._kept is not None:
            self._kept.put(key, ())
        if self._past is not None:
            self._past.forget(key)

    def _source(self, key: ListKey) -> tuple[Callable[[], Awaitable[Sequence[Any]]], Callable[[Any], Hashable], type]:
        """Return how to request a listing, the key that groups its rows, and their type."""
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
        """Remember that a file was replaced, now or at a given time.

        Args:
            key: The file.
            stated: What its listing states now, as a number.
            stamp: Distinguishes the content from the one before; '' if the listing does.
            at: When the replacement was found, in seconds since the epoch; None for now.
        """
        change = Change(stated, stamp, time.time() - TICK if at is None else at)
        self.metadata.put(key, change)
        self.sizes_learnt = True
        return change

    def learn_size(self, key: SizeKey, size: int) -> None:
        """Remember the length of a file that its listing states wrongly, for as long as it does."""
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
    """Open a server for use, without sending a request yet.

    Args:
        config: The server's URL, the cache and the timeouts.
        credentials: The login; None if only a session in `sessions` can be used.
        wire: Replaces the network in tests.
        sessions: Shares the session with other programs and keeps it at the end.

    Raises:
        CacheError: The cache cannot be opened.
    """
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
