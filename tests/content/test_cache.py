"""Test what the cache decides: which entry an open joins, what is trusted, and what happens to it on close."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.content_fakes import FakeSource, descriptors, failure, read_all, undigested, until, version
from xnatfs.common.errors import BadReply, CacheError, NotFound
from xnatfs.content import ContentCache, Version, open_cache
from xnatfs.content import blob as blob_module
from xnatfs.content import planner as planner_module
from xnatfs.content.cache import FLUSH_SECONDS, LOOKUP_BATCH
from xnatfs.content.disk.index import BlobRow, Index
from xnatfs.content.disk.store import Store
from xnatfs.content.fill import LINGER_SECONDS
from xnatfs.content.open_files import MAX_IDLE_FILES

K = 1024
SMALL = bytes(range(256)) * 4
BIG = bytes(range(256)) * 200
NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Scale sizes to a thousandth, and leave nothing to tidy."""

    async def nothing(_: Store) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Store, "tidy", nothing)
    for module, name, size in (
        (blob_module, "SMALL_FILE_BYTES", 8 * K),
        (planner_module, "NEAR_BYTES", 4 * K),
    ):
        monkeypatch.setattr(module, name, size)


@asynccontextmanager
async def caching(directory: Path, limit: int = 10**9, **options: Any) -> AsyncIterator[ContentCache]:
    async with open_cache(directory, limit, **options) as cache:
        cache.clock = lambda: NOW
        yield cache


def stalled(at: int = K, data: bytes = BIG) -> FakeSource:
    source = FakeSource(data, chunk=K)
    source.stalls[at] = trio.Event()
    return source


def nowhere() -> FakeSource:
    source = FakeSource(b"")
    source.error = NotFound("it was asked")
    return source


async def kept(cache: ContentCache, *wanted: Version, data: bytes = SMALL) -> None:
    for each in wanted:
        assert await read_all(cache, each, FakeSource(data)) == data
    await until(lambda: not [entry for entry in cache._files.entries.values() if not entry.is_queued])


def counted(cache: ContentCache) -> tuple[int, int, int]:
    return cache.stats.hits, cache.stats.misses, cache.stats.fetched


# -- joining -----------------------------------------------------------------------------------------------------


async def test_all_who_open_a_file_share_it(tmp_path):
    source = stalled()
    async with caching(tmp_path) as cache:
        blobs = [await cache.open(version(BIG), source) for _ in range(4)]
        assert all(blob is blobs[0] for blob in blobs)
        assert (counted(cache)[:2], blobs[0].users) == ((3, 1), 4)
        for blob in blobs[1:]:
            blob.close()
        assert await cache.open(version(BIG), source) is blobs[0]
        source.release()
        await until(lambda: blobs[0].complete)
        for blob in blobs[:2]:
            blob.close()
        await until(lambda: not cache._files.entries)
        assert (cache._files.current, source.starts) == ({}, [0])
        blobs = [await cache.open(version(BIG), nowhere()) for _ in range(3)]
        assert all(blob is blobs[0] for blob in blobs)
        assert (counted(cache)[:2], blobs[0].users) == ((7, 1), 3)
        for blob in blobs:
            blob.close()
        assert not cache._files.entries


async def test_a_download_of_a_file_without_digest_is_joined_while_it_is_young(tmp_path):
    source = stalled()
    async with caching(tmp_path, revalidate=100) as cache:
        first = await cache.open(undigested(BIG), source)
        for age, joined in ((0, True), (99, True), (100, False)):
            cache.clock = partial(float, NOW + age)
            blob = await cache.open(undigested(BIG), source)
            assert (blob is first) is joined, age
            blob.close()
        cache.clock = lambda: NOW - 1
        blob = await cache.open(undigested(BIG), source)
        assert blob is not first, "a clock that was set back says nothing"
        for each in (first, blob):
            each.close()


async def test_a_kept_file_without_digest_is_trusted_while_it_is_young(tmp_path):
    async with caching(tmp_path, revalidate=100) as cache:
        await kept(cache, undigested(SMALL))
        for age, trusted in ((0, True), (99, True), (100, False), (-1, False)):
            cache.clock = partial(float, NOW + age)
            assert cache.has(undigested(SMALL)) is trusted, age
            assert (await cache.find_cached([undigested(SMALL)]) == {undigested(SMALL)}) is trusted
            assert (await failure(cache, undigested(SMALL), nowhere()) is None) is trusted
        cache.clock = lambda: NOW
        for size, trusted in ((len(SMALL), True), (7, False), (None, False)):
            assert cache.has(Version("34/a/b.dcm", size, "")) is trusted, size


async def test_what_a_file_was_listed_with_counts_too(tmp_path):
    async with caching(tmp_path) as cache:
        listed = Version("k", 7, "")
        blob = await cache.open(listed, FakeSource(SMALL))
        await until(lambda: blob.complete)
        for size in (7, len(SMALL)):
            assert await cache.open(Version("k", size, ""), nowhere()) is blob
        assert not cache.has(Version("k", 8, ""))
        blob.users = 1
        blob.close()
        await until(lambda: not cache._files.entries)
        for size in (7, len(SMALL)):
            again = await cache.open(Version("k", size, ""), nowhere())
            again.close()


async def test_many_are_looked_up_in_parts_and_others_have_their_turn(tmp_path, monkeypatch):
    async with caching(tmp_path) as cache:
        wanted = [version(SMALL, str(number)) for number in range(2 * LOOKUP_BATCH + 1)]
        await kept(cache, wanted[0], wanted[LOOKUP_BATCH], wanted[-1])
        parts: list[int] = []
        real = cache._store.find_rows

        def find_rows(idents: Sequence[bytes]) -> list[BlobRow]:
            parts.append(len(idents))
            return real(idents)

        monkeypatch.setattr(cache._store, "find_rows", find_rows)
        with trio.testing.assert_checkpoints():
            found = await cache.find_cached(wanted)
        assert (found, parts) == ({wanted[0], wanted[LOOKUP_BATCH], wanted[-1]}, [LOOKUP_BATCH, LOOKUP_BATCH, 1])


# -- closing -----------------------------------------------------------------------------------------------------


async def test_nothing_is_opened_after_the_end(tmp_path):
    source = FakeSource(SMALL)
    async with caching(tmp_path) as cache:
        pass
    with pytest.raises(CacheError, match="^34/a/b.dcm: the cache has been closed"):
        await cache.open(version(SMALL), source)
    assert source.starts == []


async def test_nothing_is_left_of_an_open_that_failed_or_was_cancelled(tmp_path):
    async with caching(tmp_path) as cache:
        for _ in range(2):
            with pytest.raises(NotFound):
                await cache.open(version(SMALL), nowhere())
        assert (cache._files.entries, cache._files.current) == ({}, {})
        slow = FakeSource(SMALL, pause=0.05)
        with trio.move_on_after(0.01):
            await cache.open(version(SMALL), slow)
        await until(lambda: not cache._files.entries)
        assert cache.has(version(SMALL)), "small files come whole nevertheless"


async def test_a_file_that_is_not_as_announced_is_on_the_list_until_it_is(tmp_path, caplog):
    async with caching(tmp_path) as cache:
        for _ in range(2):
            assert isinstance(await failure(cache, version(SMALL), FakeSource(SMALL[::-1])), BadReply)
        assert cache.stats.damaged == ["34/a/b.dcm"]
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert [text.startswith("damaged file 34/a/b.dcm: 34/a/b.dcm: its MD5 is") for text in warnings] == [True, True]
        await cache.put(version(SMALL), SMALL)
        assert cache.stats.damaged == []
        assert isinstance(await failure(cache, version(SMALL, "other"), FakeSource(SMALL[::-1])), BadReply)
        assert await read_all(cache, version(SMALL, "other"), FakeSource(SMALL)) == SMALL
        assert cache.stats.damaged == []
        assert isinstance(await failure(cache, version(SMALL, "missing"), nowhere()), NotFound)
        assert cache.stats.damaged == [], "it is not there, which is another thing"


async def test_the_counters_count(tmp_path):
    source = FakeSource(SMALL)
    async with caching(tmp_path, revalidate=100) as cache:
        assert (counted(cache), cache.bytes_used) == ((0, 0, 0), 0)
        await kept(cache, undigested(SMALL, "0"), undigested(SMALL, "1"))
        for number in range(2):
            await cache.put(version(SMALL, f"put {number}"), SMALL)
        assert counted(cache) == (0, 2, 4 * len(SMALL))
        cache.clock = lambda: NOW + 200
        for number in range(2):
            assert await read_all(cache, undigested(SMALL, str(number)), source) == SMALL
            assert await read_all(cache, undigested(SMALL, str(number)), nowhere()) == SMALL
        assert counted(cache) == (2, 4, 4 * len(SMALL))
        await until(lambda: cache.bytes_used == 4 * len(SMALL))


async def test_an_old_file_that_was_put_is_fetched_anew(tmp_path):
    """Fetch again without a date to revalidate by."""
    source = FakeSource(SMALL)
    async with caching(tmp_path, revalidate=100) as cache:
        await cache.put(undigested(SMALL), SMALL)
        await cache.evict(10**9)
        cache.clock = lambda: NOW + 200
        assert await read_all(cache, undigested(SMALL), source) == SMALL
    assert (source.starts, source.heads) == ([0], 0)


async def test_what_is_put_again_counts_as_new(tmp_path):
    async with caching(tmp_path, revalidate=100) as cache:
        await cache.put(undigested(SMALL), SMALL)
        await cache.put(undigested(SMALL), b"not taken")
        cache.clock = lambda: NOW + 100
        newer = SMALL[::-1]
        await cache.put(undigested(newer), newer)
        assert await read_all(cache, undigested(newer), nowhere()) == newer
        assert cache.stats.fetched == 2 * len(SMALL)
        await cache.evict(10**9)
        assert await read_all(cache, undigested(newer), nowhere()) == newer


async def test_evicting_writes_what_waits_and_lets_go_of_it(tmp_path):
    async with caching(tmp_path) as cache:
        await cache.put(version(SMALL), SMALL)
        assert cache.bytes_used == 0
        await cache.evict(10**9)
        assert (cache.bytes_used, cache._files.entries, cache._files.current) == (len(SMALL), {}, {})
        await cache.evict(0)
        assert cache.bytes_used == 0


# -- partly fetched ----------------------------------------------------------------------------------------------


async def partly(cache: ContentCache, name: str) -> FakeSource:
    """Open a file, fetch a part of it, and close it."""
    source = stalled()
    (await cache.open(version(BIG, name), source)).close()
    await trio.sleep(LINGER_SECONDS + 1)
    assert source.running == 0
    source.stalls.clear()
    return source


async def test_partly_fetched_files_go_on_where_they_were(tmp_path, patient_clock):
    async with caching(tmp_path) as cache:
        source = await partly(cache, "a")
        assert [entry.blob.key for entry in cache._files.idle] == ["a"]
        await trio.sleep(10 * FLUSH_SECONDS)
        assert await read_all(cache, version(BIG, "a"), source) == BIG
        assert (source.starts, cache._files.idle) == ([0, K], [])


async def test_few_are_remembered_and_those_in_use_are_not_among_them(tmp_path, patient_clock):
    async with caching(tmp_path) as cache:
        source = await partly(cache, "first")
        source.stalls[2 * K] = trio.Event()
        blob = await cache.open(version(BIG, "first"), source)
        for number in range(MAX_IDLE_FILES + 1):
            await partly(cache, str(number))
        assert [entry.blob.key for entry in cache._files.idle] == ["1", "2", "3", "4"]
        source.release()
        assert await blob.read(0, len(BIG)) == BIG
        assert source.starts == [0, K]
        blob.close()
        await cache.evict(10**9)
        assert cache._files.idle == []
        await until(lambda: not list((tmp_path / "partial").iterdir()))


@pytest.mark.parametrize(("room", "left"), [(0, ["a", "b"]), (-1, [])])
async def test_they_make_way_for_who_comes(tmp_path, patient_clock, room, left):
    async with caching(tmp_path, 2 * len(BIG) + len(SMALL)) as cache:
        for name in "ab":
            await partly(cache, name)
        await until(lambda: cache.bytes_used == 2 * len(BIG))
        (await cache.open(Version("new", len(SMALL) - room, ""), FakeSource(SMALL))).close()
        assert [entry.blob.key for entry in cache._files.idle] == left


async def test_a_partly_fetched_file_above_the_limit_is_nothing_to_remember(tmp_path, patient_clock):
    async with caching(tmp_path, len(BIG) - 1) as cache:
        await partly(cache, "a")
        assert (cache._files.idle, cache._files.entries) == ([], {})
    async with caching(tmp_path, len(BIG)) as cache:
        await partly(cache, "a")
        assert len(cache._files.idle) == 1


async def test_one_that_the_listing_has_left_behind_is_nothing_to_remember(tmp_path, patient_clock):
    async with caching(tmp_path, revalidate=100) as cache:
        source = stalled()
        old = await cache.open(undigested(BIG), source)
        cache.clock = lambda: NOW + 200
        new = await cache.open(undigested(BIG), source)
        old.close()
        await trio.sleep(LINGER_SECONDS + 1)
        assert (cache._files.idle, len(cache._files.entries)) == ([], 1)
        new.close()
        await trio.sleep(LINGER_SECONDS + 1)
        assert (len(cache._files.idle), len(cache._files.entries)) == (1, 1)


async def test_room_is_made_again_when_open_files_had_filled_it(tmp_path):
    """Evict as soon as an open file is closed."""
    async with caching(tmp_path, 2 * len(SMALL)) as cache:
        await kept(cache, version(SMALL, "a"), version(SMALL, "b"))
        blobs = [await cache.open(version(SMALL, name), nowhere()) for name in "ab"]
        blobs.append(await cache.open(version(SMALL, "c"), FakeSource(SMALL)))
        await until(lambda: cache.bytes_used == 3 * len(SMALL))
        blobs[0].close()
        await until(lambda: cache.bytes_used == 2 * len(SMALL))
        assert not cache.has(version(SMALL, "a"))
        assert cache._files._is_trimming is False
        for blob in blobs[1:]:
            blob.close()


async def test_one_big_download_at_a_time_may_have_helpers(tmp_path):
    async with caching(tmp_path) as cache:
        blobs = [await cache.open(version(BIG, "a"), stalled()), await cache.open(version(SMALL), stalled(data=SMALL))]
        assert cache.is_alone() is True
        blobs.append(await cache.open(version(BIG, "b"), stalled()))
        assert cache.is_alone() is False
        for blob in blobs:
            blob.close()


async def test_a_big_file_whose_connection_is_slow_gets_another_one(tmp_path, autojump_clock, monkeypatch):
    for name, value in (("SHARE_BYTES", 8 * K), ("NEAR_BYTES", K), ("WINDOW_BYTES", K)):
        monkeypatch.setattr(f"xnatfs.content.planner.{name}", value)
    async with caching(tmp_path) as cache:
        source = FakeSource(BIG, chunk=K, pause=0.2)
        source.grants = True
        assert await read_all(cache, version(BIG), source, 4 * K) == BIG
        assert source.at_once > 1


async def test_what_crashes_left_is_removed_at_the_start(tmp_path, monkeypatch):
    tidied: list[bool] = []

    async def tidy(store: Store) -> None:
        await trio.lowlevel.checkpoint()
        tidied.append(cache.tidied.is_set())

    monkeypatch.setattr(Store, "tidy", tidy)
    async with caching(tmp_path) as cache:
        await cache.tidied.wait()
        assert tidied == [False]


async def test_what_is_open_at_the_end_is_closed(tmp_path):
    async with caching(tmp_path) as cache:
        assert await read_all(cache, version(BIG), FakeSource(BIG)) == BIG
    before = descriptors()
    async with caching(tmp_path) as cache:
        await cache.open(version(BIG), FakeSource(BIG))
        await cache.open(version(BIG, "b"), stalled())
    assert descriptors() == before


async def test_now_and_then_recency_is_written_and_memory_is_given_back(tmp_path, patient_clock, monkeypatch):
    async with caching(tmp_path) as cache:
        flushed: list[float] = []

        async def flush() -> None:
            flushed.append(trio.current_time())
            await trio.lowlevel.checkpoint()

        monkeypatch.setattr(cache._store, "flush", flush)
        await cache.tidied.wait()
        began = trio.current_time()
        await cache.put(version(SMALL), SMALL)
        await cache.put(version(b"x", "last"), b"x")
        await trio.sleep(3 * FLUSH_SECONDS)
        assert {round((when - began) / FLUSH_SECONDS) for when in flushed} >= {1, 2}
        await until(lambda: cache._files.entries == {})


async def test_what_is_opened_is_noted_for_eviction(tmp_path):
    async with caching(tmp_path) as cache:
        await kept(cache, version(SMALL, "a"), version(SMALL, "b"))
        cache.clock = lambda: NOW + 5
        assert await read_all(cache, version(SMALL, "a"), nowhere()) == SMALL
        await cache.evict(len(SMALL))
        assert (cache.has(version(SMALL, "a")), cache.has(version(SMALL, "b"))) == (True, False)


async def test_strict_is_for_all_files(tmp_path):
    for strict in (False, True):
        async with caching(tmp_path, strict=strict) as cache:
            blob = await cache.open(version(BIG, str(strict)), stalled())
            assert blob.is_served_whole is strict
            blob.close()


# -- what is reported, and folders -------------------------------------------------------------------------------


async def test_the_cache_tells_what_it_holds(tmp_path, patient_clock):
    async with caching(tmp_path) as cache:
        nothing = {"readers": 0, "fills": 0, "unwritten": 0, "idle": 0, "open_bytes": 0, "partials": 0, "reserved": 0}
        before = cache.counters()
        assert nothing.items() <= before.items()
        source = stalled()
        blobs = [await cache.open(version(BIG), source) for _ in range(2)]
        unknown = FakeSource(SMALL, pause=1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.open, version(SMALL, "x"), unknown)
            await trio.testing.wait_all_tasks_blocked()
            found = cache.counters()
            assert (found["readers"], found["fills"], found["open_bytes"]) == (3, 2, len(BIG))
            assert (found["hits"], found["misses"], found["partials"], found["idle"]) == (1, 2, 1, 0)
            nursery.cancel_scope.cancel()
        await cache.put(version(SMALL, "put"), SMALL)
        assert cache.counters()["unwritten"] == len(SMALL)
        assert cache.counters()["fetched"] == cache.stats.fetched > 0
        for blob in blobs:
            blob.close()
        await trio.sleep(LINGER_SECONDS + 1)
        assert cache.counters()["idle"] == 1


def undated(name: str) -> Version:
    return Version(name, len(SMALL), "")


async def test_what_is_in_a_folder_is_dropped_wherever_it_is(tmp_path, patient_clock):
    """Drop it on the disk, in memory and in flight; open handles read on."""
    async with caching(tmp_path) as cache:
        await kept(cache, undated("P/kept"), undated("Q/other"), undated("PQ/P/kept"))
        await cache.put(undated("P/put"), SMALL)
        await cache.put(undated("Q/put"), SMALL)
        source = stalled(100, SMALL)
        on_its_way = await cache.open(undated("P/coming"), source)
        still_open = await cache.open(undated("P/kept"), nowhere())
        await cache.drop(["P", "R"])
        for name in ("P/kept", "P/put", "P/coming"):
            assert not cache.has(undated(name)), name
        for name in ("Q/other", "Q/put", "PQ/P/kept"):
            assert cache.has(undated(name)), name
        source.release()
        assert await on_its_way.read(0, 2000) == SMALL
        assert await still_open.read(0, 2000) == SMALL
        on_its_way.close()
        still_open.close()
        await cache.evict(10**9)
        assert not cache.has(undated("P/coming"))
        again = FakeSource(SMALL)
        assert await read_all(cache, undated("P/coming"), again) == SMALL
        assert again.starts == [0]


async def test_nothing_is_put_into_a_dropped_folder_until_a_file_is_opened_there(tmp_path, patient_clock):
    """Ignore the members of an archive that was under way when access to its resource was lost."""
    async with caching(tmp_path) as cache:
        await cache.drop(["P"])
        await cache.put(undated("P/a"), SMALL)
        await cache.put(undated("Q/a"), SMALL)
        assert (cache.has(undated("P/a")), cache.has(undated("Q/a"))) == (False, True)
        assert await read_all(cache, undated("P/b"), FakeSource(SMALL)) == SMALL
        await cache.put(undated("P/a"), SMALL)
        assert cache.has(undated("P/a"))


async def test_dropped_folders_are_remembered_up_to_so_many(tmp_path, patient_clock, monkeypatch):
    monkeypatch.setattr("xnatfs.content.cache.MOST_DROPPED", 2)
    async with caching(tmp_path) as cache:
        for folder in "PQRQ":
            await cache.drop([folder])
        for folder in "PQR":
            await cache.put(undated(f"{folder}/a"), SMALL)
        assert [cache.has(undated(f"{folder}/a")) for folder in "PQR"] == [True, False, False]


async def test_a_stamp_tells_one_content_from_another(tmp_path):
    async with caching(tmp_path) as cache:
        source = FakeSource(SMALL)
        blob = await cache.open(undigested(SMALL), source)
        assert blob.stamp == source.modified
        blob.close()
        await until(lambda: not cache._files.entries)
        again = await cache.open(undigested(SMALL), nowhere())
        assert again.stamp == source.modified
        again.close()
        await cache.put(undigested(SMALL, "put"), SMALL)
        put = await cache.open(undigested(SMALL, "put"), nowhere())
        assert put.stamp == repr(NOW)
        put.close()
        await cache.put(version(SMALL, "with digest"), SMALL)
        await kept(cache, version(SMALL, "fetched"))
        for name in ("with digest", "fetched"):
            blob = await cache.open(version(SMALL, name), nowhere())
            assert blob.stamp == ""
            blob.close()


async def test_what_is_dropped_does_not_come_back(tmp_path, monkeypatch):
    """Drop writes that are queued and files that are opened meanwhile."""
    async with caching(tmp_path) as cache:
        real = cache._store.remove
        opened = []

        async def remove(find: Callable[[Index], Sequence[bytes]]) -> None:
            await real(find)
            await cache._write_behind.write()
            opened.append(await cache.open(undated("P/meanwhile"), FakeSource(SMALL)))

        monkeypatch.setattr(cache._store, "remove", remove)
        await cache.put(undated("P/put"), SMALL)
        await cache.drop(["P"])
        assert not cache.has(undated("P/put"))
        assert not cache.has(undated("P/meanwhile"))
        await until(lambda: opened[0].complete)
        assert not cache.has(undated("P/meanwhile"))
        opened[0].close()
        await until(lambda: not cache._files.entries)


async def test_a_digest_needs_no_age_and_no_size(tmp_path):
    async with caching(tmp_path, revalidate=100) as cache:
        wanted = version(SMALL)
        await kept(cache, wanted)
        cache.clock = lambda: NOW + 10**6
        for size in (len(SMALL), 7, None):
            assert cache.has(Version(wanted.key, size, wanted.digest))
            assert await cache.find_cached([Version(wanted.key, size, wanted.digest)])
            assert await failure(cache, Version(wanted.key, size, wanted.digest), nowhere()) is None


async def test_even_one_byte_leaves_the_memory(tmp_path):
    async with caching(tmp_path) as cache:
        await cache.put(version(b"x"), b"x")
        await cache.evict(10**9)
        assert cache._files.entries == {}


async def test_a_file_of_unknown_size_makes_nobody_go(tmp_path, patient_clock):
    async with caching(tmp_path, 2 * len(BIG)) as cache:
        for name in "ab":
            await partly(cache, name)
        await until(lambda: cache.bytes_used == 2 * len(BIG))
        blob = await cache.open(Version("new", None, ""), FakeSource(SMALL))
        assert [entry.blob.key for entry in cache._files.idle] == ["a", "b"]
        blob.close()


async def test_a_partly_fetched_file_that_is_out_of_date_goes_when_it_is_opened(tmp_path, patient_clock):
    async with caching(tmp_path, revalidate=100) as cache:
        source = stalled()
        (await cache.open(undigested(BIG), source)).close()
        await trio.sleep(LINGER_SECONDS + 1)
        assert len(cache._files.idle) == 1
        cache.clock = lambda: NOW + 200
        blob = await cache.open(undigested(BIG), source)
        assert (cache._files.idle, len(cache._files.entries)) == ([], 1)
        blob.close()


async def test_what_is_dropped_is_not_remembered_in_parts(tmp_path, patient_clock):
    async with caching(tmp_path) as cache:
        for name in ("P/a", "Q/b"):
            (await cache.open(Version(name, len(BIG), ""), stalled())).close()
        await trio.sleep(LINGER_SECONDS + 1)
        await cache.drop(["P"])
        assert [entry.blob.key for entry in cache._files.idle] == ["Q/b"]
        assert len(cache._files.entries) == 1


async def test_what_could_not_be_written_is_forgotten(tmp_path, monkeypatch):
    async with caching(tmp_path) as cache:

        async def refused(files: Sequence[object]) -> set[bytes]:
            await trio.lowlevel.checkpoint()
            return set()

        monkeypatch.setattr(cache._store, "keep_whole", refused)
        await cache.put(version(SMALL), SMALL)
        blob = await cache.open(version(SMALL), nowhere())
        await cache._write_behind.write()
        assert not cache.has(version(SMALL))
        assert await blob.read(0, 10) == SMALL[:10]
        blob.close()
        assert cache._files.entries == {}


async def test_room_is_made_once_for_all_that_are_closed_together(tmp_path, monkeypatch):
    """Evict once for all of them, and not at all where there is room."""
    async with caching(tmp_path, 2 * len(SMALL)) as cache:
        evicted: list[int] = []
        directory = cache._store._directory
        real = directory.evict

        def evict(target: int) -> None:
            evicted.append(target)
            real(target)

        monkeypatch.setattr(directory, "evict", evict)
        await kept(cache, version(SMALL, "a"), version(SMALL, "b"))
        for name in "ab":
            (await cache.open(version(SMALL, name), nowhere())).close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert evicted == []
        blobs = [await cache.open(version(SMALL, name), nowhere()) for name in "ab"]
        blobs.append(await cache.open(version(SMALL, "c"), FakeSource(SMALL)))
        await until(lambda: cache.bytes_used == 3 * len(SMALL))
        for blob in blobs:
            blob.close()
        await until(lambda: cache.bytes_used == 2 * len(SMALL))
        assert evicted == [2 * len(SMALL)]
        blob = await cache.open(version(SMALL, "d"), FakeSource(SMALL))
        blob.close()


async def test_who_is_cancelled_closes_the_cache_nevertheless(tmp_path):
    with trio.CancelScope() as scope:
        async with caching(tmp_path) as cache:
            await cache.put(version(SMALL), SMALL)
            scope.cancel()
    assert not list((tmp_path / "partial").iterdir())
    async with caching(tmp_path) as cache:
        assert cache.has(version(SMALL))
