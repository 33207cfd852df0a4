"""One run: servers, a mount, readers; then quiet, and what is to be asked of a mount that has nothing to do."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.stressing import holding
from scripts.stressing.archive import PROJECT, files
from scripts.stressing.faults import STALL
from scripts.stressing.programs import Event, Reader, cat
from scripts.stressing.rig import Mount, Process, ended, gone, local, process, readers
from scripts.stressing.verdict import Finding, Truth, bytes_right, errors_caused, events, journal, sessions_left
from scripts.stressing.watch import Sample, Watcher, fusectl

# How long a mount may take until it has nothing to do: what reads ahead waits 5 s for its reader, a file that nobody
# has open is fetched for 5 s more, and a fault is felt for some time.
CALM = 40.0
# Download processes end after 30 s, and are looked at each 15 (worker/pool.py): waited for in runs of so many minutes.
PROCESSES_END, LONG_RUN = 50.0, 5.0
# How long a fault may still be felt: a refusal is remembered for 5 s, and a stall ends after 9.
REST = STALL + 3.0
# How many files are read at the end, when nothing is the matter any more.
LAST_READ = 60


@dataclass
class Options:
    minutes: float = 2.0
    seed: int = 0
    readers: int = 32
    sessions: int = 8
    cache: str = "200M"
    share: float = 0.07  # of answers that are to meet a fault
    plant: str = ""
    local: float = 10.0  # seconds that the same readers read a local directory


@dataclass
class Outcome:
    """All that a run has found."""

    options: Options
    truth: Truth
    seen: list[Event]
    beside: list[Event]  # of the readers of the local directory
    samples: list[Sample]
    findings: list[Finding]
    server: dict[str, int]  # as it says itself, at the end
    state: dict[str, int]  # the daemon's counters, at the end
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    took: float = 0.0  # seconds of load

    @property
    def holds(self) -> bool:
        return all(finding.holds for finding in self.findings)

    @property
    def bytes_read(self) -> int:
        return sum(event.bytes for event in self.seen if event.program != "find")

    def summary(self) -> dict[str, Any]:
        """For programs: what was read and met, and what does not hold."""
        return {
            "bytes": self.bytes_read,
            "faults": sum(self.truth.kinds.values()),
            "changes": sum(map(len, self.truth.made.values())),
            "evicted": self.state["evicted"],
            "programs": sorted({event.path for event in self.seen if event.program == "ran"}),
            "broken": [finding.what for finding in self.findings if not finding.holds],
        }


class Run:
    """The mount and who is asked about it, in the order of a run: `load`, `quiet`, `unmounted`."""

    def __init__(self, options: Options, directory: Path, server: Process, proxy: Process, mount: Mount) -> None:
        self.options = options
        self.directory = directory
        self.server = server
        self.proxy = proxy
        self.mount = mount
        self.projects = mount.path / "projects"
        self.logs: list[Path] = []
        self.beside: list[Event] = []
        self.findings: list[Finding] = []
        self.took = 0.0
        self.state: dict[str, int] = {}
        self.told: dict[str, int] = {}
        self._still_at = 0.0  # when the last fault was over
        self._family: set[int] = set()
        samples = directory / "samples.journal"
        self.watcher = Watcher(mount.path, mount.connection(), mount.cached(), mount.log, samples)

    def load(self) -> None:
        options = self.options
        self._read_some()
        self.watcher.calm(holding.is_calm, CALM)
        self._before = self.watcher.look(), self.watcher.descriptors()
        self.watcher.start()
        began = time.monotonic()
        place = self.directory / "readers"
        with readers(options.readers, options.sessions, options.seed, self.projects, place) as self.logs:
            while (left := options.minutes * 60 - (time.monotonic() - began)) > 0 and not self.watcher.failed:
                time.sleep(min(left, 1.0))
        self.took = time.monotonic() - began
        self.watcher.stop()
        self._find("the daemon answers throughout", not self.watcher.failed, self.watcher.failed or "it did")

    def quiet(self) -> None:
        """Nobody reads: what is held now is what was leaked."""
        self.server.tell("still")
        self.proxy.tell("still")
        self._still_at = time.monotonic()
        left = gone(self.directory, {self.watcher.pid}, 10.0)
        self._find("no reader is left, or held in the kernel (D)", not left, _told(left))
        self._beside()
        state = self.watcher.calm(holding.is_calm, CALM)
        self.findings.append(holding.counters_zero(state, self.watcher.waiting()))
        self._last_read()
        self.state = self.watcher.calm(holding.is_calm, CALM)
        if self.options.minutes >= LONG_RUN:
            self._processes_end()
        before, descriptors = self._before
        after, open_now = self.watcher.look(), self.watcher.descriptors()
        self.findings.append(holding.descriptors_back(descriptors, open_now, after.children))
        self.findings.append(holding.tasks_back(before.state["tasks"], after.state["tasks"]))
        self.findings.append(holding.threads_bounded(before.threads, after.threads))
        self.findings.append(holding.memory_bounded(self.watcher.samples))
        self.findings.append(holding.directory_bounded(self.watcher.samples))
        self._family = set(self.watcher.family())

    def unmounted(self) -> None:
        """The mount is gone: so must be all that belonged to it."""
        left = ended(self._family, 10.0)
        self._find("daemon and download processes have ended", not left, _told(left))
        resources = {}
        for line in journal(self.directory / "server.journal"):
            if line["what"] == "resources":
                resources = {str(number): directory for directory, number in line["numbers"].items()}
        self.findings.append(holding.cached_right(self.mount.cached(), files(self.options.sessions), resources))
        self.findings.append(holding.temporary_gone(self.mount.temporary))
        self.findings.append(holding.log_clean(self.mount.log))
        self._sessions()

    def outcome(self) -> Outcome:
        truth = self._truth()
        seen = list(events(self.logs))
        caused, errors = errors_caused(truth, seen)
        findings = [bytes_right(truth, seen), caused, *self.findings]
        samples = self.watcher.samples
        return Outcome(
            self.options, truth, seen, self.beside, samples, findings, self.told, self.state, errors, self.took
        )

    def _truth(self) -> Truth:
        journals = (self.directory / "server.journal", self.directory / "proxy.journal")
        return Truth.read(files(self.options.sessions), *journals)

    def _find(self, what: str, holds: bool, said: str) -> None:
        self.findings.append(Finding(what, holds, said))

    def _beside(self) -> None:
        """The same readers on a local directory, while the mount comes to rest."""
        if self.options.local:
            projects = local(self.directory / "local")
            place = self.directory / "beside"
            with readers(self.options.readers, 1, self.options.seed, projects, place) as logs:
                time.sleep(self.options.local)
            self.beside = list(events(logs))

    def _processes_end(self) -> None:
        deadline = time.monotonic() + PROCESSES_END
        while len(family := self.watcher.family()) > 1 and time.monotonic() < deadline:
            time.sleep(1.0)
        self._find("idle download processes end", len(family) == 1, f"{len(family) - 1} left")

    def _read_some(self) -> None:
        """A first look, so that what a mount has after its first read is not taken for a leak: a file of each kind."""
        some = {file.resource: path for path, file in files(1).items() if file.base < 10**6}.values()
        subprocess.run(["cat", *(str(self.projects / PROJECT / path) for path in some)], capture_output=True)

    def _last_read(self) -> None:
        """Faults are over: every file reads, whole, and nobody is told of an error."""
        time.sleep(max(0.0, self._still_at + (REST if self.options.share else 0.0) - time.monotonic()))
        seen: list[Event] = []
        reader = Reader(self.projects, self.options.sessions, f"{self.options.seed}", self.directory, seen.append)
        for file in reader.some(LAST_READ):
            cat(reader, file)
        truth = self._truth()
        bad = [told for event in seen if (told := event.error and f"{event.path}: {event.error}" or truth.wrong(event))]
        said = "; ".join(bad[:5]) or f"{len(seen)} files do"
        self._find("when the faults are over, everything reads", not bad, said)

    def _sessions(self) -> None:
        """One session on the server, for whoever comes next; none when that is closed."""
        alive = json.loads(self.server.tell("told"))["sessions"]
        self.mount.log_out()
        self.told = json.loads(self.server.tell("told"))
        self.findings.append(sessions_left(alive, self.told["sessions"], self._truth().left_behind()))


def run(options: Options, directory: Path, tell: Callable[[str], None]) -> Outcome:
    """All of it, in an empty directory. Whatever happens, nothing is left mounted or running."""
    words = ["--sessions", options.sessions, "--seed", options.seed, "--journal", directory / "server.journal"]
    with fusectl(directory / "connections") as connections, process("scripts.stressing.server", *words) as server:
        words = ["--share", options.share, "--seed", options.seed, "--journal", directory / "proxy.journal"]
        words += ["--plant", options.plant] if options.plant else []
        with process("scripts.stressing.proxy", server.line(), *words) as proxy:
            mount = Mount(proxy.line(), directory, options.cache, connections)
            try:
                mount.start()
                made = Run(options, directory, server, proxy, mount)
                tell(f"{options.readers} readers for {options.minutes:g} minutes, seed {options.seed} ...")
                made.load()
                tell("quiet ...")
                made.quiet()
                mount.stop()
                made.unmounted()
            finally:
                mount.abort()
            return made.outcome()


def _told(left: dict[int, str]) -> str:
    return "; ".join(f"{pid} {name}" for pid, name in list(left.items())[:3]) or "none"
