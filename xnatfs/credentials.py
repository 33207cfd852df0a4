"""Where logins are found, by server.

In this order: XNAT_USER and XNAT_PASS, the profile, `~/.netrc`, a prompt on a terminal. Never the command line, where
every user of the machine could read them. A password belongs to the server it was written down for: one from a
profile is not offered to a server of another host.
"""

import getpass
import netrc
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from xnatfs.config import Profile
from xnatfs.errors import ConfigError, LoginRequired


@dataclass(frozen=True, slots=True)
class Credentials:
    username: str
    password: str = field(repr=False)


def find_credentials(url: str, profile: Profile, environ: Mapping[str, str]) -> Credentials:
    """The login for this server. Raises LoginRequired where there is none, ConfigError for a broken ~/.netrc."""
    same_server = profile.url.strip().rstrip("/") == url
    username = environ.get("XNAT_USER") or (profile.username if same_server else "")
    password = environ.get("XNAT_PASS") or (
        profile.password if same_server and profile.username in ("", username) else ""
    )
    if username and password:
        return Credentials(username, password)
    entry = _netrc_entry(url)
    if entry and username in ("", entry.username):
        return entry
    return _prompt(url, username, password)


def _netrc_entry(url: str) -> Credentials | None:
    host = urlsplit(url).hostname or ""
    try:
        found = netrc.netrc(Path.home() / ".netrc").authenticators(host)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
        # The parser's message names file and line, never the text it stumbled on.
        reason = error.msg if isinstance(error, netrc.NetrcParseError) else error
        raise ConfigError(f"cannot read ~/.netrc: {reason}") from None
    if not found or not found[0] or not found[2]:
        return None
    return Credentials(found[0], found[2])


def _prompt(url: str, username: str, password: str) -> Credentials:
    if not sys.stdin.isatty():
        missing = "user and password" if not username else "password"
        raise LoginRequired(
            f"no {missing} for {url}: set XNAT_USER and XNAT_PASS, or a profile, or a line in ~/.netrc "
            "(or run on a terminal to be asked)"
        )
    try:
        if not username:
            sys.stderr.write(f"User on {url}: ")
            sys.stderr.flush()
            username = sys.stdin.readline().strip()
        return Credentials(username, password or getpass.getpass(f"Password of {username} on {url}: "))
    except EOFError:
        raise LoginRequired(f"no password for {url}: the prompt was not answered") from None
