"""Show progress: of a transfer, and of a server that works on a session.

A transfer has a bar on a terminal, a line every ten seconds elsewhere, and nothing with --quiet.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from xnatfs.cli import options, statusline
from xnatfs.cli.ctl.command import Context, option, options_of
from xnatfs.cli.output import human_size, print_message

# Seconds between two lines of progress, and between two reports of a state that does not change.
REPORT_SECONDS = 10.0
# Columns that a terminal needs for the bar: on a narrower one, the numbers alone take the line.
BAR_COLUMNS = 80
# Archiving a big session takes over a quarter of an hour, and the other xnatctl waits four hours as well.
WAIT_SECONDS = 4 * 3600.0


# -- transfers ---------------------------------------------------------------------------------------------------


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
        self._began = self._reported_at = time.monotonic()

    def begin(self, files: int, size: int) -> None:
        self._files, self._size = files, size

    def advance(self, size: int) -> None:
        self._moved += size
        now = time.monotonic()
        if now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            rate = self._moved / (now - self._began)
            of = f" of {human_size(self._size)}" if self._size else ""
            files = f"{self._verb} {self.count} of {self._files} files"
            print_message(f"{files}, {human_size(self._moved)}{of}, {human_size(rate)}/s")


class Bar(Silent):
    """Progress as a bar, for a terminal."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task
        self._files = self._size = self._moved = 0
        self._began = time.monotonic()

    def begin(self, files: int, size: int) -> None:
        self._files, self._size, self._began = files, size, time.monotonic()
        self._bar.update(self._task, total=size or None, files=f"0/{files}")
        self.advance(0)

    def advance(self, size: int) -> None:
        self._moved += size
        rate = self._moved / max(time.monotonic() - self._began, 1.0)
        self._bar.update(
            self._task, advance=size, bytes=_fraction(self._moved, self._size), rate=f"{human_size(rate)}/s"
        )

    def done(self, place: PurePosixPath) -> None:
        super().done(place)
        self._bar.update(self._task, files=f"{self.count}/{self._files}")


def _fraction(part: int, whole: int) -> str:
    """Return two sizes, as 1.5/2.3 GiB or 900 KiB/2.3 GiB; one if the whole is unknown."""
    (number, unit), all_of_it = human_size(part).split(), human_size(whole)
    if not whole:
        return f"{number} {unit}"
    return f"{number}/{all_of_it}" if all_of_it.endswith(f" {unit}") else f"{number} {unit}/{all_of_it}"


@contextmanager
def show_progress(context: Context, verb: str) -> Iterator[Silent]:
    """Yield the progress that suits the kind of stderr."""
    if context.arguments.quiet:
        yield Silent()
    elif context.arguments.plain or not sys.stderr.isatty():
        yield Lines(verb)
    else:
        from rich import progress as rich_progress
        from rich.console import Console
        from rich.table import Column

        console = Console(stderr=True, no_color=context.arguments.no_color or None)
        one_line = Column(no_wrap=True)
        columns: list[rich_progress.ProgressColumn] = [
            rich_progress.TextColumn("{task.description} {task.fields[files]} files", table_column=one_line),
            rich_progress.TextColumn("{task.fields[bytes]}", table_column=one_line),
        ]
        if console.width >= BAR_COLUMNS:
            columns.insert(1, rich_progress.BarColumn(None))
            columns.append(rich_progress.TextColumn("{task.fields[rate]}", table_column=one_line))
            columns.append(rich_progress.TimeRemainingColumn(table_column=one_line))
        with statusline.hidden(), rich_progress.Progress(*columns, console=console, transient=True) as bar:
            yield Bar(bar, bar.add_task(verb, total=None, files="0", bytes="", rate=""))


# -- waiting for the server --------------------------------------------------------------------------------------

wait_options = options_of(
    option("--wait", action="store_true", help="wait until the server has finished"),
    option(
        "--wait-timeout",
        metavar="TIME",
        type=options.positive_seconds,
        default=WAIT_SECONDS,
        help="wait no longer than this, as 90 (seconds), 5m or 1h30m (default: 4 h)",
    ),
)


class StateReport:
    """Report the state of a session to the user when it changes, and every REPORT_SECONDS."""

    def __init__(self, context: Context, session: str, status: str) -> None:
        self._context, self._session = context, session
        self._began, self._reported_at = time.monotonic(), float("-inf")
        self.status = status

    @property
    def seconds(self) -> float:
        """Return how long the session has been watched."""
        return time.monotonic() - self._began

    def report(self, status: str, text: str = "") -> None:
        """Report a status, as `text` if that is given."""
        now = time.monotonic()
        if status != self.status or now - self._reported_at >= REPORT_SECONDS:
            self._context.note(f"{self._session}: {text or status}")
            self.status, self._reported_at = status, now
