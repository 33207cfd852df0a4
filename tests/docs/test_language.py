"""Docstrings begin as those of the Python library do; ruff checks the mood and the period, this the first word."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# They say what a thing is about, and not what is done to it.
NOT_FIRST = {"What", "Who", "Whether", "Of", "These", "How", "Where", "That", "Its"}


def summaries() -> Iterator[tuple[str, str]]:
    """Yield the place and the docstring of every function and class of the product."""
    for path in sorted((ROOT / "xnatfs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (
                text := ast.get_docstring(node)
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def test_a_summary_says_what_is_done():
    assert [(place, text) for place, text in summaries() if text.split()[0] in NOT_FIRST] == []
    assert [(place, text) for place, text in summaries() if text.startswith(("The same", "Same"))] == []
