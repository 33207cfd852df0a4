"""Check docs/cli, docs/man and docs/CONFIGURATION.md against the parsers and the code."""

import dataclasses
import re
from pathlib import Path

import pytest

from scripts.reference import DOCS, ENVIRONMENT, PROFILE, pages, written
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


def test_the_keys_of_a_profile_are_those_of_the_code():
    assert PROFILE.keys() == {field.name for field in dataclasses.fields(Profile)} - {"name"}


def test_the_variables_are_those_that_the_code_reads():
    sources = [path.read_text() for path in (DOCS.parent / "xnatfs").rglob("*.py")]
    read = {name for text in sources for name in re.findall(r'"((?:XNAT|XDG|XNATCTL)_[A-Z_]+)"', text)}
    assert ENVIRONMENT.keys() == read - {"XNAT_CSRF"}  # a parameter of requests
