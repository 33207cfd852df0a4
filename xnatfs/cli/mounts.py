"""Run the commands mount and umount."""

import argparse
import contextlib
import os
import re
import select
import signal
import sys

from xnatfs.cli import daemon, options, serving, statusline
from xnatfs.cli.output import print_message
from xnatfs.common.errors import ConfigError, MountpointError
from xnatfs.common.mountinfo import mount_on
from xnatfs.common.sanitize import plain
from xnatfs.fuse.mountpoint import KIND, is_dead, is_mounted, serving_process, unmount
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.logins import MountLogin, find_login_again, find_mount_login, mount_login

# The daemon closes its session on the server after the mount is gone, which may take the server a while.
DAEMON_END_SECONDS = 15.0
# Seconds until a daemon whose mount is gone is signalled: most have ended after 0.2.
COPIES_SECONDS = 3.0


def run_mount(arguments: argparse.Namespace) -> int:
    options.apply_mount_options(arguments)
    arguments.fuse_fd = _mounted_descriptor(arguments)
    config = options.mount_config(arguments, options.server_config(arguments, os.environ))
    if arguments.report_fd is not None:
        credentials, token = daemon.receive_login()
        _serve(arguments, config, mount_login(config, arguments.credentials, credentials, token))
        return 0
    if arguments.fuse_fd is not None:
        _serve(arguments, config, find_mount_login(config, arguments.credentials))
        return 0
    mountpoint = serving.mount_directory(arguments)
    serving.make_mountpoint(arguments)
    if is_mounted(mountpoint, config.url):
        _say(arguments, f"{config.url} is mounted on {mountpoint} already")
        return 0
    serving.check_mountable(arguments, config.url)
    login = find_mount_login(config, arguments.credentials, before_asking=serving.import_mount)
    for warning in serving.access_warnings(arguments, config):
        print_message(f"xnatfs: {warning}")
    if arguments.foreground:
        _serve(arguments, config, login)
        return 0
    serving.start(arguments, "mount", config.url, daemon.pack_login(login.credentials, login.token))
    user = login.user  # after the login, which stores the session
    whose = f" as {user}" if user else ""
    _say(arguments, f"mounted {config.url} on {mountpoint}{whose}; log: {serving.log_path(arguments)}")
    return 0


def _mounted_descriptor(arguments: argparse.Namespace) -> int | None:
    """Return the descriptor that another program has mounted, as Apptainer does: its name is the mountpoint then.

    Raises ConfigError if it is to be served in the background, which would not inherit it.
    """
    match = re.fullmatch(r"/dev/fd/(\d+)", str(arguments.mountpoint))
    if match is None:
        return None
    if not arguments.foreground:
        raise ConfigError(f"{arguments.mountpoint} can be served in the foreground only: give --foreground")
    return int(match[1])


def _serve(arguments: argparse.Namespace, config: Config, login: MountLogin) -> None:
    def reload() -> Credentials | None:
        return find_login_again(options.server_config(arguments, os.environ), arguments.credentials)

    # A terminal that is closed sends SIGHUP, too, and then that has to end a mount in its foreground.
    is_on_terminal = arguments.foreground and sys.stdin.isatty()
    serving.serve(arguments, config, login, arguments.reporter.ready, None if is_on_terminal else reload)


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        print(plain(text))


def _has_ended(process: int) -> bool:
    """Wait for the end of a daemon whose mount is gone; return whether it has ended.

    Where mounts do not propagate, as in containers, a mount namespace of another program, such as one of `exec`, may
    hold a copy of the mount. Then only a signal ends the daemon; one that is closing its site ignores it.
    """
    if select.select([process], [], [], COPIES_SECONDS)[0]:
        return True
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGTERM)
    return bool(select.select([process], [], [], DAEMON_END_SECONDS)[0])


def run_umount(arguments: argparse.Namespace) -> int:
    mountpoint = serving.mount_directory(arguments)
    mounted = mount_on(mountpoint)
    if mounted is None or mounted.kind != KIND:
        raise MountpointError(f"{mountpoint} is not a mount of xnatfs")
    if is_dead(mountpoint, mounted):
        unmount(mountpoint, dead=mounted)
        print(f"xnatfs: {mountpoint} was a dead mount, its process had ended without unmounting: cleared")
        return 0
    process = serving_process(mountpoint)
    unmount(mountpoint)
    with statusline.waiting(f"Unmounting {mountpoint}"):
        has_ended = process is None or _has_ended(process)
    if not has_ended:
        print_message(f"xnatfs: {mountpoint} is unmounted, but its process has not ended yet")
    return 0
