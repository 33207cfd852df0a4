"""Our mount, the clock, and the kernel's pages."""

import atexit
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarks.site import PASSWORD, USER, Server

SCRIPTS = Path(sys.executable).parent


FEW = 100


class NotToBeHad(Exception):
    """Something that is measured beside us is not here, or failed; one line that says what and why."""


def cache() -> Path:
    """Where archives, peers and everything else of the bench are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xnatfs-bench"


def discard(path: Path) -> None:
    """Out of the way now; many files are deleted when the bench ends.

    ext4 passes over the inodes of what was deleted in the last minute, one by one: after `rm -rf` of a few thousand
    files, whoever makes new ones, `cp` or a cache, spends 40 % of the time on that (measured). A few big files are
    deleted at once: else the kernel writes them to the disk beside the next run.
    """
    if not path.exists():
        return
    if len(list(itertools.islice(path.rglob("*"), FEW))) < FEW:
        shutil.rmtree(path)
        return
    gone = cache() / "gone"
    if gone not in _discarded:
        _discarded.add(gone)
        atexit.register(shutil.rmtree, gone, ignore_errors=True)
    gone.mkdir(parents=True, exist_ok=True)
    path.rename(gone / uuid.uuid4().hex)


_discarded: set[Path] = set()


def login(server: Server, home: Path) -> dict[str, str]:
    """The environment of whoever logs in: a home of its own, and no proxy between."""
    home.mkdir(parents=True, exist_ok=True)
    given = {"HOME": str(home), "XNAT_URL": server.url, "XNAT_USER": USER, "XNAT_PASS": PASSWORD, "no_proxy": "*"}
    unset = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XNAT_TOKEN", "XNAT_PROFILE")
    return {key: value for key, value in os.environ.items() if key not in unset} | given


@dataclass
class Mounted:
    """Our mount of a server, with a home of its own."""

    server: Server
    home: Path
    path: Path
    options: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.env = login(self.server, self.home)
        trust = ["--ca-bundle", self.server.authority] if self.server.authority else []
        command = [SCRIPTS / "xnatfs", "mount", "--url", self.server.url, *trust, *self.options, self.path]
        subprocess.run([str(word) for word in command], env=self.env, check=True)

    def stop(self) -> None:
        subprocess.run([str(SCRIPTS / "xnatfs"), "umount", str(self.path)], env=self.env, check=True)

    def session(self, project: str) -> Path:
        return self.path / "projects" / project / "SUBJECT" / "SESSION"

    def cached(self) -> Path:
        return self.home / ".cache" / "xnatfs"

    def resident(self) -> float:
        """MB of memory, of the daemon and of every process that it has started."""
        return sum(process.resident for process in self._serving()) / 1e6

    def processor(self) -> tuple[float, float]:
        """Seconds of a processor that have gone into the daemon, and into the processes that it has started."""
        daemon, *others = sorted(self._serving(), key=lambda process: str(self.path) not in process.arguments)
        return daemon.processor, sum(process.processor for process in others)

    def _serving(self) -> list["Process"]:
        wanted = {process.pid for process in processes() if str(self.path) in process.arguments}
        assert wanted, "nobody serves the mount"
        while more := {p.pid for p in processes() if p.parent in wanted} - wanted:
            wanted |= more
        return [process for process in processes() if process.pid in wanted]


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    arguments: list[str]
    resident: int  # bytes
    processor: float  # seconds


def processes() -> Iterator[Process]:
    """All that run, as /proc has them."""
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            arguments = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            status = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
            resident = int(status.get("VmRSS", "0 kB").split()[0]) * 1024
            ticks = (path / "stat").read_text().rpartition(")")[2].split()[11:13]
            processor = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
            yield Process(int(path.name), int(status["PPid"]), arguments, resident, processor)


@contextlib.contextmanager
def mounted(server: Server, directory: Path, *options: str, keep: bool = False) -> Iterator[Mounted]:
    """A mount with an empty cache, or, with `keep`, the one that an earlier mount left there."""
    if not keep:
        discard(directory)
    mount = Mounted(server, directory / "home", directory / "mnt", options)
    mount.start()
    try:
        yield mount
    finally:
        mount.stop()


@contextlib.contextmanager
def foreign(command: Sequence[object], mountpoint: Path, log: Path) -> Iterator[Path]:
    """A program in the foreground that mounts, until the context ends. Raises NotToBeHad where it does not mount."""
    mountpoint.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as said:
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        _wait_until_mounted(process, mountpoint, log)
        yield mountpoint
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], capture_output=True)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_mounted(process: subprocess.Popen[bytes], mountpoint: Path, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not os.path.ismount(mountpoint):
        if process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise NotToBeHad(f"it does not mount: {last[:200]}")
        time.sleep(0.01)


def drop_pages(what: int = 1) -> None:
    """The kernel's page cache (1), or its names and inodes (2). Raises NotToBeHad where we may not.

    Nothing is written to disk first: what is dropped here, a mount's pages, is never dirty.
    """
    try:
        Path("/proc/sys/vm/drop_caches").write_text(str(what))
    except OSError as error:
        raise NotToBeHad(f"only root can drop the kernel's caches: {error.strerror}") from None


def busy() -> float:
    """Seconds that all processors together have worked since the machine was started."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def shell(command: str, env: dict[str, str] | None = None, timeout: float | None = None) -> float:
    """Seconds that a shell command takes. Raises NotToBeHad where it fails or takes longer than `timeout`."""
    return output(command, env, timeout)[0]


def output(command: str, env: dict[str, str] | None = None, timeout: float | None = None) -> tuple[float, str]:
    """The same, and what it prints."""
    began = time.perf_counter()
    words = ["bash", "-o", "pipefail", "-c", command]
    try:
        done = subprocess.run(words, env=env, timeout=timeout, capture_output=True, text=True, errors="replace")
    except subprocess.TimeoutExpired:
        raise NotToBeHad(f"`{command}` took longer than {timeout:.0f} s") from None
    took = time.perf_counter() - began
    if done.returncode:
        raise NotToBeHad(f"`{command}` failed: {done.stderr.strip().rpartition(chr(10))[2][:200]}")
    return took, done.stdout


def same(path: Path, truth: Path) -> bool:
    """Whether two files hold the same bytes."""
    return subprocess.run(["cmp", "-s", str(path), str(truth)]).returncode == 0
