"""Record which bytes of which file were served, to all readers together: what counts, however a read ended.

It stands between the content cache and the kernel's calls, where no page is remembered and no reader is told from
another: bytes that a reader was given count, whatever order it read in.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from xnatfs.content import Blob, ContentCache, Version
from xnatfs.content.source import Source


@dataclass
class Record:
    """A record of the bytes that were served of one download, or one cached copy, of a file."""

    blob: Blob
    version: Version  # as the listing has it
    made: float  # when its download began
    pieces: set[tuple[int, bytes]] = field(default_factory=set)
    data: bytearray = field(default_factory=bytearray)  # these pieces in their places, as far as they came
    mask: bytearray = field(default_factory=bytearray)  # 1 where a byte was handed out

    def add(self, offset: int, data: bytes) -> None:
        """Note bytes that a reader is given."""
        if not self.pieces:
            self.data, self.mask = bytearray(self.blob.size), bytearray(self.blob.size)
        self.pieces.add((offset, data))
        self.data[offset : offset + len(data)] = data
        self.mask[offset : offset + len(data)] = b"\1" * len(data)

    def is_whole(self) -> bool:
        """Return whether no byte is missing."""
        return 0 not in self.mask

    def is_of(self, content: bytes) -> bool:
        """Return whether all that was served is of this content, and of a file of its length."""
        return len(content) == len(self.mask) and all(
            content[offset : offset + len(data)] == data for offset, data in self.pieces
        )


class Handed:
    """A check of the promise about bytes: no damaged file is ever served whole, and no bytes are of two versions.

    `contents` has all that a file ever held, by its key; `harmed` tells whether bytes that only a digest can tell may
    have come since a time: these may be served of a big file that has one, before the verdict, but never all.
    `clock` tells the time.
    """

    def __init__(
        self, contents: Callable[[str], set[bytes]], harmed: Callable[[float], bool], clock: Callable[[], float]
    ) -> None:
        self._contents = contents
        self._harmed = harmed
        self._clock = clock
        self._made: dict[int, float] = {}  # when each blob was made
        self._wrong: list[str] = []
        self._records: dict[int, Record] = {}  # by the blob's identity, which lives as long as its record

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch everything that blobs serve."""
        making, opening, reading = Blob.__init__, ContentCache.open, Blob.read

        def make_and_note(blob: Blob, key: str, on_unused: Callable[[Blob], None], *, strict: bool = False) -> None:
            making(blob, key, on_unused, strict=strict)
            self._made[id(blob)] = self._clock()

        async def open_and_note(cache: ContentCache, version: Version, source: Source) -> Blob:
            blob = await opening(cache, version, source)
            self._records.setdefault(id(blob), Record(blob, version, self._made[id(blob)]))
            return blob

        async def read_and_note(blob: Blob, offset: int, length: int) -> bytes:
            data = await reading(blob, offset, length)
            if id(blob) in self._records:
                self._note(self._records[id(blob)], offset, data)
            return data

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Blob, "__init__", make_and_note)
            patch.setattr(ContentCache, "open", open_and_note)
            patch.setattr(Blob, "read", read_and_note)
            yield

    def check(self) -> None:
        """Raise what was found wrong: within a read it would be an error like any other to the reader."""
        assert not self._wrong, self._wrong[0]

    def _note(self, record: Record, offset: int, data: bytes) -> None:
        key, digest = record.version.key, record.version.digest
        if record.mask and len(record.mask) != record.blob.size:
            self._wrong.append(f"{key} has another length than before")
            return
        record.add(offset, data)
        if digest and record.is_whole() and hashlib.md5(record.data, usedforsecurity=False).hexdigest() != digest:
            self._wrong.append(f"all bytes of {key} were handed out, and it is damaged")
        excused = digest and not record.blob.complete and not record.blob.is_served_whole and self._harmed(record.made)
        if not excused and not any(record.is_of(content) for content in self._contents(key)):
            self._wrong.append(f"what was handed out of {key} is of no version")
