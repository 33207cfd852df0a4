"""Test the arriving bytes of a file, and files that wait to be written, against a store that only records calls."""

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.content_fakes import descriptors, md5
from xnatfs.common.errors import BadReply, CacheError, CacheFull
from xnatfs.content import blob as blob_module
from xnatfs.content import writer as writer_module
from xnatfs.content.blob import SMALL_FILE_BYTES as SMALL
from xnatfs.content.blob import Blob
from xnatfs.content.disk.claims import Claims
from xnatfs.content.disk.directory import SPARE_BYTES
from xnatfs.content.disk.index import BlobRow
from xnatfs.content.disk.partial import FilePlace, Partial
from xnatfs.content.entry import Entry
from xnatfs.content.source import Version, identity
from xnatfs.content.stats import CacheStats
from xnatfs.content.write_behind import (
    BATCH_FILES,
    GATHER_SECONDS,
    MAX_RETAINED_BYTES,
    MAX_UNWRITTEN_BYTES,
    WriteBehind,
)
from xnatfs.content.writer import HASH_LAG_BYTES, HASH_PIECE_BYTES, Backing, Writer

TOTAL = 1000 * SPARE_BYTES


class Store:
    """A store that records its calls, and evicts a byte each time."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "file"
        self.reserved: list[int] = []
        self.evicted: list[int] = []
        self.written: list[list[tuple[BlobRow, bytes]]] = []
        self.refuse: set[bytes] = set()
        self.discarded: list[str] = []
        self.told: list[OSError] = []
        self.limit = 10**9
        self.claims = Claims(directory)

    def create(self) -> Partial:
        return Partial("file", os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))

    def create_elsewhere(self, size: int) -> Partial:
        return Partial("elsewhere", os.memfd_create("x"), size, place=FilePlace.MEMORY)

    async def discard(self, partial: Partial) -> None:
        self.discarded.append(partial.name)
        os.close(partial.fd)

    async def reserve(self, partial: Partial, size: int) -> None:
        partial.reserved = size
        self.reserved.append(size)

    def total(self) -> int:
        return TOTAL - len(self.evicted)

    async def evict(self, target: int) -> None:
        self.evicted.append(target)

    def error(self, exc: OSError) -> CacheError:
        self.told.append(exc)
        return CacheError(f"of the store: {exc.strerror}")

    async def keep_whole(self, files: Iterable[tuple[BlobRow, bytes]]) -> set[bytes]:
        await trio.sleep(0.01)
        self.written.append(list(files))
        return {row.ident for row, _ in files} - self.refuse


class Waiting:
    """Record the offsets that readers wait for."""

    def __init__(self, wanted: list[int]) -> None:
        self.on_wait = wanted.append

    def on_read(self, start: int, end: int) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


async def begun(store: Store, nursery: Any, size: int, digest: str = "") -> tuple[Blob, Writer, CacheStats]:
    blob, stats = Blob("k", lambda blob: None), CacheStats()
    blob.size = size
    writer = Writer(blob, Version("k", size, digest), Backing(store, stats, nursery))  # type: ignore[arg-type]
    await writer.begin(size)
    assert writer.partial is not None
    assert blob.fd == writer.partial.fd
    return blob, writer, stats


# -- bytes that come ---------------------------------------------------------------------------------------------


async def test_what_is_missing_is_written_and_what_is_there_is_not(store):
    async with trio.open_nursery() as nursery:
        blob, writer, stats = await begun(store, nursery, 10)
        await writer.put(2, b"cde")
        await writer.put(0, b"ABCDEFG")
        assert os.pread(blob.fd, 20, 0) == b"ABcdeFG"
        assert stats.fetched == 10
        assert (blob.present.first_missing(0), store.reserved) == (7, [])
        writer.note_written(7, 2)
        assert (stats.fetched, blob.present.first_missing(0)) == (12, 9)
        os.close(blob.fd)


async def test_what_is_there_is_not_written_again_wherever_bytes_come(store, monkeypatch):
    placed: list[tuple[int, bytes]] = []

    def write(fd: int, data: memoryview, offset: int) -> None:
        placed.append((offset, bytes(data)))
        os.pwrite(fd, data, offset)

    monkeypatch.setattr(writer_module, "write_all", write)
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, 20)
        await writer.put(6, b"gh")
        await writer.put(12, b"m")
        await writer.put(4, b"EFGHIJKLMN")
        assert placed == [(6, b"gh"), (12, b"m"), (4, b"EF"), (8, b"IJKL"), (13, b"N")]
        assert os.pread(blob.fd, 20, 4) == b"EFghIJKLmN"
        os.close(blob.fd)


async def test_readers_look_again_whenever_something_came(store):
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, 10)
        wanted: list[int] = []
        blob.filler = Waiting(wanted)
        nursery.start_soon(blob.read, 9, 1)
        await trio.testing.wait_all_tasks_blocked()
        await writer.put(0, b"x")
        await trio.testing.wait_all_tasks_blocked()
        writer.note_written(1, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert wanted == [9, 9, 9]
        nursery.cancel_scope.cancel()
    os.close(blob.fd)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
async def test_the_digest_is_of_all_whatever_came_first(store, order):
    pieces = [b"first", b"second", b"last"]
    whole = b"".join(pieces)
    async with trio.open_nursery() as nursery:
        for digest in (md5(whole), md5(b"another")):
            store.path.unlink(missing_ok=True)
            blob, writer, _ = await begun(store, nursery, len(whole), digest)
            for number in order:
                await writer.put(len(b"".join(pieces[:number])), pieces[number])
            if digest == md5(whole):
                await writer.verify()
            else:
                with pytest.raises(BadReply, match=rf"^k: its MD5 is {md5(whole)}, the catalogue says {digest};"):
                    await writer.verify()
            os.close(blob.fd)


async def test_without_a_digest_all_is_well(store):
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, 4)
        await writer.put(0, b"1234")
        await writer.verify()
        os.close(blob.fd)


@pytest.mark.parametrize(("left", "in_a_thread"), [(HASH_PIECE_BYTES, False), (HASH_PIECE_BYTES + 1, True)])
async def test_much_is_read_back_in_a_thread(store, monkeypatch, left, in_a_thread):
    ran: list[object] = []
    real: Any = trio.to_thread.run_sync

    async def run_sync(*args: object) -> None:
        ran.append(args)
        await real(*args)

    data = bytes(left)
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, len(data), md5(data))
        await writer.put(1, data[1:])
        await writer.put(0, data[:1])
        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
        await writer.verify()
        monkeypatch.undo()
        assert bool(ran) is in_a_thread
        os.close(blob.fd)


async def test_a_large_file_is_hashed_by_a_thread_that_follows(store):
    """Hash before the file is complete; `verify` waits for what is not far behind."""
    data = os.urandom(SMALL + HASH_LAG_BYTES)
    before = descriptors()
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, len(data), hashlib.md5(data).hexdigest())
        await writer.put(0, data[: HASH_LAG_BYTES - 1])
        await trio.testing.wait_all_tasks_blocked()
        assert (writer._hashed, writer._following) == (0, None)
        await writer.put(HASH_LAG_BYTES - 1, data[HASH_LAG_BYTES - 1 : HASH_LAG_BYTES])
        back = writer._following
        assert back is not None
        await writer.put(HASH_LAG_BYTES, data[HASH_LAG_BYTES : 2 * HASH_LAG_BYTES])
        await back.wait()
        assert (writer._hashed, writer._following) == (2 * HASH_LAG_BYTES, None)
        await writer.put(2 * HASH_LAG_BYTES, data[2 * HASH_LAG_BYTES : -1])
        assert writer._following is None, "less than that is not far behind"
        await writer.put(len(data) - 1, data[-1:])
        back = writer._following
        assert back is not None
        await back.wait()
        assert writer._hashed == len(data)
        await writer.verify()
        os.close(blob.fd)
    assert descriptors() == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
async def test_where_no_file_can_be_made_that_is_told_and_memory_serves(store, monkeypatch, number):
    """Report it once, also where room was made in vain."""
    broken = OSError(number, os.strerror(number))

    def refuse() -> Partial:
        raise broken

    monkeypatch.setattr(store, "create", refuse)
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, 10)
        assert (writer.is_elsewhere, store.told, bool(store.evicted)) == (True, [broken], number == errno.ENOSPC)
        os.close(blob.fd)


async def test_a_file_cut_short_while_it_is_hashed_is_found_out_in_the_end(store):
    data = bytes(SMALL + HASH_LAG_BYTES)
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, len(data), hashlib.md5(data).hexdigest())
        blob.present.add(0, len(data))
        writer.note_written(0, 1)
        with pytest.raises(BadReply):
            await writer.verify()
        os.close(blob.fd)


@pytest.mark.parametrize("size", [SMALL, SMALL + 1])
async def test_a_large_file_is_counted_before_it_is_written(store, size):
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, size)
        for offset in (0, 1):
            await writer.put(offset, b"x")
        assert store.reserved == ([size] if size > SMALL else [])
        os.close(blob.fd)


async def test_of_unknown_length_a_file_is_counted_in_doubling_steps(store, monkeypatch):
    monkeypatch.setattr(blob_module, "SMALL_FILE_BYTES", 8)
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, -1)
        for offset in range(0, 24, 2):
            await writer.put(offset, b"xx")
        assert store.reserved == [12, 28]
        os.close(blob.fd)


class Failing:
    """A write that fails so many times."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.times = number, times

    def __call__(self, fd: int, data: memoryview, offset: int) -> None:
        if self.times:
            self.times -= 1
            raise OSError(self.number, os.strerror(self.number))
        os.pwrite(fd, data, offset)


@pytest.mark.parametrize(("size", "freed"), [(200, SPARE_BYTES), (SPARE_BYTES + 5, SPARE_BYTES + 5)])
async def test_a_full_disk_is_made_room_on_once_and_then_the_file_moves(store, monkeypatch, size, freed):
    monkeypatch.setattr(writer_module, "write_all", Failing(errno.ENOSPC, 2))
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, size, "digest")
        blob.present.add(20, 24)
        os.pwrite(blob.fd, b"here", 20)
        for is_elsewhere in (False, True):
            with pytest.raises(CacheError, match="of the store: No space left") as caught:
                await writer.put(0, b"x")
            await writer.recover(caught.value)
            assert (writer.is_elsewhere, store.evicted) == (is_elsewhere, [TOTAL - freed])
        await writer.put(0, b"x")
        assert os.pread(blob.fd, 25, 0) == b"x" + bytes(19) + b"here"
        assert store.discarded == ["file"]
        os.close(blob.fd)


async def test_a_file_moves_at_once_where_nothing_can_be_evicted(store, monkeypatch):
    monkeypatch.setattr(writer_module, "write_all", Failing(errno.ENOSPC, 1))
    monkeypatch.setattr(store, "total", lambda: TOTAL)
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, 10)
        with pytest.raises(CacheError) as caught:
            await writer.put(0, b"x")
        await writer.recover(caught.value)
        assert (writer.is_elsewhere, len(store.evicted)) == (True, 1)
        os.close(blob.fd)


async def test_a_file_that_is_elsewhere_already_says_where_there_is_no_room(store, monkeypatch):
    monkeypatch.setattr(store, "create", lambda: store.create_elsewhere(10))
    monkeypatch.setattr(writer_module, "write_all", Failing(errno.ENOSPC, 1))
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, 10)
        with pytest.raises(CacheFull, match="^k: No space left on device: .*TMPDIR"):
            await writer.put(0, b"x")
        assert store.told == []
        os.close(blob.fd)


async def test_another_error_than_a_full_disk_moves_the_file(store, monkeypatch):
    monkeypatch.setattr(writer_module, "write_all", Failing(errno.EIO, 1))
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, 10)
        with pytest.raises(CacheError, match="of the store: Input/output error") as caught:
            await writer.put(0, b"x")
        await writer.recover(caught.value)
        assert (writer.is_elsewhere, store.evicted) == (True, [])
        os.close(blob.fd)


async def test_a_file_that_cannot_be_copied_stays(store, monkeypatch):
    """Keep the file, and remove the incomplete copy."""
    async with trio.open_nursery() as nursery:
        blob, writer, _ = await begun(store, nursery, 10)
        blob.present.add(0, 10)  # it is shorter: another program has cut it
        before = writer.partial
        with pytest.raises(OSError, match="cut short"):
            await writer.recover(CacheError("of a write"))
        assert (writer.partial, store.discarded) == (before, ["elsewhere"])
        os.close(blob.fd)


# -- files that wait to be written -------------------------------------------------------------------------------


class Cache:
    """A cache as its write-behind queue sees it."""

    def __init__(self, store: Store, nursery: trio.Nursery) -> None:
        self.gone: list[tuple[str, bool]] = []  # names, and whether they were stored
        self.unwanted: set[str] = set()
        self.forgotten: set[str] = set()
        self.queue = WriteBehind(store, nursery, self)  # type: ignore[arg-type]

    def is_current(self, entry: Entry) -> bool:
        return entry.blob.key not in self.unwanted

    def forget(self, entry: Entry) -> None:
        self.forgotten.add(entry.blob.key)

    def release_if_unused(self, blob: Blob) -> None:
        self.gone.append((blob.key, blob.key not in self.forgotten))

    def add(self, name: object, size: int) -> None:
        version = Version(str(name), size, "")
        entry = Entry(identity(version), version, Blob(version.key, lambda blob: None), 0.0)
        entry.blob.hold(bytes(size))
        entry.row = BlobRow(entry.ident, version.key, size, size, "", 0.0, 0.0, "")
        self.queue.add(entry)


async def test_files_are_gathered_and_written_together(autojump_clock, store):
    async with trio.open_nursery() as nursery:
        cache = Cache(store, nursery)
        began = trio.current_time()
        for number in range(BATCH_FILES + 1):
            cache.add(number, 10)
        assert (cache.queue.unwritten_bytes, len(nursery.child_tasks)) == (10 * BATCH_FILES + 10, 1)
        await trio.sleep(GATHER_SECONDS / 2)
        assert store.written == []
        await trio.sleep(GATHER_SECONDS)
        assert [len(batch) for batch in store.written] == [BATCH_FILES, 1]
        assert [row.key for row, _ in store.written[0]] == [str(number) for number in range(BATCH_FILES)]
        assert (cache.gone, cache.queue.unwritten_bytes) == ([], 0), "they stay for a while"
        await trio.sleep(1)
        cache.add("later", 5)
        await trio.sleep(1)
        assert [row.key for row, _ in store.written[2]] == ["later"]
        assert trio.current_time() - began < 5
        cache.queue.release_written(5)
        assert cache.gone == [(str(number), True) for number in range(BATCH_FILES + 1)]
        cache.queue.release_written(0)
        assert cache.gone[-1] == ("later", True)


async def test_what_is_not_kept_is_let_go_of_as_such(autojump_clock, store):
    async with trio.open_nursery() as nursery:
        cache = Cache(store, nursery)
        cache.unwanted.add("b")
        store.refuse.add(identity(Version("c", 10, "")))
        for name in "abcd":
            cache.add(name, 10)
        await cache.queue.write()
        assert cache.gone == [("b", False), ("c", False)]
        assert [row.key for row, _ in store.written[0]] == ["a", "c", "d"]
        cache.queue.release_written(19)
        assert cache.gone[2:] == [("a", True)]


async def test_so_much_stays_in_memory_once_it_is_written(autojump_clock, store):
    async with trio.open_nursery() as nursery:
        cache = Cache(store, nursery)
        for name in "abc":
            cache.add(name, MAX_RETAINED_BYTES // 2)
        await cache.queue.write()
        assert cache.gone == [("a", True)]
        cache.add("d", 1)
        await cache.queue.write()
        assert cache.gone == [("a", True), ("b", True)]


async def test_who_adds_more_than_may_wait_waits(autojump_clock, store):
    async with trio.open_nursery() as nursery:
        cache = Cache(store, nursery)
        cache.add("a", MAX_UNWRITTEN_BYTES)
        began = trio.current_time()
        await cache.queue.wait_for_room()
        assert trio.current_time() == began
        cache.add("b", 1)
        for number in range(BATCH_FILES):
            cache.add(number, 1)
        await cache.queue.wait_for_room()
        assert trio.current_time() - began == pytest.approx(GATHER_SECONDS + 0.01)
        assert len(store.written) == 1


async def test_two_who_write_do_not_write_the_same(autojump_clock, store):
    async with trio.open_nursery() as nursery:
        cache = Cache(store, nursery)
        for number in range(BATCH_FILES + 1):
            cache.add(number, 1)
        nursery.start_soon(cache.queue.write)
        nursery.start_soon(cache.queue.write)
        await trio.sleep(1)
    assert [len(batch) for batch in store.written] == [BATCH_FILES, 1]


# -- an entry ----------------------------------------------------------------------------------------------------


def test_a_file_is_known_by_its_place_and_its_digest():
    one = identity(Version("k", 1, "d"))
    assert (one, len(one)) == (identity(Version("k", 2, "d")), 32)
    assert len({one, identity(Version("k", 1, "e")), identity(Version("kd", 1, ""))}) == 3
    assert one == hashlib.sha256(b"k\0d").digest()
    assert identity(Version("\udcff", 1, "")) == hashlib.sha256(b"\xed\xb3\xbf\0").digest()


def test_a_new_entry_is_of_nobody():
    entry = Entry(b"i", Version("k", 7, ""), Blob("k", lambda blob: None), 3.0)
    assert (entry.ident, entry.listed, entry.checked) == (b"i", 7, 3.0)
    assert (entry.fill, entry.row, entry.is_queued) == (None, None, False)


def test_releasing_closes_what_is_kept_and_hands_over_what_is_not(tmp_path):
    class Fill:
        dropped = 0

        def __init__(self, partial: Partial | None) -> None:
            self.writer = type("Taken", (), {"partial": partial})()

        def close_older(self) -> None:
            self.dropped += 1

    for kept in (None, True, False):
        entry = Entry(b"i", Version("k", 7, ""), Blob("k", lambda blob: None), 3.0)
        fd = entry.blob.fd = os.open(tmp_path, os.O_RDONLY)
        partial = None if kept is None else Partial("p", fd, 0, kept)
        entry.fill = Fill(partial)  # type: ignore[assignment]
        assert entry.release() is (partial if kept is False else None)
        assert (entry.blob.fd, entry.fill.dropped) == (-1, 1)  # type: ignore[union-attr]
        if kept is False:
            os.close(fd)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        assert entry.release() is (partial if kept is False else None)
    entry = Entry(b"i", Version("k", 7, ""), Blob("k", lambda blob: None), 3.0)
    fd = entry.blob.fd = os.open(tmp_path, os.O_RDONLY)
    assert entry.release() is None
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
