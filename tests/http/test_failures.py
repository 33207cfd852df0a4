"""Test TLS, proxies and netrc between the client and the server, on real sockets and real mounts."""

import gc
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
import trio

from tests.support.demos import Demo, serving
from tests.support.mounting import SCRIPTS, end, environment, mounted_file_system, mounting, run
from xnatfs.common.errors import ConfigError
from xnatfs.demo.server.reply import Reply
from xnatfs.http.clients import open_clients
from xnatfs.http.transport import open_transport
from xnatfs.rest.client import open_xnat
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials

XNATFS = SCRIPTS / "xnatfs"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_certificate(tmp_path_factory.mktemp("tls"))


def made_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1, and its key."""
    made, key = directory / "certificate.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    return made, key


@pytest.fixture(scope="module")
def secure(certificate: tuple[Path, Path]) -> Iterator[Demo]:
    with serving(certificate=certificate) as demo:
        yield demo


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    end(path, tmp_path)


def mount(demo: Demo, place: Path, *options: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    login = {"XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"]}
    env = environment(place.parent, **{**login, **variables})
    return run(XNATFS, "mount", "--url", demo.url, *options, place, env=env)


@pytest.mark.fuse
def test_a_certificate_nobody_has_signed_is_refused(secure, place):
    done = mount(secure, place)
    assert done.returncode == 4
    assert "is not trusted" in done.stderr
    assert "--ca-bundle" in done.stderr
    assert done.stderr.count("\n") == 1
    assert mounted_file_system(place) == ""


@pytest.mark.fuse
def test_a_bundle_makes_it_trusted(secure, place, certificate):
    done = mount(secure, place, "--ca-bundle", certificate[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert "BRAINS" in os.listdir(place / "projects")


@pytest.mark.fuse
def test_trusting_anybody_is_possible_and_warned_of(secure, place):
    done = mount(secure, place, "--no-verify-ssl")
    assert done.returncode == 0
    assert "is not verified" in done.stderr
    assert "BRAINS" in os.listdir(place / "projects")


@pytest.mark.fuse
def test_a_loopback_address_goes_through_no_proxy(place):
    with serving() as demo:
        dead = "http://127.0.0.1:9"
        done = mount(demo, place, http_proxy=dead, HTTP_PROXY=dead, all_proxy=dead)
        assert (done.returncode, done.stderr) == (0, "")
        assert "BRAINS" in os.listdir(place / "projects")
        assert run(XNATFS, "umount", place, env=environment(place.parent)).returncode == 0


@pytest.mark.fuse
def test_netrc_is_a_login(place):
    with serving() as demo:
        netrc = place.parent / ".netrc"
        netrc.write_text(f"machine 127.0.0.1 login {demo.login['user']} password {demo.login['password']}\n")
        netrc.chmod(0o600)
        done = mount(demo, place, XNAT_USER="", XNAT_PASS="")
        assert (done.returncode, done.stderr) == (0, "")
        assert run(XNATFS, "umount", place, env=environment(place.parent)).returncode == 0


@pytest.mark.fuse
def test_a_profile_is_a_server_and_a_login(place):
    with serving() as demo:
        directory = place.parent / ".config" / "xnatctl"
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text(
            f"profiles:\n  demo:\n    url: {demo.url}/\n    username: {demo.login['user']}\n"
            f"    password: {demo.login['password']}\n"
        )
        env = environment(place.parent)
        assert run(XNATFS, "mount", "--profile", "demo", place, env=env).stderr == ""
        assert "BRAINS" in os.listdir(place / "projects")
        assert run(XNATFS, "umount", place, env=env).returncode == 0


class Proxy(http.server.BaseHTTPRequestHandler):
    """A proxy that answers in the place of every server, and records which."""

    asked: list[str] = []

    def do_POST(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", "32")
        self.end_headers()
        self.wfile.write(b"A" * 32)

    do_DELETE = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.org", "999.1.1.1", "☃☃.net"])
async def test_a_host_that_cannot_be_resolved_is_named(host):
    """Blame neither a proxy nor the server's answer."""
    with pytest.raises(ConfigError, match=f"^'https://{host}' is not the URL of a server: "):
        async with open_xnat(Config(f"https://{host}"), Credentials("u", "p")):
            pass


async def test_other_addresses_go_through_the_proxy_of_the_environment(monkeypatch):
    Proxy.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with open_xnat(Config("http://xnat.example.org"), Credentials("u", "p")) as xnat:
            await xnat.log_in()
        server.shutdown()
        thread.join()
    assert Proxy.asked[0] == "http://xnat.example.org/data/JSESSION"


@pytest.mark.fuse
def test_an_outage_is_an_error_to_programs_one_line_in_the_log_and_over_when_it_is_over(tmp_path):
    with serving() as demo, mounting(demo.url, tmp_path, "--timeout", "1", "--ttl", "0", **demo.login) as mounted:
        mounted.expected_in_log += ["is unreachable", "is reachable again"]
        demo.app.faults.append(lambda request: Reply(503, b"", "text/html"))
        for _ in range(3):
            assert "Input/output error" in run("ls", mounted.path / "projects").stderr
        demo.app.faults.clear()
        over = time.monotonic() + 5.0
        while run("ls", mounted.path / "projects").returncode:
            assert time.monotonic() < over, "the server is back, and the mount is not"
    log = mounted.log_file.read_text()
    assert (log.count("the server is unreachable"), log.count("is reachable again")) == (1, 1)


@pytest.mark.fuse
def test_a_session_ended_by_the_server_is_made_again_unnoticed(tmp_path):
    with serving() as demo, mounting(demo.url, tmp_path, "--ttl", "0", **demo.login) as mounted:
        for _ in range(3):
            demo.app.sessions.end_all()
            assert "BRAINS" in run("ls", mounted.path / "projects").stdout
        assert demo.sessions() == 1


async def test_an_empty_piece_is_not_the_end_of_a_body():
    async def pieces() -> AsyncGenerator[bytes]:
        for piece in (b"begin", b"", b"end"):
            yield piece

    async with open_transport(Config("http://xnat.example.org"), Credentials("u", "p")) as transport:
        assert [piece async for piece in transport.receive("/data/x", pieces())] == [b"begin", b"end"]


async def test_a_connection_is_closed_when_its_handshake_is_cancelled(monkeypatch):
    left_open: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", left_open.append)  # a socket that is collected while it is open
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    config = Config(f"https://127.0.0.1:{listener.socket.getsockname()[1]}", verify_ssl=False)
    with trio.fail_after(30):
        async with listener, open_clients(config) as clients, trio.open_nursery() as nursery:
            nursery.start_soon(clients.http.get, "/data/projects")
            async with await listener.accept() as server:
                assert await server.receive_some()  # the first message of the handshake, which is not answered
                nursery.cancel_scope.cancel()
    gc.collect()
    assert left_open == []
