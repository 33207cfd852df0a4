"""A set of byte ranges: which parts of a file have come.

Invariant: `_starts` and `_ends` are sorted, disjoint and never adjacent, so a file read by a few streams is a few
entries however many chunks arrived.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Spans:
    """Half-open ranges, joined where they touch."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Everything from start up to end is there now."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Nothing from start up to end is there any more."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last or start >= end:
            return
        rest = [(self._starts[first], start), (end, self._ends[last - 1])]
        rest = [(low, high) for low, high in rest if low < high]
        self._starts[first:last] = [low for low, _ in rest]
        self._ends[first:last] = [high for _, high in rest]

    def parts(self) -> Iterator[tuple[int, int]]:
        """What there is, in order."""
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def total(self) -> int:
        """How many bytes there are."""
        return sum(self._ends) - sum(self._starts)

    def next_gap(self, offset: int) -> int:
        """The first byte at or after offset that is missing."""
        index = bisect_right(self._starts, offset) - 1
        return max(offset, self._ends[index]) if index >= 0 else offset

    def start_of_gap(self, offset: int) -> int:
        """Return where the missing part begins that has this byte."""
        index = bisect_right(self._starts, offset) - 1
        return self._ends[index] if index >= 0 else 0

    def covers(self, start: int, end: int) -> bool:
        """Is all of the range there?"""
        return self.next_gap(start) >= end

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The missing parts of the range, in order."""
        while (start := self.next_gap(start)) < end:
            index = bisect_right(self._starts, start)
            stop = min(end, self._starts[index]) if index < len(self._starts) else end
            yield start, stop
            start = stop
