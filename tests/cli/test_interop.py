"""Share one home with the xnatctl of PyPI: one session for all programs, and no file that breaks another program."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commanding import LABEL, OWNER, SESSION, Shell, shell
from tests.support.environments import environment_with, needs_registry

pytestmark = needs_registry

RELEASES = ("0.2.7", "0.6.0")
CONFIG = """\
# kept by hand
default_profile: lab
output_format: table
profiles:
  lab:
    url: {url}
    default_project: MYPROJECT
    verify_ssl: true
    timeout: 600
    default_resource: DICOM   # nobody's key
"""
COMMANDS = (
    ("project", "list"),
    ("subject", "list", "-P", "MYPROJECT"),
    ("session", "list", "-P", "MYPROJECT"),
    ("scan", "list", "-E", SESSION),
    ("resource", "list", SESSION, "--scan", "1"),
    ("prearchive", "list", "--project", "MYPROJECT"),
    ("whoami",),
)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Shell]:
    with shell(tmp_path / "home") as made:
        made.config(CONFIG.format(url=made.url))
        del made.env["XNAT_URL"]
        made.env |= {"NO_UPDATE_NOTIFIER": "1", "XNAT_NO_UPDATE_CHECK": "1"}
        yield made


def peers(fresh: Shell) -> dict[str, Shell]:
    """Return shells that run the published releases in the same home."""
    found = {}
    for release in RELEASES:
        program = environment_with("xnatctl", [f"xnatctl=={release}"]) / "xnatctl"
        found[release] = Shell(fresh.app, fresh.url, fresh.home, fresh.env, (str(program),))
    return found


def logins_of(fresh: Shell, before: int) -> int:
    """Count the logins since then."""
    return sum(r.method == "POST" and r.path == "/data/JSESSION" for r in fresh.app.requests[before:])


def test_a_hundred_commands_in_any_order(fresh):
    """Let sessions expire four times; xnatfs logs in at most once for each, and every program goes on."""
    programs = {"ours": fresh, **peers(fresh)}
    chance = random.Random(20261124)
    fresh.ctl("auth", "login")
    ours = expiries = 0
    dead = False
    config = (fresh.home / ".config" / "xnatctl" / "config.yaml").read_text()
    for step in range(100):
        if step in (20, 40, 60, 80):
            fresh.app.sessions.end_all(OWNER)
            expiries += 1
            dead = True
        name = chance.choice(list(programs))
        words = chance.choice(COMMANDS)
        before = len(fresh.app.requests)
        done = programs[name].start(*words)
        said = done.out + done.err
        assert "Traceback" not in said, (name, words, said)
        assert "Unexpected error" not in said, (name, words, said)
        if name == "ours":
            ours += logins_of(fresh, before)
            dead = False
        # To go on with a session that has died is more than one of them can: it says so, and does nothing.
        assert done.status == 0 or (dead and name != "ours"), (step, name, words, said)
        cells = json.loads(fresh.slot.read_text())
        assert cells["token"]
        assert cells.get("version", 1) == 1
    assert ours <= expiries
    assert (fresh.home / ".config" / "xnatctl" / "config.yaml").read_text() == config


@pytest.mark.parametrize("release", RELEASES)
def test_they_take_the_session_that_we_made(fresh, release):
    peer = peers(fresh)[release]
    fresh.ctl("auth", "login")
    before = len(fresh.app.requests)
    assert SESSION in peer.ctl("session", "list", "-P", "MYPROJECT").out
    assert logins_of(fresh, before) == 0


@pytest.mark.parametrize("release", RELEASES)
def test_we_take_the_session_that_they_made(fresh, release):
    peers(fresh)[release].ctl("auth", "login")
    before = len(fresh.app.requests)
    assert SESSION in fresh.ctl("session", "list").out
    assert logins_of(fresh, before) == 0
    fresh.app.sessions.end_all(OWNER)
    fresh.ctl("session", "list")
    assert logins_of(fresh, before) == 1
    before = len(fresh.app.requests)
    assert SESSION in peers(fresh)[release].ctl("session", "list", "-P", "MYPROJECT").out
    assert logins_of(fresh, before) == 0, "the new one was written back"


@pytest.mark.parametrize("release", RELEASES)
def test_they_read_the_profiles_that_we_write(fresh, release):
    fresh.ctl("config", "add-profile", "two", "--url", fresh.url, "--default-project", "A")
    fresh.ctl("config", "use-context", "two")
    peer = peers(fresh)[release]
    assert "XNAT_E00011" in peer.ctl("session", "list", "-P", "A").out
    text = (fresh.home / ".config" / "xnatctl" / "config.yaml").read_text()
    assert "# kept by hand" in text
    assert "default_resource: DICOM   # nobody's key" in text


def test_two_profiles_that_alternate_keep_their_sessions(fresh):
    """Keep a session per profile, although the published xnatctl has one slot for all of them."""
    with shell(fresh.home) as other:
        fresh.ctl("config", "add-profile", "other", "--url", other.url)
        for _ in range(3):
            fresh.ctl("whoami", "-p", "lab")
            fresh.ctl("whoami", "-p", "other")
        assert fresh.logins() == other.logins() == 1


def test_the_mount_and_everybody_else(fresh, tmp_path):
    from tests.support.mounting import end, run

    place = tmp_path / "mnt"
    place.mkdir()
    env = fresh.environment()
    xnatfs = Path(fresh.program[0]).with_name("xnatfs")
    try:
        done = run(xnatfs, "mount", "-p", "lab", place, env=env)
        assert done.returncode == 0, done.stderr
        assert (place / "projects" / "MYPROJECT" / "SUB001" / LABEL).is_dir()
        for peer in peers(fresh).values():
            peer.ctl("project", "list")
        fresh.ctl("project", "list")
        assert run(xnatfs, "umount", place, env=env).returncode == 0
        fresh.ctl("project", "list")
        assert fresh.logins() == 1
        fresh.ctl("auth", "logout")
        assert fresh.app.sessions.alive(OWNER) == 0
    finally:
        end(place, fresh.home)
