"""Store listings on the disk, for the next mount and for shell completion; and what was read through which project.

Invariants:
- There is one file per server and account, 0600, in a directory of 0700. It holds names and dates, and no file data.
- A listing that is older than MAX_AGE_SECONDS, of another version, damaged or not readable by this user counts as
  absent. No failure here is ever an error: it costs the round trip that the file would have saved.
- The file is read and written by one thread at a time, and a batch of listings in one transaction.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from xnatfs.common.files import make_private
from xnatfs.common.locks import holder
from xnatfs.common.sanitize import loads
from xnatfs.listings.keys import ListKey
from xnatfs.rest.models import Item

log = logging.getLogger(__name__)

# Changes with the table and with the meaning of a cell; the names of fields are compared one by one.
STORE_VERSION = 3
# Yesterday's names are a help, last month's a nuisance.
MAX_AGE_SECONDS = 24 * 3600.0
# A listing with more rows takes as long to read from the disk as to request.
MAX_STORED_ROWS = 20_000
# Listings that are stored for one account, the newest: some 30 MB of sessions.
MAX_STORED_LISTINGS = 20_000
# Timeout for the lock of another process: a write takes some milliseconds.
LOCK_SECONDS = 1.0
# After such a timeout the file is not accessed for so long: the other process may be a stopped one.
LOCKED_PAUSE_SECONDS = 60.0

# Names for completion, as earlier versions stored them for all servers: a digest of server and account.
FORMER_NAMES = "[0-9a-f]" * 32 + ".json"

# Items whose files were read, the latest; each takes half a kilobyte of memory.
MAX_STORED_READS = 50_000

STORE_SCHEMA = """
CREATE TABLE IF NOT EXISTS listings (key TEXT PRIMARY KEY, at REAL NOT NULL, fields TEXT NOT NULL, rows TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS reads (place TEXT PRIMARY KEY, resources TEXT NOT NULL);
"""

# A project, or '', and an item whose files were read through it.
ReadPlace = tuple[str, Item]
Resources = str  # their numbers, with blanks between them: as a set they would take ten times the memory

R = TypeVar("R")


class ListingFile:
    """The stored listings of one account on one server. The file is opened at the first access, and all methods block.

    Args:
        directory: The cache directory of the server.
        account: Return the name of the account, in any case; called at the first access.
        clock: The wall clock, in seconds since the epoch.
    """

    def __init__(self, directory: Path, account: Callable[[], str], clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._account = account
        self.clock = clock
        self._connection: sqlite3.Connection | None = None
        self._closed_until = -math.inf  # on time.monotonic()

    @property
    def path(self) -> Path:
        name = hashlib.sha256(self._account().lower().encode()).hexdigest()[:32]
        return self._directory / "listings" / f"{name}.db"

    def read(self, key: ListKey, kind: type[R]) -> tuple[float, list[R]] | None:
        """Return the time of a stored listing, in seconds since the epoch, and its rows; None if there is none."""
        text = _text(key)
        try:
            found = self._database().execute("SELECT at, fields, rows FROM listings WHERE key = ?", (text,)).fetchone()
        except (OSError, sqlite3.Error) as error:
            self._fail(error)
            return None
        if found is None:
            return None
        try:
            at, named, rows = found
            if not 0 <= self.clock() - at <= MAX_AGE_SECONDS or loads(named) != _fields(kind):
                return None
            made = [_row(kind, cells) for cells in loads(rows)]
            return (at, made) if made else None
        except (ValueError, TypeError) as error:
            log.info("the stored listing %s is damaged, and is not used: %s", text, error)
            return None

    def write(
        self,
        listings: Mapping[ListKey, Sequence[Any]],
        emptied: bool = False,
        reads: Mapping[ReadPlace, Resources] | None = None,
    ) -> bool:
        """Store listings in place of earlier ones, and return whether the file could be written.

        Args:
            listings: The rows by key; listings that are empty or too long are only removed.
            emptied: True to delete all other listings.
            reads: Resources of which files were read.
        """
        now = self.clock()
        texts = {_text(key): rows for key, rows in listings.items()}
        made = [
            (text, now, json.dumps(_fields(type(rows[0]))), json.dumps([_cells(row) for row in rows]))
            for text, rows in texts.items()
            if 0 < len(rows) <= MAX_STORED_ROWS
        ]
        try:
            with self._database() as database:
                if emptied:
                    database.execute("DELETE FROM listings")
                database.executemany("DELETE FROM listings WHERE key = ?", [(text,) for text in texts])
                database.executemany("INSERT INTO listings VALUES (?, ?, ?, ?)", made)
                database.execute("DELETE FROM listings WHERE NOT at BETWEEN ? AND ?", (now - MAX_AGE_SECONDS, now))
                database.execute(
                    "DELETE FROM listings WHERE key IN (SELECT key FROM listings ORDER BY at DESC LIMIT -1 OFFSET ?)",
                    (MAX_STORED_LISTINGS,),
                )
                _write_reads(database, reads or {})
        except (OSError, sqlite3.Error) as error:
            self._fail(error)
            return False
        return True

    def read_reads(self) -> dict[ReadPlace, Resources]:
        """Return what `ListingStore.reads` does."""
        found: dict[ReadPlace, Resources] = {}
        try:
            rows = self._database().execute("SELECT place, resources FROM reads").fetchall()
        except (OSError, sqlite3.Error) as error:
            self._fail(error)
            return found
        for place, resources in rows:
            try:
                project, kind, name = _texts(place)
                (numbers,) = _texts(resources)
                found[project, (kind, name)] = numbers
            except (ValueError, TypeError) as error:
                log.info("what was read at %.80r is damaged in %s, and is not used: %s", place, self.path, error)
        return found

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _database(self) -> sqlite3.Connection:
        if time.monotonic() < self._closed_until:
            raise sqlite3.OperationalError("locked by another process a moment ago")
        if self._connection is None:
            path = self.path
            make_private(path.parent)
            for old in (self._directory.parent / "listings").glob(FORMER_NAMES):
                old.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            connection = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
            try:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, STORE_VERSION):
                    raise sqlite3.DatabaseError(f"it has version {version}")
                connection.executescript(STORE_SCHEMA)
                connection.execute(f"PRAGMA user_version = {STORE_VERSION}")
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
                self._closed_until = time.monotonic() + LOCKED_PAUSE_SECONDS
                log.info("%s is locked by %s: no listings are stored for now", self.path, holder(self.path))
            log.debug("%s is unavailable: %s", self.path, error)
            return
        log.info("%s is replaced by an empty file: %s", self.path, error)
        with contextlib.suppress(OSError):
            self.path.unlink()


def _write_reads(database: sqlite3.Connection, reads: Mapping[ReadPlace, Resources]) -> None:
    rows = [(json.dumps([project, *item]), json.dumps([noted])) for (project, item), noted in reads.items()]
    database.executemany("DELETE FROM reads WHERE place = ?", [(place,) for place, _ in rows])
    database.executemany("INSERT INTO reads VALUES (?, ?)", [row for row in rows if row[1] != '[""]'])
    if rows:
        database.execute(
            "DELETE FROM reads WHERE rowid IN (SELECT rowid FROM reads ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
            (MAX_STORED_READS,),
        )


def _texts(cell: str | bytes) -> list[str]:
    """Parse a list of texts. Raises ValueError where it is something else."""
    found = loads(cell)
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise ValueError("it is no list of texts")
    return found


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
