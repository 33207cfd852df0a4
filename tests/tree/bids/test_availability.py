"""Test bids/ while the server is unreachable, and after access was taken away."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tests.support.nodes import find
from tests.support.wire import Wire
from tests.tree.bids.support import archive, content, convert, put_map, session, tree
from xnatfs.common.errors import BadReply, NoRoute, NotFound, XnatError
from xnatfs.demo.archive.model import Archive
from xnatfs.demo.server.app import DemoXnat, Fault, Request
from xnatfs.demo.server.reply import Failed
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site
from xnatfs.tree.node import File

TTL = 0.5


class Line:
    """A demo server that can be unreachable."""

    def __init__(self, made: Archive) -> None:
        self.demo = DemoXnat(made)
        self.cut = False
        self.slow = ""  # a list that no server answers in time

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == self.slow:
            raise httpx.ReadTimeout("no answer")
        if self.cut:
            raise httpx.ConnectError("refused")
        return self.demo(request)


@asynccontextmanager
async def mounted(line: Line, directory: Path, ttl: float = TTL) -> AsyncIterator[Site]:
    config = Config("http://xnat", cache_dir=directory, timeout=0.3, ttl=ttl)
    async with open_site(config, Credentials("u", "p"), Wire(line)) as site:
        if line.cut:
            with pytest.raises(NoRoute):
                await site.xnat.log_in()
        else:
            await site.xnat.log_in()
        site.start_background_tasks(offline=True)
        yield site


def echoes() -> Archive:
    """Make a session whose names depend on sidecars."""
    made = archive()
    scan = made.scan(session(made), "9", series_description="me")
    for stem, time in (("x_e1", 0.04), ("x_e2", 0.02)):
        convert(made, scan, stem, apart=False, EchoTime=time)
    put_map(made, me="MEGRE")
    return made


async def test_a_dataset_that_was_read_is_there_without_the_server_and_in_the_next_mount(tmp_path):
    line = Line(echoes())
    name = "sub-S1/ses-E1/anat/sub-S1_ses-E1_echo-1_MEGRE.nii.gz"
    async with mounted(line, tmp_path) as site:
        found = await tree(await find(site, "bids/P"))
        before = {path: await content(node) for path, node in found.items()}
        assert before[name] == b"image 9 x_e2"
    line.cut = True
    async with mounted(line, tmp_path) as site:
        found = await tree(await find(site, "bids/P"))
        assert {path: await content(node) for path, node in found.items()} == before
        assert (await find(site, f"bids/P/{name}")).get_stale_time()


async def test_a_dataset_of_which_the_account_loses_access_is_gone(tmp_path):
    line = Line(echoes())
    name = "bids/P/sub-S1/ses-E1/anat/sub-S1_ses-E1_echo-1_MEGRE.nii.gz"
    async with mounted(line, tmp_path) as site:
        node = await find(site, name)
        assert isinstance(node, File)
        await content(node)
        with line.demo.archive.lock:
            line.demo.archive.projects["P"].members.clear()
        await trio.sleep(2 * TTL)
        with pytest.raises(XnatError):
            await node.permit().renew()
        with pytest.raises(NotFound):
            await find(site, name)


@pytest.mark.parametrize("name", ["README", "sub-S1/sub-S1_sessions.tsv", "sub-S1/ses-E1/sub-S1_ses-E1_scans.tsv"])
async def test_a_made_file_that_is_open_ends_with_the_access(tmp_path, name):
    line = Line(echoes())
    async with mounted(line, tmp_path) as site:
        node = await find(site, f"bids/P/{name}")
        assert isinstance(node, File)
        await content(node)
        with line.demo.archive.lock:
            line.demo.archive.projects["P"].members.clear()
        await trio.sleep(2 * TTL)
        with pytest.raises(XnatError):
            await node.permit().renew()


async def test_a_sidecar_that_the_server_fails_to_serve_is_an_error_and_gives_no_other_names(tmp_path):
    made = echoes()
    line = Line(made)
    line.demo.faults.append(fail_at("x_e1.json"))
    async with mounted(line, tmp_path) as site:
        with pytest.raises(BadReply, match="x_e1.json, on which names depend"):
            await tree(await find(site, "bids/P/sub-S1/ses-E1"))
        assert b"x_e1.json" in await content(await find(site, "bids/P/sourcedata/xnatfs/left-out.tsv"))
        line.demo.faults.clear()
        assert len(await tree(await find(site, "bids/P/sub-S1/ses-E1/anat"))) == 4


def fail_at(name: str) -> Fault:
    """Return a fault of each request of a file, or of an archive."""

    def fault(request: Request) -> None:
        if request.path.endswith(name) or "format" in request.query and request.query["format"] == "tar":
            raise Failed(500, "null")

    return fault


async def test_a_list_that_takes_too_long_is_not_waited_for_again(tmp_path):
    line = Line(echoes())
    line.slow = "/data/experiments"
    async with mounted(line, tmp_path) as site:
        name = "sub-S1/ses-E1/anat/sub-S1_ses-E1_echo-1_MEGRE.nii.gz"
        assert name in await tree(await find(site, "bids/P"))
        await trio.sleep(2 * TTL)
        before = site.xnat.requests
        assert await find(site, "bids/P/sub-S1")
        assert site.xnat.requests - before <= 4  # projects, subjects, experiments, resources
