"""Detect that the server is unreachable, so that requests fail at once and need not each wait for a timeout.

A request that times out casts doubt on the server, unless another one has had an answer since it began. Then a small
request probes the server. If that is answered, only the first request has failed. If it is not, the server counts as
unreachable: requests fail at once with the error of the first one, while further probes are sent. The first answer
ends the outage.

Invariants:
- Only silence makes an outage: any answer of the server, to any request, ends it.
- An outage is two lines in the log, however many requests fail in it: one when it begins, one when it ends.
- An outage ends at most SHORT_PROBE_SECONDS + 1.25 * LONGEST_PROBE_PAUSE_SECONDS, and one round trip, after the server
  is reachable again.
"""

import logging
import time
from collections.abc import Awaitable, Callable

import trio

from xnatfs.common.errors import Unreachable, fresh
from xnatfs.http.retry import Backoff

log = logging.getLogger(__name__)

# Timeout of a probe, in seconds, before the next one: after a cut of the line the old connection stays silent for as
# long as the cut was, and a new one works at once.
SHORT_PROBE_SECONDS = 2.0
# Seconds between short probes: few at first, since a server that restarts is soon back.
FIRST_PROBE_PAUSE_SECONDS, LONGEST_PROBE_PAUSE_SECONDS = 0.1, 2.0
# Seconds between two log lines about requests that fail while the server answers others.
LOG_PAUSE_SECONDS = 60.0


class CircuitBreaker:
    """A circuit breaker for the requests to one server.

    Args:
        probe: Send a small request to the server. It raises Unreachable where there is no answer.
        timeout: The timeout of requests, in seconds.
        nursery: The nursery of the probes.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], timeout: float, nursery: trio.Nursery) -> None:
        self._probe = probe
        self._timeout = timeout
        self._nursery = nursery
        self._answered_at = self._logged_at = -float("inf")
        self._probing: trio.CancelScope | None = None  # while the server is in doubt or unreachable; an answer ends it
        self._verdict = trio.Event()  # set unless the server is in doubt
        self._verdict.set()
        self._outage: Unreachable | None = None
        self.outage_began_at = 0.0  # seconds since the epoch; of the last outage

    @property
    def is_open(self) -> bool:
        """Return whether the server is known to be unreachable."""
        return self._outage is not None

    @property
    def last_answer_at(self) -> float | None:
        """Return when the server last answered, in seconds since the epoch; None if it never did."""
        if self._answered_at == -float("inf"):
            return None
        return time.time() - (trio.current_time() - self._answered_at)

    @property
    def reason(self) -> str:
        """Return why the server counts as unreachable; '' if it does not."""
        return str(self._outage or "")

    async def check(self) -> None:
        """Raise the error of the outage, if there is one; while the server is in doubt, wait for the verdict first."""
        await self._verdict.wait()
        if self._outage is not None:
            raise fresh(self._outage)

    def record_answer(self) -> None:
        """Record an answer of the server."""
        self._answered_at = trio.current_time()
        if self._probing is not None:
            self._probing.cancel()

    def record_failure(self, failure: Unreachable, since: float) -> None:
        """Record that a request, sent at `since`, has had no answer until now."""
        if self._probing is not None:
            return
        if self._answered_at > since:
            self.log_failure(failure)
            return
        self._probing, self._verdict = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(self._probe_until_answered, failure, self._probing)

    def log_failure(self, failure: Unreachable) -> None:
        """Log a failure that is not an outage, and no further one for LOG_PAUSE_SECONDS."""
        if trio.current_time() - self._logged_at > LOG_PAUSE_SECONDS:
            self._logged_at = trio.current_time()
            log.warning("the server is reachable, but: %s", failure)

    async def _probe_until_answered(self, failure: Unreachable, probing: trio.CancelScope) -> None:
        began = trio.current_time()
        try:
            with probing:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._probe_patiently)
                    await self._probe_often(failure, probing)
            if self._outage is None:
                self.log_failure(failure)
            else:
                log.warning("the server is reachable again after %.1f s", trio.current_time() - began)
        finally:
            self._outage = self._probing = None
            self._verdict.set()

    async def _probe_often(self, failure: Unreachable, probing: trio.CancelScope) -> None:
        """Send short probes; the first one that is not answered makes the outage."""
        backoff = Backoff(FIRST_PROBE_PAUSE_SECONDS, LONGEST_PROBE_PAUSE_SECONDS)
        while True:
            await trio.sleep(backoff.pause())
            await self._probe_within(min(SHORT_PROBE_SECONDS, self._timeout))
            if self._outage is None and not probing.cancel_called:
                self._outage, self.outage_began_at = failure, time.time()
                log.warning("the server is unreachable: %s", failure)
                self._verdict.set()

    async def _probe_patiently(self) -> None:
        """Send probes with the full timeout beside the short ones: a very slow server is reachable."""
        await trio.sleep(SHORT_PROBE_SECONDS)
        while True:
            next_at = trio.current_time() + self._timeout
            await self._probe_within(self._timeout)
            await trio.sleep_until(next_at)

    async def _probe_within(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            try:
                await self._probe()
                self.record_answer()
            except Unreachable as error:
                log.debug("the server does not answer: %s", error)
            except Exception:  # it must not end the mount
                log.exception("probing the server")
