"""Case about many machines: nodes that read the same files, with and without a store that they share."""

import subprocess
import sys
from pathlib import Path

from scripts.benchmarks import archives, rig
from scripts.benchmarks.cases.bench import Bench
from scripts.benchmarks.report import Row
from scripts.benchmarks.site import Server

NODES = 8
# Between a node and the server.
DELAY_SECONDS = 0.02
# A node: a program with a home, a login and a cache of its own.
NODE = """
import hashlib, sys, xnatfs
url, shared, folder = sys.argv[1:]
options = {"shared_cache": shared} if shared else {}
with xnatfs.open(url, **options) as server:
    print(*sorted(hashlib.md5(server.read(entry.path)).hexdigest() for entry in server.list(folder)))
"""


def nodes(bench: Bench) -> list[Row]:
    """Read one series on eight nodes: all at once, and seven after the first; with and without a shared store."""
    data = archives.small(bench.directory, 60 if bench.quick else 300, 130_000)
    session = archives.session(data)
    truth = archives.contents(session / "scans")
    size = sum(path.stat().st_size for path in session.rglob("*.dcm"))
    folder = f"projects/{session.parents[1].name}/{archives.SESSION}/scans/1/DICOM"
    rows = []
    for what, first in (("all at once", 0), ("seven after the first", 1)):
        sent: dict[bool, list[float]] = {False: [], True: []}
        right = True
        for _ in range(bench.times):
            for is_shared in (False, True):
                with bench.server(data, delay=DELAY_SECONDS, paced=True) as server:
                    right &= _run(bench, server, folder, is_shared, first, truth)
                    served = sum(request.sent for request in server.requests() if request.data)
                    sent[is_shared].append(served / size)
        row = Row("nodes", f"{NODES} nodes read {len(truth)} files, {what}: bytes served, of those of the files",
                  sent[True], "without the shared store", sent[False], "at most 1.1" if first else "", "")  # fmt: skip
        rows.append(row.require(right, "wrong bytes"))
        if first:
            row.require(row.median <= 1.1)
    return rows


def _run(bench: Bench, server: Server, folder: str, is_shared: bool, first: int, truth: list[str]) -> bool:
    """Run the nodes, the first ones before the others; return whether each has read what is right."""
    top = bench.directory / "nodes"
    rig.discard(top)
    store = top / "shared"
    store.mkdir(parents=True)
    started = [_start(server, top / f"node-{number}", store if is_shared else None, folder) for number in range(first)]
    found = [node.communicate()[0] for node in started]
    others = range(first, NODES)
    started = [_start(server, top / f"node-{number}", store if is_shared else None, folder) for number in others]
    found += [node.communicate()[0] for node in started]
    return all(sorted(text.split()) == sorted(truth) for text in found)


def _start(server: Server, home: Path, store: Path | None, folder: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", NODE, server.url, str(store or ""), folder]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=rig.login(server, home))
