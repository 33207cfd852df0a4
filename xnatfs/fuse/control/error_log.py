"""Record the last error of each path of a mount, for `status`, `why` and the attribute `user.xnat.error`."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from errno import errorcode

from xnatfs.common.sanitize import line
from xnatfs.listings.keys import NodePath

# Paths whose last error is recorded: enough for every file of a series, not enough to fill the memory.
MAX_FAILED_PATHS = 1000


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a program has received."""

    path: NodePath
    at: float  # seconds since the epoch
    errno: str  # the symbolic name: "EIO"
    reason: str
    count: int = 1  # errors of this path in a row


class ErrorLog:
    """The last error of each path, the latest paths only."""

    def __init__(self) -> None:
        self._failures: OrderedDict[NodePath, Failure] = OrderedDict()
        self.total = 0

    @property
    def is_any(self) -> bool:
        """Return whether an error is recorded."""
        return bool(self._failures)

    def record(self, path: NodePath, number: int, reason: str) -> None:
        """Record the error with which a call for a path has ended.

        Args:
            path: The names from the root of the mount.
            number: The errno that the program gets.
            reason: One line for a user.
        """
        before = self._failures.pop(path, None)
        count = before.count + 1 if before else 1
        self._failures[path] = Failure(path, time.time(), errorcode.get(number, str(number)), line(reason), count)
        self.total += 1
        while len(self._failures) > MAX_FAILED_PATHS:
            self._failures.popitem(last=False)

    def forget(self, path: NodePath) -> None:
        """Forget the error of a path: it has been read since."""
        self._failures.pop(path, None)

    def find(self, path: NodePath) -> Failure | None:
        """Return the last error of a path."""
        return self._failures.get(path)

    def below(self, path: NodePath) -> list[Failure]:
        """Return the errors of a path and of everything below it, the latest first."""
        return [failure for failure in reversed(self._failures.values()) if failure.path[: len(path)] == path]

    def latest(self, count: int) -> Sequence[Failure]:
        """Return the latest errors, the latest first."""
        return [failure for failure, _ in zip(reversed(self._failures.values()), range(count), strict=False)]

    def reason(self, path: NodePath) -> str:
        """Return errno and reason of the last error of a path as one text, '' where there is none."""
        failure = self._failures.get(path)
        return f"{failure.errno}: {failure.reason}" if failure else ""
