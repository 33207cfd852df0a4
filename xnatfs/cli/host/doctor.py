"""Run the command doctor: check all that a mount needs, and suggest a remedy for each failure."""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from xnatfs import __version__
from xnatfs.cli import logs, options, statusline, streams
from xnatfs.cli.output import print_text
from xnatfs.common.errors import ConfigError, LoginRequired, XnatError
from xnatfs.common.mountinfo import all_mounts
from xnatfs.common.sanitize import plain
from xnatfs.fuse.mount_namespace import check_namespaces
from xnatfs.fuse.mountpoint import KIND, check_fuse, is_dead
from xnatfs.settings.cache_location import cache_directory
from xnatfs.settings.config import Config, connection_warning
from xnatfs.settings.credentials import for_children
from xnatfs.settings.logins import find_login_again, mount_login

# Seconds until a certificate expires, below which its renewal is due; and of difference between two clocks, from which
# on times of files mislead, and sessions and tokens end early.
CERTIFICATE_SECONDS, CLOCK_SKEW_SECONDS = 14 * 86400, 60.0
# Free bytes that a cache needs: enough for a session of raw data.
CACHE_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; `todo` is a remedy, or '' if none is needed."""

    name: str
    text: str
    todo: str = ""


def run_doctor(arguments: argparse.Namespace) -> int:
    arguments.url = arguments.url or arguments.source
    logs.log_to_stream(None, logging.CRITICAL)  # what it would report is in the checks
    checks = []
    for check in _checks(arguments):
        checks.append(check)
        if arguments.output == "text":
            mark = "to do" if check.todo else "ok   "
            print_text(plain(f"{mark} {check.name}: {check.text}{f': {check.todo}' if check.todo else ''}"))
            streams.flush_for_reader()
    if arguments.output == "json":
        print(json.dumps([{**asdict(check), "ok": not check.todo} for check in checks], indent=2))
    return 1 if any(check.todo for check in checks) else 0


def _checks(arguments: argparse.Namespace) -> Iterator[Check]:
    yield _versions()
    yield _attempt("FUSE", check_fuse, "this user can mount")
    yield _attempt("exec", check_namespaces, "this user can mount in a namespace")
    yield from _stale_mounts()
    yield _attempt("cache", lambda: _cache(arguments.cache_dir))
    try:
        config = options.server_config(arguments, os.environ)
    except XnatError as error:
        yield Check("server", "it is not known which", str(error))
        return
    yield from _server(arguments, config)


def _attempt(name: str, check: Callable[[], Check | None], success: str = "") -> Check:
    """Run a check, which may return nothing for `success`; the text of an error contains the remedy."""
    try:
        return check() or Check(name, success)
    except XnatError as error:
        text, _, todo = str(error).partition(": ")
        return Check(name, text, todo or "see docs/TROUBLESHOOTING.md")


# -- this machine ------------------------------------------------------------------------------------------------


def _versions() -> Check:
    from importlib.metadata import PackageNotFoundError, version  # slow, and every command imports this module

    def describe(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"no {package}"

    packages = ", ".join(map(describe, ("httpx", "trio", "pyfuse3")))
    python = ".".join(map(str, sys.version_info[:3]))
    system = f"{os.uname().sysname} {os.uname().release}"
    return Check("versions", f"xnatfs {__version__}, Python {python}, {packages}, {_fusermount()}, {system}")


def _fusermount() -> str:
    try:
        done = subprocess.run(["fusermount3", "--version"], capture_output=True, text=True, env=for_children())
    except OSError:
        return "no fusermount3"
    return f"fusermount3 {done.stdout.strip().rpartition(' ')[2]}"


def _stale_mounts() -> Iterator[Check]:
    ours = [
        (place, mount) for place, mount in all_mounts().items() if mount.kind == KIND and mount.owner == os.getuid()
    ]
    dead = [place for place, mount in ours if is_dead(place, mount)]
    for place in dead:
        yield Check("mounts", f"the process of the mount on {place} has ended", f"xnatfs umount {place}")
    alive = [f"{mount.source} on {place}" for place, mount in ours if place not in dead]
    if alive or not dead:
        yield Check("mounts", ", ".join(alive) or "none")


def _cache(chosen: Path | None) -> Check:
    directory = cache_directory(chosen)
    place = next(each for each in (directory, *directory.parents) if each.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("cache", f"{place} cannot be written to", "choose another directory with --cache-dir")
    free = shutil.disk_usage(place).free
    text = f"{directory} has {free / 2**30:.1f} GiB free"
    return Check("cache", text, "free some space, or use --cache-dir" if free < CACHE_BYTES else "")


# -- the server --------------------------------------------------------------------------------------------------


def _server(arguments: argparse.Namespace, config: Config) -> Iterator[Check]:
    """Check one server, step by step, up to the first step that fails."""
    from xnatfs.http import probe

    if proxy := probe.proxy_of(config.url):
        yield Check("proxy", f"{config.url} is reached through {proxy} (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY)")
    else:
        yield Check("proxy", "none")
        name = _attempt("DNS", lambda: Check("DNS", f"{config.url} is at {', '.join(probe.resolve(config.url))}"))
        if name.todo:
            yield Check(name.name, f"{name.text}: {name.todo}", "check the name, the network and the VPN")
            return
        yield name
        if config.url.startswith("https:"):
            yield _attempt("TLS", lambda: _certificate(probe.certificate_ends(config)))
    if warning := connection_warning(config):
        yield Check("encryption", warning, "use an https:// address, and --ca-bundle in place of --no-verify-ssl")
    with statusline.waiting(f"Asking {config.url}"):
        answer = _attempt_async("server", partial(_answer, config))
    if proxy:
        answer = [replace(each, todo=each.todo and f"{each.todo} (by the proxy {proxy})") for each in answer]
    yield from answer
    if not any(check.todo and check.name == "server" for check in answer):
        with statusline.waiting(f"Logging in to {config.url}"):
            yield from _attempt_async("login methods", partial(_login_methods, config))
            yield from _attempt_async("login", partial(_login, arguments, config))


def _certificate(ends: float) -> Check:
    days = (ends - time.time()) / 86400
    if days == float("inf"):
        return Check("TLS", "the certificate is not verified", "leave out --no-verify-ssl")
    text = f"the certificate is trusted, and expires in {days:.0f} days"
    return Check("TLS", text, "its managers must renew it" if days * 86400 < CERTIFICATE_SECONDS else "")


def _attempt_async(name: str, work: Callable[[], Any]) -> list[Check]:
    import trio

    from xnatfs.common.tasks import kept_interrupts

    try:
        with kept_interrupts():
            found: list[Check] = trio.run(work)
        return found
    except XnatError as error:
        text, _, todo = str(error).rpartition(": ")
        return [Check(name, text or str(error), todo if text else "see docs/TROUBLESHOOTING.md")]


async def _answer(config: Config) -> list[Check]:
    from xnatfs.http import probe

    answer = await probe.ask(config)
    named = f"XNAT {answer.version}" if answer.version else "an XNAT that does not state its version"
    found = [Check("server", f"{config.url} is {named}, and answers in {answer.seconds * 1000:.0f} ms")]
    ahead = "ahead of" if answer.skew > 0 else "behind"
    text = f"the server's clock is {abs(answer.skew):.0f} s {ahead} this machine's"
    late = abs(answer.skew) > CLOCK_SKEW_SECONDS
    return [*found, Check("clock", text, "set the wrong one of the two, by NTP" if late else "")]


async def _login_methods(config: Config) -> list[Check]:
    """Name the login methods of a server that has several."""
    from xnatfs.http import probe

    methods, chosen = await probe.login_methods(config), config.profile.provider
    if not methods:
        return []
    whose = f"{chosen} by the profile" if chosen else "the server chooses one"
    is_known = not chosen or chosen in methods
    todo = "" if is_known else "set 'provider' in the profile to one of them"
    return [Check("login methods", f"{', '.join(methods)}; {whose}", todo)]


async def _login(arguments: argparse.Namespace, config: Config) -> list[Check]:
    """Log in without a prompt, and look at what the account sees."""
    from xnatfs.http.transport import open_transport
    from xnatfs.rest.client import Xnat

    credentials = find_login_again(config, arguments.credentials)
    login = mount_login(config, arguments.credentials, credentials, os.environ.get("XNAT_TOKEN", ""))
    if credentials is None and (login.sessions is None or login.sessions.find() is None):
        raise LoginRequired("no login is stored for it: run 'xnatctl auth login', or see docs/AUTHENTICATION.md")
    async with open_transport(config, credentials, sessions=login.sessions) as transport:
        await transport.log_in()
        xnat = Xnat(transport)
        source = f"by the {credentials.source}" if credentials else "by a stored session"
        found = [Check("login", f"as {await xnat.username()}, {source}")]
        projects = await xnat.projects()
        text = f"the account sees {len(projects)} project{'s' * (len(projects) != 1)}"
        found.append(Check("permission", text, "" if projects else "ask the owner of a project to add it"))
        if arguments.record:
            from xnatfs.cli.host import recording

            files = await recording.collect(transport)
            text = f"{len(files)} replies are in {arguments.record}, with pseudonyms"
            try:
                recording.write(arguments.record, files)
                found.append(Check("record", f"{text}; look through them before you send them"))
            except ConfigError as error:
                found.append(Check("record", str(error), "give --record a directory that can be written to"))
    return found
