"""What the commands say when they cannot: one line on stderr, the exit status of its kind, nothing left behind."""

import http.server
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounting import SCRIPTS, daemons, environment, mounted_file_system, run

XNATFS = SCRIPTS / "xnatfs"
DEAD = "http://127.0.0.1:9"  # discard; nothing listens there


class Page(http.server.BaseHTTPRequestHandler):
    """A web server that is not an XNAT."""

    def do_GET(self) -> None:
        body = b"<html>It works!</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Tests say what matters."""


class Refusing(Page):
    """An XNAT that knows nobody."""

    def do_POST(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that could be mounted on."""
    path = tmp_path / "mnt"
    path.mkdir()
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    (path / ".config" / "xnatctl").mkdir(parents=True)
    return path


def fails(home: Path, status: int, *arguments: str | Path, **variables: str) -> str:
    """The one line of a command that ends with this status and leaves nothing behind."""
    env = environment(home, **{"XNAT_USER": "u", "XNAT_PASS": "hush-hush", **variables})
    done = run(XNATFS, *arguments, env=env, stdin=-3)
    assert done.stdout == ""
    assert done.returncode == status, done.stderr
    *log, line = done.stderr.splitlines()
    assert log == [] or "--foreground" in arguments, done.stderr
    assert "Traceback" not in done.stderr
    assert "hush-hush" not in done.stderr
    assert daemons(home) == []
    assert not arguments or mounted_file_system(Path(arguments[-1])) in ("", "proc")
    return line


@pytest.mark.parametrize("foreground", [[], ["--foreground"]])
@pytest.mark.fuse
def test_a_server_that_is_not_there(home, place, foreground):
    assert "cannot be reached: Connection refused" in fails(home, 4, "mount", *foreground, "--url", DEAD, place)


@pytest.mark.fuse
def test_a_server_that_is_no_xnat(home, place):
    with serving(Page) as url:
        assert "is not an XNAT" in fails(home, 4, "mount", "--url", url, place)


@pytest.mark.parametrize("foreground", [[], ["--foreground"]])
@pytest.mark.fuse
def test_a_refused_login(home, place, foreground):
    with serving(Refusing) as url:
        line = fails(home, 3, "mount", *foreground, "--url", url, place)
    assert "wrong user or password, a locked account, or too many sessions" in line


@pytest.mark.fuse
def test_no_login_and_no_terminal_to_ask_on(home, place):
    assert "XNAT_USER and XNAT_PASS" in fails(home, 3, "mount", "--url", DEAD, place, XNAT_PASS="")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "COMMAND"),
        (["mount", "--url", "xnat.example.org"], "must begin with https:// or http://"),
        (["mount", "--url", "https://u:p@x.org"], "must not hold a user or a password"),
        (["mount", "--url", DEAD, "--profile", "x"], "not allowed with"),
        (["mount", "--profile", "nobody"], "profile 'nobody' is not in"),
        (["mount", "--url", DEAD, "--cache-size", "much"], "'much' is not a size"),
        (["mount", "--url", DEAD, "--ttl", "-1"], "is not a number of seconds"),
        (["mount", "--url", DEAD, "--ttl", "nan"], "is not a number of seconds"),
        (["mount", "--url", DEAD, "--timeout", "0"], "more than 0"),
        (["mount", "--url", DEAD, "--umask", "9"], "octal"),
        (["mount", "--url", DEAD, "--uid", "root"], "numeric"),
        (["mount", "--url", DEAD, "--no-such-option"], "unrecognized arguments"),
        (["mount", "--url", DEAD, "-o", "no_such_option"], "-o no_such_option: no such option"),
        (["mount", "--url", DEAD, "-o", "ttl=soon"], "is not a number of seconds"),
        (["mount", "--url", DEAD, "--ca-bundle", "/nowhere.pem"], "/nowhere.pem is not a file"),
        (["mount"], "which XNAT?"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_wrong_options(home, place, arguments, what):
    assert re.search(what, fails(home, 2, *arguments, *([place] if "mount" in arguments else [])))


def test_broken_yaml(home, place):
    (home / ".config/xnatctl/config.yaml").write_text("profiles: [\n")
    assert "is not valid YAML" in fails(home, 2, "mount", place)


@pytest.mark.parametrize("command", ["mount", "demo"])
@pytest.mark.fuse
def test_mountpoints_that_cannot_be_used(home, tmp_path, command):
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("")
    (full / "something").mkdir(parents=True)
    server = ["--url", DEAD] if command == "mount" else []
    assert "does not exist" in fails(home, 66, command, *server, tmp_path / "none")
    assert "is not a directory" in fails(home, 66, command, *server, file)
    assert "is not empty" in fails(home, 66, command, *server, full)
    assert "is a mountpoint already" in fails(home, 66, command, *server, "/proc")


def test_what_is_no_mount_cannot_be_unmounted(home, place):
    assert "is not a mount of xnatfs" in fails(home, 66, "umount", place)


@pytest.mark.fuse
def test_a_cache_directory_that_cannot_be_used(home, tmp_path, place):
    (tmp_path / "file").write_text("")
    with serving(Page) as url:
        line = fails(home, 73, "mount", "--url", url, "--cache-dir", tmp_path / "file" / "cache", place)
    assert str(tmp_path / "file" / "cache") in line


@pytest.mark.fuse
def test_a_machine_without_fuse(home, place):
    env = environment(home, XNAT_USER="u", XNAT_PASS="p")
    hide = 'mount -t tmpfs none /dev && exec "$@"'
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-m"]
    done = run(*unshare, "sh", "-c", hide, "sh", XNATFS, "mount", "--url", DEAD, place, env=env, stdin=None)
    assert (done.returncode, done.stderr.count("\n")) == (69, 1), done.stderr
    assert "/dev/fuse is missing" in done.stderr


@pytest.mark.parametrize("program", ["xnatfs", "xnatctl"])
def test_versions_and_help(home, program):
    env = environment(home)
    assert run(SCRIPTS / program, "--version", env=env).stdout.startswith(f"{program} 0.")
    assert "usage:" in run(SCRIPTS / program, "--help", env=env).stdout
