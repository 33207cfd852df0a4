"""Keep, beside the files of a download, whose they are and which bytes were written: the folder `.xnatctl`.

`session.json` names the session that the folder belongs to. `files.jsonl` has a line for each file as it was written:
its path, length, times, inode and MD5. A file whose inode and times are those of its line was not touched since; only
others are read to tell what they hold. `lock` is held (flock) while a command writes into the folder.

A line that is lost, as after a power failure or by a copy to another disk, costs a reading of that file, no more.
"""

import errno
import fcntl
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Self

import trio

from xnatfs.errors import Conflict
from xnatfs.untrusted import loads

FOLDER = ".xnatctl"
# Seconds between two tries for the lock: not noticed by a person, and no load for a file server.
LOCK_POLL = 0.2
# What flock says where the file system has no locks. Drafts have names of their own there, too, so no bytes are lost.
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class Owner:
    """The session that a folder holds. Its label may change, its server and accession ID do not."""

    server: str
    session: str
    project: str = ""
    label: str = ""

    def __str__(self) -> str:
        label = f" ({self.project + '/' if self.project else ''}{self.label})" if self.label else ""
        return f"session {self.session}{label} of {self.server}"

    def is_same(self, other: "Owner") -> bool:
        return (self.server, self.session) == (other.server, other.session)


@dataclass(frozen=True, slots=True)
class Written:
    """One file as it was written, or found to be right."""

    size: int
    mtime_ns: int
    ctime_ns: int  # which no program can set: an edit that restores the other times shows here
    inode: int
    md5: str
    stamp: str = ""  # Last-Modified, of a file without a digest on the server

    @classmethod
    def of(cls, status: os.stat_result, md5: str, stamp: str = "") -> Self:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, md5, stamp)

    def is_untouched(self, status: os.stat_result) -> bool:
        """Return whether a file of this status is the one that was written, with the bytes that were."""
        return S_ISREG(status.st_mode) and self == self.of(status, self.md5, self.stamp)


class Manifest:
    """The record of one download folder. Reading it never raises for what is in it: an unreadable line is none."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.directory = out / FOLDER
        self.locked = False
        self._log: int | None = None
        self._files: dict[str, Written] = {}

    def owner(self) -> Owner | None:
        """Return the session that the folder belongs to; None where no record says so."""
        try:
            cells = loads((self.directory / "session.json").read_bytes())
            return Owner(*(str(cells[key]) for key in ("server", "session", "project", "label")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def check_owner(self, owner: Owner) -> bool:
        """Return whether the folder is recorded as this session's. Raises Conflict where it is another one's."""
        found = self.owner()
        if found is not None and not found.is_same(owner):
            raise Conflict(f"{self.out} holds {found}, not {owner}: give another --out")
        return found is not None

    def claim(self, owner: Owner) -> None:
        """Record the session that the folder belongs to."""
        self._replace("session.json", json.dumps(asdict(owner), indent=2) + "\n")

    def load(self) -> None:
        """Read the lines of the files that were written."""
        try:
            lines = (self.directory / "files.jsonl").read_bytes().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                cells = loads(line)
                place = cells.pop("path")
                self._files[place] = Written(**cells)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # cut short by a crash

    def get(self, place: PurePosixPath) -> Written | None:
        return self._files.get(str(place))

    def put(self, place: PurePosixPath, written: Written) -> None:
        """Record a file. The line is on its way to the disk when this returns, so that a killed command leaves it."""
        if self._log is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._log = os.open(self.directory / "files.jsonl", flags, 0o666)
            os.write(self._log, b"\n")  # the line before may have been cut short
        self._files[str(place)] = written
        os.write(self._log, _line(str(place), written).encode())

    def compact(self) -> None:
        """Leave one line for each file, if any was added."""
        if self._log is not None:
            self._replace("files.jsonl", "".join(_line(place, each) for place, each in self._files.items()))

    def close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _replace(self, name: str, text: str) -> None:
        draft = self.directory / f"{name}.{os.getpid()}"
        draft.unlink(missing_ok=True)
        try:
            with open(draft, "x", encoding="utf-8") as file:
                file.write(text)
            os.replace(draft, self.directory / name)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _line(place: str, written: Written) -> str:
    return json.dumps({"path": place, **asdict(written)}) + "\n"


@asynccontextmanager
async def opened(out: Path, on_wait: Callable[[], None]) -> AsyncIterator[Manifest]:
    """Give the record of a download folder, made if need be, to the only command that writes there.

    Another one that does is waited for, after `on_wait` was called once. Raises OSError.
    """
    manifest = Manifest(out)
    manifest.directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(manifest.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        manifest.locked = await _lock(descriptor, on_wait)
        await trio.to_thread.run_sync(manifest.load)
        try:
            yield manifest
            manifest.compact()
        finally:
            manifest.close()
    finally:
        os.close(descriptor)


async def _lock(descriptor: int, on_wait: Callable[[], None]) -> bool:
    """Return whether it is locked by us alone; False where the file system has no locks."""
    waited = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not waited:
                waited = True
                on_wait()
            await trio.sleep(LOCK_POLL)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
