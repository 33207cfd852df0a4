"""Log in once for all tasks that share a client, and again when the session expires.

XNAT exchanges Basic credentials for a JSESSIONID. The loss of a session is not always reported: a closed site answers
401 or sends the login page, an open one continues and answers as to a guest, with less in its lists. So each reply is
checked for signs of a lost session; a doubtful one is settled by requesting the current user, which the server never
reports to a guest. A refused password is not sent again for a while: servers lock accounts.

With a `SessionStore` all programs of the user share the session: it is looked up before a login, kept for the next
program, and left alive at the end.

No cookie jar is used: any reply may set a fresh guest session, which would overwrite ours. If a server, or a proxy in
front of it, gives a session a new ID with each reply, the newest is sent, and by one request at a time.
"""

import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import LoginRequired
from xnatfs.http.login_request import LoginRequest, send_short, try_later
from xnatfs.http.replies import FAULT_STATUSES, Expects, is_html, is_page, session_cookie, status_line
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import IDLE_SESSION_SECONDS, SessionStore

log = logging.getLogger(__name__)

# Seconds that the server's confirmation of a session counts. Long enough that lookups of missing and empty items do not
# cost a second request each; a session that was lost without a sign on an open site is detected after that time.
CONFIRMED_SECONDS = 60.0
# Seconds between attempts with a refused password. XNAT locks an account for an hour after 20 refusals: one attempt in
# five minutes stays below that.
REFUSED_SECONDS = 300.0
# In seconds. Ending the session is a courtesy; an unreachable server must not delay an unmount.
LOGOUT_TIMEOUT_SECONDS = 5.0

# Milliseconds; 12 digits are 31 years. A session with a limit of 0 or less does not expire.
_EXPIRATION = re.compile(r'SESSION_EXPIRATION_TIME="?[0-9]+,([1-9][0-9]{0,11})(?![0-9])')


class Login:
    """The session of one account on one server. Any number of tasks may call its methods at once.

    Args:
        http: The client that sends the login.
        credentials: The login; None if only a session in `sessions` can be used.
        sessions: Shares the session with other programs.
    """

    def __init__(
        self, http: httpx.AsyncClient, credentials: Credentials | None, sessions: SessionStore | None = None
    ) -> None:
        self._http = http
        self._request = LoginRequest(http, credentials) if credentials else None
        self._sessions = sessions
        self.username = credentials.user if credentials else ""
        self._token = ""
        self._dead: frozenset[str] = frozenset()  # sessions known to be dead
        self._lock = trio.Lock()
        self._idle_limit = float("inf")  # seconds; the server states it in a cookie
        self._answered_at = 0.0
        self._confirmed_at = float("-inf")
        self._refused = ("", float("-inf"))  # the last refusal of a login, and its time
        self._has_warned = False  # whether the lack of a password was logged
        self._heeds_cookies = True  # False once a live session was answered with a foreign JSESSIONID
        self.logins = 0
        self._latest = ""  # the session of the last login
        self.logout_failure = ""  # the reason why the server did not end the last session that was to end
        self._rotates = False  # whether each reply gives the session a new ID, so that the former may be dead
        self._turn = trio.Lock()
        self.began_at = 0.0  # when the session was made, in seconds since the epoch; 0 if there is none

    @property
    def expires_in(self) -> float:
        """Return in how many seconds the server ends the session unless it is used: 0 for none, inf if unknown."""
        return max(self._answered_at + self._idle_limit - now(), 0.0) if self._token else 0.0

    @property
    def refusal(self) -> str:
        """Return why the last login was refused, while no other one is tried; else ''."""
        reason, when = self._refused
        return reason if not self._token and now() - when < REFUSED_SECONDS else ""

    async def token(self) -> str:
        """Return the JSESSIONID to send; log in if there is none, or if it has idled longer than the server allows.

        Raises LoginRequired, Unreachable, NotXnat.
        """
        async with self._lock:
            if self._token and now() - self._answered_at > self._idle_limit:
                self._token = ""
            if not self._token:
                self._token = await self._obtain()
            return self._token

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Send a request within this context, up to the head of its reply: alone, if replies change the session ID."""
        if not self._rotates:
            yield
            return
        async with self._turn:
            yield

    @property
    def current(self) -> str:
        """Return the last known session, alive or not; '' if there is none, or it may be sent within `turn` only."""
        return "" if self._rotates else self._token

    async def _obtain(self) -> str:
        """Return a session: one that another program has made, or a new one."""
        if self._sessions is None:
            return await self._log_in()
        if token := self._find_shared():
            return token
        token = ""
        try:
            async with self._sessions.locked():
                if token := self._find_shared():  # another program was faster
                    return token
                token = await self._log_in()
                self._sessions.save(token, self._idle_seconds(), self.username)
        except OSError as error:
            log.warning("the session cannot be shared with other programs: %s", error)
        return token or await self._log_in()

    def _find_shared(self) -> str:
        assert self._sessions is not None
        session = self._sessions.find(self._dead)
        if session is None:
            return ""
        self.username = self.username or session.username
        self.began_at = session.created.timestamp()
        self._answered_at, self._idle_limit = now(), session.idle
        self._confirmed_at = float("-inf")
        self._has_warned = False
        return session.token

    def _idle_seconds(self) -> float:
        return IDLE_SESSION_SECONDS if self._idle_limit == float("inf") else self._idle_limit

    async def renew(self) -> None:
        """Log in now, and end the session that this replaces. Raises as `token`."""
        async with self._lock:
            before = self._sessions.find_stored() if self._sessions else None
            self._token = await self._log_in()
            if self._sessions:
                async with self._sessions.locked():
                    self._sessions.save(self._token, self._idle_seconds(), self.username)
            if before and before.token != self._token:
                await self._delete(before.token)

    def use(self, credentials: Credentials) -> None:
        """Use other credentials of the same account at the next login, even right after a refusal."""
        self._request = LoginRequest(self._http, credentials)
        self._refused = ("", float("-inf"))

    async def log_out(self) -> bool:
        """End the session for every program, even one that has idled; return whether there was one."""
        assert self._sessions is not None
        session = self._sessions.find(ended=True)
        self._token = ""
        if session is None:
            return False
        await self._delete(session.token)
        async with self._sessions.locked():
            self._sessions.forget(session.token)
        return True

    def record_reply(self, response: httpx.Response) -> None:
        """Record that the server has just answered in the session, and the idle limit that it states."""
        self._answered_at = now()
        for cookie in response.headers.get_list("set-cookie"):
            if match := _EXPIRATION.match(cookie):
                self._idle_limit = int(match[1]) / 1000
        if self._sessions and self._token:
            self._sessions.record_use(self._token, self._idle_seconds())

    async def check_lost(self, token: str, response: httpx.Response, expects: Expects, *, young: bool = False) -> bool:
        """Return whether a reply was given to a dead session; then the next `token()` logs in, once for all tasks.

        Args:
            token: The session that the request was sent in.
            response: The reply.
            expects: The kind of body expected.
            young: The session was made for this request; then a request to the server settles whether a 401 was
                meant for the session.
        """
        refused = response.status_code == 401
        if refused and not young:
            async with self._lock:  # its successor, from another reply, may be under verification
                self._drop(token)
            return True
        foreign = self._heeds_cookies and session_cookie(response) not in ("", token)
        if not (refused or foreign or is_page(response, expects) or self._is_surprising(response)):
            return False
        if foreign and not refused and await self._was_replaced(token, session_cookie(response)):
            return False
        if await self.verify_session(token):
            self._heeds_cookies = self._heeds_cookies and (refused or not foreign)  # a 401 sets a cookie in any case
            return False
        return True

    def is_new(self, token: str, since: int) -> bool:
        """Return whether a session was made after the first `since` logins: a refusal is then hardly due to its age.

        A session that was found, made by another program, may be as dead as the one before it.
        """
        return self.logins > since and token == self._latest

    async def verify_session(self, token: str) -> bool:
        """Return whether the server still knows a session as that of an account. A dead one is dropped.

        Raises Unavailable if the server cannot answer at the moment.
        """
        newest = await self._confirm(token)
        if not newest:
            self._drop(token)
        elif self._rotates:
            self._replace_id(token, newest)
        return bool(newest)

    async def _confirm(self, token: str) -> str:
        """Return the session ID that the server answers with, if it knows this session as an account's, else ''."""
        response, _ = await send_short(self._http, "GET", "/xapi/users/username", token=token)
        known = response.status_code == 200 and not is_html(response)
        if response.status_code == 404:  # a server from before /xapi
            response, text = await send_short(self._http, "GET", "/data/auth", token=token)
            known = response.status_code == 200 and "'guest'" not in text and not is_html(response)
        if not known and response.status_code in FAULT_STATUSES:
            raise try_later(response)
        if known:
            self._confirmed_at = now()
        return (session_cookie(response) or token) if known else ""

    async def _was_replaced(self, token: str, offered: str) -> bool:
        """Return whether a reply has replaced the session's ID by `offered`, rather than opened a guest's session."""
        async with self._lock:
            if newest := await self._confirm(offered):
                self._rotates = True
                self._replace_id(token, newest)
            return bool(newest)

    def _replace_id(self, token: str, newest: str) -> None:
        """Replace the ID of the session."""
        if self._token in (token, ""):
            self._token = newest
        if self._latest == token:
            self._latest = newest
        if self._sessions:
            self._sessions.replace(token, newest)

    def is_doubtful(self) -> bool:
        """Return whether the server confirmed the session so long ago that an empty answer may be a guest's."""
        return now() - self._confirmed_at > min(CONFIRMED_SECONDS, self._idle_limit / 2)

    async def close(self) -> None:
        """End the session on the server, if there is one and it is not shared."""
        token, self._token = self._token, ""
        if token and self._sessions is None:
            await self._delete(token)

    async def _delete(self, token: str) -> None:
        self.logout_failure = "no answer"
        with trio.move_on_after(LOGOUT_TIMEOUT_SECONDS) as scope:
            try:
                response, _ = await send_short(self._http, "DELETE", "/data/JSESSION", token=token)
                # 401, or a redirect to the login page, is the answer to a session that had ended before.
                ended = response.is_success or response.is_redirect or response.status_code == 401
                self.logout_failure = "" if ended else status_line(response)
            except httpx.HTTPError as error:
                self.logout_failure = str(error) or type(error).__name__
                log.info("could not log out: %s", error)
        if scope.cancelled_caught:
            log.info("could not log out: no answer within %g s", LOGOUT_TIMEOUT_SECONDS)

    def _is_surprising(self, response: httpx.Response) -> bool:
        return response.status_code in (403, 404) and self.is_doubtful()

    def _drop(self, token: str) -> None:
        if self._token == token:
            log.info("the session on %s has ended", self._http.base_url)
            self._token = ""
        self._dead |= {token}

    async def _log_in(self) -> str:
        if self._request is None:
            text = f"the session on {self._http.base_url} has ended, and there is no password to renew it"
            text = f"{text}: 'xnatctl auth login', or XNAT_USER and XNAT_PASS"
            if not self._has_warned:  # once, though every read fails meanwhile
                log.warning("%s", text)
                self._has_warned = True
            raise LoginRequired(text)
        reason, when = self._refused
        if now() - when < REFUSED_SECONDS:
            raise LoginRequired(reason)
        try:
            response, token = await self._request.send()
        except LoginRequired as error:
            self._refused = (str(error), now())
            log.warning("%s", error)
            raise
        self.record_reply(response)
        self._confirmed_at, self.began_at = now(), time.time()
        self.logins += 1
        self._latest = token
        log.info("logged in to %s as %s", self._http.base_url, self.username)
        return token
