"""Test that a small window of a big file is requested, and more while it is read on; at a thousandth of the size."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from tests.content.test_fill import DATA, SIZES, K, Keeping, Rig, begun, filling, settled, stalled
from tests.support.content_fakes import FakeSource
from xnatfs.common.errors import Stale
from xnatfs.content import planner as planner_module
from xnatfs.content.disk.partial import Partial
from xnatfs.content.download import PAUSE_SECONDS
from xnatfs.content.fill import LINGER_SECONDS
from xnatfs.content.source import Body, WriteInto

BIG = DATA * 5
SHARE = 32 * K


@pytest.fixture(autouse=True, params=["received", "written by another process"])
def _scaled(request, monkeypatch):
    monkeypatch.setattr(FakeSource, "writes", request.param != "received")
    sizes = {**SIZES, (planner_module, "WINDOW_BYTES"): K, (planner_module, "READ_AHEAD_BYTES"): 4 * K}
    for (module, name), value in sizes.items():
        monkeypatch.setattr(module, name, value)


class Counting(FakeSource):
    """Note how many bytes each step asks for that is written by another process."""

    def __init__(self, data: bytes, **options: Any) -> None:
        super().__init__(data, **options)
        self.steps: list[int] = []

    def _into(self, chunks: AsyncGenerator[bytes]) -> WriteInto:
        carry = super()._into(chunks)

        def noting(descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
            self.steps.append(length)
            return carry(descriptor, offset, length)

        return noting


async def read_through(rig: Rig, piece: int = 100) -> None:
    for offset in range(0, len(rig.source.data), piece):
        await rig.read(offset, piece)


async def test_a_look_at_the_head_fetches_one_window(tmp_path, autojump_clock):
    async with filling(tmp_path, FakeSource(BIG)) as rig:
        await begun(rig)
        await rig.read(0, 400)
        await trio.sleep(100)
        assert (rig.asked(), rig.stats.fetched) == ([(0, K)], K)


async def test_a_look_at_the_tail_fetches_two(tmp_path, autojump_clock):
    async with filling(tmp_path, FakeSource(BIG)) as rig:
        await begun(rig)
        await rig.read(len(BIG) - 10)
        await trio.sleep(100)
        assert rig.asked() == [(0, K), (len(BIG) - 10, None)]
        assert rig.stats.fetched == K + 10


async def test_a_file_that_is_read_through_is_two_requests(tmp_path, autojump_clock):
    async with filling(tmp_path, FakeSource(BIG, chunk=100)) as rig:
        await begun(rig)
        await read_through(rig)
        assert (rig.asked(), rig.stats.fetched, rig.blob.complete) == ([(0, K), (K, None)], len(BIG), True)


async def test_reads_beyond_a_window_that_come_before_its_end_are_one_request(tmp_path, autojump_clock):
    """The kernel reads ahead, and its requests come out of order."""
    async with filling(tmp_path, stalled(K // 2, BIG)) as rig, trio.open_nursery() as nursery:
        await begun(rig)
        for offset in (0, K + 300, K, K - 100):
            nursery.start_soon(rig.read, offset, 400)
        await settled()
        assert rig.asked() == [(0, K)]
        rig.source.release()
        await settled()
        assert rig.asked() == [(0, K), (K, None)]


async def test_the_next_window_is_requested_before_the_last_is_used_up(tmp_path, autojump_clock):
    async with filling(tmp_path, FakeSource(BIG)) as rig:
        await begun(rig)
        await rig.read(0, K // 2)
        await settled()
        assert rig.asked() == [(0, K)]
        await rig.read(K // 2, 10)
        await settled()
        assert rig.asked() == [(0, K), (K, None)]


async def test_a_reader_that_stops_is_not_sent_much_more_than_it_has_read(tmp_path, autojump_clock):
    async with filling(tmp_path, FakeSource(BIG, chunk=100)) as rig:
        await begun(rig)
        for offset in range(0, 20 * K, 100):
            await rig.read(offset, 100)
        await trio.sleep(100)
        assert rig.stats.fetched <= 41 * K
        assert rig.source.running == 0


async def test_a_line_twice_as_fast_as_the_reader_takes_few_steps(tmp_path, autojump_clock, monkeypatch):
    """Each step costs a message to the process that writes, so none is for a few bytes."""
    monkeypatch.setattr(planner_module, "MAX_STEP_BYTES", 32 * K)
    source = Counting(BIG, chunk=K // 8, pause=0.001)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset in range(0, len(BIG), K // 8):
            await rig.read(offset, K // 8)
            await trio.sleep(0.002)
        assert (rig.stats.fetched, len(source.starts)) == (len(BIG), 2)
    assert len(source.steps) <= 48


async def test_one_that_reads_backwards_gets_windows(tmp_path, autojump_clock):
    async with filling(tmp_path, FakeSource(BIG)) as rig:
        await begun(rig)
        for offset in range(200 * K, 180 * K, -100):
            await rig.read(offset, 100)
        assert len(rig.asked()) <= 22
        assert rig.stats.fetched <= 22 * K


@pytest.mark.parametrize("burst", [0, 8, 16])
async def test_several_connections_take_few_requests(tmp_path, autojump_clock, burst):
    """On a line that paces each connection, whether or not it lets the first bytes of each pass at once."""

    class Paced(FakeSource):
        async def _chunks(self, data: bytes, start: int, stop: int | None) -> AsyncGenerator[bytes]:
            last = len(data) if stop is None else min(stop, len(data))
            for place in range(start, last, K):
                await trio.sleep(0.2 if place >= start + burst * K else 0)
                yield data[place : min(place + K, last)]

    source = Paced(BIG)
    source.grants = True
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await read_through(rig, 2 * K)
        assert rig.blob.complete
    assert source.at_once > 1
    assert len(source.starts) <= 2 + len(BIG) / SHARE
    assert rig.stats.fetched <= len(BIG) + 4 * K
    assert source.overlaps == []


async def test_a_server_that_grants_no_ranges_sends_all_by_one_request(tmp_path, autojump_clock):
    async with filling(tmp_path, FakeSource(BIG, chunk=K, ranged=False)) as rig:
        await begun(rig)
        await read_through(rig)
        assert (rig.asked(), rig.stats.fetched) == ([(0, K)], len(BIG))


async def test_without_ranges_a_download_rests_as_soon_as_its_reader_goes(tmp_path, autojump_clock):
    """One that comes back soon goes on with it."""
    source = FakeSource(BIG, chunk=K, pause=0.1, ranged=False)
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await rig.read(0)
        for _ in range(3):
            rig.blob.users = 0
            rig.fill.linger()
            await trio.sleep(LINGER_SECONDS - 1)
            fetched = rig.stats.fetched
            assert (source.running, fetched < 50 * K) == (1, True)
            rig.blob.users = 1
            rig.fill.resume(source)
            await rig.read(fetched)
        assert len(source.starts) == 1
        rig.blob.users = 0
        rig.fill.linger()
        await trio.sleep(LINGER_SECONDS + 1)
        assert source.running == 0


async def test_where_nothing_tells_versions_apart_it_comes_from_the_first_byte(tmp_path, autojump_clock):
    source = FakeSource(BIG, chunk=K)
    source.strong = False
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        await read_through(rig)
        assert rig.asked() == [(0, K), (0, None)]


# -- what follows a download ---------------------------------------------------------------------------------------


async def test_a_reader_that_has_stopped_is_sent_no_further_window(tmp_path, autojump_clock):
    """Request none when a download ends that has paused for as long as readers requested nothing."""
    async with filling(tmp_path, FakeSource(BIG, chunk=K)) as rig:
        await begun(rig)
        await settled()
        await rig.read(0, K)
        await settled()
        await rig.read(100 * K)
        await rig.read(100 * K + 600)
        await trio.sleep(PAUSE_SECONDS + 1)
        assert (rig.asked(), rig.source.running) == ([(0, K), (K, None), (100 * K, 101 * K)], 0)


async def test_the_next_window_of_a_reader_follows_the_download_of_another_one(tmp_path, autojump_clock):
    tail = len(BIG) - 10
    async with filling(tmp_path, stalled(tail, BIG)) as rig, trio.open_nursery() as nursery:
        await begun(rig)
        await settled()
        nursery.start_soon(rig.read, tail)
        await settled()
        await rig.read(100 * K)
        await rig.read(100 * K + 600)
        assert rig.asked() == [(0, K), (tail, None), (100 * K, 101 * K)]
        rig.source.release()
        await settled()
        assert rig.asked()[3:] == [(101 * K, 103 * K)]


async def test_a_file_of_which_as_much_is_left_as_was_read_is_complete_at_once(tmp_path, autojump_clock):
    """Write the last step without a pause, which ends where the read-ahead does."""
    source = FakeSource(BIG[: 10 * K], chunk=K)
    if not source.writes:
        return
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        for offset in range(0, 5 * K, K):
            await rig.read(offset, K)
        await trio.sleep(PAUSE_SECONDS / 2)
        assert rig.blob.complete


async def test_a_body_of_which_no_more_is_missing_is_closed_before_its_reply(tmp_path, autojump_clock):
    closed: list[str] = []

    class Source(FakeSource):
        @asynccontextmanager
        async def open(self, start: int, size: int | None = None, stop: int | None = None) -> AsyncIterator[Body]:
            async def chunks() -> AsyncGenerator[bytes]:
                try:
                    for offset in range(start, len(BIG), K):
                        yield BIG[offset : offset + K]
                finally:
                    closed.append("body")

            yield Body(start, len(BIG), "m", chunks())
            closed.append("reply")

    async with filling(tmp_path, Source(BIG), digest="d") as rig:
        await begun(rig)
        await settled()
        assert (rig.stats.fetched, closed) == (K, ["body", "reply"])


# -- replies that prove nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_proved", [True, False])
async def test_a_range_of_no_known_version_is_followed_by_the_file_from_its_first_byte(
    tmp_path, autojump_clock, is_proved
):
    """Also where no reader waits for it any more. It has changed if that reply has no validator either."""

    class Dateless(FakeSource):
        @asynccontextmanager
        async def open(self, start: int, size: int | None = None, stop: int | None = None) -> AsyncIterator[Body]:
            is_first = not self.starts
            async with super().open(start, size, stop) as body:
                has_validator = is_first or (is_proved and not start)
                yield body if has_validator else replace(body, modified="", validator="")

    source = Dateless(BIG, chunk=K)
    source.delay = 10
    async with filling(tmp_path, source) as rig:
        await begun(rig)
        with trio.move_on_after(1):
            await rig.read(40 * K)
        await trio.sleep(20)
        assert rig.asked() == [(0, K), (40 * K, 41 * K), (0, None)]
        assert rig.stats.fetched == K + is_proved * len(BIG), "nothing of the range"
        if is_proved:
            assert rig.blob.complete
            await rig.read(40 * K)
        else:
            with pytest.raises(Stale, match="^k: it changed on the server while it was read"):
                await rig.blob.read(0, 1)


async def test_a_reply_from_the_first_byte_to_a_seek_is_received_to_its_end(tmp_path, autojump_clock):
    class FromTheStart(FakeSource):
        def open(self, start, size=None, stop=None):
            return super().open(0, size, None)

    async with filling(tmp_path, FromTheStart(BIG, chunk=K)) as rig:
        await begun(rig)
        await settled()
        await rig.read(40 * K)
        await rig.blob.wait_until_verified()
        assert (rig.asked(), rig.stats.fetched) == ([(0, None)] * 2, len(BIG) + K)


async def test_a_download_that_ends_as_its_reply_arrives_leaves_a_file_that_can_be_opened(
    tmp_path, autojump_clock, monkeypatch
):
    class Yielding(Keeping):
        async def reserve(self, partial: Partial, size: int) -> None:
            await trio.lowlevel.checkpoint()
            await super().reserve(partial, size)

    class Late(FakeSource):
        @asynccontextmanager
        async def open(self, start: int, size: int | None = None, stop: int | None = None) -> AsyncIterator[Body]:
            async with super().open(start, size, stop) as body:
                if len(self.starts) == 1:
                    rig.fill.planner.downloads[0].scope.cancel()
                yield body

    monkeypatch.setattr(Rig, "store_class", Yielding)
    async with filling(tmp_path, Late(BIG, chunk=K)) as rig:
        rig.fill.start()
        await settled()
        assert not rig.fill.is_running
        assert rig.blob.ready.is_set(), "its length is known"
        await rig.read(0)


async def test_a_body_of_unknown_length_may_be_as_long_as_a_head_states(tmp_path, autojump_clock):
    source = FakeSource(BIG, chunk=len(BIG), ranged=False)
    source.states_size = False
    async with filling(tmp_path, source, listed=len(BIG) - 1) as rig:
        await begun(rig)
        await rig.read(0, len(BIG))
        assert source.heads == 1


async def test_a_file_that_the_directory_refuses_has_its_length_reserved_elsewhere(
    tmp_path, autojump_clock, monkeypatch
):
    reserved: list[int] = []

    class NoDisk(Keeping):
        def create(self) -> Partial:
            raise OSError(28, "No space left on device")

        def create_elsewhere(self, size: int) -> Partial:
            reserved.append(size)
            return super().create_elsewhere(size)

    monkeypatch.setattr(Rig, "store_class", NoDisk)
    async with filling(tmp_path, FakeSource(BIG)) as rig:
        await begun(rig)
        await rig.read(0)
        assert reserved == [len(BIG)]
