"""The calls of the kernel, without a kernel: attributes, timeouts, errnos."""

import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import httpx
import pyfuse3
import pytest
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ReaddirToken, RequestContext

from tests.scripted import Scripted, opened
from xnatfs.fuse.inodes import ROOT
from xnatfs.fuse.operations import Operations, OperationsWithXattrs, Ownership
from xnatfs.tree import Root

CONTEXT = cast(RequestContext, None)
READ = FlagT(os.O_RDONLY)
DICOM = "projects/P/S/E/scans/1/DICOM"


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
    assert stat.S_IMODE(file.st_mode) == 0o440
    assert stat.S_IMODE(folder.st_mode) == 0o550
    assert (file.st_size, file.st_blocks, file.st_nlink) == (1000, 2, 1)
    assert (file.st_uid, file.st_gid) == (12, 34)
    assert file.st_mtime_ns == 1704164645 * 10**9


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
        while len(listed) < 10:
            room = 3
            await ops.readdir(handle, len(listed), cast(ReaddirToken, None))
        await ops.releasedir(handle)
        assert len(ops.inodes) == known + 10
    assert listed == [(str(number).encode(), number) for number in range(10)]


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


async def test_a_file_is_read_and_its_pages_kept(server, tmp_path):
    server.add("a", b"0123456789")
    async with mounted(server, tmp_path) as ops:
        file = await look_up(ops, f"{DICOM}/a")
        first = await ops.open(file.st_ino, READ, CONTEXT)
        assert await ops.read(first.fh, 3, 4) == b"3456"
        again = await ops.open(file.st_ino, READ, CONTEXT)
        assert again.keep_cache
        for info in (first, again):
            await ops.release(info.fh)


async def test_a_wrong_size_is_estale_once(server, tmp_path):
    server.add("a", b"0123456789", size="4")
    async with mounted(server, tmp_path) as ops:
        before = await look_up(ops, f"{DICOM}/a")
        async with refused(errno.ESTALE):
            await ops.open(before.st_ino, READ, CONTEXT)
        after = await look_up(ops, f"{DICOM}/a")
        assert (before.st_size, after.st_size) == (4, 10)
        assert after.st_ino != before.st_ino
        info = await ops.open(after.st_ino, READ, CONTEXT)
        assert await ops.read(info.fh, 0, 100) == b"0123456789"
        await ops.release(info.fh)


async def test_every_failure_has_its_errno(server, tmp_path, autojump_clock):
    server.add("lost", b"1")
    server.add("wrong", b"1", digest="0" * 32)
    server.add("closed", b"1")
    server.files.pop(("7", "lost"))
    server.answers["experiments/X_E1/resources/7/files/closed"] = lambda r: httpx.Response(403)
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
        async with refused(pyfuse3.ENOATTR):
            await ops.getxattr(scan.st_ino, FileNameT(b"security.capability"), CONTEXT)
