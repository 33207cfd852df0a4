"""Run the command demo: mount a demo server that runs on this machine."""

import argparse
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xnatfs.cli import daemon, options, serving
from xnatfs.cli.commands import SERVER_OPTIONS
from xnatfs.common import program
from xnatfs.common.errors import ConfigError
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials, for_children
from xnatfs.settings.logins import MountLogin


def run_demo(arguments: argparse.Namespace) -> int:
    options.apply_mount_options(arguments)
    account = _account(arguments.account)
    hints = _hints(arguments.mountpoint, account)
    serving.make_mountpoint(arguments)
    if not arguments.foreground and arguments.report_fd is None:
        serving.check_mountable(arguments)
        login = daemon.pack_login(None, "")
        print(hints.replace("{url}", serving.start(arguments, "demo", "the demo", login)), flush=True)
        return 0
    with _server(arguments) as url, tempfile.TemporaryDirectory(prefix="xnatfs-demo-") as cache:
        arguments.cache_dir = arguments.cache_dir or Path(cache)

        def on_ready() -> None:
            arguments.reporter.ready(url)
            if arguments.foreground:
                print(hints.replace("{url}", url), flush=True)

        serving.serve(arguments, options.mount_config(arguments, Config(url)), MountLogin(account, "", None), on_ready)
    return 0


def _account(name: str | None) -> Credentials:
    from xnatfs.demo import PASSWORDS

    user = name or next(iter(PASSWORDS))
    if user not in PASSWORDS:
        raise ConfigError(f"--as {user}: the demo has the users {', '.join(PASSWORDS)}")
    return Credentials(user, PASSWORDS[user])


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[str]:
    """Run the demo server in a process of its own, which ends with this one in any case, and yield its URL."""
    command = [*program.run_module("xnatfs.demo"), "--until-eof"]
    for name in SERVER_OPTIONS:
        value = getattr(arguments, name[2:].replace("-", "_"))
        if value is True:
            command.append(name)
        elif value not in (None, False):
            command += [word for each in (value if isinstance(value, list) else [value]) for word in (name, str(each))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=for_children()) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stderr is not None
        url = server.stdout.readline().strip()
        if not url:
            raise ConfigError(f"the demo server does not start: {server.stderr.read().strip().rpartition(chr(10))[2]}")
        try:
            yield url
        finally:
            server.stdin.close()


def _hints(mountpoint: Path, account: Credentials) -> str:
    """Return what to print once the demo is mounted, with {url} in the place of its URL.

    How the programs are called depends on the current directory, which a mount in the foreground leaves.
    """
    from xnatfs.demo import OUTSIDER, login_hint

    user, xnatfs, xnatctl = account.username, program.spell("xnatfs"), program.spell("xnatctl")
    place = shlex.quote(str(mountpoint))
    name = "OPEN" if user == OUTSIDER else "BRAINS"
    project = shlex.quote(f"{mountpoint}/projects/{name}")
    session = f"{project}/SUB001/SUB001_MR1"
    looks = [f"tree -d {session}", f"getfattr -d {session}/scans/1", f"cp -r {session}/scans/1/NIFTI ."]
    commands = [
        f"ls {place}/projects",
        *([f"ls -R {project}"] if user == OUTSIDER else looks),
        login_hint(xnatctl, "{url}", user),
        f"{xnatctl} session list --url {{url}} --project {name}",
        f"{xnatfs} umount {place}",
    ]
    lines = "\n    ".join([f"Mounted on {place}: a demo XNAT server, as {user} sees it. Try", *commands])
    return f"{lines}\nIts server is {{url}}; there {user} has the password {account.password}."
