"""Test that xnatctl lists what a mount holds fresh, without a request, and exactly as the server does."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.commanding import COLLABORATOR, LABEL, OWNER, PASSWORD, SESSION, Shell, shell
from tests.support.mounting import SCRIPTS, Mount, environment, mounting, run
from xnatfs.cli.control import client

pytestmark = pytest.mark.fuse

REQUEST = "GET http"  # of a command, in its log; the server sees those of the mount as well
LISTS = [
    ("project", "list"),
    ("scan", "list", "-E", SESSION),
    ("scan", "list", "-P", "MYPROJECT", "-E", LABEL, "--filter", "type:T*"),
    ("session", "list", "-P", "MYPROJECT"),
    ("session", "list", "-P", "MYPROJECT", "--modality", "PET", "-S", "SUB001"),
    ("subject", "list", "-P", "MYPROJECT"),
    ("resource", "list", "-E", SESSION),
    ("resource", "list", "-E", SESSION, "--scan", "1"),
    ("resource", "list", "-P", "MYPROJECT", "-E", LABEL, "--scan", "4-MR2"),
]


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Provide a shell, in whose home a mount of its server is registered."""
    directory = tmp_path_factory.mktemp("rows")
    (directory / "home").mkdir()
    with shell(directory / "home") as made:
        made.app.archive.subjects["XNAT_S00002"].label = "SUB002 & <b>"  # which the server escapes
        yield made


@pytest.fixture(scope="module")
def mount(prompt: Shell) -> Iterator[Mount]:
    with mounting(prompt.url, prompt.home.parent, user=OWNER, password=PASSWORD) as made:
        yield made


def look(mount: Mount) -> None:
    """Have the mount list what the commands list, now."""
    done = run(SCRIPTS / "xnatfs", "refresh", mount.path / "projects" / "MYPROJECT", env=environment(mount.home))
    assert done.returncode == 0, done.stderr
    for session in (mount.path / "projects" / "MYPROJECT").glob("SUB*/*"):
        if session.name == LABEL:
            assert os.listdir(session / "resources")
            assert os.listdir(session / "scans" / "1")


def test_lists_come_from_a_mount_as_from_the_server(prompt, mount):
    before = [prompt.ctl(*words, "-o", "json").out for words in LISTS]
    for words, listed in zip(LISTS, before, strict=True):
        look(mount)
        done = prompt.ctl(*words, "-o", "json", "-v")
        assert done.out == listed
        assert f"from the mount on {mount.path}" in done.err
        assert REQUEST not in done.err
        assert REQUEST in prompt.ctl(*words, "-v", "--refresh").err


def test_what_another_account_has_mounted_is_not_listed(prompt, mount):
    look(mount)
    other = replace(prompt, env={**prompt.env, "XNAT_USER": COLLABORATOR})
    other.ctl("whoami")
    assert REQUEST in other.ctl(*LISTS[0], "-v").err


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("session", "list", "-P", "NONE"), 5),
        (("session", "list", "-P", "EMPTY"), 0),
        (("resource", "list", "-E", SESSION, "--scan", "99"), 5),
        (("resource", "list", "-P", "MYPROJECT", "-E", "NONE"), 5),
        (("resource", "list", "-E", "NONE"), 5),
        (("scan", "list", "-E", "NONE"), 5),
        (("scan", "list", "-P", "MYPROJECT", "-E", LABEL, "-S", "NONE"), 5),
        (("project", "list", "--all"), 0),  # of other projects than those of the mount
    ],
)
def test_what_is_not_there_is_the_servers_to_say(prompt, mount, words, status):
    look(mount)
    assert REQUEST in prompt.ctl(*words, "-v", status=status).err


def test_what_was_changed_by_xnatctl_is_listed_at_once(prompt, mount, tmp_path):
    look(mount)
    (tmp_path / "notes.txt").write_text("notes")
    prompt.ctl("resource", "upload", "-E", SESSION, "NOTES", tmp_path / "notes.txt")
    assert "NOTES" in prompt.ctl("resource", "list", "-E", SESSION, "-q").lines


def test_an_old_or_partial_answer_is_not_taken(monkeypatch):
    answers = [
        {"user": "jane", "age_seconds": 61.0, "rows": [{"ID": "old"}]},
        {"user": "jane", "age_seconds": None, "rows": None},
        {"user": "mike", "age_seconds": 1.0, "rows": [{"ID": "another's"}]},
        {"user": "Jane", "age_seconds": 1.0, "rows": [{"ID": "right"}]},
    ]

    class Answering:
        mountpoint = Path("/mnt")

        def call(self, name: str, **arguments: object) -> object:
            return answers.pop(0)

    monkeypatch.setattr(client, "mounts_of", lambda url: [Answering()] * 4)
    assert client.find_rows("https://xnat", "jane", ("projects", "P", "experiments")) == [{"ID": "right"}]
