"""Make a small change of one function, applied within a process."""

import importlib
import inspect
from dataclasses import dataclass
from functools import reduce
from types import CodeType, FunctionType


@dataclass(frozen=True)
class Mutant:
    """One function with one change."""

    module: str
    function: str  # its name within the module, "Blob.read"
    was: str  # the lines that differ, as one
    becomes: str
    number: int  # its index among identical changes in this function, from 0
    lines: tuple[int, int]  # where in the module, first and last
    text: str  # of the whole function, not indented

    @property
    def name(self) -> tuple[str, str, str, str, int]:
        return (self.module, self.function, self.was, self.becomes, self.number)

    def __str__(self) -> str:
        return f"{self.module}:{self.lines[0]} {self.function}: {self.was} -> {self.becomes or '(nothing)'}"

    def apply(self) -> None:
        """Replace the function's code, also where it has been imported. There is no undo: the process ends after it."""
        module = importlib.import_module(self.module)
        *owners, name = self.function.split(".")
        function = _function(inspect.getattr_static(reduce(getattr, owners, module), name))
        function.__code__ = _code(self.text, function.__code__)


def _function(found: object) -> FunctionType:
    while not isinstance(found, FunctionType) or hasattr(found, "__wrapped__"):
        found = found.fget if isinstance(found, property) else found.__wrapped__  # type: ignore[attr-defined]
    return found


def _code(text: str, before: CodeType) -> CodeType:
    compiled = compile(text, before.co_filename, "exec")
    return next(each for each in compiled.co_consts if isinstance(each, CodeType) and each.co_name == before.co_name)
