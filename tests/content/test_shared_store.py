"""Test the store that machines share, as caches use it: claims, entries that fail, and what crashes left."""

import errno
import operator
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.content_fakes import BIG as LONG
from tests.support.content_fakes import SMALL, FakeSource, read_all, until, version
from xnatfs.content import Version, open_cache
from xnatfs.content.disk import shared_store
from xnatfs.content.disk.shared_store import SharedFile, SharedStore


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    made = tmp_path / "shared"
    made.mkdir()
    return made


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
    monkeypatch.setattr(shared_store, "DISK_CALL_SECONDS", 0.2)
    files = [SMALL[:size] for size in (100_000, 200_000, 300_000)]
    for data in files:
        (tmp_path / f"{version(data).digest}-{len(data)}").write_bytes(data)
    requested = []
    async with open_cache(tmp_path / "cache", 10**9, shared=tmp_path) as cache:
        for data in files:
            if data is files[-1]:
                monkeypatch.setattr(shared_store, "DISK_CALL_SECONDS", 60.0)
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


@pytest.mark.parametrize(("mode", "entry_mode"), [(0o700, 0o400), (0o710, 0o440), (0o711, 0o444), (0o777, 0o444)])
async def test_an_entry_can_be_read_where_its_directory_can_be_entered(shared, tmp_path, mode, entry_mode):
    """Name it by digest and length, and leave nothing beside it."""
    shared.chmod(mode)
    async with open_cache(tmp_path / "cache", 10**9, shared=shared) as cache:
        await cache.put(version(SMALL), SMALL)
        assert await read_all(cache, version(LONG), FakeSource(LONG)) == LONG
    assert {path.name: path.read_bytes() for path in shared.iterdir()} == {
        f"{version(data).digest}-{len(data)}": data for data in (SMALL, LONG)
    }
    assert {path.stat().st_mode & 0o777 for path in shared.iterdir()} == {entry_mode}


async def test_another_machine_needs_no_request_and_counts_what_it_copies(shared, tmp_path):
    other = version(b"other", "34/c")
    async with open_cache(tmp_path / "one", 10**9, shared=shared) as cache:
        await cache.put(version(SMALL), SMALL)
        await cache.put(version(LONG, "34/b"), LONG)
    async with open_cache(tmp_path / "two", 10**9, shared=shared) as cache:
        wanted = [version(SMALL), version(LONG, "34/b"), other]
        assert await cache.find_cached(wanted) == set()
        assert await cache.find_available(wanted) == set(wanted[:2])
        for each, data in zip(wanted, (SMALL, LONG), strict=False):
            source = FakeSource(data)
            assert await read_all(cache, each, source) == data
            assert source.starts == []
        assert await cache.find_available(wanted) == await cache.find_cached(wanted) == set(wanted[:2])
        assert (cache.counters()["shared_hits"], cache.counters()["shared_poisoned"]) == (2, 0)
    async with open_cache(tmp_path / "three", 10**9) as cache:
        assert await cache.find_available(wanted) == set()


async def test_many_names_are_looked_up_in_parts(shared, monkeypatch):
    monkeypatch.setattr(shared_store, "NAMES_PER_CALL", 2)
    files = [SMALL[:size] for size in range(1, 6)]
    for data in files[1:]:
        (shared / f"{version(data).digest}-{len(data)}").write_bytes(data)
    found = await SharedStore(shared).find([version(data) for data in files])
    assert found == {version(data) for data in files[1:]}


@pytest.mark.parametrize("content", [SMALL[:-1] + b"?", SMALL[:-1], SMALL + b"?"])
async def test_an_entry_of_other_content_is_removed_and_replaced(shared, tmp_path, content, caplog):
    """Count it, and say which it was."""
    entry = shared / f"{version(SMALL).digest}-{len(SMALL)}"
    entry.write_bytes(content)
    async with open_cache(tmp_path / "cache", 10**9, shared=shared) as cache:
        source = FakeSource(SMALL)
        assert await read_all(cache, version(SMALL), source) == SMALL
        assert (source.starts, cache.counters()["shared_hits"]) == ([0], 0)
        assert cache.counters()["shared_poisoned"] >= 1
    assert f"the content of {entry} does not match its name" in caplog.text
    assert entry.read_bytes() == SMALL


async def test_what_neither_digest_nor_length_identifies_is_not_shared(shared, tmp_path):
    """Keep files without a digest, or of a length that the listing does not state, to this machine."""
    async with open_cache(tmp_path / "cache", 10**9, shared=shared) as cache:
        for wanted in (Version("34/a", len(SMALL), ""), Version("34/b", None, version(SMALL).digest)):
            assert await read_all(cache, wanted, FakeSource(SMALL)) == SMALL
    assert list(shared.iterdir()) == []


async def test_a_file_that_another_machine_fetches_is_waited_for_a_while(shared, monkeypatch):
    """Wait until its entry is there, or for FILE_WAIT_SECONDS."""
    one, other = SharedStore(shared), SharedStore(shared)
    async with one.file_turn(version(SMALL)) as waited:
        assert not waited
        monkeypatch.setattr(shared_store, "FILE_WAIT_SECONDS", 0.1)
        began = trio.current_time()
        async with other.file_turn(version(SMALL)) as waited:
            assert waited
        assert trio.current_time() - began >= 0.1
        (shared / f"{version(SMALL).digest}-{len(SMALL)}").write_bytes(SMALL)
        monkeypatch.setattr(shared_store, "FILE_WAIT_SECONDS", 3600.0)
        async with other.file_turn(version(SMALL)) as waited:
            assert waited
    assert [path.name for path in shared.iterdir() if path.suffix == ".claim"] == []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Record the calls of the disk."""
    made: list[object] = []
    in_thread = SharedStore._in_thread

    async def record(store: SharedStore, work: Callable[..., object], *args: object) -> object:
        made.append(work)
        return await in_thread(store, work, *args)

    monkeypatch.setattr(SharedStore, "_in_thread", record)
    return made


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let the disk open nothing before the event is set."""
    event = threading.Event()
    monkeypatch.setattr(SharedStore, "_open", lambda *_: event.wait(60) and None)
    yield event
    event.set()


def entry_of(directory: Path, data: bytes) -> Path:
    return directory / f"{version(data).digest}-{len(data)}"


async def test_names_are_looked_up_and_leftovers_searched_in_as_few_calls_as_can_be(shared, calls, monkeypatch):
    monkeypatch.setattr(shared_store, "NAMES_PER_CALL", 2)
    store = SharedStore(shared)
    await store.find([version(SMALL)] * 5)
    assert len(calls) == 3
    calls.clear()
    for number in range(5):
        (shared / str(number)).touch()
    await store.tidy()
    assert len(calls) == 3


async def test_leftovers_are_searched_for_once_an_hour(shared, mock_clock):
    store, leftover, removed = SharedStore(shared), shared / "tar.claim", []
    for seconds in (0.0, shared_store.TIDY_SECONDS - 1, 1.0):
        mock_clock.jump(seconds)
        leftover.touch()
        os.utime(leftover, (0, 0))
        await store.tidy()
        removed.append(not leftover.exists())
    assert removed == [True, False, True]


async def test_the_age_of_a_leftover_is_its_own_and_one_that_stays_hides_no_other(shared, monkeypatch, caplog):
    """Take a link by its own time, and a directory for one that cannot be removed."""
    now = float(int(time.time()))
    monkeypatch.setattr(time, "time", lambda: now)
    (shared / "new").touch()
    (shared / "link.claim").symlink_to("new")
    (shared / "directory.claim").mkdir()
    (shared / "young.claim").touch()
    os.utime(shared / "young.claim", (now - shared_store.LEFTOVER_SECONDS,) * 2)
    os.utime(shared / "directory.claim", (0, 0))
    os.utime(shared / "link.claim", (0, 0), follow_symlinks=False)
    await SharedStore(shared).tidy()
    assert sorted(os.listdir(shared)) == ["directory.claim", "new", "young.claim"]
    async with SharedStore(shared).turn("young", lambda: _yes()) as waited:
        assert waited  # a claim of exactly that age, too
    assert (shared / "young.claim").exists()
    assert caplog.records == []


async def _yes() -> bool:
    return True


async def test_a_directory_that_cannot_be_listed_is_not_searched(shared, monkeypatch, caplog):
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "refused", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    await SharedStore(shared).tidy()
    assert caplog.records == []


async def test_a_claim_is_looked_at_in_intervals_and_one_that_was_removed_is_no_trouble(shared, caplog):
    looks = []

    async def is_over() -> bool:
        looks.append(trio.current_time())
        return len(looks) == 4

    async with SharedStore(shared).turn("tar", is_over), SharedStore(shared).turn("tar", is_over):
        assert (shared / "tar.claim").stat().st_mode & 0o777 == 0o600
        (shared / "tar.claim").unlink()
    assert looks[-1] - looks[0] >= 3 * shared_store.MACHINE_POLL_SECONDS
    assert caplog.records == []


async def test_each_file_has_a_claim_of_its_own(shared):
    store = SharedStore(shared)
    async with store.file_turn(version(SMALL)), store.file_turn(version(LONG)) as waited:
        assert not waited


async def test_no_time_to_wait_is_no_wait(shared, monkeypatch):
    clock = MockClock()  # it stands still
    monkeypatch.setattr(shared_store, "FILE_WAIT_SECONDS", 0.0)

    async def wait() -> bool:
        store = SharedStore(shared)
        async with store.file_turn(version(SMALL)), store.file_turn(version(SMALL)) as waited:
            return waited

    assert await trio.to_thread.run_sync(lambda: trio.run(wait, clock=clock))


def test_an_entry_is_closed_with_its_last_reference(shared):
    fd = os.open(shared, os.O_RDONLY)
    entry = SharedFile(shared, fd)
    os.fstat(fd)
    del entry
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("source", ["bytes", "descriptor"])
async def test_an_empty_file_is_shared(shared, tmp_path, source):
    empty, store = version(b""), SharedStore(shared)
    (tmp_path / "empty").touch()
    fd = os.open(tmp_path / "empty", os.O_RDWR)
    await store.put(empty, b"" if source == "bytes" else fd)
    entry = await store.open(empty)
    assert entry is not None
    assert await store.copy(entry, empty, fd)
    os.close(fd)
    assert (store.hits, (tmp_path / "empty").stat().st_size) == (1, 0)


async def test_of_an_entry_that_grows_its_own_bytes_are_copied(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_store, "COPY_PIECE_BYTES", len(SMALL) // 2 + 1)
    store = SharedStore(shared)
    entry_of(shared, SMALL).write_bytes(SMALL)
    entry = await store.open(version(SMALL))
    assert entry is not None
    entry_of(shared, SMALL).write_bytes(SMALL + b"more")
    (tmp_path / "target").touch()
    fd = os.open(tmp_path / "target", os.O_RDWR)
    assert await store.copy(entry, version(SMALL), fd)
    os.close(fd)
    assert (tmp_path / "target").read_bytes() == SMALL


@pytest.mark.parametrize("kind", ["a link", "a queue", "a directory"])
async def test_what_is_no_file_is_no_entry(shared, tmp_path, caplog, kind):
    path, store = entry_of(shared, SMALL), SharedStore(shared)
    if kind == "a link":
        (tmp_path / "data").write_bytes(SMALL)
        path.symlink_to(tmp_path / "data")
    elif kind == "a queue":
        os.mkfifo(path)
    else:
        path.mkdir()
    for _ in range(2):
        assert await store.open(version(SMALL)) is None
    times = {"a link": 0, "a queue": 1, "a directory": 2}[kind]  # a link is refused, a directory cannot be removed
    assert store.poisoned == times
    assert len(caplog.records) == max(times, 1)


async def test_names_that_identify_no_file_are_not_looked_for(shared):
    store = SharedStore(shared)
    (shared / f"-{len(SMALL)}").write_bytes(SMALL)
    assert await store.open(Version("34/a", len(SMALL), "")) is None
    assert await store.find([Version("34/a", len(SMALL), "")]) == set()


async def test_a_missing_directory_is_reported_once_and_a_missing_entry_is_not(shared, tmp_path, caplog):
    assert await SharedStore(shared).open(version(SMALL)) is None
    assert caplog.records == []
    store = SharedStore(tmp_path / "none")
    for _ in range(2):
        assert await store.open(version(SMALL)) is None
    (record,) = caplog.records
    path = entry_of(tmp_path / "none", SMALL)
    assert record.getMessage().endswith(f"No such file or directory: {path}; files come from the server")


async def test_what_cannot_be_written_leaves_nothing_and_is_unreadable_until_then(shared, monkeypatch, caplog):
    modes = []

    def refuse(fd: int, *_: object) -> None:
        modes.append(os.fstat(fd).st_mode & 0o777)
        for path in shared.iterdir():
            path.unlink()  # as a machine that takes it for a leftover
        raise OSError(errno.ENOSPC, "it is full")

    monkeypatch.setattr(shared_store, "write_all", refuse)
    await SharedStore(shared).put(version(SMALL), SMALL)
    assert (modes, os.listdir(shared)) == ([0o600], [])
    assert "it is full" in caplog.text
    monkeypatch.setattr(shared_store, "write_all", lambda *_: os.close(-1))
    await SharedStore(shared).put(version(SMALL), SMALL)
    assert os.listdir(shared) == []


async def test_an_entry_is_closed_before_it_has_its_name(shared, monkeypatch):
    """Look at what is open when it is renamed: NFS sends what is written when a file is closed."""
    found: list[str] = []
    rename = os.rename

    def look(source: Path, target: Path) -> None:
        found.extend(os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
        assert str(source) not in found
        rename(source, target)

    monkeypatch.setattr(os, "rename", look)
    await SharedStore(shared).put(version(SMALL), SMALL)
    assert found
    assert entry_of(shared, SMALL).exists()


async def test_so_many_calls_run_at_a_time(shared, monkeypatch, answers, nursery):
    monkeypatch.setattr(shared_store, "PARALLEL_CALLS", 2)
    store = SharedStore(shared)
    for _ in range(3):
        nursery.start_soon(store.open, version(SMALL))
    await until(lambda: len(store._calls) == 2)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert len(store._calls) == 2
    answers.set()
    await until(lambda: not store._calls)
    assert await store.open(version(SMALL)) is None


async def test_no_call_is_made_while_one_has_taken_half_of_the_longest_wait(shared, monkeypatch, answers, nursery):
    now, store = 100.0, SharedStore(shared)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    nursery.start_soon(store.open, version(SMALL))
    await until(lambda: len(store._calls) == 1)
    now += shared_store.DISK_CALL_SECONDS / 2
    nursery.start_soon(store.open, version(SMALL))
    await until(lambda: len(store._calls) == 2)
    now += 0.1
    assert await store.open(version(SMALL)) is None
    assert len(store._calls) == 2
    answers.set()
    await until(lambda: not store._calls)
