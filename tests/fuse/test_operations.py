"""Test the calls of the kernel, without a kernel: attributes, timeouts, errnos."""

import errno
import math
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import cast

import httpx
import pyfuse3
import pytest
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ReaddirToken, RequestContext

from tests.support.scripted import Scripted, md5, opened
from xnatfs.common.errors import Stale
from xnatfs.content import Blob, Version
from xnatfs.fuse.attributes import Ownership
from xnatfs.fuse.dir_cache import DirCache
from xnatfs.fuse.inodes import ROOT, Known
from xnatfs.fuse.operations import DOTS, GIVEN_BYTES, MADE_AT_ONCE, MEASURED_AT_ONCE, Operations, check_version
from xnatfs.fuse.xattrs import OperationsWithXattrs
from xnatfs.listings.revocation import Permit
from xnatfs.site import Site
from xnatfs.tree import Root
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.node import Children, File, Node
from xnatfs.tree.projects import SubjectDir

CONTEXT = cast(RequestContext, None)
READ = FlagT(os.O_RDONLY)
DICOM = "projects/P/S/E/scans/1/DICOM"
FILES = "experiments/X_E1/scans/1/resources/7/files"


@pytest.fixture
def server() -> Scripted:
    return Scripted()


@asynccontextmanager
async def mounted(server: Scripted, directory: Path) -> AsyncIterator[OperationsWithXattrs]:
    async with opened(server, directory) as site:
        yield OperationsWithXattrs(Root(site), Ownership(12, 34, 0o027))


async def look_up(ops: Operations, path: str) -> pyfuse3.EntryAttributes:
    inode = ROOT
    for name in path.split("/"):
        found = await ops.lookup(inode, FileNameT(name.encode()), CONTEXT)
        inode = found.st_ino
    return found


def look_up_node(ops: Operations, node: Node) -> InodeT:
    known = ops.inodes.known(node)
    ops.inodes.refer(known, node)
    return known.inode


@asynccontextmanager
async def refused(number: int) -> AsyncIterator[None]:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


async def test_attributes_are_honest(server, tmp_path):
    server.add("a", b"x" * 1000)
    async with mounted(server, tmp_path) as ops:
        file, folder = await look_up(ops, f"{DICOM}/a"), await look_up(ops, DICOM)
    assert stat.S_ISREG(file.st_mode)
    assert stat.S_IMODE(file.st_mode) == 0o640
    assert stat.S_IMODE(folder.st_mode) == 0o750
    assert (file.st_size, file.st_blocks, file.st_nlink) == (1000, 2, 2)  # links: it may have a name in bids/, too
    assert (file.st_uid, file.st_gid) == (12, 34)
    assert folder.st_mtime_ns == 1704164645 * 10**9
    assert file.st_mtime_ns - folder.st_mtime_ns == int(md5(b"x" * 1000), 16) % 10**6  # of a version its own


async def test_timeouts_are_what_is_left_of_the_listing(server, tmp_path, autojump_clock):
    async with mounted(server, tmp_path) as ops:
        first = await look_up(ops, "projects/P")
        assert first.entry_timeout == first.attr_timeout == pytest.approx(60)
        await trio.sleep(45)
        assert (await look_up(ops, "projects/P")).entry_timeout == pytest.approx(15)
        assert (await look_up(ops, "projects")).entry_timeout == 3600


async def test_what_is_not_there_is_remembered_as_long_as_the_listing(server, tmp_path, autojump_clock):
    async with mounted(server, tmp_path) as ops:
        project = await look_up(ops, "projects/P")
        await trio.sleep(10)
        absent = await ops.lookup(project.st_ino, FileNameT(b"NOBODY"), CONTEXT)
    assert absent.st_ino == 0
    assert absent.entry_timeout == pytest.approx(60)


@pytest.mark.parametrize("name", ["E", "NOBODY"])
async def test_the_kernel_remembers_nothing_of_a_lookup_that_a_refresh_overtakes(
    server, tmp_path, monkeypatch, autojump_clock, name
):
    async with mounted(server, tmp_path) as ops:
        subject = await look_up(ops, "projects/P/S")
        node = ops.inodes[subject.st_ino].node
        assert isinstance(node, SubjectDir)
        find, replies = SubjectDir.child, []

        async def slow(self: SubjectDir, name: str) -> Node:
            try:
                return await find(self, name)
            finally:
                await trio.sleep(1)

        monkeypatch.setattr(SubjectDir, "child", slow)
        for outdates in (False, True):
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    replies.append(await ops.lookup(subject.st_ino, FileNameT(name.encode()), CONTEXT))

                nursery.start_soon(ask)
                await trio.sleep(0.5)
                if outdates:
                    node.site.outdate()
    assert replies[0].entry_timeout > 0
    assert replies[1].entry_timeout == replies[1].attr_timeout == 0
    assert (replies[1].st_ino == 0) == (name == "NOBODY")


async def test_a_directory_is_listed_in_steps(server, tmp_path, monkeypatch):
    for number in range(10):
        server.add(f"{number}", b"x" * number)
    listed: list[tuple[bytes, int]] = []
    room = 0

    def reply(token: object, name: bytes, attributes: pyfuse3.EntryAttributes, next_id: int) -> bool:
        nonlocal room
        room -= 1
        if room < 0:
            return False
        listed.append((name, attributes.st_size))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    async with mounted(server, tmp_path) as ops:
        handle = await ops.opendir((await look_up(ops, DICOM)).st_ino, CONTEXT)
        known = len(ops.inodes)
        while len(listed) < 12:
            room = 3
            await ops.readdir(handle, len(listed), cast(ReaddirToken, None))
            made = [answer for answer in ops._directories[handle].replies if answer]
            assert len(made) <= len(listed) + 1  # no more than was asked for, and the one that found no room
        await ops.releasedir(handle)
        assert len(ops.inodes) == known + 10
    assert listed == [(b".", 0), (b"..", 0), *((str(number).encode(), number) for number in range(10))]


async def test_entries_before_one_that_fails_are_answered_and_counted(server, tmp_path, monkeypatch):
    """Return the entries before the error: an error in their place left references to them that no kernel had."""
    for number in range(MEASURED_AT_ONCE + 1):
        server.add(f"{number}", b"x" * number, size="" if number == MEASURED_AT_ONCE else None)
    server.answers[f"{FILES}/{MEASURED_AT_ONCE}"] = lambda r: httpx.Response(503)
    listed: list[bytes] = []

    def reply(token: object, name: bytes, attributes: pyfuse3.EntryAttributes, next_id: int) -> bool:
        listed.append(name)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    async with mounted(server, tmp_path) as ops:
        handle = await ops.opendir((await look_up(ops, DICOM)).st_ino, CONTEXT)
        known = len(ops.inodes)
        await ops.readdir(handle, 0, cast(ReaddirToken, None))
        assert len(listed) == len(DOTS) + MEASURED_AT_ONCE
        assert len(ops.inodes) == known + MEASURED_AT_ONCE
        async with refused(errno.EIO):
            await ops.readdir(handle, len(listed), cast(ReaddirToken, None))
        assert len(ops.inodes) == known + MEASURED_AT_ONCE


# Name, inode number, size and timeout of an entry.
Told = tuple[bytes, int, int, float]


class Reader:
    """A program that lists a directory, and the entries that it receives."""

    def __init__(self, ops: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ops = ops
        self.told: list[Told] = []
        monkeypatch.setattr(pyfuse3, "readdir_reply", self._take)

    def _take(self, token: object, name: bytes, attributes: pyfuse3.EntryAttributes, next_id: int) -> bool:
        assert attributes.entry_timeout == attributes.attr_timeout
        if name not in DOTS:
            self.told.append((name, attributes.st_ino, attributes.st_size, attributes.entry_timeout))
        return True

    async def list(self, path: str) -> Sequence[Told]:
        """List each entry of a directory."""
        handle = await self._ops.opendir((await look_up(self._ops, path)).st_ino, CONTEXT)
        await self.read(handle)
        await self._ops.releasedir(handle)
        return self.told

    async def read(self, handle: FileHandleT) -> Sequence[Told]:
        """List the entries of an open directory from its start."""
        self.told = []
        await self._ops.readdir(handle, 0, cast(ReaddirToken, None))
        return self.told


async def test_a_directory_listed_again_is_the_same_with_less_time_left(server, tmp_path, monkeypatch, autojump_clock):
    for number in range(10):
        server.add(f"{number}", b"x" * number)
    async with mounted(server, tmp_path) as ops:
        reader = Reader(ops, monkeypatch)
        first = await reader.list(DICOM)
        await trio.sleep(20)
        second = await reader.list(DICOM)
        await ops.forget([(InodeT(inode), 1) for _, inode, _, _ in second])
        assert all(ops.inodes[InodeT(inode)] for _, inode, _, _ in first)  # one reference of each is left
        await ops.forget([(InodeT(inode), 1) for _, inode, _, _ in first])
        third = await reader.list(DICOM)
        assert [stat.S_ISREG((await ops.getattr(InodeT(t[1]), CONTEXT)).st_mode) for t in third] == [True] * 10
    assert [told[:3] for told in first] == [told[:3] for told in second] == [told[:3] for told in third]
    assert [told[2] for told in first] == list(range(10))
    assert [told[3] for told in first] == pytest.approx([60] * 10)
    assert [told[3] for told in (*second, *third)] == pytest.approx([40] * 20)


async def test_a_new_listing_is_not_answered_from_the_old_one(server, tmp_path, monkeypatch, autojump_clock):
    server.add("a", b"1")
    async with mounted(server, tmp_path) as ops:
        reader = Reader(ops, monkeypatch)
        before = await reader.list(DICOM)
        server.add("b", b"22")
        await trio.sleep(61)
        after = await reader.list(DICOM)
    assert [(name, size) for name, _, size, _ in before] == [(b"a", 1)]
    assert [(name, size) for name, _, size, _ in after] == [(b"a", 1), (b"b", 2)]
    assert after[0][1] == before[0][1]


async def test_a_corrected_file_is_listed_as_what_it_is(server, tmp_path, monkeypatch):
    server.add("a", b"0123456789", size="4")
    async with mounted(server, tmp_path) as ops:
        reader = Reader(ops, monkeypatch)
        ((_, inode, size, _),) = await reader.list(DICOM)
        async with refused(errno.ESTALE):
            await ops.open(InodeT(inode), READ, CONTEXT)
        ((_, new, corrected, _),) = await reader.list(DICOM)
    assert (size, corrected) == (4, 10)
    assert new == inode


async def test_a_number_that_another_has_got_meanwhile_is_not_listed(server, tmp_path, monkeypatch):
    server.add("a", b"1")
    async with mounted(server, tmp_path) as ops:
        reader = Reader(ops, monkeypatch)
        ((_, inode, _, _),) = await reader.list(DICOM)
        await ops.forget([(InodeT(inode), 1)])
        other = Known(InodeT(inode), ops.inodes[ROOT].node, "another identity")
        ops.inodes.refer(other, other.node)
        ((_, new, _, _),) = await reader.list(DICOM)
        assert new != inode
        assert ops.inodes[InodeT(inode)] is other


async def test_listings_are_kept_up_to_so_many_entries(server, tmp_path):
    def children(count: int) -> Children:
        return Children({f"{number}": Node(cast(Site, None), None, f"{number}") for number in range(count)})

    listings = DirCache(most=100)
    small, large, huge = children(40), children(60), children(101)
    kept = listings.open(InodeT(1), small)
    assert listings.open(InodeT(1), small) is kept
    listings.open(InodeT(2), large)
    listings.open(InodeT(1), small)
    assert len(listings) == 100
    listings.open(InodeT(3), children(10))
    assert len(listings) == 50  # the large one was listed least recently
    assert listings.open(InodeT(4), huge) is not listings.open(InodeT(4), huge)
    assert listings.open(InodeT(1), small) is kept
    assert listings.open(InodeT(1), children(40)) is not kept
    listings.clear()
    assert len(listings) == 0


async def test_others_have_their_turn_while_a_long_listing_is_answered(server, tmp_path, monkeypatch):
    for number in range(10 * MADE_AT_ONCE):
        server.add(f"{number}", b"")
    turns: list[int] = []

    async def other(reader: Reader) -> None:
        while True:
            turns.append(len(reader.told))
            await trio.lowlevel.checkpoint()

    async with mounted(server, tmp_path) as ops, trio.open_nursery() as nursery:
        reader = Reader(ops, monkeypatch)
        nursery.start_soon(other, reader)
        assert len(await reader.list(DICOM)) == 10 * MADE_AT_ONCE
        nursery.cancel_scope.cancel()
    # Of two tasks that are ready trio takes either first, so that two steps may follow on each other.
    assert max(later - earlier for earlier, later in pairwise(turns)) <= 2 * MADE_AT_ONCE


async def test_sizes_are_measured_eight_at_a_time(server, tmp_path, monkeypatch):
    for number in range(40):
        server.add(f"{number}", b"x" * number, size="")
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *args: True)
    async with mounted(server, tmp_path) as ops:
        handle = await ops.opendir((await look_up(ops, DICOM)).st_ino, CONTEXT)
        for _ in range(2):
            await ops.readdir(handle, 0, cast(ReaddirToken, None))
        await ops.releasedir(handle)
    assert len([line for line in server.asked if line.startswith("HEAD")]) == 40


async def test_a_read_that_waits_is_not_overwritten_by_one_that_does_not(server, tmp_path):
    """Copy each reply before another task runs, as pyfuse3 does: all have the same memory."""
    server.add("a", b"0123456789")
    server.add("b", b"abcdefghij")
    replies: dict[str, bytes] = {}
    async with mounted(server, tmp_path) as ops, trio.open_nursery() as nursery:

        async def read(name: str, times: int) -> None:
            file = await look_up(ops, f"{DICOM}/{name}")
            opened_file = await ops.open(file.st_ino, READ, CONTEXT)
            for _ in range(times):
                replies[name] = bytes(await ops.read(opened_file.fh, 0, 10))
                await trio.lowlevel.checkpoint()
            await ops.release(opened_file.fh)

        await read("a", 1)
        nursery.start_soon(read, "b", 1)
        nursery.start_soon(read, "a", 100)
    assert replies == {"a": b"0123456789", "b": b"abcdefghij"}


async def test_a_file_is_read_and_its_pages_kept(server, tmp_path):
    server.add("a", b"0123456789")
    async with mounted(server, tmp_path) as ops:
        file = await look_up(ops, f"{DICOM}/a")
        first = await ops.open(file.st_ino, READ, CONTEXT)
        assert bytes(await ops.read(first.fh, 3, 4)) == b"3456"
        again = await ops.open(file.st_ino, READ, CONTEXT)
        assert again.keep_cache
        for info in (first, again):
            await ops.release(info.fh)


class FileInMemory(File):
    """A file in memory that arrived with others."""

    measured = True
    measured_size = 0

    def __init__(self, site: Site, name: str, content: bytes) -> None:
        super().__init__(site, Root(site), name)
        self.blob = Blob(name, lambda blob: None)
        self.blob.hold(content)

    def permit(self) -> Permit:
        return self.site.access.permit("7", self, math.inf)

    async def confirm_shown(self) -> float:
        return math.inf

    async def open(self) -> Blob:
        self.blob.users += 1
        return self.blob


async def test_what_is_in_memory_is_in_the_kernels_pages_before_it_asks(server, tmp_path):
    """Store nothing for an open file: the kernel locks the pages of a READ until the mount has answered it."""
    stored: list[tuple[InodeT, int, bytes]] = []
    async with opened(server, tmp_path) as site:
        ops = Operations(Root(site), Ownership(12, 34), lambda *given: stored.append(given))
        small, large = (
            FileInMemory(site, "small", b"x" * GIVEN_BYTES),
            FileInMemory(site, "large", b"x" * (GIVEN_BYTES + 1)),
        )
        inode = look_up_node(ops, small)
        first = await ops.open(inode, READ, CONTEXT)
        assert stored == [(inode, 0, b"x" * GIVEN_BYTES)]
        assert first.keep_cache
        second = await ops.open(inode, READ, CONTEXT)
        await ops.release(first.fh)
        third = await ops.open(inode, READ, CONTEXT)
        assert len(stored) == 1
        for info in (second, third):
            await ops.release(info.fh)
        await ops.release((await ops.open(inode, READ, CONTEXT)).fh)
        assert stored == [(inode, 0, b"x" * GIVEN_BYTES)] * 2
        await ops.release((await ops.open(look_up_node(ops, large), READ, CONTEXT)).fh)
        assert len(stored) == 2


async def test_what_the_kernel_does_not_take_is_read(server, tmp_path):
    def refuse(inode: InodeT, offset: int, data: bytes) -> None:
        raise OSError(errno.ENOENT, "it has forgotten the file")

    async with opened(server, tmp_path) as site:
        ops = Operations(Root(site), Ownership(12, 34), refuse)
        info = await ops.open(look_up_node(ops, FileInMemory(site, "a", b"0123")), READ, CONTEXT)
        assert bytes(await ops.read(info.fh, 1, 2)) == b"12"
        await ops.release(info.fh)


@asynccontextmanager
async def reading(ops: Operations, attributes: pyfuse3.EntryAttributes) -> AsyncIterator[bytes]:
    info = await ops.open(attributes.st_ino, READ, CONTEXT)
    try:
        yield bytes(await ops.read(info.fh, 0, 100))
    finally:
        await ops.release(info.fh)


async def test_another_content_of_the_same_length_and_without_digest_is_another_inode_while_one_is_open(
    server, tmp_path
):
    """Use another inode: under one number the kernel mixed the pages of both for readers of the old and the new."""
    server.add("a", b"12345", digest="")
    async with opened(server, tmp_path) as site:
        ops, now = OperationsWithXattrs(Root(site), Ownership(12, 34)), 0.0
        site.content.clock = lambda: now
        before = await look_up(ops, f"{DICOM}/a")
        async with reading(ops, before) as data:
            assert data == b"12345"
        now = 4000.0  # it is asked for again, and is the same
        async with reading(ops, await look_up(ops, f"{DICOM}/a")) as data:
            assert data == b"12345"
        async with reading(ops, before):  # a program has the old one open
            server.files["7", "a"], server.modified = b"54321", "Wed, 03 Jan 2024 03:04:05 GMT"
            now = 8000.0
            async with refused(errno.ESTALE):
                await ops.open(before.st_ino, READ, CONTEXT)
            after = await look_up(ops, f"{DICOM}/a")
            assert after.st_ino != before.st_ino
            async with reading(ops, after) as data:
                assert data == b"54321"
            async with refused(errno.ESTALE):  # for a program that has not looked it up again
                await ops.open(before.st_ino, READ, CONTEXT)


async def test_another_content_of_a_file_that_nobody_has_open_takes_its_pages_place(server, tmp_path):
    """Keep the inode: `cp` leaves out a file whose inode at open differs from the one that it looked at."""
    stored: list[tuple[InodeT, int, bytes]] = []
    invalidated: list[tuple[InodeT, bool]] = []
    server.add("a", b"12345", digest="")
    async with opened(server, tmp_path) as site:
        ops, now = Operations(Root(site), Ownership(12, 34), lambda *given: stored.append(given)), 0.0
        ops._invalidate = lambda *given: invalidated.append(given)
        site.content.clock = lambda: now
        file = await look_up(ops, f"{DICOM}/a")
        async with reading(ops, file) as data:
            assert data == b"12345"
        server.files["7", "a"], server.modified = b"54321", "Wed, 03 Jan 2024 03:04:05 GMT"
        now = 4000.0
        async with refused(errno.ESTALE):
            await ops.open(file.st_ino, READ, CONTEXT)
        again = await look_up(ops, f"{DICOM}/a")  # as the kernel does, which hears of the time
        assert again.st_ino == file.st_ino
        assert again.st_mtime_ns > file.st_mtime_ns
        assert invalidated == []
        first = await ops.open(file.st_ino, READ, CONTEXT)
        await ops._files[first.fh].blob.read(0, 5)  # it is whole, and the kernel has not heard of the first open yet
        second = await ops.open(file.st_ino, READ, CONTEXT)
        assert (first.keep_cache, second.keep_cache) == (False, False)  # the kernel lets go of its pages with each
        assert invalidated == [(file.st_ino, True)] * 2  # and of the length: it may hear of two in the wrong order
        assert bytes(await ops.read(second.fh, 0, 5)) == b"54321"
        third = await ops.open(file.st_ino, READ, CONTEXT)
        assert third.keep_cache
        for info in (first, second, third):
            await ops.release(info.fh)
    assert stored == [(file.st_ino, 4, b"\0")]  # of the length; that page goes with the open


def replace(server: Scripted, content: bytes) -> None:
    """Put another content in the place of the only file."""
    server.lists["experiments/X_E1/files"] = []
    server.add("a", content)


async def test_a_version_that_is_open_keeps_its_number_until_it_is_closed(server, tmp_path, autojump_clock):
    server.add("a", b"12345")
    async with mounted(server, tmp_path) as ops:
        before = await look_up(ops, f"{DICOM}/a")
        async with reading(ops, before) as data:
            assert data == b"12345"
            replace(server, b"654321")
            await trio.sleep(61)
            beside = await look_up(ops, f"{DICOM}/a")
            assert beside.st_ino != before.st_ino
            async with reading(ops, beside) as data:
                assert data == b"654321"
            held = await ops.getattr(before.st_ino, CONTEXT)
            assert (held.st_size, held.st_mtime_ns) == (5, before.st_mtime_ns)
            async with reading(ops, before) as data:
                assert data == b"12345"
        after = await look_up(ops, f"{DICOM}/a")
        assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, 6, beside.st_mtime_ns)
        replace(server, b"7654321")
        await trio.sleep(62)
        async with refused(errno.ESTALE):  # a handle of the second number
            await ops.getattr(beside.st_ino, CONTEXT)
        replace(server, b"654321")
        await trio.sleep(62)
        after = await look_up(ops, f"{DICOM}/a")
        async with reading(ops, after) as data:
            assert data == b"654321"


async def test_a_file_that_is_used_by_its_number_alone_is_looked_up_again(server, tmp_path, autojump_clock):
    """Look it up again, as NFS servers use files by number."""
    server.add("a", b"12345")
    async with mounted(server, tmp_path) as ops:
        inode = (await look_up(ops, f"{DICOM}/a")).st_ino
        replace(server, b"654321")
        assert (await ops.getattr(inode, CONTEXT)).st_size == 5
        await trio.sleep(61)
        assert (await ops.getattr(inode, CONTEXT)).st_size == 6
        replace(server, b"7654321")
        await trio.sleep(61)
        info = await ops.open(inode, READ, CONTEXT)
        assert bytes(await ops.read(info.fh, 0, 100)) == b"7654321"
        assert (await ops.getattr(inode, CONTEXT)).st_size == 7
        await ops.release(info.fh)
        server.lists["experiments/X_E1/files"] = []
        await trio.sleep(61)
        for call in (lambda: ops.getattr(inode, CONTEXT), lambda: ops.open(inode, READ, CONTEXT)):
            async with refused(errno.ESTALE):
                await call()


async def test_a_listing_that_is_read_on_shows_what_was_looked_up_since(server, tmp_path, monkeypatch, autojump_clock):
    server.add("a", b"12345")
    async with mounted(server, tmp_path) as ops:
        reader = Reader(ops, monkeypatch)
        handle = await ops.opendir((await look_up(ops, DICOM)).st_ino, CONTEXT)
        ((_, inode, size, _),) = await reader.read(handle)
        assert size == 5
        replace(server, b"654321")
        await trio.sleep(61)
        after = await look_up(ops, f"{DICOM}/a")
        assert await reader.read(handle) == [(b"a", inode, 6, 0.0)]
        assert after.st_ino == inode
        async with reading(ops, after) as data:
            assert data == b"654321"


async def test_a_change_is_dated_once(server, tmp_path, autojump_clock):
    server.add("a", b"12345")
    async with mounted(server, tmp_path) as ops:
        before = await look_up(ops, f"{DICOM}/a")
        replace(server, b"54321")
        await trio.sleep(61)
        found = []
        for _ in range(3):
            found.append(await look_up(ops, f"{DICOM}/a"))
            async with reading(ops, found[-1]) as data:
                assert data == b"54321"
            found.append(await ops.getattr(before.st_ino, CONTEXT))
            await trio.sleep(61)
        await ops.forget([(before.st_ino, 4)])  # memory is short
        found.append(await look_up(ops, f"{DICOM}/a"))
        assert {each.st_ino for each in found} == {before.st_ino}
        (changed,) = {each.st_mtime_ns for each in found}
        assert changed > before.st_mtime_ns + 10**9


async def test_a_number_that_is_taken_over_while_it_is_opened_is_stale(server, tmp_path, autojump_clock):
    server.add("a", b"12345")
    async with mounted(server, tmp_path) as ops:
        before = await look_up(ops, f"{DICOM}/a")
        node = ops.inodes[before.st_ino].node
        assert isinstance(node, CatalogueFile)
        blob = await node.open()
        replace(server, b"54321")
        await trio.sleep(61)
        await look_up(ops, f"{DICOM}/a")
        with pytest.raises(Stale):
            check_version(ops.inodes[before.st_ino], node, blob)
        blob.close()


async def test_what_came_by_another_way_is_the_same_file(server, tmp_path):
    """Compare no dates: a member of a tar has none, and a file that is fetched by itself has one."""
    server.add("a", b"12345", digest="")
    async with opened(server, tmp_path) as site:
        ops = OperationsWithXattrs(Root(site), Ownership(12, 34))
        file = await look_up(ops, f"{DICOM}/a")
        async with reading(ops, file) as data:
            assert data == b"12345"
        await site.content.evict(0)
        node = ops.inodes[file.st_ino].node
        assert isinstance(node, CatalogueFile)
        await site.content.put(Version("7/a", 5, ""), b"12345")
        async with reading(ops, file) as data:
            assert data == b"12345"
        again = await look_up(ops, f"{DICOM}/a")
        assert (again.st_ino, again.st_mtime_ns) == (file.st_ino, file.st_mtime_ns)


async def test_another_length_and_content_without_digest_is_estale_once(server, tmp_path):
    """Return ESTALE once, because the kernel looks a name up again only once for an open."""
    server.add("a", b"12345", digest="")
    async with opened(server, tmp_path) as site:
        ops, now = OperationsWithXattrs(Root(site), Ownership(12, 34)), 0.0
        site.content.clock = lambda: now
        before = await look_up(ops, f"{DICOM}/a")
        async with reading(ops, before) as data:
            assert data == b"12345"
        server.files["7", "a"], server.modified = b"654321", "Wed, 03 Jan 2024 03:04:05 GMT"
        now = 4000.0
        async with refused(errno.ESTALE):
            await ops.open(before.st_ino, READ, CONTEXT)
        async with reading(ops, await look_up(ops, f"{DICOM}/a")) as data:
            assert data == b"654321"


async def test_a_wrong_size_is_estale_once(server, tmp_path):
    server.add("a", b"0123456789", size="4")
    async with mounted(server, tmp_path) as ops:
        before = await look_up(ops, f"{DICOM}/a")
        async with refused(errno.ESTALE):
            await ops.open(before.st_ino, READ, CONTEXT)
        after = await look_up(ops, f"{DICOM}/a")
        assert (before.st_size, after.st_size) == (4, 10)
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        info = await ops.open(after.st_ino, READ, CONTEXT)
        assert bytes(await ops.read(info.fh, 0, 100)) == b"0123456789"
        await ops.release(info.fh)


async def test_every_failure_has_its_errno(server, tmp_path, autojump_clock):
    server.add("lost", b"1")
    server.add("wrong", b"1", digest="1" * 32)
    server.add("closed", b"1")
    server.files.pop(("7", "lost"))
    server.answers["experiments/X_E1/scans/1/resources/7/files/closed"] = lambda r: httpx.Response(403)
    async with mounted(server, tmp_path) as ops:
        for name, number in {"lost": errno.EIO, "closed": errno.EACCES}.items():
            async with refused(number):
                await ops.open((await look_up(ops, f"{DICOM}/{name}")).st_ino, READ, CONTEXT)
        wrong = await look_up(ops, f"{DICOM}/wrong")
        async with refused(errno.EIO):  # at open or at read, as the bytes come
            await ops.read((await ops.open(wrong.st_ino, READ, CONTEXT)).fh, 0, 1)
        folder = await look_up(ops, DICOM)
        file = await look_up(ops, f"{DICOM}/lost")
        for number, call in {
            errno.EISDIR: ops.open(folder.st_ino, READ, CONTEXT),
            errno.EROFS: ops.open(file.st_ino, FlagT(os.O_WRONLY), CONTEXT),
            errno.ENOTDIR: ops.opendir(file.st_ino, CONTEXT),
            errno.EINVAL: ops.readlink(file.st_ino, CONTEXT),
            errno.ESTALE: ops.getattr(InodeT(12345), CONTEXT),
        }.items():
            async with refused(number):
                await call


async def test_an_unforeseen_error_does_not_end_the_mount(server, tmp_path, caplog):
    def broken(request: httpx.Request) -> httpx.Response:
        raise RuntimeError("a fault of ours")

    server.answers["projects"] = broken
    async with mounted(server, tmp_path) as ops:
        async with refused(errno.EIO):
            await look_up(ops, "projects/P")
        del server.answers["projects"]
        assert (await look_up(ops, "projects/P")).st_ino
    assert "a fault of ours" in caplog.text


async def test_bytes_that_are_no_text_are_not_found(server, tmp_path):
    async with mounted(server, tmp_path) as ops:
        projects = await look_up(ops, "projects")
        assert (await ops.lookup(projects.st_ino, FileNameT(b"\xff\xfe"), CONTEXT)).st_ino == 0


async def test_every_change_is_refused(server, tmp_path):
    async with mounted(server, tmp_path) as ops:
        for name in ("create", "link", "mkdir", "mknod", "removexattr", "rename", "rmdir", "setattr", "setxattr"):
            async with refused(errno.EROFS):
                await getattr(ops, name)()
        for name in ("symlink", "unlink", "write"):
            async with refused(errno.EROFS):
                await getattr(ops, name)(FileHandleT(1), 0, b"")


async def test_facts_are_attributes_and_what_is_not_there_is_said(server, tmp_path):
    async with mounted(server, tmp_path) as ops:
        scan = await look_up(ops, "projects/P/S/E/scans/1")
        names = await ops.listxattr(scan.st_ino, CONTEXT)
        assert b"user.xnat.type" in names
        assert await ops.getxattr(scan.st_ino, FileNameT(b"user.xnat.type"), CONTEXT) == b"T1"
        for name in (b"user.xnat.nothing", b"user.other"):
            async with refused(pyfuse3.ENOATTR):
                await ops.getxattr(scan.st_ino, FileNameT(name), CONTEXT)


async def test_an_attribute_that_is_listed_is_read_whatever_has_become_of_it(server, tmp_path, monkeypatch):
    """Read what was listed: `getfattr -d` lists first and then reads, and the server may be back in between."""
    monkeypatch.setattr(Node, "get_stale_time", lambda self: 1.0)
    async with mounted(server, tmp_path) as ops:
        scan = await look_up(ops, "projects/P/S/E/scans/1")
        names = await ops.listxattr(scan.st_ino, CONTEXT)
        assert b"user.xnat.stale" in names
        monkeypatch.setattr(Node, "get_stale_time", lambda self: 0.0)
        server.lists["experiments/X_E1/scans"] = [{"ID": "1"}]
        assert await ops.getxattr(scan.st_ino, FileNameT(b"user.xnat.stale"), CONTEXT) == b""
        assert b"user.xnat.stale" not in await ops.listxattr(scan.st_ino, CONTEXT)


@pytest.mark.parametrize(
    ("length", "listed", "read"), [(2000, True, True), (2**16, False, True), (2**16 + 1, False, False)]
)
async def test_attributes_are_as_long_as_a_copy_can_keep_and_the_kernel_takes(server, tmp_path, length, listed, read):
    server.lists["experiments/X_E1/scans"] = [{"ID": "1", "type": "T1", "note": "x" * length}]
    note = FileNameT(b"user.xnat.note")
    async with mounted(server, tmp_path) as ops:
        scan = await look_up(ops, "projects/P/S/E/scans/1")
        names = await ops.listxattr(scan.st_ino, CONTEXT)
        assert b"user.xnat.type" in names
        assert (note in names) == listed
        if read:
            assert len(await ops.getxattr(scan.st_ino, note, CONTEXT)) == length
        else:
            async with refused(pyfuse3.ENOATTR):
                await ops.getxattr(scan.st_ino, note, CONTEXT)


async def test_a_name_that_is_too_long_is_said_to_be(server, tmp_path):
    async with mounted(server, tmp_path) as ops:
        projects = await look_up(ops, "projects")
        assert (await ops.lookup(projects.st_ino, FileNameT(b"x" * 255), CONTEXT)).st_ino == 0
        async with refused(errno.ENAMETOOLONG):
            await ops.lookup(projects.st_ino, FileNameT(b"x" * 256), CONTEXT)


async def test_labels_and_acls_are_said_to_be_unsupported_not_missing(server, tmp_path):
    """Return EOPNOTSUPP, so that programs request labels and ACLs once, and not for every file."""
    async with mounted(server, tmp_path) as ops:
        scan = await look_up(ops, "projects/P/S/E/scans/1")
        for name in (b"security.selinux", b"security.capability", b"system.posix_acl_access", b"trusted.x"):
            async with refused(errno.EOPNOTSUPP):
                await ops.getxattr(scan.st_ino, FileNameT(name), CONTEXT)


async def test_without_xattrs_the_kernel_is_told_to_ask_for_none(server, tmp_path):
    async with opened(server, tmp_path) as site:
        ops = Operations(Root(site), Ownership(12, 34))
        for call in (ops.getxattr(ROOT, FileNameT(b"user.xnat.id"), CONTEXT), ops.listxattr(ROOT, CONTEXT)):
            async with refused(errno.ENOSYS):
                await call
