"""Serve a mount, in this process or in a detached one."""

import argparse
import gc
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from xnatfs.cli import daemon, logs, statusline
from xnatfs.common.errors import FuseMissing, MountpointError
from xnatfs.common.mountinfo import mount_on
from xnatfs.fuse import systemd
from xnatfs.fuse.mountpoint import check_fuse, check_mountpoint, is_trigger
from xnatfs.settings.config import Config, cache_home, connection_warning
from xnatfs.settings.credentials import Credentials, forget_secrets
from xnatfs.settings.logins import MountLogin

log = logging.getLogger(__name__)

Reload = Callable[[], Credentials | None]


def mount_directory(arguments: argparse.Namespace) -> Path:
    """Return the mountpoint as the kernel names it, without symbolic links."""
    return Path(os.path.realpath(arguments.mountpoint))


def make_mountpoint(arguments: argparse.Namespace) -> None:
    """Make the mountpoint if the command line has --mkdir. Raises MountpointError."""
    mountpoint = mount_directory(arguments)
    try:
        if arguments.mkdir and mount_on(mountpoint) is None:  # a dead mount cannot even be looked at
            mountpoint.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MountpointError(f"{mountpoint} cannot be made: {error.strerror}") from None


def check_mountable(arguments: argparse.Namespace, source: str = "") -> None:
    """Raise if FUSE or the mountpoint is unusable, before the user is prompted for a password."""
    check_fuse()
    check_mountpoint(mount_directory(arguments), source)


def access_warnings(arguments: argparse.Namespace, config: Config) -> list[str]:
    """Return warnings about access that this mount gives to others."""
    found = [connection_warning(config)]
    if arguments.allow_other:
        found.append("every user and program of this machine may read in this mount what your account may: allow_other")
    if arguments.allow_root:
        found.append("root of this machine may read in this mount what your account may: allow_root")
    return [text for text in found if text]


def start(arguments: argparse.Namespace, command: str, source: str, login: str) -> str:
    """Run the same command again, detached, until its mount answers; return what it reports.

    Args:
        arguments: The command line.
        command: Its first word, for a program that calls this one without it.
        source: What is mounted, for the user.
        login: The login for the detached process, as `daemon.pack_login` returns it.
    """
    mountpoint = mount_directory(arguments)
    # `ps` shows these words for the mount; they hold no secret.
    words = arguments.command_line
    words = words if command in words[:1] else [command, *words]
    with statusline.waiting(f"Mounting {source}"):
        # Only the group of the automounter may mount on its trigger; systemd and automount(8) start mount(8) in theirs.
        _, text = daemon.launch(words, login, log_path(arguments), stays_in_group=is_trigger(mountpoint))
    os.stat(mountpoint)
    return text


def log_path(arguments: argparse.Namespace) -> Path:
    """Return the file of the log: the chosen one, else one that is named after the mountpoint."""
    if arguments.log_file:
        return Path(arguments.log_file)
    place = str(mount_directory(arguments))
    name = re.sub(r"[^A-Za-z0-9._]", "-", place.strip("/"))[-100:]
    if "/" + name.replace("-", "/") != place:  # else two mountpoints could have one name
        name += f".{zlib.crc32(os.fsencode(place)):08x}"
    return cache_home() / "log" / f"{name}.log"


def serve(
    arguments: argparse.Namespace,
    config: Config,
    login: MountLogin,
    on_ready: Callable[[], None],
    reload: Reload | None = None,
) -> None:
    """Serve the mount in this process until it is unmounted.

    Args:
        arguments: Options of the mount.
        config: Settings of the server and the cache.
        login: The login, and the stored sessions.
        on_ready: Called when the mount answers.
        reload: Finds the login anew, on SIGHUP; without it SIGHUP ends the mount.
    """
    _begin_log(arguments)
    is_debugging = arguments.log_level == "debug"
    logging.getLogger("httpx").setLevel(logging.DEBUG if is_debugging else logging.WARNING)
    for warning in access_warnings(arguments, config):
        log.warning("%s", warning)
    forget_secrets()
    os.umask(0o077)
    # httpx imports its own command line where it finds click, and with that rich and pygments: 100 ms and 10 MB.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: no such module
    gc.disable()  # imported objects stay alive, so a collection finds nothing: it costs 40 of 260 ms
    fuse_mount = import_mount()
    import trio

    gc.freeze()
    gc.enable()
    mount_options = _mount_options(arguments, reload)
    os.chdir("/")  # a daemon must not keep a directory of the user busy

    def on_mounted() -> None:
        if arguments.report_fd is not None:
            with suppress(PermissionError):  # the parent has begun a session for it
                os.setsid()
        on_ready()
        systemd.notify("READY=1", f"STATUS={config.url} is mounted on {mount_options.mountpoint}")

    trio.run(fuse_mount.mount, config, login.credentials, login.sessions, mount_options, on_mounted)


def _begin_log(arguments: argparse.Namespace) -> None:
    level = logging.getLevelName(arguments.log_level.upper())
    is_own = arguments.report_fd is not None and getattr(arguments, "fuse_fd", None) is None
    if is_own or (arguments.foreground and arguments.log_file):
        from xnatfs.cli.host import rotating_log

        rotating_log.log_to_rotating_file(log_path(arguments).absolute(), level, takes_stderr=is_own)
    else:  # stderr; of the daemon of an exec that is the log file, which several daemons share
        logs.log_to_stream(None, level)


def import_mount() -> Any:
    """Import the modules that serve a mount, which is slow: the command that starts the daemon does without."""
    try:
        from xnatfs.fuse import mount
    except ImportError as error:
        raise FuseMissing(f"FUSE 3 cannot be used from Python ({error}): install the package fuse3") from None
    return mount


def _mount_options(arguments: argparse.Namespace, reload: Reload | None) -> Any:
    from xnatfs.fuse.attributes import Ownership
    from xnatfs.fuse.mount import MountOptions

    uid = os.getuid() if arguments.uid is None else arguments.uid
    gid = os.getgid() if arguments.gid is None else arguments.gid
    return MountOptions(
        mount_directory(arguments),
        # The kernel has no allow_root: allow_other admits all users, and the modes then exclude all but root.
        Ownership(uid, gid, (arguments.umask or 0) | (0o077 if arguments.allow_root else 0)),
        arguments.allow_other or arguments.allow_root,
        not arguments.no_xattr,
        arguments.kernel_options,
        getattr(arguments, "fuse_fd", None),
        reload,
        getattr(arguments, "lazy", False),
    )
