"""Test that processes of one machine fetch a file once: two caches in one directory stand for two processes."""

import os
import subprocess
import sys
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from tests.support.content_fakes import SMALL, FakeSource, undigested, until, version
from xnatfs.common.errors import BadReply
from xnatfs.content import open_cache
from xnatfs.content.disk.claims import Claims
from xnatfs.content.source import identity
from xnatfs.prefetch.series_files import SeriesPrefetch

LIMIT_BYTES = 10**9


async def read(cache, version, source):
    blob = await cache.open(version, source)
    try:
        return await blob.read(0, blob.size)
    finally:
        blob.close()


async def begun(source):
    while not source.starts:  # noqa: ASYNC110  a source sets no event
        await trio.sleep(0.001)


@pytest.fixture
async def caches(tmp_path):
    async with open_cache(tmp_path, LIMIT_BYTES) as one, open_cache(tmp_path, LIMIT_BYTES) as other:
        await one.tidied.wait()
        await other.tidied.wait()
        yield one, other


async def both(caches, version, sources):
    results = []

    async def one(cache, source):
        results.append(await read(cache, version, source))

    async with trio.open_nursery() as nursery:
        for cache, source in zip(caches, sources, strict=True):
            nursery.start_soon(one, cache, source)
    return results


async def test_the_names_that_any_process_claims_are_known(tmp_path):
    (tmp_path / "download").touch()
    async with Claims(tmp_path).turn("a", lambda: False), Claims(tmp_path).turn("b", lambda: False):
        assert Claims(tmp_path).names() == {"a", "b"}
    assert Claims(tmp_path).names() == Claims(tmp_path / "none").names() == set()


async def test_what_another_process_is_fetching_singly_is_claimed(caches):
    one, other = caches
    source = FakeSource(SMALL, pause=0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, one, version(SMALL), source)
        await begun(source)
        assert other.claimed() == {identity(version(SMALL)).hex()}
    await until(lambda: other.claimed() == set())


async def test_two_processes_that_want_a_file_at_once_send_one_request(caches, tmp_path):
    sources = FakeSource(SMALL, pause=0.01), FakeSource(SMALL, pause=0.01)
    assert await both(caches, version(SMALL), sources) == [SMALL, SMALL]
    assert sum(len(source.starts) for source in sources) == 1
    assert [cache.counters()["fills"] for cache in caches] == [0, 0]
    assert list((tmp_path / "partial").iterdir()) == []


async def test_a_file_without_a_digest_is_fetched_by_each(caches):
    sources = FakeSource(SMALL), FakeSource(SMALL)
    assert await both(caches, undigested(SMALL), sources) == [SMALL, SMALL]
    assert [len(source.starts) for source in sources] == [1, 1]


async def test_what_another_process_fails_to_fetch_is_fetched(caches):
    damaged, sound = FakeSource(SMALL[:-1] + b"!", pause=0.01), FakeSource(SMALL)

    async with trio.open_nursery() as nursery:

        async def fail():
            with pytest.raises(BadReply):
                await read(caches[0], version(SMALL), damaged)

        nursery.start_soon(fail)
        await begun(damaged)
        assert await read(caches[1], version(SMALL), sound) == SMALL


async def test_a_process_that_keeps_its_claim_is_waited_for_not_for_ever(caches, monkeypatch):
    monkeypatch.setattr("xnatfs.content.disk.claims.CLAIM_WAIT_SECONDS", 0.1)
    stalled, source = FakeSource(SMALL), FakeSource(SMALL)
    stalled.stalls[100] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, caches[0], version(SMALL), stalled)
        await begun(stalled)
        assert await read(caches[1], version(SMALL), source) == SMALL
        stalled.release()


async def test_a_reader_that_is_cancelled_leaves_no_claim(caches, tmp_path):
    stalled = FakeSource(SMALL)
    stalled.stalls[100] = trio.Event()
    async with open_cache(tmp_path, LIMIT_BYTES) as third:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, third, version(SMALL), stalled)
            await begun(stalled)
            nursery.cancel_scope.cancel()
    assert await read(caches[1], version(SMALL), FakeSource(SMALL)) == SMALL


async def test_a_claim_of_a_process_that_has_ended_is_free_and_a_lost_directory_claims_nothing(tmp_path):
    (tmp_path / "name.claim").write_text("")
    async with Claims(tmp_path).turn("name", lambda: False) as waited:
        assert not waited
        assert os.listdir(tmp_path) == ["name.claim"]
    assert os.listdir(tmp_path) == []
    async with Claims(Path("/nowhere")).turn("name", lambda: False) as waited:
        assert not waited


@contextmanager
def stopped_holder(path):
    """Run a process that locks a file and stops itself: it keeps its locks."""
    program = (
        f"import fcntl, os, signal; f = open({str(path)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('locked', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        os.waitpid(process.pid, os.WUNTRACED)  # until it has stopped
        yield
    finally:
        process.kill()
        process.communicate()


async def test_a_stopped_process_is_not_waited_for(caches, tmp_path):
    ident = identity(version(SMALL)).hex()
    with stopped_holder(tmp_path / "partial" / f"{ident}.claim"):
        assert await read(caches[0], version(SMALL), FakeSource(SMALL)) == SMALL


async def test_an_archive_is_claimed_until_its_files_are_there_for_the_next_process(caches):
    one, other = caches
    prefetch = SeriesPrefetch(None, one, None)  # type: ignore[arg-type]  # neither is used here
    turn = AsyncExitStack()
    await turn.enter_async_context(one.turn("tar-34", lambda: False))
    await one.put(version(SMALL), SMALL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(prefetch._end_turn, turn)
        async with other.turn("tar-34", lambda: False) as waited:
            assert waited
            assert other.has(version(SMALL))
