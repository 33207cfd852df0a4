"""Run completion bash|zsh|fish, and answer the shells.

Commands and options come from the parser, values from recent listings, else from one request that may take 300 ms.
Completion never prompts for anything, and never prints errors.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from xnatfs.cli import options
from xnatfs.cli.ctl.command import Context, command, open_client, option, stored_names
from xnatfs.cli.output import title
from xnatfs.settings.config import Config, profiles_path, read_profiles
from xnatfs.settings.logins import session_store
from xnatfs.settings.session_store import SessionStore

if TYPE_CHECKING:
    from xnatfs.listings.completion import Name

# How long a request may take: in a longer time a user has typed the name.
REQUEST_SECONDS = 0.3


@command(
    "completion",
    "xnatctl completion bash > ~/.local/share/bash-completion/completions/xnatctl",
    option("shell", choices=("bash", "zsh", "fish")),
)
async def completion(context: Context) -> None:
    """Print what a shell needs to complete commands, options and names, of xnatfs as well."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["xnatctl", "xnatfs"], shell=context.arguments.shell), end="")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that requests completions, and exit; return if none does."""
    import argcomplete

    _attach(parser)
    argcomplete.autocomplete(parser, always_complete_options="long")


def _attach(parser: argparse.ArgumentParser) -> None:
    """Attach a completer to every option and argument that takes a name of the archive."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _attach(below)
        elif find := COMPLETERS.get(action.dest):
            action.completer = _completer(find, action.dest in LIST_DESTINATIONS)  # type: ignore[attr-defined]


# Arguments whose values have commas between them.
LIST_DESTINATIONS = ("scans", "columns")

# Finds names, each with its description.
Find = Callable[["CommandLine"], Sequence[tuple[str, str]]]


def _completer(find: Find, is_list: bool) -> Callable[..., dict[str, str]]:
    """Return a completer as argcomplete calls it, which offers no values if `find` fails.

    With `is_list`, the last item of a value such as 1,2,3 is completed.
    """

    def completer(prefix: str, parsed_args: argparse.Namespace, **more: Any) -> dict[str, str]:
        logging.disable()  # without a handler, Python would print warnings into the line being edited
        before, comma, _ = prefix.rpartition(",") if is_list else ("", "", "")
        try:
            return {f"{before}{comma}{name}": what for name, what in find(CommandLine(parsed_args))}
        except Exception:  # offline, logged out, no profile: errors would disturb the prompt
            return {}

    return completer


class CommandLine:
    """Values of the command line so far, and the names in the listings that they refer to."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments

    @cached_property
    def config(self) -> Config:
        return options.server_config(self.arguments, os.environ)

    @cached_property
    def store(self) -> SessionStore:
        return session_store(self.config)

    def value(self, *names: str) -> str:
        """Return the value of the first of these arguments that the line has."""
        values = (getattr(self.arguments, name, None) for name in names)
        return next((value for value in values if isinstance(value, str) and value), "")

    @property
    def project(self) -> str:
        return self.value("project", "project_id") or self.config.profile.default_project

    @property
    def accession(self) -> str:
        """Return the accession ID of the session on the line; that of a label is known if its project was listed."""
        value = self.value("experiment", "session_id")
        listed = self.names("sessions", self.project)
        return next((what.split()[0] for label, what in listed if label == value and what), value)

    def names(self, *key: str) -> Sequence[tuple[str, str]]:
        """Return the names of this listing, stored or requested."""
        from xnatfs.listings.completion import find_names, store_names

        if not all(key):
            return ()
        session = self.store.find()
        listings = stored_names(self.config.url, session.username if session else self.store.username)
        names: Sequence[Name] | None = find_names(listings, key)
        # Without a session none is begun: a login takes longer than REQUEST_SECONDS, and may prompt for a password.
        if names is None and session:
            import trio  # for a request only: what is stored completes in half of the time

            if names := trio.run(self._request, key):
                store_names(listings, key, names)
        return names or ()

    async def _request(self, key: Sequence[str]) -> Sequence[Name]:
        import trio

        from xnatfs.listings.completion import NAMES, PATHS, shown

        segments, columns = PATHS[key[0]]
        client = open_client(self.config, None, self.store)  # imports what takes a third of that time
        with trio.move_on_after(REQUEST_SECONDS):
            async with client as xnat:
                rows = await xnat.rows(*(segment.format(*key[1:]) for segment in segments), columns=columns)
                return shown(NAMES[key[0]](rows))
        return ()


def _profiles(line: CommandLine) -> Sequence[tuple[str, str]]:
    return [(name, profile.url) for name, profile in read_profiles(profiles_path())[0].items()]


def _projects(line: CommandLine) -> Sequence[tuple[str, str]]:
    return line.names("projects")


def _subjects(line: CommandLine) -> Sequence[tuple[str, str]]:
    return line.names("subjects", line.project)


def _experiments(line: CommandLine) -> Sequence[tuple[str, str]]:
    return line.names("sessions", line.project)


def _sessions(line: CommandLine) -> Sequence[tuple[str, str]]:
    """Complete --session: a session of the archive, or for `prearchive` one of the prearchive."""
    return line.names("prearchive" if line.arguments.command.noun == "prearchive" else "sessions", line.project)


def _scans(line: CommandLine) -> Sequence[tuple[str, str]]:
    return line.names("scans", line.accession)


def _resources(line: CommandLine) -> Sequence[tuple[str, str]]:
    scan = line.value("scan")
    return line.names("scan resources", line.accession, scan) if scan else line.names("resources", line.accession)


def _place(line: CommandLine) -> Sequence[tuple[str, str]]:
    """Complete PROJECT TIMESTAMP SESSION, one after the other."""
    words: list[str] = getattr(line.arguments, "place", None) or []
    if not words:
        return line.names("projects")
    rows = line.names("prearchive", words[0])
    if len(words) == 1:
        return [(what.split()[0], name) for name, what in rows]
    return [(name, what) for name, what in rows if what.startswith(words[1])]


def _columns(line: CommandLine) -> Sequence[tuple[str, str]]:
    return [(column, title(column)) for column in line.arguments.command.columns]


def _filters(line: CommandLine) -> Sequence[tuple[str, str]]:
    return [(f"{column}:", what) for column, what in _columns(line)]


# By the argument's name in the parsed command line.
COMPLETERS: Mapping[str, Find] = {
    "profile": _profiles,
    "project": _projects,
    "project_id": _projects,
    "to": _projects,
    "subject": _subjects,
    "subject_id": _subjects,
    "experiment": _experiments,
    "session_id": _experiments,
    "session_ids": _experiments,
    "session": _sessions,
    "scans": _scans,
    "scan": _scans,
    "resource": _resources,
    "words": _resources,
    "place": _place,
    "columns": _columns,
    "sort_by": _columns,
    "filter": _filters,
}

COMMANDS = [completion]
