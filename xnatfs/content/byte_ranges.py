"""Store the set of byte ranges of a file that have arrived.

Invariant: the ranges are sorted, disjoint and never adjacent, so that a file that a few downloads fetch takes a few
entries, however many chunks have arrived.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class ByteRanges:
    """A set of half-open ranges, which are joined where they touch."""

    def __init__(self) -> None:
        self.total = 0  # the number of bytes in the set
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over the ranges, in order."""
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def add(self, start: int, end: int) -> None:
        """Add the bytes from `start` up to, not including, `end`."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self.total += end - start - sum(self._ends[first:last]) + sum(self._starts[first:last])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def first_missing(self, offset: int) -> int:
        """Return the first missing byte at or after an offset."""
        index = bisect_right(self._starts, offset) - 1
        return max(offset, self._ends[index]) if index >= 0 else offset

    def start_of_gap(self, offset: int) -> int:
        """Return the offset at which the gap around a missing byte begins."""
        index = bisect_right(self._starts, offset) - 1
        return self._ends[index] if index >= 0 else 0

    def covers(self, start: int, end: int) -> bool:
        """Return whether all bytes of the range are in the set."""
        return self.first_missing(start) >= end

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Iterate over the missing parts of the range, in order."""
        while (start := self.first_missing(start)) < end:
            index = bisect_right(self._starts, start)
            stop = min(end, self._starts[index]) if index < len(self._starts) else end
            yield start, stop
            start = stop
