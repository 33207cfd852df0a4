"""Play the programs of users against a server, step by step: the operations of the fault matrix.

Each program is prepared without faults, runs while there are some, and is checked afterwards, by another program,
without. Reading goes by the calls of the kernel, without a kernel; each call must end within the timeout and GRACE.
"""

import errno
import os
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar, cast

import httpx
import pyfuse3
import pytest
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ReaddirToken, RequestContext

from tests.faults.server import Faulty
from tests.faults.stage import BIG, EXPERIMENT, FOLDER, IMAGES, PASSWORD, SERIES, SMALL, USER
from tests.support.changing import images, zip_of
from xnatfs.cli.run import exit_status
from xnatfs.common.errors import XnatError
from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Experiment
from xnatfs.demo.server.app import DemoXnat
from xnatfs.fuse.attributes import Ownership
from xnatfs.fuse.inodes import ROOT
from xnatfs.fuse.operations import Operations
from xnatfs.rest import prearchive
from xnatfs.rest.client import Xnat, open_xnat
from xnatfs.rest.models import PrearchiveSession
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site
from xnatfs.transfer.uploads import resources
from xnatfs.tree import Root

# Beyond the timeout: what a machine needs on which much else goes on, and what is waited for before a tar is given up.
GRACE = 6.0
MiB = 2**20
# Where a seek goes: far from the beginning, and from what comes from there by itself.
PLACE, PIECE = 9 * MiB, 64 * 1024
UPLOADED = random.Random(7).randbytes(200_000)
CONTENTS = {
    f"{FOLDER}/small.bin": SMALL,
    f"{FOLDER}/big.bin": BIG,
    **{f"{SERIES}/{name}": content for name, content in IMAGES.items()},
}

CONTEXT = cast(RequestContext, None)
T = TypeVar("T")


@dataclass
class Stage:
    """A server, the faults before it, and the cache directory of its user."""

    app: DemoXnat
    direct: str  # the server's own URL, past the faults
    server: Faulty
    url: str
    directory: Path
    timeout: float
    name: str  # of what is made on the server
    ca_bundle: str = ""
    strict: bool = False
    as_sent: bool = False  # bytes are right, too, that the fault server has altered: only a digest could tell

    def config(self) -> Config:
        return Config(
            self.url, timeout=self.timeout, cache_dir=self.directory, ca_bundle=self.ca_bundle, strict=self.strict
        )

    def has_sent(self, path: str, place: int, data: bytes) -> bool:
        """Return whether the fault server has sent these bytes of a file there; without any, that this is its end."""
        for altered in self.server.altered:
            body, at = altered.body, place - altered.start
            if altered.path.endswith(f"/files/{path.rpartition('/')[2]}"):
                if (body[at : at + len(data)] == data and at >= 0) if data else at == len(body):
                    return True
            elif "format=tar" in altered.path and (data in body if data else place == len(CONTENTS[path])):
                return True
        return False


class Wrong(Exception):
    """Raised when a program was given wrong bytes."""


class Failed(Exception):
    """Raised when a program gets an error: `outcome` as the matrix has it, an errno or an exit status."""

    def __init__(self, outcome: str, why: str = "") -> None:
        super().__init__(f"{outcome}: {why}")
        self.outcome = outcome


class Late(Failed):
    """Raised when the error follows wrong bytes: of a file that is too big to be held back until it is verified."""

    def __init__(self, outcome: str) -> None:
        super().__init__(f"late {outcome}")


class Program:
    """A program of one kind."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage = stage
        self.monkeypatch = monkeypatch

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open all that the program needs."""
        yield

    async def prepare(self) -> None:
        """Do all that precedes the fault."""

    async def run(self) -> None:
        """Run the program; raise Failed or Wrong."""
        raise NotImplementedError

    async def meanwhile(self) -> None:
        """Check what must work while the fault lasts."""

    async def afterwards(self) -> None:
        """Run the program anew on the same directories, and expect everything to be right."""
        again = type(self)(self.stage, self.monkeypatch)
        async with again.opened():
            await again.prepare()
            await again.run()


class Reader(Program):
    """A program on a mount."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with open_site(self.stage.config(), Credentials(USER, PASSWORD)) as site:
            self.site: Site = site
            self.ops = Operations(Root(site), Ownership(1, 1))
            self.inodes: dict[str, InodeT] = {}
            self.handed: list[tuple[str, int, bytes]] = []  # each piece that was read, its file and its place
            yield

    async def call(self, asked: Awaitable[T]) -> T:
        """Make one call of the kernel; raise Failed or TooSlowError."""
        try:
            with trio.fail_after(self.stage.timeout + GRACE):
                return await asked
        except pyfuse3.FUSEError as error:
            raise Failed(errno.errorcode[error.errno]) from None

    async def look_up(self, path: str) -> InodeT:
        inode = InodeT(ROOT)
        for name in path.split("/"):
            found = await self.call(self.ops.lookup(inode, FileNameT(name.encode()), CONTEXT))
            if not found.st_ino:
                raise Failed("ENOENT")
            inode = found.st_ino
        self.inodes[path] = inode
        return inode

    async def listing(self, path: str) -> dict[str, int]:
        """Return names and sizes."""
        listed: dict[str, int] = {}

        def reply(token: object, name: bytes, attributes: pyfuse3.EntryAttributes, next_id: int) -> bool:
            if name not in (b".", b".."):
                listed[name.decode()] = attributes.st_size
            return True

        self.monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
        handle = await self.call(self.ops.opendir(await self.look_up(path), CONTEXT))
        await self.call(self.ops.readdir(handle, 0, cast(ReaddirToken, None)))
        await self.ops.releasedir(handle)
        return listed

    async def open(self, path: str) -> pyfuse3.FileInfo:
        """Open as the kernel does: on ESTALE, look the name up once more."""
        try:
            return await self.call(self.ops.open(await self.look_up(path), FlagT(os.O_RDONLY), CONTEXT))
        except Failed as failed:
            if failed.outcome != "ESTALE":
                raise
        return await self.call(self.ops.open(await self.look_up(path), FlagT(os.O_RDONLY), CONTEXT))

    async def reply(self, handle: FileHandleT, place: int, length: int) -> bytes:
        """Copy what is read before another task runs, as pyfuse3 does: the next read uses the same memory."""
        return bytes(await self.ops.read(handle, place, length))

    async def read(self, path: str, places: list[tuple[int, int]]) -> list[bytes]:
        info = await self.open(path)
        pieces: list[bytes] = []
        try:
            for place, length in places:
                pieces.append(await self.call(self.reply(info.fh, place, length)))
                self.handed.append((path, place, pieces[-1]))
            return pieces
        finally:
            await self.ops.release(info.fh)

    async def expect(self, path: str, piece: int = 128 * 1024) -> None:
        """Read the whole file, and nothing after its end; raise Failed, Late after bytes that were wrong, or Wrong."""
        info = await self.open(path)
        place, wrong = 0, ""
        try:
            data = b"-"
            while data:
                data = await self.call(self.reply(info.fh, place, piece))
                self.handed.append((path, place, data))
                as_sent = self.stage.as_sent and self.stage.has_sent(path, place, data)
                if not (is_right(path, place, data) or as_sent):
                    wrong = wrong or f"{path} at {place}"
                place += len(data)
        except Failed as failed:
            raise Late(failed.outcome) if wrong else failed from None
        finally:
            await self.ops.release(info.fh)
        if wrong:
            raise Wrong(wrong)

    def is_as_sent(self) -> bool:
        """Return whether each file that was read is right, or all of it as the fault server has sent it."""
        wrong = {path for path, place, data in self.handed if not is_right(path, place, data)}
        return all(self.stage.has_sent(*each) for each in self.handed if each[0] in wrong)

    async def meanwhile(self) -> None:
        """Check that what was listed has its attributes, without a request."""
        for path, inode in self.inodes.items():
            requests = self.site.xnat.requests
            with trio.fail_after(GRACE):
                await self.ops.getattr(inode, CONTEXT)
                if path in CONTENTS and not self.stage.as_sent:
                    found = await self.ops.getattr(await self.look_up(path), CONTEXT)
                    assert found.st_size == len(CONTENTS[path]), f"{path} is shown with {found.st_size} bytes"
            assert self.site.xnat.requests == requests


class Lister(Reader):
    async def prepare(self) -> None:
        await self.site.xnat.log_in()

    async def run(self) -> None:
        listed = await self.listing(SERIES)
        if listed != {name: len(content) for name, content in IMAGES.items()}:
            raise Wrong(f"{len(listed)} names")

    async def meanwhile(self) -> None:
        """Check nothing: nothing was listed."""


class SmallReader(Reader):
    async def prepare(self) -> None:
        await self.listing(FOLDER)

    async def run(self) -> None:
        await self.expect(f"{FOLDER}/small.bin")


class BigReader(Reader):
    async def prepare(self) -> None:
        await self.listing(FOLDER)

    async def run(self) -> None:
        await self.expect(f"{FOLDER}/big.bin", MiB)


class Seeker(Reader):
    async def prepare(self) -> None:
        await self.listing(FOLDER)

    async def run(self) -> None:
        """Read one piece; raise Late where it is wrong and a reader that goes on gets an error before the end."""
        (piece,) = await self.read(f"{FOLDER}/big.bin", [(PLACE, PIECE)])
        if piece != BIG[PLACE : PLACE + PIECE]:
            try:
                await self.to_the_end()
            except Failed as failed:
                raise Late(failed.outcome) from None
            raise Wrong(f"at {PLACE}")

    def is_as_sent(self) -> bool:
        """Return whether each piece is right, or as sent: pieces come over several connections."""
        return all(is_right(*each) or self.stage.has_sent(*each) for each in self.handed)

    async def to_the_end(self) -> None:
        await self.read(f"{FOLDER}/big.bin", [(PLACE, PIECE), *((place, MiB) for place in range(0, len(BIG), MiB))])

    async def afterwards(self) -> None:
        again = BigReader(self.stage, self.monkeypatch)
        async with again.opened():
            await again.prepare()
            await again.run()


class UnrangedSeeker(Seeker):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        site = self.stage.app.site
        site.ranges = False
        try:
            async with super().opened():
                yield
        finally:
            site.ranges = True


class Walker(Reader):
    async def prepare(self) -> None:
        await self.listing(SERIES)

    async def run(self) -> None:
        for name in IMAGES:
            await self.expect(f"{SERIES}/{name}")

    async def meanwhile(self) -> None:
        """Check nothing: other readers may wait for its tar."""


@dataclass
class Quiet:
    """A progress display that shows nothing."""

    files: list[PurePosixPath] = field(default_factory=list)

    def begin(self, files: int, size: int) -> None:
        """Show nothing."""

    def advance(self, size: int) -> None:
        """Show nothing."""

    def done(self, place: PurePosixPath) -> None:
        self.files.append(place)


class Client(Program):
    """A command of xnatctl."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with open_xnat(self.stage.config(), Credentials(USER, PASSWORD)) as xnat:
            self.xnat: Xnat = xnat
            yield

    async def call(self, asked: Awaitable[T]) -> T:
        try:
            with trio.fail_after(2 * self.stage.timeout + GRACE):  # what it does, and a look at what has come of it
                return await asked
        except XnatError as error:
            raise Failed(f"exit {exit_status(error)}", str(error)) from None


class LogIn(Client):
    async def run(self) -> None:
        await self.call(self.xnat.log_in())


class Uploader(Client):
    async def prepare(self) -> None:
        await self.xnat.log_in()
        self.path = self.stage.directory / "sent.bin"
        self.path.write_bytes(UPLOADED)

    async def run(self) -> None:
        where, files = ("experiments", EXPERIMENT), resources.find(self.path)
        target = resources.ResourceTarget(self.xnat, where, self.stage.name)
        sending = resources.upload(target, files, overwrite=False, progress=Quiet())
        report = await self.call(sending)
        if report.failed:
            raise Failed("exit 1", str(report.failed))

    def stored(self) -> list[bytes]:
        among = self.stage.app.archive.experiments[EXPERIMENT].resources
        return [bytes_of(entry) for each in among if each.label == self.stage.name for entry in each.entries]

    async def afterwards(self) -> None:
        """Check that it was not stored, or stored unchanged; the same command again has it there, once."""
        assert self.stored() in ([], [UPLOADED])
        await super().afterwards()
        assert self.stored() == [UPLOADED]


class Archiver(Client):
    content = images("1.2.840.6")

    async def prepare(self) -> None:
        await self.xnat.log_in()
        found = await self._waiting()
        if found is None and not self.archived():
            self._receive()
            found = await self._waiting()
        self.waiting = found

    async def run(self) -> None:
        if self.waiting is not None:
            await self.call(prearchive.archive(self.xnat, self.waiting))

    async def _waiting(self) -> PrearchiveSession | None:
        rows = [row for row in await self.xnat.prearchive("P") if row.name == self.stage.name]
        return rows[0] if rows else None

    def _receive(self) -> None:
        query = f"inbody=true&dest=/prearchive/projects/P&project=P&subject=S&session={self.stage.name}"
        typed = {"Content-Type": "application/zip"}
        with httpx.Client(base_url=self.stage.direct, auth=(USER, PASSWORD), timeout=60) as http:
            uri = http.post(f"/data/services/import?{query}", content=zip_of(self.content), headers=typed).text.strip()
            assert http.post(f"{uri}?action=commit").status_code in (200, 301)

    def archived(self) -> list[Experiment]:
        return [each for each in self.stage.app.archive.experiments.values() if each.label == self.stage.name]

    async def afterwards(self) -> None:
        """Check that it is in one of both places; the same command again has it in the archive, once and whole."""
        here = [each for each in self.stage.app.writing.prearchive.sessions if each.folder == self.stage.name]
        assert len(here) + len(self.archived()) == 1
        await super().afterwards()
        (session,) = self.archived()
        stored = [bytes_of(e) for scan in session.scans for r in scan.resources for e in r.entries]
        assert sorted(stored) == sorted(self.content.values())


def is_right(path: str, place: int, data: bytes) -> bool:
    """Return whether a file has these bytes there; without any, whether this is its end."""
    content = CONTENTS[path]
    return content[place : place + len(data)] == data if data else place == len(content)


def bytes_of(entry: Entry) -> bytes:
    assert isinstance(entry.content, bytes | Path)
    return entry.content if isinstance(entry.content, bytes) else entry.content.read_bytes()


PROGRAMS: dict[str, type[Program]] = {
    "list": Lister,
    "small": SmallReader,
    "big": BigReader,
    "seek": Seeker,
    "unranged": UnrangedSeeker,
    "tar": Walker,
    "login": LogIn,
    "upload": Uploader,
    "archive": Archiver,
}
