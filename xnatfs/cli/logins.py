"""Choose the session and the login of a command, in the same way for `xnatfs mount` and every `xnatctl`."""

import os
from collections.abc import Callable

from xnatfs.common.errors import ConfigError
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials, find_credentials, kept_credentials, wanted_user
from xnatfs.settings.session_store import SessionStore, is_session_id


def session_store(config: Config, token: str, user: str = "") -> SessionStore:
    """Return the stored sessions for this server.

    Args:
        token: session ID from the environment, preferred to the stored ones; '' for none.
        user: owner of the sessions; '' for the user that the environment or the profile names.

    Raises:
        ConfigError: the token is not a session ID.
    """
    if token and not is_session_id(token):
        raise ConfigError("XNAT_TOKEN is not a session ID: it must be 8 to 256 letters and digits")
    user = user or wanted_user(config.url, config.profile, os.environ)
    url = config.profile.url or config.url
    return SessionStore(url, user, given=token, lock_timeout=config.lock_timeout)


def find_login(config: Config, token: str, before_asking: Callable[[], object] = lambda: None) -> Credentials | None:
    """Find the login for a new session, or prompt for it if no session is alive. Raises LoginRequired.

    `before_asking` is called before the prompt, and raises if the command would fail anyway.
    """
    kept = kept_credentials(config.url, config.profile, os.environ)
    if kept or session_store(config, token).find():
        return kept
    before_asking()
    return find_credentials(config.url, config.profile, os.environ)
