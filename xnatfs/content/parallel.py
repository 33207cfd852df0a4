"""Several downloads of one file side by side: whether one more would be worth it, judged by what the last one brought.

Most lines carry one connection as fast as several. But some give each connection only so much: a proxy that paces, a
long way with losses. So where the server grants ranges and a reader keeps waiting, one more connection is tried; if
all together are not a fifth faster for it, it was the last one.
"""

# Beside the first: with these a file takes three of the four places that the client has for long downloads, so that
# whoever opens the next file finds one.
HELPERS = 2
# How long a rate is measured, in seconds: many round trips, and short beside the time that large files take.
LOOK = 1.0
# What one more connection must bring: more than a rate varies by itself from second to second.
GAIN = 1.2
# What each connection is asked for, in bytes: so much is worth a request and a connection on any line (3 s at 100
# Mbit/s), and a file takes no more requests than one for each, and two.
SHARE = 32 * 1024 * 1024


class Abreast:
    """Look at how much of one file has come, once in LOOK, and say how many are to help the first download."""

    def __init__(self) -> None:
        self.helpers = 0
        self._since: tuple[float, int] | None = None  # when was looked, and how much had come
        self._rate = 0.0  # bytes per second, before the last one was added
        self._begins = False  # the last one has just been added: what comes now says nothing
        self._decided = False

    def look(self, now: float, came: int) -> None:
        """Note that a reader waits, and how much has come."""
        if self._decided or self._since is None:
            self._since = self._since or (now, came)
            return
        elapsed, fresh = now - self._since[0], came - self._since[1]
        if elapsed < LOOK:
            return
        self._since = (now, came)
        if self._begins:
            self._begins = False
            return
        self._judge(fresh / elapsed)

    def _judge(self, rate: float) -> None:
        if self.helpers and rate < GAIN * self._rate:
            self.helpers -= 1
            self._decided = True
            return
        if self.helpers == HELPERS:
            self._decided = True
            return
        self._rate = rate
        self.helpers += 1
        self._begins = True
