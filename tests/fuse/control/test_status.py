"""Test the report of a mount's state, without a kernel: its cost, transfers under way, an outage."""

import os
from collections import UserDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Never

import httpx
import pytest
import trio
from pyfuse3 import FlagT

from tests.fuse.test_operations import CONTEXT, DICOM, FILES, look_up
from tests.support.scripted import URL, Scripted, opened
from xnatfs.fuse.attributes import Ownership
from xnatfs.fuse.control.status import Status
from xnatfs.fuse.operations import Operations
from xnatfs.settings.config import Config
from xnatfs.tree import Root


@pytest.fixture
def server() -> Scripted:
    return Scripted()


@asynccontextmanager
async def reporting(server: Scripted, directory: Path) -> AsyncIterator[tuple[Operations, Status]]:
    async with opened(server, directory) as site:
        operations = Operations(Root(site), Ownership(0, 0))
        yield operations, Status(site, operations, Config(URL, cache_dir=directory), Path("/mnt"))


class Huge(UserDict[Any, Any]):
    """A dict that must not be gone through."""

    def __iter__(self) -> Never:
        raise AssertionError("it may have a million entries")

    values = items = keys = __iter__


async def test_a_million_files_cost_nothing(server, tmp_path):
    server.add("a", b"x")
    async with reporting(server, tmp_path) as (operations, status):
        await look_up(operations, f"{DICOM}/a")
        asked = len(server.asked)
        operations.inodes._by_inode = Huge(operations.inodes._by_inode)  # type: ignore[assignment]
        operations.inodes._by_identity = Huge(operations.inodes._by_identity)  # type: ignore[assignment]
        report = status.report()
        assert report["inodes"] == len(operations.inodes)
        assert len(server.asked) == asked


class Halting(httpx.AsyncByteStream):
    """A body of which half arrives, and the rest when the test lets it."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.rest = trio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        half = len(self._content) // 2
        yield self._content[:half]
        await self.rest.wait()
        yield self._content[half:]


async def test_a_transfer_is_shown_with_its_path_and_progress(server, tmp_path):
    content = b"x" * 100_000
    server.add("a", content)
    body = Halting(content)
    headers = {"content-length": str(len(content))}
    server.answers[f"{FILES}/a"] = lambda request: httpx.Response(200, headers=headers, stream=body)
    async with reporting(server, tmp_path) as (operations, status):
        inode = (await look_up(operations, f"{DICOM}/a")).st_ino
        opened = await operations.open(inode, FlagT(os.O_RDONLY), CONTEXT)
        with trio.fail_after(10):
            while not (shown := status.report()["transfers"]) or not shown[0]["received_bytes"]:
                await trio.lowlevel.checkpoint()
        (transfer,) = shown
        assert transfer["path"] == f"{DICOM}/a"
        assert 0 < transfer["received_bytes"] < transfer["size_bytes"] == len(content)
        body.rest.set()
        assert await operations.read(opened.fh, 0, len(content)) == content
        assert status.report()["transfers"] == []
        assert status.report()["bytes"] == {"fetched": len(content), "served": len(content)}
        await operations.release(opened.fh)


async def test_rates_are_those_of_the_last_minute(server, tmp_path, autojump_clock):
    async with reporting(server, tmp_path) as (operations, status), trio.open_nursery() as nursery:
        nursery.start_soon(status.run)
        await look_up(operations, DICOM)
        await trio.sleep(10)
        rates = status.report()["rates"]
        assert rates["requests_per_second"] == pytest.approx(status.report()["requests"]["total"] / 10)
        await trio.sleep(100)
        rates = status.report()["rates"]
        assert rates["requests_per_second"] == 0
        assert 55 <= rates["seconds"] <= 60
        nursery.cancel_scope.cancel()


async def test_an_outage_is_dated_and_named(server, tmp_path, autojump_clock):
    async with reporting(server, tmp_path) as (operations, status):
        await look_up(operations, "projects/P")
        before = status.report()
        assert (before["reachable"], before["unreachable_since"]) == (True, None)
        server.by_pattern.insert(0, (".*", _cut_off))
        server.answers["/xapi/siteConfig/buildInfo"] = _cut_off
        with pytest.raises(Exception, match="."):
            await operations.lookup((await look_up(operations, "projects/P")).st_ino, b"S", CONTEXT)
        await trio.sleep(5)
        after = status.report()
        assert after["reachable"] is False
        assert after["unreachable_since"] >= before["started_at"]
        assert "no way" in after["unreachable_because"]


def _cut_off(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no way")
