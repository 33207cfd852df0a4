"""Test the content cache on a directory that fails: full, gone, not writable, with a damaged index.

Reads go on with the right bytes, one warning says why nothing is cached, and when the directory is mended files are
cached again.
"""

import fcntl
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.content.test_disk import blobs, kept, on_disk, python, quiet, sql, store
from tests.support.content_fakes import BIG, LIMIT, SMALL, FakeSource, MiB, failure, md5, read_all, until, version
from xnatfs.common.errors import BadReply, CacheFull
from xnatfs.content import ContentCache, Version, open_cache
from xnatfs.content.disk import partial as partial_module
from xnatfs.content.disk.partial import FilePlace


@dataclass
class Disk:
    """A small disk of its own, and a cache directory on it."""

    root: Path

    def __post_init__(self) -> None:
        self.directory = self.root / "cache"

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with open(self.root / "filler", "wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Provide a disk of 40 MiB, of which the cache takes half."""
    root = tmp_path / "disk"
    root.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m,nr_inodes=400", "xnatfs-test", root])
    if done.returncode:
        pytest.skip("mounting takes root")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def sh(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def full(disk: Disk) -> Callable[[], None]:
    disk.fill()
    return (disk.root / "filler").unlink


def out_of_inodes(disk: Disk) -> Callable[[], None]:
    names: list[Path] = []
    with suppress(OSError):
        while True:
            names.append(disk.root / f"empty{len(names)}")
            names[-1].touch()
    return lambda: sh("rm", "-f", *names)


def read_only(disk: Disk) -> Callable[[], None]:
    # What is open for writing keeps a disk from being made so; then this is what a disk with errors does, too.
    sh("mount", "--bind", disk.directory, disk.directory)
    sh("mount", "-o", "remount,bind,ro", disk.directory)
    return lambda: sh("umount", "-l", disk.directory)


def replaced_by_a_file(disk: Disk) -> Callable[[], None]:
    disk.directory.rename(disk.root / "elsewhere")
    disk.directory.touch()
    return disk.directory.unlink


def removed(disk: Disk) -> Callable[[], None]:
    sh("rm", "-rf", disk.directory)
    return lambda: None


def index_removed(disk: Disk) -> Callable[[], None]:
    (disk.directory / "index.sqlite").unlink()
    return lambda: None


def index_emptied(disk: Disk) -> Callable[[], None]:
    os.truncate(disk.directory / "index.sqlite", 0)
    return lambda: None


def index_overwritten(disk: Disk) -> Callable[[], None]:
    for name in ("index.sqlite", "index.sqlite-wal"):
        size = (disk.directory / name).stat().st_size
        fd = os.open(disk.directory / name, os.O_WRONLY)
        os.write(fd, b"\xff" * size)
        os.close(fd)
    return lambda: None


WARNINGS = {
    full: "files are fetched but not kept",
    out_of_inodes: "No space left on device",
    read_only: "Read-only file system",
    replaced_by_a_file: "Not a directory",
    removed: "its index was removed by others",
    index_removed: "its index was removed by others",
    index_emptied: "files are fetched but not kept",
    index_overwritten: "files are fetched but not kept",
}


@pytest.mark.parametrize("trouble", WARNINGS)
@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
async def test_trouble_costs_nothing_but_the_keeping(disk, caplog, trouble, data):
    async with open_cache(disk.directory, LIMIT) as cache:
        await cache.tidied.wait()
        await store(cache, "abc")
        mend = trouble(disk)
        for key in "de":
            assert await read_all(cache, version(data, key), FakeSource(data, chunk=MiB)) == data
            await quiet(cache)
        members = [Version(f"member {number}", len(SMALL), md5(SMALL)) for number in range(12)]
        for member in members:
            await cache.put(member, SMALL)
            assert await read_all(cache, member, FakeSource(SMALL)) == SMALL
        await cache.evict(LIMIT)  # they are written
        # An index that is emptied may not be missed: what is in the WAL and in memory may be all that is asked for.
        assert len(caplog.records) == 1 or (trouble is index_emptied and not caplog.records)
        assert all(WARNINGS[trouble] in record.getMessage() for record in caplog.records)
        mend()
        for key in "ab":
            assert await read_all(cache, version(data, key), FakeSource(data, chunk=MiB)) == data
            await quiet(cache)
        source = FakeSource(data)
        assert await read_all(cache, version(data, "b"), source) == data
        assert source.starts == []
        assert len(caplog.records) <= 1
        assert cache.bytes_used == on_disk(disk.directory)
    async with open_cache(disk.directory, LIMIT) as cache:
        await cache.tidied.wait()
        assert kept(cache, "b", data) == "b"
        assert cache.bytes_used == on_disk(disk.directory)
        assert sql(disk.directory, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("trouble", [full, removed, replaced_by_a_file, index_removed, index_emptied])
async def test_trouble_in_the_middle_of_a_file_is_not_noticed_by_its_reader(disk, caplog, trouble):
    source = FakeSource(BIG, chunk=MiB // 4)
    async with open_cache(disk.directory, LIMIT) as cache:
        await cache.tidied.wait()
        blob = await cache.open(version(BIG), source)
        assert await blob.read(0, MiB) == BIG[:MiB]
        trouble(disk)
        for offset in range(MiB, len(BIG), MiB):
            assert await blob.read(offset, MiB) == BIG[offset : offset + MiB]
        blob.close()
        await quiet(cache)
    assert len(caplog.records) <= 1


@pytest.mark.parametrize("trouble", [index_removed, index_emptied, index_overwritten])
async def test_trouble_between_two_mounts_is_a_cache_that_starts_empty(disk, trouble):
    async with open_cache(disk.directory, LIMIT) as cache:
        await store(cache, "abc")
        await cache.tidied.wait()
        if trouble is index_overwritten:
            trouble(disk)
    if trouble is not index_overwritten:
        trouble(disk)
    async with open_cache(disk.directory, LIMIT) as cache:
        await cache.tidied.wait()
        assert (kept(cache, "abc"), cache.bytes_used, blobs(disk.directory)) == ("", 0, [])
        await store(cache, "a")
        assert kept(cache, "a") == "a"


@pytest.mark.parametrize("names", ["index.sqlite", "index.sqlite*"], ids=["alone", "with its WAL"])
async def test_who_ends_with_an_index_that_was_removed_harms_nobody(tmp_path, names):
    """Keep the WAL of a new index: SQLite, closing its last connection, removes the WAL beside a file in its place."""
    code = (
        "await cache.tidied.wait(); cache._store._directory.reopen_if_lost = lambda: False"  # it does not look any more
    )
    with ExitStack() as stack:
        stack.enter_context(python(tmp_path, code))
        for path in tmp_path.glob(names):
            path.unlink()
        async with open_cache(tmp_path, LIMIT) as living:
            await living.tidied.wait()
            await store(living, "bc")
            stack.close()
            await store(living, "d")
            async with open_cache(tmp_path, LIMIT) as third:
                await third.tidied.wait()
                assert kept(third, "bcd") == "bcd"
                assert third.bytes_used == on_disk(tmp_path)
    assert sql(tmp_path, "PRAGMA integrity_check") == [("ok",)]


async def test_two_that_lost_their_index_share_the_new_one(tmp_path):
    async with open_cache(tmp_path, LIMIT) as one, open_cache(tmp_path, LIMIT) as other:
        for cache in (one, other):
            await cache.tidied.wait()
        await store(one, "a")
        for path in tmp_path.glob("index.sqlite*"):
            path.unlink()
        await store(one, "b")
        await store(other, "c")
        assert (kept(one, "bc"), kept(other, "bc")) == ("bc", "bc")
        assert one.bytes_used == other.bytes_used == on_disk(tmp_path) == 2 * len(SMALL)


async def test_a_kept_file_that_others_overwrote_is_fetched_again(tmp_path):
    """Detect a write to a file of the same size without a digest to go by."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "a")
        (path,) = blobs(tmp_path)
        path.write_bytes(bytes(len(SMALL)))
        await store(cache, "a")
        assert cache.stats.misses == 2
    (path,) = blobs(tmp_path)
    path.write_bytes(bytes(len(SMALL)))
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.tidied.wait()
        assert blobs(tmp_path) == []
        await store(cache, "a")
        assert cache.bytes_used == len(SMALL)


async def test_a_partial_whose_owner_dies_later_is_removed_by_who_lives(tmp_path, autojump_clock):
    """Remove the file of a download process that outlives its daemon, and holds it when the next mount tidies up."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.tidied.wait()
        left = tmp_path / "partial" / "left"
        left.write_bytes(SMALL)
        sql(tmp_path, "INSERT INTO partials VALUES ('left', 10)")
        fd = os.open(left, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_SH)
        await trio.sleep(100)
        assert left.exists()
        os.close(fd)
        await trio.sleep(100)
        await until(lambda: not left.exists())
        assert cache.bytes_used == 0


async def test_a_smaller_limit_holds_from_the_start_and_against_others_with_a_larger_one(tmp_path, autojump_clock):
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "abcd")
    async with open_cache(tmp_path, 2 * len(SMALL)) as small, open_cache(tmp_path, LIMIT) as large:
        await small.tidied.wait()
        assert kept(small, "abcd") == "cd"
        await store(large, "efgh")
        await trio.sleep(100)
        await until(lambda: on_disk(tmp_path) == small.bytes_used == 2 * len(SMALL))


# -- what the directory has no room for ----------------------------------------------------------------------------


@pytest.fixture(params=[FilePlace.TEMPORARY, FilePlace.MEMORY], ids=["in a temporary directory", "in memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FilePlace:
    """Let there be another disk with room, or none."""
    folders = [str(tmp_path)] if request.param is FilePlace.TEMPORARY else []
    monkeypatch.setattr(partial_module, "TEMPORARY_FOLDERS", folders)
    found: FilePlace = request.param
    return found


@pytest.fixture(params=["ranges", "no ranges"])
def source(request: pytest.FixtureRequest) -> FakeSource:
    made = FakeSource(BIG, chunk=MiB // 8, ranged=request.param == "ranges")
    made.seekable = made.ranged
    return made


@pytest.fixture(params=["itself", "by others"])
def writing(request: pytest.FixtureRequest, source: FakeSource) -> FakeSource:
    source.writes = request.param == "by others"
    return source


async def no_disk(cache: ContentCache, disk: Disk) -> None:
    await cache.tidied.wait()
    disk.fill()


async def test_a_file_that_has_no_room_is_elsewhere_while_it_is_open(disk, place, writing):
    before = len(os.listdir("/proc/self/fd"))
    async with open_cache(disk.directory, LIMIT) as cache:
        await no_disk(cache, disk)
        blob = await cache.open(version(BIG), writing)
        for offset in [*range(0, len(BIG), MiB // 4), 0, 5 * MiB]:
            assert await blob.read(offset, MiB // 4) == BIG[offset : offset + MiB // 4]
        assert blob.complete
        assert [partial.place for partial in cache._store._partials.values()] == [place]
        assert writing.starts in ([0], [0, MiB], [0, 0])
        blob.close()
        await quiet(cache)
        await until(lambda: not cache._store._partials)
        assert not cache.has(version(BIG))
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_damaged_file_that_has_no_room_is_an_error_before_its_end(disk, place, writing):
    damaged = Version("a", len(BIG), md5(SMALL))
    async with open_cache(disk.directory, LIMIT) as cache:
        await no_disk(cache, disk)
        blob = await cache.open(damaged, writing)
        got = 0
        with pytest.raises(BadReply):  # noqa: PT012
            while data := await blob.read(got, 128 * 1024):
                got += len(data)
        assert got < len(BIG)
        blob.close()
        assert isinstance(await failure(cache, damaged, writing), BadReply)


async def test_seekers_in_a_file_that_has_no_room_get_their_bytes(disk, place, writing):
    """Seek back and forth, several readers at a time."""

    async def seek(blob, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(5):
            offset = chance.randrange(len(BIG))
            assert await blob.read(offset, 50_000) == BIG[offset : offset + 50_000]

    async with open_cache(disk.directory, LIMIT) as cache:
        await no_disk(cache, disk)
        blob = await cache.open(version(BIG), writing)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for seed in range(3):
                    nursery.start_soon(seek, blob, seed)
        blob.close()
        await quiet(cache)


async def test_memory_that_is_all_taken_is_an_error_and_is_given_back(disk, monkeypatch, caplog):
    monkeypatch.setattr("xnatfs.content.disk.partial.MAX_MEMORY_BYTES", len(SMALL))
    async with open_cache(disk.directory, LIMIT) as cache:
        await no_disk(cache, disk)
        one = await cache.open(version(SMALL, "one"), FakeSource(SMALL))
        assert await one.read(0, 10) == SMALL[:10]
        assert "none left in memory" in str(await failure(cache, version(SMALL, "two"), FakeSource(SMALL)))
        one.close()
        await quiet(cache)
        assert await read_all(cache, version(SMALL, "two"), FakeSource(SMALL)) == SMALL


async def test_a_file_that_has_no_room_anywhere_is_an_error_that_says_what_to_do(disk, monkeypatch, caplog):
    monkeypatch.setattr(partial_module, "MAX_MEMORY_BYTES", len(BIG) - 1)
    monkeypatch.setattr(partial_module, "TEMPORARY_FOLDERS", [str(disk.root)])
    async with open_cache(disk.directory, LIMIT) as cache:
        await no_disk(cache, disk)
        error = await failure(cache, version(BIG), FakeSource(BIG))
        assert isinstance(error, CacheFull)
        assert str(error) == (
            f"cache directory {disk.directory}: there is no room, none in $TMPDIR (/tmp) or /var/tmp, and none left in"
            " memory; make room in one of them"
        )
        assert await read_all(cache, version(SMALL), FakeSource(SMALL)) == SMALL
