"""The cases: one function for each row, or for a few related ones. Each verifies the bytes it has read."""

from collections.abc import Callable

from scripts.benchmarks.cases import entries, files, listings, nodes, series, start, together, transfers
from scripts.benchmarks.cases.bench import Bench
from scripts.benchmarks.report import Row

CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "start": start.start,
    "mount": start.mount,
    "big": files.big,
    "far": files.far,
    "warm": files.warm,
    "series": series.series,
    "orders": series.orders,
    "dcm2niix": series.dcm2niix,
    "one": series.one,
    "download": transfers.download,
    "upload": transfers.upload,
    "ls": listings.ls,
    "find": listings.find,
    "storm": entries.storm,
    "memory": entries.memory,
    "responsive": together.responsive,
    "fair": together.fair,
    "nodes": nodes.nodes,
}
