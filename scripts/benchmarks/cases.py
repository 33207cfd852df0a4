"""One function for each row, or a few that belong together. Each checks what it has read before it says how fast."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks import rig
from scripts.benchmarks.report import Row
from scripts.benchmarks.rig import SCRIPTS, SESSION, Mounted, Server


@dataclass(frozen=True)
class Bench:
    """How much of it, and where."""

    directory: Path
    quick: bool

    @property
    def big(self) -> int:
        return (128 if self.quick else 1024) * 2**20

    @property
    def times(self) -> int:
        return 1 if self.quick else 3

    @property
    def data(self) -> Path:
        series, files = (5, 40) if self.quick else (20, 100)
        return rig.made(self.directory, self.big, series, files, 50_000)

    @contextmanager
    def server(self, **options: object) -> Iterator[Server]:
        with rig.served(self.data, self.directory / "run", **options) as server:  # type: ignore[arg-type]
            yield server

    @contextmanager
    def mount(self, server: Server, *options: str, keep: bool = False) -> Iterator[Mounted]:
        with rig.mounted(server, self.directory / "ours", *options, keep=keep) as mount:
            yield mount


def start(bench: Bench) -> list[Row]:
    """The version of xnatctl, beside an empty Python."""
    times = 5 if bench.quick else 20
    ours, theirs = [], []
    for _ in range(times):
        ours.append(rig.shell(f"{SCRIPTS}/xnatctl --version"))
        theirs.append(rig.shell(f"{sys.executable} -c pass"))
    row = Row("start", "`xnatctl --version`", ours, "`python -c pass`", theirs, "at most 4")
    row.reached = row.ratio <= 4
    return [row]


def big(bench: Bench) -> list[Row]:
    """One big file, from its first byte to its last, with nothing cached."""
    rows = []
    for title, options, job, goal, limit in (
        ("digests", {}, "curl -s {url} | tee {out} | md5sum", "at most 1.2", 1.2),
        ("digests, ranges", {"ranges": True}, "curl -s {url} | tee {out} | md5sum", "at most 1.2", 1.2),
        ("no digests", {"digests": False}, "curl -s -o /dev/null {url}", "at most 2.5", 2.5),
        ("no digests, ranges", {"digests": False, "ranges": True}, "curl -s -o /dev/null {url}", "at most 2.5", 2.5),
    ):
        rows += _big(bench, title, options, job, goal, limit)
    return rows


def _big(bench: Bench, title: str, options: dict[str, object], job: str, goal: str, limit: float) -> list[Row]:
    ours, theirs, right = [], [], True
    truth = rig.output(f"md5sum < {_big_file(bench.data)}")[1]
    with bench.server(**options) as server:
        for _ in range(bench.times):
            out = bench.directory / "by-hand"
            theirs.append(rig.shell(job.format(url=f"{server.url}/big.bin", out=out)))
            out.unlink(missing_ok=True)
            with bench.mount(server) as mount:
                path = mount.path / SESSION / "BIG" / "scans" / "1" / "RAW" / "big.bin"
                ours.append(rig.shell(f"cat {path} > /dev/null"))
                right &= rig.output(f"md5sum < {path}")[1] == truth
    row = Row(
        "big", f"{bench.big >> 20} MiB cold, {title}", ours, f"`{job.format(url='URL', out='FILE')}`", theirs, goal
    )
    row.reached = right and row.ratio <= limit
    row.notes = [] if right else ["**wrong bytes**"]
    return [row]


def _big_file(data: Path) -> Path:
    return data / "BENCH" / "SUBJECT" / "BIG" / "scans" / "1" / "RAW" / "big.bin"


def warm(bench: Bench) -> list[Row]:
    """The same file out of our cache, and out of the kernel's pages."""
    local = _big_file(bench.data)
    cached, pages, disk, memory = [], [], [], []
    with bench.server() as server, bench.mount(server) as mount:
        path = mount.path / SESSION / "BIG" / "scans" / "1" / "RAW" / "big.bin"
        rig.shell(f"cat {path} > /dev/null")
        for _ in range(bench.times):
            rig.drop_pages()
            disk.append(rig.shell(f"cat {local} > /dev/null"))
            memory.append(rig.shell(f"cat {local} > /dev/null"))
            rig.drop_pages()
            cached.append(rig.shell(f"cat {path} > /dev/null"))
            pages.append(rig.shell(f"cat {path} > /dev/null"))
    size = bench.big / 1e9
    first = Row("warm", "warm from our cache, pages dropped", [size / s for s in cached], "a local file, pages dropped",
                [size / s for s in disk], "at least 1.2 GB/s", unit="GB/s")  # fmt: skip
    first.reached = statistics.median(first.ours) >= 1.2
    second = Row("warm", "again, from kernel pages", [size / s for s in pages], "a local file, from pages",
                 [size / s for s in memory], "at least 0.6", unit="GB/s")  # fmt: skip
    second.reached = second.ratio >= 0.6
    return [first, second]


def series(bench: Bench) -> list[Row]:
    """A session of many small files, copied, 50 ms for each request."""
    ours, theirs, requests = [], [], []
    right = True
    local = bench.data / "BENCH" / "SUBJECT" / "SERIES" / "scans"
    truth = rig.tree_md5(local)
    target = bench.directory / "copy"
    with bench.server(latency=0.05) as server:
        session = _accession(server, "SERIES")
        tar = f"{server.url}/data/experiments/{session}/scans/ALL/files?format=tar"
        for _ in range(bench.times):
            target.mkdir()
            theirs.append(rig.shell(f"curl -s -u {rig.USER}:{rig.PASSWORD} '{tar}' | tar x -C {target}"))
            rig.shell(f"rm -rf {target}")
            with bench.mount(server) as mount:
                before = len(server.requests())
                path = mount.path / SESSION / "SERIES" / "scans"
                ours.append(rig.shell(f"cp -r {path} {target}"))
                asked = [str(record["path"]) for record in server.requests()[before:]]
                requests.append(
                    len([path for path in asked if "/files" in path and "scans" not in path.split("/")[-1]])
                )
                right &= {name: md5 for name, md5 in rig.tree_md5(target).items()} == truth
            rig.shell(f"rm -rf {target}")
    count = len(truth)
    row = Row("series", f"`cp -r` of {count} files of 50 KB, 50 ms a request, cold", ours, "`curl | tar x` of one tar",
              theirs, "at most 2, and 10 round trips")  # fmt: skip
    row.reached = right and statistics.median(ours) <= 2 * statistics.median(theirs) + 0.5
    row.notes = [f"{statistics.median(requests):.0f} data requests"] + ([] if right else ["**wrong bytes**"])
    return [row]


def _accession(server: Server, label: str) -> str:
    import httpx

    with httpx.Client(base_url=server.url, auth=(rig.USER, rig.PASSWORD)) as http:
        reply = http.get(f"/data/projects/BENCH/experiments/{label}", params={"format": "json"})
        return str(reply.raise_for_status().json()["items"][0]["data_fields"]["ID"])


def mount(bench: Bench) -> list[Row]:
    """From the command to the first listing."""
    ours = []
    with bench.server() as server:
        for _ in range(bench.times):
            began = time.perf_counter()
            with bench.mount(server) as mounted:
                rig.shell(f"ls {mounted.path}/projects")
                ours.append(time.perf_counter() - began)
    row = Row("mount", "`xnatfs mount` to the first `ls`", ours, "", [], "under 0.8 s")
    row.reached = statistics.median(ours) < 0.8
    return [row]


CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "start": start,
    "mount": mount,
    "big": big,
    "warm": warm,
    "series": series,
}
