"""Run the commands that call a running mount: status, log-level and the others."""

import argparse
import sys
from typing import Any

from xnatfs.cli import statusline
from xnatfs.cli.control import render
from xnatfs.cli.control.client import LiveMount, find_mount, live_mounts, split_path
from xnatfs.cli.control.progress import CallProgress
from xnatfs.cli.output import human_size, print_data, print_lines, print_message
from xnatfs.cli.parsing import PARTIAL_STATUS
from xnatfs.common.errors import ConfigError, XnatError

# Seconds that a mount may take for what needs the server: as long as its own requests, and a little longer.
LONG_SECONDS = 900.0
# Seconds for which `status` waits for a mount; all are queried one after the other.
STATUS_SECONDS = 3.0


def run_status(arguments: argparse.Namespace) -> int:
    """Show the state of every mount of this user, or of one."""
    given = arguments.mountpoint
    mounts = [find_mount(given)] if given is not None else live_mounts()
    if arguments.watch:
        if arguments.output != "table":
            raise ConfigError("--watch shows a table: give no --output")
        if not sys.stdout.isatty():
            raise ConfigError("--watch needs a terminal: without it the state is printed once")
        from xnatfs.cli.control.watch import watch  # imports rich

        return watch(lambda: [state(mount) for mount in (mounts if given is not None else live_mounts())])
    states = [state(mount) for mount in mounts]
    render.show_states(states, arguments.output)
    return 0 if all(each["up"] for each in states) else 1


def state(mount: LiveMount) -> dict[str, Any]:
    """Return what a mount reports; for one that does not answer, why."""
    try:
        return {"up": True, **mount.call("status", seconds=STATUS_SECONDS)}
    except XnatError as error:
        return {"up": False, "mountpoint": str(mount.mountpoint), "server": mount.server, "error": str(error)}


def run_refresh(arguments: argparse.Namespace) -> int:
    """Renew what is shown at a path."""
    mount, path = split_path(arguments.path)
    with statusline.waiting(f"Refreshing {arguments.path}"):
        result = mount.call("refresh", seconds=LONG_SECONDS, path=path)
    what = mount.mountpoint / result["path"]
    print_data(f"{what}: {result['requests']} request{'' if result['requests'] == 1 else 's'}")
    return 0


def run_why(arguments: argparse.Namespace) -> int:
    """Explain what is the matter with a path."""
    mount, path = split_path(arguments.path)
    with statusline.waiting(f"Looking at {arguments.path}"):
        result = mount.call("why", seconds=LONG_SECONDS, path=path)
    if result["fine"]:
        print_data(f"{arguments.path}: nothing is the matter")
    print_lines(result["findings"])
    return 0 if result["fine"] else 1


def run_cache(arguments: argparse.Namespace) -> int:
    """Show, clear or unpin the cache of a mount."""
    mount, path = find_mount(arguments.path), ""
    if arguments.action == "unpin" and arguments.path is not None:
        mount, path = split_path(arguments.path)
    if arguments.action == "info":
        result = mount.call("cache")
        print_lines(f"{name:<11}{value}" for name, value in render.cache_facts(result))
    elif arguments.action == "clear":
        result = mount.call("cache_clear", seconds=LONG_SECONDS)
        left = f", {human_size(result['used_bytes'])} are left: open or pinned" if result["used_bytes"] else ""
        print_data(f"{human_size(result['freed_bytes'])} freed{left}")
    else:
        result = mount.call("unpin", seconds=LONG_SECONDS, path=path)
        print_data(f"{result['unpinned_files']} files unpinned")
    return 0


def run_warm(arguments: argparse.Namespace) -> int:
    """Fetch files into the cache."""
    places = [split_path(path) for path in arguments.paths]  # all of them, before anything is fetched
    status, needs_server = 0, False
    for given, (mount, path) in zip(arguments.paths, places, strict=True):
        with CallProgress(f"Fetching {given}", arguments.quiet) as progress:
            result = mount.call("warm", path=path, pin=arguments.pin, on_progress=progress.show)
        for failed in result["failed"]:
            print_message(f"xnatfs: {failed['path']}: {failed['reason']}")
        print_data(f"{given}: {render.warmed(result)}")
        needs_server |= not result["offline"]
        status = status if result["is_complete"] else PARTIAL_STATUS
    if needs_server and arguments.pin:
        print_message("xnatfs: while the server is unreachable, a mount shows files only with --offline")
    return status


def run_verify(arguments: argparse.Namespace) -> int:
    """Compare listings and cached bytes with the server."""
    mount, path = split_path(arguments.path)
    with CallProgress(f"Verifying {arguments.path}", arguments.quiet) as progress:
        # Named only if it is given: a mount of an earlier version knows no such argument.
        only = {"listings_only": True} if arguments.listings_only else {}
        result = mount.call("verify", seconds=LONG_SECONDS, path=path, on_progress=progress.show, **only)
    print_lines(render.verified(result))
    return 1 if result["resources"] else 0


def run_log_level(arguments: argparse.Namespace) -> int:
    """Set the log level of a running mount."""
    mount = find_mount(arguments.mountpoint)
    result = mount.call("log_level", level=arguments.level)
    print_data(f"{mount.mountpoint}: the log level is {result['level']}, it was {result['before']}")
    return 0
