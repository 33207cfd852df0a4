"""Inspect local files, and write files under provisional names until they are whole and on the disk."""

import ctypes
import enum
import errno
import hashlib
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from stat import S_ISREG

from xnatfs.common.files import O_BINARY, sync_data
from xnatfs.transfer.manifest import Written

DRAFT_SUFFIX = ".part"
# Names of drafts: a hash of the file's name, and a random part for the command. Earlier versions left the second out.
DRAFT_NAMES = re.compile(r"\.[0-9a-f]{16}(\.[0-9a-f]{16})?\.part")

# Bytes that are read and hashed at a time.
DRAFT_HASH_BYTES = 2**20
DRAFT_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | O_BINARY
_COMMAND = secrets.token_hex(8)

# Characters that Windows accepts in no name, and the names of its devices, which count with any extension.
_NOT_ON_WINDOWS = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[. ]$|%(?=[0-9A-F]{2})')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\.|$)", re.IGNORECASE)


def windows_name(name: str) -> str:
    """Escape what Windows does not accept in a name: each such character as a percent sign and two hex digits."""
    escaped = _NOT_ON_WINDOWS.sub(lambda match: f"%{ord(match[0]):02X}", name)
    return f"%{ord(name[0]):02X}{escaped[1:]}" if _DEVICES.match(name) else escaped


def local_name(name: str) -> str:
    """Return the name under which this system stores a file of the tree."""
    return windows_name(name) if sys.platform == "win32" else name


class LocalState(enum.Enum):
    """State of the local file relative to the server and the record."""

    ABSENT = enum.auto()
    RIGHT = enum.auto()  # has the digest that the server states
    OURS = enum.auto()  # has the bytes that an earlier run wrote
    OTHER = enum.auto()  # has bytes of unknown origin: edited, or of another program


class Edited(Exception):
    """The file was edited during the download of its replacement."""


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def inspect(target: Path, digest: str, written: Written | None) -> tuple[LocalState, Written | None]:
    """Return how a local file relates to the server, and its state; it is read only if not as it was written."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return LocalState.ABSENT, None
    if not S_ISREG(status.st_mode):
        raise FileExistsError(errno.EEXIST, "exists already, and is not a regular file", str(target))
    held = written.md5 if written and written.is_untouched(status) else md5(target)
    now = Written.from_stat(status, held)
    if held == digest:
        return LocalState.RIGHT, now
    if written and held == written.md5:
        return LocalState.OURS, now
    # A link is replaced, and its target stays. An empty file may be left by a power failure, and holds no work.
    return (LocalState.ABSENT, None) if target.is_symlink() or not now.size else (LocalState.OTHER, now)


def fingerprint(path: Path) -> tuple[int, ...]:
    """Return what changes when a file, or the link in its place, is written or replaced; empty if it is absent."""
    try:
        status = os.lstat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_edited(path: Path, before: tuple[int, ...], digest: str) -> bool:
    """Return whether a file changed since `before` and holds other bytes than those of `digest`."""
    if fingerprint(path) in (before, ()):  # a removed file has nothing to lose
        return False
    try:
        return md5(path) != digest
    except FileNotFoundError:  # a dangling link, unless it has been removed by now
        return path.is_symlink()


class Draft:
    """A file that is written beside its target, and gets its name once it is whole and on the disk.

    Its own name is short, for file systems that limit names. No other command uses it, which matters where locks do not
    work: so no command renames the unfinished draft of another.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.directory, name = os.path.split(target)
        self.size = 0
        self._digest = hashlib.md5(usedforsecurity=False)
        draft = f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.{_COMMAND}{DRAFT_SUFFIX}"
        self.path = os.path.join(self.directory, draft)
        try:
            self._descriptor = os.open(self.path, DRAFT_FLAGS, 0o666)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, DRAFT_FLAGS, 0o666)
        self._inode = 0

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: bytes) -> None:
        """Write all of the data, and add them to the digest."""
        self._digest.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def hash_written(self, end: int) -> None:
        """Add to the digest what another process has written, up to an offset."""
        while self.size < end:
            data = os.pread(self._descriptor, min(DRAFT_HASH_BYTES, end - self.size), self.size)
            if not data:
                raise OSError(errno.EIO, "was cut short while it was written", str(self.target))
            self._digest.update(data)
            self.size += len(data)

    def md5(self) -> str:
        """Return the MD5 of what has been written."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Write the file to the disk: a power failure must not leave less of it under the final name."""
        sync_data(self._descriptor)

    def close(self, modified: float | None = None) -> None:
        """Set the time of the file and close it."""
        self._inode = os.fstat(self._descriptor).st_ino
        os.close(self._descriptor)
        self._descriptor = -1
        if modified is not None:
            os.utime(self.path, (time.time(), modified))

    def publish(self, before: tuple[int, ...] | None) -> os.stat_result:
        """Give the file, which must be closed, its name; return its status.

        Raises Edited if the target is not as `before` and holds other bytes; None replaces any.
        """
        if before is not None and is_edited(self.target, before, self.md5()):
            raise Edited
        os.replace(self.path, self.target)
        status = os.lstat(self.target)  # read after the rename, which changes it
        if status.st_ino != self._inode:
            raise Edited
        return status

    def discard(self) -> None:
        """Close and remove the file; do nothing once it has its name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        Path(self.path).unlink(missing_ok=True)


def remove_drafts(directories: Iterable[Path]) -> None:
    """Remove the drafts of killed commands; the caller holds the lock, so no other command is writing one."""
    for directory in directories:
        try:
            found = [path for path in directory.iterdir() if DRAFT_NAMES.fullmatch(path.name)]
        except (OSError, UnicodeError):
            continue
        for path in found:
            path.unlink(missing_ok=True)


def sync_drafts(drafts: Sequence[Draft]) -> None:
    """Write closed drafts to the disk: all of a file system by one syncfs(2), or one by one where that is missing."""
    if sys.platform != "linux":
        for draft in drafts:
            _sync(draft.path, os.O_RDWR, sync_data)
        return
    for directory in {os.stat(draft.directory).st_dev: draft.directory for draft in drafts}.values():
        _sync(directory, os.O_RDONLY | os.O_DIRECTORY, _sync_file_system)


def _sync(path: str, flags: int, sync: Callable[[int], None]) -> None:
    descriptor = os.open(path, flags)
    try:
        sync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


def _sync_file_system(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
