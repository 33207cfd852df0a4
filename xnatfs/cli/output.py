"""Rows as a table, JSON, JSON lines or TSV; what is not data goes to stderr.

Every row is a dict of typed values: text, integers, None for what the server does not say. A table shows some of its
keys as columns, JSON all of them; nothing is cut.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from xnatfs.errors import ConfigError

FORMATS = ("table", "json", "jsonl", "tsv")

Row = Mapping[str, Any]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_columns(arguments: argparse.Namespace, columns: Mapping[str, str]) -> None:
    """Raise ConfigError for a column that the listing does not have; before anything is sent."""
    asked = arguments.columns.split(",") if arguments.columns else []
    asked += [
        text.partition(":")[0] for text in [*arguments.filter, *([arguments.sort_by] if arguments.sort_by else [])]
    ]
    for text in arguments.filter:
        if ":" not in text:
            raise ConfigError(f"--filter {text}: must be FIELD:PATTERN, as in {next(iter(columns))}:a*")
    for name in asked:
        if name.strip().lower() not in columns:
            raise ConfigError(f"there is no column {name.strip()!r}: take one of {', '.join(columns)}")


def show_rows(arguments: argparse.Namespace, columns: Mapping[str, str], rows: Sequence[Row], name: str) -> None:
    """A list. `columns` are the keys with their titles, `name` is the key that tells a row from others."""
    rows = _chosen(arguments, rows)
    if arguments.quiet:
        _lines(str(row[name]) for row in rows)
    elif arguments.output == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif arguments.output == "jsonl":
        _lines(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        wanted = [key.strip().lower() for key in arguments.columns.split(",")] if arguments.columns else list(columns)
        cells = [[_cell(row.get(key)) for key in wanted] for row in rows]
        head = [] if arguments.no_headers else [[columns[key] for key in wanted]]
        if arguments.output == "tsv":
            _lines("\t".join(line) for line in head + cells)
        elif rows:
            _table(head, cells)
        else:
            note(arguments, "No results")


def show_item(arguments: argparse.Namespace, item: Row, name: str, titles: Mapping[str, str]) -> None:
    """One thing, key by key; lists within it as blocks of their own."""
    if arguments.quiet:
        print(item[name])
    elif arguments.output in ("json", "jsonl"):
        print(json.dumps(item, indent=2 if arguments.output == "json" else None, ensure_ascii=False))
    elif arguments.output == "tsv":
        _lines(f"{key}\t{_cell(value)}" for key, value in item.items() if not isinstance(value, list))
    else:
        width = max(len(title) for title in titles.values())
        _lines(f"{title + ':':<{width + 1}} {_cell(item.get(key))}" for key, title in titles.items())
        for key, value in item.items():
            if isinstance(value, list):
                _block(key, value)


def note(arguments: argparse.Namespace, text: str) -> None:
    """A remark for a person."""
    if not arguments.quiet:
        print(text, file=sys.stderr)


def _block(title: str, rows: Sequence[Any]) -> None:
    print(f"\n[{title.replace('_', ' ').capitalize()} ({len(rows)})]")
    if rows and isinstance(rows[0], Mapping):
        keys = [key for key in rows[0] if any(row.get(key) not in ("", None) for row in rows)]
        _table([keys], [[_cell(row.get(key)) for key in keys] for row in rows])
    else:
        _lines(_cell(row) for row in rows)


def _chosen(arguments: argparse.Namespace, rows: Sequence[Row]) -> list[Row]:
    """Those that pass the filters, in the order asked for, as many as asked for."""
    found = list(rows)
    for text in arguments.filter:
        key, _, pattern = text.partition(":")
        found = [row for row in found if fnmatchcase(_cell(row.get(key.lower())).lower(), pattern.lower())]
    if arguments.sort_by:
        key, _, direction = arguments.sort_by.partition(":")
        found.sort(key=lambda row: natural(row.get(key.lower())), reverse=direction == "desc")
    return found[: arguments.limit] if arguments.limit is not None else found


def natural(value: Any) -> list[tuple[int, int, str]]:
    """What to sort by, so that 2 comes before 10 and '2-MR1' between them."""
    parts = re.split(r"(\d+)", "" if value is None else str(value))
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in parts if part]


def _cell(value: Any) -> str:
    """A value on one line: a terminal must not obey what a server has in a label."""
    if value is None:
        return ""
    return _CONTROL.sub("?", ", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _table(head: list[list[str]], cells: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*head, *cells, strict=True)]
    for line in head + cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _lines(lines: Any) -> None:
    for line in lines:
        print(line)
