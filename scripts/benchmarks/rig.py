"""Control the xnatfs mount, the clock, and the kernel's page cache."""

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


class MeasurementFailed(Exception):
    """A peer or a resource of the benchmarks is unavailable or failed; the message is one line with the reason."""


def cache() -> Path:
    """Return the directory of the archives, peers and all other files of the benchmarks."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xnatfs-bench"


def discard(path: Path) -> None:
    """Remove a path. A large number of files is only moved away, and deleted at exit.

    ext4 skips the inodes of files deleted in the last minute, one by one: after `rm -rf` of a few thousand files, a
    program that creates new ones, `cp` or a cache, spends 40 % of its time on that (measured). A few big files are
    deleted at once: otherwise the kernel writes them to disk during the next run.
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
    """Return the environment of a client: a separate home, the credentials, the authority to trust, and no proxy."""
    home.mkdir(parents=True, exist_ok=True)
    given = {"HOME": str(home), "XNAT_URL": server.url, "XNAT_USER": USER, "XNAT_PASS": PASSWORD, "no_proxy": "*"}
    if server.authority:  # of OpenSSL, and of requests
        given |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(server.authority))
    unset = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XNAT_TOKEN", "XNAT_PROFILE")
    return {key: value for key, value in os.environ.items() if key not in unset} | given


@dataclass
class Mounted:
    """An xnatfs mount of a server, with a separate home."""

    server: Server
    home: Path
    path: Path
    options: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.env = login(self.server, self.home)
        subprocess.run([str(SCRIPTS / "xnatfs"), *self.words()], env=self.env, check=True)

    def words(self, *options: str) -> list[str]:
        """Return the arguments of xnatfs that mount it, with further options."""
        trust = ["--ca-bundle", str(self.server.authority)] if self.server.authority else []
        url = ["--url", self.server.url]
        return ["mount", "--quiet", *url, *trust, *self.options, *options, str(self.path)]

    def stop(self) -> None:
        subprocess.run([str(SCRIPTS / "xnatfs"), "umount", str(self.path)], env=self.env, check=True)

    def session(self, project: str) -> Path:
        return self.path / "projects" / project / "SUBJECT" / "SESSION"

    def cached(self) -> Path:
        return self.home / ".cache" / "xnatfs"

    def resident(self) -> float:
        """Return the resident memory of the daemon and its processes, in MB."""
        return sum(process.resident for process in self._serving()) / 1e6

    def processor(self) -> tuple[float, float]:
        """Return the processor time of the daemon and that of its processes, in seconds."""
        daemon, *others = sorted(self._serving(), key=lambda process: str(self.path) not in process.arguments)
        return daemon.processor, sum(process.processor for process in others)

    def _serving(self) -> list["Process"]:
        wanted = {process.pid for process in processes() if str(self.path) in process.arguments}
        assert wanted, "no process serves the mount"
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
    """Yield all running processes, from /proc."""
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
    """Mount a server with xnatfs until the context ends.

    Args:
        server: The server.
        directory: The directory of the mount's home and mountpoint.
        options: Options of `xnatfs mount`.
        keep: Keep the cache of an earlier mount in this directory; otherwise it starts empty.
    """
    if not keep:
        discard(directory)
    mount = Mounted(server, directory / "home", directory / "mnt", options)
    mount.start()
    try:
        yield mount
    finally:
        mount.stop()


@contextlib.contextmanager
def watched(server: Server, directory: Path, *options: str) -> Iterator[tuple[Mounted, Path]]:
    """Mount a server as `mounted` does; yields the mount, and the file of the pauses of its event loop."""
    discard(directory)
    mount, pauses = Mounted(server, directory / "home", directory / "mnt", options), directory / "pauses"
    mount.env = login(server, mount.home)
    command = [sys.executable, "-m", "scripts.benchmarks.pauses", pauses, *mount.words("--foreground")]
    with foreign(command, mount.path, directory / "log", mount.env):
        yield mount, pauses


@contextlib.contextmanager
def foreign(
    command: Sequence[object], mountpoint: Path, log: Path, env: dict[str, str] | None = None
) -> Iterator[Path]:
    """Run a file system in the foreground until the context ends.

    Args:
        command: The command.
        mountpoint: The directory that it mounts on.
        log: The file for its output.
        env: Its environment; by default that of this process.

    Raises:
        MeasurementFailed: It does not mount.
    """
    mountpoint.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as said:
        process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=env
        )
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
            raise MeasurementFailed(f"it does not mount: {last[:200]}")
        time.sleep(0.01)


def drop_pages(what: int = 1) -> None:
    """Drop the kernel's page cache (1), or its dentries and inodes (2). Raises MeasurementFailed without permission.

    Nothing is written to disk first: the pages of a mount, which this is for, are never dirty.
    """
    try:
        Path("/proc/sys/vm/drop_caches").write_text(str(what))
    except OSError as error:
        raise MeasurementFailed(f"only root can drop the kernel's caches: {error.strerror}") from None


def busy() -> float:
    """Return the time that all processors together have worked since the machine started, in seconds."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def shell(command: str, env: dict[str, str] | None = None, timeout: float | None = None) -> float:
    """Run a shell command.

    Args:
        command: The command, for bash.
        env: Its environment; by default that of this process.
        timeout: The limit of its duration, in seconds.

    Returns:
        Its duration, in seconds.

    Raises:
        MeasurementFailed: It failed, or exceeded `timeout`.
    """
    return output(command, env, timeout)[0]


def output(command: str, env: dict[str, str] | None = None, timeout: float | None = None) -> tuple[float, str]:
    """Run a shell command as `shell` does, and return its duration and its standard output."""
    began = time.perf_counter()
    words = ["bash", "-o", "pipefail", "-c", command]
    try:
        done = subprocess.run(words, env=env, timeout=timeout, capture_output=True, text=True, errors="replace")
    except subprocess.TimeoutExpired:
        raise MeasurementFailed(f"`{command}` took longer than {timeout:.0f} s") from None
    took = time.perf_counter() - began
    if done.returncode:
        raise MeasurementFailed(f"`{command}` failed: {done.stderr.strip().rpartition(chr(10))[2][:200]}")
    return took, done.stdout


def same(path: Path, truth: Path) -> bool:
    """Return true if two files hold the same bytes."""
    return subprocess.run(["cmp", "-s", str(path), str(truth)]).returncode == 0
