"""What was measured, as a table; and the page that keeps it."""

import os
import platform
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "dev" / "BENCHMARKS.md"
# What was found out about goals that are missed, by hand.
LIMITS = Path(__file__).with_name("limits.md")


@dataclass
class Row:
    """One figure of a case: ours, and the one beside it, both of this run."""

    case: str
    what: str
    ours: Sequence[float]
    beside: str
    theirs: Sequence[float]
    goal: str
    unit: str = "s"
    reached: bool | None = None  # None: no goal is set for it
    notes: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.ours)

    @property
    def ratio(self) -> float:
        """Ours over theirs, of the medians; not a number where either is missing."""
        return self.median / statistics.median(self.theirs) if self.theirs and self.ours else float("nan")

    def require(self, condition: bool, failing: str = "") -> "Row":
        """One condition of the goal; all must hold. `failing` is noted where this one does not."""
        self.reached = condition if self.reached is None else self.reached and condition
        if not condition and failing:
            self.notes.append(f"**{failing}**")
        return self

    def at_most(self, limit: float) -> "Row":
        """The goal is a ratio. What could not be measured has not reached it."""
        return self.require(self.ratio <= limit)

    def at_least(self, limit: float) -> "Row":
        return self.require(self.ratio >= limit)

    def cells(self) -> list[str]:
        ratio = f"{self.ratio:.2f}" if self.theirs and self.ours else "-"
        reached = {True: "yes", False: "**no**", None: ""}[self.reached]
        return [
            self.what,
            figure(self.ours, self.unit),
            self.beside,
            figure(self.theirs, self.unit),
            ratio,
            self.goal,
            reached,
        ]


def failed(case: str, why: str) -> Row:
    """In place of a case that came to no end: none of its goals is reached."""
    return Row(case, case, [], "", [], "to be measured", reached=False, notes=[f"**it failed: {why}**"])


def figure(values: Sequence[float], unit: str) -> str:
    """The median, and how far the others are from it where they are far."""
    if not values:
        return "-"
    median, low, high = statistics.median(values), min(values), max(values)
    apart = f" ({number(low)}-{number(high)})" if high - low > 0.1 * abs(median) else ""
    return f"{number(median)} {unit}{apart}".rstrip()


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


HEAD = ["what", "ours", "beside", "theirs", "ours / theirs", "goal", "reached"]


def table(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells()) + " |" for row in rows]
    notes = [f"- {row.what}: {note}" for row in rows for note in row.notes]
    return "\n".join([*lines, "", *notes]).rstrip()


def all_reached(rows: Sequence[Row]) -> bool:
    return all(row.reached is not False for row in rows)


def machine() -> str:
    """What it ran on, without a name or a path."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    system = f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {system}"


INTRODUCTION = """\
Medians of one run of `{command}`, with the least and the most in parentheses where they are more than a tenth apart.
Ours and theirs were measured in turn, in the same run, on the same machine, against the same server: only ratios mean
anything elsewhere. Every byte was compared with the truth, outside the time that is told (what a peer without a cache
hands out, in a second read); a case that read a wrong one has not reached its goal. "Cold" is an empty cache, ours or
theirs, and nothing in the kernel's; the server has its files in memory. Goals are those that were set beforehand.
"""


def page(
    rows: Sequence[Row], command: str, versions: Sequence[str], cases: Mapping[str, str], commands: Mapping[str, str]
) -> str:
    """`cases`: what each does, by name; `commands`: what ran beside, by the name that the table has."""
    done = "\n".join(f"- `{name}`: {' '.join(what.split())}" for name, what in cases.items())
    beside = "\n".join(f"- {name}: `{line}`" for name, line in commands.items())
    missed = [row.what for row in rows if row.reached is False]
    verdict = f"Missed: {'; '.join(missed)}." if missed else "Every goal was reached."
    return (
        f"# Benchmarks\n\n{INTRODUCTION.format(command=command)}\n- Machine: {machine()}.\n"
        f"{textwrap.fill('- Versions: ' + '; '.join(versions) + '.', 116, subsequent_indent='  ')}\n\n"
        f"{table(rows)}\n\n{textwrap.fill(verdict, 116)}\n\n"
        f"{LIMITS.read_text()}\n"
        f"## The cases\n\n{done}\n\n## What ran beside\n\n{beside}\n"
    )
