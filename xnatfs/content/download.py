"""One download of one blob: where it is, and whether anybody needs it."""

import trio

from xnatfs.content.source import Source

# A gap of this much is waited for rather than asked for: at 40-400 Mbit/s it comes within 0.1-0.8 s, about what a
# request costs at a real server; it is also 32 kernel reads, more than read-ahead ever skips.
NEAR = 4 * 1024 * 1024

# A reader that begins anywhere, at the head of a file or after a seek, is first sent this much: headers, tails and
# most indexes fit in it, one READ of the kernel with read-ahead does as well, and at 40-400 Mbit/s it takes 0.02-0.2 s,
# no more than a request costs at a real server.
WINDOW = 1024 * 1024

# What comes unasked of a file whose reader goes on to the end: as much as it has read, and at first this much: one step
# (`Stream.next_step`), below which a pause saves nothing.
AHEAD = NEAR

# Where bytes are written by another process, so much is written without asking whether somebody seeks: what comes in
# so many seconds, at most so much.
STEP_SECONDS, LONGEST_STEP = 0.1, 32 * 1024 * 1024

# A download that this many reads waited for, the last one within so many seconds, has a sequential reader and is not
# replaced: else three such readers would take two downloads from each other at every read.
STEADY_READS = 4
STEADY_SECONDS = 1.0


class Stream:
    """A download and who waits for it."""

    __slots__ = (
        "begun",
        "cursor",
        "most",
        "moved",
        "origin",
        "reader",
        "reads",
        "rests",
        "scope",
        "source",
        "step",
        "stop",
        "used",
        "wanted",
    )

    def __init__(self, start: int, stop: int | None, source: Source) -> None:
        self.source = source  # of whoever began it; a later open may have another
        self.scope = trio.CancelScope()
        self.origin = self.cursor = start  # cursor: the next byte that comes
        self.step = start  # up to here it is written by another process, whatever happens
        self.begun = trio.current_time()
        self.stop = stop  # no more is asked for; None: to the end
        self.used = start  # up to here somebody has asked
        self.most: int | None = None  # so much may be ahead of that, where there is no room for more
        self.moved = trio.Event()  # somebody has asked for more since it was looked at
        self.rests = False  # it has ended because enough is there that nobody has asked for
        self.reads = 0  # how many reads waited for it
        self.reader = -1  # offset of the last of these
        self.wanted = trio.current_time()  # when that was

    def reaches(self, offset: int) -> bool:
        """Return whether that byte comes soon. Behind a window it does: what follows is requested when that has come.

        Then it goes over the same connection, and the reads of the kernel, which come out of order, are one request.
        """
        near = max(self.cursor + NEAR, self.step)
        return self.cursor <= offset <= near and (self.stop is None or offset < self.stop + WINDOW)

    def next_step(self) -> int:
        """Return where the next step ends, at the pace of those before.

        A seek waits no longer for it than for a request.
        """
        rate = (self.cursor - self.origin) / max(trio.current_time() - self.begun, STEP_SECONDS)
        return self.cursor + min(max(NEAR, int(rate * STEP_SECONDS)), LONGEST_STEP if self.most is None else NEAR)

    def note(self, offset: int, end: int) -> None:
        """Note that a reader asks for this, whether it is there or not."""
        if offset <= self.cursor + NEAR and end > self.used:
            self.used = end
            if self.cursor - end < self._allowed() // 2:  # not for each read: then it runs on for a while
                self.moved.set()

    def ahead(self, size: int) -> bool:
        """Return whether enough is there that no reader has requested, of a file of this size.

        A small rest is left for later. At the pace of a slow reader it would be one small step after the other, each of
        them a message to the process that writes; `note` goes on when half of it may come.
        """
        if self.stop is not None and self.most is None:
            return False  # a window is small enough, and its connection lives if it comes to its end
        left = self.enough() - self.cursor
        return left <= (0 if self.enough() >= size >= 0 else self._allowed() // 4)

    def enough(self) -> int:
        """Return up to where there is enough."""
        return self.used + self._allowed()

    def _allowed(self) -> int:
        # One that has no end begins where all before it is there: all before `used` was read.
        return max(AHEAD, self.used) if self.most is None else self.most

    def mark(self, offset: int) -> None:
        """Note that a read waits for it."""
        if offset != self.reader:
            self.reader = offset
            self.reads += 1
        self.wanted = trio.current_time()

    def needed(self, waits: list[tuple[int, int]]) -> bool:
        """Return whether one of these reads waits for it, or whether it has a sequential reader."""
        if self.reads >= STEADY_READS and trio.current_time() - self.wanted < STEADY_SECONDS:
            return True
        return any(start <= self.cursor + NEAR and end > self.cursor for start, end in waits)
