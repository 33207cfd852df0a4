"""Test the frame of the commands: foreground mounts, help and versions. Error lines are in test_wrong_inputs.py."""

from pathlib import Path

import pytest

from tests.support import demos
from tests.support.failing import DEAD, Page, Refusing, serving
from tests.support.mounting import SCRIPTS, daemons, end, environment, mounting, run
from xnatfs.demo.fixtures.lab import PASSWORDS

# What neither process of a mount uses: other commands, other programs' parts, what a machine may not have.
UNUSED = {"argcomplete", "keyring", "pydicom", "pygments", "rich", "ruamel.yaml", "yaml", "numpy", "xnatfs.demo"}
UNUSED |= {"xnatfs.transfer", "xnatfs.rest.prearchive", "xnatfs.settings.profile_file", "asyncio"}
# What serves a mount, and the command that starts the daemon does not need.
SERVING = {"trio", "httpx", "httpcore", "pyfuse3", "sqlite3", "ssl", "cachetools", "xnatfs.site", "xnatfs.tree"}


@pytest.mark.fuse
def test_the_foreground_ends_as_the_background_does(sitting):
    for options in ([], ["--foreground"]):
        line = sitting.fails(4, "mount", *options, "--url", DEAD, sitting.place)
        assert "cannot be reached: Connection refused" in line
        with serving(Refusing) as url:
            line = sitting.fails(3, "mount", *options, "--url", url, sitting.place)
        assert "wrong user or password, a locked account, or too many sessions" in line


@pytest.mark.fuse
def test_a_refused_login_is_not_tried_again(sitting):
    Refusing.asked = 0
    with serving(Refusing) as url:
        sitting.fails(3, "mount", "--url", url, sitting.place)
    assert Refusing.asked == 1


def imported(importtime: str) -> set[str]:
    """Return the modules named in the stderr of `python -X importtime`."""
    return {line.rpartition("|")[2].strip() for line in importtime.splitlines() if line.startswith("import time:")}


@pytest.mark.fuse
def test_neither_process_of_a_mount_imports_what_it_does_not_use(tmp_path):
    home, place, log_file = tmp_path / "home", tmp_path / "mnt", tmp_path / "log"
    home.mkdir()
    place.mkdir()
    (tmp_path / "click.py").write_text("")  # where it is installed, httpx would take its command line along
    login = {"XNAT_USER": demos.USER, "XNAT_PASS": PASSWORDS[demos.USER]}
    env = environment(home, PYTHONPROFILEIMPORTTIME="1", PYTHONPATH=str(tmp_path), **login)
    with demos.serving() as demo:
        try:
            command = run(SCRIPTS / "xnatfs", "mount", "--url", demo.url, "--log-file", log_file, place, env=env)
            assert command.returncode == 0, command.stderr
            assert "BRAINS" in run("ls", place / "projects").stdout.split()
            assert len(daemons(home)) == 1
        finally:
            end(place, home)
    parent, daemon = imported(command.stderr), imported(log_file.read_text())
    assert daemon >= SERVING
    assert daemon & UNUSED == set()
    assert "xnatfs.cli.daemon" in parent  # of the command that mounts
    assert parent & (UNUSED | SERVING) == set()


@pytest.mark.fuse
def test_a_mount_answers_after_one_request(tmp_path):
    login = {"user": demos.USER, "password": PASSWORDS[demos.USER]}
    with demos.serving() as demo:
        for asked in ("POST /data/JSESSION", "GET /xapi/users/username"):  # the second finds the first one's session
            demo.forget_requests()
            with mounting(demo.url, tmp_path, **login):
                assert [f"{record.method} {record.path}" for record in demo.app.requests] == [asked]


@pytest.mark.fuse
def test_the_demo_is_as_careful_with_mountpoints(sitting):
    file, full = sitting.root / "file", sitting.root / "full"
    file.write_text("")
    (full / "something").mkdir(parents=True)
    assert "is not a directory" in sitting.fails(66, "demo", file)
    assert "is not empty" in sitting.fails(66, "demo", full)
    assert "is a mountpoint already" in sitting.fails(66, "demo", "/proc")


@pytest.mark.fuse
def test_a_cache_directory_that_cannot_be_used_is_named(sitting):
    (sitting.root / "file").write_text("")
    with serving(Page) as url:
        cache = sitting.root / "file" / "cache"
        assert str(cache) in sitting.fails(73, "mount", "--url", url, "--cache-dir", cache, sitting.place)


@pytest.mark.parametrize("program", ["xnatfs", "xnatctl"])
def test_versions_and_help(tmp_path: Path, program):
    env = environment(tmp_path)
    assert run(SCRIPTS / program, "--version", env=env).stdout.startswith(f"{program} 0.")
    assert "usage:" in run(SCRIPTS / program, "--help", env=env).stdout


@pytest.mark.parametrize(
    "words", [("--version",), ("project", "list"), ("session", "show"), ("session", "list", "--help")]
)
def test_xnatfs_ctl_is_xnatctl(tmp_path: Path, words):
    env = environment(tmp_path, COLUMNS="80")
    ours, theirs = (
        run(SCRIPTS / name, *before, *words, env=env) for name, before in (("xnatfs", ["ctl"]), ("xnatctl", []))
    )
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert ours.stdout or ours.stderr
