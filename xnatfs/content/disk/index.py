"""Index the blobs of a cache directory, their total size and last use, with SQLite in WAL mode.

Invariants:
- One connection reads, inline on the event loop (a point read takes microseconds, and WAL readers wait for no writer);
  another one writes, in a thread, one transaction at a time. Several processes share the file in this way.
- `total` is the sum over `blobs` and `partials`; triggers maintain it inside every transaction, of any process.
- A row names the boot during which its file was written until that file is known to be on the disk. After a crash of
  the machine such rows do not count: cheaper than an fdatasync before every row, and as safe (see directory.py).
- Other programs may remove, replace or damage an index while it is open. It is created, set aside and closed with the
  directory locked, and no WAL of another index is beside it when it is created.
"""

import contextlib
import logging
import math
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from xnatfs.content.source import folder_of

log = logging.getLogger(__name__)

# Changes with the tables; an index of another version is set aside like a damaged one.
SCHEMA_VERSION = 3

# Longest wait for another process's transaction. The longest one evicts for one big file: some 30 us per blob.
BUSY_SECONDS = 20.0
# Longest wait of a point read, which stops the event loop. In WAL mode it waits only while another process opens or
# closes the index.
READ_BUSY_SECONDS = 0.05

# SQLite's page cache per connection. A point read touches three pages.
SQLITE_PAGE_CACHE_KIB = 512

INDEX_SCHEMA = """
CREATE TABLE blobs (
    ident BLOB PRIMARY KEY,
    key TEXT NOT NULL,
    listed INTEGER,
    size INTEGER NOT NULL,
    modified TEXT NOT NULL,
    checked REAL NOT NULL,
    used REAL NOT NULL,
    boot TEXT NOT NULL,
    written INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX by_use ON blobs (used);
CREATE INDEX unsynced ON blobs (ident) WHERE boot <> '';
CREATE TABLE partials (name TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
"""
INDEX_TRIGGERS = "".join(
    f"""
CREATE TRIGGER {table}_added AFTER INSERT ON {table} BEGIN UPDATE total SET bytes = bytes + NEW.size; END;
CREATE TRIGGER {table}_gone AFTER DELETE ON {table} BEGIN UPDATE total SET bytes = bytes - OLD.size; END;
CREATE TRIGGER {table}_sized AFTER UPDATE OF size ON {table}
    BEGIN UPDATE total SET bytes = bytes + NEW.size - OLD.size; END;
"""
    for table in ("blobs", "partials")
)

# Time of use of a pinned blob, in seconds since the epoch: in the year 5138, later than any use. So a pin is a cell of
# the row and goes with it, and a program that knows no pins evicts such blobs last.
PINNED_USE = 1e11

# SQLite's error codes for a damaged index: "malformed", "not a database", and "no such table" for an emptied one.
DAMAGE_ERROR_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

ROW_COLUMNS = "ident, key, listed, size, modified, checked, used, boot, written"
ROW_PLACEHOLDERS = ", ".join("?" for _ in ROW_COLUMNS.split())
_cells = attrgetter(*ROW_COLUMNS.split(", "))


@dataclass(frozen=True, slots=True)
class BlobRow:
    """The row of one cached blob."""

    ident: bytes  # the sha256 of the content's identity; also the file's name
    key: str
    listed: int | None  # the size in the listing when the file was fetched or last checked
    size: int  # the true size
    modified: str  # Last-Modified of the reply
    checked: float  # when the file was fetched, or last confirmed by the server
    used: float  # when the file was last opened, as far as that has been written
    boot: str  # "" once the file is known to be on the disk
    written: int = 0  # the file's modification time in ns, by which later changes are noticed

    @property
    def stamp(self) -> str:
        """Return what distinguishes contents of the same identity: the date, or, without one, the time of the check."""
        return self.modified or repr(self.checked)


class Index:
    """An open index. Call `find_rows` and `total` on the event loop, all else in one thread at a time.

    Args:
        path: The path of the SQLite file.
        wait: Seconds to wait for the transaction of another process, at most BUSY_SECONDS.
    """

    def __init__(self, path: Path, wait: float = math.inf) -> None:
        self.damaged = False  # it must not be queried; the next write sets it aside
        self._path = path
        self._wait = min(wait, BUSY_SECONDS)
        self._blocked = False  # the last wait timed out: do not wait until the lock is acquired again
        self._read = _connect(path, self._wait)
        self._identity = _identity(path)
        try:
            _set_wait(self._read, READ_BUSY_SECONDS)
            self._write = _connect(path, self._wait)
            try:
                self._create()
            except BaseException:
                self._write.close()
                raise
        except BaseException:
            self._read.close()
            raise

    def close(self) -> None:
        """Close both connections.

        In the last process that closes it, SQLite also merges the WAL into the index, if that is still in its place.
        """
        self._read.close()
        self._write.close()

    def is_in_place(self) -> bool:
        """Return whether the index is still the file at its path, which other processes open."""
        return _identity(self._path) == self._identity

    def _create(self) -> None:
        if self._version() == 0:  # else it is only read, which works while another process writes, or is stopped
            self._write.executescript(
                f"BEGIN IMMEDIATE; {INDEX_SCHEMA} {INDEX_TRIGGERS} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
            )
        if (version := self._version()) != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, not {SCHEMA_VERSION}")
        self._write.execute(f"SELECT {ROW_COLUMNS} FROM blobs ORDER BY used LIMIT 1").fetchone()
        self._write.execute("SELECT bytes FROM total").fetchone()

    def _version(self) -> int:
        return int(self._write.execute("PRAGMA user_version").fetchone()[0])

    # On the event loop.

    def find_rows(self, idents: Sequence[bytes]) -> list[BlobRow]:
        """Return the existing rows of some hundred identities at most."""
        marks = ",".join("?" * len(idents))
        found = self._read.execute(f"SELECT {ROW_COLUMNS} FROM blobs WHERE ident IN ({marks})", idents)
        return [BlobRow(*each) for each in found]

    def total(self) -> int:
        """Return the bytes that are cached or reserved, over all processes."""
        return int(self._read.execute("SELECT bytes FROM total").fetchone()[0])

    # In a thread, inside `transaction`.

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run a transaction that acquires the write lock at its start, so that it cannot fail later without it."""
        self._begin()
        try:
            yield
            self._write.execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back by itself (disk full).
            if self._write.in_transaction:
                self._write.execute("ROLLBACK")
            raise

    def _begin(self) -> None:
        """Begin a transaction, waiting for the write lock, but not a second time where another process keeps it."""
        try:
            self._write.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as exc:
            if is_busy(exc) and not self._blocked:
                self._blocked = True
                _set_wait(self._write, 0)
            raise
        if self._blocked:
            self._blocked = False
            _set_wait(self._write, self._wait)

    def total_now(self) -> int:
        """Return the total as this transaction sees it."""
        return int(self._write.execute("SELECT bytes FROM total").fetchone()[0])

    def put(self, row: BlobRow) -> None:
        """Add or replace a row, without INSERT OR REPLACE, which would delete without the triggers."""
        self._write.execute(
            f"INSERT INTO blobs ({ROW_COLUMNS}) VALUES ({ROW_PLACEHOLDERS}) ON CONFLICT (ident) DO UPDATE SET"
            " key = excluded.key, listed = excluded.listed, size = excluded.size, modified = excluded.modified,"
            " checked = excluded.checked, used = MAX(used, excluded.used), boot = excluded.boot,"
            " written = excluded.written",
            _cells(row),
        )

    def renew(self, row: BlobRow) -> None:
        """Update a row after the server has confirmed the version."""
        self._write.execute(
            "UPDATE blobs SET listed = ?, checked = ? WHERE ident = ? AND modified = ?",
            (row.listed, row.checked, row.ident, row.modified),
        )

    def drop(self, idents: Iterable[bytes]) -> None:
        """Delete the rows of these identities."""
        self._write.executemany("DELETE FROM blobs WHERE ident = ?", [(ident,) for ident in idents])

    def in_folders(self, folders: Collection[str]) -> list[bytes]:
        """Return the identities of rows whose keys are in one of these folders. Reads every row."""
        rows = self._write.execute("SELECT ident, key FROM blobs")
        return [ident for ident, key in rows if folder_of(key) in folders]

    def touch(self, used: dict[bytes, float]) -> None:
        """Write the times at which identities were last opened, PINNED_USE to pin them; what is pinned stays so."""
        rows = [(at, ident, PINNED_USE) for ident, at in list(used.items())]
        self._write.executemany("UPDATE blobs SET used = ? WHERE ident = ? AND used < ?", rows)

    def unpin(self, idents: Iterable[bytes] | None, used: float) -> int:
        """Have blobs evicted again, all of them for None, as last used at a time; return how many were pinned."""
        unpin = "UPDATE blobs SET used = ? WHERE used >= ?"
        if idents is None:
            return self._write.execute(unpin, (used, PINNED_USE)).rowcount
        rows = [(used, PINNED_USE, ident) for ident in idents]
        return self._write.executemany(f"{unpin} AND ident = ?", rows).rowcount

    def usage(self) -> tuple[int, int, int]:
        """Return the numbers of blobs and of pinned ones, and the bytes of these. Reads every entry of an index."""
        (blobs,) = self._write.execute("SELECT COUNT(*) FROM blobs").fetchone()
        pinned = "SELECT COUNT(*), COALESCE(SUM(size), 0) FROM blobs WHERE used >= ?"
        count, size = self._write.execute(pinned, (PINNED_USE,)).fetchone()
        return blobs, count, size

    def oldest(self, after: tuple[float, bytes], count: int = 64) -> list[tuple[float, bytes, int]]:
        """Return up to `count` rows after `after`, least recently used first, without pinned ones."""
        oldest = "SELECT used, ident, size FROM blobs WHERE (used, ident) > (?, ?) AND used < ?"
        return self._write.execute(f"{oldest} ORDER BY used, ident LIMIT ?", (*after, PINNED_USE, count)).fetchall()

    def reserve(self, name: str, size: int) -> None:
        """Reserve the bytes of a download, which counts at its full size from the start."""
        self._write.execute(
            "INSERT INTO partials VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET size = excluded.size", (name, size)
        )

    def release(self, names: Iterable[str]) -> None:
        """End the reservations of downloads."""
        self._write.executemany("DELETE FROM partials WHERE name = ?", [(name,) for name in names])

    def reserved(self) -> set[str]:
        """Return the names of the reserved downloads of all processes."""
        return {name for (name,) in self._write.execute("SELECT name FROM partials")}

    def shard(self, first: int) -> dict[bytes, tuple[int, int]]:
        """Return (size, written) of the identities that begin with this byte."""
        ends = bytes([first]), bytes([first]) + b"\xff" * 32
        found = self._write.execute("SELECT ident, size, written FROM blobs WHERE ident BETWEEN ? AND ?", ends)
        return {ident: (size, written) for ident, size, written in found}

    def unsynced(self, boot: str, count: int) -> list[tuple[bytes, float]]:
        """Return up to `count` blobs of a boot that may not be on the disk yet, as (ident, checked)."""
        return self._write.execute(
            "SELECT ident, checked FROM blobs WHERE boot <> '' AND boot = ? LIMIT ?", (boot, count)
        ).fetchall()

    def synced(self, blobs: Iterable[tuple[bytes, float]]) -> None:
        """Mark blobs as written to the disk, except those that were replaced since."""
        self._write.executemany("UPDATE blobs SET boot = '' WHERE ident = ? AND checked = ?", blobs)


def open_index(path: Path, wait: float = math.inf) -> Index:
    """Open or create the index; one that cannot be read is set aside. Call it with the directory locked.

    Raises sqlite3.OperationalError where a lock of another process lasts longer than `wait` seconds; see `is_busy`.
    """
    if not path.exists():
        _remove_wal(path)  # of an index that another program has removed, and that may still be open
    try:
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise sqlite3.DatabaseError("no permission")
        return Index(path, wait)
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, sqlite3.OperationalError) and not is_damage(exc):
            raise  # locked, disk full: a new index would not help
        log.warning("cache index %s cannot be read (%s): set aside, the cache starts empty", path, exc)
        set_aside(path)
        return Index(path, wait)


def is_damage(exc: Exception) -> bool:
    """Return whether an error of SQLite means that the index is damaged."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF in DAMAGE_ERROR_CODES


def is_busy(exc: Exception) -> bool:
    """Return whether an error of SQLite means that another process has locked the index."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def wal_locks(path: Path) -> Path:
    """Return the path of the file on which SQLite holds the locks of an index."""
    return Path(f"{path}-shm")


def set_aside(path: Path) -> None:
    """Rename a damaged index, to be examined; remove its WAL, which must not be applied to a new one."""
    os.replace(path, f"{path}.damaged")
    _remove_wal(path)


def _remove_wal(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")


def _connect(path: Path, wait: float) -> sqlite3.Connection:
    # The file is created here for its mode, which SQLite copies to -wal and -shm. Once it exists, only SQLite opens it:
    # closing any descriptor of the file would drop the POSIX locks of every SQLite connection in this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{SQLITE_PAGE_CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def _set_wait(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {int(1000 * seconds)}")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
