"""Build the httpx clients of one server: TLS, proxies, socket options, limits, download processes."""

import contextlib
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from xnatfs import __version__
from xnatfs.common.errors import ConfigError
from xnatfs.common.tls import tls_context
from xnatfs.download_worker.pool import open_pool, tcp_options
from xnatfs.http.failures import refuse_proxy_login
from xnatfs.settings.config import Config, is_loopback

# In seconds. A firewalled host does not answer at all; ten seconds distinguish it from a slow one.
CONNECT_TIMEOUT_SECONDS = 10.0
# An XNAT gives each request a thread and often a database connection; sites recommend 4 to 8 parallel requests.
PARALLEL_DOWNLOADS = 8
# Two more than the downloads, so that a listing never waits behind eight of them.
MAX_CONNECTIONS = PARALLEL_DOWNLOADS + 2

# httpcore requests 64 KiB from a connection at a time, and each read goes through five layers: a gigabyte took three
# times as long (measured on loopback: 0.17 against 0.5 GB/s).
SOCKET_READ_BYTES = 512 * 1024
# The longest TLS record (RFC 8446, 5.1). Each is read into a buffer of the size that is requested, which is then cut.
TLS_RECORD_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients of one server.

    Attributes:
        http: For most requests.
        big: For big files, whose bodies a download process receives; the same as `http` where that is impossible.
        probe: To probe an unreachable server. It keeps no idle connections, since those may be what has failed.
    """

    http: httpx.AsyncClient
    big: httpx.AsyncClient
    probe: httpx.AsyncClient


@asynccontextmanager
async def open_clients(config: Config, wire: httpx.AsyncBaseTransport | None = None) -> AsyncIterator[Clients]:
    """Open the clients of one server, without sending a request. `wire` replaces the network in tests.

    Raises ConfigError if the URL's host is not valid, or the environment names a proxy that cannot be used.
    """
    try:
        httpx.URL(config.url).raw_host.decode("ascii").encode("idna")  # as it is resolved
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigError(f"{config.url!r} is not the URL of a server: {error}") from None
    new_client, is_proxied = _client_factory(config, wire)
    async with AsyncExitStack() as stack:
        try:
            http, probe = new_client(MAX_CONNECTIONS, MAX_CONNECTIONS), new_client(2, 0)
        except (ValueError, httpx.InvalidURL, ImportError):  # whose message may contain a part of a password
            form = "http://PROXY:PORT or http://USER:PASSWORD@PROXY:PORT, with a % code for each special character"
            text = f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: it must be {form}; no SOCKS"
            raise ConfigError(text) from None
        big = http
        # The processes support no proxy, and notice by a call of Linux alone that this one has ended.
        if wire is None and not is_proxied and sys.platform == "linux":
            pool = await stack.enter_async_context(open_pool(config.ca_bundle, config.verify_ssl))
            big = await stack.enter_async_context(httpx.AsyncClient(transport=pool, **_common()))
        yield Clients(await stack.enter_async_context(http), big, await stack.enter_async_context(probe))


def _client_factory(
    config: Config, wire: httpx.AsyncBaseTransport | None
) -> tuple[Callable[[int, int], httpx.AsyncClient], bool]:
    """Return a function from the numbers of connections and idle ones to a client, and whether it uses a proxy."""
    url = urlsplit(config.url)
    host = url.hostname or ""
    is_proxied = bool(not is_loopback(host) and getproxies().keys() & {url.scheme, "all"} and not proxy_bypass(host))
    # Reading the certificate authorities took 40 ms of a start: skip it if no certificate is verified.
    needs_tls = wire is None and bool(is_proxied or config.ca_bundle or url.scheme == "https")
    tls: Any = tls_context(config.ca_bundle, config.verify_ssl) if needs_tls else False
    options = tcp_options(config.timeout)

    def new_client(connections: int, idle: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=idle)
        direct = None  # httpx uses proxies only if it makes its own transport
        if not is_proxied:
            direct = httpx.AsyncHTTPTransport(verify=tls, limits=limits, socket_options=options)
        client = httpx.AsyncClient(
            base_url=config.url,
            headers={"User-Agent": f"xnatfs/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(config.timeout, connect=min(CONNECT_TIMEOUT_SECONDS, config.timeout), pool=None),
            limits=limits,
            verify=tls,
            trust_env=not is_loopback(host),
            transport=wire or direct,
            **_common(),
        )
        for pool in _pools(client):
            pool._network_backend = RecordsBackend()  # httpx has no parameter for it
        return client

    return new_client, is_proxied


def _common() -> dict[str, Any]:
    return {
        "event_hooks": {"response": [refuse_proxy_login]},
        "follow_redirects": False,
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    }


def _pools(client: httpx.AsyncClient) -> list[httpcore.AsyncConnectionPool]:
    """Return the connection pools of a client; httpx has no public way to them."""
    transports = {client._transport, *client._mounts.values()}
    pools = [getattr(transport, "_pool", None) for transport in transports]  # a test's transport has none
    return [pool for pool in pools if isinstance(pool, httpcore.AsyncConnectionPool)]


async def close_idle_connections(client: httpx.AsyncClient) -> None:
    """Close the connections of a client that no request uses."""
    for pool in _pools(client):
        for connection in pool.connections:
            if connection.is_idle():
                await connection.aclose()


class RecordsBackend(httpcore.TrioBackend):
    """Open connections of trio whose reads return all that has arrived, up to SOCKET_READ_BYTES.

    trio's own stream returns one TLS record at a time, of 16 KiB at most, and each passes through the layers of
    httpcore and httpx: a tar of 100 MB takes 6,400 such passes.
    """

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  httpcore's parameter, as below
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _RecordStream(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class _RecordStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._ssl_object = stream.get_extra_info("ssl_object")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        max_bytes = max(max_bytes, SOCKET_READ_BYTES)  # httpcore passes it on to h11, which takes any length
        if self._ssl_object is None:
            return await self._stream.read(max_bytes, timeout)
        pieces = [await self._stream.read(min(max_bytes, TLS_RECORD_BYTES), timeout)]
        left = max_bytes - len(pieces[0])
        # No whole record is left where this raises; an error of the connection is raised by the next read, too.
        with contextlib.suppress(ssl.SSLError):
            while left > 0 and pieces[-1]:
                pieces.append(self._ssl_object.read(min(left, TLS_RECORD_BYTES)))
                left -= len(pieces[-1])
        return b"".join(pieces)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            return _RecordStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:  # httpcore 1.0 closes the connection after an error, and not if the caller is cancelled
            await self.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
