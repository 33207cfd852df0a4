"""Test pins, and hashing again, of cached files."""

import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from xnatfs.content import ContentCache, Version, open_cache
from xnatfs.content.disk import upkeep
from xnatfs.content.disk.index import Index
from xnatfs.content.disk.upkeep import HASHED_BYTES


def version(number: int) -> Version:
    content = f"{number:04}".encode() * 250
    return Version(f"1/{number}", 1000, hashlib.md5(content).hexdigest())


async def fill(cache: ContentCache, *numbers: int) -> None:
    for number in numbers:
        await cache.put(version(number), f"{number:04}".encode() * 250)
        await cache.upkeep.rehash(version(number))


async def cached(cache: ContentCache, *numbers: int) -> set[int]:
    return {number for number in numbers if await cache.upkeep.rehash(version(number))}


async def test_a_pinned_file_is_not_evicted_until_it_is_unpinned(tmp_path: Path):
    async with open_cache(tmp_path, 5000) as cache:
        await fill(cache, 1, 2, 3)
        assert await cache.upkeep.pin([version(1), version(9)]) == 1
        assert await cache.upkeep.usage() == {"files": 3, "pinned_files": 1, "pinned_bytes": 1000}
        await cache.evict(0)
        assert await cached(cache, 1, 2, 3) == {1}
        assert await cache.upkeep.unpin([version(2)]) == 0
        assert await cache.upkeep.unpin() == 1
        await cache.evict(0)
        assert await cached(cache, 1, 2, 3) == set()


async def test_a_pin_outlives_use_and_the_process_and_goes_with_the_file(tmp_path: Path):
    async with open_cache(tmp_path, 5000) as cache:
        await fill(cache, 1, 2)
        await cache.upkeep.pin([version(1), version(2)])
        await cache.upkeep.pin([version(1)])
    async with open_cache(tmp_path, 5000) as cache:
        assert cache.has(version(1))
        await cache.evict(0)  # which writes recent use first
        assert await cached(cache, 1, 2) == {1, 2}
        assert await cache.upkeep.unpin([version(1)]) == 1
        await cache.evict(0)
        assert await cached(cache, 1, 2) == {2}
        await cache.drop(["1"])
        assert await cache.upkeep.usage() == {"files": 0, "pinned_files": 0, "pinned_bytes": 0}


async def test_new_files_evict_what_is_not_pinned(tmp_path: Path):
    async with open_cache(tmp_path, 3000) as cache:
        await fill(cache, 1, 2)
        await cache.upkeep.pin([version(1)])
        await fill(cache, 3, 4, 5)
        await cache.evict(3000)
        assert 1 in await cached(cache, 1, 2, 3, 4, 5)
        assert cache.bytes_used <= 3000


async def test_damage_on_the_disk_is_found_and_removed(tmp_path: Path):
    async with open_cache(tmp_path, 5000) as cache:
        await fill(cache, 1)
        await cache.upkeep.pin([version(1)])
        assert await cache.upkeep.rehash(version(1)) == version(1).digest
        (blob,) = (path for path in (tmp_path / "blobs").rglob("*") if path.is_file())
        status = blob.stat()
        blob.write_bytes(b"y" * 1000)
        os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert await cache.upkeep.rehash(version(1)) == hashlib.md5(b"y" * 1000).hexdigest()
        cache.distrust(version(1))
        await cache.upkeep.remove([version(1)])
        assert await cache.upkeep.rehash(version(1)) is None
        assert not cache.has(version(1))


async def test_what_is_not_written_yet_is_written_first(tmp_path: Path):
    """Pin and hash files that were put a moment ago."""
    async with open_cache(tmp_path, 5000) as cache:
        await cache.put(version(1), b"0001" * 250)
        assert await cache.upkeep.pin([version(1)]) == 1
        await cache.put(version(2), b"0002" * 250)
        assert await cache.upkeep.rehash(version(2)) == version(2).digest


async def test_long_files_are_hashed_in_pieces(tmp_path: Path):
    content = os.urandom(3 * HASHED_BYTES + 7)
    long = Version("1/1", len(content), hashlib.md5(content).hexdigest())
    async with open_cache(tmp_path, 10 * HASHED_BYTES) as cache:
        await cache.put(long, content)
        assert await cache.upkeep.rehash(long) == long.digest


async def test_many_are_pinned_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(upkeep, "LOOKED_UP_TOGETHER", 2)
    async with open_cache(tmp_path, 10_000) as cache:
        await fill(cache, *range(5))
        wanted = list(map(version, (0, 9, 1, 2, 3, 4)))
        assert (await cache.upkeep.pin(wanted), cache.upkeep.pinned_bytes(wanted)) == (5, 5000)


async def test_an_index_in_trouble_has_no_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(self: Index) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async with open_cache(tmp_path, 5000) as cache:
        await fill(cache, 1)
        monkeypatch.setattr(Index, "usage", broken)
        assert await cache.upkeep.usage() == {"files": 0, "pinned_files": 0, "pinned_bytes": 0}
