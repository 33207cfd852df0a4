"""The breaker: what is known of whether a server is there, so that not everybody has to find out by waiting.

A request that has used up its patience casts doubt on the server, unless others have heard of it meanwhile. Then it is
asked something small: if it answers, it was the request's own fate. If it does not, it is away: from now on requests
fail at once, as that one did, while the server is asked again and again; when it answers, all is as before.

Invariants:
- Only silence makes an outage: whatever the server says, to whomever, ends it.
- An outage is two lines in the log, however many requests fail in it: one when it begins, one when it ends.
- All is over at most OFTEN + 1.25 * LONGEST_PAUSE seconds after the server is back, and one answer.
"""

import logging
from collections.abc import Awaitable, Callable
from copy import copy

import trio

from xnatfs.common.errors import Unreachable
from xnatfs.http.retry import jitter

log = logging.getLogger(__name__)

# A question that hangs for so long is given up for another one, in seconds: on a line that was cut and is whole again
# the old connection stays silent for as long as it was cut, and a new one works at once.
OFTEN = 2.0
# Before each question, in seconds: short first, since a server that restarts is soon back.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
# Requests that fail for themselves, of a server that answers others, are told of once in so many seconds.
QUIET_FOR = 60.0


class Breaker:
    """Whether one server is there. `ask` asks it something small, and raises Unreachable where nobody answers."""

    def __init__(self, ask: Callable[[], Awaitable[None]], patience: float, nursery: trio.Nursery) -> None:
        self._ask = ask
        self._patience = patience
        self._nursery = nursery
        self._heard_at = self._told_at = -float("inf")
        self._outage: Unreachable | None = None
        self._answered: trio.Event | None = None  # while it is in doubt or away
        self._verdict: trio.Event | None = None  # while it is in doubt

    @property
    def away(self) -> bool:
        return self._outage is not None

    async def check(self) -> None:
        """Raise what requests fail with while the server is away; while it is in doubt, wait for the verdict."""
        if self._verdict is not None:
            await self._verdict.wait()
        if self._outage is not None:
            raise copy(self._outage)  # a new one each time: a raised exception collects tracebacks

    def heard(self) -> None:
        """The server has said something."""
        self._heard_at = trio.current_time()
        if self._answered is not None:
            self._answered.set()

    def doubt(self, failure: Unreachable, since: float) -> None:
        """A request has failed for want of a server, which had from `since` until now."""
        if self._answered is not None:
            return
        if self._heard_at > since:
            self.tell(failure)
            return
        self._answered, self._verdict = trio.Event(), trio.Event()
        self._nursery.start_soon(self._find_out, failure)

    def tell(self, failure: Unreachable) -> None:
        """Log a failure that is not an outage; the next ones only after a while."""
        if trio.current_time() - self._told_at > QUIET_FOR:
            self._told_at = trio.current_time()
            log.warning("the server is there, but: %s", failure)

    async def _find_out(self, failure: Unreachable) -> None:
        """Ask until there is an answer."""
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
        """Beside those, where they are not answered: one that is very slow is not away."""
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
