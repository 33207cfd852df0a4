"""Decide which ranges of a file to request next: the rest of it, windows after seeks, gaps, parallel ranges.

Nothing here does I/O or reads a clock. The planner looks at a blob, its readers and its running downloads, and answers
with a `NextDownload`; `fill.py` carries it out.

Invariants:
- At most MAX_DOWNLOADS serve the readers of a file, and MAX_HELPERS more run in parallel with them.
- A range that is present is not requested again, except for gaps that are shorter than NEAR_BYTES.
- Where a seek is possible, a window is requested, until that is read on: then the next window, or the rest.
- Where a seek is possible, a download that is far ahead of its readers pauses. While no reader has the file open, every
  download of a big file does.
"""

from dataclasses import dataclass, field

import trio

from xnatfs.content.blob import Blob, is_small
from xnatfs.content.source import Source, Version

# Downloads per blob: one from the start, and one for readers that seek.
MAX_DOWNLOADS = 2

# A gap of this much is waited for rather than requested: at 40-400 Mbit/s it arrives within 0.1-0.8 s, about what a
# request costs at a real server; it is also 32 kernel reads, more than read-ahead ever skips.
NEAR_BYTES = 4 * 1024 * 1024

# A reader that begins anywhere, at the head of a file or after a seek, is first sent this much: headers, tails and most
# indexes fit in it, one READ of the kernel with read-ahead does as well, and at 40-400 Mbit/s it takes 0.02-0.2 s, no
# more than a request costs at a real server.
WINDOW_BYTES = 1024 * 1024

# A reader that goes on after a seek is sent windows that double, up to this: such a reply comes to its end, so that its
# connection can be used again, and at 64 MiB a request costs nothing beside it.
MAX_WINDOW_BYTES = 64 * 1024 * 1024

# The least read-ahead of a file that is read to its end; it grows to as much as was read. It is one step of a process
# that writes (`RangeDownload.next_step`), below which a pause saves nothing.
READ_AHEAD_BYTES = 4 * 1024 * 1024

# Where another process writes the bytes, the next decision, as after a seek, has to wait for its current step: the
# amount that arrives in STEP_SECONDS, and at most MAX_STEP_BYTES.
STEP_SECONDS, MAX_STEP_BYTES = 0.1, 32 * 1024 * 1024

# Parallel downloads of one file, beside the first: with these it uses three of the client's four slots for long
# downloads, so that the next file that is opened finds one.
MAX_HELPERS = 2
# The time over which a rate is measured, in seconds: many round trips, and short beside what large files take.
RATE_SECONDS = 1.0
# The factor by which one more connection must raise the rate: more than that varies from second to second by itself.
MIN_GAIN = 1.2
# The part of a file that one parallel download requests: worth a request and a connection on any line (3 s at 100
# Mbit/s), and a file takes no more requests than one for each, and two.
SHARE_BYTES = 32 * 1024 * 1024


@dataclass(eq=False, slots=True)
class RangeDownload:
    """One running download of a range, and the reads that it serves."""

    start: int  # the first byte of the range; it becomes 0 if the server sends the whole file
    stop: int | None  # the end of the range; None: the end of the file
    source: Source
    started_at: float  # in seconds
    is_share: bool = False  # one of several that bring a file in parallel
    has_paused: bool = False  # it ended early, since it was far ahead of its readers
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    wakeup: trio.Event = field(default_factory=trio.Event)  # readers have requested more since it was looked at
    position: int = field(init=False)  # the next byte to arrive
    step_end: int = field(init=False)  # another process writes up to here, whatever happens
    read_end: int = field(init=False)  # readers have requested up to here
    last_needed: float = field(init=False)  # when a read last waited for it

    def __post_init__(self) -> None:
        self.position = self.step_end = self.read_end = self.start
        self.last_needed = self.started_at

    def reaches(self, offset: int) -> bool:
        """Return whether that byte arrives soon.

        Behind a window it does: what follows is requested at its end, over the same connection, and the reads of the
        kernel, which arrive out of order, are one request.
        """
        near = max(self.position + NEAR_BYTES, self.step_end)
        return self.position <= offset <= near and (self.stop is None or offset < self.stop + WINDOW_BYTES)

    def next_step(self, now: float) -> int:
        """Return the end of the next step, at the pace so far: a seek waits no longer for it than for a request."""
        rate = (self.position - self.start) / max(now - self.started_at, STEP_SECONDS)
        return self.position + min(max(NEAR_BYTES, int(rate * STEP_SECONDS)), MAX_STEP_BYTES)

    def note_read(self, start: int, end: int) -> None:
        """Note that a reader requests this, whether it is present or not."""
        if start <= self.position + NEAR_BYTES and end > self.read_end:
            self.read_end = end
            if self.position - end < self._allowance // 2:  # not for each read: then it runs on for a while
                self.wakeup.set()

    def is_far_ahead(self, size: int) -> bool:
        """Return whether enough has arrived that no reader has requested, of a file of this size.

        A small rest is left for later. At the pace of a slow reader it would be one small step after the other, each of
        them a message to the process that writes; `note_read` continues when half of the allowance is used up.
        """
        if self.stop is not None:
            return False  # a window is small enough, and its connection can be used again if it comes to its end
        left = self.read_ahead_end - self.position
        return left <= (0 if self.read_ahead_end >= size >= 0 else self._allowance // 4)

    @property
    def read_ahead_end(self) -> int:
        """Return the offset up to which to read ahead."""
        return self.read_end + self._allowance

    @property
    def _allowance(self) -> int:
        # A download to the end of the file begins where all before it is present: all before `read_end` was read.
        return max(READ_AHEAD_BYTES, self.read_end)

    def is_needed(self, waits: list[tuple[int, int]]) -> bool:
        """Return whether one of these reads waits for it."""
        return any(start <= self.position + NEAR_BYTES and end > self.position for start, end in waits)


@dataclass(frozen=True, slots=True)
class NextDownload:
    """A download to start, and what to do to others first."""

    start: int
    stop: int | None
    cancel: RangeDownload | None = None  # it is in the way
    shorten: RangeDownload | None = None  # it is to end where this one starts
    is_share: bool = False  # it runs in parallel with others


class Planner:
    """Plan the downloads of one blob.

    Args:
        blob: The blob.
        version: The version, for the length that is listed.
        source: The source of the latest open; all lead to the same file.
    """

    def __init__(self, blob: Blob, version: Version, source: Source) -> None:
        self.source = source
        self.downloads: list[RangeDownload] = []
        self.ranges_refused = False  # this file cannot be requested in ranges, whatever the source says
        self._blob = blob
        self._version = version
        self._trial = ParallelTrial()
        self._window = WINDOW_BYTES  # the length of the last window
        self._window_end = WINDOW_BYTES
        self.last_read = (0, 0)

    @property
    def can_seek(self) -> bool:
        """Return whether a range can be requested."""
        return self.source.seekable and not self.ranges_refused

    @property
    def is_small(self) -> bool:
        """Return whether the file is fetched to its end even if no reader waits."""
        expected = self._blob.size if self._blob.size >= 0 else self._version.size
        return expected is not None and is_small(expected)

    def plan_start(self) -> NextDownload:
        """Return the first download."""
        in_windows = self.can_seek and not self._blob.strict and self._version.size is not None and not self.is_small
        return NextDownload(0, WINDOW_BYTES if in_windows else None)

    def plan_read(self, start: int, end: int) -> NextDownload | None:
        """Note a read, and return the download that continues a window before it is used up, if it is time for it."""
        self.last_read = (start, end)
        for download in self.downloads:
            download.note_read(start, end)
        if self._blob.is_served_whole or not self.can_seek:
            return None
        return self._plan_continuation()

    def plan_wait(self, offset: int, now: float) -> NextDownload | None:
        """Return the download to start for a reader that waits for a byte; None where a running one brings it."""
        blob = self._blob
        gap = blob.present.first_missing(0 if blob.is_served_whole else offset)
        if gap >= blob.size:
            gap = blob.contiguous_end  # it waits for the verification, and so for all that is missing
        if gap >= blob.size:
            return None
        for download in self.downloads:
            if download.reaches(gap):
                download.last_needed = now
                if blob.has_held_back_read:
                    download.wakeup.set()
                return self._plan_helper(now)
        if not self.can_seek:
            return None if any(each.position <= gap for each in self.downloads) else NextDownload(0, None)
        if len(self.downloads) < (1 if blob.is_served_whole else MAX_DOWNLOADS):
            return self._plan_gap(gap)
        idle = [each for each in self.downloads if not each.is_needed(blob.waits)]
        if blob.is_served_whole or not idle:
            return None
        return self._plan_gap(gap, min(idle, key=lambda each: each.last_needed))

    def plan_end(self, *, paused: bool) -> NextDownload | None:
        """Return the download to start when the last one has ended and bytes are missing.

        A reader that waits looks again by itself.

        Args:
            paused: Whether it ended because it was far ahead of its readers.
        """
        blob = self._blob
        if not blob.users:
            return None
        if blob.is_served_whole:
            return NextDownload(blob.contiguous_end if self.can_seek and blob.size >= 0 else 0, None)
        if not self.can_seek:
            return NextDownload(0, None) if blob.waits or not paused else None
        return self._plan_continuation(with_window=not paused)

    def pauses(self, download: RangeDownload) -> bool:
        """Return whether a download is to wait until readers request more."""
        if not self._blob.users and not self.is_small:
            return True
        # Without ranges, every other download would begin with the first byte.
        if self._blob.is_served_whole or not self.can_seek or self._blob.has_held_back_read:
            return False
        return download.is_far_ahead(self._blob.size)

    def is_done(self, download: RangeDownload) -> bool:
        """Return whether a download brings nothing more that is missing."""
        if download.stop is not None and download.position >= download.stop:
            return True
        # At the very end of the file it continues: more may arrive, which is an error.
        if self._blob.size < 0 or download.position == self._blob.size:
            return False
        gap = self._blob.present.first_missing(download.position)
        return gap == self._blob.size or (self.can_seek and gap - download.position > NEAR_BYTES)

    def next_step(self, download: RangeDownload, now: float) -> tuple[int, bool]:
        """Return where the next step ends that another process writes, and whether its bytes are missing.

        No other download has that place: others begin beyond the step or before it, and a step ends where another
        download is.
        """
        position, blob = download.position, self._blob
        ahead = [each.position for each in self.downloads if (each.position, each.start) > (position, download.start)]
        ends = [download.next_step(now), blob.size if download.stop is None else download.stop, *ahead]
        if download.stop is None and self.can_seek and not blob.is_served_whole and not blob.has_held_back_read:
            ends.append(download.read_ahead_end)
        end = download.step_end = min(ends)
        gap = blob.present.first_missing(position)
        if gap > position:
            return min(gap, end), False
        return next((stop for _, stop in blob.present.gaps(position, end)), end), True

    def _plan_gap(self, gap: int, cancel: RangeDownload | None = None) -> NextDownload:
        """Return a download of a missing byte: the rest, where most before it was read, or else a window."""
        blob = self._blob
        is_read_through = gap == blob.contiguous_end and 2 * self._requested >= gap
        if gap == blob.contiguous_end and (blob.is_served_whole or blob.has_held_back_read or is_read_through):
            return NextDownload(gap, None, cancel)
        self._window = min(2 * self._window, MAX_WINDOW_BYTES) if gap == self._window_end else WINDOW_BYTES
        end = min(gap + self._window, blob.size)
        _, stop = next(blob.present.gaps(gap, end))
        self._window_end = stop
        if stop < end:  # a program that reads backwards, piece by piece, would cause as many requests
            gap = min(gap, max(stop - WINDOW_BYTES, blob.present.start_of_gap(gap)))
        return NextDownload(gap, stop if stop < blob.size else None, cancel)

    def _plan_continuation(self, *, with_window: bool = True) -> NextDownload | None:
        """Return what follows a window before it is used up, or what is missing of a file that was mostly read."""
        blob, end = self._blob, self._window_end
        if self.downloads or not blob.users:
            return None
        if blob.size - blob.present.total <= self._requested:
            return NextDownload(blob.contiguous_end, None)
        low, middle, high = end - self._window, end - self._window // 2, end + WINDOW_BYTES
        is_read_on = any(low <= start < high and stop > middle for start, stop in [self.last_read, *blob.waits])
        if with_window and is_read_on and end < blob.size and blob.present.first_missing(end) == end:
            return self._plan_gap(end)
        return None

    def _plan_helper(self, now: float) -> NextDownload | None:
        """Return one more download, ahead of those that run, where that has proved to be faster."""
        blob, size = self._blob, self._blob.size
        if blob.is_served_whole or not self.can_seek or not self.source.grants or size < SHARE_BYTES:
            return None
        self._trial.measure(now, blob.present.total)
        if len(self.downloads) > self._trial.helpers:
            return None
        last = max(self.downloads, key=lambda each: size if each.stop is None else each.stop)
        if last.stop is None:
            if size - last.position <= 2 * NEAR_BYTES:
                return None
            start = max(last.position + min(SHARE_BYTES, (size - last.position) // 2), last.step_end)
        elif last.is_share:
            start = last.stop
        else:
            return None
        found = next(blob.present.gaps(start, min(start + SHARE_BYTES, size)), None)
        return NextDownload(*found, shorten=last if last.stop is None else None, is_share=True) if found else None

    @property
    def _requested(self) -> int:
        """Return how many bytes readers have had or wait for, about."""
        reads = {self.last_read, *self._blob.waits}
        return self._blob.served.total + sum(end - start for start, end in reads)


class ParallelTrial:
    """Find out by trying how many parallel downloads raise the rate of a file."""

    def __init__(self) -> None:
        self.helpers = 0  # downloads beside the first that are worth it, so far
        self._since: tuple[float, int] | None = None  # the time of the last measurement, and the bytes present then
        self._rate = 0.0  # bytes per second, before the last helper was added
        self._is_new = False  # the last helper was just added: what arrives now proves nothing
        self._is_over = False

    def measure(self, now: float, present: int) -> None:
        """Judge the rate since the last measurement, once in RATE_SECONDS.

        Args:
            now: The time, in seconds.
            present: The bytes that have arrived so far.
        """
        if self._since is None:
            self._since = (now, present)
        elapsed, fresh = now - self._since[0], present - self._since[1]
        if self._is_over or elapsed < RATE_SECONDS:
            return
        self._since = (now, present)
        if self._is_new:
            self._is_new = False
        elif self.helpers and fresh / elapsed < MIN_GAIN * self._rate:
            self.helpers -= 1
            self._is_over = True
        elif self.helpers == MAX_HELPERS:
            self._is_over = True
        else:
            self._rate = fresh / elapsed
            self.helpers += 1
            self._is_new = True
