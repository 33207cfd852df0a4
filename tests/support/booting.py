"""Boot a systemd of its own, in namespaces of its own: units, fstab and automounts as at the start of a machine."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fuse.test_mount import wait_for
from tests.support.mounting import run

SYSTEMD = Path("/lib/systemd/systemd")
FSTAB_GENERATOR = SYSTEMD.parent / "system-generators" / "systemd-fstab-generator"
# The only units that there are, beside those of fstab and of the test: a unit of the machine, such as the one that
# empties /tmp at a boot, would act on the machine itself.
TARGETS = ("sysinit", "basic", "local-fs", "remote-fs", "network", "network-online", "multi-user", "shutdown", "umount")
TARGET = "[Unit]\nDefaultDependencies=no\n"
# What the machine boots into: the file systems of fstab that are on the network.
REHEARSAL = f"{TARGET}Wants=remote-fs.target\n"
# The service of the user root, as systemd has it, without PAM, which would ask for logind. The home is the test's.
USER_SERVICE = """
[Service]
Type=notify
Environment=HOME={home} XDG_RUNTIME_DIR=/run/user/%i
ExecStartPre=/bin/mkdir -p -m 700 /run/user/%i
ExecStart=/lib/systemd/systemd --user
Delegate=pids memory
KillMode=mixed
"""
# Run as root of namespaces. Of the machine's files, none but those of the test can be written to.
BOOT = """
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro /
for directory in /run /var/log /var/tmp /etc/systemd/system; do mount -t tmpfs none "$directory"; done
mount -t cgroup2 none /sys/fs/cgroup
mount --bind "$1/generators" /usr/lib/systemd/system-generators
mount --bind "$1/units" /usr/lib/systemd/system
mount --bind "$1/user-units" /usr/lib/systemd/user
mount --bind "$1/none" /usr/lib/tmpfiles.d
mount --bind "$1/none" /usr/lib/sysctl.d
mount --bind "$1/fstab" /etc/fstab
mount --bind "$1/sbin" /usr/sbin
if touch /tmp/it-can-be-written-to 2>/dev/null; then exit 1; fi
exec env -i container=rehearsal HOME="$1/home" PATH="$2:/usr/bin:/bin" \
    /lib/systemd/systemd --system --unit=rehearsal.target --log-target=console --show-status=no
"""


def lack() -> str:
    """Return why no systemd can be booted here; '' if one can."""
    if os.geteuid() != 0:
        return "takes root"
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        return "takes systemd"
    return "" if _cgroups() else "takes cgroups of version 2 that can be written to"


def _cgroups() -> Path | None:
    """Return where the kernel's cgroups of version 2 are mounted."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    found = (Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2")
    return next((place for place in found if os.access(place, os.W_OK)), None)


@dataclass
class Booted:
    """A machine that has booted."""

    process: int

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        return run("nsenter", "-t", str(self.process), "-m", "-p", "-C", *words)

    def systemctl(self, *words: str) -> str:
        """Run systemctl, and return what it prints."""
        done = self.run("systemctl", *words)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()

    def state(self, unit: str) -> str:
        return self.run("systemctl", "is-active", unit).stdout.strip()

    def run_as_user(self, home: Path, *words: str | Path) -> str:
        """Run a command of a login of the user, whose service manager has been started, and return what it prints."""
        done = self.run("env", f"HOME={home}", "XDG_RUNTIME_DIR=/run/user/0", *words)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()


@contextmanager
def booted(directory: Path, path: str) -> Iterator[Booted]:
    """Boot, with the fstab, the sbin and the home of a directory; nothing is left of it at the end.

    Args:
        directory: Has fstab and sbin, which takes the place of /usr/sbin.
        path: The directory of our programs.
    """
    for name in ("units", "user-units", "generators", "none"):
        (directory / name).mkdir()
    for name in TARGETS:
        (directory / "units" / f"{name}.target").write_text(TARGET)
    for name in ("default", "basic", "shutdown"):
        (directory / "user-units" / f"{name}.target").write_text(TARGET)
    for name in ("exit.target", "systemd-exit.service"):  # by which the manager of a user ends
        shutil.copy(SYSTEMD.parent / "user" / name, directory / "user-units")
    (directory / "units" / "user@.service").write_text(USER_SERVICE.format(home=directory / "home"))
    (directory / "units" / "rehearsal.target").write_text(REHEARSAL)
    shutil.copy(FSTAB_GENERATOR, directory / "generators")
    cgroups = _cgroups()
    assert cgroups is not None
    group = cgroups / f"xnatfs-{os.getpid()}"
    group.mkdir()
    begin = 'echo $$ >"$1/cgroup.procs"; shift; exec unshare -m -p -f -C -i -u --mount-proc --kill-child "$@"'
    command: list[str | Path] = ["sh", "-ec", begin, "sh", group, "sh", "-ec", BOOT, "sh", directory, path]
    with open(directory / "boot.log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as outer:
        try:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            while not children.read_text().split():
                assert outer.poll() is None, (directory / "boot.log").read_text()
            yield Booted(int(children.read_text().split()[0]))
        finally:
            outer.kill()  # the first process of its namespace is killed with it, and all others with that
    wait_for(lambda: "populated 0" in (group / "cgroup.events").read_text())
    for each in (*sorted(filter(Path.is_dir, group.rglob("*")), reverse=True), group):
        each.rmdir()
