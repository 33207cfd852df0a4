"""Test the content cache with files above 8 MiB, which are streamed and sought in."""

import pytest
import trio
import trio.testing

from tests.support import content_fakes as fakes
from tests.support.content_fakes import LIMIT, FakeSource, failure, is_kept, md5, read_all, undigested, until, version
from xnatfs.common.errors import BadReply, Stale, Unreachable
from xnatfs.content import Blob, Version, blob, fill, open_cache, planner, writer
from xnatfs.content.download import PAUSE_SECONDS
from xnatfs.content.fill import LINGER_SECONDS
from xnatfs.content.planner import MAX_DOWNLOADS, MAX_HELPERS, NextDownload

# The same rules at a sixteenth of the size, as what they cost at full size is copying; but for `at_full_size`.
SCALE = 16
SCALED = [
    (blob, "HOLD_BACK_BYTES"),
    (planner, "MAX_WINDOW_BYTES"),
    (planner, "NEAR_BYTES"),
    (planner, "SHARE_BYTES"),
    (blob, "SMALL_FILE_BYTES"),
    (planner, "WINDOW_BYTES"),
    (writer, "HASH_LAG_BYTES"),
    (writer, "HASH_PIECE_BYTES"),
    (writer, "SPARE_BYTES"),
    (planner, "READ_AHEAD_BYTES"),
    (planner, "MAX_STEP_BYTES"),
]
MiB = fakes.MiB // SCALE
HOLD_BACK = blob.HOLD_BACK_BYTES // SCALE
NEAR = planner.NEAR_BYTES // SCALE
BIG = fakes.BIG[: 12 * MiB + 777]
END = len(BIG)
FAR = 10 * MiB  # from the start: more than what is waited for


@pytest.fixture(autouse=True, params=["received", "written by another process"])
def _who_writes(request, monkeypatch):
    monkeypatch.setattr(FakeSource, "writes", request.param != "received")
    if "at_full_size" not in request.fixturenames:
        for module, name in SCALED:
            monkeypatch.setattr(module, name, getattr(module, name) // SCALE)
        # As where the listing has no length: test_windows.py has downloads that begin small.
        monkeypatch.setattr(fill.Fill, "start", lambda self: self._launch(NextDownload(0, None)))


@pytest.fixture
def at_full_size() -> bytes:
    """Provide a file at full size, with the limits of the cache not scaled."""
    return fakes.BIG


def stalled(at: int, data: bytes = BIG, **options: object) -> FakeSource:
    """Return a source whose download from the start stops at an offset."""
    source = FakeSource(data, chunk=MiB, **options)  # type: ignore[arg-type]
    source.stalls[at] = trio.Event()
    return source


def stalled_at_the_end() -> FakeSource:
    """Return a source that sends all but its end or, where its bytes have no other end, all but the last of them."""
    return stalled(END - FakeSource.writes)


async def waits(awaitable) -> bool:
    """Return whether the awaitable is still waiting after minutes."""
    with trio.move_on_after(100) as timeout:
        await awaitable
    return timeout.cancelled_caught


async def read_on(blob: Blob, offsets: list[int]) -> None:
    """Read in small steps from each offset."""
    for offset in range(0, blob.size, 4096):
        offsets.append(offset)
        await blob.read(offset, 4096)


# From the start.


async def test_a_big_file_is_read_while_it_comes(tmp_path, patient_clock):
    """Serve the first bytes before the last arrive."""
    source = stalled(2 * MiB)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        assert blob.size == END
        assert await blob.read(0, 1000) == BIG[:1000]
        assert await blob.read(2 * MiB - 10, 10) == BIG[2 * MiB - 10 : 2 * MiB]
        assert await waits(blob.read(2 * MiB - 10, 11))
        source.stalls[2 * MiB].set()
        assert await blob.read(2 * MiB - 10, 20) == BIG[2 * MiB - 10 : 2 * MiB + 10]
        blob.close()


async def test_a_big_file_is_kept_and_found_again(tmp_path, at_full_size):
    """Cache every byte of it, with two requests."""
    source = FakeSource(at_full_size)
    for _ in range(2):
        async with open_cache(tmp_path, LIMIT) as cache:
            assert await read_all(cache, version(at_full_size), source) == at_full_size
    assert source.starts == [0, planner.WINDOW_BYTES]


async def test_two_readers_share_one_stream(tmp_path, patient_clock):
    """Share a stream between readers at any distance within it."""
    source = FakeSource(BIG, chunk=MiB, pause=0.1)
    async with open_cache(tmp_path, LIMIT) as cache, trio.open_nursery() as nursery:

        async def reader(after: float) -> None:
            await trio.sleep(after)
            assert await read_all(cache, version(BIG), source) == BIG

        nursery.start_soon(reader, 0)
        nursery.start_soon(reader, 0.55)
    assert source.starts == [0]


async def test_the_end_is_held_back_until_all_has_come(tmp_path, patient_clock):
    """Hold back the last 128 KiB from a sequential reader until the file is verified."""
    source = stalled_at_the_end()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        held = END - HOLD_BACK
        for offset in range(0, held, HOLD_BACK):
            await blob.read(offset, min(HOLD_BACK, held - offset))
        assert await blob.read(held - 10, 10) == BIG[held - 10 : held]
        assert await waits(blob.read(held - 10, 11))
        assert await waits(blob.read(END - 1, 1))
        assert not blob.complete
        source.release()
        assert await blob.read(END - 1, 1) == BIG[-1:]
        assert blob.complete
        blob.close()


async def test_the_end_of_a_damaged_file_is_never_handed_out(tmp_path):
    """Check the digest before the end of the file is reached."""
    wanted = Version("k", END, md5(b"something else"))
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(wanted, FakeSource(BIG))
        offsets: list[int] = []
        with pytest.raises(BadReply, match="k: its MD5"):
            await read_on(blob, offsets)
        assert MiB < offsets[-1] <= END - HOLD_BACK
        with pytest.raises(BadReply, match="k: its MD5"):
            await blob.read(0, 10)
        blob.close()
        await until(lambda: cache.bytes_used == 0)
        assert cache.stats.damaged == ["k"]
    assert list((tmp_path / "partial").iterdir()) == []
    assert not await is_kept(tmp_path, wanted)


async def test_a_file_found_damaged_is_verified_before_any_byte_is_handed_out(tmp_path):
    """Verify first for programs that open a file several times, since each part they read would be without an error."""
    wanted = version(BIG)
    async with open_cache(tmp_path, LIMIT) as cache:
        assert isinstance(await failure(cache, wanted, FakeSource(bytes(END))), BadReply)
        blob = await cache.open(wanted, FakeSource(bytes(END)))
        with pytest.raises(BadReply, match="its MD5"):
            await blob.read(END // 2, 10)
        blob.close()
        assert await read_all(cache, wanted, FakeSource(BIG)) == BIG
        await cache.evict(0)
        blob = await cache.open(wanted, stalled(2 * MiB))
        assert await blob.read(0, 10) == BIG[:10], "it is sound, and streams again"
        blob.close()


@pytest.mark.parametrize("stated", [END + 1, END - 1])
async def test_a_big_body_of_another_length_than_announced_is_an_error(tmp_path, stated):
    """Hold back the end of a body that is truncated or too long, and do not cache it."""
    source = FakeSource(BIG)
    source.size = stated
    async with open_cache(tmp_path, LIMIT) as cache:
        assert isinstance(await failure(cache, undigested(BIG), source), BadReply)
    assert not await is_kept(tmp_path, undigested(BIG))


async def test_a_file_longer_than_announced_is_not_read_whole_by_two_opens(tmp_path, patient_clock):
    """Raise an error without a digest: the first open has nearly all of it before its end proves wrong."""
    source, wanted = FakeSource(BIG, chunk=16 * 1024, pause=1), Version("k", END - 1, "")
    source.size = END - 1
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(wanted, source)
        assert await blob.read(0, 10) == BIG[:10]
        with pytest.raises(BadReply):
            await blob.wait_until_verified()
        blob.close()
        again = await cache.open(wanted, source)
        with pytest.raises(BadReply):
            await again.read(END - 64 * 1024, 10)
        again.close()


async def test_a_big_reply_without_a_length_is_waited_for(tmp_path, patient_clock):
    """Return from open when the whole body is there."""
    source = FakeSource(BIG, chunk=MiB, pause=1)
    source.states_size = False
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(Version("k", None, ""), source)
        assert blob.size == END
        assert blob.complete
        assert await blob.read(0, END) == BIG
        blob.close()


async def test_a_connection_lost_half_way_is_raised_at_all_readers(tmp_path, patient_clock):
    """Raise the error for a reader that waits and for a reader that comes back."""
    source = FakeSource(BIG, chunk=MiB, pause=1)
    source.breaks[3 * MiB] = Unreachable("connection lost")
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        assert await blob.read(0, MiB) == BIG[:MiB]
        with pytest.raises(Unreachable):
            await blob.read(4 * MiB, 10)
        with pytest.raises(Unreachable):
            await blob.read(0, 10)
        assert source.starts == [0]
        source.breaks.clear()
        assert await read_all(cache, version(BIG), source) == BIG
        blob.close()


# Seeking.


async def test_the_tail_can_be_read_first(tmp_path, patient_clock):
    """Fetch the tail at once by a second request; both together are the file, and hardly a byte comes twice."""
    source = stalled(MiB)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        assert await blob.read(END - 100, 100) == BIG[-100:]
        assert source.starts == [0, END - 100]
        source.stalls[MiB].set()
        assert await blob.read(0, END) == BIG
        assert blob.complete
        blob.close()
        assert cache.stats.fetched < END + source.chunk
        assert source.starts == [0, END - 100]
    assert await is_kept(tmp_path, version(BIG))


async def test_a_short_way_ahead_is_waited_for(tmp_path, patient_clock):
    """Wait for bytes nearby, because a request costs more than 4 MiB."""
    source = FakeSource(BIG, chunk=MiB, pause=1)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        assert await blob.read(4 * MiB, 10) == BIG[4 * MiB : 4 * MiB + 10]
        blob.close()
    assert source.starts == [0]


async def test_a_seeker_goes_on_from_where_it_is(tmp_path, patient_clock):
    """Send a small request at the seek position, and another for all that follows."""
    source = stalled(MiB)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        for offset in range(FAR, END - HOLD_BACK, HOLD_BACK):
            assert await blob.read(offset, HOLD_BACK) == BIG[offset : offset + HOLD_BACK]
        assert source.starts == [0, FAR, FAR + MiB]
        blob.close()


async def test_the_third_place_replaces_the_one_unwanted_longest(tmp_path, patient_clock):
    """Run two downloads at most; resume the replaced one where it stopped when a reader wants it again."""
    data = BIG * 4
    source = stalled(MiB, data)
    source.stalls[20 * MiB + MiB // 2] = source.stalls[40 * MiB + MiB // 2] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(data), source)
        for offset in (20 * MiB, 40 * MiB):
            assert await blob.read(offset, 10) == data[offset : offset + 10]
        await trio.testing.wait_all_tasks_blocked()
        assert source.starts == [0, 20 * MiB, 40 * MiB]
        assert source.running == MAX_DOWNLOADS
        source.stalls[MiB].set()
        assert await blob.read(2 * MiB, 10) == data[2 * MiB : 2 * MiB + 10]
        assert source.starts == [0, 20 * MiB, 40 * MiB, 2 * MiB]
        blob.close()


async def test_a_place_that_somebody_waits_for_is_not_replaced(tmp_path, patient_clock):
    """Let the third reader wait for its turn."""
    data = BIG * 4
    source = stalled(MiB, data)
    source.stalls[20 * MiB] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(data), source)
        results: dict[int, bytes] = {}

        async def reader(offset: int) -> None:
            results[offset] = await blob.read(offset, 10)

        async with trio.open_nursery() as nursery:
            for offset in (MiB, 20 * MiB, 40 * MiB):
                nursery.start_soon(reader, offset)
                await trio.testing.wait_all_tasks_blocked()
            assert source.starts == [0, 20 * MiB]
            source.stalls[20 * MiB].set()
            await trio.testing.wait_all_tasks_blocked()
            source.stalls[MiB].set()
        assert results == {offset: data[offset : offset + 10] for offset in (MiB, 20 * MiB, 40 * MiB)}
        blob.close()


async def test_where_there_are_no_ranges_a_seeker_waits(tmp_path, patient_clock):
    """Close a reply that restarts at the beginning, and request no further range."""
    source = FakeSource(BIG, chunk=MiB, pause=1, ranged=False)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        assert await blob.read(END - 10, 10) == BIG[-10:]
        blob.close()
        assert source.starts == [0, END - 10]
        assert cache.stats.fetched == END
        source.starts.clear()
        other = version(BIG, "other")
        blob = await cache.open(other, source)
        assert await blob.read(END - 10, 10) == BIG[-10:]
        blob.close()
        assert source.starts == [0]


async def test_strict_hands_out_nothing_before_all_is_verified(tmp_path, patient_clock):
    """Refuse to seek and to stream in strict mode."""
    source = stalled_at_the_end()
    async with open_cache(tmp_path, LIMIT, strict=True) as cache:
        blob = await cache.open(version(BIG), source)
        assert await waits(blob.read(0, 10))
        assert await waits(blob.read(END - 10, 10))
        source.release()
        assert await blob.read(END - 10, 10) == BIG[-10:]
        blob.close()
    assert source.starts == [0]


async def test_a_wrong_digest_after_seeking_fails_the_open_handles(tmp_path, patient_clock):
    """Keep what was already served, and raise an error from then on."""
    source = stalled(MiB)
    wanted = Version("k", END, md5(b"something else"))
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(wanted, source)
        assert await blob.read(FAR, 10) == BIG[FAR : FAR + 10]
        source.stalls[MiB].set()
        await until(lambda: not source.running)
        with pytest.raises(BadReply, match="k: its MD5"):
            await blob.read(0, END)
        with pytest.raises(BadReply, match="k: its MD5"):
            await blob.read(FAR, 10)
        blob.close()
    assert not await is_kept(tmp_path, wanted)


async def test_a_date_that_changes_between_two_replies_is_stale(tmp_path, patient_clock):
    """Keep the bytes of two versions apart."""
    source = stalled(MiB)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(undigested(BIG), source)
        source.modified = "Tue, 02 Jan 2024 00:00:00 GMT"
        for _ in range(2):
            with pytest.raises(Stale):
                await blob.read(FAR, 10)
        blob.close()
    assert source.running == 0


async def test_a_size_that_changes_between_two_replies_is_stale(tmp_path, patient_clock):
    """Treat another size as another version."""
    source = stalled(MiB)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(undigested(BIG), source)
        source.size = END + 1
        with pytest.raises(Stale):
            await blob.read(FAR, 10)
        blob.close()


async def test_an_answer_from_elsewhere_is_an_error(tmp_path, patient_clock):
    """Reject a range that is neither the requested one nor the whole file."""

    class Off(FakeSource):
        def open(self, start, size=None, stop=None):
            return super().open(start and start + 1, size, stop)

    source = Off(BIG, chunk=MiB)
    source.stalls[MiB] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        with pytest.raises(BadReply, match="were requested"):
            await blob.read(FAR, 10)
        blob.close()


@pytest.mark.parametrize("begins", [20, 36])
async def test_what_seekers_leave_out_is_fetched_once_as_much_was_read(tmp_path, patient_clock, begins):
    """Cache a file of which half was read, and do not fetch all of one that was only looked into."""
    data = BIG * 4
    source = FakeSource(data, chunk=MiB, pause=1)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(data), source)
        for offset in range(begins * MiB, len(data), MiB):
            assert await blob.read(offset, MiB) == data[offset : offset + MiB]
        await trio.sleep(1000)
        assert blob.complete is (begins == 20)
        blob.close()
    assert await is_kept(tmp_path, version(data)) is (begins == 20)


# Readers come and go.


async def test_without_readers_a_big_download_ends_soon(tmp_path, patient_clock):
    """Keep the download for a moment, because programs open a file several times."""
    source = FakeSource(BIG, chunk=1024, pause=1)
    async with open_cache(tmp_path, LIMIT) as cache:
        (await cache.open(version(BIG), source)).close()
        await trio.sleep(LINGER_SECONDS / 2)
        assert source.running == 1
        await trio.sleep(LINGER_SECONDS)
        assert source.running == 0
        assert cache.stats.fetched < 10 * 1024


async def test_a_file_opened_again_soon_goes_on(tmp_path, patient_clock):
    """Resume the same download."""
    source = FakeSource(BIG, chunk=MiB, pause=1)
    async with open_cache(tmp_path, LIMIT) as cache:
        (await cache.open(version(BIG), source)).close()
        await trio.sleep(LINGER_SECONDS / 2)
        assert await read_all(cache, version(BIG), source) == BIG
    assert source.starts == [0]


async def test_a_cancelled_open_of_a_big_file_leaves_nothing(tmp_path, patient_clock):
    """End the download after a while when the headers never arrive."""
    source = FakeSource(BIG, pause=3600)
    async with open_cache(tmp_path, LIMIT) as cache:
        with trio.move_on_after(1):
            await cache.open(version(BIG), source)
        await trio.sleep(2 * LINGER_SECONDS)
        source.pause = 0
        assert await read_all(cache, version(BIG), source) == BIG
    assert source.starts == [0, 0]


async def test_an_open_at_the_moment_the_download_is_given_up_gets_the_file(tmp_path, patient_clock):
    """Open just before, at, and just after that moment."""
    for delay in (LINGER_SECONDS - 0.001, LINGER_SECONDS, LINGER_SECONDS + 0.001):
        for pause in (1.0, 3600.0):
            source = FakeSource(BIG, chunk=MiB, pause=pause)
            async with open_cache(tmp_path / f"{delay}-{pause}", LIMIT) as cache:
                with trio.move_on_after(2):
                    (await cache.open(version(BIG), source)).close()
                await trio.sleep(delay)
                source.pause = 0.1
                assert await read_all(cache, version(BIG), source) == BIG


async def test_what_has_come_is_used_by_a_later_open(tmp_path, patient_clock):
    """Request only the rest."""
    source = stalled(3 * MiB)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        assert await blob.read(3 * MiB - 10, 10) == BIG[3 * MiB - 10 : 3 * MiB]
        blob.close()
        await trio.sleep(2 * LINGER_SECONDS)
        assert source.running == 0
        source.stalls.clear()
        assert await read_all(cache, version(BIG), source) == BIG
        assert cache.stats.fetched == END
    assert source.starts == [0, 3 * MiB]
    assert await is_kept(tmp_path, version(BIG))


@pytest.mark.parametrize("known", [True, False])
async def test_without_ranges_a_later_open_starts_over_but_serves_what_is_there(tmp_path, patient_clock, known):
    """Skip the bytes that are there already, also if the lack of ranges shows only now."""
    source = stalled(3 * MiB, ranged=False)
    source.seekable = not known
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        assert await blob.read(3 * MiB - 10, 10) == BIG[3 * MiB - 10 : 3 * MiB]
        blob.close()
        await trio.sleep(2 * LINGER_SECONDS)
        source.stalls.clear()
        blob = await cache.open(version(BIG), source)
        assert await blob.read(0, 3 * MiB) == BIG[: 3 * MiB]
        assert source.starts == [0]
        assert await blob.read(0, END) == BIG
        blob.close()
    assert source.starts == [0, 0 if known else 3 * MiB]
    assert await is_kept(tmp_path, version(BIG))


async def test_partly_fetched_files_are_few(tmp_path, patient_clock):
    """Drop the oldest for the newest; none outlives the cache."""
    async with open_cache(tmp_path, LIMIT) as cache:
        for number in range(7):
            source = stalled(MiB)
            (await cache.open(version(BIG, str(number)), source)).close()
            await trio.sleep(2 * LINGER_SECONDS)
        await until(lambda: cache.bytes_used == 4 * END)
        assert len(list((tmp_path / "partial").iterdir())) == 4
    assert list((tmp_path / "partial").iterdir()) == []
    assert not await is_kept(tmp_path, version(BIG, "6"))


async def test_a_cancelled_read_leaves_the_stream_to_the_others(tmp_path, patient_clock):
    """Leave the seek of a cancelled read to the other readers as well."""
    source = stalled(MiB)
    source.stalls[FAR] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        assert await waits(blob.read(FAR, 10))
        source.stalls[FAR].set()
        assert await blob.read(FAR, 10) == BIG[FAR : FAR + 10]
        source.stalls[MiB].set()
        assert await blob.read(0, END) == BIG
        blob.close()
    assert source.starts == [0, FAR]


@pytest.mark.parametrize("place", [None, 0, 5 * fakes.MiB, -1])
async def test_a_large_file_is_hashed_beside_the_download(tmp_path, at_full_size, place):
    """Hash piece by piece in a thread that follows the download; a single wrong byte is found wherever it is."""
    sent = bytearray(at_full_size)
    if place is not None:
        sent[place] ^= 1
    async with open_cache(tmp_path, LIMIT) as cache:
        source = FakeSource(bytes(sent), chunk=fakes.MiB)
        if place is None:
            assert await read_all(cache, version(at_full_size), source) == at_full_size
        else:
            with pytest.raises(BadReply):
                await read_all(cache, version(at_full_size), source)


# How much comes unasked.


async def test_a_look_at_the_head_of_a_file_does_not_fetch_all_of_it(tmp_path, patient_clock, monkeypatch):
    """Pause the download and end it when no reader goes on; a later reader resumes it from there."""
    monkeypatch.setattr(planner, "READ_AHEAD_BYTES", 4 * MiB)
    source = FakeSource(BIG, chunk=MiB)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        assert await blob.read(0, 1000) == BIG[:1000]
        await trio.sleep(PAUSE_SECONDS / 2)
        assert source.running == 1
        await trio.sleep(1000)
        assert source.running == 0
        fetched = cache.stats.fetched
        assert 4 * MiB <= fetched <= 4 * MiB + NEAR
        assert await blob.read(0, END) == BIG
        assert cache.stats.fetched == END
        blob.close()
    assert source.starts == [0, fetched]
    assert await is_kept(tmp_path, version(BIG))


async def test_whoever_reads_on_is_read_ahead_for_as_much_as_was_read(tmp_path, patient_clock, monkeypatch):
    monkeypatch.setattr(planner, "READ_AHEAD_BYTES", 2 * MiB)
    source = FakeSource(BIG, chunk=MiB)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        for read in range(MiB, 5 * MiB, MiB):
            await blob.read(read - MiB, MiB)
            await trio.sleep(PAUSE_SECONDS / 2)
            ahead = cache.stats.fetched - read
            assert max(2 * MiB, read) // 2 <= ahead <= max(2 * MiB, read) + NEAR
        blob.close()
    assert source.starts == [0]


async def test_a_slow_reader_keeps_its_download_where_there_are_no_ranges(tmp_path, patient_clock, monkeypatch):
    """Keep the download, which would otherwise restart at the first byte."""
    monkeypatch.setattr(planner, "READ_AHEAD_BYTES", 2 * MiB)
    source = FakeSource(BIG, chunk=MiB, ranged=False)
    source.seekable = False
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        assert await blob.read(0, 1000) == BIG[:1000]
        await trio.sleep(1000)
        await until(lambda: blob.complete)
        blob.close()
    assert source.starts == [0]


async def test_a_seek_asks_for_a_window_that_grows_while_it_is_read_on(tmp_path, patient_clock):
    """Bound the reply to a seek, so that a reader that jumps about does not fetch the whole file."""
    data = BIG * 5
    source = stalled(MiB, data)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(data), source)
        for offset in range(20 * MiB, 44 * MiB, MiB):
            assert await blob.read(offset, MiB) == data[offset : offset + MiB]
        assert await blob.read(55 * MiB, 10) == data[55 * MiB : 55 * MiB + 10]
        assert list(zip(source.starts, source.stops, strict=True)) == [
            (0, None),
            (20 * MiB, 21 * MiB),
            (21 * MiB, 23 * MiB),
            (23 * MiB, 27 * MiB),
            (27 * MiB, 35 * MiB),
            (35 * MiB, 51 * MiB),
            (55 * MiB, 56 * MiB),
        ]
        source.stalls[MiB].set()
        blob.close()


@pytest.mark.parametrize("shared", [True, False])
async def test_more_connections_are_used_where_they_bring_more(tmp_path, patient_clock, shared):
    """Stop at the connection that gains nothing, as where all of them share one line."""
    data = BIG * 10
    source = FakeSource(data, chunk=MiB, pause=0.2)
    source.grants = True
    source.line = trio.Lock() if shared else None
    async with open_cache(tmp_path, LIMIT) as cache:
        began = trio.current_time()
        assert await read_all(cache, undigested(data), source) == data
        took = trio.current_time() - began
        assert cache.stats.fetched < len(data) + 10 * NEAR
    alone = len(data) / MiB * 0.2
    if shared:
        assert source.at_once == 2
        assert took < 1.1 * alone
    else:
        assert source.at_once == 1 + MAX_HELPERS
        assert took < 0.6 * alone


async def test_two_big_files_at_once_have_one_connection_each(tmp_path, patient_clock):
    sources = [FakeSource(BIG * 4, chunk=MiB, pause=0.2) for _ in range(2)]
    async with open_cache(tmp_path, LIMIT) as cache, trio.open_nursery() as nursery:
        for number, source in enumerate(sources):
            source.grants = True
            nursery.start_soon(read_all, cache, version(source.data, f"34/{number}"), source)
    assert [source.at_once for source in sources] == [1, 1]


async def test_whoever_reads_backwards_gets_nothing_twice(tmp_path, patient_clock):
    data = BIG * 5
    source = stalled(MiB, data)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(data), source)
        for offset in range(50 * MiB, 10 * MiB, -MiB):
            assert await blob.read(offset, MiB) == data[offset : offset + MiB]
        blob.close()
        assert cache.stats.fetched <= 44 * MiB + MiB


async def test_a_digest_needs_no_descriptor_of_its_own(tmp_path, monkeypatch):
    def full(descriptor: int) -> int:
        raise OSError(24, "Too many open files")

    async with open_cache(tmp_path, LIMIT) as cache:
        monkeypatch.setattr("xnatfs.content.writer.os.dup", full)
        assert await read_all(cache, version(BIG), FakeSource(BIG, chunk=MiB)) == BIG


@pytest.mark.parametrize("delay", [0.5, 1.0, 2.0, 3.0])
async def test_no_two_downloads_write_one_place(tmp_path, patient_clock, delay):
    """Keep downloads apart, also where one reaches the start of another that has not been answered yet."""
    data = BIG * 10
    source = FakeSource(data, chunk=MiB, pause=0.2)
    source.grants, source.delay = True, delay
    async with open_cache(tmp_path, LIMIT) as cache:
        assert await read_all(cache, undigested(data), source) == data
        assert source.at_once > 1
        assert source.overlaps == []
