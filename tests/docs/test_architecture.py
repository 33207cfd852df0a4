"""Check that docs/dev/ARCHITECTURE.md names only modules that exist."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "dev" / "ARCHITECTURE.md").read_text()
NAMES = sorted(set(re.findall(r"`(xnatfs(?:\.\w+)+)`", PAGE)))


def resolve(name: str) -> object:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def test_the_page_follows_both_ways():
    assert len(NAMES) > 30


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_exists(name):
    assert resolve(name) is not None
