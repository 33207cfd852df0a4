"""Test that a mount shows at once what xnatctl has changed on its server, with a TTL of an hour."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commanding import LABEL, OWNER, PASSWORD, SESSION, Shell, received
from tests.support.mounting import Mount, mounting
from xnatfs.rest.changes import ChangedItems

SUBJECT_DIR = "projects/MYPROJECT/SUB001"
RESOURCES_DIR = f"{SUBJECT_DIR}/{LABEL}/resources"


@pytest.fixture
def mount(fresh: Shell, tmp_path: Path) -> Iterator[Mount]:
    with mounting(fresh.url, tmp_path, "--ttl", "3600", user=OWNER, password=PASSWORD) as made:
        yield made


@pytest.mark.fuse
def test_an_archived_session_is_seen(fresh, mount):
    place = mount.path / SUBJECT_DIR / "SESS9"
    received(fresh, "SESS9")
    assert not place.exists()
    before = set(os.listdir(place.parent))
    fresh.ctl("prearchive", "archive", "--project", "MYPROJECT", "--session", "SESS9")
    assert place.is_dir()
    assert set(os.listdir(place.parent)) - before == {"SESS9"}
    assert [path.name for path in (place / "scans").iterdir()]


@pytest.mark.fuse
def test_an_uploaded_file_is_seen_and_a_deleted_one_is_gone(fresh, mount, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "new.txt").write_text("new")
    place = mount.path / RESOURCES_DIR / "NOTES" / "new.txt"
    assert not place.exists()
    assert "QC" in os.listdir(mount.path / RESOURCES_DIR)
    fresh.ctl("resource", "upload", "-E", SESSION, "NOTES", tmp_path / "notes")
    assert place.read_text() == "new"
    fresh.ctl("api", "DELETE", f"/data/experiments/{SESSION}/resources/QC")
    assert "QC" not in os.listdir(mount.path / RESOURCES_DIR)
    assert not (mount.path / RESOURCES_DIR / "QC").exists()


@pytest.mark.fuse
def test_a_command_that_changes_nothing_leaves_the_listings(fresh, mount):
    os.listdir(mount.path / RESOURCES_DIR)
    fresh.ctl("session", "list", "-P", "MYPROJECT")
    before = len(fresh.app.requests)
    os.listdir(mount.path / RESOURCES_DIR)
    assert len(fresh.app.requests) == before


@pytest.mark.parametrize(
    ("texts", "parameters", "projects", "experiments"),
    [
        (["/data/services/archive"], [("src", "/prearchive/projects/A%20B/2024/S")], {"A B"}, set()),
        (["/data/services/import"], [("PROJECT_ID", "P"), ("dest", "/prearchive/projects/P")], {"P"}, set()),
        (["/data/services/import", "/data/projects/P/subjects/S/experiments/E\n"], [], {"P"}, {"E"}),
        (["/data/experiments/X_E1/scans/1/resources/2/files/a.dcm?inbody=true"], [], set(), {"X_E1"}),
        (["/data/subjects/X_S1"], [], {"*"}, set()),
    ],
)
def test_the_changed_items_are_read_from_requests(texts, parameters, projects, experiments):
    changed = ChangedItems()
    assert not changed
    changed.note(*texts, parameters=parameters)
    assert (changed.projects, changed.experiments) == (projects, experiments)
