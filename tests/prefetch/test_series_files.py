"""Test the prefetch of a series: few requests, right bytes, little unread data, and no dependence on the tar."""

import hashlib
import io
import random
import re
import tarfile
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from tests.support.content_fakes import until
from tests.support.nodes import find as node
from tests.support.scripted import Scripted, opened, resource
from xnatfs.common.errors import BadReply
from xnatfs.common.tasks import background
from xnatfs.content import Version
from xnatfs.content.disk.claims import Claims
from xnatfs.content.source import identity
from xnatfs.listings.keys import ChildrenKey, FilesKey, FoldersKey
from xnatfs.prefetch import read_pattern, series_files, series_tar
from xnatfs.prefetch.series_files import IDLE_READER_SECONDS
from xnatfs.rest.models import FileRow
from xnatfs.site import Site
from xnatfs.tree.node import File

COUNT, SIZE = 60, 40_000
SCAN = "projects/P/S/E/scans/1/DICOM"
TAR = "experiments/X_E1/resources/7/files"
FILES = "experiments/X_E1/scans/1/resources/7/files"


def name(number: int) -> str:
    return f"IM{number:04}.dcm"


def bytes_of(number: int, size: int = SIZE) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (size // 32)


class Tar(httpx.AsyncByteStream):
    """A tar, member by member; what is taken of it is counted."""

    def __init__(
        self,
        files: Sequence[tuple[str, bytes]],
        cut: int | None = None,
        prefix: str = "E/scans/1/resources/DICOM/files/",
    ):
        self.files, self.cut, self.prefix = files, cut, prefix
        self.number = self.sent = 0
        self.closed = False

    def __aiter__(self) -> "Tar":  # no generator: it needs no close
        return self

    async def __anext__(self) -> bytes:
        number, self.number = self.number, self.number + 1
        if number == self.cut:
            raise httpx.ReadError("cut")
        if number > len(self.files):
            raise StopAsyncIteration
        if number == len(self.files):
            return bytes(1024)
        path, content = self.files[number]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo(self.prefix + path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            end = archive.offset
        self.sent += len(content)
        return out.getvalue()[:end]

    async def aclose(self) -> None:
        self.closed = True


def listed(count: int = COUNT) -> list[int]:
    """Return the numbers of the files in the order of the catalogue and of the archive, in which no program reads."""
    numbers = list(range(count))
    random.Random(count).shuffle(numbers)
    return numbers


@pytest.fixture(autouse=True)
def patient_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on the machine's speed: a member that is on its way is waited for."""
    monkeypatch.setattr(series_tar, "MEMBER_WAIT_SECONDS", 30.0)


@pytest.fixture
def server() -> Scripted:
    server = Scripted()
    for number in listed():
        server.add(name(number), bytes_of(number))
    tars(server, lambda: Tar([(name(number), bytes_of(number)) for number in listed()]))
    return server


def tars(server: Scripted, make: Callable[[], Tar], path: str = TAR) -> list[Tar]:
    made: list[Tar] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.params["format"] == "tar"
        made.append(make())
        return httpx.Response(200, stream=made[-1])

    server.answers[path] = answer
    return made


async def read(site: Site, number: int, scan: str = SCAN) -> bytes:
    file = await node(site, f"{scan}/{name(number)}")
    assert isinstance(file, File)
    blob = await file.open()
    try:
        return await blob.read(0, blob.size + 1)
    finally:
        blob.close()


def data(server: Scripted) -> list[str]:
    """Return the requests for bytes."""
    return [line for line in server.asked if "/resources/7/files" in line]


async def read_all(
    site: Site, paths: Sequence[tuple[int, str]], workers: int, content_of: Callable[[int, str], bytes]
) -> None:
    """Read files, each by the next free one of so many workers."""
    rest = iter(paths)

    async def work() -> None:
        for number, scan in rest:
            assert await read(site, number, scan) == content_of(number, scan)

    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(work)


ORDERS: dict[str, Callable[[list[int]], Sequence[int]]] = {
    "sorted": lambda numbers: numbers,
    "backward": lambda numbers: numbers[::-1],
    "random": lambda numbers: random.Random(7).sample(numbers, len(numbers)),
    "every other one": lambda numbers: numbers[::2],
    "as listed": lambda numbers: listed(len(numbers)),
}


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("order", ORDERS)
async def test_a_series_takes_three_requests_in_any_order(server, tmp_path, order, workers):
    """Fetch two files by themselves, and all others in one archive, of which nothing is fetched twice."""
    numbers = ORDERS[order](list(range(COUNT)))
    async with opened(server, tmp_path) as site:
        await read_all(site, [(number, SCAN) for number in numbers], workers, lambda number, _: bytes_of(number))
        assert len(data(server)) == 3
        assert data(server).count(f"GET {TAR}") == 1
        assert site.series_prefetch.stats.used == (len(numbers) - 2) * SIZE
        await until(lambda: not site.series_prefetch._tars)
        assert site.series_prefetch.stats.ahead == (COUNT - 2) * SIZE


@pytest.mark.parametrize("count", [1, 2])
async def test_few_files_of_many_start_no_tar(server, tmp_path, count):
    async with opened(server, tmp_path) as site:
        for number in (33, 7)[:count] * 3:
            assert await read(site, number) == bytes_of(number)
        assert data(server) == [f"GET {FILES}/{name(number)}" for number in (33, 7)[:count]]


async def test_few_files_of_a_resource_make_nothing_of_its_size(server, tmp_path):
    async with opened(server, tmp_path) as site:
        await read(site, 33)
        await read(site, 34)
        (session,) = site.series_prefetch._sessions.values()
        assert "size" not in vars(session.series["7"])


async def test_of_a_resource_with_too_many_files_nothing_is_remembered_or_fetched_ahead(server, tmp_path, monkeypatch):
    monkeypatch.setattr(read_pattern, "MAX_FILES", COUNT - 1)
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        (session,) = site.series_prefetch._sessions.values()
        assert not session.series["7"].opened
        assert data(server) == [f"GET {FILES}/{name(number)}" for number in range(COUNT)]
        assert site.series_prefetch.stats.ahead == 0


async def test_a_resource_with_a_big_file_is_fetched_singly(server, tmp_path, monkeypatch):
    """Fetch no byte twice of a file that is read by ranges."""
    server.add("big.dcm", bytes(read_pattern.MAX_MEMBER_BYTES + 1))
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert f"GET {TAR}" not in data(server)


# -- members that come late ------------------------------------------------------------------------------------------


class PausedTar(Tar):
    """A tar of which so many members arrive, and the rest when `more` is set."""

    def __init__(self, files: Sequence[tuple[str, bytes]], most: int) -> None:
        super().__init__(files)
        self.most, self.more = most, trio.Event()

    async def __anext__(self) -> bytes:
        if self.number >= self.most:
            await self.more.wait()
        return await super().__anext__()


class SlowTar(Tar):
    """A tar that takes so many seconds for each member."""

    def __init__(self, files: Sequence[tuple[str, bytes]], seconds: float) -> None:
        super().__init__(files)
        self.seconds = seconds

    async def __anext__(self) -> bytes:
        await trio.sleep(self.seconds)
        return await super().__anext__()


@pytest.mark.parametrize("most", [0, 1, 20])
async def test_a_member_that_comes_late_is_requested_singly_and_the_tar_goes_on(
    server, tmp_path, patient_clock, monkeypatch, most
):
    monkeypatch.setattr(series_tar, "MEMBER_WAIT_SECONDS", 0.5)
    made = [PausedTar([(name(number), bytes_of(number)) for number in listed()], most)]
    tars(server, lambda: made[-1])
    late = listed()[30:33]
    async with opened(server, tmp_path) as site:
        began = trio.current_time()
        for number in late:
            assert await read(site, number) == bytes_of(number)
        assert trio.current_time() - began < 0.6, "only the first is waited for while nothing comes"
        assert data(server).count(f"GET {TAR}") == 1
        made[-1].more.set()
        await until(lambda: not site.series_prefetch._tars)
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert len(data(server)) == 4


async def test_a_file_that_was_requested_singly_is_not_replaced_by_its_member(
    server, tmp_path, patient_clock, monkeypatch
):
    """Without a digest, the tar may bring the version before the one that was read, and of the same length."""
    monkeypatch.setattr(series_tar, "MEMBER_WAIT_SECONDS", 0.5)

    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    for row in rows:
        row["digest"] = ""
    tars(server, lambda: SlowTar([(name(number), bytes_of(number)) for number in listed()], 0.1))
    last = listed()[-1]
    server.files["7", name(last)] = newer = b"n" * SIZE
    async with opened(server, tmp_path) as site:
        for number in listed()[:2]:
            await read(site, number)
        assert await read(site, last) == newer
        while site.series_prefetch._tars:  # noqa: ASYNC110  in virtual time, which `until` would hold up
            await trio.sleep(0.1)
        await trio.sleep(1)
        assert await read(site, last) == newer
        assert site.series_prefetch.stats.ahead == (COUNT - 3) * SIZE


async def test_a_reader_waits_for_no_member_beyond_what_may_come(server, tmp_path, patient_clock, monkeypatch):
    monkeypatch.setattr(read_pattern, "SERIES_AHEAD_BYTES", 10 * SIZE)
    monkeypatch.setattr(read_pattern, "SERIES_AHEAD_FACTOR", 0)
    async with opened(server, tmp_path) as site:
        began = trio.current_time()
        for number in listed()[-3:]:
            assert await read(site, number) == bytes_of(number)
        assert trio.current_time() == began
        await trio.sleep(0.1)
        assert site.series_prefetch.stats.ahead <= 11 * SIZE


# -- what nobody may want --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "most"), [(3, 5), (4, 10), (5, 20), (30, 30)])
async def test_a_reader_that_stops_leaves_no_more_than_the_budget(
    server, tmp_path, patient_clock, monkeypatch, count, most
):
    monkeypatch.setattr(read_pattern, "SERIES_AHEAD_BYTES", 5 * SIZE)
    monkeypatch.setattr(read_pattern, "SERIES_AHEAD_FACTOR", 1)
    made = tars(server, lambda: Tar([(name(number), bytes_of(number)) for number in listed()]))
    async with opened(server, tmp_path) as site:
        for number in range(count):
            await read(site, number)
        await trio.sleep(3 * IDLE_READER_SECONDS)
        stats = site.series_prefetch.stats
        assert 0 < stats.ahead - stats.used <= (most + 1) * SIZE
        assert made[0].closed, "the connection is given back"
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)


async def test_a_cache_that_keeps_nothing_is_not_filled_in_bulk(server, tmp_path, patient_clock, monkeypatch):
    """Read files singly, as every file would come twice."""
    content = series(server, 4)
    async with opened(server, tmp_path) as site:
        monkeypatch.setattr(site.content._store, "limit", 1000)
        for scan in content:
            for place, wanted in enumerate(content[scan]):
                assert await read(site, place, scan_path(scan)) == wanted
                await trio.sleep(1)
        assert len([line for line in all_data(server) if line.endswith("/files")]) <= 4
        assert len([line for line in all_data(server) if line.endswith(".dcm")]) <= 4 * COUNT


async def test_a_series_that_does_not_fit_into_the_cache_comes_with_its_reader(
    server, tmp_path, patient_clock, monkeypatch
):
    async with opened(server, tmp_path) as site:
        monkeypatch.setattr(site.content._store, "limit", 40 * SIZE)
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
            stats = site.series_prefetch.stats
            assert stats.ahead - stats.used <= 11 * SIZE
        assert data(server).count(f"GET {TAR}") == 1
        assert len(data(server)) <= COUNT + 1


async def test_readers_that_go_away_draw_nothing_after_them(server, tmp_path, patient_clock):
    """End the wait of a cancelled reader, and nothing else."""

    made = tars(server, lambda: SlowTar([(name(number), bytes_of(number)) for number in listed()], 0.2))
    async with opened(server, tmp_path) as site:
        await read(site, 0)
        await read(site, 1)
        with trio.move_on_after(0.1) as gone:
            await read(site, 2)
        assert gone.cancelled_caught
        await trio.sleep(30)
        assert made[0].closed
        assert await read(site, 2) == bytes_of(2)
        assert len(data(server)) == 3


# -- several series --------------------------------------------------------------------------------------------------


def series(
    server: Scripted, count: int, *, files: int = COUNT, kind: Callable[..., Tar] = Tar
) -> dict[int, list[bytes]]:
    """Make a session of so many series, with a tar of this kind for each; return the bytes of each."""
    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    rows.clear()
    server.answers.pop(TAR)
    numbers = {scan: 6 + scan for scan in range(1, count + 1)}
    server.lists["experiments/X_E1/scans"] = [{"ID": str(scan)} for scan in numbers]
    found = [resource(str(number), "DICOM", cat_id=str(scan)) for scan, number in numbers.items()]
    server.lists["experiments/X_E1/resources"] = sorted(found, key=lambda row: hash(row["cat_id"]))
    content: dict[int, list[bytes]] = {}
    for scan, number in sorted(numbers.items(), key=lambda pair: str(pair[0])):  # not the order of the tree
        content[number] = [bytes_of(1000 * scan + place) for place in range(files)]
        for place in listed(files):
            server.add(name(place), content[number][place], number=str(number), scan=str(scan))

    def tar(request: httpx.Request) -> httpx.Response:
        number = int(request.url.path.split("/")[-2])
        prefix = f"E/scans/{number - 6}/resources/DICOM/files/"
        members = [(name(place), content[number][place]) for place in listed(files)]
        return httpx.Response(200, stream=kind(members, prefix=prefix))

    server.by_pattern.append((r"experiments/X_E1/resources/\d+/files", tar))
    return {scan: content[number] for scan, number in numbers.items()}


def all_data(server: Scripted) -> list[str]:
    return [line for line in server.asked if "/resources/" in line and "/files" in line]


def archives(server: Scripted) -> list[str]:
    return [line for line in all_data(server) if line.endswith("/files")]


def scan_path(scan: int) -> str:
    return f"projects/P/S/E/scans/{scan}/DICOM"


async def read_series(site: Site, content: dict[int, list[bytes]], files: Sequence[int] | None = None) -> None:
    for scan in sorted(content):
        for place in range(len(content[scan])) if files is None else files:
            assert await read(site, place, scan_path(scan)) == content[scan][place]


SCANS = 20
SESSION_ORDERS: dict[str, Callable[[], list[tuple[int, str]]]] = {
    "as shown": lambda: by_scan(sorted(range(1, SCANS + 1))),
    "by name": lambda: by_scan(sorted(range(1, SCANS + 1), key=str)),
    "backward": lambda: by_scan(sorted(range(1, SCANS + 1), key=str))[::-1],
    "every other one": lambda: by_scan(sorted(range(1, SCANS + 1), key=str))[::2],
    "random": lambda: random.Random(5).sample(by_scan(range(1, SCANS + 1)), SCANS * COUNT),
    "series at random": lambda: by_scan(random.Random(5).sample(range(1, SCANS + 1), SCANS)),
    "every other series": lambda: by_scan(range(1, SCANS + 1, 2)),
}


def by_scan(scans: Sequence[int]) -> list[tuple[int, str]]:
    return [(place, scan_path(scan)) for scan in scans for place in range(COUNT)]


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("order", SESSION_ORDERS)
async def test_a_session_takes_two_requests_a_series_in_any_order(server, tmp_path, order, workers):
    content = series(server, SCANS)
    wanted = SESSION_ORDERS[order]()
    async with opened(server, tmp_path) as site:
        await read_all(site, wanted, workers, lambda number, scan: content[int(scan.split("/")[-2])][number])
        read = len({scan for _, scan in wanted})
        assert len(all_data(server)) <= 2 * read
        if order in ("as shown", "by name", "backward", "every other one"):
            assert len(all_data(server)) <= read + 4, "the next series is on its way before it is read"


async def test_a_reader_in_no_order_waits_for_several_tars_at_once(server, tmp_path):
    """Which series it comes to next is unknown: those that it has not met come beside the one that it waits for."""
    gate = trio.Event()

    class Gated(Tar):
        async def __anext__(self) -> bytes:
            await gate.wait()
            return await super().__anext__()

    content = series(server, SCANS, kind=Gated)
    wanted = [(place, scan_path(scan)) for place, scan in enumerate([5, 12, 5, 3, 17, 8])]
    async with opened(server, tmp_path) as site, trio.open_nursery() as nursery:

        async def read_in_order() -> None:
            for number, scan in wanted:
                assert await read(site, number, scan) == content[int(scan.split("/")[-2])][number]

        nursery.start_soon(read_in_order)
        await until(lambda: len(archives(server)) >= series_files.EARLY_TARS)
        gate.set()


class Paced(Tar):
    """A tar whose members come one by one, slowly."""

    async def __anext__(self) -> bytes:
        await trio.sleep(0.04)
        return await super().__anext__()


async def test_many_readers_of_a_series_each_wait_for_their_tars_turn(server, tmp_path, patient_clock, monkeypatch):
    """Tars wait for each other longer than a reader waits for a member, but they move."""
    monkeypatch.setattr(series_tar, "MEMBER_WAIT_SECONDS", 0.5)
    readers, files = 16, 20
    content = series(server, readers, files=files, kind=Paced)
    async with opened(server, tmp_path) as site:
        async with trio.open_nursery() as nursery:
            for scan in content:
                nursery.start_soon(read_series, site, {scan: content[scan]})
        assert len(archives(server)) == readers
        assert len(all_data(server)) <= 2 * readers + 2


async def test_a_turn_that_comes_late_is_not_waited_for(server, tmp_path, patient_clock, monkeypatch):
    """A reader of a few files is served after QUEUE_WAIT_SECONDS, although the tars before its own move."""
    monkeypatch.setattr(series_tar, "MEMBER_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(series_files, "PARALLEL_TARS", 1)
    content = series(server, 2, files=COUNT * 10, kind=Paced)
    async with opened(server, tmp_path) as site:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_series, site, {1: content[1]})
            await until(lambda: len(archives(server)) > 0)
            began = trio.current_time()
            for place in range(3):
                assert await read(site, place, scan_path(2)) == content[2][place]
            assert trio.current_time() - began >= series_tar.QUEUE_WAIT_SECONDS
            assert trio.current_time() - began <= series_tar.QUEUE_WAIT_SECONDS + 1
            assert len(archives(server)) == 1
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("forward", [True, False])
async def test_the_next_series_is_there_before_it_is_read(server, tmp_path, forward):
    content = series(server, 9)
    order = sorted(content, reverse=not forward)
    async with opened(server, tmp_path) as site:
        for scan in order:
            before = list(archives(server))
            for place in range(COUNT):
                assert await read(site, place, scan_path(scan)) == content[scan][place]
            if scan not in order[:2]:
                assert f"GET experiments/X_E1/resources/{6 + scan}/files" in before
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(all_data(server)) == 2 + 9


async def test_a_slow_reader_finds_what_follows_still_there(server, tmp_path, patient_clock):
    """Take a second for each file, so that a series takes longer than the cache waits for a reader that is gone."""
    content = series(server, 4)
    async with opened(server, tmp_path) as site:
        for scan in content:
            for place, wanted in enumerate(content[scan]):
                assert await read(site, place, scan_path(scan)) == wanted
                await trio.sleep(1)
        assert len(all_data(server)) <= 2 + 4


async def test_one_label_of_two_is_read(server, tmp_path):
    """Leave out what a converter does not read."""
    content = series(server, 6)
    resources = server.lists["experiments/X_E1/resources"]
    assert isinstance(resources, list)
    for scan in content:
        resources.append(resource(str(100 + scan), "SNAPSHOTS", cat_id=str(scan)))
        for place in range(6):
            server.add(f"s{place}.gif", bytes_of(50_000 + 10 * scan + place), number=str(100 + scan), scan=str(scan))
    async with opened(server, tmp_path) as site:
        await read_series(site, content)
        assert len(all_data(server)) <= 2 + 6
        assert not [line for line in all_data(server) if re.search(r"resources/10\d\b", line)]


async def test_after_one_series_no_more_is_fetched_of_others_than_half_of_it(server, tmp_path, patient_clock):
    content = series(server, 5)
    async with opened(server, tmp_path) as site:
        await read_series(site, {1: content[1]})
        await trio.sleep(3 * IDLE_READER_SECONDS)
        assert 0 < site.series_prefetch.stats.ahead - site.series_prefetch.stats.used <= COUNT * SIZE // 2 + 3 * SIZE
        for scan in (5, 4, 3):  # a glance at others, as for thumbnails
            await read(site, 30, scan_path(scan))
        await trio.sleep(3 * IDLE_READER_SECONDS)
        ahead = site.series_prefetch.stats.ahead - site.series_prefetch.stats.used
        assert 0 < ahead <= (COUNT + 3) * SIZE // 2 + 3 * SIZE, "half of what was read, and a file of each tar"


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(lambda n: range(n), id="headers, grep, md5sum and cp"),
        pytest.param(lambda n: [place for place in range(n) for _ in range(4)], id="each four times, a converter"),
        pytest.param(lambda n: [*range(n)] * 4, id="four times all of it"),
        pytest.param(lambda n: [n // 2], id="one of each"),
        pytest.param(lambda n: [0, n - 1], id="first and last"),
        pytest.param(lambda n: range(n - 1, -1, -1), id="backwards"),
    ],
)
async def test_nothing_is_fetched_that_nobody_reads(server, tmp_path, pattern):
    content = series(server, 4, files=100)
    async with opened(server, tmp_path) as site:
        await read_series(site, content, list(pattern(100)))
        await until(lambda: not site.series_prefetch._tars)
        assert site.series_prefetch.stats.ahead == site.series_prefetch.stats.used
        assert len(all_data(server)) <= 2 * 4


@pytest.mark.parametrize("half", [200, 250, 333])
async def test_a_copy_that_is_stopped(server, tmp_path, patient_clock, half):
    series(server, 4, files=100)
    async with opened(server, tmp_path) as site:
        for number in range(half):
            await read(site, number % 100, scan_path(number // 100 + 1))
        await until(lambda: not site.series_prefetch._tars)  # a thread writes meanwhile, for which no clock waits
        rest = -half % 100  # of the series that is being read
        assert site.series_prefetch.stats.ahead - site.series_prefetch.stats.used <= (rest + half // 2 + 2) * SIZE


async def test_a_file_that_fails_singly_is_asked_for_again_by_its_reader(server, tmp_path, patient_clock):
    once = [httpx.Response(404, html="<html>")]
    server.by_pattern.append(
        (f"{FILES}/{name(1)}", lambda request: once.pop() if once else httpx.Response(200, content=bytes_of(1)))
    )
    async with opened(server, tmp_path) as site:
        await read(site, 0)
        with pytest.raises(BadReply):
            await read(site, 1)
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)


# -- listings, faults and eviction -----------------------------------------------------------------------------------


async def test_a_new_listing_while_the_tar_waits_for_its_reader(server, tmp_path, patient_clock, monkeypatch):
    """Resume with the reader, at once."""
    monkeypatch.setattr(read_pattern, "SERIES_AHEAD_BYTES", 10 * SIZE)
    monkeypatch.setattr(read_pattern, "SERIES_AHEAD_FACTOR", 0)
    async with opened(server, tmp_path) as site:
        for number in listed()[:20]:
            await read(site, number)
        await trio.testing.wait_all_tasks_blocked()  # the tar is as far ahead as it may be
        forget_listing(site)
        began = trio.current_time()
        for number in listed()[20:]:
            assert await read(site, number) == bytes_of(number)
        assert trio.current_time() - began < 1
        assert data(server).count(f"GET {TAR}") == 1
        assert len(data(server)) == len(set(data(server))) < 10


def forget_listing(site: Site) -> None:
    site.metadata.forget(FilesKey(("experiments", "X_E1"), True))
    site.metadata.forget(FoldersKey(("projects", "P", "S", "E", "scans", "1", "DICOM")))
    site.metadata.forget(ChildrenKey(("projects", "P", "S", "E", "scans", "1", "DICOM")))


async def test_a_tar_is_given_up_when_its_resource_is_another_one(server, tmp_path):
    made = [PausedTar([(name(number), bytes_of(number)) for number in listed()], 5)]
    tars(server, lambda: made[-1])
    async with opened(server, tmp_path) as site:
        for number in listed()[:4]:
            assert await read(site, number) == bytes_of(number)
        assert site.series_prefetch._tars
        server.add("more.dcm", bytes_of(99))
        forget_listing(site)
        assert await read_path(site, "more.dcm") == bytes_of(99)
        await until(lambda: not site.series_prefetch._tars)
        assert made[-1].closed


async def test_a_fault_of_our_own_ends_the_tar_and_nothing_else(server, tmp_path, monkeypatch, caplog):
    def broken(names: object, member: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("xnatfs.prefetch.series_files.TarNames.find", broken)
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert data(server).count(f"GET {TAR}") == 1
    assert [record.levelname for record in caplog.records if record.name == "xnatfs.prefetch.series_files"] == ["ERROR"]


async def test_what_was_thrown_out_comes_in_bulk_again(server, tmp_path, patient_clock):
    async with opened(server, tmp_path) as site:
        for _ in range(2):
            for number in range(COUNT):
                assert await read(site, number) == bytes_of(number)
            await site.content.evict(0)
        assert len(data(server)) <= 6


# -- tars that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_a_refused_tar_costs_one_request(server, tmp_path, patient_clock, status):
    server.answers[TAR] = lambda request: httpx.Response(status, html="<html><h3>No</h3></html>")
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        refused = [line for line in data(server) if line == f"GET {TAR}"]
        assert len(refused) == (2 if status == 500 else 1)
        assert len(data(server)) == COUNT + len(refused)


async def wrong(server: Scripted, site: Site, files: Sequence[tuple[str, bytes]], **more: int) -> None:
    """Read all of a series whose tar holds wrong members."""
    tars(server, lambda: Tar(files, **more))  # type: ignore[arg-type]
    for number in range(COUNT):
        assert await read(site, number) == bytes_of(number)


RIGHT = [(name(number), bytes_of(number)) for number in listed()]


@pytest.mark.parametrize(
    "files",
    [
        pytest.param([(path, content[:-1] + b"x") for path, content in RIGHT], id="other bytes"),
        pytest.param([(path, content[:-32]) for path, content in RIGHT], id="shorter files"),
        pytest.param([(path, content + b"more") for path, content in RIGHT], id="longer files"),
        pytest.param(RIGHT[:1] + RIGHT[20:], id="files left out"),
        pytest.param(list(reversed(RIGHT)), id="another order"),
        pytest.param([(path, RIGHT[(n + 1) % COUNT][1]) for n, (path, _) in enumerate(RIGHT)], id="names exchanged"),
        pytest.param([("../../" + path, content) for path, content in RIGHT], id="names that climb"),
        pytest.param([], id="nothing"),
        pytest.param([("other.dcm", b"what nobody listed" * 1000)] * 50 + RIGHT, id="strangers first"),
    ],
)
async def test_whatever_is_in_the_tar_readers_get_the_file(server, tmp_path, patient_clock, files):
    async with opened(server, tmp_path) as site:
        await wrong(server, site, files)


@pytest.mark.parametrize("cut", [0, 1, 2, 30])
async def test_a_tar_that_breaks_off(server, tmp_path, patient_clock, cut):
    async with opened(server, tmp_path) as site:
        await wrong(server, site, RIGHT, cut=cut)
        assert data(server).count(f"GET {TAR}") == 1, "and it is not tried again at once"


async def test_without_digests_the_length_decides(server, tmp_path, patient_clock):
    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    for row in rows:
        row["digest"] = ""
    async with opened(server, tmp_path) as site:
        await wrong(server, site, RIGHT)
        assert len(data(server)) == 3


def relisted(server: Scripted, files: dict[str, bytes], *, digests: bool = True) -> None:
    """Make these the files of the series."""
    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    rows.clear()
    for path, content in files.items():
        server.add(path, content, digest=None if digests else "")


async def read_path(site: Site, path: str) -> bytes:
    file = await node(site, f"{SCAN}/{path}")
    assert isinstance(file, File)
    blob = await file.open()
    try:
        return await blob.read(0, blob.size + 1)
    finally:
        blob.close()


@pytest.mark.parametrize("digests", [True, False])
async def test_members_that_can_be_two_files_are_told_by_their_digest_or_not_taken(
    server, tmp_path, patient_clock, digests
):
    """Read on without waiting for members that are not taken."""
    plain = {f"{number:02}": bytes_of(number) for number in range(20)}
    twins = {f"{number:02}/b\\00": bytes_of(100 + number) for number in range(20, 24)}
    twins |= {path.replace("\\", "/"): bytes_of(200 + number) for number, path in enumerate(twins)}
    relisted(server, plain | twins, digests=digests)
    tars(server, lambda: Tar([(path.replace("\\", "/"), content) for path, content in (plain | twins).items()]))
    async with opened(server, tmp_path) as site:
        began = trio.current_time()
        for path, content in (plain | twins).items():
            if "\\" not in path:
                assert await read_path(site, path) == content
        assert trio.current_time() - began < 1
        singles = [line for line in data(server) if line.endswith("/b/00")]
        assert len(singles) == (0 if digests else 4)


async def test_a_name_that_may_be_cut_is_taken_for_no_other(server, tmp_path, patient_clock):
    """Cut every name, which then is the name of another file."""
    prefix = "E/scans/1/resources/DICOM/files/"
    stem = "x" * (100 - len(prefix))
    files = {stem: bytes_of(0)} | {f"{stem}{number}": bytes_of(number) for number in range(1, 20)}
    relisted(server, files, digests=False)
    tars(server, lambda: Tar([(stem, content) for content in reversed(files.values())]))
    async with opened(server, tmp_path) as site:
        for path, content in files.items():
            assert await read_path(site, path) == content


@pytest.mark.parametrize("label", ["7", "8"])
async def test_of_a_resource_whose_number_is_a_label_there_is_no_tar(server, tmp_path, label):
    rows = server.lists["experiments/X_E1/resources"]
    assert isinstance(rows, list)
    rows.append(resource("9", label, cat_id="2"))
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
    assert data(server).count(f"GET {TAR}") == (0 if label == "7" else 1)


async def test_a_tar_that_does_not_begin_is_not_waited_for(server, tmp_path, patient_clock):
    tars(server, lambda: SlowTar([], 3600))
    async with opened(server, tmp_path) as site:
        began = trio.current_time()
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert trio.current_time() - began < 60


async def test_a_page_in_place_of_a_tar(server, tmp_path, patient_clock):
    server.answers[TAR] = lambda request: httpx.Response(200, html="<html>Please log in</html>")
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)


async def test_a_cached_series_is_not_fetched_in_bulk(server, tmp_path):
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            await read(site, number)
    server.forget_requests()
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert data(server) == []


async def test_what_is_cached_of_a_series_is_not_taken_again(server, tmp_path):
    cached = range(5, COUNT, 7)
    tar = server.answers.pop(TAR)
    async with opened(server, tmp_path) as site:
        for number in cached:
            await read(site, number)
    server.answers[TAR] = tar
    server.forget_requests()
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert data(server) == [f"GET {FILES}/{name(0)}", f"GET {FILES}/{name(1)}", f"GET {TAR}"]
        assert site.series_prefetch.stats.ahead == site.series_prefetch.stats.used == (COUNT - 2 - len(cached)) * SIZE


async def test_a_new_listing_goes_on_with_the_same_tar(server, tmp_path, patient_clock):
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
            if number % 10 == 0:
                forget_listing(site)
        assert data(server).count(f"GET {TAR}") == 1


# -- several sessions, and members that do not belong there ------------------------------------------------------------


async def test_a_tar_with_a_huge_member_that_is_not_listed_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(series_files, "MAX_MEMBER_BYTES", SIZE)
    made = tars(server, lambda: Tar([("new.dcm", bytes(20 * SIZE)), *RIGHT]))
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert len(made) == 1
        assert made[0].closed
        assert made[0].number == 1, "and not skipped, which may take hours"


async def test_a_member_without_a_digest_is_as_old_as_its_tar(server, tmp_path):
    """A file that changes on the server while the tar waits for its reader must count as changed later."""
    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    for row in rows:
        row["digest"] = ""
    async with opened(server, tmp_path) as site:
        times = iter(range(10_000, 20_000))
        site.content.clock = lambda: float(next(times))
        await read(site, 0)
        await read(site, 1)
        await read(site, 2)
        await until(lambda: not site.series_prefetch._tars)
        stamps = set()
        for number in range(3, 10):
            file = await node(site, f"{SCAN}/{name(number)}")
            assert isinstance(file, File)
            blob = await file.open()
            stamps.add(float(blob.stamp))
            blob.close()
        assert len(stamps) == 1


class Sessions:
    """A client whose tars bring nothing, and the sessions that are read with it: each has three resources."""

    def __init__(self) -> None:
        self.limit = 10**9
        self.turn = Claims(Path("/nowhere")).turn
        self.alone: set[Version] = set()  # that other processes fetch singly
        self.missing: set[Version] | None = None  # all others are available; None: none is
        self.shared = None
        self.write = trio.lowlevel.checkpoint
        self.asked: list[str] = []
        self.series_prefetch: series_files.SeriesPrefetch
        self._groups: dict[str, dict[Hashable, list[FileRow]]] = {}

    def has(self, version: object) -> bool:
        return False

    async def find_available(self, versions: Sequence[Version]) -> set[Version]:
        return set() if self.missing is None else set(versions) - self.missing

    def claimed(self) -> set[str]:
        return {identity(each).hex() for each in self.alone}

    def clock(self) -> float:
        return 0.0

    @asynccontextmanager
    async def archive(self, item: tuple[str, ...], number: str) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append(number)
        yield self._nothing()

    async def _nothing(self) -> AsyncIterator[bytes]:
        await trio.sleep_forever()
        yield b""

    async def open(self, session: str, resource: int, count: int = 1) -> None:
        """Open the first files of a resource, one after the other."""
        if session not in self._groups:
            numbers = [f"{session}{place}" for place in range(3)]
            self._groups[session] = {
                number: [FileRow(number, name(place), SIZE, "", "", "", place) for place in range(10)]
                for number in numbers
            }
        groups = self._groups[session]
        for row in groups[f"{session}{resource}"][:count]:
            await self.series_prefetch.before_open(
                ("experiments", session), groups, row, self.Directory(list(map(str, groups)))
            )
        await trio.testing.wait_all_tasks_blocked()

    @dataclass
    class Directory:
        numbers: list[str]

        def reading_order(self) -> list[tuple[str, str]]:
            return [(number, "DICOM") for number in self.numbers]


@asynccontextmanager
async def sessions(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sessions]:
    monkeypatch.setattr(series_tar, "MEMBER_WAIT_SECONDS", 0.01)
    made = Sessions()
    async with background() as nursery:
        made.series_prefetch = series_files.SeriesPrefetch(made, made, nursery)  # type: ignore[arg-type]
        yield made


async def test_a_reader_of_another_session_ends_no_tars(monkeypatch, autojump_clock):
    async with sessions(monkeypatch) as several:
        await several.open("A", 0, 5)
        assert sorted(several.asked) == ["A0", "A1"]
        await several.open("B", 0)
        await several.open("B", 2)  # not the one that was expected
        assert several.series_prefetch.counters() == {"tars": 2}
        assert len(several.asked) == 2


@pytest.mark.parametrize(("missing", "alone", "is_fetched"), [(2, 0, 1), (1, 0, 0), (3, 2, 0), (5, 3, 1)])
async def test_files_that_are_fetched_singly_are_no_reason_for_a_tar(
    monkeypatch, autojump_clock, missing, alone, is_fetched
):
    """Request a tar for two files or more that no process of the machine has or is fetching."""
    async with sessions(monkeypatch) as several:
        rows = [Version(f"A0/{name(place)}", SIZE, "") for place in range(10)]
        several.missing, several.alone = set(rows[:missing]), set(rows[:alone])
        await several.open("A", 0, 5)
        assert several.asked.count("A0") == is_fetched


async def test_a_session_that_is_forgotten_begins_no_tars_anew(monkeypatch, autojump_clock):
    monkeypatch.setattr(series_files, "MAX_SESSIONS", 1)
    async with sessions(monkeypatch) as several:
        await several.open("A", 0, 5)
        await several.open("B", 0)
        assert several.series_prefetch.counters() == {"tars": 0}
        assert sorted(several.asked) == ["A0", "A1"]


async def test_listings_of_many_files_are_remembered_of_few_sessions(monkeypatch, autojump_clock):
    monkeypatch.setattr(series_files, "MAX_SESSION_FILES", 70)
    async with sessions(monkeypatch) as several:
        for session in "ABC":
            await several.open(session, 0)
        assert [item[1] for item in several.series_prefetch._sessions] == ["B", "C"]
        monkeypatch.setattr(series_files, "MAX_SESSION_FILES", 7)
        await several.open("D", 0, 5)
        assert [item[1] for item in several.series_prefetch._sessions] == ["D"], "the one that is read stays"
        assert several.series_prefetch.counters()["tars"]


async def test_tars_and_long_files_leave_a_request_for_others(server, tmp_path, monkeypatch):
    """While the tars and long files receive nothing, a file of a session's own resource is read all the same."""
    monkeypatch.setattr(series_tar, "MEMBER_WAIT_SECONDS", 0.01)

    class Silent(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            await trio.sleep_forever()
            yield b""

    content = series(server, 5)
    for number in range(4):
        server.add(f"long{number}", b"", number="50", scan="50", size=str(40 * 2**20))
    server.add("other", b"other", number="51", scan="51")
    server.lists["experiments/X_E1/scans"] = [{"ID": scan} for scan in ("1", "2", "3", "4", "5", "50", "51")]
    resources = server.lists["experiments/X_E1/resources"]
    assert isinstance(resources, list)
    resources += [resource(number, "OTHER", cat_id=number) for number in ("50", "51")]
    length = {"content-length": str(40 * 2**20)}
    silent = lambda request: httpx.Response(200, stream=Silent(), headers=length)  # noqa: E731
    server.by_pattern[:0] = [
        (r".*/resources/50/files/long\d", silent),
        (r"experiments/X_E1/resources/\d+/files", lambda request: httpx.Response(200, stream=Silent())),
    ]
    async with opened(server, tmp_path) as site:
        async with trio.open_nursery() as nursery:

            async def begin(number: int) -> None:
                file = await node(site, f"projects/P/S/E/scans/50/OTHER/long{number}")
                assert isinstance(file, File)
                blob = await file.open()
                await blob.read(0, 1)

            for number in range(4):
                nursery.start_soon(begin, number)
            for scan in range(1, 5):
                for place in range(3):
                    nursery.start_soon(read, site, place, scan_path(scan))
            await until(lambda: len(archives(server)) >= 3)
            await trio.sleep(0.5)
            with trio.fail_after(3):  # before the client gives the others up
                assert await read(site, 9, scan_path(5)) == content[5][9]
            nursery.cancel_scope.cancel()
