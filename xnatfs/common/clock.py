"""The clock that ages are measured by: of listings, of logins, of what was last heard.

trio's clock is CLOCK_MONOTONIC, which stands still while the machine sleeps. That is right for deadlines: a request
that is under way when the lid is closed has its time left when it is opened again. What is known of a server is older.
"""

import time

import trio


def _asleep() -> float:
    """Return how long the machine has slept since it was started; see clock_gettime(2)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


_BEFORE = _asleep()


def slept() -> float:
    """Return how long the machine has slept since this module was loaded.

    In whole seconds: between the two looks at clocks some nanoseconds pass, more or less of them each time.
    """
    return float(round(_asleep() - _BEFORE))


class Sleeps:
    """Tell of each sleep of the machine once, after which the other ends of open connections are gone, for one."""

    def __init__(self) -> None:
        self._slept = slept()

    def is_over(self) -> bool:
        """Return whether the machine has slept since this was asked last."""
        before, self._slept = self._slept, slept()
        return self._slept != before


def now() -> float:
    """Return seconds on trio's clock, and those that the machine has slept."""
    return trio.current_time() + slept()
