"""Test which files the cache serves no more, which ones it verifies before it serves them, and which it names."""

import os

import pytest
import trio

from tests.content.test_cache import BIG, SMALL, K, caching, kept, nowhere, stalled
from tests.support.content_fakes import FakeSource, read_all, until, version
from xnatfs.common.errors import BadReply
from xnatfs.content import blob as blob_module


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(blob_module, "SMALL_FILE_BYTES", 8 * K)
    monkeypatch.setattr(blob_module, "HOLD_BACK_BYTES", 128)


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_file_that_is_distrusted_is_fetched_anew_once(tmp_path, autojump_clock, is_open):
    """Fetch it though its copy, which has a digest, is in the directory; an open reader goes on."""
    async with caching(tmp_path) as cache:
        await kept(cache, version(SMALL))
        blob = await cache.open(version(SMALL), nowhere()) if is_open else None
        cache.distrust(version(SMALL))
        source = FakeSource(SMALL)
        for each in (source, nowhere()):
            assert await read_all(cache, version(SMALL), each) == SMALL
            if blob is None:  # the next open finds the new copy in the directory
                while cache.counters()["open_bytes"]:  # noqa: ASYNC110  in virtual time
                    await trio.sleep(0.1)
        assert source.starts == [0]
        if blob is not None:
            assert await blob.read(0, len(SMALL)) == SMALL
            blob.close()


async def test_so_many_files_are_verified_first_since_they_were_damaged(tmp_path, monkeypatch):
    """Serve nothing of a file before its end, once readers have had bytes of it that were not its own."""
    monkeypatch.setattr("xnatfs.content.cache.MAX_DAMAGED_NAMES", 1)
    wanted = [version(BIG, name) for name in ("a", "b")]
    async with caching(tmp_path) as cache:
        for each in wanted:
            with pytest.raises(BadReply):
                await read_all(cache, each, FakeSource(BIG[::-1]), step=K)
        served_whole = []
        for each in wanted:
            blob = await cache.open(each, stalled())
            served_whole.append(blob.is_served_whole)
            blob.close()
        assert served_whole == [False, True]


async def test_only_files_that_are_being_fetched_are_named_so(tmp_path):
    async with caching(tmp_path) as cache:
        await cache.put(version(SMALL, "put"), SMALL)
        blobs = [
            await cache.open(version(SMALL, "put"), nowhere()),
            await cache.open(version(SMALL, "complete"), FakeSource(SMALL)),
            await cache.open(version(BIG), stalled()),
        ]
        await blobs[1].wait_until_verified()
        await until(lambda: cache.counters()["fills"] == 1)
        assert cache.filling() == blobs[2:]
        for blob in blobs:
            blob.close()


async def test_what_waits_to_be_written_has_a_path_once_it_is_asked_for(tmp_path):
    async with caching(tmp_path) as cache:
        await cache.put(version(SMALL), SMALL)
        blob = await cache.open(version(SMALL), nowhere())
        path, fd = await cache.open_local(blob)
        assert path.read_bytes() == SMALL
        os.close(fd)
        blob.close()
