"""Test the blocking API: what it lists and reads, its errors, and its use from threads and other event loops."""

import asyncio
import hashlib
import io
import mmap
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

import xnatfs
from tests.api.conftest import BIG, DICOM, NIFTI, SCAN
from tests.support.walk import MADE
from xnatfs.common.errors import ConfigError, Denied, LoginRequired, NotFound
from xnatfs.demo.server.reply import Reply


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def test_a_directory_lists_what_a_mount_shows(server, user):
    shown = {entry.path[-1] for entry in user.demo.manifest if entry.path[:-1] == ("projects", "BRAINS", "SUB001")}
    entries = server.list("/projects/BRAINS/SUB001/")
    assert {entry.name for entry in entries} == shown
    assert {entry.kind for entry in entries} == {"directory"}
    assert user.bodies() == []


def test_an_entry_has_size_time_digest_and_metadata(server, user):
    entry = server.info(NIFTI)
    assert (entry.path, entry.kind, entry.is_file, entry.is_dir) == (NIFTI, "file", True, False)
    assert entry.version == user.content(NIFTI)
    assert entry.modified == datetime(2024, 3, 1, 11, 12, 13, 250000, UTC)
    assert entry.metadata["format"] == "NIFTI"
    scan = server.info(SCAN)
    assert (scan.kind, scan.size, scan.metadata["series_description"]) == ("directory", 0, "T1 3D")
    assert server.info("projects/BRAINS").modified is None


def test_a_walk_visits_every_directory_once_and_follows_no_link(server, user):
    walked = {
        path: {entry.name for entry in (*above, *others)} for path, above, others in server.walk("projects/BRAINS")
    }
    below = [entry.path for entry in user.demo.manifest if entry.path[:2] == ("projects", "BRAINS")]
    found = {f"{path}/{name}" for path, names in walked.items() for name in names - MADE}
    assert found == {"/".join(path) for path in below[1:]}
    assert {entry.kind for entry in server.list("experiments")} == {"link"}


def test_a_link_is_followed(server):
    entry = server.info("experiments/DEMO_E00001/scans/1/../1")
    assert entry.path == SCAN


def test_every_file_of_a_project_is_read_as_it_is(server, user):
    for entry in user.demo.manifest:
        if entry.kind == "file" and entry.path[1] == "BRAINS" and not entry.error:
            assert md5(server.read("/".join(entry.path))) == entry.md5


def test_a_series_is_requested_in_a_few_archives(server, user):
    names = [entry.path for entry in server.list(DICOM)]
    for name in names:
        server.read(name)
    assert len(names) == 40
    user.assert_fetched_in_archives()


def test_an_open_file_is_seekable_buffered_and_text_on_request(server):
    with server.open(NIFTI) as file:
        assert isinstance(file, io.BufferedReader)
        whole = file.read()
        assert (file.seek(-10, os.SEEK_END), file.read(), file.tell()) == (len(whole) - 10, whole[-10:], len(whole))
        assert (file.seek(5), file.read(7), file.seek(3, os.SEEK_CUR)) == (5, whole[5:12], 15)
        assert file.raw.tell() == len(whole)
        with pytest.raises(OSError, match="Invalid argument"):
            file.raw.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.raw.pread(0, 1)
    with server.open(NIFTI.replace(".nii.gz", ".json"), "r") as text:
        assert text.read().startswith("{\n")
    with pytest.raises(ValueError, match="read only"):
        server.open(NIFTI, "wb")


def test_a_big_file_is_read_while_it_arrives(server, user):
    with server.open(BIG) as file:
        head = file.read(1000)
        assert md5(head + file.read()) == user.content(BIG)


def test_a_local_path_is_the_cached_file_itself(server, user):
    path = server.local(NIFTI)
    assert path.is_relative_to(user.home / ".cache" / "xnatfs")
    assert md5(path.read_bytes()) == user.content(NIFTI)
    assert server.local(NIFTI) == path
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert md5(mapped[:]) == user.content(NIFTI)


def test_local_paths_of_a_series_that_came_in_an_archive(server, user):
    for entry in server.list(DICOM):
        assert md5(server.local(entry.path).read_bytes()) == entry.version
    user.assert_fetched_in_archives()


def test_a_local_path_stays_while_the_server_is_open(user):
    with xnatfs.open(user.demo.url, cache_size=2_000_000) as server:
        path = server.local(NIFTI)
        for entry in server.list(DICOM):
            server.read(entry.path)
        assert md5(path.read_bytes()) == user.content(NIFTI)


def test_a_file_that_the_cache_has_no_room_for_has_no_local_path_and_is_copied_all_the_same(user, tmp_path):
    with xnatfs.open(user.demo.url, cache_size=1000) as server:
        with pytest.raises(OSError, match="no room"):
            server.local(NIFTI)
        server.download(NIFTI, tmp_path / "copy")
    assert md5((tmp_path / "copy").read_bytes()) == user.content(NIFTI)


def test_errors_are_those_of_a_mount_with_the_reason_of_the_server(server):
    with pytest.raises(FileNotFoundError) as missing:
        server.list("projects/NONE")
    assert isinstance(missing.value.__cause__, NotFound)
    with pytest.raises(PermissionError) as denied:
        server.list("projects/CLOSED")
    assert isinstance(denied.value.__cause__, Denied)
    with pytest.raises(NotADirectoryError):
        server.info(f"{NIFTI}/x")
    with pytest.raises(IsADirectoryError):
        server.read(SCAN)
    assert server.exists(NIFTI)
    assert not server.exists(f"{SCAN}/x")
    assert not server.exists(f"{NIFTI}/x")


def test_a_damaged_file_is_an_error_and_no_copy_is_left(server, user, tmp_path):
    (path,) = ["/".join(entry.path) for entry in user.demo.manifest if user.demo.wrong_digest(entry)]
    with pytest.raises(OSError, match="its MD5 is"):
        server.read(path)
    with pytest.raises(OSError, match="its MD5 is"):
        server.download(path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_metadata_are_dataclasses_and_frames(server):
    projects = {project.id: project.name for project in server.projects()}
    assert projects["BRAINS"] == "Resting-state fMRI in healthy adults"
    assert {subject.label for subject in server.subjects("BRAINS")} >= {"SUB001", "SUB002", "EMPTY"}
    (session,) = [each for each in server.experiments("BRAINS") if each.label == "SUB001_MR1"]
    scans = server.scans(session.id)
    assert scans == server.scans("projects/BRAINS/SUB001/SUB001_MR1")
    frame = server.frame(scans)
    assert list(frame.columns) == ["id", "type", "quality", "xsi_type", "note", "series_description", "frames"]
    assert frame[frame.type == "T1"].id.sort_values().tolist() == ["1", "2"]
    assert server.frame([]).empty
    assert server.frame(server.list(DICOM))["size"].sum() == sum(entry.size for entry in server.list(DICOM))


def test_threads_share_one_login_and_one_fetch_of_each_file(user):
    def read(_: int) -> str:
        with xnatfs.open(user.demo.url) as server:
            return md5(server.read(NIFTI))

    with xnatfs.open(user.demo.url), ThreadPoolExecutor(32) as pool:
        assert set(pool.map(read, range(32))) == {user.content(NIFTI)}
    assert user.logins() == 1
    assert len(user.bodies()) == 1


def test_asyncio_and_trio_go_on_while_a_thread_waits(user, server):
    user.demo.app.faults.append(lambda request: _pause() if "functional.nii" in request.path else None)
    try:

        async def in_asyncio() -> int:
            reading = asyncio.create_task(asyncio.to_thread(server.read, BIG))
            ticks = 0
            while not reading.done():
                await asyncio.sleep(0.01)
                ticks += 1
            assert md5(await reading) == user.content(BIG)
            return ticks

        assert asyncio.run(in_asyncio()) > 5
    finally:
        user.demo.app.faults.clear()
    assert md5(trio.run(trio.to_thread.run_sync, server.read, NIFTI)) == user.content(NIFTI)


def _pause() -> Reply | None:
    time.sleep(0.3)
    return None


def test_a_closed_server_says_so(user):
    server = xnatfs.open(user.demo.url)
    file = server.open(BIG)
    file.read(10)
    server.close()
    server.close()
    with pytest.raises(ValueError, match="closed"):
        server.list()
    file.close()


def test_a_file_outlives_the_connection_that_opened_it(user):
    with xnatfs.open(user.demo.url) as server:
        file = server.open(NIFTI)
    with file:
        assert md5(file.read()) == user.content(NIFTI)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("xnat://host/projects/P", "paths are given to its methods"),
        ("host", "not the URL of a server"),
        ("ftp://host", "must begin with https"),
        ("https://me:secret@host", "must not hold a user"),
    ],
)
def test_a_url_that_is_none_of_a_server_is_refused(user, url, message):
    with pytest.raises(ConfigError, match=message) as refused:
        xnatfs.open(url)
    assert "secret" not in str(refused.value)


def test_an_option_that_does_not_exist_is_refused(user):
    with pytest.raises(ConfigError, match="no such option: password"):
        xnatfs.open(user.demo.url, password="secret")  # type: ignore[call-arg]


def test_without_a_login_the_three_ways_are_named(user, monkeypatch):
    monkeypatch.delenv("XNAT_PASS")
    with pytest.raises(LoginRequired) as refused:
        xnatfs.open(user.demo.url)
    assert re.search("xnatctl auth login.* XNAT_USER and XNAT_PASS .*~/.netrc.* token_file", str(refused.value))
    assert user.demo.requests() == []


def test_a_login_comes_from_a_file(user, monkeypatch, tmp_path):
    monkeypatch.delenv("XNAT_PASS")
    file = tmp_path / "token"
    file.write_text(f"username={user.demo.login['user']}\npassword={user.demo.login['password']}\n")
    with pytest.raises(ConfigError, match="chmod 600"):
        xnatfs.open(user.demo.url, token_file=file)
    file.chmod(0o600)
    with xnatfs.open(user.demo.url, token_file=file) as server:
        assert server.exists(NIFTI)


def test_a_listing_is_as_old_as_the_ttl_says(user):
    with xnatfs.open(user.demo.url, ttl=0) as server:
        server.list(SCAN)
        user.demo.forget_requests()
        server.list(SCAN)
        assert user.demo.requests() != []


def test_importing_xnatfs_loads_nothing_of_it(user):
    done = user.python(
        "import sys, xnatfs; print([m for m in sys.modules if m.startswith(('xnatfs.', 'trio', 'httpx'))])"
    )
    assert done.stdout == "[]\n"


def test_the_stub_has_the_public_names(server):
    stub = Path(xnatfs.__file__).with_suffix(".pyi").read_text()
    assert {*re.findall(r" as (\w+)$", stub, re.MULTILINE), "__version__"} == set(xnatfs.__all__)
    assert all(hasattr(xnatfs, name) for name in xnatfs.__all__)
    assert set(xnatfs.__all__) <= set(dir(xnatfs))
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        xnatfs.opne  # type: ignore[attr-defined]  # noqa: B018


def test_a_target_that_cannot_be_written_stays(server, tmp_path):
    target = tmp_path / "made"
    target.mkdir()
    (target / "copy").symlink_to("/proc/self/comm/none")  # root may write to any other file
    with pytest.raises(NotADirectoryError):
        server.download(NIFTI, target / "copy")
    assert (target / "copy").is_symlink()


def test_only_a_session_has_scans(server):
    for path in ("projects/BRAINS", "projects/BRAINS/SUB001", SCAN, NIFTI):
        with pytest.raises(NotADirectoryError, match="not a session"):
            server.scans(path)
