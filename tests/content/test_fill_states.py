"""Test how a fill begins, goes on and ends: the copies that it takes in place of a download, and its states."""

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.content.test_fill import DATA, NEAR, SIZES, K, Keeping, Rig, begun, filling, older, settled, stalled
from tests.support.content_fakes import FakeSource, md5
from xnatfs.common.errors import NotFound
from xnatfs.content import writer as writer_module
from xnatfs.content.blob import Blob
from xnatfs.content.disk.claims import Claims
from xnatfs.content.download import PAUSE_SECONDS
from xnatfs.content.fill import LINGER_SECONDS, State
from xnatfs.content.planner import NextDownload
from xnatfs.content.source import Version, identity

SMALL = DATA[: 8 * K]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for (module, name), value in SIZES.items():
        monkeypatch.setattr(module, name, value)


def claimed(directory: Path, data: bytes, digest: str) -> Any:
    """Claim the file of a rig, as another process that fetches it."""
    return Claims(directory).turn(identity(Version("k", len(data), digest)).hex(), lambda: False)


# -- states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "state", "stored"),
    [
        ("downloaded", State.COMPLETE, True),
        ("confirmed", State.COMPLETE, True),
        ("damaged", State.FAILED, True),
        ("missing", State.FAILED, False),
    ],
)
async def test_the_state_says_how_it_ended(tmp_path, autojump_clock, how, state, stored):
    source = FakeSource(SMALL)
    if how == "missing":
        source.error = NotFound("no such file")
    if how == "confirmed":
        source.head_size = 11
    copy = older(tmp_path, source.modified) if how == "confirmed" else None
    async with filling(tmp_path, source, digest=md5(b"another") if how == "damaged" else "", kept=copy) as rig:
        await begun(rig)
        await rig.ended()
        assert (rig.fill.state, rig.fill.stored.is_set()) == (state, stored)


async def test_a_download_that_the_disk_stopped_goes_on_though_no_reader_waits(tmp_path, autojump_clock, monkeypatch):
    """Count it as running meanwhile, though no download is left."""
    recovering, room = trio.Event(), trio.Event()

    class Full(Keeping):
        async def evict(self, target: int) -> None:
            recovering.set()
            await room.wait()
            await super().evict(target)

    def write(fd: int, data: memoryview, offset: int) -> None:
        if offset >= 20 * K and not room.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        os.pwrite(fd, data, offset)

    monkeypatch.setattr(Rig, "store_class", Full)
    monkeypatch.setattr(writer_module, "write_all", write)
    source = FakeSource(DATA, chunk=K, ranged=False)
    source.seekable = False
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(0)
        await recovering.wait()
        await settled()
        assert (rig.fill.planner.downloads, rig.fill.is_running) == ([], True)
        room.set()
        await rig.ended()
        assert (rig.blob.complete, source.starts) == (True, [0, 0])


async def test_a_file_that_is_opened_again_goes_on_at_once(tmp_path, autojump_clock):
    source = FakeSource(DATA, chunk=K, pause=0.01)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        rig.blob.users = 0
        rig.fill.linger()
        await trio.sleep(PAUSE_SECONDS / 4)
        fetched = rig.stats.fetched
        rig.blob.users = 1
        rig.fill.resume(source)
        await trio.sleep(PAUSE_SECONDS / 4)
        assert fetched < rig.stats.fetched


async def test_where_a_download_pauses_no_window_is_fetched_beside_it(tmp_path, autojump_clock):
    """Let one reader go on to the end of its window, while another one stays far behind its download."""
    source = FakeSource(DATA * 4, chunk=K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset, length in ((200 * K, 10), (0, 4 * K), (4 * K, 10)):
            await rig.read(offset, length)
        await trio.sleep(PAUSE_SECONDS / 2)
        await rig.read(203 * K)
        await trio.sleep(PAUSE_SECONDS)
        assert (rig.asked(), rig.fill.is_running) == ([(0, NEAR), (200 * K, 204 * K), (4 * K, None)], False)


async def test_a_download_that_ends_earlier_for_another_one_shares_the_file_with_it(tmp_path, autojump_clock):
    async with filling(tmp_path, stalled(0)) as rig:
        rig.fill._launch(NextDownload(0, None))
        first = rig.fill.planner.downloads[0]
        rig.fill._launch(NextDownload(32 * K, 48 * K, shorten=first, is_share=True))
        found = [(each.start, each.stop, each.is_share) for each in rig.fill.planner.downloads]
        assert found == [(0, 32 * K, True), (32 * K, 48 * K, True)]


# -- copies ------------------------------------------------------------------------------------------------------


async def test_after_an_older_copy_that_is_not_right_the_download_is_the_same(tmp_path, autojump_clock):
    source = FakeSource(DATA)
    async with filling(tmp_path, source, kept=older(tmp_path, "another date")) as rig:
        await begun(rig)
        await rig.ended()
        assert (source.heads, rig.asked()) == (1, [(0, NEAR)])


async def test_a_small_file_that_another_process_stores_meanwhile_is_adopted(tmp_path, autojump_clock, monkeypatch):
    is_there = False

    def adopt(rig: Rig, blob: Blob) -> bool:
        if is_there:
            blob.hold(SMALL)
        return is_there

    monkeypatch.setattr(Rig, "adopt", adopt)
    async with (
        claimed(tmp_path, SMALL, md5(SMALL)),
        filling(tmp_path, FakeSource(SMALL), digest=md5(SMALL)) as rig,
    ):
        rig.fill.start()
        await trio.sleep(1)
        assert (rig.asked(), rig.blob.complete, rig.fill.is_running) == ([], False, True)
        is_there = True
        await rig.ended()
        assert (rig.asked(), rig.fill.state, rig.fill.stored.is_set()) == ([], State.COMPLETE, True)
        assert rig.changes == 1


@pytest.mark.parametrize(
    ("data", "digest", "listed"),
    [(SMALL + b"!", md5(SMALL + b"!"), len(SMALL) + 1), (SMALL, "", len(SMALL)), (SMALL, md5(SMALL), None)],
    ids=["big", "of no digest", "of no listed length"],
)
async def test_the_claim_of_another_file_is_not_waited_for(tmp_path, autojump_clock, data, digest, listed):
    async with (
        claimed(tmp_path, data, digest),
        filling(tmp_path, FakeSource(data), digest=digest, listed=listed) as rig,
    ):
        rig.fill.start()
        await settled()
        assert rig.source.starts == [0]


async def test_once_its_first_bytes_are_there_a_file_is_not_looked_for_elsewhere(tmp_path, autojump_clock):
    shared, source = Shared([None, None]), stalled(K, SMALL)
    async with filling(tmp_path, source, digest=md5(SMALL), shared=shared) as rig:
        await begun(rig)
        rig.fill.linger()
        rig.blob.users = 0
        await trio.sleep(LINGER_SECONDS + 1)
        source.stalls.clear()
        async with claimed(tmp_path, SMALL, md5(SMALL)):
            rig.blob.users = 1
            await rig.read(0)
        assert (source.starts, shared.calls) == ([0, K], ["open", "claim", "open", "release", "put"])


class Shared:
    """A store of several machines that records its calls; `entries` are what it finds, one look after the other."""

    def __init__(self, entries: list[bytes | None]) -> None:
        self.entries = entries
        self.calls: list[str] = []

    async def open(self, version: Version) -> bytes | None:
        self.calls.append("open")
        return self.entries.pop(0)

    async def copy(self, entry: bytes, version: Version, target: int) -> bool:
        self.calls.append("copy")
        os.pwrite(target, entry, 0)
        return True

    async def put(self, version: Version, source: int) -> None:
        self.calls.append("put")

    @asynccontextmanager
    async def file_turn(self, version: Version) -> AsyncIterator[bool]:
        self.calls.append("claim")
        yield True
        self.calls.append("release")


@pytest.mark.parametrize(
    ("data", "entries", "calls", "starts"),
    [
        (SMALL, [SMALL], ["open", "copy", "put"], []),
        (SMALL, [None, SMALL], ["open", "claim", "open", "copy", "put", "release"], []),
        (SMALL, [None, None], ["open", "claim", "open", "put", "release"], [0]),
        (DATA[: 9 * K], [DATA[: 9 * K]], ["open", "copy", "put"], []),
        (DATA[: 9 * K], [None], ["open", "put"], [0]),
    ],
    ids=["small", "small and fetched meanwhile", "small and missing", "big", "big and missing"],
)
async def test_a_file_comes_from_the_shared_store_and_a_missing_small_one_is_claimed_there(
    tmp_path, autojump_clock, data, entries, calls, starts
):
    shared, source = Shared(list(entries)), FakeSource(data)
    async with filling(tmp_path, source, digest=md5(data), shared=shared, strict=True) as rig:
        await begun(rig)
        await rig.read(0, len(data))
        await rig.ended()
        await settled()
        assert (shared.calls, source.starts, rig.fill.state) == (calls, starts, State.COMPLETE)


@pytest.mark.parametrize(("digest", "listed"), [("", len(SMALL)), (md5(SMALL), None)], ids=["no digest", "no length"])
async def test_what_is_not_identified_is_not_looked_for_in_the_shared_store(tmp_path, autojump_clock, digest, listed):
    shared = Shared([SMALL])
    async with filling(tmp_path, FakeSource(SMALL), digest=digest, listed=listed, shared=shared) as rig:
        await begun(rig)
        await rig.ended()
        assert (rig.blob.complete, "open" in shared.calls) == (True, False)
