"""Check that docs/dev/ARCHITECTURE.md and its diagrams name only modules, classes and functions that exist."""

import html
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIAGRAMS = sorted((ROOT / "docs" / "dev").glob("*.dot"))
PAGE = (ROOT / "docs" / "dev" / "ARCHITECTURE.md").read_text()
NAMES = sorted(set(re.findall(r"`(xnatfs(?:\.\w+)+)`", PAGE)))
# A file of the product, or a folder: `http/retry.py`, `listings/`.
VIEWS = {"archive/", "experiments/", "subjects/"}
PATHS = sorted(set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", PAGE)) - VIEWS - {"xnatfs/"})
TABLE = PAGE.partition("## Where to change what")[2].partition("\n## ")[0]


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


def test_the_page_names_code():
    assert len(NAMES) > 20
    assert len(PATHS) > 30


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_page_exists(name):
    assert resolve(name) is not None


@pytest.mark.parametrize("path", PATHS)
def test_a_file_on_the_page_exists(path):
    assert (ROOT / "xnatfs" / path).exists() or (ROOT / path).exists()


def test_each_row_of_the_table_names_a_file():
    rows = re.findall(r"^\| (?!to change|---)(.*)$", TABLE, re.MULTILINE)
    assert len(rows) > 20
    assert [row for row in rows if not any(f"`{path}`" in row for path in PATHS)] == []


@pytest.mark.parametrize(
    ("question", "path"),
    [
        ("the retry policy", "http/retry.py"),
        ("the name of a duplicate", "tree/names.py"),
        ("how long a listing is fresh", "settings/config.py"),
        ("the text of a login error", "http/login_request.py"),
        ("the layout of `experiments/`", "tree/links.py"),
    ],
)
def test_the_table_answers_what_newcomers_ask(question, path):
    (row,) = [line for line in TABLE.splitlines() if line.startswith(f"| {question}")]
    assert f"`{path}`" in row


@pytest.mark.parametrize("source", DIAGRAMS, ids=lambda path: path.stem)
def test_a_diagram_is_rendered_and_its_modules_exist(source):
    lines = [line for label in re.findall(r'label="([^"]+)"', source.read_text()) for line in label.split(r"\n")]
    rendered = html.unescape(source.with_suffix(".svg").read_text())
    assert [line for line in lines if f">{line}<" not in rendered] == [], "dot -Tsvg has to be run"
    modules = {line for line in lines if re.fullmatch(r"\w+/\w+", line)}
    assert [name for name in modules if not (ROOT / "xnatfs" / f"{name}.py").exists()] == []


def test_the_diagram_of_packages_has_all_of_them():
    packages = {path.parent.name for path in (ROOT / "xnatfs").glob("*/__init__.py")} | {"site"}
    labels = re.findall(r'label="(\w+)\\n', (ROOT / "docs" / "dev" / "layers.dot").read_text())
    assert set(labels) == packages
