"""Test the store that machines share: two homes with a cache each stand for two machines."""

import argparse
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import xnatfs
from tests.api.conftest import BIG, DICOM, NIFTI, User
from tests.support.mounting import environment, run
from xnatfs.cli import options
from xnatfs.settings.config import Profile, server_config_of


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    made = tmp_path / "shared"
    made.mkdir()
    made.chmod(0o711)
    return made


@pytest.fixture
def read(user: User, tmp_path: Path):
    def read_on(machine: str, shared: Path) -> dict[str, str]:
        """Read a series, a file of half a megabyte and a big one on a machine; return their digests."""
        cache = tmp_path / machine
        with xnatfs.open(user.demo.url, cache_dir=cache, shared_cache=shared) as server:
            paths = [*(entry.path for entry in server.list(DICOM)), NIFTI, BIG]
            return {path: hashlib.md5(server.read(path)).hexdigest() for path in paths}

    return read_on


def expected(user: User) -> dict[str, str]:
    return {
        "/".join(entry.path): entry.md5
        for entry in user.demo.manifest
        if "/".join(entry.path[:-1]) == DICOM or "/".join(entry.path) in (NIFTI, BIG)
    }


def requested(user: User) -> list[str]:
    """Return the requests for the content of these files; series that follow may be requested ahead."""
    names = ("t1.nii.gz", "functional.nii")
    return [path for path in user.bodies() if "/resources/103/" in path or path.endswith(names)]


def entries(shared: Path) -> Iterator[Path]:
    return (path for path in shared.rglob("*") if path.is_file())


def test_a_second_machine_requests_no_content(user, shared, read):
    assert read("one", shared) == expected(user)
    assert {path.name.partition("-")[0] for path in entries(shared)} >= set(expected(user).values())
    user.demo.forget_requests()
    assert read("two", shared) == expected(user)
    assert requested(user) == []
    shutil.rmtree(shared)
    user.demo.forget_requests()
    assert read("two", shared) == expected(user), "it has a cache of its own now"
    assert requested(user) == []


def test_entries_are_found_by_their_digest_only(user, shared, read):
    read("one", shared)
    assert [path for path in shared.iterdir() if path.is_dir()] == [], "its owner could list it"
    for path in entries(shared):
        assert path.stat().st_mode & 0o777 == 0o444
        digest, _, size = path.name.partition("-")
        assert (hashlib.md5(path.read_bytes()).hexdigest(), path.stat().st_size) == (digest, int(size))


@pytest.mark.parametrize("harm", ["a flipped byte", "cut short", "a link", "a folder", "a pipe"])
def test_a_poisoned_entry_is_reported_and_the_server_serves(user, shared, read, caplog, harm):
    read("one", shared)
    (path,) = [path for path in entries(shared) if path.name.startswith(expected(user)[NIFTI])]
    content = bytearray(path.read_bytes())
    path.unlink()
    if harm == "a flipped byte":
        content[1000] ^= 1
        path.write_bytes(content)
    elif harm == "cut short":
        path.write_bytes(content[:-1])
    elif harm == "a link":
        other = path.parents[1] / "elsewhere"
        other.write_bytes(content)
        path.symlink_to(other)
    elif harm == "a folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    user.demo.forget_requests()
    assert read("two", shared) == expected(user)
    assert len(requested(user)) == 1
    assert "shared cache" in caplog.text


def test_a_poisoned_entry_is_replaced(user, shared, read):
    read("one", shared)
    (path,) = [path for path in entries(shared) if path.name.startswith(expected(user)[NIFTI])]
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[::-1])
    read("two", shared)
    user.demo.forget_requests()
    assert read("three", shared) == expected(user)
    assert requested(user) == []


@pytest.mark.parametrize("trouble", ["absent", "unwritable", "a file"])
def test_a_store_that_cannot_be_used_is_one_warning_and_no_error(user, shared, read, caplog, trouble):
    shared.rmdir()
    if trouble == "a file":
        shared.write_text("")
    elif trouble == "unwritable":
        # Root may write anywhere, except where there is no file system to write to.
        shared.symlink_to("/proc/self")
    assert read("one", shared) == expected(user)
    assert len([record for record in caplog.records if "shared cache" in record.getMessage()]) == 1


def test_data_of_a_revoked_project_are_not_found_by_the_listing(user, shared, read):
    read("one", shared)
    with xnatfs.open(user.demo.url, ttl=0, cache_dir=shared.parent / "two", shared_cache=shared) as server:
        assert server.exists(NIFTI)
        project = user.demo.archive.projects["BRAINS"]
        before, project.members = project.members, {}
        try:
            with pytest.raises((FileNotFoundError, PermissionError)):
                server.read(NIFTI)
        finally:
            project.members = before


def test_a_mount_takes_the_option(user):

    from xnatfs.cli import mounts  # noqa: F401

    parser = argparse.ArgumentParser()
    options.add_server(parser)
    options.add_mount(parser)
    arguments = parser.parse_args(["--shared-cache", "~/store"])
    config = options.mount_config(arguments, server_config_of(user.demo.url, Profile(""), None))
    assert config.shared_cache == user.home / "store"


def test_machines_that_start_together_request_each_file_and_each_archive_once(user, shared, tmp_path):
    user.demo.forget_requests()

    def read_on(machine: str) -> dict[str, str]:
        with xnatfs.open(user.demo.url, cache_dir=tmp_path / machine, shared_cache=shared) as server:
            names = [entry.path for entry in server.list(DICOM)]
            together.wait()
            found = {name: hashlib.md5(server.read(name)).hexdigest() for name in names}
            together.wait()
            return {**found, NIFTI: hashlib.md5(server.read(NIFTI)).hexdigest()}

    machines = ["one", "two", "three", "four"]
    together = threading.Barrier(len(machines))
    with ThreadPoolExecutor(len(machines)) as pool:
        found = list(pool.map(read_on, machines))
    assert found == [{path: digest for path, digest in expected(user).items() if path != BIG}] * len(machines)
    user.assert_fetched_in_archives()
    assert [path.name for path in shared.iterdir() if path.suffix == ".claim"] == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_a_user_without_access_can_neither_list_the_store_nor_read_it_without_a_digest(user, shared, read, tmp_path):
    read("one", shared)
    (entry,) = [path for path in entries(shared) if path.name.startswith(expected(user)[NIFTI])]
    program = """
import os, sys, trio
from pathlib import Path
from xnatfs.content.disk import shared_store
from xnatfs.content.disk.shared_store import SharedFile, SharedStore

os.chdir(sys.argv[1])  # tests are below a directory that is private
os.setgroups([]), os.setgid(65534), os.setuid(65534)
for attempt in (os.listdir, lambda: os.open("new", os.O_CREAT)):
    try:
        attempt()
    except PermissionError:
        print("refused")
trio.run(SharedStore(Path(".")).tidy)
print(len(open(sys.argv[2], "rb").read()))
"""
    done = run(sys.executable, "-c", program, shared, entry.name, env=environment(user.home))
    assert (done.stdout.split(), done.stderr) == (["refused", "refused", entry.name.rpartition("-")[2]], "")
