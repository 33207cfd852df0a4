"""Run the daemon: mount a site, and serve it until it is unmounted or a signal ends it.

pyfuse3 has one session per process, so `mount` is called once in a process.
"""

import contextlib
import ctypes
import logging
import math
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from xnatfs import __version__
from xnatfs.common.errors import MountpointError, Unreachable, XnatError
from xnatfs.common.garbage import keep_collections_short
from xnatfs.common.mountinfo import mount_on
from xnatfs.fuse.attributes import Ownership
from xnatfs.fuse.control.calls import control_mount
from xnatfs.fuse.diagnostics import log_state
from xnatfs.fuse.mountpoint import check_fuse, check_mountpoint, clear_dead, one_at_a_time, registered
from xnatfs.fuse.operations import Operations
from xnatfs.fuse.systemd import notify
from xnatfs.fuse.xattrs import OperationsWithXattrs
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import SessionStore
from xnatfs.site import Site, open_site
from xnatfs.tree import Root

log = logging.getLogger(__name__)

# Each READ that waits for the network holds a task, and `stat` must find one free beside 200 readers.
MOST_REQUESTS = 1000

# The kernel's read-ahead, in KiB: 128 by default. A sequential read is split into requests of up to that size, and a
# `stat` waits for those before it. DECISIONS has what was measured at 128, 256 and 1024.
READ_AHEAD_KB = 256

# mallopt(3): buffers from this size on have pages of their own, which return to the kernel with each buffer. glibc
# begins so, but takes the size of any freed buffer as the next limit; small buffers that stay then lie between large
# holes. Measured in the first four minutes of one load (scripts/stress), with at most 56 MB in use at a time: 161 MB
# resident, which did not shrink; with this limit 123, and 94 a minute later.
M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 128 * 1024


# Seconds for which a mount that may begin without its server tries to log in.
LAZY_LOGIN_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The place and the appearance of the mount on this machine."""

    mountpoint: Path
    ownership: Ownership = field(default_factory=lambda: Ownership(os.getuid(), os.getgid()))
    allow_other: bool = False
    xattrs: bool = True
    extra: frozenset[str] = frozenset()  # options passed on to the kernel, such as nosuid
    fuse_fd: int | None = None  # a descriptor of /dev/fuse that is mounted already, in another namespace
    reload: Callable[[], Credentials | None] | None = None  # finds the login anew, on SIGHUP; None: that ends the mount
    lazy: bool = False  # begin without the server


async def mount(
    config: Config,
    credentials: Credentials | None,
    sessions: SessionStore | None,
    options: MountOptions,
    ready: Callable[[], None],
) -> None:
    """Mount the server, and return when it is unmounted or a signal has ended it.

    Args:
        config: The server's URL, the cache and the timeouts.
        credentials: The login; None if only a session in `sessions` can be used.
        sessions: The sessions that programs share: theirs is left alive at the end. Without it, the session is ended.
        options: Where and how the mount appears.
        ready: Called once the mount answers.

    Raises:
        XnatError: The mount cannot begin; then nothing is left mounted.
        KeyboardInterrupt: The signal was SIGINT.
    """
    if options.fuse_fd is None:
        check_fuse()
        check_mountpoint(options.mountpoint, config.url)
    _allow_open_files()
    give_memory_back()
    with (
        registered(options.mountpoint) if options.fuse_fd is None else contextlib.nullcontext(),
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1) as signals,
    ):
        async with open_site(config, credentials, sessions=sessions) as site:
            ended: list[int] = []
            await _log_in(site, config.offline, options.lazy, signals, ended)
            if ended:
                return _check_interrupted(ended)
            site.start_background_tasks(config.offline)
            log.info(
                "xnatfs %s: %s as %s on %s, cache %s",
                __version__,
                config.url,
                site.xnat.login.username,
                options.mountpoint,
                config.cache_dir,
            )
            await _serve(site, config, options, signals, ended, ready)
            _check_interrupted(ended, f"{options.mountpoint} is unmounted")


async def _serve(
    site: Site,
    config: Config,
    options: MountOptions,
    signals: AsyncIterator[int],
    ended: list[int],
    ready: Callable[[], None],
) -> None:
    """Mount a site, and serve the kernel until the mount is gone; `ended` takes the signal that has ended it."""
    kind = OperationsWithXattrs if options.xattrs else Operations
    operations = kind(Root(site), options.ownership, pyfuse3.notify_store, pyfuse3.invalidate_inode)
    await _begin(operations, config, options)
    reload = None if options.reload is None else partial(_reload, site, options.reload)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, ended, partial(log_state, site, operations), reload)
            if options.fuse_fd is None:  # of an exec there may be many on one mountpoint
                nursery.start_soon(control_mount, site, operations, config, options.mountpoint)
            nursery.start_soon(keep_collections_short)  # of this process; the Python API runs in its user's
            nursery.start_soon(_when_running, operations, ready, options.mountpoint)
            await pyfuse3.main(max_tasks=MOST_REQUESTS)
            nursery.cancel_scope.cancel()
    finally:
        notify("STOPPING=1")
        pyfuse3.close(unmount=True)
        _log_end(site)


def _allow_open_files() -> None:
    """Raise the limit of open descriptors to the highest allowed: each open file of the mount holds one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def give_memory_back() -> None:
    """Have the C library release unused large buffers: a mount runs for weeks. For glibc only."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


async def _begin(operations: Operations, config: Config, options: MountOptions) -> None:
    # libfuse's defaults, and `ro`, with which the kernel itself refuses every change.
    flags = {*pyfuse3.default_options, "ro", "nosuid", "nodev", "subtype=xnatfs", f"fsname={_escaped(config.url)}"}
    if options.allow_other:
        flags.add("allow_other")
    if options.fuse_fd is not None:
        return pyfuse3.init(operations, f"/dev/fd/{options.fuse_fd}", flags)
    try:
        async with one_at_a_time(options.mountpoint, config.lock_timeout):
            if clear_dead(options.mountpoint, config.url):
                log.info("%s was a dead mount, its process had ended without unmounting: cleared", options.mountpoint)
            check_mountpoint(options.mountpoint)
            pyfuse3.init(operations, str(options.mountpoint), flags | {_escaped(text) for text in options.extra})
    except RuntimeError as error:
        hint = " (allow_other and allow_root need user_allow_other in /etc/fuse.conf)" if options.allow_other else ""
        raise MountpointError(f"{options.mountpoint} cannot be mounted on: {error}{hint}") from None


def _escaped(text: str) -> str:
    """Escape text for a mount option, whose value ends with a comma; a backslash escapes."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


async def _log_in(site: Site, offline: bool, lazy: bool, signals: AsyncIterator[int], ended: list[int]) -> None:
    """Log in, which may take the whole timeout, unless a signal ends it; add that signal to `ended`."""
    async with trio.open_nursery() as nursery:

        async def give_up() -> None:
            async for number in signals:
                if number == signal.SIGUSR1:
                    log.info("logging in to %s", site.xnat.url)
                else:
                    ended.append(number)
                    nursery.cancel_scope.cancel()

        nursery.start_soon(give_up)
        try:
            with trio.move_on_after(LAZY_LOGIN_SECONDS if lazy else math.inf) as limit:
                await site.xnat.log_in()
            if limit.cancelled_caught:
                log.warning("%s does not answer: mounted without it; the first use logs in", site.xnat.url)
        except Unreachable as error:
            if not offline and not lazy:
                raise
            log.warning("mounted without the server: %s", error)
        nursery.cancel_scope.cancel()


def _check_interrupted(ended: list[int], *said: str) -> None:
    """Raise KeyboardInterrupt if SIGINT was among the signals."""
    if signal.SIGINT in ended:
        raise KeyboardInterrupt(*said)


async def _obey(
    signals: AsyncIterator[int],
    ended: list[int],
    log_state: Callable[[], None],
    reload: Callable[[], Awaitable[None]] | None,
) -> None:
    """End the mount on a signal, and add the signal to `ended`; log the state on SIGUSR1, reload on SIGHUP."""
    async for number in signals:
        if number == signal.SIGUSR1:
            log_state()
            continue
        if number == signal.SIGHUP and reload is not None:
            await reload()
            continue
        ended.append(number)
        log.info("ending, because of %s", signal.Signals(number).name)
        pyfuse3.terminate()


async def _reload(site: Site, find: Callable[[], Credentials | None]) -> None:
    """Find the login anew, and drop the listings, so that the next look shows what the server has now."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        found = await trio.to_thread.run_sync(find)
    except XnatError as error:
        log.error("the login stays as it was: %s", error)
        found = None
    if found is not None and site.xnat.login.username not in ("", found.user):
        log.error("the login stays as it was: the one found is of %s, so mount again", found.user)
        found = None
    site.reload(found)
    log.info("reloaded: listings dropped, %s", "no login found" if found is None else f"login from the {found.source}")
    notify("READY=1")


async def _when_running(operations: Operations, ready: Callable[[], None], mountpoint: Path) -> None:
    """Call `ready` once INIT is answered. By its answer the kernel sets the read-ahead, so ours is set after it."""
    await operations.started.wait()
    _read_ahead(mountpoint)
    ready()


def _read_ahead(mountpoint: Path) -> None:
    """Raise the kernel's read-ahead of the mount, if permitted: that takes root."""
    mounted = mount_on(mountpoint)
    if mounted is not None:
        with contextlib.suppress(OSError):
            Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb").write_text(str(READ_AHEAD_KB))


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
