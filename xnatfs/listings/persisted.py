"""Persist listings, for the next mount to show at once while it requests them anew.

Invariants:
- One file per server and account, 0600, in a directory of 0700. It holds names and dates, no file data and no listing
  of files: what may be read is decided by the server's answers of today, or, while the server is unreachable and
  `--offline` is given, by `listings/stale.py`.
- What is older than OLDEST, of another version, damaged or not owned by this user counts as absent. Nothing here is
  ever an error: it costs the round trip that it would have saved.
- The file is read and written in a thread, one access at a time, many listings in one transaction.
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

# Changes with the table and with the meaning of a cell; fields are compared one by one.
VERSION = 2
# Yesterday's names are a help, last month's a nuisance.
OLDEST = 24 * 3600.0  # seconds
# A listing with more rows takes as long to read as to be asked for.
MOST_ROWS = 20_000
# Listings that are kept of one account, the newest: some 30 MB of sessions.
MOST_LISTINGS = 20_000
# How long listings are collected before they are written, in seconds: a walk makes hundreds in that time.
COLLECT = 1.0
# How long a lock of another process is waited for, in seconds: a write takes some milliseconds.
BUSY = 1.0
# After such a wait in vain nothing is read or written for so long, in seconds: it may be a stopped process.
BUSY_PAUSE = 60.0

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS listings"
    " (key TEXT PRIMARY KEY, at REAL NOT NULL, fields TEXT NOT NULL, rows TEXT NOT NULL)"
)

R = TypeVar("R")


class Kept:
    """The listings of one account on one server, below a directory that is for this server. Nothing is opened yet."""

    def __init__(self, directory: Path, account: str, clock: Callable[[], float] = time.time) -> None:
        name = hashlib.sha256(account.lower().encode()).hexdigest()[:32]
        self.path = directory / "listings" / f"{name}.db"
        self._clock = clock
        self._one = trio.CapacityLimiter(1)
        self._waiting: dict[str, Sequence[Any]] = {}
        self._emptied = False  # what was written is to go
        self._more = trio.Event()
        self._connection: sqlite3.Connection | None = None
        self._closed_until = -math.inf  # on time.monotonic()

    async def get(self, key: ListKey, kind: type[R]) -> list[R] | None:
        """The rows of a listing, if they are kept."""
        found = await self.dated(key, kind)
        return found[1] if found else None

    async def dated(self, key: ListKey, kind: type[R]) -> tuple[float, list[R]] | None:
        """The same, and when they were listed, in seconds since the epoch."""
        if self._emptied:
            return None
        return await trio.to_thread.run_sync(self._get, _text(key), kind, limiter=self._one)

    def put(self, key: ListKey, rows: Sequence[object]) -> None:
        """Keep the rows of a listing; none where there are too many, or none any more."""
        self._waiting[_text(key)] = rows if len(rows) <= MOST_ROWS else ()
        self._more.set()

    def forget_all(self) -> None:
        """Keep nothing of what was listed so far."""
        self._waiting, self._emptied = {}, True
        self._more.set()

    async def write(self) -> None:
        """Write what there is to write."""
        waiting, self._waiting, self._more = self._waiting, {}, trio.Event()
        emptied, self._emptied = self._emptied, False
        if waiting or emptied:
            await trio.to_thread.run_sync(self._write, waiting, emptied, limiter=self._one)

    async def run(self) -> None:
        """Write whenever there is something to write, until this is cancelled; then the rest."""
        try:
            while True:
                await self._more.wait()
                await trio.sleep(COLLECT)
                await self.write()
        finally:
            with trio.CancelScope(shield=True):
                await self.write()
                async with self._one:  # SQLite does not bear it while a thread reads
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
            log.debug("the kept listing %s is none: %s", key, error)
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
                connection.execute("PRAGMA synchronous = OFF")  # what a crash of the machine loses is asked for
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _fail(self, error: Exception) -> None:
        """Begin anew; where another process is at it, let that be."""
        self.close()
        if isinstance(error, sqlite3.OperationalError):
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                self._closed_until = time.monotonic() + BUSY_PAUSE
                log.info("%s is locked by %s: no listings are kept for now", self.path, holder(self.path))
            log.debug("%s is not to be had: %s", self.path, error)
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
    """The fields of a row and their types; rows of files are tuples, the others dataclasses."""
    named = fields(kind) if is_dataclass(kind) else ()
    return {field.name: field.type for field in named} or dict(kind.__annotations__)


def _fields(kind: type) -> list[str]:
    return [kind.__name__, *_types(kind)]


def _cells(row: Any) -> list[object]:
    return [getattr(row, name) for name in _types(type(row))]


def _row(kind: type[R], cells: object) -> R:
    """Raises TypeError for what is no such row."""
    named = list(_types(kind).values())
    if not isinstance(cells, list) or len(cells) != len(named):
        raise TypeError(f"{cells!r} is no {kind.__name__}")
    for cell, type_ in zip(cells, named, strict=True):
        if not isinstance(cell, str if type_ in (str, "str") else float | int | None):
            raise TypeError(f"{cell!r} is no {type_}")
    return kind(*cells)
