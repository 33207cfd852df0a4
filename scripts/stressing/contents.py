"""What the bytes of a file are: made of its name, its version and their place, so that nobody has to keep them.

Each block of 16 KiB begins with whose it is: file, version, block. So a read that holds the head of a block says itself
which version it is of, and a wrong one says what came instead.
"""

import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 16 * 1024
HEAD = struct.Struct("<8sIQI")  # a mark, the file's number, the block's, the version
MARK = b"xnatfs/1"
# What is sent at a time.
PIECE = 256 * 1024

_POOL_SIZE = 2**20
_POOL = random.Random(1).randbytes(_POOL_SIZE + BLOCK)


class Wrong(Exception):
    """Bytes that are of no version, or of two; one line that says where, and what was there instead."""


@dataclass(frozen=True)
class Made:
    """One version of one file. `path` is that below the project's directory, as the mount shows it."""

    path: str
    version: int
    size: int

    def __len__(self) -> int:
        return self.size

    def pieces(self, start: int, length: int) -> Iterator[bytes]:
        """Its bytes from there, a piece at a time."""
        stop = min(start + length, self.size)
        while start < stop:
            end = min(stop, start + PIECE)
            yield piece(number(self.path), self.version, start, end)
            start = end


def number(path: str) -> int:
    """Of a file. Two with the same one would be told apart by their size and place only: tested for the archive."""
    return zlib.crc32(path.encode())


def piece(file: int, version: int, start: int, stop: int) -> bytes:
    """The bytes of a file from `start` to `stop`, however long it is."""
    first, last = start // BLOCK, (stop - 1) // BLOCK
    made = b"".join(_block(file, version, place) for place in range(first, last + 1))
    return made[start - first * BLOCK : stop - first * BLOCK]


def _block(file: int, version: int, place: int) -> bytes:
    begin = (file * 2654435761 + version * 40503 + place * 7919) % _POOL_SIZE
    return HEAD.pack(MARK, file, place, version) + _POOL[begin : begin + BLOCK - HEAD.size]


def version_in(data: bytes, offset: int) -> int | None:
    """Which version bytes from `offset` say they are of; None where they hold no head of a block."""
    head = -offset % BLOCK
    if len(data) < head + HEAD.size:
        return None
    mark, _, _, version = HEAD.unpack_from(data, head)
    return int(version) if mark == MARK else None


def check(path: str, data: bytes, offset: int, version: int) -> None:
    """Raise Wrong unless these are the bytes of that version from `offset`."""
    if data and data != (right := piece(number(path), version, offset, offset + len(data))):
        place = next(place for place, byte in enumerate(data) if byte != right[place])
        raise Wrong(f"{path}: byte {offset + place} is not that of version {version}: {_said(data, offset, place)}")


def _said(data: bytes, offset: int, place: int) -> str:
    """What the block says of itself in which the first wrong byte is."""
    start = (offset + place) // BLOCK * BLOCK - offset
    if start < 0 or start + HEAD.size > len(data):
        return "its block's head is not among the bytes"
    mark, file, block, version = HEAD.unpack_from(data, start)
    if mark != MARK:
        zeros = " (zeros)" if not any(data[start : start + HEAD.size]) else ""
        return f"its block has no head{zeros}"
    return f"its block says file {file}, block {block}, version {version}"
