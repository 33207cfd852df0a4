"""Write tables as tab-separated text, by one rule that pandas, R and spreadsheets read back.

A cell is the text as the server has it. It stands in double quotes, with its own quotes doubled, if it holds a tab, a
line break or a quote, or begins as a formula does: a spreadsheet that takes quoted fields as text evaluates none.
"""

import re
from collections.abc import Iterable, Sequence

# What a spreadsheet may evaluate: Excel takes '@' for a formula, too.
_QUOTED = re.compile(r'\A[=+@-]|[\t\r\n"]')

Cell = str | int | None

# Of a session's scans.tsv, and in a project's after those of the session.
SCAN_TABLE_COLUMNS = ("id", "type", "series_description", "quality", "frames", "resources", "files", "bytes", "note")


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> bytes:
    """Return a table with a line of column names; None is an empty cell."""
    lines = ("\t".join(map(_cell, row)) for row in (columns, *rows))
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _cell(value: Cell) -> str:
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = value.replace("\0", "")  # ends a cell for pandas, and is in no text of a server that keeps it as XML
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text
