"""Test `xnatfs warm` and `xnatfs verify`, on real mounts."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs.test_real_data import converted
from tests.support.commanding import LABEL, OWNER, PASSWORD, SESSION, page_archive
from tests.support.demos import DemoProcess
from tests.support.mounting import SCRIPTS, Mount, environment, mounting, run
from xnatfs.demo.archive.model import Resource
from xnatfs.demo.fixtures.lab import PASSWORDS
from xnatfs.demo.fixtures.phantom import Series, dicom_series
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.socket import serve

pytestmark = pytest.mark.fuse

SESSION_DIR = f"projects/MYPROJECT/SUB001/{LABEL}"
USER = "demo-owner"
SERIES = Series("study", 3, "T1 3D", rows=64, columns=64, slices=12)


class WarmedMount:
    """A server and a mount of it."""

    def __init__(self, app: DemoXnat, mount: Mount) -> None:
        self.app = app
        self.mount = mount

    def dicom(self) -> Resource:
        return self.app.archive.experiments[SESSION].scans[0].resources[0]

    @property
    def session(self) -> Path:
        return self.mount.path / SESSION_DIR


@pytest.fixture
def world(tmp_path: Path) -> Iterator[WarmedMount]:
    app = DemoXnat(page_archive())
    with serve(app) as url, mounting(url, tmp_path, user=OWNER, password=PASSWORD) as mount:
        mount.expected_in_log += ["but has lost it", "damaged file", "lists none", "cannot be listed"]
        yield WarmedMount(app, mount)


def test_a_warm_session_is_read_without_a_request(world):
    done = world.mount.xnatfs("warm", world.session)
    assert "complete: " in done.stdout
    before = len(world.app.requests)
    entries = world.mount.walk(SESSION_DIR, read=True)
    assert sum("md5" in entry for entry in entries) == 18
    assert len(world.app.requests) == before
    assert "complete: 18 files" in done.stdout
    again = world.mount.xnatfs("warm", world.session).stdout
    assert "(0 fetched)" in again


def test_what_cannot_be_fetched_is_named(world):
    world.dicom().entries[1].content = None
    done = world.mount.xnatfs("warm", world.session / "scans" / "1", status=8)
    assert "1.1.dcm" in done.stderr
    assert "incomplete: " in done.stdout
    assert "1 failed" in done.stdout
    assert "1.1.dcm" in world.mount.xnatfs("status", world.mount.path).stdout


def test_nothing_is_fetched_if_one_path_is_wrong(world):
    before = len(world.app.requests)
    done = world.mount.xnatfs("warm", world.session, "/nowhere", status=66)
    assert len(done.stderr.splitlines()) == 1
    assert len(world.app.requests) == before
    assert "does not exist" in world.mount.xnatfs("warm", world.mount.path / "nothing", status=5).stderr


def test_pinned_files_stay_until_they_are_unpinned(world):
    scan, other = world.session / "scans" / "1", world.session / "scans" / "2"
    assert "4 pinned" in world.mount.xnatfs("warm", "--pin", scan).stdout
    assert "4 pinned" in world.mount.xnatfs("warm", "--pin", scan).stdout
    world.mount.xnatfs("warm", other)
    assert "4 of them pinned" in world.mount.xnatfs("cache", "info", scan).stdout
    assert "open or pinned" in world.mount.xnatfs("cache", "clear", scan).stdout
    assert "(0 fetched" in world.mount.xnatfs("warm", scan).stdout
    assert "(3 fetched)" in world.mount.xnatfs("warm", other).stdout
    assert "1 files unpinned" in world.mount.xnatfs("cache", "unpin", scan / "NIFTI").stdout
    assert "3 files unpinned" in world.mount.xnatfs("cache", "unpin", world.mount.path).stdout
    assert "are left" not in world.mount.xnatfs("cache", "clear", world.mount.path).stdout


def test_more_than_the_cache_holds_is_not_pinned(tmp_path):
    app = DemoXnat(page_archive())
    with serve(app) as url, mounting(url, tmp_path, "--cache-size", "10K", user=OWNER, password=PASSWORD) as mount:
        world = WarmedMount(app, mount)
        assert "cannot be pinned" in world.mount.xnatfs("warm", "--pin", world.session, status=73).stderr
        assert "found no room in the cache" in world.mount.xnatfs("warm", world.session, status=8).stdout
        assert "complete" in world.mount.xnatfs("warm", "--pin", world.session / "scans" / "2").stdout


def test_without_a_server_it_says_how_far_it_came(tmp_path):
    app = DemoXnat(page_archive())
    with serve(app) as url, mounting(url, tmp_path, "--timeout", "1", user=OWNER, password=PASSWORD) as mount:
        mount.expected_in_log += ["reachable", "broke off", "does not answer"]
        world = WarmedMount(app, mount)
        mount.walk(SESSION_DIR)
        world.mount.xnatfs("warm", world.session / "scans" / "1")
        app.handle = lambda *request: (_ for _ in ()).throw(ConnectionResetError)  # type: ignore[method-assign]
        (line,) = world.mount.xnatfs("warm", world.session, status=4).stderr.splitlines()
        assert "of 18 files are cached, the same command goes on" in line
        assert "complete: 4 files" in world.mount.xnatfs("warm", world.session / "scans" / "1").stdout


def test_a_warm_session_is_there_without_the_server(tmp_path):
    session = tmp_path / "data" / "P" / "S" / "E" / "scans"
    for scan in ("1", "2"):
        (session / scan / "DICOM").mkdir(parents=True)
        for number in range(20):
            (session / scan / "DICOM" / f"{number}.dcm").write_bytes(os.urandom(30_000))
    (session / "1" / "DICOM" / "big.bin").write_bytes(os.urandom(20 * 2**20))
    (session / "3" / "DICOM").mkdir(parents=True)
    for name, image in dicom_series(SERIES, "S"):
        (session / "3" / "DICOM" / name).write_bytes(image)
    server = DemoProcess(tmp_path / "data")
    try:
        options = ("--offline", "--ttl", "1", "--timeout", "1")
        with mounting(server.url, tmp_path, *options, user=USER, password=PASSWORDS[USER]) as mount:
            mount.expected_in_log += ["unreachable", "serving expired listings", "could not log out"]
            place = mount.path / "projects" / "P" / "S" / "E"
            done = run(SCRIPTS / "xnatfs", "warm", "--pin", place, env=environment(mount.home))
            assert done.returncode == 0, done.stderr
            assert f"complete: {41 + SERIES.slices} files" in done.stdout
            assert "--offline" not in done.stderr
            server.stop()
            time.sleep(1.5)  # the listings have expired then
            copied = tmp_path / "copied"
            shutil.copytree(place / "scans", copied)
            compared = run("diff", "-r", session, copied)
            assert (compared.returncode, compared.stdout) == (0, "")
            images = converted(place / "scans" / "3" / "DICOM", tmp_path / "mounted")
            assert images == converted(session / "3" / "DICOM", tmp_path / "local")
            assert any(name.endswith(".nii") for name in images)
            told = run(SCRIPTS / "xnatfs", "status", mount.path, env=environment(mount.home)).stdout
            assert "unreachable since" in told
            assert "listings are of" in told
            why = run(SCRIPTS / "xnatfs", "why", place, env=environment(mount.home)).stdout
            assert "the server has been unreachable since" in why
    finally:
        server.stop()


def test_a_sound_session_is_verified_without_a_word(world):
    world.mount.xnatfs("warm", world.session)
    done = world.mount.xnatfs("verify", world.session)
    assert done.stdout.splitlines() == ["18 files compared, 18 of them in the cache"]


def test_listings_alone_are_verified_without_a_request_for_a_file(world):
    file = world.session / "scans" / "1" / "DICOM" / "1.0.dcm"
    world.mount.xnatfs("warm", world.session)
    resource = world.dicom()
    resource.entries[0].content = None
    before = len(world.app.requests)
    done = world.mount.xnatfs("verify", "--listings-only", world.session)
    assert done.stdout.splitlines() == ["18 files compared, 18 of them in the cache"]
    assert not [r for r in world.app.requests[before:] if r.method == "HEAD" or r.path.endswith(".dcm")]
    damage(world, file)
    assert "damaged in the cache" in world.mount.xnatfs("verify", "--listings-only", world.session, status=1).stdout


def damage(world: WarmedMount, file: Path) -> None:
    """Change the first bytes of a file in the cache."""
    whole = file.read_bytes()
    (blob,) = [path for path in world.mount.home.rglob("blobs/*/*") if path.read_bytes() == whole]
    status = blob.stat()
    blob.chmod(0o600)
    with blob.open("r+b") as damaged:
        damaged.write(b"damage")
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_damage_in_the_cache_is_found_and_mended(world):
    file = world.session / "scans" / "1" / "DICOM" / "1.0.dcm"
    whole = file.read_bytes()
    world.mount.xnatfs("warm", world.session)
    damage(world, file)
    done = world.mount.xnatfs("verify", world.session, status=1)
    assert "1.0.dcm: damaged in the cache, and removed there" in done.stdout
    assert "refresh/catalog" not in done.stdout
    assert file.read_bytes() == whole
    world.mount.xnatfs("verify", world.session)


def test_what_the_server_has_lost_is_for_a_manager_to_refresh(world):
    world.mount.xnatfs("warm", world.session)
    resource = world.dicom()
    resource.entries[0].content = None
    done = world.mount.xnatfs("verify", world.session, status=1)
    assert "1.0.dcm: listed, and not there" in done.stdout
    (command,) = [line for line in done.stdout.splitlines() if "refresh/catalog" in line]
    assert f"resource=/archive/experiments/{SESSION}/scans/1/resources/" in command
    assert "options=delete,append,checksum,populateStats" in command
    assert len([line for line in done.stdout.splitlines() if "listed, and not" in line]) == 1
