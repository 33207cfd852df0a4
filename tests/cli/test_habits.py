"""Test what users type and read by habit, as other programs for the command line have taught it."""

from collections.abc import Iterator

import pytest

from tests.support.commanding import SESSION, Shell, shell
from tests.support.mounting import SCRIPTS, environment, run


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Yield a shell that is shared by commands that change nothing."""
    with shell(tmp_path_factory.mktemp("home")) as made:
        made.receive("WAITING")
        yield made


ALIASES = {
    "projects": "project list",
    "project ls": "project list",
    "project view MYPROJECT": "project show MYPROJECT",
    "subjects -P MYPROJECT": "subject list -P MYPROJECT",
    "sessions -P MYPROJECT -q": "session list -P MYPROJECT -q",
    "sessions ls -P MYPROJECT": "session list -P MYPROJECT",
    "-q sessions -P MYPROJECT": "session list -P MYPROJECT -q",
    "experiments -P MYPROJECT": "session list -P MYPROJECT",
    f"experiment show -E {SESSION}": f"session show -E {SESSION}",
    f"scans -E {SESSION}": f"scan list -E {SESSION}",
    f"resources --scan 1 -E {SESSION}": f"resource list -E {SESSION} --scan 1",
    "prearchive ls": "prearchive list",
}


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_prints_what_its_command_prints(prompt, alias):
    aliased = prompt.ctl(*alias.split())
    assert aliased == prompt.ctl(*ALIASES[alias].split())
    assert aliased.out


@pytest.mark.parametrize(
    "words", ["xnatctl", "xnatctl session", "xnatctl prearchive", "xnatctl config", "xnatctl api", "xnatfs"]
)
def test_a_group_alone_shows_its_help(tmp_path, words):
    program, *more = words.split()
    env = environment(tmp_path)
    alone, asked = (run(SCRIPTS / program, *more, *flags, env=env) for flags in ((), ("--help",)))
    assert (alone.returncode, alone.stdout, alone.stderr) == (0, asked.stdout, "")
    assert alone.stdout.startswith(f"usage: {words} ")


def test_help_of_a_plural_is_that_of_its_commands(prompt):
    assert prompt.ctl("sessions", "--help").out == prompt.ctl("session", "--help").out


def test_a_plural_needs_what_its_list_needs(prompt):
    assert "which project?" in prompt.ctl("sessions", status=2).err
