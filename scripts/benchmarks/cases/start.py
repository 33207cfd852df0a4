"""Cases about start-up, from the command to its first result."""

import os
import sys
import time

from scripts.benchmarks import rig
from scripts.benchmarks.cases.bench import Bench, wire
from scripts.benchmarks.report import Row
from scripts.benchmarks.rig import SCRIPTS
from scripts.building import __main__ as building


def start(bench: Bench) -> list[Row]:
    """Print the version of xnatctl, beside an empty Python program."""
    ours, theirs = [], []
    for _ in range(5 if bench.quick else 20):
        ours.append(rig.shell(f"{SCRIPTS}/xnatctl --version"))
        theirs.append(rig.shell(f"{sys.executable} -c pass"))
    return [Row("start", "`xnatctl --version`", ours, "`python -c pass`", theirs, "at most 4").at_most(4)]


def pyz(bench: Bench) -> list[Row]:
    """Print the version by xnatfs as one file that was unpacked before, beside an empty Python program."""
    home = bench.directory / "pyz"
    made = building.build(home / "dist", system_libfuse=True)
    env = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    rig.shell(f"{sys.executable} {made} --version", env)
    ours, theirs = [], []
    for _ in range(5 if bench.quick else 20):
        ours.append(rig.shell(f"{sys.executable} {made} --version", env))
        theirs.append(rig.shell(f"{sys.executable} -c pass"))
    row = Row("pyz", "`xnatfs.pyz --version`, one file", ours, "`python -c pass`", theirs, "under 0.2 s")
    return [row.require(row.median < 0.2)]


def mount(bench: Bench) -> list[Row]:
    """Mount and list for the first time, with a new cache and no saved session."""
    return [row for tls in bench.wires for row in _mount(bench, tls)]


def _mount(bench: Bench, tls: bool) -> list[Row]:
    ours, idle = [], []
    with bench.server(bench.many(100, 100), tls=tls) as server:
        for _ in range(1 if bench.quick else 7):
            began = time.perf_counter()
            with bench.mount(server) as mounted:
                rig.shell(f"ls {mounted.path}/projects")
                ours.append(time.perf_counter() - began)
                idle.append(mounted.resident())
    row = Row("mount", f"`xnatfs mount` to the first `ls`{wire(server)}", ours, "", [], "under 0.8 s")
    memory = Row("mount", f"memory of an idle mount, helpers and all{wire(server)}", idle, "", [], "under 60 MB", "MB")
    return [row.require(row.median < 0.8), memory.require(memory.median < 60)]
