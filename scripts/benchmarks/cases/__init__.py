"""One function for each row, or a few that belong together. Each checks what it has read before it says how fast."""

from collections.abc import Callable

from scripts.benchmarks.cases import entries, files, listings, series, start, together
from scripts.benchmarks.cases.bench import Bench
from scripts.benchmarks.report import Row

CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "start": start.start,
    "mount": start.mount,
    "big": files.big,
    "warm": files.warm,
    "series": series.series,
    "dcm2niix": series.dcm2niix,
    "one": series.one,
    "ls": listings.ls,
    "find": listings.find,
    "storm": entries.storm,
    "memory": entries.memory,
    "responsive": together.responsive,
    "fair": together.fair,
}
