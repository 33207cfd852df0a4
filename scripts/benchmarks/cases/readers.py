"""Cases about many readers at once: what they wait for, and what the server sees of them."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarks import archives, rig
from scripts.benchmarks.cases.bench import Bench, big_file
from scripts.benchmarks.cases.series import COMMAND_TIMEOUT_SECONDS, DELAY, WRONG, tar_command
from scripts.benchmarks.report import Row
from scripts.benchmarks.requests import connections
from scripts.benchmarks.rig import Mounted
from scripts.benchmarks.site import Server
from xnatfs.http.clients import MAX_CONNECTIONS, PARALLEL_DOWNLOADS

MOUNTS = 4
BIG = big_file(Path("BIG") / archives.SESSION)


@dataclass(frozen=True)
class Task:
    """Folders to read, each by a program of its own.

    Attributes:
        what: Its name in the table.
        folders: The folders, below the directory of projects.
        beside: The command of one program that fetches the same bytes once.
        most: The most requests for bytes that are allowed for it.
        mounts: The number of mounts, through each of which all folders are read.
    """

    what: str
    folders: Sequence[Path]
    beside: str
    most: int
    mounts: int = 1


@dataclass
class Figures:
    """Seconds, and what the server saw of each run."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    data: list[int] = field(default_factory=list)  # requests for bytes
    others: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    right: bool = True


def readers(bench: Bench) -> list[Row]:
    """Read one series, many series and one big file with 64 programs at once, and the series through four mounts."""
    count, files, size = (8, 5, 8) if bench.quick else (64, 20, 64)
    datas = [archives.series(bench.directory, count, files, 50_000), archives.big(bench.directory, size * 2**20)]
    rows = []
    for data in datas:
        archives.in_memory(data)
    with bench.server(*datas, delay=DELAY, paced=True, replica=True, tls=True) as server:
        series = [Path("SERIES") / archives.SESSION / "scans" / str(scan) / "DICOM" for scan in range(1, count + 1)]
        session = server.accession("SERIES", archives.SESSION.name)
        one, every = (f"{tar_command(server, session, scan)} > /dev/null" for scan in ("1", "ALL"))
        volume = f"{server.curl} -o /dev/null {server.plain(str(BIG))}"
        for task in (
            Task(f"{count} readers of one series of {files} files", [series[0]] * count, one, 4),
            Task(f"{count} readers of {count} series of {files} files", series, every, 2 * count + 2),
            Task(f"{count} readers of one file of {size} MiB", [BIG.parent] * count, volume, 4),
            Task(
                f"{MOUNTS} mounts of one user, {count} series through each",
                series,
                every,
                MOUNTS * (2 * count + 2),
                MOUNTS,
            ),
        ):
            rows += _rows(task, _measured(bench, server, datas, task))
    return rows


def _measured(bench: Bench, server: Server, datas: Sequence[Path], task: Task) -> Figures:
    """Read the folders through new mounts, after their listings."""
    found = Figures()
    truth = [_md5(next(data / each for data in datas if (data / each).exists())) for each in task.folders]
    for turn in range(bench.times + 1):  # the first fills the replica, and is not counted
        beside = rig.shell(task.beside)
        with _mounted(server, bench.directory / "ours", task.mounts) as mounts:
            tops = [mount.path / "projects" for mount in mounts]
            for top in tops:
                rig.shell(f"ls {' '.join(str(top / folder) for folder in {*task.folders})} > /dev/null")
            rig.drop_pages()
            before = len(server.requests())
            reads = [f"(cat {top / folder}/* | md5sum) &" for top in tops for folder in task.folders]
            took, said = rig.output(" ".join([*reads, "wait"]), timeout=COMMAND_TIMEOUT_SECONDS)
            asked = server.requests()[before:]
        found.right &= sorted(line.split()[0] for line in said.splitlines()) == sorted(truth * task.mounts)
        if turn:
            found.ours.append(took)
            found.theirs.append(beside)
            found.data.append(sum(request.data for request in asked))
            found.others.append(len(asked) - found.data[-1])
            found.connections.append(connections(asked))
    return found


@contextlib.contextmanager
def _mounted(server: Server, directory: Path, count: int) -> Iterator[list[Mounted]]:
    """Mount a server several times, with one home, until the context ends."""
    rig.discard(directory)
    mounts = [
        Mounted(server, directory / "home", directory / f"mnt{number}", ("--ttl", "3600")) for number in range(count)
    ]
    with contextlib.ExitStack() as stack:
        for mount in mounts:
            mount.start()
            stack.callback(mount.stop)
        yield mounts


def _md5(folder: Path) -> str:
    found = hashlib.md5()
    for path in sorted(folder.iterdir()):
        found.update(path.read_bytes())
    return found.hexdigest()


def _rows(task: Task, found: Figures) -> list[Row]:
    time = Row("readers", f"{task.what}, listed before, 50 ms a request, 1 Gbit/s, TLS", found.ours,
               "`curl`, once", found.theirs, "").require(found.right, WRONG)  # fmt: skip
    requests = Row("readers", "its requests for bytes", [float(each) for each in found.data], "", [],
                   f"at most {task.most}", "").require(max(found.data) <= task.most)  # fmt: skip
    requests.notes.append(f"{max(found.others)} other requests")
    most = task.mounts * (MAX_CONNECTIONS + PARALLEL_DOWNLOADS)
    used = Row("readers", "its connections", [float(each) for each in found.connections], "", [], f"at most {most}", "")
    return [time, requests, used.require(max(found.connections) <= most)]
