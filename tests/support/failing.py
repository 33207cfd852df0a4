"""Run commands that must fail: servers that are none, useless directories; nothing may be left behind."""

import http.server
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.mounting import SCRIPTS, daemons, environment, mounted_file_system, run

XNATFS = SCRIPTS / "xnatfs"
DEAD = "http://127.0.0.1:9"  # discard; nothing listens there
PASSWORD = "hush-hush"
STRANGER = 12345  # a uid without an account
# A mount namespace of its own, in which /dev/fuse is open to every user, as it is on most machines.
OWN_MOUNTS = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-m"]
OPEN_FUSE = "mount -t tmpfs none /mnt && mknod -m 666 /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse"
# Root passes every permission check, so those are for an ordinary user. To read is kept: it is root's home we run from.
AS_STRANGER = (
    f"setpriv --reuid={STRANGER} --regid={STRANGER} --clear-groups"
    " --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
)


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
        """Log nothing."""


class Refusing(Page):
    """An XNAT that refuses every user, and counts the requests."""

    asked = 0

    def do_POST(self) -> None:
        Refusing.asked += 1
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


@contextmanager
def silent() -> Iterator[str]:
    """Run a host that accepts connections and sends nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@dataclass
class Desk:
    """A user's surroundings: a home, a directory to mount on, room for more."""

    root: Path

    def __post_init__(self) -> None:
        self.home, self.place = self.root / "home", self.root / "mnt"
        (self.home / ".config" / "xnatctl").mkdir(parents=True)
        self.place.mkdir()

    @property
    def profiles(self) -> Path:
        return self.home / ".config" / "xnatctl" / "config.yaml"

    def belongs_to_stranger(self) -> None:
        """Give all of it to another user, where permissions allow that."""
        if os.geteuid() == 0:
            for path in (self.root, *self.root.rglob("*")):
                os.chown(path, STRANGER, STRANGER)

    def fails(self, status: int, *arguments: str | Path, within: str = "", **variables: str) -> str:
        """Run a command that ends with this status and leaves nothing behind; return its one line.

        `within` is a shell command that puts up a stage in a mount namespace and calls `"$@"` on it.
        """
        env = environment(self.home, **{"XNAT_USER": "u", "XNAT_PASS": PASSWORD, **variables})
        stage = [*OWN_MOUNTS, "sh", "-ec", within, "sh"] if within else []
        done = run(*stage, XNATFS, *arguments, env=env, stdin=-3)
        assert done.stdout == ""
        assert done.returncode == status, done.stderr
        *log, line = done.stderr.splitlines()
        assert log == [] or "--foreground" in arguments, done.stderr
        assert "Traceback" not in done.stderr
        assert PASSWORD not in done.stderr
        assert line.startswith("xnatfs")
        assert daemons(self.home) == []
        assert mounted_file_system(self.place) == ""
        return line


@contextmanager
def desk() -> Iterator[Desk]:
    """Make a desk whose path other users may traverse, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="xnatfs-test-") as directory:
        Path(directory).chmod(0o755)
        yield Desk(Path(directory))
