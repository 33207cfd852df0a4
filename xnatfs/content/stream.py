"""One download of one blob: where it is, and whether anybody needs it."""

import trio

from xnatfs.content.source import Source

# A gap of this much is waited for rather than asked for: at 40-400 Mbit/s it comes within 0.1-0.8 s, about what a
# request costs at a real server; it is also 32 kernel reads, more than read-ahead ever skips.
NEAR = 4 * 1024 * 1024

# A download that this many reads waited for, the last one within so many seconds, has a sequential reader and is not
# replaced: else three such readers would take two downloads from each other at every read.
STEADY_READS = 4
STEADY_SECONDS = 1.0


class Stream:
    """A download and who waits for it."""

    __slots__ = ("cursor", "origin", "reader", "reads", "scope", "source", "wanted")

    def __init__(self, start: int, source: Source) -> None:
        self.source = source  # of whoever began it; a later open may have another
        self.scope = trio.CancelScope()
        self.origin = self.cursor = start  # cursor: the next byte that comes
        self.reads = 0  # how many reads waited for it
        self.reader = -1  # offset of the last of these
        self.wanted = trio.current_time()  # when that was

    def reaches(self, offset: int) -> bool:
        """Will that byte come soon?"""
        return self.cursor <= offset <= self.cursor + NEAR

    def mark(self, offset: int) -> None:
        """A read waits for it."""
        if offset != self.reader:
            self.reader = offset
            self.reads += 1
        self.wanted = trio.current_time()

    def needed(self, waits: list[tuple[int, int]]) -> bool:
        """Does one of these reads wait for it, or has it a sequential reader?"""
        if self.reads >= STEADY_READS and trio.current_time() - self.wanted < STEADY_SECONDS:
            return True
        return any(start <= self.cursor + NEAR and end > self.cursor for start, end in waits)
