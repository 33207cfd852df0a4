"""Run the servers of the benchmarks: the demo, which lists, and nginx in front of it, which sends files.

The demo is written in Python, and would limit every transfer. So nginx sends big files itself, as an XNAT does, without
ranges unless they are enabled; and with `replica` it caches the demo's replies (listings, archives, single files, by
URL) and serves them from disk: an untimed run before the timed ones fills it. Logins are answered by the demo. For
peers that do not support XNAT, the same files are web pages below /plain/.

nginx delays each request separately: a connection that waits blocks no other. The kernel paces the link (a token bucket
on a pair of virtual interfaces, with the servers in a network namespace behind it), so all connections share its rate,
as on a network.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.link import paced_link
from scripts.benchmarks.requests import Request, logged

PASSWORD = "owner-of-the-demo"
USER = "demo-owner"
MODULES = Path("/usr/lib/nginx/modules")


@dataclass
class Server:
    """A server of the benchmarks; `url` is the address for clients."""

    url: str
    run: Path
    authority: Path | None = None  # the certificate authority to trust

    @property
    def curl(self) -> str:
        """Return a curl command that lacks only the URL."""
        trust = f" --cacert {self.authority}" if self.authority else ""
        return f"curl -sSf --noproxy '*'{trust}"

    def plain(self, path: str = "") -> str:
        return f"{self.url}/plain/{path}"

    def requests(self) -> list[Request]:
        """Return all requests, except those of the rig itself, in the order in which they ended."""
        self.get("/rig/logged")
        return logged(self.run / "access.log")

    def delay(self, seconds: float) -> None:
        """Set the delay of each request from now on. The server must have been started with a delay."""
        self.get(f"/rig/delay?seconds={seconds}")

    def accession(self, project: str, label: str) -> str:
        told = self.get(f"/data/projects/{project}/experiments/{label}?format=json", "-u", f"{USER}:{PASSWORD}")
        return str(json.loads(told)["items"][0]["data_fields"]["ID"])

    def get(self, path: str, *options: str) -> bytes:
        """Return the body of a reply; `options` are curl's."""
        words = [*self.curl.replace("'", "").split(), *options, f"{self.url}{path}"]
        return subprocess.run(words, check=True, capture_output=True).stdout


NGINX = """\
{modules}
user root;
worker_processes 1;
pid {run}/nginx.pid;
error_log {run}/error.log;
events {{ worker_connections 1024; }}
http {{
    log_format requests escape=json '{{"method":"$request_method","uri":"$request_uri","status":$status,'
        '"ended":$msec,"took":$request_time,"sent":$bytes_sent,"kept":"$upstream_cache_status","connection":$connection}}';
    access_log {run}/access.log requests;
    client_body_temp_path {run}/body; proxy_temp_path {run}/proxy; fastcgi_temp_path {run}/fastcgi;
    uwsgi_temp_path {run}/uwsgi; scgi_temp_path {run}/scgi;
    proxy_cache_path {run}/kept keys_zone=kept:16m inactive=1d max_size=20g use_temp_path=off;
    sendfile on; tcp_nopush on; keepalive_requests 1000000; keepalive_timeout 600s; etag off;
    client_max_body_size 0; proxy_request_buffering off;
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout 600s;
    types {{ }} default_type application/octet-stream;
    {delays}
    server {{
        listen {address}:{port}{tls};
        max_ranges {ranges};
        limit_rate {rate};
        {wait}
        location ~ /files/([^/]+\\.bin)$ {{ root {run}/flat; rewrite /files/([^/]+\\.bin)$ /$1 break; }}
        location ^~ /plain {{ root {run}; autoindex on; types {{ text/html html; }} }}
        location ~ ^/data/(archive/)?(projects|subjects|experiments) {{ {keeping} proxy_pass {demo}; }}
        # A request is logged after its reply was sent; the single process does that before it answers this one.
        location = /rig/logged {{ access_log off; return 204; }}
        location / {{ proxy_pass {demo}; proxy_buffering off; }}
    }}
}}
"""
REPLICA = (
    "proxy_cache kept; proxy_cache_key $request_method$request_uri; proxy_cache_convert_head off;"
    " proxy_cache_valid 200 1d; proxy_ignore_headers Set-Cookie Cache-Control Expires Vary;"
    " proxy_hide_header Set-Cookie;"
)
DELAYS = "lua_shared_dict rig 64k; lua_load_resty_core off;"
WAIT = """\
access_by_lua_block {{
            local wait = ngx.shared.rig:get("delay") or {delay}
            if wait > 0 then ngx.sleep(wait) end
        }}
        location = /rig/delay {{
            access_log off;
            access_by_lua_block {{ return }}
            content_by_lua_block {{ ngx.shared.rig:set("delay", tonumber(ngx.var.arg_seconds)) ngx.say("") }}
        }}"""


@contextlib.contextmanager
def served(
    run: Path,
    *datas: Path,
    digests: bool = True,
    ranges: bool = False,
    delay: float = 0.0,
    tls: bool = False,
    paced: bool = False,
    rate: int = 0,
    replica: bool = False,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """Serve archives until the context ends.

    Args:
        run: The directory for configuration, logs and the replica.
        datas: Directories for the demo's `--data`.
        digests: Whether the site states digests.
        ranges: Whether nginx serves ranges of big files.
        delay: The delay of each request, in seconds.
        tls: Serve HTTPS, with a certificate of a new authority.
        paced: Serve behind a link of 1 Gbit/s.
        rate: The most bytes per second of one connection, as on a far, lossy line; 0 for no limit.
        replica: Let nginx cache the demo's replies on disk.
        options: More options of the demo.
    """
    shutil.rmtree(run, ignore_errors=True)
    for name in ("plain", "flat"):
        (run / name).mkdir(parents=True)
    for data in datas:
        for project in data.iterdir():
            (run / "plain" / project.name).symlink_to(project)
        for path in data.rglob("*.bin"):
            (run / "flat" / path.name).symlink_to(path)
    words = [*options, "--only-data", "--until-eof", *(str(word) for data in datas for word in ("--data", data))]
    words += [] if digests else ["--no-digests"]
    with contextlib.ExitStack() as stack:
        inside, address = stack.enter_context(paced_link()) if paced else ([], "127.0.0.1")
        demo = stack.enter_context(_demo(inside, words))
        port = _free_port()
        authority, certificate = _certificate(run, address) if tls else (None, "")
        modules = "".join(f"load_module {MODULES}/{name}_module.so;" for name in ("ndk_http", "ngx_http_lua"))
        text = NGINX.format(
            run=run,
            address=address,
            port=port,
            tls=certificate,
            ranges=1000 if ranges else 0,
            rate=rate,
            demo=demo,
            modules=modules if delay else "",
            delays=DELAYS if delay else "",
            wait=WAIT.format(delay=delay) if delay else "",
            keeping=REPLICA if replica else "proxy_buffering off;",
        )
        (run / "nginx.conf").write_text(text)
        stack.enter_context(_nginx(inside, run, address, port))
        yield Server(f"http{'s' if tls else ''}://{address}:{port}", run, authority)


@contextlib.contextmanager
def _demo(inside: Sequence[str], options: Sequence[str]) -> Iterator[str]:
    """Run the demo server until the context ends; yields its URL."""
    command = [*inside, sys.executable, "-m", "xnatfs.demo", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdin is not None
        assert demo.stdout is not None
        url = demo.stdout.readline().strip()
        if not url:
            raise SystemExit("bench: the demo server does not start")
        try:
            yield url
        finally:
            demo.stdin.close()


@contextlib.contextmanager
def _nginx(inside: Sequence[str], run: Path, address: str, port: int) -> Iterator[None]:
    command = [*inside, "nginx", "-c", str(run / "nginx.conf"), "-p", str(run), "-g", "daemon off;"]
    with open(run / "nginx.out", "wb") as said:
        nginx = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 20
        while not _answers(address, port):
            if nginx.poll() is not None or time.monotonic() > deadline:
                said_last = (run / "nginx.out").read_text(errors="replace").strip().rpartition("\n")[2]
                raise SystemExit(f"bench: nginx does not start: {said_last}")
            time.sleep(0.01)
        yield
    finally:
        nginx.terminate()
        nginx.wait()


def _answers(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _certificate(run: Path, address: str) -> tuple[Path, str]:
    """Create a certificate authority and a certificate; return the authority and nginx's directives."""
    names = f"subjectAltName=IP:{address}"
    commands = [
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {run}/ca.key -out {run}/ca.pem -days 30 -subj /CN=bench-ca",
        f"openssl req -newkey rsa:2048 -nodes -keyout {run}/site.key -out {run}/site.csr -subj /CN=bench",
        f"printf {names} > {run}/names",
        f"openssl x509 -req -in {run}/site.csr -CA {run}/ca.pem -CAkey {run}/ca.key -CAcreateserial -days 30"
        f" -extfile {run}/names -out {run}/site.pem",
    ]
    for command in commands:
        subprocess.run(command, shell=True, check=True, capture_output=True)
    return run / "ca.pem", f" ssl; ssl_certificate {run}/site.pem; ssl_certificate_key {run}/site.key"
