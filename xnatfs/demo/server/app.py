"""Answer requests as a real XNAT does, pitfalls included, and never depending on which client sends them."""

import base64
import binascii
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import httpx

from xnatfs.demo.archive.model import Archive
from xnatfs.demo.rest.change_routes import Writing
from xnatfs.demo.rest.resources import Asked
from xnatfs.demo.rest.routes import Routes
from xnatfs.demo.rest.services import Services
from xnatfs.demo.rest.tables import CSV, JSON, XML, Query
from xnatfs.demo.server.accounts import GUEST, Refused, Session, Sessions, is_browser
from xnatfs.demo.server.reply import HTML, Failed, Reply, Slice, buffered, container_page, page
from xnatfs.demo.server.request_bodies import Body
from xnatfs.demo.server.site import DemoSite

OPEN_PATHS = re.compile(
    r"/(?:(?:data|REST)/(?:JSESSION|services/auth)/?|xapi/siteConfig/buildInfo|app/template/Login\.vm)$"
)
API_PREFIXES = ("/data/", "/REST/", "/xapi/", "/fs/")  # any other URL is a page, for people
CHANGE_PASSWORD = "/app/template/XDATScreen_UpdateUser.vm"
# Pages that are served to users whose password has expired.
EXPIRED_PASSWORD_PATHS = re.compile(r"/app/(?:template/(?:XDATScreen_UpdateUser|Login)\.vm|action/)")
# Paths that lead nowhere in releases without a firewall that refuses them.
ODD_PATH = re.compile(r"//|/\.\.?(?:/|$)")
FORM_TYPE = "application/x-www-form-urlencoded"
OPEN_RANGE = re.compile(r"bytes=(?:\d+-|-\d+)\s*$")
COOKIE = re.compile(r"JSESSIONID=\"?([0-9A-Za-z]+)")

Fault = Callable[["Request"], Reply | None]


@dataclass(frozen=True)
class Request:
    """A request, from a socket or from a test's transport."""

    method: str
    path: str  # raw, without the context path
    query: Query
    headers: dict[str, str]  # lower-case names
    body: Body = field(default_factory=Body)


@dataclass(frozen=True)
class Record:
    """A request and its outcome."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    status: int
    user: str


class DemoXnat:
    """The demo server. Its methods are thread-safe.

    Args:
        archive: The archive to serve.
        settings: Settings of the site, as the fields of DemoSite.
    """

    def __init__(self, archive: Archive, **settings: Any) -> None:
        self.site = site = DemoSite(archive, **settings)
        self.archive = archive
        self.sessions = Sessions(site)
        self.routes = Routes(site)
        self.services = Services(site, self.sessions)
        self.writing = Writing(site)
        self.requests: list[Record] = []
        self.faults: list[Fault] = []  # each may return a reply in place of the server's
        self.watch: Callable[[Record], None] = lambda record: None
        self._lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request of httpx.MockTransport."""
        raw, _, query = request.url.raw_path.decode("ascii").partition("?")
        headers = {key.lower(): value for key, value in request.headers.items()}
        return to_httpx(self.handle(request.method, raw, query, headers, request.read()))

    def handle(
        self, method: str, raw_path: str, raw_query: str, headers: dict[str, str], body: Body | bytes = b""
    ) -> Reply:
        """Answer a request, and record it.

        Args:
            method: The method.
            raw_path: The path as it was sent, with the context path.
            raw_query: The query as it was sent.
            headers: The headers, with lower-case names.
            body: The body.
        """
        body = Body(body) if isinstance(body, bytes) else body
        if self.site.latency:
            time.sleep(self.site.latency)
        pairs = parse_qsl(raw_query, keep_blank_values=True)
        query = Query(pairs, headers.get("accept", "*/*"), self.site.release, len(self.requests))
        if method == "POST" and query.get("method") in ("PUT", "DELETE"):
            method = query["method"]
        inside = (
            not self.site.context_path
            or raw_path.startswith(self.site.context_path + "/")
            or raw_path == self.site.context_path
        )
        path = raw_path.removeprefix(self.site.context_path) if inside else raw_path
        request = Request(method, path, query, headers, body)
        user = ""
        try:
            reply = next((made for fault in list(self.faults) if (made := fault(request))), None)
            if reply is None:
                if not inside:
                    raise Failed(404, "")
                reply, user = self._answer(request)
        except Failed as failed:
            reply = failed.reply(self.site.release)
        self._dress(reply, method)
        record = Record(method, path, dict(query), headers, reply.status, user)
        with self._lock:
            self.requests.append(record)
        self.watch(record)
        return reply

    def _dress(self, reply: Reply, method: str) -> None:
        """Add the headers that all replies of this release have, and adjust the status and the content type."""
        release = self.site.release
        if release.empty_is_204 and reply.status == 200 and reply.body == b"" and method not in ("GET", "HEAD"):
            reply.status = 204
        reply.content_type = reply.content_type.replace("ISO-8859-1", release.text_charset)
        if reply.status in (204, 304):
            reply.content_type = ""
        if release.list_charset and reply.content_type in (JSON, XML, CSV) and not isinstance(reply.body, Slice):
            reply.content_type += f";charset={release.list_charset}"
        headers = {
            "Server": release.server,
            "Vary": "Accept-Charset, Accept-Encoding, Accept-Language, Accept",
            "Accept-Ranges": "bytes",
        }
        if release.frame_headers:
            headers |= {"X-Frame-Options": "SAMEORIGIN", "Content-Security-Policy": "frame-ancestors 'self'"}
        reply.headers = {**headers, **reply.headers}

    def _answer(self, request: Request) -> tuple[Reply, str]:
        if self.site.release.refuses.search(request.path):
            text = "The request was rejected because the URL contained a potentially malicious String"
            raise Failed(400, text, empty=True)
        user = GUEST
        session, new = self._known(request)
        try:
            logged_in = self._logged_in(request, session)
            if logged_in is not None:
                session, new = logged_in, True
            user = session.user
            if self.sessions.has_expired(user) and not EXPIRED_PASSWORD_PATHS.search(request.path):
                reply = Reply(302, b"", HTML, {"Location": f"{self.site.context_path}{CHANGE_PASSWORD}"})
            elif self.site.require_login and user == GUEST and not self._is_open(request):
                reply = self._login_wanted(request)
            else:
                reply = self._dispatch(request, session)
        except Failed as failed:
            reply = failed.reply(self.site.release)
        except (ValueError, KeyError, IndexError) as error:
            reply = page(f"HTTP Status 500: {type(error).__name__}", 500)
        self._set_cookies(reply, session, new)
        return reply, user

    def _set_cookies(self, reply: Reply, session: Session, new: bool) -> None:
        path = self.site.context_path or "/"
        if new:  # before the reply's own cookies: of several with one name the last one counts
            reply.cookies.insert(0, f"JSESSIONID={session.id}; Path={path}; HttpOnly")
        now, idle = int(self.site.clock() * 1000), int(self.site.session_ttl * 1000)
        home = self.site.release.expiration_path or f"{self.site.context_path}/"
        reply.cookies.append(f'SESSION_EXPIRATION_TIME="{now},{idle}"; Version=1; Path={home}')

    def _known(self, request: Request) -> tuple[Session, bool]:
        """Return the session of a request, and whether it is new. Even a request that is refused gets a session."""
        match = COOKIE.search(request.headers.get("cookie", ""))
        session = self.sessions.find(match[1]) if match else None
        return (session, False) if session is not None else (self.sessions.create(GUEST), True)

    def _logged_in(self, request: Request, session: Session) -> Session | None:
        """Return the session of a login by Basic, or None if there is no other user to log in. Raises Failed."""
        authorization = request.headers.get("authorization")
        if not authorization or (session.user != GUEST and self._same(session, authorization)):
            return None
        return self.sessions.log_in(self.sessions.authenticate(authorization), session)

    def _same(self, session: Session, authorization: str) -> bool:
        try:
            name = base64.b64decode(authorization.partition(" ")[2]).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return False
        return name.rpartition("/")[2] == session.user

    def _is_open(self, request: Request) -> bool:
        """Return true for a request that a closed site answers without a login."""
        if request.path.startswith("/xapi/") and not self.site.release.has_xapi:
            return True
        return bool(OPEN_PATHS.match(request.path)) and (
            self.site.release.session_is_open or "/JSESSION" not in request.path
        )

    def _login_wanted(self, request: Request) -> Reply:
        browser = is_browser(request.headers.get("user-agent", ""))
        if self.site.release.sends_browsers_to_login and (browser or not request.path.startswith(API_PREFIXES)):
            return Reply(302, b"", HTML, {"Location": f"{self.site.context_path}/app/template/Login.vm"})
        if not self.site.release.login_page:
            return Refused().reply(self.site.release)
        if browser:
            return Reply(401, iter(()), "text/html")
        reply = Failed(401, "The request requires user authentication").reply(self.site.release)
        reply.headers["WWW-Authenticate"] = f'Basic realm="{self.site.release.realm}"'
        return reply

    def _dispatch(self, request: Request, session: Session) -> Reply:
        path = request.path
        changes = request.method in ("POST", "PUT", "DELETE")
        browser = is_browser(request.headers.get("user-agent", ""))
        if changes and browser and request.query.get("XNAT_CSRF") != session.csrf:
            return page("HTTP Status 500: INVALID CSRF", 500)
        if path == "/app/template/Login.vm" or path in ("", "/"):
            return page("XNAT Demo: log in")
        if path.startswith("/xapi/") and not self.site.release.has_xapi:
            return container_page(404, f"The requested resource [{path}] is not available", self.site.release)
        if not self.site.release.finds_odd_paths and ODD_PATH.search(path):
            raise Failed(404, "Unable to find catalog entry for given uri.", empty=True)
        if path.startswith("/xapi/"):
            return self.services.xapi(path.removeprefix("/xapi/"), request.method, session)
        for prefix in ("/data/", "/REST/"):
            if path.startswith(prefix):
                return self._data(path.removeprefix(prefix), request, session)
        raise Failed(404, "")

    def _data(self, path: str, request: Request, session: Session) -> Reply:
        form = request.headers.get("content-type", "").startswith(FORM_TYPE) or not self.site.release.form_type_needed
        body = request.body.small() if form else b""
        reply = self.services.data(path, request.method, request.query, body, session)
        if reply is not None:
            return reply
        slash = path.endswith("/")
        segments = tuple(part for part in path.removeprefix("archive/").split("/") if part)
        asked = Asked(session.user, request.method, segments, request.query, request.headers, slash)
        reply = self.writing.answer(path, asked, request.body)
        if reply is None:
            with self.archive.lock:
                reply = self.routes.answer(asked)
        if reply.status == 200 and reply.length() is None and OPEN_RANGE.match(request.headers.get("range", "")):
            raise Failed(500, "")  # a reply without a length has no known end
        if reply.content_type == "application/zip" and reply.length() is None:  # the server flushes lists and tars
            reply.body = buffered(reply.pieces())
        return reply


def to_httpx(reply: Reply) -> httpx.Response:
    """Convert a reply to httpx's, for tests without sockets."""
    named = [("Content-Type", reply.content_type)] if reply.content_type else []
    named += reply.headers.items()
    named += [("Set-Cookie", cookie) for cookie in reply.cookies]
    headers = [(name.encode(), value.encode("latin-1")) for name, value in named]
    length = reply.length()
    content = b"".join(reply.pieces())
    response = httpx.Response(reply.status, headers=headers, content=content)
    if length is None:
        response.headers.pop("content-length", None)
        response.headers["transfer-encoding"] = "chunked"
    elif isinstance(reply.body, Slice):
        response.headers["content-length"] = str(length)
    return response
