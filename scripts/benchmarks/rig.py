"""The rig: an archive of known bytes, the demo server that lists it, and nginx before it, which sends the bytes.

The demo server is Python, and would be what is measured where bytes stream; so nginx sends every file itself, as an
XNAT does, without ranges unless asked, and passes all other requests on.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
PASSWORD = "owner-of-the-demo"
USER = "demo-owner"
BLOCK = 2**20

SESSION = Path("projects", "BENCH", "SUBJECT")


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xnatfs-bench"


def made(directory: Path, big: int, series: int, files: int, size: int) -> Path:
    """An archive for `--data`: one file of `big` bytes, and a session of so many series; made once for each shape."""
    top = directory / f"archive-{big}-{series}x{files}x{size}"
    if (top / "complete").exists():
        return top / "data"
    shutil.rmtree(top, ignore_errors=True)
    chance = random.Random(1)
    project = top / "data" / "BENCH" / "SUBJECT"
    path = project / "BIG" / "scans" / "1" / "RAW" / "big.bin"
    path.parent.mkdir(parents=True)
    block = bytearray(chance.randbytes(BLOCK))
    with open(path, "wb") as file:
        for number in range(big // BLOCK):
            block[:8] = number.to_bytes(8, "big")  # no two blocks are the same
            file.write(block)
    for scan in range(1, series + 1):
        folder = project / "SERIES" / "scans" / str(scan) / "DICOM"
        folder.mkdir(parents=True)
        for number in range(files):
            (folder / f"{scan:02}-{number:04}.dcm").write_bytes(chance.randbytes(size))
    (top / "complete").touch()
    return top / "data"


@dataclass
class Server:
    """A site to measure on. `demo` lists, `url` is what clients are given."""

    url: str
    data: Path
    log: Path

    def requests(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


NGINX = """\
user root;
worker_processes 1;
pid {run}/nginx.pid;
error_log {run}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log {run}/access.log;
    client_body_temp_path {run}/body; proxy_temp_path {run}/proxy; fastcgi_temp_path {run}/fastcgi;
    uwsgi_temp_path {run}/uwsgi; scgi_temp_path {run}/scgi;
    sendfile on; tcp_nopush on; keepalive_requests 1000000;
    types {{ }} default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port}{tls};
        max_ranges {ranges};
        location ~ /files/big.bin$ {{ root {big}; rewrite ^ /big.bin break; }}
        location = /big.bin {{ root {big}; }}
        location / {{ proxy_pass {demo}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
    }}
}}
"""


@contextlib.contextmanager
def served(
    data: Path, run: Path, *, digests: bool = True, ranges: bool = False, latency: float = 0.0, tls: Path | None = None
) -> Iterator[Server]:
    """The demo with nginx before it, until the context ends."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    log = run / "requests.jsonl"
    options = ["--data", data, "--only-data", "--until-eof", "--request-log", log]
    options += [] if digests else ["--no-digests"]
    options += ["--latency", str(latency)] if latency else []
    demo = subprocess.Popen(
        [sys.executable, "-m", "xnatfs.demo", *map(str, options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    assert demo.stdin is not None
    words = demo.stdout.readline().split()
    behind = next(word for word in words if word.startswith("http"))
    port = free_port()
    certificate = f" ssl; ssl_certificate {tls}/cert.pem; ssl_certificate_key {tls}/key.pem" if tls else ""
    big = data / "BENCH" / "SUBJECT" / "BIG" / "scans" / "1" / "RAW"
    text = NGINX.format(run=run, port=port, tls=certificate, ranges="1" if ranges else "0", big=big, demo=behind)
    (run / "nginx.conf").write_text(text)
    nginx = subprocess.Popen(
        ["nginx", "-c", str(run / "nginx.conf"), "-p", str(run), "-g", "daemon off;"], stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port)
        yield Server(f"http{'s' if tls else ''}://127.0.0.1:{port}", data, log)
    finally:
        nginx.terminate()
        nginx.wait()
        demo.stdin.close()
        demo.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise SystemExit("bench: nginx does not start; is Debian's nginx installed?")


@dataclass
class Mounted:
    """Our mount of a server, with a home of its own."""

    server: Server
    home: Path
    path: Path
    options: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)

    def start(self) -> float:
        """Mount; how long that took."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.env = {
            **os.environ,
            "HOME": str(self.home),
            "XNAT_USER": USER,
            "XNAT_PASS": PASSWORD,
            "XDG_CACHE_HOME": "",
        }
        began = time.perf_counter()
        command = [SCRIPTS / "xnatfs", "mount", "--url", self.server.url, *self.options, self.path]
        subprocess.run([str(word) for word in command], env=self.env, check=True)
        return time.perf_counter() - began

    def stop(self) -> None:
        subprocess.run([str(SCRIPTS / "xnatfs"), "umount", str(self.path)], env=self.env, check=True)


@contextlib.contextmanager
def mounted(server: Server, directory: Path, *options: str, keep: bool = False) -> Iterator[Mounted]:
    """A mount with an empty cache, or the one that an earlier mount left there."""
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
    mount = Mounted(server, directory / "home", directory / "mnt", options)
    mount.home.mkdir(parents=True, exist_ok=True)
    mount.start()
    try:
        yield mount
    finally:
        mount.stop()


def drop_pages() -> None:
    """The kernel's page cache, where we may."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1")


def shell(command: str) -> float:
    """Seconds that a shell command takes. Raises where it fails."""
    began = time.perf_counter()
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def output(command: str) -> tuple[float, str]:
    """The same, and what it prints."""
    began = time.perf_counter()
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - began, done.stdout


def tree_md5(top: Path) -> dict[str, str]:
    """MD5 of every file, by path."""
    found = {}
    for path in sorted(top.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                found[path.relative_to(top).as_posix()] = hashlib.file_digest(file, "md5").hexdigest()
    return found
