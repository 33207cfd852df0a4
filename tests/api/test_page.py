"""Run the examples of docs/PYTHON.md: as a program, in a Jupyter kernel, and the docstrings' as doctests."""

import doctest
from collections.abc import Iterator

import nbclient
import nbformat
import pytest

from tests.api.conftest import User
from tests.docs.test_readme import blocks, page
from tests.support.demos import Demo, serving
from xnatfs.api import server
from xnatfs.demo.fixtures.lab import DemoArchive

PYTHON = blocks("python", page("PYTHON"))
EXAMPLE = "xnat.example.org"


def add_table(archive: DemoArchive) -> None:
    """Add the table that the page reads."""
    tables = archive.resource(archive.projects["BRAINS"].resources, "tables")
    archive.file(tables, "participants.tsv", b"participant_id\tage\nSUB001\t31\nSUB002\t44\n")


@pytest.fixture(scope="module")
def shared_demo() -> Iterator[Demo]:
    with serving(change=add_table) as demo:
        yield demo


def here(text: str, user: User) -> str:
    """Make an example one of the demo server."""
    text = text.replace(f"https://{EXAMPLE}", user.demo.url).replace(f"xnat://{EXAMPLE}", user.url())
    return text.replace("MYPROJECT", "BRAINS")


def test_the_examples_run_as_a_program(user):
    done = user.python(here("\n".join(PYTHON), user))
    assert (done.returncode, done.stderr) == (0, "")
    expected = ["BRAINS Resting-state fMRI", '"Modality": "MR"', "participant_id  age", "T1 3D", "(128, 128, 40)"]
    assert [text for text in expected if text not in done.stdout] == []
    assert user.logins() == 1


def test_the_examples_run_in_a_jupyter_kernel_which_then_ends(user):
    cells = [nbformat.v4.new_code_cell(here(block, user)) for block in PYTHON if "asyncio" not in block]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", resources={}).execute()
    outputs = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert "BRAINS Resting-state fMRI" in outputs[0]
    assert "participant_id  age" in outputs[-1]


def test_the_docstrings_examples_run(user):
    found = doctest.testmod(server, extraglobs={"url": user.demo.url}, raise_on_error=False)
    assert (found.failed, found.attempted > 5) == (0, True)
