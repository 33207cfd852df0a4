"""Test the index and the files of a cache directory on their own: every statement, every boundary."""

import errno
import fcntl
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.content_fakes import descriptors
from xnatfs.common.errors import CacheError
from xnatfs.common.locks import lock
from xnatfs.content.disk import directory as shelf_module
from xnatfs.content.disk import files as files_module
from xnatfs.content.disk.directory import SYNC_BATCH_FILES as SYNC_BATCH
from xnatfs.content.disk.directory import CacheDirectory, open_directory
from xnatfs.content.disk.files import is_full, opened, write_all
from xnatfs.content.disk.index import PINNED_USE, SCHEMA_VERSION, BlobRow, Index, is_busy, open_index, set_aside

GIB = 2**30


def row(number: int, size: int = 10, **more: object) -> BlobRow:
    values = {
        "key": f"key {number}",
        "listed": size,
        "size": size,
        "modified": "m",
        "checked": 1.0,
        "used": float(number),
        "boot": "",
    }
    return BlobRow(ident(number), **{**values, **more})  # type: ignore[arg-type]


def ident(number: int) -> bytes:
    return bytes([number]) * 32


def get(index: Index, ident: bytes) -> Any:
    return next(iter(index.find_rows([ident])), None)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path / "index.sqlite")
    yield made
    made.close()


# -- the index ---------------------------------------------------------------------------------------------------


def test_a_row_comes_back_as_it_was_put(index):
    assert (get(index, ident(1)), index.total()) == (None, 0)
    whole = BlobRow(ident(1), "a key", 11, 12, "Mon", 13.5, 14.5, "a boot", 15)
    with index.transaction():
        index.put(whole)
        assert index.total_now() == 12
        assert (get(index, ident(1)), index.total()) == (None, 0), "others see it when it is committed"
    assert (get(index, ident(1)), index.total()) == (whole, 12)
    newer = BlobRow(ident(1), "another", None, 7, "Tue", 15.5, 16.5, "", 17)
    with index.transaction():
        index.put(newer)
    assert (get(index, ident(1)), index.total()) == (newer, 7)


def test_many_are_found_at_once(index):
    with index.transaction():
        for number in (1, 2, 3):
            index.put(row(number))
    found = index.find_rows([ident(number) for number in (3, 1, 9)])
    assert sorted(each.key for each in found) == ["key 1", "key 3"]
    assert index.find_rows([]) == []


def fails(index: Index, *statements: str) -> None:
    with index.transaction():
        index.put(row(1))
        for statement in statements:
            index._write.execute(statement)
        raise KeyError


def test_a_transaction_that_fails_leaves_nothing(index):
    """Roll back also where SQLite has done so by itself, as it does where the disk is full."""
    for statements in ((), ("ROLLBACK",)):
        with pytest.raises(KeyError):
            fails(index, *statements)
        assert (get(index, ident(1)), index.total()) == (None, 0)
    with index.transaction():
        index.put(row(2))
    assert index.total() == 10


def test_a_renewed_row_is_of_the_same_version_only(index):
    with index.transaction():
        index.put(row(1))
        index.renew(row(1, listed=5, checked=9.0))
    assert get(index, ident(1)) == row(1, listed=5, checked=9.0)
    with index.transaction():
        index.renew(row(1, listed=6, checked=10.0, modified="another"))
        index.renew(row(2))
    assert get(index, ident(1)) == row(1, listed=5, checked=9.0)
    assert get(index, ident(2)) is None


def test_dropped_rows_are_not_counted(index):
    with index.transaction():
        for number in (1, 2, 3):
            index.put(row(number, number))
        index.drop([ident(1), ident(3), ident(9)])
    assert [get(index, ident(number)) for number in (1, 3)] == [None, None]
    assert index.total() == 2


def test_the_oldest_come_first_and_in_parts(index):
    with index.transaction():
        for number in (5, 1, 4, 2, 3):
            index.put(row(number, number * 10, used=float(number // 2)))
        assert index.oldest((-1.0, b""), 3) == [(0.0, ident(1), 10), (1.0, ident(2), 20), (1.0, ident(3), 30)]
        assert index.oldest((1.0, ident(2))) == [(1.0, ident(3), 30), (2.0, ident(4), 40), (2.0, ident(5), 50)]
        index.touch({ident(1): 7.0, ident(9): 8.0})
        assert index.oldest((2.0, ident(4))) == [(2.0, ident(5), 50), (7.0, ident(1), 10)]


def test_a_download_is_counted_at_its_size(index):
    with index.transaction():
        index.reserve("a", 5)
        index.reserve("b", 7)
        index.reserve("a", 8)
        assert (index.reserved(), index.total_now()) == ({"a", "b"}, 15)
        index.release(["a", "c"])
        assert (index.reserved(), index.total_now()) == ({"b"}, 7)
    assert index.total() == 7


def test_a_shard_has_all_that_begin_with_its_byte(index):
    edges = [bytes([first]) + last * 31 for first in (1, 2, 3) for last in (b"\x00", b"\x80", b"\xff")]
    with index.transaction():
        for each in edges:
            index.put(BlobRow(each, "", 0, each[0], "", 0.0, 0.0, "", written=7))
        assert index.shard(2) == dict.fromkeys(edges[3:6], (2, 7))
        assert index.shard(4) == {}


def test_what_is_not_on_the_disk_is_told_in_parts_and_marked(index):
    with index.transaction():
        for number, boot in ((1, "now"), (2, "before"), (3, ""), (4, "now"), (5, "now")):
            index.put(row(number, boot=boot))
        assert sorted(index.unsynced("now", 10)) == [(ident(number), 1.0) for number in (1, 4, 5)]
        assert len(index.unsynced("now", 2)) == 2
        assert index.unsynced("", 10) == []
        index.put(row(4, boot="now", checked=2.0))  # replaced meanwhile
        index.synced([(ident(1), 1.0), (ident(4), 1.0)])
    assert [get(index, ident(number)).boot for number in (1, 2, 4, 5)] == ["", "before", "now", "now"]


def test_an_index_is_made_once_private_and_known_by_its_version(tmp_path):
    path = tmp_path / "index.sqlite"
    first = open_index(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with first.transaction():
        first.put(row(1))
    assert first._write.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert first._write.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert first._write.execute("PRAGMA synchronous").fetchone() == (1,)
    assert first._write.execute("PRAGMA cache_size").fetchone() == (-512,)
    second = open_index(path)
    assert get(second, ident(1)) == row(1)
    for index in (first, second):
        index.close()
        with pytest.raises(sqlite3.ProgrammingError):
            index.total()
        with pytest.raises(sqlite3.ProgrammingError):
            index.total_now()


@pytest.mark.parametrize("table", ["blobs", "total"])
def test_an_index_without_its_tables_makes_way(tmp_path, table, caplog):
    path = tmp_path / "index.sqlite"
    Index(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"DROP TABLE {table}")
    connection.close()
    with closing(open_index(path)) as new:
        assert new.total() == 0
    assert f"cache index {path} cannot be read (no such table: {table}): set aside" in caplog.text
    assert Path(f"{path}.damaged").exists()


def test_an_index_of_another_version_makes_way(tmp_path, caplog):
    path = tmp_path / "index.sqlite"
    old = Index(path)
    old._write.execute("PRAGMA user_version = 99")
    old.close()
    new = open_index(path)
    assert new.total() == 0
    new.close()
    assert f"cache index {path} cannot be read (it is of version 99, not {SCHEMA_VERSION}): set aside" in caplog.text
    assert Path(f"{path}.damaged").exists()


def test_an_index_that_is_locked_is_not_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr("xnatfs.content.disk.index.BUSY_SECONDS", 0.01)
    path = tmp_path / "index.sqlite"
    first = open_index(path)
    with first.transaction():
        second = open_index(path)
        with pytest.raises(sqlite3.OperationalError, match="locked"), second.transaction():
            pass
    second.close()
    first.close()
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as empty:
        empty.execute("PRAGMA journal_mode = WAL")
        empty.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            open_index(other)
        empty.execute("ROLLBACK")
    assert not Path(f"{other}.damaged").exists()
    assert not Path(f"{path}.damaged").exists()


@pytest.mark.parametrize(("code", "busy"), [(5, True), (517, True), (261, True), (6, False), (1, False), (None, False)])
def test_busy_is_known_by_the_code_whatever_its_extension(code, busy):
    """Take SQLITE_BUSY, BUSY_SNAPSHOT and BUSY_RECOVERY, and not LOCKED, which is of one connection."""
    error = sqlite3.OperationalError("database is locked")
    if code is not None:
        error.sqlite_errorcode = code
    assert is_busy(error) is busy


def test_nothing_is_unpinned_of_nothing(index):
    with index.transaction():
        index.put(row(1))
        index.touch({ident(1): PINNED_USE})
        assert (index.unpin([], 1.0), index.unpin([ident(2)], 1.0), index.unpin([ident(1)], 1.0)) == (0, 0, 1)


def test_what_is_set_aside_takes_no_log_with_it(tmp_path):
    path = tmp_path / "index.sqlite"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").write_text(suffix)
    for _ in range(2):
        set_aside(path)
        assert [file.name for file in tmp_path.iterdir()] == ["index.sqlite.damaged"]
        path.touch()


# -- the directory -----------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[CacheDirectory]:
    made = open_directory(tmp_path / "cache", 100)
    yield made
    made.index.close()


def kept(shelf: CacheDirectory, number: int, size: int = 10, **more: object) -> str:
    """Put a file in its place; return where."""
    name, fd = shelf.create_partial()
    write_all(fd, memoryview(bytes([number]) * size), 0)
    os.close(fd)
    assert shelf.keep(name, row(number, size, **more))
    return shelf.path(ident(number))


def written(shelf: CacheDirectory, number: int) -> int:
    return os.stat(shelf.path(ident(number))).st_mtime_ns


def blobs(shelf: CacheDirectory) -> list[int]:
    return sorted(int(path.name[:2], 16) for path in (shelf.directory / "blobs").rglob("*") if path.is_file())


def partials(shelf: CacheDirectory) -> list[str]:
    return sorted(os.listdir(shelf.directory / "partial"))


def test_a_directory_is_made_private_with_all_above_it(tmp_path):
    before = os.umask(0)
    try:
        made = open_directory(tmp_path / "a" / "b" / "cache", 100)
    finally:
        os.umask(before)
    made.index.close()
    for folder in ("", "blobs", "partial"):
        assert stat.S_IMODE((tmp_path / "a/b/cache" / folder).stat().st_mode) == 0o700
    assert partials(made) == []
    (tmp_path / "a/b/cache").chmod(0o701)
    open_directory(tmp_path / "a" / "b" / "cache", 100).index.close()
    assert stat.S_IMODE((tmp_path / "a/b/cache").stat().st_mode) == 0o700


@pytest.mark.parametrize(("free", "used", "limit"), [(10 * GIB, 0, 100), (150, 0, 75), (51, 40, 45)])
def test_a_limit_is_at_most_half_of_what_is_free_without_the_cache(tmp_path, monkeypatch, free, used, limit):
    first = open_directory(tmp_path, 100)
    if used:
        kept(first, 1, used)
    first.index.close()
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda path: type("Usage", (), {"free": free})() if path == tmp_path else None,
    )
    again = open_directory(tmp_path, 100)
    assert again.limit == limit
    again.index.close()


def test_a_directory_that_cannot_be_used_says_why(tmp_path, monkeypatch):
    def full(self: CacheDirectory) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=f"^cache directory {tmp_path}/file cannot be used: Not a directory; correct"):
        open_directory(tmp_path / "file", 100)
    monkeypatch.setattr(CacheDirectory, "create_partial", full)
    with pytest.raises(CacheError, match=f"^cache directory {tmp_path}/x cannot be used: No space left on device; "):
        open_directory(tmp_path / "x", 100)
    descriptors = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _there(fd)]
    assert not [each for each in descriptors if each.startswith(str(tmp_path / "x"))]
    monkeypatch.setattr(
        shelf_module, "open_index", lambda path, wait: (_ for _ in ()).throw(sqlite3.DatabaseError("odd"))
    )
    with pytest.raises(CacheError, match="cannot be used: odd; "):
        open_directory(tmp_path / "y", 100)


def _there(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_processes_open_a_directory_one_at_a_time(tmp_path, monkeypatch):
    def locked(path: Path, wait: float) -> Index:
        with opened(path.parent) as fd:
            assert not lock(fd, is_shared=True)
        return Index(path, wait)

    monkeypatch.setattr(shelf_module, "open_index", locked)
    open_directory(tmp_path, 100).index.close()


def test_a_download_is_private_and_locked(shelf):
    name, fd = shelf.create_partial()
    assert partials(shelf) == [name]
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert not os.get_inheritable(fd)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    with opened(shelf.partial_path(name)) as other:
        assert not lock(other)
        assert lock(other, is_shared=True)
    os.close(fd)


def test_a_download_that_was_tidied_away_at_once_is_made_again(shelf, monkeypatch):
    """Retry between its creation and its lock, or while another process has it locked."""
    real, tries = lock, []

    def late(fd: int, *, is_shared: bool) -> bool:
        tries.append(fd)
        if len(tries) == 1:
            return False
        if len(tries) == 2:
            os.unlink(os.readlink(f"/proc/self/fd/{fd}"))
        return real(fd, is_shared=is_shared)

    monkeypatch.setattr(shelf_module, "lock", late)
    name, fd = shelf.create_partial()
    assert tries == [fd] * 3  # each was closed before the next one was made
    assert (shelf.directory / "partial" / name).exists()
    assert os.fstat(fd).st_nlink == 1
    os.close(fd)


def test_a_kept_file_is_counted_and_marked_with_the_boot(shelf):
    name, fd = shelf.create_partial()
    shelf.reserve(name, 50, 50)
    assert shelf.index.total() == 50
    os.write(fd, b"x" * 50)
    os.close(fd)
    shelf.keep(name, row(1, 50))
    assert Path(shelf.path(ident(1))).read_bytes() == b"x" * 50
    assert shelf.path(ident(1)) == f"{shelf.directory}/blobs/01/{'01' * 32}"
    assert get(shelf.index, ident(1)) == row(1, 50, boot=shelf.boot, written=written(shelf, 1))
    assert (shelf.index.total(), partials(shelf)) == (50, [])
    assert stat.S_IMODE((shelf.directory / "blobs/01").stat().st_mode) == 0o700
    assert shelf.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_room_is_made_for_what_is_kept_and_no_more(shelf):
    for number in range(1, 11):
        kept(shelf, number)
    assert shelf.index.total() == 100
    kept(shelf, 11, 11)
    assert (blobs(shelf), shelf.index.total()) == ([3, 4, 5, 6, 7, 8, 9, 10, 11], 91)
    kept(shelf, 12, 9)
    assert (len(blobs(shelf)), shelf.index.total()) == (10, 100)


def test_room_is_made_for_a_download_by_what_it_has_grown(shelf):
    for number in range(1, 6):
        kept(shelf, number)
    shelf.reserve("a", 50, 50)
    assert (blobs(shelf), shelf.index.total()) == ([1, 2, 3, 4, 5], 100)
    shelf.reserve("a", 60, 10)
    assert (blobs(shelf), shelf.index.total()) == ([2, 3, 4, 5], 100)
    shelf.release("a")
    assert shelf.index.total() == 40
    shelf.reserve("b", 100, 0)
    assert shelf.index.reserved() == {"b"}
    shelf.reserve("b", 101, 1)
    assert (blobs(shelf), shelf.index.reserved()) == ([2, 3, 4, 5], set()), (
        "it will not be kept, so nothing goes for it"
    )


def test_what_was_opened_last_goes_last(shelf):
    for number in (1, 2, 3):
        kept(shelf, number, 30)
    shelf.recent[ident(1)] = 9.0
    kept(shelf, 4, 30)
    assert blobs(shelf) == [1, 3, 4]
    assert shelf.recent == {}
    assert get(shelf.index, ident(1)).used == 9.0
    shelf.recent[ident(3)] = 10.0
    shelf.touch()
    assert (shelf.recent, get(shelf.index, ident(3)).used) == ({}, 10.0)


def test_what_is_open_stays_and_the_next_one_goes(shelf):
    for number in (1, 2, 3):
        kept(shelf, number, 30)
    with opened(shelf.path(ident(1))) as fd:
        assert lock(fd, is_shared=True)
        shelf.evict(60)
        assert blobs(shelf) == [1, 3]
        shelf.evict(0)
        assert (blobs(shelf), shelf.index.total()) == ([1], 30)
    shelf.evict(30)
    assert blobs(shelf) == [1]
    shelf.evict(29)
    assert blobs(shelf) == []


def test_a_row_whose_file_is_gone_goes_too(shelf):
    for number in (1, 2):
        os.unlink(kept(shelf, number, 30))
    shelf.evict(30)
    assert (get(shelf.index, ident(1)), shelf.index.total()) == (None, 30)


def test_more_files_than_come_at_once_are_evicted(shelf):
    for number in range(1, 100):
        kept(shelf, number, 1)
    shelf.evict(1)
    assert blobs(shelf) == [99]


def test_files_are_kept_together_or_not_at_all(shelf, monkeypatch):
    assert shelf.keep_whole([(row(1), b"1" * 10), (row(2), b"2" * 10)])
    assert Path(shelf.path(ident(2))).read_bytes() == b"2" * 10
    assert get(shelf.index, ident(2)) == row(2, boot=shelf.boot, written=written(shelf, 2))
    assert stat.S_IMODE(os.stat(shelf.path(ident(1))).st_mode) == 0o600
    assert stat.S_IMODE((shelf.directory / "blobs/01").stat().st_mode) == 0o700
    real = write_all

    def full(fd: int, data: memoryview, offset: int) -> None:
        if bytes(data) == b"4" * 10:
            raise OSError(errno.EIO, "Broken")
        real(fd, data, offset)

    monkeypatch.setattr(files_module, "write_all", full)
    before = descriptors()
    with pytest.raises(OSError, match="Broken"):
        shelf.keep_whole([(row(3), b"3" * 10), (row(4), b"4" * 10), (row(5), b"5" * 10)])
    assert (blobs(shelf), shelf.index.total()) == ([1, 2], 20)
    assert descriptors() == before


def test_a_file_that_cannot_be_made_is_the_error_and_leaves_nothing(shelf, monkeypatch):
    def refuse(path: str, data: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only")

    monkeypatch.setattr(shelf_module, "write_new", refuse)
    with pytest.raises(OSError, match="Read-only"):
        shelf.keep_whole([(row(1), b"1" * 10)])
    assert (blobs(shelf), shelf.index.total()) == ([], 0)


def test_a_whole_file_takes_the_place_of_another_without_harming_who_has_it_open(shelf):
    with opened(kept(shelf, 1)) as fd:
        shelf.keep_whole([(row(1, 5), b"newer")])
        assert os.pread(fd, 20, 0) == b"\x01" * 10
    assert Path(shelf.path(ident(1))).read_bytes() == b"newer"
    assert shelf.index.total() == 5


def test_room_is_made_for_whole_files(shelf):
    for number in range(1, 10):
        kept(shelf, number, 11)
    shelf.keep_whole([(row(20, 12), b"x" * 12)])
    assert (blobs(shelf), shelf.index.total()) == ([2, 3, 4, 5, 6, 7, 8, 9, 20], 100)


def test_a_renewed_file_is_kept_as_checked_now(shelf):
    kept(shelf, 1)
    shelf.renew(row(1, listed=3, checked=5.0))
    assert get(shelf.index, ident(1)) == row(1, listed=3, checked=5.0, boot=shelf.boot, written=written(shelf, 1))


def test_new_files_are_seen_to_the_disk_in_batches(shelf, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    paths = [kept(shelf, number, 1) for number in range(1, SYNC_BATCH + 2)]
    os.unlink(paths[0])
    counts = []
    while shelf.sync():
        counts.append(len(synced))
    assert sorted(synced) == sorted(paths[1:])
    assert counts == [SYNC_BATCH - 1, SYNC_BATCH]
    assert all(get(shelf.index, ident(number)).boot == "" for number in range(1, SYNC_BATCH + 2))


def test_downloads_of_the_dead_are_removed_and_not_counted(shelf):
    (mine, fd), (dead, other) = shelf.create_partial(), shelf.create_partial()
    os.close(other)
    for name in (mine, dead, "gone"):
        shelf.reserve(name, 10, 10)
    shelf.tidy_partials({mine, dead, "gone"})
    assert sorted(shelf.index.reserved()) == sorted([mine, dead, "gone"]), "all are said to be our own"
    shelf.tidy_partials({mine})
    assert (partials(shelf), shelf.index.reserved(), shelf.index.total()) == ([mine], {mine}, 10)
    (shelf.directory / "partial" / "uncounted").touch()
    shelf.tidy_partials({mine})
    assert partials(shelf) == [mine]
    os.close(fd)


def test_a_download_that_somebody_else_removes_meanwhile_is_no_matter(shelf, monkeypatch):
    """Ignore a file that two processes tidy up at once."""
    (shelf.directory / "partial" / "left").touch()
    real = os.listdir

    def others(path: Path) -> list[str]:
        return [*real(path), "removed by others"]

    monkeypatch.setattr(os, "listdir", others)
    shelf.tidy_partials(set())
    monkeypatch.undo()
    assert partials(shelf) == []


def test_files_without_rows_and_rows_without_files_are_removed(shelf):
    kept(shelf, 1)
    os.unlink(kept(shelf, 2))
    stray = Path(shelf.path(ident(1))).with_name("01" + "ff" * 31)
    stray.touch()
    shelf.tidy_blobs(1)
    shelf.tidy_blobs(2)
    shelf.tidy_blobs(3)
    assert not stray.exists()
    assert (blobs(shelf), get(shelf.index, ident(2)), shelf.index.total()) == ([1], None, 10)
    (shelf.directory / "blobs/02").rmdir()
    kept_again = row(2, boot="x")
    with shelf.index.transaction():
        shelf.index.put(kept_again)
    shelf.tidy_blobs(2)
    assert get(shelf.index, ident(2)) is None


def test_what_the_kernel_takes_in_parts_is_written_whole(tmp_path, monkeypatch):
    calls = []

    def little(fd: int, data: memoryview, offset: int) -> int:
        calls.append((bytes(data), offset))
        return min(3, len(data))

    monkeypatch.setattr(os, "pwrite", little)
    write_all(7, memoryview(b"12345678"), 100)
    assert calls == [(b"12345678", 100), (b"45678", 103), (b"78", 106)]


def test_a_lock_that_another_has_is_not_waited_for(tmp_path):
    (tmp_path / "file").touch()
    with opened(tmp_path / "file") as one, opened(tmp_path / "file") as other:
        assert not os.get_inheritable(one)
        assert lock(one, is_shared=True)
        assert lock(other, is_shared=True)
        assert not lock(other)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(one)


def test_an_unknown_boot_is_no_boot(monkeypatch):
    monkeypatch.setattr(shelf_module, "Path", lambda path: Path("/nonexistent"))
    one, other = shelf_module._boot_id(), shelf_module._boot_id()
    assert len(one) == len(other) == 32
    assert one != other


# -- folders, and what other processes do to a file ---------------------------------------------------------------


def test_what_is_in_a_folder_is_found_and_dropped(shelf):
    for number, key in ((1, "1/a"), (2, "1/b/c"), (3, "11/1/a"), (4, "1"), (5, "2/1")):
        kept(shelf, number, key=key)
    os.unlink(shelf.path(ident(2)))
    with shelf.index.transaction():
        assert sorted(shelf.index.in_folders(["1", "3"])) == [ident(1), ident(2), ident(4)]
        assert shelf.index.in_folders(["", "a"]) == []
        assert shelf.index.in_folders(["11"]) == [ident(3)]
    with opened(shelf.path(ident(1))) as fd:
        assert lock(fd, is_shared=True)
        shelf.remove(lambda index: index.in_folders(["1", "3"]))
        assert os.pread(fd, 20, 0) == b"\x01" * 10
    assert (blobs(shelf), shelf.index.total()) == ([3, 5], 20)


def test_a_row_is_stamped_by_its_date_or_by_when_it_was_checked():
    assert (row(1).stamp, row(1, modified="", checked=2.5).stamp) == ("m", "2.5")


def test_a_file_that_was_changed_in_its_place_is_nobodys(shelf):
    os.utime(kept(shelf, 1), ns=(5, 5))
    kept(shelf, 2)
    for number in (1, 2):
        shelf.tidy_blobs(number)
    assert (blobs(shelf), get(shelf.index, ident(1)), shelf.index.total()) == ([2], None, 10)


def test_evicted_files_are_counted(shelf):
    for number in (1, 2, 3):
        kept(shelf, number)
    os.unlink(shelf.path(ident(1)))
    shelf.evict(10)
    assert shelf.evicted == 1


def test_where_the_disk_is_full_other_files_make_way_once(shelf, monkeypatch):
    monkeypatch.setattr(shelf_module, "SPARE_BYTES", 15)
    for number in (1, 2, 3):
        kept(shelf, number)
    real, times = write_all, [1]

    def full(fd: int, data: memoryview, offset: int) -> None:
        if times[0]:
            times[0] -= 1
            raise OSError(errno.ENOSPC, "No space")
        real(fd, data, offset)

    monkeypatch.setattr(files_module, "write_all", full)
    assert shelf.keep_whole([(row(4), b"4" * 10)])
    assert (blobs(shelf), shelf.index.total()) == ([3, 4], 20)
    times[0] = 1
    assert shelf.keep_whole([(row(5, 20), b"5" * 20)])
    assert blobs(shelf) == [5], "as much as it takes, where that is more"
    times[0] = 2
    with pytest.raises(OSError, match="No space"):
        shelf.keep_whole([(row(6), b"6" * 10)])
    monkeypatch.setattr(files_module, "write_all", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Broken")))
    kept_before = blobs(shelf)
    with pytest.raises(OSError, match="Broken"):
        shelf.keep_whole([(row(6), b"6" * 10)])
    assert blobs(shelf) == kept_before


def test_what_is_full_is_known_by_its_number():
    assert [is_full(OSError(number, "")) for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO)] == [
        True,
        True,
        False,
    ]
    for code, full in ((sqlite3.SQLITE_FULL, True), (sqlite3.SQLITE_FULL | 0x100, True), (sqlite3.SQLITE_IOERR, False)):
        error = sqlite3.OperationalError("x")
        error.sqlite_errorcode = code
        assert is_full(error) is full
    assert not is_full(ValueError())


def test_an_index_knows_whether_it_is_the_one_that_others_find(shelf, tmp_path):
    path = shelf.directory / "index.sqlite"
    assert shelf.index.is_in_place()
    assert shelf.reopen_if_lost() is False
    path.rename(tmp_path / "away")
    assert not shelf.index.is_in_place()
    path.write_bytes(b"")
    assert not shelf.index.is_in_place()
    path.unlink()
    (tmp_path / "away").rename(path)
    assert shelf.index.is_in_place()


@pytest.mark.parametrize("how", ["removed", "damaged", "all removed"])
def test_an_index_that_is_gone_or_damaged_is_begun_anew(shelf, how):
    kept(shelf, 1)
    before = shelf.index
    if how == "damaged":
        shelf.index.damaged = True
    elif how == "removed":
        os.unlink(shelf.directory / "index.sqlite")
    else:
        shutil.rmtree(shelf.directory)
    assert shelf.reopen_if_lost() is True
    assert shelf.index is not before
    assert shelf.index.is_in_place()
    assert shelf.reopen_if_lost() is False
    assert Path(f"{shelf.directory}/index.sqlite.damaged").exists() is (how == "damaged")
    assert (shelf.index.total(), shelf.index.reserved(), blobs(shelf)) == (0, set(), [])
    before.close()
    assert stat.S_IMODE(shelf.directory.stat().st_mode) == 0o700


def test_what_was_removed_below_it_is_made_again(shelf):
    shutil.rmtree(shelf.directory / "partial")
    shutil.rmtree(shelf.directory / "blobs")
    kept(shelf, 1)
    shutil.rmtree(shelf.directory / "blobs")
    assert shelf.keep_whole([(row(2), b"2" * 10)])
    assert blobs(shelf) == [2]
    for folder in ("partial", "blobs", "blobs/02"):
        assert stat.S_IMODE((shelf.directory / folder).stat().st_mode) == 0o700


def test_a_directory_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(CacheError, match="belongs to another user|Operation not permitted"):
        open_directory(tmp_path / "cache", 100)


def test_an_index_is_closed_with_the_directory_locked(shelf, monkeypatch):
    seen: list[bool] = []

    def close() -> None:
        with opened(shelf.directory) as fd:
            seen.append(lock(fd, is_shared=True))

    with monkeypatch.context() as patch:
        patch.setattr(shelf.index, "close", close)
        shelf.close()
        assert seen == [False]
        patch.setattr(shelf, "directory", shelf.directory / "gone")
        patch.setattr(shelf.index, "close", lambda: seen.append(True))
        shelf.close()
        assert seen == [False, True]


def test_a_log_of_an_index_that_is_gone_is_gone_too(tmp_path):
    path = tmp_path / "index.sqlite"
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").write_text("of another")
    made = open_index(path)
    assert made.total() == 0
    assert Path(f"{path}-wal").read_bytes() != b"of another"
    made.close()


def open_below(directory: Path) -> list[str]:
    found = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _there(fd)]
    return [name for name in found if name.startswith(str(directory))]


def test_an_index_that_cannot_be_opened_leaves_nothing_open(tmp_path, caplog):
    path = tmp_path / "index.sqlite"
    Index(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE blobs")
    connection.close()
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        Index(path)
    assert open_below(tmp_path) == []
    path.write_bytes(b"this is not SQLite " * 1000)
    with pytest.raises(sqlite3.DatabaseError, match="file is not a database"):
        Index(path)
    assert open_below(tmp_path) == []


def test_an_index_that_is_not_ours_to_use_makes_way(tmp_path, monkeypatch, caplog):
    path = tmp_path / "index.sqlite"
    Index(path).close()
    for allowed in (os.R_OK, os.W_OK):
        monkeypatch.setattr(os, "access", lambda path, mode, allowed=allowed: mode & ~allowed == 0)
        caplog.clear()
        open_index(path).close()
        assert "cannot be read (no permission): set aside" in caplog.text


def test_an_index_is_not_opened_but_by_sqlite(tmp_path, monkeypatch):
    """Open the index through SQLite only: closing another descriptor of it would drop SQLite's locks."""
    first = Index(tmp_path / "index.sqlite")
    opened_here: list[int] = []
    real = os.open

    def spy(path: str, flags: int, *mode: int) -> int:
        opened_here.append(real(path, flags, *mode))
        return opened_here[-1]

    monkeypatch.setattr(os, "open", spy)
    second = Index(tmp_path / "index.sqlite")
    assert opened_here == []
    for index in (first, second):
        for connection in (index._read, index._write):
            assert connection.isolation_level is None
            waits = 50 if connection is index._read else 20_000  # that one is asked on the event loop
            assert connection.execute("PRAGMA busy_timeout").fetchone() == (waits,)
        index.close()


def test_a_directory_has_what_it_needs_and_no_more(tmp_path):
    before = len(descriptors())
    made = open_directory(tmp_path / "cache", 100)
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names - {"index.sqlite-wal", "index.sqlite-shm"} == {"blobs", "partial", "index.sqlite"}
    made.close()
    assert len(descriptors()) == before


def test_the_first_of_all_goes_too_and_a_byte_too_many_is_too_many(shelf):
    kept(shelf, 1, used=0.5)
    kept(shelf, 2)
    with opened(shelf.path(ident(2))) as fd:
        assert lock(fd, is_shared=True)
        shelf.evict(9)
        assert (blobs(shelf), shelf.evicted) == ([2], 1)
    shelf.evict(9)
    assert (blobs(shelf), shelf.evicted) == ([], 2)


def test_a_link_in_the_place_of_a_file_is_not_the_file(shelf, tmp_path):
    path = Path(kept(shelf, 1))
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    shelf.tidy_blobs(1)
    assert (get(shelf.index, ident(1)), os.path.lexists(path)) == (None, False)
    assert (tmp_path / "moved").exists()
