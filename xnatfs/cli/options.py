"""Parse option values and mount options, and build one Config from profile < environment < flags."""

import argparse
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from xnatfs.cli import logs
from xnatfs.cli.host.view_options import LIST_OPTIONS, add_views, view_options
from xnatfs.common.errors import ConfigError
from xnatfs.fuse.control.protocol import LOG_LEVELS
from xnatfs.settings.cache_location import cache_directory
from xnatfs.settings.config import (
    MOUNT_TIMEOUT_SECONDS,
    TTL_SECONDS,
    Config,
    Profile,
    absolute_path,
    find_profile,
    select_profile,
    server_config_of,
)

# An ID has 32 bits. With all of them set it is invalid: chown(2) reads it as "unchanged", the kernel shows nobody's.
LAST_OWNER_ID = 2**32 - 2

_SECONDS_BY_UNIT = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:ms|min|[smhd])\s*)+", re.IGNORECASE)
_DURATION_PART = re.compile(r"([\d.]+)\s*([a-z]+)", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)

# Options in fstab for mount(8) and systemd, not for xnatfs (`user=jdoe`, `x-systemd.automount`).
_FOR_OTHERS = "defaults auto noauto user nouser users owner noowner group nogroup _netdev nofail comment uhelper helper"
# Options that hold, or have no effect, in every mount; mount(8) passes `rw` and `suid` by default.
_WITHOUT_EFFECT = (
    "ro rw suid nosuid dev nodev default_permissions sync async dirsync atime noatime diratime nodiratime relatime"
    " norelatime strictatime nostrictatime lazytime nolazytime"
)
IGNORED_OPTIONS = frozenset(f"{_FOR_OTHERS} {_WITHOUT_EFFECT}".split())
# Labels of SELinux. mount(8) omits them where the kernel has none; elsewhere the kernel accepts them from root.
SELINUX_OPTIONS = frozenset({"context", "fscontext", "defcontext", "rootcontext"})
SELINUX_ROOT = Path("/sys/fs/selinux")
# Options of other mounts, and why this one refuses them.
REFUSED_OPTIONS = {
    "auto_unmount": "a mount whose process was killed would look like an empty directory, which is an error instead;"
    " the next 'xnatfs mount' there clears it",
    "nonempty": "it would hide the files in the directory: use an empty one",
    "remount": "unmount it, and mount it again",
    **dict.fromkeys(("fsname", "subtype"), "a mount is named after its server"),
    **dict.fromkeys(
        ("attr_timeout", "entry_timeout", "negative_timeout", "kernel_cache", "auto_cache", "direct_io"),
        "the kernel caches listings and attributes for as long as --ttl says",
    ),
    **dict.fromkeys(("max_read", "max_readahead", "blksize"), "the size of requests cannot be chosen"),
    **dict.fromkeys(("fmask", "dmask", "mode"), "use umask"),
}
# A comma within quotes is part of a value: context="system_u:object_r:fusefs_t:s0:c1,c2".
_OPTION = re.compile(r'(?:[^,"]|"[^"]*"?)+')


def size(text: str) -> int:
    """Parse a size such as '10G' or '512 MiB', but not '1e9', into bytes."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 500M or 10G")
    return int(float(match[1]) * _SIZE_UNITS[match[2].upper()])


def seconds(text: str) -> float:
    """Parse a time that is not negative, such as '90', '5m' or '1h30m', into seconds."""
    try:
        value = float(text)
    except ValueError:
        parts = _DURATION_PART.findall(text) if _DURATION.fullmatch(text.strip()) else []
        value = sum(float(number) * _SECONDS_BY_UNIT[unit.lower()] for number, unit in parts) if parts else -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90 (seconds), 5m or 1h30m")
    return value


def positive_seconds(text: str) -> float:
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return value


def octal(text: str) -> int:
    if not re.fullmatch(r"[0-7]{1,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mask like 022")
    return int(text, 8)


def number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def truth(text: str) -> bool:
    try:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


def one_of(*values: str) -> Callable[[str], str]:
    """Return a parser of one of these values."""

    def parse(text: str) -> str:
        if text not in values:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(values)}")
        return text

    return parse


def owner_id(text: str) -> int:
    if not text.isdigit() or int(text) > LAST_OWNER_ID:
        raise argparse.ArgumentTypeError(f"{text!r} is not a numeric ID of a user or group")
    return int(text)


def find_day(text: str) -> date | None:
    """Return the day that a text begins with, as 2024-01-15 or 2024-1-15; None where that is no day."""
    match = re.match(r"(\d{4})-(\d{1,2})-(\d{1,2})(?!\d)", text.strip())
    try:
        return date(*map(int, match.groups())) if match else None
    except ValueError:
        return None


def day(text: str) -> date:
    found = find_day(text) if re.fullmatch(r"[\d-]*", text.strip()) else None
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day like 2024-01-31")
    return found


def add_server(parser: argparse.ArgumentParser) -> None:
    server, add = parser.add_mutually_exclusive_group(), parser.add_argument
    server.add_argument("-p", "--profile", metavar="NAME", help="profile in ~/.config/xnatctl/config.yaml")
    url = "the XNAT server, as https://xnat.example.org (default: XNAT_URL, else the profile's)"
    server.add_argument("--url", help=url)
    credentials = "read username= and password= from FILE, which only you can read"
    add("--credentials", type=Path, metavar="FILE", help=credentials)
    add("--lazy", action="store_true", help="mount even while the server cannot be reached, and log in later")
    add("--ca-bundle", type=Path, metavar="FILE", help="trust the certificate authorities in FILE")
    add("--no-verify-ssl", action="store_true", help="accept any certificate; others can then read the traffic")


def add_mount(parser: argparse.ArgumentParser) -> None:
    """Add the options of a mount; `-o` takes the same ones, as mount(8) passes them."""
    add = parser.add_argument
    add("-f", "--foreground", action="store_true", help="stay in the foreground, log to the terminal")
    add("--mkdir", action="store_true", help="make the mountpoint if it does not exist")
    add("-o", dest="options", action="append", default=[], metavar="OPT[,OPT...]", help="mount options")
    add("--allow-other", action="store_true", help="allow access by all users of this machine: they see what you may")
    add("--allow-root", action="store_true", help="allow access by root of this machine only: sets the umask to 077")
    add("--uid", type=owner_id, help="show files as owned by this user (default: you)")
    add("--gid", type=owner_id, help="show files as of this group (default: yours)")
    add("--umask", type=octal, help="remove these permission bits (default: 000)")
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options of a mount that do not depend on where and for which users it is."""
    add = parser.add_argument
    add("--no-xattr", action="store_true", help="show no extended attributes user.xnat.*")
    add("--cache-dir", type=Path, metavar="DIR", help="directory of the cache (default: ~/.cache/xnatfs)")
    cache_size = "maximum size of the cache (default: 10G, at most half the free disk)"
    add("--cache-size", type=size, metavar="SIZE", help=cache_size)
    shared_cache = "directory of verified files that several machines share (default: none)"
    add("--shared-cache", type=Path, metavar="DIR", help=shared_cache)
    ttl = f"maximum age of a listing, as 90 (seconds), 5m or 1h30m (default: {TTL_SECONDS:g} s)"
    add("--ttl", type=seconds, metavar="TIME", help=ttl)
    timeout = f"longest time without progress that a call waits for (default: {MOUNT_TIMEOUT_SECONDS:g} s)"
    add("--timeout", type=positive_seconds, metavar="TIME", help=timeout)
    revalidate = "revalidate cached files without a digest after this time (default: 1 h)"
    add("--revalidate", type=seconds, metavar="TIME", help=revalidate)
    add("--strict", action="store_true", help="serve no byte of a file until all of it is verified")
    offline = "serve expired listings while the server is unreachable, for a day"
    add("--offline", action="store_true", help=offline)
    add_views(parser)
    add("--log-level", choices=LOG_LEVELS, default="info", help="default: info")
    add("--log-file", type=Path, metavar="FILE", help="append the log to FILE")
    add("--report-fd", type=number, help=argparse.SUPPRESS)


def split_options(text: str) -> list[str]:
    """Split the value of `-o` at its commas."""
    return _OPTION.findall(text)


def apply_mount_options(arguments: argparse.Namespace) -> None:
    """Apply `-o` options to the flags of the same name, and set `kernel_options`. Raises ConfigError."""
    kernel: set[str] = set()
    before = ""
    for option in arguments.options:
        if option.count('"') % 2:
            raise ConfigError(f"-o {option}: a quote is not closed")
    for text in (part for option in arguments.options for part in split_options(option)):
        name, equals, value = text.partition("=")
        if name in ("exec", "noexec"):
            kernel -= {"exec", "noexec"}
            kernel.add(name)
        elif name in SELINUX_OPTIONS:
            kernel |= _label(text, name)
        elif name in REFUSED_OPTIONS:
            raise ConfigError(f"-o {name}: {REFUSED_OPTIONS[name]}")
        elif name not in IGNORED_OPTIONS and not name.startswith(("x-", "X-")):
            _apply(arguments, name.replace("-", "_"), value if equals else None, before)
        before = name
    if arguments.allow_other and arguments.allow_root:
        raise ConfigError("give either --allow-other or --allow-root, not both")
    if arguments.allow_root and arguments.uid is not None:
        raise ConfigError("--allow-root shows files as yours, for you and root alone: omit --uid")
    arguments.kernel_options = frozenset(kernel)


def _label(text: str, name: str) -> set[str]:
    """Return a label of SELinux for the kernel; none if that has no SELinux. Raises ConfigError."""
    if not SELINUX_ROOT.exists():
        return set()
    if os.geteuid():
        raise ConfigError(f"-o {name}: only root may label a mount; mount as root, with --uid and --gid")
    return {text}


def _apply(arguments: argparse.Namespace, name: str, value: str | None, before: str) -> None:
    """Apply one option of `-o` that has the name of a flag, after another one. Raises ConfigError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_server(parser)
    add_mount(parser)
    flag = f"--{name.replace('_', '-')}"
    if name in ("options", "report_fd", "foreground"):
        raise ConfigError(f"-o {name}: no such option")
    try:
        parsed, unknown = parser.parse_known_args([flag] if value is None else [f"{flag}={value}"])
    except argparse.ArgumentError as error:
        raise ConfigError(f"-o {name}: {error.message}") from None
    if unknown:
        hint = f"; a list has colons in -o, as {before}=A:B" if before.replace("-", "_") in LIST_OPTIONS else ""
        raise ConfigError(f"-o {name}: no such option{hint}")
    setattr(arguments, name, getattr(parsed, name))


def server_config(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """Return the settings of the server that flags, environment or profile name. Raises ConfigError."""
    given = arguments.url or environ.get("XNAT_URL")
    named = arguments.profile or environ.get("XNAT_PROFILE") or ""
    # A server has one login, by whichever URL it is named.
    found = find_profile(given, named) if given and (arguments.url or not named) else None
    profile = found or (Profile("") if arguments.url else select_profile(arguments.profile, environ))
    text = given or profile.url
    if not text and profile.name:
        raise ConfigError(f"profile {profile.name!r} in ~/.config/xnatctl/config.yaml has no url: add it or give --url")
    if not text:
        raise ConfigError("which XNAT? Give --url, or set XNAT_URL, or make a profile in ~/.config/xnatctl/config.yaml")
    return server_config_of(text, profile, arguments.ca_bundle, arguments.no_verify_ssl)


def configure_logging(arguments: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Log requests to a file, or to stderr with --verbose; warnings go to the log, errors end the command."""
    name = arguments.log_file or environ.get("XNATCTL_LOG_FILE")
    logs.log_to_stream(name, logging.INFO if arguments.verbose or name else logging.CRITICAL)


def mount_config(arguments: argparse.Namespace, server: Config) -> Config:
    """Return the settings of a server with those that the flags set for the mount."""
    given: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("cache_size", "ttl", "timeout", "revalidate")
        if getattr(arguments, name) is not None
    }
    if arguments.shared_cache is not None:
        given["shared_cache"] = absolute_path(arguments.shared_cache)
    directory = cache_directory(arguments.cache_dir)
    given |= {"strict": arguments.strict, "offline": arguments.offline, "views": view_options(arguments)}
    return replace(server, cache_dir=directory, **given)
