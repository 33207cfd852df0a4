"""Limit the time that a request waits for the server, and pace retries.

One rule covers all waiting. The server has a number of seconds for the next bytes; each byte that arrives gives back as
many seconds as it takes at the slowest accepted rate. So a download over a slow line takes as long as it needs, and one
that is silent, or that drips a byte from time to time, times out.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import trio

# The slowest accepted rate, in bytes a second. On a line of 100 KB/s ten downloads still have ten times as much each. A
# line that is slower than a modem of 1990 is faulty; users of curl and git commonly set this limit, too.
SLOWEST = 1024

# Pauses between attempts, in seconds: short at first, because most faults of a proxy are over at once.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0


class Patience:
    """A time budget that waiting uses up and received bytes restore.

    Args:
        most: Its upper limit, in seconds.
        left: Its initial value, in seconds; `most` where it is omitted.
    """

    def __init__(self, most: float, left: float | None = None) -> None:
        self._most = most
        self.left = most if left is None else left
        self.waited = 0.0  # seconds of waiting in all; the client's own work in between does not count

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Charge the time inside the context to the budget. Raises trio.TooSlowError once the budget is used up."""
        began = trio.current_time()
        try:
            with trio.fail_at(began + max(self.left, 0.0)):
                yield
        finally:
            waited = trio.current_time() - began
            self.left, self.waited = self.left - waited, self.waited + waited

    def came(self, count: int) -> None:
        """Restore the seconds for `count` received bytes."""
        self.left = min(self._most, self.left + count / SLOWEST)


class Pauses:
    """Pause between attempts, each time longer, until a deadline on trio's clock."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._pause = FIRST_PAUSE

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - trio.current_time()

    async def again(self, at_least: float = 0.0) -> bool:
        """Wait before the next attempt, at least `at_least` seconds; return False at once if the deadline is nearer."""
        wait = max(self._pause * jitter(), at_least)
        if wait >= self.left():
            return False
        await trio.sleep(wait)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        return True


def jitter() -> float:
    """Return a random factor for a pause, so that clients that failed at the same moment do not retry together."""
    return random.uniform(0.75, 1.25)
