"""Render lists as the server does: as JSON, CSV, XML or an HTML page, with every cell a string."""

import csv
import io
import json
import random
from collections.abc import Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from html import escape
from urllib.parse import unquote

from xnatfs.demo.server.releases import XNAT_1_8, Release
from xnatfs.demo.server.reply import HTML, Failed, Reply, chunked

Rows = list[dict[str, str]]
JSON, XML, CSV = "application/json", "text/xml", "text/csv"
LIST = (JSON, "text/html", XML)  # media types that a list may be negotiated to; the first is the default
FORMATS = {"json": JSON, JSON: JSON, "xml": XML, XML: XML, "application/xml": XML, "csv": CSV, CSV: CSV}


class Query(dict[str, str]):
    """The query of a request, with the first value of each name, and all else that affects the form of the reply."""

    def __init__(
        self, pairs: Sequence[tuple[str, str]] = (), accept: str = "*/*", release: Release = XNAT_1_8, number: int = 0
    ) -> None:
        super().__init__(reversed(pairs))
        self.pairs = pairs
        self.accept = accept
        self.release = release
        self.number = number  # of the request

    def holding(self, pairs: Sequence[tuple[str, str]]) -> "Query":
        """Return a copy with other parameters."""
        return Query(pairs, self.accept, self.release, self.number)

    def every(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]


def negotiated(query: Query, variants: Sequence[str]) -> str:
    """Return the media type of the reply. Raises Failed (406) if none is acceptable, even with `format`."""
    best, weight = "", 0.0
    for part in query.get("media", query.accept or "*/*").split(","):
        kind, *parameters = [piece.strip() for piece in part.split(";")]
        stated = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        quality = float(stated) if stated.replace(".", "", 1).isdigit() else 0.0
        found = next((variant for variant in variants if _matches(kind, variant)), "")
        if found and quality > weight:
            best, weight = found, quality
    if not best:
        raise Failed(406, "Not Acceptable", empty=True)
    return best


def _matches(kind: str, variant: str) -> bool:
    if kind == "application/xml":
        kind = XML
    return kind in ("*/*", "*", variant) or (kind.endswith("/*") and variant.startswith(kind[:-1]))


def stored(text: str) -> str:
    """Return text as the database has it: the server escapes input from forms and URLs for XML when it stores it."""
    return escape(text, quote=False).replace('"', "&quot;").replace("'", "&apos;")


def free(text: str, query: Query) -> str:
    """Return free text as the database has it: non-ASCII letters may be character references, too."""
    escaped = stored(text)
    return escaped.encode("ascii", "xmlcharrefreplace").decode() if query.release.escapes_letters else escaped


def true(query: Query, name: str) -> bool:
    """Return true if a switch of the query is on: any value but `false` and `0` turns it on."""
    return query.get(name, "false") not in ("false", "0")


def table(
    rows: Rows, query: Query, *, columns: Sequence[str] = (), total: bool = True, ordered: bool = False, **more: object
) -> Reply:
    """Reply with a table in the requested format.

    The order of keys in JSON, and that of rows unless `ordered` or `sortBy` sets it, is arbitrary, as a server's is.

    Args:
        rows: The cells of each row by column.
        query: The request's query.
        columns: The columns to state if there are no rows, or if the request is for the names of the fields.
        total: Whether the result set states its number of rows.
        ordered: Whether the order of `rows` is kept, in releases that do not shuffle lists.
        more: More members of the result set in JSON, such as its title.
    """
    form = negotiated(query, LIST)
    if "format" in query:
        form = FORMATS.get(query["format"].lower(), "text/html")
    names = list(rows[0]) if rows else list(columns)
    if true(query, "fields") and columns:  # the names of the columns in place of their cells
        rows = [{"FIELD": name, "XPATH": name.lower()} for name in columns]
        names = ["FIELD", "XPATH"]
    rows = _sorted(rows, query, ordered)
    if form == JSON:
        count = {"totalRecords": str(len(rows))} if total else {}
        result = {"ResultSet": {"Result": [_shuffled(row) for row in rows], **more, **count}}
        return chunked(json.dumps(result, ensure_ascii=False).encode(), JSON)
    lines = [names, *([row.get(name, "") for name in names] for row in rows)]
    if form == CSV:
        return chunked(_csv(lines, query).encode(), CSV)
    return chunked(_marked_up(lines, form).encode(), XML if form == XML else HTML)


def _csv(lines: list[list[str]], query: Query) -> str:
    if not query.release.quotes_csv:  # not even cells that contain commas
        return "".join(",".join(line) + "\n" for line in lines)
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(lines)
    return out.getvalue()


def _marked_up(lines: list[list[str]], form: str) -> str:
    """Return the names of columns and the rows below them as XML or HTML."""

    def cells(tag: str, line: list[str]) -> str:
        return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line)

    names, *rows = lines
    if form == XML:
        below = "".join(f"<row>{cells('cell', row)}</row>" for row in rows)
        results = f"<results><columns>{cells('column', names)}</columns><rows>{below}</rows></results>"
        return f'<ResultSet totalRecords="{len(rows)}">{results}</ResultSet>'
    below = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<html><body><table><tr>{cells('th', names)}</tr>{below}</table></body></html>"


def _shuffled(row: dict[str, str]) -> dict[str, str]:
    keys = sorted(row)
    random.Random(repr(keys)).shuffle(keys)
    return {key: row[key] for key in keys}


def _sorted(rows: Rows, query: Query, ordered: bool) -> Rows:
    names = [name for name in query.get("sortBy", "").split(",") if name]
    if not ordered:
        rows = sorted(rows, key=lambda row: sorted(row.items()))
        random.Random(len(rows)).shuffle(rows)
    if query.release.shuffles:
        rows = random.Random(query.number).sample(rows, len(rows))
    if not names:
        return rows
    lowered = {key.lower(): key for row in rows[:1] for key in row}
    keys = [lowered[name.lower()] for name in names if name.lower() in lowered]
    return sorted(
        rows, key=lambda row: [row[key] for key in keys], reverse=query.get("sortOrder", "").upper() == "DESC"
    )


def select(rows: Rows, query: Query, defaults: Sequence[str], always: Sequence[str]) -> Rows:
    """Return the requested columns of the rows. Unknown ones are ignored.

    Args:
        rows: Rows with all columns.
        query: The request's query.
        defaults: The columns of a request that names none.
        always: The columns that every answer has.
    """
    asked = unquote(query.get("columns", ""))
    names = list(defaults) if not asked else []
    for name in asked.split(","):
        names += defaults if name == "DEFAULT" else [name]
    known = {key.lower(): key for row in rows for key in row}
    chosen = [known[name.lower()] for name in (*names, *always) if name.lower() in known]
    return [{name: row.get(name, "") for name in dict.fromkeys(chosen)} for row in rows]


def filtered(rows: Rows, query: Query, names: Sequence[str]) -> Rows:
    """Return the rows that match the query in the named columns."""
    for name in names:
        if name in query:
            rows = [row for row in rows if any(_fits(row.get(name, ""), part) for part in query[name].split(","))]
    return rows


def _fits(value: str, wanted: str) -> bool:
    """Return true if a cell matches: * and % are wildcards, two dates with a hyphen between them are a range."""
    first, _, last = wanted.partition("-")
    try:
        begin, end = (datetime.strptime(day, "%m/%d/%Y").date().isoformat() for day in (first, last or first))
    except ValueError:
        return fnmatchcase(value, wanted.replace("%", "*").replace("[", "[[]").replace("?", "[?]"))
    return begin <= value[:10] <= end


def paged(rows: Rows, query: Query) -> tuple[Rows, bool]:
    """Return the requested page, and whether it is the whole list."""
    if not query.release.pages or ("limit" not in query and "offset" not in query):
        return rows, True
    offset = int(query.get("offset", "0")) if query.get("offset", "0").isdigit() else 0
    limit = query.get("limit", "100")
    end = None if limit == "*" else offset + (int(limit) if limit.isdigit() else 100)
    return rows[offset:end], False
