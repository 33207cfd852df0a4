"""Compose one server: its client, both caches, and the listings that the tree is made of.

Real servers take 50 ms to seconds for a request, so the number of requests is the cost, and then the number of requests
that wait for each other: listings are requested in bulk, cached whole, and begun together. All resources and all files
of a session come with one request each; if a client iterates over sessions, `prefetch/session_listings.py` prefetches
them under the same keys.
"""

import hashlib
import math
import sys
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import httpx
import trio

from xnatfs.common.errors import BadReply, Unreachable
from xnatfs.common.tasks import background, gather
from xnatfs.content import ContentCache, Source, Version, open_cache
from xnatfs.content.blob import Blob, blob_of
from xnatfs.content.source import find_contradiction
from xnatfs.listings.background_store import ListingStore, open_store
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
from xnatfs.listings.revocation import Access
from xnatfs.listings.server_listings import ServerListings
from xnatfs.listings.ttl_cache import Listing, MetadataCache
from xnatfs.prefetch.series_files import SeriesPrefetch, open_series_prefetch
from xnatfs.prefetch.session_listings import ProjectPrefetches
from xnatfs.rest.client import Xnat, open_xnat
from xnatfs.rest.models import Accession, Assessor, Experiment, FileRow, Item, Project, Resource, Scan, Subject
from xnatfs.settings.config import Config, server_directory
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import SessionStore
from xnatfs.settings.views import ViewOptions

# Nodes of recently listed files that are cached, 250 bytes each; the next listing is three times as fast.
SHOWN_NODES = 50_000

# A local file system dates a write with the kernel's last tick: its length in seconds at 100 Hz. A file made from a new
# version at once must not be older than that version.
TICK_SECONDS = 0.01


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
        expires: Never; the cache of metadata requires it.
    """

    stated: int
    stamp: str
    at: float
    expires: float = math.inf

    def __len__(self) -> int:
        return 1


class Site:
    """The client, both caches, and the listings of one server. Each listing method raises as those of `Xnat`.

    Args:
        xnat: The client.
        store: The listings on the disk.
        content: The cache of file contents.
        series_prefetch: Fetches the files of a series together.
        ttl: How long a listing is fresh, in seconds.
        nursery: Runs requests ahead of their use, and background tasks.
    """

    def __init__(
        self,
        xnat: Xnat,
        store: ListingStore,
        content: ContentCache,
        series_prefetch: SeriesPrefetch,
        ttl: float,
        nursery: trio.Nursery,
    ) -> None:
        self.xnat = xnat
        self.series_prefetch = series_prefetch
        self.content = content
        self.ttl = ttl
        self.views = ViewOptions()  # what the tree shows
        self.opened_at = time.time()
        self.sizes_learnt = False  # whether any file was found to differ from its listing
        self.sizes_right: dict[str, bool] = {}  # by resource, of those that were examined more closely
        self.shown = MetadataCache(SHOWN_NODES)
        self.listings = ServerListings(xnat, store, ttl, nursery)
        self.metadata = self.listings.cache
        self._nursery = nursery
        self.prefetches = ProjectPrefetches(xnat, self.listings, ttl, nursery)
        self.offline = False  # whether stored listings are served while the server is unreachable
        self.listings.observer = self.access = Access(content, store, self.listings, nursery)

    def start_background_tasks(self, offline: bool = False, *, persists: bool = True) -> None:
        """Start background expiry and listing persistence, for long-lived processes.

        From now on stored listings are served while they are requested anew, and new listings are stored, if the
        account is known. With `offline` they are also served while the server is unreachable. Without `persists` every
        listing is current: a program that ends soon would otherwise see only stale ones.
        """
        self._nursery.start_soon(self._tidy)
        self.access.begin(self.access.recall)
        if persists and self.xnat.login.username:
            self.offline = offline
            self.listings.persist(offline)

    def reload(self, credentials: Credentials | None) -> None:
        """Drop the cached listings and refusals, and use this login; None leaves the login as it is."""
        if credentials is not None:
            self.xnat.login.use(credentials)
        # Changes and sizes of single files come from no listing, and stay.
        self.metadata.forget_all(lambda key, _: not isinstance(key, ChangeKey | SizeKey))
        self.shown.forget_all(lambda *_: True)
        self.outdate()

    def outdate(self) -> None:
        """Discard the results of listing requests in flight, and all project-wide prefetch lists."""
        self.metadata.outdate()
        self.prefetches.forget()

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(max(self.ttl, 10.0))  # memory is not needed sooner
            await self.metadata.expire()
            await self.shown.expire()

    def counters(self) -> dict[str, int]:
        """Return the counters of the caches, the downloads and the client, by name."""
        return {
            **self.content.counters(),
            **self.series_prefetch.counters(),
            **self.xnat.counters(),
            "listings": len(self.metadata),
        }

    # -- listings ------------------------------------------------------------------------------------------------

    async def projects(self) -> Listing[Project]:
        return await self.listings.get(ProjectsKey())

    async def subjects(self, project: str) -> Listing[Subject]:
        return await self.listings.get(SubjectsKey(project))

    async def experiments(self, project: str) -> Listing[Experiment]:
        """Return the experiments of a project, grouped by the subject's accession ID."""
        return await self.listings.get(ExperimentsKey(project))

    async def list_subjects_and_experiments(self, project: str) -> tuple[Listing[Subject], Listing[Experiment]]:
        """Return the subjects and the experiments of a project, requested at the same time."""
        self.listings.begin(ExperimentsKey(project))
        return await self.subjects(project), await self.experiments(project)

    def known_experiments(self, project: str) -> Listing[Experiment] | None:
        """Return the experiments of a project if they are cached; no request is sent."""
        return self.listings.peek(ExperimentsKey(project))

    def known_subjects(self, project: str) -> Listing[Subject] | None:
        return self.listings.peek(SubjectsKey(project))

    async def accessions(self, key: AllSubjectsKey | AllExperimentsKey) -> Listing[Accession]:
        return await self.listings.get(key)

    async def scans(self, experiment: str) -> Listing[Scan]:
        return await self.listings.get(ScansKey(experiment))

    async def assessors(self, experiment: str) -> Listing[Assessor]:
        return await self.listings.get(AssessorsKey(experiment))

    async def resources(self, item: Item, below: bool) -> Listing[Resource]:
        """Return the resources of an item, grouped by (category, cat_id); ('resources', '') are the item's own."""
        return await self.listings.get(ResourcesKey(item, below))

    async def files(self, item: Item, below: bool) -> Listing[FileRow]:
        """Return the files of an item, grouped by resource. `Listing.broken` names those that cannot be listed."""
        return await self.listings.get(FilesKey(item, below))

    async def confirm(self, keys: Sequence[ListKey], expires: float = math.inf) -> bool:
        """Replace listings that were derived from batches by the server's own.

        Return whether the listings changed since data was made of them that expires at `expires`.
        """
        for key in keys:
            if (found := self.listings.peek(key)) is not None and found.pieced:
                await self.listings.confirm(key)
        times = [found.expires for key in keys if (found := self.listings.peek(key))]
        return min(times, default=expires) != expires

    def get_stale_time(self, key: ListKey) -> float:
        """Return the time of a listing served while the server is unreachable (seconds since the epoch); 0 if fresh."""
        return self.listings.get_stale_time(key)

    async def renew(self, keys: Collection[ListKey]) -> None:
        """Replace listings by the server's own of now, requested together. A failure leaves those that are cached."""
        await gather(*(partial(self.listings.confirm, key, math.inf) for key in keys))
        if any(map(self.get_stale_time, keys)):
            raise Unreachable(f"{self.xnat.url} does not answer: serving expired listings")

    # -- prefetching ---------------------------------------------------------------------------------------------

    async def look_into(self, project: str, experiment: str, *, assessors: bool = True) -> None:
        """Begin the listings of a session together; for a client that iterates over sessions, those of a batch."""
        try:
            await self.prefetches.get(project).enter_session(experiment, assessors=assessors)
        except Unreachable:
            if not self.offline:
                raise  # else the stored listings are served

    async def look_into_subject(self, project: str, subject: str) -> None:
        """Prefetch for a subject whose resources a client lists."""
        await self.prefetches.get(project).enter_subject(subject)

    # -- what files have taught ----------------------------------------------------------------------------------

    def learn_change(self, key: ChangeKey, stated: int, stamp: str, at: float | None = None) -> Change:
        """Remember that a file was replaced, now or at a given time.

        Args:
            key: The file.
            stated: What its listing states now, as a number.
            stamp: Distinguishes the content from the one before; '' if the listing does.
            at: When the replacement was found, in seconds since the epoch; None for now.
        """
        change = Change(stated, stamp, time.time() - TICK_SECONDS if at is None else at)
        self.metadata.put(key, change)
        self.sizes_learnt = True
        return change

    def learn_size(self, key: SizeKey, size: int) -> None:
        """Remember the length of a file that its listing states wrongly, for as long as it does."""
        self.metadata.put(key, TrueSize(size))
        self.sizes_learnt = True


class MemoryCache:
    """The cache of file contents for commands on systems without mounts: small files are read into memory.

    A cache on the disk depends on locks and on open files without a name, as Linux has them, and serves mounts. Of
    commands, only previews of BIDS read files through a cache: sidecars of some kilobytes.
    """

    bytes_used = 0

    def __init__(self) -> None:
        self._files: dict[Version, bytes] = {}

    def clock(self) -> float:
        return time.time()

    async def drop(self, folders: Collection[str]) -> None:
        self._files.clear()

    async def find_cached(self, versions: Sequence[Version]) -> set[Version]:
        return self._files.keys() & set(versions)

    async def put(self, version: Version, data: bytes, checked: float | None = None) -> None:
        self._files[version] = data

    async def open(self, version: Version, source: Source) -> Blob:
        """Open a file. Raises what the source raises, and BadReply unless it has the listed length and digest."""
        if (data := self._files.get(version)) is None:
            async with source.open(0, version.size) as body:
                data = b"".join([chunk async for chunk in body.chunks])
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if version.digest not in ("", digest):
                raise BadReply(f"{version.key}: its MD5 is {digest}, the catalogue says {version.digest}")
            if contradiction := await find_contradiction(version, len(data), source):
                raise BadReply(f"{version.key}: {contradiction}")
            self._files[version] = data
        return blob_of(version.key, data)


@asynccontextmanager
async def open_content(config: Config) -> AsyncIterator[ContentCache]:
    """Open the cache of file contents of a server. Raises CacheError if it cannot be opened."""
    if sys.platform != "linux":
        yield cast(ContentCache, MemoryCache())
        return
    async with open_cache(
        config.cache_dir / server_directory(config.url),
        config.cache_size,
        revalidate=config.revalidate,
        strict=config.strict,
        wait=config.lock_timeout,
        shared=config.shared_cache,
    ) as content:
        yield content


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
    async with (
        open_xnat(config, credentials, wire, sessions) as xnat,
        open_content(config) as content,
        open_series_prefetch(xnat, content) as series_prefetch,
        open_store(config.cache_dir / server_directory(config.url), lambda: xnat.login.username) as store,
        background() as nursery,
    ):
        site = Site(xnat, store, content, series_prefetch, config.ttl, nursery)
        site.views = config.views
        yield site
