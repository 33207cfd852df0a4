"""Run the commands that ask a running mount: status, log-level and the others."""

import argparse
import sys
from typing import Any

from xnatfs.cli.control import render
from xnatfs.cli.control.client import LiveMount, find_mount, live_mounts
from xnatfs.cli.output import print_data
from xnatfs.common.errors import ConfigError, XnatError

# Seconds for which `status` waits for a mount; all are asked one after the other.
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


def run_log_level(arguments: argparse.Namespace) -> int:
    """Set the log level of a running mount."""
    mount = find_mount(arguments.mountpoint)
    result = mount.call("log_level", level=arguments.level)
    print_data(f"{mount.mountpoint}: the log level is {result['level']}, it was {result['before']}")
    return 0
