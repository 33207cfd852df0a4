"""Measure the age of listings, logins and replies on a clock that goes on while the machine sleeps.

trio's clock is CLOCK_MONOTONIC, which stands still while the machine sleeps. That is right for deadlines: a request
that is under way when the lid is closed has its time left when it is opened again. Data of a server ages meanwhile.
"""

import time

import trio

# The clock that goes on while the machine sleeps, and one that does not. On macOS the monotonic one goes on; on Windows
# trio's own does, and there is nothing to add.
CLOCKS: tuple[int, ...]
if hasattr(time, "CLOCK_BOOTTIME"):
    CLOCKS = (time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC)
elif hasattr(time, "CLOCK_UPTIME_RAW"):
    CLOCKS = (time.CLOCK_MONOTONIC, time.CLOCK_UPTIME_RAW)
else:
    CLOCKS = ()


def _asleep() -> float:
    """Return how long the machine has slept since it was started; see clock_gettime(2)."""
    return time.clock_gettime(CLOCKS[0]) - time.clock_gettime(CLOCKS[1]) if CLOCKS else 0.0


_BEFORE = _asleep()


def slept() -> float:
    """Return how long the machine has slept since this module was loaded.

    The value is rounded to seconds: a varying number of nanoseconds passes between the readings of the two clocks.
    """
    return float(round(_asleep() - _BEFORE))


def now() -> float:
    """Return the seconds of trio's clock plus those that the machine has slept."""
    # `slept` in place, since this is called for each look at a listing: one call in place of three.
    asleep = time.clock_gettime(CLOCKS[0]) - time.clock_gettime(CLOCKS[1]) - _BEFORE if CLOCKS else 0.0
    return trio.current_time() + round(asleep)


def now_in_thread() -> float:
    """Return what `now` counts, in any thread, from another beginning."""
    return time.monotonic() + slept()
