"""Serve the server's listings from memory, from the server, or from the disk, in the terms of RFC 5861.

- Fresh: a listing is served from memory for a TTL after it was requested.
- Stale-while-revalidate: the first time that a listing is requested in a mount, the stored one of an earlier mount is
  served until the server has answered, for REVALIDATE_SECONDS at most. Lists of files are not: the server's current
  answers decide what may be read.
- Stale-if-error (`--offline`): while the server is unreachable, the last listing is served, marked as stale.

Invariants:
- What the server has refused, or no longer lists, is never served as stale, nor is anything below it. It is
  forgotten in memory and on the disk; all listings are, where the server refuses the login.
- No listing is served that is older than MAX_AGE_SECONDS.
- A stale listing is valid for STALE_RETRY_SECONDS: then it is requested again, since the server may be reachable.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import Denied, LoginRequired, NotFound, Unreachable
from xnatfs.common.tasks import run_and_log_errors, run_in_thread_if_large
from xnatfs.listings.background_store import ListingStore
from xnatfs.listings.file_lists import FileLists
from xnatfs.listings.keys import (
    AllExperimentsKey,
    AllSubjectsKey,
    AssessorsKey,
    AuthorsKey,
    BidsMapKey,
    DemographicsKey,
    ExperimentsKey,
    FilesKey,
    ImageLabelsKey,
    ListKey,
    PrearchiveKey,
    PrearchiveListKey,
    ProjectsKey,
    ReceivedFilesKey,
    ReceivedLogKey,
    ReceivedResourcesKey,
    ResourcesKey,
    ScansKey,
    SessionLabelsKey,
    SubjectsKey,
    keys_below,
)
from xnatfs.listings.store import MAX_AGE_SECONDS
from xnatfs.listings.ttl_cache import Expiring, Listing, MetadataCache, listing
from xnatfs.rest import bids, prearchive_lists
from xnatfs.rest.client import Xnat
from xnatfs.rest.file_table import Catalogues
from xnatfs.rest.models import (
    Accession,
    Assessor,
    Experiment,
    FileRow,
    PrearchiveSession,
    Project,
    Resource,
    Scan,
    Subject,
)

log = logging.getLogger(__name__)

REVALIDATE_SECONDS = 5.0
# The longest time that it takes to notice the end of an outage.
STALE_RETRY_SECONDS = 5.0

# How to request a list, the key that groups its rows, and their type.
Request = tuple[Callable[[], Awaitable[Sequence[Any]]], Callable[[Any], Hashable], type]


class ListingObserver(Protocol):
    """Learn what the server lists to the account, and what it refuses."""

    def on_listed(self, key: ListKey, ids: Iterable[str]) -> None:
        """Take note of a complete list of the server, and of the IDs in it."""

    def on_refused(self, key: ListKey) -> None:
        """Take note of a list that the server refuses, or does not have."""


class ServerListings:
    """The listings of one server.

    Args:
        xnat: The client.
        store: The listings on the disk.
        ttl: How long a listing is fresh, in seconds.
        nursery: Runs requests ahead of their use.
    """

    def __init__(self, xnat: Xnat, store: ListingStore, ttl: float, nursery: trio.Nursery) -> None:
        self.cache = MetadataCache()
        self.observer: ListingObserver | None = None
        self._xnat = xnat
        self._store = store
        self._ttl = ttl
        self._nursery = nursery
        self._files = FileLists(xnat, self, ttl)
        self._persists = self._offline = False
        self._seen: set[ListKey] = set()  # listings that were requested before
        self._warned = False  # of the present outage

    def persist(self, offline: bool) -> None:
        """Begin to store listings, and to serve stored ones; with `offline`, also while the server is unreachable."""
        self._persists, self._offline = True, offline
        self.cache.stale_seconds = MAX_AGE_SECONDS if offline else 0.0

    async def get(self, key: ListKey) -> Listing[Any]:
        """Return a listing. Raises as the client's methods do."""
        return await self.cache.get(key, lambda: self._first(key))

    def peek(self, key: ListKey) -> Listing[Any] | None:
        """Return a listing if it is fresh; no request is sent."""
        found = self.cache.peek(key)
        return found if isinstance(found, Listing) else None

    def begin(self, key: ListKey) -> None:
        """Request a listing ahead of its use; an error is reported when it is used."""
        self._begin(lambda: self.get(key))

    async def confirm(self, key: ListKey, since: float = -math.inf) -> None:
        """Request a listing, unless a fresh one is held that was fetched after `since` and lacks no row."""

        def is_doubtful(found: Expiring) -> bool:
            return isinstance(found, Listing) and (found.pieced or found.fetched < since)

        await self.cache.renew(key, lambda: self._ask(key), is_doubtful)

    async def ids(self, key: ListKey) -> list[str]:
        """Fetch the IDs in the server's current list, without caching it."""
        ask, _, _ = self._request(key)
        return [row.id for row in await ask()]

    async def has_session(self) -> bool:
        """Return whether the session is alive. Forget refusals, which may have been meant for a guest."""
        alive = await self._xnat.session_lives()
        self.cache.forget_refusals()
        return alive

    def get_stale_time(self, key: ListKey) -> float:
        """Return the time of a listing served while the server is unreachable (seconds since the epoch); 0 if fresh."""
        found = self.peek(key)
        if found is not None:
            return found.stale
        last = self.cache.last(key) if self._offline and self._xnat.away else None
        return self._time_of(last) if last is not None else 0.0  # this is what will be served

    def expire(self, key: ListKey) -> None:
        """Have a list requested before it is served again, though it may have been stored by an earlier mount."""
        self._seen.add(key)
        self.cache.forget(key)

    def forget(self, key: ListKey) -> None:
        """Forget a list that the server does not have, or refuses, and all lists below it that could be served."""
        before = self.cache.last(key)
        self.cache.forget(key)
        if self._persists:
            self._store.put(key, ())
        if before is not None:
            self._forget_below(key, before.rows)

    def _forget_below(self, key: ListKey, rows: Iterable[Any]) -> None:
        if self._offline and isinstance(key, ProjectsKey | SubjectsKey | ExperimentsKey):
            for row in rows:
                for below in keys_below(key, row.id):
                    self.forget(below)

    # -- requests ------------------------------------------------------------------------------------------------

    def _begin(self, ask: Callable[[], Awaitable[object]]) -> None:
        self._nursery.start_soon(run_and_log_errors, "a listing that was requested ahead", logging.DEBUG, ask)

    async def _first(self, key: ListKey) -> Listing[Any]:
        """Serve the listing of the last mount, if there is one, while the first request for it is in flight."""
        first = self._persists and key not in self._seen and not isinstance(key, FilesKey | PrearchiveListKey)
        if not first or (self._offline and self._xnat.away):
            return await self._ask(key)
        self._seen.add(key)
        found = await self._stored(key)
        if found is None:
            return await self._ask(key)
        self._begin(lambda: self.confirm(key))
        expires = now() + min(REVALIDATE_SECONDS, self._ttl)
        return replace(found, expires=expires, pieced=True, stale=self._time_of(found) if self._offline else 0.0)

    async def _ask(self, key: ListKey) -> Listing[Any]:
        try:
            found = await (self._files.fetch(key) if isinstance(key, FilesKey) else self._fetch(key))
        except (NotFound, Denied):
            self.forget(key)
            if self.observer is not None:
                self.observer.on_refused(key)
            raise
        except (LoginRequired, Unreachable) as error:
            return await self._as_it_was(key, error)
        self._note(key, found)
        return found

    async def _fetch(self, key: ListKey) -> Listing[Any]:
        ask, group, _ = self._request(key)
        started, ttl = now(), min(self._ttl, key.longest_ttl)
        rows = await ask()
        if isinstance(rows, Catalogues):
            return Listing(rows, rows.groups, started, started + ttl)
        return await run_in_thread_if_large(len(rows), lambda: listing(rows, group, started, ttl))

    def _note(self, key: ListKey, found: Listing[Any]) -> None:
        """Store a new listing, forget what it lacks, and report it."""
        self._warned = False
        before = self.cache.last(key)
        if before is not None and self._offline and isinstance(key, ProjectsKey | SubjectsKey | ExperimentsKey):
            there = {row.id for row in found.rows}
            self._forget_below(key, (row for row in before.rows if row.id not in there))
        is_stored = self._offline if isinstance(key, FilesKey) else not isinstance(key, PrearchiveListKey)
        if self._persists and is_stored:
            self._store.put(key, () if found.broken else found.rows)  # the file cannot hold which groups are broken
        if self.observer is not None:
            self.observer.on_listed(key, (row.id for row in found.rows))

    async def _as_it_was(self, key: ListKey, error: LoginRequired | Unreachable) -> Listing[Any]:
        """Return the last listing, marked as stale, while the server is unreachable; else raise the error."""
        if not self._offline:
            raise error
        if isinstance(error, LoginRequired):
            self.cache.forget_all(lambda key, value: isinstance(value, Listing))
            self._store.forget_all()
            raise error
        found = self.cache.last(key)
        if found is None:
            found = await self._stored(key)
        if found is None or now() - found.fetched > MAX_AGE_SECONDS:
            raise error
        if not self._warned:
            log.warning("serving expired listings: %s", error)
        self._warned = True
        return replace(found, expires=now() + STALE_RETRY_SECONDS, pieced=False, stale=self._time_of(found))

    async def _stored(self, key: ListKey) -> Listing[Any] | None:
        _, group, kind = self._request(key)
        stored: tuple[float, list[Any]] | None = await self._store.find(key, kind)
        if stored is None:
            return None
        at, rows = stored
        fetched = now() - (self._store.clock() - at)
        if kind is FileRow:
            files = Catalogues.from_rows(rows)
            return Listing(files, files.groups, fetched, fetched)
        return listing(rows, group, fetched, 0.0)

    def _time_of(self, found: Listing[Any]) -> float:
        """Return when a listing was fetched, in seconds since the epoch."""
        return self._store.clock() - (now() - found.fetched)

    def _request(self, key: ListKey) -> Request:
        xnat = self._xnat
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
            case BidsMapKey() | DemographicsKey() | AuthorsKey() | ImageLabelsKey() | SessionLabelsKey():
                return _request_for_bids(xnat, key)
            case FilesKey(item, below):
                return lambda: xnat.files(item, below=below), lambda row: row.resource_id, FileRow
            case PrearchiveKey():
                return xnat.prearchive, lambda row: row.project, PrearchiveSession
            case ReceivedResourcesKey(revision):
                return lambda: prearchive_lists.resources(xnat, revision), lambda row: row.group, Resource
            case ReceivedFilesKey(revision, group, label):
                ask = partial(prearchive_lists.files, xnat, revision, group, label)
                return ask, lambda row: row.resource_id, FileRow
            case ReceivedLogKey(revision):
                return lambda: prearchive_lists.last_message(xnat, revision), lambda text: text, str
        raise KeyError(key)


def _request_for_bids(xnat: Xnat, key: ListKey) -> Request:
    match key:
        case BidsMapKey(project):
            return lambda: bids.bids_map(xnat, project), lambda row: row.id, bids.BidsMapRow
        case DemographicsKey(project):
            return lambda: bids.demographics(xnat, project), lambda row: row.id, bids.Demographics
        case AuthorsKey(project):
            return lambda: bids.authors(xnat, project), lambda row: row.id, bids.Author
        case ImageLabelsKey(project):
            return lambda: bids.image_labels(xnat, project), lambda row: row.id, bids.ResourceLabels
        case SessionLabelsKey(project):
            return lambda: bids.session_labels(xnat, project), lambda row: row.id, bids.ResourceLabels
    raise KeyError(key)
