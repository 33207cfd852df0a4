"""Run the commands mount, umount and demo."""

import argparse
import gc
import logging
import os
import select
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from xnatfs.cli import daemon, logs, options, statusline
from xnatfs.cli.logins import find_login, session_store
from xnatfs.cli.output import tell
from xnatfs.common import program
from xnatfs.common.errors import ConfigError, FuseMissing, MountpointError
from xnatfs.fuse.mountinfo import mount_on
from xnatfs.fuse.mountpoint import KIND, check_fuse, check_mountpoint, is_dead, serving_process, unmount
from xnatfs.settings.config import Config, cache_home, who_reads_along
from xnatfs.settings.credentials import Credentials, for_children, forget_secrets
from xnatfs.settings.session_store import SessionStore

if TYPE_CHECKING:
    from xnatfs.fuse.mount import MountOptions

log = logging.getLogger(__name__)

# Seconds. The daemon closes its session on the server after the mount is gone, which may take the server a while.
WAIT_FOR_END = 15.0


def add_parsers(commands: Any) -> None:
    mount = commands.add_parser("mount", help="mount an XNAT on a directory", allow_abbrev=False)
    options.add_server(mount)
    options.add_mount(mount)
    mount.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="an empty directory")
    mount.set_defaults(run=run_mount)

    umount = commands.add_parser("umount", help="unmount, and wait for the end of its process", allow_abbrev=False)
    umount.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="where it is mounted")
    umount.set_defaults(run=run_umount)

    demo = commands.add_parser("demo", help="mount a made-up archive from a server on this machine", allow_abbrev=False)
    options.add_mount(demo)
    demo.add_argument("mountpoint", type=Path, metavar="MOUNTPOINT", help="an empty directory")
    demo.add_argument("--as", dest="account", metavar="USER", help="mount as this user of the demo")
    demo.add_argument(
        "--data", type=Path, action="append", default=[], metavar="DIR", help="publish this directory, too"
    )
    demo.add_argument("--recorded", type=Path, metavar="DIR", help="publish recorded listings and catalogues, too")
    demo.add_argument("--latency", type=options.seconds, metavar="S", help="answer each request that much later")
    demo.add_argument("--session-ttl", type=options.seconds, metavar="S", help="let logins idle no longer than this")
    demo.add_argument("--fixtures", action="store_true", help="the projects of the tests, too: faults, ugly names ...")
    demo.add_argument("--no-range", action="store_true", help="ignore ranges, as some servers do")
    demo.add_argument("--seed", type=options.number, metavar="N", help="make other content")
    demo.add_argument("--request-log", type=Path, metavar="FILE", help="write each request there, as JSON lines")
    demo.set_defaults(run=run_demo)


def run_mount(arguments: argparse.Namespace) -> int:
    extra = options.apply_mount_options(arguments)
    config = options.mount_config(arguments, options.server_config(arguments, os.environ))
    if arguments.report_fd is not None:
        credentials, token = daemon.unpack(daemon.received())
        _serve(arguments, config, credentials, session_store(config, token), extra, arguments.reporter.ready)
        return 0
    _check_place(arguments, config.url)
    token = os.environ.get("XNAT_TOKEN", "")
    credentials = find_login(config, token, before_asking=_fuse)
    for warning in _warnings(arguments, config):
        tell(f"xnatfs: {warning}")
    if arguments.foreground:
        _serve(arguments, config, credentials, session_store(config, token), extra, arguments.reporter.ready)
    else:
        _background(arguments, "mount", daemon.pack(credentials, token), config.url)
    return 0


def run_umount(arguments: argparse.Namespace) -> int:
    mountpoint = _place(arguments)
    mounted = mount_on(mountpoint)
    if mounted is None or mounted.kind != KIND:
        raise MountpointError(f"{mountpoint} is not a mount of xnatfs")
    if is_dead(mountpoint, mounted):
        unmount(mountpoint, dead=mounted)
        print(f"xnatfs: {mountpoint} was a dead mount, its process had ended without unmounting: cleared")
        return 0
    serving = serving_process(mountpoint)
    unmount(mountpoint)
    with statusline.waiting(f"Unmounting {mountpoint}"):
        ended = serving is None or select.select([serving], [], [], WAIT_FOR_END)[0]
    if not ended:
        tell(f"xnatfs: {mountpoint} is unmounted, but its process has not ended yet")
    return 0


def run_demo(arguments: argparse.Namespace) -> int:
    extra = options.apply_mount_options(arguments)
    account = _demo_account(arguments.account)
    if not arguments.foreground and arguments.report_fd is None:
        _check_place(arguments)
        print(_demo_text(arguments, account)(_background(arguments, "demo", {}, "the demo")), flush=True)
        return 0
    text = _demo_text(arguments, account)
    with _demo_server(arguments) as url, tempfile.TemporaryDirectory(prefix="xnatfs-demo-") as cache:
        arguments.cache_dir = arguments.cache_dir or Path(cache)

        def ready() -> None:
            arguments.reporter.ready(url)
            if arguments.foreground:
                print(text(url), flush=True)

        _serve(arguments, options.mount_config(arguments, Config(url)), account, None, extra, ready)
    return 0


def _serve(
    arguments: argparse.Namespace,
    config: Config,
    credentials: Credentials | None,
    sessions: SessionStore | None,
    extra: frozenset[str],
    ready: Any,
) -> None:
    """Serve the mount in this process until it is unmounted."""
    _log_to(arguments)
    for warning in _warnings(arguments, config):
        log.warning("%s", warning)
    forget_secrets()
    os.umask(0o077)
    fuse_mount, trio = _imported()
    mount_options = _mount_options(arguments, extra)
    os.chdir("/")  # a daemon must not keep a directory of the user busy
    trio.run(fuse_mount.mount, config, credentials, sessions, mount_options, ready)


def _warnings(arguments: argparse.Namespace, config: Config) -> list[str]:
    """Return warnings about access that this mount gives to others."""
    found = [who_reads_along(config)]
    if arguments.allow_other:
        found.append("every user and program of this machine may read in this mount what your account may: allow_other")
    if arguments.allow_root:
        found.append("root of this machine may read in this mount what your account may: allow_root")
    return [text for text in found if text]


def _imported() -> tuple[Any, Any]:
    """Import the modules that serve a mount, and trio. Raises FuseMissing."""
    # httpx imports its own command line where it finds click, and with that rich and pygments: 100 ms and 10 MB.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: no such module
    gc.disable()  # imported objects stay alive, so a collection finds nothing: it costs 40 of 260 ms
    fuse_mount = _fuse()
    import trio

    gc.freeze()
    gc.enable()
    return fuse_mount, trio


def _background(arguments: argparse.Namespace, command: str, handover: dict[str, str], what: str) -> str:
    """Run the same command again, detached, until its mount answers; `what` names the source for the user."""
    mountpoint = _place(arguments)
    log_file = arguments.log_file or cache_home() / "log" / f"{quote(str(mountpoint), safe='')[-200:]}.log"
    with statusline.waiting(f"Mounting {what}"):
        text = daemon.start([*_again(command)], handover, Path(log_file))
    os.stat(mountpoint)
    return text


def _again(command: str) -> list[str]:
    """Return the arguments of this process: `ps` shows them for the mount, and they hold no secret."""
    return sys.argv[1:] if command in sys.argv[1:2] else [command, *sys.argv[1:]]


def _place(arguments: argparse.Namespace) -> Path:
    """Return the mountpoint as the kernel names it, without symbolic links."""
    return Path(os.path.realpath(arguments.mountpoint))


def _check_place(arguments: argparse.Namespace, source: str = "") -> None:
    """Raise if FUSE or the mountpoint is unusable, before the user is prompted for a password."""
    check_fuse()
    check_mountpoint(_place(arguments), source)


def _fuse() -> Any:
    """Import the modules that serve a mount, which is slow: the command that starts the daemon does without."""
    try:
        from xnatfs.fuse import mount
    except ImportError as error:
        raise FuseMissing(f"FUSE 3 cannot be used from Python ({error}): install the package fuse3") from None
    return mount


def _mount_options(arguments: argparse.Namespace, extra: frozenset[str]) -> "MountOptions":
    from xnatfs.fuse.mount import MountOptions
    from xnatfs.fuse.operations import Ownership

    uid = os.getuid() if arguments.uid is None else arguments.uid
    gid = os.getgid() if arguments.gid is None else arguments.gid
    return MountOptions(
        _place(arguments),
        # The kernel has no allow_root: allow_other admits all users, and the modes then exclude all but root.
        Ownership(uid, gid, (arguments.umask or 0) | (0o077 if arguments.allow_root else 0)),
        arguments.allow_other or arguments.allow_root,
        not arguments.no_xattr,
        extra,
    )


def _log_to(arguments: argparse.Namespace) -> None:
    """Log to the terminal or, in the background, to the file in its place."""
    level = (arguments.log_level or "info").upper()
    stream = sys.stderr
    if arguments.foreground and arguments.log_file:
        try:
            stream = open(arguments.log_file, "a", opener=lambda p, f: os.open(p, f, 0o600))  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"cannot write the log {arguments.log_file}: {error.strerror}") from None
    logs.log_to(stream, level)
    logging.getLogger("httpx").setLevel(logging.DEBUG if level == "DEBUG" else logging.WARNING)


def _demo_account(name: str | None) -> Credentials:
    from xnatfs.demo import PASSWORDS

    user = name or next(iter(PASSWORDS))
    if user not in PASSWORDS:
        raise ConfigError(f"--as {user}: the demo has the users {', '.join(PASSWORDS)}")
    return Credentials(user, PASSWORDS[user])


@contextmanager
def _demo_server(arguments: argparse.Namespace) -> Iterator[str]:
    """Run the demo server in a process of its own, which ends with this one in any case, and yield its URL."""
    command = [sys.executable, "-P", "-m", "xnatfs.demo", "--until-eof"]
    for name in ("latency", "session_ttl", "seed", "request_log"):
        value = getattr(arguments, name)
        command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    command += [part for directory in arguments.data for part in ("--data", str(directory))]
    command += ["--recorded", str(arguments.recorded)] if arguments.recorded else []
    command += ["--no-range"] if arguments.no_range else []
    command += ["--fixtures"] if arguments.fixtures else []
    server = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=for_children(),
    )
    with server:
        assert server.stdout is not None
        assert server.stderr is not None
        assert server.stdin is not None
        url = server.stdout.readline().strip()
        if not url:
            raise ConfigError(f"the demo server does not start: {server.stderr.read().strip().rpartition(chr(10))[2]}")
        try:
            yield url
        finally:
            server.stdin.close()


def _demo_text(arguments: argparse.Namespace, account: Credentials) -> Callable[[str], str]:
    """Return what to print once the demo is mounted, given its URL.

    How the programs are called depends on the current directory, which a mount in the foreground leaves.
    """
    from xnatfs.demo import OUTSIDER, login_hint

    user, xnatfs, xnatctl = account.username, program.spell("xnatfs"), program.spell("xnatctl")
    place = shlex.quote(str(arguments.mountpoint))
    name = "OPEN" if user == OUTSIDER else "BRAINS"
    project = shlex.quote(f"{arguments.mountpoint}/projects/{name}")
    session = f"{project}/SUB001/SUB001_MR1"
    looks = (
        [f"ls -R {project}"]
        if user == OUTSIDER
        else [
            f"tree -d {session}",
            f"getfattr -d {session}/scans/1",
            f"cp -r {session}/scans/1/NIFTI .",
        ]
    )

    def text(url: str) -> str:
        commands = [
            f"ls {place}/projects",
            *looks,
            login_hint(xnatctl, url, user),
            f"{xnatctl} session list --url {url} --project {name}",
            f"{xnatfs} umount {place}",
        ]
        return "\n    ".join([f"Mounted on {place}: a made-up XNAT, as {user} sees it. Try", *commands]) + (
            f"\nIts server is {url}; there {user} has the password {account.password}."
        )

    return text
