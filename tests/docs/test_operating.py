"""Run the recipes of OPERATING.md as printed: for one command, a job, a login node, fstab, and as a service."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cli.test_boot import Machine, by_mount
from tests.docs.test_readme import blocks, page
from tests.fuse.test_mount import wait_for
from tests.support.demos import serving
from tests.support.mounting import LIMIT, daemons, end, environment, mounted_file_system, run
from xnatfs.cli.host.units import unit_name
from xnatfs.common.files import write_private
from xnatfs.fuse.mountpoint import KIND

pytestmark = pytest.mark.fuse

RECIPES = blocks("sh", page("OPERATING"))
EXAMPLE = "https://xnat.example.org"


def recipe(*texts: str) -> str:
    """Return the one recipe that contains these texts."""
    (found,) = [block for block in RECIPES if all(text in block for text in texts)]
    return found


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with serving() as demo:
        made = Machine(demo, tmp_path)
        user, password = demo.login["user"], demo.login["password"]
        profile = (
            f"default_profile: work\nprofiles:\n  work: {{url: '{demo.url}', username: {user}, password: {password}}}\n"
        )
        write_private(made.home / ".config" / "xnatctl" / "config.yaml", profile)
        try:
            yield made
        finally:
            end(made.home / "xnat", made.home)
            end(made.place, made.home)


def sh(machine: Machine, script: str, **more: str) -> subprocess.CompletedProcess[str]:
    text = script.replace(EXAMPLE, machine.demo.url)
    return run("sh", "-ec", text, env=environment(machine.home, **more), stdin=subprocess.DEVNULL)


def test_one_command_lists_the_projects(machine):
    done = sh(machine, recipe("xnatfs exec", "ls"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "BRAINS" in done.stdout.split()
    assert daemons(machine.home) == []


def test_a_job_reads_a_scan_and_leaves_its_cache_where_it_says(machine):
    done = sh(machine, recipe("#SBATCH"), TMPDIR=str(machine.root), USER="jdoe")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^[0-9a-f]{32}  t1\.nii\.gz$", done.stdout, re.MULTILINE)
    assert (machine.root / "xnatfs-jdoe").is_dir()
    assert daemons(machine.home) == []


def test_the_line_of_a_login_script_changes_nothing_the_second_time(machine):
    for _ in range(2):
        done = sh(machine, recipe("mount --mkdir"))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(daemons(machine.home)) == 1
    assert "BRAINS" in os.listdir(machine.home / "xnat" / "projects")


def test_a_session_is_warmed_and_pinned(machine):
    sh(machine, recipe("mount --mkdir").replace("--mkdir", "--mkdir --offline"))
    done = sh(machine, recipe("warm --pin").replace("MYPROJECT", "BRAINS"))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\d+ pinned", done.stdout)


def test_the_line_of_fstab_mounts_with_the_file_of_the_recipe(machine):
    (line,) = blocks("fstab", page("OPERATING"))
    written = recipe("ln -s").replace("/etc/", f"{machine.root}/").replace("/sbin/", f"{machine.root}/")
    login = machine.demo.login
    done = sh(machine, written.replace("ALIAS", login["user"]).replace("SECRET", f"'{login['password']}'"))
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(machine.root / "mount.xnatfs", os.X_OK)
    fstab = machine.root / "fstab"
    text = line.replace(EXAMPLE, machine.demo.url).replace("/mnt/xnat", str(machine.place))
    fstab.write_text(text.replace("/etc/", f"{machine.root}/"))
    done = by_mount(machine, f"mount -T {fstab} {machine.place}; ls {machine.place}/projects; umount {machine.place}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[1:] == [], "it warns of allow_other"
    assert "BRAINS" in done.stdout.split()
    assert wait_for(lambda: daemons(machine.home) == [])


@pytest.mark.parametrize("whose", ["--user", "--system"])
def test_the_units_are_named_as_the_recipes_start_them(machine, whose):
    first, _, start = recipe("install-unit", whose).replace("\\\n", "").splitlines()
    text = first.replace("install-unit", "install-unit --print").replace(EXAMPLE, machine.demo.url)
    done = sh(machine, text.replace("/etc/", f"{machine.root}/"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Type=notify" in done.stdout
    match = re.search(r"enable --now (\S+)$", start)
    assert match is not None
    place = "/home/jdoe/xnat" if whose == "--user" else "/mnt/xnat"
    assert match[1] == f"{unit_name(Path(place))}.service"


def test_the_command_of_the_sidecar_mounts(machine):
    (text,) = blocks("yaml", page("OPERATING"))
    sidecar, _ = yaml.safe_load(text)["containers"]
    values = {EXAMPLE: machine.demo.url, "/etc/xnat/credentials": machine.file, "/xnat/mnt": machine.place}
    command = [str(values.get(word, word)) for word in sidecar["command"]]
    process = subprocess.Popen(command, env=environment(machine.home), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process:
        try:
            assert wait_for(lambda: mounted_file_system(machine.place) == KIND)
            assert "BRAINS" in os.listdir(machine.place / "projects")
            process.terminate()
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()
