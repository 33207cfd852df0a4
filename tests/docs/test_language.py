"""Test the docstrings: ruff checks the mood and the period, this the first word, the parameters and the file names."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("xnatfs", "snakemake_storage_plugin_xnat", "tests", "scripts")
# They say what a thing is about, and not what is done to it.
NOT_FIRST = {"What", "Who", "Whether", "Of", "These", "How", "Where", "That", "Its"}

TEXTS = {path.relative_to(ROOT): path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
TREES = {path: ast.parse(text) for path, text in sorted(TEXTS.items())}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function

# An entry of a section begins a line, four columns further in than the name of the section.
ARGUMENTS = re.compile(r"^Args:\n((?: {4}.*\n?|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+): +\S", re.MULTILINE)
LINE = re.compile(r"^ {4}\S.*", re.MULTILINE)
FILE_NAME = re.compile(r"[\w./-]*\w\.py\b")


def docstrings(*packages: str) -> Iterator[tuple[str, Documented, str]]:
    """Yield the place, the node and the docstring of modules, classes and functions."""
    for path, tree in TREES.items():
        for node in ast.walk(tree) if path.parts[0] in packages else ():
            if isinstance(node, Documented) and (text := ast.get_docstring(node)):
                yield f"{path}:{getattr(node, 'lineno', 1)}", node, text


def test_a_summary_says_what_is_done():
    summaries = [(place, text) for place, _, text in docstrings(*PACKAGES)]
    assert [(place, text) for place, text in summaries if text.split()[0] in NOT_FIRST] == []
    assert [(place, text) for place, text in summaries if text.startswith(("The same", "Same"))] == []


def test_the_summary_of_a_module_is_no_noun():
    """A package's may be: it names what the modules have in common."""
    summaries = [
        (place, text)
        for place, node, text in docstrings(*PACKAGES)
        if isinstance(node, ast.Module) and "__init__" not in place
    ]
    assert [(place, text) for place, text in summaries if text.split()[0] in ("The", "A", "An")] == []


# -- parameters ----------------------------------------------------------------------------------------------------


def parameters(node: Documented) -> list[str]:
    """Return the names of the parameters of a function, or of what makes an object of a class."""
    if isinstance(node, ast.ClassDef):
        made = next((each for each in node.body if isinstance(each, Function) and each.name == "__init__"), None)
        if made is None:
            fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
            return [each.id for each in fields if isinstance(each, ast.Name) and not each.id.startswith("_")]
        return parameters(made)
    if isinstance(node, ast.Module):
        return []
    given = node.args
    positional = [each.arg for each in (*given.posonlyargs, *given.args) if each.arg not in ("self", "cls")]
    keywords = [each.arg for each in given.kwonlyargs]
    some, more = ([each.arg] if each else [] for each in (given.vararg, given.kwarg))
    return [*positional, *some, *keywords, *more]


def documented(text: str) -> list[str]:
    """Return the names in the section `Args` of a docstring; a line that is no entry stands for itself."""
    found = ARGUMENTS.search(text)
    lines = LINE.findall(found[1]) if found else []
    return [entry[1] if (entry := ENTRY.match(line)) else line for line in lines]


def wrong_arguments(node: Documented, text: str) -> tuple[list[str], list[str]] | None:
    """Return the names in `Args` and those of the parameters, where these differ."""
    names = documented(text)
    return (names, parameters(node)) if "Args:" in text and names != parameters(node) else None


def test_args_names_all_parameters_in_their_order():
    found = [(place, wrong_arguments(node, text)) for place, node, text in docstrings(*PACKAGES)]
    assert [each for each in found if each[1]] == []


@pytest.mark.parametrize(
    ("names", "given", "is_wrong"),
    [
        ("a b c", "a, *b, c", False),
        ("a b", "self, a, **b", False),
        ("a", "a, b", True),
        ("b a", "a, b", True),
        ("a b", "a", True),
    ],
)
def test_args_that_differ_are_found(names, given, is_wrong):
    text = "Do it.\n\nArgs:\n" + "".join(f"    {name}: It,\n        in two lines.\n" for name in names.split())
    (node,) = ast.parse(f"def do({given}): pass").body
    assert isinstance(node, ast.FunctionDef)
    assert bool(wrong_arguments(node, text + "\nReturns:\n    It.")) == is_wrong


def test_args_of_a_class_are_those_of_what_makes_it():
    made, fields = ast.parse(
        "class A:\n    a: int\n    def __init__(self, b): pass\nclass B:\n    a: int\n    b: int = 0\n    _c: int = 0"
    ).body
    assert isinstance(made, ast.ClassDef)
    assert isinstance(fields, ast.ClassDef)
    assert (parameters(made), parameters(fields)) == (["b"], ["a", "b"])


# -- names of files ------------------------------------------------------------------------------------------------


def comments(text: str) -> Iterator[str]:
    """Yield the comments of a module."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def prose() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each docstring and comment."""
    yield from ((place, text) for place, _, text in docstrings(*PACKAGES))
    for path, text in TEXTS.items():
        yield from ((str(path), comment) for comment in comments(text))


def test_named_files_exist():
    """A name stands for a file anywhere, a path for the end of one's path."""
    paths = [f"/{path}" for path in TEXTS]
    missing = [
        (place, name)
        for place, text in prose()
        for name in FILE_NAME.findall(text)
        if not any(path.endswith(f"/{name}") for path in paths)
    ]
    assert missing == []
