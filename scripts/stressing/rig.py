"""Start and end the processes of a run: servers, readers, the mount."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from scripts.benchmarks.rig import SCRIPTS, Mounted, processes
from scripts.benchmarks.site import Server
from scripts.stressing.archive import PROJECT, STILL, files, still
from scripts.stressing.contents import Made
from scripts.stressing.faults import TIMEOUT
from scripts.stressing.verdict import REVALIDATE, TTL
from scripts.stressing.watch import connection

ROOT = Path(__file__).parent.parent.parent
# The number of readers that only call stat(2).
STATS = 2
SERVERS = ("scripts.stressing", "scripts.stressing.server", "scripts.stressing.proxy")
# Seconds that a process of the run may take to end; a reader waits for the program that it has killed.
END = 20.0


class Process:
    """A module that runs as a process, until its standard input closes.

    It has a session of its own: Ctrl-C reaches only the parent process, which ends it.
    """

    def __init__(self, *words: object) -> None:
        self._command = [sys.executable, "-m", *map(str, words)]
        self._running = subprocess.Popen(
            self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._running.stdin is not None
        assert self._running.stdout is not None
        self._in: IO[str] = self._running.stdin
        self._out: IO[str] = self._running.stdout

    def line(self) -> str:
        """Return the next line that it prints. Raises SystemExit if it has ended."""
        line = self._out.readline().strip()
        if not line:
            raise SystemExit(f"scripts/stress: {' '.join(self._command)} has ended")
        return line

    def tell(self, word: str) -> str:
        """Send a command, and return the reply."""
        self._in.write(f"{word}\n")
        self._in.flush()
        return self.line()

    def over(self) -> None:
        """Request its end, without waiting for it."""
        with contextlib.suppress(BrokenPipeError):
            self._in.close()

    def end(self) -> None:
        self.over()
        try:
            self._running.wait(END)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
        self._out.close()


@contextlib.contextmanager
def process(*words: object) -> Iterator[Process]:
    running = Process(*words)
    try:
        yield running
    finally:
        running.end()


@contextlib.contextmanager
def readers(count: int, sessions: int, seed: int, projects: Path, place: Path) -> Iterator[list[Path]]:
    """Run readers on a directory of projects until the context ends.

    Args:
        count: The number of readers.
        sessions: The number of sessions of the working set.
        seed: The seed of the run.
        projects: The directory of projects.
        place: A new directory for logs and copies.

    Yields:
        The readers' logs.
    """
    place.mkdir()
    logs = [place / f"{number}.log" for number in range(count)]
    with contextlib.ExitStack() as stack:
        running = []
        for number, log in enumerate(logs):
            words = ["--projects", projects, "--sessions", sessions, "--seed", f"{seed}.{number}", "--log", log]
            words += ["--place", place / f"{number}.files", *(["--stat"] if number < STATS else [])]
            running.append(stack.enter_context(process("scripts.stressing.reader", *words)))
        try:
            yield logs
        finally:
            for each in running:
                each.over()


def local(directory: Path) -> Path:
    """Write one session of the working set as files, and return the directory of projects."""
    for path, file in files(1).items():
        target = directory / PROJECT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as written:
            written.writelines(Made(path, 0, file.size(0)).pieces(0, file.base))
    for path in still():
        target = directory / STILL / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"a file like all the others\n" * 20)
    return directory


class Mount(Mounted):
    """An xnatfs mount with short lifetimes and a log of its own, which can always be ended."""

    def __init__(self, url: str, directory: Path, cache_size: str, connections: Path) -> None:
        self.connections = connections
        self.log = directory / "mount.log"
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        options = [
            *("--cache-size", cache_size, "--log-file", str(self.log), "--timeout", str(TIMEOUT)),
            *("--ttl", str(TTL), "--revalidate", str(REVALIDATE)),
        ]
        super().__init__(Server(url, directory), directory / "home", directory / "mnt", options)

    def start(self) -> None:
        os.environ["TMPDIR"] = str(self.temporary)
        try:
            super().start()
        finally:
            del os.environ["TMPDIR"]

    def connection(self) -> Path:
        return connection(self.connections, self.path)

    def log_out(self) -> None:
        subprocess.run([str(SCRIPTS / "xnatctl"), "auth", "logout"], env=self.env, check=True, capture_output=True)

    def abort(self) -> None:
        """End the mount by force: nothing stays mounted, no process stays blocked in the kernel, no daemon runs on."""
        with contextlib.suppress(FileNotFoundError):
            (self.connection() / "abort").write_text("1")
        if self.path.is_mount():
            subprocess.run(["fusermount3", "-u", "-z", str(self.path)], capture_output=True)
        for found in ours(self.path.parent):
            with contextlib.suppress(ProcessLookupError):
                os.kill(found, signal.SIGKILL)


def ours(directory: Path) -> dict[int, str]:
    """Return the daemon, the readers and their programs: processes whose arguments name the run's directory.

    The servers of the run are not among them.
    """
    found = {}
    for each in processes():
        named = any(f"{directory}/" in word for word in each.arguments)
        if named and each.pid != os.getpid() and not {*each.arguments} & {*SERVERS}:
            found[each.pid] = " ".join(each.arguments)[:100]
    return found


def gone(directory: Path, but: set[int], within: float) -> dict[int, str]:
    """Wait at most `within` seconds for the run's processes to end, except `but`; return those that still run."""
    deadline = time.monotonic() + within
    while (left := {p: n for p, n in ours(directory).items() if p not in but}) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def ended(family: set[int], within: float) -> dict[int, str]:
    """Wait at most `within` seconds for these processes to end; return those that still run."""
    deadline = time.monotonic() + within
    while (left := {p.pid: p.arguments[-1] for p in processes() if p.pid in family}) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left
