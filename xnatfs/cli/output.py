"""Rows as a table, JSON, JSON lines or TSV; what is not data goes to stderr.

Every row is a dict of typed values: text, integers, None for what the server does not say. A table shows some of its
keys as columns, JSON all of them; nothing is cut. A terminal obeys what it is shown, so it is shown nothing of a server
that it could obey; a program is told everything, by lines of which each is one thing.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from xnatfs.cli import streams
from xnatfs.errors import ConfigError
from xnatfs.untrusted import plain

FORMATS = ("table", "json", "jsonl", "tsv")

Row = Mapping[str, Any]


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


def show_rows(
    arguments: argparse.Namespace,
    columns: Mapping[str, str],
    rows: Sequence[Row],
    name: str,
    empty: str = "No results",
) -> None:
    """Print a list. `columns` are the keys with their titles, `name` is the key that tells a row from others."""
    rows = _chosen(arguments, rows)
    if arguments.quiet:
        lines(str(row[name]) for row in rows)
    elif arguments.output == "json":
        say(json.dumps(rows, indent=2, ensure_ascii=False))
    elif arguments.output == "jsonl":
        lines(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        wanted = [key.strip().lower() for key in arguments.columns.split(",")] if arguments.columns else list(columns)
        cells = [[_cell(row.get(key)) for key in wanted] for row in rows]
        head = [] if arguments.no_headers else [[columns[key] for key in wanted]]
        if arguments.output == "tsv":
            lines("\t".join(line) for line in head + cells)
        elif rows:
            _table(head, cells)
        else:
            note(arguments, empty)


def show_item(arguments: argparse.Namespace, item: Row, name: str, titles: Mapping[str, str]) -> None:
    """One thing, key by key; lists within it as blocks of their own."""
    if arguments.quiet:
        say(str(item[name]))
    elif arguments.output in ("json", "jsonl"):
        say(json.dumps(item, indent=2 if arguments.output == "json" else None, ensure_ascii=False))
    elif arguments.output == "tsv":
        lines(f"{key}\t{_cell(value)}" for key, value in item.items() if not isinstance(value, list))
    else:
        width = max(len(title) for title in titles.values())
        lines(f"{title + ':':<{width + 1}} {_cell(item.get(key))}" for key, title in titles.items())
        for key, value in item.items():
            if isinstance(value, list):
                _block(key, value)


def note(arguments: argparse.Namespace, text: str) -> None:
    """A remark for a person."""
    if not arguments.quiet:
        tell(text)


def say(text: str) -> None:
    """Data, to stdout."""
    print(shown(text) if sys.stdout.isatty() else text)


def tell(text: str) -> None:
    """A line for a person, to stderr."""
    streams.report(plain(text))


def shown(text: str) -> str:
    """Text of which a terminal obeys nothing but the ends of our own lines and our own tabs."""
    return "\n".join("\t".join(map(plain, line.split("\t"))) for line in text.split("\n"))


def _block(title: str, rows: Sequence[Any]) -> None:
    say(f"\n[{title.replace('_', ' ').capitalize()} ({len(rows)})]")
    if rows and isinstance(rows[0], Mapping):
        keys = [key for key in rows[0] if any(row.get(key) not in ("", None) for row in rows)]
        _table([keys], [[_cell(row.get(key)) for key in keys] for row in rows])
    else:
        lines(_cell(row) for row in rows)


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


def natural(value: Any) -> tuple[tuple[int, int, str], ...]:
    """What to sort by, so that 2 comes before 10 and '2-MR1' between them."""
    from xnatfs.models import natural

    return natural("" if value is None else str(value).lower())


def _cell(value: Any) -> str:
    """A value on one line: a terminal must not obey what a server has in a label."""
    if value is None:
        return ""
    return plain(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _table(head: list[list[str]], cells: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*head, *cells, strict=True)]
    for line in head + cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def lines(lines: Iterable[str]) -> None:
    """Data, one a line: an end of a line within one is none."""
    for line in lines:
        say(line.replace("\n", "?"))
