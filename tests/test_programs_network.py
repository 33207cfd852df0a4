"""What lies between us and the server, as programs and mounts meet it.

Proxies that want a login, addresses that swallow what is sent to them, balancers that hand out sessions, machines that
sleep.
"""

import base64
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.commanding import OWNER, PASSWORD
from tests.mounting import SCRIPTS, environment, run
from xnatfs.client import open_xnat
from xnatfs.config import Config
from xnatfs.credentials import Credentials
from xnatfs.errors import ConfigError, NoRoute
from xnatfs.transport import Question

PROXY_LOGIN = "proxy-user", "s3cret-of-the-proxy"


class LoginProxy(http.server.BaseHTTPRequestHandler):
    """A proxy with a login; behind it a site that lets anybody in, where what is asked comes in the clear."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        given = self.headers.get("Proxy-Authorization", "")
        if given != "Basic " + base64.b64encode(":".join(PROXY_LOGIN).encode()).decode():
            self._say(407, b"<html><head><title>ERR_CACHE_ACCESS_DENIED</title></head></html>", "text/html")
        elif self.command == "CONNECT":
            self._say(403, b"", "text/html")
        else:
            self._say(200, b"0123456789ABCDEF0123456789ABCDEF", "text/plain")

    do_POST = do_DELETE = do_CONNECT = do_GET

    def _say(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        if status == 407:
            self.send_header("Proxy-Authenticate", 'Basic realm="the office"')
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Tests say what matters."""


@contextmanager
def login_proxy() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), LoginProxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(monkeypatch) -> Iterator[int]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with login_proxy() as port:
        yield port


@pytest.mark.parametrize("scheme", ["http", "https"], ids=["forwarded", "tunnelled"])
@pytest.mark.parametrize("login", ["", "proxy-user:s3cret-too@"], ids=["no login", "a wrong one"])
async def test_a_proxy_that_wants_a_login_is_no_server(proxy, scheme, login, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv(f"{scheme}_proxy", f"http://{login}127.0.0.1:{proxy}")
    async with open_xnat(Config(f"{scheme}://xnat.example.org", timeout=5), Credentials("u", "p")) as xnat:
        for ask in (xnat.log_in, xnat.projects):
            with pytest.raises(
                NoRoute, match="through the proxy: it wants a login.* set HTTP_PROXY and HTTPS_PROXY to"
            ):
                await ask()
    assert "s3cret" not in caplog.text


async def test_the_login_of_a_proxy_is_given_and_not_logged(proxy, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("http_proxy", f"http://{':'.join(PROXY_LOGIN)}@127.0.0.1:{proxy}")
    async with open_xnat(Config("http://xnat.example.org"), Credentials("u", "p")) as xnat:
        await xnat.log_in()
    assert PROXY_LOGIN[1] not in caplog.text
    assert base64.b64encode(":".join(PROXY_LOGIN).encode()).decode() not in caplog.text


@pytest.mark.parametrize("big", [False, True])
async def test_a_proxy_in_the_way_is_not_the_server_for_a_file_either(proxy, big):
    """It is asked though nobody has said so, as one is that intercepts."""
    async with open_xnat(Config(f"http://127.0.0.1:{proxy}", timeout=5), Credentials("u", "p")) as xnat:
        xnat.login._token = "A" * 32
        with pytest.raises(NoRoute, match="it wants a login"):
            await xnat._transport.exchange(Question("GET", "/data/x", "file", big=big))


def test_commands_say_what_the_proxy_wants(proxy, tmp_path):
    for url in ("http://xnat.example.org", "https://xnat.example.org"):
        login = {"XNAT_USER": OWNER, "XNAT_PASS": PASSWORD}
        through = {f"{scheme}_proxy": f"http://me:s3cret@127.0.0.1:{proxy}" for scheme in ("http", "https")}
        env = environment(tmp_path, **login, **through)
        (tmp_path / "mnt").mkdir(exist_ok=True)
        for command in (("xnatctl", "project", "list", "--url", url), ("xnatfs", "mount", "--url", url, "mnt")):
            done = run(SCRIPTS / command[0], *command[1:], env=env, cwd=tmp_path)
            assert done.returncode == 4, done.stderr
            assert "it wants a login, or another one (407 Proxy Authentication Required)" in done.stderr
            assert "s3cret" not in done.stderr
            assert "is not an XNAT" not in done.stderr


@pytest.mark.parametrize("address", ["http://me:s3#cret@proxy:3128", "ftp://me:s3cret@proxy", "socks5://proxy:1080"])
async def test_a_proxy_that_cannot_be_one_is_named(proxy, address, monkeypatch):
    monkeypatch.setenv("http_proxy", address)
    with pytest.raises(ConfigError, match="HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used") as caught:
        async with open_xnat(Config("http://xnat.example.org"), Credentials("u", "p")):
            pass
    assert "s3" not in str(caught.value)
