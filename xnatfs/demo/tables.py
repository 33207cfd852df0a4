"""Lists as the server sends them: JSON, CSV, XML or an HTML page; every cell a string."""

import csv
import io
import json
import random
from collections.abc import Sequence
from fnmatch import fnmatchcase
from html import escape
from urllib.parse import unquote

from xnatfs.demo.reply import HTML, Reply, chunked

Rows = list[dict[str, str]]
Query = dict[str, str]


def true(query: Query, name: str) -> bool:
    """A switch of the query: on by anything but `false` and `0`."""
    return query.get(name, "false") not in ("false", "0")


def table(
    rows: Rows,
    query: Query,
    *,
    title: str = "",
    total: bool = True,
    extra: dict[str, object] | None = None,
    columns: Sequence[str] = (),
) -> Reply:
    """A finished table: sorted if asked for, in the format asked for. Key order is arbitrary."""
    rows = _sorted(rows, query)
    form = query.get("format", "json").lower()
    if form in ("json", "application/json"):
        shuffled = [_shuffled(row) for row in rows]
        result: dict[str, object] = {"Result": shuffled, **(extra or {})}
        if title:
            result["title"] = title
        if total:
            result["totalRecords"] = str(len(rows))
        return chunked(json.dumps({"ResultSet": result}, ensure_ascii=False).encode(), "application/json;charset=UTF-8")
    names = list(rows[0]) if rows else list(columns)
    if form in ("csv", "text/csv"):
        out = io.StringIO()
        writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([[row.get(name, "") for name in names] for row in rows])
        return chunked(out.getvalue().encode(), "text/csv;charset=UTF-8")
    if form in ("xml", "text/xml", "application/xml"):
        cells = "".join(
            "<row>" + "".join(f"<cell>{escape(row.get(name, ''))}</cell>" for name in names) + "</row>" for row in rows
        )
        head = "".join(f"<column>{escape(name)}</column>" for name in names)
        results = f"<results><columns>{head}</columns><rows>{cells}</rows></results>"
        body = f'<ResultSet totalRecords="{len(rows)}">{results}</ResultSet>'
        return chunked(body.encode(), "text/xml;charset=UTF-8")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    cells = "".join(
        "<tr>" + "".join(f"<td>{escape(row.get(name, ''))}</td>" for name in names) + "</tr>" for row in rows
    )
    return chunked(f"<html><body><table><tr>{head}</tr>{cells}</table></body></html>".encode(), HTML)


def _shuffled(row: dict[str, str]) -> dict[str, str]:
    keys = sorted(row)
    random.Random(repr(keys)).shuffle(keys)
    return {key: row[key] for key in keys}


def _sorted(rows: Rows, query: Query) -> Rows:
    names = [name for name in query.get("sortBy", "").split(",") if name]
    if not names:
        return rows
    lowered = {key.lower(): key for row in rows[:1] for key in row}
    keys = [lowered[name.lower()] for name in names if name.lower() in lowered]
    return sorted(
        rows, key=lambda row: [row[key] for key in keys], reverse=query.get("sortOrder", "").upper() == "DESC"
    )


def select(rows: Rows, query: Query, defaults: Sequence[str], always: Sequence[str]) -> Rows:
    """The columns asked for, in place of the default ones; `rows` hold all there are, unknown ones are ignored."""
    asked = unquote(query.get("columns", ""))
    names = list(defaults) if not asked else []
    for name in asked.split(","):
        names += defaults if name == "DEFAULT" else [name]
    known = {key.lower(): key for row in rows[:1] for key in row}
    chosen = [known[name.lower()] for name in (*names, *always) if name.lower() in known]
    return [{name: row[name] for name in dict.fromkeys(chosen)} for row in rows]


def filtered(rows: Rows, query: Query, names: Sequence[str]) -> Rows:
    """Rows whose named columns are as the query has them: commas separate alternatives, * and % match anything."""
    for name in names:
        if name in query:
            wanted = [part.replace("%", "*") for part in query[name].split(",")]
            rows = [row for row in rows if any(fnmatchcase(row.get(name, ""), part) for part in wanted)]
    return rows


def paged(rows: Rows, query: Query) -> tuple[Rows, bool]:
    """The page asked for, and whether the list is whole."""
    if "limit" not in query and "offset" not in query:
        return rows, True
    offset = int(query.get("offset", "0")) if query.get("offset", "0").isdigit() else 0
    limit = query.get("limit", "100")
    end = None if limit == "*" else offset + (int(limit) if limit.isdigit() else 100)
    return rows[offset:end], False
