"""Fetch lists that describe many items at once, and check them against single answers.

It is not known how every server answers some of these lists: without a column, with rows missing, with an error. So
each list that is fetched is compared with the single answer about one of its items, until one comparison was about
something. A list that disagrees or does not answer is not used for a while.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, NotFound, Unreachable

log = logging.getLogger(__name__)

# Seconds without a retry after a list has failed or was wrong.
UNTRUSTED_SECONDS = 600.0
# Timeout of a list, in seconds: single answers would have arrived before it.
LIST_TIMEOUT_SECONDS = 30.0

R = TypeVar("R")


async def fetch_in_bulk(what: str, fetch: Callable[[], Awaitable[R]]) -> R | None:
    """Fetch a list of many items; None where it fails or takes too long."""
    reason = f"it did not arrive within {LIST_TIMEOUT_SECONDS:.0f} s"
    try:
        with trio.move_on_after(LIST_TIMEOUT_SECONDS):
            return await fetch()
    except (NotFound, Denied, BadReply, Unreachable) as error:
        reason = str(error)
    log.info("the list of %s is not used: %s", what, reason)
    return None


class CheckedList(ABC, Generic[R]):
    """A list of many items, with its rows by accession ID.

    Args:
        what: The name of the list in log lines.
        ttl: Seconds for which its rows are valid.
        is_whole: True where `fetch` lists every item there is, and need not be repeated for others.
    """

    def __init__(self, what: str, ttl: float, *, is_whole: bool = False) -> None:
        self.fetched = -float("inf")  # when the request for the rows was sent
        self._what = what
        self._valid = ttl / 2 if is_whole else 0.0  # seconds for which rows are returned again
        self._rows: Mapping[str, R] = {}
        self._untrusted_until = -float("inf")
        self._is_proven = False
        self._lock = trio.Lock()

    @abstractmethod
    async def fetch(self, wanted: Sequence[str]) -> Mapping[str, R]:
        """Fetch the rows of the given items at least, by accession ID."""

    @abstractmethod
    async def fetch_single(self, accession: str) -> R:
        """Fetch the row of one item from the item itself."""

    async def rows(self, wanted: Sequence[str], known: Sequence[str] = ()) -> Mapping[str, R] | None:
        """Return the rows of the wanted items and perhaps of others; None where the list is not to be used.

        `known` are items whose single answers are cached, and cost nothing to compare with.
        """
        async with self._lock:
            if now() < self._untrusted_until:
                return None
            if now() >= self.fetched + self._valid:
                started = now()
                found = await fetch_in_bulk(self._what, lambda: self.fetch([*wanted, *known]))
                if found is None or not await self._agrees(found, [*known, *wanted[:1]]):
                    self.distrust()
                    return None
                self.fetched, self._rows = started, found
            return self._rows

    def distrust(self) -> None:
        """Do not use the list for a while."""
        self._untrusted_until = now() + UNTRUSTED_SECONDS
        self._rows, self._is_proven, self.fetched = {}, False, -float("inf")

    async def _agrees(self, rows: Mapping[str, R], compared: Iterable[str]) -> bool:
        for each in compared:
            if each not in rows or self._is_proven:
                continue
            try:
                single = await self.fetch_single(each)
            except (NotFound, Denied, BadReply) as error:
                log.debug("nothing to compare the list of %s with: %s", self._what, error)
                continue
            if single != rows[each]:
                log.info("the list of %s is not used: it has %s for %s, not %s", self._what, rows[each], each, single)
                return False
            self._is_proven = bool(single)  # an agreement about an empty answer proves nothing
        return True
