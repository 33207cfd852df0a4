"""Let readers wait for a tar that another task streams, or another machine fetches.

A reader waits as long as the tar moves, or those before it do; then its file is requested singly.
"""

import hashlib
import math
from dataclasses import dataclass

import trio

from xnatfs.content import ContentCache
from xnatfs.prefetch.file_version import version
from xnatfs.prefetch.read_pattern import Series
from xnatfs.rest.models import FileRow

# The longest wait of a reader for a member, in seconds. A program that reads all of a tar loses nothing by it, and one
# that reads a few files of a huge one is served each of them this much later than by a request, at most.
MEMBER_WAIT_SECONDS = 0.5
# The longest wait for the first member of a tar whose turn has not come, in seconds, while those before it move: 64 of
# 1 MB take 1.2 s at 50 ms a request. Without that wait, readers made 231 requests in place of 69, and took 2.1 s.
QUEUE_WAIT_SECONDS = 3.0
# Seconds without a new file after which a machine that fetches an archive counts as gone, seconds between such looks,
# and the files that are looked for: the next ones of the archive, most likely.
STALLED_SECONDS, ARRIVAL_CHECK_SECONDS, FILES_PER_CHECK = 5.0, 1.0, 32


@dataclass
class PrefetchStats:
    """Counters of read-ahead: bytes that were fetched, bytes of these that were opened, and members of tars."""

    ahead: int = 0
    used: int = 0
    members: int = 0


class SeriesTar:
    """A tar that is being streamed, or waits for its turn.

    Args:
        series: The series that it brings.
        stats: The counters of all tars.
    """

    def __init__(self, series: Series, stats: PrefetchStats) -> None:
        self.series = series
        self.scope = trio.CancelScope()
        self.began = -math.inf  # when its turn came; before that, it waits for other tars
        self.is_elsewhere = False  # another machine fetches it, and shares what it brings
        self.is_late = False  # it has brought nothing while a reader has waited for long
        self.members = 0
        self.left = series.size  # bytes of the files whose members have not passed
        self.requested_at = 0.0  # by the clock of the cache
        self.waits: dict[str, trio.Event] = {}
        self.wanted: dict[str, FileRow] = {}  # the files that readers wait for
        self._stats = stats

    async def wait(self, row: FileRow) -> None:
        """Wait until the member of a file has arrived, or the file is to be requested singly."""
        path, before, now = row.path, self.members, trio.current_time()
        self.wanted[path] = row
        arrived = self.waits.setdefault(path, trio.Event())
        last, deadline = now + QUEUE_WAIT_SECONDS, now + MEMBER_WAIT_SECONDS
        while now < deadline:
            moved = self._stats.members
            with trio.move_on_at(deadline):
                await arrived.wait()
                return
            now = trio.current_time()
            is_queue_moving = self.began < 0 and self._stats.members > moved and now < last
            deadline = (now if is_queue_moving else self.began) + MEMBER_WAIT_SECONDS
        self.wake(path)  # its member is not taken any more: it may be older than what a request brings now
        if self.members == before:
            self.is_late = True
            self.stop_waits()

    def wake(self, path: str) -> None:
        """Wake the readers that wait for a file."""
        self.wanted.pop(path, None)
        if (waits := self.waits.pop(path, None)) is not None:
            waits.set()

    def stop_waits(self) -> None:
        """Let all readers request their files singly."""
        for path in list(self.waits):
            self.wake(path)


class Arrivals:
    """Watch what another machine adds to the shared store while it fetches the tar."""

    def __init__(self, tar: SeriesTar, content: ContentCache) -> None:
        self._tar = tar
        self._content = content
        self._missing = [version(row) for row in tar.series.rows]
        self._moved = self._checked = trio.current_time()

    @property
    def name(self) -> str:
        """Return a name that is the same on every machine, and known only to those that can list the files."""
        digests = "\n".join(sorted(each.digest for each in self._missing))
        return f"tar-{hashlib.sha256(digests.encode()).hexdigest()}"

    async def check_arrivals(self) -> bool:
        """Wake the readers whose files have arrived; return whether nothing has for STALLED_SECONDS."""
        tar, now = self._tar, trio.current_time()
        tar.is_elsewhere = True
        wanted = {version(row): path for path, row in tar.wanted.items()}
        looked_for = list(wanted)
        if now - self._checked >= ARRIVAL_CHECK_SECONDS:
            self._checked = now
            looked_for += self._missing[:FILES_PER_CHECK]
        if looked_for and (arrived := await self._content.find_available(looked_for)):
            self._moved, tar.is_late = now, False
            tar.members += len(arrived)
            self._missing = [each for each in self._missing if each not in arrived]
            for each in arrived & wanted.keys():
                tar.wake(wanted[each])
        return now - self._moved >= STALLED_SECONDS
