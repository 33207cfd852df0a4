"""Match the members of a tar to the listed files.

Servers write names in the forms that their tar library can hold: a backslash as a slash, a character outside ASCII as a
question mark, as one byte or in UTF-8, and, before POSIX headers, no more than 100 bytes. So several files can have the
name of one member. A member is called `SESSION[/scans/ID]/resources/LABEL/files/PATH`, and only LABEL and PATH are the
same in all releases.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from xml.sax.saxutils import escape

import trio

from xnatfs.prefetch.tar_stream import Member
from xnatfs.rest.file_table import paths_of
from xnatfs.rest.models import FileRow

# Names that are processed between two checkpoints: a millisecond.
NAMES_PER_CHECKPOINT = 1000


def spellings(name: str) -> tuple[bytes, ...]:
    """Return a name in each form, as bytes, that a server may give it in a tar."""
    if name.isascii() and "\\" not in name:
        return (name.encode(),)
    found: dict[bytes, None] = {}
    for text in (name, name.replace("\\", "/")):
        found[text.encode("utf-8", "surrogatepass")] = None
        found |= dict.fromkeys(text.encode(charset, "replace") for charset in ("ascii", "latin-1", "cp1252"))
        found[text.encode("utf-16-le", "surrogatepass")[::2]] = None  # the low byte of each of Java's characters
    return tuple(found)


class TarNames:
    """The names that the files of several resources can have in one tar."""

    def __init__(self) -> None:
        self._resources: list[_Resource] = []

    @classmethod
    async def build(cls, resources: Iterable[tuple[str, Sequence[FileRow]]], only: str | None = None) -> "TarNames":
        """Build the names for the files of resources.

        Args:
            resources: For each resource its label (its number where it has none) and its files.
            only: A path: only the names that can be that file's are kept, and those of a million others take no memory.
        """
        made = cls()
        wanted = None if only is None else spellings(only)
        for label, rows in resources:
            resource = _Resource(label, rows)
            await resource.fill(wanted)
            made._resources.append(resource)
        return made

    def find(self, member: Member) -> list[tuple[int, FileRow]]:
        """Return all listed files that a member can be, each with the index of its resource."""
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
        self._more: dict[bytes, list[int]] = {}  # places of further files that can have the same name
        self._sorted: list[bytes] = []

    async def fill(self, wanted: tuple[bytes, ...] | None) -> None:
        """Add every name, or, where `wanted` is given, only the names that begin with one of these."""
        for place, path in enumerate(paths_of(self.rows)):
            if place % NAMES_PER_CHECKPOINT == NAMES_PER_CHECKPOINT - 1:
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
        """Yield all names that begin with this one."""
        if not self._sorted:
            self._sorted = sorted(self._places)
        for place in range(bisect_left(self._sorted, name), len(self._sorted)):
            if not self._sorted[place].startswith(name):
                return
            yield self._sorted[place]
