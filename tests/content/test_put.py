"""Test files that enter the cache whole: read at once, written soon, in batches, within the limits of all files."""

import os
import random
import signal

import pytest
import trio

from tests.content.test_disk import FullDisk, blobs, on_disk, partials, python, quiet, sql
from tests.support.content_fakes import (
    BIG,
    LIMIT,
    SMALL,
    FakeSource,
    MiB,
    is_kept,
    read_all,
    undigested,
    until,
    version,
)
from xnatfs.common.errors import NotFound
from xnatfs.content import ContentCache, Version, open_cache
from xnatfs.content.write_behind import BATCH_FILES, MAX_RETAINED_BYTES, MAX_UNWRITTEN_BYTES

FILES = {f"7/{number}.dcm": random.Random(number).randbytes(20_000) for number in range(200)}


def nowhere() -> FakeSource:
    """Return a source that must not be requested."""
    source = FakeSource(b"")
    source.error = NotFound("it was asked")
    return source


async def put_all(cache: ContentCache) -> None:
    for key, data in FILES.items():
        await cache.put(version(data, key), data)


async def written(cache: ContentCache) -> None:
    """Wait until all files are on the disk."""
    await until(lambda: not cache._write_behind._waiting)


async def test_it_is_there_for_the_next_open(tmp_path):
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put(version(SMALL), SMALL)
        assert cache.has(version(SMALL))
        assert blobs(tmp_path) == partials(tmp_path) == []
        blob = await cache.open(version(SMALL), nowhere())
        assert blob.complete
        assert (blob.size, await blob.read(0, MiB)) == (len(SMALL), SMALL)
        assert await blob.read(100, 50) == SMALL[100:150]
        assert await blob.read(len(SMALL), 50) == b""
        buffer = memoryview(bytearray(50))
        assert await blob.read_into(buffer, 100) == SMALL[100:150]
        assert await blob.read_into(buffer, len(SMALL) - 5) == SMALL[-5:]
        assert not await blob.read_into(buffer, len(SMALL))
        blob.close()
        assert (cache.stats.hits, cache.stats.misses) == (1, 0)


async def test_it_is_there_before_put_yields(tmp_path):
    """Make the file visible to the next task that runs: no other task may begin to fetch it."""
    async with open_cache(tmp_path, LIMIT) as cache:
        putting = cache.put(version(SMALL), SMALL)
        with pytest.raises(StopIteration):
            putting.send(None)
        assert cache.has(version(SMALL))


async def test_many_are_looked_up_as_one_is(tmp_path):
    """Answer as `has` does for files in memory, on the disk, in flight, of another boot, and due for revalidation."""
    async with open_cache(tmp_path, 10 * LIMIT, revalidate=100.0) as cache:
        await put_all(cache)
        await written(cache)
        for key in ("8/old", "8/young"):
            await read_all(cache, undigested(SMALL, key), FakeSource(SMALL))
    sql(tmp_path, "UPDATE blobs SET boot = 'another' WHERE key LIKE '7/1%'")
    sql(tmp_path, "UPDATE blobs SET checked = checked - 200 WHERE key = '8/old'")
    async with open_cache(tmp_path, 10 * LIMIT, revalidate=100.0) as cache:
        coming = FakeSource(BIG, chunk=MiB)
        coming.stalls[2 * MiB] = trio.Event()
        blob = await cache.open(version(BIG, "9/big"), coming)
        await cache.put(version(SMALL, "9/put"), SMALL)
        asked = [
            *(version(data, key) for key, data in FILES.items()),
            *(undigested(SMALL, key) for key in ("8/old", "8/young")),
            *(version(SMALL, f"9/{number}") for number in range(1000)),
            version(BIG, "9/big"),
            version(SMALL, "9/put"),
        ]
        found = await cache.find_cached(asked)
        assert found == {each for each in asked if cache.has(each)}
        assert {each.key for each in found} == {
            *(key for key in FILES if not key.startswith("7/1")),
            "8/young",
            "9/put",
        }
        assert await cache.find_cached([]) == set()
        blob.close()


async def test_it_is_kept(tmp_path):
    async with open_cache(tmp_path, LIMIT) as cache:
        await put_all(cache)
        await written(cache)
        assert len(blobs(tmp_path)) == len(FILES)
        assert {oct(path.stat().st_mode & 0o777) for path in blobs(tmp_path)} == {"0o600"}
        assert cache.bytes_used == on_disk(tmp_path) == 200 * 20_000
    async with open_cache(tmp_path, LIMIT) as cache:
        for key, data in FILES.items():
            assert await read_all(cache, version(data, key), nowhere()) == data


async def test_it_is_kept_even_if_the_cache_closes_at_once(tmp_path):
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put(version(SMALL), SMALL)
    assert await is_kept(tmp_path, version(SMALL))


async def test_many_share_a_transaction(tmp_path):
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.tidied.wait()
        statements: list[str] = []
        cache._store._directory.index._write.set_trace_callback(statements.append)
        await put_all(cache)
        await written(cache)
        assert statements.count("BEGIN IMMEDIATE") <= len(FILES) / BATCH_FILES + 2


async def test_what_was_read_and_written_leaves_the_memory(tmp_path):
    """Release all but a little of it, and that little after a while."""
    async with open_cache(tmp_path, LIMIT) as cache:
        for number in range(100):
            data = random.Random(number).randbytes(MAX_RETAINED_BYTES // 80)
            await cache.put(version(data, str(number)), data)
            assert await read_all(cache, version(data, str(number)), nowhere()) == data
        await written(cache)
        assert sum(entry.blob.size for entry in cache._files.entries.values()) <= MAX_RETAINED_BYTES
        cache._write_behind.release_written(0)
        assert not cache._files.current
        assert not cache._files.entries
        assert cache.has(version(data, "99"))


async def test_who_puts_faster_than_the_disk_writes_has_to_wait(tmp_path):
    async with open_cache(tmp_path, LIMIT) as cache:
        async with cache._store._lock:  # nothing is written
            with trio.move_on_after(0.2) as waiting:
                for number in range(100):
                    await cache.put(undigested(SMALL, str(number)), SMALL)
            assert waiting.cancelled_caught
            assert len(cache._files.entries) <= MAX_UNWRITTEN_BYTES // len(SMALL) + 2
        await cache.put(undigested(SMALL, "last"), SMALL)
        assert cache.has(undigested(SMALL, "last"))


async def test_a_download_under_way_goes_on(tmp_path):
    """Let its readers finish: they have it open, and it is cached once."""
    source = FakeSource(SMALL)
    source.stalls[65536] = trio.Event()
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = await cache.open(version(SMALL), source)
        await cache.put(version(SMALL), SMALL)
        assert not blob.complete
        source.stalls[65536].set()
        assert await blob.read(0, MiB) == SMALL
        blob.close()
        await quiet(cache)
        assert len(blobs(tmp_path)) == 1


async def test_a_file_that_is_kept_is_replaced_only_when_it_is_out_of_date(tmp_path):
    other = bytes(reversed(SMALL))
    async with open_cache(tmp_path, LIMIT, revalidate=100) as cache:
        await cache.put(undigested(SMALL), SMALL)
        await written(cache)
        cache._write_behind.release_written(0)
        old = await cache.open(undigested(SMALL), nowhere())
        cache.clock = lambda now=cache.clock: now() + 101  # type: ignore[misc]
        assert not cache.has(undigested(SMALL))
        await cache.put(undigested(SMALL), other)
        await written(cache)
        cache._write_behind.release_written(0)
        assert await read_all(cache, undigested(SMALL), nowhere()) == other
        assert await old.read(0, MiB) == SMALL, "who has it open keeps it"
        old.close()


async def test_the_limit_holds(tmp_path):
    limit = 10 * 20_000
    async with open_cache(tmp_path, limit) as cache:
        opened = None
        for number, (key, data) in enumerate(FILES.items()):
            await cache.put(version(data, key), data)
            if number == 0:
                opened = await cache.open(version(data, key), nowhere())
        await written(cache)
        assert cache.bytes_used == on_disk(tmp_path) == limit
        assert opened is not None
        assert await opened.read(0, MiB) == next(iter(FILES.values())), "it left the disk and not its reader"
        opened.close()


async def test_a_file_above_the_limit_is_read_and_not_kept(tmp_path):
    async with open_cache(tmp_path, 1000) as cache:
        await cache.put(version(SMALL), SMALL)
        assert await read_all(cache, version(SMALL), nowhere()) == SMALL
        await written(cache)
        assert not cache.has(version(SMALL))
        assert blobs(tmp_path) == []


async def test_a_full_disk_harms_no_reader(tmp_path, monkeypatch, caplog):
    """Serve from memory what cannot be cached, and fetch it again later."""
    disk = FullDisk(monkeypatch, lambda: len(blobs(tmp_path)) == 5)
    async with open_cache(tmp_path, LIMIT) as cache:
        blob = None
        for number, (key, data) in enumerate(list(FILES.items())[:10]):
            await cache.put(version(data, key), data)
            if number == 0:
                blob = await cache.open(version(data, key), nowhere())
        await written(cache)
        assert blob is not None
        assert await blob.read(0, MiB) == next(iter(FILES.values()))
        blob.close()
        assert blobs(tmp_path) == [], "all of a batch or none"
        assert (cache.bytes_used, cache._files.entries) == (0, {})
        disk.full = lambda: False
        key, data = next(iter(FILES.items()))
        assert await read_all(cache, version(data, key), FakeSource(data)) == data
    assert len(caplog.records) == 1


async def test_a_killed_process_leaves_nothing_wrong(tmp_path):
    """Find only right files, whichever were written, and fetch the rest."""
    code = """
for number in range(300):
    data = random.Random(number).randbytes(20_000)
    await cache.put(version(data, f"7/{number}.dcm"), data)
    if number == 150:
        await until(lambda: cache.bytes_used > 0)
"""
    with python(tmp_path, code) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.tidied.wait()
        found = [key for key, data in FILES.items() if cache.has(version(data, key))]
        assert found
        for key, data in FILES.items():
            assert await read_all(cache, version(data, key), FakeSource(data)) == data
        await quiet(cache)
        assert cache.bytes_used == on_disk(tmp_path)


async def test_a_file_without_a_row_is_no_obstacle(tmp_path):
    """Ignore what a crash in the middle of a batch leaves, before it is tidied up."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.tidied.wait()
        await cache.put(version(SMALL), SMALL)
        (entry,) = cache._files.entries.values()
        path = cache._store._directory.path(entry.ident)
        os.makedirs(os.path.dirname(path))
        await trio.Path(path).write_bytes(SMALL[:1000])
        await written(cache)
        cache._write_behind.release_written(0)
        assert await read_all(cache, version(SMALL), nowhere()) == SMALL


async def test_after_closing_nothing_is_put(tmp_path):
    async with open_cache(tmp_path, LIMIT) as cache:
        pass
    await cache.put(Version("7/a", 1, ""), b"x")
    assert blobs(tmp_path) == []


@pytest.mark.parametrize(("age", "starts"), [(None, []), (0, []), (59, []), (61, [0])])
async def test_it_is_as_old_as_the_answer_it_came_with(age, starts, tmp_path):
    """Ask again for a file without a digest once its answer is older than a minute, whenever it was put."""
    source = FakeSource(SMALL)
    async with open_cache(tmp_path, LIMIT, revalidate=60) as cache:
        await cache.put(undigested(SMALL), SMALL, None if age is None else cache.clock() - age)
        assert await read_all(cache, undigested(SMALL), source) == SMALL
    assert source.starts == starts


async def test_what_the_server_has_another_version_of_is_fetched_anew_once(tmp_path):
    """Fetch it at the next open, and at that only; a reader that has it open goes on with its bytes."""
    source = FakeSource(SMALL)
    async with open_cache(tmp_path, LIMIT) as cache:
        assert await read_all(cache, undigested(SMALL), source) == SMALL
        reader = await cache.open(undigested(SMALL), source)
        cache.distrust(undigested(SMALL))
        assert await reader.read(0, 10) == SMALL[:10]
        assert source.starts == [0]
        for _ in range(2):
            assert await read_all(cache, undigested(SMALL), source) == SMALL
            assert source.starts == [0, 0]
        reader.close()
