"""Test the sizes and the names of the product; `python -m tests.docs.test_shape` prints the measures.

`test_layers` tests how many modules stand together and that imports point down, `test_language` how summaries begin.
"""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MODULE_LINES, MEDIAN_MODULE_LINES = 400, 170
CLASS_METHODS = 25
FUNCTION_LINES = 40
FUNCTION_PARAMETERS = 6

# What is over, and named exactly: what is over no longer leaves the table.
EXCEPTIONS: dict[str, set[str]] = {
    "module lines": set(),
    "class methods": {
        "xnatfs.content.cache.ContentCache",
        "xnatfs.rest.client.Xnat",  # stays: it has one method a resource of the REST API
    },
    "function lines": set(),
    "function parameters": set(),
    "class names": set(),
    "constant names": {
        "COMMANDS",  # stays: by this name `cli.ctl.main` finds the commands of each module
    },
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TEXTS = {module_name(path): path.read_text() for path in sorted((ROOT / "xnatfs").rglob("*.py"))}
TREES = {module: ast.parse(text) for module, text in TEXTS.items()}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def definitions(node: ast.AST, name: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield every function and class below a node with its full name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            yield f"{name}.{child.name}", child
            yield from definitions(child, f"{name}.{child.name}")
        else:
            yield from definitions(child, name)


DEFINITIONS = [found for module, tree in TREES.items() for found in definitions(tree, module)]
FUNCTIONS = [(name, node) for name, node in DEFINITIONS if isinstance(node, Function)]
CLASSES = [(name, node) for name, node in DEFINITIONS if isinstance(node, ast.ClassDef)]


def function_lines(node: Function) -> int:
    """Count the lines of a function without its decorators and its docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is None:
        return lines
    return lines - ((node.body[0].end_lineno or 0) - node.body[0].lineno + 1)


def function_parameters(node: Function) -> int:
    """Count the parameters of a function; `self` and `cls` are none."""
    given = node.args
    named = [name.arg for name in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def class_methods(node: ast.ClassDef) -> int:
    return sum(isinstance(child, Function) for child in node.body)


def constants() -> Iterator[tuple[str, str, str]]:
    """Yield the module, the name and the value of every constant of a module, type variables apart."""
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    pairs = [(target, node.value)]
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        pairs = list(zip(target.elts, node.value.elts, strict=True))
                    for name, value in pairs:
                        if isinstance(name, ast.Name) and name.id.isupper() and "TypeVar" not in ast.unparse(value):
                            yield module, name.id, ast.unparse(value)


def program(module: str) -> str:
    """Return the program that a module belongs to: the demo server shares no code and no names with the rest."""
    return "demo" if f"{module}.".startswith("xnatfs.demo.") else "product"


def names_of_classes() -> set[str]:
    """Return the class names that stand more than once in a program."""
    places = [(program(name), node.name) for name, node in CLASSES]
    return {name for part, name in places if places.count((part, name)) > 1}


def names_of_constants() -> set[str]:
    """Return the names of constants that have several values in a program."""
    values: dict[tuple[str, str], set[str]] = {}
    for module, name, value in constants():
        values.setdefault((program(module), name), set()).add(value)
    return {name for (_, name), found in values.items() if len(found) > 1}


def over(most: int, sizes: dict[str, int]) -> set[str]:
    return {name for name, size in sizes.items() if size > most}


MODULE_SIZES = {module: len(text.splitlines()) for module, text in TEXTS.items()}
FOUND = {
    "module lines": over(MODULE_LINES, MODULE_SIZES),
    "class methods": over(CLASS_METHODS, {name: class_methods(node) for name, node in CLASSES}),
    "function lines": over(FUNCTION_LINES, {name: function_lines(node) for name, node in FUNCTIONS}),
    "function parameters": over(FUNCTION_PARAMETERS, {name: function_parameters(node) for name, node in FUNCTIONS}),
    "class names": names_of_classes(),
    "constant names": names_of_constants(),
}
# A module that holds no more than its docstring would only lower the median.
MEDIAN = statistics.median(size for size in MODULE_SIZES.values() if size > 1)


@pytest.mark.parametrize("measure", FOUND)
def test_only_the_exceptions_are_over(measure):
    found, excepted = FOUND[measure], EXCEPTIONS[measure]
    assert sorted(found - excepted) == [], "over the measure"
    assert sorted(excepted - found) == [], "no longer over: remove them from the table"


def test_the_usual_module_is_read_at_a_glance():
    assert MEDIAN < MEDIAN_MODULE_LINES


def measure() -> Iterator[str]:
    """Yield the measures, a line each: sizes of the three parts, and what is over."""
    for part in ("product", "demo"):
        sizes = [size for module, size in MODULE_SIZES.items() if program(module) == part]
        yield f"{part}: {len(sizes)} modules, {sum(sizes)} lines"
    tests = [len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")]
    yield f"tests: {len(tests)} modules, {sum(tests)} lines"
    yield f"median module: {MEDIAN} lines"
    yield f"constants: {len(list(constants()))}"
    for name, found in FOUND.items():
        yield f"{name}, over: {len(found)}"
        yield from (f"    {place}" for place in sorted(found))


if __name__ == "__main__":
    print(*measure(), sep="\n")
