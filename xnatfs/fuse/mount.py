"""The daemon: a site, mounted until it is unmounted or told to end.

pyfuse3 has one session per process, so this is called once in a process.
"""

import errno
import hashlib
import logging
import os
import resource
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio

from xnatfs import __version__
from xnatfs.config import Config, cache_home
from xnatfs.credentials import Credentials
from xnatfs.errors import FuseMissing, MountpointError
from xnatfs.fuse.operations import Operations, OperationsWithXattrs, Ownership
from xnatfs.sessions import SessionStore
from xnatfs.site import Site, open_site
from xnatfs.tree import Root

log = logging.getLogger(__name__)

# Each READ that waits for the network holds a task, and `stat` must find one free beside 200 readers.
MOST_REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How the mount is shown on this machine."""

    mountpoint: Path
    ownership: Ownership = field(default_factory=lambda: Ownership(os.getuid(), os.getgid()))
    allow_other: bool = False
    xattrs: bool = True
    extra: frozenset[str] = frozenset()  # passed on to the kernel: nosuid and the like


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
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(str(os.getpid()))
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


async def mount(
    config: Config,
    credentials: Credentials | None,
    sessions: SessionStore | None,
    options: MountOptions,
    ready: Callable[[], None],
) -> None:
    """Mount the server, call `ready` when the mount answers, and return when it is unmounted or ended by a signal.

    A session out of `sessions` is left alive at the end, for whoever shares it; one of our own is closed.
    Raises XnatError where it cannot begin; nothing is left mounted then.
    """
    check_fuse()
    check_mountpoint(options.mountpoint)
    _allow_open_files()
    with (
        registered(options.mountpoint),
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
    ):
        async with open_site(config, credentials, sessions=sessions) as site:
            await site.xnat.log_in()
            site.stay()
            log.info(
                "xnatfs %s: %s as %s on %s, cache %s",
                __version__,
                config.url,
                site.xnat.login.username,
                options.mountpoint,
                config.cache_dir,
            )
            kind = OperationsWithXattrs if options.xattrs else Operations
            operations = kind(Root(site), options.ownership)
            _begin(operations, config, options)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_end_by_signal, signals)
                    nursery.start_soon(_when_running, ready)
                    await pyfuse3.main(max_tasks=MOST_REQUESTS)
                    nursery.cancel_scope.cancel()
            finally:
                pyfuse3.close(unmount=True)
                _log_end(site)


def _allow_open_files() -> None:
    """Each open file holds a descriptor here: allow as many as the system lets this user have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _begin(operations: Operations, config: Config, options: MountOptions) -> None:
    # What libfuse takes by default, but that `ro` refuses every change in the kernel already.
    flags = {*pyfuse3.default_options, "ro", "nosuid", "nodev", "subtype=xnatfs", f"fsname={_escaped(config.url)}"}
    if options.allow_other:
        flags.add("allow_other")
    try:
        pyfuse3.init(operations, str(options.mountpoint), flags | options.extra)
    except RuntimeError as error:
        hint = " (allow_other needs user_allow_other in /etc/fuse.conf)" if options.allow_other else ""
        raise MountpointError(f"{options.mountpoint} cannot be mounted on: {error}{hint}") from None


def _escaped(url: str) -> str:
    """A URL as the value of a mount option, where a comma ends and a backslash escapes."""
    return url.replace("\\", "\\\\").replace(",", "\\,")


async def _end_by_signal(signals: AsyncIterator[int]) -> None:
    async for number in signals:
        log.info("ending, because of %s", signal.Signals(number).name)
        pyfuse3.terminate()


async def _when_running(ready: Callable[[], None]) -> None:
    """pyfuse3.main has begun to read requests by the time this is run a second time."""
    await trio.lowlevel.checkpoint()
    ready()


def _log_end(site: Site) -> None:
    content = site.content.stats
    log.info(
        "unmounted after %.0f s: %d requests, %d logins, %d files from the cache, %d fetched (%d bytes)",
        time.time() - site.opened_at,
        site.xnat.requests,
        site.xnat.login.logins,
        content.hits,
        content.misses,
        content.fetched,
    )
