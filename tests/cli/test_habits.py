"""Test what users type and read by habit, as other programs for the command line have taught it."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import yaml

from tests.cli.test_manners import on_terminal
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


# -- formats -----------------------------------------------------------------------------------------------------


def test_values_that_the_server_does_not_state_are_null(prompt):
    rows = prompt.ctl("scan", "list", "-E", SESSION, "-o", "json").rows
    assert all("" not in row.values() for row in rows)
    assert None in [row["note"] for row in rows]
    assert not any("null" in line for line in prompt.ctl("scan", "list", "-E", SESSION, "-o", "tsv").lines)


@pytest.mark.parametrize("output", ["json", "yaml", "table"])
def test_times_are_of_whole_seconds_and_have_a_zone_for_programs(fresh, output):
    fresh.ctl("auth", "login")
    out = fresh.ctl("auth", "status", "-o", output).out
    if output == "table":
        assert re.search(r"^Expires: +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", out, re.MULTILINE)
    else:
        cells = json.loads(out) if output == "json" else yaml.safe_load(out)
        moment = cells["expires_at"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", moment)
        assert datetime.fromisoformat(moment) > datetime.now(tz=UTC)


@pytest.mark.parametrize("words", [("project", "list"), ("session", "show", "-E", SESSION)])
def test_yaml_holds_what_json_holds(prompt, words):
    assert yaml.safe_load(prompt.ctl(*words, "-o", "yaml").out) == prompt.ctl(*words, "-o", "json").rows


def test_csv_quotes_what_has_commas(fresh):
    fresh.app.archive.project("COMMAS", 'One, "two"', jane="Owners")
    rows = list(csv.reader(fresh.ctl("project", "list", "-o", "csv").lines))
    assert rows == [line.split("\t") for line in fresh.ctl("project", "list", "-o", "tsv").lines]
    assert any('One, "two"' in row for row in rows)


def test_wide_shows_every_key(prompt):
    head, *rows = prompt.ctl("session", "list", "-P", "MYPROJECT", "-o", "wide").lines
    assert re.split(" {2,}", head) == ["ID", "Label", "Subject", "Date", "Modality", "Subject ID", "Data Type"]
    assert any("xnat:mrSessionData" in row for row in rows)


def test_tables_show_sizes_with_units_aligned_to_the_right_and_programs_get_bytes(prompt):
    words = ("resource", "list", "-E", SESSION, "--scan", "1")
    head, *rows = prompt.ctl(*words).lines
    size = re.search("Size", head)
    assert size
    assert all(re.search(r"\d (B|[KMGT]iB)$", row[: size.end()]) for row in rows)
    assert all(isinstance(row["size"], int) for row in prompt.ctl(*words, "-o", "json").rows)
    cells = [row.split("\t") for row in prompt.ctl(*words, "-o", "tsv").lines]
    assert all(row[cells[0].index("Size")].isdigit() for row in cells[1:])


READY = "\x1b[32mREADY\x1b[0m"


@pytest.mark.parametrize(
    ("flags", "variables", "is_coloured"),
    [
        ((), {}, True),
        (("--no-color",), {}, False),
        (("--plain",), {}, False),
        ((), {"NO_COLOR": "1"}, False),
        ((), {"TERM": "dumb"}, False),
    ],
)
def test_states_have_colours_on_a_terminal_that_shows_them(prompt, flags, variables, is_coloured):
    user = replace(prompt, env={**prompt.env, "TERM": "xterm", **variables})
    shown = on_terminal(user, 80, "prearchive", "list", *flags)
    assert (READY in shown, "\x1b" in shown) == (is_coloured, is_coloured)
    assert "\x1b" not in user.ctl("prearchive", "list", *flags).out


@pytest.mark.parametrize("flags", [("--plain",), ("-o", "wide")])
def test_plain_and_wide_tables_are_not_folded(prompt, flags):
    shown = on_terminal(prompt, 40, "project", "list", *flags)
    assert len(shown.splitlines()) == len(prompt.ctl("project", "list").lines)
