"""Test what a mount reports about itself, on a real mount, as the commands show it."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.demos import Demo
from tests.support.failing import AS_STRANGER
from tests.support.mounting import SCRIPTS, Mount, daemons, environment, mounting, run
from xnatfs.cli.control.render import duration, metrics, text_lines
from xnatfs.cli.control.watch import picture
from xnatfs.cli.output import display_width, human_size

pytestmark = pytest.mark.fuse

XNATFS = SCRIPTS / "xnatfs"


@pytest.fixture
def mount(demo: Demo, tmp_path: Path) -> Iterator[Mount]:
    with mounting(demo.url, tmp_path, **demo.login) as made:
        made.expected_in_log += demo.planted_warnings
        yield made


def state(mount: Mount) -> dict[str, Any]:
    (found,) = json.loads(mount.xnatfs("status", mount.path, "-o", "json").stdout)
    return dict(found)


def failing(demo: Demo) -> tuple[str, ...]:
    """Return the path of a file that the server lists and has lost."""
    return next(entry.path for entry in demo.manifest if entry.error == "EIO" and entry.kind == "file")


def test_it_reports_the_server_the_user_and_the_traffic(demo, mount):
    found = state(mount)
    assert (found["up"], found["mountpoint"], found["server"]) == (True, str(mount.path), demo.url)
    assert (found["user"], found["reachable"], found["stale_since"]) == (demo.login["user"], True, None)
    assert found["login"]["expires_in_seconds"] > 60
    assert 0 <= found["uptime_seconds"] < 3600
    assert found["requests"]["total"] == 0
    read = mount.walk("projects/BRAINS/SUB001", read=True)
    after = state(mount)
    length = sum(entry["size"] for entry in read if "md5" in entry)
    assert after["bytes"]["served"] + 128 * 1024 * len(read) >= length  # small files are handed over with the open
    assert after["bytes"]["fetched"] >= length > 0
    assert after["cache"]["used_bytes"] >= length
    assert after["cache"]["misses"] > 0
    assert after["requests"]["total"] == sum(n for kind, n in after["requests"].items() if kind != "total")
    assert after["requests"]["listing"] >= 4


def test_an_idle_mount_is_looked_at_without_a_request(demo, mount):
    before = len(demo.app.requests)
    for output in ("table", "json", "prometheus"):
        mount.xnatfs("status", mount.path, "-o", output)
    assert len(demo.app.requests) == before


def test_open_files_and_transfers_are_named(demo, mount):
    path = next(e.path for e in demo.manifest if e.kind == "file" and not e.error and e.size)
    assert state(mount)["open_files"] == 0
    with open(mount.path.joinpath(*path), "rb") as file:
        assert file.read(1)
        assert state(mount)["open_files"] == 1


def test_an_error_is_reported_with_its_path_and_reason_and_ends_when_the_file_is_read(demo, mount):
    path = failing(demo)
    place = mount.path.joinpath(*path)
    assert run("getfattr", "--only-values", "-n", "user.xnat.error", place).returncode == 1
    with pytest.raises(OSError, match="Input/output"):
        place.read_bytes()
    (error,) = state(mount)["errors"]
    assert error["path"] == "/".join(path)
    assert error["errno"] == "EIO"
    assert any(part in error["reason"] for part in demo.planted_warnings)
    shown = run("getfattr", "--only-values", "-n", "user.xnat.error", place).stdout
    assert shown == f"EIO: {error['reason']}"
    assert "user.xnat.error" in run("getfattr", "-d", place).stdout
    assert path[-1] in mount.xnatfs("status", mount.path).stdout


def test_why_tells_the_last_error_and_what_stands_before_a_path(demo, mount):
    path = failing(demo)
    place = mount.path.joinpath(*path)
    fine = mount.path / "projects" / "BRAINS"
    assert "nothing is the matter" in mount.xnatfs("why", fine).stdout
    missing = mount.xnatfs("why", fine / "NOBODY", status=1).stdout
    assert "a program gets ENOENT for it: projects/BRAINS/NOBODY does not exist" in missing
    with pytest.raises(OSError, match="Input/output"):
        place.read_bytes()
    for asked in (place, place.parent):
        told = mount.xnatfs("why", asked, status=1).stdout
        assert f"EIO for {'/'.join(path)}: " in told
    assert mount.xnatfs("why", "/", status=66).stderr.count("\n") == 1


def test_the_cache_is_shown_and_cleared(demo, mount):
    mount.walk("projects/BRAINS/SUB001", read=True)
    shown = mount.xnatfs("cache", "info", mount.path).stdout
    assert str(mount.home / ".cache" / "xnatfs") in shown
    assert "0 of them pinned" in shown
    assert "freed" in mount.xnatfs("cache", "clear", mount.path).stdout
    assert state(mount)["cache"]["used_bytes"] == 0
    before = state(mount)["cache"]["misses"]
    mount.walk("projects/BRAINS/SUB001", read=True)  # what the kernel has of it goes with its attributes
    assert state(mount)["cache"]["misses"] >= before
    assert mount.xnatfs("cache", "melt", mount.path, status=2).stderr.count("\n") == 1


def test_metrics_are_in_the_format_of_prometheus(mount):
    text = mount.xnatfs("status", mount.path, "-o", "prometheus").stdout
    value = r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?"
    for line in text.splitlines():
        assert re.fullmatch(rf'# (HELP|TYPE) xnatfs_[a-z_]+ .+|xnatfs_[a-z_]+\{{[a-z]+="[^"]*".*\}} {value}', line), (
            line
        )
    assert f'xnatfs_up{{mountpoint="{mount.path}",' in text


def test_the_log_level_changes_while_it_runs(mount):
    assert "the log level is debug, it was info" in mount.xnatfs("log-level", "debug", mount.path).stdout
    mount.walk("projects")
    assert " DEBUG " in mount.log_file.read_text()
    assert state(mount)["log_level"] == "debug"
    mount.xnatfs("log-level", "error", mount.path)
    assert state(mount)["log_level"] == "error"


@contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    (process,) = daemons(mount.home)
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def test_a_hung_mount_is_recognised(mount):
    with stopped(mount):
        done = mount.xnatfs("status", mount.path, status=1)
    assert "its process hangs" in done.stdout


def test_a_dead_mount_is_recognised(demo, tmp_path):
    with mounting(demo.url, tmp_path, **demo.login) as mount:
        (process,) = daemons(mount.home)
        os.kill(process, signal.SIGKILL)
        while daemons(mount.home):
            pass
        assert "is dead, its process has ended" in mount.xnatfs("status", mount.path, status=1).stdout
        assert "is dead" in mount.xnatfs("log-level", "info", mount.path, status=66).stderr
        again = run(XNATFS, "umount", mount.path, env=environment(mount.home))
        assert again.returncode == 0
        assert list((mount.home / ".cache" / "xnatfs" / "mounts").glob("*.sock")) == []
        login = {"XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"]}
        remount = ("mount", "--url", demo.url, "--log-file", mount.log_file, mount.path)
        assert run(XNATFS, *remount, env=environment(mount.home, **login)).returncode == 0
        assert state(mount)["up"]


def test_nothing_is_left_of_it(demo, tmp_path):
    with mounting(demo.url, tmp_path, **demo.login) as mount:
        (path,) = (mount.home / ".cache" / "xnatfs" / "mounts").glob("*.sock")
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user")
def test_another_user_is_refused(mount):
    (path,) = (mount.home / ".cache" / "xnatfs" / "mounts").glob("*.sock")
    connect = "os.chdir(sys.argv[1]); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[2])"
    program = f"import os, socket, sys; {connect}; print(s.recv(999).decode())"
    words = (*AS_STRANGER.split(), sys.executable, "-ISE", "-c", program, path.parent, path.name)
    assert "PermissionError" in run(*words).stderr
    path.chmod(0o666)
    assert "this is the mount of another user" in run(*words).stdout


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("status", "/"), 66, "is not in a mount of xnatfs"),
        (("status", "/nowhere/at/all"), 66, "is not in a mount of xnatfs"),
        (("status", "--watch"), 2, "--watch needs a terminal"),
        (("status", "--watch", "-o", "json"), 2, "--watch shows a table"),
        (("status", "-o", "yaml"), 2, "invalid choice"),
        (("log-level", "loud"), 2, "invalid choice"),
        (("log-level", "info", "/"), 66, "is not in a mount of xnatfs"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, words, status, said):
    done = run(XNATFS, *words, env=environment(tmp_path))
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = done.stderr.splitlines()
    assert said in line


def example() -> dict[str, Any]:
    """Return a state with a value for everything that can be shown."""
    return {
        "up": True,
        "mountpoint": "/home/jane/a directory/with a long name/that goes on/xnat",
        "server": "https://xnat.example.org/with/a/path/that/has/no/blanks/in/it/at/all",
        "user": "jane",
        "process": 123,
        "log_level": "info",
        "uptime_seconds": 100000,
        "login": {"began_at": 1.0, "expires_in_seconds": 100.0, "is_open": True, "refusal": "", "count": 1},
        "reachable": False,
        "unreachable_since": 1.0,
        "unreachable_because": "Connection refused",
        "stale_since": 1.0,
        "requests": {"total": 3, "listing": 2, "file": 1},
        "bytes": {"fetched": 10**9, "served": 10**8},
        "rates": {"requests_per_second": 1.5, "fetched_bytes_per_second": 1e6, "served_bytes_per_second": 0.0},
        "cache": {
            "used_bytes": 10**9,
            "limit_bytes": 10**10,
            "hit_ratio": 0.5,
            "shared_hits": 2,
            "listings": 1,
            "read_ahead_bytes": 100,
            "read_ahead_waste": 0.25,
        },
        "open_files": 1,
        "inodes": 10,
        "transfers": [{"path": "projects/P/" + "x" * 100 + "\u5bfe" * 100, "received_bytes": 10, "size_bytes": 100}],
        "errors": [{"path": "projects/\x1b[31mP", "at": 1.0, "errno": "EIO", "reason": "broken " * 20, "count": 2}],
    }


@pytest.mark.parametrize("columns", [50, 80])
def test_the_live_view_fits_its_terminal(columns):
    lines = picture([example()], columns, 20).plain.split("\n")
    assert max(map(len, lines)) <= columns
    assert len(lines) == 20
    assert lines[-1] == "..."
    whole = list(text_lines(example(), columns))
    assert max(map(display_width, whole)) <= columns
    text = " ".join(line.strip() for line in whole)
    for said in (
        "unreachable since",
        "listings are of",
        "hits 50%",
        "2 files from the shared directory",
        "25% of it not used",
        "10% of 100 B",
        "2 times EIO",
    ):
        assert said in text, said
    assert "\x1b" not in text


def test_the_state_of_a_mount_of_an_earlier_version_is_shown():
    """Leave out what it does not report: new keys do not change the version of the protocol."""
    state = example()
    del state["cache"]["shared_hits"]
    text = "\n".join(text_lines(state, 80))
    assert "hits 50%, 1 listing" in text
    assert not [line for line in metrics([state]) if line.startswith("xnatfs_cache_shared_hits_total{")]


def test_the_live_view_is_renewed_until_it_is_interrupted(mount):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    env = environment(mount.home, TERM="xterm")
    command = [XNATFS, "status", "--watch", mount.path]
    with subprocess.Popen(command, env=env, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while shown.count(b"Ctrl-C ends it") < 2 or b"reachable" not in shown:
            shown += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the end of the other side
            while data := os.read(master, 65536):
                shown += data
        assert process.wait(60) == 0
    os.close(master)
    assert b"Traceback" not in shown


def test_numbers_are_short():
    assert [human_size(n) for n in (0, 999, 1024, 10**6, 10**13)] == ["0 B", "999 B", "1.0 KiB", "977 KiB", "9.1 TiB"]
    assert [duration(n) for n in (0.5, 61, 7200, 10**6)] == ["0 s", "1 min 1 s", "2 h 0 min", "11 d 13 h"]
