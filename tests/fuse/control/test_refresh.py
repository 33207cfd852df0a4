"""Test that a mount shows what the server has now after a refresh: on a real mount, with a TTL of an hour."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commanding import LABEL, OWNER, PASSWORD, SESSION, page_archive
from tests.support.mounting import Mount, mounting, run
from xnatfs.demo.archive.model import Archive, Resource, Subject
from xnatfs.demo.server.app import DemoXnat, Request
from xnatfs.demo.server.reply import Reply
from xnatfs.demo.server.socket import serve

pytestmark = pytest.mark.fuse

SUBJECT_DIR = "projects/MYPROJECT/SUB001"
SESSION_DIR = f"{SUBJECT_DIR}/{LABEL}"
DICOM = f"{SESSION_DIR}/scans/1/DICOM"


class RefreshedMount:
    """A server and a mount of it that would not look again for an hour."""

    def __init__(self, app: DemoXnat, mount: Mount) -> None:
        self.app = app
        self.mount = mount
        self.archive: Archive = app.archive

    def refresh(self, path: str) -> list[str]:
        """Refresh a path, and return the requests that took."""
        before = len(self.app.requests)
        self.mount.xnatfs("refresh", self.mount.path / path)
        return [record.path for record in self.app.requests[before:]]

    def names(self, path: str) -> set[str]:
        return set(os.listdir(self.mount.path / path))

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.mount.path / path)

    def subject(self) -> Subject:
        return self.archive.subjects[self.archive.experiments[SESSION].subject]

    def dicom(self) -> Resource:
        return self.archive.experiments[SESSION].scans[0].resources[0]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RefreshedMount]:
    app = DemoXnat(page_archive())
    with serve(app) as url, mounting(url, tmp_path, "--ttl", "3600", user=OWNER, password=PASSWORD) as mount:
        yield RefreshedMount(app, mount)


def test_a_new_file_is_seen_though_its_absence_was_known(world):
    assert not world.exists(f"{DICOM}/new.dcm")
    assert world.names(DICOM) == {"1.0.dcm", "1.1.dcm", "1.2.dcm"}
    world.archive.file(world.dicom(), "new.dcm", b"new")
    assert not world.exists(f"{DICOM}/new.dcm")
    assert len(world.refresh(DICOM)) <= 4
    assert (world.mount.path / DICOM / "new.dcm").read_bytes() == b"new"
    assert "new.dcm" in world.names(DICOM)


def test_a_session_costs_four_requests_and_is_new_when_it_returns(world):
    world.mount.walk(SESSION_DIR, read=True)
    session = world.archive.experiments[SESSION]
    scan = world.archive.scan(session, "99", "T99")
    world.archive.file(world.archive.resource(scan.resources, "DICOM", "DICOM", "RAW"), "a.dcm", b"content")
    asked = world.refresh(SESSION_DIR)
    assert len(asked) == 4
    before = len(world.app.requests)
    assert "99" in world.names(f"{SESSION_DIR}/scans")
    assert world.names(f"{SESSION_DIR}/scans/99/DICOM") == {"a.dcm"}
    assert len(world.app.requests) == before


def test_what_has_gone_is_gone(world):
    file = world.mount.path / DICOM / "1.0.dcm"
    assert file.exists()
    session = world.archive.experiments[SESSION]
    world.names(f"{SESSION_DIR}/scans/2/DICOM")
    session.scans.remove(next(scan for scan in session.scans if scan.id == "2"))
    world.dicom().entries.remove(next(entry for entry in world.dicom().entries if entry.path == "1.0.dcm"))
    world.refresh(SESSION_DIR)
    assert not file.exists()
    assert not world.exists(f"{SESSION_DIR}/scans/2")


def test_a_session_that_has_gone_is_gone(world):
    world.mount.walk(SUBJECT_DIR)
    del world.archive.experiments[SESSION]
    done = world.mount.xnatfs("refresh", world.mount.path / SESSION_DIR, status=5)
    assert len(done.stderr.splitlines()) == 1
    assert not world.exists(SESSION_DIR)
    assert LABEL not in world.names(SUBJECT_DIR)


def test_an_experiment_that_cannot_have_scans_is_refreshed(world):
    place = f"{SUBJECT_DIR}/BLOOD"
    experiment = world.archive.experiment(world.subject(), "BLOOD", xsi_type="xnat:subjectVariablesData")
    assert world.names(f"{place}/resources") == set()
    world.refresh(place)  # so that no request ahead is on its way
    world.archive.file(world.archive.resource(experiment.resources, "RAW"), "a.edf", b"signal")
    assert len(world.refresh(place)) == 2
    assert (world.mount.path / place / "resources" / "RAW" / "a.edf").read_bytes() == b"signal"


def test_a_new_session_is_seen_in_its_subject_and_its_project(world):
    for place in ("projects/MYPROJECT", SUBJECT_DIR, "projects"):
        assert not world.exists(f"{SUBJECT_DIR}/NEW{len(place)}")
        world.archive.experiment(world.subject(), f"NEW{len(place)}", f"XNAT_E9{len(place):04}")
        world.refresh(place)
        assert world.exists(f"{SUBJECT_DIR}/NEW{len(place)}")


def test_a_path_that_was_not_there_can_be_refreshed(world):
    assert not world.exists(f"{SUBJECT_DIR}/NEW")
    world.archive.experiment(world.subject(), "NEW", "XNAT_E90000")
    world.refresh(f"{SUBJECT_DIR}/NEW")
    assert world.names(f"{SUBJECT_DIR}/NEW") == {
        *("scans", "resources", "assessors", "reconstructions"),
        *("session.json", "session.xml", "scans.tsv"),
    }


def test_a_link_leads_to_what_is_refreshed(world):
    world.names(DICOM)
    world.archive.file(world.dicom(), "new.dcm", b"new")
    world.refresh(f"experiments/{SESSION}")
    assert "new.dcm" in world.names(DICOM)


def test_a_program_that_works_there_goes_on(world):
    place = world.mount.path / SESSION_DIR
    program = "import os, sys; os.chdir(sys.argv[1]); print(os.getcwd(), flush=True); sys.stdin.read(1);"
    program += "print(os.getcwd(), os.listdir('scans'))"
    words = [sys.executable, "-c", program, str(place)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(place)
        world.refresh(SESSION_DIR)
        assert place.exists()
        process.stdin.write("x")
        process.stdin.close()
        assert process.stdout.read().startswith(str(place))
        assert process.wait(60) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to mount")
def test_what_is_mounted_on_a_directory_of_it_stays(world, tmp_path):
    place = world.mount.path / SESSION_DIR / "scans"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("")
    assert run("mount", "--bind", tmp_path / "mine", place).returncode == 0
    try:
        world.refresh(SESSION_DIR)
        assert world.names(f"{SESSION_DIR}/scans") == {"note"}
    finally:
        run("umount", place)


def test_a_file_is_read_on_while_it_is_refreshed(world):
    with open(world.mount.path / DICOM / "1.0.dcm", "rb") as file:
        begun = file.read(10)
        world.refresh(SESSION_DIR)
        assert begun + file.read() == b"scan 1, image 0" * 100


def test_wrong_input_is_one_line_and_changes_nothing(world):
    world.mount.walk(SESSION_DIR)
    before = len(world.app.requests)
    for path, status, said in (("/", 66, "is not in a mount"), (world.mount.path / "nothing", 5, "does not exist")):
        done = world.mount.xnatfs("refresh", path, status=status)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert said in line
    assert len(world.app.requests) == before


def test_a_server_that_is_away_takes_nothing_away(tmp_path):
    app = DemoXnat(page_archive())
    with serve(app) as url:
        options = ("--ttl", "3600", "--timeout", "1")
        with mounting(url, tmp_path, *options, user=OWNER, password=PASSWORD) as mount:
            mount.expected_in_log += ["unreachable", "reachable", "cannot be reached", "does not answer"]
            world = RefreshedMount(app, mount)
            assert world.names(DICOM)
            app.handle = lambda *request: (_ for _ in ()).throw(ConnectionResetError)  # type: ignore[method-assign]
            done = world.mount.xnatfs("refresh", mount.path / SESSION_DIR, status=4)
            assert len(done.stderr.splitlines()) == 1
            assert "1.0.dcm" in world.names(DICOM)


def test_what_came_with_a_list_of_the_whole_project_is_requested_anew(world):
    """A program that iterates over sessions had their scans from one list, and the next one would have them, too."""
    names = [f"B{number:02}" for number in range(12)]
    sessions = [world.archive.experiment(world.subject(), name) for name in names]
    for session in sessions:
        scan = world.archive.scan(session, "1", "T1")
        world.archive.file(world.archive.resource(scan.resources, "DICOM", "DICOM", "RAW"), "a.dcm", b"content")
    world.refresh("projects/MYPROJECT")
    for name in names:
        assert world.names(f"{SUBJECT_DIR}/{name}/scans") == {"1"}
    for session in sessions:
        world.archive.scan(session, "2", "without files")
    world.refresh("projects/MYPROJECT")
    assert {name: world.names(f"{SUBJECT_DIR}/{name}/scans") for name in names} == dict.fromkeys(names, {"1", "2"})


def test_a_list_that_was_on_its_way_during_a_refresh_is_not_kept(world):
    """The server has made it before the change, and it arrives after the refresh."""
    session, began, go_on = world.archive.experiments[SESSION], threading.Event(), threading.Event()

    def late(request: Request) -> Reply | None:
        if not request.path.endswith(f"/{SESSION}/scans") or began.is_set():
            return None
        began.set()
        reply: Reply = world.app._answer(request)[0]
        assert go_on.wait(60)
        return reply

    world.app.faults.append(late)
    reader = threading.Thread(target=world.names, args=(f"{SESSION_DIR}/scans",))
    reader.start()
    assert began.wait(60)
    world.archive.scan(session, "99", "T99")
    world.refresh("projects/MYPROJECT")
    go_on.set()
    reader.join(60)
    assert "99" in world.names(f"{SESSION_DIR}/scans")
