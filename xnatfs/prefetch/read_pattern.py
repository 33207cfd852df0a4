"""What is read of a session, resource by resource, and how much of it may be fetched before it is asked for.

No input or output in here, and nothing is awaited. `prefetch/series_files.py` acts on it.

What was fetched ahead is counted for the session as a whole, until it is opened: FLOOR, or a fifth of what was read
where that is more. So programs that stop, or that read something else than was expected, have cost a quarter of what
they read at most, or FLOOR and the one file that was on its way.
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
# A resource with fewer files left costs no more singly.
FEWEST = 4
# How far apart in the listing two files are that belong to a walk: a program that takes every third file wants no tar.
STEP = 2
# Bytes that may be there and not asked for. The floor is a few slices. More than MOST no reader catches up with soon,
# and they are in memory at first.
FLOOR, SHARE, MOST = 512 * 1024, 5, 8 * 2**20
# Files of a resource that is looked at here. To know places and offsets of so many takes 28 ms of the event loop, once,
# and 3.3 MB for as long as the session is remembered. What has more is fetched singly, and nothing ahead.
MOST_FILES = 20_000

# The files of an item, by resource.
Groups = Mapping[Hashable, Sequence[FileRow]]


class Walk:
    """One resource: what of it was opened, and what was fetched ahead.

    What is of the size of its listing is made when a second file of it is opened, or when it is to be fetched ahead.
    """

    def __init__(self, resource: str, label: str, rows: Sequence[FileRow], *, alone: bool = True) -> None:
        self.resource = resource
        self.label = label
        self.alone = alone  # its number is no other's label, and so means this resource only
        self.listed = rows
        self.counts = 0 < len(rows) <= MOST_FILES
        self.opened: set[str] = set()
        self.ahead: set[str] = set()  # fetched and not yet opened
        self.coming: set[str] = set()  # of these, what is on its way by itself
        self.done = False  # its tar has come to its end
        self.begun_early = False  # before anything of it was opened
        self.no_tar_until = float("-inf")

    @cached_property
    def fit(self) -> bool:
        """Whether it may come in a tar."""
        if not self.alone or not FEWEST <= len(self.listed) <= MOST_FILES:
            return False
        return all(size is not None and size <= LARGEST for size in _sizes(self.listed))

    @cached_property
    def places(self) -> dict[str, int]:
        """Of the files in the listing, by path."""
        return {path: place for place, path in enumerate(paths_of(self.listed))}

    @cached_property
    def begins(self) -> list[int]:
        """Bytes before each file, in listing order, and of all."""
        return [0, *accumulate(size or 0 for size in _sizes(self.listed))]

    @property
    def size(self) -> int:
        return self.begins[-1]

    def row(self, path: str) -> FileRow | None:
        place = self.places.get(path)
        return None if place is None else self.listed[place]

    def walked(self, row: FileRow) -> bool:
        """Whether this file was opened after one beside it, in the listing or by name: walks go either way."""
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
    """The label of a resource as the list of its files has it."""
    return decoded(rows.label) if isinstance(rows, Catalogue) else ""


def _sizes(rows: Sequence[FileRow]) -> Iterable[int | None]:
    if isinstance(rows, Catalogue):
        return map(rows.size, range(len(rows)))
    return (row.size for row in rows)


def _beside(paths: Sequence[str], place: int, opened: Container[str]) -> bool:
    around = [*paths[max(0, place - STEP) : place], *paths[place + 1 : place + STEP + 1]]
    return any(path in opened for path in around)


class Session:
    """An item: its resources in the order in which they are met, and those of them that are read.

    `order` are IDs and labels of resources.
    """

    def __init__(self, item: tuple[str, ...], groups: Groups, order: Iterable[tuple[str, str]]) -> None:
        self.item = item
        self.groups = groups
        self.owners: tuple[str, ...] = ()  # what its files belong to
        order = list(order)
        known = {resource: label for resource, label in order if resource in groups}
        self.labels = {**known, **{str(key): _label(rows) for key, rows in groups.items() if key not in known}}
        # What a number can mean beside the resource that has it.
        self.digits = {label for label in (*(label for _, label in order), *self.labels.values()) if label.isdigit()}
        self.order = list(self.labels)
        self.numbers = {resource: number for number, resource in enumerate(self.order)}
        self.walks: dict[str, Walk] = {}
        self.labels_read: set[str] = set()
        self.read = 0  # bytes of what was opened
        self.ahead = 0  # bytes of what was fetched and not opened
        self.stride = 0  # how many resources the last tar took that was begun early
        self.in_order = True  # what was begun early was what was read next
        self.lists = True  # the server takes several resources in one request
        self.nothing_until = float("-inf")  # what is fetched ahead is lost again: no use until then
        self.moved = trio.Event()  # something was opened since
        self.last_read = trio.current_time()

    def walk(self, resource: str) -> Walk:
        if resource not in self.walks:
            alone = resource not in self.digits
            rows = self.groups.get(resource, ())
            self.walks[resource] = Walk(resource, self.labels.get(resource, ""), rows, alone=alone)
        return self.walks[resource]

    def relisted(self, groups: Groups, order: Iterable[tuple[str, str]]) -> "Session":
        """The session after a new listing: of the old one counts what is the same in both."""
        new = Session(self.item, groups, order)
        new.owners = self.owners
        new.read, new.stride, new.nothing_until = self.read, self.stride, self.nothing_until
        new.in_order, new.lists, new.labels_read = self.in_order, self.lists, self.labels_read
        for resource, walk in self.walks.items():
            if groups.get(resource) == walk.listed and walk.alone == (resource not in new.digits):
                new.walks[resource] = walk
                new.ahead += sum(row.size or 0 for row in walk.listed if row.path in walk.ahead)
        return new

    def allowance(self) -> int:
        """How many bytes may be fetched now that nobody has asked for."""
        if trio.current_time() < self.nothing_until:
            return 0
        return min(max(FLOOR, self.read // SHARE), MOST) - self.ahead

    def opens(self, walk: Walk, row: FileRow) -> bool:
        """A reader opens a file; whether that was fetched ahead."""
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
        """Whoever waits until more may be fetched looks again."""
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
        """The resources after this one whose files may be fetched ahead, and have not all been.

        Of those labels only that were read before: a converter takes DICOM and leaves SNAPSHOTS alone.
        """
        for resource in self.order[self.numbers[walk.resource] + 1 :]:
            following = self.walk(resource)
            if following.fit and not following.done and following.label in self.labels_read:
                yield following
