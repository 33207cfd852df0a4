"""Complete a list of files: request singly the resources that it lacks, and name those that cannot be listed."""

import logging
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Protocol

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.common.tasks import gather
from xnatfs.listings.keys import FilesKey, ListKey, ResourcesKey
from xnatfs.listings.ttl_cache import Listing, MetadataCache
from xnatfs.rest.address import base
from xnatfs.rest.client import Xnat
from xnatfs.rest.file_table import Catalogue, Catalogues
from xnatfs.rest.models import FileRow, Resource

log = logging.getLogger(__name__)


class ResourceLists(Protocol):
    """The lists of resources."""

    cache: MetadataCache

    async def get(self, key: ListKey) -> Listing[Any]:
        """Return a listing."""

    async def confirm(self, key: ListKey, since: float) -> None:
        """Request a listing, unless a fresh one is held that was fetched after `since` and lacks no row."""


class FileLists:
    """Requests for lists of files. `fetch` raises as the client's methods do."""

    def __init__(self, xnat: Xnat, listings: ResourceLists, ttl: float) -> None:
        self._xnat = xnat
        self._listings = listings
        self._ttl = ttl
        self._contradicted: dict[str, tuple[int | None, int]] = {}  # stated and listed number of files, by resource

    async def fetch(self, key: FilesKey) -> Listing[FileRow]:
        """Request one list, then singly each resource that it lacks; a single broken catalogue makes the list fail."""
        started = now()
        try:
            files = await self._xnat.files(key.item, below=key.below)
            lacking = await self._lacking(key, files)
        except (NotFound, BadReply) as error:
            log.info("requesting the files of each resource, because: %s", error)
            self._listings.cache.forget(_resources(key))
            files, lacking = Catalogues(), (await self._listings.get(_resources(key))).rows
        broken = await self._list_singly(key, lacking, files)
        empty = {row.id for row in lacking if row.id not in broken and not files.groups.get(row.id)}
        if empty:
            broken |= await self._lost(key, empty, started)
        return Listing(files, files.groups, started, started + self._ttl, broken)

    async def _lacking(self, key: FilesKey, files: Catalogues) -> Sequence[Resource]:
        """Return the resources for which the server states more files than it lists."""
        try:
            rows: Sequence[Resource] = (await self._listings.get(_resources(key))).rows
        except (NotFound, Denied, BadReply):
            return ()  # nothing is stated
        listed = {row.id: len(files.groups.get(row.id, ())) for row in rows}
        lacking = [row for row in rows if row.lacks(listed[row.id])]
        return [row for row in lacking if self._contradicted.get(row.id) != (row.file_count, listed[row.id])]

    async def _list_singly(self, key: FilesKey, resources: Sequence[Resource], files: Catalogues) -> dict[str, str]:
        """Add the files of these resources, each from a list of its own; return the reasons of those that failed."""
        found: dict[str, Catalogue] = {}
        broken: dict[str, str] = {}

        async def ask(resource: Resource) -> None:
            where = base(key.item, resource.group) if key.below else key.item
            try:
                found[resource.id] = await self._xnat.resource_files(where, resource.id)
            except (NotFound, Denied, BadReply) as error:
                log.warning("the files of resource %s cannot be listed: %s", resource.id, error)
                if not files.groups.get(resource.id):
                    broken[resource.id] = f"the server cannot read the catalogue of resource {resource.id}"

        await gather(*(partial(ask, row) for row in resources))
        for number in sorted(found):
            if len(found[number]) >= len(files.groups.get(number, ())):
                files.join(found[number])
        # A count that the resource's own list contradicts is stale: it is not compared again while both are unchanged.
        listed = {row.id: len(files.groups.get(row.id, ())) for row in resources}
        self._contradicted |= {row.id: (row.file_count, listed[row.id]) for row in resources if listed[row.id]}
        return broken

    async def _lost(self, key: FilesKey, empty: Collection[str], started: float) -> dict[str, str]:
        """Return the reason for each `empty` resource that has files by a resource list newer than `started`."""
        await self._listings.confirm(_resources(key), started)
        reasons: dict[str, str] = {}
        for row in (await self._listings.get(_resources(key))).rows:
            if row.id in empty and row.lacks(0):
                count = row.file_count or "some"
                reasons[row.id] = f"the server states that resource {row.id} has {count} files, and lists none"
                log.warning("%s", reasons[row.id])
        return reasons


def _resources(key: FilesKey) -> ResourcesKey:
    return ResourcesKey(key.item, key.below)
