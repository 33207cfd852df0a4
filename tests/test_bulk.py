"""Series in bulk: few requests, right bytes, little that nobody reads, and whatever the tar does, the file comes."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Sequence

import httpx
import pytest
import trio

from tests.scripted import Scripted, opened, resource
from xnatfs.bulk import IDLE
from xnatfs.site import Site
from xnatfs.tree import Root
from xnatfs.tree.node import Dir, File, Node
from xnatfs.walk import FLOOR, SHARE

COUNT, SIZE = 60, 40_000
SCAN = "projects/P/S/E/scans/1/DICOM"
TAR = "experiments/X_E1/resources/7/files"


def name(number: int) -> str:
    return f"IM{number:04}.dcm"


def bytes_of(number: int, size: int = SIZE) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (size // 32)


class Tar(httpx.AsyncByteStream):
    """A tar, member by member; what was taken of it is counted."""

    def __init__(
        self, files: Sequence[tuple[str, bytes]], cut: int | None = None, prefix: str = "E/scans/1/DICOM/files/"
    ):
        self.files, self.cut, self.prefix = files, cut, prefix
        self.number = self.sent = 0
        self.closed = False

    def __aiter__(self) -> "Tar":  # no generator: nobody has to close it
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
    """Requests for bytes."""
    return [line for line in server.asked if "/resources/7/files" in line]


async def test_a_walk_takes_two_requests(server, tmp_path):
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        assert data(server) == [f"GET {TAR}/{name(0)}", f"GET {TAR}"]
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


async def test_one_file_of_many_starts_no_tar(server, tmp_path):
    async with opened(server, tmp_path) as site:
        for _ in range(3):
            assert await read(site, 33) == bytes_of(33)
        assert data(server) == [f"GET {TAR}/{name(33)}"]


async def test_far_jumps_are_not_waited_for(server, tmp_path, autojump_clock):
    """Two files at both ends: the second is not behind everything between them."""
    for number in range(COUNT, 400):
        server.add(name(number), bytes_of(number))
    tars(server, lambda: Tar([(name(number), bytes_of(number)) for number in range(400)]))
    async with opened(server, tmp_path) as site:
        await read(site, 0)
        began = trio.current_time()
        assert await read(site, 399) == bytes_of(399)
        assert trio.current_time() == began
        assert f"GET {TAR}/{name(399)}" in data(server)


@pytest.mark.parametrize("half", [COUNT // 4, COUNT // 2])
async def test_a_reader_that_stops_leaves_little_that_nobody_reads(server, tmp_path, autojump_clock, half):
    made = tars(server, lambda: Tar([(name(number), bytes_of(number)) for number in range(COUNT)]))
    async with opened(server, tmp_path) as site:
        for number in range(half):
            await read(site, number)
        await trio.sleep(3 * IDLE)
        stats = site.bulk.stats
        unread = stats.ahead - stats.used
        assert unread <= ALLOWANCE + half * SIZE // SHARE + SIZE
        assert made[0].closed, "the connection is given back"
        before, left = len(data(server)), COUNT - unread // SIZE - half
        for number in range(COUNT):  # who goes on later gets the rest the same way, or singly if it is little
            assert await read(site, number) == bytes_of(number)
        assert len(data(server)) - before <= (2 if 3 * left > COUNT else left)


async def test_the_following_series_are_begun_early(server, tmp_path):
    """Five series, one after the other: one request each, and the one that the walk began with."""
    files = server.lists["experiments/X_E1/files"]
    assert isinstance(files, list)
    server.lists["experiments/X_E1/scans"] = [{"ID": str(scan)} for scan in range(1, 6)]
    server.lists["experiments/X_E1/resources"] = [
        resource(str(6 + scan), "DICOM", cat_id=str(scan)) for scan in range(1, 6)
    ]
    for scan in range(2, 6):
        for number in range(COUNT):
            server.add(name(number), bytes_of(100 * scan + number), number=str(6 + scan))
        content = [(name(number), bytes_of(100 * scan + number)) for number in range(COUNT)]
        tars(server, lambda content=content: Tar(content), f"experiments/X_E1/resources/{6 + scan}/files")  # type: ignore[misc]
    async with opened(server, tmp_path) as site:
        for scan in range(1, 6):
            for number in range(COUNT):
                wanted = bytes_of(number if scan == 1 else 100 * scan + number)
                assert await read(site, number, f"projects/P/S/E/scans/{scan}/DICOM") == wanted
        assert len([line for line in server.asked if "/resources/" in line and "/files" in line]) == 6


async def test_what_follows_is_begun_by_little(server, tmp_path, autojump_clock):
    server.lists["experiments/X_E1/scans"] = [{"ID": "1"}, {"ID": "2"}]
    server.lists["experiments/X_E1/resources"] = [
        resource("7", "DICOM", cat_id="1"),
        resource("8", "DICOM", cat_id="2"),
    ]
    for number in range(COUNT):
        server.add(name(number), bytes_of(number), number="8")
    made = tars(
        server, lambda: Tar([(name(n), bytes_of(n)) for n in range(COUNT)]), "experiments/X_E1/resources/8/files"
    )
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            await read(site, number)
        await trio.sleep(3 * IDLE)
        assert made[0].sent <= EARLY + 2 * SIZE
        assert site.bulk.stats.ahead - site.bulk.stats.used <= EARLY + SIZE


# -- tars that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_a_refused_tar_costs_one_request(server, tmp_path, autojump_clock, status):
    server.answers[TAR] = lambda request: httpx.Response(status, html="<html><h3>No</h3></html>")
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
        refused = [line for line in data(server) if line == f"GET {TAR}"]
        assert len(refused) == (2 if status == 500 else 1)
        assert len(data(server)) == COUNT + len(refused)


async def wrong(server: Scripted, site: Site, files: Sequence[tuple[str, bytes]], **more: int) -> None:
    """Read all of a series whose tar holds this."""
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
async def test_whatever_is_in_the_tar_readers_get_the_file(server, tmp_path, autojump_clock, files):
    async with opened(server, tmp_path) as site:
        await wrong(server, site, files)


@pytest.mark.parametrize("cut", [0, 1, 2, 30])
async def test_a_tar_that_breaks_off(server, tmp_path, autojump_clock, cut):
    async with opened(server, tmp_path) as site:
        await wrong(server, site, RIGHT, cut=cut)
        assert data(server).count(f"GET {TAR}") == 1, "and it is not tried again at once"


async def test_without_digests_the_length_decides(server, tmp_path, autojump_clock):
    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    for row in rows:
        row["digest"] = ""
    async with opened(server, tmp_path) as site:
        await wrong(server, site, RIGHT)
        assert len(data(server)) == 2


async def test_a_tar_that_does_not_begin_is_not_waited_for(server, tmp_path, autojump_clock):
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


async def test_a_page_in_place_of_a_tar(server, tmp_path, autojump_clock):
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


async def test_a_new_listing_goes_on_with_the_same_tar(server, tmp_path, autojump_clock):
    async with opened(server, tmp_path) as site:
        for number in range(COUNT):
            assert await read(site, number) == bytes_of(number)
            if number % 10 == 0:
                site.metadata.forget(("files", ("experiments", "X_E1"), True))
                site.metadata.forget(("folders", ("projects", "P", "S", "E", "scans", "1", "DICOM")))
                site.metadata.forget(("children", ("projects", "P", "S", "E", "scans", "1", "DICOM")))
        assert data(server).count(f"GET {TAR}") == 1
