"""Track which files of a session are read, and limit how many unopened bytes its archives may bring.

This module does no input or output and awaits nothing; `prefetch/series_files.py` acts on its state.

The order in which files are read means nothing: a catalogue has its files in hash order, an archive in catalogue order,
and programs read by name, backward, or by inode. Only how many files of a resource were opened counts:

- One or two: no archive.
- Three: the resource is being read, and its archive is fetched. The unopened files of such resources may total
  SERIES_AHEAD_BYTES, and twice as much with each further file, up to four times as much or SERIES_AHEAD_FACTOR times
  what was read of the session: a usual series is fetched at once, and one of gigabytes as its files are read.
- Once one resource of a session is being read, the archive of another of the same label begins with its first file,
  and that of the next one, in the order in which the program goes through them, before that. Their unopened files may
  total half of what was read of the session.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property

import trio

from xnatfs.common.sanitize import decoded
from xnatfs.rest.file_table import Catalogue
from xnatfs.rest.models import FileRow

# The largest file that comes in an archive, in bytes, and the largest that the content cache fetches whole: its member
# is in memory until it is complete, and a larger one is read by ranges.
MAX_MEMBER_BYTES = 8 * 2**20
# With fewer files left, single requests cost no more than an archive.
MIN_FILES_LEFT = 3
# Files of a resource whose reads are tracked. To examine so many takes 5 ms of the event loop, once. A larger resource
# is fetched singly.
MAX_FILES = 50_000
# Distinct files of a resource that are opened before it counts as read.
FILES_READ = 3
# Bytes of unopened files that resources being read may have in the cache: most series of small files are smaller.
SERIES_AHEAD_BYTES, SERIES_AHEAD_FACTOR = 24 * 2**20, 64
# The next resource is begun when this part of the files of the one before is opened.
NEXT_BEGUN_AT = 1 / 4
# Wrong guesses of the next resource in a row, after which none is begun early.
MAX_MISSES = 1
# Resources that a reader returns to from another one before it counts as reading all of the session in no order.
# Two programs side by side, each with a series of its own, do not; nor does one that takes a file of each.
SCATTERED_RESOURCES = 3
# Changes of direction among the resources that it enters, after which it counts as such a reader, too. A program that
# takes files of chosen resources goes one way.
SCATTERED_TURNS = 2

# The files of an item, by resource.
Groups = Mapping[Hashable, Sequence[FileRow]]


class Series:
    """The reads of one resource, and what its archive has brought.

    Args:
        resource: The ID of the resource.
        label: Its label, or ''.
        rows: Its files, in the order of the server's listing.
        is_alone: True where no other resource of the item has this ID as its label.
    """

    def __init__(self, resource: str, label: str, rows: Sequence[FileRow], *, is_alone: bool) -> None:
        self.resource = resource
        self.label = label
        self.rows = rows
        self.is_alone = is_alone  # its number means this resource only
        self.opened: set[str] = set()  # files that were not in the cache before, or came in the archive
        self.unread: dict[str, int] = {}  # the bytes of files that came in the archive and were not opened
        self.unread_bytes = 0
        self.is_read = False
        self.is_early = False  # its archive was begun before any of its files was opened
        self.is_complete = False  # its archive was read to the end
        self.no_archive_until = float("-inf")

    @property
    def counts(self) -> bool:
        """Return whether its reads are tracked."""
        return self.is_alone and MIN_FILES_LEFT <= len(self.rows) <= MAX_FILES

    @cached_property
    def size(self) -> int:
        """Return the bytes of all its files, or 0 if it may not be fetched as an archive."""
        rows = self.rows
        sizes = map(rows.size, range(len(rows))) if isinstance(rows, Catalogue) else (row.size for row in rows)
        known = [size for size in sizes if size is not None and size <= MAX_MEMBER_BYTES]
        return sum(known) if self.counts and len(known) == len(rows) else 0

    def is_past(self, part: float) -> bool:
        """Return whether at least this part of its files was opened."""
        return len(self.opened) >= part * len(self.rows)

    def receive(self, row: FileRow) -> None:
        """Record that a file came in the archive."""
        if row.path not in self.opened and row.path not in self.unread:
            self.unread[row.path] = row.size or 0
            self.unread_bytes += row.size or 0

    def take(self, path: str) -> None:
        """Record that a file no longer waits for its reader."""
        self.unread_bytes -= self.unread.pop(path, 0)

    def begin_anew(self) -> None:
        """Forget all reads: the cache has lost the files that came."""
        self.opened.clear()
        self.is_read = self.is_early = self.is_complete = False


class Course:
    """The order in which a program goes through the resources of one label.

    Args:
        orders: The resources in each order that programs use, the more probable one first.
    """

    def __init__(self, orders: Sequence[Sequence[str]]) -> None:
        self.orders = orders
        self._chosen, self._step = 0, 1
        self._last = ""
        self._misses = 0
        self._is_first = True  # one resource was entered
        self._ways: dict[int, bool] = {}  # whether the last step went ahead, in each order
        self._turns = [0] * len(orders)

    def enter(self, resource: str) -> bool:
        """Note a resource of which the first file is opened, and return whether it was expected."""
        last, self._last = self._last, resource
        self._is_first = not last
        self._note_turns(last, resource)
        for number, order in enumerate(self.orders):
            place = order.index(resource)
            if last not in order and place in (0, len(order) - 1):
                self._chosen, self._step = number, -1 if place else 1
                return True
        if last not in order or self._after(last)[:1] == [resource]:
            self._misses = 0
            return True
        self._misses += 1
        for number, order in enumerate(self.orders):
            if abs(step := order.index(resource) - order.index(last)) == 1:
                self._chosen, self._step = number, step
        return False

    def _note_turns(self, last: str, resource: str) -> None:
        for number, order in enumerate(self.orders):
            if last in order:
                way = order.index(resource) > order.index(last)
                self._turns[number] += way != self._ways.setdefault(number, way)
                self._ways[number] = way

    @property
    def turns(self) -> int:
        """Return how often the reader has changed its direction, in the order in which it does so least."""
        return min(self._turns)

    def expect_names(self) -> None:
        """Note that the files of a resource are not read in the order of its listing.

        A program that sorts the names of files sorts those of folders as well: scan 10 comes after scan 1 then.
        """
        order = self.orders[-1]
        if self._is_first and self._last in (*order[:1], *order[-1:]):
            self._chosen, self._step = len(self.orders) - 1, 1 if self._last == order[0] else -1

    def upcoming(self) -> Sequence[str]:
        """Return the resources that the reader comes to next, the next one first; none where guesses were wrong."""
        return self._after(self._last) if self._misses <= MAX_MISSES else ()

    def _after(self, resource: str) -> Sequence[str]:
        order = self.orders[self._chosen]
        if resource not in order:
            return ()
        place = order.index(resource)
        return order[place + 1 :] if self._step > 0 else order[:place][::-1]


class SessionReads:
    """The reads of one item: its resources, how much was read, and in which order.

    Args:
        item: The segments of the item's URL.
        most: The most bytes of unopened files: no more is fetched than fits into the cache.
    """

    def __init__(self, item: tuple[str, ...], most: int) -> None:
        self.item = item
        self.groups: Groups = {}
        self.files = 0  # in all groups
        self.series: dict[str, Series] = {}
        self.current: Series | None = None
        self.last_read = trio.current_time()
        self.no_archive_until = float("-inf")  # the cache does not retain such files
        self.moved = trio.Event()  # set when a file is opened
        self._most = most
        self._read = self._files = 0  # the files that were opened, and their bytes
        self._labels: dict[str, str] = {}
        self._digits: set[str] = set()  # labels that are numbers: a resource's number may mean one of these, too
        self._courses: dict[str, Course] = {}
        self._revisited: set[str] = set()

    def relist(self, groups: Groups, order: Iterable[tuple[str, str]]) -> list[Series]:
        """Apply a new listing, and return the resources that it has changed or dropped.

        Args:
            groups: The files of the item, by resource ID.
            order: The ID and label of each resource, in the order in which a traversal of the mount meets them.
        """
        listed = dict(order)
        self.groups = groups
        self.files = sum(map(len, groups.values()))
        self._labels = {resource: label for resource, label in listed.items() if resource in groups}
        for resource, rows in groups.items():
            self._labels.setdefault(str(resource), decoded(rows.label) if isinstance(rows, Catalogue) else "")
        self._digits = {label for label in (*listed.values(), *self._labels.values()) if label.isdigit()}
        for label, course in self._courses.items():
            course.orders = self._orders(label)
        others = [
            series
            for resource, series in self.series.items()
            if groups.get(resource) != series.rows or series.is_alone == (resource in self._digits)
        ]
        for series in others:
            del self.series[series.resource]
        return others

    def get_series(self, resource: str) -> Series:
        """Return the reads of a resource."""
        if resource not in self.series:
            rows, label = self.groups.get(resource, ()), self._labels.get(resource, "")
            self.series[resource] = Series(resource, label, rows, is_alone=resource not in self._digits)
        return self.series[resource]

    def get_course(self, label: str) -> Course:
        """Return the course through the resources of a label: in the tree's order, or by name as text."""
        if label not in self._courses:
            self._courses[label] = Course(self._orders(label))
        return self._courses[label]

    def _orders(self, label: str) -> list[list[str]]:
        alike = (resource for resource, other in self._labels.items() if other == label)
        shown = [resource for resource in alike if len(self.groups[resource]) >= MIN_FILES_LEFT]
        return [shown, sorted(shown, key=lambda resource: getattr(self.groups[resource], "home", ""))]

    @property
    def is_scattered(self) -> bool:
        """Return whether the reader goes through all resources in no order."""
        turns = max((course.turns for course in self._courses.values()), default=0)
        return len(self._revisited) >= SCATTERED_RESOURCES or turns >= SCATTERED_TURNS

    def upcoming(self, label: str) -> Sequence[str]:
        """Return the resources of a label that the reader may come to next; all of them where it reads in no order."""
        course = self.get_course(label)
        return course.orders[0] if self.is_scattered and self._revisited else course.upcoming()

    @property
    def is_read(self) -> bool:
        """Return whether resources of the session are read as a whole."""
        return self.is_scattered or any(series.is_read for series in self.series.values())

    def open(self, series: Series, row: FileRow) -> bool:
        """Note that a reader opens a file; return whether it goes on where it was expected to."""
        if row.path not in series.opened:
            if series.opened and self.current is not series:
                self._revisited.add(series.resource)
            series.opened.add(row.path)
            self._read += row.size or 0
            self._files += 1
        series.take(row.path)
        series.is_read = series.is_read or series.is_early or self.is_scattered or len(series.opened) >= FILES_READ
        self.current = series
        course = self.get_course(series.label)
        expected = len(series.opened) > 1 or course.enter(series.resource)
        if len(series.opened) == 2 and {each.path for each in series.rows[:2]} != series.opened:
            course.expect_names()
        self.wake()
        return expected or self.is_scattered

    def wake(self) -> None:
        """Wake the archives that pause until more of them is read."""
        self.moved.set()
        self.moved = trio.Event()

    def count_allowed_bytes(self, series: Series) -> int:
        """Return how many more bytes the archive of a resource may bring now; none is left at 0 or below."""
        is_read = self._counts_as_read(series)
        doublings = self._files - FILES_READ if self._revisited or not self.is_scattered else 0
        most = SERIES_AHEAD_BYTES << min(max(doublings, 0), 20)
        most = min(most, max(4 * SERIES_AHEAD_BYTES, SERIES_AHEAD_FACTOR * self._read)) if is_read else self._read // 2
        same = (each.unread_bytes for each in self.series.values() if self._counts_as_read(each) == is_read)
        return min(most, self._most) - sum(same)

    def _counts_as_read(self, series: Series) -> bool:
        return series.is_read or self.is_scattered
