"""Test programs and mounts behind proxies, firewalls and balancers.

The proxies want a login, addresses drop what is sent to them, balancers replace sessions, and machines sleep.
"""

import base64
import http.server
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.download_worker.test_process import children
from tests.support.commanding import LABEL, OWNER, PASSWORD, page_archive
from tests.support.demos import serving
from tests.support.mounting import SCRIPTS, end, environment, mounting, run
from xnatfs.common.clock import now, slept
from xnatfs.common.errors import ConfigError, NoRoute
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.reply import Reply
from xnatfs.demo.server.request_bodies import Body
from xnatfs.demo.server.socket import serve
from xnatfs.download_worker.pool import connect
from xnatfs.http.clients import CONNECT_TIMEOUT_SECONDS
from xnatfs.http.messages import HttpRequest
from xnatfs.listings.ttl_cache import MetadataCache, listing
from xnatfs.rest.client import open_xnat
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials

PROXY_LOGIN = "proxy-user", "s3cret-of-the-proxy"


class LoginProxy(http.server.BaseHTTPRequestHandler):
    """A proxy with a login; behind it a site that lets any user in, for requests that arrive in the clear."""

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
        """Log nothing."""


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
                NoRoute, match="through the proxy: it requires a login.* set HTTP_PROXY and HTTPS_PROXY to"
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
    """Meet a proxy that is not configured, as one that intercepts."""
    async with open_xnat(Config(f"http://127.0.0.1:{proxy}", timeout=5), Credentials("u", "p")) as xnat:
        xnat.login._token = "A" * 32
        with pytest.raises(NoRoute, match="it requires a login"):
            await xnat._transport.send(HttpRequest("GET", "/data/x", "file", is_big=big))


def test_commands_say_what_the_proxy_wants(proxy, tmp_path):
    for url in ("http://xnat.example.org", "https://xnat.example.org"):
        login = {"XNAT_USER": OWNER, "XNAT_PASS": PASSWORD}
        through = {f"{scheme}_proxy": f"http://me:s3cret@127.0.0.1:{proxy}" for scheme in ("http", "https")}
        env = environment(tmp_path, **login, **through)
        (tmp_path / "mnt").mkdir(exist_ok=True)
        for command in (("xnatctl", "project", "list", "--url", url), ("xnatfs", "mount", "--url", url, "mnt")):
            done = run(SCRIPTS / command[0], *command[1:], env=env, cwd=tmp_path)
            assert done.returncode == 4, done.stderr
            assert "it requires a login, or another one (407 Proxy Authentication Required)" in done.stderr
            assert "s3cret" not in done.stderr
            assert "is not an XNAT" not in done.stderr


@pytest.mark.parametrize("address", ["http://me:s3#cret@proxy:3128", "ftp://me:s3cret@proxy", "socks5://proxy:1080"])
async def test_a_proxy_that_cannot_be_one_is_named(proxy, address, monkeypatch):
    monkeypatch.setenv("http_proxy", address)
    with pytest.raises(ConfigError, match="HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used") as caught:
        async with open_xnat(Config("http://xnat.example.org"), Credentials("u", "p")):
            pass
    assert "s3" not in str(caught.value)


# -- sessions that get a new ID with each reply ------------------------------------------------------------------------

COOKIE = re.compile(r"JSESSIONID=([0-9A-F]+)")


class Rotating(DemoXnat):
    """A demo behind a gateway that gives a session a new ID with each reply; `grace`: the old IDs live on."""

    grace = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.names: dict[str, str] = {}
        self._naming = threading.Lock()

    def handle(
        self, method: str, raw_path: str, raw_query: str, headers: dict[str, str], body: Body | bytes = b""
    ) -> Reply:
        match = COOKIE.search(headers.get("cookie", ""))
        with self._naming:
            take = self.names.get if self.grace else self.names.pop
            session = take(match[1], "") if match else ""
        reply = super().handle(method, raw_path, raw_query, {**headers, "cookie": f"JSESSIONID={session}"}, body)
        made = [found[1] for cookie in reply.cookies if (found := COOKIE.match(cookie))]
        session, name = (made or [session])[-1], uuid.uuid4().hex.upper()
        with self._naming:
            self.names[name] = session
        reply.cookies = [cookie for cookie in reply.cookies if not COOKIE.match(cookie)]
        reply.cookies.append(f"JSESSIONID={name}; Path=/; HttpOnly")
        return reply

    def logins(self) -> int:
        return sum("authorization" in record.headers for record in self.requests)


@pytest.fixture(params=[False, True], ids=["at once", "with a grace"])
def rotating(request, tmp_path) -> Iterator[tuple[str, Rotating]]:
    app = Rotating(page_archive())
    app.grace = request.param
    with serve(app) as url:
        yield url, app


def test_a_session_that_rotates_is_no_reason_for_logins(rotating, tmp_path):
    url, app = rotating
    with mounting(url, tmp_path, user=OWNER, password=PASSWORD) as mount:
        files = list(mount.path.glob(f"projects/MYPROJECT/SUB001/{LABEL}/scans/*/DICOM/*.dcm"))
        assert len(files) == 15
        for path in files:
            assert path.read_bytes()
        assert app.logins() <= 2  # of those that are under way before it is known, one may be the last to be answered


def test_readers_at_the_same_time_take_turns(rotating, tmp_path):
    url, app = rotating
    with mounting(url, tmp_path, user=OWNER, password=PASSWORD) as mount:
        files = list(mount.path.glob(f"projects/MYPROJECT/SUB001/{LABEL}/scans/*/DICOM/*.dcm"))
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(Path.read_bytes, files))
        assert app.logins() <= 2


def test_the_newest_session_is_that_of_the_next_program(rotating, tmp_path):
    url, app = rotating
    env = environment(tmp_path, XNAT_USER=OWNER, XNAT_PASS=PASSWORD, XNAT_URL=url)
    for _ in range(4):
        done = run(SCRIPTS / "xnatctl", "project", "list", env=env)
        assert (done.returncode, done.stderr) == (0, "")
    assert app.logins() == 1


async def test_a_change_is_made_once_though_the_session_rotates(rotating):
    """Send it once: the reply has another session, which is no sign that the request met none."""
    url, app = rotating
    async with open_xnat(Config(url), Credentials(OWNER, PASSWORD)) as xnat:
        answer = await xnat.change("PUT", "/data/projects/MYPROJECT/subjects/NEW")
        assert answer.ok
    assert [r.path for r in app.requests if r.method == "PUT"] == ["/data/projects/MYPROJECT/subjects/NEW"]
    assert app.logins() == 1


async def test_a_guest_of_an_open_site_is_not_taken_for_us(tmp_path):
    """Log in again when a guest's session replaces one that has ended, although guests' IDs rotate as well."""
    app = Rotating(page_archive(), require_login=False)
    with serve(app) as url:
        async with open_xnat(Config(url), Credentials(OWNER, PASSWORD)) as xnat:
            before = await xnat.projects()
            app.sessions.end_all()
            assert await xnat.projects() == before
            assert app.logins() == 2


# -- addresses that swallow what is sent to them -----------------------------------------------------------------------

HOST = "two-addresses.test"
# What the system says of it, here and in every process of a mount: an address that answers nothing goes first.
RESOLVER = f"""
import socket
real = socket.getaddrinfo
def getaddrinfo(host, port, *args, **more):
    if host not in ({HOST!r}, {HOST!r}.encode()):
        return real(host, port, *args, **more)
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port))) for address in ("127.0.0.2", "127.0.0.1")]
socket.getaddrinfo = getaddrinfo
"""


@contextmanager
def black_hole(port: int) -> Iterator[None]:
    """Fill the queue of 127.0.0.2 at this port, so that the kernel drops the packets that would open a connection."""
    with socket.socket() as listener, ExitStack() as fillers:
        listener.bind(("127.0.0.2", port))
        listener.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(("127.0.0.2", port))
        yield


def addresses(*found: tuple[str, int]) -> Callable[..., list[Any]]:
    return lambda *args, **more: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in found]


@contextmanager
def listening() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()


async def test_an_address_that_swallows_costs_a_moment(monkeypatch):
    with listening() as good, black_hole(good[1]):
        monkeypatch.setattr(socket, "getaddrinfo", addresses(("127.0.0.2", good[1]), good))
        began = time.monotonic()
        async with await connect("host", good[1], {"connect": 60, "read": 60}) as link:
            assert link.socket.getpeername() == good
        assert time.monotonic() - began < 30


async def test_all_addresses_together_have_one_timeout(monkeypatch):
    with listening() as good, black_hole(good[1]):
        monkeypatch.setattr(socket, "getaddrinfo", addresses(*[("127.0.0.2", good[1])] * 3))
        began = time.monotonic()
        with pytest.raises(httpx.ConnectTimeout):
            await connect("host", good[1], {"connect": 0.6, "read": 60})
        assert 0.6 <= time.monotonic() - began < 30
    monkeypatch.setattr(socket, "getaddrinfo", addresses(("127.0.0.2", good[1]), good))
    with pytest.raises(httpx.ConnectError, match="refused"):
        await connect("host", good[1], {"connect": 60, "read": 60})


def test_a_big_file_of_a_mount_comes_at_once(tmp_path):
    """Use the address that answers, without the ten seconds that a connection may take."""
    (tmp_path / "sitecustomize.py").write_text(RESOLVER)
    with serving() as demo, black_hole(port := int(demo.url.rpartition(":")[2])):
        env = {"XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"], "PYTHONPATH": str(tmp_path)}
        place = tmp_path / "mnt"
        place.mkdir()
        try:
            url = f"http://{HOST}:{port}"
            done = run(SCRIPTS / "xnatfs", "mount", "--url", url, place, env=environment(tmp_path, **env))
            assert done.returncode == 0, done.stderr
            entry = next(each for each in demo.manifest if each.size > 10**7 and each.path[0] == "projects")
            began = time.monotonic()
            assert len(place.joinpath(*entry.path).read_bytes()) == entry.size
            assert time.monotonic() - began < CONNECT_TIMEOUT_SECONDS
        finally:
            end(place, tmp_path)


# -- machines that sleep -----------------------------------------------------------------------------------------------

NIGHT = 8 * 3600.0
# A process of which the machine has slept a night as soon as there is this file.
SLEEPER = """
import os, time
real = time.clock_gettime
time.clock_gettime = lambda clock: real(clock) + (clock == time.CLOCK_BOOTTIME and os.path.exists({!r})) * {}
"""


@pytest.fixture
def sleep(monkeypatch) -> Callable[[], None]:
    """Make the clocks behave as after a night of suspend."""
    real, slept = time.clock_gettime, [0.0]
    monkeypatch.setattr(time, "clock_gettime", lambda c: real(c) + (slept[0] if c == time.CLOCK_BOOTTIME else 0.0))

    def night() -> None:
        slept[0] += NIGHT

    return night


async def test_ages_count_a_sleep_and_deadlines_do_not(sleep, autojump_clock):
    before, slept_before = now(), slept()
    with trio.move_on_after(10) as scope:
        sleep()
        await trio.sleep(5)
    assert not scope.cancelled_caught
    assert now() - before == NIGHT + 5
    assert slept() - slept_before == NIGHT


async def test_listings_and_refusals_of_yesterday_are_old(sleep):
    cache = MetadataCache()
    cache.put("list", listing([1], lambda row: row, now(), 60))
    assert cache.peek("list") is not None
    sleep()
    assert cache.peek("list") is None


async def test_a_login_of_yesterday_is_made_anew_before_it_is_refused(sleep, tmp_path):
    app = DemoXnat(page_archive())
    with serve(app) as url:
        async with open_xnat(Config(url), Credentials(OWNER, PASSWORD)) as xnat:
            await xnat.projects()
            assert not xnat.login.is_doubtful()
            sleep()
            assert xnat.login.is_doubtful()
            app.sessions.end_all()
            await xnat.projects()
    assert [record.status for record in app.requests if "authorization" in record.headers] == [200, 200]
    assert all(record.status < 400 for record in app.requests)


async def test_connections_of_yesterday_are_not_used(sleep, tmp_path):
    """Close connections whose other ends are gone, and would be waited for."""
    with serve(DemoXnat(page_archive())) as url:
        async with open_xnat(Config(url), Credentials(OWNER, PASSWORD)) as xnat:
            ports, processes = [], []
            for nights in range(3):
                for big in (False, True):
                    question = HttpRequest("GET", "/data/projects/MYPROJECT", is_big=big)
                    response = await xnat._transport.send(question)
                    if not big:
                        ports.append(response.extensions["network_stream"].get_extra_info("client_addr"))
                    await response.aread()
                    await response.aclose()
                processes.append(children())
                if nights:
                    sleep()
            assert ports[0] == ports[1] != ports[2]
            assert len(processes[0]) == len(processes[2]) == 1
            assert processes[0] == processes[1] != processes[2]


def test_a_mount_shows_in_the_morning_what_is_new(tmp_path):
    flag = tmp_path / "morning"
    (tmp_path / "sitecustomize.py").write_text(SLEEPER.format(str(flag), NIGHT))
    app, place = DemoXnat(page_archive()), tmp_path / "mnt"
    place.mkdir()
    with serve(app) as url:
        env = environment(tmp_path, XNAT_USER=OWNER, XNAT_PASS=PASSWORD, PYTHONPATH=str(tmp_path))
        try:
            done = run(SCRIPTS / "xnatfs", "mount", "--ttl", "7200", "--url", url, place, env=env)
            assert done.returncode == 0, done.stderr
            before = set(os.listdir(place / "projects"))
            app.archive.project("TONIGHT", "Made while the machine slept", jane="Owners")
            assert set(os.listdir(place / "projects")) == before
            flag.touch()
            assert set(os.listdir(place / "projects")) == before | {"TONIGHT"}
        finally:
            end(place, tmp_path)
