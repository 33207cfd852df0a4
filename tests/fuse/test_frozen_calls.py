"""Test each call of the kernel while the server accepts requests and sends nothing: an errno, in time."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from pyfuse3 import FileNameT, InodeT

from tests.fuse.test_operations import CONTEXT, DICOM, READ, look_up, refused
from tests.support.scripted import URL, Scripted
from tests.support.wire import Wire
from xnatfs.fuse.attributes import Ownership
from xnatfs.fuse.xattrs import OperationsWithXattrs
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import open_site
from xnatfs.tree import Root

TIMEOUT = 0.3
# Far beyond that, for a machine that is busy, and below what anything waits that does not heed it.
SOON = 10.0
BIG = 9 * 2**20


class Freezing:
    """A server that answers until it is frozen, which also stops the replies that it has begun to send."""

    def __init__(self) -> None:
        self.server = Scripted()
        self.server.add("small", b"x" * 1000)
        self.server.add("sizeless", b"x" * 1002, size="")
        self.server.add("big", b"x" * BIG)
        self.frozen = False

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.frozen:
            await trio.sleep_forever()
        response = self.server(request)
        if request.url.path.endswith("/big") and request.method == "GET":
            return httpx.Response(200, headers=response.headers, stream=Half())
        return response


class Half(httpx.AsyncByteStream):
    """A big file of which as much as a reader is served arrives, and no more."""

    def __init__(self) -> None:
        self._sent = False

    def __aiter__(self) -> "Half":
        return self

    async def __anext__(self) -> bytes:
        if self._sent:
            await trio.sleep_forever()
        self._sent = True
        return b"x" * (BIG // 2)


@asynccontextmanager
async def mounted(directory: Path) -> AsyncIterator[tuple[OperationsWithXattrs, Freezing]]:
    server = Freezing()
    async with open_site(
        Config(URL, cache_dir=directory, timeout=TIMEOUT), Credentials("u", "p"), Wire(server)
    ) as site:
        yield OperationsWithXattrs(Root(site), Ownership(1, 2)), server
        server.frozen = False  # for the logout


@pytest.mark.parametrize(
    ("call", "known"),
    [("lookup", "projects/P"), ("opendir", "projects/P"), ("stat", DICOM), ("open", f"{DICOM}/small")],
)
async def test_what_has_to_ask_ends(tmp_path, call, known):
    async with mounted(tmp_path) as (ops, server):
        inode = InodeT((await look_up(ops, known)).st_ino)
        server.frozen = True
        began = trio.current_time()
        async with refused(errno.ETIMEDOUT):
            match call:
                case "lookup":
                    await ops.lookup(inode, FileNameT(b"S"), CONTEXT)
                case "opendir":
                    await ops.opendir(inode, CONTEXT)
                case "stat":
                    await ops.lookup(inode, FileNameT(b"sizeless"), CONTEXT)
                case "open":
                    await ops.open(inode, READ, CONTEXT)
        assert trio.current_time() - began < SOON


async def test_a_read_of_what_does_not_come_ends(tmp_path):
    async with mounted(tmp_path) as (ops, server):
        inode = InodeT((await look_up(ops, f"{DICOM}/big")).st_ino)
        opened = await ops.open(inode, READ, CONTEXT)
        assert await ops.read(opened.fh, 0, 1000) == b"x" * 1000
        server.frozen = True
        began = trio.current_time()
        async with refused(errno.ETIMEDOUT):
            await ops.read(opened.fh, BIG - 1000, 1000)
        assert trio.current_time() - began < SOON
        await ops.release(opened.fh)


async def test_what_is_known_is_answered_meanwhile(tmp_path):
    async with mounted(tmp_path) as (ops, server):
        inode = InodeT((await look_up(ops, f"{DICOM}/small")).st_ino)
        opened = await ops.open(inode, READ, CONTEXT)
        server.frozen = True
        assert (await ops.getattr(inode, CONTEXT)).st_size == 1000
        assert await ops.read(opened.fh, 0, 1000) == b"x" * 1000
        await ops.release(opened.fh)
