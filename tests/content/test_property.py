"""Check that a read returns exactly the right bytes or raises, whatever the server does."""

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.content_fakes import LIMIT, FakeSource, md5, patient, read_all, until
from xnatfs.common.errors import Unreachable, XnatError
from xnatfs.content import Blob, ContentCache, Version, blob, open_cache, planner

DATA = random.Random(3).randbytes(60_000)

# The same rules at a thousandth of the size, so that small files meet all of them.
SCALED = {
    (blob, "SMALL_FILE_BYTES"): 8192,
    (planner, "NEAR_BYTES"): 4096,
    (planner, "WINDOW_BYTES"): 1024,
    (planner, "MAX_WINDOW_BYTES"): 16_384,
    (planner, "SHARE_BYTES"): 16_384,
    (planner, "READ_AHEAD_BYTES"): 4096,
    (blob, "HOLD_BACK_BYTES"): 512,
}


@dataclass(frozen=True)
class Reader:
    """A reader that opens after a while, reads here and there, and closes."""

    after: float
    reads: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Server:
    """A server's behaviour."""

    size: int
    chunk: int = 4096
    pause: float = 0.0
    ranged: bool = True
    states_size: bool = True
    digest: bool = True
    off_by: int = 0  # between the announced length and the true one
    damaged: bool = False  # the digest is of something else
    breaks: int | None = None  # every download that comes here fails
    touched: float | None = None  # when the file gets another date
    dated: bool = True  # whether it sends a date that tells versions apart
    swapped: float | None = None  # when the file becomes another of its length, with its date
    written: bool = False  # by another process

    @property
    def sound(self) -> bool:
        """Return whether the server has no fault at all."""
        wrong_digest = self.damaged and self.digest
        changes = self.touched is not None or self.swapped is not None
        return not (self.off_by or wrong_digest or self.breaks is not None or changes)


offsets = st.integers(0, len(DATA))
readers = st.builds(
    Reader,
    st.sampled_from([0.0, 0.5, 3.0, 20.0]),
    st.lists(st.tuples(offsets, st.sampled_from([1, 100, 512, 4096, 20_000])), max_size=6).map(tuple),
)
servers = st.builds(
    Server,
    size=st.one_of(st.integers(0, 9000), offsets),
    chunk=st.sampled_from([300, 4096, 65536]),
    pause=st.sampled_from([0.0, 0.1, 2.0]),
    ranged=st.booleans(),
    states_size=st.sampled_from([True, True, True, False]),
    digest=st.booleans(),
    off_by=st.sampled_from([0, 0, 0, 0, 1, -1]),
    damaged=st.sampled_from([False, False, False, True]),
    breaks=st.one_of(st.none(), st.none(), offsets),
    touched=st.one_of(st.none(), st.none(), st.sampled_from([0.3, 4.0])),
    dated=st.sampled_from([True, True, False]),
    swapped=st.one_of(st.none(), st.none(), st.sampled_from([0.3, 4.0])),
    written=st.booleans(),
)


class Run:
    """One server, some readers, one cache directory."""

    def __init__(self, server: Server, strict: bool) -> None:
        self.server = server
        self.strict = strict
        self.data = DATA[: server.size]
        self.source = FakeSource(self.data, chunk=server.chunk, pause=server.pause, ranged=server.ranged)
        self.source.writes = server.written
        self.source.strong = server.dated
        self.other = self.data[::-1]
        self.source.states_size = server.states_size
        self.source.size = max(0, server.size + server.off_by)
        if server.breaks is not None:
            self.source.breaks[server.breaks] = Unreachable("connection lost")
        digest = md5(self.data + b"!" * server.damaged) if server.digest else ""
        self.version = Version("34/a/b.dcm", server.size, digest)
        self.raised: list[XnatError] = []
        self.contents: dict[Blob, list[bytes]] = {}  # of which all that a blob has handed out may be
        self.handed_out: dict[Blob, set[int]] = {}

    async def reader(self, cache: ContentCache, reader: Reader) -> None:
        await trio.sleep(reader.after)
        try:
            opened = await cache.open(self.version, self.source)
        except XnatError as exc:
            self.raised.append(exc)
            return
        try:
            for offset, length in reader.reads:
                with trio.fail_after(100_000):
                    found = await opened.read(offset, length)
                end = min(offset + length, opened.size)
                assert len(found) == max(0, end - offset)
                known = self.contents.get(opened, [self.data, self.other][: 1 + self.swaps])
                self.contents[opened] = [each for each in known if each[offset:end] == found]
                assert self.contents[opened], "all of one version"
                self.handed_out.setdefault(opened, set()).update(range(offset, end))
        except XnatError as exc:
            self.raised.append(exc)
        finally:
            opened.close()

    @property
    def swaps(self) -> bool:
        """Return whether the file becomes another one that only a digest could tell from it."""
        return self.server.swapped is not None and not self.server.dated and not self.server.digest

    async def swap(self) -> None:
        if self.server.swapped is not None and self.swaps:
            await trio.sleep(self.server.swapped)
            self.source.data = self.other

    async def touch(self) -> None:
        if self.server.touched is not None:
            await trio.sleep(self.server.touched)
            self.source.modified = "Tue, 02 Jan 2024 00:00:00 GMT"

    async def all(self, directory: Path, readers: list[Reader]) -> None:
        async with open_cache(directory, LIMIT, strict=self.strict) as cache:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.touch)
                nursery.start_soon(self.swap)
                for reader in readers:
                    nursery.start_soon(self.reader, cache, reader)
            for opened, handed_out in self.handed_out.items():
                damaged = (
                    self.server.damaged and self.server.digest and self.server.size > SCALED[blob, "SMALL_FILE_BYTES"]
                )
                assert not damaged or opened.size - len(handed_out) >= SCALED[blob, "HOLD_BACK_BYTES"]
            if self.server.sound:
                assert self.raised == []
                assert await read_all(cache, self.version, self.source, 3000) == self.data
                await until(lambda: cache.bytes_used == len(self.data))
                assert cache.stats.damaged == []
        assert self.source.running == 0
        assert list((directory / "partial").iterdir()) == []

    async def check_what_is_kept(self, directory: Path) -> None:
        nothing = FakeSource(b"")
        nothing.error = AssertionError("it was said to be kept")
        async with open_cache(directory, LIMIT) as cache:
            assert cache.has(self.version) or not self.server.sound
            if cache.has(self.version):
                assert not (self.server.damaged and self.server.digest)
                assert await read_all(cache, self.version, nothing) in (self.data, self.other)[: 1 + self.swaps]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(server=servers, readers=st.lists(readers, max_size=4), strict=st.sampled_from([False, False, False, True]))
@example(Server(60_000, pause=2.0), [Reader(0, ((59_999, 1), (0, 20_000)))], False)
@example(Server(60_000, breaks=30_000), [Reader(0, ((0, 20_000), (50_000, 1)))], False)
@example(Server(60_000, pause=2.0, ranged=False), [Reader(0, ((0, 1),)), Reader(20, ((0, 20_000),))], False)
@example(Server(60_000, ranged=False, damaged=True), [Reader(0, ((50_000, 20_000),))], True)
@example(Server(60_000, pause=2.0, damaged=True), [Reader(0, ((50_000, 20_000), (0, 50_000)))], False)
@example(
    Server(60_000, pause=0.1, digest=False, dated=False, swapped=0.3),
    [Reader(0, ((0, 1), (59_999, 1))), Reader(20, ((30_000, 20_000), (0, 60_000)))],
    False,
)
def test_a_read_returns_exactly_the_right_bytes_or_raises(server, readers, strict):
    """Check also that what is cached afterwards is the file."""

    async def main() -> None:
        run = Run(server, strict)
        with tempfile.TemporaryDirectory() as name:
            await run.all(Path(name), readers)
            await run.check_what_is_kept(Path(name))

    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in SCALED.items():
            patch.setattr(module, name, value)
        trio.run(main, clock=patient())
