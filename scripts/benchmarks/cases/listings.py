"""Cases about trees: the requests to a server that is 100 ms away, and the duration."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks import archives, peers, rig
from scripts.benchmarks.cases.bench import Bench
from scripts.benchmarks.report import Row
from scripts.benchmarks.requests import Request, in_sequence
from scripts.benchmarks.site import Server
from xnatfs.demo.fixtures import shaped

DELAY = 0.1
SLOW = 3.0


def ls(bench: Bench) -> list[Row]:
    """Run `ls -lR` on a session whose project is listed already, twice. The length of `session.xml` is a request."""
    scans, files = (5, 40) if bench.quick else (20, 100)
    data = archives.series(bench.directory, scans, files, 50_000)
    local = archives.session(data)
    cold, warm, beside, counts, chains, again = [], [], [], [], [], 0
    right = True
    with bench.server(data, delay=DELAY, replica=True, tls=True) as server:
        for _ in range(bench.times + 1):  # the first fills the replica
            with bench.mount(server) as mount:
                session = mount.session("SERIES")
                rig.shell(f"ls -d {session}")
                before = len(server.requests())
                cold.append(rig.shell(f"ls -lR {session}"))
                after = len(server.requests())
                warm.append(rig.shell(f"ls -lR {session}"))
                beside.append(rig.shell(f"ls -lR {local}"))
                again += len(server.requests()) - after
                right &= _sizes(session / "scans") == _sizes(local / "scans")
                asked = server.requests()[before:after]
            counts.append(float(len(asked)))
            chains.append(float(in_sequence(asked)))
    first = Row("ls", f"`ls -lR` of a session, {scans} series, cold, 100 ms a request, TLS: requests", counts[1:],
                "", [], "at most 4, and its document", "").require(max(counts[1:]) <= 5)  # fmt: skip
    chain = Row("ls", "of these, one after the other", chains[1:], "", [], "at most 3", "")
    chain.require(max(chains[1:]) <= 3).notes.append(f"{statistics.median(cold[1:]):.2f} s")
    second = Row("ls", "the same, warm", warm[1:], "a local tree", beside[1:], "at most 2, no request").at_most(2)
    second.require(again == 0, f"{again} requests").require(right, "other files")
    return [first, chain, second]


def _sizes(top: Path) -> dict[str, int]:
    return {path.relative_to(top).as_posix(): path.stat().st_size for path in top.rglob("*") if path.is_file()}


def find(bench: Bench) -> list[Row]:
    """Run `find` over projects, cold, beside a copy in memory; list one from the next mount, of a very slow server."""
    few = bench.quick
    wide = _found(bench, 5 if few else 500, "2x20x5", DELAY)
    time = Row("find", "its time, 100 ms a request", wide.took, "a bare pyfuse3 that answers the same", wide.bare,
               "at most 1.4, and its round trips")  # fmt: skip
    time.require(time.median <= 1.4 * statistics.median(wide.bare) + in_sequence(wide.asked) * DELAY)
    deep = _found(bench, 3 if few else 300, "1x10x10", DELAY / 2, keep=False)
    short = Row("find", "its time, 50 ms a request", deep.took, "a bare pyfuse3 that answers the same", deep.bare,
                "at most 4 s")  # fmt: skip
    short.require(short.median <= 4)
    return [wide.requests(), time, *wide.second, deep.requests(), short]


@dataclass
class FindMeasurement:
    """The times and the requests of `find` over a project. `second` is the row of the next mount."""

    what: str
    subjects: int
    took: list[float]
    bare: list[float]
    asked: Sequence[Request]
    right: bool
    second: list[Row]

    def requests(self) -> Row:
        alone = [request for request in self.asked if _of_one_subject(request)]
        count = Row("find", f"`find` over {self.what}, cold, TLS: requests", [len(self.asked)], "", [],
                    "at most 60, and one a subject where it must", "")  # fmt: skip
        count.require(len(self.asked) - len(alone) <= 60).require(len(alone) <= self.subjects)
        chain = in_sequence(self.asked)
        count.notes.append(f"{len(alone)} of them for one subject's own resources; {chain} one after the other")
        missed = sum(request.kept == "MISS" for request in self.asked)
        count.notes.append(f"{missed} answers came from the demo and not from the replica")
        return count.require(self.right, "other files")


def _found(bench: Bench, subjects: int, below: str, delay: float, *, keep: bool = True) -> FindMeasurement:
    """Walk a project of subjects with so many sessions each, scans in these and files in those, `below`.

    With `keep`, list it from the next mount as well.
    """
    sessions, scans, files = map(int, below.split("x"))
    shape = f"{subjects}x{below}"
    truth = {str(path) for path in shaped.paths(shape)}
    what = f"{subjects * sessions} sessions, {subjects * sessions * scans} scans"
    measured = FindMeasurement(f"{what} of {files} files", subjects, [], [], (), True, [])
    with bench.server(delay=delay, replica=True, tls=True, options=["--shape", shape]) as server:
        for turn in range(2):  # the first fills the replica
            server.delay(delay if turn else 0)
            with bench.mount(server, "--ttl", "3600") as mount:
                before = len(server.requests())
                seconds, told = rig.output(f"cd {mount.path}/projects && find {shaped.PROJECT}")
                measured.asked = server.requests()[before:]
                if turn:
                    measured.took, measured.bare = [seconds], _bare(bench, mount.path / "projects")
            measured.right &= {line for line in told.splitlines() if line.endswith(".dcm")} == truth
        server.delay(SLOW)
        measured.second += [_second(bench, server, subjects)] if keep else []
    return measured


def _bare(bench: Bench, top: Path) -> list[float]:
    """Time `find` over a project in a file system that has the same tree in memory."""
    command = f"find {shaped.PROJECT} -type d -printf '%p/\\n' -o -print"
    listed = bench.directory / "paths"
    listed.write_text(rig.output(f"cd {top} && {command}")[1])
    with peers.bare(bench.directory, "--paths", listed) as mountpoint:
        seconds, told = rig.output(f"cd {mountpoint} && {command}")
    assert sorted(told.splitlines()) == sorted(listed.read_text().splitlines()), "the bare one shows another tree"
    return [seconds]


def _second(bench: Bench, server: Server, subjects: int) -> Row:
    """Time the first listing of the next mount. If it is shorter than the delay, it did not wait for the server."""
    with bench.mount(server, "--ttl", "3600", keep=True) as mount:
        seconds, told = rig.output(f"ls {mount.path}/projects/{shaped.PROJECT}")
    row = Row(
        "find", f"the next mount's first listing, {SLOW:.0f} s a request", [seconds], "", [], "sooner than an answer"
    )
    row.require(seconds < SLOW / 2)
    return row.require(len(told.split()) >= subjects, "other names")


def _of_one_subject(request: Request) -> bool:
    """Return true for a request for the resources of a single subject."""
    parts = request.path.split("/")
    return "subjects" in parts[:-2] and "resources" in parts[parts.index("subjects") :]
