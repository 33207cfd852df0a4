"""Send idempotent requests, with retries and re-authentication.

This module has what any request needs: the session, the retries, the meaning of a status, the limit of requests in
flight, and the trusted certificates. `rest/client.py` above knows what to request. httpx's exceptions become those of
xnatfs here (by `http/failures.py`) and nowhere else.
"""

import logging
import math
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx
import trio

from xnatfs import __version__
from xnatfs.common.clock import Sleeps
from xnatfs.common.errors import (
    BadReply,
    ConfigError,
    Denied,
    LoginRequired,
    NotFound,
    TimedOut,
    Unavailable,
    Uncertain,
    Unreachable,
)
from xnatfs.common.sanitize import loads
from xnatfs.common.tasks import background
from xnatfs.common.tls import tls_context
from xnatfs.download_worker.pool import FileBody, ProcessLost, open_pool, tcp_user_timeout
from xnatfs.http import failures as network
from xnatfs.http.circuit_breaker import Breaker
from xnatfs.http.login import Expects, Login, asks_to_wait, check_is_data, page_message, status_line
from xnatfs.http.retry import SLOWEST, Patience, Pauses
from xnatfs.settings.config import Config, is_loopback
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import SessionStore

log = logging.getLogger(__name__)
T = TypeVar("T")

# A firewalled host does not answer at all; ten seconds distinguish it from a slow one.
CONNECT_TIMEOUT = 10.0
# An XNAT gives each request a thread and often a database connection; sites recommend 4 to 8 parallel requests.
DOWNLOADS = 8
# Two more than the downloads, so that a listing never waits behind eight of them.
CONNECTIONS = DOWNLOADS + 2
# In seconds. XNAT answers when archiving is done, or after its default sessionArchiveTimeoutInterval of 600 s.
CHANGE_TIMEOUT = 660.0
# So many sessions may be lost during one request: a server that restarts twice loses two. The limit ends the logins to
# a server that forgets each session at once, as behind a balancer that sends each request to another server.
LOSSES = 3
# So often a list or a document that breaks off is requested: one that does so each time is unavailable.
TRIES = 3
# Only so many bytes of an error page are read, to find the server's own message.
ERROR_BODY = 64 * 1024
# In bytes, the largest body that is read whole before it is parsed: an item's document, which for the largest sessions
# has some MiB. As objects it takes up to 30 times as much.
LARGEST_DOCUMENT = 16 * 2**20
# Seconds that a request for a big file may take beside the server's time: a process starts in 80 ms, on a busy machine
# in seconds; and a process that hangs has to be detected.
PROCESS = 5.0
# The smallest resource of an XNAT, and open to every user.
SMALLEST = "/xapi/siteConfig/buildInfo"

# httpcore reads 64 KiB from a socket at a time, and each read goes through five layers: a gigabyte took three times as
# long (measured on loopback: 0.17 against 0.5 GB/s).
httpcore.AsyncHTTP11Connection.READ_NUM_BYTES = 512 * 1024

TRY_LATER = frozenset({429, 502, 503, 504})


# The body of a request: bytes, or a function that begins to yield its pieces, called each time the request is sent.
Body = bytes | Callable[[], AsyncGenerator[bytes]]


@dataclass(frozen=True, slots=True)
class Question:
    """A request that is safe to repeat. With `big`, a download process writes the body to the file, see `written`."""

    method: str
    path: str
    expects: Expects
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    big: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer to a change. `text` is all of a short body, or the beginning of a long one."""

    status: int
    location: str
    text: str

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_page(self) -> bool:
        """Return whether the body is a web page: XNAT answers a successful change with nothing, an address, or JSON."""
        return self.text.lstrip("\ufeff \r\n\t").startswith("<")

    def said(self) -> str:
        """Return the server's own message, to be shown to the user."""
        return page_message(self.text) or f"status {self.status}"


@asynccontextmanager
async def open_transport(
    config: Config,
    credentials: Credentials | None,
    wire: httpx.AsyncBaseTransport | None = None,
    sessions: SessionStore | None = None,
) -> AsyncIterator["Transport"]:
    """Open the transport to one server, without sending a request yet.

    Args:
        config: The server's URL, timeouts and TLS settings.
        credentials: The login; None if only a session in `sessions` can be used.
        wire: Replaces the network in tests.
        sessions: Shares the session with other programs and keeps it at the end; without it, the transport ends the
            session on exit.

    Raises:
        ConfigError: The environment names a proxy that cannot be used.
    """
    url = urlsplit(config.url)
    loopback = is_loopback(url.hostname or "")
    proxied = not loopback and getproxies().keys() & {url.scheme, "all"} and not proxy_bypass(url.hostname or "")
    # Reading the certificate authorities took 40 ms of a start: skip it if no certificate is verified.
    trust = wire is None and bool(proxied or config.ca_bundle or url.scheme == "https")
    tls: Any = tls_context(config.ca_bundle, config.verify_ssl) if trust else False

    def client(connections: int, kept: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=kept)
        options = [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, tcp_user_timeout(config.timeout))]
        direct = None  # httpx uses proxies only if it makes its own transport
        if not proxied:
            direct = httpx.AsyncHTTPTransport(verify=tls, limits=limits, socket_options=options)
        return httpx.AsyncClient(
            event_hooks={"response": [network.refuse_proxy_login]},
            base_url=config.url,
            headers={"User-Agent": f"xnatfs/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(config.timeout, connect=min(CONNECT_TIMEOUT, config.timeout), pool=None),
            limits=limits,
            verify=tls,
            trust_env=not loopback,
            follow_redirects=False,
            cookies=_no_cookies(),
            transport=wire or direct,
        )

    async with (
        _big_files(config, wire is None and not proxied) as big,
        _proxy_named(client, CONNECTIONS, CONNECTIONS) as http,
        # A new connection each time: the existing ones may be what no longer works.
        client(2, 0) as beside,
        background() as nursery,
    ):
        transport = Transport(http, big, beside, Login(http, credentials, sessions), config, nursery)
        try:
            yield transport
        finally:
            with trio.CancelScope(shield=True):
                await transport.login.close()


def _proxy_named(client: Callable[[int, int], httpx.AsyncClient], connections: int, kept: int) -> httpx.AsyncClient:
    """Make a client. Raises ConfigError if the environment names a proxy that cannot be used."""
    try:
        return client(connections, kept)
    except (ValueError, httpx.InvalidURL, ImportError):  # the message of which may contain a part of a password
        form = "http://PROXY:PORT or http://USER:PASSWORD@PROXY:PORT, with a % code for each special character"
        raise ConfigError(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: it must be {form}; no SOCKS") from None


@asynccontextmanager
async def _big_files(config: Config, possible: bool) -> AsyncIterator[httpx.AsyncClient | None]:
    """Open the client that requests big files; None if httpx must do it: through a proxy, or to a test's server."""
    if not possible:
        yield None
        return
    async with open_pool(config.ca_bundle, config.verify_ssl) as workers:
        async with httpx.AsyncClient(
            event_hooks={"response": [network.refuse_proxy_login]},
            transport=workers,
            cookies=_no_cookies(),
            follow_redirects=False,
        ) as client:
            yield client


class Transport:
    """A transport to one server, as one account. Every method raises only exceptions of xnatfs.

    Args:
        http: The client for most requests.
        big: The client whose replies a download process receives; None to use `http`.
        beside: A client without idle connections, which probes an unreachable server.
        login: The session.
        config: The timeout and the retry budget, in seconds.
        nursery: Runs the tasks of the circuit breaker.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        big: httpx.AsyncClient | None,
        beside: httpx.AsyncClient,
        login: Login,
        config: Config,
        nursery: trio.Nursery,
    ) -> None:
        self._http = http
        self._big = big or http
        self._beside = beside
        self.login = login
        self.timeout = config.timeout  # seconds until the server's next answer or part of a body
        self.patience = config.patience or config.timeout  # the retry budget, in seconds
        self.breaker = Breaker(self._ask, self.patience, nursery)
        self.requests = 0
        self._sleeps = Sleeps()

    @property
    def url(self) -> str:
        return str(self._http.base_url).rstrip("/")

    async def log_in(self) -> None:
        """Log in now, with a single attempt, so that a mount fails at once. A session that was found is verified."""
        async with self._in_time("to a login"), self.login.turn():
            token = await self.login.token()
            if self.login.doubtful() and not await self.login.alive(token):
                await self.login.token()

    async def session_lives(self, path: str) -> bool:
        """Ask the server whether the session is still valid, if the reply to `path` is suspiciously empty."""
        lives = False
        async with self._in_time(f"to who asks for {path}"), self.login.turn():
            lives = await self.login.alive(await self.login.token())
        return lives

    @asynccontextmanager
    async def _in_time(self, what: str) -> AsyncIterator[None]:
        """Limit several requests about the session to the timeout of one, and report a failure to the breaker."""
        began = trio.current_time()
        try:
            with trio.fail_after(self.timeout):
                yield
        except httpx.TransportError as error:
            self._doubted(self._unreachable(error), began, error)
        except trio.TooSlowError as error:
            self._doubted(TimedOut(f"{self.url} does not answer {what} in time"), began, error)
        except Unreachable as error:
            self._doubted(error, began, error.__cause__)

    def give_up(self, error: Unreachable) -> NoReturn:
        """Report to the breaker the error that a body has ended with for good, and raise it."""
        self._doubted(error, trio.current_time() - self.timeout, error.__cause__)

    def _doubted(self, failure: Unreachable, since: float, cause: BaseException | None) -> NoReturn:
        if isinstance(failure, Unavailable) and failure.asks_to_wait:
            self.breaker.tell(failure)
        else:
            self.breaker.doubt(failure, since)
        raise failure from cause

    async def text(self, path: str) -> str:
        """Fetch a short plain-text reply."""
        return (await self._body(path, {}, TRIES)).decode("utf-8", "replace").strip()

    async def _body(self, path: str, params: Mapping[str, str], tries: int) -> bytes:
        async def joined(chunks: AsyncGenerator[bytes]) -> bytes:
            return b"".join([chunk async for chunk in chunks])

        return await self.whole(path, params, joined, LARGEST_DOCUMENT, tries)

    async def json(self, path: str, params: Mapping[str, str], tries: int = TRIES) -> Any:
        """Fetch and parse a JSON document.

        Args:
            path: The path, relative to the server's URL.
            params: The query.
            tries: How often to request it if the body breaks off; 1 if each request has an effect on the server.
        """
        body = await self._body(path, params, tries)
        try:
            return loads(body)
        except ValueError:
            raise BadReply(f"{self.url}{path} was asked for as JSON and came as something else") from None

    async def whole(
        self,
        path: str,
        params: Mapping[str, str],
        made: Callable[[AsyncGenerator[bytes]], Awaitable[T]],
        most: float = math.inf,
        tries: int = TRIES,
    ) -> T:
        """Fetch a body that is no file, and return what `made` makes of it. A body that breaks off is requested again.

        The retry budget is `patience`; received bytes do not extend it, since all of them come again.

        Args:
            path: The path, relative to the server's URL.
            params: The query.
            made: Consumes the body; called anew for each attempt.
            most: The largest body to accept, in bytes.
            tries: The number of attempts.

        Raises:
            BadReply: The body is longer than `most`.
            Unreachable: The body broke off at each attempt, or the budget is spent.
        """
        pauses = Pauses(trio.current_time() + self.patience)
        failure: Unreachable | None = None
        while True:
            try:
                response = await self.exchange(Question("GET", path, "json", params), pauses.left())
            except TimedOut:
                if failure is not None:  # the server has answered, but the time was too short for another answer
                    raise failure from None
                raise
            try:
                await self.check(path, response, "json")
                async with aclosing(self.raw(path, response, most)) as chunks:
                    return await made(chunks)
            except Unreachable as error:
                failure = error.with_traceback(None)  # the traceback refers to everything made so far
            finally:
                with trio.CancelScope(shield=True):
                    await response.aclose()
            tries -= 1
            if not tries or not await pauses.again():
                self.give_up(failure)

    @asynccontextmanager
    async def reply(
        self, method: str, path: str, params: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Request a file or an archive, and yield the checked reply (status 200), its body not yet read."""
        response = await self.exchange(Question(method, path, "file", params or {}))
        try:
            await self.check(path, response, "file")
            yield response
        except Unreachable as error:  # the body has ended, and is not resumed
            self.give_up(error)
        finally:
            with trio.CancelScope(shield=True):
                await response.aclose()

    async def exchange(self, question: Question, within: float = math.inf) -> httpx.Response:
        """Send a request until the server has answered it in a valid session.

        If the session was lost, one login renews it for all tasks, and the request is sent again. It is also sent
        again after network errors, after 429, 502, 503 and 504, and once after 500, for at most `patience` seconds, or
        `within` if that is less. If the answer has not begun by then, this fails; it fails at once if the server is
        known to be unreachable.
        """
        await self.breaker.check()
        began = trio.current_time()
        deadline = began + min(self.patience, within)
        # A slow answer may take longer (the timeout) than an unreachable server has to return (the retry budget).
        last = deadline + self.timeout - self.patience + (PROCESS if question.big else 0.0)
        try:
            with trio.fail_at(last):
                return await self._answered(question, deadline)
        except trio.TooSlowError as error:
            text = f"{self.url} does not answer to {question.path} in time"
            self._doubted(TimedOut(text), began, error)
        except Unreachable as error:
            self._doubted(error, began, error.__cause__)

    async def _wake(self) -> None:
        """Close idle connections after the machine has slept: their other end is gone, without notice."""
        if not self._sleeps.is_over():
            return
        for transport in {self._http._transport, *self._http._mounts.values()}:
            pool = getattr(transport, "_pool", None)  # a test's transport has none
            for connection in pool.connections if isinstance(pool, httpcore.AsyncConnectionPool) else ():
                if connection.is_idle():
                    await connection.aclose()

    async def _answered(self, question: Question, deadline: float) -> httpx.Response:
        await self._wake()
        pauses = Pauses(deadline)
        failed_once, logins, losses = False, None, 0
        client = self._big if question.big else self._http
        while True:
            asked_to_wait = 0.0
            try:
                async with self.login.turn():
                    token = await self.login.token()
                    logins = self.login.logins if logins is None else logins
                    request = self._http.build_request(
                        question.method,
                        question.path,
                        params=question.params or None,
                        headers={**question.headers, "Cookie": f"JSESSIONID={token}"},
                    )
                    self.requests += 1
                    response = await client.send(request, stream=True)
                    if response.status_code not in TRY_LATER and (response.status_code != 500 or failed_once):
                        self.breaker.heard()
                        self.login.heard(response)
                        if losses == LOSSES or not await self._lost(token, logins, response, question.expects):
                            return response
                        losses += 1
                        continue
                failed_once = failed_once or response.status_code == 500
                asked_to_wait = _retry_after(response)
                failure: Unreachable = self._unavailable(question.path, response)
                await response.aclose()
            except ProcessLost as error:
                log.warning("no download process (%s): big files are fetched without one", error)
                client = self._http
                continue
            except httpx.TransportError as error:
                failure = self._unreachable(error)
                failure.__cause__ = error
                if not network.may_pass(error):
                    raise failure from error
            except Unreachable as error:
                failure = error
            if not await pauses.again(asked_to_wait):
                raise failure

    async def _ask(self) -> None:
        """Probe the server with a small request, in the current session if there is one, so that it opens no other."""
        token = self.login.current
        headers = {"Cookie": f"JSESSIONID={token}"} if token else {}
        self.requests += 1
        try:
            async with self._beside.stream("GET", SMALLEST, headers=headers) as response:
                if response.status_code in TRY_LATER and not asks_to_wait(response):
                    raise self._unavailable(SMALLEST, response)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    async def once(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], body: Body
    ) -> httpx.Response:
        """Send a request that may change something; again only if the session was lost, so that it had no effect.

        Args:
            method: The HTTP method.
            path: The path, relative to the server's URL.
            params: The query.
            headers: Further headers.
            body: The body, or a function that begins to yield its pieces, called each time the request is sent.

        Raises:
            Uncertain: No answer came within CHANGE_TIMEOUT.
            Unreachable: No connection came about.
        """
        patience = httpx.Timeout(**{**self._http.timeout.as_dict(), "read": CHANGE_TIMEOUT})
        logins, losses = None, 0
        while True:
            async with self.login.turn():
                try:
                    token = await self.login.token()
                except httpx.TransportError as error:
                    raise self._unreachable(error) from error
                logins = self.login.logins if logins is None else logins
                content = body() if callable(body) else body or None
                request = self._http.build_request(
                    method,
                    path,
                    params=params or None,
                    headers={**headers, "Cookie": f"JSESSIONID={token}"},
                    content=content,
                    timeout=patience,
                )
                self.requests += 1
                try:
                    response = await self._http.send(request, stream=True)
                except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
                    raise self._unreachable(error) from error
                except httpx.TransportError as error:
                    raise Uncertain(
                        f"{self.url} {network.reason(error)}; the request may have been carried out"
                    ) from error
                finally:
                    if isinstance(content, AsyncGenerator):  # it may be left half-way, with a file open
                        with trio.CancelScope(shield=True):
                            await content.aclose()
                self.login.heard(response)
                if losses == LOSSES or not await self._unread(token, logins, response):
                    return response
                losses += 1

    async def change(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str], body: Body
    ) -> Answer:
        """Make a change, and read the answer, whatever its status.

        The change is sent again only if it was not carried out: no connection came about, the session was lost, or
        the server reports that it is busy (429, 503). The arguments are those of `once`.

        Raises:
            LoginRequired: There is no session and no way to log in.
            Unreachable: The server did not receive the change.
            Uncertain: The change may have been carried out, also if a login page or a proxy's page came with status
                200 in place of the answer.
        """
        pauses = Pauses(trio.current_time() + self.timeout)
        while True:
            asked_to_wait = 0.0
            try:
                response = await self.once(method, path, params, headers, body)
                try:
                    text = (await _beginning(response)).decode("utf-8", "replace")
                finally:
                    with trio.CancelScope(shield=True):
                        await response.aclose()
                answer = Answer(response.status_code, response.headers.get("location", ""), text.strip())
                if answer.ok and answer.is_page:
                    page = f"{self.url}{path} was answered with a web page ({answer.said()})"
                    raise Uncertain(f"{page}; the request may have been carried out", status=answer.status)
                if answer.status not in (429, 503):
                    return answer
                asked_to_wait = _retry_after(response)
                failure: Unreachable = self._unavailable(path, response)
            except Uncertain:
                raise
            except Unreachable as error:
                if isinstance(error.__cause__, httpx.TransportError) and not network.may_pass(error.__cause__):
                    raise
                failure = error
            if not await pauses.again(asked_to_wait):
                raise failure

    async def _unread(self, token: str, since: int, response: httpx.Response) -> bool:
        """Return whether a change met a lost session, and so had no effect.

        Closes the reply in that case, and if the session cannot be verified. Only a 401 proves the loss of a session
        that was made for this request, since it was valid a moment ago.
        """
        refused = response.status_code == 401
        if self.login.made(token, since) and not refused:
            return False
        try:
            return await self._lost(token, since, response, "any")
        except (httpx.TransportError, Unreachable) as error:
            failure = self._unreachable(error) if isinstance(error, httpx.TransportError) else error
            if refused:
                raise failure from error
            raise Uncertain(f"{failure}; the request may have been carried out") from error

    async def _lost(self, token: str, since: int, response: httpx.Response, expects: Expects) -> bool:
        """Return whether a request met a lost session; `since` is the number of logins when the request began.

        Closes the reply in that case, and if the session cannot be verified.
        """
        lost = True
        try:
            lost = await self.login.lost(token, response, expects, young=self.login.made(token, since))
        finally:
            if lost:
                with trio.CancelScope(shield=True):
                    await response.aclose()
        return lost

    async def check(
        self, path: str, response: httpx.Response, expects: Expects, allow: tuple[int, ...] = (200,)
    ) -> None:
        """Raise the exception that the status of a reply means, unless the status is allowed.

        Args:
            path: The path that was requested.
            response: The reply, its body not yet read.
            expects: The kind of body expected: a web page in its place raises BadReply.
            allow: The statuses to accept.
        """
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
            case _ if response.has_redirect_location:
                raise BadReply(f"{where} redirects, which xnatfs does not follow", **facts)
        because = "" if said in status_line(response) else because
        raise BadReply(f"{where} answers {status_line(response)}{because}", **facts)

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return network.kind(error)(f"{self.url} {network.reason(error)}")

    def _unavailable(self, path: str, response: httpx.Response) -> Unavailable:
        status = response.status_code
        text = f"{self.url} answers {status} to {path}"
        return Unavailable(text, status=status, url=f"{self.url}{path}", asks_to_wait=asks_to_wait(response))

    async def raw(
        self, path: str, response: httpx.Response, most: float = math.inf, patience: Patience | None = None
    ) -> AsyncGenerator[bytes]:
        """Yield the body in pieces.

        Args:
            path: The path that was requested.
            response: The reply.
            most: The largest body to accept, in bytes.
            patience: The timeout of the body; a new one by default.

        Raises:
            Unreachable: The body breaks off.
            TimedOut: The body arrives too slowly.
            BadReply: The body is longer than `most`.
        """
        patience = patience or Patience(self.timeout)
        with self._breaking_off(path):
            async with aclosing(_generator(response.aiter_raw())) as body:
                while True:
                    with patience.waiting():
                        chunk = await anext(body, b"")
                    if not chunk:
                        return
                    most -= len(chunk)
                    if most < 0:
                        raise BadReply(f"{self.url}{path} does not end: too much came for what it is")
                    patience.came(len(chunk))
                    self.breaker.heard()
                    yield chunk

    async def written(
        self, path: str, body: FileBody, descriptor: int | None, offset: int, length: int, patience: Patience
    ) -> AsyncGenerator[int]:
        """Write the next `length` bytes of a body to a file, or skip them; yield the size of each part as it arrives.

        Args:
            path: The path that was requested.
            body: The body, which a download process reads.
            descriptor: The file; None skips the bytes.
            offset: Where in the file to write, in bytes.
            length: How many bytes to write or skip.
            patience: The timeout of the body.

        Raises:
            OSError: The file cannot be written; else as `raw`.
        """
        pieces = body.write(descriptor, offset, length)
        with self._breaking_off(path):
            async with aclosing(pieces):
                while True:
                    with patience.waiting():
                        count = await anext(pieces, 0)
                    if not count:
                        return
                    patience.came(count)
                    self.breaker.heard()
                    yield count

    @contextmanager
    def _breaking_off(self, path: str) -> Iterator[None]:
        """Map the errors of a body that has begun to xnatfs exceptions."""
        try:
            yield
        except httpx.TransportError as error:
            raise network.kind(error)(f"{self.url}{path} broke off: {network.reason(error)}") from error
        except trio.TooSlowError as error:
            slow = f"less than {SLOWEST} bytes a second, for {self.timeout:g} s"
            raise TimedOut(f"{self.url}{path} does not get on: {slow}") from error


def _retry_after(response: httpx.Response) -> float:
    """Return Retry-After in seconds; 0 for the form with a date, which proxies do not use for faults."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0


async def _error_message(response: httpx.Response) -> str:
    return page_message((await _beginning(response)).decode("utf-8", "replace"))


async def _beginning(response: httpx.Response) -> bytes:
    """Read as much of a body as an error page or a list of addresses needs."""
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


def _no_cookies() -> CookieJar:
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def _generator(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Cast httpx's body iterator to what it is: a generator, to be closed if it is left half-way."""
    return cast(AsyncGenerator[bytes], chunks)
