"""Test the file of a download: the room for it, its copy from the store that machines share, and its hash."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.content.test_writer import TOTAL, Store, begun
from tests.support.content_fakes import md5, until
from xnatfs.common.errors import BadReply, CacheError
from xnatfs.content import blob as blob_module
from xnatfs.content import writer as writer_module
from xnatfs.content.blob import Blob
from xnatfs.content.disk.directory import SPARE_BYTES
from xnatfs.content.disk.partial import Partial
from xnatfs.content.source import Version
from xnatfs.content.stats import CacheStats
from xnatfs.content.writer import Backing, Writer

PIECE, LAG, SMALL = 10, 40, 100
DATA = os.urandom(200)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(writer_module, "HASH_PIECE_BYTES", PIECE)
    monkeypatch.setattr(writer_module, "HASH_LAG_BYTES", LAG)
    monkeypatch.setattr(blob_module, "SMALL_FILE_BYTES", SMALL)


class Recording(Store):
    """A store that also records the sizes of files elsewhere, and may have no room in the directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.is_full = False
        self.elsewhere: list[int] = []

    def create(self) -> Partial:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().create()

    def create_elsewhere(self, size: int) -> Partial:
        self.elsewhere.append(size)
        return super().create_elsewhere(size)

    async def discard(self, partial: Partial) -> None:
        await trio.lowlevel.checkpoint()
        await super().discard(partial)


@pytest.fixture
def store(tmp_path: Path) -> Recording:
    return Recording(tmp_path)


def writer_of(store: Store, nursery: Any, data: bytes) -> tuple[Blob, Writer]:
    blob = Blob("k", lambda blob: None)
    backing = Backing(store, CacheStats(), nursery)  # type: ignore[arg-type]
    return blob, Writer(blob, Version("k", len(data), md5(data)), backing)


# -- room --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "room", "freed"), [(None, 0, SPARE_BYTES), (SPARE_BYTES + 5,) * 3])
async def test_where_the_directory_is_full_room_is_sought_for_the_whole_file(store, nursery, size, room, freed):
    store.is_full = True
    blob, writer = writer_of(store, nursery, DATA)
    await writer.begin(size)
    assert (store.elsewhere, store.evicted, writer.is_elsewhere) == ([room], [TOTAL - freed], True)
    os.close(blob.fd)


async def test_before_the_first_reply_an_error_of_the_disk_is_final(store, nursery):
    _, writer = writer_of(store, nursery, DATA)
    error = CacheError("no room")
    with pytest.raises(CacheError) as caught:
        await writer.recover(error)
    assert (caught.value, store.elsewhere) == (error, [])


# -- copies ------------------------------------------------------------------------------------------------------


class Shared:
    """A store of several machines with one file; None for one that never answers."""

    def __init__(self, data: bytes | None) -> None:
        self.data = data

    async def copy(self, entry: object, version: Version, target: int) -> bool:
        if self.data is None:
            await trio.sleep_forever()
        os.pwrite(target, self.data or b"", 0)
        return md5(self.data or b"") == version.digest


@pytest.mark.parametrize("size", [0, SMALL, SMALL + 1])
@pytest.mark.parametrize("is_full", [False, True])
async def test_a_copy_is_all_of_the_file_and_counted_if_it_is_big(store, nursery, size, is_full):
    store.is_full = is_full
    data = DATA[:size]
    blob, writer = writer_of(store, nursery, data)
    shared: Any = Shared(data)
    assert await writer.copy(shared, shared)
    assert (blob.size, blob.contiguous_end, os.pread(blob.fd, 200, 0)) == (size, size, data)
    assert (store.reserved, store.elsewhere) == ([size] * (size > SMALL), [size] * is_full)
    os.close(blob.fd)


@pytest.mark.parametrize("how", ["it is of another content", "it is cancelled"])
async def test_nothing_is_left_of_a_copy_that_came_to_nothing(store, nursery, how):
    blob, writer = writer_of(store, nursery, DATA)
    with trio.CancelScope() as scope:
        if how == "it is cancelled":
            nursery.start_soon(cancel_later, scope)
        shared: Any = Shared(None if how == "it is cancelled" else b"another")
        assert not await writer.copy(shared, shared)
    assert (store.discarded, writer.partial) == (["file"], None)
    assert (blob.fd, blob.size, blob.present.total) == (-1, -1, 0)


async def cancel_later(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


# -- the hash ----------------------------------------------------------------------------------------------------


async def test_a_thread_hashes_once_enough_has_arrived(store, nursery):
    blob, writer, _ = await begun(store, nursery, len(DATA), md5(DATA))
    hashed = []
    for end in (LAG - 1, LAG, 2 * LAG - 1, 3 * LAG, len(DATA)):
        start = blob.contiguous_end
        await writer.put(start, DATA[start:end])
        following = writer._following
        if following is not None:
            await following.wait()
        hashed.append((end, following is not None, writer._hashed))
    assert hashed == [
        (LAG - 1, False, 0),
        (LAG, True, LAG),
        (2 * LAG - 1, False, LAG),
        (3 * LAG, True, 3 * LAG),
        (len(DATA), True, len(DATA)),
    ]
    await writer.verify()
    os.close(blob.fd)


async def test_one_thread_at_a_time_hashes_a_file(store, nursery):
    blob, writer, _ = await begun(store, nursery, len(DATA), md5(DATA))
    await writer.put(0, DATA[:LAG])
    following = writer._following
    await writer.put(LAG, DATA[LAG : 2 * LAG])
    assert writer._following is following is not None
    await following.wait()
    assert writer._hashed == 2 * LAG
    await writer.put(2 * LAG, DATA[2 * LAG :])
    await writer.verify()
    os.close(blob.fd)


async def test_the_thread_hashes_nothing_behind_a_gap(store, nursery):
    blob, writer, _ = await begun(store, nursery, len(DATA), md5(DATA))
    end = LAG + PIECE // 2
    await writer.put(3 * LAG, DATA[3 * LAG :])
    await writer.put(0, DATA[:end])
    following = writer._following
    assert following is not None
    await following.wait()
    assert writer._hashed == end
    await writer.put(end, DATA[end : 3 * LAG])
    await writer.verify()
    os.close(blob.fd)


async def test_of_a_file_that_was_cut_short_the_thread_ends(store, nursery):
    blob, writer, _ = await begun(store, nursery, len(DATA), md5(DATA))
    blob.present.add(0, len(DATA))
    writer.note_written(0, 1)
    with trio.fail_after(60):
        while writer._following is not None:
            await writer._following.wait()
    with pytest.raises(BadReply):
        await writer.verify()
    os.close(blob.fd)


async def test_what_cannot_be_read_while_it_arrives_is_read_in_the_end(store, nursery, monkeypatch):
    def refuse(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", refuse)
    blob, writer, _ = await begun(store, nursery, len(DATA), md5(DATA))
    await writer.put(0, DATA)
    await writer.verify()
    os.close(blob.fd)


@pytest.mark.parametrize(("left", "in_a_thread"), [(PIECE, False), (PIECE + 1, True)])
async def test_only_what_the_thread_has_left_is_hashed_at_the_end(store, nursery, monkeypatch, left, in_a_thread):
    blob, writer, _ = await begun(store, nursery, len(DATA), md5(DATA))
    await writer.put(0, DATA[:-left])
    following = writer._following
    assert following is not None
    await following.wait()
    await writer.put(len(DATA) - left, DATA[-left:])
    threads: list[int] = []
    hash_file = writer._hash_file

    def record(fd: int, end: int) -> None:
        threads.append(threading.get_ident())
        hash_file(fd, end)

    monkeypatch.setattr(writer, "_hash_file", record)
    await writer.verify()
    assert (len(threads), threading.get_ident() in threads) == (1, not in_a_thread)
    os.close(blob.fd)


async def test_a_file_moves_only_once_the_thread_has_read_what_is_to_be_hashed(store, nursery, monkeypatch):
    """Later bytes are written to the new file only, and the old one has a gap in their place."""
    blob, writer, _ = await begun(store, nursery, len(DATA), md5(DATA))
    may_read, hash_file = threading.Event(), writer._hash_file

    def wait(fd: int, end: int) -> None:
        may_read.wait(60)
        hash_file(fd, end)

    monkeypatch.setattr(writer, "_hash_file", wait)
    await writer.put(0, DATA[:LAG])
    nursery.start_soon(writer.recover, CacheError("of a write"))
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert store.elsewhere == []
    may_read.set()
    await until(lambda: store.discarded == ["file"])
    await writer.put(LAG, DATA[LAG:])
    await writer.verify()
    os.close(blob.fd)
