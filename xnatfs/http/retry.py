"""Patience: how long a server may keep us waiting, what bytes are worth, and when it is asked again.

One rule for all that is waited for. A server has so many seconds to say the next thing; each byte gives it back some
of them, as many as it would take at the slowest pace that is borne. So a line that is slow goes on for as long as it
takes, and one that is silent, or that lets a byte drip from time to time, does not.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import trio

# The slowest pace that is borne, in bytes a second. On a line of 100 KB/s ten downloads still have ten times as much
# each; what is slower than a modem of 1990 is a fault, and users of curl and git commonly draw the line there, too.
SLOWEST = 1024

# Pauses between tries, in seconds: short first, because most faults of a proxy are over at once.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0


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


class Pauses:
    """Asking again, after pauses that grow, until a moment."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._pause = FIRST_PAUSE

    def left(self) -> float:
        """Seconds until then."""
        return self.deadline - trio.current_time()

    async def again(self, at_least: float = 0.0) -> bool:
        """Wait for the next try, so many seconds at least; False, at once, where no time is left for one."""
        wait = max(self._pause * jitter(), at_least)
        if wait >= self.left():
            return False
        await trio.sleep(wait)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        return True


def jitter() -> float:
    """What a pause is multiplied by: many who were told off at the same moment do not come back at the same moment."""
    return random.uniform(0.75, 1.25)
