"""Test the store that machines share: two homes with a cache each stand for two machines."""

import argparse
import errno
import hashlib
import operator
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import xnatfs
from tests.api.conftest import BIG, DICOM, NIFTI, User
from tests.support.content_fakes import BIG as LONG
from tests.support.content_fakes import SMALL, FakeSource, read_all, until, version
from tests.support.mounting import environment, run
from xnatfs.cli import options
from xnatfs.content import Version, open_cache
from xnatfs.content.disk import shared_store
from xnatfs.content.disk.shared_store import SharedFile, SharedStore
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


async def test_a_claim_is_waited_for_until_it_is_released_or_nothing_arrives_any_more(tmp_path):
    looks = []

    async def is_over() -> bool:
        looks.append(os.listdir(tmp_path))
        return len(looks) == 3

    one, other = SharedStore(tmp_path), SharedStore(tmp_path)
    async with one.turn("tar", is_over) as waited:
        assert not waited
        async with other.turn("tar", is_over) as waited:
            assert waited
        assert looks == [["tar.claim"]] * 3
    async with other.turn("tar", is_over) as waited:
        assert not waited
    assert os.listdir(tmp_path) == []


async def test_an_old_claim_is_free_and_a_store_that_is_absent_has_none(tmp_path):
    async def is_over() -> bool:
        return False

    (tmp_path / "tar.claim").touch()
    os.utime(tmp_path / "tar.claim", (0, 0))
    async with SharedStore(tmp_path).turn("tar", is_over):
        assert os.listdir(tmp_path) == ["tar.claim"]
    assert os.listdir(tmp_path) == []
    async with SharedStore(tmp_path / "none").turn("tar", is_over) as waited:
        assert not waited


async def test_a_file_that_is_longer_than_its_listing_says_is_not_shared(tmp_path):
    (tmp_path / "shared").mkdir()
    async with open_cache(tmp_path / "cache", 10**9, shared=tmp_path / "shared") as cache:
        blob = await cache.open(Version("34/a", len(SMALL) - 1, version(SMALL).digest), FakeSource(SMALL))
        assert await blob.read(0, len(SMALL)) == SMALL
        blob.close()
    assert os.listdir(tmp_path / "shared") == []


@pytest.mark.parametrize("call", ["SharedStore._open", "_read"])
async def test_a_store_that_hangs_is_as_if_absent_until_it_answers(tmp_path, monkeypatch, caplog, call):
    answers, made = threading.Event(), operator.attrgetter(call)(shared_store)

    def hang(*args: Any) -> Any:
        answers.wait(60)
        return made(*args)

    monkeypatch.setattr(f"xnatfs.content.disk.shared_store.{call}", hang)
    monkeypatch.setattr(shared_store, "ANSWER_SECONDS", 0.2)
    files = [SMALL[:size] for size in (100_000, 200_000, 300_000)]
    for data in files:
        (tmp_path / f"{version(data).digest}-{len(data)}").write_bytes(data)
    requested = []
    async with open_cache(tmp_path / "cache", 10**9, shared=tmp_path) as cache:
        for data in files:
            if data is files[-1]:
                monkeypatch.setattr(shared_store, "ANSWER_SECONDS", 60.0)
                answers.set()
                await until(lambda: not cache.shared._calls)  # type: ignore[union-attr]
            source = FakeSource(data)
            assert await read_all(cache, version(data), source) == data
            requested.append(len(source.starts))
        assert (requested, cache.counters()["shared_hits"]) == ([1, 1, 0], 1)
    (record,) = caplog.records
    assert "no answer" in record.getMessage()


async def test_what_crashed_machines_left_is_removed_after_an_age(tmp_path, shared, monkeypatch):
    monkeypatch.setattr("xnatfs.content.cache.FLUSH_SECONDS", 0.01)
    old, new = ((f".{uuid.uuid4().hex}", f"tar-{uuid.uuid4().hex}.claim") for _ in range(2))
    data = [uuid.uuid4().hex + "-1" for _ in range(300)]
    for name in (*old, *new, *data):
        (shared / name).touch()
    for name in (*old, *data):
        os.utime(shared / name, (0, 0))
    async with open_cache(tmp_path / "cache", 10**9, shared=shared):
        await until(lambda: not {*old} & {*os.listdir(shared)})
    assert set(os.listdir(shared)) == {*new, *data}


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


@pytest.mark.parametrize("harm", ["it grows", "it is cut short", "the disk is full"])
async def test_an_entry_that_fails_while_it_is_copied_costs_a_download(tmp_path, monkeypatch, harm):
    entry, read = tmp_path / f"{version(LONG).digest}-{len(LONG)}", shared_store._read
    entry.write_bytes(LONG[:-1] + b"?" if harm == "it grows" else LONG)

    def change(file: SharedFile, offset: int, *args: Any) -> bytes:
        with open(entry, "r+b") as made:
            made.truncate(len(LONG) // 2 if harm == "it is cut short" else 10**9)
        return read(file, offset, *args)

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    name, made = ("write_all", refuse) if harm == "the disk is full" else ("_read", change)
    monkeypatch.setattr(shared_store, name, made)
    async with open_cache(tmp_path / "cache", 10**9, shared=tmp_path) as cache:
        source = FakeSource(LONG)
        assert await read_all(cache, version(LONG), source) == LONG
        assert (source.starts[0], cache.counters()["shared_hits"]) == (0, 0)
        await until(lambda: cache.counters()["partials"] == 0)  # the one of the download becomes a cached file
