"""python -m xnatfs.demo: the server alone. Prints its URL, and serves until it is terminated."""

import argparse
import json
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from xnatfs.common.program import spell
from xnatfs.demo import PASSWORDS, login_hint
from xnatfs.demo.fixtures.bids import publish_bids
from xnatfs.demo.fixtures.folder import publish
from xnatfs.demo.fixtures.lab import DemoArchive
from xnatfs.demo.fixtures.recorded import publish_recorded
from xnatfs.demo.fixtures.shaped import publish_shape
from xnatfs.demo.server.app import DemoXnat, Record
from xnatfs.demo.server.releases import RELEASES, XNAT_1_8
from xnatfs.demo.server.socket import serve

MEMBERS = {"demo-owner": "Owners", "demo-member": "Members", "demo-collaborator": "Collaborators"}
OPTIONS: dict[str, dict[str, Any]] = {
    "port": {"type": int, "default": 0, "help": "port on the loopback interface (default: any free one)"},
    "data": {"type": Path, "action": "append", "default": [], "metavar": "DIR", "help": "publish this folder as well"},
    "recorded": {"type": Path, "metavar": "DIR", "help": "publish recorded listings and catalogues as well"},
    "shape": {"metavar": "AxBxCxD", "help": "publish A subjects of B sessions of C scans of D files as well"},
    "fixtures": {"action": "store_true", "help": "publish projects for developers as well: faults, odd names"},
    "only-data": {"action": "store_true", "help": "publish no synthetic projects"},
    "seed": {"type": int, "default": 0, "metavar": "N", "help": "make other content"},
    "xnat": {
        "choices": RELEASES,
        "default": XNAT_1_8.name,
        "help": "answer as this release does (default: %(default)s)",
    },
    "context-path": {"default": "", "metavar": "/PATH", "help": "serve below this path"},
    "open": {"action": "store_true", "help": "let guests see what is public"},
    "session-ttl": {"type": float, "default": 900.0, "metavar": "S", "help": "end a login that is idle for S"},
    "max-sessions": {"type": int, "default": 1000, "metavar": "N", "help": "logins per user (default: %(default)s)"},
    "no-range": {"action": "store_true", "help": "answer range requests with whole files"},
    "no-digests": {"action": "store_true", "help": "compute no checksums"},
    "work": {"type": float, "default": 1.0, "metavar": "S", "help": "duration of a step of the prearchive"},
    "idle": {"type": float, "default": 300.0, "metavar": "S", "help": "end a session S after its last file"},
    "schemas": {"type": Path, "metavar": "DIR", "help": "serve these XML schemas under /xapi/schemas"},
    "latency": {"type": float, "default": 0.0, "metavar": "S", "help": "delay each answer by S seconds"},
    "request-log": {"type": Path, "metavar": "FILE", "help": "log each request to FILE, as JSON lines"},
    "until-eof": {"action": "store_true", "help": "stop when standard input is closed"},
}
# Options that are settings of the site under the same name.
SETTINGS = ("context_path", "session_ttl", "max_sessions", "work", "idle", "schemas", "latency")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main() -> int:
    parser = Parser(prog="xnatfs.demo", description=__doc__, allow_abbrev=False)
    for name, about in OPTIONS.items():
        parser.add_argument(f"--{name}", **about)
    arguments = parser.parse_args()
    try:
        demo = _demo(arguments)
        ended = _end()
        with serve(demo, arguments.port) as url:
            print(url, flush=True)
            if sys.stdout.isatty():
                _print_hints(url)
            if arguments.until_eof:
                threading.Thread(target=_at_eof, args=(ended,), daemon=True).start()
            ended.wait()
    except (OSError, OverflowError) as error:
        parser.error(str(error))
    except ImportError as error:
        parser.error(f"{error}: the demo needs 'pip install xnatfs[demo]'")
    return 0


def _demo(arguments: argparse.Namespace) -> DemoXnat:
    archive = DemoArchive(arguments.seed, empty=arguments.only_data, fixtures=arguments.fixtures)
    if arguments.fixtures and not arguments.only_data:
        publish_bids(archive, MEMBERS)
    for directory in arguments.data:
        publish(archive, directory, MEMBERS)
    if arguments.shape:
        publish_shape(archive, arguments.shape, MEMBERS)
    if arguments.recorded:
        publish_recorded(archive, arguments.recorded, MEMBERS)
    demo = DemoXnat(
        archive,
        release=RELEASES[arguments.xnat],
        require_login=not arguments.open,
        ranges=not arguments.no_range,
        digests=not arguments.no_digests,
        **{name: getattr(arguments, name) for name in SETTINGS},
    )
    if arguments.request_log:
        log = open(arguments.request_log, "a", encoding="utf-8")  # noqa: SIM115  (open as long as the server)
        lock = threading.Lock()

        def watch(record: Record) -> None:
            fields = {key: value for key, value in asdict(record).items() if key != "headers"}
            with lock:
                log.write(json.dumps(fields) + "\n")
                log.flush()

        demo.watch = watch
    return demo


def _print_hints(url: str) -> None:
    """Print example commands for interactive use on standard error; standard output carries the URL alone."""
    xnatctl = spell("xnatctl")
    print("Try, on another terminal", file=sys.stderr)
    print(f"    {login_hint(xnatctl, url, next(iter(PASSWORDS)))}", file=sys.stderr)
    print(f"    {xnatctl} project list --url {url}", file=sys.stderr)
    print("Ctrl-C ends it.", file=sys.stderr, flush=True)


def _end() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set.

    The handlers must be installed before the URL is printed: a program that reads it may send a signal at once.
    """
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    return ended


def _at_eof(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


if __name__ == "__main__":
    sys.exit(main())
