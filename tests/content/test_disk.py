"""Test the content cache on disk: limit, crashes, several processes, permissions."""

import errno
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.content_fakes import (
    BIG,
    LIMIT,
    SMALL,
    FakeSource,
    MiB,
    descriptors,
    failure,
    is_kept,
    read_all,
    undigested,
    until,
    version,
)
from xnatfs.common.errors import CacheError
from xnatfs.content import ContentCache, open_cache
from xnatfs.content.cache import FLUSH_SECONDS

SIZE = len(SMALL)
END = len(BIG)


def blobs(directory: Path) -> list[Path]:
    """Return the cached files."""
    return [path for path in (directory / "blobs").rglob("*") if path.is_file()]


def partials(directory: Path) -> list[Path]:
    """Return the partial files."""
    return list((directory / "partial").iterdir())


def on_disk(directory: Path) -> int:
    """Return the bytes that the files really occupy, whatever the index says; holes do not count."""
    return sum(min(s.st_size, s.st_blocks * 512) for s in (p.stat() for p in [*blobs(directory), *partials(directory)]))


def sql(directory: Path, statement: str) -> list[tuple[object, ...]]:
    """Run SQL on the index behind the cache's back."""
    with closing(sqlite3.connect(directory / "index.sqlite", isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


async def quiet(cache: ContentCache) -> None:
    """Wait until nothing is open or being written."""
    await until(lambda: not cache._files.current and not cache._files.entries)


async def store(cache: ContentCache, keys: str, data: bytes = SMALL) -> None:
    """Read these files, one after the other."""
    for key in keys:
        assert await read_all(cache, version(data, key), FakeSource(data, chunk=MiB)) == data
        await quiet(cache)


def kept(cache: ContentCache, keys: str, data: bytes = SMALL) -> str:
    """Return which of these are cached."""
    return "".join(key for key in keys if cache.has(version(data, key)))


@contextmanager
def python(directory: Path, code: str, limit: int = LIMIT) -> Iterator[subprocess.Popen[str]]:
    """Run another process with this cache open; `code` is the body of a coroutine, and ends when stdin does."""
    body = "\n".join(f"        {line}" for line in code.strip().splitlines())
    script = f"""
import sys, trio
from pathlib import Path
from tests.support.content_fakes import *
async def main():
    async with open_cache(Path({str(directory)!r}), {limit}) as cache:
{body}
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
trio.run(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


class FullDisk:
    """A disk that is full as long as `full()` returns true."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full: Callable[[], bool]) -> None:
        self.full = full
        self.really = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if self.full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.really(fd, data, offset)


# Permissions and trouble.


async def test_nobody_else_can_read_the_cache(tmp_path):
    """Create directories with mode 0700 and files with 0600, whatever the umask."""
    directory = tmp_path / "made" / "cache"
    umask = os.umask(0)
    try:
        async with open_cache(directory, LIMIT) as cache:
            await store(cache, "a")
            blob = await cache.open(version(BIG), FakeSource(BIG, chunk=MiB, pause=1))
            await until(lambda: len(partials(directory)) == 1)
            paths = [directory, *directory.rglob("*")]
            assert {oct(path.stat().st_mode & 0o777) for path in paths if path.is_dir()} == {"0o700"}
            assert {oct(path.stat().st_mode & 0o777) for path in paths if path.is_file()} == {"0o600"}
            assert len(paths) >= 8  # directory, blobs, blobs/xx, a blob, partial, a partial, index.sqlite, its WAL
            blob.close()
    finally:
        os.umask(umask)


async def test_a_directory_that_was_open_to_others_is_closed(tmp_path):
    """Restrict a directory that was made by mkdir(1)."""
    tmp_path.chmod(0o755)
    async with open_cache(tmp_path, LIMIT):
        assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("place", ["/proc/xnatfs", "file", "file/below"])
async def test_a_directory_that_cannot_be_made_is_an_error_at_once(tmp_path, place):
    """Print one line that names the directory."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=rf"^cache directory [^\n]*{place}[^\n]*$"):
        async with open_cache(tmp_path / place, LIMIT):
            pass


async def test_a_directory_may_be_a_link(tmp_path):
    """Accept a symbolic link, because people move caches to other disks."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    async with open_cache(tmp_path / "cache", LIMIT) as cache:
        await store(cache, "a")
    assert len(blobs(tmp_path / "disk")) == 1


@pytest.mark.parametrize("content", [b"this is not SQLite " * 100, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_damaged_index_is_set_aside(tmp_path, caplog, content):
    """Warn once, and start with an empty cache that works."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "a")
    (tmp_path / "index.sqlite").write_bytes(content)
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.tidied.wait()
        assert blobs(tmp_path) == []
        await store(cache, "b")
    assert await is_kept(tmp_path, version(SMALL, "b"))
    assert (tmp_path / "index.sqlite.damaged").read_bytes() == content
    assert len(caplog.records) == 1


async def test_an_index_of_another_version_is_set_aside(tmp_path, caplog):
    """Start anew rather than guess."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "a")
    sql(tmp_path, "PRAGMA user_version = 99")
    async with open_cache(tmp_path, LIMIT) as cache:
        assert kept(cache, "a") == ""
    assert len(caplog.records) == 1


async def test_an_index_that_breaks_meanwhile_costs_only_the_keeping(tmp_path, caplog):
    """Fetch and serve files, and warn once; the next start has a new index."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.tidied.wait()
        await store(cache, "abc")
        size = (tmp_path / "index.sqlite").stat().st_size
        for name in ("index.sqlite", "index.sqlite-wal"):
            fd = os.open(tmp_path / name, os.O_WRONLY)
            os.write(fd, b"\xff" * size)
            os.close(fd)
        for key in "def":
            assert await read_all(cache, version(SMALL, key), FakeSource(SMALL)) == SMALL
            await quiet(cache)  # what is written shows that the index is damaged
    assert len(caplog.records) == 1
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "g")


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
async def test_a_full_disk_is_an_error_of_that_read(tmp_path, monkeypatch, caplog, data):
    """Raise the error after eviction did not help; the cached files may be gone, but the cache goes on."""
    disk = FullDisk(monkeypatch, lambda: True)
    async with open_cache(tmp_path, LIMIT) as cache:
        for _ in range(2):
            exc = await failure(cache, version(data), FakeSource(data))
            assert isinstance(exc, CacheError)
            assert "No space left" in str(exc)
        disk.full = lambda: False
        assert await read_all(cache, version(data), FakeSource(data)) == data
    assert len(caplog.records) == 1


async def test_a_full_disk_evicts_first(tmp_path, monkeypatch):
    """Hide the full disk from the reader."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "abc")
        FullDisk(monkeypatch, lambda: len(blobs(tmp_path)) == 3)
        await store(cache, "d")
        assert kept(cache, "abcd") == "d"


# The limit.


async def test_the_least_recently_used_goes_first(tmp_path):
    """Count the last use, not the fetch."""
    async with open_cache(tmp_path, 3 * SIZE) as cache:
        await store(cache, "abcad")
        assert kept(cache, "abcd") == "acd"


async def test_recency_outlives_the_process(tmp_path):
    """Write the time of use when the process ends at the latest."""
    async with open_cache(tmp_path, 3 * SIZE) as cache:
        await store(cache, "abca")
    async with open_cache(tmp_path, 3 * SIZE) as cache:
        await store(cache, "d")
        assert kept(cache, "abcd") == "acd"


async def test_the_limit_is_never_exceeded(tmp_path):
    """Check after each file by what is on the disk."""
    async with open_cache(tmp_path, 5 * SIZE + 1) as cache:
        for number in range(20):
            data = SMALL[: SIZE - number * 1000]
            await store(cache, "x", data)
            assert cache.bytes_used <= cache._store.limit
            assert on_disk(tmp_path) <= cache._store.limit
    assert len(blobs(tmp_path)) == 5


async def test_a_lower_limit_holds_from_the_next_file_on(tmp_path):
    """Apply the limit of the running process."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "abcdef")
    async with open_cache(tmp_path, 2 * SIZE) as cache:
        await store(cache, "g")
        assert cache.bytes_used == 2 * SIZE


async def test_an_open_file_is_not_evicted(tmp_path):
    """Exceed the limit for an open file only, and until it is closed."""
    async with open_cache(tmp_path, SIZE) as cache:
        files = [await cache.open(version(SMALL, key), FakeSource(SMALL)) for key in "ab"]
        for blob in files:
            assert await blob.read(0, 10) == SMALL[:10]
        await until(lambda: cache.bytes_used == 2 * SIZE)
        files[1].close()
        await until(lambda: cache.bytes_used == SIZE)
        assert kept(cache, "ab") == "a"
        assert await files[0].read(0, SIZE) == SMALL
        files[0].close()


async def test_a_file_above_the_limit_is_readable_and_goes_when_closed(tmp_path):
    """Evict no other file for it."""
    async with open_cache(tmp_path, 2 * SIZE) as cache:
        await store(cache, "ab")
        source = FakeSource(BIG, chunk=MiB)
        assert await read_all(cache, version(BIG), source) == BIG
        await quiet(cache)
        await until(lambda: not partials(tmp_path))
        assert kept(cache, "ab") == "ab"
        assert cache.bytes_used == 2 * SIZE
        assert await read_all(cache, version(BIG), source) == BIG
    assert source.starts == [0, MiB, 0, MiB]


async def test_a_limit_of_nothing_keeps_nothing(tmp_path):
    """Evict small files too when they are closed."""
    async with open_cache(tmp_path, 0) as cache:
        blob = await cache.open(version(SMALL), FakeSource(SMALL))
        assert await blob.read(0, SIZE) == SMALL
        blob.close()
        await quiet(cache)
        await until(lambda: on_disk(tmp_path) == 0)


async def test_room_is_made_before_a_big_file_comes(tmp_path, patient_clock):
    """Evict before the disk is full."""
    source = FakeSource(BIG, chunk=MiB)
    source.stalls[0] = trio.Event()
    async with open_cache(tmp_path, END + SIZE) as cache:
        await store(cache, "abc")
        blob = await cache.open(version(BIG), source)
        assert kept(cache, "abc") == "c"
        assert cache.bytes_used == END + SIZE
        source.stalls[0].set()
        assert await blob.read(0, END) == BIG
        blob.close()
        await quiet(cache)
        assert cache.bytes_used == END + SIZE


async def test_of_unknown_length_it_is_counted_as_it_grows(tmp_path, patient_clock):
    """Count the file as it grows, and its real length in the end."""
    source = FakeSource(BIG, chunk=MiB, pause=1)
    source.states_size = False
    async with open_cache(tmp_path, 2 * END) as cache:
        await store(cache, "abc")
        assert await read_all(cache, version(BIG), source) == BIG
        await quiet(cache)
        assert cache.bytes_used in (END, END + SIZE, END + 2 * SIZE, END + 3 * SIZE)
        assert cache.bytes_used == on_disk(tmp_path)


async def test_a_partly_fetched_file_goes_before_whole_ones(tmp_path, patient_clock):
    """Evict partial files first when room is needed."""
    source = FakeSource(BIG, chunk=MiB)
    source.stalls[MiB] = trio.Event()
    async with open_cache(tmp_path, END + 2 * SIZE) as cache:
        await store(cache, "ab")
        (await cache.open(version(BIG), source)).close()
        await trio.sleep(100)
        assert len(partials(tmp_path)) == 1
        assert await read_all(cache, version(SMALL, "c"), FakeSource(SMALL)) == SMALL
        await quiet(cache)
        await until(lambda: not partials(tmp_path))
        await until(lambda: cache.bytes_used in (2 * SIZE, 3 * SIZE))


async def test_evict_makes_room_on_request(tmp_path):
    """Evict on request, for `xnatfs cache clear` and the like."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "abc")
        await cache.evict(2 * SIZE)
        assert kept(cache, "abc") == "bc"
        await cache.evict(0)
        assert on_disk(tmp_path) == cache.bytes_used == 0


# Crashes.


async def test_partials_of_the_dead_are_removed(tmp_path):
    """Keep the partial files of running processes."""
    async with open_cache(tmp_path, LIMIT):
        pass
    (tmp_path / "partial" / "dead").write_bytes(SMALL)
    (tmp_path / "partial" / "alive").write_bytes(SMALL)
    sql(tmp_path, "INSERT INTO partials VALUES ('dead', 10), ('alive', 20), ('without a file', 40)")
    fd = os.open(tmp_path / "partial" / "alive", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.tidied.wait()
        assert [path.name for path in partials(tmp_path)] == ["alive"]
        assert cache.bytes_used == 20
    os.close(fd)


async def test_files_without_a_row_are_removed(tmp_path):
    """Remove what a crash between the rename and the row leaves."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "a")
    (tmp_path / "blobs" / "ab").mkdir(exist_ok=True)
    orphan = tmp_path / "blobs" / "ab" / ("ab" * 32)
    orphan.write_bytes(SMALL)
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.tidied.wait()
        assert not orphan.exists()
        assert kept(cache, "a") == "a"


async def test_rows_without_a_file_are_removed(tmp_path):
    """Remove rows after a crash during eviction, or after rm(1)."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "ab")
    blobs(tmp_path)[0].unlink()
    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.tidied.wait()
        assert cache.bytes_used == SIZE
        await store(cache, "ab")
        assert cache.bytes_used == 2 * SIZE


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
async def test_a_file_of_another_size_is_fetched_again(tmp_path, size):
    """Reject a file whose size is not that of the row."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "a")
        os.truncate(blobs(tmp_path)[0], size)
        await store(cache, "a")
        assert cache.stats.misses == 2
        await store(cache, "a")
        assert cache.stats.misses == 2


async def test_a_file_cut_short_while_open_is_an_error(tmp_path):
    """Raise an error rather than return fewer bytes than there are."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "a")
        blob = await cache.open(version(SMALL, "a"), FakeSource(SMALL))
        os.truncate(blobs(tmp_path)[0], 100)
        assert await blob.read(0, 100) == SMALL[:100]
        with pytest.raises(CacheError, match="a: "):
            await blob.read(50, 100)
        blob.close()


async def test_what_may_not_have_reached_the_disk_is_not_trusted_after_a_reboot(tmp_path):
    """Ignore rows of another boot, unless the file was synced since."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "a")
    sql(tmp_path, "UPDATE blobs SET boot = 'another'")
    async with open_cache(tmp_path, LIMIT) as cache:
        assert kept(cache, "a") == ""
        await store(cache, "a")
        assert kept(cache, "a") == "a"


async def test_files_are_synced_after_a_while(tmp_path, patient_clock):
    """Sync in the background, for all files at once."""
    async with open_cache(tmp_path, LIMIT) as cache:
        await store(cache, "ab")
        await trio.sleep(2 * FLUSH_SECONDS)
        await until(lambda: sql(tmp_path, "SELECT DISTINCT boot FROM blobs") == [("",)])
        assert kept(cache, "ab") == "ab"


async def test_kill_in_the_middle_of_a_download_leaves_nothing(tmp_path):
    """Leave neither a file nor its share of the total."""
    code = """
source = FakeSource(BIG, chunk=MiB)
source.stalls[2 * MiB] = trio.Event()
blob = await cache.open(version(BIG), source)
await blob.read(0, MiB)
await read_all(cache, version(SMALL), FakeSource(SMALL))
await until(lambda: cache.bytes_used == len(BIG) + len(SMALL))
"""
    with python(tmp_path, code) as process:
        async with open_cache(tmp_path, LIMIT) as cache:
            await cache.tidied.wait()
            assert len(partials(tmp_path)) == 1  # its owner lives
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        async with open_cache(tmp_path, LIMIT) as cache:
            await cache.tidied.wait()
            assert partials(tmp_path) == []
            assert cache.bytes_used == SIZE
            assert cache.has(version(SMALL))
            assert not cache.has(version(BIG))


# Several processes.


async def test_what_one_process_keeps_another_reads(tmp_path):
    """Share files while both processes have the directory open."""
    async with open_cache(tmp_path, LIMIT) as cache:
        with python(tmp_path, "await read_all(cache, version(SMALL), FakeSource(SMALL))"):
            await until(lambda: cache.bytes_used == SIZE)
            source = FakeSource(SMALL)
            assert await read_all(cache, version(SMALL), source) == SMALL
            assert source.starts == []


async def test_what_another_process_has_open_is_not_evicted(tmp_path):
    """Evict the file once that process has ended."""
    code = """
blob = await cache.open(version(SMALL, "a"), FakeSource(SMALL))
await blob.read(0, 10)
await until(lambda: cache.bytes_used == len(SMALL))
"""
    async with open_cache(tmp_path, LIMIT) as cache:
        with python(tmp_path, code):
            await store(cache, "b")
            await cache.evict(0)
            assert kept(cache, "ab") == "a"
        await cache.evict(0)
        assert kept(cache, "ab") == ""


async def test_processes_that_write_together_keep_the_limit_and_the_count(tmp_path):
    """Write the same keys and others, with a limit that holds only a few of them."""
    limit = 5 * SIZE
    code = """
for number in range(60):
    assert await read_all(cache, version(SMALL, str(number % 20)), FakeSource(SMALL)) == SMALL
"""
    with python(tmp_path, code, limit), python(tmp_path, code, limit):
        pass
    async with open_cache(tmp_path, limit) as cache:
        await cache.tidied.wait()
        assert cache.bytes_used == on_disk(tmp_path) <= limit
        assert cache.bytes_used == SIZE * len(blobs(tmp_path))


async def test_a_process_that_replaces_a_file_leaves_open_ones_alone(tmp_path):
    """Rename over the file, which does not change it for processes that have it open."""
    async with open_cache(tmp_path, LIMIT) as cache, open_cache(tmp_path, LIMIT, revalidate=0) as other:
        blob = await cache.open(undigested(SMALL), FakeSource(SMALL))
        assert await blob.read(0, 10) == SMALL[:10]
        await until(lambda: cache.bytes_used == SIZE)
        newer = FakeSource(SMALL[::-1])
        newer.modified = "Tue, 02 Jan 2024 00:00:00 GMT"
        assert await read_all(other, undigested(SMALL), newer) == SMALL[::-1]
        await quiet(other)
        assert await blob.read(0, SIZE) == SMALL
        blob.close()
        assert cache.bytes_used == on_disk(tmp_path) == SIZE
        assert await read_all(cache, undigested(SMALL), newer) == SMALL[::-1]


async def test_no_descriptor_is_left_open(tmp_path):
    """Close the descriptors of files and of the cache; a complete open file has one."""

    def count() -> int:
        return len(descriptors())

    async with open_cache(tmp_path / "first", LIMIT) as cache:
        await cache.tidied.wait()  # and whatever else is opened once
    before = count()
    async with open_cache(tmp_path / "second", LIMIT) as cache:
        await store(cache, "a")
        idle = count()
        await store(cache, "bcd")
        assert await failure(cache, version(SMALL, "e"), FakeSource(SMALL[::-1])) is not None
        await quiet(cache)
        await until(lambda: count() == idle)
        files = [await cache.open(version(SMALL, key), FakeSource(SMALL)) for key in "abcd"]
        assert count() == idle + 4
        for blob in files:
            blob.close()
        assert count() == idle
    assert count() == before


async def test_the_limit_is_never_more_than_half_of_the_free_disk(tmp_path):
    """Leave room for other programs, whatever limit was configured."""
    free = shutil.disk_usage(tmp_path).free
    async with open_cache(tmp_path / "cache", 2**62) as cache:
        assert 0.4 * free < cache._store.limit < 0.6 * free
