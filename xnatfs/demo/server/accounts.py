"""Authenticate requests: session cookies, Basic, alias tokens, lockout, and guests' sessions."""

import base64
import binascii
import secrets
import string
import threading
import uuid
from dataclasses import dataclass, field

from xnatfs.demo.server.releases import XNAT_1_8, Release
from xnatfs.demo.server.reply import Failed, Reply, container_page
from xnatfs.demo.server.site import DemoSite

GUEST = "guest"
BROWSER_AGENTS = ("Mozilla", "MSIE", "AppleWebKit", "Opera")
MAX_FAILED_LOGINS = 20
LOCKOUT_SECONDS = 3600.0
TOKEN_LIFE_SECONDS = 2 * 86400.0
COLON = "The authentication token is invalid. You must provide a username and password separated by the ':' character."
EXPIRED = "Your password has expired. Please try again after changing your password."


@dataclass
class Session:
    id: str
    user: str
    used: float
    csrf: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True)
class Token:
    """An alias token: a generated name and secret that log a user in for two days."""

    id: int
    alias: str
    secret: str
    user: str
    created: float

    def shown(self) -> dict[str, object]:
        created = int(self.created * 1000)
        return {
            "id": self.id,
            "alias": self.alias,
            "secret": self.secret,
            "xdatUserId": self.user,
            "singleUse": False,
            "estimatedExpirationTime": created + int(TOKEN_LIFE_SECONDS * 1000),
            "validIPAddresses": [],
            "enabled": True,
            "created": created,
            "timestamp": created,
            "disabled": 0,
        }


class Refused(Failed):
    """The login was refused: 401, with the container's page."""

    def __init__(self) -> None:
        super().__init__(401)

    def reply(self, release: Release = XNAT_1_8) -> Reply:
        refused = container_page(401, release.refused, release)
        refused.headers["WWW-Authenticate"] = f'Basic realm="{release.realm}"'
        return refused


class Sessions:
    """All sessions. Its methods are thread-safe."""

    def __init__(self, site: DemoSite) -> None:
        self.site = site
        self.tokens: dict[str, Token] = {}
        self.logins = 0
        self._sessions: dict[str, Session] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def find(self, id: str) -> Session | None:
        """Return the session with this ID, or None if it has expired. The look-up renews it."""
        with self._lock:
            session = self._sessions.get(id)
            if session is None or self._is_over(session):
                self._sessions.pop(id, None)
                return None
            session.used = self.site.clock()
            return session

    def create(self, user: str) -> Session:
        with self._lock:
            mine = [
                s
                for s in self._sessions.values()
                if s.user == user and self.site.clock() - s.used <= self.site.session_ttl
            ]
            if user != GUEST and len(mine) >= self.site.max_sessions:
                raise Refused()
            session = Session(secrets.token_hex(16).upper(), user, self.site.clock())
            self._sessions[session.id] = session
            return session

    def log_in(self, user: str, before: Session | None) -> Session:
        """Create a session for a user, and end the session of the request, since a login changes the session's ID.

        Raises Refused if the user has too many sessions.
        """
        made = self.create(user)
        self.logins += 1
        if before is not None:
            self.end(before.id)
        return made

    def end(self, id: str) -> None:
        with self._lock:
            self._sessions.pop(id, None)

    def end_all(self, user: str = "") -> list[str]:
        """End all sessions, or those of a user, and return their IDs."""
        with self._lock:
            ended = [id for id, session in self._sessions.items() if user in ("", session.user)]
            for id in ended:
                del self._sessions[id]
            return ended

    def alive(self, user: str) -> int:
        """Count the user's sessions that have not expired."""
        with self._lock:
            return self._alive(user)

    def _alive(self, user: str) -> int:
        return sum(session.user == user and not self._is_over(session) for session in self._sessions.values())

    def _is_over(self, session: Session) -> bool:
        return self.site.clock() - session.used > self.site.session_ttl

    def authenticate(self, authorization: str) -> str:
        """Return the user of a Basic header. Raises Failed, in some releases before they check the password."""
        kind, _, encoded = authorization.partition(" ")
        try:
            name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise Refused() from None
        if kind.lower() != "basic":
            raise Refused()
        if ":" in password and not self.site.release.basic_colon:
            raise Failed(401, COLON, empty=True)
        if self.has_expired(name) and self.site.release.expired_password == "refuses":
            raise Failed(403, EXPIRED, empty=True)
        return self.check(name, password)

    def has_expired(self, name: str) -> bool:
        """Return true if the user's password has expired, and must be changed first."""
        user = self.site.archive.users.get(name)
        return user is not None and user.expired

    def methods(self) -> set[str]:
        """Return the login methods of the site. Here, their names are also their IDs."""
        return {"localdb", *(user.method for user in self.site.archive.users.values())}

    def check(self, name: str, password: str, method: str = "") -> str:
        """Return the user for a user name or token alias and its password or secret.

        Args:
            name: The user name, which may have a prefix with a slash, or the alias of a token.
            password: The password, or the secret of the token.
            method: The login method that must check the password; "" for the user's own.

        Raises:
            Refused: They do not match, or the account is locked after too many failed logins.
        """
        name = name.rpartition("/")[2]
        with self._lock:
            failures, since = self._failures.get(name, (0, 0.0))
            if failures >= MAX_FAILED_LOGINS:
                if self.site.clock() - since < LOCKOUT_SECONDS:
                    raise Refused()
                failures = 0
            token = self.tokens.get(name)
            if token is not None and self.good(token, password):
                return token.user
            known = self.site.archive.users.get(name)
            if (
                known
                and method in ("", known.method)
                and secrets.compare_digest(known.password.encode(), password.encode())
            ):
                self._failures.pop(name, None)
                return name
            self._failures[name] = (failures + 1, self.site.clock())
        raise Refused()

    def good(self, token: Token, secret: str) -> bool:
        fresh = self.site.clock() - token.created < TOKEN_LIFE_SECONDS
        return fresh and secrets.compare_digest(token.secret.encode(), secret.encode())

    def issue_token(self, user: str, alphabet: str = string.ascii_letters + string.digits, length: int = 64) -> Token:
        secret = "".join(secrets.choice(alphabet) for _ in range(length))
        token = Token(len(self.tokens) + 1, str(uuid.uuid4()), secret, user, self.site.clock())
        self.tokens[token.alias] = token
        return token


def is_browser(user_agent: str) -> bool:
    return any(name in user_agent for name in BROWSER_AGENTS)
