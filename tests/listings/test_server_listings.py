"""Test `--offline`: stale listings are shown and reported while the server is unreachable, never against its answer."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from pyfuse3 import FileNameT

from tests.fuse.test_operations import CONTEXT, look_up
from tests.fuse.test_outage import AWAY, BIG, SMALL, eventually, heard, mounted
from tests.fuse.test_outage import data as data  # a fixture
from tests.fuse.test_outage import server as server  # a fixture
from tests.listings.test_store import names
from tests.prefetch.test_session_listings import find, made, served
from tests.support.content_fakes import until
from tests.support.mounting import run
from tests.support.wire import Wire
from xnatfs.common.errors import Denied, LoginRequired, NoRoute, NotFound, Unreachable, XnatError
from xnatfs.demo.server.app import DemoXnat
from xnatfs.fuse.attributes import Ownership
from xnatfs.fuse.xattrs import OperationsWithXattrs
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site
from xnatfs.tree import Root
from xnatfs.tree.catalogue_file import CatalogueFile

TTL = 0.2
SESSION = "projects/P/S1/S1_MR"
PLACES = (
    "projects",
    "projects/P",
    f"{SESSION}/scans",
    f"{SESSION}/scans/1",
    f"{SESSION}/scans/1/DICOM",
    "experiments",
    "subjects",
)


class Line:
    """A demo behind a wire that can be cut; it may have other answers than its own."""

    def __init__(self, demo: DemoXnat) -> None:
        self.demo = demo
        self.cut = False
        self.status = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.cut:
            raise httpx.ConnectError("refused")
        if self.status == 401 or (self.status and not request.url.path.endswith(("/JSESSION", "/username"))):
            return httpx.Response(self.status, html="<html>")
        return self.demo(request)


@pytest.fixture
def line() -> Line:
    return Line(served(made(3)))


@asynccontextmanager
async def opened(line: Line, directory: Path, *, offline: bool = True, user: str = "u") -> AsyncIterator[Site]:
    config = Config("https://xnat.example.org", cache_dir=directory, timeout=0.3, ttl=TTL)
    async with open_site(config, Credentials(user, "p"), Wire(line)) as site:
        if line.cut:
            with pytest.raises(NoRoute):
                await site.xnat.log_in()
        else:
            await site.xnat.log_in()
        site.start_background_tasks(offline)
        yield site


async def seen(site: Site) -> dict[str, list[str]]:
    return {place: await names(site, place) for place in PLACES}


async def file(site: Site, scan: int = 1) -> CatalogueFile:
    node = await (await find(site, f"{SESSION}/scans/{scan}/DICOM")).child("a.dcm")
    assert isinstance(node, CatalogueFile)
    return node


async def content(site: Site, scan: int = 1) -> bytes:
    node = await file(site, scan)
    blob = await node.open()
    try:
        return await blob.read(0, await node.size())
    finally:
        blob.close()


async def cut(line: Line, site: Site) -> None:
    """Make the server unreachable, and known to be, with all listings expired."""
    line.cut = True
    with pytest.raises(Unreachable):
        await site.xnat.projects()
    await until(lambda: site.xnat.away)
    await trio.sleep(TTL)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


async def test_what_has_expired_is_shown_as_it_was_and_what_is_cached_opens(line, tmp_path, caplog):
    async with opened(line, tmp_path) as site:
        before, first = await seen(site), await content(site)
        assert await names(site, f"{SESSION}/assessors") == []
        await cut(line, site)
        began = trio.current_time()
        assert await seen(site) == before
        assert await names(site, f"{SESSION}/assessors") == []
        assert await content(site) == first
        with pytest.raises(NoRoute):
            await content(site, 2)
        with pytest.raises(NoRoute):
            await names(site, "projects/P/S0/S0_MR/scans/1")
        assert trio.current_time() - began < 5, "nobody waits for anything"
    away, shown = warnings(caplog)
    assert "the server is unreachable" in away
    assert "serving expired listings" in shown


async def test_without_the_option_nothing_is_shown_that_has_expired(line, tmp_path):
    async with opened(line, tmp_path, offline=False) as site:
        await seen(site)
        await cut(line, site)
        for place in PLACES:
            with pytest.raises(NoRoute):
                await names(site, place)


async def test_what_the_last_mount_has_seen_is_shown_from_the_start(line, tmp_path):
    async with opened(line, tmp_path) as site:
        before, first = await seen(site), await content(site)
    line.cut = True
    async with opened(line, tmp_path) as site:
        assert await seen(site) == before
        assert await content(site) == first
        with pytest.raises(NoRoute):
            await content(site, 2)
    async with opened(line, tmp_path, user="v") as site:
        with pytest.raises(NoRoute):
            await names(site, "projects")


async def test_it_says_of_when_it_is(line, tmp_path, monkeypatch):
    monkeypatch.setattr("xnatfs.listings.server_listings.STALE_RETRY_SECONDS", TTL)
    async with opened(line, tmp_path) as site:
        ops = OperationsWithXattrs(Root(site), Ownership(1, 2))
        await seen(site)

        async def label(path: str) -> bytes:
            inode = (await look_up(ops, path)).st_ino
            told = await ops.listxattr(inode, CONTEXT)
            name = FileNameT(b"user.xnat.stale")
            return await ops.getxattr(inode, name, CONTEXT) if name in told else b""

        assert [await label(place) for place in PLACES] == [b""] * len(PLACES)
        await cut(line, site)
        for place in PLACES:
            assert (await label(place)).startswith(b"20"), place
        line.cut = False
        await until(lambda: not site.xnat.away)
        await trio.sleep(2 * TTL)
        await seen(site)
        assert [await label(place) for place in PLACES] == [b""] * len(PLACES)


async def test_when_the_server_is_back_it_is_asked(line, tmp_path, monkeypatch):
    monkeypatch.setattr("xnatfs.listings.server_listings.STALE_RETRY_SECONDS", TTL)
    async with opened(line, tmp_path) as site:
        before = await seen(site)
        await cut(line, site)
        assert await seen(site) == before
        line.demo.archive.project("Q", "A new project", u="Owners")
        line.cut = False
        await until(lambda: not site.xnat.away)
        await trio.sleep(2 * TTL)
        assert await names(site, "projects") == ["P", "Q"]


@pytest.mark.parametrize(("status", "error"), [(403, Denied), (404, NotFound), (401, LoginRequired)])
async def test_what_the_server_refuses_is_gone_also_when_it_is_away_again(line, tmp_path, status, error):
    async with opened(line, tmp_path) as site:
        await seen(site)
        item = (await file(site)).files.resource_dir.place.item
        await trio.sleep(TTL)
        line.status = status
        if status == 401:
            line.demo.sessions.end_all()
        for _ in range(2):
            with pytest.raises(error):
                await names(site, "projects")
            with pytest.raises(error):
                await site.files(item, True)
        line.status, line.cut = 0, True
        if status != 401:  # after that nothing is asked for a while
            await cut(line, site)
        site.metadata.forget_all(lambda key, value: True)
        with pytest.raises(XnatError):
            await names(site, "projects")
        with pytest.raises(XnatError):
            await site.files(item, True)
    line.cut = True
    async with opened(line, tmp_path) as site:
        with pytest.raises(NoRoute):
            await names(site, "projects")


@pytest.mark.parametrize("asked", ["projects", "projects/P"])
async def test_what_is_not_listed_any_more_is_gone_with_all_below_it(line, tmp_path, asked):
    """Remove it also for a program whose working directory is inside."""
    async with opened(line, tmp_path) as site:
        await seen(site)
        inside = [await find(site, place) for place in PLACES[2:]]
        await trio.sleep(TTL)
        archive = line.demo.archive
        if asked == "projects":
            archive.projects["P"].members.clear()
        else:
            archive.experiments.pop(next(each.id for each in archive.experiments.values() if each.label == "S1_MR"))
        await names(site, asked)
        await cut(line, site)
        for directory in inside:
            with pytest.raises(NoRoute):
                await directory.children()


async def test_what_is_older_than_a_day_is_not_shown(line, tmp_path, monkeypatch):
    async with opened(line, tmp_path) as site:
        await seen(site)
        await cut(line, site)
        monkeypatch.setattr("xnatfs.listings.server_listings.MAX_AGE_SECONDS", TTL)
        monkeypatch.setattr("xnatfs.listings.store.MAX_AGE_SECONDS", TTL)
        with pytest.raises(NoRoute):
            await names(site, "projects")


@pytest.mark.fuse
def test_a_mount_without_a_server(server, tmp_path, data):
    truth = data.joinpath(*SMALL.parts[1:])
    with mounted(server, tmp_path, "--offline") as mount:
        assert heard(mount.path / SMALL / "000.dcm") == 0
    server.stop()
    with mounted(server, tmp_path, "-o", "offline", "--ttl", "1") as mount:
        mount.expected_in_log += ["serving expired listings", "mounted without the server"]
        assert run("ls", mount.path / SMALL).stdout.split() == sorted(path.name for path in truth.iterdir())
        assert (mount.path / SMALL / "000.dcm").read_bytes() == (truth / "000.dcm").read_bytes()
        assert heard(mount.path / BIG) == AWAY["stop"]
        label = ("getfattr", "--absolute-names", "--only-values", "-n", "user.xnat.stale", mount.path / SMALL)
        assert run(*label).stdout.startswith("20")
        server.start()
        eventually(lambda: heard(mount.path / BIG) == 0)
        eventually(lambda: run("ls", mount.path / SMALL).returncode == 0 and run(*label).stdout == "")
