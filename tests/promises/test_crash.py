"""Test killed processes, and what the next mount makes of what they leave."""

import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.demos import Demo, serving
from tests.support.failing import DEAD, STRANGER
from tests.support.killing import BIG, CACHE_SIZE, DEATH, SERIES, SOON, Victim, publish, victim
from tests.support.mounting import SCRIPTS, run
from xnatfs.common.errors import MountpointError
from xnatfs.common.mountinfo import Mount, mount_on
from xnatfs.fuse.mountpoint import check_mountpoint, clear_dead, is_dead
from xnatfs.transfer.manifest import FOLDER

pytestmark = pytest.mark.fuse

KILLS = int(os.environ.get("XNATFS_KILLS", "20"))
SEED = int(os.environ.get("XNATFS_KILLS_SEED", "1"))


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def demo(truth: Path) -> Iterator[Demo]:
    with serving(truth) as served:
        yield served


@pytest.fixture
def killed(demo: Demo, truth: Path, tmp_path: Path) -> Iterator[Victim]:
    with victim(demo, truth, tmp_path) as made:
        yield made


def test_kills_at_random_moments_leave_nothing_wrong(killed):
    chance = random.Random(SEED)
    for number in range(KILLS):
        try:
            killed.kill_once(chance)
        except AssertionError as error:
            error.add_note(f"kill {number} of seed {SEED}: {dict(killed.counts)}")
            raise
    killed.mount()
    found = killed.read(*SERIES, *BIG).result()
    assert len(found["whole"]) == len(SERIES) + len(BIG)
    assert killed.umount() == ""
    killed.consistent()
    print(f"{KILLS} kills of seed {SEED}: {dict(killed.counts)}")


# -- dead mountpoints --------------------------------------------------------------------------------------------


def daemon(killed: Victim) -> int:
    (process,) = killed.processes(workers=False)
    return process


def died(killed: Victim) -> Mount:
    """Return a mount whose daemon was killed."""
    killed.mount()
    killed.kill()
    killed.gone()
    found = mount_on(killed.place)
    assert found is not None
    return found


def test_a_dead_mountpoint_is_an_error_at_once_and_the_next_mount_clears_it(killed):
    killed.mount()
    with killed.inside():  # only a lazy unmount is possible
        killed.kill()
        killed.gone()
        for reader in (killed.read(*SERIES[:3]), killed.look()):
            assert {number for _, number in reader.result()["errors"]} == {errno.ENOTCONN}
        dead = mount_on(killed.place)
        killed.mount()
        assert mount_on(killed.place) not in (dead, None)
    assert len(killed.read(*SERIES[:3]).result()["whole"]) == 3
    assert len(killed.cleared()) == 1
    assert killed.umount() == ""
    assert mount_on(killed.place) is None


def test_umount_clears_a_dead_mountpoint_and_says_so(killed):
    died(killed)
    told = killed.umount()
    assert told == f"xnatfs: {killed.place} was a dead mount, its process had ended without unmounting: cleared\n"
    assert mount_on(killed.place) is None


def test_what_is_not_our_own_dead_mount_is_left_alone(killed):
    """Leave mounts of another server, another user, and another kind of file system."""
    dead = died(killed)
    other = [DEAD if word == killed.demo.url else word for word in killed.command()]
    done = run(*other, env=killed.environment())
    text = f"{killed.place} holds a dead mount of {killed.demo.url}: remove it with 'xnatfs umount {killed.place}'"
    assert (done.returncode, done.stderr) == (66, f"xnatfs: {text}\n")
    assert is_dead(killed.place, dead)
    assert not is_dead(killed.place, replace(dead, owner=STRANGER))
    assert not is_dead(killed.place, replace(dead, kind="fuse.sshfs"))
    assert not clear_dead(killed.place, DEAD)
    assert mount_on(killed.place) == dead


@pytest.mark.parametrize("known", [True, False], ids=["its process is known", "it is not"])
def test_a_mount_that_lives_and_does_not_answer_is_left_alone(killed, known, monkeypatch):
    monkeypatch.setattr("xnatfs.fuse.mountpoint.PROBE_SECONDS", 0.5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(killed.home / ".cache"))
    killed.mount()
    living = mount_on(killed.place)
    serving = daemon(killed)
    if not known:
        for path in (killed.home / ".cache" / "xnatfs" / "mounts").iterdir():
            path.unlink()
    os.kill(serving, signal.SIGSTOP)
    try:
        assert not clear_dead(killed.place, killed.demo.url)
        with pytest.raises(MountpointError, match="is a mountpoint already"):
            check_mountpoint(killed.place, killed.demo.url)
    finally:
        os.kill(serving, signal.SIGCONT)
    assert mount_on(killed.place) == living
    assert len(killed.read(*SERIES[:2]).result()["whole"]) == 2


# -- several processes on one directory --------------------------------------------------------------------------


def test_two_mounts_and_a_download_share_a_directory_and_one_is_killed(killed, tmp_path):
    """Evict each other's files all the time: what fits is less than what is read."""
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    killed.mount()
    first = daemon(killed)
    killed.mount(place=other)
    words = ["session", "download", "-P", SERIES[0].parts[0], "-E", SERIES[0].parts[2], "--out", out]
    download = run_beside(SCRIPTS / "xnatctl", *words, env={**killed.environment(), "XNAT_URL": killed.demo.url})
    readers = [killed.read(*SERIES, *BIG), killed.read(*BIG[::-1])]
    others = [killed.read(*BIG[:2], *SERIES, place=other), killed.read(*SERIES[30:], *BIG[1:], place=other)]
    time.sleep(0.5)
    os.kill(first, signal.SIGKILL)
    for reader in readers:
        assert {number for _, number in reader.result()["errors"]} <= DEATH
    assert [reader.result()["errors"] for reader in others] == [[], []]
    assert download.wait(SOON) == 0
    copied = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file() and FOLDER not in path.parts}
    assert copied == {name.name: (killed.truth / name).read_bytes() for name in [*SERIES, *BIG]}
    # The download may have kept more than a mount would.
    assert killed.read(*SERIES[:1], BIG[0], place=other).result()["errors"] == []
    assert killed.umount() != ""
    assert killed.umount(place=other) == ""
    killed.consistent()
    assert kept(killed.directory) <= CACHE_SIZE


def test_a_download_process_ends_with_its_daemon_while_it_connects():
    """End the process: the next mount would take a cache file that it holds open for a download under way."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
        for _ in range(3):  # the kernel answers no more than these
            other = waiting.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "xnatfs.download_worker.process"]
            process = subprocess.Popen(command, stdin=theirs.fileno())
        host, port = full.getsockname()
        get = {"get": "/", "host": host, "port": port, "tls": None, "headers": [], "connect": 60.0, "read": 60.0}
        with ours:
            ours.sendall(json.dumps(get).encode() + b"\n")
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
        assert process.wait(SOON) == 0


# -- a directory that fails below a mount ------------------------------------------------------------------------


def test_a_full_disk_is_one_warning_and_what_is_read_is_right(killed, tmp_path):
    """Warn once, for files of download processes too; when there is room again, files are cached."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "xnatfs-test", disk]).returncode:
        pytest.skip("mounting takes root")
    try:
        killed.mount("--cache-dir", disk / "cache")
        with open(disk / "filler", "wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        for _ in range(2):
            readers = [killed.read(*SERIES), *(killed.read(name) for name in BIG)]
            assert [reader.result()["errors"] for reader in readers] == [[]] * 4
        warnings = [line for line in killed.log.read_text().splitlines() if " WARNING " in line]
        assert len(warnings) == 1
        assert "No space left on device" in warnings[0] or "disk is full" in warnings[0]
        (disk / "filler").unlink()
        killed.demo.forget_requests()
        for _ in range(2):
            assert killed.read(BIG[0], *SERIES[:3]).result()["errors"] == []
        # A first window, and the rest; nothing of it twice.
        assert len([line for line in killed.demo.asked() if line.endswith(BIG[0].name)]) == 2
        assert killed.umount() == ""
    finally:
        killed.kill()
        subprocess.run(["umount", "-l", disk], check=True)


def run_beside(*command: str | Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(part) for part in command], env=env, stdout=subprocess.DEVNULL)


def kept(directory: Path) -> int:
    return sum(path.stat().st_size for path in (directory / "blobs").glob("*/*"))
