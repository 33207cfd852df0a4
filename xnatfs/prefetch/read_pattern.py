"""Track which files of a session are read, resource by resource, and how many bytes may be read ahead.

This module does no input or output and awaits nothing; `prefetch/series_files.py` acts on its state.

Read-ahead is counted for the session as a whole, until its files are opened. The bound is FLOOR, or a fifth of what was
read where that is more. So a program that stops, or that reads other files than expected, has cost a quarter of what it
read at most, or FLOOR and the one file that was in transit.
"""

from bisect import bisect_left
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

import trio

from xnatfs.common.sanitize import decoded
from xnatfs.rest.file_table import Catalogue, paths_of
from xnatfs.rest.models import FileRow

# The largest file that is fetched ahead: a member of a tar is held in memory until it is whole.
LARGEST = 2 * 2**20
# With fewer files left, single requests cost no more than a tar.
FEWEST = 4
# Distance in the listing between two files of one sequential read: a program that takes every third file needs no tar.
STEP = 2
# Read-ahead in bytes, and the divisor of what was read. The floor is a few slices. No reader catches up with more than
# MOST soon, and these bytes are in memory at first.
FLOOR, SHARE, MOST = 512 * 1024, 5, 8 * 2**20
# Files of a resource whose reads are tracked. The places and offsets of so many take 28 ms of the event loop, once, and
# 3.3 MB for as long as the session is remembered. A larger resource is fetched singly, without read-ahead.
MOST_FILES = 20_000

# The files of an item, by resource.
Groups = Mapping[Hashable, Sequence[FileRow]]


class Walk:
    """The reads of one resource: which of its files were opened, and which were fetched ahead.

    Tables as long as the listing are built when a second file is opened, or when read-ahead begins.

    Args:
        resource: The ID of the resource.
        label: Its label, or ''.
        rows: Its files, in the order of the server's listing.
        alone: True where no other resource of the item has this ID as its label.
    """

    def __init__(self, resource: str, label: str, rows: Sequence[FileRow], *, alone: bool = True) -> None:
        self.resource = resource
        self.label = label
        self.alone = alone  # its number means this resource only
        self.listed = rows
        self.counts = 0 < len(rows) <= MOST_FILES
        self.opened: set[str] = set()
        self.ahead: set[str] = set()  # fetched and not yet opened
        self.coming: set[str] = set()  # of these, the files whose single requests are under way
        self.done = False  # its tar has been read to the end
        self.begun_early = False  # its tar was begun before any of its files was opened
        self.no_tar_until = float("-inf")

    @cached_property
    def fit(self) -> bool:
        """Return whether the resource may be fetched as a tar."""
        if not self.alone or not FEWEST <= len(self.listed) <= MOST_FILES:
            return False
        return all(size is not None and size <= LARGEST for size in _sizes(self.listed))

    @cached_property
    def places(self) -> dict[str, int]:
        """Return the index of each file in the listing, by path."""
        return {path: place for place, path in enumerate(paths_of(self.listed))}

    @cached_property
    def begins(self) -> list[int]:
        """Return the sum of bytes before each file, in listing order, and at the end that of all."""
        return [0, *accumulate(size or 0 for size in _sizes(self.listed))]

    @property
    def size(self) -> int:
        return self.begins[-1]

    def row(self, path: str) -> FileRow | None:
        place = self.places.get(path)
        return None if place is None else self.listed[place]

    def walked(self, row: FileRow) -> bool:
        """Return whether the file was opened after a neighbour, in the listing or by name: programs use both orders."""
        return len(self.opened) > 1 and self._is_beside(row)

    def _is_beside(self, row: FileRow) -> bool:
        return _beside(self.listed_paths, self.places[row.path], self.opened) or _beside(
            self.sorted_paths, bisect_left(self.sorted_paths, row.path), self.opened
        )

    @cached_property
    def listed_paths(self) -> list[str]:
        return list(self.places)

    @cached_property
    def sorted_paths(self) -> list[str]:
        return sorted(self.places)

    def half_read(self) -> bool:
        return 2 * len(self.opened) >= len(self.listed)


def _label(rows: Sequence[FileRow]) -> str:
    """Return the label of a resource as the list of its files has it, or ''."""
    return decoded(rows.label) if isinstance(rows, Catalogue) else ""


def _sizes(rows: Sequence[FileRow]) -> Iterable[int | None]:
    if isinstance(rows, Catalogue):
        return map(rows.size, range(len(rows)))
    return (row.size for row in rows)


def _beside(paths: Sequence[str], place: int, opened: Container[str]) -> bool:
    around = [*paths[max(0, place - STEP) : place], *paths[place + 1 : place + STEP + 1]]
    return any(path in opened for path in around)


class Session:
    """The reads of one item: its resources in reading order, and how many bytes were fetched ahead.

    Args:
        item: The segments of the item's URL.
        groups: The files of the item, by resource ID.
        order: The ID and label of each resource, in the order in which a traversal of the mount meets them.
    """

    def __init__(self, item: tuple[str, ...], groups: Groups, order: Iterable[tuple[str, str]]) -> None:
        self.item = item
        self.groups = groups
        order = list(order)
        known = {resource: label for resource, label in order if resource in groups}
        self.labels = {**known, **{str(key): _label(rows) for key, rows in groups.items() if key not in known}}
        # Labels that are numbers: a resource number may mean one of these, too.
        self.digits = {label for label in (*(label for _, label in order), *self.labels.values()) if label.isdigit()}
        self.order = list(self.labels)
        self.numbers = {resource: number for number, resource in enumerate(self.order)}
        self.walks: dict[str, Walk] = {}
        self.labels_read: set[str] = set()
        self.read = 0  # bytes of the files that were opened
        self.ahead = 0  # bytes of the files that were fetched and not opened
        self.stride = 0  # resources in the last tar that was begun early
        self.in_order = True  # the resources that were begun early were those that were read next
        self.lists = True  # the server accepts several resources in one request
        self.nothing_until = float("-inf")  # no read-ahead until then: the cache does not retain such files
        self.moved = trio.Event()  # set when a file is opened
        self.last_read = trio.current_time()

    def walk(self, resource: str) -> Walk:
        if resource not in self.walks:
            alone = resource not in self.digits
            rows = self.groups.get(resource, ())
            self.walks[resource] = Walk(resource, self.labels.get(resource, ""), rows, alone=alone)
        return self.walks[resource]

    def relisted(self, groups: Groups, order: Iterable[tuple[str, str]]) -> "Session":
        """Return the session for a new listing, with the state of the resources that are equal in both."""
        new = Session(self.item, groups, order)
        new.read, new.stride, new.nothing_until = self.read, self.stride, self.nothing_until
        new.in_order, new.lists, new.labels_read = self.in_order, self.lists, self.labels_read
        for resource, walk in self.walks.items():
            if groups.get(resource) == walk.listed and walk.alone == (resource not in new.digits):
                new.walks[resource] = walk
                new.ahead += sum(row.size or 0 for row in walk.listed if row.path in walk.ahead)
        return new

    def allowance(self) -> int:
        """Return how many more bytes may be read ahead now; negative where more were."""
        if trio.current_time() < self.nothing_until:
            return 0
        return min(max(FLOOR, self.read // SHARE), MOST) - self.ahead

    def opens(self, walk: Walk, row: FileRow) -> bool:
        """Record that a reader opens a file, and return whether the file was fetched ahead."""
        if row.path not in walk.opened:
            walk.opened.add(row.path)
            self.labels_read.add(walk.label)
            self.read += row.size or 0
        self.last_read = trio.current_time()
        expected = row.path in walk.ahead
        self.forget_ahead(walk, row)
        self.wake()
        return expected

    def wake(self) -> None:
        """Wake the tasks that wait until more may be fetched."""
        self.moved.set()
        self.moved = trio.Event()

    def fetches_ahead(self, walk: Walk, row: FileRow) -> None:
        if row.path not in walk.ahead:
            walk.ahead.add(row.path)
            self.ahead += row.size or 0

    def forget_ahead(self, walk: Walk, row: FileRow) -> None:
        if row.path in walk.ahead:
            walk.ahead.remove(row.path)
            self.ahead -= row.size or 0

    def following(self, walk: Walk) -> Iterator[Walk]:
        """Iterate over the later resources that may be fetched as a tar, and have not been.

        Only labels that were read before count: a converter reads DICOM and ignores SNAPSHOTS.
        """
        for resource in self.order[self.numbers[walk.resource] + 1 :]:
            following = self.walk(resource)
            if following.fit and not following.done and following.label in self.labels_read:
                yield following
