"""Run config init|show|add-profile|use-context|current-context on the profile file, which other programs share."""

import argparse
import os
from pathlib import Path
from typing import Any

from xnatfs.cli import options
from xnatfs.cli.ctl.command import Command, Context
from xnatfs.cli.output import show_item, show_rows
from xnatfs.common.errors import ConfigError
from xnatfs.settings import profile_file as profiles
from xnatfs.settings.config import Profile, normalised_url, profiles_path, read_profiles, select_profile

COLUMNS = {
    "profile": "Profile",
    "url": "URL",
    "username": "Username",
    "default_project": "Default Project",
    "default": "Default",
}


def _profile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--username", metavar="USER", help="the account there (else asked for at a login)")
    parser.add_argument(
        "-P", "--project", "--default-project", dest="project", metavar="PROJECT", help="meant where none is given"
    )
    parser.add_argument("--timeout", type=options.positive_seconds, metavar="S", help="longest wait for an answer")
    parser.add_argument("--force", action="store_true", help="change a profile that is there already")


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="of the profile; -p is the same (default: default)")
    _profile_arguments(parser)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    _profile_arguments(parser)


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")


async def add(context: Context) -> None:
    arguments = context.arguments
    url, name = arguments.url, arguments.name or arguments.profile or "default"
    if not url:  # a URL from the environment is not written to the file
        raise ConfigError("which XNAT? Give --url")
    cells: dict[str, Any] = {"url": url}
    normalised_url(url)
    if arguments.username:
        cells["username"] = arguments.username
    if arguments.project:
        cells["default_project"] = arguments.project
    cells |= server_cells(arguments)
    if arguments.timeout:
        cells["timeout"] = int(arguments.timeout) or 1
    profiles.add_profile(name, cells, replace=arguments.force)
    context.note(f"Profile {name} is in {profiles_path()}")


def server_cells(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the TLS options of the command line as the keys of a profile."""
    cells: dict[str, Any] = {}
    if arguments.no_verify_ssl:
        cells["verify_ssl"] = False
    if arguments.ca_bundle:
        cells["ca_bundle"] = str(Path(arguments.ca_bundle).expanduser().absolute())
    return cells


async def show(context: Context) -> None:
    """Show the profiles, without passwords in any format."""
    known, default = read_profiles(profiles_path())
    chosen = _chosen()
    rows = [
        {
            "profile": profile.name,
            "url": profile.url,
            "username": profile.username or None,
            "password": "********" if profile.password else None,
            "password_source": profile.password_source or None,
            "default_project": profile.default_project or None,
            "provider": profile.provider or None,
            "verify_ssl": profile.verify_ssl,
            "ca_bundle": profile.ca_bundle or None,
            "timeout": profile.timeout,
            "default": profile.name == (default if default in known else chosen),
        }
        for profile in known.values()
        if profile.name == (context.arguments.profile or profile.name)
    ]
    if context.arguments.profile and not rows:
        select_profile(context.arguments.profile, {})  # raises, naming the profiles there are
    show_rows(context.arguments, COLUMNS, rows, "profile")


async def use(context: Context) -> None:
    profiles.use_profile(context.arguments.name)
    context.note(f"Profile {context.arguments.name} is the default now")


async def current(context: Context) -> None:
    profile: Profile = select_profile(context.arguments.profile, os.environ)
    if not profile.name:
        raise ConfigError(f"there is no profile in {profiles_path()}: 'xnatctl config init --url URL' makes one")
    if context.arguments.output in ("json", "jsonl"):
        show_item(context.arguments, {"profile": profile.name}, "profile", {})
    else:
        print(profile.name)


def _chosen() -> str:
    return select_profile(None, {}).name


COMMANDS = [
    Command(
        "config",
        "init",
        "write a first profile",
        "xnatctl config init --url https://xnat.example.org",
        add,
        _init_arguments,
    ),
    Command(
        "config",
        "add-profile",
        "write another profile",
        "xnatctl config add-profile dev --url https://dev.example.org",
        add,
        _add_arguments,
    ),
    Command("config", "show", "list the profiles", "xnatctl config show", show, columns=COLUMNS),
    Command("config", "use-context", "make a profile the default", "xnatctl config use-context dev", use, _name),
    Command("config", "current-context", "tell which profile is meant", "xnatctl config current-context", current),
]
