"""The place of a mount: whether one can be there, and which process serves it. What it takes no FUSE to know.

The command looks here before it starts the daemon, so nothing is imported that takes long: neither pyfuse3 nor trio.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xnatfs.config import cache_home
from xnatfs.errors import FuseMissing, MountpointError
from xnatfs.sessions import write_private


def check_fuse() -> None:
    """Raise FuseMissing unless this machine can mount."""
    if not Path("/dev/fuse").exists():
        raise FuseMissing("/dev/fuse is missing: load the kernel module (modprobe fuse), or allow it in the container")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise FuseMissing("/dev/fuse may not be opened by this user: it needs mode 0666 or your group")
    if shutil.which("fusermount3") is None:
        raise FuseMissing("fusermount3 is missing: install the package fuse3")


def check_mountpoint(mountpoint: Path) -> None:
    """Raise MountpointError unless this is an empty directory of ours that nothing is mounted on."""
    try:
        entries = os.listdir(mountpoint)
    except FileNotFoundError:
        raise MountpointError(f"{mountpoint} does not exist: make the directory first") from None
    except NotADirectoryError:
        raise MountpointError(f"{mountpoint} is not a directory") from None
    except PermissionError:
        raise MountpointError(f"{mountpoint} may not be read by this user") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            text = f"{mountpoint} holds a dead mount: remove it with 'fusermount3 -u {mountpoint}'"
            raise MountpointError(text) from None
        raise MountpointError(f"{mountpoint} cannot be used: {error.strerror}") from None
    if mountpoint.is_mount():
        raise MountpointError(f"{mountpoint} is a mountpoint already: unmount it first, or take another directory")
    if not os.access(mountpoint, os.W_OK):
        raise MountpointError(f"{mountpoint} may not be written to by this user, which mounting needs")
    if entries:
        raise MountpointError(f"{mountpoint} is not empty: take an empty directory")


@contextmanager
def registered(mountpoint: Path) -> Iterator[None]:
    """Leave word which process serves the mountpoint, so that `umount` can wait for its end."""
    path = _registration(mountpoint)
    write_private(path, str(os.getpid()))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def serving_process(mountpoint: Path) -> int | None:
    """A descriptor of the process that serves the mountpoint, readable once it has ended (pidfd_open(2))."""
    try:
        process = int(_registration(mountpoint).read_text())
        descriptor = os.pidfd_open(process)
    except (OSError, ValueError):
        return None
    if b"xnatfs" in Path(f"/proc/{process}/cmdline").read_bytes():  # and no other that has its number now
        return descriptor
    os.close(descriptor)
    return None


def _registration(mountpoint: Path) -> Path:
    return cache_home() / "mounts" / hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
