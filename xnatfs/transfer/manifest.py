"""Record which session a download folder holds and which files were written, in `.xnatctl`.

`session.json` names the session that the folder belongs to. `files.jsonl` has a line for each file as it was written:
its path, length, times, inode and MD5. A file whose inode and times are those of its line was not touched since; only
others are read to find out what they hold. `lock` is held (flock) while a command writes into the folder.

If a line is lost, as by a copy to another disk, that file is read again; if the server's file has changed by then, the
local one counts as edited and is kept. An account that may not write the record goes on without it.
"""

import errno
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG
from typing import Self

import trio

from xnatfs.common.errors import Conflict
from xnatfs.common.files import O_BINARY, O_NOFOLLOW, O_NONBLOCK
from xnatfs.common.locks import holder, lock
from xnatfs.common.sanitize import loads

FOLDER = ".xnatctl"
# Seconds between two attempts at the lock: not noticed by a person, and no load for a file server.
LOCK_POLL_SECONDS = 0.2
# Seconds that the holder of the lock may be stopped (Ctrl-Z) until a command that waits for the lock gives up.
STOPPED_TIMEOUT_SECONDS = 10.0
# Errors of flock on a file system without locks. Drafts have unique names there, too, so no bytes are lost.
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
# Errors for a record that another account has made, or that is on a disk mounted read-only.
NOT_OURS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


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
    """State of a file when it was written or last verified."""

    size: int
    mtime_ns: int
    ctime_ns: int  # which no program can set: an edit that restores the other times shows here
    inode: int
    md5: str
    stamp: str = ""  # Last-Modified, of a file without a digest on the server

    @classmethod
    def from_stat(cls, status: os.stat_result, md5: str, stamp: str = "") -> Self:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, md5, stamp)

    def is_untouched(self, status: os.stat_result) -> bool:
        """Return whether a file of this status is the one that was written, with the bytes that were."""
        return S_ISREG(status.st_mode) and self == self.from_stat(status, self.md5, self.stamp)


class Manifest:
    """Record of one download folder. Its content never makes reading it fail: an unreadable line is ignored."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.directory = out / FOLDER
        self.writable = False
        self.locked = False
        self._log: int | None = None
        self._lines = 0  # in the log
        self._files: dict[str, Written] = {}

    def owner(self) -> Owner | None:
        """Return the session that the folder belongs to; None without a record. Raises Conflict for a damaged one."""
        path = self.directory / "session.json"
        try:
            cells = loads(_read(path))
            return Owner(*(str(cells[key]) for key in ("server", "session", "project", "label")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            text = f"{path} cannot be read, and states whose files these are"
            raise Conflict(f"{text}: give another --out, or remove it if they are of this session") from None

    def check_owner(self, owner: Owner, *, force: bool = False) -> bool:
        """Return whether the folder is recorded as this session's. Raises Conflict if it is another one's.

        With `force`, a session of this ID and label may be on a server of another name, which has moved.
        """
        found = self.owner()
        if found is None or found.is_same(owner):
            return found is not None
        if (found.session, found.label) != (owner.session, owner.label):
            raise Conflict(f"{self.out} holds {found}, not {owner}: give another --out")
        if not force:
            text = f"{self.out} holds {found}, not that of {owner.server}"
            raise Conflict(f"{text}: give another --out, or --force if it is the same server")
        return True

    def claim(self, owner: Owner) -> None:
        """Record the session that the folder belongs to."""
        if self.writable and self.owner() != owner:
            self._replace("session.json", json.dumps(asdict(owner), indent=2) + "\n")

    def forget(self) -> None:
        """Drop all records, so that no file counts as written for this session."""
        self._files.clear()

    def load(self) -> None:
        """Read the records of written files. Raises OSError if something else is in their place."""
        try:
            lines = _read(self.directory / "files.jsonl").splitlines()
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ELOOP):  # something else is in its place
                raise
            return
        self._lines = len(lines)
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
        """Append a file's record; it survives a killed process."""
        self._files[str(place)] = written
        if not self.writable:
            return
        if self._log is None:
            # O_NONBLOCK: a pipe in its place is an error, and does not block.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_BINARY
            self._log = os.open(self.directory / "files.jsonl", flags, 0o666)
            os.write(self._log, b"\n")  # the line before may have been cut short
        os.write(self._log, _line(str(place), written).encode())
        self._lines += 1

    def compact(self) -> None:
        """Rewrite the log with one record per file if half of its records are old.

        Not without the lock, since another command may add records.
        """
        if self._log is not None and self.locked and self._lines > 2 * len(self._files):
            self.close()  # Windows replaces no file that is open
            self._replace("files.jsonl", "".join(_line(place, each) for place, each in self._files.items()))

    def close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _replace(self, name: str, text: str) -> None:
        draft = self.directory / f"{name}.{secrets.token_hex(8)}"
        try:
            with open(draft, "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # an empty record after a power failure would hide the owner of the folder
            os.replace(draft, self.directory / name)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _line(place: str, written: Written) -> str:
    return json.dumps({"path": place, **{name: getattr(written, name) for name in Written.__slots__}}) + "\n"


def _read(path: Path) -> bytes:
    """Return the content of a regular file, and of nothing that another account has put in its place."""
    descriptor = os.open(path, os.O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_BINARY)
    with open(descriptor, "rb") as file:
        if not S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return file.read()


def _open_lock(directory: Path) -> int | None:
    """Open the lock, and create it if need be; return None if this account may not write the record."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not S_ISDIR(os.lstat(directory).st_mode):  # a link, whose target must not be written to
            raise FileExistsError(errno.EEXIST, "is not a directory", str(directory))
        return os.open(directory / "lock", os.O_RDWR | os.O_CREAT | O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno not in NOT_OURS or not directory.parent.is_dir():
            raise
        return None


@asynccontextmanager
async def opened(out: Path, on_wait: Callable[[], None]) -> AsyncIterator[Manifest]:
    """Open a folder's record under an exclusive lock; call `on_wait` once if another command holds it.

    Raises OSError if the folder cannot be created, Conflict if the other command is stopped and stays so.
    """
    manifest = Manifest(out)
    descriptor = _open_lock(manifest.directory)
    try:
        if descriptor is not None:
            manifest.writable = True
            manifest.locked = await _lock(descriptor, manifest.directory / "lock", on_wait)
        await trio.to_thread.run_sync(manifest.load)
        try:
            yield manifest
            manifest.compact()
        finally:
            manifest.close()
    finally:
        if descriptor is not None:
            os.close(descriptor)


async def _lock(descriptor: int, path: Path, on_wait: Callable[[], None]) -> bool:
    """Acquire the lock, however long its holder works; return False if the file system has no locks."""
    waited, seen_going_on = False, trio.current_time()
    while True:
        try:
            if lock(descriptor):
                return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
        if not waited:
            waited = True
            on_wait()
        if not (other := holder(path)).is_stopped:
            seen_going_on = trio.current_time()
        elif trio.current_time() - seen_going_on > STOPPED_TIMEOUT_SECONDS:
            raise Conflict(f"{path.parent.parent} is locked by {other}: let it go on (fg), or kill it")
        await trio.sleep(LOCK_POLL_SECONDS)
