"""Run auth login|logout|status and whoami."""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from xnatfs.cli.ctl.command import Context, command, open_client, option
from xnatfs.cli.ctl.profiles import tls_cells
from xnatfs.cli.output import STRUCTURED_FORMATS, Cells, print_message, show_item
from xnatfs.cli.parsing import PARTIAL_STATUS
from xnatfs.common.errors import ConfigError, LoginRequired, NotFound, XnatError
from xnatfs.common.urls import is_same_server
from xnatfs.settings.config import profiles_path, read_profiles, server_name
from xnatfs.settings.credentials import (
    Credentials,
    ask,
    check_username,
    forget_token,
    load_credentials,
    load_token,
    provider_of,
    store_password,
    store_token,
    wanted_user,
)
from xnatfs.settings.logins import find_login
from xnatfs.settings.profile_file import add_profile
from xnatfs.settings.session_store import StoredSession

if TYPE_CHECKING:  # imported by the commands that send requests
    from xnatfs.rest.client import Xnat

# Sources of a login that was given just now, and is stored nowhere.
UNSTORED_SOURCES = ("prompt", "standard input")
# Places in which a password stays after a logout, by source.
PASSWORD_PLACES = {
    "environment": "XNAT_PASS",
    "profile": "the profile",
    "keyring": "the keyring",
    "token": "~/.config/xnatfs/tokens",
    "netrc": "~/.netrc",
}


# -- login -------------------------------------------------------------------------------------------------------


@command(
    "auth login",
    "xnatctl auth login",
    option("-u", "--username", metavar="USER", help="default: XNAT_USER, else the profile's, else a prompt"),
    option("--password-stdin", action="store_true", help="read the password from standard input"),
    option("--if-needed", action="store_true", help="do nothing if a session is alive"),
    option("--token", action="store_true", help="store an alias token, which the server can revoke"),
    option("--no-save", action="store_true", help="do not store the password in the keyring"),
    option("--password", help=argparse.SUPPRESS),
)
async def login(context: Context) -> None:
    """Log in, and store the session for all other commands and mounts."""
    arguments = context.arguments
    if arguments.password is not None:
        raise ConfigError("--password: others could read it on the command line; use --password-stdin, or the prompt")
    if arguments.if_needed and await _live_user(context) is not None:
        return
    credentials = _choose_login(context)
    try:
        known_as = await _log_in(context, credentials)
    except LoginRequired as error:
        if credentials.source != "keyring" or not sys.stdin.isatty():
            raise
        print_message(f"xnatctl: {error}")  # the password may have been changed since it was stored
        credentials = _prompt(context, credentials.username)
        known_as = await _log_in(context, credentials)
    if arguments.url:
        _add_profile(context, credentials)
    if credentials.source in UNSTORED_SOURCES and not arguments.token and not arguments.no_save:
        _store_password(context, credentials)
    _report_login(context, credentials, known_as)


def _choose_login(context: Context) -> Credentials:
    """Return the login of the options, else the stored one, else prompt for it."""
    arguments, config = context.arguments, context.config
    stored = load_credentials(config.url, config.profile, context.environ)
    if stored and stored.source == "token":
        stored = None
    username = arguments.username or (stored.username if stored else "")
    username = username or wanted_user(config.url, config.profile, context.environ)
    if arguments.password_stdin:
        if not username:
            raise LoginRequired(f"no user for {config.url}: give --username")
        check_username(username)
        password = sys.stdin.readline().rstrip("\r\n")
        return Credentials(username, password, "standard input", provider=provider_of(config.url, config.profile))
    return stored if stored and stored.username == username else _prompt(context, username)


def _prompt(context: Context, username: str) -> Credentials:
    config = context.config
    return ask(config.url, username, context.environ, provider_of(config.url, config.profile))


async def _log_in(context: Context, credentials: Credentials) -> str:
    """Begin a session; return the server's name for its user."""
    context.user = credentials.user
    async with context.xnat(credentials) as xnat:
        await xnat.login.renew()
        known_as = await xnat.username()
        if context.arguments.token:
            await _store_token(context, xnat, credentials.user)
    return known_as


async def _store_token(context: Context, xnat: Xnat, user: str) -> None:
    """Store a token for this user, and revoke the one in its place.

    The user is named as in the login: a directory's users may have other names on the server.
    """
    url = context.config.url
    old = load_token(url)
    alias, secret = await xnat.issue_token()
    store_token(url, user, alias, secret)
    context.note("An alias token is stored in ~/.config/xnatfs/tokens; 'auth logout' revokes it")
    if old and (why := await _revoke(context, old)):
        print_message(f"xnatctl: {why}")


def _add_profile(context: Context, credentials: Credentials) -> None:
    """Write a profile for a server that has none, so that the next command needs no --url."""
    arguments, config, path = context.arguments, context.config, profiles_path()
    known, _ = read_profiles(path)
    if any(is_same_server(profile.url, config.url) for profile in known.values()):
        return
    host = server_name(config.url)
    numbered = (f"{host}-{number}" for number in itertools.count(2))
    # Another server may have the name already, as the same host without encryption has.
    name = next(each for each in itertools.chain([host], numbered) if each not in known)
    cells: dict[str, Any] = {"url": config.url, **tls_cells(arguments)}
    if arguments.username or credentials.source in UNSTORED_SOURCES:  # a user from the environment is not saved
        cells["username"] = credentials.username
    try:
        add_profile(name, cells)
    except ConfigError as error:
        context.note(f"The next command needs --url, too, since no profile could be written: {error}")
        return
    known, default = read_profiles(path)
    context.config = replace(config, profile=known[name])
    others = f": 'xnatctl config use-context {name}' makes it the default" if default != name else ""
    context.note(f"Profile {name} is in {path}{others}")


def _store_password(context: Context, credentials: Credentials) -> None:
    """Store the password in the keyring, and note that in the profile; else name the alternatives."""
    profile = context.config.profile
    if profile.password:
        context.note(
            f"The password is not stored: profile {profile.name} has a password of its own, which is preferred to the "
            "keyring; remove it there, and log in again"
        )
    elif profile.name and store_password(profile, credentials.password):
        add_profile(profile.name, {"username": credentials.username, "password_source": "keyring"}, replace=True)
        context.config = replace(context.config, profile=replace(profile, username=credentials.username))
        context.note("The password is in the keyring")
    else:
        context.note(
            "The password is not stored (no keyring here, or no profile): when the session has ended, log in again, or "
            "use 'auth login --token', XNAT_USER and XNAT_PASS, or ~/.netrc"
        )


def _report_login(context: Context, credentials: Credentials, known_as: str) -> None:
    config, session = context.config, context.store.find_stored()
    expires = _expiry(session) if session else datetime.now()
    context.note(f"Logged in to {config.url} as {known_as}")
    context.note(f"Session expires at {expires:%H:%M} unless it is used")
    if context.environ.get("XNAT_TOKEN"):
        context.note("Commands do not use it while XNAT_TOKEN is set: the session in XNAT_TOKEN is preferred")
    wanted = wanted_user(config.url, config.profile, context.environ)
    if wanted.lower() not in ("", credentials.user.lower()):
        place = "XNAT_USER" if context.environ.get("XNAT_USER") else "the profile"
        use = f"set XNAT_USER={credentials.user} to use this login"
        context.note(f"The next command runs as {wanted}, the user that {place} names: {use}")
    if context.arguments.output in STRUCTURED_FORMATS:
        item = {
            "status": "authenticated",
            "username": known_as,
            "requested_username": credentials.username,
            "url": config.url,
            "profile": config.profile.name,
            "expires_at": expires,
        }
        show_item(context.arguments, item, "username")


def _expiry(session: StoredSession) -> datetime:
    return session.used + timedelta(seconds=session.idle)


# -- logout ------------------------------------------------------------------------------------------------------


@command("auth logout", "xnatctl auth logout")
async def logout(context: Context) -> int:
    """Close the session, and revoke an alias token.

    They are removed here in any case; what the server did not end is reported, with exit status 8.
    """
    config, url = context.config, context.config.url
    token, session = load_token(url), context.store.find(ended=True)
    failures = []
    if token:
        try:
            failures.append(await _revoke(context, token))
        finally:
            forget_token(url)
    if session:
        async with open_client(config, None, context.store) as xnat:
            await xnat.login.log_out()
            if why := xnat.login.logout_failure:
                failures.append(f"the server did not close the session, and will when it has been idle ({why})")
    context.note(f"Logged out of {url}" if session or token else f"There is no session on {url}")
    if stored := load_credentials(url, config.profile, context.environ):
        context.note(
            f"The next command logs in again: {PASSWORD_PLACES[stored.source]} has the password of {stored.user}"
        )
    for failure in filter(None, failures):
        print_message(f"xnatctl: {failure}")
    return PARTIAL_STATUS if any(failures) else 0


async def _revoke(context: Context, token: Credentials) -> str:
    """Revoke an alias token; return a message if the server did not, else ''."""
    try:
        # Use a new session: only the token's user may do this, and the stored one may have ended or be another user's.
        async with open_client(context.config, token) as xnat:
            await xnat.invalidate_token(token.username)
    except (NotFound, LoginRequired):
        context.note("The alias token had expired before")
    except XnatError as error:
        return f"the alias token {token.username} is valid until it expires, in two days at most ({error})"
    return ""


# -- status ------------------------------------------------------------------------------------------------------


@command("auth status", "xnatctl auth status")
async def status(context: Context) -> int:
    """Show whether the session is alive."""
    config = context.config
    last = context.store.find(ended=True)
    username = await _live_user(context)
    is_alive = username is not None
    stored = load_credentials(config.url, config.profile, context.environ)
    wanted = wanted_user(config.url, config.profile, context.environ)
    item = {
        "url": config.url,
        "profile": config.profile.name,
        "username": username or (last and last.username) or (stored and stored.user) or wanted or None,
        "status": "authenticated" if is_alive else "expired" if last else "not authenticated",
        "expires_at": _expiry(last) if last and is_alive else None,
    }
    show_item(context.arguments, item, "status")
    if is_alive:
        return 0
    if stored:
        context.note(
            f"The next command logs in by itself: {PASSWORD_PLACES[stored.source]} has the password of {stored.user}"
        )
    else:
        context.note("Run 'xnatctl auth login'")
    return 3


async def _live_user(context: Context) -> str | None:
    """Return the user of the stored session if the server knows it, else None; this does not log in."""
    session = context.store.find()
    if session is None:
        return None
    async with open_client(context.config, None, context.store) as xnat:
        if not await xnat.login.verify_session(session.token):
            return None
        return session.username or await xnat.username()


@command(
    "whoami",
    "xnatctl whoami",
    option("--check", action="store_true", help="print nothing; the exit status is 0 if the login works"),
    identifier="username",
)
async def whoami(context: Context) -> Cells | None:
    """Show the current user."""
    credentials = find_login(context.config)
    async with context.xnat(credentials) as xnat:
        username = await xnat.username()
    if context.arguments.check:
        return None
    return {
        "username": username,
        "server": context.config.url,
        "profile": context.config.profile.name,
        "default_project": context.config.profile.default_project or "-",
        "auth_mode": "token" if context.environ.get("XNAT_TOKEN") else credentials.source if credentials else "session",
    }


COMMANDS = [login, logout, status, whoami]
