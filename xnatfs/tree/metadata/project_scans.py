"""Request the scans of all sessions of a project, with frames and the stored sizes of their resources, in one list."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.common.tasks import gather
from xnatfs.rest.client import SHARED_INTO
from xnatfs.rest.models import SCAN_COLUMNS, SCAN_LABEL, Row
from xnatfs.site import Site

ID, TYPE, QUALITY, DESCRIPTION, NOTE = SCAN_COLUMNS
FRAMES = "xnat:imagescandata/frames"
COUNT, SIZE = "xnat:imagescandata/file/file_count", "xnat:imagescandata/file/file_size"


@dataclass(slots=True)
class ScanRow:
    """One scan of a session, with the stored counts of its resources by label; None where a count is not stored."""

    id: str
    type: str
    series_description: str
    quality: str
    frames: int | None
    note: str
    resources: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)

    @classmethod
    def parse(cls, row: Row) -> "ScanRow":
        texts = (row.text(TYPE), row.text(DESCRIPTION), row.text(QUALITY))
        return cls(row.text(ID), *texts, row.number(FRAMES), row.text(NOTE))


Scans = dict[str, ScanRow]  # by scan ID


async def joined_scans(site: Site, project: str) -> Mapping[str, Scans]:
    """Return the scans of a project's sessions by accession ID; a session without scans has none there.

    Sessions that are shared into the project take a second request. Raises BadReply if the server does not join.
    """
    found = _by_session(await _request(site, {"project": project}))
    sessions = (await site.experiments(project)).rows
    if any(row.is_imaging and row.id not in found for row in sessions):
        with contextlib.suppress(NotFound, Denied, BadReply):  # then they are absent
            found |= _by_session(await _request(site, {SHARED_INTO: project}))
    return found


async def own_scans(site: Site, session: str) -> Scans:
    """Return the scans of one session that the list lacks, without frames."""
    scans, resources = await gather(lambda: site.scans(session), lambda: site.resources(("experiments", session), True))
    found = {}
    for row in scans.rows:
        stored = {each.label: (each.file_count, each.file_size) for each in resources.groups.get(("scans", row.id), ())}
        found[row.id] = ScanRow(row.id, row.type, row.series_description, row.quality, None, row.note, stored)
    return found


async def _request(site: Site, where: Mapping[str, str]) -> list[Row]:
    """Request the list; once more without the stored sizes if the server refuses it, which may not know these paths."""
    columns = ("ID", *SCAN_COLUMNS, FRAMES, SCAN_LABEL)

    async def rows(*names: str) -> list[Row]:
        params = {"xsiType": "xnat:imageSessionData", **where}
        return await site.xnat.rows("experiments", columns=",".join(names), **params)

    try:
        return await rows(*columns, COUNT, SIZE)
    except BadReply:
        return await rows(*columns)


def _by_session(rows: Iterable[Row]) -> dict[str, Scans]:
    found: dict[str, Scans] = {}
    for row in rows:
        session = row.need("session_ID", "ID", "xnat:imagesessiondata/id", "xnat:experimentdata/id")
        if not row.has(ID):
            raise BadReply(f"the server's list of sessions has no columns for their scans: {sorted(row.cells)}")
        scans = found.setdefault(session, {})
        if not (id := row.get(ID)):
            continue
        scan = scans.setdefault(id, ScanRow.parse(row))
        if label := row.text(SCAN_LABEL):
            scan.resources[label] = (row.number(COUNT), row.number(SIZE))
    return found
