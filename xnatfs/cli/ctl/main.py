"""Build the parser of xnatctl from its commands, run one of them, and report its error."""

import argparse
import json
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from xnatfs.cli import options
from xnatfs.cli.ctl.command import Command, Context
from xnatfs.cli.output import OUTPUT_FORMATS, check_columns, print_message, show_item, show_rows
from xnatfs.cli.parsing import COMMON_OPTIONS_TITLE, add_command
from xnatfs.common.errors import ConfigError, XnatError
from xnatfs.common.sanitize import line
from xnatfs.settings.config import Config, connection_warning, output_format, profiles_path

# Retry budget, shorter than a mount's, since a user waits: after it, an unreachable host is an error.
RETRY_SECONDS = 10.0

# Other names of a verb and of a noun, by the habits of other programs and of XNAT.
VERB_ALIASES = {"list": ("ls",), "delete": ("rm",), "delete-profile": ("rm",), "show": ("view",)}
PLURALS = {noun: f"{noun}s" for noun in ("project", "subject", "session", "scan", "resource")}
NOUN_ALIASES = {noun: (plural,) for noun, plural in PLURALS.items()} | {
    "session": ("sessions", "experiment", "experiments")
}

# The commands, in the order of the help. Of one word, the summary is the first line of the command's docstring.
NOUNS = {
    "auth": "log in and out",
    "whoami": "show the current user",
    "api": "send any request, for what has no command",
    "config": "manage servers and defaults, by profile",
    "project": "list, show, export and download projects",
    "subject": "list, show and download the subjects of a project",
    "session": "find, list, show, download and upload imaging sessions (experiments)",
    "scan": "list, show and download the scans of a session",
    "resource": "list, show, download and upload resources of a scan or a session",
    "prearchive": "archive, move, delete and watch received sessions",
    "bids": "show how a project's images are named in BIDS, and draft a map of names",
    "browse": "open the web page of a session, a project or the server",
    "completion": "print what a shell needs to complete commands, options and names, of xnatfs as well",
}
# The modules in which the commands of a noun are. Only those of the nouns on the command line are imported.
LEVELS = ("project", "subject", "session", "scan", "resource")
COMMAND_MODULES = {
    "ctl.account": ("auth", "whoami"),
    "ctl.api": ("api",),
    "ctl.profiles": ("config",),
    "ctl.archive": LEVELS,
    "lookup.find": ("session",),
    "ctl.transfers": LEVELS,
    "ctl.uploads": ("session", "resource"),
    "ctl.prearchive": ("prearchive",),
    "lookup.watch": ("prearchive",),
    "lookup.bids": ("bids",),
    "lookup.browse": ("browse",),
    "lookup.export": ("project",),
    "ctl.completion": ("completion",),
}


def commands(nouns: Collection[str] = tuple(NOUNS)) -> list[Command]:
    """Return the commands of these nouns."""
    modules = [name for name, found in COMMAND_MODULES.items() if not set(nouns).isdisjoint(found)]
    made = [each for name in modules for each in import_module(f"xnatfs.cli.{name}").COMMANDS]
    return [each for each in made if (each.noun or each.verb) in nouns]


def named_nouns(words: Sequence[str]) -> Collection[str]:
    """Return the nouns that a command line has, perhaps as values of options; all of them for one without any."""
    found = [noun for noun in NOUNS if not {noun, *NOUN_ALIASES.get(noun, ())}.isdisjoint(words)]
    return found or (() if set(words) <= {"-h", "--help"} else NOUNS)


def build(parser: argparse.ArgumentParser, nouns: Collection[str] = tuple(NOUNS)) -> None:
    """Add every command to the parser, those of other nouns than these without options."""
    _add_common(parser)
    parser.set_defaults(
        **dict.fromkeys(("profile", "url", "ca_bundle", "output", "log_file")),
        **dict.fromkeys(("no_verify_ssl", "quiet", "verbose", "no_headers", "no_color", "plain"), False),
    )
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    group.plurals = frozenset({*PLURALS.values(), "experiments"})  # type: ignore[attr-defined]
    made = commands(nouns)
    for noun, summary in NOUNS.items():
        of_noun = [command for command in made if (command.noun or command.verb) == noun]
        if [command.noun for command in of_noun] == [""]:
            _add(group, of_noun[0])
            continue
        description = f"{summary[:1].upper()}{summary[1:]}."
        below = group.add_parser(noun, aliases=NOUN_ALIASES.get(noun, ()), help=summary, description=description)
        _add_common(below)
        if of_noun:
            verbs = below.add_subparsers(title="commands", metavar="COMMAND", required=True)
            for command in of_noun:
                _add(verbs, command)


def _add(group: Any, command: Command) -> None:
    """Add one command to those of the program or of its noun."""
    aliases = (*command.aliases, *VERB_ALIASES.get(command.verb, ()))
    made = add_command(group, command.verb, command.help, command.example, aliases=aliases)
    command.arguments(made)
    _add_common(made)
    if command.columns:
        _add_list_options(made)
    made.set_defaults(run=run, command=command)


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command, without defaults: those would override an option before the verb."""
    add = partial(parser.add_argument_group(COMMON_OPTIONS_TITLE).add_argument, default=argparse.SUPPRESS)
    add("-p", "--profile", metavar="NAME", help="profile (default: XNAT_PROFILE)")
    add("--url", help="the XNAT server (default: XNAT_URL, else the profile's)")
    add("--ca-bundle", metavar="FILE", help="trust the certificate authorities in FILE")
    add("--no-verify-ssl", action="store_true", help="accept any certificate")
    formats = f"one of {', '.join(OUTPUT_FORMATS)} (default: table)"
    add("-o", "--output", choices=OUTPUT_FORMATS, metavar="FORMAT", help=formats)
    add("-q", "--quiet", action="store_true", help="print identifiers only")
    add("-v", "--verbose", action="store_true", help="log requests to stderr")
    add("--no-color", action="store_true", help="print no colours, as with NO_COLOR in the environment")
    add("--plain", action="store_true", help="print a row a line, without colours, folding and progress bars")
    add("--no-headers", action="store_true", help="print no column titles")
    add("--log-file", metavar="FILE", help="append the log to FILE")


def _add_list_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("options of lists").add_argument
    add("--columns", metavar="A,B", help="print these columns only")
    matching = "print rows that match only, as type:T1*; repeatable"
    add("--filter", metavar="FIELD:PATTERN", action="append", default=[], help=matching)
    add("--sort-by", metavar="FIELD[:desc]", help="sort by this column")
    add("--limit", metavar="N", type=options.number, help="print at most N rows")


def run(arguments: argparse.Namespace) -> int:
    """Find the server, run the command, and print its result."""
    environ, command = os.environ, arguments.command
    arguments.verbose = arguments.verbose or bool(environ.get("XNATCTL_DEBUG"))
    if not arguments.output and not command.repairs:
        arguments.output = output_format(profiles_path())
    if arguments.output not in OUTPUT_FORMATS:
        arguments.output = "table"
    if command.columns:
        check_columns(arguments, command.columns)
    options.configure_logging(arguments, environ)
    _report_locks(arguments)
    config = _config(arguments, environ)
    from xnatfs.settings.logins import login_environment  # help is printed without it, and without trio

    context = Context(arguments, config, login_environment(config))
    if warning := connection_warning(context.config):
        print_message(f"xnatctl: {warning}")
    import trio

    from xnatfs.common.tasks import kept_interrupts

    with context.interruptible(), kept_interrupts():
        result = trio.run(command.run, context)
    if isinstance(result, list):
        show_rows(arguments, command.columns, result, command.identifier, context.no_rows_text)
    elif isinstance(result, dict):
        show_item(arguments, result, command.identifier)
    else:
        return int(result or 0)
    if context.hint:
        print_message(context.hint)
    return context.exit_status


def _config(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """Return the settings of the server; empty ones for a command that needs no server."""
    if arguments.command.noun == "config" or arguments.command.verb == "completion":
        return Config("")
    if arguments.profile and arguments.url:
        raise ConfigError("give either --profile or --url, not both")
    config = options.server_config(arguments, environ)
    timeout = config.profile.timeout
    return replace(config, timeout=timeout, retry_budget=min(timeout, RETRY_SECONDS))


class _MessageHandler(logging.Handler):
    """Report a log record to the user."""

    def emit(self, record: logging.LogRecord) -> None:
        print_message(f"xnatctl: {line(record.getMessage())}")


def _report_locks(arguments: argparse.Namespace) -> None:
    """Report on stderr, unless the log goes there, that a lock was not acquired in time."""
    log = logging.getLogger("xnatfs.common.locks")
    log.setLevel(logging.WARNING)
    if not log.handlers and (arguments.log_file or not arguments.verbose):
        log.addHandler(_MessageHandler())


def print_error(error: BaseException, text: str, status: int, argv: Sequence[str]) -> None:
    """Print an error as a line, or as JSON if the command line, which may be invalid, requests that."""
    if not re.search(r"(^|\s)(-o\s*|--output[ =])json", " ".join(argv)):
        print_message(f"xnatctl: {text}")
        return
    xnat = error if isinstance(error, XnatError) else XnatError(text)
    fields = {
        "kind": type(error).__name__,
        "message": text,
        "hint": xnat.hint,
        "status": xnat.status,
        "url": xnat.url,
        "exit_code": status,
    }
    print_message(json.dumps({"error": fields}, ensure_ascii=False))
