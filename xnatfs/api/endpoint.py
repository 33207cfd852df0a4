"""Describe an endpoint: the server at a URL, its settings, and the source of its login."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from xnatfs.common.errors import ConfigError, LoginRequired
from xnatfs.settings.cache_location import cache_directory
from xnatfs.settings.config import Config, Profile, absolute_path, find_profile, server_config_of
from xnatfs.settings.credentials import load_credentials, wanted_user
from xnatfs.settings.credentials_file import read_credentials
from xnatfs.settings.logins import MountLogin, login_environment, mount_login
from xnatfs.tree import VIEWS

# The schemes of URLs that name a file on a server, and those of the server itself.
SCHEMES = {"xnat": "https", "xnat+http": "http"}


class OpenOptions(TypedDict, total=False):
    """The options of a connection; none of them holds a secret.

    token_file: A file with `username=` and `password=`, an alias token or an account's, that only its user can read.
    cache_dir: The directory of the cache (default: that of the mounts, `~/.cache/xnatfs`).
    cache_size: The most bytes in the cache (default: 10 GiB).
    ttl: Seconds for which a listing is fresh (default: 60).
    timeout: Seconds without progress after which a request fails (default: 60).
    ca_bundle: A file with the certificate authorities to trust.
    verify_ssl: False to accept any certificate.
    strict: True to serve no byte of a file before all of it is verified.
    shared_cache: A directory of verified files that several machines share (default: none).
    """

    token_file: str | os.PathLike[str]
    cache_dir: str | os.PathLike[str]
    cache_size: int
    ttl: float
    timeout: float
    ca_bundle: str | os.PathLike[str]
    verify_ssl: bool
    strict: bool
    shared_cache: str | os.PathLike[str]


class Location(NamedTuple):
    """A place on a server."""

    url: str  # of the server, "https://xnat.example.org/context"; '' if only a path was given
    path: str  # below the root of the tree: "/projects/P"


@dataclass(frozen=True)
class Endpoint:
    """The settings of a server and the place of its login. Equal ones share a portal within a process."""

    config: Config
    token_file: Path | None = None
    user: str = ""  # that the environment or the profile names

    def find_login(self) -> MountLogin:
        """Find the login, without a prompt. Raises LoginRequired, and ConfigError for a broken file."""
        environ = login_environment(self.config)
        if self.token_file is not None:
            return mount_login(self.config, self.token_file, read_credentials(self.token_file), "")
        credentials = load_credentials(self.config.url, self.config.profile, environ)
        found = mount_login(self.config, None, credentials, environ.get("XNAT_TOKEN", ""))
        if credentials is None and (found.sessions is None or found.sessions.find() is None):
            raise LoginRequired(
                f"no login for {self.config.url}: run 'xnatctl auth login' as this user (--token for a job), or set "
                "XNAT_USER and XNAT_PASS or a line in ~/.netrc, or name a file with token_file"
            )
        return found


def locate(url: str) -> Location:
    """Split a URL, or a path of the tree, into server and path.

    The path begins at the first part that is a directory of the root, such as `projects`; the parts before it belong to
    the server. Nothing is unquoted: '%', '?' and '#' are characters of names.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Location("", _path(url.split("/")))
    host, *parts = rest.split("/")
    first = next((place for place, part in enumerate(parts) if part in VIEWS), len(parts))
    context = "".join(f"/{part}" for part in parts[:first] if part)
    return Location(f"{SCHEMES.get(scheme, scheme)}://{host}{context}", _path(parts[first:]))


def file_url(server: str, path: str) -> str:
    """Return the URL of a path on a server, as `locate` splits it."""
    scheme, _, rest = server.partition("://")
    return f"{next(ours for ours, theirs in SCHEMES.items() if theirs == scheme)}://{rest}{path}"


def _path(parts: Iterable[str]) -> str:
    return "/" + "/".join(part for part in parts if part)


def endpoint_of(url: str, options: OpenOptions) -> Endpoint:
    """Return the connection to a server, with the profile of that server. Raises ConfigError."""
    unknown = options.keys() - OpenOptions.__annotations__.keys()
    if unknown:
        raise ConfigError(f"no such option: {', '.join(sorted(unknown))} (a login goes into a token_file)")
    profile = find_profile(url, os.environ.get("XNAT_PROFILE", "")) or Profile("")
    bundle = options.get("ca_bundle")
    server = server_config_of(url, profile, Path(bundle) if bundle else None, not options.get("verify_ssl", True))
    chosen = options.get("cache_dir")
    given: dict[str, Any] = {name: value for name, value in options.items() if name in _SETTINGS}
    if shared := options.get("shared_cache"):
        given["shared_cache"] = absolute_path(shared)
    config = replace(server, cache_dir=cache_directory(Path(chosen) if chosen else None), **given)
    file = options.get("token_file")
    user = "" if file else wanted_user(config.url, config.profile, login_environment(config))
    return Endpoint(config, absolute_path(file) if file else None, user)


# The options that are settings of the same name.
_SETTINGS = ("cache_size", "ttl", "timeout", "strict")
