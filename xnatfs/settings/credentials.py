"""Find and store logins, by server.

A login is looked up in this order: XNAT_USER and XNAT_PASS, the profile, the keyring, an alias token, `~/.netrc`, a
prompt on a terminal. It is never read from the command line, which every user of the machine can see. A saved password
is sent only to its own server: one from a profile is not sent to another host, and one from the environment to no
other than that of XNAT_URL.

    keyring    service `xnatctl`, entry `PROFILE@URL`, as the xnatctl of PyPI has it
    ~/.config/xnatfs/tokens/<hash of the server>.json    an alias token: a login that the server can revoke
"""

import getpass
import json
import netrc
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from xnatfs.common.errors import ConfigError, LoginRequired
from xnatfs.common.files import write_private
from xnatfs.common.sanitize import loads
from xnatfs.common.urls import is_same_server, server_key
from xnatfs.settings.config import Profile, config_home

T = TypeVar("T")

# Environment variables that hold a secret.
SECRET_VARIABLES = ("XNAT_PASS", "XNAT_TOKEN")


@dataclass(frozen=True, slots=True)
class Credentials:
    """User name and password for a server. Raises ConfigError if they cannot be sent."""

    username: str
    password: str = field(repr=False)
    source: str = field(default="prompt", compare=False)  # where it was found
    account: str = field(default="", compare=False)  # the user that an alias token stands for
    provider: str = field(default="", compare=False)  # the login method, where a site has several

    def __post_init__(self) -> None:
        check_username(self.username)
        try:
            f"{self.username}{self.password}".encode()
        except UnicodeEncodeError:
            text = f"the login from {self.source} is not UTF-8, as XNAT takes it"
            raise ConfigError(f"{text}: is the terminal, or the file, of another encoding?") from None

    @property
    def user(self) -> str:
        """Return the name of the account."""
        return self.account or self.username


def check_username(username: str) -> None:
    """Raise ConfigError for a name that HTTP's Basic authentication cannot carry."""
    if ":" in username:
        raise ConfigError(f"user {username!r}: a name with ':' cannot be sent, since HTTP ends the name there")


def find_credentials(url: str, profile: Profile, environ: Mapping[str, str]) -> Credentials:
    """Find the login for this server, or prompt for it. Raises LoginRequired, and ConfigError for a broken ~/.netrc."""
    found = load_credentials(url, profile, environ)
    return found or ask(url, wanted_user(url, profile, environ), environ, provider_of(url, profile))


def login_variables(url: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment for a login on this server: without a login if XNAT_URL names another server."""
    given = environ.get("XNAT_URL", "")
    if not given or is_same_server(given, url):
        return environ
    return {key: value for key, value in environ.items() if key not in ("XNAT_USER", *SECRET_VARIABLES)}


def wanted_user(url: str, profile: Profile, environ: Mapping[str, str]) -> str:
    """Return the user that the environment or the profile names, or ''."""
    return environ.get("XNAT_USER") or _of_server(url, profile).username


def provider_of(url: str, profile: Profile) -> str:
    """Return the login method that the profile names for this server; '' for the server to choose."""
    return _of_server(url, profile).provider


def _of_server(url: str, profile: Profile) -> Profile:
    """Return the profile, or an empty one in place of another server's, to which its login must not be sent."""
    return profile if is_same_server(profile.url, url) else Profile("")


def load_credentials(url: str, profile: Profile, environ: Mapping[str, str]) -> Credentials | None:
    """Return the stored login for this server, or None. Raises ConfigError for a broken ~/.netrc."""
    profile = _of_server(url, profile)
    provider = profile.provider
    username = environ.get("XNAT_USER") or profile.username
    is_profiles_user = profile.username in ("", username)
    if username and (password := environ.get("XNAT_PASS")):
        return Credentials(username, password, "environment", provider=provider)
    if username and is_profiles_user and profile.password:
        return Credentials(username, profile.password, "profile", provider=provider)
    if username and is_profiles_user and profile.password_source == "keyring":
        stored = _keyring(lambda keyring: keyring.get_password(KEYRING_SERVICE, keyring_entry(profile)))
        if stored:
            return Credentials(username, stored, "keyring", provider=provider)
    for entry in (load_token(url), _netrc_entry(url)):
        if entry and username.lower() in ("", entry.user.lower()):
            return entry if entry.source == "token" else replace(entry, provider=provider)
    return None


# -- the keyring and tokens --------------------------------------------------------------------------------------

KEYRING_SERVICE = "xnatctl"  # the service, as the other program names it


def keyring_entry(profile: Profile) -> str:
    return f"{profile.name}@{profile.url}"


def store_password(profile: Profile, password: str) -> bool:
    """Store a profile's password in the keyring; return False if this machine has none."""

    def put(keyring: Any) -> bool:
        keyring.set_password(KEYRING_SERVICE, keyring_entry(profile), password)
        return True

    return bool(_keyring(put))


def _keyring(act: Callable[[Any], T]) -> T | None:
    """Call `act` with the keyring; return None if it is missing or locked. A bare machine's raises at every call."""
    import keyring
    import keyring.errors

    try:
        return act(keyring)
    except keyring.errors.KeyringError:
        return None


def store_token(url: str, username: str, alias: str, secret: str) -> None:
    """Store an alias token for this server. Raises OSError."""
    cells = {"url": url, "username": username, "alias": alias, "secret": secret}
    write_private(_token_path(url), json.dumps(cells))


def forget_token(url: str) -> None:
    _token_path(url).unlink(missing_ok=True)


def load_token(url: str) -> Credentials | None:
    """Return the alias token stored for this server, which may have expired."""
    try:
        cells = loads(_token_path(url).read_bytes())
        if not is_same_server(str(cells["url"]), url):
            return None
        return Credentials(str(cells["alias"]), str(cells["secret"]), "token", str(cells.get("username") or ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return None


def _token_path(url: str) -> Path:
    from hashlib import sha256  # loads OpenSSL

    return config_home() / "xnatfs" / "tokens" / f"{sha256(server_key(url).encode()).hexdigest()[:32]}.json"


# -- netrc and the prompt ----------------------------------------------------------------------------------------


def _netrc_entry(url: str) -> Credentials | None:
    host = urlsplit(url).hostname or ""
    try:
        found = netrc.netrc(Path.home() / ".netrc").authenticators(host)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
        # The parser's message names file and line, never the text that it cannot parse.
        reason = error.msg if isinstance(error, netrc.NetrcParseError) else error
        raise ConfigError(f"cannot read ~/.netrc: {reason}") from None
    if not found or not found[0] or not found[2]:
        return None
    return Credentials(found[0], found[2], "netrc")


def ask(url: str, username: str, environ: Mapping[str, str], provider: str = "") -> Credentials:
    """Prompt on the terminal for the missing parts of a login.

    Args:
        url: The server's URL, for the prompts.
        username: The user to log in as; '' to prompt for one.
        environ: The environment variables; the password is prompted for unless XNAT_PASS is set.
        provider: The login method of the site; '' for the server to choose.

    Raises:
        LoginRequired: Stdin is not a terminal, or the prompt was not answered.
        ConfigError: The login cannot be sent.
    """
    password = environ.get("XNAT_PASS", "")
    if not sys.stdin.isatty():
        missing = "user and password" if not username else "password"
        raise LoginRequired(
            f"no {missing} for {url}: run 'xnatctl auth login' on a terminal, or set XNAT_USER and XNAT_PASS, or "
            "a profile, or a line in ~/.netrc"
        )
    try:
        if not username:
            sys.stderr.write(f"User on {url}: ")
            sys.stderr.flush()
            username = sys.stdin.readline().strip()
        check_username(username)
        source = "environment" if password else "prompt"
        password = password or getpass.getpass(f"Password of {username} on {url}: ")
        return Credentials(username, password, source, provider=provider)
    except EOFError:
        raise LoginRequired(f"no password for {url}: the prompt was not answered") from None


def for_children() -> dict[str, str]:
    """Return the environment for a child process, without secrets."""
    return {key: value for key, value in os.environ.items() if key not in SECRET_VARIABLES}


def forget_secrets() -> None:
    """Remove the secrets from the environment that children inherit; libfuse starts fusermount3 by itself."""
    for key in SECRET_VARIABLES:
        os.environ.pop(key, None)
