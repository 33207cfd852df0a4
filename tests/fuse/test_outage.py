"""Test mounts whose server freezes or stops, and suspended laptops: an error in time, never a hang."""

import errno
import filecmp
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.demos import DemoProcess
from tests.support.mounting import LIMIT, Mount, daemons, mounting, run
from xnatfs.demo.fixtures.lab import PASSWORDS

pytestmark = pytest.mark.fuse

LOGIN = {"user": "demo-owner", "password": PASSWORDS["demo-owner"]}
TIMEOUT = 1.0
# The errno that programs get while a server is silent, and while it is gone.
AWAY = {"freeze": errno.ETIMEDOUT, "stop": errno.EHOSTUNREACH}
SCANS = Path("projects", "P", "S", "E", "scans")
SMALL, BIG = SCANS / "1" / "DICOM", SCANS / "2" / "RAW" / "big.bin"
# A mount is used again 5 s after its server is back (tests/http/test_circuit_breaker.py, in virtual time); this
# machine may be busy.
BACK = 20.0

# Copies a file, and waits for a line after its first MiB: the copy is in its middle on any machine.
COPY = [
    sys.executable,
    "-c",
    """if True:
        import sys
        with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb", buffering=0) as target:
            target.write(source.read(2**20))
            sys.stdin.readline()
            while piece := source.read(2**20):
                target.write(piece)
    """,
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("data")
    small, big = (top.joinpath(*path.parts[1:]) for path in (SMALL, BIG))
    small.mkdir(parents=True)
    big.parent.mkdir(parents=True)
    for number in range(200):
        (small / f"{number:03}.dcm").write_bytes(os.urandom(20_000))
    big.write_bytes(os.urandom(2**20) * 128)
    return top


@pytest.fixture
def server(data: Path) -> Iterator[DemoProcess]:
    served = DemoProcess(data)
    try:
        yield served
    finally:
        served.stop()


@contextmanager
def mounted(server: DemoProcess, directory: Path, *options: str) -> Iterator[Mount]:
    with mounting(server.url, directory, "--timeout", f"{TIMEOUT:g}", *options, **LOGIN) as mount:
        mount.expected_in_log += ["is unreachable", "is reachable", "no download process"]
        yield mount


def outage_lines(mount: Mount) -> list[str]:
    return [
        line
        for line in mount.log_file.read_text().splitlines()
        if "is unreachable" in line or "is reachable again" in line
    ]


def eventually(what: Callable[[], bool], within: float = BACK) -> None:
    end = time.monotonic() + within
    while not what():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.002)


def heard(path: Path) -> int:
    """Return the errno that reading this gives a program, or 0."""
    done = run("cat", path)
    found = [number for number in (*AWAY.values(), errno.EIO) if os.strerror(number) in done.stderr]
    assert found or not done.returncode, done.stderr
    return found[0] if found else 0


def waits(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process is in a call to a mount."""
    return "fuse" in Path("/proc", str(process.pid), "wchan").read_text() or process.poll() is not None


def in_disk_sleep(processes: list[int]) -> list[int]:
    """Return the processes in uninterruptible sleep."""
    found = []
    for process in processes:
        try:
            state = Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        found += [process] * (state == "D")
    return found


@pytest.mark.parametrize("how", AWAY)
def test_what_is_here_stays_what_is_not_fails_and_all_is_well_when_it_is_back(server, tmp_path, data, how):
    with mounted(server, tmp_path, "--ttl", "600") as mount:
        names = sorted(os.listdir(mount.path / SMALL))
        assert heard(mount.path / SMALL / names[0]) == 0
        getattr(server, how)()
        killed = subprocess.Popen(["cat", mount.path / SMALL / names[1]], stderr=subprocess.DEVNULL)
        eventually(lambda: waits(killed))
        killed.kill()
        heard_by: list[int] = []
        readers = [
            threading.Thread(target=lambda name=name: heard_by.append(heard(mount.path / SMALL / name)))
            for name in names[100:-1]
        ]
        began = time.monotonic()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        killed.wait(LIMIT)  # the kernel lets it go when its call is answered, and no sooner
        took = time.monotonic() - began
        assert heard_by == [AWAY[how]] * len(readers)
        assert took < len(readers) * TIMEOUT / 2, "they do not wait one after the other"
        eventually(lambda: len(outage_lines(mount)) == 1)
        assert heard(mount.path / SMALL / names[0]) == 0
        assert sorted(os.listdir(mount.path / SMALL)) == names
        assert heard(mount.path / SMALL / names[-1]) == AWAY[how]
        server.back(how)
        eventually(lambda: heard(mount.path / SMALL / names[-1]) == 0)
        assert (mount.path / SMALL / names[-1]).read_bytes() == data.joinpath(*SMALL.parts[1:], names[-1]).read_bytes()
    begins, ends = outage_lines(mount)
    assert "is unreachable" in begins
    assert "is reachable again after" in ends


def copied(source: Path, target: Path, truth: Path, copying: subprocess.Popen[str]) -> bool:
    """Return whether the copy succeeded; a file of full length is right, and cp has reported any that is missing."""
    _, said = copying.communicate(timeout=LIMIT)
    right = []
    for true in [truth] if truth.is_file() else sorted(truth.iterdir()):
        made = target / true.name if truth.is_dir() else target
        right.append(made.is_file() and filecmp.cmp(true, made, shallow=False))
        if made.is_file() and made.stat().st_size == true.stat().st_size:
            assert right[-1], made
    assert all(right) == (copying.returncode == 0), said
    assert all(right) or any(os.strerror(number) in said for number in (*AWAY.values(), errno.EIO)), said
    return all(right)


def sent(process: int, number: signal.Signals) -> bool:
    """Send a signal; return whether the process was still there. A download process ends with what it was to fetch."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", AWAY)
def test_a_laptop_that_is_closed_and_opened_in_the_middle_of_a_copy(server, tmp_path, data, how):
    """Stop the daemon and its processes, and the server, for three times the timeout."""
    truths = [data.joinpath(*path.parts[1:]) for path in (SMALL, BIG)]
    with mounted(server, tmp_path, "--ttl", "1") as mount:
        sources = [mount.path / SMALL, mount.path / BIG]
        targets = [tmp_path / "small", tmp_path / "big"]
        copies = [
            subprocess.Popen([*command, source, target], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for command, source, target in zip((["cp", "-r"], COPY), sources, targets, strict=True)
        ]
        eventually(lambda: targets[1].exists() and targets[1].stat().st_size > 0, LIMIT)
        asleep = [process for process in daemons(mount.home) if sent(process, signal.SIGSTOP)]
        assert copies[1].stdin is not None
        copies[1].stdin.write("\n")
        copies[1].stdin.flush()
        getattr(server, how)()
        assert targets[1].stat().st_size < truths[1].stat().st_size, "it is in the middle"
        time.sleep(3 * TIMEOUT)  # that is the test
        for process in asleep:
            os.kill(process, signal.SIGCONT)
        server.back(how)
        for each in zip(sources, targets, truths, copies, strict=True):
            copied(*each)
        assert in_disk_sleep([*asleep, *(copy.pid for copy in copies)]) == []

        def again() -> bool:
            done = []
            for source, truth in zip(sources, truths, strict=True):
                target = tmp_path / f"again-{time.monotonic_ns()}"
                copying = subprocess.Popen(["cp", "-r", source, target], stderr=subprocess.PIPE, text=True)
                done.append(copied(source, target, truth, copying))
            return all(done)

        eventually(again)
