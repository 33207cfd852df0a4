"""Sample the resources of a running mount from outside: processes, memory, descriptors, the cache directory."""

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.benchmarks.rig import processes

# Seconds between two samples, each of which requests the counters.
EVERY = 5.0
# Seconds that the daemon, the busiest process, may take to write its counters.
ANSWER = 30.0
CONNECTIONS = Path("/sys/fs/fuse/connections")
STATE = re.compile(r" state: (\{.*\})$", re.MULTILINE)


@dataclass
class Sample:
    """One sample. Sizes are in bytes."""

    at: float
    resident: int  # of the daemon and its processes
    daemon: int  # of the daemon alone
    children: int
    descriptors: int
    threads: int
    on_disk: int
    waiting: int  # unanswered requests of the kernel
    state: dict[str, int] = field(default_factory=dict)


class Watcher:
    """Samples one mount in a thread, from `start` to `stop`.

    Args:
        mountpoint: The mountpoint.
        connection: The mount's directory of the kernel's FUSE connections.
        cache: The cache directory.
        log: The daemon's log.
        journal: The file for the samples.
    """

    def __init__(self, mountpoint: Path, connection: Path, cache: Path, log: Path, journal: Path) -> None:
        self.mountpoint = mountpoint
        self.cache = cache
        self.log = log
        self.journal = journal  # a line for each sample
        self.samples: list[Sample] = []
        self.failed = ""
        self.pid = next(p.pid for p in processes() if str(mountpoint) in p.arguments and "--report-fd" in p.arguments)
        self.connection = connection
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        """Take a sample every few seconds, at the start and at the end."""
        try:
            with open(self.journal, "w") as journal:
                over = False
                while True:
                    self.samples.append(sample := self.look())
                    print(json.dumps(asdict(sample)), file=journal, flush=True)
                    if over:
                        return
                    over = self._over.wait(EVERY)
        except Exception as error:
            self.failed = f"{type(error).__name__}: {error}"

    def look(self) -> Sample:
        """Take a sample. Raises OSError if the daemon has ended, TimeoutError if it does not answer."""
        family = self.family()
        state = self.state()
        return Sample(
            time.monotonic(),
            sum(family.values()),
            family[self.pid],
            len(family) - 1,
            len(self.descriptors()),
            len(os.listdir(f"/proc/{self.pid}/task")),
            on_disk(self.cache),
            self.waiting(),
            state,
        )

    def family(self) -> dict[int, int]:
        """Return the resident bytes of the daemon and of its processes, by process ID."""
        found = list(processes())
        wanted = {self.pid}
        while more := {p.pid for p in found if p.parent in wanted} - wanted:
            wanted |= more
        return {p.pid: p.resident for p in found if p.pid in wanted}

    def descriptors(self) -> list[str]:
        """Return the open files of the daemon, as the kernel names them."""
        found = []
        for number in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{self.pid}/fd/{number}"))
        return found

    def waiting(self) -> int:
        return int((self.connection / "waiting").read_text())

    def state(self) -> dict[str, int]:
        """Return the daemon's counters, which it logs on SIGUSR1."""
        with open(self.log, "rb") as log:
            log.seek(0, os.SEEK_END)
            os.kill(self.pid, signal.SIGUSR1)
            said, deadline = "", time.monotonic() + ANSWER
            while not (found := STATE.search(said)):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the daemon has not written its counters within {ANSWER:.0f} s")
                time.sleep(0.02)
                said += log.read().decode(errors="replace")
        counters: dict[str, int] = json.loads(found[1])
        return counters

    def calm(self, is_calm: Callable[[dict[str, int]], bool], within: float) -> dict[str, int]:
        """Wait at most `within` seconds until the counters satisfy `is_calm`, and return them."""
        deadline = time.monotonic() + within
        while not is_calm(state := self.state()) and time.monotonic() < deadline:
            time.sleep(0.3)
        return state


@contextlib.contextmanager
def fusectl(directory: Path) -> Iterator[Path]:
    """Yield the kernel's directory of FUSE connections: the system's or, if it is not mounted, a temporary mount."""
    if any(CONNECTIONS.iterdir()):
        yield CONNECTIONS
        return
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "fusectl", "none", str(directory)], capture_output=True, text=True)
    if mounted.returncode:
        raise SystemExit(f"scripts/stress: it needs {CONNECTIONS}: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def connection(connections: Path, mountpoint: Path) -> Path:
    """Return the connection's directory of one mount. It can be read even while the mount does not answer."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        cells = line.split(" ")
        if cells[4] == str(mountpoint):
            return connections / cells[2].partition(":")[2]
    raise FileNotFoundError(f"nothing is mounted on {mountpoint}")


def on_disk(directory: Path) -> int:
    """Return the bytes of all files in a directory that are allocated on disk."""
    total, waiting = 0, [str(directory)]
    while waiting:
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(entry.path)
                    else:
                        total += min(found.st_blocks * 512, found.st_size)
    return total
