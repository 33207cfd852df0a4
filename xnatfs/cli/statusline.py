"""Show on a terminal what a command waits for: one line on stderr, erased before anything else is written there."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from xnatfs.common.sanitize import plain

# Seconds without output until the line is shown; most commands are done by then.
SHOW_AFTER = 1.0
# Seconds between updates: the line counts seconds.
REFRESH = 0.25
ERASE = "\r\x1b[K"


class _Screen:
    """State of the terminal, shared by the thread that draws and the one that works."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.drawn = False
        self.hidden = 0  # number of users that need the terminal for themselves
        self.quiet_since = 0.0


_screen = _Screen()


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show `text` and the seconds since now for as long as nothing else has been written for SHOW_AFTER."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield
        return
    began, ended = time.monotonic(), threading.Event()
    _screen.quiet_since = began

    def draw() -> None:
        while not ended.wait(REFRESH):
            now = time.monotonic()
            with _screen.lock:
                if not _screen.hidden and now - _screen.quiet_since >= SHOW_AFTER:
                    seconds = f" ({now - began:.0f} s)"
                    room = _columns() - len(seconds) - 1
                    _write(ERASE + _cut(plain(text), room) + seconds)
                    _screen.drawn = True

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        clear()


def clear() -> None:
    """Erase the line, before other output is written."""
    with _screen.lock:
        if _screen.drawn:
            _write(ERASE)
            _screen.drawn = False
        _screen.quiet_since = time.monotonic()


def hide() -> None:
    """Erase the line, and do not show it any more."""
    with _screen.lock:
        _screen.hidden += 1
        clear()


@contextmanager
def hidden() -> Iterator[None]:
    """Do not show the line while a prompt or a progress bar has the terminal."""
    hide()
    try:
        yield
    finally:
        with _screen.lock:
            _screen.hidden -= 1
            clear()


def _columns() -> int:
    """Return the width of the terminal on stderr; stdout may be a file. A wrapped line cannot be erased."""
    with suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def _write(text: str) -> None:
    with suppress(OSError):  # the terminal is gone
        sys.stderr.write(text)
        sys.stderr.flush()
