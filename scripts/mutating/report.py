"""Render the verdicts as a table, and read the argued survivors: those that no test can kill, with reasons."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.mutating.mutant import Mutant

# (module, function, was, becomes): the reason why no test can detect the change.
Argued = dict[tuple[str, ...], str]


@dataclass
class Row:
    """The counts of one module, or of a group."""

    name: str
    mutants: int = 0
    killed: int = 0
    timeout: int = 0
    survived: int = 0  # or not executed by any test
    argued: int = 0
    untried: int = 0

    @property
    def score(self) -> float:
        """Return the share of mutants that a test detected, without the argued ones."""
        return (self.killed + self.timeout) / max(1, self.mutants - self.argued)

    def __add__(self, other: "Row") -> "Row":
        numbers = [getattr(self, name) + getattr(other, name) for name in COLUMNS]
        return Row(self.name, *numbers)

    def line(self) -> str:
        cells = [self.name, *(str(getattr(self, name)) for name in COLUMNS), f"{self.score:.1%}"]
        return f"| {' | '.join(cells)} |"


COLUMNS = ("mutants", "killed", "timeout", "survived", "argued", "untried")


def row(name: str, mutants: Iterable[Mutant], found: Mapping[Any, str], argued: Argued) -> Row:
    count = Counter("argued" if each.name[:4] in argued else found.get(each.name, "untried") for each in mutants)
    return Row(
        name,
        count.total(),
        count["killed"],
        count["timeout"],
        count["survived"] + count["not executed"],
        count["argued"],
        count["untried"],
    )


def table(groups: Mapping[str, list[Row]]) -> str:
    """Render a line for each module, and one for each group of several modules."""
    lines = [f"| module | {' | '.join(COLUMNS)} | score |", "|---" * (len(COLUMNS) + 2) + "|"]
    for group, rows in groups.items():
        lines += [row.line() for row in rows]
        if len(rows) > 1:
            lines.append(sum(rows, Row(f"**{group}, all**")).line())
    return "\n".join(lines)


def read_argued(path: Path) -> Argued:
    """Read the argued survivors from YAML: module, then function, then [was, becomes, why]."""
    return {
        (module, function, was, becomes): why
        for module, functions in (yaml.safe_load(path.read_text()) or {}).items()
        for function, entries in functions.items()
        for was, becomes, why in entries
    }
