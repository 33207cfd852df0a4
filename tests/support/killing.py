"""Kill mounts: an archive to read from, programs that read it, and the invariants that must hold afterwards.

`Victim.kill_once` is one kill at a random moment of a random stage of a mount's life.
"""

import errno
import hashlib
import json
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from tests.support.demos import Demo
from tests.support.mounting import LIMIT, SCRIPTS, daemons, end, environment, run
from xnatfs.common.mountinfo import mount_on
from xnatfs.content import open_cache
from xnatfs.settings.config import server_directory

COMPARE = Path(__file__).with_name("compare.py")
MiB = 1024 * 1024
KiB = 1024

SESSION = Path("P/SUB/SES")
SERIES = [SESSION / f"scans/{scan}/DICOM/{scan}-{image:03}.dcm" for scan in (1, 2) for image in range(30)]
# More than the 8 MiB up to which no process of its own carries a file.
BIG = [SESSION / f"scans/3/RAW/big-{number}.bin" for number in range(3)]
# Not all of it fits, but the largest file does.
CACHE_SIZE = 24 * MiB
# A program must have ended by then, and a process, after a kill.
SOON = 60.0

# What programs may get from a mount that dies, or is not there yet or any more.
DEATH = {errno.ENOTCONN, errno.ECONNABORTED}
ABSENCE = {errno.ENOENT}


def publish(top: Path) -> Path:
    """Write a small archive: two series of small files, three files of 9 to 13 MiB."""
    made = random.Random(5)
    for number, name in enumerate([*SERIES, *BIG]):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.randbytes((9 + 2 * int(name.stem[-1])) * MiB if name in BIG else 40 * KiB + 97 * number))
    return top


@dataclass
class Reader:
    """A program that reads or lists."""

    process: subprocess.Popen[str]

    def result(self) -> dict[str, list[Any]]:
        """Return what it has found; a program that does not end is a mount that hangs."""
        try:
            out, err = self.process.communicate(timeout=SOON)
        except subprocess.TimeoutExpired:
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            raise AssertionError(f"a program hangs, in state {state}") from None
        assert self.process.returncode == 0, err
        found: dict[str, list[Any]] = json.loads(out)
        assert found["wrong"] == []
        return found


@dataclass
class Victim:
    """A server, a home and a mountpoint, where one mount after the other is killed."""

    demo: Demo
    truth: Path
    root: Path
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.home, self.place = self.root / "home", self.root / "mnt"
        self.log, self.cache = self.root / "log", self.home / ".cache" / "xnatfs"  # where xnatctl looks, too
        for made in (self.home, self.place):
            made.mkdir(parents=True)

    @property
    def directory(self) -> Path:
        return self.cache / server_directory(self.demo.url)

    def command(self, *more: str | Path, place: Path | None = None) -> list[str]:
        words = ["mount", "--quiet", "--url", self.demo.url, "--cache-size", CACHE_SIZE]
        words += ["--log-file", self.log, "--timeout", "5", *more, place or self.place]
        return [str(word) for word in (SCRIPTS / "xnatfs", *words)]

    def environment(self) -> dict[str, str]:
        return environment(self.home, XNAT_USER=self.demo.login["user"], XNAT_PASS=self.demo.login["password"])

    def mount(self, *more: str | Path, place: Path | None = None) -> None:
        done = run(*self.command(*more, place=place), env=self.environment())
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def umount(self, place: Path | None = None) -> str:
        done = run(SCRIPTS / "xnatfs", "umount", place or self.place, env=self.environment())
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def read(self, *names: Path, place: Path | None = None) -> Reader:
        return self._program("read", place, *names)

    def look(self) -> Reader:
        return self._program("list", None)

    def _program(self, what: str, place: Path | None, *names: Path) -> Reader:
        mount = (place or self.place) / "projects"
        command = [sys.executable, "-I", "-S", COMPARE, what, mount, self.truth, *names]
        return Reader(subprocess.Popen([str(part) for part in command], stdout=-1, stderr=-1, text=True))

    def processes(self, *, workers: bool | None = None) -> list[int]:
        """Return the processes that serve mounts of this home, and those that carry their big files."""
        found = daemons(self.home)
        return [each for each in found if workers is None or workers == (b"xnatfs.download_worker" in cmdline(each))]

    def kill(self, *, workers: bool | None = None) -> int:
        """Kill them all, at once, and wait until they have ended; return how many there were.

        A process that is being ended has no command line any more, and still its files: so its mount answers.
        """
        killed = []
        for process in self.processes(workers=workers):
            with suppress(ProcessLookupError):
                killed.append(os.pidfd_open(process))
                signal.pidfd_send_signal(killed[-1], signal.SIGKILL)
        for descriptor in killed:
            assert select.select([descriptor], [], [], LIMIT)[0], "a killed process does not end"
            os.close(descriptor)
        return len(killed)

    def gone(self) -> None:
        """Check that nothing runs any more."""
        assert soon(lambda: not self.processes()), [cmdline(process) for process in self.processes()]

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Run a program that has its working directory in the mount."""
        sleeper = subprocess.Popen(["sleep", "1000"], cwd=self.place / "projects")
        try:
            yield
        finally:
            sleeper.kill()
            sleeper.wait()

    def cleared(self) -> list[str]:
        """Return the log lines about dead mounts that were cleared."""
        return [line for line in self.log.read_text().splitlines() if "was a dead mount" in line]

    def dead(self) -> bool:
        """Return whether the place holds a dead mount; one that hangs fails."""
        done = run("stat", "-f", self.place, env={"LC_ALL": "C", "PATH": os.environ["PATH"]}, timeout=SOON)
        return "Transport endpoint is not connected" in done.stderr

    # -- a kill at a random moment -------------------------------------------------------------------------------

    def kill_once(self, chance: random.Random) -> None:
        """Kill once, at a stage and a moment left to chance; check everything that must hold then."""
        stage = chance.choice([self.starting, self.reading, self.reading, self.carrying, self.carrying, self.ending])
        self.counts[stage.__name__] += 1
        stage(chance)
        self.gone()
        if mount_on(self.place) is not None:
            assert soon(self.dead)
            self.counts["dead mountpoints"] += 1
        self.consistent()

    def starting(self, chance: random.Random) -> None:
        """Kill it while it starts: imports, the index, what the last one left, the dead mountpoint, the login."""
        process = subprocess.Popen(self.command("--foreground"), env=self.environment())
        time.sleep(chance.uniform(0, 1.0))
        self.kill()
        process.wait(SOON)

    def reading(self, chance: random.Random) -> None:
        """Kill the daemon, while programs read and list, and files are evicted."""
        self.mount()
        readers = self.readers(chance)
        time.sleep(chance.uniform(0, 0.8))
        self.kill(workers=False)
        for reader in readers:
            self.count(reader.result(), DEATH)

    def carrying(self, chance: random.Random) -> None:
        """Kill a process that carries a big file, which no reader may notice; then the daemon."""
        self.mount()
        readers = self.readers(chance)
        soon(lambda: self.processes(workers=True), 1.0)
        time.sleep(chance.uniform(0, 0.2))
        self.counts["download processes"] += self.kill(workers=True)
        for reader in readers:
            self.count(reader.result(), set())
        self.kill(workers=False)

    def ending(self, chance: random.Random) -> None:
        """Kill it while it ends: files are written, the index is closed."""
        self.mount()
        reader = self.read(*chance.sample(SERIES, 10), chance.choice(BIG))
        time.sleep(chance.uniform(0, 0.5))
        for process in self.processes(workers=False):
            os.kill(process, signal.SIGTERM)
        time.sleep(chance.uniform(0, 0.3))
        self.kill()
        self.count(reader.result(), DEATH | ABSENCE)

    def readers(self, chance: random.Random) -> list[Reader]:
        first = chance.choice([0, 30])
        return [
            self.read(*chance.sample(BIG, 2)),
            self.read(*SERIES[first : first + 30]),
            self.look(),
        ]

    def count(self, found: dict[str, list[Any]], allowed: set[int]) -> None:
        self.counts["whole"] += len(found["whole"])
        self.counts["failed"] += len(found["errors"])
        assert {number for _, number in found["errors"]} <= allowed, found["errors"]

    # -- what is left --------------------------------------------------------------------------------------------

    def consistent(self) -> None:
        """Check, once the next one has tidied up, that index and files agree, and every file is one of the server's."""

        async def tidied() -> None:
            async with open_cache(self.directory, CACHE_SIZE) as cache:
                await cache.tidied.wait()

        trio.run(tidied)
        agree(self.directory, self.truth)


def agree(directory: Path, truth: Path) -> None:
    """Check a row for every file and a file for every row, equal in size and content; no partials; the right total."""
    with closing(sqlite3.connect(directory / "index.sqlite")) as index:
        rows = {ident.hex(): (key, size) for ident, key, size in index.execute("SELECT ident, key, size FROM blobs")}
        reserved = index.execute("SELECT * FROM partials").fetchall()
        ((total,),) = index.execute("SELECT bytes FROM total").fetchall()
        assert index.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    files = {path.name: path for path in (directory / "blobs").glob("*/*")}
    assert rows.keys() == files.keys()
    true = {path.name: path for path in truth.rglob("*") if path.is_file()}
    for ident, (key, size) in rows.items():
        kept = files[ident].read_bytes()
        assert (len(kept), digest(kept)) == (size, digest(true[Path(key).name].read_bytes())), key
    assert list((directory / "partial").iterdir()) == reserved == []
    assert total == sum(size for _, size in rows.values())


def digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def cmdline(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def soon(condition: Callable[[], object], seconds: float = SOON) -> bool:
    """Return whether the condition comes true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def victim(demo: Demo, truth: Path, root: Path) -> Iterator[Victim]:
    """Provide a place where mounts are killed; ended and unmounted whatever happens."""
    made = Victim(demo, truth, root)
    try:
        yield made
    finally:
        made.kill()
        for place in (made.place, root / "other"):
            end(place, made.home)
