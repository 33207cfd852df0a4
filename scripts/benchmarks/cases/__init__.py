"""The cases: one function for each row, or for a few related ones. Each verifies the bytes it has read."""

from collections.abc import Callable

from scripts.benchmarks.cases import (
    entries,
    far,
    files,
    large,
    listings,
    nodes,
    readers,
    series,
    start,
    together,
    transfers,
    views,
)
from scripts.benchmarks.cases.bench import Bench
from scripts.benchmarks.report import Row

CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "start": start.start,
    "pyz": start.pyz,
    "mount": start.mount,
    "big": files.big,
    "far": far.far,
    "warm": files.warm,
    "series": series.series,
    "orders": series.orders,
    "dcm2niix": series.dcm2niix,
    "one": series.one,
    "download": transfers.download,
    "upload": transfers.upload,
    "ls": listings.ls,
    "find": listings.find,
    "bids": views.bids,
    "storm": entries.storm,
    "memory": entries.memory,
    "large": large.large,
    "responsive": together.responsive,
    "fair": together.fair,
    "readers": readers.readers,
    "nodes": nodes.nodes,
}
