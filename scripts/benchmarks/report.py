"""Render the measurements as a table, and as the page of docs/dev."""

import json
import os
import platform
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "dev" / "BENCHMARKS.md"
# The figures of the page, from which plots.py draws.
FIGURES = PAGE.with_name("benchmarks.json")
# The explanations of missed goals, written by hand.
LIMITS = Path(__file__).with_name("limits.md")


@dataclass
class Row:
    """One figure of a case: that of xnatfs, and that of the other program in the same run."""

    case: str
    what: str
    ours: Sequence[float]
    beside: str
    theirs: Sequence[float]
    goal: str
    unit: str = "s"
    reached: bool | None = None  # None: no goal is set for it
    notes: list[str] = field(default_factory=list)
    limit: float | None = None  # of the ratio
    curve: Sequence[tuple[float, float]] = ()  # of a figure that grows: its abscissas and ordinates

    @property
    def median(self) -> float:
        return statistics.median(self.ours)

    @property
    def ratio(self) -> float:
        """Return the ratio of the medians, ours over theirs; NaN if either is missing."""
        return self.median / statistics.median(self.theirs) if self.theirs and self.ours else float("nan")

    def require(self, condition: bool, failing: str = "") -> "Row":
        """Add a condition of the goal, of which all must hold. `failing` is noted if this one does not."""
        self.reached = condition if self.reached is None else self.reached and condition
        if not condition and failing:
            self.notes.append(f"**{failing}**")
        return self

    def at_most(self, limit: float) -> "Row":
        """Require a ratio of at most `limit`. A figure that could not be measured misses the goal."""
        self.limit = limit
        return self.require(self.ratio <= limit)

    def at_least(self, limit: float) -> "Row":
        self.limit = limit
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
    """Return the row of a case that failed: none of its goals is reached."""
    return Row(case, case, [], "", [], "to be measured", reached=False, notes=[f"**it failed: {why}**"])


def figure(values: Sequence[float], unit: str) -> str:
    """Format the median, and the range of the values if it is wider than a tenth of the median."""
    if not values:
        return "-"
    median, low, high = statistics.median(values), min(values), max(values)
    apart = f" ({number(low)}-{number(high)})" if high - low > 0.1 * abs(median) else ""
    return f"{number(median)} {unit}{apart}".rstrip()


def number(value: float) -> str:
    """Format a value with three significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


HEAD = ["what", "xnatfs", "compared with", "its figure", "ratio", "goal", "reached"]


def table(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells()) + " |" for row in rows]
    notes = [_item(f"{row.what}: {note}") for row in rows for note in row.notes]
    return "\n".join([*lines, "", *notes]).rstrip()


def _item(text: str) -> str:
    """Return an item of a list, in lines of at most 116 columns."""
    return textwrap.fill(f"- {text}", 116, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def all_reached(rows: Sequence[Row]) -> bool:
    return all(row.reached is not False for row in rows)


def save(rows: Sequence[Row], path: Path = FIGURES) -> None:
    """Write the figures as JSON."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def saved(path: Path = FIGURES) -> list[Row]:
    """Return the figures of the page."""
    return [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []


def merged(before: Sequence[Row], rows: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """Return rows with those of the cases that were measured anew in place of earlier ones, by the order of cases."""
    renewed = {row.case for row in rows}
    kept = [row for row in before if row.case not in renewed and row.case in order]
    return sorted([*kept, *rows], key=lambda row: order.index(row.case))


def machine() -> str:
    """Describe the machine, without names and paths."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    system = f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {system}"


PLOTS = """\
![Ratios of xnatfs to the other programs, for each row](benchmarks-ratios.svg)
![Seconds to copy a session, by program](benchmarks-session.svg)
![Memory of a mount over listed files](benchmarks-memory.svg)
![Seconds to list a directory over its entries](benchmarks-listing.svg)
"""
INTRODUCTION = """\
Medians of runs of `{command}`, with minimum and maximum in parentheses where they are more than a tenth apart.
xnatfs and each peer were measured alternately, in the same run, on the same machine, against the same server: only
ratios carry over to other machines. Every byte was compared with the truth outside the measured time (what a peer
without a cache served, in a second read); a case that read a wrong byte has missed its goal. "Cold" is an empty
cache, of xnatfs or the peer, and none in the kernel; the server has its files in memory. Goals were set before the
measurement.
"""


def page(
    rows: Sequence[Row], command: str, versions: Sequence[str], cases: Mapping[str, str], commands: Mapping[str, str]
) -> str:
    """Render the page.

    Args:
        rows: The measurements.
        command: The command that ran.
        versions: The versions of the measured programs.
        cases: The description of each case, by name.
        commands: The commands of the other programs, by their names in the table.
    """
    done = "\n".join(_item(f"`{name}`: {' '.join(what.split())}") for name, what in cases.items())
    beside = "\n".join(_item(f"{name}: `{line}`") for name, line in commands.items())
    missed = [row.what for row in rows if row.reached is False]
    verdict = f"Missed: {'; '.join(missed)}." if missed else "Every goal was reached."
    return (
        f"# Benchmarks\n\n{INTRODUCTION.format(command=command)}\n- Machine: {machine()}.\n"
        f"{_item('Versions: ' + '; '.join(versions) + '.')}\n\n"
        f"{table(rows)}\n\n{textwrap.fill(verdict, 116)}\n\n"
        f"{PLOTS}\n"
        f"{LIMITS.read_text()}\n"
        f"## The cases\n\n{done}\n\n## The other programs\n\n{beside}\n"
    )
