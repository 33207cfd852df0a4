"""Fetch batch lists, which describe many items at once, and check them against single answers.

It is not known how every server answers some of these lists: without a column, with rows missing, with an error. So a
list is trusted while it agrees with single answers about the same items. They are compared at the 1st, 2nd, 4th, 8th
... request, until one comparison was about something. A list that disagrees or does not answer is not used for a while.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, NotFound, Unreachable

log = logging.getLogger(__name__)

# Seconds without a retry after a list has failed or was wrong.
LEFT_ALONE_FOR = 600.0
# Timeout of a list, in seconds: single answers would have arrived before it.
TOO_SLOW = 30.0

R = TypeVar("R")


class Many(Generic[R]):
    """A kind of batch list, with its rows by accession ID.

    An agreement about an empty answer proves nothing: the next due comparison is made all the same.

    Args:
        what: The name of the list in log lines.
        ttl: Seconds for which its rows are valid.
        ask: Fetch the rows of the given items at least, by accession ID.
        single: Fetch the row of one item from the item itself.
        withdraw: Remove all that was made of the list from the caches.
        whole: True where `ask` lists every item there is, so that an absent one has no row.
    """

    def __init__(
        self,
        what: str,
        ttl: float,
        ask: Callable[[Sequence[str]], Awaitable[Mapping[str, R]]],
        single: Callable[[str], Awaitable[R]],
        withdraw: Callable[[], None],
        whole: bool = False,
    ) -> None:
        self._what = what
        self._ttl = ttl
        self._ask = ask
        self._single = single
        self._withdraw = withdraw
        self._whole = whole
        self._rows: dict[str, R] = {}
        self._asked: set[str] = set()  # requested items; one of these without a row is unavailable in a batch
        self.fetched = self.expires = -float("inf")
        self._alone_until = -float("inf")
        self._proven = False
        self._questions, self._next_check = 0, 1
        self._lock = trio.Lock()

    @property
    def believed(self) -> bool:
        """Return whether the list may be used: not for a while after it was wrong or failed, earlier rows included."""
        return now() >= self._alone_until

    async def of(self, wanted: Sequence[str], known: Iterable[str] = ()) -> dict[str, R] | None:
        """Return the rows of the wanted items that have one; None where the list is not to be used.

        `known` are items whose single answers are cached, and cost nothing to compare with.
        """
        async with self._lock:
            if not self.believed or not wanted:
                return {} if self.believed else None
            if now() >= self.expires - self._ttl / 2:  # returned rows are valid for at least half of the TTL
                self._rows, self._asked = {}, set()
            told = self._asked.issuperset(wanted) or (self._whole and self._asked)
            if not told and not await self._fetch(wanted):
                return None
            if not await self._check([*known, *wanted[:1]]):
                return None
            return {each: self._rows[each] for each in wanted if each in self._rows}

    def disbelieve(self, why: str) -> None:
        """Stop using the list for a while because it was wrong, and withdraw what was taken from it."""
        self._leave_alone(why)
        self._withdraw()

    def _leave_alone(self, why: str) -> None:
        log.info("the list of %s is not used: %s", self._what, why)
        self._alone_until = now() + LEFT_ALONE_FOR
        self._rows, self._asked, self._proven = {}, set(), False
        self.expires = -float("inf")

    async def _fetch(self, wanted: Sequence[str]) -> bool:
        started = now()
        try:
            with trio.move_on_after(TOO_SLOW) as patience:
                rows = await self._ask(wanted)
        except (NotFound, Denied, BadReply, Unreachable) as error:
            self._leave_alone(str(error))
            return False
        if patience.cancelled_caught:
            self._leave_alone(f"it did not arrive within {TOO_SLOW:.0f} s")
            return False
        if not self._rows:
            self.fetched, self.expires = started, started + self._ttl
        self._rows.update(rows)
        self._asked.update(wanted, rows)
        return True

    async def _check(self, candidates: Iterable[str]) -> bool:
        """Compare the list with single answers where that is due, and return whether it is still trusted."""
        self._questions += 1
        if self._proven or self._questions < self._next_check:
            return True
        self._next_check *= 2
        for each in candidates:
            if each not in self._rows or self._proven:
                continue
            try:
                single = await self._single(each)
            except (NotFound, Denied, BadReply) as error:
                log.debug("nothing to compare the list of %s with: %s", self._what, error)
                continue
            if single != self._rows[each]:
                self.disbelieve(f"it has {self._rows[each]} for {each}, whose own list has {single}")
                return False
            self._proven = bool(single)
        return True
