"""Run completion bash|zsh|fish, and answer the shells.

Commands and options come from the parser, values from recent listings, else from one request that may take 300 ms.
Completion never prompts for anything, and never prints errors.
"""

import argparse
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xnatfs.cli import options
from xnatfs.cli.ctl import command as ctl
from xnatfs.cli.ctl.command import Command, Context
from xnatfs.common.errors import XnatError
from xnatfs.listings.completion import NAMES, PATHS, Listings, Name, shown
from xnatfs.settings.config import profiles_path, read_profiles

# Seconds that a request may take: in a longer time a user has typed the name.
PATIENCE = 0.3

SHELLS = ("bash", "zsh", "fish")


async def completion(context: Context) -> None:
    """Print the shell's own part, for its start-up file."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["xnatctl"], shell=context.arguments.shell), end="")


def _shell(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


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
        elif completer := COMPLETERS.get(action.dest):
            action.completer = completer  # type: ignore[attr-defined]


# -- values ------------------------------------------------------------------------------------------------------


def profiles(prefix: str, parsed_args: argparse.Namespace, **more: Any) -> dict[str, str]:
    try:
        kept, _ = read_profiles(profiles_path())
    except XnatError:
        return {}
    return {name: profile.url for name, profile in kept.items()}


def _values(find: Callable[["_Asking"], Sequence[Name]]) -> Callable[..., dict[str, str]]:
    """Return a completer, which has no values to offer if `find` fails."""

    def completer(prefix: str, parsed_args: argparse.Namespace, **more: Any) -> dict[str, str]:
        logging.disable()  # without a handler, Python would print warnings into the line being edited
        try:
            return dict(find(_Asking(parsed_args)))
        except Exception:  # offline, logged out, no profile: errors would disturb the prompt
            return {}

    return completer


class _Asking:
    """Values of the command line so far, and the names in the listings that they refer to."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from xnatfs.cli.logins import session_store

        for key, value in ctl.DEFAULTS.items():
            if not hasattr(arguments, key):
                setattr(arguments, key, value)
        self.arguments = arguments
        self.config = options.server_config(arguments, os.environ)
        self.store = session_store(self.config, os.environ.get("XNAT_TOKEN", ""))
        self.session = self.store.find()
        self.listings = Listings(self.config.url, self.session.username if self.session else self.store.username)

    def said(self, *names: str) -> str:
        """Return the value of the first of these arguments that the line has."""
        values = (getattr(self.arguments, name, None) for name in names)
        return next((value for value in values if isinstance(value, str) and value), "")

    @property
    def project(self) -> str:
        return self.said("project", "project_id") or self.config.profile.default_project

    def accession(self) -> str:
        """Return the accession ID of the session on the line; that of a label is known if its project was listed."""
        value = self.said("experiment", "session_id")
        listed = self.names("sessions", self.project) if self.project else ()
        return next((what.split()[0] for label, what in listed if label == value and what), value)

    def names(self, *key: str) -> Sequence[Name]:
        """Return the names of this listing, stored or requested."""
        if (known := self.listings.recall(key)) is not None:
            return known
        if self.session is None:  # a login takes longer than 300 ms, and may prompt for a password
            return ()
        import trio

        return trio.run(self._ask, key)

    async def _ask(self, key: Sequence[str]) -> Sequence[Name]:
        import trio

        from xnatfs.rest.client import open_xnat

        found: Sequence[Name] = ()
        with trio.move_on_after(PATIENCE):
            async with open_xnat(self.config, None, sessions=self.store) as xnat:
                where, columns = PATHS[key[0]]
                parts = [part.format(*key[1:]) for part in where]
                rows = await xnat.rows(*parts, columns=columns)
                found = shown(NAMES[key[0]](rows))
        if found:
            self.listings.remember(key, found)
        return found


def _scans(asking: _Asking) -> Sequence[Name]:
    return asking.names("scans", asking.accession())


def _scan_list(prefix: str, parsed_args: argparse.Namespace, **more: Any) -> dict[str, str]:
    """Complete the last of '1,2,3'."""
    before, comma, _ = prefix.rpartition(",")
    found: dict[str, str] = _values(_scans)(prefix, parsed_args, **more)
    return {f"{before}{comma}{name}": what for name, what in found.items()}


def _resources(asking: _Asking) -> Sequence[Name]:
    scan = asking.said("scan")
    item = asking.accession()
    return asking.names("scan resources", item, scan) if scan else asking.names("resources", item)


def _sessions(asking: _Asking) -> Sequence[Name]:
    return asking.names("sessions", asking.project) if asking.project else ()


def _waiting(asking: _Asking) -> Sequence[Name]:
    return asking.names("prearchive", asking.project) if asking.project else ()


def _session(asking: _Asking) -> Sequence[Name]:
    """Complete --session: a session of the archive, or for `prearchive` one of the prearchive."""
    return _waiting(asking) if asking.arguments.command.noun == "prearchive" else _sessions(asking)


def _place(asking: _Asking) -> Sequence[Name]:
    """Complete PROJECT TIMESTAMP SESSION, one after the other."""
    words: list[str] = [word for word in getattr(asking.arguments, "place", None) or ()]
    if not words:
        return asking.names("projects")
    rows = asking.names("prearchive", words[0])
    if len(words) == 1:
        return [(what.split()[0], name) for name, what in rows]
    return [(name, what) for name, what in rows if what.startswith(words[1])]


COMPLETERS: Mapping[str, Callable[..., dict[str, str]]] = {
    "profile": profiles,
    "project": _values(lambda asking: asking.names("projects")),
    "project_id": _values(lambda asking: asking.names("projects")),
    "to": _values(lambda asking: asking.names("projects")),
    "subject": _values(lambda asking: asking.names("subjects", asking.project)),
    "subject_id": _values(lambda asking: asking.names("subjects", asking.project)),
    "experiment": _values(_sessions),
    "session_id": _values(_sessions),
    "session": _values(_session),
    "scans": _scan_list,
    "scan": _values(_scans),
    "resource": _values(_resources),
    "words": _values(_resources),
    "place": _values(_place),
}

COMMANDS = [
    Command(
        "",
        "completion",
        "print what a shell needs to complete commands, options and names",
        "xnatctl completion bash > ~/.local/share/bash-completion/completions/xnatctl",
        completion,
        _shell,
    ),
]
