"""Patience: how long a server may keep us waiting, and what bytes are worth.

One rule for all that is waited for. A server has so many seconds to say the next thing; each byte gives it back some
of them, as many as it would take at the slowest pace that is borne. So a line that is slow goes on for as long as it
takes, and one that is silent, or that lets a byte drip from time to time, does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

# The slowest pace that is borne, in bytes a second. On a line of 100 KB/s ten downloads still have ten times as much
# each; what is slower than a modem of 1990 is a fault, and users of curl and git commonly draw the line there, too.
SLOWEST = 1024


class Patience:
    """So many seconds, which waiting uses up and bytes give back, up to `most`."""

    def __init__(self, most: float, left: float | None = None) -> None:
        self._most = most
        self.left = most if left is None else left
        self.waited = 0.0  # seconds in all; what we do ourselves in between is not counted

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for something in here. Raises trio.TooSlowError where it does not come in time."""
        began = trio.current_time()
        try:
            with trio.fail_at(began + max(self.left, 0.0)):
                yield
        finally:
            waited = trio.current_time() - began
            self.left, self.waited = self.left - waited, self.waited + waited

    def came(self, count: int) -> None:
        """So many bytes have come."""
        self.left = min(self._most, self.left + count / SLOWEST)
