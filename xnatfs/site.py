"""One server as we see it: its client, both caches, and the listings that the tree is made of.

Real servers take 50 ms to seconds for a call, so the number of calls is the cost: listings are asked for in bulk and
kept whole. All the resources and all the files of a session come with one request each.
"""

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx
import trio

from xnatfs.bulk import Bulk, open_bulk
from xnatfs.catalogue import Catalogue, Catalogues
from xnatfs.client import Xnat, open_xnat
from xnatfs.config import Config, server_directory
from xnatfs.content import ContentCache, open_cache
from xnatfs.credentials import Credentials
from xnatfs.errors import BadReply, NotFound
from xnatfs.metadata import Listing, MetadataCache
from xnatfs.models import Assessor, Experiment, FileRow, Project, Resource, Scan, Subject
from xnatfs.sessions import SessionStore

log = logging.getLogger(__name__)

R = TypeVar("R")

Item = tuple[str, ...]  # the segments of an item's URL after /data: ("experiments", "XNAT_E00001")


@dataclass(frozen=True, slots=True)
class TrueSize:
    """What a file's reply said of its length, against a catalogue that lacks it or has it wrong."""

    size: int
    expires: float = math.inf

    def __len__(self) -> int:
        return 1


class Site:
    """The client, both caches, and cached listings. Each listing method raises what `Xnat` raises."""

    def __init__(self, xnat: Xnat, metadata: MetadataCache, content: ContentCache, bulk: Bulk, ttl: float) -> None:
        self.xnat = xnat
        self.bulk = bulk
        self.metadata = metadata
        self.content = content
        self.ttl = ttl
        self.opened_at = time.time()
        self.sizes_learnt = False  # whether any file was found to have another size than its listing says

    async def projects(self) -> Listing[Project]:
        return await self._listing(("projects",), self.xnat.projects, lambda project: project.id)

    async def subjects(self, project: str) -> Listing[Subject]:
        return await self._listing(
            ("subjects", project), lambda: self.xnat.subjects(project), lambda subject: subject.id
        )

    async def experiments(self, project: str) -> Listing[Experiment]:
        """By accession ID of the subject."""
        return await self._listing(
            ("experiments", project), lambda: self.xnat.experiments(project), lambda experiment: experiment.subject_id
        )

    def known_experiments(self, project: str) -> Listing[Experiment] | None:
        """The same if it is there already; nothing is asked."""
        found = self.metadata.peek(("experiments", project))
        return found if isinstance(found, Listing) else None

    def known_subjects(self, project: str) -> Listing[Subject] | None:
        found = self.metadata.peek(("subjects", project))
        return found if isinstance(found, Listing) else None

    async def scans(self, experiment: str) -> Listing[Scan]:
        return await self._listing(("scans", experiment), lambda: self.xnat.scans(experiment), lambda scan: scan.id)

    async def assessors(self, experiment: str) -> Listing[Assessor]:
        return await self._listing(
            ("assessors", experiment), lambda: self.xnat.assessors(experiment), lambda assessor: assessor.id
        )

    async def resources(self, item: Item, below: bool) -> Listing[Resource]:
        """By what they hang on: (category, cat_id); ('resources', '') are the item's own."""
        return await self._listing(
            ("resources", item, below), lambda: self.xnat.resources(item, below=below), resource_group
        )

    async def files(self, item: Item, below: bool) -> Listing[FileRow]:
        """By resource. One broken catalogue spoils the list of all: then each resource is asked for its own."""

        async def fetch() -> Listing[FileRow]:
            started = trio.current_time()
            try:
                return self._files_made(await self.xnat.files(item, below=below), started)
            except (NotFound, BadReply) as error:
                log.info("asking each resource for its files, because: %s", error)
            self.metadata.forget(("resources", item, below))
            resources = await self.resources(item, below)
            rows, broken = await self._files_singly(item, [resource.id for resource in resources.rows])
            return self._files_made(rows, started, broken)

        return await self.metadata.get(("files", item, below), fetch)

    async def _files_singly(self, item: Item, resources: Iterable[str]) -> tuple[Catalogues, frozenset[str]]:
        """The files of these resources, and which of them could not be listed."""
        found: dict[str, Catalogue] = {}
        broken: set[str] = set()

        async def ask(resource: str) -> None:
            try:
                found[resource] = await self.xnat.resource_files(item, resource)
            except (NotFound, BadReply) as error:
                log.warning("the files of resource %s cannot be listed: %s", resource, error)
                broken.add(resource)

        async with trio.open_nursery() as nursery:
            for resource in resources:
                nursery.start_soon(ask, resource)
        joined = Catalogues()
        for resource in sorted(found):
            joined.join(found[resource])
        return joined, frozenset(broken)

    async def _listing(
        self, key: Hashable, ask: Callable[[], Awaitable[Sequence[R]]], group: Callable[[R], Hashable]
    ) -> Listing[R]:
        async def fetch() -> Listing[R]:
            started = trio.current_time()
            return self._made(await ask(), group, started)

        return await self.metadata.get(key, fetch)

    def _made(self, rows: Sequence[R], group: Callable[[R], Hashable], started: float) -> Listing[R]:
        groups: dict[Hashable, list[R]] = {}
        for row in rows:
            groups.setdefault(group(row), []).append(row)
        return Listing(rows, groups, started, started + self.ttl)

    def _files_made(
        self, files: Catalogues, started: float, broken: frozenset[str] = frozenset()
    ) -> Listing[FileRow]:
        return Listing(files, files.groups, started, started + self.ttl, broken)

    def learn_size(self, key: Hashable, size: int) -> None:
        """A file is longer or shorter than its listing says, for as long as that says so."""
        self.metadata.put(key, TrueSize(size))
        self.sizes_learnt = True


def resource_group(resource: Resource) -> Hashable:
    """What a resource hangs on. The item's own come with and without its ID, depending on the call."""
    return (resource.category, "" if resource.category == "resources" else resource.cat_id)


@asynccontextmanager
async def open_site(
    config: Config,
    credentials: Credentials | None,
    wire: httpx.AsyncBaseTransport | None = None,
    sessions: SessionStore | None = None,
) -> AsyncIterator[Site]:
    """A server, opened for use; `wire` replaces the network in tests. Raises CacheError; nothing is sent yet."""
    directory = config.cache_dir / server_directory(config.url)
    async with open_xnat(config, credentials, wire, sessions) as xnat:
        async with open_cache(
            directory, config.cache_size, revalidate=config.revalidate, strict=config.strict
        ) as content:
            async with open_bulk(xnat, content) as bulk:
                yield Site(xnat, MetadataCache(), content, bulk, config.ttl)
