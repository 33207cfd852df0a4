"""Case about many machines: nodes that read the same files, with and without a store that they share."""

import subprocess
import sys
from contextlib import ExitStack
from urllib.parse import urlsplit

from scripts.benchmarks import archives, link, rig
from scripts.benchmarks.cases.bench import Bench, wire
from scripts.benchmarks.report import Row
from scripts.benchmarks.site import Server

NODES = 8
# Between a node and the server.
DELAY_SECONDS = 0.02
# A node: a program with a home, a login and a cache of its own, which reads when it is told to.
NODE = """
import hashlib, sys, xnatfs
url, shared, folder = sys.argv[1:]
options = {"shared_cache": shared} if shared else {}
with xnatfs.open(url, **options) as server:
    paths = [entry.path for entry in server.list(folder)]
    print(flush=True)
    sys.stdin.readline()
    print(*sorted(hashlib.md5(server.read(path)).hexdigest() for path in paths))
"""


def nodes(bench: Bench) -> list[Row]:
    """Read one series on eight nodes at once, or on seven after the first, with and without a shared store.

    Each node is in a network namespace, with a cache and a link of its own.
    """
    return [row for tls in bench.wires for row in _nodes(bench, tls)]


def _nodes(bench: Bench, tls: bool) -> list[Row]:
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
                with bench.server(data, delay=DELAY_SECONDS, paced=True, tls=tls) as server:
                    right &= _run(bench, server, folder, is_shared, first, truth)
                    served = sum(request.sent for request in server.requests() if request.data)
                    sent[is_shared].append(served / size)
        title = f"{NODES} nodes read {len(truth)} files, {what}{wire(server)}: bytes served, of those of the files"
        row = Row("nodes", title, sent[True], "without the shared store", sent[False], "at most 1.1", "")
        rows.append(row.require(max(row.ours) <= 1.1).require(right, "wrong bytes"))
    return rows


def _run(bench: Bench, server: Server, folder: str, is_shared: bool, first: int, truth: list[str]) -> bool:
    """Run the nodes, the first ones before the others; return whether each has read what is right."""
    top = bench.directory / "nodes"
    rig.discard(top)
    store = top / "shared"
    store.mkdir(parents=True)
    found = []
    with ExitStack() as links:
        for numbers in (range(first), range(first, NODES)):
            started = []
            for number in numbers:
                inside = links.enter_context(link.node(number, urlsplit(server.url).hostname or ""))
                words = [*inside, sys.executable, "-c", NODE, server.url, str(store) if is_shared else "", folder]
                env = rig.login(server, top / f"node-{number}")
                pipe = subprocess.PIPE
                started.append(subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=env))
            for one in started:  # each has listed the files
                assert one.stdout is not None
                one.stdout.readline()
            found += _read_together(started)
    return all(sorted(text.split()) == truth for text in found)


def _read_together(started: list["subprocess.Popen[str]"]) -> list[str]:
    for one in started:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    return [one.communicate()[0] for one in started]
