"""Test the store that machines share: two homes with a cache each stand for two machines."""

import argparse
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import xnatfs
from tests.api.conftest import BIG, DICOM, NIFTI, User
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
    for path in shared.iterdir():
        assert path.stat().st_mode & 0o777 == 0o711
    for path in entries(shared):
        assert path.stat().st_mode & 0o777 == 0o444
        digest, _, size = path.name.partition("-")
        assert (hashlib.md5(path.read_bytes()).hexdigest(), path.stat().st_size) == (digest, int(size))
        assert path.parent.name == digest[:2]


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
        other = path.parents[2] / "elsewhere"
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
