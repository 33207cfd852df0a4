"""Plan a session: read its listings and the sidecars that names depend on, and name its files."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from xnatfs.common.errors import BadReply, NotFound
from xnatfs.common.sanitize import loads
from xnatfs.common.tasks import gather, run_in_thread_if_large
from xnatfs.listings.keys import FilesKey, ListKey, ResourcesKey, ScansKey
from xnatfs.listings.ttl_cache import Listing
from xnatfs.prefetch.file_version import version
from xnatfs.prefetch.sidecars import SessionSidecars
from xnatfs.rest.address import with_digits
from xnatfs.rest.bids import is_converted, may_hold_tree
from xnatfs.rest.models import FileRow, Resource, Scan, natural
from xnatfs.tree.bids import generated
from xnatfs.tree.bids.rules.entries import LeftOut, Rules, ScanFiles, SessionPlan
from xnatfs.tree.bids.rules.images import Sidecar, StoredFile
from xnatfs.tree.bids.rules.maps import BidsMap
from xnatfs.tree.bids.rules.names import is_image
from xnatfs.tree.bids.rules.others import other_data
from xnatfs.tree.bids.rules.plan import SessionPlanner
from xnatfs.tree.file_source import catalogue_of
from xnatfs.tree.node import Dir
from xnatfs.tree.resource_files import ResourceFiles
from xnatfs.tree.sessions import ScanDir, SessionDir

log = logging.getLogger(__name__)

# A sidecar has a few kilobytes; a larger file is none, and is not worth reading to find that out.
MAX_SIDECAR_BYTES = 2**20


@dataclass(frozen=True)
class PlannedSession:
    """The plan of a session, with the files that its names lead to."""

    plan: SessionPlan
    resources: Mapping[str, ResourceFiles]  # by ID
    sidecars: SessionSidecars
    made_of: Mapping[ListKey, Listing[Any]]
    expires: float

    def __len__(self) -> int:
        return len(self.plan)

    def scans_table(self, experiment: str) -> bytes:
        """Return the table of the images, in the order of their names."""
        rows = [(entry.path, experiment, entry.scan.id, entry.scan.quality) for entry in self.plan.entries]
        return generated.table(list(generated.SCAN_DESCRIPTIONS), rows)


class SessionPlanning:
    """The planning of one session.

    Args:
        home: The session's directory in projects/.
        bids_map: The lines of all maps that apply.
        rules: The options.
    """

    def __init__(self, home: SessionDir, bids_map: BidsMap, rules: Rules) -> None:
        self._home = home
        self._site = home.site
        self._map = bids_map
        self._rules = rules

    async def make(self, subject: str, session: str, made_of: Mapping[ListKey, Listing[Any]]) -> PlannedSession:
        """Return the plan.

        Args:
            subject: The label of the subject's folder.
            session: The label of the session's folder.
            made_of: The listings of the map.

        Raises:
            BadReply: A part of the listings is missing, without which the plan would pass for a whole one.
        """
        item, site = self._home.item, self._site
        await site.look_into(self._home.project, item[1], assessors=False)
        keys = ScansKey(item[1]), ResourcesKey(item, True), FilesKey(item, True)
        scans, resources, files = await gather(*(partial(site.listings.get, key) for key in keys))
        used = {**made_of, **dict(zip(keys, (scans, resources, files), strict=True))}
        found = _scan_files(scans, resources, files)
        shared = await self._resource_files({file.resource for each in found for file in each.files}, resources, files)
        shown = [ScanFiles(each.scan, [file for file in each.files if file.resource in shared]) for each in found]
        tar = self._sidecars(shared)
        sidecars: dict[StoredFile, Sidecar] = {}
        while True:
            planner = SessionPlanner(subject, session, self._map, self._rules, sidecars)
            plan = await run_in_thread_if_large(sum(len(each.files) for each in shown), partial(planner.make, shown))
            if not plan.wanted:
                break
            if len(plan.wanted) > 1:
                await tar.fetch()
            read = await gather(*(partial(self._read, shared, file) for file in plan.wanted))
            sidecars |= zip(plan.wanted, read, strict=True)
        others = [row for row in resources.rows if site.views.shows_resource(row.label)]
        plan.left_out += await run_in_thread_if_large(len(files), partial(_other_data, others, files))
        return PlannedSession(plan, shared, tar, used, min(listing.expires for listing in used.values()))

    def _sidecars(self, resources: Mapping[str, ResourceFiles]) -> SessionSidecars:
        """Return the sidecars in resources without images, which come together."""
        catalogues = [resources[number].catalogue for number in sorted(resources, key=natural)]
        small = [each for each in catalogues if not any(is_image(path) for path in each.paths())]
        return SessionSidecars(self._site.xnat, self._site.content, self._home.item, small)

    async def _resource_files(
        self, wanted: Collection[str], resources: Listing[Resource], files: Listing[FileRow]
    ) -> dict[str, ResourceFiles]:
        """Return what the nodes of these resources' files share, as far as the mount shows them.

        The directories are made anew: cached ones could be of older listings than the plan.
        """
        found: dict[str, ResourceFiles] = {}
        scans = await self._home.child("scans")
        assert isinstance(scans, Dir)
        digits = with_digits(resources.rows)
        for scan in (await scans.load()).nodes.values() if wanted else ():
            assert isinstance(scan, ScanDir)
            for node in scan.made_of(resources, digits):
                if node.resource.id in wanted:
                    found[node.resource.id] = ResourceFiles(node, files)
        return found

    async def _read(self, shared: Mapping[str, ResourceFiles], file: StoredFile) -> Sidecar:
        """Return the fields of a sidecar, through the content cache; none of one that is lost or no JSON.

        Raises BadReply if the server does not serve it: without it the images could get other names.
        """
        try:
            fields = loads(await read_file(shared[file.resource], file.place, MAX_SIDECAR_BYTES))
        except BadReply as error:
            raise BadReply(f"the sidecar {file.path}, on which names depend, cannot be read: {error}") from error
        except (NotFound, ValueError) as error:
            log.info("the sidecar %s is not used: %s", file.path, error)
            return {}
        return fields if isinstance(fields, dict) else {}


def _scan_files(scans: Listing[Scan], resources: Listing[Resource], files: Listing[FileRow]) -> list[ScanFiles]:
    """Return the files of each scan that may be shown.

    Raises BadReply if those of one cannot be listed: without it a program would take the session for complete.
    """
    found = []
    for scan in scans.rows:
        rows = [row for row in resources.groups.get(("scans", scan.id), ()) if is_converted(row.label)]
        for row in rows:
            if reason := files.broken.get(row.id):
                raise BadReply(f"the files of {row.label} of scan {scan.id} cannot be listed: {reason}")
        stored = [
            StoredFile(row.id, file.path, file.place, file.size, file.digest)
            for row in rows
            for file in catalogue_of(files.groups, row.id)
        ]
        found.append(ScanFiles(scan, stored))
    return found


def _other_data(resources: Iterable[Resource], files: Listing[FileRow]) -> list[LeftOut]:
    """Return a row for each kind of data in the resources that the view does not look at."""
    found = []
    for row in sorted(resources, key=lambda row: (natural(row.cat_id), natural(row.label), row.id)):
        if is_converted(row.label) or may_hold_tree(row.label):
            continue
        scan = row.cat_id if row.category == "scans" else ""
        place = row.label if scan or not row.cat_id else f"{row.category}/{row.cat_id}/{row.label}"
        found += [
            LeftOut(scan, place, text) for text in other_data(row.label, catalogue_of(files.groups, row.id).paths())
        ]
    return found


async def read_file(files: ResourceFiles, place: int, most: int) -> bytes:
    """Read a small file through the content cache, without fetching what lies beside it.

    Raises:
        ValueError: It has more than `most` bytes.
    """
    row = files.catalogue.at(place)
    if (row.size or 0) > most:
        raise ValueError(f"{row.path} has {row.size} bytes")
    source = files.resource_dir.source(row, files.groups)
    blob = await files.site.content.open(version(row), source)
    try:
        if blob.size > most:
            raise ValueError(f"{row.path} has {blob.size} bytes")
        return await blob.read(0, blob.size)
    finally:
        blob.close()
