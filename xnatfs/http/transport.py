"""Send requests to one server, in a session, with retries.

A request passes through these layers; each calls the next one:

    send                    checks the circuit breaker, and sets one deadline for the layers below
    _send_with_retries      repeats the request after a fault that may pass
    send_in_session         repeats the request in a new session if the session was lost
    _send_once              sends it by httpx or a download process, and maps their exceptions

A change (`change`) skips the first layer, and is not repeated if the server may have made it.
"""

import logging
import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import NoReturn, TypeVar, cast

import httpx
import trio

from xnatfs.common.clock import slept
from xnatfs.common.errors import ConfigError, TimedOut, Unavailable, Uncertain, Unreachable
from xnatfs.common.tasks import background
from xnatfs.download_worker.pool import ProcessLost
from xnatfs.http.circuit_breaker import CircuitBreaker
from xnatfs.http.clients import Clients, close_idle_connections, open_clients
from xnatfs.http.failures import is_permanent, unreachable
from xnatfs.http.login import Login
from xnatfs.http.login_request import PROBE_PATH
from xnatfs.http.messages import ChangeReply, HttpRequest
from xnatfs.http.replies import (
    BUSY_STATUSES,
    FAULT_STATUSES,
    Expects,
    check_status,
    close,
    read_page,
    retry_after,
    unavailable,
)
from xnatfs.http.retry import LOWEST_BYTES_PER_SECOND, RequestPolicy, Retries, SpeedLimit
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import SessionStore

log = logging.getLogger(__name__)
# A piece of a body: bytes, or the number of bytes that a download process has written.
P = TypeVar("P", bytes, int)

# In seconds. XNAT answers a change when archiving is done, or after its default sessionArchiveTimeoutInterval of 600 s.
CHANGE_TIMEOUT_SECONDS = 660.0
# The most sessions that may be lost during one request: a server that restarts twice loses two. The limit ends the
# logins to a server that forgets each session at once, as behind a balancer without sticky sessions.
MAX_LOST_SESSIONS = 3
# Seconds that a request for a big file may take in addition to the server's time: a process starts in 80 ms, on a busy
# machine in seconds, and a process that hangs has to be detected.
PROCESS_START_SECONDS = 5.0

# Statuses of changes that the server has not made, and that are repeated.
REPEATED_CHANGE_STATUSES = frozenset({429, 503})
# Errors of requests that the server did not receive.
NOT_SENT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
MAYBE_CHANGED = "the request may have been carried out"


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
    policy = RequestPolicy(config.timeout, config.retry_budget or config.timeout)
    async with open_clients(config, wire) as clients, background() as nursery:
        transport = Transport(clients, Login(clients.http, credentials, sessions), policy, nursery)
        try:
            yield transport
        finally:
            with trio.CancelScope(shield=True):
                await transport.login.close()


class Transport:
    """A transport to one server, as one account. Every method raises only exceptions of xnatfs.

    Args:
        clients: The clients of the server.
        login: The session.
        policy: The timeout and the retry budget.
        nursery: Runs the tasks of the circuit breaker.
    """

    def __init__(self, clients: Clients, login: Login, policy: RequestPolicy, nursery: trio.Nursery) -> None:
        self._clients = clients
        self.login = login
        self.policy = policy
        self.breaker = CircuitBreaker(self._probe, policy.retry_budget, nursery)
        self.requests = 0
        self.requests_by_kind = Counter[str]()
        self._slept = slept()

    @property
    def url(self) -> str:
        return str(self._clients.http.base_url).rstrip("/")

    # -- the session ---------------------------------------------------------------------------------------------

    async def log_in(self) -> None:
        """Log in now, with a single attempt, so that a mount fails at once. A session that was found is verified."""
        async with self._in_time("to a login"), self.login.turn():
            token = await self.login.token()
            if self.login.is_doubtful() and not await self.login.verify_session(token):
                await self.login.token()

    async def session_lives(self, path: str) -> bool:
        """Request whether the session is still valid, if the reply to `path` is suspiciously empty."""
        lives = False
        async with self._in_time(f"to a check of the session for {path}"), self.login.turn():
            lives = await self.login.verify_session(await self.login.token())
        return lives

    @asynccontextmanager
    async def _in_time(self, what: str) -> AsyncIterator[None]:
        """Limit several requests to the timeout of one, and report a failure to the breaker."""
        began = trio.current_time()
        try:
            with trio.fail_after(self.policy.timeout), self._mapped_errors():
                yield
        except trio.TooSlowError as error:
            self._fail(TimedOut(f"{self.url} does not answer {what} in time"), began, error)
        except Unreachable as error:
            self._fail(error, began, error.__cause__)

    # -- requests ------------------------------------------------------------------------------------------------

    async def send(self, request: HttpRequest, within: float = math.inf) -> httpx.Response:
        """Send a request that is safe to repeat, until the server has answered it in a valid session.

        It is repeated after network errors, after BUSY_STATUSES, and once after 500. It fails at once if the server is
        known to be unreachable.

        Args:
            request: The request.
            within: Seconds in which it may be repeated, if that is less than the retry budget.

        Returns:
            The reply, its body not yet read.
        """
        await self.breaker.check()
        began = trio.current_time()
        retries = Retries(min(self.policy.retry_budget, within))
        # No attempt begins after the retry budget; one that is under way may last until `timeout`.
        last = retries.deadline + self.policy.timeout - self.policy.retry_budget
        try:
            with trio.fail_at(last + (PROCESS_START_SECONDS if request.is_big else 0.0)):
                if (asleep := slept()) != self._slept:  # connections may have been closed unnoticed
                    self._slept = asleep
                    await close_idle_connections(self._clients.http)
                return await self._send_with_retries(request, retries)
        except trio.TooSlowError as error:
            self._fail(TimedOut(f"{self.url} does not answer {request.path} in time"), began, error)
        except Unreachable as error:
            self._fail(error, began, error.__cause__)

    async def change(self, request: HttpRequest) -> ChangeReply:
        """Make a change, and read the answer, whatever its status.

        The change is sent again only if it was not made: no connection could be opened, the session was lost, or the
        server reports that it is busy (429, 503).

        Raises:
            LoginRequired: There is no session and no way to log in.
            Unreachable: The server did not receive the change.
            Uncertain: The change may have been made: there was no answer, or a page of a login or a proxy came with
                status 200 in its place.
        """
        response = await self._send_with_retries(request, Retries(self.policy.retry_budget))
        try:
            text = await read_page(response, may_break_off=True)
        finally:
            await close(response)
        answer = ChangeReply(response.status_code, response.headers.get("location", ""), text.strip())
        if answer.ok and answer.is_page:
            page = f"{self.url}{request.path} was answered with a web page ({answer.message()})"
            raise Uncertain(f"{page}; {MAYBE_CHANGED}", status=answer.status)
        return answer

    async def _send_with_retries(self, request: HttpRequest, retries: Retries) -> httpx.Response:
        statuses = REPEATED_CHANGE_STATUSES if request.is_change else FAULT_STATUSES
        while True:
            asked_to_wait = 0.0
            try:
                response = await self.send_in_session(request)
                if response.status_code not in statuses:
                    return response
                if response.status_code == 500:  # repeated once
                    statuses -= {500}
                asked_to_wait = retry_after(response)
                failure: Unreachable = self._unavailable(request.path, response)
                await response.aclose()
            except Uncertain:
                raise
            except Unreachable as error:
                if is_permanent(error):
                    raise
                failure = error
            if not await retries.pause(asked_to_wait):
                raise failure

    async def send_in_session(self, request: HttpRequest) -> httpx.Response:
        """Send a request, and repeat it in a new session if it had no effect because the session was lost."""
        logins, lost = None, 0
        while True:
            async with self.login.turn():
                with self._mapped_errors():
                    token = await self.login.token()
                logins = self.login.logins if logins is None else logins
                response = await self._send_once(request, token)
                if response.status_code in BUSY_STATUSES:  # perhaps a gateway's
                    return response
                self.breaker.record_answer()
                self.login.record_reply(response)
                if lost == MAX_LOST_SESSIONS or not await self._check_lost(request, response, token, logins):
                    return response
                lost += 1

    async def _check_lost(self, request: HttpRequest, response: httpx.Response, token: str, logins: int) -> bool:
        """Return whether a request met a lost session; `logins` is the number of logins when it began.

        Closes the reply in that case, and if the session cannot be verified.
        """
        is_new = self.login.is_new(token, logins)
        refused = response.status_code == 401
        # A change is not repeated without proof: a session that was made for it was valid a moment ago.
        if request.is_change and is_new and not refused:
            return False
        is_lost = True
        try:
            with self._mapped_errors():
                is_lost = await self.login.check_lost(token, response, request.expects, young=is_new)
        except Unreachable as error:
            if request.is_change and not refused:
                raise Uncertain(f"{error}; {MAYBE_CHANGED}") from error
            raise
        finally:
            if is_lost:
                await close(response)
        return is_lost

    async def _send_once(self, request: HttpRequest, token: str) -> httpx.Response:
        """Send a request. Raises Uncertain if a change may have been made, else Unreachable."""
        content = request.body() if callable(request.body) else request.body or None
        built = self._build(request, content, token)
        self.requests += 1
        self.requests_by_kind[request.kind] += 1
        try:
            if request.is_big:
                try:
                    return await self._clients.big.send(built, stream=True)
                except ProcessLost as error:
                    log.warning("no download process (%s): big files are fetched without one", error)
            return await self._clients.http.send(built, stream=True)
        except httpx.TransportError as error:
            failure = unreachable(error, self.url)
            if request.is_change and not isinstance(error, NOT_SENT_ERRORS):
                raise Uncertain(f"{failure}; {MAYBE_CHANGED}") from error
            raise failure from error
        finally:
            if isinstance(content, AsyncGenerator):  # it may be left half-way, with a file open
                with trio.CancelScope(shield=True):
                    await content.aclose()

    def _build(self, request: HttpRequest, content: bytes | AsyncGenerator[bytes] | None, token: str) -> httpx.Request:
        timeout = httpx.Timeout(self._clients.http.timeout)
        timeout.read = CHANGE_TIMEOUT_SECONDS if request.is_change else timeout.read
        headers = {**request.headers, "Cookie": f"JSESSIONID={token}"}
        params = request.params or None
        try:
            url = httpx.URL(f"{self.url}{request.path}")  # absolute: a relative //NAME/PATH would be a host and a path
            return self._clients.http.build_request(
                request.method, url, params=params, headers=headers, content=content, timeout=timeout
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ConfigError(f"this request cannot be sent ({error}): {request.path!r}") from None

    async def _probe(self) -> None:
        """Send a small request, in the current session if there is one, so that it opens no other."""
        token = self.login.current
        headers = {"Cookie": f"JSESSIONID={token}"} if token else {}
        self.requests += 1
        self.requests_by_kind["probe"] += 1
        with self._mapped_errors():
            async with self._clients.probe.stream("GET", PROBE_PATH, headers=headers) as response:
                failure = self._unavailable(PROBE_PATH, response)
                if response.status_code in BUSY_STATUSES and not failure.asks_to_wait:
                    raise failure

    # -- replies -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def reply(
        self, method: str, path: str, params: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Request a file or an archive, and yield the checked reply (status 200), its body not yet read."""
        response = await self.send(HttpRequest(method, path, "file", params or {}))
        try:
            await self.check(path, response, "file")
            yield response
        except Unreachable as error:  # the body has ended, and is not resumed
            self.give_up(error)
        finally:
            await close(response)

    async def check(
        self, path: str, response: httpx.Response, expects: Expects, allow: tuple[int, ...] = (200,)
    ) -> None:
        """Raise the exception that the status of a reply means, unless it is allowed; see `check_status`."""
        await check_status(response, f"{self.url}{path}", self.login.username, expects, allow)

    def read_body(self, path: str, response: httpx.Response, limit: SpeedLimit | None = None) -> AsyncGenerator[bytes]:
        """Yield the body of the reply to `path` in pieces. Raises as `receive`."""
        return self.receive(path, cast(AsyncGenerator[bytes], response.aiter_raw()), limit)

    async def receive(self, path: str, pieces: AsyncGenerator[P], limit: SpeedLimit | None = None) -> AsyncGenerator[P]:
        """Yield the pieces of a body as they arrive.

        Args:
            path: The path that was requested.
            pieces: Yields bytes, or the number of bytes that a download process has written.
            limit: The speed limit of the transfer; a new one by default.

        Raises:
            Unreachable: The body breaks off.
            TimedOut: The body arrives too slowly.
            OSError: A file cannot be written.
        """
        limit = limit or SpeedLimit(self.policy.timeout)
        try:
            with self._mapped_errors(f"{self.url}{path} broke off:"):
                async with aclosing(pieces):
                    while True:
                        with limit.waiting():
                            piece = await anext(pieces, None)
                        if piece is None:
                            return
                        if not piece:
                            continue
                        limit.received(piece if isinstance(piece, int) else len(piece))
                        self.breaker.record_answer()
                        yield piece
        except trio.TooSlowError as error:
            slow = f"less than {LOWEST_BYTES_PER_SECOND} bytes a second, for {self.policy.timeout:g} s"
            raise TimedOut(f"{self.url}{path} is too slow: {slow}") from error

    # -- failures ------------------------------------------------------------------------------------------------

    def give_up(self, error: Unreachable) -> NoReturn:
        """Report to the breaker the error that a body has ended with for good, and raise it."""
        self._fail(error, trio.current_time() - self.policy.timeout, error.__cause__)

    def _fail(self, failure: Unreachable, since: float, cause: BaseException | None) -> NoReturn:
        """Report the failure of a request, sent at `since`, to the breaker, and raise it."""
        if isinstance(failure, Unavailable) and failure.asks_to_wait:
            self.breaker.log_failure(failure)
        else:
            self.breaker.record_failure(failure, since)
        raise failure from cause

    def _unavailable(self, path: str, response: httpx.Response) -> Unavailable:
        return unavailable(response, f"{self.url} answers {response.status_code} to {path}")

    @contextmanager
    def _mapped_errors(self, where: str = "") -> Iterator[None]:
        """Map httpx's errors to those of xnatfs."""
        try:
            yield
        except httpx.TransportError as error:
            raise unreachable(error, where or self.url) from error
