"""Declare the commands of xnatfs. The module of a command is imported when it runs, as help does without it."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from xnatfs.cli import options
from xnatfs.cli.parsing import add_command
from xnatfs.fuse.control.protocol import LOG_LEVELS

# Options of the demo that are passed to its server.
SERVER_OPTIONS: dict[str, dict[str, Any]] = {
    "--data": {"type": Path, "action": "append", "metavar": "DIR", "help": "publish this directory, too"},
    "--recorded": {"type": Path, "metavar": "DIR", "help": "publish recorded listings and catalogues, too"},
    "--latency": {"type": options.seconds, "metavar": "TIME", "help": "delay each answer by this time"},
    "--session-ttl": {"type": options.seconds, "metavar": "TIME", "help": "end logins that are idle for longer"},
    "--fixtures": {"action": "store_true", "help": "projects for developers, too: faults, odd names"},
    "--no-range": {"action": "store_true", "help": "ignore ranges, as some servers do"},
    "--seed": {"type": options.number, "metavar": "N", "help": "make other content"},
    "--request-log": {"type": Path, "metavar": "FILE", "help": "write each request there, as JSON lines"},
}


def add_commands(commands: Any) -> None:
    """Add the commands to those of xnatfs."""
    _add_mount(commands)
    _add_exec(commands)
    _add_install_unit(commands)
    _add_doctor(commands)
    _add_demo(commands)
    _add_calls(commands)


def split_exec(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line of `xnatfs exec` in two parts: before and after its first `--`."""
    words = list(words)
    if words[:1] != ["exec"] or "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def _add_mount(commands: Any) -> None:
    mount_example = "xnatfs mount --url https://xnat.example.org ~/xnat"
    mount = add_command(commands, "mount", "mount an XNAT server on a directory", mount_example)
    options.add_server(mount)
    options.add_mount(mount)
    mount.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="an empty directory")
    mount.add_argument("-q", "--quiet", action="store_true", help="print no line on success")
    mount.set_defaults(run=_runs("mounts", "run_mount"))
    unmounting = "unmount, and wait for the end of its process"
    umount = add_command(commands, "umount", unmounting, "xnatfs umount ~/xnat", aliases=["unmount"])
    umount.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="where it is mounted")
    umount.set_defaults(run=_runs("mounts", "run_umount"))


def _add_exec(commands: Any) -> None:
    parser = add_command(
        commands,
        "exec",
        "run one command with a mount that only it sees",
        usage="xnatfs exec [option ...] [URL] -- COMMAND [ARGUMENT ...]",
        example="xnatfs exec https://xnat.example.org -- sh -c 'ls $XNATFS_MOUNT/projects'",
    )
    options.add_server(parser)
    options.add_reading(parser)
    parser.add_argument("--at", type=Path, metavar="DIR", help="mount on this empty directory (default: a private one)")
    parser.add_argument("--fuse-fd", type=options.number, help=argparse.SUPPRESS)
    parser.add_argument("source", nargs="?", metavar="URL", help="the XNAT server, as --url")
    parser.add_argument("words", nargs="*", metavar="-- COMMAND", help="what to run, with its arguments")
    # Options that only a mount for all processes has.
    parser.set_defaults(
        run=_runs("host.execute", "run_exec"), foreground=False, allow_other=False, allow_root=False, uid=None,
        gid=None, umask=None, kernel_options=frozenset(),
    )  # fmt: skip


def _add_install_unit(commands: Any) -> None:
    parser = add_command(
        commands,
        "install-unit",
        "write a systemd service that mounts at login or boot",
        example="xnatfs install-unit --user -p work ~/xnat",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for you, in ~/.config/systemd/user (default unless root)")
    where.add_argument("--system", action="store_true", help="for this machine, in /etc/systemd/system")
    parser.add_argument("--print", action="store_true", help="print the unit, and write nothing")
    options.add_server(parser)
    options.add_mount(parser)
    parser.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="where the service mounts; it is made")
    parser.set_defaults(run=_runs("host.units", "run_install_unit"))


def _add_doctor(commands: Any) -> None:
    parser = add_command(
        commands,
        "doctor",
        "check all that a mount needs, and suggest remedies",
        example="xnatfs doctor https://xnat.example.org",
    )
    options.add_server(parser)
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="directory of the cache (default: ~/.cache/xnatfs)"
    )
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text", help="default: text")
    record = "write replies of the server there, with pseudonyms for all names, for a report to the developers"
    parser.add_argument("--record", type=Path, metavar="DIR", help=record)
    parser.add_argument("source", nargs="?", metavar="URL", help="the XNAT server, as --url")
    parser.set_defaults(run=_runs("host.doctor", "run_doctor"))


def _add_demo(commands: Any) -> None:
    parser = add_command(commands, "demo", "mount a demo server that runs on this machine", "xnatfs demo ~/demo")
    options.add_mount(parser)
    parser.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="an empty directory")
    parser.add_argument("--as", dest="account", metavar="USER", help="mount as this user of the demo")
    for name, settings in SERVER_OPTIONS.items():
        parser.add_argument(name, **settings)
    parser.set_defaults(run=_runs("demo", "run_demo"))


def _add_calls(commands: Any) -> None:
    """Add the commands that call a running mount."""
    add = partial(add_command, commands)
    status = add("status", "show the state of your mounts", "xnatfs status -o json")
    _add_mountpoint(status, "of this mount only (default: all of yours)")
    status.add_argument(
        "-o", "--output", choices=("table", "json", "prometheus"), default="table", help="default: table"
    )
    status.add_argument("--watch", action="store_true", help="keep showing it, until Ctrl-C")
    status.set_defaults(run=_runs("control.commands", "run_status"))
    refresh = add("refresh", "show what the server has now, before listings expire", "xnatfs refresh ~/xnat/projects/P")
    _add_path(refresh, "a directory or file in a mount; of a session, all of it is renewed")
    refresh.set_defaults(run=_runs("control.commands", "run_refresh"))
    why = add("why", "explain what is the matter with a path", "xnatfs why ~/xnat/projects/P/S")
    _add_path(why, "a path in a mount")
    why.set_defaults(run=_runs("control.commands", "run_why"))
    cache = add("cache", "look at the cache of a mount, clear it, or unpin files", "xnatfs cache info ~/xnat")
    actions = "info; clear: remove all that is neither open nor pinned; unpin: let what is below PATH be evicted again"
    cache.add_argument("action", choices=("info", "clear", "unpin"), metavar="ACTION", help=actions)
    where = "a path in the mount; for unpin, all that is pinned is below a mountpoint (default: your only mount)"
    cache.add_argument("path", type=Path, metavar="PATH", nargs="?", help=where)
    cache.set_defaults(run=_runs("control.commands", "run_cache"))
    warm = add("warm", "fetch files into the cache, ahead of their use", "xnatfs warm --pin ~/xnat/projects/P/S")
    warm.add_argument("paths", type=Path, metavar="PATH", nargs="+", help="a directory or file in a mount")
    warm.add_argument("--pin", action="store_true", help="do not evict them, until 'xnatfs cache unpin'")
    warm.add_argument("-q", "--quiet", action="store_true", help="print no progress")
    warm.set_defaults(run=_runs("control.commands", "run_warm"))
    verify = add("verify", "compare listings and cached bytes with the server", "xnatfs verify ~/xnat/projects/P/S")
    _add_path(verify, "a directory or file in a mount")
    listings = "send no request for single files: compare listings with each other and with cached bytes"
    verify.add_argument("--listings-only", action="store_true", help=listings)
    verify.add_argument("-q", "--quiet", action="store_true", help="print no progress")
    verify.set_defaults(run=_runs("control.commands", "run_verify"))
    log_level = add("log-level", "set the log level of a running mount", "xnatfs log-level debug")
    log_level.add_argument("level", choices=LOG_LEVELS, metavar="LEVEL", help=f"one of {', '.join(LOG_LEVELS)}")
    _add_mountpoint(log_level, "the mount (default: your only one)")
    log_level.set_defaults(run=_runs("control.commands", "run_log_level"))


def _add_mountpoint(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", nargs="?", help=text)


def _add_path(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help=text)


def _runs(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        found: Callable[[argparse.Namespace], int] = getattr(import_module(f"xnatfs.cli.{module}"), name)
        return found(arguments)

    return run
