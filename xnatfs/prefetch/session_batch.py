"""Derive the listings of single sessions from lists of several sessions, as far as these confirm each other."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xnatfs.common.errors import XnatError
from xnatfs.common.tasks import gather
from xnatfs.rest.client import Xnat
from xnatfs.rest.file_table import Catalogue, Catalogues
from xnatfs.rest.lists import JoinedScans
from xnatfs.rest.models import Assessor, Item, Resource

log = logging.getLogger(__name__)

FoundResources = Sequence[tuple[Catalogue, Item]]


@dataclass
class SessionBatch:
    """Lists of several sessions.

    Attributes:
        sessions: The accession IDs of the sessions.
        scans: The scans of each session; those of other sessions as well. Empty where they are not known.
        assessors: The assessors of each session, likewise.
        files: The files of all of them.
        resources: The resources of all of them, by number.
    """

    sessions: Sequence[str]
    scans: Mapping[str, JoinedScans]
    assessors: Mapping[str, Sequence[Assessor]]
    files: Catalogues
    resources: Mapping[str, Resource]

    async def lacking(self, xnat: Xnat) -> set[str]:
        """Return the resources with more files than are listed; request those without a stated count."""
        groups = self.files.groups
        found = {row.id for row in self.resources.values() if row.lacks(len(groups.get(row.id, ())))}
        item = ("experiments", self.sessions[0])  # any session: the server finds a resource's number below each

        async def list_files(resource: str) -> None:
            try:
                if await xnat.resource_files(item, resource):
                    found.add(resource)
            except XnatError:  # its session is requested singly, which reports the error
                found.add(resource)

        unknown = (row for row in self.resources.values() if row.file_count is None and row.id not in groups)
        await gather(*(lambda row=row: list_files(row.id) for row in unknown if row.id not in found))
        return found

    def by_session(self) -> dict[str, list[tuple[Catalogue, Item]]]:
        """Return the files of each session by resource, each with its place in the session; {} where it is unclear."""
        owners = {row.id: session for session, rows in self.assessors.items() for row in rows}
        found: dict[str, list[tuple[Catalogue, Item]]] = {each: [] for each in self.sessions}
        for catalogue in self.files.groups.values():
            session, *place = _place(catalogue.home)
            if session in owners:
                session, place = owners[session], ["assessors", session, *place]
            if session not in found or len(self.files.groups) == 1:
                # The URI of a single resource does not state what it belongs to.
                log.info("a list of the files of %s contains some of %s", ",".join(self.sessions), catalogue.home)
                return {}
            found[session].append((catalogue, tuple(place)))
        return found

    def resources_of(self, session: str, found: FoundResources) -> list[Resource] | None:
        """Return the resources of a session to which these files belong; None where that is not certain."""
        joined = self.scans.get(session)
        assessors = {row.id for row in self.assessors.get(session, ())}
        rows: list[Resource] = []
        labels: dict[str, set[str]] = {}
        for catalogue, place in found:
            row = self.resources.get(catalogue.resource_id)
            if row is None and place[2:3] == ("in",):
                continue  # what an assessor was made of is not among its resources
            if row is None or (row.category == "assessors" and row.cat_id not in assessors):
                return None
            if row.category == "scans" and joined is not None:
                labels.setdefault(row.cat_id, set()).add(row.label)
            rows.append(row)
        stated = joined.labels if joined else {}
        return rows if all(named <= labels.get(scan, set()) for scan, named in stated.items()) else None

    def unlisted_scans(self, session: str, rows: Iterable[Resource]) -> set[str]:
        """Return the scans that have files and are not in the list of scans."""
        joined = self.scans.get(session)
        return {row.cat_id for row in rows if row.category == "scans"} - joined.scans.keys() if joined else set()


def _place(home: str) -> list[str]:
    """Return the segments of a URI after /experiments/; what is before differs from call to call."""
    _, found, place = home.partition("/experiments/")
    return place.split("/") if found else [home]
