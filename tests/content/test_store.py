"""Test the store on its own: what it reports of trouble, what it leaves to the thread, what it releases."""

import dataclasses
import errno
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from tests.content.test_index import blobs, ident, row
from tests.support import content_fakes
from xnatfs.common import locks
from xnatfs.common.errors import CacheError, Unreachable
from xnatfs.content import blob as blob_module
from xnatfs.content.blob import HOLD_BACK_BYTES as HOLD_BACK
from xnatfs.content.blob import Blob
from xnatfs.content.disk import partial as partial_module
from xnatfs.content.disk.directory import open_directory
from xnatfs.content.disk.index import BlobRow
from xnatfs.content.disk.partial import FilePlace, Partial
from xnatfs.content.disk.store import Store
from xnatfs.content.disk.trouble import QUIET_SECONDS, Trouble


@asynccontextmanager
async def opened(directory: Path, limit: int = 100) -> AsyncIterator[Store]:
    store = Store(open_directory(directory, limit))
    try:
        yield store
    finally:
        await store.close()


def descriptors() -> int:
    return len(content_fakes.descriptors())


async def kept(store: Store, number: int, size: int = 10) -> None:
    partial = store.create()
    os.write(partial.fd, bytes([number]) * size)
    await store.reserve(partial, size)
    assert await store.keep(partial, row(number, size))
    os.close(partial.fd)


def found(store: Store, number: int) -> BlobRow:
    row = store.lookup(ident(number))
    assert row is not None
    return row


def broken(*_: Any) -> Any:
    raise sqlite3.OperationalError("disk I/O error")


async def test_a_file_is_found_opened_and_counted(tmp_path):
    async with opened(tmp_path) as store:
        assert (store.limit, store.total(), store.lookup(ident(1)), store.find_rows([ident(1)])) == (100, 0, None, [])
        await kept(store, 1)
        kept_row = found(store, 1)
        assert (kept_row.key, store.total(), store.find_rows([ident(1), ident(2)])) == ("key 1", 10, [kept_row])
        fd = store.open(kept_row)
        assert fd is not None
        assert os.pread(fd, 20, 0) == b"\x01" * 10
        assert not os.get_inheritable(fd)
        await store.evict(0)
        assert store.total() == 10, "it is open"
        os.close(fd)
        await store.evict(0)
        assert (store.total(), store.open(kept_row)) == (0, None)


async def test_what_is_of_another_boot_does_not_count(tmp_path):
    async with opened(tmp_path) as store:
        index = store._directory.index
        with index.transaction():
            for number, boot in ((1, ""), (2, "another"), (3, store._directory.boot)):
                index.put(row(number, boot=boot))
        assert [store.lookup(ident(number)) is not None for number in (1, 2, 3)] == [True, False, True]
        assert [each.key for each in store.find_rows([ident(number) for number in (1, 2, 3)])] == ["key 1", "key 3"]


async def test_a_file_is_opened_by_several_at_once(tmp_path):
    """Lock it shared: only its eviction takes it alone."""
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        await kept(store, 1)
        one, two = store.open(found(store, 1)), other.open(found(other, 1))
        assert one is not None
        assert two is not None
        os.close(one)
        os.close(two)


@pytest.mark.parametrize("code", [None, sqlite3.SQLITE_BUSY])
async def test_trouble_with_a_lock_is_told_to_every_user(tmp_path, caplog, code):
    """Name the holder where it is known: even a command that logs nothing shows that."""
    error: Exception = TimeoutError("locked by process 7 (x)")
    if code is not None:
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = code
    Trouble(tmp_path).report(error)
    (record,) = caplog.records
    holder = "process 7 (x)" if code is None else "another process"
    assert record.name == locks.log.name
    assert record.getMessage() == f"cache directory {tmp_path}: locked by {holder}; files are fetched but not kept"


async def test_what_is_not_what_was_kept_is_not_opened(tmp_path):
    """Reject files of another size, written to since, behind a link, or unreadable."""
    async with opened(tmp_path) as store:
        await kept(store, 1)
        before, row_kept = descriptors(), found(store, 1)
        assert store.open(dataclasses.replace(row_kept, size=11)) is None
        assert store.open(dataclasses.replace(row_kept, written=row_kept.written + 1)) is None
        path = store._directory.path(ident(1))
        os.rename(path, tmp_path / "moved")
        os.symlink(tmp_path / "moved", path)
        assert store.open(row_kept) is None
        os.unlink(path)
        os.mkfifo(path)
        assert store.open(row_kept) is None
        os.unlink(path)
        os.rmdir(os.path.dirname(path))
        assert store.open(row_kept) is None
        os.close(os.open(os.path.dirname(path), os.O_CREAT))
        assert store.open(row_kept) is None
        assert descriptors() == before


async def test_where_there_are_no_descriptors_left_that_is_the_error(tmp_path, monkeypatch, caplog):
    def failing(number: int) -> Any:
        def fail(*_: object, **__: object) -> int:
            raise OSError(number, os.strerror(number))

        return fail

    async with opened(tmp_path) as store:
        await kept(store, 1)
        row_kept = found(store, 1)
        for number, error in ((errno.EMFILE, True), (errno.ENFILE, True), (errno.EIO, False)):
            with monkeypatch.context() as patch:
                patch.setattr(os, "open", failing(number))
                if error:
                    with pytest.raises(CacheError, match="raise the limit"):
                        store.open(row_kept)
                else:
                    assert store.open(row_kept) is None
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "No space left on device; make room there or choose another cache directory"),
        (errno.EDQUOT, "Disk quota exceeded; make room there or choose another cache directory"),
        (errno.EMFILE, "Too many open files; raise the limit (ulimit -n) or close files"),
        (errno.ENFILE, "Too many open files in system; raise the limit (ulimit -n) or close files"),
        (errno.EIO, "Input/output error; correct that or choose another cache directory"),
    ],
)
async def test_an_error_says_what_to_do_and_is_logged_once(tmp_path, caplog, number, text):
    async with opened(tmp_path) as store:
        for _ in range(2):
            error = store.error(OSError(number, os.strerror(number)))
            assert str(error) == f"cache directory {tmp_path}: {text}"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"cache directory {tmp_path}: ")
    assert record.getMessage().endswith("; files are fetched but not kept")
    assert os.strerror(number) in record.getMessage()


async def test_trouble_is_told_anew_after_a_quiet_time(tmp_path, caplog, monkeypatch):
    """Warn again only when files were cached in between: a full disk takes one file, and not the next."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    async with opened(tmp_path) as store:

        def told() -> int:
            store.error(OSError(errno.EIO, "x"))
            return len([record for record in caplog.records if record.levelno == logging.WARNING])

        assert told() == 1
        now[0] += QUIET_SECONDS + 1
        assert told() == 1, "nothing was kept"
        now[0] += QUIET_SECONDS
        await kept(store, 1)
        assert told() == 1, "it is not that long ago"
        now[0] += QUIET_SECONDS + 0.1
        await kept(store, 1)
        assert told() == 2
        now[0] += QUIET_SECONDS + 0.1
        assert await store.keep_whole([(row(2), b"2" * 10)]) == {ident(2)}
        assert told() == 3
        now[0] += QUIET_SECONDS + 0.1
        assert await store.keep_whole([(row(3, 101), b"3" * 101)]) == set()
        assert told() == 3


async def test_an_index_in_trouble_costs_the_answer_only(tmp_path, monkeypatch, caplog):
    async with opened(tmp_path) as store:
        await kept(store, 1)
        with monkeypatch.context() as patch:
            for name in ("find_rows", "total"):
                patch.setattr(store._directory.index, name, broken)
            assert (store.lookup(ident(1)), store.find_rows([ident(1)]), store.total()) == (None, [], 0)
            patch.setattr(store._directory, "evict", broken)
            await store.evict(0)
        assert store.lookup(ident(1)) is not None
    assert len(caplog.records) == 1


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR])
async def test_a_damaged_index_is_asked_no_more_and_put_aside_by_who_writes(tmp_path, monkeypatch, caplog, code):
    def damaged(*_: Any) -> Any:
        error = sqlite3.DatabaseError("malformed")
        error.sqlite_errorcode = code | 0x100
        raise error

    async with opened(tmp_path) as store:
        await kept(store, 1)
        with monkeypatch.context() as patch:
            patch.setattr(store._directory.index, "find_rows", damaged)
            assert store.lookup(ident(1)) is None
        assert (store.lookup(ident(1)), store.find_rows([ident(1)]), store.total()) == (None, [], 0)
        assert not (tmp_path / "index.sqlite.damaged").exists()
        mine = store.create()
        await store.reserve(mine, 7)
        assert (tmp_path / "index.sqlite.damaged").exists()
        assert store.total() == 7
        await kept(store, 2)
        assert found(store, 2).key == "key 2"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR])
async def test_an_index_in_passing_trouble_is_not_damaged(tmp_path, monkeypatch, code):
    def busy(*_: Any) -> Any:
        error = sqlite3.OperationalError("passing")
        error.sqlite_errorcode = code
        raise error

    async with opened(tmp_path) as store:
        await kept(store, 1)
        with monkeypatch.context() as patch:
            patch.setattr(store._directory.index, "find_rows", busy)
            assert store.lookup(ident(1)) is None
        assert store.lookup(ident(1)) is not None


async def test_an_index_that_others_removed_is_told_and_begun_empty(tmp_path, caplog):
    async with opened(tmp_path) as store:
        await kept(store, 1)
        mine = store.create()
        await store.reserve(mine, 30)
        os.unlink(tmp_path / "index.sqlite")
        await store.evict(10**9)
        assert (store.total(), store.lookup(ident(1)), blobs(store._directory)) == (0, None, [])
        assert await store.keep(mine, row(2, 0))
        assert found(store, 2).size == 0
    said = "its index was removed by others; what was kept is fetched anew"
    assert [record.getMessage() for record in caplog.records] == [f"cache directory {tmp_path}: {said}"]


async def test_now_and_then_what_the_dead_left_is_removed(tmp_path):
    async with opened(tmp_path) as store:
        mine = store.create()
        (tmp_path / "partial" / "left").touch()
        await store.flush()
        assert os.listdir(tmp_path / "partial") == [mine.name]


def unused(monkeypatch: pytest.MonkeyPatch, *folders: Path | str) -> None:
    """Let only these folders be for temporary files."""
    monkeypatch.setattr(partial_module, "TEMPORARY_FOLDERS", folders)


async def test_a_big_file_that_the_directory_refuses_is_in_another_without_a_name(tmp_path, monkeypatch):
    unused(monkeypatch, tmp_path / "missing", tmp_path)
    monkeypatch.setattr(partial_module, "MEMORY_FILE_BYTES", 10)
    async with opened(tmp_path / "cache") as store:
        before = descriptors()
        partial = store.create_elsewhere(11)
        assert (partial.place, partial.is_elsewhere, partial.reserved) == (FilePlace.TEMPORARY, True, 11)
        assert os.readlink(f"/proc/self/fd/{partial.fd}").startswith(f"{tmp_path}/")
        assert len(partial.name) == 32
        assert (os.fstat(partial.fd).st_nlink, os.get_inheritable(partial.fd)) == (0, False)
        assert [path.name for path in tmp_path.iterdir()] == ["cache"]
        await store.reserve(partial, 10**15)
        assert (store.total(), await store.keep(partial, row(1, 11))) == (0, False)
        removed: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", removed.append)  # it has no name in the directory, which may be broken
            await store.discard(partial)
        assert removed == []
        assert (descriptors(), store._partials) == (before, {})
        assert store.create_elsewhere(10).place is FilePlace.MEMORY


async def test_without_room_there_a_file_is_in_memory_as_far_as_there_is_any(tmp_path, monkeypatch):
    """Ask for twice the room, so that the disk is not full afterwards."""
    unused(monkeypatch, tmp_path)
    for name, size in (("MEMORY_FILE_BYTES", 10), ("MAX_MEMORY_BYTES", 100)):
        monkeypatch.setattr(partial_module, name, size)
    for free, place in ((60, FilePlace.MEMORY), (61, FilePlace.TEMPORARY)):
        disk = SimpleNamespace(f_bavail=free, f_frsize=2)
        monkeypatch.setattr(os, "fstatvfs", lambda _, disk=disk: disk)
        async with opened(tmp_path / "cache") as store:
            assert store.create_elsewhere(61).place is place
    monkeypatch.undo()
    monkeypatch.setattr(partial_module, "MAX_MEMORY_BYTES", 100)
    async with opened(tmp_path / "cache") as store:
        before = descriptors()
        one, other = store.create_elsewhere(60), store.create_elsewhere(0)
        assert (one.place, one.kept, one.name == other.name) == (FilePlace.MEMORY, False, False)
        assert not os.get_inheritable(one.fd)
        os.write(one.fd, b"x")
        await store.reserve(one, 60)
        await store.reserve(other, 40)
        assert (store.total(), os.listdir(tmp_path / "cache" / "partial")) == (0, [])
        with pytest.raises(CacheError, match="and none left in memory; make room in one of them"):
            await store.reserve(other, 41)
        with pytest.raises(CacheError, match=f"^cache directory {tmp_path}/cache: .* none left in memory"):
            store.create_elsewhere(1)
        assert await store.keep(one, row(1, 60)) is False
        await store.discard(one)
        third = store.create_elsewhere(60)
        for partial in (other, third):
            await store.discard(partial)
        assert (descriptors(), store._partials) == (before, {})


async def test_where_there_is_not_even_memory_that_is_the_error(tmp_path, monkeypatch):
    def none(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async with opened(tmp_path) as store:
        monkeypatch.setattr(os, "memfd_create", none)
        with pytest.raises(CacheError, match="Too many open files; raise the limit"):
            store.create_elsewhere(1)


async def test_what_is_in_a_folder_is_dropped(tmp_path):
    async with opened(tmp_path) as store:
        for number in (1, 2):
            assert await store.keep_whole([(row(number, key=f"{number}/a"), b"x" * 10)])
        await store.remove(lambda index: index.in_folders(["1"]))
        assert (store.lookup(ident(1)), found(store, 2).key) == (None, "2/a")


async def test_the_counters_count(tmp_path):
    async with opened(tmp_path) as store:
        await kept(store, 1)
        await kept(store, 2)
        await store.evict(10)
        one, _ = store.create(), store.create()
        await store.reserve(one, 30)
        assert store.counters() == {
            **{"partials": 2, "reserved": 30, "kept_bytes": 40, "limit": 100, "evicted": 1},
            **{"shared_hits": 0, "shared_poisoned": 0},
        }


async def test_what_exceeds_a_smaller_limit_goes_now_and_then(tmp_path):
    async with opened(tmp_path) as store:
        for number in (1, 2, 3):
            await kept(store, number)
    for tidy in (True, False):
        async with opened(tmp_path, 25 if tidy else 15) as store:
            if tidy:
                await store.tidy()
            else:
                await store.flush()
            assert store.total() == (20 if tidy else 10)


async def test_a_download_is_counted_as_it_grows_and_not_when_it_is_gone(tmp_path):
    async with opened(tmp_path) as store:
        before = descriptors()
        await kept(store, 1, 40)
        partial = store.create()
        for size in (30, 60):
            await store.reserve(partial, size)
            assert (partial.reserved, store.total()) == (size, 40 + size)
        await store.discard(partial)
        assert (store.total(), os.listdir(tmp_path / "partial"), descriptors()) == (40, [], before)


async def test_room_is_made_by_what_a_download_has_grown(tmp_path):
    async with opened(tmp_path) as store:
        await kept(store, 1, 40)
        partial = store.create()
        await store.reserve(partial, 60)
        await store.reserve(partial, 60)
        assert store.lookup(ident(1)) is not None
        await store.reserve(partial, 61)
        assert store.lookup(ident(1)) is None


@pytest.mark.parametrize(("size", "fits"), [(100, True), (101, False)])
async def test_a_file_above_the_limit_is_not_kept(tmp_path, size, fits):
    async with opened(tmp_path) as store:
        partial = store.create()
        os.write(partial.fd, b"x" * size)
        await store.reserve(partial, size)
        assert await store.keep(partial, row(1, size)) is fits
        assert (partial.kept, partial.reserved, partial.name in store._partials) == (
            fits,
            0 if fits else size,
            not fits,
        )
        assert await store.keep_whole([(row(2, size), b"y" * size)]) == ({ident(2)} if fits else set())
        if fits:
            os.close(partial.fd)


async def test_what_cannot_be_kept_is_the_downloads_still(tmp_path, monkeypatch):
    async with opened(tmp_path) as store:
        partial = store.create()
        with monkeypatch.context() as patch:
            patch.setattr(store._directory, "keep", broken)
            assert await store.keep(partial, row(1)) is False
            patch.setattr(store._directory, "keep_whole", broken)
            assert await store.keep_whole([(row(1), b"1" * 10)]) == set()
        assert list(store._partials.values()) == [partial]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(partial.fd)


async def test_a_download_that_somebody_else_removed_is_discarded_too(tmp_path):
    async with opened(tmp_path) as store:
        partial = store.create()
        os.unlink(tmp_path / "partial" / partial.name)
        await store.discard(partial)
        assert store._partials == {}


async def test_files_that_fit_are_kept_whole_and_others_are_not(tmp_path):
    async with opened(tmp_path) as store:
        files = [(row(1), b"1" * 10), (row(2, 101), b"2" * 101), (row(3), b"3" * 10)]
        assert await store.keep_whole(files) == {ident(1), ident(3)}
        assert await store.keep_whole([]) == set()
        await store.renew(row(1, listed=5, checked=9.0))
        assert (found(store, 1).listed, found(store, 1).checked) == (5, 9.0)


async def test_opens_are_written_with_others_and_at_the_end(tmp_path, monkeypatch):
    async with opened(tmp_path) as store:
        await kept(store, 1)
        store.touch(ident(1), 7.0)
        assert found(store, 1).used == 1.0
        await store.flush()
        assert (found(store, 1).used, found(store, 1).boot) == (7.0, "")
        monkeypatch.setattr(store._directory, "touch", broken)
        await store.flush()
        monkeypatch.undo()
        store.touch(ident(1), 8.0)
    async with opened(tmp_path) as store:
        assert found(store, 1).used == 8.0


async def test_all_new_files_are_seen_to_the_disk(tmp_path, monkeypatch):
    async with opened(tmp_path) as store:
        answers = [True, True, False]
        monkeypatch.setattr(store._directory, "sync", lambda: answers.pop(0))
        await store.flush()
        assert answers == []


async def test_tidying_goes_through_all_folders(tmp_path, monkeypatch):
    async with opened(tmp_path) as store:
        tidied: list[object] = []
        own = store.create()
        monkeypatch.setattr(store._directory, "tidy_partials", lambda names: tidied.append(names == {own.name}))
        monkeypatch.setattr(store._directory, "tidy_blobs", tidied.append)
        await store.tidy()
        assert tidied == [True, *range(256)]


async def test_who_is_cancelled_beforehand_does_nothing_and_afterwards_all(tmp_path, monkeypatch):
    async with opened(tmp_path) as store:
        done: list[int] = []
        monkeypatch.setattr(store._directory, "evict", done.append)
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.evict(1)
        assert done == []
        async with trio.open_nursery() as nursery:
            async with store._lock:
                nursery.start_soon(store.evict, 2)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert done == [2]


# -- an open file ------------------------------------------------------------------------------------------------


@pytest.fixture
def big(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve files of any size while they arrive."""
    monkeypatch.setattr(blob_module, "SMALL_FILE_BYTES", 0)


def blob(left: list[str] | None = None, *, strict: bool = False) -> Blob:
    return Blob("a key", lambda blob: None if left is None else left.append("left"), strict=strict)


class Filler:
    """Note what a blob requests of its downloads."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []
        self.wanted: list[int] = []

    def on_read(self, start: int, end: int) -> None:
        self.reads.append((start, end))

    def on_wait(self, offset: int) -> None:
        self.wanted.append(offset)


async def test_nothing_is_known_of_a_file_at_first():
    new = blob()
    assert (new.key, new.size, new.complete, new.is_served_whole, new.memory, new.failure) == (
        "a key",
        -1,
        False,
        True,
        None,
        None,
    )
    assert (new.stamp, new.filler, new.served.total) == ("", None, 0)
    assert (new.users, new.fd, new.ready.is_set(), new.waits, new.present.first_missing(0)) == (0, -1, False, [], 0)


async def test_an_open_file_says_when_the_last_reader_leaves():
    left: list[str] = []
    opened = blob(left)
    opened.users = 2
    opened.close()
    assert left == []
    opened.close()
    assert (left, opened.users) == (["left"], 0)


async def test_what_is_in_memory_is_read_from_there():
    held = blob()
    held.hold(b"0123456789")
    assert (held.size, held.complete, held.ready.is_set()) == (10, True, True)
    reads = [await held.read(*place) for place in ((0, 4), (4, 100), (10, 1), (11, 1), (3, 0))]
    assert reads == [b"0123", b"456789", b"", b"", b""]


async def test_a_failure_is_told_to_all(autojump_clock):
    failed = blob()
    failed.size = 10
    with trio.move_on_after(1) as timeout:
        await failed.read(0, 1)
    assert timeout.cancelled_caught
    assert failed.waits == []
    failed.fail(Unreachable("gone"))
    assert failed.ready.is_set()
    for place in ((0, 1), (10, 1)):
        with pytest.raises(Unreachable, match="gone"):
            await failed.read(*place)


@pytest.mark.parametrize(
    ("there", "whole", "wanted", "served"),
    [
        ((0, 1000), False, (0, 1000), True),
        ((0, 1000), False, (0, 1001), False),
        ((0, 1000), True, (0, 1), False),
        ((5000, 6000), False, (5000, 6000), True),
        ((0, 10), False, (-HOLD_BACK - 5, -HOLD_BACK), False),
    ],
)
async def test_what_is_there_is_handed_out_but_for_the_end(autojump_clock, big, tmp_path, there, whole, wanted, served):
    size = 3 * HOLD_BACK
    (tmp_path / "file").write_bytes(bytes(size))
    opened = blob(strict=whole)
    opened.size = size
    opened.fd = os.open(tmp_path / "file", os.O_RDONLY)
    opened.present.add(*there)
    start, stop = (place if place >= 0 else size + place for place in wanted)
    with trio.move_on_after(1) as timeout:
        assert await opened.read(start, stop - start) == bytes(stop - start)
    assert timeout.cancelled_caught is not served
    os.close(opened.fd)


async def test_what_no_reader_has_had_is_handed_out_last(autojump_clock, big, tmp_path):
    """Serve arrived bytes in any order except for the last part; served bytes are served again."""
    size = 3 * HOLD_BACK
    (tmp_path / "file").write_bytes(bytes(size))
    opened = blob()
    opened.size = size
    opened.fd = os.open(tmp_path / "file", os.O_RDONLY)

    async def served(start: int, stop: int) -> bool:
        with trio.move_on_after(1) as timeout:
            await opened.read(start, stop - start)
        return not timeout.cancelled_caught

    opened.present.add(size - 10, size)
    assert await served(size - 1, size)
    opened.present.add(0, size)
    assert await served(0, HOLD_BACK)
    assert await served(HOLD_BACK, 2 * HOLD_BACK - 1)
    assert not await served(2 * HOLD_BACK - 1, 2 * HOLD_BACK)
    assert not await served(2 * HOLD_BACK, size)
    assert await served(0, HOLD_BACK + 1)
    assert await served(size - 1, size)
    opened.finish()
    assert await served(2 * HOLD_BACK - 1, size)
    os.close(opened.fd)


async def test_beyond_the_end_there_is_nothing_to_wait_for():
    opened = blob()
    opened.size = 10
    for place in ((10, 5), (11, 5), (3, 0)):
        assert await opened.read(*place) == b""


async def test_of_a_file_that_is_not_longer_than_what_is_held_back_nothing_is_handed_out(autojump_clock, big):
    opened = blob()
    opened.size = HOLD_BACK
    opened.present.add(0, HOLD_BACK)
    with trio.move_on_after(1) as timeout:
        await opened.read(0, 1)
    assert timeout.cancelled_caught


async def test_a_read_of_a_complete_file_asks_nobody():
    complete = blob()
    complete.hold(b"123")
    complete.filler = noted = Filler()
    assert await complete.read(0, 3) == b"123"
    assert (noted.reads, noted.wanted) == ([], [])


async def test_an_empty_file_waits_for_its_end(autojump_clock):
    empty = blob()
    empty.size = 0
    empty.filler = noted = Filler()
    with trio.move_on_after(1) as timeout:
        await empty.read(0, 10)
    assert timeout.cancelled_caught
    assert noted.reads == [(0, 0)]
    empty.finish()
    assert await empty.read(0, 10) == b""


async def test_a_reader_says_what_it_wants_whenever_it_looks(autojump_clock):
    opened = blob()
    opened.size = 100
    opened.filler = noted = Filler()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opened.read, 7, 5)
        await trio.sleep(1)
        assert (noted.wanted, opened.waits) == ([7], [(7, 12)])
        opened.wake()
        await trio.sleep(1)
        assert noted.wanted == [7, 7]
        opened.memory = bytes(100)
        opened.finish()
    assert opened.waits == []


async def test_a_copy_that_was_cut_short_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    opened = blob()
    opened.size = 6
    opened.fd = os.open(tmp_path / "file", os.O_RDONLY)
    opened.finish()
    assert await opened.read(0, 5) == b"12345"
    with pytest.raises(CacheError, match="^a key: another program cut its cached copy short"):
        await opened.read(0, 6)
    os.close(opened.fd)


def test_a_partial_begins_with_nothing():
    partial = Partial("name", 7)
    assert (partial.reserved, partial.kept) == (0, False)


@pytest.mark.parametrize("name", ["find_rows", "total", "evict", "open"])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT])
async def test_whatever_meets_trouble_tells_it_and_knows_a_damaged_index(tmp_path, monkeypatch, caplog, name, code):
    def broken(*_: Any) -> Any:
        error = sqlite3.DatabaseError("the words of SQLite")
        error.sqlite_errorcode = code
        raise OSError(errno.EIO, "the words of SQLite") if name == "open" else error

    async with opened(tmp_path) as store:
        await kept(store, 1)
        row_kept = found(store, 1)
        with monkeypatch.context() as patch:
            if name == "open":
                patch.setattr(os, "open", broken)
                assert store.open(row_kept) is None
            elif name == "evict":
                patch.setattr(store._directory, "evict", broken)
                await store.evict(0)
            else:
                patch.setattr(store._directory.index, name, broken)
                store.lookup(ident(1)), store.find_rows([ident(1)]), store.total()
        assert store._directory.index.damaged is (code == sqlite3.SQLITE_CORRUPT and name != "open")
    (record,) = caplog.records
    assert "the words of SQLite" in record.getMessage()


async def test_a_store_that_is_closed_has_closed_its_index(tmp_path):
    async with opened(tmp_path) as store:
        pass
    with pytest.raises(sqlite3.ProgrammingError):
        store._directory.index.total()
