"""Test the prefetch of a series: few requests, right bytes, little unread data, and no dependence on the tar."""

import hashlib
import io
import random
import re
import tarfile
from collections.abc import AsyncIterator, Callable, Hashable, Sequence

import httpx
import pytest
import trio
import trio.testing

from tests.support.content_fakes import until
from tests.support.scripted import Scripted, opened, resource
from xnatfs.content import Source
from xnatfs.http.clients import PARALLEL_DOWNLOADS
from xnatfs.listings.keys import ChildrenKey, FilesKey, FoldersKey
from xnatfs.prefetch.read_pattern import FLOOR, SHARE, Groups
from xnatfs.prefetch.series_files import IDLE, PATIENCE
from xnatfs.rest.models import FileRow
from xnatfs.site import Site
from xnatfs.tree import Root
from xnatfs.tree.node import Dir, File, Node

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


@pytest.fixture
def server() -> Scripted:
    server = Scripted()
    for number in range(COUNT):
        server.add(name(number), bytes_of(number))
    tars(server, lambda: Tar([(name(number), bytes_of(number)) for number in range(COUNT)]))
    return server


def tars(server: Scripted, make: Callable[[], Tar], path: str = TAR) -> list[Tar]:
    made: list[Tar] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.params["format"] == "tar"
        made.append(make())
        return httpx.Response(200, stream=made[-1])

    server.answers[path] = answer
    return made


async def node(site: Site, path: str) -> Node:
    found: Node = Root(site)
    for part in path.split("/"):
        assert isinstance(found, Dir)
        found = await found.child(part)
    return found


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


async def test_a_walk_takes_two_requests(server, tmp_path):
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert data(server) == [f"GET {FILES}/{name(0)}", f"GET {TAR}"]
        stats = site.bulk.stats
        assert stats.ahead == stats.used == (COUNT - 1) * SIZE


@pytest.mark.parametrize("order", ["backwards", "every third", "eight at once"])
async def test_walks_in_other_orders_cost_no_more_than_single_files(server, tmp_path, order):
    numbers = list(range(COUNT))
    if order == "backwards":
        numbers.reverse()
    elif order == "every third":
        numbers = [n for start in range(3) for n in numbers[start::3]]
    async with opened(server, tmp_path) as site:
        if order == "eight at once":
            async with trio.open_nursery() as nursery:

                async def work(mine: Sequence[int]) -> None:
                    for number in mine:
                        assert await read(site, number) == bytes_of(number)

                for worker in range(8):
                    nursery.start_soon(work, numbers[worker::8])
        else:
            for number in numbers:
                assert await read(site, number) == bytes_of(number)
        assert len(data(server)) <= COUNT + 2
        if order == "eight at once":
            assert len(data(server)) <= 9
        singles = [line for line in data(server) if line.endswith(".dcm")]
        assert len(singles) == len(set(singles)), "no file came twice by itself"


async def test_a_walk_by_name_through_a_listing_by_number(server, tmp_path):
    """Read by name what the server lists by number: 1, 10, 11, 12 ... 19, 2."""
    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    rows.clear()
    files = {str(number): bytes_of(number) for number in range(1, 21)}
    for path, content in files.items():
        server.add(path, content)
    tars(server, lambda: Tar(list(files.items())))
    async with opened(server, tmp_path) as site:
        for path in sorted(files):
            file = await node(site, f"{SCAN}/{path}")
            assert isinstance(file, File)
            blob = await file.open()
            assert await blob.read(0, SIZE) == files[path]
            blob.close()
        assert data(server) == [f"GET {FILES}/1", f"GET {TAR}"]


async def test_one_file_of_many_starts_no_tar(server, tmp_path):
    async with opened(server, tmp_path) as site:
        for _ in range(3):
            assert await read(site, 33) == bytes_of(33)
        assert data(server) == [f"GET {FILES}/{name(33)}"]


async def test_one_file_of_a_resource_makes_nothing_of_its_size(server, tmp_path):
    async with opened(server, tmp_path) as site:
        await read(site, 33)
        (session,) = site.bulk._sessions.values()
        assert not {"places", "begins", "fit"} & vars(session.walks["7"]).keys()
        await read(site, 34)
        assert len(session.walks["7"].places) == COUNT


async def test_of_a_resource_with_too_many_files_nothing_is_remembered_or_fetched_ahead(server, tmp_path, monkeypatch):
    monkeypatch.setattr("xnatfs.prefetch.read_pattern.MOST_FILES", COUNT - 1)
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        (session,) = site.bulk._sessions.values()
        walk = session.walks["7"]
        assert not walk.opened
        assert not {"places", "begins"} & vars(walk).keys()
        assert data(server) == [f"GET {FILES}/{name(number)}" for number in range(COUNT)]
        assert site.bulk.stats.ahead == 0


async def test_far_jumps_are_not_waited_for(server, tmp_path, patient_clock):
    """Read a file at each end: the second does not wait for everything in between."""
    for number in range(COUNT, 400):
        server.add(name(number), bytes_of(number))
    tars(server, lambda: Tar([(name(number), bytes_of(number)) for number in range(400)]))
    async with opened(server, tmp_path) as site:
        await read(site, 0)
        began = trio.current_time()
        assert await read(site, 399) == bytes_of(399)
        assert trio.current_time() == began
        assert f"GET {FILES}/{name(399)}" in data(server)


@pytest.mark.parametrize("half", [COUNT // 4, COUNT // 2])
async def test_a_reader_that_stops_leaves_little_that_nobody_reads(server, tmp_path, patient_clock, half):
    made = tars(server, lambda: Tar([(name(number), bytes_of(number)) for number in range(COUNT)]))
    async with opened(server, tmp_path) as site:
        for number in range(half):
            await read(site, number)
        await trio.sleep(3 * IDLE)
        stats = site.bulk.stats
        unread = stats.ahead - stats.used
        assert unread <= max(FLOOR, half * SIZE // SHARE) + SIZE
        assert made[0].closed, "the connection is given back"
        before, left = len(data(server)), COUNT - unread // SIZE - half
        for number in range(COUNT):  # resuming gets the rest the same way, or singly if it is little
            assert await read(site, number) == bytes_of(number)
        assert len(data(server)) - before <= (2 if 3 * left > COUNT else left)


def series(
    server: Scripted, count: int, *, files: int = COUNT, lists: bool = True, reverse: bool = False
) -> dict[int, list[bytes]]:
    """Make a session of so many series; return the bytes of each.

    `lists`: a request may name several resources; `reverse`: the last of them comes first.
    """
    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    rows.clear()
    server.answers.pop(TAR)
    numbers = {scan: 6 + scan for scan in range(1, count + 1)}
    server.lists["experiments/X_E1/scans"] = [{"ID": str(scan)} for scan in reversed(numbers)]
    found = [resource(str(number), "DICOM", cat_id=str(scan)) for scan, number in numbers.items()]
    server.lists["experiments/X_E1/resources"] = sorted(found, key=lambda row: hash(row["cat_id"]))
    content: dict[int, list[bytes]] = {}
    for scan, number in sorted(numbers.items(), key=lambda pair: str(pair[0])):  # not the order of the tree
        content[number] = [bytes_of(1000 * scan + place) for place in range(files)]
        for place, data in enumerate(content[number]):
            server.add(name(place), data, number=str(number))

    def tar(request: httpx.Request) -> httpx.Response:
        asked = request.url.path.split("/")[-2].split(",")
        if len(asked) > 1 and not lists:
            return httpx.Response(404, html="<html>")
        asked = asked[::-1] if reverse else asked
        members = [
            (f"{each}/resources/DICOM/files/{name(place)}", data)
            for each in asked
            for place, data in enumerate(content[int(each)])
        ]
        return httpx.Response(200, stream=Tar(members, prefix="E/scans/"))

    server.by_pattern.append((r"experiments/X_E1/resources/[\d,]+/files", tar))
    return {scan: content[number] for scan, number in numbers.items()}


def all_data(server: Scripted) -> list[str]:
    return [line for line in server.asked if "/resources/" in line and "/files" in line]


def scan_path(scan: int) -> str:
    return f"projects/P/S/E/scans/{scan}/DICOM"


async def read_series(site: Site, content: dict[int, list[bytes]], files: Sequence[int] | None = None) -> None:
    for scan in sorted(content):
        for place in range(len(content[scan])) if files is None else files:
            assert await read(site, place, scan_path(scan)) == content[scan][place]


async def test_a_session_takes_few_requests(server, tmp_path):
    """Read twenty series in turn by a request for the first file, and ever longer tars for the rest."""
    content = series(server, 20)
    async with opened(server, tmp_path) as site:
        await read_series(site, content)
        assert len(all_data(server)) <= 8
        assert site.bulk.stats.ahead == site.bulk.stats.used == (20 * COUNT - 1) * SIZE


async def test_a_server_that_sends_resources_in_an_order_of_its_own(server, tmp_path):
    """Send what was requested first at the end: no reader waits for it behind what no reader wants."""
    content = series(server, 12, reverse=True)
    async with opened(server, tmp_path) as site:
        await read_series(site, content)
        assert len(all_data(server)) <= 2 * 12 + 6


async def test_a_slow_reader_finds_what_follows_still_there(server, tmp_path, patient_clock):
    """Take a second for each file, so that a series takes longer than the cache waits for a reader that is gone."""
    content = series(server, 4)
    async with opened(server, tmp_path) as site:
        for scan in content:
            for place, wanted in enumerate(content[scan]):
                assert await read(site, place, scan_path(scan)) == wanted
                await trio.sleep(1)
        assert len(all_data(server)) <= 4


async def test_a_server_that_takes_one_resource_at_a_time(server, tmp_path):
    content = series(server, 20, lists=False)
    async with opened(server, tmp_path) as site:
        await read_series(site, content)
        assert len(all_data(server)) <= 20 + 5
        assert len([line for line in all_data(server) if "," in line]) == 1, "it is not asked twice"


async def test_files_that_cannot_be_told_apart_do_not_share_a_tar(server, tmp_path):
    """Request resources singly where names are equal and digests missing: no tar holds the number of the resource."""
    content = series(server, 5)
    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    for row in rows:
        row["digest"] = ""
    async with opened(server, tmp_path) as site:
        await read_series(site, content)
        assert not [line for line in all_data(server) if "," in line]
        assert len(all_data(server)) <= 5 + 1


async def test_equal_files_of_two_series_share_a_tar(server, tmp_path):
    """Share a tar between files of one name and content: the bytes are right whichever member is taken for which."""
    content = series(server, 6)
    for scan in content:
        content[scan][:] = content[1]
    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    for row in rows:
        row["digest"] = hashlib.md5(content[1][int(row["Name"][2:6])]).hexdigest()
    async with opened(server, tmp_path) as site:
        await read_series(site, content)
        assert len(all_data(server)) <= 6


async def test_series_read_in_another_order_cost_two_requests_each(server, tmp_path):
    content = series(server, 10)
    async with opened(server, tmp_path) as site:
        for scan in (5, 9, 2, 7, 1, 10, 3, 8, 6, 4):
            for place, data in enumerate(content[scan]):
                assert await read(site, place, scan_path(scan)) == data
        assert len(all_data(server)) <= 2 * 10 + 6


async def test_one_label_of_two_is_read(server, tmp_path):
    """Leave out what a converter does not read."""
    content = series(server, 6)
    resources = server.lists["experiments/X_E1/resources"]
    assert isinstance(resources, list)
    for scan in content:
        resources.append(resource(str(100 + scan), "SNAPSHOTS", cat_id=str(scan)))
        for place in range(6):
            server.add(f"s{place}.gif", bytes_of(50_000 + 10 * scan + place), number=str(100 + scan))
    async with opened(server, tmp_path) as site:
        await read_series(site, content)
        assert len(all_data(server)) <= 6
        assert not [line for line in all_data(server) if re.search(r"resources/[\d,]*\b10\d\b", line)]


async def test_what_follows_is_begun_by_little(server, tmp_path, patient_clock):
    content = series(server, 2)
    async with opened(server, tmp_path) as site:
        await read_series(site, {1: content[1]})
        await trio.sleep(3 * IDLE)
        unread = site.bulk.stats.ahead - site.bulk.stats.used
        assert 0 < unread <= max(FLOOR, COUNT * SIZE // SHARE) + SIZE


# -- what is fetched and never read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        pytest.param(lambda n: range(n), 0.0, id="headers, grep, md5sum and cp"),
        pytest.param(lambda n: [place for place in range(n) for _ in range(4)], 0.0, id="each four times, a converter"),
        pytest.param(lambda n: [*range(n)] * 4, 0.0, id="four times all of it"),
        pytest.param(lambda n: range(0, n, 3), 0.0, id="every third"),
        pytest.param(lambda n: [n // 2], 0.0, id="one of each"),
        pytest.param(lambda n: [0, n - 1], 0.0, id="first and last"),
        pytest.param(lambda n: range(n - 1, -1, -1), 0.0, id="backwards"),
    ],
)
async def test_little_is_fetched_that_nobody_reads(server, tmp_path, patient_clock, pattern, most):
    content = series(server, 4, files=100)
    async with opened(server, tmp_path) as site:
        await read_series(site, content, list(pattern(100)))
        await trio.sleep(3 * IDLE)
        read_bytes = len(set(pattern(100))) * 4 * SIZE
        assert site.bulk.stats.ahead - site.bulk.stats.used <= most * read_bytes
        assert len(all_data(server)) <= 4 * len(set(pattern(100)))


@pytest.mark.parametrize("half", [200, 250, 333])
async def test_a_copy_that_is_stopped(server, tmp_path, patient_clock, half):
    series(server, 4, files=100)
    async with opened(server, tmp_path) as site:
        for number in range(half):
            await read(site, number % 100, scan_path(number // 100 + 1))
        await until(lambda: not site.bulk._tars)  # a thread writes meanwhile, for which no clock waits
        assert site.bulk.stats.ahead - site.bulk.stats.used <= half * SIZE // 4


async def test_a_reader_without_order_has_its_files_singly(server, tmp_path, patient_clock):
    """Send few bytes in vain, and no file twice."""
    places = list(range(400))
    random.Random(3).shuffle(places)
    content = series(server, 1, files=400)
    async with opened(server, tmp_path) as site:
        for place in places:
            assert await read(site, place) == content[1][place]
        singles = [line for line in all_data(server) if line.endswith(".dcm")]
        assert len(singles) == len(set(singles))
        assert len([line for line in all_data(server) if line.endswith("/files")]) <= 3


# -- single files that run ahead -----------------------------------------------------------------------------------


async def test_without_a_tar_single_requests_run_ahead(server, tmp_path):
    """Run several requests in parallel, while a reader takes one file after the other."""
    server.answers[TAR] = lambda request: httpx.Response(403, html="<html>")
    running = most = 0

    class Slow(httpx.AsyncByteStream):
        def __init__(self, content: bytes) -> None:
            self.content = content

        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await trio.testing.wait_all_tasks_blocked()
            running -= 1
            yield self.content

    def slow(request: httpx.Request) -> httpx.Response:
        content = bytes_of(int(request.url.path[-8:-4]))
        return httpx.Response(200, headers={"content-length": str(SIZE)}, stream=Slow(content))

    server.by_pattern.append((FILES + r"/IM\d+\.dcm", slow))
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert 4 <= most <= PARALLEL_DOWNLOADS
        assert len(data(server)) == COUNT + 1
        assert 0 < site.bulk.stats.ahead == site.bulk.stats.used


async def test_a_file_that_fails_ahead_is_asked_for_again_by_its_reader(server, tmp_path, patient_clock):
    server.answers[TAR] = lambda request: httpx.Response(403, html="<html>")
    once = [httpx.Response(404, html="<html>")]
    server.by_pattern.append(
        (f"{FILES}/{name(5)}", lambda request: once.pop() if once else httpx.Response(200, content=bytes_of(5)))
    )
    async with opened(server, tmp_path) as site:
        await read(site, 0)
        await read(site, 1)
        await read(site, 2)
        await trio.sleep(1)
        assert not once
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


async def test_readers_that_go_away_draw_nothing_after_them(server, tmp_path, patient_clock):
    """Drop the wish of a cancelled wait."""

    class Slow(Tar):
        async def __anext__(self) -> bytes:
            await trio.sleep(0.2)
            return await super().__anext__()

    made = tars(server, lambda: Slow([(name(number), bytes_of(number)) for number in range(COUNT)]))
    async with opened(server, tmp_path) as site:
        await read(site, 0)
        with trio.move_on_after(0.1) as gone:
            await read(site, 1)
        assert gone.cancelled_caught
        await trio.sleep(3 * IDLE)
        assert site.bulk.stats.ahead - site.bulk.stats.used <= FLOOR + SIZE
        assert made[0].closed


async def test_a_new_listing_while_the_tar_waits_for_its_reader(server, tmp_path, patient_clock):
    """Resume with the reader, at once."""
    async with opened(server, tmp_path) as site:
        for number in range(20):
            await read(site, number)
        await trio.testing.wait_all_tasks_blocked()  # the tar is as far ahead as it may be
        site.metadata.forget(FilesKey(("experiments", "X_E1"), True))
        site.metadata.forget(FoldersKey(("projects", "P", "S", "E", "scans", "1", "DICOM")))
        site.metadata.forget(ChildrenKey(("projects", "P", "S", "E", "scans", "1", "DICOM")))
        began = trio.current_time()
        for number in range(20, COUNT):
            assert await read(site, number) == bytes_of(number)
        assert trio.current_time() - began < 1
        assert data(server) == [f"GET {FILES}/{name(0)}", f"GET {TAR}"]


async def test_a_tar_of_several_resources_is_given_up_when_one_of_them_is_gone(server, tmp_path, monkeypatch):
    """End that tar and nothing else, although another of its resources is the same in the new listing."""

    class Around:
        def source(self, row: FileRow, groups: Groups) -> Source:
            raise NotImplementedError

        def has_name(self, row: FileRow, groups: Groups) -> bool:
            raise NotImplementedError

        def reading_order(self) -> list[tuple[str, str]]:
            return [("7", "DICOM"), ("8", "DICOM"), ("9", "DICOM")]

    def rows(number: str) -> list[FileRow]:
        return [FileRow(number, name(place), 100, f"{place:032x}", "", "", place) for place in range(1, 11)]

    ends = trio.Event()

    async def stream(tar: object) -> bool:
        await ends.wait()
        return True

    async with opened(server, tmp_path) as site:
        bulk, item = site.bulk, ("experiments", "X_E1")
        monkeypatch.setattr(bulk, "_stream", stream)
        groups: dict[Hashable, list[FileRow]] = {number: rows(number) for number in ("7", "8", "9")}
        session = bulk._session(item, groups, Around())
        walks = [session.walk("7"), session.walk("8")]
        bulk._begin(session, walks)
        for row in walks[1].listed:
            session.opens(walks[1], row)
        new = bulk._session(item, {"7": groups["7"], "9": groups["9"]}, Around())
        assert "8" not in new.walks
        await until(lambda: not bulk._tars)
        assert not ends.is_set(), "nobody waits for its end"
        assert await read(site, 0) == bytes_of(0)


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
        assert len(data(server)) <= 4


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


RIGHT = [(name(number), bytes_of(number)) for number in range(COUNT)]


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
        assert len(data(server)) == 2


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
        assert trio.current_time() - began < PATIENCE
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
    class Slow(Tar):
        async def __anext__(self) -> bytes:
            await trio.sleep(3600)
            raise StopAsyncIteration

    tars(server, lambda: Slow([]))
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
    async with opened(server, tmp_path) as site:
        for number in cached:
            await read(site, number)
    server.forget_requests()
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert data(server) == [f"GET {FILES}/{name(0)}", f"GET {TAR}"]
        assert site.bulk.stats.ahead == site.bulk.stats.used == (COUNT - 1 - len(cached)) * SIZE


async def test_a_new_listing_goes_on_with_the_same_tar(server, tmp_path, patient_clock):
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
            if number % 10 == 0:
                site.metadata.forget(FilesKey(("experiments", "X_E1"), True))
                site.metadata.forget(FoldersKey(("projects", "P", "S", "E", "scans", "1", "DICOM")))
                site.metadata.forget(ChildrenKey(("projects", "P", "S", "E", "scans", "1", "DICOM")))
        assert data(server).count(f"GET {TAR}") == 1
