"""Test opening, small files, identity and failures in the content cache."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.support.content_fakes import (
    BIG,
    LIMIT,
    SMALL,
    FakeSource,
    MiB,
    failure,
    is_kept,
    md5,
    read_all,
    undigested,
    until,
    version,
)
from xnatfs.common.errors import BadReply, CacheError, NotFound, Unreachable
from xnatfs.content import Blob, Body, Head, Version, open_cache
from xnatfs.content.blob import blob_of
from xnatfs.content.disk.partial import Partial
from xnatfs.content.disk.store import Store
from xnatfs.content.fill import LINGER_SECONDS
from xnatfs.content.source import find_contradiction

# Small files.


async def test_a_small_file_is_read_as_it_is(tmp_path):
    """Read it whole, in parts, across the end and beyond it."""
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(SMALL), FakeSource(SMALL))
        assert blob.size == len(SMALL)
        assert await blob.read(0, len(SMALL)) == SMALL
        assert await blob.read(1000, 10) == SMALL[1000:1010]
        assert await blob.read(len(SMALL) - 5, 4096) == SMALL[-5:]
        assert await blob.read(len(SMALL), 1) == b""
        assert await blob.read(len(SMALL) + 7, 1) == b""
        assert blob.complete
        blob.close()


@pytest.mark.parametrize("data", [SMALL, BIG, b""])
async def test_it_is_read_into_a_buffer(data, tmp_path, patient_clock):
    """Fill the buffer as far as the file goes, whether memory or a file has the bytes, and nothing behind it."""
    size = len(data)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(data), FakeSource(data))
        for place in (0, size // 2, max(size - 5, 0), size, size + 7):
            memory = bytearray(b"-" * 1000)
            part = await blob.read_into(memoryview(memory)[:900], place)
            assert part == data[place : place + 900]
            assert memory in (b"-" * 1000, bytes(part) + b"-" * (1000 - len(part)))
        blob.close()


async def test_a_cached_copy_that_was_cut_short_fills_no_buffer(tmp_path, patient_clock):
    """Report it as `read` does."""
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), FakeSource(BIG))
        await blob.wait_until_verified()
        os.truncate(f"/proc/self/fd/{blob.fd}", 10)
        for reading in (blob.read(0, 11), blob.read_into(memoryview(bytearray(11)), 0)):
            with pytest.raises(CacheError, match="another program cut its cached copy short; open it again"):
                await reading
        blob.close()


async def test_a_complete_file_is_read_without_the_event_loop(tmp_path, patient_clock):
    """Return None for one that is still arriving, and b"" behind the end."""
    source = FakeSource(BIG)
    source.stalls[len(BIG) - 1] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        await blob.read(0, 10)
        assert blob.read_now(0, 10) is None
        assert cache.filling() == [blob]
        source.release()
        await blob.wait_until_verified()
        assert blob.read_now(5, 10) == BIG[5:15]
        assert blob.read_now(len(BIG) - 5, 10) == BIG[-5:]
        assert blob.read_now(len(BIG), 10) == blob.read_now(len(BIG) + 1, 10) == b""
        blob.close()
        await until(lambda: cache.filling() == [])


@pytest.mark.parametrize("data", [SMALL, BIG])
async def test_an_open_file_has_a_path_of_verified_bytes(tmp_path, data, patient_clock):
    """Wait for all of it; the descriptor keeps the file there while others are evicted."""
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(data), FakeSource(data))
        path, fd = await cache.open_local(blob)
        blob.close()
        assert path.read_bytes() == data
        assert path.is_relative_to(tmp_path / "blobs")
        await cache.evict(0)
        assert path.exists()
        os.close(fd)
        await cache.evict(0)
        assert not path.exists()


async def test_a_file_without_room_in_the_directory_has_no_path(tmp_path, patient_clock):
    async with open_cache(tmp_path, 1000) as cache:
        assert cache.limit == 1000
        blob = await cache.open(version(SMALL), FakeSource(SMALL))
        with pytest.raises(CacheError, match="the cache directory has no room for it, so it has no path there"):
            await cache.open_local(blob)
        blob.close()


async def test_bytes_that_need_no_download_are_a_blob():
    blob = blob_of("key", SMALL)
    assert (blob.key, blob.size, blob.users, blob.complete) == ("key", len(SMALL), 1, True)
    assert await blob.read(0, 10) == blob.read_now(0, 10) == SMALL[:10]
    blob.close()
    assert blob.users == 0


async def test_the_next_big_file_ends_the_download_of_one_that_was_closed(tmp_path, mock_clock):
    """End it before any time passes, for the connection; a small file does not need that."""
    first = FakeSource(BIG)
    first.stalls[6 * MiB] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), first)
        await blob.read(0, 10)
        blob.close()
        assert await read_all(cache, version(SMALL, "34/b"), FakeSource(SMALL)) == SMALL
        assert first.running == 1
        other = await cache.open(version(BIG, "34/c"), FakeSource(BIG))
        await until(lambda: not first.running)
        assert trio.current_time() == 0
        other.close()


async def test_the_verdict_is_there_once_all_has_arrived(tmp_path, patient_clock):
    """Wait for all of a file; raise what it failed with, as a read does."""
    source = FakeSource(BIG)
    source.stalls[len(BIG) - 1] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(BIG), source)
        with trio.move_on_after(60) as timeout:
            await blob.wait_until_verified()
        assert timeout.cancelled_caught
        source.release()
        await blob.wait_until_verified()
        assert blob.complete
        blob.close()
        bad = await cache.open(version(BIG[1:], "34/b"), FakeSource(BIG[:-1]))
        for _ in range(2):
            with pytest.raises(BadReply, match="its MD5 is"):
                await bad.wait_until_verified()
        bad.close()


async def test_who_waits_for_the_verdict_reads_the_first_byte():
    """Have the file fetched as for any reader."""

    class Requests:
        def __init__(self) -> None:
            self.found: list[object] = []

        def on_read(self, start: int, end: int) -> None:
            self.found.append((start, end))

        def on_wait(self, offset: int) -> None:
            self.found.append(offset)

    blob, requests = Blob("k", lambda blob: None), Requests()
    blob.filler = requests
    async with trio.open_nursery() as nursery:
        nursery.start_soon(blob.wait_until_verified)
        await trio.testing.wait_all_tasks_blocked()
        assert requests.found == [(0, 1), 0]
        blob.hold(SMALL)


async def test_a_part_of_a_file_that_the_directory_refuses_is_not_retained(tmp_path, patient_clock, monkeypatch):
    """Retain one in the directory for the next open; elsewhere it would take the room of other files."""

    def refuse(store: Store) -> Partial:
        raise OSError(28, "No space left on device")

    for idle in (1, 0):
        source = FakeSource(BIG)
        source.stalls[MiB] = trio.Event()
        async with open_cache(tmp_path / str(idle), LIMIT) as cache:
            if not idle:
                monkeypatch.setattr(Store, "create", refuse)
            blob = await cache.open(version(BIG), source)
            await blob.read(0, 10)
            blob.close()
            await trio.sleep(2 * LINGER_SECONDS)
            counters = cache.counters()
            assert (counters["idle"], counters["open_bytes"]) == (idle, idle * len(BIG))


async def test_an_empty_file_is_a_file(tmp_path):
    """Complete a file without bytes."""
    async with open_cache(tmp_path, LIMIT) as cache:
        assert await read_all(cache, version(b""), FakeSource(b"")) == b""
    assert await is_kept(tmp_path, version(b""))


async def test_a_kept_file_is_not_asked_for_again(tmp_path):
    """Serve it while it is open, afterwards, and in the next process."""
    source = FakeSource(SMALL)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(SMALL), source)
        assert await read_all(cache, version(SMALL), source) == SMALL
        blob.close()
        assert await read_all(cache, version(SMALL), source) == SMALL
    async with open_cache(tmp_path, LIMIT) as cache:
        assert await read_all(cache, version(SMALL), source) == SMALL
        assert (cache.stats.hits, cache.stats.misses, cache.stats.fetched) == (1, 0, 0)
    assert source.starts == [0]


async def test_a_warm_open_needs_no_other_task(tmp_path):
    """Return without a checkpoint, so that nothing can run in between."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await read_all(cache, version(SMALL), FakeSource(SMALL))
        await until(lambda: cache.bytes_used == len(SMALL))
        with trio.testing.assert_no_checkpoints():
            blob = await cache.open(version(SMALL), FakeSource(SMALL))
            assert await blob.read(0, 10) == SMALL[:10]
            blob.close()


async def test_concurrent_opens_share_one_download(tmp_path, patient_clock):
    """Send one request for ten readers."""
    source = FakeSource(SMALL, pause=0.1)
    async with open_cache(tmp_path, LIMIT) as cache, trio.open_nursery() as nursery:

        async def reader() -> None:
            assert await read_all(cache, version(SMALL), source) == SMALL

        for _ in range(10):
            nursery.start_soon(reader)
    assert source.starts == [0]


async def test_open_waits_for_the_headers_only(tmp_path, patient_clock):
    """Return the size while the bytes are still to come."""
    source = FakeSource(SMALL)
    source.stalls[0] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(SMALL), source)
        assert blob.size == len(SMALL)
        assert not blob.complete
        blob.close()


async def test_nothing_of_a_small_file_is_handed_out_before_it_is_verified(tmp_path, patient_clock):
    """Hold back the first byte until the last has arrived."""
    source = FakeSource(SMALL)
    source.stalls[len(SMALL)] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(SMALL), source)
        with trio.move_on_after(60) as timeout:
            await blob.read(0, 1)
        assert timeout.cancelled_caught
        source.stalls[len(SMALL)].set()
        assert await blob.read(0, 1) == SMALL[:1]
        blob.close()


async def test_a_reply_without_a_length_is_waited_for(tmp_path, patient_clock):
    """Take the end of the body as the length."""
    source = FakeSource(SMALL, pause=0.1)
    source.states_size = False
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(Version("k", None, ""), source)
        assert blob.size == len(SMALL)
        assert blob.complete
        assert await blob.read(0, len(SMALL)) == SMALL
        blob.close()


async def test_the_reply_decides_the_length(tmp_path):
    """Prefer the length of the reply; the listing may be stale, and the caller compares."""
    async with open_cache(tmp_path, LIMIT) as cache:
        assert await read_all(cache, Version("k", 12, md5(SMALL)), FakeSource(SMALL)) == SMALL


async def test_a_small_download_finishes_without_its_readers(tmp_path, patient_clock):
    """Finish the download, because little is missing and the program will be back."""
    source = FakeSource(SMALL, pause=10)
    async with open_cache(tmp_path, LIMIT) as cache:
        (await cache.open(version(SMALL), source)).close()
        await trio.sleep(1000)
    assert await is_kept(tmp_path, version(SMALL))


async def test_chunks_need_not_come_from_a_generator(tmp_path):
    """Accept any asynchronous iterator."""

    class Once:
        seekable = True
        grants = False

        def __init__(self) -> None:
            self.left = [SMALL]

        def __aiter__(self) -> "Once":
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

        @asynccontextmanager
        async def open(self, start: int, size: int | None = None, stop: int | None = None) -> AsyncIterator[Body]:
            yield Body(0, len(SMALL), "", self)

        async def head(self) -> Head:
            raise NotImplementedError

    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(SMALL), Once())
        assert await blob.read(0, len(SMALL)) == SMALL
        blob.close()


@pytest.mark.parametrize(
    ("listed", "digest", "stated", "framed", "text"),
    [
        (5, "", None, False, ""),
        (7, "d", None, False, ""),
        (7, "", 5, False, ""),
        (None, "", None, True, ""),
        (None, "", None, False, "5 bytes arrived, the listing states nothing, a HEAD nothing; nothing was kept"),
        (7, "", None, True, "5 bytes arrived, the listing states 7, a HEAD nothing; nothing was kept"),
        (None, "", 6, True, "5 bytes arrived, the listing states nothing, a HEAD 6; nothing was kept"),
    ],
)
async def test_another_length_than_listed_needs_a_digest_or_a_head(listed, digest, stated, framed, text):
    source = FakeSource(b"")
    source.head_size, source.heads_work = stated, stated is not None
    assert await find_contradiction(Version("k", listed, digest), 5, source, framed=framed) == text


# What is damaged.


async def test_a_wrong_digest_is_an_error_that_names_the_file(tmp_path, caplog):
    """Serve nothing, cache nothing, and list the file as damaged."""
    wanted = Version("34/a/b.dcm", len(SMALL), md5(b"something else"))
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(wanted, FakeSource(SMALL))
        with pytest.raises(BadReply, match=r"^34/a/b\.dcm: its MD5 is [^\n]*$"):
            await blob.read(0, 1)
        blob.close()
        assert cache.stats.damaged == ["34/a/b.dcm"]
        assert cache.bytes_used == 0
    assert [(r.levelno, "34/a/b.dcm" in r.message) for r in caplog.records] == [(logging.WARNING, True)]
    assert not await is_kept(tmp_path, wanted)


async def test_a_file_that_comes_well_later_is_no_longer_damaged(tmp_path):
    """List only what is wrong now."""
    async with open_cache(tmp_path, LIMIT) as cache:
        assert isinstance(await failure(cache, version(SMALL), FakeSource(b"x" * len(SMALL))), BadReply)
        assert await read_all(cache, version(SMALL), FakeSource(SMALL)) == SMALL
        assert cache.stats.damaged == []


@pytest.mark.parametrize("digest", [md5(SMALL), ""])
@pytest.mark.parametrize("stated", [len(SMALL) + 1, len(SMALL) - 1, 0])
async def test_a_body_of_another_length_than_announced_is_an_error(tmp_path, stated, digest):
    """Raise an error for a body that is truncated or too long, with and without a digest."""
    source = FakeSource(SMALL)
    source.size = stated
    wanted = Version("k", stated, digest)
    async with open_cache(tmp_path, LIMIT) as cache:
        exc = await failure(cache, wanted, source)
        assert isinstance(exc, BadReply)
        assert "k: " in str(exc)
        assert cache.stats.damaged == ["k"]
    assert not await is_kept(tmp_path, wanted)


# What fails.


async def test_open_raises_what_the_source_raises_and_the_next_one_asks_again(tmp_path):
    """Forget a failure."""
    source = FakeSource(SMALL)
    source.error = NotFound("no such file")
    async with open_cache(tmp_path, LIMIT) as cache:
        for _ in range(2):
            with pytest.raises(NotFound):
                await cache.open(version(SMALL), source)
        source.error = None
        assert await read_all(cache, version(SMALL), source) == SMALL
    assert source.starts == [0, 0, 0]


async def test_a_failure_stays_with_the_open_handles(tmp_path):
    """Raise the failure from every read; only a new open requests the file again."""
    source = FakeSource(SMALL)
    source.breaks[200_000] = Unreachable("connection lost")
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(SMALL), source)
        for _ in range(3):
            with pytest.raises(Unreachable, match="connection lost"):
                await blob.read(0, 10)
        assert source.starts == [0]
        source.breaks.clear()
        assert await read_all(cache, version(SMALL), source) == SMALL
        with pytest.raises(Unreachable):
            await blob.read(0, 10)
        blob.close()


async def test_a_bug_in_the_source_is_logged_and_stays_in_its_file(tmp_path, caplog):
    """Log the traceback; other files go on."""
    source = FakeSource(SMALL)
    source.breaks[0] = ZeroDivisionError("oops")
    async with open_cache(tmp_path, LIMIT) as cache:
        exc = await failure(cache, version(SMALL, "bad"), source)
        assert isinstance(exc, BadReply)
        assert "bad: " in str(exc)
        assert await read_all(cache, version(SMALL, "good"), FakeSource(SMALL)) == SMALL
    assert any(record.exc_info and "bad" in record.message for record in caplog.records)


async def test_an_error_out_of_a_group_is_that_error(tmp_path):
    """Unwrap exception groups, because a source may use nurseries."""
    source = FakeSource(SMALL)
    source.error = ExceptionGroup("", [ExceptionGroup("", [NotFound("gone")])])
    async with open_cache(tmp_path, LIMIT) as cache:
        with pytest.raises(NotFound):
            await cache.open(version(SMALL), source)


async def test_an_exception_of_the_body_is_not_wrapped(tmp_path):
    """Hide the nursery of `open_cache` from its body."""
    with pytest.raises(KeyError):
        async with open_cache(tmp_path, LIMIT):
            raise KeyError


async def test_a_cancelled_open_harms_nobody(tmp_path, patient_clock):
    """Serve another open that waits for the same headers."""
    source = FakeSource(SMALL, pause=1)
    async with open_cache(tmp_path, LIMIT) as cache, trio.open_nursery() as nursery:

        async def impatient() -> None:
            with trio.move_on_after(0.5):
                await cache.open(version(SMALL), source)
                pytest.fail("too early")

        nursery.start_soon(impatient)
        assert await read_all(cache, version(SMALL), source) == SMALL
    assert source.starts == [0]


async def test_a_cancelled_read_harms_nobody(tmp_path, patient_clock):
    """Leave the handle of a cancelled read intact as well."""
    source = FakeSource(SMALL, pause=1)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(SMALL), source)
        with trio.move_on_after(0.5) as timeout:
            await blob.read(0, 10)
        assert timeout.cancelled_caught
        assert await blob.read(0, 10) == SMALL[:10]
        blob.close()
    assert source.starts == [0]


async def test_leaving_ends_everything(tmp_path, patient_clock):
    """Cancel downloads, give handles the reason, and leave no partial file."""
    source = FakeSource(SMALL)
    source.stalls[65536] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        filling = await cache.open(version(SMALL), source)
        await read_all(cache, version(SMALL, "other"), FakeSource(SMALL))
        kept = await cache.open(version(SMALL, "other"), source)
    for blob in (filling, kept):
        with pytest.raises(CacheError, match="closed"):
            await blob.read(0, 10)
        blob.close()
    with pytest.raises(CacheError, match="closed"):
        await cache.open(version(SMALL), source)
    assert source.running == 0
    assert list((tmp_path / "partial").iterdir()) == []


async def test_a_reader_that_waits_while_the_cache_is_left_is_told(tmp_path, patient_clock):
    """Raise an error in the reader, whose task belongs to another nursery and must not hang."""
    source = FakeSource(SMALL)
    source.stalls[0] = trio.Event()
    told = []

    async def reader(blob: Blob) -> None:
        with pytest.raises(CacheError, match="closed"):
            await blob.read(0, 10)
        blob.close()
        told.append(True)

    async with trio.open_nursery() as nursery, open_cache(tmp_path, LIMIT) as cache:
        nursery.start_soon(reader, await cache.open(version(SMALL), source))
        await trio.testing.wait_all_tasks_blocked()
    assert told == [True]


# Identity.


async def test_with_a_digest_the_listed_size_does_not_matter(tmp_path):
    """Trust the digest alone."""
    source = FakeSource(SMALL)
    async with open_cache(tmp_path, LIMIT, revalidate=0) as cache:
        for listed in (len(SMALL), 1, None):
            assert await read_all(cache, Version("k", listed, md5(SMALL)), source) == SMALL
    assert source.starts == [0]


async def test_another_digest_is_another_file(tmp_path):
    """Keep the old file until it is the least recently used."""
    other = SMALL[::-1]
    async with open_cache(tmp_path, LIMIT) as cache:
        assert await read_all(cache, version(SMALL), FakeSource(SMALL)) == SMALL
        assert await read_all(cache, version(other), FakeSource(other)) == other
        assert cache.has(version(SMALL))


async def test_a_key_may_hold_anything(tmp_path):
    """Accept lone surrogates, which undecodable file names contain."""
    wanted = version(SMALL, "34/\udcff\n\u00e4%'")
    async with open_cache(tmp_path, LIMIT) as cache:
        assert await read_all(cache, wanted, FakeSource(SMALL)) == SMALL
    assert await is_kept(tmp_path, wanted)


async def test_without_a_digest_a_young_file_is_trusted(tmp_path):
    """Trust it for `revalidate` seconds, under the size it was listed with."""
    source = FakeSource(SMALL)
    async with open_cache(tmp_path, LIMIT, revalidate=100) as cache:
        await read_all(cache, undigested(SMALL), source)
    async with open_cache(tmp_path, LIMIT, revalidate=100) as cache:
        assert await read_all(cache, undigested(SMALL), source) == SMALL
    assert source.starts == [0]


async def test_an_old_file_is_checked_and_renewed(tmp_path):
    """Send one HEAD; then it is fresh again."""
    source = FakeSource(SMALL)
    async with open_cache(tmp_path, LIMIT, revalidate=100) as cache:
        await read_all(cache, undigested(SMALL), source)
        now = cache.clock()
        cache.clock = lambda: now + 200
        assert await read_all(cache, undigested(SMALL), source) == SMALL
        assert await read_all(cache, undigested(SMALL), source) == SMALL
        assert cache.stats.fetched == len(SMALL)
    assert (source.starts, source.heads) == ([0], 1)


async def test_a_file_is_as_old_as_the_question_and_not_as_its_last_byte(tmp_path):
    """Count the age from the request: the file may have been replaced while its body arrived."""
    source = FakeSource(SMALL)
    async with open_cache(tmp_path, LIMIT, revalidate=100) as cache:
        now = cache.clock()
        blob = await cache.open(undigested(SMALL), source)
        cache.clock = lambda: now + 90  # before it is whole
        assert await blob.read(0, len(SMALL)) == SMALL
        blob.close()
        cache.clock = lambda: now + 150
        assert await read_all(cache, undigested(SMALL), source) == SMALL
        assert (source.starts, source.heads) == ([0], 1)


async def test_readers_of_an_old_file_share_one_check(tmp_path, patient_clock):
    """Revalidate once, while one reader holds the file open from before."""
    source = FakeSource(SMALL, pause=0.1)
    async with open_cache(tmp_path, LIMIT, revalidate=100) as cache:
        holder = await cache.open(undigested(SMALL), source)
        assert await holder.read(0, 1) == SMALL[:1]
        await until(lambda: cache.bytes_used == len(SMALL))
        now = cache.clock()
        cache.clock = lambda: now + 200
        async with trio.open_nursery() as nursery:

            async def reader() -> None:
                assert await read_all(cache, undigested(SMALL), source) == SMALL

            for _ in range(5):
                nursery.start_soon(reader)
        assert await holder.read(0, len(SMALL)) == SMALL
        holder.close()
    assert (source.starts, source.heads) == ([0], 1)


async def test_an_old_file_that_changed_is_replaced(tmp_path):
    """Keep the old content for handles that are open."""
    source, newer = FakeSource(SMALL), FakeSource(SMALL[::-1])
    newer.modified = "Tue, 02 Jan 2024 00:00:00 GMT"
    async with open_cache(tmp_path, LIMIT, revalidate=0) as cache:
        old = await cache.open(undigested(SMALL), source)
        assert await old.read(0, 5) == SMALL[:5]
        assert await read_all(cache, undigested(SMALL), newer) == SMALL[::-1]
        assert await old.read(0, 5) == SMALL[:5]
        old.close()
    async with open_cache(tmp_path, LIMIT) as cache:
        assert await read_all(cache, undigested(SMALL), source) == SMALL[::-1]


async def test_another_listed_size_is_checked_at_once(tmp_path):
    """Revalidate at once; the server may report that only the listing has changed."""
    source = FakeSource(SMALL)
    async with open_cache(tmp_path, LIMIT) as cache:
        await read_all(cache, undigested(SMALL), source)
        assert await read_all(cache, Version("34/a/b.dcm", 7, ""), source) == SMALL
        assert await read_all(cache, Version("34/a/b.dcm", 7, ""), source) == SMALL
    assert (source.starts, source.heads) == ([0], 1)


async def test_a_listing_that_comes_to_agree_with_the_reply_is_not_checked(tmp_path):
    """Accept that the caller corrects its listing after the first open."""
    source = FakeSource(SMALL)
    async with open_cache(tmp_path, LIMIT) as cache:
        await read_all(cache, Version("34/a/b.dcm", 7, ""), source)
        assert await read_all(cache, undigested(SMALL), source) == SMALL
    assert source.starts == [0]


async def test_without_a_date_an_old_file_is_fetched_anew(tmp_path):
    """Fetch the file again, as there is nothing to revalidate by."""
    source = FakeSource(SMALL)
    source.modified = ""
    async with open_cache(tmp_path, LIMIT, revalidate=0) as cache:
        await read_all(cache, undigested(SMALL), source)
        assert await read_all(cache, undigested(SMALL), source) == SMALL
    assert (source.starts, source.heads) == ([0, 0], 0)


async def test_a_check_that_cannot_be_made_is_an_error_and_loses_nothing(tmp_path):
    """Fail while the server is unreachable; later renew the file without a body."""
    source = FakeSource(SMALL)
    async with open_cache(tmp_path, LIMIT, revalidate=0) as cache:
        await read_all(cache, undigested(SMALL), source)
        await until(lambda: cache.bytes_used == len(SMALL))
        source.error = Unreachable("no answer")
        with pytest.raises(Unreachable):
            await cache.open(undigested(SMALL), source)
        source.error = None
        assert await read_all(cache, undigested(SMALL), source) == SMALL
        assert cache.stats.fetched == len(SMALL)
