"""Transport: requests that are safe to repeat, sent until a server that knows us has answered.

Below `client.py`, which knows what to ask. Here is all that holds for any request: the session, the retries, what a
status means, how much may be in flight, whom to trust. httpx's errors become ours here and nowhere else.
"""

import logging
import os
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx
import trio

from xnatfs import __version__
from xnatfs.auth import Expects, Login, check_is_data, page_message
from xnatfs.config import Config, is_loopback
from xnatfs.credentials import Credentials
from xnatfs.errors import BadReply, Denied, LoginRequired, NotFound, Uncertain, Unreachable, XnatError
from xnatfs.sessions import SessionStore
from xnatfs.tls import tls_context
from xnatfs.untrusted import loads
from xnatfs.worker.pool import ProcessLost, Writable, open_workers

log = logging.getLogger(__name__)

# A firewalled host answers nothing at all; ten seconds tell that from a slow one.
CONNECT_TIMEOUT = 10.0
# An XNAT gives each request a thread and often a database connection; 4 to 8 at once is what sites ask clients for.
DOWNLOADS = 8
# Two more than that, so that a listing never waits behind eight downloads.
CONNECTIONS = DOWNLOADS + 2
# Archiving answers when it is done, or after the 600 s of XNAT's default sessionArchiveTimeoutInterval.
CHANGE_TIMEOUT = 660.0
# Pauses between tries, in seconds: short first, because most faults of a proxy are over at once.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
# What is read whole before it is looked at: documents of an item, of which the largest sessions have some MiB. As
# objects they take up to 30 times as much.
LONGEST_DOCUMENT = 16 * 2**20
# Of an error page only this much is read, to find the server's own words.
ERROR_BODY = 64 * 1024

# httpcore reads 64 KiB from a socket at a time, and each read goes through five layers: a gigabyte took three times as
# long (measured on loopback: 0.17 against 0.5 GB/s).
httpcore.AsyncHTTP11Connection.READ_NUM_BYTES = 512 * 1024

TRY_LATER = frozenset({429, 502, 503, 504})


# What is sent: bytes, or how to begin with pieces of them, once for each time that it is sent.
Body = bytes | Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says to a change. `text` is all of a short body, the beginning of a long one."""

    status: int
    location: str
    text: str

    @property
    def ok(self) -> bool:
        return self.status in (200, 201)

    def said(self) -> str:
        """The server's own words, for people."""
        return page_message(self.text) or f"status {self.status}"


@asynccontextmanager
async def open_transport(
    config: Config,
    credentials: Credentials | None,
    wire: httpx.AsyncBaseTransport | None = None,
    sessions: SessionStore | None = None,
) -> AsyncIterator["Transport"]:
    """The way to one server; its session ends with it, or is kept in `sessions`. At first nothing is sent."""
    url = urlsplit(config.url)
    loopback = is_loopback(url.hostname or "")
    proxied = not loopback and getproxies().keys() & {url.scheme, "all"} and not proxy_bypass(url.hostname or "")
    # Reading the authorities took 40 ms of a start: not where no certificate is looked at.
    trust = wire is None and bool(proxied or config.ca_bundle or url.scheme == "https")
    async with (
        _big_files(config, wire is None and not proxied) as big,
        httpx.AsyncClient(
            base_url=config.url,
            headers={"User-Agent": f"xnatfs/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(config.timeout, connect=min(CONNECT_TIMEOUT, config.timeout), pool=None),
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            verify=tls_context(config.ca_bundle, config.verify_ssl) if trust else False,
            trust_env=not loopback,
            follow_redirects=False,
            cookies=_no_cookies(),
            transport=wire,
        ) as http,
    ):
        transport = Transport(http, big, Login(http, credentials, sessions), config.patience or config.timeout)
        try:
            yield transport
        finally:
            with trio.CancelScope(shield=True):
                await transport.login.close()


@asynccontextmanager
async def _big_files(config: Config, possible: bool) -> AsyncIterator[httpx.AsyncClient | None]:
    """What sends the requests for big files; None where httpx itself is needed: to a proxy, to a server of a test."""
    if not possible:
        yield None
        return
    async with open_workers(config.ca_bundle, config.verify_ssl) as workers:
        async with httpx.AsyncClient(transport=workers, cookies=_no_cookies(), follow_redirects=False) as client:
            yield client


class Transport:
    """The way to one server, as one account. Every method raises our errors only."""

    def __init__(self, http: httpx.AsyncClient, big: httpx.AsyncClient | None, login: Login, timeout: float) -> None:
        self._http = http
        self._big = big or http
        self.login = login
        self.timeout = timeout
        self._away = False  # whether the last request failed for want of a server
        self.requests = 0

    @property
    def url(self) -> str:
        return str(self._http.base_url).rstrip("/")

    async def log_in(self) -> None:
        """Log in now, with a single try: whoever starts a mount wants to know at once. A session found is looked at."""
        try:
            token = await self.login.token()
            if self.login.doubtful() and not await self.login.alive(token):
                await self.login.token()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    async def session_lives(self, path: str) -> bool:
        """Whether the server still knows our session; asked where an answer is suspiciously empty."""
        try:
            return await self.login.alive(await self.login.token())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    async def text(self, path: str) -> str:
        """A short answer in plain text."""
        return (await self._body(path, {}, "json")).decode("utf-8", "replace").strip()

    async def _body(self, path: str, params: Mapping[str, str], expects: Expects) -> bytes:
        async with self.reply("GET", path, params, expects=expects) as response:
            body = bytearray()
            async with aclosing(self.raw(path, response)) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > LONGEST_DOCUMENT:
                        raise BadReply(f"{self.url}{path} came with more than {LONGEST_DOCUMENT} bytes")
            return bytes(body)

    async def json(self, path: str, params: Mapping[str, str]) -> Any:
        body = await self._body(path, params, "json")
        try:
            return loads(body)
        except ValueError:
            raise BadReply(f"{self.url}{path} was asked for as JSON and came as something else") from None

    @asynccontextmanager
    async def reply(
        self, method: str, path: str, params: Mapping[str, str] | None = None, *, expects: Expects
    ) -> AsyncIterator[httpx.Response]:
        """A checked reply with status 200, its body not yet read."""
        response = await self.exchange(method, path, params or {}, {}, expects)
        try:
            await self.check(path, response, expects)
            yield response
        finally:
            with trio.CancelScope(shield=True):
                await response.aclose()

    async def exchange(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        expects: Expects,
        big: bool = False,
    ) -> httpx.Response:
        """Send a request that is safe to repeat until it is answered, by a server that knows us.

        `big`: the body is better written by a process beside this one, see `written`.

        Goes on with another session where this one was lost, and logs in once for that. Repeats after network
        errors, after 429, 502, 503 and 504, and once after 500, as long as `timeout` lasts.
        """
        deadline, pause = trio.current_time() + self.timeout, FIRST_PAUSE
        failed_once, logins = False, None
        while True:
            wait = pause * random.uniform(0.75, 1.25)
            try:
                token = await self.login.token()
                logins = self.login.logins if logins is None else logins
                request = self._http.build_request(
                    method, path, params=params or None, headers={**headers, "Cookie": f"JSESSIONID={token}"}
                )
                self.requests += 1
                response = await (self._big if big else self._http).send(request, stream=True)
                if response.status_code not in TRY_LATER and (response.status_code != 500 or failed_once):
                    self._present()
                    self.login.heard(response)
                    if self.login.made(token, logins) or not await self._lost(token, response, expects):
                        return response
                    continue
                failed_once = failed_once or response.status_code == 500
                wait = max(wait, _retry_after(response) or 0)
                failure: XnatError = Unreachable(f"{self.url} answers {response.status_code} to {path}")
                await response.aclose()
            except ProcessLost as error:
                log.warning("no download process (%s): big files are fetched without one", error)
                big = False
                continue
            except httpx.TransportError as error:
                failure = self._unreachable(error)
                if not _may_pass(error):
                    raise failure from error
            except Unreachable as error:
                failure = error
            if trio.current_time() + wait >= deadline:
                self._absent(failure)
                raise failure
            await trio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def once(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], body: Body
    ) -> httpx.Response:
        """Send a request that may change something; again only where the first met no session, so did nothing.

        Raises Uncertain where no answer comes within CHANGE_TIMEOUT.
        """
        patience = httpx.Timeout(**{**self._http.timeout.as_dict(), "read": CHANGE_TIMEOUT})
        logins = None
        while True:
            token = await self.login.token()
            logins = self.login.logins if logins is None else logins
            request = self._http.build_request(
                method,
                path,
                params=params or None,
                headers={**headers, "Cookie": f"JSESSIONID={token}"},
                content=body() if callable(body) else body or None,
                timeout=patience,
            )
            self.requests += 1
            try:
                response = await self._http.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
                raise self._unreachable(error) from error
            except httpx.TransportError as error:
                raise Uncertain(f"{self.url} {_reason(error)}; the request may have been carried out") from error
            self.login.heard(response)
            if self.login.made(token, logins) or not await self._lost(token, response, "any"):
                return response

    async def change(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], body: Body
    ) -> "Answer":
        """Make a change, and read what is said to it, whatever the status.

        Sent again only where it was not carried out: no connection came about, the session was lost, or the server
        is busy and says so (429, 503). Raises LoginRequired, Unreachable, Uncertain.
        """
        deadline, pause = trio.current_time() + self.timeout, FIRST_PAUSE
        while True:
            wait = pause * random.uniform(0.75, 1.25)
            try:
                response = await self.once(method, path, params, headers, body)
                try:
                    text = (await _beginning(response)).decode("utf-8", "replace")
                finally:
                    with trio.CancelScope(shield=True):
                        await response.aclose()
                answer = Answer(response.status_code, response.headers.get("location", ""), text.strip())
                if answer.status not in (429, 503):
                    return answer
                wait = max(wait, _retry_after(response) or 0)
                failure: Unreachable = Unreachable(f"{self.url} answers {answer.status} to {path}")
            except Uncertain:
                raise
            except Unreachable as error:
                if isinstance(error.__cause__, httpx.TransportError) and not _may_pass(error.__cause__):
                    raise
                failure = error
            if trio.current_time() + wait >= deadline:
                raise failure
            await trio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _lost(self, token: str, response: httpx.Response, expects: Expects) -> bool:
        """Whether the session was; closes the reply then, and when asking fails."""
        lost = True
        try:
            lost = await self.login.lost(token, response, expects)
        finally:
            if lost:
                with trio.CancelScope(shield=True):
                    await response.aclose()
        return lost

    async def check(
        self, path: str, response: httpx.Response, expects: Expects, allow: tuple[int, ...] = (200,)
    ) -> None:
        """Raise what a reply other than the wanted one means."""
        status = response.status_code
        if status in allow:
            check_is_data(response, expects)
            return
        where = f"{self.url}{path}"
        said = await _error_message(response)
        because = f" ({said})" if said else ""
        facts: Any = {"status": status, "url": where}
        match status:
            case 401:
                text = f"{where} was refused to {self.login.username}, right after logging in{because}"
                raise LoginRequired(text, **facts)
            case 403:
                raise Denied(f"{where} is not open to {self.login.username}{because}", **facts)
            case 404 | 410:
                raise NotFound(f"{where} does not exist, or not for {self.login.username}{because}", **facts)
            case _ if response.is_redirect:
                raise BadReply(f"{where} redirects, which xnatfs does not follow", **facts)
        raise BadReply(f"{where} answers {status} {response.reason_phrase}{because}", **facts)

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"{self.url} {_reason(error)}")

    def _absent(self, failure: XnatError) -> None:
        if not self._away:
            log.warning("the server is away: %s", failure)
        self._away = True

    def _present(self) -> None:
        if self._away:
            log.warning("the server %s is back", self.url)
        self._away = False

    async def raw(self, path: str, response: httpx.Response) -> AsyncGenerator[bytes]:
        """The body, piece by piece; raises Unreachable when it breaks off."""
        try:
            async with aclosing(_generator(response.aiter_raw())) as body:
                async for chunk in body:
                    yield chunk
        except httpx.TransportError as error:
            raise Unreachable(f"{self.url}{path} broke off: {_reason(error)}") from error

    async def written(
        self, path: str, body: Writable, descriptor: int | None, offset: int, length: int
    ) -> AsyncGenerator[int]:
        """The next `length` bytes of a body go into a file, or nowhere; how many more are there, as they come.

        Raises Unreachable when it breaks off, and the OSError of the file.
        """
        pieces = body.write(descriptor, offset, length) if descriptor is not None else body.skip(length)
        try:
            async with aclosing(pieces):
                async for count in pieces:
                    yield count
        except httpx.TransportError as error:
            raise Unreachable(f"{self.url}{path} broke off: {_reason(error)}") from error


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds the server asks us to stay away. The form with a date is not used by proxies for faults: ignored."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None


async def _error_message(response: httpx.Response) -> str:
    return page_message((await _beginning(response)).decode("utf-8", "replace"))


async def _beginning(response: httpx.Response) -> bytes:
    """As much of a body as an error page or a list of addresses needs."""
    body = b""
    try:
        async with aclosing(_generator(response.aiter_raw())) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > ERROR_BODY:
                    break
    except httpx.HTTPError as error:
        log.debug("the answer of %s broke off: %s", response.url.path, error)
    return body


def _reason(error: httpx.TransportError) -> str:
    text = str(error) or type(error).__name__
    causes = list(_causes(error))
    untrusted = next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted or "CERTIFICATE_VERIFY_FAILED" in text:
        why = getattr(untrusted, "verify_message", text)
        return f"is not trusted: its TLS certificate cannot be verified ({why}); --ca-bundle names your authority"
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    if tls:
        return f"speaks no TLS that we understand ({tls.reason or tls}): is it an http:// address, or another port?"
    if isinstance(error, httpx.ConnectError):
        system = (cause for cause in causes if isinstance(cause, OSError) and cause.errno)
        return f"cannot be reached: {next((_said(cause) for cause in system), text)}"
    if isinstance(error, httpx.TimeoutException):
        return f"does not answer ({type(error).__name__})"
    return f"failed: {text}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what is behind it, to the root."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        yield error
        error = error.__cause__ or error.__context__


def _said(error: OSError) -> str:
    """What the system says: 'Connection refused', 'Name or service not known'."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


def _may_pass(error: httpx.TransportError) -> bool:
    """Whether a second try may succeed: not where TLS, a proxy or the URL itself is at fault."""
    if isinstance(error, httpx.ProxyError | httpx.UnsupportedProtocol):
        return False
    return not any(isinstance(cause, ssl.SSLError) for cause in _causes(error))


def _no_cookies() -> httpx.Cookies:
    return httpx.Cookies(CookieJar(DefaultCookiePolicy(allowed_domains=[])))


def _generator(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """httpx's body iterator as what it is: a generator, to be closed when it is left half-way."""
    return cast(AsyncGenerator[bytes], chunks)
