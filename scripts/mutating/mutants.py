"""Generate the mutants of a module: mutmut's, and four more kinds that remove something.

mutmut's own run skips every function that has a decorator, which here includes most context managers. So only its code
that changes functions is used.

Skipped are: all that mutmut skips (annotations, `len` and `isinstance`, code outside of functions), defaults, texts of
errors and of the log, changes of case only, None for False, and assertions, which serve the type checker.
"""

import difflib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor, OuterFunctionProvider, deep_replace
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

from scripts.mutating.mutant import Mutant
from xnatfs.common import errors

ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
LOGGING = m.Call(func=m.Attribute(value=m.Name("log")))
MADE_ERROR = m.Call(func=m.OneOf(*(m.Name(name) for name in ERRORS)))
# Conditions that mutmut negates itself.
NEGATED = m.Comparison(
    comparisons=[m.ComparisonTarget(m.Equal() | m.NotEqual() | m.Is() | m.IsNot() | m.In() | m.NotIn())]
) | m.UnaryOperation(m.Not())


def removed(node: cst.Expr | cst.Raise) -> Iterator[cst.Pass]:
    if not m.matches(node, m.Expr(LOGGING | m.SimpleString() | m.Yield())):
        yield cst.Pass()


def negated(node: cst.If) -> Iterator[cst.If]:
    if not m.matches(node.test, NEGATED):
        inner = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), inner))


def never_entered(node: cst.While) -> Iterator[cst.While]:
    yield node.with_changes(test=cst.Name("False"))


def nothing_returned(node: cst.Return) -> Iterator[cst.Return]:
    # mutmut turns False into True; a truth test treats None as False.
    if node.value is not None and not m.matches(node.value, m.Name("None") | m.Name("False")):
        yield node.with_changes(value=cst.Name("None"), whitespace_after_return=cst.SimpleWhitespace(" "))


OPERATORS = [
    *mutation_operators,
    (cst.Expr, removed),
    (cst.Raise, removed),
    (cst.If, negated),
    (cst.While, never_entered),
    (cst.Return, nothing_returned),
]


class Visitor(MutationVisitor):
    """A visitor that also records the lines of each mutation."""

    METADATA_DEPENDENCIES = (PositionProvider, OuterFunctionProvider, ParentNodeProvider)

    def __init__(self) -> None:
        super().__init__(OPERATORS, IgnoredCode(set(), set(), set()))
        self.lines: list[tuple[int, int]] = []
        self._statement = range(0)  # the lines of the statement being visited

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.SimpleStatementLine):
            found = self.get_metadata(PositionProvider, node)
            self._statement = range(found.start.line, found.end.line + 1)
        return bool(super().on_visit(node))

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef):
            return False
        if m.matches(node, LOGGING | MADE_ERROR | m.Assert() | m.Param() | m.Decorator()):
            return True
        if isinstance(self.get_metadata(ParentNodeProvider, node, None), cst.Raise):
            return True
        return bool(super()._skip_node_and_children(node))

    def _create_mutations(self, node: cst.CSTNode) -> None:
        before = len(self.mutations)
        super()._create_mutations(node)
        found = self.get_metadata(PositionProvider, node, None)
        if found is not None:
            first = found.start.line
            if first in self._statement:  # coverage may not list all lines of a long statement
                first = self._statement.start
            last = first if isinstance(node, cst.If | cst.While) else found.end.line
            self.lines += [(first, last)] * (len(self.mutations) - before)


def mutants(path: Path, module: str) -> list[Mutant]:
    """Return all mutants of one module, in the order of their lines."""
    visitor = Visitor()
    tree = MetadataWrapper(cst.parse_module(path.read_text())).visit(visitor)
    names = dict(_functions(tree.body))
    seen: Counter[tuple[str, ...]] = Counter()
    found = []
    for mutation, lines in zip(visitor.mutations, visitor.lines, strict=True):
        function = mutation.contained_by_top_level_function
        if function not in names or _the_same(mutation.original_node, mutation.mutated_node):
            continue
        before = _text(function)
        text = _text(deep_replace(function, mutation.original_node, mutation.mutated_node))
        if not _compiles(text):
            continue
        was, becomes = _difference(before, text)
        key = (names[function], was, becomes)
        found.append(Mutant(module, *key, seen[key], lines, text))
        seen[key] += 1
    return sorted(found, key=lambda mutant: mutant.lines)


def _functions(body: object, inside: str = "") -> Iterator[tuple[cst.FunctionDef, str]]:
    for node in body:  # type: ignore[attr-defined]
        if isinstance(node, cst.FunctionDef):
            yield node, inside + node.name.value
        elif isinstance(node, cst.ClassDef):
            yield from _functions(node.body.body, f"{inside}{node.name.value}.")


def _text(function: cst.FunctionDef) -> str:
    return str(cst.Module([function.with_changes(decorators=[], leading_lines=[])]).code)


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _the_same(before: cst.CSTNode, after: cst.CSTNode) -> bool:
    """Return true for a change of case only, or of an assigned False, which a truth test cannot tell from None."""
    texts = [cst.Module([]).code_for_node(node) for node in (before, after)]
    if m.matches(before, m.Assign(value=m.Name("False")) | m.AnnAssign(value=m.Name("False"))):
        return True
    return isinstance(before, cst.BaseString) and texts[0].lower() == texts[1].lower()


def _difference(before: str, after: str) -> tuple[str, str]:
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    return tuple(" ".join(line[2:].strip() for line in lines if line[0] == sign) for sign in "-+")  # type: ignore[return-value]
