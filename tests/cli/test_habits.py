"""Test what users type and read by habit, as other programs for the command line have taught it."""

import argparse
import csv
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from tests.cli.test_manners import every_parser, on_terminal
from tests.support.commanding import SESSION, Shell
from tests.support.mounting import SCRIPTS, environment, run
from xnatfs.cli import options
from xnatfs.cli.parsing import STATUS_TEXTS, commands_of

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


# -- durations and the profile file ------------------------------------------------------------------------------

DURATIONS = {"90": 90, "0.5": 0.5, "1e3": 1000, "5m": 300, "5 min": 300, "1h30m": 5400, "2D": 172800, "250ms": 0.25}


@pytest.mark.parametrize("text", DURATIONS)
def test_times_have_units(text):
    assert options.seconds(text) == DURATIONS[text]


@pytest.mark.parametrize("text", ["", "m", "5x", "5m3", "-5m", "1.2.3s", "inf", "nan", "5m soon"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time such as 90"):
        options.seconds(text)


PROFILES = """# of the lab
default_profile: lab
profiles:
  lab:
    url: https://lab.example.org
    unknown_key: 1  # another program's
  dev:
    url: https://dev.example.org
"""


@pytest.fixture
def configured(fresh: Shell) -> Shell:
    fresh.config(PROFILES)
    fresh.env.pop("XNAT_URL")
    return fresh


def text_of(user: Shell) -> str:
    return (user.home / ".config" / "xnatctl" / "config.yaml").read_text()


def test_a_key_is_set_and_removed_and_the_rest_stays(configured):
    configured.ctl("config", "set", "timeout", "5m")
    assert text_of(configured) == PROFILES.replace("program's\n", "program's\n    timeout: 300\n")
    configured.ctl("config", "set", "timeout", "")
    assert text_of(configured) == PROFILES
    configured.ctl("config", "set", "verify_ssl", "no", "-p", "dev")
    assert text_of(configured) == PROFILES + "    verify_ssl: false\n"
    configured.ctl("config", "set", "default_profile", "dev")
    assert configured.ctl("config", "current-context").out == "dev\n"
    configured.ctl("config", "set", "output_format", "json")
    assert configured.ctl("config", "current-context").rows == {"profile": "dev"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "password", "x"), "auth login"),
        (("set", "defualt_project", "x"), "did you mean default_project?"),
        (("set", "timeout", "soon"), "timeout: 'soon' is not a time"),
        (("set", "url", "lab"), "'lab' is not the URL of a server"),
        (("set", "workers", "3", "-p", "none"), "none"),
        (("set", "default_profile", "none"), "profile 'none' is not in"),
        (("delete-profile", "none"), "profiles there: dev, lab"),
    ],
)
def test_a_wrong_setting_changes_nothing(configured, words, said):
    assert said in configured.ctl("config", *words, status=2).err
    assert text_of(configured) == PROFILES


def test_a_profile_is_deleted(configured):
    configured.ctl("config", "rm", "lab")
    assert "lab:" not in text_of(configured)
    assert "default_profile" not in text_of(configured)
    assert configured.ctl("config", "current-context").out == "dev\n"


def test_the_file_is_edited_in_the_users_editor(configured):
    path = configured.ctl("config", "path").out.strip()
    assert path == str(configured.home / ".config" / "xnatctl" / "config.yaml")
    configured.env["EDITOR"] = "sed -i s/dev.example/new.example/"
    configured.ctl("config", "edit")
    assert text_of(configured) == PROFILES.replace("dev.example", "new.example")
    assert Path(path).stat().st_mode & 0o777 == 0o600
    configured.env["EDITOR"] = "true"
    assert "Nothing is changed" in configured.ctl("config", "edit").err


@pytest.mark.parametrize("editor", ["false", "/nowhere/vi", "sed -i 's/$/: [/'"])
def test_an_edit_that_fails_changes_nothing(configured, editor):
    configured.env |= {"EDITOR": editor, "TMPDIR": str(configured.home)}
    assert configured.ctl("config", "edit", status=2).err.count("\n") == 1
    assert text_of(configured) == PROFILES
    drafts = list(configured.home.glob("xnatctl-*/config.yaml"))
    assert bool(drafts) == editor.startswith("sed")


def test_a_broken_file_can_be_edited(configured):
    configured.config("profiles: [")
    configured.env["EDITOR"] = "sed -i d"
    configured.ctl("config", "edit")
    assert text_of(configured) == ""


# -- help --------------------------------------------------------------------------------------------------------

# What commands do, as their summaries begin.
VERBS = {
    "add", "archive", "check", "close", "compare", "copy", "delete", "draft", "edit", "explain",
    "fetch", "find", "list", "log", "look", "make", "manage", "mount", "move",
    "open", "print", "rebuild", "run", "send", "set", "show", "store", "unmount",
    "upload", "write",
}  # fmt: skip


@pytest.mark.parametrize("parser", every_parser()[1:], ids=lambda parser: parser.prog)
def test_every_help_is_of_one_style(parser):
    text = parser.format_help()
    assert text.startswith(f"usage: {parser.prog} ")
    if parser.prog == "xnatfs":
        return
    assert parser.description.split()[0].strip(".,").lower() in VERBS
    assert parser.description.endswith(".")
    if commands_of(parser):
        assert "example: " not in text
    else:
        assert text.splitlines()[-1].startswith(f"example: {parser.prog.split()[0]} ")
    if parser.prog.startswith("xnatctl "):
        assert "print no colours" not in text
        assert "see 'xnatctl --help'" in " ".join(text.split())


@pytest.mark.parametrize("program", ["xnatctl", "xnatfs"])
def test_the_help_of_a_program_has_every_exit_status(tmp_path, program):
    shown = run(SCRIPTS / program, "--help", env=environment(tmp_path, COLUMNS="200")).stdout
    statuses = re.findall(r"^  (\d+) +(.+)$", shown, re.MULTILINE)
    assert {int(number): text for number, text in statuses} == STATUS_TEXTS
