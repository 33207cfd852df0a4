"""Look at a server without a login: its address, its certificate, its version and its clock; fetch raw replies."""

import re
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import trio

from xnatfs.common.errors import BadReply, NoRoute, NotXnat, TimedOut
from xnatfs.common.sanitize import decoded, loads, plain
from xnatfs.common.tls import tls_context
from xnatfs.http.clients import open_clients
from xnatfs.http.failures import unreachable
from xnatfs.http.login_request import PROBE_PATH, is_xnat, redirect_error, send_short
from xnatfs.http.messages import HttpRequest
from xnatfs.http.replies import FAULT_STATUSES, close, is_html, page_message, read_page, status_line, unavailable
from xnatfs.http.transport import Transport
from xnatfs.settings.config import Config, is_loopback

# The page to log in with a browser, which has the login methods of the site; no route of the API does without a login.
LOGIN_PAGE_PATH = "/app/template/Login.vm"
# Seconds for each step: a person waits for it.
PROBE_STEP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a server to a request without a login."""

    version: str  # '' where the server does not state it
    seconds: float  # until the answer
    skew: float  # seconds by which the clock of the server is ahead of this machine's; 0 if it states no time


@dataclass(frozen=True, slots=True)
class RawReply:
    """A reply as it came; the body is None where it is not JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any
    characters: int


def proxy_of(url: str) -> str:
    """Return the host and port of the proxy that requests to a URL go through, without its login; '' for none."""
    parts = urlsplit(url)
    proxies = getproxies()
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return ""
    return re.sub(r".*@|^\w+://", "", proxies.get(parts.scheme) or proxies.get("all") or "").rstrip("/")


def resolve(url: str) -> list[str]:
    """Return the addresses of the host of a URL. Raises NoRoute."""
    host = urlsplit(url).hostname or ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NoRoute(f"{host} is not known: {error.strerror or error}") from None
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def certificate_ends(config: Config) -> float:
    """Verify the certificate of a server; return when it expires, in seconds since the epoch.

    Raises NoRoute, with the reason, if it is not trusted or no connection can be made.
    """
    parts = urlsplit(config.url)
    host, port = parts.hostname or "", parts.port or 443
    try:
        with socket.create_connection((host, port), PROBE_STEP_SECONDS) as plain:
            with tls_context(config.ca_bundle, config.verify_ssl).wrap_socket(plain, server_hostname=host) as secure:
                ends: Any = (secure.getpeercert() or {}).get("notAfter", "")
                return ssl.cert_time_to_seconds(ends) if ends else float("inf")
    except ssl.SSLCertVerificationError as error:
        raise NoRoute(f"the certificate of {host} is not trusted: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise NoRoute(f"{host} port {port} offers no TLS version that xnatfs supports ({error.reason})") from None
    except OSError as error:
        raise NoRoute(f"{host} port {port} cannot be reached: {error.strerror or error}") from None


async def ask(config: Config) -> Answer:
    """Request the version of a server, without a login.

    Raises Unreachable, and NotXnat if it is another server, or an XNAT that is not set up.
    """
    async with open_clients(config) as clients:
        began, at = time.monotonic(), time.time()
        try:
            with trio.fail_after(PROBE_STEP_SECONDS):
                response, text = await send_short(clients.http, "GET", PROBE_PATH)
        except httpx.TransportError as error:
            raise unreachable(error, config.url) from None
        except trio.TooSlowError:
            raise TimedOut(f"{config.url} does not answer within {PROBE_STEP_SECONDS:g} s") from None
        seconds = time.monotonic() - began
        await _check_is_xnat(clients.http, config.url, response, text)
    stated = parsedate_tz(response.headers.get("date", ""))
    # The header has whole seconds, and was written between the request and the answer.
    skew = mktime_tz(stated) + 0.5 - (at + seconds / 2) if stated else 0.0
    return Answer(_version(text), seconds, skew)


async def login_methods(config: Config) -> list[str]:
    """Return the login methods that the server's page offers, none if there is no choice. Raises Unreachable."""
    async with open_clients(config) as clients:
        try:
            _, page = await send_short(clients.http, "GET", LOGIN_PAGE_PATH)
        except httpx.TransportError as error:
            raise unreachable(error, config.url) from None
    _, _, choice = page.partition('name="login_method"')
    options = choice.partition("</select")[0].split("<option")[1:]
    matches = (re.match(r'[^>]*value="([^"<>]{1,100})"', option) for option in options)
    found = [plain(decoded(match[1])) for match in matches if match]
    return found if len(found) > 1 else []


async def _check_is_xnat(http: httpx.AsyncClient, url: str, response: httpx.Response, text: str) -> None:
    said = page_message(text) if is_html(response) else ""
    if response.status_code in FAULT_STATUSES:
        raise unavailable(response, f"{url} answers {status_line(response)}")
    if "not yet been configured" in text:
        raise NotXnat(f"{url} is an XNAT that has not been set up: its managers do that with a browser")
    if response.is_redirect:
        raise redirect_error(url, response)
    if not await is_xnat(http, response, text):
        found = f" ({said})" if said else ""
        raise NotXnat(f"{url} is not an XNAT: it answers {status_line(response)}{found}; is the path right?")


def _version(text: str) -> str:
    try:
        cells = loads(text)
    except ValueError:
        return ""
    return str(cells.get("version", "")) if isinstance(cells, dict) else ""


async def fetch_raw(transport: Transport, path: str, params: Mapping[str, str], most: int) -> RawReply:
    """Fetch a reply as it is, whatever its status. Raises LoginRequired, Unreachable, and BadReply if it is too long.

    Args:
        transport: The server and the session.
        path: The path, relative to the server's URL.
        params: The query.
        most: The longest body to read, in bytes.
    """
    response = await transport.send(HttpRequest("GET", path, "any", params))
    try:
        if is_html(response):
            return RawReply(response.status_code, response.headers, None, len(await read_page(response)))
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > most:
                raise BadReply(f"{path} is longer than {most} bytes")
    finally:
        await close(response)
    text = body.decode("utf-8", "replace")
    try:
        document: Sequence[Any] | Mapping[str, Any] | None = loads(text)
    except ValueError:
        document = None
    return RawReply(response.status_code, response.headers, document, len(text))
