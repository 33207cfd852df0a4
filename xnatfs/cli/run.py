"""Parse and run the commands, and turn an XnatError into an exit status and one line."""

import argparse
import codecs
import gc
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from xnatfs.cli import streams
from xnatfs.cli.parsing import USAGE_STATUS, make_parser
from xnatfs.common import errors
from xnatfs.common.sanitize import line, plain

if TYPE_CHECKING:
    from xnatfs.cli.daemon import Reporter

log = logging.getLogger(__name__)

# The most specific class decides; 66, 69, 73 and 74 are those of sysexits.h. SEMANTICS.md has the table.
EXIT_STATUS: dict[type[Exception], int] = {
    errors.ConfigError: USAGE_STATUS,
    errors.LoginRequired: 3,
    errors.Unreachable: 4,
    errors.BadReply: 4,
    errors.NotFound: 5,
    errors.Denied: 6,
    errors.MountpointError: 66,
    errors.FuseMissing: 69,
    errors.NamespaceError: 1,
    errors.CacheError: 73,
    errors.Conflict: 1,
    errors.ReadOnly: 1,
    errors.Busy: 1,
    errors.Stale: 1,
    errors.XnatError: 1,
    OSError: 74,
}
FAULT = 70  # that of sysexits.h for an internal error
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def no_core_dumps() -> None:
    """Disable core dumps, which would contain the password: setrlimit(2), core(5).

    A limit of 0 bytes stops files only; where the system pipes dumps to a program the kernel takes 1 for "none", and
    both are inherited by whatever is started. PR_SET_DUMPABLE would do the same and lock the user's own debuggers
    out; other users are kept out without it.
    """
    try:
        import resource
    except ImportError:  # on Windows, which writes no core dumps
        return
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 1 if most == resource.RLIM_INFINITY else min(1, most)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def exit_status(error: errors.XnatError) -> int:
    return next(EXIT_STATUS[kind] for kind in type(error).__mro__ if kind in EXIT_STATUS)


def _collect_garbage() -> None:
    """Let the collector run, without the objects of the imports so far, which stay alive."""
    gc.freeze()
    gc.enable()


def run_xnatfs(words: Sequence[str]) -> int:
    """Run a command line of xnatfs; return the exit status."""
    from xnatfs.cli.commands import add_commands, split_exec

    if words[:1] == ["ctl"]:  # a name that no other package can overwrite
        return run_xnatctl(words[1:])
    no_core_dumps()
    streams.open_missing()
    parser = make_parser("xnatfs", "Mount an XNAT server as a local folder.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_commands(commands)
    commands.add_parser("ctl", help="run xnatctl, under a name that no other package has", add_help=False)
    reporter: Reporter | None = None

    def command() -> int:
        nonlocal reporter
        if "_ARGCOMPLETE" in os.environ:
            from xnatfs.cli.ctl import completion

            completion.complete(parser)
        before, after = split_exec(words)
        arguments = parser.parse_args(before, argparse.Namespace(command_line=before, command_words=after))
        if hasattr(arguments, "report_fd"):  # a command that mounts
            from xnatfs.cli import daemon

            arguments.reporter = reporter = daemon.Reporter(arguments.report_fd)
        _collect_garbage()
        return int(arguments.run(arguments))

    def report(error: BaseException, status: int, text: str) -> None:
        if text:
            streams.report(plain(f"xnatfs: {text}"))
        if reporter is not None:
            reporter.failed(status, text)

    return run_command(command, report)


def run_xnatctl(words: Sequence[str]) -> int:
    """Run a command line of xnatctl; return the exit status."""
    no_core_dumps()
    streams.open_missing()
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("names", _encode_as_is)
        sys.stdout.reconfigure(errors="names")
    parser = make_parser("xnatctl", "Work with an XNAT server: list, download, upload, archive.")

    def command() -> int:
        if words == ["--version"]:  # needs none of the commands
            parser.parse_args(words)
        from xnatfs.cli.ctl import main

        is_completing = "_ARGCOMPLETE" in os.environ
        line = os.environ.get("COMP_LINE", "").split() if is_completing else words
        main.build(parser, main.named_nouns(line))
        _collect_garbage()
        if is_completing:
            from xnatfs.cli.ctl import completion

            completion.complete(parser)
        return main.run(parser.parse_args(words, argparse.Namespace(command_line=words)))

    def report(error: BaseException, status: int, text: str) -> None:
        from xnatfs.cli.ctl import main

        if text:
            main.print_error(error, text, status, words)

    return run_command(command, report)


def _encode_as_is(error: UnicodeError) -> tuple[bytes, int]:
    """Encode undecodable bytes of a file name as they are, and lone surrogates of a label as an escape."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    raw = bytes([ord(character) & 0xFF]) if "\udc80" <= character <= "\udcff" else ascii(character)[1:-1].encode()
    return raw, error.start + 1


def run_command(command: Callable[[], int], report: Callable[[BaseException, int, str], None]) -> int:
    """Run a command until its output is written, and return its exit status; `report` reports an error."""
    unwritten: OSError | None = None
    try:
        try:
            status = command()
        except SystemExit:  # --help, --version
            sys.stdout.flush()
            raise
        unwritten = streams.flush_output()
        if unwritten is None or isinstance(unwritten, BrokenPipeError):  # a reader such as `true` reads nothing
            return status
        raise unwritten
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        status, text = _describe(error, unwritten or streams.flush_output())
        if status == INTERRUPTED and sys.stderr.isatty():
            streams.report("")  # the terminal has echoed ^C at the beginning of the line
        report(errors.first_error(error), status, text)
        return status


def _describe(error: BaseException, unwritten: OSError | None) -> tuple[int, str]:
    """Return the exit status, and one line for the user; `unwritten` is why stdout cannot be written."""
    cause = errors.first_error(error)
    if isinstance(cause, BrokenPipeError) and isinstance(unwritten, BrokenPipeError):
        return 0, ""  # the reader of a pipe has closed it, as head does
    if isinstance(cause, KeyboardInterrupt):
        return INTERRUPTED, ": ".join(filter(None, ("interrupted", *map(str, cause.args))))
    if isinstance(cause, errors.Reported):
        return cause.status, str(cause)
    if isinstance(cause, errors.XnatError):
        log.debug("ended by", exc_info=error)
        return exit_status(cause), " ".join(str(cause).split())
    if isinstance(cause, OSError):
        log.info("ended by", exc_info=error)
        where = "standard output" if unwritten else cause.filename
        return EXIT_STATUS[OSError], line(f"{f'{os.fsdecode(where)}: ' if where else ''}{cause.strerror or cause}")
    log.critical("this should not happen", exc_info=error)
    # Not its repr: that of a UnicodeEncodeError holds all of the text, for example a password.
    text = f"this should not happen, and is a fault of this program: {type(cause).__name__}: {cause}"
    return FAULT, line(text)
