"""A recorded archive: listings and catalogues that a real server once gave out, published again.

`*.json` are tables as XNAT answers them, told apart by their columns: projects, subjects, experiments, the scans of
many sessions. `resources.json` is a list of [project, session, resource ID, label]. `*_catalog.xml` are catalogues of
resources. Of the files only the catalogue was recorded: their bytes are lost.
"""

import json
from collections.abc import Iterable
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from xnatfs.demo.archive import Archive, Entry

CATALOGUES = "CATALOGUES"  # the project, subject and session that recorded catalogues hang on: they do not say on what
SCAN = "xnat:imagescandata/"
ENTRY = "{http://nrg.wustl.edu/catalog}entry"
FIELD = "{http://nrg.wustl.edu/catalog}metaField"

Row = dict[str, str]


def publish_recorded(archive: Archive, directory: Path, members: dict[str, str]) -> None:
    """Add what was recorded. Raises OSError where nothing was, or where it cannot be read."""
    tables: dict[str, list[Row]] = {}
    for path in sorted(directory.rglob("*.json")):
        for row in _rows(path):
            tables.setdefault(_kind(row), []).append(row)
    for row in tables.get("projects", ()):
        archive.project(row["id"], row.get("name", ""), row.get("project_access") or "private").members |= members
    for row in tables.get("subjects", ()):
        archive.subject(archive.projects[row["project"]], row.get("label") or row["ID"], row["ID"])
    for row in tables.get("experiments", ()):
        _experiment(archive, row)
    for row in tables.get("scans", ()):
        archive.scan(
            archive.experiments[row["ID"]],
            row[SCAN + "id"],
            row[SCAN + "type"],
            quality=row.get(SCAN + "quality", ""),
            xsi_type=row["xsiType"].replace("SessionData", "ScanData"),
        )
    for path in sorted(directory.rglob("resources.json")):
        for _, session, number, label in sorted(json.loads(path.read_bytes()), key=lambda row: int(row[2])):
            archive.resource(archive.experiments[session].resources, label, least=int(number))
    catalogues = sorted(directory.rglob("*_catalog.xml"))
    if catalogues:
        _catalogues(archive, catalogues, members)
    if not tables and not catalogues:
        raise OSError(f"{directory} holds no recorded tables or catalogues")


def _rows(path: Path) -> list[Row]:
    try:
        found: Any = json.loads(path.read_bytes())
        rows = found["ResultSet"]["Result"] if isinstance(found, dict) and "ResultSet" in found else []
        # Servers answer text as it is stored, escaped; this one keeps it plain, and escapes when it answers.
        return [{key: unescape(str(value)) for key, value in row.items()} for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{path} is no recorded table: {error}") from error


def _kind(row: Row) -> str:
    if SCAN + "id" in row:
        return "scans"
    if "project_access" in row:
        return "projects"
    return "experiments" if "xsiType" in row else "subjects"


def _experiment(archive: Archive, row: Row) -> None:
    subject = archive.subjects[row["subject_ID"]]
    if subject.project != row["project"]:
        subject.shared.setdefault(row["project"], subject.label)
    archive.experiment(
        subject,
        row.get("label") or row["ID"],
        row["ID"],
        project=row["project"],
        xsi_type=row["xsiType"],
        date=row.get("date", ""),
    )


def _catalogues(archive: Archive, paths: Iterable[Path], members: dict[str, str]) -> None:
    project = archive.project(CATALOGUES, "Recorded catalogues")
    project.members |= members
    session = archive.experiment(archive.subject(project, CATALOGUES), CATALOGUES)
    for path in paths:
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise OSError(f"{path} is no catalogue: {error}") from error
        resource = archive.resource(session.resources, path.name.removesuffix("_catalog.xml"))
        for element in root.iter(ENTRY):
            size = next((f.text or "" for f in element.iter(FIELD) if f.get("name") == "size_in_bytes"), "")
            resource.entries.append(Entry(element.get("URI", ""), None, size, element.get("digest", "")))
