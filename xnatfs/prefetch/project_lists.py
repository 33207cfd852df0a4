"""Fetch the lists that describe many sessions or subjects of a project, each checked against single answers."""

import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.listings.keys import AssessorsKey, ListKey, ResourcesKey, ScansKey
from xnatfs.listings.ttl_cache import Listing, MetadataCache, listing
from xnatfs.prefetch.checked_list import CheckedList
from xnatfs.rest.client import Xnat
from xnatfs.rest.lists import JoinedScans
from xnatfs.rest.models import Assessor, Experiment

log = logging.getLogger(__name__)

R = TypeVar("R")


@dataclass
class ProjectSessions:
    """The sessions of a project by accession ID, in the order of the mount's listing."""

    rows: dict[str, Experiment] = field(default_factory=dict)

    def is_imaging(self, accession: str) -> bool:
        """Return whether a session may have scans and assessors: True for one that is not known."""
        row = self.rows.get(accession)
        return row is None or row.is_imaging


class OwnLists:
    """The lists of single sessions and subjects: the server's own, and none that was derived from a batch.

    Args:
        metadata: The cache of the listings.
        ttl: Seconds for which a listing is valid.
    """

    def __init__(self, metadata: MetadataCache, ttl: float) -> None:
        self._metadata = metadata
        self._ttl = ttl

    async def rows(
        self, key: ListKey, fetch: Callable[[], Awaitable[Sequence[R]]], group: Callable[[R], Hashable]
    ) -> Sequence[R]:
        """Return the rows of a list, from the cache or else by `fetch`, grouped by `group`."""

        async def fetch_listing() -> Listing[R]:
            started = now()
            return listing(await fetch(), group, started, self._ttl)

        found = self._metadata.peek(key)
        if not isinstance(found, Listing) or found.pieced:
            found = await self._metadata.renew(key, fetch_listing, lambda old: isinstance(old, Listing) and old.pieced)
        assert isinstance(found, Listing)
        return found.rows


class ScansOfProject(CheckedList[JoinedScans]):
    """The scans of all sessions of a project."""

    def __init__(self, project: str, xnat: Xnat, ttl: float, sessions: ProjectSessions, own: OwnLists) -> None:
        super().__init__("scans of a project", ttl, is_whole=True)
        self._project = project
        self._xnat = xnat
        self._sessions = sessions
        self._own = own

    async def fetch(self, wanted: Sequence[str]) -> Mapping[str, JoinedScans]:
        """Fetch the scans of the project's own sessions and, where there are several, of those shared into it."""
        found = await self._xnat.scans_of_project(self._project)
        absent = [row.id for row in self._sessions.rows.values() if row.id not in found and row.is_imaging]
        if len(absent) > 1:
            try:
                found |= await self._xnat.scans_of_project(self._project, shared=True)
            except (NotFound, Denied, BadReply) as error:
                log.info("scans of sessions that are shared into %s are requested singly: %s", self._project, error)
        return found

    async def fetch_single(self, accession: str) -> JoinedScans:
        key = ScansKey(accession)
        return JoinedScans.from_scans(
            await self._own.rows(key, lambda: self._xnat.scans(accession), lambda scan: scan.id)
        )


class AssessorsOfSessions(CheckedList[tuple[Assessor, ...]]):
    """The assessors of several sessions."""

    def __init__(self, xnat: Xnat, ttl: float, sessions: ProjectSessions, own: OwnLists) -> None:
        super().__init__("assessors of sessions", ttl)
        self._xnat = xnat
        self._sessions = sessions
        self._own = own

    async def fetch(self, wanted: Sequence[str]) -> Mapping[str, tuple[Assessor, ...]]:
        imaging = [each for each in dict.fromkeys(wanted) if self._sessions.is_imaging(each)]
        found = await self._xnat.assessors_of_many(imaging)
        return {each: tuple(sorted(rows, key=lambda row: row.id)) for each, rows in found.items()}

    async def fetch_single(self, accession: str) -> tuple[Assessor, ...]:
        key = AssessorsKey(accession)
        rows = await self._own.rows(key, lambda: self._xnat.assessors(accession), lambda row: row.id)
        return tuple(sorted(rows, key=lambda row: row.id))


class LabelsOfSubjects(CheckedList[set[str]]):
    """The labels of the resources of all subjects of a project."""

    def __init__(self, project: str, xnat: Xnat, ttl: float, own: OwnLists) -> None:
        super().__init__("subjects' resources", ttl, is_whole=True)
        self._project = project
        self._xnat = xnat
        self._own = own

    async def fetch(self, wanted: Sequence[str]) -> Mapping[str, set[str]]:
        return await self._xnat.subject_resource_labels(self._project)

    async def fetch_single(self, accession: str) -> set[str]:
        item = ("subjects", accession)
        key = ResourcesKey(item, False)
        rows = await self._own.rows(key, lambda: self._xnat.resources(item), lambda row: row.group)
        return {row.label for row in rows}
