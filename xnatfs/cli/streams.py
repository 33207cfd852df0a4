"""Write to standard streams that may be full, broken or closed."""

import os
import sys
from contextlib import suppress
from typing import IO

from xnatfs.cli import statusline
from xnatfs.common.errors import Reported

# Width of help and tables where there is no terminal.
DEFAULT_COLUMNS = 80


def open_missing() -> None:
    """Open standard streams that the caller has closed, so that no other file gets their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    # Python sets closed streams to None, which print() takes for stdout.
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def terminal_columns() -> int:
    """Return the columns of the terminal, or of COLUMNS, as `shutil.get_terminal_size`, which imports compression."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    with suppress(OSError):
        return os.get_terminal_size(1).columns or DEFAULT_COLUMNS
    return DEFAULT_COLUMNS


def report(text: str) -> None:
    """Write a line to stderr; a failure is ignored, since it could not be reported."""
    statusline.clear()
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def flush_output() -> OSError | None:
    """Return the error if stdout cannot be written; its rest is then discarded, so that the exit is not disturbed."""
    try:
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        return error
    return None


def flush_for_reader() -> None:
    """Flush stdout for a reader that waits. Raises Reported, which ends the command, where it has closed the pipe."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
        raise Reported(0, "") from None


def discard(stream: IO[str]) -> None:
    """Discard what is left in a stream, and what is written to it from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
