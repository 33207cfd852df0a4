"""Check docs/cli, docs/man and docs/CONFIGURATION.md against the parsers and the code."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from scripts import manual
from scripts.reference import DOCS, ENVIRONMENT, PROFILE, pages, written
from tests.docs.test_readme import suppress_missing_arguments
from xnatfs.cli.commands import add_commands, split_exec
from xnatfs.cli.ctl.main import build
from xnatfs.cli.host import helper
from xnatfs.cli.parsing import CommandParser
from xnatfs.settings.config import Profile

WRITTEN = written()


@pytest.mark.parametrize("path", sorted(WRITTEN), ids=lambda path: path.name)
def test_a_page_is_up_to_date(path):
    assert path.read_text() == WRITTEN[path], "run python -m scripts.reference"


def test_no_page_is_left_over():
    pages = {path for path in WRITTEN if path.parent != DOCS}
    assert {*(DOCS / "cli").iterdir(), *(DOCS / "man").iterdir()} == pages


def test_every_command_has_a_summary_and_every_option_a_help():
    verbs = [verb for page in pages() for verb in page.verbs]
    assert len(verbs) > 30
    assert [verb.words for verb in verbs if not verb.summary] == []
    options = [(verb.words, flags, text) for verb in verbs for _, rows in verb.groups for flags, text in rows]
    assert [(words, flags) for words, flags, text in options if not text] == []


@pytest.mark.parametrize("path", sorted((DOCS / "man").iterdir()), ids=lambda path: path.name)
def test_a_manual_page_has_its_sections(path: Path):
    lines = path.read_text().splitlines()
    sections = [line.removeprefix(".SH ") for line in lines if line.startswith(".SH ")]
    assert sections[:2] == ["NAME", "SYNOPSIS"]
    assert sections[2] in ("DESCRIPTION", "COMMANDS")


def described(name: str) -> dict[str, list[str]]:
    """Return the terms of a manual page by their headings, as they are read."""
    text = (DOCS / "man" / name).read_text().replace("\\-", "-").replace("\\&", "")
    sections = [part.partition("\n") for part in text.split("\n.SH ")[1:]]
    return {heading: re.findall(r"^\.TP\n\.B (.*)$", body, re.MULTILINE) for heading, _, body in sections}


@pytest.mark.parametrize("program", ["xnatfs", "xnatctl"])
def test_the_page_of_a_program_has_every_command(program):
    found = described(f"{program}.1")
    assert list(found)[:4] == ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS"]
    verbs = [verb.words for page in pages() for verb in page.verbs]
    assert found["COMMANDS"] == [words for words in verbs if words.split()[0] == program]
    assert found["ENVIRONMENT"] == list(ENVIRONMENT)
    assert "~/.config/xnatctl" in found["FILES"]
    assert {"0", "1", "2", "130"} < set(found["EXIT STATUS"])


def test_the_page_of_mount_has_options_that_it_takes():
    found = described("mount.xnatfs.8")
    names = [each.split("=")[0] for term in found["MOUNT OPTIONS"] for each in term.split(", ")]
    page = (DOCS / "MOUNT-OPTIONS.md").read_text()
    assert [name for name in names if f"`{name}`" not in page] == []
    switches = [term for term in found["MOUNT OPTIONS"] if not re.search("[=,]", term)]
    assert "allow_other" in switches
    for name in switches:
        assert helper.translate(["https://xnat.example.org", "/mnt", "-f", "-o", name]) == []
    assert found["EXIT STATUS"] == ["0", *map(str, (helper.WRONG_USE, helper.MOUNT_INTERRUPTED, helper.FAILED))]


@pytest.mark.parametrize("program", manual.PROGRAMS)
def test_the_examples_of_commands_are_accepted(program):
    parser = CommandParser(prog=program)
    if program == "xnatctl":
        build(parser)
    else:
        add_commands(parser.add_subparsers())
    examples = [line for page in pages() for verb in page.verbs for line in verb.example.splitlines()]
    of_program = [line for line in examples if line.startswith(f"{program} ")]
    assert len(of_program) > 10
    for line in of_program:
        words, _ = split_exec(shlex.split(line.partition(" > ")[0])[1:])
        with suppress_missing_arguments():
            parser.parse_args(words)


def test_the_keys_of_a_profile_are_those_of_the_code():
    assert PROFILE.keys() == {field.name for field in dataclasses.fields(Profile)} - {"name"}


def test_the_variables_are_those_that_the_code_reads():
    sources = [path.read_text() for path in (DOCS.parent / "xnatfs").rglob("*.py")]
    read = {name for text in sources for name in re.findall(r'"((?:XNAT|XDG|XNATCTL)_[A-Z_]+)"', text)}
    assert ENVIRONMENT.keys() == read - {"XNAT_CSRF"}  # a parameter of requests
