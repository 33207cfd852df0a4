"""Test that what is taken away from the account leaves the mount: names, cached bytes, and open files."""

import errno
import hashlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.support.demos import USER
from tests.support.kernel import Kernel, answered
from tests.support.model import BIG_SIZE, PASSWORD, Model
from tests.support.model import USER as ACCOUNT
from tests.support.mounting import mounting
from tests.support.wire import Wire
from tests.support.world import inline
from xnatfs.content import Version, open_cache
from xnatfs.fuse.attributes import Ownership
from xnatfs.fuse.operations import Operations
from xnatfs.listings.keys import ExperimentsKey
from xnatfs.listings.revocation import Access
from xnatfs.listings.store import ReadPlace
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site
from xnatfs.tree import Root

TTL = 60.0
FILE = ("projects", "P", "S1", "E1", "scans", "1", "DICOM", "0.dcm")
OTHER = ("projects", "Q", "S3", "E3", "scans", "1", "DICOM", "0.dcm")


class FailingServer(Model):
    """A server that can fail, and records its requests."""

    fault: Callable[[httpx.Request], httpx.Response | None] = staticmethod(lambda request: None)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        return self.fault(request) or self.demo(request)

    def asked(self) -> list[str]:
        return [record.path for record in self.demo.requests]

    def forget_requests(self) -> None:
        self.demo.requests.clear()


@pytest.fixture(autouse=True)
def _replies() -> Iterator[None]:
    with answered():
        yield


@pytest.fixture
def clock(monkeypatch) -> MockClock:
    """Use virtual time, and no threads that it would have to wait for."""
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)
    return MockClock(autojump_threshold=0)


@pytest.fixture
def server() -> FailingServer:
    return FailingServer()


@asynccontextmanager
async def mounted(server: FailingServer, directory: Path) -> AsyncIterator[tuple[Kernel, Site]]:
    config = Config("http://xnat", cache_dir=directory, timeout=5.0, ttl=TTL)
    async with open_site(config, Credentials(ACCOUNT, PASSWORD), Wire(server)) as site:
        site.start_background_tasks()
        yield Kernel(Operations(Root(site), Ownership(0, 0))), site


def kept(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*xnat/blobs/??/*")}


@contextmanager
def refused(*numbers: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        yield
    assert caught.value.errno in numbers


async def read(kernel: Kernel, path: tuple[str, ...]) -> bytes:
    opened = await kernel.open(path)
    try:
        return await kernel.read(opened, 0, BIG_SIZE)
    finally:
        await kernel.close(opened)


async def test_a_project_that_was_taken_away_is_gone_after_one_ttl(server, tmp_path, clock):
    async with mounted(server, tmp_path) as (kernel, _):
        await read(kernel, FILE)
        await read(kernel, OTHER)
        await trio.sleep(1)
        assert len(kept(tmp_path)) == 2
        server.close("P", protected=False)
        await trio.sleep(TTL)
        assert await kernel.names(("projects",)) == ["Q"]
        with refused(errno.ENOENT):
            await kernel.open(FILE)
        await trio.sleep(1)
        assert len(kept(tmp_path)) == 1
        assert await read(kernel, OTHER) == server.present.files[OTHER].content


async def test_a_project_of_which_only_the_name_is_left_is_not_kept(server, tmp_path, clock):
    async with mounted(server, tmp_path) as (kernel, _):
        await read(kernel, FILE)
        await trio.sleep(1)
        server.close("P", protected=True)
        await trio.sleep(TTL)
        with refused(errno.EACCES):
            await kernel.open(FILE)
        await trio.sleep(1)
        assert kept(tmp_path) == set()


async def test_a_session_that_was_moved_away_is_not_kept(server, tmp_path, clock):
    async with mounted(server, tmp_path) as (kernel, _):
        await read(kernel, FILE)
        await trio.sleep(1)
        server.archive.projects["Q"].members.clear()
        next(iter(server.archive.experiments.values())).project = "Q"
        server.note("P", "Q")
        await trio.sleep(TTL)
        with refused(errno.ENOENT):
            await kernel.open(FILE)
        await trio.sleep(1)
        assert kept(tmp_path) == set()


async def test_what_an_earlier_mount_has_kept_goes_too(server, tmp_path, clock):
    async with mounted(server, tmp_path) as (kernel, _):
        await read(kernel, FILE)
    assert len(kept(tmp_path)) == 1
    server.close("P", protected=False)
    async with mounted(server, tmp_path) as (kernel, _):
        await kernel.names(("projects",))  # those of the last mount, for some seconds
        await trio.sleep(10)
        assert await kernel.names(("projects",)) == ["Q"]
        await trio.sleep(1)
    assert kept(tmp_path) == set()


async def test_what_a_command_has_kept_goes_too(server, tmp_path, clock):
    """Drop what was cached by a program that does not stay, such as a download."""
    config = Config("http://xnat", cache_dir=tmp_path, timeout=5.0, ttl=TTL)
    async with open_site(config, Credentials(ACCOUNT, PASSWORD), Wire(server)) as site:
        await read(Kernel(Operations(Root(site), Ownership(0, 0))), FILE)
    assert len(kept(tmp_path)) == 1
    server.close("P", protected=False)
    async with mounted(server, tmp_path) as (kernel, _):
        assert await kernel.names(("projects",)) == ["Q"]
        await trio.sleep(1)
    assert kept(tmp_path) == set()


@pytest.mark.parametrize("written", ["no JSON", "{}", '["u"]', '["u", 1, 2]', '["P", "experiments"]', "[" * 100_000])
async def test_what_somebody_has_written_into_the_store_takes_nothing_along(server, tmp_path, clock, written, caplog):
    for path in (FILE, OTHER):
        async with mounted(server, tmp_path) as (kernel, _):
            await read(kernel, path)
        if path == FILE:
            with closing(sqlite3.connect(next(tmp_path.glob("*xnat/listings/*")))) as store, store:
                assert store.execute("UPDATE reads SET place = ?", [written]).rowcount == 1
    server.close("P", protected=False)
    server.close("Q", protected=False)
    async with mounted(server, tmp_path) as (kernel, _):
        await kernel.names(("projects",))  # those of the last mount, for some seconds
        await trio.sleep(10)
        assert await kernel.names(("projects",)) == []
        await trio.sleep(1)
    assert len(kept(tmp_path)) == 1
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_what_another_account_has_kept_stays(server, tmp_path, clock):
    async with mounted(server, tmp_path) as (kernel, _):
        await read(kernel, FILE)
    server.archive.users["v"] = type(server.archive.users[ACCOUNT])("v", "v")
    config = Config("http://xnat", cache_dir=tmp_path, timeout=5.0, ttl=TTL)
    async with open_site(config, Credentials("v", "v"), Wire(server)) as site:
        site.start_background_tasks()
        assert await Kernel(Operations(Root(site), Ownership(0, 0))).names(("projects",)) == []
        await trio.sleep(1)
    assert len(kept(tmp_path)) == 1


async def test_an_open_file_fails_at_its_next_read_after_one_ttl(server, tmp_path, clock):
    """Fail although no program looks at any listing and the kernel has all pages."""
    async with mounted(server, tmp_path) as (kernel, _):
        opened = await kernel.open(FILE)
        assert await kernel.read(opened, 0, BIG_SIZE) == server.present.files[FILE].content
        server.close("P", protected=False)
        await trio.sleep(TTL - 1)
        assert len(await kernel.read(opened, 0, 100)) == 100
        await trio.sleep(2)
        for _ in range(2):
            with refused(errno.ESTALE, errno.EACCES):
                await kernel.read(opened, 0, 100)
        with refused(errno.ESTALE, errno.EACCES):
            await kernel.open_inode(opened.inode)  # as by /proc/self/fd
        await trio.sleep(1)
        assert kept(tmp_path) == set()


async def test_an_open_file_that_is_read_on_costs_one_request_in_a_ttl(server, tmp_path, clock):
    """Send one request however many files of the session are open, and however often they are read."""
    async with mounted(server, tmp_path) as (kernel, _):
        opened = [await kernel.open((*FILE[:-1], f"{number}.dcm")) for number in range(8)]
        for each in opened:
            await kernel.read(each, 0, 100)
        await trio.sleep(1)
        server.forget_requests()
        for _ in range(3):
            await trio.sleep(TTL + 1)
            for each in opened * 3:
                # Not from the kernel's pages.
                assert len(await kernel.operations.read(each.handle, 0, 100)) == 100
        assert server.asked() == ["/data/experiments/DEMO_E00001/resources"] * 3


async def test_reads_go_on_while_the_server_is_away(server, tmp_path, clock):
    """Serve reads without a wait each time: an unreachable server takes nothing away."""
    async with mounted(server, tmp_path) as (kernel, _):
        opened = await kernel.open(FILE)
        await kernel.read(opened, 0, 100)
        server.fault = lambda request: httpx.Response(503)
        await trio.sleep(TTL + 1)
        began = trio.current_time()
        for _ in range(20):
            assert len(await kernel.read(opened, 0, 100)) == 100
        assert trio.current_time() - began <= 2


async def test_a_guests_answer_takes_nothing_away(server, tmp_path, clock):
    """Ignore the reply to a guest: an open site drops the session, and its cookies do not tell."""
    server.demo.site.require_login = False
    async with mounted(server, tmp_path) as (kernel, site):
        opened = await kernel.open(FILE)
        await kernel.read(opened, 0, 100)
        await trio.sleep(1)
        site.xnat.login._heeds_cookies = False
        await trio.sleep(TTL)
        site.xnat.login._confirmed_at = trio.current_time()  # so no answer is doubted
        server.demo.sessions.end_all()
        assert len(await kernel.operations.read(opened.handle, 0, 100)) == 100
        assert await kernel.names(("projects",))
        await trio.sleep(1)
        assert len(kept(tmp_path)) == 1


async def test_access_that_is_given_back_is_there_again(server, tmp_path, clock):
    async with mounted(server, tmp_path) as (kernel, _):
        opened = await kernel.open(FILE)
        server.close("P", protected=False)
        await trio.sleep(TTL + 1)
        with refused(errno.ESTALE, errno.EACCES):
            await kernel.read(opened, 0, 100)
        server.reopen("P")
        await trio.sleep(TTL + 1)
        assert await read(kernel, FILE) == server.present.files[FILE].content


async def test_the_cache_drops_what_is_on_its_way_to_the_disk(tmp_path):
    """Drop files in memory that wait to be written, and files that a program has open."""
    async with open_cache(tmp_path, 10**6) as cache:
        mine, others = Version("1/a", 1, ""), Version("2/b", 1, "")
        await cache.put(mine, b"a")
        await cache.put(others, b"b")
        blob = await cache.open(mine, None)  # type: ignore[arg-type]  # it is here
        await cache.drop({"1"})
        assert not cache.has(mine)
        assert await blob.read(0, 1) == b"a"
        blob.close()
    async with open_cache(tmp_path, 10**6) as cache:
        assert (cache.has(mine), cache.has(others)) == (False, True)
        assert cache.bytes_used == 1
        await cache.drop({"1", "2"})
        assert not cache.has(others)
        assert cache.bytes_used == 0
    assert list(tmp_path.glob("blobs/??/*")) == []


# -- with the kernel -----------------------------------------------------------------------------------------------


@pytest.mark.fuse
def test_a_mount_forgets_a_project_with_its_pages(demo, tmp_path):
    """Forget a file that stays open, of which the kernel has all pages, in a project that is closed."""
    ttl = 2.0
    place = ("projects", "BRAINS", "SUB002")  # its sessions are not shared
    entry = next(e for e in demo.manifest if e.path[:3] == place and e.kind == "file" and e.size > 8000)
    with mounting(demo.url, tmp_path, "--ttl", f"{ttl:g}", **demo.login) as mount:
        path = mount.path.joinpath(*entry.path)
        file = os.open(path, os.O_RDONLY)
        try:
            assert hashlib.md5(os.pread(file, entry.size, 0)).hexdigest() == entry.md5
            with demo.archive.lock:
                demo.archive.projects["BRAINS"].members.pop(USER)
            closed = time.monotonic()
            number = 0
            while not number and time.monotonic() < closed + 30:
                try:
                    assert len(os.pread(file, 100, 0)) == 100
                except OSError as error:
                    number = error.errno or 0
            assert number in (errno.ESTALE, errno.EACCES)
            with pytest.raises(OSError, match="ESTALE|Stale|Permission"):
                os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
        finally:
            os.close(file)
        assert not path.exists()
        assert "BRAINS" not in os.listdir(mount.path / "projects")
        blobs = mount.home / ".cache" / "xnatfs"
        deadline = time.monotonic() + 60
        while (left := list(blobs.glob("*/blobs/??/*"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []


# -- what was read ---------------------------------------------------------------------------------------------------


class Recorded:
    """The store and the listings of an account, as `Access` uses them; an answer takes as long as a test wants."""

    def __init__(self) -> None:
        self.answer = trio.Event()
        self.ids_now: list[str] = []
        self.stored: dict[object, str] = {}
        self.dropped: set[str] = set()

    async def drop(self, folders: Collection[str]) -> None:
        self.dropped.update(folders)

    def note_read(self, place: ReadPlace, resources: str) -> None:
        self.stored[place] = resources

    async def has_session(self) -> bool:
        await self.answer.wait()
        return True

    async def ids(self, key: object) -> list[str]:
        return self.ids_now

    def forget(self, key: object) -> None:
        pass


@asynccontextmanager
async def recorded() -> AsyncIterator[tuple[Recorded, Access]]:
    made = Recorded()
    async with trio.open_nursery() as nursery:
        yield made, Access(made, made, made, nursery)  # type: ignore[arg-type]


E1 = ("experiments", "E1")


async def test_what_a_new_listing_has_in_place_of_another_resource_is_dropped_too(autojump_clock):
    """The files of the new resource may be prefetched before one of them is opened."""
    async with recorded() as (server, access):
        access.note_read("P", E1, "1", ["1", "2"])
        access.note_read("P", E1, "1", ["1", "3"])
        server.answer.set()
        access.on_listed(ExperimentsKey("P"), [])
        await trio.testing.wait_all_tasks_blocked()
        assert server.dropped == {"1", "2", "3"}


@pytest.mark.parametrize("is_lost", [True, False])
async def test_what_is_read_while_a_loss_is_confirmed_is_not_forgotten(autojump_clock, is_lost):
    async with recorded() as (server, access):
        access.note_read("P", E1, "1", ["1"])
        access.on_listed(ExperimentsKey("P"), [])
        await trio.testing.wait_all_tasks_blocked()
        access.note_read("P", E1, "2", ["2"])
        server.ids_now = [] if is_lost else ["E1"]
        server.answer.set()
        await trio.testing.wait_all_tasks_blocked()
        if not is_lost:
            assert server.dropped == set()
            access.on_listed(ExperimentsKey("P"), [])
            server.ids_now = []
            await trio.testing.wait_all_tasks_blocked()
        assert server.dropped == {"1", "2"}
