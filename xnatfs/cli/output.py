"""Print rows as a table, JSON, JSON lines or TSV; anything that is not data goes to stderr.

Every row is a dict of typed values: text, integers, None for a value that the server does not state. A table shows some
of its keys as columns, JSON all of them; only words that are too long for a narrow terminal are cut. A terminal obeys
control characters, so those of a server are not printed on one; programs get all of the data, one item a line.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any

from xnatfs.cli import statusline, streams
from xnatfs.common.errors import ConfigError
from xnatfs.common.sanitize import plain

FORMATS = ("table", "json", "jsonl", "tsv")

Row = Mapping[str, Any]

GAP = "  "
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def check_columns(arguments: argparse.Namespace, columns: Mapping[str, str]) -> None:
    """Raise ConfigError for a column that the listing does not have, before anything is sent."""
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
    """Print a list.

    Args:
        columns: titles of the columns, by their keys in the rows.
        name: key that identifies a row, which is all that --quiet prints.
        empty: remark for a table without rows.
    """
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
            _table(arguments, head, cells)
        else:
            note(arguments, empty)


def show_item(arguments: argparse.Namespace, item: Row, name: str, titles: Mapping[str, str]) -> None:
    """Print one item, key by key; lists within it follow as blocks of their own.

    Args:
        name: key that identifies the item, which is all that --quiet prints.
        titles: titles of the keys to print for people; JSON has all keys, TSV all but lists.
    """
    if arguments.quiet:
        say(str(item[name]))
    elif arguments.output in ("json", "jsonl"):
        say(json.dumps(item, indent=2 if arguments.output == "json" else None, ensure_ascii=False))
    elif arguments.output == "tsv":
        lines(f"{key}\t{_cell(value)}" for key, value in item.items() if not isinstance(value, list))
    else:
        width = max(len(title) for title in titles.values())
        for key, title in titles.items():
            folded = fold(_cell(item.get(key)), max(1, _columns() - width - 2))
            lines(
                f"{name:<{width + 1}} {text}".rstrip()
                for name, text in zip_longest([f"{title}:"], folded, fillvalue="")
            )
        for key, value in item.items():
            if isinstance(value, list):
                _block(arguments, key, value)


def note(arguments: argparse.Namespace, text: str) -> None:
    """Print a remark for a person to stderr, unless --quiet is given."""
    if not arguments.quiet:
        tell(text)


def say(text: str) -> None:
    """Write data to stdout. A closed pipe is no error: the exit status is still the command's."""
    with statusline.hidden():  # while a pager blocks this process, the terminal is the pager's
        try:
            print(shown(text) if sys.stdout.isatty() else text)
        except BrokenPipeError:
            streams.discard(sys.stdout)


def tell(text: str) -> None:
    """Print a line for a person to stderr."""
    streams.report(plain(text))


def shown(text: str) -> str:
    """Return the text without control characters, except for tabs and ends of lines."""
    return "\n".join("\t".join(map(plain, line.split("\t"))) for line in text.split("\n"))


def _block(arguments: argparse.Namespace, title: str, rows: Sequence[Any]) -> None:
    say(f"\n[{title.replace('_', ' ').capitalize()} ({len(rows)})]")
    if rows and isinstance(rows[0], Mapping):
        keys = [key for key in rows[0] if any(row.get(key) not in ("", None) for row in rows)]
        _table(arguments, [keys], [[_cell(row.get(key)) for key in keys] for row in rows])
    else:
        lines(_cell(row) for row in rows)


def _chosen(arguments: argparse.Namespace, rows: Sequence[Row]) -> list[Row]:
    """Return the rows that pass the filters, in the requested order, up to the requested number."""
    found = list(rows)
    for text in arguments.filter:
        key, _, pattern = text.partition(":")
        found = [row for row in found if fnmatchcase(_cell(row.get(key.lower())).lower(), pattern.lower())]
    if arguments.sort_by:
        key, _, direction = arguments.sort_by.partition(":")
        found.sort(key=lambda row: natural(row.get(key.lower())), reverse=direction == "desc")
    return found[: arguments.limit] if arguments.limit is not None else found


def natural(value: Any) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key by which 2 comes before 10, and '2-MR1' between them."""
    from xnatfs.rest.models import natural

    return natural("" if value is None else str(value).lower())


def _cell(value: Any) -> str:
    """Return a value as one line without control characters, which a label of the server may contain."""
    if value is None:
        return ""
    return plain(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _columns() -> int:
    """Return how many columns a line may have: those of the terminal; any number if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def _table(arguments: argparse.Namespace, head: list[list[str]], cells: list[list[str]]) -> None:
    """Print rows in columns. On a terminal, cells are folded at blanks to fit, and words are cut only if need be."""
    columns = list(zip(*head, *cells, strict=True))
    room = _columns() - len(GAP) * (len(columns) - 1)
    words = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    widths = _shared(room, [max(map(len, column)) for column in columns], words)
    for row in head + cells:
        folded = [fold(_cut(cell, width), width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            say(GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
    if any(width < word for width, word in zip(widths, words, strict=True)):
        note(arguments, "Cut to the width of the terminal; -o tsv prints all of it")


def _shared(room: int, wanted: Sequence[int], least: Sequence[int]) -> list[int]:
    """Return widths that fit: the wanted ones, with the widest reduced to an equal width as far as `least` allows."""
    if sum(least) > room:
        wanted, least = least, [1] * len(least)
    most = max(wanted)
    while (
        sum(widths := [max(low, min(high, most)) for low, high in zip(least, wanted, strict=True)]) > room and most > 1
    ):
        most -= 1
    return widths


def _cut(cell: str, width: int) -> str:
    """Shorten the words that are too long for a column."""
    return " ".join(word if len(word) <= width else word[: width - 1] + ELLIPSIS for word in cell.split(" "))


def fold(text: str, width: int) -> list[str]:
    """Break text into lines at blanks alone: a word that is longer than `width` has a line of its own."""
    from textwrap import wrap

    return [text] if len(text) <= width else wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def lines(lines: Iterable[str]) -> None:
    """Print data, one item a line; ends of lines within an item are replaced."""
    for line in lines:
        say(line.replace("\n", "?"))
