"""Test files that are made from listings: when they are made, what their versions are, and how the kernel sees them."""

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pyfuse3
import pytest
import trio
from pyfuse3 import FileNameT, FlagT, InodeT, ReaddirToken, RequestContext

from tests.support.scripted import Scripted, opened
from xnatfs.common.clock import now
from xnatfs.common.errors import Denied, NotFound
from xnatfs.fuse.attributes import Ownership
from xnatfs.fuse.inodes import ROOT
from xnatfs.fuse.operations import Operations
from xnatfs.site import Site
from xnatfs.tree.generated_file import Generated, GeneratedFile
from xnatfs.tree.node import Node, StaticDir

CONTEXT, READ = cast(RequestContext, None), FlagT(0)
NAME = FileNameT(b"table.tsv")


class Desk(StaticDir):
    """A directory with one file that is made."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, None, "")
        self.data: bytes | Exception = b"first\n"
        self.made = 0

    def entries(self) -> Iterable[Node]:
        return [GeneratedFile(self, "table.tsv", self._make)]

    async def _make(self) -> Generated:
        self.made += 1
        if isinstance(self.data, Exception):
            raise self.data
        return Generated(self.data, now() + self.site.ttl)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int, float]]:
    """Collect name, size and timeout of the entries that are listed."""
    found: list[tuple[bytes, int, float]] = []

    def reply(token: object, name: bytes, attributes: pyfuse3.EntryAttributes, next_id: int) -> bool:
        found.append((name, attributes.st_size, attributes.attr_timeout))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    return found


@asynccontextmanager
async def desk(directory: Path) -> AsyncIterator[tuple[Desk, Operations]]:
    async with opened(Scripted(), directory) as site:
        made = Desk(site)
        yield made, Operations(made, Ownership(1, 2))


async def list_names(ops: Operations) -> None:
    handle = await ops.opendir(ROOT, CONTEXT)
    await ops.readdir(handle, 2, cast(ReaddirToken, None))
    await ops.releasedir(handle)


async def content(ops: Operations, inode: InodeT) -> bytes:
    opened_file = await ops.open(inode, READ, CONTEXT)
    try:
        return bytes(await ops.read(opened_file.fh, 0, 1000))
    finally:
        await ops.release(opened_file.fh)


async def test_a_listing_makes_no_byte_and_a_lookup_does(tmp_path, listed, autojump_clock):
    async with desk(tmp_path) as (made, ops):
        await list_names(ops)
        assert (listed, made.made) == ([(NAME, 0, 0.0)], 0)  # the kernel asks before it believes this size
        found = await ops.lookup(ROOT, NAME, CONTEXT)
        assert found.st_size == 6
        assert [found.attr_timeout, found.entry_timeout] == pytest.approx([60, 60])
        assert await content(ops, found.st_ino) == b"first\n"
        assert made.made == 1
        listed.clear()
        await list_names(ops)
        assert listed == [(NAME, 6, pytest.approx(60))]


async def test_the_kernel_that_only_listed_it_hears_the_size_of_its_number(tmp_path, listed):
    async with desk(tmp_path) as (made, ops):
        await list_names(ops)
        inode = ops.inodes.find(("table.tsv",))
        assert inode is not None
        assert (await ops.getattr(inode, CONTEXT)).st_size == 6
        assert made.made == 1


async def test_equal_bytes_stay_one_version_and_others_are_another(tmp_path, autojump_clock):
    async with desk(tmp_path) as (made, ops):
        first = await ops.lookup(ROOT, NAME, CONTEXT)
        assert (await ops.open(first.st_ino, READ, CONTEXT)).keep_cache
        await trio.sleep(61)
        again = await ops.lookup(ROOT, NAME, CONTEXT)
        assert (made.made, again.st_mtime_ns, again.st_ino) == (2, first.st_mtime_ns, first.st_ino)
        await trio.sleep(61)
        made.data = b"other\n"
        before = time.time()
        other = await ops.lookup(ROOT, NAME, CONTEXT)
        assert other.st_ino != first.st_ino  # the first is open
        assert before - 1 < other.st_mtime_ns / 1e9 < time.time()
        assert await content(ops, other.st_ino) == b"other\n"
        assert (await ops.lookup(ROOT, NAME, CONTEXT)).st_mtime_ns == other.st_mtime_ns


async def test_a_changed_file_replaces_the_pages_of_a_closed_one(tmp_path, autojump_clock):
    async with desk(tmp_path) as (made, ops):
        first = await ops.lookup(ROOT, NAME, CONTEXT)
        await content(ops, first.st_ino)
        await trio.sleep(61)
        made.data = b"longer now\n"
        second = await ops.lookup(ROOT, NAME, CONTEXT)
        assert (second.st_ino, second.st_size) == (first.st_ino, 11)
        assert not (await ops.open(first.st_ino, READ, CONTEXT)).keep_cache


@pytest.mark.parametrize(("error", "number"), [(Denied("no"), "EACCES"), (NotFound("gone"), "ESTALE")])
async def test_an_open_file_ends_with_the_access_to_its_data(tmp_path, autojump_clock, error, number):
    import errno

    async with desk(tmp_path) as (made, ops):
        found = await ops.lookup(ROOT, NAME, CONTEXT)
        handle = (await ops.open(found.st_ino, READ, CONTEXT)).fh
        made.data = error
        assert bytes(await ops.read(handle, 0, 3)) == b"fir"
        await trio.sleep(120)
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await ops.read(handle, 3, 3)
        assert errno.errorcode[cast(Any, caught.value).errno] == number
