"""Show the state of mounts on a terminal, again and again."""

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from xnatfs.cli.control.render import State, clock, text_lines

# Seconds between two looks.
WATCH_SECONDS = 1.0


def watch(look: Callable[[], Sequence[State]]) -> int:
    """Show what `look` returns until Ctrl-C, which is how it is meant to end."""
    console = Console(highlight=False)
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(picture(look(), console.width, console.height), refresh=True)
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0


def picture(states: Sequence[State], columns: int, rows: int) -> Text:
    """Return a screen: as many lines as it has rows, of as many columns at most."""
    title = f"xnatfs status, {clock(time.time())}, Ctrl-C ends it"
    lines = [title[:columns]]
    for state in states:
        lines += ["", *text_lines(state, columns)]
    if not states:
        lines += ["", "Nothing is mounted"]
    if len(lines) > rows:
        lines = [*lines[: rows - 1], "..."]
    text = Text("\n".join(lines), no_wrap=True, overflow="crop")
    text.stylize("bold", 0, len(lines[0]))
    return text
