"""Show on a terminal what a command waits for: one line on stderr, erased before anything else is written there."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from xnatfs.common.sanitize import plain

# Seconds without output until the line is shown; most commands are done by then.
SHOW_AFTER_SECONDS = 1.0
# Seconds between updates: the line counts seconds.
REFRESH_SECONDS = 0.25
ERASE_LINE = "\r\x1b[K"


# State of the terminal, shared by the thread that draws and the one that works.
_lock = threading.RLock()
_is_drawn = False
_hiding = 0  # number of users that need the terminal for themselves
_quiet_since = 0.0


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show `text` and the seconds since now for as long as nothing else has been written for SHOW_AFTER_SECONDS."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield
        return
    clear()
    began, ended = time.monotonic(), threading.Event()

    def draw() -> None:
        while not ended.wait(REFRESH_SECONDS):
            _draw(plain(text), time.monotonic() - began)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        clear()


def _draw(text: str, elapsed: float) -> None:
    global _is_drawn
    with _lock:
        if _hiding or time.monotonic() - _quiet_since < SHOW_AFTER_SECONDS:
            return
        columns = 80
        with suppress(OSError):  # stderr's, since stdout may be a file: a wrapped line could not be erased
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or columns
        seconds = f" ({elapsed:.0f} s)"
        room = columns - len(seconds) - 1
        _write(ERASE_LINE + (text if len(text) <= room else text[: max(0, room - 3)] + "...") + seconds)
        _is_drawn = True


def clear() -> None:
    """Erase the line, before other output is written."""
    global _is_drawn, _quiet_since
    with _lock:
        if _is_drawn:
            _write(ERASE_LINE)
        _is_drawn, _quiet_since = False, time.monotonic()


def hide() -> None:
    """Erase the line, and do not show it again."""
    global _hiding
    with _lock:
        _hiding += 1
        clear()


@contextmanager
def hidden() -> Iterator[None]:
    """Do not show the line while a prompt or a progress bar has the terminal."""
    global _hiding
    hide()
    try:
        yield
    finally:
        with _lock:
            _hiding -= 1
            clear()


def _write(text: str) -> None:
    with suppress(OSError):  # the terminal is gone
        sys.stderr.write(text)
        sys.stderr.flush()
