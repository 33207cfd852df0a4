"""Draw the plots of docs/dev/BENCHMARKS.md: `python plots.py ROWS.json DIRECTORY`, in an environment with matplotlib.

`report.save` writes ROWS.json. File names and colours are fixed: plots of two runs differ in their figures only.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

OURS, BESIDE, MISSED = "#1f77b4", "#b0b0b0", "#d62728"
# Text as text, so that the plots can be searched; IDs from a fixed salt, so that equal plots are equal files.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "xnatfs", "font.size": 9})


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def ratios(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw ours over theirs for every time that has both, and the goal as a line across the bar."""
    found = [row for row in rows if row["ours"] and row["theirs"] and row["unit"] in ("s", "ms")][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.5 + 0.26 * len(found)))
    for place, row in enumerate(found):
        ratio = statistics.median(row["ours"]) / statistics.median(row["theirs"])
        axes.barh(place, ratio - 1, left=1, color=MISSED if row["reached"] is False else OURS, height=0.6)
        if row["limit"]:
            axes.plot([row["limit"]] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1)
    axes.set_yticks(range(len(found)), [f"{row['what']} / {row['beside']}".replace("`", "")[:90] for row in found])
    axes.set_xscale("log")
    axes.set_ylim(-1, len(found))
    axes.set_xlabel("ours / theirs; black: goal, red: missed")
    axes.axvline(1, color="black", linewidth=0.5)
    save(figure, path)


def sessions(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the seconds that each program takes to copy one session."""
    found = [row for row in rows if row["case"] == "series" and row["unit"] == "s" and row["ours"]]
    if not found:  # the case has failed, and its row says so
        return
    seconds = {f"xnatfs: {found[0]['what']}": found[0]["ours"]}
    seconds |= {row["beside"]: row["theirs"] for row in found if row["theirs"]}
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.3 * len(seconds)))
    for place, (name, values) in enumerate(reversed(seconds.items())):
        median = statistics.median(values)
        axes.barh(place, median, color=OURS if name.startswith("xnatfs") else BESIDE, height=0.6)
        axes.text(median, place, f" {median:.3g} s", va="center")
    axes.set_yticks(range(len(seconds)), [name.replace("`", "") for name in reversed(seconds)])
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    save(figure, path)


def memory(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the resident memory over the number of listed files."""
    curves = [row["curve"] for row in rows if row["case"] == "memory" and row["curve"]]
    if not curves:
        return
    figure, axes = pyplot.subplots(figsize=(6, 3))
    axes.plot(*zip(*curves[0], strict=True), marker="o", color=OURS)
    axes.set_xlabel("files listed")
    axes.set_ylabel("MB resident")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    save(figure, path)


def listing(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the seconds to list a directory over the number of its entries, cold and warm."""
    found = [row for row in rows if row["case"] == "large" and row["curve"]]
    if not found:
        return
    figure, axes = pyplot.subplots(figsize=(6, 3))
    for label, is_warm, color in (("cold", False, OURS), ("warm", True, BESIDE)):
        points = sorted(tuple(row["curve"][0]) for row in found if row["what"].endswith("warm") == is_warm)
        axes.plot(*zip(*points, strict=True), marker="o", color=color, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("entries of the directory")
    axes.set_ylabel("seconds")
    axes.legend()
    save(figure, path)


def main() -> None:
    rows, directory = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    ratios(rows, directory / "benchmarks-ratios.svg")
    sessions(rows, directory / "benchmarks-session.svg")
    memory(rows, directory / "benchmarks-memory.svg")
    listing(rows, directory / "benchmarks-listing.svg")


if __name__ == "__main__":
    main()
