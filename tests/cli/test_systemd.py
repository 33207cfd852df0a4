"""Rehearse a boot: a line of fstab, an automount, `mount -a`, and a unit of the system, by a real systemd."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_boot import Machine, machine  # noqa: F401
from tests.fuse.test_mount import wait_for
from tests.support.booting import Booted, booted, lack
from tests.support.mounting import SCRIPTS, daemons
from xnatfs.cli.host.units import unit_name

pytestmark = [pytest.mark.fuse, pytest.mark.skipif(lack() != "", reason=lack() or "it can be booted")]

FSTAB = """
{url} {place} xnatfs noauto,nofail,_netdev,x-systemd.automount,credentials={file} 0 0
{url} {second} xnatfs nofail,_netdev,credentials={file} 0 0
"""


# automount(8) makes a directory in /tmp, in which the directory of the test is, and which is read-only there.
WRITABLE_TMP = """
mkdir /run/tmp && mount --rbind "$1" /run/tmp && mount -t tmpfs none /tmp
mkdir -p "$1" && mount --rbind /run/tmp "$1"
"""


@pytest.fixture
def computer(machine: Machine) -> Iterator[Booted]:  # noqa: F811
    """Boot with a line of fstab that is mounted at the first access, and one that is mounted at the boot."""
    second, sbin = machine.root / "second", machine.root / "sbin"
    for directory in (second, sbin):
        directory.mkdir()
    helper = f'#!/bin/sh\nHOME={shlex.quote(str(machine.home))} exec {SCRIPTS}/mount.xnatfs "$@"\n'
    for name in ("mount.xnatfs", "mount.fuse.xnatfs"):
        (sbin / name).write_text(helper)
        (sbin / name).chmod(0o755)
    fstab = FSTAB.format(url=machine.demo.url, place=machine.place, second=second, file=machine.file)
    (machine.root / "fstab").write_text(fstab)
    with booted(machine.root, str(SCRIPTS)) as made:
        yield made
    assert wait_for(lambda: daemons(machine.home) == [])


def unit(place: Path, kind: str) -> str:
    return f"{unit_name(place).removeprefix('xnatfs-')}.{kind}"


def test_a_boot_mounts_what_fstab_says_and_units_start_and_stop(machine, computer):  # noqa: F811
    place, second = machine.place, machine.root / "second"
    assert wait_for(lambda: computer.state(unit(place, "automount")) == "active"), log(machine)
    assert wait_for(lambda: computer.state(unit(second, "mount")) == "active"), log(machine)
    assert computer.state(unit(place, "mount")) == "inactive", "nothing has looked yet"
    for directory in (second, place):
        assert "BRAINS" in computer.run("ls", directory / "projects").stdout.split()
    assert computer.state(unit(place, "mount")) == "active"

    computer.systemctl("stop", unit(place, "mount"))
    assert computer.run("umount", second).returncode == 0
    assert wait_for(lambda: daemons(machine.home) == [])
    assert "BRAINS" in computer.run("ls", place / "projects").stdout.split(), "the next access mounts again"
    done = computer.run("mount", "-a")
    assert (done.returncode, done.stderr) == (0, ""), log(machine)
    assert "BRAINS" in computer.run("ls", second / "projects").stdout.split()

    own = machine.root / "own"
    words = ("--url", machine.demo.url, "--credentials", machine.file, own)
    installed = computer.run(SCRIPTS / "xnatfs", "install-unit", "--system", *words)
    assert installed.returncode == 0, installed.stderr
    service = f"{unit_name(own)}.service"
    more = f"/etc/systemd/system/{service}.d"  # nothing else than the directory of the test can be written to
    text = f"[Service]\nEnvironment=HOME={machine.home}\n"
    done = computer.run("sh", "-ec", 'mkdir "$1"; printf %s "$2" >"$1/home.conf"', "sh", more, text)
    assert done.returncode == 0, done.stderr
    computer.systemctl("daemon-reload")
    computer.systemctl("start", service)
    status = computer.systemctl("show", "-p", "ActiveState,SubState,StatusText", service)
    mounted = f"StatusText={machine.demo.url} is mounted on {own}"
    assert set(status.splitlines()) == {"ActiveState=active", "SubState=running", mounted}
    assert "BRAINS" in computer.run("ls", own / "projects").stdout.split()
    computer.systemctl("reload", service)
    assert "BRAINS" in computer.run("ls", own / "projects").stdout.split()
    computer.systemctl("stop", service)
    assert computer.state(service) == "inactive"
    assert str(own) not in computer.run("cat", "/proc/mounts").stdout


def test_a_service_of_the_user_mounts_at_the_login_and_comes_back(machine, computer):  # noqa: F811
    """The commands of the recipe, and a daemon that is killed."""
    place = machine.root / "own"

    def systemctl(*words: str) -> str:
        return str(computer.run_as_user(machine.home, "systemctl", "--user", *words))

    def process() -> int:
        return int(systemctl("show", "-p", "MainPID", "--value", service))

    assert wait_for(lambda: computer.state("remote-fs.target") == "active"), log(machine)
    computer.systemctl("start", "user@0.service")
    words = ("--user", "--url", machine.demo.url, "--credentials", machine.file, place)
    said = computer.run_as_user(machine.home, SCRIPTS / "xnatfs", "install-unit", *words)
    service = f"{unit_name(place)}.service"
    path = machine.home / ".config/systemd/user" / service
    assert said.startswith(f"wrote {path}; start it with: systemctl --user daemon-reload && systemctl --user enable")
    path.write_text(path.read_text().replace("RestartSec=10", "RestartSec=0"))  # a test need not wait
    systemctl("daemon-reload")
    systemctl("enable", "--now", service)
    mounted = f"StatusText={machine.demo.url} is mounted on {place}"
    assert mounted in systemctl("show", "-p", "StatusText", service), "it is ready when the mount is"
    assert "BRAINS" in computer.run("ls", place / "projects").stdout.split()

    first = process()
    computer.run("kill", "-9", str(first))
    assert wait_for(lambda: "BRAINS" in computer.run("ls", place / "projects").stdout.split()), log(machine)
    assert process() not in (0, first)
    systemctl("stop", service)
    assert str(place) not in computer.run("cat", "/proc/mounts").stdout

    computer.systemctl("restart", "user@0.service")  # the user logs in again
    assert wait_for(lambda: "BRAINS" in computer.run("ls", place / "projects").stdout.split()), log(machine)
    computer.systemctl("stop", "user@0.service")
    assert str(place) not in computer.run("cat", "/proc/mounts").stdout


@pytest.mark.skipif(shutil.which("automount") is None, reason="takes autofs")
def test_a_map_of_autofs_mounts_at_the_first_access_and_unmounts_later(machine, computer):  # noqa: F811
    automount = shutil.copy(shutil.which("automount") or "", machine.root / "sbin")
    place, maps = machine.root / "auto", (machine.root / "auto.master", machine.root / "auto.xnat")
    place.mkdir()
    maps[0].write_text(f"{place} {maps[1]} --timeout=1\n")
    url = machine.demo.url.replace(":", r"\:")
    maps[1].write_text(f"xnat -fstype=xnatfs,credentials={machine.file} :{url}\n")
    assert wait_for(lambda: computer.state("remote-fs.target") == "active"), log(machine)
    done = computer.run("sh", "-ec", WRITABLE_TMP, "sh", machine.root)
    assert done.returncode == 0, done.stderr
    done = computer.run("setsid", "--wait", automount, "--pid-file", "/run/automount.pid", maps[0])
    assert done.returncode == 0, done.stderr
    mounted = f"{place}/xnat fuse.xnatfs"
    assert mounted not in computer.run("cat", "/proc/mounts").stdout
    assert "BRAINS" in computer.run("ls", place / "xnat" / "projects").stdout.split(), log(machine)
    assert mounted in computer.run("cat", "/proc/mounts").stdout
    assert wait_for(lambda: mounted not in computer.run("cat", "/proc/mounts").stdout), "it expires"


def log(machine: Machine) -> str:  # noqa: F811
    return (machine.root / "boot.log").read_text()
