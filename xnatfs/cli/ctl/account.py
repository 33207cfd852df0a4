"""Run auth login|logout|status, whoami and api: the login, and raw requests."""

import argparse
import codecs
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from xnatfs.cli import statusline
from xnatfs.cli.ctl.command import PARTIAL, Command, Context
from xnatfs.cli.ctl.profiles import server_cells
from xnatfs.cli.output import show_item, shown, tell
from xnatfs.common.errors import ConfigError, LoginRequired, NotFound, XnatError

if TYPE_CHECKING:
    from xnatfs.settings.credentials import Credentials


def _login_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-u", "--username", metavar="USER", help="else XNAT_USER, else the profile's, else asked for")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    parser.add_argument("--if-needed", action="store_true", help="do nothing where a session is alive")
    parser.add_argument("--token", action="store_true", help="keep an alias token, which the server can take back")
    parser.add_argument("--no-save", action="store_true", help="do not put the password into the keyring")
    parser.add_argument("--password", help=argparse.SUPPRESS)


async def login(context: Context) -> None:
    from xnatfs.settings.credentials import Credentials, ask, check_username, kept_credentials, provider_of, wanted_user

    arguments, config = context.arguments, context.config
    provider = provider_of(config.url, config.profile)
    if arguments.password is not None:
        raise ConfigError("--password: others could read it on the command line; use --password-stdin, or be asked")
    if arguments.if_needed and await _known(context) is not None:
        return
    kept = kept_credentials(config.url, config.profile, context.environ)
    username = arguments.username or (kept.username if kept and kept.source != "token" else "")
    username = username or wanted_user(config.url, config.profile, context.environ)
    if arguments.password_stdin:
        if not username:
            raise LoginRequired(f"no user for {config.url}: give --username")
        check_username(username)
        password = sys.stdin.readline().rstrip("\r\n")
        credentials = Credentials(username, password, "standard input", provider=provider)
    elif kept and kept.source != "token" and kept.username == username:
        credentials = kept
    else:
        credentials = ask(config.url, username, context.environ, provider)
    try:
        known_as = await _log_in(context, credentials)
    except LoginRequired as error:
        if credentials.source != "keyring" or not sys.stdin.isatty():
            raise
        tell(f"xnatctl: {error}")  # the password may have been changed since it was stored
        credentials = ask(config.url, username, context.environ, provider)
        known_as = await _log_in(context, credentials)
    if arguments.url:
        _remember(context, credentials)
    if credentials.source in GIVEN and not arguments.token and not arguments.no_save:
        _save(context, credentials)
    session = context.store.find_kept()
    ends = session.used + timedelta(seconds=session.idle) if session else datetime.now()
    context.note(f"Logged in to {config.url} as {known_as}")
    context.note(f"Session expires at {ends:%H:%M} unless it is used")
    if context.environ.get("XNAT_TOKEN"):
        context.note("No command uses it as long as XNAT_TOKEN is set, since the session in XNAT_TOKEN goes before it")
    wanted = wanted_user(config.url, context.config.profile, context.environ)
    if wanted.lower() not in ("", credentials.user.lower()):
        place = "XNAT_USER" if context.environ.get("XNAT_USER") else "the profile"
        use = f"set XNAT_USER={credentials.user} to use this login"
        context.note(f"The next command goes on as {wanted}, whom {place} names: {use}")
    if arguments.output in ("json", "jsonl"):
        item = {
            "status": "authenticated",
            "username": known_as,
            "requested_username": credentials.username,
            "url": config.url,
            "profile": config.profile.name,
            "expires_at": ends.isoformat(),
        }
        show_item(arguments, item, "username", {})


# Sources of a login that was given just now, and is stored nowhere.
GIVEN = ("prompt", "standard input")


async def _log_in(context: Context, credentials: "Credentials") -> str:
    """Begin a session; return the server's name for its user."""
    context.user = credentials.user
    async with context.xnat(credentials) as xnat:
        await xnat.login.renew()
        known_as = await xnat.username()
        if context.arguments.token:
            await _keep_token(context, xnat, credentials.user)
    return known_as


def _remember(context: Context, credentials: "Credentials") -> None:
    """Write a profile for a server that has none, so that the next command needs no --url."""
    from xnatfs.common.urls import is_same_server
    from xnatfs.settings.config import profiles_path, read_profiles, server_name
    from xnatfs.settings.profile_file import add_profile

    arguments, config, path = context.arguments, context.config, profiles_path()
    known, _ = read_profiles(path)
    if any(is_same_server(profile.url, config.url) for profile in known.values()):
        return
    host = server_name(config.url)
    numbered = (f"{host}-{number}" for number in itertools.count(2))
    # Another server may have the name already, as the same host without encryption has.
    name = next(each for each in itertools.chain([host], numbered) if each not in known)
    cells: dict[str, Any] = {"url": config.url, **server_cells(arguments)}
    if arguments.username or credentials.source in GIVEN:  # a user from the environment is not saved
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


async def _keep_token(context: Context, xnat: Any, user: str) -> None:
    """Store a token for this user, named as in the login: a directory's users may have other names on the server."""
    from xnatfs.settings.credentials import keep_token

    alias, secret = await xnat.issue_token()
    keep_token(context.config.url, user, alias, secret)
    context.note("An alias token is kept in ~/.config/xnatfs/tokens; 'auth logout' gives it back")


def _save(context: Context, credentials: Any) -> None:
    """Store the password in the keyring, and note that in the profile; else name the alternatives."""
    from xnatfs.settings.credentials import keep_password
    from xnatfs.settings.profile_file import add_profile

    profile = context.config.profile
    if profile.password:
        context.note(
            f"The password is not kept: profile {profile.name} has a password of its own, which goes before the "
            "keyring; remove it there, and log in again"
        )
    elif profile.name and keep_password(profile, credentials.password):
        add_profile(profile.name, {"username": credentials.username, "password_source": "keyring"}, replace=True)
        context.config = replace(context.config, profile=replace(profile, username=credentials.username))
        context.note("The password is in the keyring")
    else:
        context.note(
            "The password is not kept (no keyring here, or no profile): when the session has ended, log in again, or "
            "use 'auth login --token', XNAT_USER and XNAT_PASS, or ~/.netrc"
        )


async def logout(context: Context) -> int:
    """End the session and the alias token, here in any case; report what the server did not end (exit status 8)."""
    from xnatfs.rest.client import open_xnat
    from xnatfs.settings.credentials import kept_credentials, kept_token

    config, url = context.config, context.config.url
    token, session = kept_token(url), context.store.find(ended=True)
    left = [await _give_back(context, token)] if token else []
    if session:
        async with open_xnat(config, None, sessions=context.store) as xnat:
            await xnat.login.log_out()
            if why := xnat.login.logout_failure:
                left.append(f"the session was not ended by the server, which ends it when it has idled ({why})")
    context.note(f"Logged out of {url}" if session or token else f"There is no session on {url}")
    if kept := kept_credentials(url, config.profile, context.environ):
        context.note(f"The next command logs in again: {PLACES[kept.source]} has the password of {kept.user}")
    for what in filter(None, left):
        tell(f"xnatctl: {what}")
    return PARTIAL if any(left) else 0


# Places in which a password stays after a logout.
PLACES = {
    "environment": "XNAT_PASS",
    "profile": "the profile",
    "keyring": "the keyring",
    "token": "~/.config/xnatfs/tokens",
    "netrc": "~/.netrc",
}


async def _give_back(context: Context, token: "Credentials") -> str:
    """Revoke an alias token, and remove it here in any case; return what is left of it on the server, or ''."""
    from xnatfs.rest.client import open_xnat
    from xnatfs.settings.credentials import forget_token

    url, left = context.config.url, ""
    try:
        # Use a new session: only the token's user may do this, and the stored one may have ended or be another user's.
        async with open_xnat(context.config, token) as xnat:
            await xnat.invalidate_token(token.username)
    except (NotFound, LoginRequired):
        context.note("The alias token had ended before")
    except XnatError as error:
        left = f"the alias token {token.username} is valid until it ends by itself, in two days at most ({error})"
    finally:
        forget_token(url)
    return left


async def status(context: Context) -> int:
    from xnatfs.settings.credentials import kept_credentials, wanted_user

    config = context.config
    last = context.store.find(ended=True)
    username = await _known(context)
    alive = username is not None
    kept = kept_credentials(config.url, config.profile, context.environ)
    wanted = wanted_user(config.url, config.profile, context.environ)
    item = {
        "url": config.url,
        "profile": config.profile.name,
        "username": username or (last and last.username) or (kept and kept.user) or wanted or None,
        "status": "authenticated" if alive else "expired" if last else "not authenticated",
        "expires_at": (last.used + timedelta(seconds=last.idle)).isoformat() if last and alive else None,
    }
    titles = {"url": "Server", "profile": "Profile", "username": "User", "status": "Status", "expires_at": "Expires"}
    show_item(context.arguments, item, "status", titles)
    if not alive and kept:
        context.note(f"The next command logs in by itself: {PLACES[kept.source]} has the password of {kept.user}")
    elif not alive:
        context.note("Run 'xnatctl auth login'")
    return 0 if alive else 3


async def _known(context: Context) -> str | None:
    """Return the user of the stored session if the server knows it, else None; this does not log in."""
    session = context.store.find()
    if session is None:
        return None
    from xnatfs.rest.client import open_xnat

    async with open_xnat(context.config, None, sessions=context.store) as xnat:
        if not await xnat.login.is_alive(session.token):
            return None
        return session.username or await xnat.username()


async def whoami(context: Context) -> int:
    if context.arguments.check:
        async with context.xnat() as xnat:
            await xnat.username()
        return 0
    credentials = context.credentials()
    async with context.xnat(credentials) as xnat:
        username = await xnat.username()
    item = {
        "username": username,
        "server": context.config.url,
        "profile": context.config.profile.name,
        "default_project": context.config.profile.default_project or "-",
        "auth_mode": "token" if context.environ.get("XNAT_TOKEN") else credentials.source if credentials else "session",
    }
    titles = {
        "username": "User",
        "server": "Server",
        "profile": "Profile",
        "default_project": "Default Project",
        "auth_mode": "Auth Mode",
    }
    show_item(context.arguments, item, "username", titles)
    return 0


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="say it by the exit status alone")


def _request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="from the server's root, as /data/projects?format=json")
    parser.add_argument("--params", action="append", default=[], metavar="KEY=VALUE", help="for the query; repeatable")


def _body(parser: argparse.ArgumentParser) -> None:
    _request(parser)
    parser.add_argument("-d", "--data", metavar="TEXT", help="the body, or @FILE, or @- for standard input")
    parser.add_argument("-f", "--file", metavar="FILE", help="the same as -d @FILE")
    parser.add_argument("--content-type", metavar="TYPE", help="of the body")


async def api(context: Context) -> int:
    """Send a request once, without retries, and write the raw body of its reply to stdout."""
    arguments = context.arguments
    data = getattr(arguments, "data", None)
    if getattr(arguments, "file", None):
        data = f"@{arguments.file}"
    body = b""
    if data is not None:
        try:
            body = _read(data[1:]) if data.startswith("@") else data.encode()
        except OSError as error:
            raise ConfigError(f"--data {data}: {error.strerror}") from None
    terminal = codecs.getincrementaldecoder("utf-8")("replace")
    async with context.xnat() as xnat:
        async for chunk in xnat.raw(
            arguments.command.verb,
            _with_query(arguments.path, arguments.params),
            body,
            getattr(arguments, "content_type", None),
        ):
            statusline.hide()
            if sys.stdout.isatty():
                sys.stdout.write(shown(terminal.decode(chunk)))
            else:
                sys.stdout.buffer.write(chunk)
    sys.stdout.flush()
    return 0


def _with_query(path: str, params: Sequence[str]) -> str:
    if not all("=" in pair for pair in params):
        raise ConfigError("--params: must be KEY=VALUE")
    query = urlencode([(key, value) for key, _, value in (pair.partition("=") for pair in params)])
    return path + ("&" if "?" in path else "?") + query if query else path


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    with open(name, "rb") as file:
        return file.read()


COMMANDS = [
    Command(
        "auth",
        "login",
        "log in, and keep the session for every other command and mount",
        "xnatctl auth login",
        login,
        _login_arguments,
    ),
    Command("auth", "logout", "close the session, and give an alias token back", "xnatctl auth logout", logout),
    Command("auth", "status", "tell whether the session is alive", "xnatctl auth status", status),
    Command("", "whoami", "tell who the server takes you for", "xnatctl whoami", whoami, _check),
    *(
        Command(
            "api",
            method,
            f"send one {method} request, and print the body that comes",
            f"xnatctl api {method} {path}",
            api,
            arguments,
            aliases=(method.lower(),),
        )
        for method, path, arguments in (
            ("GET", "'/data/projects?format=json'", _request),
            ("POST", "/data/projects/P/subjects -d @subject.xml", _body),
            ("PUT", "/data/projects/P/subjects/SUB001", _body),
            ("DELETE", "/data/projects/P/subjects/SUB001", _request),
        )
    ),
]
