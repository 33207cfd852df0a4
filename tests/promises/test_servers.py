"""Test unusual servers: the whole archive, listed and read through a mount of each."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.promises.test_releases import BEYOND_THE_TAR
from tests.support.demos import Demo, serving
from tests.support.mounting import Mount, mounting
from xnatfs.demo.fixtures.lab import DemoArchive
from xnatfs.demo.server.releases import XNAT_1_6, XNAT_1_11
from xnatfs.demo.server.reply import Reply, page

pytestmark = pytest.mark.fuse

NAMES_IN_ALL = ["a name", "größe ü", "日本", "trailing ", " leading", "tab\there", "e\u0301 and é"]


def keep(archive: DemoArchive) -> None:
    """Leave the archive as it is."""


def without_sizes(archive: DemoArchive) -> None:
    """Remove sizes, as in catalogues from before sizes were written into them."""
    for resource, _ in archive.resources():
        for entry in resource.entries:
            entry.size = entry.size if entry.lost else ""


def with_old_labels(archive: DemoArchive) -> None:
    """Use labels from before XNAT checked them, at every level."""
    project = archive.project("OLD", "Old data")
    project.members["demo-owner"] = "Owners"
    for label in NAMES_IN_ALL:
        session = archive.experiment(archive.subject(project, f"S {label}"), f"E {label}")
        for scan in (archive.scan(session, f"1 {label}", label), archive.scan(session, f"2{label}", label)):
            archive.file(archive.resource(scan.resources, f"R {label}"), f"{label}/{label}.dcm", label.encode() * 9)


def with_broken_catalogue(archive: DemoArchive) -> None:
    """Add a resource whose catalogue cannot be read: it spoils the list of all files of its session."""
    archive.experiments["DEMO_E00001"].resources[0].broken = True


def with_many_scans(archive: DemoArchive) -> None:
    """Add 35 scans, of which a third share a type."""
    project = archive.project("MANY", "A long session")
    project.members["demo-owner"] = "Owners"
    session = archive.experiment(archive.subject(project, "M1"), "M1_MR")
    for number in range(35):
        scan = archive.scan(session, str(number), "T1" if number % 3 == 0 else f"TYPE {number}")
        archive.file(archive.resource(scan.resources, "DICOM", "DICOM"), "1.dcm", f"image {number}".encode() * 50)


@dataclass(frozen=True)
class UnusualServer:
    """A server, by how it differs from the demo."""

    options: dict[str, Any] = field(default_factory=dict)
    change: Callable[[DemoArchive], None] = keep
    says: tuple[str, ...] = ()  # what the log of the mount then says


SERVERS = {
    "no ranges": UnusualServer({"ranges": False}, says=("files are read from their start",)),
    "no digests": UnusualServer({"digests": False}),
    "no sizes": UnusualServer(change=without_sizes),
    "neither ranges nor sizes": UnusualServer({"ranges": False}, without_sizes, ("files are read from their start",)),
    "open to guests": UnusualServer({"require_login": False}),
    "under a sub-path": UnusualServer({"context_path": "/xnat"}),
    "one session for each account": UnusualServer({"max_sessions": 1}),
    "short sessions": UnusualServer({"session_ttl": 1.0}),
    "short sessions, open to guests": UnusualServer({"session_ttl": 1.0, "require_login": False}),
    "short sessions, one for each account": UnusualServer({"session_ttl": 1.0, "max_sessions": 1}),
    "labels of old data": UnusualServer(change=with_old_labels),
    "a broken catalogue": UnusualServer(
        change=with_broken_catalogue, says=("cannot be listed", "cannot read the catalogue")
    ),
    "35 scans": UnusualServer(change=with_many_scans),
    "the oldest release": UnusualServer({"release": XNAT_1_6}),
    "the newest release": UnusualServer({"release": XNAT_1_11}),
}


def look(demo: Demo, mount: Mount) -> dict[tuple[str, ...], dict[str, Any]]:
    """Read everything below `projects`, and look once more at the sizes that reading corrected."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for entry in mount.walk("projects", read=True) + mount.walk("projects"):
        found.setdefault(("projects", *entry["path"]), {}).update(entry)
    return found


@pytest.mark.parametrize("kind", SERVERS)
def test_the_whole_archive(tmp_path, kind):
    server = SERVERS[kind]
    with serving(change=server.change, **server.options) as demo, mounting(demo.url, tmp_path, **demo.login) as mount:
        mount.expected_in_log += [*demo.planted_warnings, *server.says]
        wanted = {e.path: e for e in demo.manifest if e.path[0] == "projects" and len(e.path) > 1}
        told = demo.app.site.digests and demo.app.site.release.lists_digests
        if not told:  # then bytes that are not as the catalogue says cannot be told from others
            wrong = {e.path for e in demo.manifest if demo.wrong_digest(e)}
            wanted = {path: replace(e, error="") if path in wrong else e for path, e in wanted.items()}
        if kind == "the oldest release":  # its tar ends before them, and nothing else tells them from others
            beyond = {e.path for e in demo.manifest if e.path[-1] in BEYOND_THE_TAR}
            mount.expected_in_log.append("not otherwise for certain")
            wanted = {path: replace(e, error="EIO") if path in beyond else e for path, e in wanted.items()}
        if kind == "a broken catalogue":
            broken = ("projects", "BRAINS", "SUB001", "SUB001_MR1", "resources", "logs")
            pooled = ("projects", "POOL", "POOLED-1", "POOLED-1_MR", "resources", "logs")
            wanted = {path: e for path, e in wanted.items() if path[: len(broken)] not in (broken, pooled)}
            wanted |= {path: replace(wanted[path[:-1]], path=path, error="EIO") for path in (broken, pooled)}
        found = look(demo, mount)
        assert {path: entry["kind"] for path, entry in found.items()} == {p: e.kind for p, e in wanted.items()}
        assert {path: e["error"] for path, e in found.items() if e.get("error")} == {
            path: e.error for path, e in wanted.items() if e.error
        }
        files = {path: e for path, e in wanted.items() if e.kind == "file" and not e.error}
        assert {path: found[path]["size"] for path in files} == {path: e.size for path, e in files.items()}
        read = {path: e["md5"] for path, e in found.items() if "md5" in e and not e.get("error")}
        md5 = {path: e.md5 for path, e in files.items()}
        assert {path: digest for path, digest in read.items() if md5[path]} == md5


@pytest.mark.parametrize("status", [200, 302, 403])
def test_a_password_that_expires_under_a_mount_gives_no_page_for_data(tmp_path, status):
    """Reject the page on which to change the password, with which XNAT then answers every request."""

    def change_it() -> Reply:
        reply = page("Your password has expired. Please change it.", status)
        reply.headers |= {"Location": "/app/template/ChangePassword.vm"} if status == 302 else {}
        return reply

    with serving() as demo, mounting(demo.url, tmp_path, "--ttl", "0", **demo.login) as mount:
        mount.expected_in_log += ["answered the login of demo-owner with a page", "Your password has expired"]
        assert mount.walk("projects/BRAINS/SUB001/SUB001_MR1/scans/1/NIFTI", read=True)
        demo.app.sessions.end_all()
        demo.app.faults.append(lambda request: None if "buildInfo" in request.path else change_it())
        demo.forget_requests()
        assert mount.walk("projects") == [{"path": [], "error": "EACCES"}]
        assert mount.walk("projects/OPEN") == [{"path": [], "error": "EACCES"}]
        logins = [record for record in demo.app.requests if record.method == "POST"]
        assert len(logins) <= 1  # repeated logins lock the account
