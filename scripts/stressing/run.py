"""Execute one run: servers, a mount and readers; then the checks of an idle mount, and those after the unmount."""

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

# Seconds until a mount is idle: read-ahead waits 5 s for its reader, the fetch of a file that was closed continues for
# 5 s, and a fault has an effect for some time.
CALM = 40.0
# Seconds until idle download processes end: after 30, checked every 15 (download_worker/pool.py). Runs of at least
# LONG_RUN minutes wait for that.
PROCESSES_END, LONG_RUN = 50.0, 5.0
# Seconds that a fault may have an effect: a refusal is cached for 5 s, and a stall ends after 9.
REST = STALL + 3.0
# The number of files that are read at the end, without faults.
LAST_READ = 60


@dataclass
class Options:
    minutes: float = 2.0
    seed: int = 0
    readers: int = 32
    sessions: int = 8
    cache: str = "200M"
    share: float = 0.07  # of replies that meet a fault
    plant: str = ""
    local: float = 10.0  # seconds that the same readers read a local directory


@dataclass
class Outcome:
    """The results of a run."""

    options: Options
    truth: Truth
    seen: list[Event]
    beside: list[Event]  # of the readers of the local directory
    samples: list[Sample]
    findings: list[Finding]
    server: dict[str, int]  # the server's own counters, at the end
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
        """Return the main figures and the violated invariants, for programs."""
        return {
            "bytes": self.bytes_read,
            "faults": sum(self.truth.kinds.values()),
            "changes": sum(map(len, self.truth.made.values())),
            "evicted": self.state["evicted"],
            "programs": sorted({event.path for event in self.seen if event.program == "ran"}),
            "broken": [finding.what for finding in self.findings if not finding.holds],
        }


class Run:
    """A run with its processes. Its steps, in order, are `load`, `quiet` and `unmounted`."""

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
        self._find("the daemon answers throughout", not self.watcher.failed, self.watcher.failed or "yes")

    def quiet(self) -> None:
        """Check the mount without readers: resources that it still holds are leaks."""
        self.server.tell("still")
        self.proxy.tell("still")
        self._still_at = time.monotonic()
        left = gone(self.directory, {self.watcher.pid}, 10.0)
        self._find("no reader hangs, in the kernel (D) or elsewhere", not left, _told(left))
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
        """Check that nothing is left of the mount after the unmount."""
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
        """Run the same readers on a local directory, while the mount becomes idle."""
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
        """Read a file of each kind, so that resources allocated by the first read do not count as leaks."""
        some = {file.resource: path for path, file in files(1).items() if file.base < 10**6}.values()
        subprocess.run(["cat", *(str(self.projects / PROJECT / path) for path in some)], capture_output=True)

    def _last_read(self) -> None:
        """Check that, without faults, files can be read completely and without errors."""
        time.sleep(max(0.0, self._still_at + (REST if self.options.share else 0.0) - time.monotonic()))
        seen: list[Event] = []
        reader = Reader(self.projects, self.options.sessions, f"{self.options.seed}", self.directory, seen.append)
        for file in reader.some(LAST_READ):
            cat(reader, file)
        truth = self._truth()
        bad = [told for event in seen if (told := event.error and f"{event.path}: {event.error}" or truth.wrong(event))]
        said = "; ".join(bad[:5]) or f"{len(seen)} files were read"
        self._find("after the faults, every file can be read", not bad, said)

    def _sessions(self) -> None:
        """Check the sessions on the server: one stays for the next mount, and none after a logout."""
        alive = json.loads(self.server.tell("told"))["sessions"]
        self.mount.log_out()
        self.told = json.loads(self.server.tell("told"))
        self.findings.append(sessions_left(alive, self.told["sessions"], self._truth().left_behind()))


def run(options: Options, directory: Path, tell: Callable[[str], None]) -> Outcome:
    """Execute a run in an empty directory. Nothing stays mounted or running, even after an error.

    Args:
        options: The options of the run.
        directory: The directory.
        tell: Called with each message on the progress.
    """
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
