"""Decide how long a request may take, and how often and how long it is repeated.

One policy covers all requests to a server. The head of a reply has to arrive within `timeout` seconds. A body has to
make progress: as with curl's --speed-limit and --speed-time, a transfer fails if it is slower than
LOWEST_BYTES_PER_SECOND for `timeout` seconds. So a download over a slow line takes as long as it needs, and one that
is silent, or that drips a byte from time to time, fails. Failed requests are repeated with growing pauses for
`retry_budget` seconds, which begin anew with the progress of a download.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

# The slowest accepted rate, in bytes a second. On a line of 100 KB/s each of ten downloads still has ten times as much.
# A line that is slower than a modem of 1990 is faulty; the same limit is common with curl and git.
LOWEST_BYTES_PER_SECOND = 1024

# Seconds between attempts: short at first, because most faults of a proxy are over at once.
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.2, 5.0


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """Limit the wait for a server, and the time in which failed requests are repeated.

    Attributes:
        timeout: Seconds until the head of a reply, and in which a body has to make progress.
        retry_budget: Seconds in which an unreachable server has to return; not more than `timeout`.
    """

    timeout: float
    retry_budget: float


class Backoff:
    """Pauses that double, in seconds, each with a random factor: clients that failed together do not retry together."""

    def __init__(self, first: float, longest: float) -> None:
        self._next, self._longest = first, longest

    def pause(self) -> float:
        """Return the next pause."""
        pause, self._next = self._next, min(2 * self._next, self._longest)
        return pause * random.uniform(0.75, 1.25)


def retry_backoff() -> Backoff:
    return Backoff(FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS)


class Retries:
    """Pace the attempts of one request, within a number of seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self.deadline = trio.current_time() + seconds
        self._backoff = retry_backoff()

    @property
    def seconds_left(self) -> float:
        return self.deadline - trio.current_time()

    async def pause(self, at_least: float = 0.0) -> bool:
        """Wait before the next attempt, at least `at_least` seconds; return False at once if the budget is shorter."""
        seconds = max(self._backoff.pause(), at_least)
        if seconds >= self.seconds_left:
            return False
        await trio.sleep(seconds)
        return True


class SpeedLimit:
    """Fail a transfer that is slower than LOWEST_BYTES_PER_SECOND over a period. Only waiting for the server counts."""

    def __init__(self, seconds: float) -> None:
        self._period = self._left = seconds
        self._received = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the context. Raises trio.TooSlowError at the end of the period."""
        began = trio.current_time()
        try:
            with trio.fail_at(began + max(self._left, 0.0)):
                yield
        finally:
            self._left -= trio.current_time() - began

    def received(self, count: int) -> None:
        """Record received bytes; the period begins anew when they are as many as it demands."""
        self._received += count
        if self._received >= LOWEST_BYTES_PER_SECOND * self._period:
            self._left, self._received = self._period, 0
