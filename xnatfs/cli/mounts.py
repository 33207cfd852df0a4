"""Run the commands mount and umount."""

import argparse
import os
import select
from pathlib import Path
from typing import Any

from xnatfs.cli import daemon, demo, options, serving, statusline
from xnatfs.cli.control import parsers
from xnatfs.cli.host import execute
from xnatfs.cli.logins import find_login, login_environment, session_store
from xnatfs.cli.output import print_message
from xnatfs.common.errors import MountpointError
from xnatfs.fuse.mountinfo import mount_on
from xnatfs.fuse.mountpoint import KIND, is_dead, serving_process, unmount

# The daemon closes its session on the server after the mount is gone, which may take the server a while.
DAEMON_END_SECONDS = 15.0


def add_parsers(commands: Any) -> None:
    mount = commands.add_parser("mount", help="mount an XNAT server on a directory", allow_abbrev=False)
    options.add_server(mount)
    options.add_mount(mount)
    mount.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="an empty directory")
    mount.set_defaults(run=run_mount)
    umount = commands.add_parser("umount", help="unmount, and wait for the end of its process", allow_abbrev=False)
    umount.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="where it is mounted")
    umount.set_defaults(run=run_umount)
    execute.add_parser(commands)
    demo.add_parser(commands)
    parsers.add_parsers(commands)


def run_mount(arguments: argparse.Namespace) -> int:
    options.apply_mount_options(arguments)
    config = options.mount_config(arguments, options.server_config(arguments, os.environ))
    if arguments.report_fd is not None:
        credentials, token = daemon.receive_login()
        serving.serve(arguments, config, credentials, session_store(config, token), arguments.reporter.ready)
        return 0
    serving.check_mountable(arguments, config.url)
    credentials = find_login(config, before_asking=serving.import_mount)
    for warning in serving.access_warnings(arguments, config):
        print_message(f"xnatfs: {warning}")
    if arguments.foreground:
        serving.serve(arguments, config, credentials, session_store(config), arguments.reporter.ready)
    else:
        token = login_environment(config).get("XNAT_TOKEN", "")
        serving.start(arguments, "mount", config.url, daemon.pack_login(credentials, token))
    return 0


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
        has_ended = process is None or select.select([process], [], [], DAEMON_END_SECONDS)[0]
    if not has_ended:
        print_message(f"xnatfs: {mountpoint} is unmounted, but its process has not ended yet")
    return 0
