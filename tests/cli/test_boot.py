"""Start and stop mounts as file systems are: by mount(8) and fstab, as a service, before the server is there."""

import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.test_mount import wait_for
from tests.support.demos import Demo, serving
from tests.support.failing import DEAD, OWN_MOUNTS, PASSWORD, desk
from tests.support.mounting import LIMIT, SCRIPTS, daemons, end, environment, mounted_file_system, run
from xnatfs.cli.host import helper, rotating_log, units
from xnatfs.common.errors import ConfigError
from xnatfs.demo.archive.model import Archive
from xnatfs.demo.server.socket import serve

XNATFS = SCRIPTS / "xnatfs"


@dataclass
class Machine:
    """A demo server, a home, a place to mount, and a credentials file."""

    demo: Demo
    root: Path

    def __post_init__(self) -> None:
        self.home, self.place, self.file = self.root / "home", self.root / "mnt", self.root / "credentials"
        for directory in (self.home, self.place):
            directory.mkdir()
        self.write(self.demo.login["password"])

    def write(self, password: str, mode: int = 0o600) -> None:
        self.file.write_text(f"# of the demo\nusername = {self.demo.login['user']}\npassword={password}\n")
        self.file.chmod(mode)

    def run(self, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return run(XNATFS, *words, env=environment(self.home, **more), stdin=subprocess.DEVNULL)

    def mount(self, *options: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run("mount", "--url", self.demo.url, "--credentials", self.file, *options, self.place, **more)

    def umount(self, word: str = "umount") -> None:
        done = self.run(word, self.place)
        assert (done.returncode, done.stderr) == (0, "")
        assert daemons(self.home) == []

    def names(self, below: str = "projects") -> list[str]:
        return run("ls", self.place / below).stdout.split()

    @property
    def log_file(self) -> Path:
        (found,) = (self.home / ".cache" / "xnatfs" / "log").iterdir()
        return found

    def daemon(self) -> int:
        (found,) = daemons(self.home)
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with serving() as demo:
        made = Machine(demo, tmp_path)
        try:
            yield made
        finally:
            end(made.place, made.home)


# -- xnatfs mount ----------------------------------------------------------------------------------------------


@pytest.mark.fuse
def test_a_mount_says_in_one_line_what_is_where_for_whom(machine):
    done = machine.mount()
    user = machine.demo.login["user"]
    line = f"mounted {machine.demo.url} on {machine.place} as {user}; log: {machine.log_file}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, line, "")
    assert machine.log_file.stat().st_mode & 0o077 == 0
    assert re.fullmatch(r"tmp-[A-Za-z0-9._-]+-mnt\.[0-9a-f]{8}\.log", machine.log_file.name)
    machine.umount("unmount")


@pytest.mark.fuse
def test_mounting_the_same_again_is_a_success_that_says_so(machine):
    assert machine.mount("--quiet").stdout == ""
    first = machine.daemon()
    again = machine.mount()
    text = f"{machine.demo.url} is mounted on {machine.place} already\n"
    assert (again.returncode, again.stdout, again.stderr) == (0, text, "")
    assert machine.daemon() == first
    other = machine.run("mount", "--url", DEAD, machine.place, XNAT_USER="u", XNAT_PASS=PASSWORD)
    assert other.returncode == 66
    assert "is a mountpoint already" in other.stderr


@pytest.mark.fuse
def test_a_mountpoint_is_made_if_asked(machine):
    machine.place.rmdir()
    missing = machine.mount()
    assert missing.returncode == 66
    assert "--mkdir" in missing.stderr
    assert machine.mount("--mkdir").returncode == 0
    assert machine.mount("-o", "mkdir").returncode == 0
    assert "BRAINS" in machine.names()
    (machine.root / "file").write_text("")
    done = machine.run("mount", "--url", DEAD, "--mkdir", machine.root / "file" / "x")
    assert done.returncode == 66
    assert "cannot be made: Not a directory" in done.stderr


@pytest.mark.fuse
def test_a_lazy_mount_begins_without_its_server_and_logs_in_later(machine):
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
    options = ("--url", url, "--credentials", machine.file, "--timeout", "2", machine.place)
    failed = machine.run("mount", *options)
    assert failed.returncode == 4
    assert machine.run("mount", "--lazy", *options).returncode == 0
    assert "Errno" not in machine.log_file.read_text()
    assert "mounted without the server: " in machine.log_file.read_text() or "does not answer" in (
        machine.log_file.read_text()
    )
    assert run("ls", machine.place / "projects").returncode != 0
    with serve(machine.demo.app, port=int(url.rpartition(":")[2])):
        assert wait_for(lambda: "BRAINS" in machine.names())


@pytest.mark.fuse
def test_a_hangup_reloads_the_login_and_drops_the_listings(machine):
    machine.mount("--ttl", "3600")
    assert "NEW" not in machine.names()
    archive: Archive = machine.demo.archive
    archive.project("NEW", "New", **{machine.demo.login["user"]: "Owners"})
    assert "NEW" not in machine.names()
    # The password changes, on the server and in the file, and the server ends all sessions.
    archive.users[machine.demo.login["user"]].password = "another one"
    machine.demo.app.sessions.end_all()
    machine.write("another one")
    os.kill(machine.daemon(), signal.SIGHUP)
    assert wait_for(lambda: "reloaded: listings dropped" in machine.log_file.read_text())
    assert "NEW" in machine.names()
    assert f"login from the file {machine.file}" in machine.log_file.read_text()
    machine.file.chmod(0o644)
    os.kill(machine.daemon(), signal.SIGHUP)
    assert wait_for(lambda: "the login stays as it was: " in machine.log_file.read_text())
    assert "NEW" in machine.names()
    machine.umount()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_credentials_that_others_can_read_are_refused(mode):
    with desk() as sitting:
        file = sitting.root / "credentials"
        file.write_text(f"username=u\npassword={PASSWORD}\n")
        file.chmod(mode)
        line = sitting.fails(2, "mount", "--url", DEAD, "--credentials", file, sitting.place)
        assert f"chmod 600 {file}" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have a line username="),
        ("username=u\n", "must have a line username="),
        (f"username=u\npassword={PASSWORD}\nusername=v\n", "line 3 is not"),
        (f"username=u\n{PASSWORD}\n", "line 2 is not"),
        (f"username=u:v\npassword={PASSWORD}\n", "a name with ':'"),
    ],
)
def test_credentials_that_cannot_be_used_are_one_line_without_a_secret(text, said):
    with desk() as sitting:
        file = sitting.root / "credentials"
        file.write_text(text)
        file.chmod(0o600)
        assert said in sitting.fails(2, "mount", "--url", DEAD, "-o", f"credentials={file}", sitting.place)


def test_credentials_that_are_missing_or_no_file_are_named():
    with desk() as sitting:
        for file in (sitting.root / "none", sitting.root):
            assert str(file) in sitting.fails(2, "mount", "--url", DEAD, "--credentials", file, sitting.place)


def test_a_log_is_rotated_by_size_and_keeps_what_an_interpreter_writes(tmp_path):
    text = """
import logging, os, sys
from pathlib import Path
from xnatfs.cli.host import rotating_log
rotating_log.MAX_LOG_BYTES = 1000
rotating_log.log_to_rotating_file(Path(sys.argv[1]), logging.INFO, takes_stderr=True)
for number in range(40):
    logging.info("line %d %s", number, "x" * 50)
os.write(2, b"the last words\\n")
"""
    done = run(sys.executable, "-c", text, tmp_path / "log", env=environment(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2", "log.3"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert "line 39" in (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().endswith("the last words\n")
    assert rotating_log.MAX_LOG_BYTES * (rotating_log.OLD_LOGS + 1) <= 20_000_000
    assert logging.getLogger().level != logging.INFO


# -- mount(8) --------------------------------------------------------------------------------------------------


def by_mount(machine: Machine, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script, as root in a mount namespace, with our helper where mount(8) looks for it.

    mount(8) passes no environment on, so that the helper is called by a script that sets a home.
    """
    directory = machine.root / "sbin"
    directory.mkdir()
    for name in ("mount.xnatfs", "mount.fuse.xnatfs"):
        (directory / name).write_text(f'#!/bin/sh\nHOME={machine.home} exec {SCRIPTS}/{name} "$@"\n')
        (directory / name).chmod(0o755)
    stage = [*OWN_MOUNTS, "sh", "-ec", f'mount --bind {directory} /usr/sbin && sh -ec "$1"', "sh", script]
    return run(*stage, env=environment(machine.home))


FSTAB = "{url} {place} {kind} defaults,noauto,nofail,_netdev,x-systemd.automount,credentials={file},ttl=300 0 0\n"


@pytest.mark.fuse
@pytest.mark.parametrize("kind", ["xnatfs", "fuse.xnatfs"])
def test_a_line_of_fstab_mounts_and_umount_ends_it(machine, kind):
    fstab = machine.root / "fstab"
    fstab.write_text(FSTAB.format(url=machine.demo.url, place=machine.place, file=machine.file, kind=kind))
    script = f"""
        mount --fstab {fstab} {machine.place}
        grep -c ' {machine.place} fuse.xnatfs ro,nosuid,nodev' /proc/mounts
        ls {machine.place}/projects
        umount {machine.place}
    """
    done = by_mount(machine, script)
    assert (done.returncode, done.stderr) == (0, "")
    count, *projects = done.stdout.split()
    assert count == "1"
    assert "BRAINS" in projects
    assert wait_for(lambda: daemons(machine.home) == [])


@pytest.mark.fuse
def test_mount_with_a_type_takes_options(machine):
    words = f"-t xnatfs -o ro,credentials={machine.file},cache_dir={machine.root}/cache -v"
    script = f"mount {words} {machine.demo.url} {machine.place}; umount {machine.place}"
    done = by_mount(machine, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"mounted {machine.demo.url} on {machine.place} as ")


@pytest.mark.fuse
@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ("password=hush-hush", 1, "-o password: no such option"),
        ("credentials=/no/such", 1, "/no/such"),
        ("nonempty", 1, "-o nonempty"),
        ("timeout=1", 32, "cannot be reached"),
    ],
)
def test_mount_passes_on_why_it_failed(machine, options, status, said):
    done = by_mount(machine, f"mount -t xnatfs -o credentials={machine.file},{options} {DEAD} {machine.place}")
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = done.stderr.splitlines()
    assert said in line
    assert "hush-hush" not in line
    assert daemons(machine.home) == []


def test_the_helper_reads_what_mount_passes():
    assert helper.translate(["https://x", "/m", "-o", "rw,ttl=3,_netdev"]) == [
        *("mount", "--url", "https://x", "-o", "rw,ttl=3,_netdev", "--quiet", "/m")
    ]
    assert helper.translate(["-v", "-n", "none", "/m", "-o", "profile=p", "-t", "fuse.xnatfs"]) == [
        *("mount", "-o", "profile=p", "/m")
    ]
    assert helper.translate(["https://x", "/m", "-f", "-o", "ttl=3"]) == []
    assert helper.translate(["https://x", "/m", "-s", "-o", "ttl=3,vers=4"])[3:5] == ["-o", "ttl=3"]
    for wrong in (["https://x"], ["https://x", "/m", "/n"], ["https://x", "/m", "-f", "-o", "vers=4"]):
        with pytest.raises(ConfigError):
            helper.translate(wrong)


def test_a_wrong_use_of_the_helper_is_one_line(tmp_path):
    for words in ((), ("-z", "https://x", "/m")):
        done = run(SCRIPTS / "mount.xnatfs", *words, env=environment(tmp_path))
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("mount.xnatfs: ")
        assert "usage: mount.xnatfs URL DIR" in line


# -- systemd ---------------------------------------------------------------------------------------------------


class Manager:
    """The socket of a service manager."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(LIMIT)

    def receive(self) -> list[str]:
        return self.socket.recv(4096).decode().splitlines()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    with made.socket:
        yield made


def unit_of(machine: Machine, *options: str | Path) -> dict[str, str]:
    """Return the lines of the unit that is printed for this machine."""
    words = ("--url", machine.demo.url, "--credentials", machine.file, *options, machine.place)
    done = machine.run("install-unit", "--user", "--print", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


@pytest.mark.fuse
def test_the_command_of_a_unit_notifies_its_manager_and_reloads(machine, manager):
    command = shlex.split(unit_of(machine)["ExecStart"])
    env = environment(machine.home, NOTIFY_SOCKET=str(machine.root / "notify"))
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as service:
        try:
            assert manager.receive() == [
                "READY=1",
                f"STATUS={machine.demo.url} is mounted on {machine.place}",
            ]
            assert "BRAINS" in machine.names()
            service.send_signal(signal.SIGHUP)
            assert manager.receive()[0] == "RELOADING=1"
            assert manager.receive() == ["READY=1"]
            service.terminate()
            assert manager.receive() == ["STOPPING=1"]
            assert service.wait(LIMIT) == 0
        finally:
            service.kill()
    assert mounted_file_system(machine.place) == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("options", [(), ("-o", "exec", "--ttl", "300")])
def test_systemd_reads_the_unit(machine, options):
    place = machine.root / 'a b "c" $d %e'
    done = machine.run("install-unit", "--user", "--url", DEAD, *options, place, XDG_CONFIG_HOME=str(machine.root))
    assert (done.returncode, done.stderr) == (0, "")
    match = re.fullmatch(r"wrote (.*\.service); start it with: systemctl --user daemon-reload && .*\n", done.stdout)
    assert match is not None
    verified = run("systemd-analyze", "verify", "--man=no", match[1], env={**os.environ, "HOME": str(machine.home)})
    assert Path(match[1]).name not in verified.stderr
    again = machine.run("install-unit", "--user", "--url", DEAD, place, XDG_CONFIG_HOME=str(machine.root))
    assert again.returncode == 0
    Path(match[1]).write_text("[Unit]\n")
    refused = machine.run("install-unit", "--user", "--url", DEAD, place, XDG_CONFIG_HOME=str(machine.root))
    assert refused.returncode == 1
    assert "another program" in refused.stderr


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="systemd is not installed")
@pytest.mark.parametrize("path", ["/mnt/xnat", "/", "/home/j doe/x-nat", "/.hidden/é_:.", "/a%$"])
def test_a_unit_is_named_as_systemd_names_paths(path):
    wanted = run("systemd-escape", "--path", path).stdout.strip()
    assert units.unit_name(Path(path)) == f"xnatfs-{wanted}"


def test_a_unit_of_the_system_needs_a_login_that_is_there_at_the_boot():
    with desk() as sitting:
        line = sitting.fails(2, "install-unit", "--system", "--print", "--url", DEAD, sitting.place)
        assert "--credentials FILE" in line


def test_words_are_quoted_for_units():
    for word, text in {"a": "a", "a b": '"a b"', 'q"\\': '"q\\"\\\\"', "50%": "50%%", "$x": "$$x"}.items():
        assert units.quoted(word) == text


# A program that mounts, and leaves the descriptor to xnatfs: as Apptainer and Kubernetes' helpers do.
HELPER = """
import os, subprocess, sys
from pathlib import Path
from xnatfs.fuse.mount_namespace import mount_in_namespace

place, *command = sys.argv[1:]
descriptor = mount_in_namespace(Path(place), "xnat")
served = subprocess.Popen([*command, f"/dev/fd/{descriptor}"], pass_fds=[descriptor], stderr=subprocess.DEVNULL)
os.close(descriptor)
print(*os.listdir(f"{place}/projects"))
served.terminate()
print(served.wait())
"""


@pytest.mark.fuse
def test_a_descriptor_that_another_program_has_mounted_is_served(machine):
    options = ("--foreground", "--url", machine.demo.url, "--credentials", machine.file)
    # Root without any capability, where root runs the test.
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [sys.executable, "-c", HELPER, machine.place, *without, XNATFS, "mount", *options]
    done = run(*command, env=environment(machine.home), stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    projects, status = done.stdout.splitlines()
    assert "BRAINS" in projects.split()
    assert status == "0"
    refused = machine.run("mount", "--url", DEAD, "/dev/fd/3")
    assert refused.returncode == 2
    assert "give --foreground" in refused.stderr


def passwords_in(process: int, machine: Machine) -> list[str]:
    """Return what shows the password of the demo to other users."""
    secret = machine.demo.login["password"].encode()
    shown = {name: Path(f"/proc/{process}/{name}").read_bytes() for name in ("cmdline", "environ")}
    return [name for name, text in shown.items() if secret in text]


@pytest.mark.fuse
def test_no_process_and_no_log_holds_the_password(machine: Machine, caplog: Any):
    machine.mount("--log-level", "debug")
    machine.names()
    assert passwords_in(machine.daemon(), machine) == []
    assert machine.demo.login["password"] not in machine.log_file.read_text()
    machine.umount()
