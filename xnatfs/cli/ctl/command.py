"""Declare the commands of xnatctl and their options, and provide the context that a command works in.

A command is a coroutine with `@command`, in one of the modules beside this one. It returns the rows of a list or the
fields of an item, which are printed in the requested format, or an exit status if it has printed all itself.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from xnatfs.cli import statusline
from xnatfs.cli.output import note
from xnatfs.common import program
from xnatfs.common.errors import ConfigError, Denied, NotFound
from xnatfs.settings.cache_location import cache_directory
from xnatfs.settings.config import Config, server_directory

if TYPE_CHECKING:  # help, errors and completion start in a fifth of the time without these
    from xnatfs.listings.store import ListingFile
    from xnatfs.rest.changes import ChangedItems
    from xnatfs.rest.client import Xnat
    from xnatfs.rest.models import Row
    from xnatfs.settings.credentials import Credentials
    from xnatfs.settings.session_store import SessionStore
    from xnatfs.site import Site

# Adds an option or an argument to a parser.
Option = Callable[[argparse.ArgumentParser], object]


def option(*names: str, **settings: Any) -> Option:
    """Declare an option, or a positional argument, by what `argparse` takes for it."""
    return lambda parser: parser.add_argument(*names, **settings)


def options_of(*options: Option) -> Option:
    """Declare several options as one."""

    def add(parser: argparse.ArgumentParser) -> None:
        for each in options:
            each(parser)

    return add


def exclusive(*options: Option) -> Option:
    """Declare options of which a command line may have one."""
    return lambda parser: options_of(*options)(parser.add_mutually_exclusive_group())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Command:
    """One verb of a noun."""

    noun: str  # '' for a command of one word
    verb: str
    help: str
    example: str
    run: Callable[[Context], Awaitable[Any]]
    arguments: Option = lambda parser: None
    columns: tuple[str, ...] = ()  # keys of the rows of a list that a table shows
    identifier: str = "id"  # key of a row or an item that --quiet prints
    aliases: tuple[str, ...] = ()
    repairs: bool = False  # works while the profile file cannot be read


def command(
    words: str, example: str, *options: Option, columns: tuple[str, ...] = (), identifier: str = "id"
) -> Callable[[Callable[[Context], Awaitable[Any]]], Command]:
    """Make a command of a coroutine. The first line of its docstring is the command's help.

    Args:
        words: Noun and verb.
        example: A command line, for the help.
        options: What the command takes beside the options of all commands.
        columns: Keys of its rows that a table shows; empty for a command that does not list.
        identifier: Key of a row or an item that --quiet prints.
    """

    def declare(run: Callable[[Context], Awaitable[Any]]) -> Command:
        noun, _, verb = words.rpartition(" ")
        summary = (run.__doc__ or "").partition("\n")[0].rstrip(".")
        summary = summary[:1].lower() + summary[1:]
        return Command(noun, verb, summary, example, run, options_of(*options), columns, identifier)

    return declare


project_option = option(
    "-P", "--project", metavar="PROJECT", help="default: the profile's default_project; '' for none"
)


refresh_option = option("--refresh", action="store_true", help="request the list even if a mount has a recent one")


@dataclass
class Context:
    """Arguments of a command, and the server that they name."""

    arguments: argparse.Namespace
    config: Config
    environ: Mapping[str, str] = field(repr=False)  # may hold the password
    user: str = ""  # account to log in as, if another than environment or profile name
    began: float = field(default_factory=time.monotonic)
    no_rows_text: str = "No results"  # for a table without rows
    hint: str = ""  # for the user, after the result
    exit_status: int = 0  # of a command that returns rows or fields
    on_interrupt: Callable[[], str] | None = None  # describes what an interrupt would leave

    @property
    def seconds(self) -> float:
        """Return how many seconds the user has waited."""
        return time.monotonic() - self.began

    @property
    def store(self) -> SessionStore:
        from xnatfs.settings.logins import session_store

        return session_store(self.config, user=self.user)

    @asynccontextmanager
    async def xnat(self, credentials: Credentials | None = None) -> AsyncIterator[Xnat]:
        credentials = credentials or self._login()
        with self._waiting():
            async with open_client(self.config, credentials, self.store) as xnat:
                try:
                    yield xnat
                finally:
                    self._announce(xnat.changed)

    @asynccontextmanager
    async def site(self) -> AsyncIterator[Site]:
        from xnatfs.site import open_site

        config, credentials = replace(self.config, cache_dir=cache_directory()), self._login()
        with self._waiting():
            async with open_site(config, credentials, sessions=self.store) as site:
                yield site

    def _login(self) -> Credentials | None:
        """Find the login, which may prompt on the terminal."""
        from xnatfs.settings.logins import find_login

        return find_login(self.config)

    def _announce(self, changed: ChangedItems) -> None:
        """Report to the mounts of this server what has changed there."""
        if changed:
            from xnatfs.cli.control import client  # most commands change nothing

            client.announce(self.config.url, changed.projects, changed.experiments)

    def _waiting(self) -> AbstractContextManager[None]:
        """Show on a terminal what is requested if it takes long; not if requests are logged, or nothing is wanted."""
        if self.arguments.quiet or self.arguments.verbose or self.arguments.plain:
            return nullcontext()
        return statusline.waiting(f"Asking {self.config.url}: {self.arguments.command.help}")

    @contextmanager
    def resumable(self, describe: Callable[[], str]) -> Iterator[None]:
        """Have Ctrl-C report from here on what it leaves, and the command that resumes from there.

        The interrupt may be raised in any task, of the site as well: `interruptible`, around all of them, handles it.
        """
        before, self.on_interrupt = self.on_interrupt, describe
        yield
        self.on_interrupt = before

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Add to an interrupt what it has left, and the command that resumes it, if one can."""
        try:
            yield
        except (KeyboardInterrupt, BaseExceptionGroup) as error:
            if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt) is None:
                raise
            if self.on_interrupt is None:
                raise KeyboardInterrupt from None
            words = [word for word in self.arguments.command_line if word != "--no-resume"]
            again = f"{program.spell('xnatctl')} {shlex.join(words)}"
            raise KeyboardInterrupt(f"{self.on_interrupt()}: {again}") from None

    def project(self, needed: bool = True) -> str:
        """Return the project of -P, else the profile's default. Raises ConfigError if `needed` and there is none."""
        given: str | None = getattr(self.arguments, "project", None)
        project = self.config.profile.default_project if given is None else given
        if needed and not project:
            default = "set default_project in a profile"
            if self.config.profile.name:
                default = f"choose a default by '{program.spell('xnatctl')} config set default_project PROJECT'"
            raise ConfigError(f"which project? Give -P/--project, or {default}")
        return project

    def mounted_rows(self, *item: str) -> list[Row] | None:
        """Return a list, given as the segments of its URL, from a mount of this account that holds it fresh."""
        session = None if self.arguments.refresh else self.store.find()
        if session is None or not session.username:
            return None
        from xnatfs.cli.control.client import find_rows
        from xnatfs.rest.models import Row

        found = find_rows(self.config.url, session.username, item)
        return None if found is None else list(map(Row, found))

    def remember(self, xnat: Xnat, key: Sequence[str], rows: Sequence[Row]) -> None:
        """Store the names of a listing, from which shells complete names."""
        from xnatfs.listings.completion import NAMES, store_names

        with suppress(ConfigError):  # there is no directory on this machine
            store_names(stored_names(self.config.url, xnat.login.username), key, NAMES[key[0]](rows))

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


def open_client(
    config: Config, credentials: Credentials | None, sessions: SessionStore | None = None
) -> AbstractAsyncContextManager[Xnat]:
    """Open a client of a server, without sending a request yet; see `open_xnat`."""
    from xnatfs.rest.client import open_xnat

    return open_xnat(config, credentials, sessions=sessions)


def stored_names(url: str, username: str) -> ListingFile:
    """Return the listings on the disk of an account. Raises ConfigError if no directory of this machine can be used."""
    from xnatfs.listings.store import ListingFile

    return ListingFile(cache_directory() / server_directory(url), lambda: username)
