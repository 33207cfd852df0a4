"""The matrix as `docs/RELIABILITY.md` shows it; `python -m tests.faults.page` writes it there."""

import re
from pathlib import Path

from tests.faults.matrix import OPERATIONS, OUTCOMES, REASONS, ROWS

PAGE = Path(__file__).parents[2] / "docs" / "RELIABILITY.md"
BEGIN, END = "<!-- the matrix: written by python -m tests.faults.page -->", "<!-- end of the matrix -->"


def written(page: str) -> str:
    """The page with the matrix as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{matrix()}\n{END}{after}"


def matrix() -> str:
    lines = ["| fault | " + " | ".join(OPERATIONS.values()) + " |", "|---" * (len(OPERATIONS) + 1) + "|"]
    lines += [f"| {row.title} | " + " | ".join(_cell(row.cells[each]) for each in OPERATIONS) + " |" for row in ROWS]
    lines += ["", "| in a cell | means |", "|---|---|"]
    lines += [f"| {_cell(code)} | {words} |" for code, words in {**OUTCOMES, **REASONS}.items()]
    return "\n".join(lines) + "\n"


def _cell(code: str) -> str:
    if code in REASONS:
        return f"\N{EN DASH} {list(REASONS).index(code) + 1}"
    return " or ".join(re.sub(r"\bE[A-Z]+\b", r"`\g<0>`", each) for each in code.split("/"))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
