"""Define Config, the settings of a server, and read the profile file.

The profile file, `~/.config/xnatctl/config.yaml`, is shared with another program; it is read here and never written.
`$HOME` decides where it is: that program does not look at the XDG variables.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from xnatfs.common.errors import ConfigError
from xnatfs.common.urls import is_same_server, server_key
from xnatfs.settings.views import ViewOptions

GIB = 2**30

T = TypeVar("T")

# Seconds that xnatctl waits for a reply: some servers archive and zip for hours.
XNATCTL_TIMEOUT_SECONDS = 21600.0
# Seconds that a mount waits for a reply. A proxy in front of XNAT commonly gives up after 60 s.
MOUNT_TIMEOUT_SECONDS = 60.0
# Seconds: long enough for one `find` over a session, short enough to wait for what a colleague has changed.
TTL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Profile:
    """One entry of the profile file."""

    name: str
    url: str = ""
    username: str = ""
    password: str = ""
    verify_ssl: bool = True
    ca_bundle: str = ""
    password_source: str = ""  # 'keyring', or nothing
    default_project: str = ""
    timeout: float = XNATCTL_TIMEOUT_SECONDS
    # Defaults for options that the command line of xnatctl omits; '' and 0: not set.
    workers: int = 0
    overwrite: str = ""
    archive_mode: str = ""
    direct_archive: bool = False
    provider: str = ""  # the login method, where a site has several

    def __repr__(self) -> str:
        return f"Profile({self.name!r}, {self.url!r})"


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of a mount and its server, without the login."""

    url: str
    profile: Profile = Profile("")
    verify_ssl: bool = True
    ca_bundle: str = ""
    # Seconds until the head of a reply, and in which a body must make progress (`http/retry.py`).
    timeout: float = MOUNT_TIMEOUT_SECONDS
    # Retry budget while the server is unreachable, in seconds; 0: the same as `timeout`.
    retry_budget: float = 0.0
    ttl: float = TTL_SECONDS  # the maximum age of a listing
    cache_dir: Path = Path()
    cache_size: int = 10 * GIB
    # Seconds until cached bytes without a digest are revalidated; a change of equal size may stay unnoticed that long.
    revalidate: float = 3600.0
    strict: bool = False
    shared_cache: Path | None = None  # a directory of verified files that several machines share
    offline: bool = False  # serve expired listings while the server is unreachable
    views: ViewOptions = field(default_factory=ViewOptions)  # what is shown of the archive

    @property
    def lock_timeout(self) -> float:
        """Return how long to wait for a lock that another process holds, in seconds.

        A login or a read that waits for a lock has `timeout` in total: half of it is left to go on without the lock.
        """
        return min(self.retry_budget or self.timeout, self.timeout / 2)


def config_home() -> Path:
    return Path.home() / ".config"


def profiles_path() -> Path:
    """Return the path of the profile file, which other programs read and write, too."""
    return config_home() / "xnatctl" / "config.yaml"


def cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xnatfs"


def server_directory(url: str) -> str:
    """Return the name of a server's folder in the cache.

    Data received without encryption may be forged, so it is never served as data of the same host with encryption.
    """
    return ("http_" if url.strip().lower().startswith("http:") else "") + server_name(url)


def server_name(url: str) -> str:
    """Return a server's host, port and path as a file name."""
    parts = urlsplit(server_key(url))
    return (parts.netloc + parts.path).rstrip("/").replace("/", "_").replace(":", "_")


def normalised_url(url: str) -> str:
    """Return the site's URL without trailing slash. Raises ConfigError unless it is http(s)://HOST[/PATH]."""
    text = url.strip().rstrip("/")
    shown = re.sub(r"//.*@", "//...@", text, flags=re.DOTALL)  # omits a password that may be in it
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  (raises for a port that is no number)
    except ValueError as error:
        why = "" if shown != text else f": {error}"
        raise ConfigError(f"{shown!r} is not a URL{why}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{shown!r} is not the URL of a server: it must begin with https:// or http:// and a host")
    if parts.username or parts.password:
        raise ConfigError("the URL must not hold a user or a password: use XNAT_USER and XNAT_PASS or a profile")
    if parts.query or parts.fragment:
        raise ConfigError(f"{shown!r} is not the URL of a server: it must end after the path, without '?' or '#'")
    return text


def server_config_of(text: str, profile: Profile, ca_bundle: str | Path | None, no_verify_ssl: bool = False) -> Config:
    """Return the settings of the server at a URL; a profile of another server lends it neither login nor trust.

    Args:
        text: The URL.
        profile: The profile; an empty one for none.
        ca_bundle: The certificate authorities to trust; by default those of the profile, else the system's.
        no_verify_ssl: True to accept any certificate.

    Raises:
        ConfigError: The URL is not one of a server, or the bundle is not a file.
    """
    url = normalised_url(text)
    if is_same_server(profile.url, url):
        url = normalised_url(profile.url)
    elif profile.url:
        profile = replace(profile, url="", username="", password="", password_source="", verify_ssl=True, ca_bundle="")
    bundle = str(ca_bundle or profile.ca_bundle)
    absolute = absolute_path(bundle) if bundle else None
    if absolute and not absolute.is_file():
        raise ConfigError(f"the CA bundle {bundle} is not a file")
    verify = profile.verify_ssl and not no_verify_ssl
    return Config(url, profile, verify_ssl=verify, ca_bundle=str(absolute or ""))


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """Return a path of the user, with `~` and `~NAME` expanded. Raises ConfigError where there is no such home."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"{os.fspath(path)}: there is no such home directory") from None


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def connection_warning(config: Config) -> str:
    """Return a warning if others can read the traffic with the server; '' if not."""
    parts = urlsplit(config.url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        return f"{config.url} is not encrypted: the password and all data can be read on the way"
    if parts.scheme == "https" and not config.verify_ssl and not config.ca_bundle:
        return f"the certificate of {config.url} is not verified: another server could pose as it and get the password"
    return ""


def output_format(path: Path) -> str:
    """Return the default output format of commands; '' if the file does not set it. Raises ConfigError."""
    return str(_document(path).get("output_format") or "")


def read_profiles(path: Path) -> tuple[dict[str, Profile], str]:
    """Return the profiles of the file and the name of its default; none if it is missing. Raises ConfigError."""
    document = _document(path)
    cells = document.get("profiles") or {}
    profiles = {str(name): _profile(str(name), each, path) for name, each in cells.items()}
    return profiles, str(document.get("default_profile") or "")


def read_text(path: Path) -> str:
    """Return a profile file as it stands; '' if there is none. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _document(path: Path) -> dict[str, Any]:
    """Read the file, each scalar as the text that stands there: YAML reads 0123 as 83, and yes as True."""
    text = read_text(path)
    if not text:
        return {}
    import yaml  # costs 15 ms at each start, and many machines have no such file

    class TextLoader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in found if tag.endswith((":null", ":merge"))]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        document = yaml.load(text, TextLoader) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', None) or 'bad text'}") from None
    except (ValueError, RecursionError, OverflowError):  # lists nested too deeply; a date or number with a tag
        raise ConfigError(f"{path} is not valid YAML: a date, a number or its nesting") from None
    if not isinstance(document, dict) or not isinstance(document.get("profiles") or {}, dict):
        raise ConfigError(f"{path} does not hold a mapping with 'profiles:'")
    return document


def _profile(name: str, cells: Any, path: Path) -> Profile:
    if not isinstance(cells, dict):
        raise ConfigError(f"{path}: profile {name!r} is not a mapping")

    def text(key: str) -> str:
        value = cells.get(key)
        return "" if value is None else str(value)

    def parsed(key: str, parse: Callable[[str], T], default: T, kind: str = "a number") -> T:
        try:
            return parse(text(key)) if text(key) else default
        except (ValueError, OverflowError, KeyError):
            raise ConfigError(f"{path}: {key} of profile {name!r} must be {kind}, not {text(key)!r}") from None

    timeout = parsed("timeout", float, XNATCTL_TIMEOUT_SECONDS)
    if not 0 < timeout < float("inf"):
        raise ConfigError(f"{path}: timeout of profile {name!r} must be more than 0 seconds, and end")
    return Profile(
        name,
        url=text("url"),
        username=text("username"),
        password=text("password"),
        verify_ssl=parsed("verify_ssl", _boolean, True, "true or false"),
        ca_bundle=text("ca_bundle"),
        password_source=text("password_source"),
        default_project=text("default_project"),
        timeout=timeout,
        workers=parsed("workers", int, 0),
        overwrite=text("overwrite"),
        archive_mode=text("archive_mode"),
        direct_archive=parsed("direct_archive", _boolean, False, "true or false"),
        provider=text("provider"),
    )


def _boolean(text: str) -> bool:
    """Parse one of the words of YAML 1.1. Raises KeyError."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    return words[text.lower()]


def find_profile(url: str, preferred: str = "", path: Path | None = None) -> Profile | None:
    """Return the profile of a server: the preferred one, else the default, else its only one. Raises ConfigError."""
    profiles, default = read_profiles(path or profiles_path())
    found = {name: profile for name, profile in profiles.items() if is_same_server(profile.url, url)}
    for name in (preferred, default):
        if name in found:
            return found[name]
    return next(iter(found.values())) if len(found) == 1 else None


def select_profile(name: str | None, environ: Mapping[str, str], path: Path | None = None) -> Profile:
    """Return the profile that the flag or XNAT_PROFILE names, else the default, else the only one, else an empty one.

    Raises ConfigError if the named profile does not exist, or if there are several, no default and no XNAT_URL.
    """
    path = path or profiles_path()
    profiles, default = read_profiles(path)
    wanted = name or environ.get("XNAT_PROFILE") or ""
    if wanted:
        if wanted not in profiles:
            known = ", ".join(sorted(profiles)) or "none"
            raise ConfigError(f"profile {wanted!r} is not in {path} (profiles there: {known})")
        return profiles[wanted]
    if default in profiles:
        return profiles[default]
    if len(profiles) == 1:
        return next(iter(profiles.values()))
    if profiles and not environ.get("XNAT_URL"):
        known = ", ".join(sorted(profiles))
        raise ConfigError(f"which profile? {path} has {known}, and no default_profile: give -p, or set XNAT_PROFILE")
    return profiles.get("default", Profile(""))
