"""Choose the session and the login of a command, in the same way for `xnatfs mount` and every `xnatctl`."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xnatfs.common.errors import ConfigError, LoginRequired
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials, find_credentials, load_credentials, login_variables, wanted_user
from xnatfs.settings.credentials_file import read_credentials
from xnatfs.settings.session_store import SessionStore, is_session_id


def login_environment(config: Config) -> Mapping[str, str]:
    """Return the environment variables, without a login that is for another server."""
    return login_variables(config.url, os.environ)


def session_store(config: Config, token: str | None = None, user: str = "") -> SessionStore:
    """Return the stored sessions for this server.

    Args:
        config: The server.
        token: Session ID that is preferred to the stored ones, '' for none; by default XNAT_TOKEN.
        user: Owner of the sessions; '' for the user that the environment or the profile names.

    Raises:
        ConfigError: The token is not a session ID.
    """
    environ = login_environment(config)
    token = environ.get("XNAT_TOKEN", "") if token is None else token
    if token and not is_session_id(token):
        raise ConfigError("XNAT_TOKEN is not a session ID: it must be 8 to 256 letters and digits")
    user = user or wanted_user(config.url, config.profile, environ)
    url = config.profile.url or config.url
    return SessionStore(url, user, given=token, lock_timeout=config.lock_timeout)


@dataclass(frozen=True, slots=True)
class MountLogin:
    """The login that a mount begins with: credentials, a session (`token`), or neither if a session is stored."""

    credentials: Credentials | None
    token: str
    sessions: SessionStore | None  # None: none is stored

    @property
    def user(self) -> str:
        """Return the account; '' if only the server knows it."""
        if self.credentials is not None:
            return self.credentials.user
        found = self.sessions and self.sessions.find()
        return found.username if found else ""


def find_mount_login(
    config: Config, file: Path | None, before_asking: Callable[[], object] = lambda: None
) -> MountLogin:
    """Find the login of a mount: in the file, if one is named, else as `find_login` does."""
    credentials = read_credentials(file) if file else find_login(config, before_asking)
    token = "" if file else login_environment(config).get("XNAT_TOKEN", "")
    return mount_login(config, file, credentials, token)


def mount_login(config: Config, file: Path | None, credentials: Credentials | None, token: str) -> MountLogin:
    """Return the login that was found, with the stored sessions of its user."""
    user = credentials.user if file and credentials else ""
    return MountLogin(credentials, token, session_store(config, token, user))


def find_login_again(config: Config, file: Path | None) -> Credentials | None:
    """Find the login without a prompt; None if there is none. Raises ConfigError."""
    return read_credentials(file) if file else load_credentials(config.url, config.profile, login_environment(config))


def find_login(config: Config, before_asking: Callable[[], object] = lambda: None) -> Credentials | None:
    """Find the login for a new session, or prompt for it if no session is alive. Raises LoginRequired.

    `before_asking` is called before the prompt, and raises if the command would fail anyway.
    """
    environ = login_environment(config)
    stored = load_credentials(config.url, config.profile, environ)
    if stored or session_store(config).find():
        return stored
    before_asking()
    try:
        return find_credentials(config.url, config.profile, environ)
    except LoginRequired as error:
        if environ == os.environ:
            raise
        raise LoginRequired(f"{error}; the login in the environment is for XNAT_URL, another server") from None
