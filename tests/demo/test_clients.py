"""Check the demo server with published clients, which must see every name and every byte that is there.

The clients run unmodified, each in an environment of its own. The same demo, and the real images that it publishes, are
what the mount is tested on: what these clients read in it is what a mount shows.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.changing import images, zip_of
from tests.support.demos import Demo, serving
from tests.support.environments import environment_with, needs_registry
from tests.support.mounting import environment, run
from tests.support.real_data import PROJECT, XNATPY, fetch, locked_cache, sample_sessions
from xnatfs.demo.archive.entries import Content
from xnatfs.demo.archive.model import Archive, Experiment
from xnatfs.demo.server.reply import Slice

pytestmark = needs_registry

SCRIPTS = Path(__file__).parent / "clients"

# pyxnat imports nibabel and pandas without asking for them.
PYXNAT = ["pyxnat==1.6.4", "nibabel==5.3.2", "pandas==2.3.3"]
XNATCTL = ["xnatctl==0.6.0"]
XNAT = ["xnat==0.8.1"]

Place = tuple[str, str, str, str]  # project, subject, session, scan

PLACES: dict[str, Place] = {
    "made up": ("BRAINS", "SUB001", "SUB001_MR1", "1"),
    "real": (PROJECT, "ANONYMIZ", "ANONYMIZ", "5"),
}


@dataclass
class Served:
    demo: Demo
    place: Place

    @property
    def archive(self) -> Archive:
        return self.demo.archive

    def session(self) -> Experiment:
        project, _, label, _ = self.place
        return next(e for e, shown in self.archive.experiments_in(project) if shown == label)

    def truth(self) -> dict[str, Any]:
        """Return what is in the archive, as a client is to see it."""
        project, subject, _, scan_id = self.place
        user, archive = self.demo.login["user"], self.archive
        (scan,) = [scan for scan in self.session().scans if scan.id == scan_id]
        files = [entry for resource in scan.resources for entry in resource.entries]
        of_subject = archive.find_subject(project, subject)
        assert of_subject is not None
        return {
            "whoami": user,
            "projects": sorted(id for id in archive.projects if archive.sees(user, id)),
            "subjects": sorted(label for _, label in archive.subjects_in(project)),
            "sessions": sorted(
                label for e, label in archive.experiments_in(project) if e.subject == of_subject.id and not e.session
            ),
            "scans": sorted(scan.id for scan in self.session().scans),
            "types": {scan.id: scan.type for scan in self.session().scans},
            "resources": sorted(resource.label for resource in scan.resources),
            "files": sorted(entry.path for entry in files),
            "md5": {entry.path: md5(entry.content) for entry in files},
        }


def md5(content: Content) -> str:
    return hashlib.md5(b"".join(Slice.whole(content).pieces())).hexdigest()


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide XNAT's own schemas, which xnatpy's source archive carries."""
    directory = tmp_path_factory.mktemp("schemas")
    with locked_cache() as cache:
        source = fetch(XNATPY, cache)
    with tarfile.open(source) as archive:
        for name in ("xdat.xml", "xnat.xml"):
            member = archive.extractfile(f"xnat-0.8.1/xnat/tests/{name}")
            assert member is not None
            (directory / name).write_bytes(member.read())
    return directory


@pytest.fixture(scope="module", params=PLACES)
def served(request: pytest.FixtureRequest, schemas: Path) -> Iterator[Served]:
    data = sample_sessions() if request.param == "real" else None
    with serving(data, schemas=schemas) as demo:
        yield Served(demo, PLACES[request.param])


def login(demo: Demo, home: Path) -> dict[str, str]:
    """Return the environment of a client: the server and the account."""
    names = {"XNAT_URL": demo.url, "XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"]}
    return environment(home, NO_UPDATE_NOTIFIER="1", XNAT_NO_UPDATE_CHECK="1", **names)


def in_order(found: dict[str, Any]) -> dict[str, Any]:
    return {key: sorted(value) if isinstance(value, list) else value for key, value in found.items()}


@pytest.mark.parametrize(("script", "requirements"), [("use_pyxnat.py", PYXNAT), ("use_xnat.py", XNAT)])
def test_a_library_sees_what_is_there(served, tmp_path, script, requirements):
    python = environment_with(requirements[0].partition("=")[0], requirements) / "python"
    out = tmp_path / "out"
    out.mkdir()
    done = run(python, SCRIPTS / script, *served.place, out, env=login(served.demo, tmp_path))
    assert done.returncode == 0, done.stderr
    assert in_order(json.loads(done.stdout.splitlines()[-1])) == served.truth()


@pytest.fixture
def xnatctl(served: Served, tmp_path: Path) -> Callable[..., Any]:
    """Provide the xnatctl of PyPI, called for the JSON that it prints."""
    program = environment_with("xnatctl", XNATCTL) / "xnatctl"
    env = login(served.demo, tmp_path)
    run(program, "auth", "login", env=env)

    def call(*arguments: str | Path) -> Any:
        done = run(program, *arguments, "-o", "json", env=env)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    return call


def test_xnatctl_sees_what_is_there(served, xnatctl, tmp_path):
    project, subject, _, scan = served.place
    accession = served.session().id
    out = tmp_path / "out"
    xnatctl("scan", "download", "-E", accession, "--scans", scan, "--extract", "--out", out)
    scans = xnatctl("scan", "list", "-E", accession)
    files = {path.name: path for path in out.rglob("*") if path.is_file()}
    found = {
        "whoami": xnatctl("whoami")["username"],
        "projects": [row["id"] for row in xnatctl("project", "list")],
        "subjects": [row["label"] for row in xnatctl("subject", "list", "-P", project)],
        "sessions": [row["label"] for row in xnatctl("session", "list", "-P", project, "--subject", subject)],
        "scans": [row["id"] for row in scans],
        "types": {row["id"]: row["type"] for row in scans},
        "resources": [row["label"] for row in xnatctl("resource", "list", accession, "--scan", scan)],
        "files": list(files),
        "md5": {name: md5(path) for name, path in files.items()},
    }
    assert in_order(found) == served.truth()


def test_xnatctl_downloads_a_session_and_counts_what_is_there(served, xnatctl, tmp_path):
    """Request every scan with files once, and unpack it."""
    project, _, session, _ = served.place
    told = xnatctl("session", "download", "-P", project, "-E", session, "-w", "4", "--out", tmp_path / "out")
    wanted = sorted(
        md5(entry.content) for scan in served.session().scans for r in scan.resources for entry in r.entries
    )
    assert sorted(md5(path) for path in (tmp_path / "out").rglob("*") if path.is_file()) == wanted
    assert told["files"] == len(wanted)


# -- what they change --------------------------------------------------------------------------------------------

PAPERS = {"a.txt": b"one", "sub/b.txt": b"two"}


@dataclass
class Changed:
    """A demo that may be changed, something to send, and a client's environment."""

    demo: Demo
    home: Path

    def __post_init__(self) -> None:
        self.images, self.papers = self.home / "images.zip", self.home / "papers"
        self.images.write_bytes(zip_of(images("1.2.3")))
        self.folder = self.home / "dicoms"
        for top, found in ((self.papers, PAPERS), (self.folder, images("1.2.3"))):
            for name, content in found.items():
                (top / name).parent.mkdir(parents=True, exist_ok=True)
                (top / name).write_bytes(content)

    def receive(self, *labels: str) -> None:
        login = self.demo.login
        with httpx.Client(base_url=self.demo.url, auth=(login["user"], login["password"])) as http:
            for label in labels:
                query = f"inbody=true&dest=/prearchive/projects/BRAINS&subject=SUB001&session={label}&action=commit"
                zipped = {"Content-Type": "application/zip"}
                content = self.images.read_bytes()
                http.post(f"/data/services/import?{query}", content=content, headers=zipped).raise_for_status()

    def waiting(self) -> dict[str, tuple[str, str]]:
        return {one.session.label: (one.project, one.state(0)) for one in self.demo.app.writing.prearchive.sessions}

    def archived(self, label: str) -> Experiment:
        (found,) = [e for e in self.demo.archive.experiments.values() if e.label == label]
        return found

    def held(self, label: str) -> list[str]:
        """Return the MD5 of each file of a session's scans."""
        entries = [entry for scan in self.archived(label).scans for r in scan.resources for entry in r.entries]
        return sorted(md5(entry.content) for entry in entries)

    def sent(self) -> list[str]:
        return sorted(md5(content) for content in images("1.2.3").values())


@pytest.fixture
def changed(tmp_path: Path, schemas: Path) -> Iterator[Changed]:
    with serving(schemas=schemas) as demo:
        yield Changed(demo, tmp_path)


def changes(changed: Changed, script: str, requirements: list[str]) -> dict[str, Any]:
    python = environment_with(requirements[0].partition("=")[0], requirements) / "python"
    done = run(python, SCRIPTS / script, changed.images, changed.papers, env=login(changed.demo, changed.home))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_xnatpy_uploads_and_works_the_prearchive(changed):
    found = changes(changed, "change_xnat.py", XNAT)
    assert found["received"] == ["GONE", "KEPT", "MOVED"]
    assert found["left"] == [["BRAINS", "KEPT", "READY"], ["POOL", "MOVED", "READY"]]
    assert found["scans"] == ["1"]
    assert len(found["files"]) == 2
    assert found["archived"][0] == "KEPT"
    assert changed.held("KEPT") == changed.sent()
    assert found["papers"] == ["a.txt", "b.txt", "sub/b.txt"]
    assert changed.waiting() == {"MOVED": ("POOL", "READY")}


def test_pyxnat_makes_items_and_works_the_prearchive(changed):
    """Skip pyxnat's `move`, which calls what only Python 2 had."""
    changed.receive("KEPT", "GONE")
    found = changes(changed, "change_pyxnat.py", PYXNAT)
    assert found["made"] == ["NEW", "NEW_MR", "1"]
    assert found["a.txt"] == ["a.txt"]
    assert found["all"] == ["a.txt", "b.txt"]  # it shows names, not paths
    assert found["waiting"] == ["GONE", "KEPT"]
    assert (found["status"], found["scans"], found["resources"], found["files"]) == ("READY", "1", "DICOM", 2)
    assert found["reset"].endswith("/KEPT")
    assert found["left"] == ["KEPT"]
    assert found["deleted"] is True


@pytest.mark.parametrize("mode", ["tar", "zip", "gradual"])
@pytest.mark.parametrize("direct", ["--direct-archive", "--prearchive"])
def test_the_xnatctl_of_pypi_uploads(changed, mode, direct):
    program = environment_with("xnatctl", XNATCTL) / "xnatctl"
    env = login(changed.demo, changed.home)
    words = ("-P", "BRAINS", "-S", "SUB001", "-E", "NEW", "--mode", mode, "-w", "1", direct)
    done = run(program, "session", "upload", changed.folder, *words, env=env)
    assert done.returncode == 0, done.stderr
    if direct == "--prearchive":
        assert list(changed.waiting()) == ["NEW"]
        (received,) = changed.demo.app.writing.prearchive.sessions
        assert sum(len(r.entries) for scan in received.session.scans for r in scan.resources) == 2
    else:
        run(program, "session", "list", "-P", "BRAINS", env=env)
        changed.demo.app.writing.prearchive.settle()
        assert changed.held("NEW") == changed.sent()


def test_the_xnatctl_of_pypi_works_the_prearchive(changed):
    program = environment_with("xnatctl", XNATCTL) / "xnatctl"
    env = login(changed.demo, changed.home)
    changed.receive("KEPT", "GONE", "MOVED")

    def call(*words: str | Path) -> str:
        done = run(program, *words, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    rows = json.loads(call("prearchive", "list", "--project", "BRAINS", "-o", "json"))
    places = {row["name"]: (row["project"], row["timestamp"], row["name"]) for row in rows}
    assert sorted(places) == ["GONE", "KEPT", "MOVED"]
    # It asks for an action that no server has, and says so: `rebuild` is `build` there.
    refused = run(program, "prearchive", "rebuild", *places["KEPT"], env=env)
    assert "HTTP 400" in refused.stderr
    call("prearchive", "delete", *places["GONE"], "--yes")
    call("prearchive", "move", *places["MOVED"], "POOL")
    call("prearchive", "archive", *places["KEPT"])
    assert changed.waiting() == {"MOVED": ("POOL", "READY")}
    assert changed.held("KEPT") == changed.sent()
    call("resource", "upload", changed.archived("KEPT").id, "PAPERS", changed.papers)
    (papers,) = [r for r in changed.archived("KEPT").resources if r.label == "PAPERS"]
    assert sorted(entry.path for entry in papers.entries) == sorted(PAPERS)
