"""python -m xnatfs.demo: the server alone. Prints its URL, and serves until it is told to end."""

import argparse
import json
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import NoReturn

from xnatfs.common.program import spell
from xnatfs.demo import PASSWORDS, login_hint
from xnatfs.demo.fixtures.folder import publish
from xnatfs.demo.fixtures.lab import DemoArchive
from xnatfs.demo.fixtures.recorded import publish_recorded
from xnatfs.demo.fixtures.shaped import publish_shape
from xnatfs.demo.server.app import DemoXnat, Record
from xnatfs.demo.server.releases import RELEASES, XNAT_1_8
from xnatfs.demo.server.socket import serve

ROLES = {"demo-owner": "Owners", "demo-member": "Members", "demo-collaborator": "Collaborators"}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main() -> int:
    parser = Parser(prog="xnatfs.demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0, help="on the loopback interface (default: any free one)")
    parser.add_argument("--data", type=Path, action="append", default=[], metavar="DIR", help="publish this, too")
    parser.add_argument("--recorded", type=Path, metavar="DIR", help="publish recorded listings and catalogues, too")
    parser.add_argument(
        "--shape", metavar="AxBxCxD", help="publish A subjects of B sessions of C scans of D files, too"
    )
    parser.add_argument(
        "--fixtures", action="store_true", help="the projects of the tests, too: faults, ugly names ..."
    )
    parser.add_argument("--only-data", action="store_true", help="nothing made up")
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="answer that much later")
    parser.add_argument("--session-ttl", type=float, default=900.0, metavar="S", help="idle life of a login")
    parser.add_argument("--max-sessions", type=int, default=1000, metavar="N", help="per user")
    parser.add_argument("--work", type=float, default=1.0, metavar="S", help="what the prearchive does takes that")
    parser.add_argument("--idle", type=float, default=300.0, metavar="S", help="a session is complete after silence")
    parser.add_argument(
        "--xnat", choices=RELEASES, default=XNAT_1_8.name, help="answer as this release does (default: %(default)s)"
    )
    parser.add_argument("--no-range", action="store_true", help="ignore ranges")
    parser.add_argument("--no-digests", action="store_true", help="compute no checksums")
    parser.add_argument("--open", action="store_true", help="let guests in, to what is public")
    parser.add_argument("--context-path", default="", metavar="/PATH", help="serve below this path")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="make other content")
    parser.add_argument("--schemas", type=Path, metavar="DIR", help="serve these XML schemas under /xapi/schemas")
    parser.add_argument("--request-log", type=Path, metavar="FILE", help="write each request there, as JSON lines")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    arguments = parser.parse_args()
    try:
        archive = DemoArchive(arguments.seed, empty=arguments.only_data, fixtures=arguments.fixtures)
        for directory in arguments.data:
            publish(archive, directory, ROLES)
        if arguments.shape:
            publish_shape(archive, arguments.shape, ROLES)
        if arguments.recorded:
            publish_recorded(archive, arguments.recorded, ROLES)
        demo = _demo(arguments, archive)
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


def _demo(arguments: argparse.Namespace, archive: DemoArchive) -> DemoXnat:
    demo = DemoXnat(
        archive,
        release=RELEASES[arguments.xnat],
        context_path=arguments.context_path,
        require_login=not arguments.open,
        session_ttl=arguments.session_ttl,
        ranges=not arguments.no_range,
        digests=not arguments.no_digests,
        max_sessions=arguments.max_sessions,
        latency=arguments.latency,
        schemas=arguments.schemas,
        work=arguments.work,
        idle=arguments.idle,
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
