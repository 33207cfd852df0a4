"""Detect that the server is unreachable, so that requests fail at once and need not each wait for a timeout.

A request that times out casts doubt on the server, unless another one has had an answer since it began. Then a small
request probes the server. If that is answered, only the first request has failed. If it is not, the server counts as
unreachable: requests fail at once with the error of the first one, while further probes are sent. The first answer
ends the outage.

Invariants:
- Only silence makes an outage: any answer of the server, to any request, ends it.
- An outage is two lines in the log, however many requests fail in it: one when it begins, one when it ends.
- An outage ends at most OFTEN + 1.25 * LONGEST_PAUSE seconds, and one round trip, after the server is reachable again.
"""

import logging
from collections.abc import Awaitable, Callable
from copy import copy

import trio

from xnatfs.common.errors import Unreachable
from xnatfs.http.retry import jitter

log = logging.getLogger(__name__)

# Timeout of a probe, in seconds, before the next one: after a cut of the line the old connection stays silent for as
# long as the cut was, and a new one works at once.
OFTEN = 2.0
# The pauses before probes, in seconds: short at first, since a server that restarts is soon back.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
# Seconds between two log lines about requests that fail while the server answers others.
QUIET_FOR = 60.0


class Breaker:
    """A circuit breaker for the requests to one server.

    Args:
        ask: Probe the server with a small request. It raises Unreachable where there is no answer.
        patience: The timeout of requests, in seconds.
        nursery: The nursery of the probes.
    """

    def __init__(self, ask: Callable[[], Awaitable[None]], patience: float, nursery: trio.Nursery) -> None:
        self._ask = ask
        self._patience = patience
        self._nursery = nursery
        self._heard_at = self._told_at = -float("inf")
        self._outage: Unreachable | None = None
        self._answered: trio.Event | None = None  # set by an answer; None unless in doubt or during an outage
        self._verdict: trio.Event | None = None  # set by the verdict; None unless in doubt

    @property
    def away(self) -> bool:
        return self._outage is not None

    async def check(self) -> None:
        """Raise the error of the outage, if there is one; while the server is in doubt, wait for the verdict first."""
        if self._verdict is not None:
            await self._verdict.wait()
        if self._outage is not None:
            raise copy(self._outage)  # a new one each time: a raised exception collects tracebacks

    def heard(self) -> None:
        """Record an answer of the server."""
        self._heard_at = trio.current_time()
        if self._answered is not None:
            self._answered.set()

    def doubt(self, failure: Unreachable, since: float) -> None:
        """Record that a request, sent at `since`, has had no answer until now."""
        if self._answered is not None:
            return
        if self._heard_at > since:
            self.tell(failure)
            return
        self._answered, self._verdict = trio.Event(), trio.Event()
        self._nursery.start_soon(self._find_out, failure)

    def tell(self, failure: Unreachable) -> None:
        """Log a failure that is not an outage, and no further one for QUIET_FOR seconds."""
        if trio.current_time() - self._told_at > QUIET_FOR:
            self._told_at = trio.current_time()
            log.warning("the server is there, but: %s", failure)

    async def _find_out(self, failure: Unreachable) -> None:
        """Probe the server until it answers."""
        assert self._answered is not None
        began = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_often, failure)
                nursery.start_soon(self._ask_patiently)
                await self._answered.wait()
                nursery.cancel_scope.cancel()
            if self._outage is None:
                self.tell(failure)
            else:
                log.warning("the server is back after %.1f s", trio.current_time() - began)
        finally:
            self._outage = self._answered = None
            self._judged()

    async def _ask_often(self, failure: Unreachable) -> None:
        pause = FIRST_PAUSE
        while True:
            await trio.sleep(pause * jitter())
            pause = min(2 * pause, LONGEST_PAUSE)
            with trio.move_on_after(min(OFTEN, self._patience)):
                await self._asked()
            if self._answered is None or self._answered.is_set():
                return
            if self._outage is None:
                self._outage = failure
                log.warning("the server is away: %s", failure)
                self._judged()

    async def _ask_patiently(self) -> None:
        """Send probes with the full timeout beside the short ones: a very slow server is reachable."""
        await trio.sleep(OFTEN)
        while True:
            again = trio.current_time() + self._patience
            with trio.move_on_at(again):
                await self._asked()
            await trio.sleep_until(again)

    async def _asked(self) -> None:
        try:
            await self._ask()
            self.heard()
        except Unreachable as error:
            log.debug("the server does not answer: %s", error)
        except Exception:  # it must not end the mount
            log.exception("asking whether the server is there")

    def _judged(self) -> None:
        if self._verdict is not None:
            self._verdict.set()
            self._verdict = None
