"""Mount a real server's listings, published again: everything is there, under names that lead back to its own.

The synthetic recording below is in the form of a real one. Where XNATFS_RECORDED names a directory of real ones, which
the project does not hold, they are listed, too.
"""

import html
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support.demos import USER
from tests.support.mounting import Mount, mounting
from xnatfs.demo.fixtures.lab import PASSWORDS, DemoArchive
from xnatfs.demo.fixtures.recorded import publish_recorded
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.socket import serve
from xnatfs.tree.names import unescape

pytestmark = pytest.mark.fuse

REAL = os.environ.get("XNATFS_RECORDED", "")
UGLY_TYPE = r"*a^wk.ward/ scan\type%?~@&amp;"  # as a server gave it out

CATALOGUE = """<?xml version="1.0" encoding="UTF-8"?>
<cat:Catalog ID="LOGS" xmlns:cat="http://nrg.wustl.edu/catalog"><cat:entries>
<cat:entry ID="out.txt" URI="out.txt" digest="6f5902ac237024bdd0c176cb93063dc4" name="out.txt">
<cat:metaFields><cat:metaField name="size_in_bytes">12</cat:metaField></cat:metaFields></cat:entry>
<cat:entry ID="a/b.1/c d%20e" URI="a/b.1/c d%20e" digest="620f0b67a91f7f74151bc5be745b7110" name="c d%20e">
<cat:metaFields><cat:metaField name="size_in_bytes">4096</cat:metaField></cat:metaFields></cat:entry>
</cat:entries></cat:Catalog>
"""


def table(rows: list[dict[str, str]]) -> str:
    return json.dumps({"ResultSet": {"Result": rows, "totalRecords": str(len(rows))}})


def made_up(directory: Path) -> None:
    """Write two projects, a subject with a session in the other one, and scans of equal types."""
    projects = [{"id": id, "name": id, "project_access": "private"} for id in ("sand_box", "2nd")]
    subjects = [{"ID": f"S{n}", "project": "sand_box", "URI": f"/data/subjects/S{n}"} for n in range(3)]
    sessions = [
        {"ID": f"E{n}", "subject_ID": f"S{n}", "project": "2nd" if n == 1 else "sand_box", "xsiType": kind}
        for n, kind in enumerate(("xnat:mrSessionData", "xnat:petSessionData"))
    ]
    scans = [
        {
            "ID": session["ID"],
            "xsiType": session["xsiType"],
            "xnat:imagescandata/id": scan,
            "xnat:imagescandata/type": kind,
            "xnat:imagescandata/quality": "usable",
        }
        for session in sessions
        for scan, kind in (("101", "T1"), ("102", "T1"), ("0-OT1", ""), ("OT-1501", UGLY_TYPE), ("0-MR 2", "a/b"))
    ]
    tables = {"projects": projects, "subjects.scrubbed": subjects, "experiments": sessions, "scans": scans}
    for name, rows in tables.items():
        (directory / f"{name}.json").write_text(table(rows))
    (directory / "resources.json").write_text(json.dumps([["sand_box", "E0", "2040", "DEFACER"]]))
    (directory / "LOGS_catalog.xml").write_text(CATALOGUE)
    (directory / "other.json").write_text('{"type": "Session"}')  # recordings of other forms are left alone


@dataclass
class Recorded:
    """A recording, and a mount of it."""

    directory: Path
    mount: Mount
    app: DemoXnat

    def rows(self, column: str) -> list[dict[str, str]]:
        """Return the rows of every recorded table that has this column."""
        found: list[dict[str, str]] = []
        for path in self.directory.rglob("*.json"):
            content: Any = json.loads(path.read_text())
            if isinstance(content, dict) and "ResultSet" in content:
                found += [row for row in content["ResultSet"]["Result"] if column in row]
        return found


@pytest.fixture(scope="module", params=["made up", *([REAL] if REAL else [])])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    directory = tmp_path_factory.mktemp("recorded") if request.param == "made up" else Path(request.param)
    if request.param == "made up":
        made_up(directory)
    archive = DemoArchive(empty=True)
    publish_recorded(archive, directory, {USER: "Owners"})
    app = DemoXnat(archive)
    with serve(app) as url:
        with mounting(url, tmp_path_factory.mktemp("mount"), user=USER, password=PASSWORDS[USER]) as mount:
            yield Recorded(directory, mount, app)


def raw(path: Path, name: str) -> str:
    """Return the server's name of an entry; '' where it states none, and the attribute is missing."""
    return os.getxattr(path, attribute).decode() if (attribute := f"user.xnat.{name}") in os.listxattr(path) else ""


def size(entry: ElementTree.Element) -> int | None:
    """Return the size that a catalogue states; not every server writes sizes into it."""
    stated = [field.text for field in entry.iter() if field.get("name") == "size_in_bytes"]
    return int(stated[0] or "") if stated else None


def test_every_session_and_scan_leads_back_to_its_own_names(recorded):
    projects = recorded.mount.path / "projects"
    sessions = {path.name: path for path in projects.glob("*/*/*") if path.name not in ("CATALOGUES", "resources")}
    expected = {row["ID"]: row for row in recorded.rows("subject_ID")}
    assert {raw(path, "id") for path in sessions.values()} == set(expected)
    # Some recordings have their labels taken out: then an ID stands for it.
    subjects = {row["ID"]: row.get("label") or row["ID"] for row in recorded.rows("ID") if "subject_ID" not in row}
    for path in sessions.values():
        row = expected[raw(path, "id")]
        names = (row["project"], subjects[row["subject_ID"]], row.get("label") or row["ID"])
        assert tuple(unescape(part) for part in path.relative_to(projects).parts) == names
        assert raw(path, "xsitype") == row["xsiType"]
    found = sorted(
        (raw(session, "id"), raw(scan, "id"), unescape(scan.name), raw(scan, "type"), raw(scan, "quality"))
        for session in sessions.values()
        for scan in (session / "scans").iterdir()
    )
    column = "xnat:imagescandata/"
    assert found == sorted(
        (r["ID"], r[column + "id"], r[column + "id"], html.unescape(r[column + "type"]), r[column + "quality"])
        for r in recorded.rows(column + "id")
    )


def test_every_catalogued_file_is_listed_with_its_size(recorded):
    resources = recorded.mount.path / "projects" / "CATALOGUES" / "CATALOGUES" / "CATALOGUES" / "resources"
    catalogues = {path.name.removesuffix("_catalog.xml"): path for path in recorded.directory.rglob("*_catalog.xml")}
    assert {path.name for path in resources.iterdir()} == set(catalogues)
    counts = []
    for label, catalogue in catalogues.items():
        entries = [e for e in ElementTree.parse(catalogue).getroot().iter() if e.tag.endswith("}entry")]
        expected = {entry.attrib["URI"]: size(entry) for entry in entries}
        # What is called like a catalogue is shown by old servers only, and this one is none.
        expected = {name: stated for name, stated in expected.items() if not name.endswith("_catalog.xml")}
        found = {
            "/".join(unescape(part) for part in path.relative_to(resources / label).parts): path
            for path in (resources / label).rglob("*")
            if path.is_file()
        }
        assert found.keys() == expected.keys()
        known = {name: stated for name, stated in expected.items() if stated is not None}
        assert {name: found[name].stat().st_size for name in known} == known
        counts.append(len(expected))
    assert any(counts)


def test_walking_all_of_it_asks_per_session_not_per_scan_or_file(recorded):
    """Request four lists for each session, the resources of each subject and project, their lists, and the projects."""
    sessions, subjects = len(recorded.app.archive.experiments), len(recorded.app.archive.subjects)
    shared = sum(len(subject.shared) for subject in recorded.app.archive.subjects.values())
    projects = len(recorded.app.archive.projects)
    assert recorded.mount.walk()
    asked = [record for record in recorded.app.requests if not record.path.endswith("/JSESSION")]
    assert len(asked) <= 4 * sessions + 2 * (subjects + shared) + 4 * projects + 1


def test_what_is_no_recording_is_refused(tmp_path):
    with pytest.raises(OSError, match="holds no recorded tables"):
        publish_recorded(DemoArchive(empty=True), tmp_path, {})
    (tmp_path / "scans.json").write_text("{")
    with pytest.raises(OSError, match="is no recorded table"):
        publish_recorded(DemoArchive(empty=True), tmp_path, {})
