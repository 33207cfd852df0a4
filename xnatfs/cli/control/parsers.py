"""Declare the commands that ask a running mount. Their modules are imported when one of them runs."""

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from xnatfs.fuse.control.protocol import LOG_LEVELS


def add_parsers(commands: Any) -> None:
    """Add the commands to those of xnatfs."""
    add = commands.add_parser
    status = add("status", help="show the state of your mounts", allow_abbrev=False)
    _add_mountpoint(status, "of this mount only (default: all of yours)")
    status.add_argument(
        "-o", "--output", choices=("table", "json", "prometheus"), default="table", help="default: table"
    )
    status.add_argument("--watch", action="store_true", help="keep showing it, until Ctrl-C")
    status.set_defaults(run=_runs("run_status"))
    log_level = add("log-level", help="set the log level of a running mount", allow_abbrev=False)
    log_level.add_argument("level", choices=LOG_LEVELS, metavar="LEVEL", help=f"one of {', '.join(LOG_LEVELS)}")
    _add_mountpoint(log_level, "the mount (default: your only one)")
    log_level.set_defaults(run=_runs("run_log_level"))


def _add_mountpoint(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", nargs="?", help=text)


def _runs(name: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        found: Callable[[argparse.Namespace], int] = getattr(import_module("xnatfs.cli.control.commands"), name)
        return found(arguments)

    return run
