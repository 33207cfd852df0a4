"""Make real mounts: `xnatfs mount` as users start it, in processes of its own, always ended.

Programs look at a mount in processes of their own, too, with a limit in time: a hung mount must not hang the tests.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.fork_server import ForkServer

SCRIPTS = Path(sys.executable).parent
# The programs that are forked from a process that has imported them.
OURS = {str(SCRIPTS / "xnatfs"), str(SCRIPTS / "xnatctl")}
WALK = Path(__file__).with_name("walk.py")
# Far beyond what anything here takes; only a hang reaches it.
LIMIT = 300.0
_starting, _started = threading.Lock(), list[ForkServer]()


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user with nothing set up: no profile, no login, a home of their own."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "TMPDIR") if key in os.environ}
    return {**kept, "HOME": str(home), "PATH": f"{SCRIPTS}:{kept.get('PATH', '')}", **more}


def run(*command: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program with its output as text, whatever its status."""
    words = [str(part) for part in command]
    if env is not None and words[0] in OURS and _is_plain(options) and _fork_server().can_run(env):
        places = options.get("cwd", Path.cwd()), options.get("timeout", LIMIT)
        return _fork_server().run(words, env, *places, options.get("input", ""))
    options = {"capture_output": True, "text": True, "errors": "surrogateescape", "timeout": LIMIT, **options}
    return subprocess.run(words, env=env, **options)


def _is_plain(options: Mapping[str, Any]) -> bool:
    """Return true if a command needs no process of its own for its options."""
    return (
        options.keys() <= {"cwd", "stdin", "timeout"} and options.get("stdin", subprocess.DEVNULL) == subprocess.DEVNULL
    )


def _fork_server() -> ForkServer:
    """Return the fork server of this process, which the first command starts."""
    with _starting:
        if not _started:
            _started.append(ForkServer(environment(Path("/nonexistent"))))
        return _started[0]


def mounted_file_system(path: Path) -> str:
    """Return the file system that the kernel has mounted there, or ''."""
    done = run("findmnt", "--noheadings", "--output", "FSTYPE", "--mountpoint", path)
    return done.stdout.strip()


def daemons(home: Path) -> list[int]:
    """Return the processes of xnatfs that belong to this home."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            belongs = f"HOME={home}\0".encode() in (proc / "environ").read_bytes() + b"\0"
            if belongs and b"xnatfs" in (proc / "cmdline").read_bytes():
                found.append(int(proc.name))
        except OSError:
            continue  # it ended meanwhile, or is none of ours
    return found


@dataclass
class Mount:
    """A mount that is there."""

    path: Path
    home: Path
    log_file: Path
    expected_in_log: list[str] = field(default_factory=list)  # parts of warnings that this test provokes

    def warnings(self) -> list[str]:
        """Return the lines of the log that need attention."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        loud = [line for line in lines if any(f" {level} " in line for level in ("WARNING", "ERROR", "CRITICAL"))]
        return [line for line in [*loud, *(line for line in lines if "Traceback" in line)] if not self._expected(line)]

    def _expected(self, line: str) -> bool:
        return any(part in line for part in self.expected_in_log)

    def walk(self, below: str = "", *, read: bool = False, made: bool = False) -> list[dict[str, Any]]:
        """Return every entry with its attributes and, if `read`, its content's MD5; errors as entries.

        Those that are made from listings are left out unless `made`.
        """
        options = [*(["--read"] if read else []), *(["--made"] if made else [])]
        done = run(sys.executable, WALK, *options, self.path / below)
        assert done.returncode == 0, done.stderr
        entries: list[dict[str, Any]] = json.loads(done.stdout)
        return entries

    def xnatfs(self, *words: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command of the user who mounted, and check its exit status."""
        done = run(SCRIPTS / "xnatfs", *words, env=environment(self.home))
        assert done.returncode == status, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done


@contextmanager
def mounting(url: str, directory: Path, *options: str | Path, user: str, password: str) -> Iterator[Mount]:
    """Run `xnatfs mount` of a server, and end it in order; an unexpected log line fails."""
    home = directory / "home"
    path = directory / "mnt"
    log_file = directory / "mount.log"
    for made in (home, path):
        made.mkdir(exist_ok=True, parents=True)
    env = environment(home, XNAT_USER=user, XNAT_PASS=password)
    done = run(SCRIPTS / "xnatfs", "mount", "--url", url, "--log-file", log_file, *options, path, env=env)
    line = f"mounted {url} on {path} as {user}; log: {log_file}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, line, "")
    mount = Mount(path, home, log_file)
    try:
        yield mount
        ended = run(SCRIPTS / "xnatfs", "umount", path, env=env)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert mounted_file_system(path) == ""
        assert daemons(home) == []
        assert mount.warnings() == []
    finally:
        end(path, home)


def end(path: Path, home: Path) -> None:
    """End everything as the last resort: nothing stays mounted or running, even of a mount that hangs."""
    if mounted_file_system(path):
        for connection in Path("/sys/fs/fuse/connections").glob("*/abort"):
            device = run("findmnt", "--noheadings", "--output", "MAJ:MIN", "--mountpoint", path).stdout.strip()
            if device == f"0:{connection.parent.name}":
                connection.write_text("1")
        run("fusermount3", "-u", "-z", path)
    for process in daemons(home):
        os.kill(process, 9)


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return done.stdout.splitlines()
