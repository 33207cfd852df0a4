"""Request lists of the server, and parse their rows while they arrive."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from sys import intern
from typing import NamedTuple, Self, TypeVar

import trio

from xnatfs.common.errors import BadReply
from xnatfs.http.documents import fetch
from xnatfs.http.transport import Transport
from xnatfs.rest.file_table import Catalogues
from xnatfs.rest.json_rows import MOST_BYTES, MOST_ROWS, JsonRow, NotAList, Table
from xnatfs.rest.models import SCAN_COLUMNS, SCAN_LABEL, Row, Scan

R = TypeVar("R")
# The object that a list becomes, and the function that puts rows into it.
Collected = tuple[R, Callable[[list[JsonRow]], None]]


class Limits(NamedTuple):
    """The largest list that is accepted."""

    size: int  # in bytes
    rows: int


# Bytes that are parsed at once, which takes a millisecond; other tasks run in between.
PARSED_BYTES = 32 * 1024
# A project of a hundred thousand sessions is 30 MB, and as objects its rows take up to 20 times as much.
LIST_LIMITS = Limits(2**28, 1_000_000)
FILE_LIMITS = Limits(MOST_BYTES, MOST_ROWS)


class Lists:
    """The lists of one server. Every method raises as those of `Xnat`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def parsed(self, parse: Callable[[Row], R], path: str, **params: str) -> list[R]:
        """Fetch a list, and return what `parse` makes of each row."""

        def collect() -> Collected[list[R]]:
            found: list[R] = []
            return found, lambda rows: found.extend(parse(Row(cells)) for cells in rows)

        return await self.collected(collect, path, params)

    async def rows(self, path: str, **params: str) -> list[Row]:
        return await self.parsed(lambda row: row, path, **params)

    async def files(self, path: str, **params: str) -> Catalogues:
        def collect() -> Collected[Catalogues]:
            found = Catalogues()
            return found, found.add

        return await self.collected(collect, path, params, FILE_LIMITS)

    async def collected(
        self, collect: Callable[[], Collected[R]], path: str, params: Mapping[str, str], limits: Limits | None = None
    ) -> R:
        """Fetch a list, and return the object into which its rows were put.

        Args:
            collect: Begin a new object; called each time the list is requested.
            path: The path, relative to the server's URL.
            params: The query, without the format.
            limits: The largest list that is accepted; LIST_LIMITS by default.
        """
        params = {"format": "json", **params}

        async def rows(chunks: AsyncGenerator[bytes]) -> tuple[R, int]:
            found, take = collect()
            return found, await _parse(Table(*(limits or LIST_LIMITS)), chunks, take)

        try:
            found, count = await fetch(self._transport, path, params, rows)
            if not count and self._transport.login.is_doubtful() and not await self._transport.session_lives(path):
                # An open site that has dropped the session answers as to a guest, with an empty list.
                found, _ = await fetch(self._transport, path, params, rows)
        except NotAList as error:
            raise BadReply(f"{self._transport.url}{path} was requested as a list and came as {error}") from None
        except (ValueError, RecursionError):  # the latter from a nested cell, when it is converted to text
            url = f"{self._transport.url}{path}"
            raise BadReply(f"{url} was requested as JSON and came as something else") from None
        return found


async def _parse(table: Table, chunks: AsyncGenerator[bytes], take: Callable[[list[JsonRow]], None]) -> int:
    """Parse a list as it arrives, pass its rows to `take`, and return their number."""
    count = 0
    async for chunk in chunks:
        for start in range(0, len(chunk), PARSED_BYTES):
            rows = table.feed(chunk[start : start + PARSED_BYTES])
            take(rows)
            count += len(rows)
            await trio.lowlevel.checkpoint()
    rows = table.close()
    take(rows)
    return count + len(rows)


@dataclass(frozen=True, slots=True)
class JoinedScans:
    """The scans of one session from a list of sessions joined with their scans, which lacks data types and frames."""

    scans: dict[str, Scan] = field(default_factory=dict)  # by scan ID
    labels: dict[str, set[str]] = field(default_factory=dict, compare=False)  # labels of the resources, by scan ID

    def __len__(self) -> int:
        return len(self.scans)

    @classmethod
    def from_scans(cls, scans: Iterable[Scan]) -> Self:
        """Build the scans of a session from its own list, for comparison."""
        return cls({scan.id: replace(scan, xsi_type="", frames=None) for scan in scans})

    def add(self, row: Row) -> None:
        """Add one row: a scan, one more resource of a scan, or nothing, where the session has no scans."""
        id, type, quality, description, note = SCAN_COLUMNS
        scan = row.get(id)
        if not scan:
            return
        if scan not in self.scans:
            cells = intern(row.text(type)), intern(row.text(quality)), "", row.text(note), intern(row.text(description))
            self.scans[scan] = Scan(scan, *cells)
        if label := row.text(SCAN_LABEL):
            self.labels.setdefault(scan, set()).add(label)

    @classmethod
    def parse(cls, rows: Iterable[Row], found: dict[str, "JoinedScans"]) -> None:
        """Add rows to `found`, by accession ID of the session. Raises BadReply where they lack sessions or scans."""
        for row in rows:
            session = row.need("session_ID", "ID", "xnat:imagesessiondata/id", "xnat:experimentdata/id")
            if not row.has(SCAN_COLUMNS[0]):
                raise BadReply(f"the server's list of sessions has no columns for their scans: {sorted(row.cells)}")
            if session not in found:
                found[session] = cls()
            found[session].add(row)
