"""Check a mountpoint, find the process that serves it, and unmount it, all without FUSE.

The command uses this module before it starts the daemon, so nothing is imported that takes long: neither pyfuse3 nor
trio.
"""

import errno
import hashlib
import importlib.util
import os
import select
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from xnatfs.common.errors import FuseMissing, MountpointError
from xnatfs.common.files import write_private
from xnatfs.common.locks import holder, lock_soon, open_lock
from xnatfs.common.mountinfo import Mount, file_system, mount_on
from xnatfs.settings.config import cache_home
from xnatfs.settings.credentials import for_children

KIND = "fuse.xnatfs"
TRIGGER_KIND = "autofs"  # of an automounter, on which it expects the mount

# Tests whether a mount answers. Not by stat(2), which the kernel answers for a dead mount while attributes are fresh.
PROBE = """
import os, sys
try:
    os.statvfs(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""
# How long a mount may take to answer the probe, in seconds: a live one answers from memory.
PROBE_SECONDS = 5.0


def check_fuse() -> None:
    """Raise FuseMissing unless this machine can mount."""
    if sys.platform != "linux":
        raise FuseMissing("xnatfs mount needs Linux: the Vagrantfile makes a machine; xnatctl works here")
    if importlib.util.find_spec("pyfuse3") is None:
        install = "pip install 'xnatfs[mount]' (it needs gcc, python3-dev, pkgconf and libfuse3-dev)"
        raise FuseMissing(f"the package pyfuse3 is missing: {install}")
    check_device()
    if shutil.which("fusermount3") is None:
        raise FuseMissing("fusermount3 is missing: install the package fuse3")


def check_device() -> None:
    """Raise FuseMissing unless this user may open /dev/fuse."""
    if not Path("/dev/fuse").exists():
        raise FuseMissing("/dev/fuse is missing: load the kernel module (modprobe fuse), or allow it in the container")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise FuseMissing("/dev/fuse may not be opened by this user: it needs mode 0666 or your group")


def check_mountpoint(mountpoint: Path, source: str = "") -> None:
    """Raise MountpointError unless this is an empty, writable directory that nothing is mounted on.

    A dead mount of this user with the same `source`, the URL of the server, passes: `clear_dead` removes it. So does an
    automounter's trigger: the mount goes on top of it.
    """
    mounted = mount_on(mountpoint)
    if mounted is not None and is_dead(mountpoint, mounted):
        if mounted.source == source:
            return
        what = f"a dead mount of {mounted.source}"
        raise MountpointError(f"{mountpoint} holds {what}: remove it with 'xnatfs umount {mountpoint}'")
    if mounted is not None and mounted.kind != TRIGGER_KIND:
        raise MountpointError(f"{mountpoint} is a mountpoint already: unmount it first, or take another directory")
    check_directory(mountpoint)
    if not os.access(mountpoint, os.W_OK):
        raise MountpointError(f"{mountpoint} may not be written to by this user, which mounting needs")


def is_trigger(mountpoint: Path) -> bool:
    """Return whether the path is a trigger of an automounter, or in the directory of one, that waits for a mount.

    The kernel lets the processes of the automounter's process group in, and all others wait for the mount; see
    Documentation/filesystems/autofs.rst of Linux.
    """
    return file_system(mountpoint) == TRIGGER_KIND


def check_directory(mountpoint: Path) -> None:
    """Raise MountpointError unless this is an empty directory."""
    try:
        entries = os.listdir(mountpoint)
    except FileNotFoundError:
        raise MountpointError(f"{mountpoint} does not exist: make the directory first, or give --mkdir") from None
    except NotADirectoryError:
        raise MountpointError(f"{mountpoint} is not a directory") from None
    except PermissionError:
        raise MountpointError(f"{mountpoint} may not be read by this user") from None
    except OSError as error:
        raise MountpointError(f"{mountpoint} cannot be used: {error.strerror}") from None
    if entries:
        raise MountpointError(f"{mountpoint} is not empty: take an empty directory")


def is_mounted(mountpoint: Path, source: str) -> bool:
    """Return whether a mount of this user and source, that is not dead, is on the mountpoint."""
    mounted = mount_on(mountpoint)
    if mounted is None or (mounted.kind, mounted.owner, mounted.source) != (KIND, os.getuid(), source):
        return False
    return not is_dead(mountpoint, mounted)


def is_dead(mountpoint: Path, mounted: Mount) -> bool:
    """Return whether this is a mount of xnatfs and of this user whose process has ended without unmounting it.

    A mount of another user is never touched. A mount of this user is probed if no process is known to serve it: the
    kernel then answers ENOTCONN by itself, or ECONNABORTED to a request that was pending when the process ended. A
    live process that does not answer may block the caller for ever, so a child process probes the mount.
    """
    if mounted.kind != KIND or mounted.owner != os.getuid():
        return False
    if (serving := serving_process(mountpoint)) is not None:
        os.close(serving)
        return False
    child = subprocess.Popen(
        [sys.executable, "-ISE", "-c", PROBE, mountpoint], stderr=subprocess.DEVNULL, env=for_children()
    )
    try:
        return child.wait(PROBE_SECONDS) in (errno.ENOTCONN, errno.ECONNABORTED)
    except subprocess.TimeoutExpired:
        child.kill()
        with suppress(subprocess.TimeoutExpired):  # a child that hangs in the kernel does not end
            child.wait(0.1)
        return False


def clear_dead(mountpoint: Path, source: str) -> bool:
    """Unmount a dead mount of this user and source; return whether there was one. Raises MountpointError."""
    mounted = mount_on(mountpoint)
    if mounted is None or mounted.source != source or not is_dead(mountpoint, mounted):
        return False
    unmount(mountpoint, dead=mounted)
    return True


def unmount(mountpoint: Path, dead: Mount | None = None) -> None:
    """Unmount a mountpoint, or the dead mount given, even if programs still use that. Raises MountpointError.

    A device is never mounted twice, so the comparison with `dead` shows whether a live mount has taken its place.
    """
    if dead is not None and mount_on(mountpoint) != dead:
        return
    done = _fusermount("-u", mountpoint)
    if done.returncode and dead is not None and mount_on(mountpoint) == dead:
        done = _fusermount("-u", "-z", mountpoint)
    if done.returncode:
        raise MountpointError(f"{mountpoint} cannot be unmounted: {_fusermount_says(done.stderr)}")
    if dead is not None:
        _registration(mountpoint).unlink(missing_ok=True)
        control_socket(mountpoint).unlink(missing_ok=True)


def _fusermount(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["fusermount3", *arguments], capture_output=True, text=True, env=for_children())
    except FileNotFoundError:
        raise FuseMissing("fusermount3 is missing: install the package fuse3") from None


def _fusermount_says(text: str) -> str:
    last = text.strip().rpartition("\n")[2]
    busy = "busy" in last.lower()
    return "a program has a file or its working directory in it" if busy else last.removeprefix("fusermount3: ")


@asynccontextmanager
async def one_at_a_time(mountpoint: Path, wait: float) -> AsyncIterator[None]:
    """Keep other processes of this user from mounting there between the check of the mountpoint and the mount.

    Raises MountpointError if another process holds the lock for longer than `wait` seconds. Each mountpoint has its
    own lock: a stopped `xnatfs mount` blocks no mount elsewhere.
    """
    path = _registration(mountpoint).with_suffix(".lock")
    with open_lock(path) as descriptor:
        if not await lock_soon(descriptor, wait):
            raise MountpointError(f"{mountpoint} is being mounted on by {holder(path)}: let that end, or kill it")
        yield


@contextmanager
def registered(mountpoint: Path) -> Iterator[None]:
    """Record which process serves the mountpoint, so that `umount` can wait for its end."""
    path, text = _registration(mountpoint), f"{os.getpid()} {_started(os.getpid())}"
    write_private(path, text)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if path.read_text() == text:  # else another process serves it by now
                path.unlink()


def serving_process(mountpoint: Path) -> int | None:
    """Open a pidfd (pidfd_open(2)) of the other process that serves the mountpoint, readable once that has ended.

    Return None if no other process does.
    """
    try:
        process, started = _registration(mountpoint).read_text().split()
        if int(process) == os.getpid():
            return None
        descriptor = os.pidfd_open(int(process))
    except (OSError, ValueError):
        return None
    with suppress(OSError):
        # Exclude another process that has its number now, and a process that has ended but was not reaped.
        if _started(int(process)) == started and not select.select([descriptor], [], [], 0)[0]:
            return descriptor
    os.close(descriptor)
    return None


def _started(process: int) -> str:
    """Return when a process began, in clock ticks since the machine's boot; see proc_pid_stat(5)."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]


def control_socket(mountpoint: Path) -> Path:
    """Return the path of the socket on which the process that serves a mountpoint takes requests."""
    return _registration(mountpoint).with_suffix(".sock")


def _registration(mountpoint: Path) -> Path:
    # One per host: several hosts may share a home directory, and their processes are not visible here.
    name = os.fsencode(f"{os.uname().nodename}\n{mountpoint}")
    return cache_home() / "mounts" / hashlib.sha256(name).hexdigest()[:16]
