"""Run config init|show|set|edit|... on the profile file, which other programs share."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from xnatfs.cli import options
from xnatfs.cli.ctl.command import Context, command, option, options_of
from xnatfs.cli.output import OUTPUT_FORMATS, STRUCTURED_FORMATS, Cells, print_data, show_item
from xnatfs.cli.parsing import suggest
from xnatfs.common.errors import ConfigError
from xnatfs.common.files import write_private
from xnatfs.settings import profile_file
from xnatfs.settings.config import (
    absolute_path,
    normalised_url,
    profiles_path,
    read_profiles,
    read_text,
    select_profile,
)

profile_options = options_of(
    option("--username", metavar="USER", help="the account there (default: a prompt at each login)"),
    option(
        *("-P", "--project", "--default-project"),
        dest="project",
        metavar="PROJECT",
        help="project of commands that name none",
    ),
    option("--timeout", type=options.positive_seconds, metavar="TIME", help="longest wait for the next byte"),
    option("--force", action="store_true", help="change an existing profile"),
)


name_argument = option("name", metavar="NAME", help="name of the profile")


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
    name_argument,
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
        cells["ca_bundle"] = str(absolute_path(arguments.ca_bundle))
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


@command("config use-context", "xnatctl config use-context dev", name_argument)
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


# Keys that `config set` takes, with what parses their values; a password would be seen on the command line.
SETTINGS: dict[str, Callable[[str], Any]] = {
    "url": normalised_url,
    **dict.fromkeys(("username", "default_project", "ca_bundle", "password_source", "provider"), str),
    **dict.fromkeys(("verify_ssl", "direct_archive"), options.truth),
    "timeout": lambda text: int(options.positive_seconds(text)) or 1,
    "workers": options.number,
    "overwrite": options.one_of("none", "append", "delete"),
    "archive_mode": options.one_of("tar", "zip", "gradual"),
}
FILE_SETTINGS: dict[str, Callable[[str], Any]] = {
    "default_profile": str,
    "output_format": options.one_of(*OUTPUT_FORMATS),
}


@command(
    "config set",
    "xnatctl config set default_project MYPROJECT -p dev",
    option("key", metavar="KEY", help=f"one of {', '.join((*SETTINGS, *FILE_SETTINGS))}"),
    option("value", metavar="VALUE", help="'' removes the key"),
)
async def set_setting(context: Context) -> None:
    """Set a key of a profile."""
    key, text = context.arguments.key, context.arguments.value
    value, where = _parsed(key, text), str(profiles_path())
    if key == "default_profile" and text:
        profile_file.use_profile(text)
    elif key in FILE_SETTINGS:
        profile_file.set_value("", key, value)
    else:
        name = select_profile(context.arguments.profile, os.environ).name
        if not name:
            raise ConfigError(f"there is no profile in {where}: 'xnatctl config init --url URL' makes one")
        profile_file.set_value(name, key, value)
        where = f"profile {name}"
    context.note(f"{key} is {'set' if text else 'removed'} in {where}")


def _parsed(key: str, text: str) -> Any:
    """Return the value of a key; None if it is to be removed. Raises ConfigError."""
    if key == "password":
        raise ConfigError("others could read a password on the command line: 'xnatctl auth login' stores one")
    parse = SETTINGS.get(key) or FILE_SETTINGS.get(key)
    if parse is None:
        raise ConfigError(f"there is no key {key!r}{suggest(key, (*SETTINGS, *FILE_SETTINGS))}")
    try:
        return parse(text) if text else None
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{key}: {error}") from None


@command(
    "config delete-profile",
    "xnatctl config delete-profile dev",
    name_argument,
)
async def delete_profile(context: Context) -> None:
    """Delete a profile."""
    profile_file.delete_profile(context.arguments.name)
    context.note(f"Profile {context.arguments.name} is deleted from {profiles_path()}")


@command("config path", "xnatctl config path")
async def print_path(context: Context) -> None:
    """Print the path of the profile file."""
    print_data(str(profiles_path()))


@command("config edit", "xnatctl config edit")
async def edit(context: Context) -> None:
    """Edit the profile file with $VISUAL or $EDITOR; a file that cannot be read is not saved."""
    from shutil import rmtree
    from tempfile import mkdtemp

    target = profiles_path()
    before = read_text(target)
    draft = Path(mkdtemp(prefix="xnatctl-")) / target.name  # in a private directory: it may hold a password
    write_private(draft, before)
    try:
        _run_editor(draft)
    except ConfigError:
        rmtree(draft.parent)
        raise
    try:
        after = read_text(draft)
        read_profiles(draft)
        if after != before:
            profile_file.replace_text(after, before)
    except ConfigError as error:
        raise ConfigError(f"{error}; {target} is as it was, your text is in {draft}") from None
    rmtree(draft.parent)
    context.note(f"Saved {target}" if after != before else "Nothing is changed")


def _run_editor(path: Path) -> None:
    """Let the user edit a file. Raises ConfigError if the editor does not start, or fails."""
    import subprocess  # for this command only

    on_windows = sys.platform == "win32"
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ("notepad" if on_windows else "vi")
    try:
        words = shlex.split(editor, posix=not on_windows)  # a path there has backslashes
        status = subprocess.run([*words, str(path)], check=False).returncode
    except (OSError, ValueError) as error:
        raise ConfigError(f"the editor {editor!r} does not start ({error}): set EDITOR") from None
    if status:
        raise ConfigError(f"the editor {editor!r} ended with status {status}: nothing is changed")


COMMANDS = [
    replace(show, aliases=("list", "ls")),
    *(init, add_profile, set_setting, delete_profile, use_context, current_context),
    *(replace(each, repairs=True) for each in (edit, print_path)),
]
