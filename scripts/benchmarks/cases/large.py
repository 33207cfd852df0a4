"""Cases about large sites: what one huge directory costs, and what other programs notice of it meanwhile."""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarks import archives, rig
from scripts.benchmarks.cases.bench import Bench, same_answers
from scripts.benchmarks.cases.together import Took, percentiles, probed
from scripts.benchmarks.pauses import Pause, recorded
from scripts.benchmarks.report import Row
from scripts.benchmarks.site import Server
from xnatfs.demo.fixtures.shaped import PROJECT

DELAY = 0.05
LONGEST_PAUSE_MS = 50
MOST_MB = 120  # of 40,000 known sessions
# Seconds to list 20,000 entries again.
WARM_SECONDS, WARM_ENTRIES = 0.5, 20_000
# Seconds after which listings are on the disk.
STORED_SECONDS = 2.0
NO_PAUSE = Pause(0, 0, 0, 0, "")


@dataclass(frozen=True)
class Place:
    """A huge directory.

    Attributes:
        what: Its name in the table.
        shape: The shape of the demo's project; "" if there are many projects.
        path: Its path in the mount.
        count: The number of its entries.
    """

    what: str
    shape: str
    path: str
    count: int


@dataclass
class Figures:
    """Seconds and MB of each run."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)  # the daemon, until the last entry, beside `stat`
    curl: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)  # the longest one of each run
    requests: list[int] = field(default_factory=list)
    stats: Took = field(default_factory=list)
    counts: set[int] = field(default_factory=set)


def large(bench: Bench) -> list[Row]:
    """List huge directories, cold and warm, over TLS, while another program calls `stat` in a small one."""
    rows: list[Row] = []
    many = bench.many(400, 4000)
    for place in _places(bench):
        datas = [many] if place.shape else [archives.projects(bench.directory, place.count)]
        options = ["--shape", place.shape] if place.shape else []
        with bench.server(*datas, delay=DELAY, replica=True, tls=True, options=options) as server:
            found = Figures()
            for turn in range(bench.times + 1):  # the first fills the replica, and is not counted
                _list(bench, server, many, place, found if turn else Figures())
        rows += _rows(place, found)
    return rows


def _places(bench: Bench) -> Iterator[Place]:
    people, projects, scans, files = (200, 20, 20, 2000) if bench.quick else (20_000, 2000, 2000, 200_000)
    session = f"projects/{PROJECT}/S00000/S00000_MR0/scans"
    yield Place(f"{people} subjects, {2 * people} sessions", f"{people}x2x0x0", f"projects/{PROJECT}", people + 1)
    yield Place(f"{2 * people} links in `experiments`", f"{people}x2x0x0", "experiments", 2 * people + 1)
    yield Place(f"{projects} projects", "", "projects", projects)
    yield Place(f"a session of {scans} scans", f"1x1x{scans}x1", session, scans)
    yield Place(f"a resource of {files} files", f"1x1x1x{files}", f"{session}/1/DICOM", files)


def _list(bench: Bench, server: Server, many: Path, place: Place, found: Figures) -> None:
    """List a directory with a new mount, twice, and add the figures."""
    with rig.watched(server, bench.directory / "ours", "--ttl", "3600") as (mount, pauses):
        command = f"{sys.executable} -m scripts.benchmarks.entries {mount.path / place.path}"
        folder = mount.session("MANY") / "scans" / "1" / "DICOM"
        if place.shape:
            rig.shell(f"ls {folder}")
        before, worked = len(server.requests()), mount.processor()[0]
        # A list of projects would be known if a folder had been looked up.
        took, said = probed(bench, folder, many, command) if place.shape else ([], rig.output(command)[1])
        found.worked.append(mount.processor()[0] - worked)
        asked = server.requests()[before:]
        began, first, last, count = json.loads(said)
        again = json.loads(rig.output(command)[1])
        time.sleep(STORED_SECONDS)
        longest = max(recorded(pauses, began), key=lambda pause: pause.worked, default=NO_PAUSE)
        found.first.append(first)
        found.last.append(last)
        found.again.append(again[2])
        found.pauses.append(longest)
        found.memory.append(mount.resident())
        found.requests.append(len(asked))
        found.stats += took
        found.counts |= {count, again[3]}
    found.curl.append(rig.shell(same_answers(server, asked)))


def _rows(place: Place, found: Figures) -> list[Row]:
    first = Row("large", f"{place.what}: first entry, cold, 50 ms a request, TLS", found.first,
                "`curl` of the same answers", found.curl, "at most 1 s more")  # fmt: skip
    first.curve = [(place.count, statistics.median(found.last))]
    first.require(first.median <= statistics.median(found.curl) + 1)
    first.require(found.counts == {place.count}, f"{found.counts} entries in place of {place.count}")
    first.notes.append(
        f"all entries after {statistics.median(found.last):.2f} s; {max(found.requests)} requests; the daemon worked"
        f" {statistics.median(found.worked):.2f} s"
    )
    if len(found.stats) > 1:
        half, most = percentiles(found.stats)
        first.notes.append(f"`stat` elsewhere meanwhile: half under {half:.2f} ms, p99 {most:.1f} ms")
    limit = WARM_SECONDS * max(1.0, place.count / WARM_ENTRIES)
    again = Row("large", f"{place.what}: all entries again, warm", found.again, "", [], f"under {limit:g} s")
    again.require(again.median < limit).curve = [(place.count, again.median)]
    worked = [1000 * each.worked for each in found.pauses]
    goal = f"at most {LONGEST_PAUSE_MS} ms"
    pause = Row("large", f"{place.what}: longest pause of the event loop, processor time", worked, "", [], goal, "ms")
    pause.require(pause.median <= LONGEST_PAUSE_MS)
    longest = max(found.pauses, key=lambda each: each.worked)
    pause.notes.append(
        f"the longest took {1000 * longest.took:.0f} ms on this machine; {1000 * longest.collected:.0f} ms of it were"
        f" collection of garbage, {longest.task}"
    )
    memory = Row("large", f"{place.what}: memory of the mount", found.memory, "", [], "", "MB")
    if place.path == f"projects/{PROJECT}":
        memory.goal = f"under {MOST_MB} MB"
        memory.require(memory.median < MOST_MB)
    return [first, again, pause, memory]
