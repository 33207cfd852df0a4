"""Compute the bytes of a file from its name, its version and their offset, so that they need not be stored.

Each block of 16 KiB begins with a head that names the file, the version and the block. So a read that contains a head
shows its version, and a wrong one shows the bytes that were served instead.
"""

import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 16 * 1024
HEAD = struct.Struct("<8sIQI")  # a mark, the file's number, the block's, the version
MARK = b"xnatfs/1"
# Bytes that are sent at a time.
PIECE = 256 * 1024

_POOL_SIZE = 2**20
_POOL = random.Random(1).randbytes(_POOL_SIZE + BLOCK)


class Wrong(Exception):
    """Bytes of no version, or of two; the message is one line with the place and the bytes found there."""


@dataclass(frozen=True)
class Made:
    """One version of one file. `path` is relative to the project's directory, as the mount shows it."""

    path: str
    version: int
    size: int

    def __len__(self) -> int:
        return self.size

    def pieces(self, start: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes from `start`, at most PIECE at a time."""
        stop = min(start + length, self.size)
        while start < stop:
            end = min(stop, start + PIECE)
            yield piece(number(self.path), self.version, start, end)
            start = end


def number(path: str) -> int:
    """Return the number of a file, a hash of its path. A test checks that those of the archive are unique."""
    return zlib.crc32(path.encode())


def piece(file: int, version: int, start: int, stop: int) -> bytes:
    """Return the bytes of a file from `start` to `stop`.

    Args:
        file: The number of the file.
        version: The version.
        start: The first byte.
        stop: The end, exclusive; the size of the file does not limit it.
    """
    first, last = start // BLOCK, (stop - 1) // BLOCK
    made = b"".join(_block(file, version, place) for place in range(first, last + 1))
    return made[start - first * BLOCK : stop - first * BLOCK]


def _block(file: int, version: int, place: int) -> bytes:
    begin = (file * 2654435761 + version * 40503 + place * 7919) % _POOL_SIZE
    return HEAD.pack(MARK, file, place, version) + _POOL[begin : begin + BLOCK - HEAD.size]


def version_in(data: bytes, offset: int) -> int | None:
    """Return the version that a block's head in bytes from `offset` states, or None if they contain no head."""
    head = -offset % BLOCK
    if len(data) < head + HEAD.size:
        return None
    mark, _, _, version = HEAD.unpack_from(data, head)
    return int(version) if mark == MARK else None


def check(path: str, data: bytes, offset: int, version: int) -> None:
    """Raise Wrong unless `data` are the bytes of this version of the file from `offset`."""
    if data and data != (right := piece(number(path), version, offset, offset + len(data))):
        place = next(place for place, byte in enumerate(data) if byte != right[place])
        raise Wrong(f"{path}: byte {offset + place} is not that of version {version}: {_said(data, offset, place)}")


def _said(data: bytes, offset: int, place: int) -> str:
    """Describe the head of the block that contains the first wrong byte."""
    start = (offset + place) // BLOCK * BLOCK - offset
    if start < 0 or start + HEAD.size > len(data):
        return "its block's head is not among the bytes"
    mark, file, block, version = HEAD.unpack_from(data, start)
    if mark != MARK:
        zeros = " (zeros)" if not any(data[start : start + HEAD.size]) else ""
        return f"its block has no head{zeros}"
    return f"its block says file {file}, block {block}, version {version}"
