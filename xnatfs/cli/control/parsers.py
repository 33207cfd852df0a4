"""Declare the commands that ask a running mount. Their modules are imported when one of them runs."""

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from xnatfs.cli.parsing import add_command
from xnatfs.fuse.control.protocol import LOG_LEVELS


def add_parsers(commands: Any) -> None:
    """Add the commands to those of xnatfs."""
    add = partial(add_command, commands)
    status = add("status", "show the state of your mounts", "xnatfs status -o json")
    _add_mountpoint(status, "of this mount only (default: all of yours)")
    status.add_argument(
        "-o", "--output", choices=("table", "json", "prometheus"), default="table", help="default: table"
    )
    status.add_argument("--watch", action="store_true", help="keep showing it, until Ctrl-C")
    status.set_defaults(run=_runs("run_status"))
    refresh = add("refresh", "show what the server has now, before listings expire", "xnatfs refresh ~/xnat/projects/P")
    _add_path(refresh, "a directory or file in a mount; of a session, all of it is renewed")
    refresh.set_defaults(run=_runs("run_refresh"))
    why = add("why", "explain what is the matter with a path", "xnatfs why ~/xnat/projects/P/S")
    _add_path(why, "a path in a mount")
    why.set_defaults(run=_runs("run_why"))
    cache = add("cache", "look at the cache of a mount, clear it, or unpin files", "xnatfs cache info ~/xnat")
    actions = "info; clear: remove all that is neither open nor pinned; unpin: let what is below PATH be evicted again"
    cache.add_argument("action", choices=("info", "clear", "unpin"), metavar="ACTION", help=actions)
    where = "a path in the mount; for unpin, all that is pinned is below a mountpoint (default: your only mount)"
    cache.add_argument("path", type=Path, metavar="PATH", nargs="?", help=where)
    cache.set_defaults(run=_runs("run_cache"))
    warm = add("warm", "fetch files into the cache, ahead of their use", "xnatfs warm --pin ~/xnat/projects/P/S")
    warm.add_argument("paths", type=Path, metavar="PATH", nargs="+", help="a directory or file in a mount")
    warm.add_argument("--pin", action="store_true", help="do not evict them, until 'xnatfs cache unpin'")
    warm.add_argument("-q", "--quiet", action="store_true", help="print no progress")
    warm.set_defaults(run=_runs("run_warm"))
    verify = add("verify", "compare listings and cached bytes with the server", "xnatfs verify ~/xnat/projects/P/S")
    _add_path(verify, "a directory or file in a mount")
    listings = "send no request for single files: compare listings with each other and with cached bytes"
    verify.add_argument("--listings-only", action="store_true", help=listings)
    verify.add_argument("-q", "--quiet", action="store_true", help="print no progress")
    verify.set_defaults(run=_runs("run_verify"))
    log_level = add("log-level", "set the log level of a running mount", "xnatfs log-level debug")
    log_level.add_argument("level", choices=LOG_LEVELS, metavar="LEVEL", help=f"one of {', '.join(LOG_LEVELS)}")
    _add_mountpoint(log_level, "the mount (default: your only one)")
    log_level.set_defaults(run=_runs("run_log_level"))


def _add_mountpoint(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", nargs="?", help=text)


def _add_path(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help=text)


def _runs(name: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        found: Callable[[argparse.Namespace], int] = getattr(import_module("xnatfs.cli.control.commands"), name)
        return found(arguments)

    return run
