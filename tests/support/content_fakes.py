"""Provide a source with every fault that a server has, for the tests of the content cache."""

import gc
import hashlib
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path

import trio
from trio.testing import MockClock

from xnatfs.common.errors import Unreachable, XnatError
from xnatfs.content import Body, ContentCache, Head, Version, open_cache
from xnatfs.content.source import WriteInto

MiB = 1024 * 1024
LIMIT = 1024 * MiB
SMALL = random.Random(1).randbytes(300_000)
BIG = random.Random(2).randbytes(12 * MiB + 12_345)


def patient() -> MockClock:
    """Make a clock that jumps when nothing goes on, also not in a thread that works on the disk.

    pytest-trio's `autojump_clock` jumps as soon as the event loop has nothing to do: it keeps that busy, takes the
    interpreter from the thread, and lets timeouts expire that are meant for servers. An operation on the disk takes a
    millisecond or two.
    """
    return MockClock(autojump_threshold=0.005)


def descriptors() -> set[str]:
    """Return the open descriptors of this process, without those of garbage and of servers that other tests have left.

    Both may be closed at any time, by the collector or by a thread of such a server.
    """
    gc.collect()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.add(name)
    return found


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def version(data: bytes, key: str = "34/a/b.dcm") -> Version:
    """Return the version as a site that computes digests lists it."""
    return Version(key, len(data), md5(data))


def undigested(data: bytes, key: str = "34/a/b.dcm") -> Version:
    """Return the version as a site that computes no digests lists it."""
    return Version(key, len(data), "")


class FakeSource:
    """One file on a server, which records its requests."""

    writes = False  # whether its bodies write themselves into the file, as those of a process beside this one do

    def __init__(self, data: bytes, *, chunk: int = 65536, ranged: bool = True, pause: float = 0.0) -> None:
        self.data = data
        self.chunk = chunk
        self.ranged = ranged
        self.pause = pause  # before each chunk
        self.modified = "Mon, 01 Jan 2024 00:00:00 GMT"
        self.strong = True  # whether the date is a strong validator
        self.states_size = True
        self.framed = True  # whether a body of no stated length has an end of its own
        self.head_size: int | None = None  # stated by a HEAD instead of the true one
        self.heads_work = True
        self.size: int | None = None  # said instead of the true one
        self.error: Exception | None = None  # instead of a reply
        self.breaks: dict[int, Exception] = {}  # at this offset
        self.stalls: dict[int, trio.Event] = {}  # at this offset, until then
        self.delay = 0.0  # of the reply to a seek
        self.seekable = True
        self.grants = False  # whether it is known to grant ranges
        self.line: trio.Lock | None = None  # what its downloads share, a chunk at a time
        # What it saw.
        self.starts: list[int] = []
        self.stops: list[int | None] = []
        self.heads = 0
        self.running = 0
        self.at_once = 0  # the most downloads at one time
        self.writing: list[range] = []  # where bodies are writing themselves
        self.overlaps: list[tuple[range, range]] = []  # two that had the same place

    @asynccontextmanager
    async def open(self, start: int, size: int | None = None, stop: int | None = None) -> AsyncIterator[Body]:
        self.starts.append(start)
        self.stops.append(stop)
        await trio.sleep(self.delay if start and self.delay else self.pause)
        if self.error is not None:
            raise self.error
        whole = not self.ranged and bool(start or stop)
        if whole:
            start, stop, self.seekable = 0, None, False
        stated = self.size if self.size is not None else len(self.data)
        self.running += 1
        self.at_once = max(self.at_once, self.running)
        chunks = self._chunks(self.data, start, stop)
        try:
            framed = self.states_size and self.size is None  # else its end is told by nothing but its end
            into = self._into(chunks) if self.writes and framed else None
            validator = self.modified if self.strong else ""
            length = stated if self.states_size else None
            yield Body(start, length, self.modified, chunks, into, validator, self.states_size or self.framed, whole)
        finally:
            self.running -= 1
            await chunks.aclose()

    async def head(self) -> Head:
        self.heads += 1
        await trio.sleep(self.pause)
        if self.error is not None:
            raise self.error
        if not self.heads_work:
            return Head(None, "")
        return Head(len(self.data) if self.head_size is None else self.head_size, self.modified)

    def release(self) -> None:
        """Let stalled bodies go on."""
        for stall in self.stalls.values():
            stall.set()

    async def _chunks(self, data: bytes, start: int, stop: int | None) -> AsyncGenerator[bytes]:
        last = len(data) if stop is None else min(stop, len(data))
        marks = sorted([*self.breaks, *self.stalls, last])
        while True:
            async with self.line or nullcontext():
                await trio.sleep(self.pause)
            if start in self.stalls:
                await self.stalls[start].wait()
            if start in self.breaks:
                raise self.breaks[start]
            if start >= last:
                return
            end = min([start + self.chunk, *(mark for mark in marks if mark > start)])
            yield data[start:end]
            start = end

    def _into(self, chunks: AsyncGenerator[bytes]) -> WriteInto:
        """Write the chunks where the caller says."""
        rest = b""

        async def into(descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
            nonlocal rest
            place = range(offset, offset + length if descriptor is not None else offset)
            self.overlaps += [(place, other) for other in self.writing if range(*_common(place, other))]
            self.writing.append(place)
            try:
                while length:
                    rest = rest or await anext(chunks, b"")
                    if not rest:
                        raise Unreachable("it ended early")
                    taken = rest[:length]
                    if descriptor is not None:  # what a full disk does not take is written next
                        taken = taken[: os.pwrite(descriptor, taken, offset)]
                    rest = rest[len(taken) :]
                    offset, length = offset + len(taken), length - len(taken)
                    yield len(taken)
            finally:
                self.writing.remove(place)

        return into


def _common(one: range, other: range) -> tuple[int, int]:
    return max(one.start, other.start), min(one.stop, other.stop)


async def read_all(cache: ContentCache, wanted: Version, source: FakeSource, step: int = 131072) -> bytes:
    """Open, read to the end in kernel-sized steps, and close."""
    blob = await cache.open(wanted, source)
    try:
        found = bytearray()
        while data := await blob.read(len(found), step):
            found += data
        return bytes(found)
    finally:
        blob.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait in real time for what happens in threads, whatever the clock of the test."""
    for _ in range(2000):
        if condition():
            return
        await trio.to_thread.run_sync(time.sleep, 0.005)
    raise AssertionError("it did not come to pass")


async def is_kept(directory: Path, wanted: Version) -> bool:
    """Return whether a new process would find it."""
    async with open_cache(directory, LIMIT) as cache:
        return cache.has(wanted)


async def failure(cache: ContentCache, wanted: Version, source: FakeSource) -> XnatError | None:
    """Return what reading all of it raises."""
    try:
        await read_all(cache, wanted, source)
    except XnatError as exc:
        return exc
    return None
