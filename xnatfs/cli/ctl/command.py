"""Define the options and commands of xnatctl, and the context that a command works with.

A command is one `Command` in one of the modules below: noun, verb, its own options, a coroutine. Common options may
precede or follow the verb; the one nearest to the end of the line counts.
"""

import argparse
import json
import logging
import os
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from xnatfs.cli import options, statusline
from xnatfs.cli.output import FORMATS, check_columns, note, tell
from xnatfs.common import program
from xnatfs.common.errors import ConfigError, Denied, NotFound, XnatError
from xnatfs.common.sanitize import line

if TYPE_CHECKING:
    from xnatfs.rest.client import Xnat
    from xnatfs.rest.models import Row
    from xnatfs.settings.config import Config
    from xnatfs.settings.credentials import Credentials
    from xnatfs.settings.session_store import SessionStore
    from xnatfs.site import Site

# Retry budget in seconds, shorter than a mount's, since a user waits: after it, an unreachable host is an error.
PATIENCE = 10.0

MODULES = ("account", "profiles", "archive", "transfers", "uploads", "prearchive", "completion")

PARTIAL = 8  # exit status if a command was done in part

NOUNS = {
    "auth": "log in and out",
    "config": "servers and defaults, by profile",
    "project": "projects",
    "subject": "subjects of a project",
    "session": "imaging sessions (experiments)",
    "scan": "scans of a session",
    "resource": "resources of a scan or a session, and their files",
    "prearchive": "sessions that wait to be archived",
    "api": "any request, for what has no command",
}

DEFAULTS: dict[str, Any] = {
    "profile": None,
    "url": None,
    "ca_bundle": None,
    "no_verify_ssl": False,
    "output": None,
    "quiet": False,
    "verbose": False,
    "no_headers": False,
    "no_color": False,
    "log_file": None,
    "filter": [],
    "sort_by": None,
    "limit": None,
    "columns": None,
}


@dataclass(frozen=True)
class Command:
    """One verb. `columns` are the titles of a list by key, or empty."""

    noun: str  # '' for a command of one word
    verb: str
    help: str
    example: str
    run: Callable[["Context"], Awaitable[int | None]]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    columns: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


@dataclass
class Context:
    """Arguments of a command, and the server that they name."""

    arguments: argparse.Namespace
    config: "Config"
    environ: Mapping[str, str] = field(repr=False)  # may hold the password
    user: str = ""  # account to log in as, if another than environment or profile name
    began: float = field(default_factory=time.monotonic)
    left: Callable[[], str] | None = None  # describes what an interrupt would leave

    @property
    def seconds(self) -> float:
        """Return how many seconds the user has waited."""
        return time.monotonic() - self.began

    @property
    def store(self) -> "SessionStore":
        from xnatfs.cli.logins import session_store

        return session_store(self.config, self.environ.get("XNAT_TOKEN", ""), self.user)

    def credentials(self) -> "Credentials | None":
        """Find the login, or prompt for it if no session is alive. Raises LoginRequired."""
        from xnatfs.cli.logins import find_login

        return find_login(self.config, self.environ.get("XNAT_TOKEN", ""))

    @asynccontextmanager
    async def xnat(self, credentials: "Credentials | None" = None) -> "AsyncIterator[Xnat]":
        from xnatfs.rest.client import open_xnat

        credentials = credentials or self.credentials()  # may prompt on the terminal
        with self._waiting():
            async with open_xnat(self.config, credentials, sessions=self.store) as xnat:
                yield xnat

    @asynccontextmanager
    async def site(self) -> "AsyncIterator[Site]":
        from xnatfs.site import open_site

        config, credentials = replace(self.config, cache_dir=options.cache_directory()), self.credentials()
        with self._waiting():
            async with open_site(config, credentials, sessions=self.store) as site:
                yield site

    def _waiting(self) -> AbstractContextManager[None]:
        """Show on a terminal what is requested if it takes long; not with --quiet, nor if requests are logged."""
        if self.arguments.quiet or self.arguments.verbose:
            return nullcontext()
        return statusline.waiting(f"Asking {self.config.url}: {self.arguments.command.help}")

    @contextmanager
    def resumable(self, left: Callable[[], str]) -> Iterator[None]:
        """Have Ctrl-C report from here on what is `left`, and the command that resumes from there.

        The interrupt may be raised in any task, of the site as well: `interruptible`, around all of them, handles it.
        """
        before, self.left = self.left, left
        yield
        self.left = before

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Add to an interrupt what it has left, and the command that resumes it, if one can."""
        try:
            yield
        except (KeyboardInterrupt, BaseExceptionGroup) as error:
            if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt) is None:
                raise
            if self.left is None:
                raise KeyboardInterrupt from None
            words = [word for word in self.arguments.command_line if word != "--no-resume"]
            raise KeyboardInterrupt(f"{self.left()}: {program.spell('xnatctl')} {shlex.join(words)}") from None

    def project(self, needed: bool = True) -> str:
        """Return the project of -P, else the profile's default. Raises ConfigError if `needed` and there is none."""
        given: str | None = getattr(self.arguments, "project", None)
        project = self.config.profile.default_project if given is None else given
        if needed and not project:
            where = f"profile {self.config.profile.name!r}" if self.config.profile.name else "a profile"
            raise ConfigError(f"which project? Give -P/--project, or set default_project in {where}")
        return project

    def remember(self, xnat: "Xnat", key: Sequence[str], rows: "Sequence[Row]") -> None:
        """Store the names of a listing, from which shells complete names."""
        from xnatfs.listings.completion import NAMES, Listings

        Listings(self.config.url, xnat.login.username).remember(key, NAMES[key[0]](rows))

    def note(self, text: str) -> None:
        note(self.arguments, text)

    @contextmanager
    def about(self, what: str, role: str = "Member") -> Iterator[None]:
        """Name in errors what was not found or not allowed as the command line does, not by a URL."""
        url = self.config.url
        try:
            yield
        except NotFound as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise NotFound(f"{what} not found on {url}{hint}", status=404, url=url, hint=error.hint) from error
        except Denied as error:
            text = f"{what} on {url}: your account may not do this, which normally takes the role {role}"
            raise Denied(text, status=403, url=url) from error


def commands() -> list[Command]:
    return [command for name in MODULES for command in import_module(f"xnatfs.cli.ctl.{name}").COMMANDS]


def build(parser: argparse.ArgumentParser, only: Sequence[Command] | None = None) -> None:
    """Add every command to the parser."""
    _common(parser)
    nouns = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    verbs: dict[str, Any] = {}
    for command in commands() if only is None else only:
        group = nouns
        if command.noun:
            if command.noun not in verbs:
                noun = nouns.add_parser(command.noun, help=NOUNS[command.noun], allow_abbrev=False)
                _common(noun)
                verbs[command.noun] = noun.add_subparsers(title="commands", metavar="COMMAND", required=True)
            group = verbs[command.noun]
        made = group.add_parser(
            command.verb,
            aliases=command.aliases,
            help=command.help,
            description=command.help[:1].upper() + command.help[1:] + ".",
            epilog=f"example: {command.example}",
            allow_abbrev=False,
        )
        command.arguments(made)
        _common(made)
        if command.columns:
            _list_options(made)
        made.set_defaults(run=run, command=command)


def _common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command, without defaults: those would override an option before the verb."""
    nothing = argparse.SUPPRESS
    group = parser.add_argument_group("options of all commands")
    group.add_argument("-p", "--profile", metavar="NAME", default=nothing, help="profile (else XNAT_PROFILE)")
    group.add_argument("--url", default=nothing, help="the XNAT (else XNAT_URL, else the profile's)")
    group.add_argument("--ca-bundle", metavar="FILE", default=nothing, help="trust the authorities in FILE")
    group.add_argument("--no-verify-ssl", action="store_true", default=nothing, help="trust any certificate")
    group.add_argument("-o", "--output", choices=FORMATS, default=nothing, help="default: table")
    group.add_argument("-q", "--quiet", action="store_true", default=nothing, help="identifiers only")
    group.add_argument("-v", "--verbose", action="store_true", default=nothing, help="tell what is asked, on stderr")
    group.add_argument("--no-color", action="store_true", default=nothing, help="no colours")
    group.add_argument("--no-headers", action="store_true", default=nothing, help="no line of titles")
    group.add_argument("--log-file", metavar="FILE", default=nothing, help="log there")


def _list_options(parser: argparse.ArgumentParser) -> None:
    nothing = argparse.SUPPRESS
    group = parser.add_argument_group("options of lists")
    group.add_argument("--columns", metavar="A,B", default=nothing, help="only these columns")
    group.add_argument(
        "--filter", metavar="FIELD:PATTERN", action="append", default=nothing, help="only rows like this, as type:T1*"
    )
    group.add_argument("--sort-by", metavar="FIELD[:desc]", default=nothing, help="in this order")
    group.add_argument("--limit", metavar="N", type=options.number, default=nothing, help="at most this many")


def run(arguments: argparse.Namespace) -> int:
    """Fill in defaults, find the server, and run the command."""
    for key, value in DEFAULTS.items():
        if not hasattr(arguments, key):
            setattr(arguments, key, value)
    from xnatfs.settings.config import who_reads_along

    environ = os.environ
    arguments.verbose = arguments.verbose or bool(environ.get("XNATCTL_DEBUG"))
    command: Command = arguments.command
    arguments.output = arguments.output or options.default_output(environ)
    if command.columns:
        check_columns(arguments, command.columns)
    options.log_to(arguments, environ)
    _tell_of_locks(arguments)
    context = Context(arguments, _config(arguments, environ, command), environ)
    if warning := who_reads_along(context.config):
        tell(f"xnatctl: {warning}")
    import trio

    with context.interruptible():
        return trio.run(command.run, context) or 0


class _Teller(logging.Handler):
    """Report a log record to the user."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(f"xnatctl: {line(record.getMessage())}")


def _tell_of_locks(arguments: argparse.Namespace) -> None:
    """Report on stderr, unless the log goes there, that a lock was not acquired in time."""
    log = logging.getLogger("xnatfs.common.locks")
    log.setLevel(logging.WARNING)
    if not log.handlers and (arguments.log_file or not arguments.verbose):
        log.addHandler(_Teller())


def _config(arguments: argparse.Namespace, environ: Mapping[str, str], command: Command) -> "Config":
    """Return the settings of the server; empty ones for a command that needs no server."""
    from xnatfs.settings.config import Config

    if command.noun == "config" or command.verb == "completion":
        return Config("")
    if arguments.profile and arguments.url:
        raise ConfigError("give either --profile or --url, not both")
    config = options.server_config(arguments, environ)
    timeout = config.profile.timeout
    return replace(config, timeout=timeout, retry_budget=min(timeout, PATIENCE))


def error_object(error: BaseException, line: str, status: int) -> str:
    """Return an error as JSON, for programs."""
    xnat = error if isinstance(error, XnatError) else XnatError(line)
    fields = {
        "kind": type(error).__name__,
        "message": line,
        "hint": xnat.hint,
        "status": xnat.status,
        "url": xnat.url,
        "exit_code": status,
    }
    return json.dumps({"error": fields}, ensure_ascii=False)


def wants_json(argv: Sequence[str]) -> bool:
    """Return whether the command line requests JSON; it may be one that could not be parsed."""
    text = " ".join(argv)
    return any(
        f"{flag}{kind}" in text for flag in ("-o ", "-o", "--output ", "--output=") for kind in ("json", "jsonl")
    )


def print_error(error: BaseException, line: str, status: int, argv: Sequence[str]) -> None:
    tell(error_object(error, line, status) if wants_json(argv) else f"xnatctl: {line}")
