"""Recognise a client that iterates over items."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from xnatfs.common.clock import now
from xnatfs.rest.models import natural

# Out of order, this many items with pauses of at most so many seconds are an iteration, too: no person opens folders so
# fast.
HASTE_SECONDS, ITEMS_IN_HASTE = 10.0, 4


@dataclass
class Iteration:
    """The items that a client opens one after the other, and whether that is an iteration.

    Attributes:
        ttl: Seconds between two items after which an iteration has ended.
        alone: The item that was opened last outside of an iteration.
        gap: Seconds between the last two items.
    """

    ttl: float
    alone: str = ""
    gap: float = 0.0
    _is_running: bool = False
    _last: str = ""
    _at: float = -float("inf")
    _in_haste: int = 0
    _orders: tuple[dict[str, int], ...] = field(default=())  # the place of each item, for each order

    def sort(self, labels: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Set the expected items, and return them in listing order.

        A step to the next item counts in that order and in plain string order, which programs use as well.
        """
        keys = {label: natural(label) for each in labels.values() for label in each}
        listed = sorted(labels, key=lambda key: [keys[label] for label in labels[key]])
        by_name = sorted(labels, key=labels.__getitem__)
        self._orders = tuple({key: place for place, key in enumerate(order)} for order in (listed, by_name))
        return listed

    def step(self, key: str) -> bool:
        """Record that an item is opened, and return whether that is a step of an iteration."""
        gap, self._at = now() - self._at, now()
        if key != self._last:
            self.gap = gap
            self._in_haste = self._in_haste + 1 if gap <= HASTE_SECONDS else 1
            follows = any(places.get(key, -1) - 1 == places.get(self._last, -3) for places in self._orders)
            goes_on = self._is_running and gap <= HASTE_SECONDS
            self._is_running = gap <= self.ttl and (follows or self._in_haste >= ITEMS_IN_HASTE or goes_on)
            self._last = key
        if not self._is_running:
            self.alone = key
        return self._is_running
