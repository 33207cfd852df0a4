"""Tell which of the listed files a member of a tar can be.

Servers write names as their tar can hold them: a backslash as a slash, what is not ASCII as a question mark, as one
byte or in UTF-8, and, before POSIX headers, no more than 100 bytes. So one name can be that of several files. A member
is called `SESSION[/scans/ID]/resources/LABEL/files/PATH`, and only LABEL and PATH are the same in all releases.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from xml.sax.saxutils import escape

import trio

from xnatfs.prefetch.tar_stream import Member
from xnatfs.rest.file_table import paths_of
from xnatfs.rest.models import FileRow

# Names that are looked at between two turns of others: a millisecond.
AT_ONCE = 1000


def spellings(name: str) -> tuple[bytes, ...]:
    """Return a name in each form that a server may give it where names are bytes."""
    if name.isascii() and "\\" not in name:
        return (name.encode(),)
    found: dict[bytes, None] = {}
    for text in (name, name.replace("\\", "/")):
        found[text.encode("utf-8", "surrogatepass")] = None
        found |= dict.fromkeys(text.encode(charset, "replace") for charset in ("ascii", "latin-1", "cp1252"))
        found[text.encode("utf-16-le", "surrogatepass")[::2]] = None  # the low byte of each of Java's characters
    return tuple(found)


class TarNames:
    """The names that the files of some resources can have in one tar."""

    def __init__(self) -> None:
        self._resources: list[_Resource] = []

    @classmethod
    async def of(cls, resources: Iterable[tuple[str, Sequence[FileRow]]], only: str | None = None) -> "TarNames":
        """Look at resources, each with its label (the number where it has none) and its files.

        With `only` all that matters is which members can be the file of that path; of a million others nothing is kept.
        """
        made = cls()
        wanted = None if only is None else spellings(only)
        for label, rows in resources:
            resource = _Resource(label, rows)
            await resource.fill(wanted)
            made._resources.append(resource)
        return made

    def find(self, member: Member) -> list[tuple[int, FileRow]]:
        """Return all listed files that a member can be, each with the place of its resource."""
        raw = member.name.encode("utf-8", "surrogateescape")
        return [
            (number, resource.rows[place])
            for number, resource in enumerate(self._resources)
            for place in resource.find(raw, cut=member.cut)
        ]


class _Resource:
    """The files of one resource by the names they can have."""

    def __init__(self, label: str, rows: Sequence[FileRow]) -> None:
        self.rows = rows
        labels = {*spellings(label), *spellings(escape(label))}  # XNAT keeps labels escaped
        self._anchors = [b"/resources/" + spelled + b"/files/" for spelled in labels]
        self._places: dict[bytes, int] = {}
        self._more: dict[bytes, list[int]] = {}  # places of further files of the same name
        self._sorted: list[bytes] = []

    async def fill(self, wanted: tuple[bytes, ...] | None) -> None:
        """Note each name; or, of `wanted` ones, those that are the same up to where they end."""
        for place, path in enumerate(paths_of(self.rows)):
            if place % AT_ONCE == AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            for name in spellings(path):
                if wanted is not None and not name.startswith(wanted):
                    continue
                if self._places.setdefault(name, place) != place:
                    self._more.setdefault(name, []).append(place)

    def find(self, raw: bytes, *, cut: bool) -> Iterator[int]:
        found: dict[int, None] = {}
        for anchor in self._anchors:
            _, _, name = raw.partition(anchor)
            for each in self._beginning(name) if cut and name else (name,):
                if each in self._places:
                    found |= dict.fromkeys((self._places[each], *self._more.get(each, ())))
        return iter(found)

    def _beginning(self, name: bytes) -> Iterator[bytes]:
        """Yield all names that begin so."""
        if not self._sorted:
            self._sorted = sorted(self._places)
        for place in range(bisect_left(self._sorted, name), len(self._sorted)):
            if not self._sorted[place].startswith(name):
                return
            yield self._sorted[place]
