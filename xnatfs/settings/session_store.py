"""Store the JSESSIONID of a login, so that all programs of a user share one session.

    ~/.config/xnatfs/sessions/<hash of server and user>.json    one for each login; ours
    ~/.config/xnatctl/.session                                  one slot for the machine account, shared with the
                                                                xnatctl of PyPI: the last login

Both hold one JSON object of the same form. Its times are naive local times, `version` is 1, and no key is added: the
other program fails on anything else. A missing or malformed file means no session, never an error. A process acquires
the lock to log in, and looks for a session again once it has it, so that one login serves all. The lock protects no
file, since each is replaced as a whole: if it is held for too long, a process logs in without it.
"""

import json
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from xnatfs.common import locks
from xnatfs.common.files import write_private
from xnatfs.common.sanitize import loads
from xnatfs.common.urls import is_same_server, server_key

# XNAT's default idle timeout, and the only one that the other program knows.
IDLE_SESSION_SECONDS = 900.0
# Idle timeout for `expires_at: null`, as a number of seconds that can be added to a date.
NEVER_SECONDS = 10 * 365 * 86400.0
# Seconds between updates of the time of use: an update at each request would write a file a request, and a session
# lives 15 minutes.
UPDATE_SECONDS = 60.0
# Characters of a valid ID: whatever a server, a file or the environment names as one is sent in a header.
_SESSION_ID = re.compile(r"[0-9A-Za-z._~+/=-]{8,256}")


def is_session_id(text: str) -> bool:
    """Return whether a text looks like a JSESSIONID."""
    return _SESSION_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A stored session."""

    token: str
    url: str
    username: str
    created: datetime
    used: datetime
    idle: float  # seconds

    def is_alive(self, now: datetime) -> bool:
        return now < self.used + timedelta(seconds=self.idle)

    def __repr__(self) -> str:
        return f"StoredSession({self.url!r}, {self.username!r})"


class SessionStore:
    """Stored sessions of one login. `url` is compared by server and written as the user spelt it."""

    def __init__(
        self,
        url: str,
        username: str,
        home: Path | None = None,
        clock: Callable[[], float] = time.time,
        given: str = "",
        lock_timeout: float = math.inf,
    ) -> None:
        self.url = url
        self.username = username
        self._given = given  # a token from the environment: preferred to stored ones
        self._directory = (home or Path.home()) / ".config" / "xnatfs" / "sessions"
        self._slot = (home or Path.home()) / ".config" / "xnatctl" / ".session"
        self._lock = self._directory / "lock"  # one for all logins, since they share the slot, too
        self._clock = clock
        self._updated_at = 0.0
        self._lock_timeout = lock_timeout

    def find(self, dead: frozenset[str] = frozenset(), *, ended: bool = False) -> StoredSession | None:
        """Find the session used last, of those that may be alive; without a user name, of any user on this server.

        With `ended`, sessions that have idled too long are included.
        """
        if self._given and self._given not in dead:
            return StoredSession(self._given, self.url, self.username, self._now(), self._now(), NEVER_SECONDS)
        return self.find_stored(dead, ended=ended)

    def find_stored(self, dead: frozenset[str] = frozenset(), *, ended: bool = False) -> StoredSession | None:
        """Find a session as `find` does, but never the one from the environment, which must not be replaced."""
        found = [stored for path in self._files() if (stored := _read(path)) and self._suits(stored, dead, ended)]
        return max(found, key=lambda stored: stored.used, default=None)

    def save(self, token: str, idle: float, username: str = "") -> None:
        """Store a session that has just begun, under this user name if it is known by now. Raises OSError."""
        now = self._now()
        session = StoredSession(token, self.url, username or self.username, now, now, idle)
        _write(self._own(session.username), session)
        _write(self._slot, session)

    def record_use(self, token: str, idle: float) -> None:
        """Record that the server has answered this session; at most once a minute."""
        if self._clock() - self._updated_at < UPDATE_SECONDS:
            return
        self._updated_at = self._clock()
        self._rewrite(token, lambda stored: replace(stored, used=self._now(), idle=idle))

    def replace(self, token: str, newest: str) -> None:
        """Record that the server has given a session another ID."""
        self._rewrite(token, lambda stored: replace(stored, token=newest, used=self._now()))

    def _rewrite(self, token: str, change: Callable[[StoredSession], StoredSession]) -> None:
        """Change the stored session, unless another process holds the lock."""
        with suppress(OSError), locks.open_lock(self._lock) as descriptor:
            for path, stored in self._find_all(token) if locks.lock(descriptor) else ():
                _write(path, change(stored))

    def forget(self, token: str) -> None:
        """Remove this session; sessions of other servers and users stay."""
        for path, _ in self._find_all(token):
            path.unlink(missing_ok=True)

    def _find_all(self, token: str) -> list[tuple[Path, StoredSession]]:
        found = [(path, _read(path)) for path in self._files()]
        return [(path, stored) for path, stored in found if stored and stored.token == token]

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Hold the login lock, so that other processes wait for the new session; not for ever. Raises OSError."""
        with locks.open_lock(self._lock) as descriptor:
            if not await locks.lock_soon(descriptor, self._lock_timeout):
                holder = locks.holder(self._lock)
                locks.log.warning("the sessions in %s are locked by %s: logging in anyway", self._directory, holder)
            yield

    def _files(self) -> list[Path]:
        own = [self._own(self.username)] if self.username else sorted(self._directory.glob("*.json"))
        return [*own, self._slot]

    def _own(self, username: str) -> Path:
        from hashlib import sha256  # loads OpenSSL

        name = sha256(f"{server_key(self.url)}\n{username.lower()}".encode()).hexdigest()[:32]
        return self._directory / f"{name}.json"

    def _suits(self, stored: StoredSession, dead: frozenset[str], ended: bool) -> bool:
        same_user = not self.username or stored.username.lower() == self.username.lower()
        same = is_same_server(stored.url, self.url) and same_user
        return same and stored.token not in dead and (ended or stored.is_alive(self._now()))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock())


def _read(path: Path) -> StoredSession | None:
    try:
        cells: Any = loads(path.read_bytes())
        created = datetime.fromisoformat(cells["created_at"]).replace(tzinfo=None)
        used = datetime.fromisoformat(cells.get("last_used_at") or cells["created_at"]).replace(tzinfo=None)
        idle = NEVER_SECONDS if cells.get("expires_at", "") is None else IDLE_SESSION_SECONDS
        if cells.get("expires_at"):
            ends = datetime.fromisoformat(cells["expires_at"]).replace(tzinfo=None)
            idle = max(IDLE_SESSION_SECONDS if "last_used_at" not in cells else 0.0, (ends - used).total_seconds())
        if cells.get("version", 1) != 1 or not is_session_id(str(cells["token"])):
            return None
        used + timedelta(seconds=idle)
        return StoredSession(
            str(cells["token"]), str(cells["url"]), str(cells.get("username") or ""), created, used, idle
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _write(path: Path, session: StoredSession) -> None:
    """Replace the file atomically, private from its creation."""
    ends = session.used + timedelta(seconds=session.idle)
    cells = {
        "version": 1,
        "token": session.token,
        "url": session.url,
        "username": session.username,
        "created_at": session.created.isoformat(),
        "expires_at": ends.isoformat(),
        "last_used_at": session.used.isoformat(),
    }
    write_private(path, json.dumps(cells))
