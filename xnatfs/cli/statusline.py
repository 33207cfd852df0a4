"""Tell on a terminal what is waited for: one line on stderr, which goes before anything else is written there."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from xnatfs.common.sanitize import plain

# Seconds without a word before a person wonders; most commands are done by then.
SHOW_AFTER = 1.0
# Seconds between two looks: the line counts seconds.
REFRESH = 0.25
ERASE = "\r\x1b[K"


class _Screen:
    """What the terminal shows at the moment, for the thread that draws and the one that works."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.drawn = False
        self.hidden = 0  # by so many that need the terminal for themselves
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
    """Make room for what is to be written now."""
    with _screen.lock:
        if _screen.drawn:
            _write(ERASE)
            _screen.drawn = False
        _screen.quiet_since = time.monotonic()


def hide() -> None:
    """Show nothing from now on."""
    with _screen.lock:
        _screen.hidden += 1
        clear()


@contextmanager
def hidden() -> Iterator[None]:
    """Show nothing meanwhile: a prompt or a bar has the terminal."""
    hide()
    try:
        yield
    finally:
        with _screen.lock:
            _screen.hidden -= 1
            clear()


def _columns() -> int:
    """Return the width of the terminal that stderr is; stdout may be a file. What is wrapped cannot be erased."""
    with suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def _write(text: str) -> None:
    with suppress(OSError):  # the terminal has gone, and with it the reader
        sys.stderr.write(text)
        sys.stderr.flush()
