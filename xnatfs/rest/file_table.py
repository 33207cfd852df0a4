"""Store the files of a listing in packed form: some 60 bytes per file and its name; rows are built on access.

A million rows as objects take 350 MB, and the tree builds more objects from each. Here a resource is a few arrays: the
names in one byte string, the sizes as numbers, the digests as 16 bytes each.
"""

import re
from array import array
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from sys import intern
from typing import Any, overload

from xnatfs.common.errors import BadReply
from xnatfs.common.sanitize import MAX_SIZE_DIGITS, decoded
from xnatfs.rest.models import FileRow, Row

_UNKNOWN = -1  # a size that the catalogue does not state
_NO_DIGEST = bytes(16)
_MD5 = re.compile(r"(?!0{32})[0-9a-f]{32}")
_PERCENT_ESCAPE = re.compile(rb"%[0-9A-F]{2}")  # in the form of our own requests

# Files of one resource whose lack of a digest is recorded, and whose sizes are then verified: a batch of HEADs.
MOST_LACKING = 32
# Resources in one list. Each takes a kilobyte, however few files it has; 64 sessions at once have some ten thousand.
MOST_RESOURCES = 100_000


class Catalogue(Sequence[FileRow]):
    """The files of one resource, in the order of the server's listing."""

    __slots__ = (
        "_digested",
        "_digests",
        "_ends",
        "_escaped_paths",
        "_kind",
        "_kinds",
        "_lacking",
        "_paths",
        "_sizes",
        "home",
        "label",
        "resource_id",
    )

    def __init__(self, resource_id: str, home: str = "", label: str = "") -> None:
        self.resource_id = resource_id
        self.home = home  # the part of the first file's URI before /resources/
        self.label = label  # the label of the resource, as the server writes it
        self._paths = bytearray()
        self._ends = array("Q", [0])
        self._sizes = array("q")
        self._digests = bytearray()
        self._digested = False  # at least one file has a digest
        self._lacking = array("Q")  # the places of the first files without a digest
        self._kinds: list[tuple[str, str]] = []  # format and content of each run of files
        self._kind = array("Q")  # the place at which each run begins
        self._escaped_paths: frozenset[str] | None = None  # None until it is computed

    def add(self, path: str, size: int | None, digest: str, kind: tuple[str, str]) -> None:
        """Append a file.

        Args:
            path: Its path below the resource.
            size: Its bytes, or None where the catalogue does not state them.
            digest: Its MD5 in lower-case hex, or ''.
            kind: Its format and content, as the catalogue has them.
        """
        self._paths += path.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._paths))
        self._sizes.append(_UNKNOWN if size is None else size)
        self._digests += bytes.fromhex(digest) or _NO_DIGEST
        if digest:
            self._digested = True
        elif len(self._lacking) < MOST_LACKING:
            self._lacking.append(len(self._sizes) - 1)
        if not self._kinds or self._kinds[-1] != kind:
            self._kinds.append(kind)
            self._kind.append(len(self._sizes) - 1)

    def __len__(self) -> int:
        return len(self._sizes)

    def path(self, place: int) -> str:
        return self._paths[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")

    def paths(self, start: int = 0, end: int | None = None) -> Iterator[str]:
        """Iterate over the paths, from place `start` up to, not including, `end`."""
        for begin, stop in pairwise(self._ends[start : None if end is None else end + 1]):
            yield self._paths[begin:stop].decode("utf-8", "surrogatepass")

    @property
    def escaped_paths(self) -> frozenset[str]:
        """Return the paths that a URL could confuse with another one: those with a '%', if any has a percent escape.

        Hardly any listing has one, which a single search of the packed names shows.
        """
        if self._escaped_paths is None:
            found = (path for path in self.paths() if "%" in path) if _PERCENT_ESCAPE.search(self._paths) else ()
            self._escaped_paths = frozenset(found)
        return self._escaped_paths

    def size(self, place: int) -> int | None:
        size = self._sizes[place]
        return None if size == _UNKNOWN else size

    def digest(self, place: int) -> str:
        packed = self._digests[16 * place : 16 * place + 16]
        return "" if packed == _NO_DIGEST else packed.hex()

    def version(self, place: int) -> int:
        """Return the digest as a number, or 0 where there is none."""
        return int.from_bytes(self._digests[16 * place : 16 * place + 16])

    def identity(self, place: int) -> bytes:
        """Return bytes that identify a file among all others, whatever its content."""
        path = self._paths[self._ends[place] : self._ends[place + 1]]
        return b"\0".join((self.resource_id.encode("utf-8", "surrogatepass"), path))

    @property
    def lacking_digests(self) -> Sequence[int]:
        """Return the places of the first files without a digest, where others have one.

        The catalogue entries of such files are older than those with a digest.
        """
        return self._lacking if self._digested else ()

    def total(self) -> int | None:
        """Return the bytes of all files together; None where the catalogue does not state the size of one."""
        return sum(self._sizes) if _UNKNOWN not in self._sizes else None

    def at(self, place: int) -> FileRow:
        format, content = self._kinds[bisect_right(self._kind, place) - 1]
        return FileRow(self.resource_id, self.path(place), self.size(place), self.digest(place), format, content, place)

    @overload
    def __getitem__(self, index: int) -> FileRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[FileRow]: ...
    def __getitem__(self, index: int | slice) -> FileRow | list[FileRow]:
        if isinstance(index, slice):
            return [self.at(place) for place in range(*index.indices(len(self)))]
        return self.at(range(len(self))[index])

    def __iter__(self) -> Iterator[FileRow]:
        return map(self.at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Return whether the server's listings are equal."""
        if not isinstance(other, Catalogue):
            return NotImplemented
        mine, others = (
            (c.resource_id, c._ends, c._sizes, c._paths, c._digests, c._kind, c._kinds) for c in (self, other)
        )
        return mine == others

    __hash__ = None  # type: ignore[assignment]


class Catalogues(Sequence[FileRow]):
    """The files of a listing, in the server's order and by resource."""

    def __init__(self) -> None:
        self.groups: dict[Hashable, Catalogue] = {}  # by the number of the resource
        self._runs: list[tuple[Catalogue, int]] = []  # runs of files of one resource: the place in it where each ends
        self._length = 0
        self._kinds: dict[tuple[Any, Any], tuple[str, str]] = {}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows of the server's JSON. Raises BadReply where one does not describe a file."""
        catalogue, start, prefix = Catalogue(""), 0, ""  # of the row before, and how the URIs of its resource begin
        for cells in rows:
            try:
                number, uri, size, digest = cells["cat_ID"], cells["URI"], cells["Size"], cells["digest"]
                kind = (cells["file_format"], cells["file_content"])
            except KeyError:  # another spelling, or a cell less
                row = Row(cells)
                number, uri, size, digest = row.get("cat_ID"), row.get("URI"), row.get("Size"), row.get("digest")
                kind = (row.get("file_format"), row.get("file_content"))
            if not number or not uri:
                Row(cells).need("cat_ID" if not number else "URI")
            try:
                if number != catalogue.resource_id:
                    self._end_run(catalogue, start)
                    catalogue = self.groups.get(number) or self._group(str(number), str(uri), cells)
                    start, prefix = len(catalogue), f"{catalogue.home}/resources/{catalogue.resource_id}/files/"
                named = self._kinds.get(kind) or self._kind(kind)
            except TypeError:  # a cell is a list or an object in place of text
                self._end_run(catalogue, start)
                catalogue, start = Catalogue(""), 0
                self.add([{key: "" if value is None else str(value) for key, value in cells.items()}])
                continue
            uri, size, digest = str(uri), str(size), str(digest or "")
            is_usual = uri.startswith(prefix) and uri != prefix
            catalogue.add(
                uri[len(prefix) :] if is_usual else file_path(uri, catalogue.resource_id),
                int(size) if size.isascii() and size.isdigit() and len(size) <= MAX_SIZE_DIGITS else None,
                digest if _MD5.fullmatch(digest) else md5(digest),
                named,
            )
        self._end_run(catalogue, start)

    @classmethod
    def from_rows(cls, rows: Iterable[FileRow]) -> "Catalogues":
        """Build a table of the rows of another one. The homes of the resources are lost."""
        made = cls()
        for row in rows:
            catalogue = made.groups.setdefault(row.resource_id, Catalogue(row.resource_id))
            catalogue.add(row.path, row.size, row.digest, (row.format, row.content))
            made._end_run(catalogue, len(catalogue) - 1)
        return made

    def _group(self, number: str, uri: str, cells: Mapping[str, Any]) -> Catalogue:
        if number not in self.groups:
            if len(self.groups) >= MOST_RESOURCES:
                raise BadReply(f"the server lists files of more than {MOST_RESOURCES} resources at once")
            home = uri.partition(f"/resources/{number}/files/")[0]
            self.groups[number] = Catalogue(number, home, Row(cells).get("collection"))
        return self.groups[number]

    def _kind(self, kind: tuple[Any, Any]) -> tuple[str, str]:
        format, content = (intern(decoded(str(cell or ""))) for cell in kind)
        self._kinds[kind] = (format, content)
        return format, content

    def _end_run(self, catalogue: Catalogue, start: int) -> None:
        """Record the files that were added to a resource from this place on, after those of another one."""
        end = len(catalogue)
        if end == start:
            return
        if self._runs and self._runs[-1][0] is catalogue:
            self._runs[-1] = (catalogue, end)
        else:
            self._runs.append((catalogue, end))
        self._length += end - start

    def join(self, other: "Catalogue") -> None:
        """Add the files of a resource, in place of its files that are listed here."""
        if before := self.groups.get(other.resource_id):
            self._runs = [run for run in self._runs if run[0] is not before]
            self._length -= len(before)
        self.groups[other.resource_id] = other
        self._runs.append((other, len(other)))
        self._length += len(other)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[FileRow]:
        begun: dict[str, int] = {}
        for catalogue, end in self._runs:
            start = begun.get(catalogue.resource_id, 0)
            begun[catalogue.resource_id] = end
            yield from (catalogue.at(place) for place in range(start, end))

    @overload
    def __getitem__(self, index: int) -> FileRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[FileRow]: ...
    def __getitem__(self, index: int | slice) -> FileRow | list[FileRow]:
        return list(self)[index]  # it is not called for long listings


def paths_of(rows: Sequence[FileRow]) -> Iterable[str]:
    """Iterate over paths without building rows."""
    return rows.paths() if isinstance(rows, Catalogue) else (row.path for row in rows)


def md5(cell: str) -> str:
    """Return an MD5 in lower-case hex, or '' for anything else.

    Catalogues may hold another algorithm's digest, `md5:...` or `N/A`: content cannot be compared with these, so they
    count as absent. Zeros stand for an absent digest, too.
    """
    digest = cell.lower()
    return digest if _MD5.fullmatch(digest) else ""


def file_path(uri: str, resource_id: str) -> str:
    """Return the path below the resource: the text after '/resources/<id>/files/'.

    The text before it differs from call to call. Raises BadReply where the URI has no such part.
    """
    _, found, path = uri.partition(f"/resources/{resource_id}/files/")
    if not found or not path:
        raise BadReply(f"the server lists a file at {uri!r}, which is not in resource {resource_id}")
    return path


def file_rows(rows: Iterable[Row]) -> list[FileRow]:
    """Parse catalogue entries, each with its place among those of its own resource."""
    files = Catalogues()
    files.add(row.cells for row in rows)
    return list(files)
