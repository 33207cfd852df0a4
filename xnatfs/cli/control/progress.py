"""Show the progress of a mount's work: one line on a terminal, a line now and then elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import Self

from xnatfs.cli import streams
from xnatfs.cli.control.render import State
from xnatfs.cli.output import human_size, print_message
from xnatfs.common.sanitize import plain

# Seconds between two lines where stderr is not a terminal.
LOG_LINE_SECONDS = 10.0


class CallProgress:
    """The progress of one call, for as long as the context is open."""

    def __init__(self, what: str, quiet: bool) -> None:
        self._what = plain(what)
        self._quiet = quiet
        self._is_terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._is_terminal and not self._quiet:
            self._write("")

    def show(self, state: State) -> None:
        """Show a state that the mount has reported."""
        if self._quiet:
            return
        text = f"{self._what}: {_numbers(state)}"
        if self._is_terminal:
            self._write(text[: streams.terminal_columns() - 1])
        elif time.monotonic() - self._shown_at >= LOG_LINE_SECONDS:
            self._shown_at = time.monotonic()
            print_message(text)

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _numbers(state: State) -> str:
    if "done_files" not in state:
        return f"{state['files']} files, {state['problems']} problems"
    files = f"{state['done_files']} of {state['files']} files"
    failed = f", {state['failed_files']} failed" if state["failed_files"] else ""
    return f"{files}, {human_size(state['done_bytes'])} of {human_size(state['bytes'])}{failed}"
