"""Test faults under a real mount: programs end in time, with the right bytes or errno, and nothing hangs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import Faulty, faulty
from tests.faults.stage import EXPERIMENT, PASSWORD, USER, stage_archive
from tests.support.mounting import Mount, daemons, mounting, run
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.socket import serve

TIMEOUT = 1.0
# Beyond it: a program is started, a download process too, on a machine that does much else.
GRACE = 20.0
# What is cached is answered in milliseconds; a machine that does much else takes longer to start doing it.
AT_ONCE = 5.0
# How soon all is well after an outage, by promise 5 of docs/dev/RELIABILITY.md.
BACK = 5.0

SMALL = os.urandom(100_000)
BIG = os.urandom(9 * 2**20)

# Looks at a path again and again, until its input ends; says how long the slowest look took.
WATCH = """
import os, select, sys, time
slowest = 0.0
while not select.select([sys.stdin], [], [], 0.02)[0]:
    began = time.monotonic()
    os.stat(sys.argv[1])
    slowest = max(slowest, time.monotonic() - began)
print(slowest)
"""


@dataclass(frozen=True)
class Fault:
    """A server's behaviour, and the outcome for a program: '' for the right bytes, or the words of an errno."""

    name: str
    begin: Callable[[Faulty], None]
    small: str
    big: str


def step(text: str) -> Callable[[Faulty], None]:
    return lambda server: server.script(f"[{{match: 'GET .*/files/(small|big).bin', {text}}}]")


EIO, SILENT, NO_WAY = "Input/output error", "Connection timed out", "No route to host"
FAULTS = [
    Fault("stall", step("fault: stall, after: 50000"), SILENT, SILENT),
    Fault("reset", step("fault: reset, after: -1"), EIO, EIO),
    Fault("refused", lambda server: server.stop(keep_sessions=True), NO_WAY, NO_WAY),
    Fault("frozen", lambda server: server.freeze(), SILENT, SILENT),
    Fault("cut", step("fault: cut, after: 60000, times: 1"), "", ""),
    Fault("login", step("fault: login-page"), EIO, EIO),
    Fault("corrupt", step("fault: corrupt, at: 70000"), EIO, EIO),
    Fault("restart", step("fault: restart, seconds: 0.1, times: 1"), "", ""),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Faulty]:
    """Serve a resource for each fault, so that nothing of it is cached or read ahead."""
    archive = stage_archive()
    session = archive.experiments[EXPERIMENT]
    for fault in FAULTS:
        resource = archive.resource(session.resources, fault.name)
        archive.file(resource, "small.bin", SMALL)
        archive.file(resource, "big.bin", BIG)
    with serve(DemoXnat(archive)) as url, faulty(url) as made:
        yield made


@pytest.fixture(scope="module")
def mount(server: Faulty, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    options = ("--timeout", str(TIMEOUT), "--ttl", "3600")
    with mounting(server.url, tmp_path_factory.mktemp("faults"), *options, user=USER, password=PASSWORD) as made:
        made.expected_in_log += ["server is unreachable", "server is reachable"]
        made.expected_in_log += ["damaged file", "came as a web page", "its MD5 is"]
        yield made


@contextmanager
def watched(path: Path) -> Iterator[None]:
    """Check all the while that what is cached answers at once."""
    command = [sys.executable, "-c", WATCH, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        yield
        said, _ = watcher.communicate(timeout=GRACE)
    assert float(said) < AT_ONCE


def read(path: Path, within: float = GRACE) -> tuple[bytes, str]:
    """Return what a program reads and what it prints to stderr; it has ended by then."""
    done = subprocess.run(["cat", str(path)], capture_output=True, timeout=TIMEOUT + within)
    return done.stdout, done.stderr.decode().strip().rpartition(": ")[2]


def asleep(process: int) -> bool:
    """Return whether a process waits for something that no signal ends."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "D"
    except OSError:
        return False


def stuck(processes: list[int]) -> list[int]:
    """Return the processes that wait so at each look: they wait for a disk, too, but not for seconds."""
    for _ in range(50):
        processes = [process for process in processes if asleep(process)]
        if not processes:
            break
        time.sleep(0.1)
    return processes


@pytest.mark.fuse
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_program_reads_right_bytes_or_an_error(fault, server, mount):
    folder = mount.path / "projects/P/S/E/resources" / fault.name
    assert run("ls", "-l", folder).returncode == 0
    server.forget()
    fault.begin(server)
    try:
        with watched(folder / "small.bin"):
            for name, content, said in (("small.bin", SMALL, fault.small), ("big.bin", BIG, fault.big)):
                got, complaint = read(folder / name)
                assert complaint == said
                assert got == content if not said else (content.startswith(got) or fault.name == "corrupt")
                assert said == "" or len(got) < len(content)
        if fault.name not in ("refused", "frozen"):
            assert [met.fault for met in server.met]
        assert stuck(daemons(mount.home)) == []
    finally:
        server.script(())
        server.thaw()
        server.start()
    began = time.monotonic()
    while (found := [read(folder / "small.bin")[0], read(folder / "big.bin")[0]]) != [SMALL, BIG]:
        assert time.monotonic() - began < BACK + GRACE, [len(each) for each in found]
        time.sleep(0.1)
