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
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Literal, cast

import httpx
import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, LoginRequired, NotXnat, Unavailable
from xnatfs.common.sanitize import decoded
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import IDLE, SessionStore, is_session_id

log = logging.getLogger(__name__)

Expects = Literal["json", "file", "any"]

# In seconds. Long enough that lookups of missing and empty items do not cost a second request each; a session that was
# lost without a sign on an open site is detected after that time at the latest.
CONFIRM_AFTER = 60.0
# In seconds. XNAT locks an account for an hour after 20 refusals: one attempt in five minutes stays below that.
REFUSED_FOR = 300.0
# In seconds. Ending the session is a courtesy; an unreachable server must not delay an unmount.
LOGOUT_TIMEOUT = 5.0

# Bytes read of an answer to a login: a session ID, or a page with its message near the beginning.
LONGEST_ANSWER = 64 * 1024
# Characters searched for a page's message, from its tag on, with markup: some contain a database statement that failed.
LONGEST_MESSAGE = 16 * 1024
# Reasons of a failed login other than a wrong password: a pattern in the server's page or its address, and the remedy.
# XNAT redirects to its own pages, or reports the same with 403.
OBSTACLES = (
    (
        r"XDATScreen_UpdateUser|/ChangePassword|password has expired|must change your password",
        "the password has expired: set a new one there with a browser, then 'xnatctl auth login'",
    ),
    (
        r"InactiveAccount|VerifyEmail|account is (?:disabled|not enabled|inactive)",
        "the account is disabled, or its e-mail address is not verified: a browser says more when you log in there, or "
        "ask the managers of the site",
    ),
    (
        r"security token has expired",
        "the alias token has ended: 'xnatctl auth login --token' makes another one",
    ),
    (
        r"two-? ?factor|multi-? ?factor|second factor|verification code|one-?time (?:pass|code)|authenticator app",
        "it asks for a second factor, which only a browser can give: log in with one, make an alias token there (your "
        "name, 'Manage Alias Tokens'), and give it as XNAT_USER and XNAT_PASS",
    ),
    (r"not yet been configured", "the site has not been set up yet: its managers do that with a browser"),
)
# The beginning of the <h3> of the container's own error pages, and of its titles that name nothing else.
CONTAINER = "Apache Tomcat"
# The tags around a page's message, the best first: the container's message (Tomcat 7 to 10); XNAT's own, where the
# container has its name; the container's general description; nginx, httpd and balancers have only a title.
PLACES = (("<b>Message</b", "</p"), ("<h3", "</h3"), ("<b>Description</b", "</p"), ("<title", "</title"))

# Statuses of a server that cannot answer at the moment: they say nothing about the session.
CANNOT = frozenset({429, 500, 502, 503, 504})

# Milliseconds; 12 digits are 31 years.
_EXPIRATION = re.compile(r'SESSION_EXPIRATION_TIME="?[0-9]+,([0-9]{1,12})(?![0-9])')
_JSESSIONID = re.compile(r'JSESSIONID="?([^";,\s]*)')


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
        self._credentials = credentials
        self._sessions = sessions
        self.username = credentials.user if credentials else ""
        self._token = ""
        self._dead: frozenset[str] = frozenset()  # sessions known to be dead
        self._lock = trio.Lock()
        self._idle_limit = float("inf")  # seconds; the server states it in a cookie
        self._heard_at = 0.0
        self._confirmed_at = float("-inf")
        self._refused = ("", float("-inf"))  # the last refusal of a login, and its time
        self._warned = False  # whether the lack of a password was logged
        self._cookie_tells = True  # False once a foreign JSESSIONID came although the session was alive
        self.logins = 0
        self._made = ""  # the session of the last login
        self._has_form = False  # whether the login form was found to exist and to be needed
        self.left_open = ""  # the reason why the server did not end the last session that was to end
        self._rotates = False  # whether each reply gives the session a new ID, so that the former may be dead
        self._turn = trio.Lock()

    async def token(self) -> str:
        """Return the JSESSIONID to send; log in if there is none, or if it has idled longer than the server allows.

        Raises LoginRequired, Unreachable, NotXnat.
        """
        async with self._lock:
            if self._token and now() - self._heard_at > self._idle_limit:
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
        if token := self._found():
            return token
        try:
            async with self._sessions.locked():
                if token := self._found():  # another program was faster
                    return token
                token = await self._log_in()
                self._sessions.keep(token, self._idle(), self.username)
                return token
        except OSError as error:
            log.warning("the session cannot be shared with other programs: %s", error)
            return await self._log_in()

    def _found(self) -> str:
        assert self._sessions is not None
        session = self._sessions.find(self._dead)
        if session is None:
            return ""
        self.username = self.username or session.username
        self._heard_at, self._idle_limit = now(), session.idle
        self._confirmed_at = float("-inf")
        self._warned = False
        return session.token

    def _idle(self) -> float:
        return IDLE if self._idle_limit == float("inf") else self._idle_limit

    async def renew(self) -> None:
        """Log in now, and end the session that this replaces. Raises as `token`."""
        async with self._lock:
            before = self._sessions.find_kept() if self._sessions else None
            self._token = await self._log_in()
            if self._sessions:
                async with self._sessions.locked():
                    self._sessions.keep(self._token, self._idle(), self.username)
            if before and before.token != self._token:
                await self._delete(before.token)

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

    def heard(self, response: httpx.Response) -> None:
        """Record that the server has just answered in the session, and the idle limit that it states."""
        self._heard_at = now()
        for cookie in response.headers.get_list("set-cookie"):
            if match := _EXPIRATION.match(cookie):
                self._idle_limit = int(match[1]) / 1000
        if self._sessions and self._token:
            self._sessions.slide(self._token, self._idle())

    async def lost(self, token: str, response: httpx.Response, expects: Expects, *, young: bool = False) -> bool:
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
        foreign = self._cookie_tells and _foreign_session(token, response)
        if not (refused or foreign or _is_page(response, expects) or self._surprises(response)):
            return False
        if foreign and not refused and await self._succeeds(token, _session_cookie(response)):
            return False
        if await self.alive(token):
            self._cookie_tells = self._cookie_tells and (refused or not foreign)  # a 401 sets a cookie in any case
            return False
        return True

    def made(self, token: str, since: int) -> bool:
        """Return whether a session was made after the first `since` logins: a refusal is then hardly due to its age.

        A session that was found, made by another program, may be as dead as the one before it.
        """
        return self.logins > since and token == self._made

    async def alive(self, token: str) -> bool:
        """Return whether the server still knows a session as that of an account. A dead one is dropped.

        Raises Unavailable if the server cannot answer at the moment.
        """
        newest = await self._confirm(token)
        if not newest:
            self._drop(token)
        elif self._rotates:
            self._follow(token, newest)
        return bool(newest)

    async def _confirm(self, token: str) -> str:
        """Return the session ID that the server answers with, if it knows this session as an account's, else ''."""
        cookie = {"Cookie": f"JSESSIONID={token}"}
        response, _ = await self._asked("GET", "/xapi/users/username", headers=cookie)
        known = response.status_code == 200 and not _is_html(response)
        if response.status_code == 404:  # a server from before /xapi
            response, text = await self._asked("GET", "/data/auth", headers=cookie)
            known = response.status_code == 200 and "'guest'" not in text and not _is_html(response)
        if not known and response.status_code in CANNOT:
            raise _unavailable(response)
        if known:
            self._confirmed_at = now()
        return (_session_cookie(response) or token) if known else ""

    async def _succeeds(self, token: str, offered: str) -> bool:
        """Return whether a reply has replaced the session's ID by `offered`, rather than opened a guest's session."""
        async with self._lock:
            if newest := await self._confirm(offered):
                self._rotates = True
                self._follow(token, newest)
            return bool(newest)

    def _follow(self, token: str, newest: str) -> None:
        """Replace the ID of the session."""
        if self._token in (token, ""):
            self._token = newest
        if self._made == token:
            self._made = newest
        if self._sessions:
            self._sessions.replace(token, newest)

    def doubtful(self) -> bool:
        """Return whether the server confirmed the session so long ago that an empty answer may be a guest's."""
        return now() - self._confirmed_at > min(CONFIRM_AFTER, self._idle_limit / 2)

    async def close(self) -> None:
        """End the session on the server, if there is one and it is not shared."""
        token, self._token = self._token, ""
        if token and self._sessions is None:
            await self._delete(token)

    async def _delete(self, token: str) -> None:
        self.left_open = "no answer"
        with trio.move_on_after(LOGOUT_TIMEOUT) as scope:
            try:
                cookie = {"Cookie": f"JSESSIONID={token}"}
                response, _ = await self._asked("DELETE", "/data/JSESSION", headers=cookie)
                # 401, or a redirect to the login page, is the answer to a session that had ended before.
                ended = response.is_success or response.is_redirect or response.status_code == 401
                self.left_open = "" if ended else status_line(response)
            except httpx.HTTPError as error:
                self.left_open = str(error) or type(error).__name__
                log.info("could not log out: %s", error)
        if scope.cancelled_caught:
            log.info("could not log out: no answer within %g s", LOGOUT_TIMEOUT)

    def _surprises(self, response: httpx.Response) -> bool:
        return response.status_code in (403, 404) and self.doubtful()

    def _drop(self, token: str) -> None:
        if self._token == token:
            log.info("the session on %s has ended", self._http.base_url)
            self._token = ""
        self._dead |= {token}

    async def _log_in(self) -> str:
        if self._credentials is None:
            text = f"the session on {self._http.base_url} has ended, and there is no password to renew it"
            text = f"{text}: 'xnatctl auth login', or XNAT_USER and XNAT_PASS"
            if not self._warned:  # once, though every read fails meanwhile
                log.warning("%s", text)
                self._warned = True
            raise LoginRequired(text)
        reason, when = self._refused
        if now() - when < REFUSED_FOR:
            raise LoginRequired(reason)
        try:
            response, text = await self._offer(self._credentials)
            token = await self._session_id(response, text)
        except LoginRequired as error:
            self._refused = (str(error), now())
            log.warning("%s", error)
            raise
        self.heard(response)
        self._confirmed_at = now()
        self.logins += 1
        self._made = token
        log.info("logged in to %s as %s", self._http.base_url, self.username)
        return token

    async def _offer(self, credentials: Credentials) -> tuple[httpx.Response, str]:
        """Send user and password. Basic cannot name a login method, and some releases take no ':' in its password."""
        if credentials.provider:
            # By ID, for releases that support it; others use `provider`. An unknown provider is no failed login.
            both = {"provider": credentials.provider, "authenticatorId": credentials.provider}
            response, text = await self._fill_in(credentials, both)
            if response.status_code == 400:
                response, text = await self._fill_in(credentials, {"provider": credentials.provider})
            return response, text
        if self._has_form:
            return await self._fill_in(credentials, {})
        basic = httpx.BasicAuth(credentials.username, credentials.password)
        response, text = await self._asked("POST", "/data/JSESSION", auth=basic)
        if response.status_code == 405:  # XNAT accepts both methods; a proxy in front of it may not
            response, text = await self._asked("GET", "/data/JSESSION", auth=basic)
        if response.status_code == 401 and ":" in credentials.password:
            formed = await self._fill_in(credentials, {})
            # From then on only by the form: each refusal counts towards locking the account.
            self._has_form = formed[0].status_code not in (404, 405)
            return formed if self._has_form else (response, text)
        return response, text

    async def _fill_in(self, credentials: Credentials, more: dict[str, str]) -> tuple[httpx.Response, str]:
        """Log in by the form, which answers with the session's ID as /data/JSESSION does."""
        form = {"username": credentials.username, "password": credentials.password, **more}
        response, text = await self._asked("POST", "/data/services/auth", form=form)
        if response.status_code == 500 and "bad credentials" in text.lower():  # releases before 1.7
            response.status_code = 401
        if response.status_code == 200 and not text.strip():  # also before 1.7: the session is only in the cookie
            text = _session_cookie(response)
        return response, text

    async def _asked(
        self, method: str, path: str, *, auth: Any = None, headers: Any = None, form: Any = None
    ) -> tuple[httpx.Response, str]:
        """Return the closed reply and the beginning of its body, whatever charset or encoding the headers state."""
        request = self._http.build_request(method, path, headers=headers, data=form)
        response = await self._http.send(request, stream=True, auth=auth)
        body = bytearray()
        try:
            async with aclosing(cast(AsyncGenerator[bytes], response.aiter_raw())) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > LONGEST_ANSWER:
                        break
        finally:
            with trio.CancelScope(shield=True):
                await response.aclose()
        return response, body[:LONGEST_ANSWER].decode("utf-8", "replace")

    async def _session_id(self, response: httpx.Response, text: str) -> str:
        assert self._credentials is not None
        url, status = self._http.base_url, response.status_code
        provider = self._credentials.provider
        if status == 401 and self._credentials.source == "token":
            raise LoginRequired(
                f"{url} refused the alias token of {self.username}, which has probably ended: 'xnatctl auth login'"
            )
        if status == 401:
            method = f", no login method {provider!r} (`provider` in the profile)" if provider else ""
            raise LoginRequired(
                f"{url} refused the login of {self.username}: wrong user or password, a locked account{method}, "
                "or too many sessions open (the server does not say which)"
            )
        if status == 200 and not _is_html(response):
            token = text.strip().partition(";")[0]
            if is_session_id(token):
                # A login changes the session's ID; if the body has the former one, the newest cookie counts.
                return _session_cookie(response) or token
        if status in CANNOT:
            raise _unavailable(response)
        if status == 400 and provider:
            said = page_message(text) or status_line(response)
            raise LoginRequired(f"{url} takes no login by {provider!r}, which is `provider` in the profile ({said})")
        if (why := obstacle(response, text)) or await self._is_xnat():
            said = page_message(text) or status_line(response)
            said = f"{status_line(response)} to {_target(response)}" if response.is_redirect else said
            why = why or "log in with a browser once; the password may have expired"
            raise LoginRequired(f"{url} answered the login of {self.username} with a page ({said}): {why}")
        if response.is_redirect:
            raise NotXnat(f"{url} redirects to {_target(response)}: use that address if it is your XNAT")
        raise NotXnat(f"{url} is not an XNAT: it answers {status} to /data/JSESSION (is the path right?)")

    async def _is_xnat(self) -> bool:
        response, text = await self._asked("GET", "/xapi/siteConfig/buildInfo")
        if response.status_code == 404:  # a server from before /xapi: its REST engine names itself in each answer
            response, _ = await self._asked("GET", "/data/auth")
            return "restlet" in response.headers.get("server", "").lower()
        return response.status_code == 200 and not _is_html(response) and "version" in text


def obstacle(response: httpx.Response, text: str) -> str:
    """Return the reason of a failed login other than a wrong password, and the remedy; '' if no reason is found."""
    where = response.headers.get("location", "")
    return next((why for said, why in OBSTACLES if re.search(said, f"{where}\n{text}", re.IGNORECASE)), "")


def page_message(html: str) -> str:
    """Return the message of an error page, or the first line of plain text; '' if there is none."""
    if "<" not in html:
        return " ".join(html.strip().partition("\n")[0].split())[:200]
    found = (_text_between(html, begin, end) for begin, end in PLACES)
    return next((message for message in found if message and not message.startswith(CONTAINER)), "")


def _text_between(html: str, begin: str, end: str) -> str:
    """Return the text between two tags, without markup. `begin` lacks its '>', since it may have attributes."""
    # In steps: with a single pattern, the time for a page of `<h3<h3<h3` would be quadratic in its length.
    begins = re.search(begin, html, re.IGNORECASE)
    if not begins:
        return ""
    text = html[begins.end() : begins.end() + LONGEST_MESSAGE]
    ends = re.search(end, text, re.IGNORECASE)
    text = text[: ends.start()] if ends else ""
    return " ".join(decoded(re.sub(r"<[^>]*>", " ", text.partition(">")[2])).split())[:200]


def status_line(response: httpx.Response) -> str:
    """Return the status with its reason phrase, which some containers do not send."""
    return f"{response.status_code} {response.reason_phrase or httpx.codes.get_reason_phrase(response.status_code)}"


def asks_to_wait(response: httpx.Response) -> bool:
    """Return whether a reply proves the server reachable, only busy: it has Retry-After, or status 429."""
    return response.status_code == 429 or "retry-after" in response.headers


def _unavailable(response: httpx.Response) -> Unavailable:
    status, url = response.status_code, response.url
    text = f"{url} answers {status_line(response)}: try again later"
    return Unavailable(text, status=status, url=str(url), asks_to_wait=asks_to_wait(response))


def _is_html(response: httpx.Response) -> bool:
    return "html" in response.headers.get("content-type", "").lower()


def _is_page(response: httpx.Response, expects: Expects) -> bool:
    """Return whether a web page came in place of data: to log in or change the password, with 200 or by redirect.

    XNAT sends files, HTML files too, as attachments; releases before 1.7 send a date and Cache-Control instead. A page
    has neither.
    """
    if response.is_redirect and expects != "any":
        return True
    if response.has_redirect_location:  # after a change, 303 may mean success, and so may a 301 without Location
        return response.status_code != 303
    if not response.is_success or expects == "any" or not _is_html(response):
        return False
    return not (expects == "file" and _is_file(response))


def _is_file(response: httpx.Response) -> bool:
    """Return whether HTML is a file. Without Content-Disposition its name says so: XNAT takes the type from there."""
    headers = response.headers
    if "attachment" in headers.get("content-disposition", "").lower():
        return True
    dated = "last-modified" in headers and headers.get("cache-control", "").lower() == "must-revalidate"
    return dated and response.url.path.lower().endswith((".html", ".htm"))


def check_is_data(response: httpx.Response, expects: Expects) -> None:
    """Raise BadReply if a web page came in place of data."""
    if _is_page(response, expects):
        raise BadReply(f"{response.url.path} came as a web page, not as data")


def _foreign_session(token: str, response: httpx.Response) -> bool:
    """Return whether the reply opens another session: the server did not know this one."""
    return _session_cookie(response) not in ("", token)


def _session_cookie(response: httpx.Response) -> str:
    """Return the JSESSIONID that a reply sets, the last of several; '' if it sets none."""
    cookies = response.headers.get_list("set-cookie")
    found = [match[1] for cookie in cookies if (match := _JSESSIONID.match(cookie)) and is_session_id(match[1])]
    return found[-1] if found else ""


def _target(response: httpx.Response) -> str:
    """Return the target of a redirect without query and fragment, which may be secret."""
    return re.split("[?#]", response.headers.get("location", ""))[0] or "another address"
