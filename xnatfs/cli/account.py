"""auth login|logout|status, whoami, api: who we are to the server."""

import argparse
import codecs
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from xnatfs.cli import statusline
from xnatfs.cli.ctl import Command, Context
from xnatfs.cli.output import show_item, shown
from xnatfs.errors import ConfigError, LoginRequired


def _login_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-u", "--username", metavar="USER", help="else XNAT_USER, else the profile's, else asked for")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    parser.add_argument("--if-needed", action="store_true", help="do nothing where a session is alive")
    parser.add_argument("--token", action="store_true", help="keep an alias token, which the server can take back")
    parser.add_argument("--no-save", action="store_true", help="do not put the password into the keyring")
    parser.add_argument("--password", help=argparse.SUPPRESS)


async def login(context: Context) -> None:
    from xnatfs.credentials import Credentials, ask, kept_credentials, wanted_user

    arguments, config = context.arguments, context.config
    if arguments.password is not None:
        raise ConfigError("--password: others could read it on the command line; use --password-stdin, or be asked")
    if arguments.if_needed and await _alive(context):
        return
    kept = kept_credentials(config.url, config.profile, context.environ)
    username = arguments.username or (kept.username if kept and kept.source != "token" else "")
    username = username or wanted_user(config.url, config.profile, context.environ)
    if arguments.password_stdin:
        if not username:
            raise LoginRequired(f"no user for {config.url}: give --username")
        credentials = Credentials(username, sys.stdin.readline().rstrip("\r\n"))
    elif kept and kept.source != "token" and kept.username == username:
        credentials = kept
    else:
        credentials = ask(config.url, username, context.environ)
    async with context.xnat(credentials) as xnat:
        await xnat.login.renew()
        known_as = await xnat.username()
        if arguments.token:
            await _keep_token(context, xnat)
    if (credentials.source == "prompt" or arguments.password_stdin) and not arguments.token and not arguments.no_save:
        _save(context, credentials)
    session = context.store.find()
    ends = session.used + timedelta(seconds=session.idle) if session else datetime.now()
    context.note(f"Logged in to {config.url} as {known_as}")
    context.note(f"Session expires at {ends:%H:%M} unless it is used")
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


async def _keep_token(context: Context, xnat: Any) -> None:
    from xnatfs.credentials import keep_token

    alias, secret = await xnat.issue_token()
    keep_token(context.config.url, await xnat.username(), alias, secret)
    context.note("An alias token is kept in ~/.config/xnatfs/tokens; 'auth logout' gives it back")


def _save(context: Context, credentials: Any) -> None:
    """Into the keyring, where the profile says so afterwards; what else there is, where there is none."""
    from xnatfs.credentials import keep_password
    from xnatfs.profiles import add_profile

    profile = context.config.profile
    if profile.name and keep_password(profile, credentials.password):
        add_profile(profile.name, {"username": credentials.username, "password_source": "keyring"}, replace=True)
        context.note("The password is in the keyring")
    else:
        context.note(
            "The password is not kept (no keyring here, or no profile): when the session has ended, log in again, or "
            "use 'auth login --token', XNAT_USER and XNAT_PASS, or ~/.netrc"
        )


async def logout(context: Context) -> None:
    from xnatfs.credentials import forget_token, kept_credentials

    kept = kept_credentials(context.config.url, context.config.profile, context.environ)
    session = context.store.find()
    if session is None and not (kept and kept.source == "token"):
        context.note(f"There is no session on {context.config.url}")
        return
    async with context.xnat(kept) as xnat:
        if kept and kept.source == "token":
            await xnat.invalidate_token(kept.username)
            forget_token(context.config.url)
        await xnat.login.log_out()
    context.note(f"Logged out of {context.config.url}")


async def status(context: Context) -> int:
    session = context.store.find()
    alive = await _alive(context) if session else False
    item = {
        "url": context.config.url,
        "profile": context.config.profile.name,
        "username": session.username if session else None,
        "status": "authenticated" if alive else "expired" if session else "not authenticated",
        "expires_at": (session.used + timedelta(seconds=session.idle)).isoformat() if session and alive else None,
    }
    titles = {"url": "Server", "profile": "Profile", "username": "User", "status": "Status", "expires_at": "Expires"}
    show_item(context.arguments, item, "status", titles)
    return 0 if alive else 3


async def _alive(context: Context) -> bool:
    """Whether the server knows the session that is kept; nobody logs in for that."""
    session = context.store.find()
    if session is None:
        return False
    from xnatfs.client import open_xnat

    async with open_xnat(context.config, None, sessions=context.store) as xnat:
        return await xnat.login.alive(session.token)


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
    """The raw body to stdout; sent once, whatever comes."""
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
