"""Which session and which login a command goes by; the same for `xnatfs mount` and every `xnatctl`."""

import os
from collections.abc import Callable

from xnatfs.common.errors import ConfigError
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials, find_credentials, kept_credentials, wanted_user
from xnatfs.settings.session_store import SessionStore, is_session_id


def session_store(config: Config, token: str, user: str = "") -> SessionStore:
    """The sessions kept for this server; `token` is one from the environment, which goes before them.

    They are those of a user, else of the one that environment or profile name.
    Raises ConfigError for a token that no header may hold.
    """
    if token and not is_session_id(token):
        raise ConfigError("XNAT_TOKEN is not a session ID: it must be 8 to 256 letters and digits")
    user = user or wanted_user(config.url, config.profile, os.environ)
    url = config.profile.url or config.url
    return SessionStore(url, user, given=token, lock_timeout=config.lock_timeout)


def find_login(config: Config, token: str, before_asking: Callable[[], object] = lambda: None) -> Credentials | None:
    """The login to make a session with; asked for only where no session is alive. Raises LoginRequired.

    `before_asking` raises what would make the question a waste of somebody's time.
    """
    kept = kept_credentials(config.url, config.profile, os.environ)
    if kept or session_store(config, token).find():
        return kept
    before_asking()
    return find_credentials(config.url, config.profile, os.environ)
