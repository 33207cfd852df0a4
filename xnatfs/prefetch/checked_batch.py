"""Many: lists that tell of many items at once, and whether they are to be believed.

Of some of these lists nobody knows how every server answers them: without a column, with rows missing, with an error.
So one is believed while it agrees with single answers about the same items. They are compared at the 1st, 2nd, 4th, 8th
... time, until there was something to agree about. One that disagrees, or does not answer, is left alone for a while.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, NotFound, Unreachable

log = logging.getLogger(__name__)

# No second try with a list that has failed or was wrong.
LEFT_ALONE_FOR = 600.0
# A list that takes longer is given up, in seconds: single answers would have been there before it.
TOO_SLOW = 30.0

R = TypeVar("R")


class Many(Generic[R]):
    """One kind of list, by accession ID.

    `ask` lists items, these ones at least, or `whole`, all that there are; `single` has what the server says of one
    alone, or raises. To agree about an answer that is empty proves nothing: then it is compared again.
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
        self._asked: set[str] = set()  # about these; who is in here and not in the rows is not to be had this way
        self.fetched = self.expires = -float("inf")
        self._alone_until = -float("inf")
        self._proven = False
        self._questions, self._next_check = 0, 1
        self._lock = trio.Lock()

    @property
    def believed(self) -> bool:
        """False for a while after it was wrong or failed: then what it told before is not to be given out any more."""
        return now() >= self._alone_until

    async def of(self, wanted: Sequence[str], known: Iterable[str] = ()) -> dict[str, R] | None:
        """What it tells of those wanted, as far as it is sure; None where there is no such list.

        `known` are items whose single answers are at hand, to compare with.
        """
        async with self._lock:
            if not self.believed or not wanted:
                return {} if self.believed else None
            if now() >= self.expires - self._ttl / 2:  # what is given out is good for half of the TTL
                self._rows, self._asked = {}, set()
            told = self._asked.issuperset(wanted) or (self._whole and self._asked)
            if not told and not await self._fetch(wanted):
                return None
            if not await self._check([*known, *wanted[:1]]):
                return None
            return {each: self._rows[each] for each in wanted if each in self._rows}

    def disbelieve(self, why: str) -> None:
        """It was wrong. What was taken from it is withdrawn."""
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
            self._leave_alone("it does not come")
            return False
        if not self._rows:
            self.fetched, self.expires = started, started + self._ttl
        self._rows.update(rows)
        self._asked.update(wanted, rows)
        return True

    async def _check(self, candidates: Iterable[str]) -> bool:
        """Compare it with single answers, where that is due; whether it is still to be believed."""
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
                self.disbelieve(f"it says {self._rows[each]} of {each}, which says {single} itself")
                return False
            self._proven = bool(single)
        return True
