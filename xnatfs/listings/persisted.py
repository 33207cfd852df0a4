"""Persist listings, for the next mount to show at once while it requests them anew.

Invariants:
- There is one file per server and account, 0600, in a directory of 0700. It holds names and dates, and no file data.
  Listings of files come into it only with `--offline`: the server's current answers decide what may be read, or, with
  that option and while the server is unreachable, `listings/stale.py`.
- A listing that is older than OLDEST, of another version, damaged or not readable by this user counts as absent. No
  failure here is ever an error: it costs the round trip that the file would have saved.
- The file is read and written in a thread, one access at a time, and a batch of listings in one transaction.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import trio

from xnatfs.common.locks import holder
from xnatfs.common.private_files import make_private
from xnatfs.common.sanitize import loads
from xnatfs.listings.keys import ListKey

log = logging.getLogger(__name__)

# Changes with the table and with the meaning of a cell; the names of fields are compared one by one.
VERSION = 2
# Yesterday's names are a help, last month's a nuisance.
OLDEST = 24 * 3600.0  # seconds
# A listing with more rows takes as long to read from the disk as to request.
MOST_ROWS = 20_000
# Listings that are stored for one account, the newest: some 30 MB of sessions.
MOST_LISTINGS = 20_000
# Seconds for which listings are collected before they are written: an iteration over a project makes hundreds in them.
COLLECT = 1.0
# Timeout for the lock of another process, in seconds: a write takes some milliseconds.
BUSY = 1.0
# Seconds without access to the file after such a timeout: the other process may be a stopped one.
BUSY_PAUSE = 60.0

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS listings"
    " (key TEXT PRIMARY KEY, at REAL NOT NULL, fields TEXT NOT NULL, rows TEXT NOT NULL)"
)

R = TypeVar("R")


class Kept:
    """The persisted listings of one account on one server.

    The file is opened at the first access.

    Args:
        directory: The cache directory of the server.
        account: The name of the account, in any case.
        clock: The wall clock, in seconds since the epoch.
    """

    def __init__(self, directory: Path, account: str, clock: Callable[[], float] = time.time) -> None:
        name = hashlib.sha256(account.lower().encode()).hexdigest()[:32]
        self.path = directory / "listings" / f"{name}.db"
        self._clock = clock
        self._one = trio.CapacityLimiter(1)
        self._waiting: dict[str, Sequence[Any]] = {}
        self._emptied = False  # the stored listings are to be deleted
        self._more = trio.Event()
        self._connection: sqlite3.Connection | None = None
        self._closed_until = -math.inf  # on time.monotonic()

    async def get(self, key: ListKey, kind: type[R]) -> list[R] | None:
        """Return the rows of a persisted listing; None where there is none."""
        found = await self.dated(key, kind)
        return found[1] if found else None

    async def dated(self, key: ListKey, kind: type[R]) -> tuple[float, list[R]] | None:
        """Return the time of a persisted listing, in seconds since the epoch, and its rows; None if there is none."""
        if self._emptied:
            return None
        return await trio.to_thread.run_sync(self._get, _text(key), kind, limiter=self._one)

    def put(self, key: ListKey, rows: Sequence[object]) -> None:
        """Persist the rows of a listing in place of earlier ones; an empty or too long listing is only removed."""
        self._waiting[_text(key)] = rows if len(rows) <= MOST_ROWS else ()
        self._more.set()

    def forget_all(self) -> None:
        """Delete all listings so far."""
        self._waiting, self._emptied = {}, True
        self._more.set()

    async def write(self) -> None:
        """Write the pending changes."""
        waiting, self._waiting, self._more = self._waiting, {}, trio.Event()
        emptied, self._emptied = self._emptied, False
        if waiting or emptied:
            await trio.to_thread.run_sync(self._write, waiting, emptied, limiter=self._one)

    async def run(self) -> None:
        """Write changes as they come until cancelled; then write the remaining ones and close the file."""
        try:
            while True:
                await self._more.wait()
                await trio.sleep(COLLECT)
                await self.write()
        finally:
            with trio.CancelScope(shield=True):
                await self.write()
                async with self._one:  # SQLite must not be closed while a thread reads
                    self.close()

    # -- in a thread ---------------------------------------------------------------------------------------------

    def _get(self, key: str, kind: type[R]) -> tuple[float, list[R]] | None:
        try:
            found = self._database().execute("SELECT at, fields, rows FROM listings WHERE key = ?", (key,)).fetchone()
        except (OSError, sqlite3.Error) as error:
            self._fail(error)
            return None
        try:
            at, named, rows = found
            if not 0 <= self._clock() - at <= OLDEST or loads(named) != _fields(kind):
                return None
            made = [_row(kind, cells) for cells in loads(rows)]
            return (at, made) if made else None
        except (ValueError, TypeError) as error:
            log.debug("the persisted listing %s is invalid: %s", key, error)
            return None

    def _write(self, waiting: dict[str, Sequence[Any]], emptied: bool) -> None:
        now = self._clock()
        made = [
            (key, now, json.dumps(_fields(type(rows[0]))), json.dumps([_cells(row) for row in rows]))
            for key, rows in waiting.items()
            if rows
        ]
        try:
            with self._database() as database:
                if emptied:
                    database.execute("DELETE FROM listings")
                database.executemany("DELETE FROM listings WHERE key = ?", [(key,) for key in waiting])
                database.executemany("INSERT INTO listings VALUES (?, ?, ?, ?)", made)
                database.execute("DELETE FROM listings WHERE NOT at BETWEEN ? AND ?", (now - OLDEST, now))
                database.execute(
                    "DELETE FROM listings WHERE key IN (SELECT key FROM listings ORDER BY at DESC LIMIT -1 OFFSET ?)",
                    (MOST_LISTINGS,),
                )
        except (OSError, sqlite3.Error) as error:
            self._fail(error)

    def _database(self) -> sqlite3.Connection:
        if time.monotonic() < self._closed_until:
            raise sqlite3.OperationalError("locked by another process a moment ago")
        if self._connection is None:
            make_private(self.path.parent)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self.path, timeout=BUSY, check_same_thread=False)
            try:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, VERSION):
                    raise sqlite3.DatabaseError(f"it has version {version}")
                connection.execute(SCHEMA)
                connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute("PRAGMA synchronous = OFF")  # what a crash of the machine loses is requested again
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _fail(self, error: Exception) -> None:
        """Close the file after an error; delete it as well, unless SQLite reports an operational one (a lock)."""
        self.close()
        if isinstance(error, sqlite3.OperationalError):
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                self._closed_until = time.monotonic() + BUSY_PAUSE
                log.info("%s is locked by %s: no listings are kept for now", self.path, holder(self.path))
            log.debug("%s is unavailable: %s", self.path, error)
            return
        log.info("%s is begun anew: %s", self.path, error)
        with contextlib.suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _text(key: ListKey) -> str:
    return json.dumps(key.as_cells())


def _types(kind: type) -> dict[str, Any]:
    """Return the fields of a row and their types: rows of files are named tuples, all others are dataclasses."""
    named = fields(kind) if is_dataclass(kind) else ()
    return {field.name: field.type for field in named} or dict(kind.__annotations__)


def _fields(kind: type) -> list[str]:
    return [kind.__name__, *_types(kind)]


def _cells(row: Any) -> list[object]:
    return [getattr(row, name) for name in _types(type(row))]


def _row(kind: type[R], cells: object) -> R:
    """Build a row from its cells. Raises TypeError where their number or their types do not match."""
    named = list(_types(kind).values())
    if not isinstance(cells, list) or len(cells) != len(named):
        raise TypeError(f"{cells!r} is no {kind.__name__}")
    for cell, type_ in zip(cells, named, strict=True):
        if not isinstance(cell, str if type_ in (str, "str") else float | int | None):
            raise TypeError(f"{cell!r} is no {type_}")
    return kind(*cells)
