"""Test what other processes have locked: no lock is waited for twice in a row, and errors name it."""

import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import trio

from tests.content.test_claims import stopped_holder
from tests.support.content_fakes import FakeSource, descriptors, read_all, version
from xnatfs.common.errors import CacheLocked
from xnatfs.common.locks import lock
from xnatfs.content import open_cache
from xnatfs.content.disk import directory as directory_module
from xnatfs.content.disk.claims import CLAIM_POLL_SECONDS, LOOKS_PER_HOLDER_CHECK, Claims
from xnatfs.content.disk.directory import INDEX_NAME, CacheDirectory, open_directory
from xnatfs.content.disk.files import copy_range, opened
from xnatfs.content.disk.index import Index, open_index
from xnatfs.content.disk.store import open_or_replace

WAIT_SECONDS = 1.0


def wait_of(index: Index) -> float:
    """Return the seconds that SQLite waits for the write lock."""
    return float(index._write.execute("PRAGMA busy_timeout").fetchone()[0]) / 1000


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[CacheDirectory]:
    made = open_directory(tmp_path / "cache", 100, WAIT_SECONDS)
    yield made
    made.close()


# -- the index ---------------------------------------------------------------------------------------------------


def test_the_write_lock_is_not_waited_for_twice_in_a_row(tmp_path):
    """Wait again once it was acquired."""
    path = tmp_path / "index.sqlite"
    with closing(open_index(path, WAIT_SECONDS)) as index, closing(open_index(path, WAIT_SECONDS)) as other:
        for _ in range(2):
            with index.transaction():
                assert wait_of(index) == WAIT_SECONDS
            with other.transaction():
                for _ in range(2):
                    with pytest.raises(sqlite3.OperationalError, match="locked"), index.transaction():
                        pass
                    assert wait_of(index) == 0


def test_another_error_of_a_transaction_says_nothing_of_locks(tmp_path):
    with closing(open_index(tmp_path / "index.sqlite", WAIT_SECONDS)) as index:
        with index.transaction(), pytest.raises(sqlite3.OperationalError, match="within a transaction"):
            index._begin()
        assert wait_of(index) == WAIT_SECONDS


# -- the directory -----------------------------------------------------------------------------------------------


def test_an_index_in_place_of_a_damaged_one_waits_as_long(tmp_path):
    (tmp_path / INDEX_NAME).write_text("not an index")
    with closing(open_index(tmp_path / INDEX_NAME, WAIT_SECONDS)) as index:
        assert wait_of(index) == WAIT_SECONDS


@pytest.mark.parametrize("harm", ["removed", "damaged"])
def test_a_directory_waits_as_long_as_it_was_told_to(directory, harm):
    """Give the time to its index too, also to one that begins anew."""
    assert wait_of(directory.index) == WAIT_SECONDS
    if harm == "removed":
        os.unlink(directory.directory / INDEX_NAME)
    else:
        (directory.directory / INDEX_NAME).write_text("not an index")
        directory.index.damaged = True
    assert directory.reopen_if_lost()
    assert wait_of(directory.index) == WAIT_SECONDS


def test_the_lock_of_a_directory_is_not_waited_for_twice_in_a_row(directory, monkeypatch):
    """Wait again once it was acquired."""
    waits: list[float] = []
    results = iter([False, False, True, False, True])

    def told(fd: int, seconds: float) -> bool:
        waits.append(seconds)
        return next(results)

    monkeypatch.setattr(directory_module, "lock_within", told)
    for taken in (False, False, True, False, True):
        if taken:
            with directory._locked():
                pass
        else:
            with pytest.raises(TimeoutError, match="^locked by "), directory._locked():
                pass
    assert waits == [WAIT_SECONDS, 0, 0, WAIT_SECONDS, 0]
    monkeypatch.undo()


def test_a_locked_directory_says_so(tmp_path, monkeypatch):
    """Tell the lock of the directory from that of its index."""
    open_directory(tmp_path, 100).close()
    with opened(tmp_path) as fd:
        assert lock(fd)
        with pytest.raises(CacheLocked, match=f"^cache directory {tmp_path}: locked by process {os.getpid()} "):
            open_directory(tmp_path, 100, 0.0)
    with closing(open_index(tmp_path / INDEX_NAME)) as index:
        monkeypatch.setattr(directory_module, "open_index", lambda path, wait: Index(path, 0.0)._begin())
        with index.transaction(), pytest.raises(CacheLocked, match=f"locked by process {os.getpid()} "):
            open_directory(tmp_path, 100, 0.0)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_directory_that_is_locked_is_replaced(tmp_path, caplog, is_gone):
    """Wait in the other one for as long, and remove it at the end, unless another program has."""
    with ExitStack() as temporary, opened(tmp_path) as fd:
        assert lock(fd)
        made = open_or_replace(tmp_path, 100, WAIT_SECONDS, temporary)
        assert made.directory.name.startswith("xnatfs-")
        assert wait_of(made.index) == WAIT_SECONDS
        (record,) = caplog.records
        assert re.fullmatch(
            rf"cache directory {tmp_path}: locked by process {os.getpid()} .*"
            "; until the end of this process its files are kept elsewhere, for it alone",
            record.getMessage(),
        )
        made.close()
        if is_gone:
            shutil.rmtree(made.directory)
    assert not made.directory.exists()


async def test_a_cache_in_place_of_a_locked_one_works(tmp_path):
    with opened(tmp_path) as fd:
        assert lock(fd)
        async with open_cache(tmp_path, 10**9, wait=0.0) as cache:
            assert await read_all(cache, version(b"data"), FakeSource(b"data")) == b"data"
    assert sorted(os.listdir(tmp_path)) == ["blobs", "partial"]


def test_an_opened_directory_holds_its_index_only(tmp_path):
    """Close the download that was made to see whether one can be."""
    made = open_directory(tmp_path, 100)
    held = {os.readlink(each) for each in Path("/proc/self/fd").iterdir() if os.path.lexists(each)}
    inside = {Path(each).name.removesuffix(" (deleted)") for each in held if each.startswith(str(tmp_path))}
    assert {name.partition("-")[0] for name in inside} == {INDEX_NAME}
    assert (tmp_path / "partial").is_dir()
    made.close()


def test_a_range_is_copied_and_nothing_behind_it(tmp_path):
    (tmp_path / "from").write_bytes(b"0123456789")
    (tmp_path / "to").write_bytes(b"----------")
    with opened(tmp_path / "from") as source:
        target = os.open(tmp_path / "to", os.O_WRONLY)
        copy_range(source, target, 3, 6)
        os.close(target)
    assert (tmp_path / "to").read_bytes() == b"---345----"


# -- claims ------------------------------------------------------------------------------------------------------


async def test_a_claim_is_waited_for_while_its_process_lives(tmp_path, autojump_clock):
    """Wait for longer than until the first look at the process."""
    other, order = Claims(tmp_path), []

    async def hold(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with other.turn("name", lambda: False):
            task_status.started()
            await trio.sleep(5)
            order.append("released")

    async with trio.open_nursery() as nursery:
        await nursery.start(hold)
        async with Claims(tmp_path).turn("name", lambda: False) as waited:
            order.append("claimed")
            assert waited
    assert order == ["released", "claimed"]


async def test_a_stopped_process_is_looked_at_now_and_then(tmp_path, autojump_clock):
    """Look at the holder of a claim at each 25th look at the claim, since that costs more."""
    with stopped_holder(tmp_path / "name.claim"):
        began = trio.current_time()
        async with Claims(tmp_path).turn("name", lambda: False) as waited:
            assert waited
    looks = round((trio.current_time() - began) / CLAIM_POLL_SECONDS)
    assert looks == LOOKS_PER_HOLDER_CHECK - 1


async def test_a_claim_is_private_and_leaves_no_descriptor(tmp_path):
    """Close what was opened for it, whether the claim was made, was in vain, or lost its file meanwhile."""
    before = descriptors()
    async with Claims(tmp_path).turn("name", lambda: False):
        assert (tmp_path / "name.claim").stat().st_mode & 0o777 == 0o600
        async with Claims(tmp_path).turn("name", lambda: True) as waited:
            assert waited
        (tmp_path / "name.claim").unlink()
    async with Claims(tmp_path / "nowhere").turn("name", lambda: False) as waited:
        assert not waited
    assert descriptors() == before


async def test_a_claim_that_its_holder_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    """Take the file that other processes find: a lock on a removed one excludes no process."""
    tried: list[int] = []

    def late(fd: int) -> bool:
        tried.append(fd)
        if len(tried) == 1:
            os.unlink(tmp_path / "name.claim")
        return lock(fd)

    monkeypatch.setattr("xnatfs.content.disk.claims.lock", late)
    before = descriptors()
    async with Claims(tmp_path).turn("name", lambda: False):
        assert len(tried) == 2
        async with Claims(tmp_path).turn("name", lambda: True) as waited:
            assert waited
    assert descriptors() == before
