"""Watch uploads in the prearchive of a mount, until they are in their project."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.changing import images
from tests.support.commanding import OWNER, PASSWORD, Shell, shell
from tests.support.mounting import LIMIT, Mount, mounting, run

pytestmark = pytest.mark.fuse

# What a read may raise of a session that is being archived.
MOVED = {errno.ENOENT, errno.EBUSY, errno.ESTALE}


@pytest.fixture(scope="module")
def scanner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Provide a server, and what sends to it."""
    with shell(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module")
def mount(scanner: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    made = tmp_path_factory.mktemp("mount")
    with mounting(scanner.url, made, "--ttl", "1", user=OWNER, password=PASSWORD) as mount:
        yield mount


def post(scanner: Shell, path: str, **query: str) -> httpx.Response:
    with httpx.Client(base_url=scanner.url, auth=("root", PASSWORD), timeout=LIMIT) as http:
        return http.post(path, params=query)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def status(session: Path) -> str:
    try:
        return os.getxattr(session, "user.xnat.status").decode()
    except OSError as error:
        return "gone" if error.errno in (errno.ENOENT, errno.ESTALE) else str(error)


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.suffix == ".dcm")


def sent(uri: str, scanner: Shell) -> list[bytes]:
    """Return the files of a session, as the server has received them."""
    (received,) = [one for one in scanner.app.writing.prearchive.sessions if one.uri() == uri]
    entries = [entry for scan in received.session.scans for resource in scan.resources for entry in resource.entries]
    found = sorted(entry.content.read_bytes() for entry in entries if isinstance(entry.content, Path))
    assert len(found) == len(images("1.2")) > 0
    return found


def test_an_empty_prearchive_costs_a_walk_one_request(scanner, mount):
    scanner.app.requests.clear()
    done = run("find", mount.path)
    assert done.returncode == 0, done.stderr
    assert str(mount.path / "prearchive") in done.stdout.splitlines()
    assert [record.path for record in scanner.app.requests if "prearchive" in record.path] == ["/data/prearchive"]


def test_an_upload_is_watched_until_it_is_in_its_project(scanner, mount):
    uri = scanner.receive("WATCHED", ready=False)
    session = mount.path / uri.removeprefix("/data/").replace("prearchive/projects", "prearchive")
    wait_for(lambda: status(session) == "RECEIVING")
    assert not {"scans", "resources"} & set(os.listdir(session))
    with pytest.raises(OSError, match="busy") as raised:
        os.listdir(session / "scans")
    assert raised.value.errno == errno.EBUSY
    assert b"RECEIVING" in os.getxattr(session, "user.xnat.status")

    expected = sent(uri, scanner)
    assert post(scanner, uri, action="commit").status_code == 200
    wait_for(lambda: status(session) == "READY")
    assert [os.listdir(session / "scans"), os.listdir(session / "scans/1")] == [["1"], ["DICOM"]]
    assert sorted(path.read_bytes() for path in files(session)) == expected

    scanner.app.site.work = 3.0
    archiving = threading.Thread(target=post, args=(scanner, "/data/services/archive"), kwargs={"src": uri[5:]})
    archiving.start()
    try:
        wait_for(lambda: status(session) == "_ARCHIVING")
        assert not {"scans", "resources"} & set(os.listdir(session))
    finally:
        archiving.join()
        scanner.app.site.work = 0.0
    wait_for(lambda: status(session) == "gone")
    archived = mount.path / "projects/MYPROJECT/SUB001/WATCHED"
    wait_for(archived.is_dir)
    assert sorted(path.read_bytes() for path in files(archived)) == expected


def test_what_is_read_while_it_is_archived_is_right_or_an_error(scanner, mount):
    uri = scanner.receive("READ")
    expected = sent(uri, scanner)
    session = mount.path / uri.removeprefix("/data/").replace("prearchive/projects", "prearchive")
    wait_for(lambda: status(session) == "READY")
    paths = files(session)
    assert len(paths) == len(expected)
    scanner.app.site.work = 1.0
    archiving = threading.Thread(target=post, args=(scanner, "/data/services/archive"), kwargs={"src": uri[5:]})
    failures: set[int | None] = set()

    def read(bytes_of: Callable[[], bytes]) -> None:
        try:
            assert bytes_of() in expected
        except OSError as error:
            failures.add(error.errno)

    with paths[0].open("rb", buffering=0) as open_file:
        archiving.start()
        try:
            while status(session) != "gone" or archiving.is_alive():
                for path in paths:
                    read(path.read_bytes)
                read(lambda: os.pread(open_file.fileno(), 2**20, 0))
        finally:
            archiving.join()
            scanner.app.site.work = 0.0
    assert failures <= MOVED
    with pytest.raises(FileNotFoundError):
        paths[0].read_bytes()


def test_a_conflict_is_explained(scanner, mount):
    scanner.receive("READ2")
    uri = scanner.receive("READ")
    assert post(scanner, "/data/services/archive", src=uri[5:]).status_code >= 400
    session = mount.path / uri.removeprefix("/data/").replace("prearchive/projects", "prearchive")
    wait_for(lambda: status(session) == "CONFLICT")
    assert os.getxattr(session, "user.xnat.reason").decode()
    assert os.getxattr(session, "user.xnat.target") == b"projects/MYPROJECT/SUB001/READ"
    assert files(session)


def test_it_is_read_only(scanner, mount):
    scanner.receive("KEPT")
    project = mount.path / "prearchive/MYPROJECT"
    wait_for(project.is_dir)
    scanner.app.requests.clear()
    assert run("rm", "-r", project).returncode != 0
    with pytest.raises(OSError, match="Read-only"):
        (project / "new").mkdir()
    assert {record.method for record in scanner.app.requests} <= {"GET", "HEAD"}
