"""Write the matrix into `docs/dev/RELIABILITY.md`: `python -m tests.faults.page`."""

import re
from pathlib import Path

from tests.faults.matrix import OPERATIONS, OUTCOMES, REASONS, ROWS, Row

PAGE = Path(__file__).parents[2] / "docs" / "dev" / "RELIABILITY.md"
BEGIN, END = "<!-- the matrix: written by python -m tests.faults.page -->", "<!-- end of the matrix -->"


def written(page: str) -> str:
    """Return the page with the current matrix."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{matrix()}\n{END}{after}"


def matrix() -> str:
    lines = _table({row.title: row.cells for row in ROWS}, list(OPERATIONS))
    lines += [
        "",
        "Without digests, at a server that states lengths only, these cells are others, and all else is the same:",
        "",
    ]
    others = {row.title: row.undigested for row in ROWS if row.undigested != row.cells}
    lines += _table(others, [each for each in OPERATIONS if any(_differs(row, each) for row in ROWS)])
    lines += ["", "| in a cell | means |", "|---|---|"]
    lines += [f"| {_cell(code)} | {words} |" for code, words in {**OUTCOMES, **REASONS}.items()]
    return "\n".join(lines) + "\n"


def _table(rows: dict[str, dict[str, str]], operations: list[str]) -> list[str]:
    lines = ["| fault | " + " | ".join(OPERATIONS[each] for each in operations) + " |"]
    lines += ["|---" * (len(operations) + 1) + "|"]
    lines += [
        f"| {title} | " + " | ".join(_cell(cells[each]) for each in operations) + " |" for title, cells in rows.items()
    ]
    return lines


def _differs(row: Row, operation: str) -> bool:
    return row.cells[operation] != row.undigested[operation]


def _cell(code: str) -> str:
    if code in REASONS:
        return f"\N{EN DASH} {list(REASONS).index(code) + 1}"
    return " or ".join(re.sub(r"\bE[A-Z]+\b", r"`\g<0>`", each) for each in code.split("/"))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
