"""Acquire locks between processes, flock(2), with a timeout.

A process that is stopped (Ctrl-Z) keeps its locks for as long as it is stopped. So a lock is polled rather than waited
for in the kernel, and a caller that does not get it in time goes on without what it protects.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xnatfs.common.files import make_private

HELD: type[OSError]  # the error for a lock that another holds
try:
    import fcntl

    HELD = BlockingIOError
except ImportError:  # on Windows
    import msvcrt

    HELD = PermissionError

# Reports locks that were not acquired in time. Even a command that logs nothing shows these to its user.
log = logging.getLogger(__name__)

# Seconds between two attempts: most holders take a millisecond, a login 50 ms to seconds.
POLL_SECONDS = 0.05


@contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """Open a lock file for this user, creating it and its directory if need be. Raises OSError."""
    make_private(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def lock(fd: int, *, is_shared: bool = False) -> bool:
    """Try to acquire a flock; an open file description has one lock, so two of one process conflict as well.

    On Windows it is a lock on the first byte, and never shared: it is for files without content.
    """
    try:
        if HELD is BlockingIOError:
            fcntl.flock(fd, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        else:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except HELD:
        return False
    return True


def lock_within(fd: int, seconds: float) -> bool:
    """Acquire an exclusive lock, blocking this thread for up to `seconds`; return False if it is still held then."""
    until = time.monotonic() + seconds
    while not lock(fd):
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_SECONDS)
    return True


async def lock_soon(fd: int, seconds: float) -> bool:
    """Acquire an exclusive lock as `lock_within` does, without blocking the event loop."""
    import trio  # here, because commands that only look for a session do without

    until = trio.current_time() + seconds
    while True:
        if lock(fd):
            return True
        if trio.current_time() >= until:
            return False
        await trio.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lock; 0 where it is unknown, as one of another host or container is."""

    process: int = 0

    @property
    def is_stopped(self) -> bool:
        return self._stat()[1] in ("T", "t")

    def __str__(self) -> str:
        if not self.process:
            return "another process"
        name = self._stat()[0]
        return f"process {self.process} ({name}{', which is stopped' if self.is_stopped else ''})"

    def _stat(self) -> tuple[str, str]:
        """Return its name and state; see proc_pid_stat(5)."""
        try:
            name, _, rest = Path(f"/proc/{self.process}/stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            return "ended", ""
        return name, rest.split()[0]


def holder(path: Path) -> Holder:
    """Find the process that holds an exclusive lock on a file; see proc_locks(5)."""
    with suppress(OSError, ValueError, IndexError):
        inode = os.stat(path).st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            cells = line.split()
            # The cells of a waiting process are shifted by a "->". Devices are not compared: some disks have several.
            if cells[3] == "WRITE" and cells[5].rpartition(":")[2] == str(inode) and int(cells[4]) > 0:
                return Holder(int(cells[4]))
    return Holder()
