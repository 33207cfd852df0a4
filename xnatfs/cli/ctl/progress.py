"""Show the progress of a transfer: a bar on a terminal, a line every ten seconds elsewhere, nothing with --quiet."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from xnatfs.cli import statusline
from xnatfs.cli.ctl.command import Context
from xnatfs.cli.output import tell

LINE_EVERY = 10.0  # seconds
# Columns that a terminal needs for the bar: on a narrower one, the numbers alone take the line.
ROOM_FOR_BAR = 80


class Silent:
    """Count files, and show nothing."""

    count = 0

    def begin(self, files: int, size: int) -> None:
        """Begin a transfer of `files` files and `size` bytes; 0 bytes if their number is unknown."""

    def advance(self, size: int) -> None:
        """Count `size` more bytes."""

    def done(self, place: PurePosixPath) -> None:
        """Count one more file."""
        self.count += 1


class Lines(Silent):
    """Progress as lines, for logs and pipes."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._files = self._size = self._moved = 0
        self._began = self._said = time.monotonic()

    def begin(self, files: int, size: int) -> None:
        self._files, self._size = files, size

    def advance(self, size: int) -> None:
        self._moved += size
        now = time.monotonic()
        if now - self._said >= LINE_EVERY:
            self._said = now
            rate = self._moved / (now - self._began)
            of = f" of {self._size / 1e6:.1f}" if self._size else ""
            files = f"{self._verb} {self.count} of {self._files} files"
            tell(f"{files}, {self._moved / 1e6:.1f}{of} MB, {rate / 1e6:.1f} MB/s")


class Bar(Silent):
    """Progress as a bar, for a terminal."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task
        self._files = 0

    def begin(self, files: int, size: int) -> None:
        self._files = files
        self._bar.update(self._task, total=size or None, files=f"0/{files}")

    def advance(self, size: int) -> None:
        self._bar.update(self._task, advance=size)

    def done(self, place: PurePosixPath) -> None:
        super().done(place)
        self._bar.update(self._task, files=f"{self.count}/{self._files}")


@contextmanager
def shown(context: Context, verb: str) -> Iterator[Silent]:
    """Yield the progress that suits the kind of stderr."""
    if context.arguments.quiet:
        yield Silent()
    elif not sys.stderr.isatty():
        yield Lines(verb)
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.table import Column

        console = Console(stderr=True, no_color=context.arguments.no_color or None)
        one_line = Column(no_wrap=True)
        columns: list[ProgressColumn] = [
            TextColumn("{task.description} {task.fields[files]} files"),
            DownloadColumn(table_column=one_line),
            TransferSpeedColumn(table_column=one_line),
        ]
        if console.width >= ROOM_FOR_BAR:
            columns.insert(1, BarColumn())
            columns.append(TimeRemainingColumn(table_column=one_line))
        with statusline.hidden(), Progress(*columns, console=console, transient=True) as bar:
            yield Bar(bar, bar.add_task(verb, total=None, files="0"))
