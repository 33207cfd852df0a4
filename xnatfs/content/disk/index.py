"""The index of a cache directory: which blobs are kept, how large all is, what was used last. SQLite, in WAL mode.

Invariants:
- One connection reads, inline on the event loop (a point read is microseconds and WAL readers wait for nobody);
  another one writes, in a thread, one transaction at a time. Several processes do so on one file.
- `total` is the sum over `blobs` and `partials`; triggers keep it so inside every transaction, whoever writes.
- A row names the boot during which its file was written until that file is known to be on the disk. After a crash of
  the machine such rows do not count: cheaper than an fdatasync before every row, and as safe (see store.py).
- An index may be removed, replaced or damaged by others while it is open. It is made, set aside and closed with the
  directory locked, and has no WAL of another one beside it when it is made.
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

log = logging.getLogger(__name__)

# Changes with the tables; an index of another version is set aside like a damaged one.
SCHEMA_VERSION = 2

# Longest wait for another process's transaction. The longest one evicts for one big file: some 30 us per blob.
BUSY_SECONDS = 20.0
# The same of a point read, which stops the event loop. In WAL mode only one that opens or closes it is waited for.
READ_BUSY_SECONDS = 0.05

# SQLite's page cache per connection in KiB (a negative number means KiB). A point read touches three pages.
PAGE_CACHE = -512

SCHEMA = """
CREATE TABLE blobs (
    ident BLOB PRIMARY KEY,
    key TEXT NOT NULL,
    listed INTEGER,
    size INTEGER NOT NULL,
    modified TEXT NOT NULL,
    checked REAL NOT NULL,
    used REAL NOT NULL,
    boot TEXT NOT NULL,
    written INTEGER NOT NULL,
    owners TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX by_use ON blobs (used);
CREATE INDEX unsynced ON blobs (ident) WHERE boot <> '';
CREATE TABLE partials (name TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
"""
TRIGGERS = "".join(
    f"""
CREATE TRIGGER {table}_added AFTER INSERT ON {table} BEGIN UPDATE total SET bytes = bytes + NEW.size; END;
CREATE TRIGGER {table}_gone AFTER DELETE ON {table} BEGIN UPDATE total SET bytes = bytes - OLD.size; END;
CREATE TRIGGER {table}_sized AFTER UPDATE OF size ON {table}
    BEGIN UPDATE total SET bytes = bytes + NEW.size - OLD.size; END;
"""
    for table in ("blobs", "partials")
)

# What SQLite says of an index that is none: "malformed", "not a database", and "no such table" of one that was emptied.
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

COLUMNS = "ident, key, listed, size, modified, checked, used, boot, written, owners"
PLACES = ", ".join("?" for _ in COLUMNS.split())
_cells = attrgetter(*COLUMNS.split(", "))


@dataclass(frozen=True, slots=True)
class Row:
    """One kept blob."""

    ident: bytes  # sha256 of what identifies the content; also the file's name
    key: str
    listed: int | None  # the size that the listing gave when it was fetched or last checked
    size: int  # the true one
    modified: str  # Last-Modified of the reply
    checked: float  # when the server was last asked
    used: float  # at the last open, as far as it has been written
    boot: str  # "" once the file is known to be on the disk
    written: int = 0  # when the file was written to last, in ns: whoever changes it later is noticed
    owners: str = ""  # what it belongs to, a line each

    @property
    def stamp(self) -> str:
        """What tells it from another content of the same identity: its date, or, without one, when it came."""
        return self.modified or repr(self.checked)


class Index:
    """The open index. `get`, `have` and `total` are for the event loop, the rest for one thread at a time."""

    def __init__(self, path: Path, wait: float = math.inf) -> None:
        self.damaged = False  # it is for nobody to ask, and to be set aside
        self._path = path
        self._wait = min(wait, BUSY_SECONDS)  # for the transaction of another process
        self._blocked = False  # the last wait was in vain: a lock is only tried until it is acquired again
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
        """The last process to close also folds the WAL into the index, if it is in its place: SQLite looks."""
        self._read.close()
        self._write.close()

    def in_place(self) -> bool:
        """Is it the one that others find?"""
        return _identity(self._path) == self._identity

    def _create(self) -> None:
        if self._version() == 0:  # else it is only looked at, and can be while another process writes, or is stopped
            with self.transaction():
                for statement in _statements(SCHEMA + TRIGGERS):
                    self._write.execute(statement)
                self._write.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if (version := self._version()) != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, not {SCHEMA_VERSION}")
        self._write.execute(f"SELECT {COLUMNS} FROM blobs ORDER BY used LIMIT 1").fetchone()
        self._write.execute("SELECT bytes FROM total").fetchone()

    def _version(self) -> int:
        return int(self._write.execute("PRAGMA user_version").fetchone()[0])

    # On the event loop.

    def get(self, ident: bytes) -> Row | None:
        """What is kept under this identity."""
        found = self._read.execute(f"SELECT {COLUMNS} FROM blobs WHERE ident = ?", (ident,)).fetchone()
        return Row(*found) if found else None

    def have(self, idents: Sequence[bytes]) -> list[Row]:
        """What is kept of these, some hundreds at most. Costs a third of what it costs to `get` each."""
        marks = ",".join("?" * len(idents))
        found = self._read.execute(f"SELECT {COLUMNS} FROM blobs WHERE ident IN ({marks})", idents)
        return [Row(*each) for each in found]

    def total(self) -> int:
        """Bytes kept or reserved, over all processes."""
        return int(self._read.execute("SELECT bytes FROM total").fetchone()[0])

    # In a thread, inside `transaction`.

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, with the write lock taken first, so that it never fails half way for want of it."""
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
        """Wait for the write lock, but not a second time where the process that has it keeps it."""
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
        """The total as this transaction sees it."""
        return int(self._write.execute("SELECT bytes FROM total").fetchone()[0])

    def put(self, row: Row) -> None:
        """Add or replace. Not INSERT OR REPLACE: that would delete without the triggers."""
        self._write.execute(
            f"INSERT INTO blobs ({COLUMNS}) VALUES ({PLACES}) ON CONFLICT (ident) DO UPDATE SET"
            " key = excluded.key, listed = excluded.listed, size = excluded.size, modified = excluded.modified,"
            " checked = excluded.checked, used = excluded.used, boot = excluded.boot, written = excluded.written,"
            " owners = excluded.owners",
            _cells(row),
        )

    def renew(self, row: Row) -> None:
        """The server was asked, and it is still this version."""
        self._write.execute(
            "UPDATE blobs SET listed = ?, checked = ? WHERE ident = ? AND modified = ?",
            (row.listed, row.checked, row.ident, row.modified),
        )

    def drop(self, idents: Iterable[bytes]) -> None:
        """Forget these."""
        self._write.executemany("DELETE FROM blobs WHERE ident = ?", [(ident,) for ident in idents])

    def owners(self) -> set[str]:
        """All that anything belongs to, as rows have it. Looks at every row: 0.2 us each."""
        return {owners for (owners,) in self._write.execute("SELECT DISTINCT owners FROM blobs WHERE owners <> ''")}

    def owned(self, owners: Collection[str]) -> list[bytes]:
        """What belongs to one of these. Looks at every row."""
        rows = self._write.execute("SELECT ident, owners FROM blobs WHERE owners <> ''")
        return [ident for ident, named in rows if not set(named.split("\n")).isdisjoint(owners)]

    def touch(self, used: dict[bytes, float]) -> None:
        """Note when these were last opened."""
        self._write.executemany("UPDATE blobs SET used = ? WHERE ident = ?", [(at, i) for i, at in list(used.items())])

    def oldest(self, after: tuple[float, bytes], count: int = 64) -> list[tuple[float, bytes, int]]:
        """Least recently used first, beyond `after`: (used, ident, size)."""
        return self._write.execute(
            "SELECT used, ident, size FROM blobs WHERE (used, ident) > (?, ?) ORDER BY used, ident LIMIT ?",
            (*after, count),
        ).fetchall()

    def reserve(self, name: str, size: int) -> None:
        """Count a download at its full size from the start."""
        self._write.execute(
            "INSERT INTO partials VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET size = excluded.size", (name, size)
        )

    def release(self, names: Iterable[str]) -> None:
        """These downloads are over."""
        self._write.executemany("DELETE FROM partials WHERE name = ?", [(name,) for name in names])

    def reserved(self) -> set[str]:
        """All downloads counted, of whatever process."""
        return {name for (name,) in self._write.execute("SELECT name FROM partials")}

    def shard(self, first: int) -> dict[bytes, tuple[int, int]]:
        """Identities that begin with this byte: (size, written)."""
        ends = bytes([first]), bytes([first]) + b"\xff" * 32
        found = self._write.execute("SELECT ident, size, written FROM blobs WHERE ident BETWEEN ? AND ?", ends)
        return {ident: (size, written) for ident, size, written in found}

    def unsynced(self, boot: str, count: int) -> list[tuple[bytes, float]]:
        """Some blobs that may not be on the disk yet: (ident, checked)."""
        return self._write.execute(
            "SELECT ident, checked FROM blobs WHERE boot <> '' AND boot = ? LIMIT ?", (boot, count)
        ).fetchall()

    def synced(self, blobs: Iterable[tuple[bytes, float]]) -> None:
        """These are on the disk, unless replaced since."""
        self._write.executemany("UPDATE blobs SET boot = '' WHERE ident = ? AND checked = ?", blobs)


def open_index(path: Path, wait: float = math.inf) -> Index:
    """Open or create the index; one that cannot be read is set aside. Call it with the directory locked.

    No lock of another process is waited for longer than `wait` seconds: raises sqlite3.OperationalError, see `is_busy`.
    """
    if not path.exists():
        _remove_wal(path)  # of one that somebody has removed, and that is perhaps still open
    try:
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise sqlite3.DatabaseError("no permission")
        return Index(path, wait)
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, sqlite3.OperationalError) and not is_damage(exc):
            raise  # locked, disk full: nothing that a new index would cure
        log.warning("cache index %s cannot be read (%s): set aside, the cache starts empty", path, exc)
        set_aside(path)
        return Index(path, wait)


def is_damage(exc: Exception) -> bool:
    """Whether SQLite says of an index that it is none."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF in DAMAGED


def is_busy(exc: Exception) -> bool:
    """Whether SQLite says that another process has a lock on the index."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def wal_locks(path: Path) -> Path:
    """The file on which SQLite has the locks of an index."""
    return Path(f"{path}-shm")


def set_aside(path: Path) -> None:
    """Keep one damaged index for whoever wants to look; its WAL must not meet a new one."""
    os.replace(path, f"{path}.damaged")
    _remove_wal(path)


def _remove_wal(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")


def _connect(path: Path, wait: float) -> sqlite3.Connection:
    # Created here for its mode, which SQLite gives to -wal and -shm too. Never opened by us once it exists: closing
    # any descriptor of the file would drop the POSIX locks of every SQLite connection in this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = {PAGE_CACHE}")
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


def _statements(script: str) -> Iterator[str]:
    # executescript() would commit the transaction that this runs in.
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
