"""Report how far a transfer has come."""

from pathlib import PurePosixPath
from typing import Protocol


class Progress(Protocol):
    """Receive progress events of a transfer."""

    def begin(self, files: int, size: int) -> None: ...

    def advance(self, size: int) -> None: ...

    def done(self, place: PurePosixPath) -> None: ...


class NoProgress:
    """Report nothing."""

    def begin(self, files: int, size: int) -> None: ...

    def advance(self, size: int) -> None: ...

    def done(self, place: PurePosixPath) -> None: ...
