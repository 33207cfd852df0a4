"""docs/cli and docs/man are what the parsers say."""

from pathlib import Path

import pytest

from scripts.reference import DOCS, pages, written

WRITTEN = written()


@pytest.mark.parametrize("path", sorted(WRITTEN), ids=lambda path: path.name)
def test_a_page_is_up_to_date(path):
    assert path.read_text() == WRITTEN[path], "run python -m scripts.reference"


def test_no_page_is_left_over():
    assert {*(DOCS / "cli").iterdir(), *(DOCS / "man").iterdir()} == WRITTEN.keys()


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
