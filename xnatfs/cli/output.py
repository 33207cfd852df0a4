"""Print rows as a table, JSON, YAML, CSV or TSV; anything that is not data goes to stderr.

Every row is a dict of typed values: text, integers, times, None for a value that the server does not state. A table
shows some of its keys as columns, a wide one, JSON and YAML all of them; only words that are too long for a narrow
terminal are cut. A terminal obeys control characters, so those of a server are not printed on one; programs get all of
the data, one item a line.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any

from xnatfs.cli import statusline, streams
from xnatfs.common.errors import ConfigError
from xnatfs.common.sanitize import plain

OUTPUT_FORMATS = ("table", "wide", "json", "jsonl", "yaml", "csv", "tsv")
STRUCTURED_FORMATS = ("json", "jsonl", "yaml")
SEPARATED_FORMATS = ("csv", "tsv")

Cells = dict[str, Any]  # one row: values by the names of their columns

# Titles of columns, where they are not the key in other letters.
TITLES = {
    "expires_at": "Expires",
    "file_count": "Files",
    "session_count": "Sessions",
    "username": "User",
    "xsi_type": "Data Type",
}
ABBREVIATIONS = {"id": "ID", "pi": "PI", "uid": "UID", "url": "URL"}

# Colours of states on a terminal, by their codes (ECMA-48).
GREEN, YELLOW, RED = 32, 33, 31
STATE_COLOURS = {
    **dict.fromkeys(("READY", "authenticated", "usable"), GREEN),
    **dict.fromkeys(("RECEIVING", "BUILDING", "ARCHIVING", "MOVING", "questionable"), YELLOW),
    **dict.fromkeys(("CONFLICT", "ERROR", "expired", "not authenticated", "unusable"), RED),
}
STATE_KEYS = ("status", "quality")
SIZE_KEY = "size"  # of a column that holds bytes

COLUMN_GAP = "  "
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def title(key: str) -> str:
    """Return the title of a column, as Series Description of series_description."""
    return TITLES.get(key) or " ".join(ABBREVIATIONS.get(word, word.capitalize()) for word in key.split("_"))


def check_columns(arguments: argparse.Namespace, columns: Sequence[str]) -> None:
    """Raise ConfigError for a column that the listing does not have, before anything is sent."""
    for text in arguments.filter:
        if ":" not in text:
            raise ConfigError(f"--filter {text}: must be FIELD:PATTERN, as in {columns[0]}:a*")
    names = arguments.columns.split(",") if arguments.columns else []
    names += [text.partition(":")[0] for text in arguments.filter]
    names += [arguments.sort_by.partition(":")[0]] if arguments.sort_by else []
    for name in names:
        if name.strip().lower() not in columns:
            raise ConfigError(f"there is no column {name.strip()!r}: take one of {', '.join(columns)}")


def show_rows(
    arguments: argparse.Namespace, columns: Sequence[str], rows: Sequence[Cells], identifier: str, no_rows_text: str
) -> None:
    """Print a list.

    Args:
        arguments: Output format and choice of rows and columns.
        columns: Keys of the rows that a table shows by default.
        rows: All rows of the list.
        identifier: Key of the value that --quiet prints.
        no_rows_text: Remark for a table without rows.
    """
    rows = _select(arguments, rows)
    if arguments.quiet:
        print_lines(str(row[identifier]) for row in rows)
    elif arguments.output in STRUCTURED_FORMATS:
        print_structured(arguments.output, rows)
    elif arguments.output not in SEPARATED_FORMATS and not rows:
        note(arguments, no_rows_text)
    else:
        chosen = [key.strip().lower() for key in arguments.columns.split(",")] if arguments.columns else None
        more = [key for key in rows[0] if key not in columns] if rows and arguments.output == "wide" else []
        keys = chosen or [*columns, *more]
        _show_table(arguments, keys, rows)


def show_item(arguments: argparse.Namespace, item: Cells, identifier: str) -> None:
    """Print one item, key by key; in a table, the lists in it follow as tables of their own.

    Args:
        arguments: Output format.
        item: All values of the item; TSV has all but lists.
        identifier: Key of the value that --quiet prints.
    """
    fields = {key: value for key, value in item.items() if not isinstance(value, list)}
    if arguments.quiet:
        print_data(str(item[identifier]))
    elif arguments.output in STRUCTURED_FORMATS:
        print_structured(arguments.output, item)
    elif arguments.output in SEPARATED_FORMATS:
        _print_separated(arguments.output, [[key, _cell(value)] for key, value in fields.items()])
    else:
        width = max(len(title(key)) for key in fields) + 1
        for key, value in fields.items():
            folded = fold(_shown(key, value), max(1, _room(arguments) - width - 1))
            parts = zip_longest([f"{title(key)}:"], folded, fillvalue="")
            for name, text in parts:
                print_text(f"{name:<{width}} {painted(arguments, key, text)}".rstrip())
        for key, value in item.items():
            if isinstance(value, list):
                _show_block(arguments, key.replace("_", " ").capitalize(), value)


def note(arguments: argparse.Namespace, text: str) -> None:
    """Print a remark for a person to stderr, unless --quiet is given."""
    if not arguments.quiet:
        print_message(text)


def print_structured(output: str, data: Any) -> None:
    """Print rows or an item as JSON or YAML; with `jsonl` each row on a line."""
    data = _typed(data)
    if output == "yaml":
        import yaml  # takes 10 ms to import, and is rarely needed

        print_data(yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=sys.maxsize).rstrip("\n"))
    elif output == "jsonl":
        print_lines(json.dumps(row, ensure_ascii=False) for row in (data if isinstance(data, list) else [data]))
    else:
        print_data(json.dumps(data, indent=2, ensure_ascii=False))


def _typed(value: Any) -> Any:
    """Return a value for programs: null where the server states nothing, times as in RFC 3339."""
    if isinstance(value, dict):
        return {key: _typed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_typed(each) for each in value]
    return _rfc3339(value) if isinstance(value, datetime) else None if value == "" else value


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone().isoformat(timespec="seconds")


def print_data(text: str) -> None:
    """Write data to stdout, without control characters if that is a terminal."""
    print_text(printable(text) if sys.stdout.isatty() else text)


def print_text(text: str) -> None:
    """Write text as it is to stdout. A closed pipe is no error: the exit status is still the command's."""
    with statusline.hidden():  # while a pager blocks this process, the terminal is the pager's
        try:
            print(text)
        except BrokenPipeError:
            streams.discard(sys.stdout)


def print_message(text: str) -> None:
    """Print a line for a person to stderr."""
    streams.report(plain(text))


def printable(text: str) -> str:
    """Return the text without control characters, except for tabs and ends of lines."""
    return "\n".join("\t".join(map(plain, line.split("\t"))) for line in text.split("\n"))


def _show_block(arguments: argparse.Namespace, heading: str, rows: Sequence[Any]) -> None:
    print_data(f"\n[{heading} ({len(rows)})]")
    if rows and isinstance(rows[0], dict):
        keys = [key for key in rows[0] if any(row.get(key) not in ("", None) for row in rows)] or ["id"]
        _show_table(arguments, keys, rows)
    else:
        print_lines(_cell(row) for row in rows)


def _select(arguments: argparse.Namespace, rows: Sequence[Cells]) -> list[Cells]:
    """Return the rows that pass the filters, in the requested order, up to the requested number."""
    found = list(rows)
    for text in arguments.filter:
        key, _, pattern = text.partition(":")
        found = [row for row in found if fnmatchcase(_cell(row.get(key.lower())).lower(), pattern.lower())]
    if arguments.sort_by:
        key, _, direction = arguments.sort_by.partition(":")
        found.sort(key=by_key(key.lower()), reverse=direction == "desc")
    return found[: arguments.limit] if arguments.limit is not None else found


def by_key(*keys: str) -> Callable[[Cells], tuple[Any, ...]]:
    """Return a sort key for rows by these columns: 2 comes before 10, and '2-MR1' between them."""
    from xnatfs.rest.models import natural

    return lambda row: tuple(natural("" if row.get(key) is None else str(row[key]).lower()) for key in keys)


def _cell(value: Any) -> str:
    """Return a value as one line without control characters, which a label of the server may contain."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return _rfc3339(value)
    return plain(", ".join(map(str, value)) if isinstance(value, list) else str(value))


# -- tables ------------------------------------------------------------------------------------------------------


def human_size(count: float) -> str:
    """Return a number of bytes with three digits and a unit."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 999.5 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: '1 file', '2 files'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _shown(key: str, value: Any) -> str:
    """Return a value as a table for people shows it."""
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    return human_size(value) if key == SIZE_KEY and isinstance(value, int) else _cell(value)


def painted(arguments: argparse.Namespace, key: str, text: str) -> str:
    """Return a state in its colour if the user can see it."""
    colour = STATE_COLOURS.get(text) if key in STATE_KEYS else None
    is_plain = arguments.plain or arguments.no_color or os.environ.get("NO_COLOR")
    if colour is None or is_plain or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def _show_table(arguments: argparse.Namespace, keys: Sequence[str], rows: Sequence[Cells]) -> None:
    """Print rows as CSV or TSV, or in columns that fit: folded at blanks, and words cut only if need be."""
    titles = [] if arguments.no_headers else [list(map(title, keys))]
    if arguments.output in SEPARATED_FORMATS:
        return _print_separated(arguments.output, [*titles, *([_cell(row.get(key)) for key in keys] for row in rows)])
    table = [*titles, *([_shown(key, row.get(key)) for key in keys] for row in rows)]
    columns, room = list(zip(*table, strict=True)), _room(arguments) - len(COLUMN_GAP) * (len(keys) - 1)
    longest = [max(display_width(word) for cell in column for word in cell.split() or [""]) for column in columns]
    widths = _column_widths(keys, [max(map(display_width, column)) for column in columns], longest, room)
    is_number = [all(type(row.get(key)) in (int, type(None)) for row in rows) for key in keys]
    for row in table:
        folded = [fold(_cut_words(cell, width), width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            padded = []
            for key, part, width, is_right in zip(keys, parts, widths, is_number, strict=True):
                blanks, text = " " * (width - display_width(part)), painted(arguments, key, part)
                padded.append(blanks + text if is_right else text + blanks)
            print_text(COLUMN_GAP.join(padded).rstrip())
    if any(width < word for width, word in zip(widths, longest, strict=True)):
        note(arguments, "Words are cut to fit; -o wide prints them whole")
    return None


def _print_separated(output: str, rows: Iterable[Sequence[str]]) -> None:
    """Print rows as CSV (RFC 4180, with line feeds), or with tabs between values."""
    from csv import writer

    for row in rows:
        text = io.StringIO()
        writer(text, lineterminator="").writerow(row)
        print_lines([text.getvalue() if output == "csv" else "\t".join(row)])


def _column_widths(keys: Sequence[str], wanted: Sequence[int], longest_words: Sequence[int], room: int) -> list[int]:
    """Return widths that fit the room: the wanted ones, with the widest columns made equally narrow if need be.

    First columns are folded, then words are cut, and those of an ID last: it is what users copy.
    """
    least = longest_words
    if sum(longest_words) > room:
        whole_ids = [word if key == "id" else 1 for key, word in zip(keys, longest_words, strict=True)]
        wanted, least = longest_words, whole_ids if sum(whole_ids) <= room else [1] * len(keys)

    def widths(widest: int) -> list[int]:
        return [max(low, min(high, widest)) for low, high in zip(least, wanted, strict=True)]

    return next(
        (fit for widest in range(min(max(wanted), room), 0, -1) if sum(fit := widths(widest)) <= room), widths(1)
    )


def _room(arguments: argparse.Namespace) -> int:
    """Return how many columns a line may have: those of the terminal; any number if nothing is to be folded."""
    is_whole = arguments.plain or arguments.output == "wide" or not sys.stdout.isatty()
    return sys.maxsize if is_whole else streams.terminal_columns()


def display_width(text: str) -> int:
    """Return how many columns of a terminal a text takes; East Asian characters take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # takes 10 ms to import, and most names are ASCII

    return cell_len(text)


def _cut_words(cell: str, width: int) -> str:
    """Shorten the words that are too long for a column."""
    return " ".join(word if display_width(word) <= width else _cut(word, width) for word in cell.split(" "))


def _cut(word: str, width: int) -> str:
    while display_width(word) >= width:
        word = word[:-1]
    return word + ELLIPSIS


def fold(text: str, width: int) -> list[str]:
    """Break text into lines at blanks alone: a word that is longer than `width` has a line of its own."""
    if display_width(text) <= width:
        return [text]
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and display_width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def print_lines(lines: Iterable[str]) -> None:
    """Print data, one item a line; ends of lines within an item are replaced."""
    for line in lines:
        print_data(line.replace("\n", "?"))
