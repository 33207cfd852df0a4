"""Test the downloads of one file, at a thousandth of the size, without threads, in virtual time."""

import os
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.content.test_writer import Store
from tests.support.content_fakes import FakeSource, md5
from xnatfs.common.errors import BadReply, CacheError, NotFound, Stale, Unreachable
from xnatfs.content import blob as blob_module
from xnatfs.content import planner as planner_module
from xnatfs.content import writer as writer_module
from xnatfs.content.blob import Blob
from xnatfs.content.disk.index import BlobRow
from xnatfs.content.disk.partial import Partial
from xnatfs.content.download import PAUSE_SECONDS
from xnatfs.content.fill import LINGER_SECONDS, Fill, _translated
from xnatfs.content.planner import NextDownload
from xnatfs.content.source import Body, Head, Version
from xnatfs.content.stats import CacheStats
from xnatfs.content.writer import Backing

K = 1024
NEAR = 4 * K
SIZES = {
    (blob_module, "HOLD_BACK_BYTES"): 128,
    (planner_module, "MAX_WINDOW_BYTES"): 32 * K,
    (planner_module, "NEAR_BYTES"): NEAR,
    (planner_module, "SHARE_BYTES"): 32 * K,
    (blob_module, "SMALL_FILE_BYTES"): 8 * K,
    (planner_module, "WINDOW_BYTES"): NEAR,
    (writer_module, "HASH_LAG_BYTES"): 2**40,
    (writer_module, "HASH_PIECE_BYTES"): 2**40,
    (planner_module, "READ_AHEAD_BYTES"): 64 * K,
    (planner_module, "MAX_STEP_BYTES"): NEAR,
}
DATA = os.urandom(60 * K)


@pytest.fixture(autouse=True, params=["received", "written by another process"])
def _small_and_by_whom(request, monkeypatch):
    monkeypatch.setattr(FakeSource, "writes", request.param != "received")
    # One download from the first byte on, as without ranges; test_windows.py has those that begin small.
    monkeypatch.setattr(Fill, "start", lambda self: self._launch(NextDownload(0, None)))
    for (module, name), value in SIZES.items():
        monkeypatch.setattr(module, name, value)


class Keeping(Store):
    """A store that also remembers what is cached."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.kept: list[BlobRow] = []
        self.renewed: list[BlobRow] = []
        self.fails: Exception | None = None

    async def keep(self, partial: Partial, row: BlobRow) -> bool:
        if self.fails is not None:
            raise self.fails
        if not partial.is_elsewhere:
            self.kept.append(row)
        return not partial.is_elsewhere

    async def renew(self, row: BlobRow) -> None:
        self.renewed.append(row)


class Rig:
    """One fill and what surrounds it."""

    store_class = Keeping

    def __init__(self, directory: Path, source: FakeSource, nursery: trio.Nursery, **options: Any) -> None:
        self.source, self.store, self.stats = source, self.store_class(directory), CacheStats()
        self.blob = Blob("k", lambda blob: None, strict=options.pop("strict", False))
        self.blob.users = 1
        self.wanted = True
        self.only = True
        self.changes = 0
        version = Version("k", options.pop("listed", len(source.data)), options.pop("digest", ""))
        self.fill = Fill(
            self.blob,
            version,
            source,
            Backing(self.store, self.stats, nursery, options.pop("shared", None)),  # type: ignore[arg-type]
            self,
            options.pop("kept", None),
        )

    def on_idle(self, blob: Blob) -> None:
        self.changes += 1

    def adopt(self, blob: Blob) -> bool:
        return False

    def is_alone(self) -> bool:
        return self.only

    def row_for(self, blob: Blob) -> BlobRow | None:
        modified = self.fill._receiver.modified
        return BlobRow(b"i", "k", blob.size, blob.size, modified, 0.0, 0.0, "") if self.wanted else None

    async def read(self, offset: int, length: int = 10) -> bytes:
        found = await self.blob.read(offset, length)
        assert found == self.source.data[offset : offset + length]
        return found

    async def ended(self) -> None:
        """Wait until nothing runs any more."""
        for _ in range(1000):
            if not self.fill.is_running:
                return
            await trio.sleep(1)
        raise AssertionError("it runs for ever")

    def asked(self) -> list[tuple[int, int | None]]:
        return list(zip(self.source.starts, self.source.stops, strict=True))


@asynccontextmanager
async def filling(directory: Path, source: FakeSource, **options: Any) -> AsyncIterator[Rig]:
    async with trio.open_nursery() as nursery:
        rig = Rig(directory, source, nursery, **options)
        yield rig
        nursery.cancel_scope.cancel()
    if rig.blob.fd >= 0:
        os.close(rig.blob.fd)


async def begun(rig: Rig) -> Rig:
    rig.fill.start()
    await rig.blob.ready.wait()
    return rig


def stalled(at: int, data: bytes = DATA, **options: Any) -> FakeSource:
    source = FakeSource(data, chunk=K, **options)
    source.stalls[at] = trio.Event()
    return source


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


# -- from the beginning to the end -------------------------------------------------------------------------------


async def test_a_fill_does_nothing_until_it_is_started(tmp_path, autojump_clock):
    async with filling(tmp_path, FakeSource(DATA)) as rig:
        await trio.sleep(10)
        assert (rig.source.starts, rig.fill.is_running) == ([], False)
        assert rig.blob.stamp == ""


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("size", [0, 8 * K, 8 * K + 1])
async def test_a_file_comes_whole_and_is_kept_once(tmp_path, autojump_clock, size, strict):
    source = stalled(size, DATA[:size])
    async with filling(tmp_path, source, strict=strict) as rig:
        assert rig.fill.planner.is_small is (size <= 8 * K)
        await begun(rig)
        assert (rig.blob.size, rig.blob.is_served_whole) == (size, strict or size <= 8 * K)
        assert rig.fill._receiver.modified == source.modified
        source.release()
        await rig.ended()
        assert (rig.blob.complete, rig.fill.is_running) == (True, False)
        assert os.pread(rig.blob.fd, size + 1, 0) == source.data
        assert [(row.size, row.modified) for row in rig.store.kept] == [(size, source.modified)]
        assert (rig.asked(), source.heads) == ([(0, None)], 0)
        assert rig.changes >= 1
        assert rig.store.reserved == ([size] if size > 8 * K else [])


@pytest.mark.parametrize(("listed", "small"), [(None, False), (8 * K, True), (8 * K + 1, False)])
async def test_before_the_reply_a_file_is_as_small_as_it_is_listed(tmp_path, listed, small):
    async with filling(tmp_path, FakeSource(DATA), listed=listed) as rig:
        assert rig.fill.planner.is_small is small
        rig.blob.size = 0
        assert rig.fill.planner.is_small is True


async def test_what_nobody_wants_any_more_is_not_kept(tmp_path, autojump_clock):
    async with filling(tmp_path, FakeSource(DATA)) as rig:
        rig.wanted = False
        await begun(rig)
        await rig.blob.wait_until_verified()
        assert (rig.blob.complete, rig.store.kept) == (True, [])


async def test_an_error_of_keeping_is_the_fills(tmp_path, autojump_clock, caplog):
    async with filling(tmp_path, FakeSource(DATA)) as rig:
        rig.store.fails = ZeroDivisionError("oops")
        await begun(rig)
        await rig.ended()
        assert rig.fill.is_running is False
        assert rig.blob.complete, "what has been verified stays good"


async def test_a_reply_of_unknown_length_ends_where_it_ends(tmp_path, autojump_clock):
    source = stalled(3 * K)
    source.states_size = False
    async with filling(tmp_path, source, listed=None) as rig:
        rig.fill.start()
        await trio.sleep(1)
        assert (rig.blob.size, rig.blob.ready.is_set(), rig.fill.planner.is_small) == (-1, False, False)
        source.release()
        await rig.blob.ready.wait()
        assert (rig.blob.size, rig.blob.complete) == (len(DATA), True)
        await rig.read(0, len(DATA))
        assert rig.store.kept[0].size == len(DATA)


# -- lengths that nothing states ----------------------------------------------------------------------------------


def half(states_size: bool, framed: bool = True) -> FakeSource:
    """Return a source whose body breaks off half-way."""
    source = FakeSource(DATA[: len(DATA) // 2], chunk=K)
    source.states_size, source.framed = states_size, framed
    source.head_size = len(DATA)
    return source


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("states_size", [False, True])
@pytest.mark.parametrize("heads_work", [False, True])
async def test_half_a_file_is_not_the_file(tmp_path, autojump_clock, strict, framed, states_size, heads_work):
    source = half(states_size, framed)
    source.heads_work = heads_work
    async with filling(tmp_path, source, listed=len(DATA), strict=strict) as rig:
        await begun(rig)
        for _ in range(2):
            with pytest.raises(BadReply, match=f"^k: {len(DATA) // 2} bytes arrived, the listing states {len(DATA)}"):
                await rig.blob.read(0, 1)
        await rig.ended()
        assert (rig.store.kept, source.heads) == ([], 1)


@pytest.mark.parametrize("states_size", [False, True])
async def test_a_length_that_a_head_confirms_corrects_the_listing(tmp_path, autojump_clock, states_size):
    source = FakeSource(DATA, chunk=K)
    source.states_size, source.framed = states_size, False
    async with filling(tmp_path, source, listed=7) as rig:
        await begun(rig)
        await rig.read(0, len(DATA))
        assert (rig.blob.size, source.heads, [row.size for row in rig.store.kept]) == (len(DATA), 1, [len(DATA)])


@pytest.mark.parametrize("states_size", [False, True])
async def test_a_length_that_is_listed_needs_no_confirmation(tmp_path, autojump_clock, states_size):
    source = FakeSource(DATA, chunk=K)
    source.states_size, source.framed = states_size, False
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(0, len(DATA))
        assert (source.heads, len(rig.store.kept)) == (0, 1)


async def test_what_has_a_digest_needs_no_confirmation(tmp_path, autojump_clock):
    source = FakeSource(DATA, chunk=K)
    source.heads_work = False
    async with filling(tmp_path, source, listed=7, digest=md5(DATA)) as rig:
        await begun(rig)
        await rig.read(0, len(DATA))
        assert (source.heads, len(rig.store.kept)) == (0, 1)


@pytest.mark.parametrize(
    ("framed", "stated", "right"),
    [
        (True, None, True),  # nothing but its end states its length, and it has one
        (False, None, False),  # not even that
        (False, len(DATA), True),
        (True, len(DATA) + 1, False),
    ],
)
async def test_where_the_listing_has_no_length_a_head_or_the_end_of_the_body_states_it(
    tmp_path, autojump_clock, framed, stated, right
):
    source = FakeSource(DATA, chunk=K)
    source.states_size, source.framed = False, framed
    source.heads_work, source.head_size = stated is not None, stated
    async with filling(tmp_path, source, listed=None) as rig:
        await begun(rig)
        if right:
            await rig.read(0, len(DATA))
        else:
            with pytest.raises(BadReply, match="^k: .* the listing states nothing"):
                await rig.blob.read(0, 1)
        assert (len(rig.store.kept), source.heads) == (right, 1)


@pytest.mark.parametrize("off", [1, -1, -K])
@pytest.mark.parametrize("size", [K, 60 * K])
async def test_another_length_than_announced_is_an_error(tmp_path, autojump_clock, off, size):
    source = FakeSource(DATA[:size], chunk=K)
    source.size = source.head_size = size + off
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.ended()
        text = (
            f"^k: more than the announced {size + off} bytes arrived"
            if off < 0
            else f"^k: it ended after {size} of {size + 1}"
        )
        with pytest.raises(BadReply, match=text):
            await rig.blob.read(0, 1)
        assert (rig.store.kept, rig.blob.complete) == ([], False)


# -- failures ----------------------------------------------------------------------------------------------------


async def test_a_failure_is_told_once_and_ends_all_downloads(tmp_path, autojump_clock):
    source = stalled(K)
    source.stalls[41 * K] = trio.Event()
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(40 * K)
        assert source.running == 2
        rig.fill.fail(Unreachable("gone"))
        assert rig.changes == 1
        rig.fill.fail(Unreachable("another"))
        assert rig.changes == 1
        with pytest.raises(Unreachable, match="gone"):
            await rig.blob.read(0, 1)
        await settled()
        assert (source.running, rig.fill.is_running, rig.changes) == (0, False, 2)


async def test_an_odd_failure_names_the_file(tmp_path):
    async with filling(tmp_path, stalled(0)) as rig:
        await begun(rig)
        rig.fill.fail(ZeroDivisionError())
        with pytest.raises(BadReply, match="^k: its download failed"):
            await rig.blob.read(0, 1)


async def test_what_is_complete_does_not_fail(tmp_path, autojump_clock):
    async with filling(tmp_path, FakeSource(DATA)) as rig:
        await begun(rig)
        await rig.blob.wait_until_verified()
        rig.fill.fail(Unreachable("late"))
        await rig.read(0)


async def test_a_failure_before_the_reply_is_what_open_waits_for(tmp_path):
    source = FakeSource(DATA)
    source.error = NotFound("no such file")
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        assert rig.blob.failure is source.error
        await settled()
        assert (rig.fill.is_running, rig.changes) == (False, 2)


def test_errors_are_ours(caplog):
    inner = Unreachable("gone")
    assert _translated("k", inner) is inner
    assert _translated("k", ExceptionGroup("", [ExceptionGroup("", [inner])])) is inner
    assert caplog.records == []
    for odd in (ZeroDivisionError("oops"), ExceptionGroup("two", [inner, inner])):
        found = _translated("k", odd)
        assert isinstance(found, BadReply)
        assert str(found).startswith(f"k: its download failed in an unexpected way ({type(odd).__name__})")
        assert caplog.records[-1].exc_info[1] is odd


# -- what the server says later ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "modified", "stale"),
    [
        (len(DATA), None, False),
        (len(DATA) + 1, None, True),
        (len(DATA), "Tue, 02 Jan 2024 00:00:00 GMT", True),
    ],
)
async def test_a_second_reply_is_of_the_same_file(tmp_path, autojump_clock, size, modified, stale):
    source = stalled(K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        source.size = None if size == len(DATA) else size
        source.modified = source.modified if modified is None else modified
        if stale:
            with pytest.raises(Stale, match="^k: it changed on the server"):
                await rig.blob.read(40 * K, 1)
        else:
            await rig.read(40 * K)


async def test_a_range_of_nothing_tells_which_version_is_not_used(tmp_path, autojump_clock):
    """Fetch the file from its start after an empty range."""

    class Dateless(FakeSource):
        @asynccontextmanager
        async def open(self, start: int, size: int | None = None, stop: int | None = None) -> AsyncIterator[Body]:
            async with super().open(start, size, stop) as body:
                yield replace(body, modified="", validator="") if start else body

    source = Dateless(DATA, chunk=K)
    source.stalls[K] = trio.Event()
    async with filling(tmp_path, source) as rig, trio.open_nursery() as nursery:
        await begun(rig)
        nursery.start_soon(rig.read, 40 * K)
        await settled()
        assert source.starts == [0, 40 * K]
        source.release()
        await rig.ended()
        await rig.read(0, len(DATA))
        assert source.starts == [0, 40 * K]


@pytest.mark.parametrize("strong", [True, False])
@pytest.mark.parametrize("changes", [True, False])
@pytest.mark.parametrize("digest", [True, False])
async def test_two_downloads_are_joined_only_if_they_are_of_one_version(
    tmp_path, autojump_clock, strong, changes, digest
):
    """Compare repeated bytes with the served ones where the date is of the same second, or missing."""
    newer = bytes(len(DATA)) if changes else DATA
    source = stalled(20 * K)
    source.strong = strong
    async with filling(tmp_path, source, digest=md5(DATA) if digest else "") as rig:
        await begun(rig)
        await rig.read(0, 20 * K)
        rig.blob.users = 0
        rig.fill.linger()
        await trio.sleep(LINGER_SECONDS + 1)
        assert not rig.fill.is_running
        rig.blob.users = 1
        source.stalls.clear()
        if not strong or digest:  # with a strong validator the bytes are the same, so the fake must keep to it
            source.data = newer
        start = 20 * K if strong or digest else 0
        if source.data == DATA:
            assert await rig.blob.read(0, len(DATA)) == DATA
            assert len(rig.store.kept) == 1
        else:
            with pytest.raises(BadReply if digest else Stale):
                await rig.blob.read(0, len(DATA))
            assert rig.store.kept == []
        assert source.starts == [0, start]


async def test_what_cannot_be_joined_is_not_sought_in(tmp_path, autojump_clock):
    """Fetch a file without date and digest from start to end: ranges could mix the bytes of two moments."""
    source = FakeSource(DATA, chunk=K, pause=0.1)
    source.modified, source.strong = "", False
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset in (40 * K, 20 * K, 50 * K, 0):
            await rig.read(offset)
        assert source.starts == [0]


async def test_an_answer_from_elsewhere_is_an_error(tmp_path, autojump_clock):
    class Off(FakeSource):
        def open(self, start, size=None, stop=None):
            return super().open(start and start + 1, size, stop)

    source = Off(DATA, chunk=K)
    source.stalls[K] = trio.Event()
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        text = f"^k: bytes from {40 * K} were requested, the reply starts at {40 * K + 1}"
        with pytest.raises(BadReply, match=text):
            await rig.blob.read(40 * K, 1)


# -- an older copy -----------------------------------------------------------------------------------------------


def older(directory: Path, modified: str) -> tuple[BlobRow, int]:
    (directory / "older").write_bytes(b"older bytes")
    return BlobRow(b"i", "k", 5, 11, modified, 0.0, 0.0, ""), os.open(directory / "older", os.O_RDONLY)


def older_is_open(directory: Path) -> bool:
    files = Path("/proc/self/fd").iterdir()
    return str(directory / "older") in [os.readlink(file) for file in files if os.path.lexists(file)]


@pytest.mark.parametrize("wanted", [True, False])
async def test_an_older_copy_that_is_still_right_is_used(tmp_path, autojump_clock, wanted):
    source = FakeSource(DATA)
    source.head_size = 11
    async with filling(tmp_path, source, kept=older(tmp_path, source.modified)) as rig:
        rig.wanted = wanted
        await begun(rig)
        assert (rig.blob.size, rig.blob.complete, rig.fill.date) == (11, True, source.modified)
        assert await rig.blob.read(0, 20) == b"older bytes"
        assert rig.blob.stamp == source.modified
        await settled()
        assert [row.size for row in rig.store.renewed] == [11] * wanted
        assert (rig.store.kept, source.heads, source.starts, rig.fill.is_running) == ([], 1, [], False)
        rig.fill.close_older()
        assert await rig.blob.read(0, 20) == b"older bytes"


@pytest.mark.parametrize("listed", [11, None])
async def test_an_older_copy_is_used_where_a_head_states_no_length_but_the_listing_does(
    tmp_path, autojump_clock, listed, monkeypatch
):
    async def head(self: FakeSource) -> Head:
        await trio.lowlevel.checkpoint()
        return Head(None, self.modified)

    monkeypatch.setattr(FakeSource, "head", head)
    source = FakeSource(DATA)
    async with filling(tmp_path, source, listed=listed, kept=older(tmp_path, source.modified)) as rig:
        await begun(rig)
        assert bool(rig.store.renewed) is (listed == 11)
        assert bool(source.starts) is (listed != 11)


@pytest.mark.parametrize(
    ("modified", "stated"),
    [
        ("", 11),  # it has no date
        ("Mon, 01 Jan 1990 00:00:00 GMT", 11),
        (
            "Mon, 01 Jan 2035 00:00:00 GMT",
            11,
        ),  # put back with an older date: If-Modified-Since would say "not modified"
        (FakeSource(b"").modified, 12),
    ],
)
@pytest.mark.parametrize("listed", [5, 11, 12, None])
async def test_an_older_copy_that_is_not_right_is_closed(tmp_path, autojump_clock, modified, stated, listed):
    source = FakeSource(DATA)
    async with filling(tmp_path, source, kept=older(tmp_path, modified)) as rig:
        source.head_size = stated
        assert older_is_open(tmp_path)
        await begun(rig)
        await rig.blob.wait_until_verified()
        assert (source.heads, rig.store.renewed, len(rig.store.kept)) == (bool(modified), [], 1)
        assert not older_is_open(tmp_path)


async def test_an_older_copy_is_closed_when_the_reply_never_comes(tmp_path):
    source = FakeSource(DATA)
    source.error = Unreachable("gone")
    async with filling(tmp_path, source, kept=older(tmp_path, "x")) as rig:
        await begun(rig)
        assert not older_is_open(tmp_path)


# -- readers ahead of it -----------------------------------------------------------------------------------------


async def test_what_is_near_is_waited_for_and_what_is_far_is_asked_for(tmp_path, autojump_clock):
    source = stalled(K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await settled()
        with trio.move_on_after(1):
            await rig.read(K + NEAR)
        assert rig.asked() == [(0, None)]
        await rig.read(40 * K)
        assert rig.asked() == [(0, None), (40 * K, 44 * K)]


async def test_a_window_grows_while_it_is_read_on_and_is_small_again_elsewhere(tmp_path, autojump_clock):
    data = DATA * 3
    source = stalled(K, data)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset in range(20 * K, 100 * K, K):
            await rig.read(offset, K)
        await rig.read(150 * K)
        await rig.read(178 * K)
        assert rig.asked() == [
            (0, None),
            (20 * K, 24 * K),
            (24 * K, 32 * K),
            (32 * K, 48 * K),
            (48 * K, 80 * K),
            (80 * K, 112 * K),
            (150 * K, 154 * K),
            (178 * K, None),
        ]


async def test_a_seek_does_not_ask_for_what_is_there(tmp_path, autojump_clock):
    source = stalled(K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(30 * K)
        await settled()
        await rig.read(28 * K)
        assert rig.asked()[1:] == [(30 * K, 34 * K), (26 * K, 30 * K)]
        await settled()
        before = rig.stats.fetched
        await rig.read(29 * K, 2 * K)
        assert rig.stats.fetched == before


async def test_at_most_two_and_the_one_unwanted_longest_makes_way(tmp_path, autojump_clock):
    data = DATA * 3
    source = stalled(K, data)
    for at in (61, 121):
        source.stalls[at * K] = trio.Event()
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await trio.sleep(1)
        await rig.read(60 * K)
        await trio.sleep(1)
        await rig.read(120 * K)
        await settled()
        assert source.running == 2
        assert rig.asked() == [(0, None), (60 * K, 64 * K), (120 * K, 124 * K)]
        source.stalls[61 * K].set()
        await trio.sleep(1)
        await rig.read(62 * K)
        assert len(rig.asked()) == 3, "the one there went on"


async def test_those_that_are_waited_for_stay(tmp_path, autojump_clock):
    data = DATA * 3
    source = stalled(K, data)
    source.stalls[60 * K] = trio.Event()
    async with filling(tmp_path, source) as rig, trio.open_nursery() as nursery:
        await begun(rig)
        for offset in (K, 60 * K, 120 * K):
            nursery.start_soon(rig.read, offset)
            await settled()
        assert rig.asked() == [(0, None), (60 * K, 64 * K)]
        source.stalls[60 * K].set()
        await settled()
        assert rig.asked() == [(0, None), (60 * K, 64 * K), (120 * K, 124 * K)]
        nursery.cancel_scope.cancel()


async def test_what_seekers_left_out_is_fetched_while_it_is_open(tmp_path, autojump_clock):
    source = stalled(K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(40 * K)
        source.release()
        await rig.ended()
        assert rig.blob.complete
        assert os.pread(rig.blob.fd, len(DATA), 0) == DATA
        assert rig.stats.fetched <= len(DATA) + NEAR, "a short way is no reason for a request"
        assert rig.asked() == [(0, None), (40 * K, 44 * K)]


async def test_what_is_there_beyond_the_near_is_not_fetched_again(tmp_path, autojump_clock):
    """End the download from the start where much is there already, and fetch the rest by another one."""
    source = stalled(K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset in range(20 * K, 36 * K, K):
            await rig.read(offset, K)
        source.release()
        await rig.blob.wait_until_verified()
        await rig.ended()
        assert rig.blob.complete
        assert rig.stats.fetched <= len(DATA) + 2 * K


@pytest.mark.parametrize("known", [True, False])
async def test_where_there_are_no_ranges_everybody_waits(tmp_path, autojump_clock, known):
    source = FakeSource(DATA, chunk=K, pause=1, ranged=False)
    source.seekable = not known
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(50 * K)
        assert source.starts == ([0] if known else [0, 50 * K])
        assert rig.stats.fetched <= len(DATA)
        await rig.blob.wait_until_verified()
        assert len(source.starts) == (1 if known else 2)


async def test_without_ranges_a_download_begins_again_where_the_first_has_ended(tmp_path, autojump_clock):
    """Skip the bytes that are there."""
    source = stalled(20 * K, ranged=False)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset in range(0, 20 * K, K):
            await rig.read(offset)
        rig.blob.users = 0
        rig.fill.linger()
        await trio.sleep(LINGER_SECONDS + 1)
        assert (rig.fill.is_running, source.running) == (False, 0)
        rig.blob.users = 1
        source.stalls.clear()
        await rig.read(0)
        await rig.read(30 * K)
        assert source.starts == [0, 30 * K]
        await rig.blob.wait_until_verified()
        assert source.starts == [0, 30 * K]
        assert rig.blob.complete
        assert os.pread(rig.blob.fd, len(DATA), 0) == DATA


# -- what is held back -------------------------------------------------------------------------------------------

HELD = 128  # HOLD_BACK, scaled


def orders() -> dict[str, list[tuple[int, int]]]:
    """Return ways to read a file of 60 KiB, each covering all of its bytes."""
    forward = [(offset, K) for offset in range(0, len(DATA), K)]
    pieces = [(offset, 100) for offset in range(0, len(DATA), 100)]
    random.Random(4).shuffle(pieces)
    return {
        "forward": forward,
        "backward": forward[::-1],
        "tail first": forward[40:] + forward[:40],
        "from the middle": forward[30:] + forward[:30][::-1],
        "random": pieces,
        "at once": [(0, len(DATA))],
    }


@pytest.mark.parametrize("damaged", [True, False])
@pytest.mark.parametrize("ranged", [True, False])
@pytest.mark.parametrize("order", orders())
@pytest.mark.parametrize("readers", [1, 2])
async def test_all_bytes_are_handed_out_only_of_a_verified_file(
    tmp_path, autojump_clock, order, damaged, ranged, readers
):
    """Read in any order, by one reader or by two that share the reads."""
    source = FakeSource(DATA, chunk=K, pause=0.01, ranged=ranged)
    handed: set[int] = set()
    failures = []
    todo = iter(orders()[order])
    async with filling(tmp_path, source, digest=md5(b"else" if damaged else DATA)) as rig:
        await begun(rig)

        async def reader() -> None:
            for offset, length in todo:
                try:
                    await rig.read(offset, length)
                except BadReply as error:
                    failures.append(error)
                    return
                handed.update(range(offset, min(offset + length, len(DATA))))

        async with trio.open_nursery() as nursery:
            for _ in range(readers):
                nursery.start_soon(reader)
        if damaged:
            assert failures
            assert len(DATA) - len(handed) >= HELD
        else:
            assert (failures, len(handed), rig.blob.complete) == ([], len(DATA), True)


async def test_what_was_handed_out_is_handed_out_again_before_the_verdict(tmp_path, autojump_clock):
    held = len(DATA) - HELD
    source = stalled(held + 10)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(0, held)
        with trio.move_on_after(10) as late:
            await rig.read(held, 1)
        assert late.cancelled_caught
        await rig.read(held - K, K)
        source.release()
        await rig.read(held, HELD)
        assert rig.blob.complete


async def test_who_waits_for_the_verdict_has_what_is_missing_fetched(tmp_path, autojump_clock, monkeypatch):
    """Wake the download that brings the missing bytes, which rests because its reader is far behind."""
    monkeypatch.setattr(planner_module, "READ_AHEAD_BYTES", 8 * K)
    source = FakeSource(DATA, chunk=K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset in range(30 * K, len(DATA), K):
            await rig.read(offset, K)
        await rig.read(0)
        await settled()
        assert not rig.blob.complete
        began = trio.current_time()
        await rig.blob.wait_until_verified()
        assert trio.current_time() - began < PAUSE_SECONDS / 2


# -- coming and going --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranged", [True, False])
async def test_a_download_that_nobody_waits_for_rests_and_ends_after_a_while(tmp_path, autojump_clock, ranged):
    source = FakeSource(DATA, chunk=K, pause=0.5)
    source.seekable = ranged
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(0)
        rig.blob.users = 0
        rig.fill.linger()
        await trio.sleep((PAUSE_SECONDS if ranged else LINGER_SECONDS) - 0.6)
        assert (rig.fill.is_running, source.running) == (True, 1)
        await trio.sleep(LINGER_SECONDS)
        assert (rig.fill.is_running, source.running, rig.changes) == (False, 0, 1)
        assert rig.blob.failure is None
        assert rig.stats.fetched <= NEAR


async def test_who_comes_back_keeps_it_going(tmp_path, autojump_clock):
    source, other = FakeSource(DATA, chunk=10, pause=0.5), FakeSource(DATA, chunk=K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        rig.fill.linger()
        await trio.sleep(1)
        rig.fill.resume(other)
        await trio.sleep(2 * LINGER_SECONDS)
        assert source.running == 1
        await rig.read(40 * K)
        assert other.starts == [40 * K], "what is begun from now on is the new one's"


async def test_of_what_is_wanted_whole_the_next_one_begins_where_it_ended(tmp_path, autojump_clock):
    source = FakeSource(DATA, chunk=10, pause=0.5)
    async with filling(tmp_path, source, strict=True) as rig:
        await begun(rig)
        rig.fill.linger()
        await trio.sleep(LINGER_SECONDS + 0.1)
        assert source.starts == [0, rig.blob.present.first_missing(0)]
        assert source.starts[1] > 0


async def test_far_ahead_of_its_reader_a_download_pauses_and_ends(tmp_path, autojump_clock, monkeypatch):
    monkeypatch.setattr(planner_module, "READ_AHEAD_BYTES", 8 * K)
    source = FakeSource(DATA, chunk=K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(0)
        await trio.sleep(PAUSE_SECONDS - 0.1)
        assert source.running == 1
        await trio.sleep(0.2)
        assert (source.running, rig.fill.is_running, rig.blob.failure) == (0, False, None)
        assert 6 * K <= rig.stats.fetched <= 8 * K + NEAR
        await trio.sleep(100)
        assert source.starts == [0], "nobody has asked for more"
        fetched = rig.stats.fetched
        await rig.read(fetched)
        assert source.starts == [0, fetched]


async def test_a_reader_that_comes_on_in_time_keeps_it(tmp_path, autojump_clock, monkeypatch):
    monkeypatch.setattr(planner_module, "READ_AHEAD_BYTES", 8 * K)
    source = FakeSource(DATA, chunk=K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset in range(0, 20 * K, K):
            await rig.read(offset, K)
            await trio.sleep(PAUSE_SECONDS / 2)
        assert source.starts == [0]
        assert rig.stats.fetched < len(DATA)


async def test_others_have_their_turn_between_two_chunks(tmp_path, autojump_clock):
    class Ready:
        """Chunks that are there already, so that iterating never waits."""

        def __init__(self) -> None:
            self.left = [b"x"] * 500

        def __aiter__(self) -> "Ready":
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    class Source(FakeSource):
        @asynccontextmanager
        async def open(self, *_: Any) -> AsyncIterator[Any]:
            await trio.lowlevel.checkpoint()
            yield Body(0, 500, "", Ready())

    turns = 0
    async with filling(tmp_path, Source(b"x" * 500)) as rig:
        rig.fill.start()
        while not rig.blob.complete:
            turns += 1
            await trio.lowlevel.checkpoint()
    assert turns > 400


@pytest.mark.parametrize("came", [0, 20 * K])
async def test_a_file_that_is_handed_out_whole_goes_on_where_it_ended(tmp_path, autojump_clock, came):
    """Resume wherever the reader is."""
    source = stalled(came)
    async with filling(tmp_path, source, strict=True) as rig:
        await begun(rig)
        await settled()
        rig.blob.users = 0
        rig.fill.linger()
        await trio.sleep(LINGER_SECONDS + 1)
        assert source.running == 0
        rig.blob.users = 1
        source.stalls.clear()
        await rig.read(50 * K)
        assert source.starts == [0, came]


# -- more connections --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alone", "grants", "at_once"), [(True, True, 3), (False, True, 1), (True, False, 1)])
async def test_more_connections_where_they_bring_more(tmp_path, autojump_clock, alone, grants, at_once):
    source = FakeSource(DATA * 4, chunk=K, pause=0.2)
    source.grants = grants
    async with filling(tmp_path, source) as rig:
        rig.only = alone
        await begun(rig)
        for offset in range(0, len(source.data), 4 * K):
            await rig.read(offset, 4 * K)
        assert rig.blob.complete
    assert source.at_once == at_once
    helpers = rig.asked()[1:]
    assert bool(helpers) is (at_once > 1)
    assert all(stop is not None and stop - start <= 32 * K for start, stop in helpers)
    assert all(start >= 32 * K for start, _ in helpers), "the first one goes on to where they begin"
    assert len(rig.asked()) <= 1 + len(source.data) / (32 * K)
    assert source.overlaps == []
    assert rig.stats.fetched <= len(source.data) + NEAR


async def test_a_file_that_is_handed_out_whole_has_one_connection(tmp_path, autojump_clock):
    source = FakeSource(DATA, chunk=K, pause=0.5)
    source.grants = True
    async with filling(tmp_path, source, strict=True) as rig:
        await begun(rig)
        await rig.read(0)
    assert (source.at_once, source.starts) == (1, [0])


# -- a file that its source writes -------------------------------------------------------------------------------


class Failing(FakeSource):
    """A source that writes bodies itself and finds the disk full so many times, each time at once or after a while."""

    times = 1
    after = 0

    def _into(self, chunks: AsyncGenerator[bytes]) -> Any:
        write = super()._into(chunks)

        async def into(descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
            if self.times and offset >= self.after:
                self.times -= 1
                raise OSError(28, "No space left on device")
            async for count in write(descriptor, offset, length):
                yield count

        return into


def fail_once(monkeypatch: pytest.MonkeyPatch, source: Failing, at: int) -> None:
    """Let the disk fail from `at` on; a source that writes by itself fails again after room was made."""
    source.times, source.after = (2, at) if source.writes else (0, 0)
    left = [0 if source.writes else 1]

    def write(fd: int, data: memoryview, offset: int) -> None:
        if offset >= at and left[0]:
            left[0] = 0
            raise OSError(5, "Input/output error")
        os.pwrite(fd, data, offset)

    monkeypatch.setattr(writer_module, "write_all", write)


@pytest.mark.parametrize("times", [1, 2])
async def test_room_is_made_once_for_what_others_write(tmp_path, autojump_clock, times):
    source = Failing(DATA, chunk=K)
    source.times = times
    if not source.writes:
        return
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(0)
        await rig.blob.wait_until_verified()
        assert len(rig.store.evicted) == 1
        assert rig.fill.writer.is_elsewhere is (times == 2)
        assert rig.store.discarded == ["file"] * (times == 2)


# -- where the directory takes nothing ---------------------------------------------------------------------------


class NoDisk(Keeping):
    """A disk that takes no file at all."""

    def create(self) -> Partial:
        raise OSError(28, "No space left on device")


@pytest.fixture
def full(monkeypatch):
    monkeypatch.setattr(writer_module, "HASH_LAG_BYTES", K)
    monkeypatch.setattr(Rig, "store_class", NoDisk)


async def read_through(rig: Rig, start: int = 0, stop: int = len(DATA)) -> None:
    for offset in range(start, stop, K):
        await rig.read(offset, K)


@pytest.mark.parametrize("ranged", [True, False])
@pytest.mark.parametrize("digest", [True, False])
async def test_a_big_file_that_the_directory_refuses_is_read_and_verified_elsewhere(
    tmp_path, patient_clock, full, digest, ranged
):
    source = FakeSource(DATA, chunk=K, ranged=ranged)
    source.seekable = ranged
    async with filling(tmp_path, source, digest=md5(DATA) if digest else "") as rig:
        await begun(rig)
        assert rig.fill.writer.is_elsewhere is True
        for _ in range(2):
            await read_through(rig)
            await rig.ended()
        assert (rig.blob.complete, rig.store.kept, source.starts) == (True, [], [0])
        assert (rig.stats.fetched, len(rig.store.evicted)) == (len(DATA), 1), "the next file may have room"


async def test_a_damaged_file_elsewhere_is_an_error_before_its_end(tmp_path, patient_clock, full):
    async with filling(tmp_path, FakeSource(DATA, chunk=K), digest=md5(b"another")) as rig:
        await begun(rig)
        with pytest.raises(BadReply, match="^k: its MD5 is"):
            await read_through(rig)
        assert rig.blob.complete is False


async def test_a_small_file_that_the_directory_refuses_is_whole_elsewhere(tmp_path, autojump_clock, full):
    source = FakeSource(DATA[: 8 * K], chunk=K)
    async with filling(tmp_path, source, digest=md5(source.data)) as rig:
        await begun(rig)
        await rig.read(0, 8 * K)
        assert (rig.fill.writer.is_elsewhere, rig.blob.complete, rig.store.kept) == (True, True, [])


async def test_where_there_is_no_room_elsewhere_either_that_is_the_error(tmp_path, autojump_clock, monkeypatch):
    class Nowhere(NoDisk):
        def create_elsewhere(self, size: int) -> Partial:
            raise CacheError("none left in memory")

    monkeypatch.setattr(Rig, "store_class", Nowhere)
    async with filling(tmp_path, FakeSource(DATA, chunk=K)) as rig:
        await begun(rig)
        with pytest.raises(CacheError, match="none left in memory"):
            await read_through(rig)
        await settled()
        assert (rig.fill.is_running, rig.fill.writer.partial) == (False, None)


@pytest.mark.parametrize("hash_lag", [K, 2**40])
@pytest.mark.parametrize("size", [8 * K, 60 * K])
@pytest.mark.parametrize("digest", [True, False])
async def test_a_disk_that_fails_in_the_middle_is_not_noticed(
    tmp_path, patient_clock, monkeypatch, size, digest, hash_lag
):
    """Continue elsewhere with what had arrived, and fetch nothing twice; nothing is cached."""
    monkeypatch.setattr(writer_module, "HASH_LAG_BYTES", hash_lag)
    source = Failing(DATA[:size], chunk=K)
    fail_once(monkeypatch, source, size // 2)
    async with filling(tmp_path, source, digest=md5(source.data) if digest else "") as rig:
        await begun(rig)
        assert rig.fill.writer.is_elsewhere is False
        await read_through(rig, 0, size)
        await rig.ended()
        assert (rig.fill.writer.is_elsewhere, rig.blob.complete) == (True, True)
        assert (rig.store.discarded, rig.store.kept) == (["file"], [])
        assert rig.stats.fetched <= size + 2 * K


async def test_a_body_of_unknown_length_is_not_longer_than_it_can_be(tmp_path, autojump_clock):
    """Bound the body by the listed length; without a digest by a HEAD, and otherwise by the size of the cache."""
    for listed, digest, stated, most in (
        (10 * K, md5(DATA), len(DATA), 10 * K),
        (10 * K, "", 15 * K, 15 * K),
        (None, "", None, 20 * K),
    ):
        source = FakeSource(DATA, chunk=K)
        source.states_size, source.head_size, source.heads_work = False, stated, stated is not None
        async with filling(tmp_path, source, listed=listed, digest=digest) as rig:
            rig.store.limit = 20 * K
            await begun(rig)
            text = rf"^k: of unknown length, and longer than it can be \({most + K} bytes\)"
            with pytest.raises(BadReply, match=text):
                await rig.blob.read(0, 1)


async def test_what_tells_two_contents_apart_is_known_from_the_reply(tmp_path, autojump_clock):
    for modified, strong in (("Mon", True), ("Mon", False), ("", True)):
        source = FakeSource(DATA, chunk=K)
        source.modified, source.strong = modified, strong
        await trio.sleep(1)
        async with filling(tmp_path, source) as rig:
            await begun(rig)
            assert rig.blob.stamp == (modified if modified and strong else repr(trio.current_time()))


async def test_a_disk_that_fails_stops_every_download(tmp_path, patient_clock, monkeypatch):
    """Stop also a download that waits for its server; then all of them go on in memory."""
    source = Failing(DATA, chunk=K)
    source.stalls[K] = trio.Event()
    fail_once(monkeypatch, source, 40 * K)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await settled()
        await rig.read(40 * K)
        assert rig.fill.writer.is_elsewhere is True


async def test_where_there_is_no_memory_either_that_is_the_error(tmp_path, autojump_clock, monkeypatch):
    class Neither(Keeping):
        def create_elsewhere(self, size: int) -> Partial:
            raise CacheError("no memory")

    monkeypatch.setattr(Rig, "store_class", Neither)
    source = Failing(DATA, chunk=K)
    source.times = 2 if source.writes else 0

    def write(fd: int, data: memoryview, offset: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(writer_module, "write_all", write)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        with pytest.raises(CacheError, match="no memory"):
            await rig.blob.read(0, 1)
        await settled()
        assert rig.fill.is_running is False


async def test_a_source_is_told_the_length_once_it_is_known(tmp_path, autojump_clock):
    class Told(FakeSource):
        sizes: list[int | None] = []

        def open(self, start, size=None, stop=None):
            Told.sizes.append(size)
            return super().open(start, size, stop)

    Told.sizes.clear()
    source = Told(DATA, chunk=K)
    source.stalls[K] = trio.Event()
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(40 * K)
    assert Told.sizes == [None, len(DATA)]


async def test_a_body_that_is_left_half_way_is_closed_before_its_reply(tmp_path, autojump_clock):
    closed: list[str] = []

    class Source(FakeSource):
        @asynccontextmanager
        async def open(self, start: int, *_: Any) -> AsyncIterator[Any]:
            async def chunks() -> AsyncGenerator[bytes]:
                try:
                    for offset in range(start, len(DATA), K):
                        await trio.sleep(0.1)
                        yield DATA[offset : offset + K]
                finally:
                    closed.append("body")

            try:
                yield Body(start, len(DATA), "m", chunks())
            finally:
                closed.append("reply")

    async with filling(tmp_path, Source(DATA)) as rig:
        await begun(rig)
        await rig.read(40 * K)
        rig.fill.linger()
        await trio.sleep(LINGER_SECONDS + 1)
    assert closed
    assert closed == ["body", "reply"] * (len(closed) // 2)


async def test_a_server_that_says_it_seeks_and_does_not_is_found_out(tmp_path, autojump_clock):
    """Decide for this file by the server's first reply."""

    class Lying(FakeSource):
        seekable = property(lambda self: True, lambda self, value: None)

    source = Lying(DATA, chunk=K, pause=1, ranged=False)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset in (30 * K, 50 * K, len(DATA) - 1):
            await rig.read(offset)
        assert source.starts == [0, 30 * K]


async def test_a_large_file_is_counted_before_its_first_byte(tmp_path, autojump_clock):
    async with filling(tmp_path, stalled(0)) as rig:
        await begun(rig)
        await settled()
        assert rig.store.reserved == [len(DATA)]


@pytest.mark.parametrize("ranged", [True, False])
async def test_who_has_it_open_gets_the_rest_of_what_was_given_up(tmp_path, autojump_clock, ranged):
    """Fetch from the start where there are no ranges, or where the length is unknown."""
    for states_size in (True, False):
        source = FakeSource(DATA, chunk=10, pause=0.5, ranged=ranged)
        source.seekable, source.states_size = ranged, states_size
        async with filling(tmp_path, source, strict=True) as rig:
            rig.fill.start()
            await trio.sleep(2)
            rig.fill.linger()
            await trio.sleep(LINGER_SECONDS + 0.1)
            assert source.starts == [0, rig.blob.present.first_missing(0) if ranged and states_size else 0]
            assert rig.blob.present.first_missing(0) > 0


async def test_no_byte_is_written_twice(tmp_path, autojump_clock):
    """Skip what is there, whichever download wrote it."""
    placed: list[tuple[int, int]] = []

    class Placed(FakeSource):
        def _into(self, chunks: AsyncGenerator[bytes]) -> Any:
            write = super()._into(chunks)

            async def into(descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
                async for count in write(descriptor, offset, length):
                    if descriptor is not None:
                        placed.append((offset, offset + count))
                    offset += count
                    yield count

            return into

    source = Placed(DATA, chunk=K)
    source.stalls[K] = trio.Event()
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset in (40, 20, 30, 38, 10):
            await rig.read(offset * K)
        source.release()
        await rig.blob.wait_until_verified()
        assert os.pread(rig.blob.fd, len(DATA), 0) == DATA
        if source.writes:
            assert sorted(placed)[0][0] == 0
            assert all(end == start for (_, end), (start, _) in pairwise(sorted(placed)))
