"""Make session.json, scans.tsv and session.xml.

The first two are made of the listings that show the session's directories, so that both cost nothing where these are
listed anyway. Lists of several sessions lack some facts that the list of one session has: frames are then requested,
the others are left out, so that the bytes do not depend on where a listing comes from.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from xnatfs.common.clock import now
from xnatfs.common.sanitize import decoded
from xnatfs.common.tasks import gather
from xnatfs.listings.keys import AssessorsKey, FilesKey, ResourcesKey, ScansKey
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.models import Experiment, Resource, Scan, natural, total
from xnatfs.tree.generated_file import Generated, GeneratedFile
from xnatfs.tree.metadata.frames import frames_of
from xnatfs.tree.metadata.session_parts import SessionParts
from xnatfs.tree.metadata.tables import SCAN_TABLE_COLUMNS, table
from xnatfs.tree.node import Dir

Facts = dict[str, Any]


def session_files(session_dir: Dir, parts: SessionParts) -> Sequence[GeneratedFile]:
    """Return the files of a session's directory that are made."""
    item = parts.item
    keys = (ScansKey(item[1]), AssessorsKey(item[1]), ResourcesKey(item, True), FilesKey(item, True))
    maker = _Maker(parts)
    return (
        GeneratedFile(session_dir, "session.json", maker.description, keys),
        GeneratedFile(session_dir, "scans.tsv", maker.scans, keys),
        GeneratedFile(session_dir, "session.xml", maker.document),
    )


class _Maker:
    """Makes the files of one session."""

    __slots__ = ("parts",)

    def __init__(self, parts: SessionParts) -> None:
        self.parts = parts

    async def description(self) -> Generated:
        """Make session.json."""
        listed = await _list(self.parts)
        experiment = self.parts.experiment
        facts = {
            **_facts_of(experiment),
            "project": self.parts.project,
            "scans": [
                {
                    "id": decoded(scan.id),
                    "type": scan.type,
                    "series_description": scan.series_description,
                    "quality": scan.quality,
                    "note": scan.note,
                    "resources": listed.resources("scans", scan.id),
                }
                for scan in listed.scans
            ],
            "assessors": [
                {
                    "id": row.id,
                    "label": row.label,
                    "xsi_type": row.xsi_type,
                    "date": row.date,
                    "resources": listed.resources("assessors", row.id),
                }
                for row in listed.assessors
            ],
            "reconstructions": [
                {"id": decoded(cat_id), "resources": listed.resources("reconstructions", cat_id)}
                for cat_id in listed.reconstructions
            ],
            "resources": [row for row in listed.resources("resources", "") if row["files"] != 0],
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        return Generated(text.encode("utf-8", "replace"), listed.expires)

    async def scans(self) -> Generated:
        """Make scans.tsv."""
        listed = await _list(self.parts)
        frames = await frames_of(self.parts, listed.listed_scans) if listed.scans else {}
        rows = []
        for scan in listed.scans:
            resources = listed.resources("scans", scan.id)
            labels = ",".join(row["label"] for row in resources)
            files, size = (total(each[key] for each in resources) for key in ("files", "bytes"))
            cells = (decoded(scan.id), scan.type, scan.series_description, scan.quality, frames.get(scan.id))
            rows.append((*cells, labels, files, size, scan.note))
        return Generated(table(SCAN_TABLE_COLUMNS, rows), listed.expires)

    async def document(self) -> Generated:
        """Fetch session.xml, the server's own document."""
        started, site = now(), self.parts.site
        return Generated(await site.xnat.item_xml(*self.parts.item), started + site.ttl)


def _facts_of(row: Experiment) -> Facts:
    modified = row.modified
    return {
        "id": row.id,
        "label": row.label,
        "uri": f"/data/experiments/{row.id}",
        "xsi_type": row.xsi_type,
        "date": row.date,
        "subject": {"id": row.subject_id, "label": row.subject_label},
        "modified": None if modified is None else datetime.fromtimestamp(modified, UTC).isoformat(),
    }


class _SessionTables:
    """The shown parts of a session, in an order that no listing decides."""

    def __init__(self, parts: SessionParts, scans: Any, assessors: Any, resources: Any, files: Any) -> None:
        self._shows = parts.site.views.shows_resource
        self._groups = resources.groups
        self._files = files
        self.listed_scans: Listing[Scan] = scans
        shows_scan = parts.site.views.shows_scan
        shown: list[Scan] = [row for row in scans.rows if shows_scan(row.type, row.quality)]
        self.scans = sorted(shown, key=lambda row: natural(row.id))
        self.assessors = sorted(assessors.rows, key=lambda row: natural(row.id))
        found = {row.cat_id for row in resources.rows if row.category == "reconstructions"}
        self.reconstructions = sorted(found, key=natural)
        self.expires = min(each.expires for each in (scans, assessors, resources, files))

    def resources(self, category: str, cat_id: str) -> list[Facts]:
        """Return the resources of one part, with the numbers of files and bytes: None where these cannot be listed."""
        rows: list[Resource] = [row for row in self._groups.get((category, cat_id), ()) if self._shows(row.label)]
        found = []
        for row in sorted(rows, key=lambda row: (row.label, natural(row.id))):
            catalogue = self._files.groups.get(row.id, ())
            count: int | None = len(catalogue)
            size = catalogue.total() if catalogue else 0
            if row.id in self._files.broken:
                count = size = None
            found.append({"id": row.id, "label": row.label, "files": count, "bytes": size})
        return found


async def _list(parts: SessionParts) -> _SessionTables:
    return _SessionTables(parts, *await gather(parts.scans, parts.assessors, parts.resources, parts.files))
