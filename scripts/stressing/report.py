"""Render the results of a run as a page."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.report import machine
from scripts.stressing.archive import MB, files
from scripts.stressing.faults import TIMEOUT
from scripts.stressing.run import Outcome
from scripts.stressing.verdict import REVALIDATE, TTL, cached_stats, percentiles

PAGE = Path(__file__).parent.parent.parent / "docs" / "dev" / "STRESS.md"

INTRODUCTION = """\
The results of `{command}`. {readers} processes run programs at random on a mount with a small cache, while the server
changes files, ends sessions, and breaks {share:.0%} of its replies. Every byte that a program reads is compared with
the versions that the file had on the server during the read, and every error with the faults that had been injected.
`scripts/stressing` has the code.
"""


def page(outcome: Outcome, command: str) -> str:
    options = outcome.options
    said = INTRODUCTION.format(command=command, readers=options.readers, share=_share(outcome))
    size = sum(file.base for file in files(options.sessions).values()) / MB
    return "\n".join(
        [
            f"# Stress\n\n{textwrap.fill(said, 116)}\n",
            f"- Machine: {machine()}; servers, readers and the mount share it.",
            f"- Seed {options.seed}; {outcome.took / 60:.1f} minutes of load.",
            f"- Working set {size:.0f} MB, cache {options.cache}; `--ttl {TTL:g} --revalidate {REVALIDATE:g}"
            f" --timeout {TIMEOUT:g}`.",
            "",
            "## What must hold\n",
            invariants(outcome),
            "",
            "## What was done\n",
            done(outcome),
            "",
            "## Faults and errors\n",
            faults(outcome),
            "",
            "## Figures\n",
            figures(outcome),
            "",
        ]
    )


def invariants(outcome: Outcome) -> str:
    rows = [[finding.what, "yes" if finding.holds else "**no**", finding.said] for finding in outcome.findings]
    return _table(["invariant", "holds", "seen"], rows)


def done(outcome: Outcome) -> str:
    ran = Counter(event.path for event in outcome.seen if event.program == "ran")
    read: Counter[str] = Counter()
    longest: dict[str, float] = {}
    for event in outcome.seen:
        if event.program == "ran":
            longest[event.path] = max(longest.get(event.path, 0.0), event.ended - event.began)
        elif event.program != "find":
            read[event.program] += event.bytes
    rows = [
        [name, f"{count}", f"{read[name] / MB:.0f}" if read[name] else "", f"{longest[name]:.1f}"]
        for name, count in sorted(ran.items())
    ]
    return _table(["program", "runs", "MB read and compared", "longest, s"], rows)


def faults(outcome: Outcome) -> str:
    truth = outcome.truth
    kinds = _table(["fault", "times"], [[kind, str(count)] for kind, count in sorted(truth.kinds.items())])
    rows = [[error, cause or "**none**", str(count)] for (error, cause), count in sorted(outcome.errors.items())]
    errors = _table(["a program got", "cause", "times"], rows)
    requests = outcome.server.get("requests", 0)
    met = sum(truth.kinds.values())
    made = sum(len(times) for times in truth.made.values())
    told = (
        f"There were {met} faults: in at least {_share(outcome):.1%} of all replies, since some of the {requests} that"
        f" the server sent were broken on their way. {truth.silent} of them were in archives, where no program notices"
        f" them."
        f" {made} files were replaced, all sessions ended {len(truth.expired)} times, and"
        f" {outcome.server.get('logins', 0)} logins followed."
    )
    return f"{textwrap.fill(told, 116)}\n\n{kinds}\n\n{errors}"


def _share(outcome: Outcome) -> float:
    met = sum(outcome.truth.kinds.values())
    return met / max(1, met + outcome.server.get("requests", 0))


def figures(outcome: Outcome) -> str:
    state, samples = outcome.state, outcome.samples
    rows = [
        ["`stat` of cached entries, on the mount", *_milliseconds(cached_stats(outcome.truth, outcome.seen))],
        ["the same readers on a local directory", *_milliseconds(_stats(outcome))],
    ]
    told = [
        f"- {outcome.bytes_read / outcome.took / MB:.0f} MB/s were read and compared, by all readers together;"
        f" {state.get('fetched', 0) / MB:.0f} MB were fetched.",
        f"- {state.get('hits', 0)} opens were answered from the cache, {state.get('misses', 0)} were not;"
        f" {state.get('evicted', 0)} files were evicted.",
        f"- The kernel waited for at most {max((s.waiting for s in samples), default=0)} answers at a time; the daemon"
        f" had at most {max((s.descriptors for s in samples), default=0)} descriptors and"
        f" {max((s.state['tasks'] for s in samples), default=0)} tasks.",
    ]
    return _table(["milliseconds", "number", "p50", "p99", "longest"], rows) + "\n\n" + "\n".join(told)


def _stats(outcome: Outcome) -> list[float]:
    return [event.ended - event.began for event in outcome.beside if event.program == "stat"]


def _milliseconds(times: Sequence[float]) -> list[str]:
    return [str(len(times)), *(f"{1000 * each:.2f}" for each in percentiles(times))]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
