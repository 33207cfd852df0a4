"""Cases about views: other names of the same files."""

import shutil
import sys

from scripts.benchmarks import archives, rig
from scripts.benchmarks.cases.bench import Bench, wire
from scripts.benchmarks.report import Row

INDEX = f"{sys.executable} -W ignore -c 'import sys, bids; bids.BIDSLayout(sys.argv[1])'"


def bids(bench: Bench) -> list[Row]:
    """Index the BIDS view of a listed project with PyBIDS, beside a copy on a local disk."""
    return [row for tls in bench.wires for row in _bids(bench, tls)]


def _bids(bench: Bench, tls: bool) -> list[Row]:
    subjects = 10 if bench.quick else 100
    data = archives.converted(bench.directory, subjects)
    copy = bench.directory / "bids-copy"
    ours, theirs, cold = [], [], []
    right = True
    for _ in range(bench.times):
        with bench.server(data, tls=tls) as server, bench.mount(server) as mount:
            dataset = mount.path / "bids" / "CONVERTED"
            rig.shell(f"find {dataset}")
            before = len(server.requests())
            ours.append(rig.shell(f"{INDEX} {dataset}"))
            cold.append(float(len(server.requests()) - before))
            shutil.rmtree(copy, ignore_errors=True)
            rig.shell(f"cp -r {dataset} {copy}")
            theirs.append(rig.shell(f"{INDEX} {copy}"))
            right &= archives.tree_md5(copy, "*.nii.gz") == archives.tree_md5(dataset, "*.nii.gz")
            right &= archives.contents(copy, "*.nii.gz") == archives.contents(data, "*.nii.gz")
    title = f"`BIDSLayout` of {subjects} subjects, once listed{wire(server)}"
    took = Row("bids", title, ours, "a copy on a local disk", theirs, "at most 2")
    asked = Row("bids", "its requests", cold, "", [], "one a session, and 5", "")
    return [took.at_most(2).require(right, "other files"), asked.require(max(cold) <= subjects + 5)]
