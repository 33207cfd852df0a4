"""Run config init|show|add-profile|use-context|current-context on the profile file, which other programs share."""

import argparse
import os
from pathlib import Path
from typing import Any

from xnatfs.cli import options
from xnatfs.cli.ctl.command import Context, command, option, options_of
from xnatfs.cli.output import STRUCTURED_FORMATS, Cells, print_data, show_item
from xnatfs.common.errors import ConfigError
from xnatfs.settings import profile_file
from xnatfs.settings.config import normalised_url, profiles_path, read_profiles, select_profile

profile_options = options_of(
    option("--username", metavar="USER", help="the account there (default: a prompt at each login)"),
    option(
        *("-P", "--project", "--default-project"),
        dest="project",
        metavar="PROJECT",
        help="project of commands that name none",
    ),
    option("--timeout", type=options.positive_seconds, metavar="S", help="longest wait for the next byte of an answer"),
    option("--force", action="store_true", help="change an existing profile"),
)


@command(
    "config init",
    "xnatctl config init --url https://xnat.example.org",
    option("--name", metavar="NAME", help="name of the profile, as -p (default: default)"),
    profile_options,
)
async def init(context: Context) -> None:
    """Write a first profile."""
    _write_profile(context)


@command(
    "config add-profile",
    "xnatctl config add-profile dev --url https://dev.example.org",
    option("name", metavar="NAME"),
    profile_options,
)
async def add_profile(context: Context) -> None:
    """Write another profile."""
    _write_profile(context)


def _write_profile(context: Context) -> None:
    arguments = context.arguments
    url, name = arguments.url, arguments.name or arguments.profile or "default"
    if not url:  # a URL from the environment is not written to the file
        raise ConfigError("which XNAT? Give --url")
    normalised_url(url)
    cells = {
        "url": url,
        "username": arguments.username,
        "default_project": arguments.project,
        **tls_cells(arguments),
        "timeout": arguments.timeout and (int(arguments.timeout) or 1),
    }
    given = {key: value for key, value in cells.items() if value not in (None, "")}
    profile_file.add_profile(name, given, replace=arguments.force)
    context.note(f"Profile {name} is in {profiles_path()}")


def tls_cells(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the TLS options of the command line as the keys of a profile."""
    cells: dict[str, Any] = {}
    if arguments.no_verify_ssl:
        cells["verify_ssl"] = False
    if arguments.ca_bundle:
        cells["ca_bundle"] = str(Path(arguments.ca_bundle).expanduser().absolute())
    return cells


@command(
    "config show",
    "xnatctl config show",
    columns=("profile", "url", "username", "default_project", "default"),
    identifier="profile",
)
async def show(context: Context) -> list[Cells]:
    """List the profiles, without passwords."""
    known, default = read_profiles(profiles_path())
    wanted = context.arguments.profile
    if wanted:
        select_profile(wanted, {})  # raises, naming the profiles there are
    if len(known) == 1:
        (default,) = known
    return [
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
            "default": profile.name == default,
        }
        for profile in known.values()
        if not wanted or wanted == profile.name
    ]


@command("config use-context", "xnatctl config use-context dev", option("name", metavar="NAME"))
async def use_context(context: Context) -> None:
    """Make a profile the default."""
    profile_file.use_profile(context.arguments.name)
    context.note(f"Profile {context.arguments.name} is the default now")


@command("config current-context", "xnatctl config current-context")
async def current_context(context: Context) -> None:
    """Show which profile commands use."""
    profile = select_profile(context.arguments.profile, os.environ)
    if not profile.name:
        raise ConfigError(f"there is no profile in {profiles_path()}: 'xnatctl config init --url URL' makes one")
    if context.arguments.output in STRUCTURED_FORMATS:
        show_item(context.arguments, {"profile": profile.name}, "profile")
    else:
        print_data(profile.name)


COMMANDS = [init, add_profile, show, use_context, current_context]
