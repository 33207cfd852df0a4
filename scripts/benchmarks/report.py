"""What was measured, as a table; and the page that keeps it."""

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "BENCHMARKS.md"


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
    def ratio(self) -> float:
        return statistics.median(self.ours) / statistics.median(self.theirs) if self.theirs else float("nan")

    def cells(self) -> list[str]:
        theirs = f"{statistics.median(self.theirs):.3g} {self.unit}" if self.theirs else "-"
        ratio = f"{self.ratio:.2f}" if self.theirs else "-"
        reached = {True: "yes", False: "**no**", None: ""}[self.reached]
        ours = f"{statistics.median(self.ours):.3g} {self.unit}"
        return [self.what, ours, self.beside, theirs, ratio, self.goal, reached]


HEAD = ["what", "ours", "beside", "theirs", "ours / theirs", "goal", "reached"]


def table(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    notes = [f"- {row.what}: {note}" for row in rows for note in row.notes]
    return "\n".join([*lines, "", *notes])


def machine() -> str:
    """What it ran on, without a name or a path."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    system = f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {system}"


def versions() -> str:
    found = []
    for command in (["nginx", "-v"], ["curl", "--version"], ["rclone", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            continue
        found.append((done.stdout or done.stderr).splitlines()[0])
    return "; ".join(found)


def write(rows: Sequence[Row], command: str) -> None:
    PAGE.write_text(
        "# Benchmarks\n\n"
        f"Medians of one run of `{command}`, which checks every byte. All ratios are of that run: ours and theirs in\n"
        "turn, on the same machine, against the same server.\n\n"
        f"- Machine: {machine()}.\n- Versions: {versions()}.\n\n{table(rows)}\n"
    )
