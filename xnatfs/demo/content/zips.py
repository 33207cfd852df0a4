"""Stream a zip as XNAT does.

A stored entry has its size and CRC in its local header, so its file is read twice; a deflated one ends with a data
descriptor. Entries and archives beyond 4 GiB are Zip64.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LIMIT = 0xFFFFFFFF
UTF8, DESCRIPTOR = 0x800, 0x8
Packed = tuple[bytes, int, int, int]  # name, flags, method, time and date


@dataclass(frozen=True)
class Member:
    name: str
    modified: tuple[int, ...]  # year to second
    pieces: Callable[[], Iterator[bytes]]

    def stamp(self) -> int:
        year, month, day, hour, minute, second = self.modified
        date = (max(year, 1980) - 1980) << 9 | month << 5 | day
        return date << 16 | hour << 11 | minute << 5 | second // 2


@dataclass
class _Written:
    """A member's record in the central directory."""

    name: bytes
    flags: int
    method: int
    stamp: int
    offset: int
    crc: int = 0
    packed: int = 0
    size: int = 0

    def local(self) -> bytes:
        big = max(self.size, self.packed) >= LIMIT
        extra = struct.pack("<HHQQ", 1, 16, self.size, self.packed) if big else b""
        sizes = (LIMIT, LIMIT) if big else (self.packed, self.size)
        fields = (45 if big else 20, self.flags, self.method, self.stamp, self.crc, *sizes, len(self.name), len(extra))
        return struct.pack("<4s3HLLLLHH", b"PK\3\4", *fields) + self.name + extra

    def central(self) -> bytes:
        big = max(self.size, self.packed, self.offset) >= LIMIT
        extra = struct.pack("<HHQQQ", 1, 24, self.size, self.packed, self.offset) if big else b""
        sizes = (LIMIT, LIMIT, LIMIT) if big else (self.packed, self.size, self.offset)
        version = 45 if big else 20
        head = (version, version, self.flags, self.method, self.stamp, self.crc, *sizes[:2], len(self.name), len(extra))
        return struct.pack("<4s4HLLLLHHHHHLL", b"PK\1\2", *head, 0, 0, 0, 0, sizes[2]) + self.name + extra


def zipped(members: list[Member], level: int = 0) -> Iterator[bytes]:
    """Yield the bytes of the archive. `level` is zlib's; at level 0 members are stored."""
    at, written = 0, []
    for member in members:
        made = _Written(member.name.encode("utf-8", "replace"), UTF8, 8 if level else 0, member.stamp(), at)
        for piece in _deflated(member, made, level) if level else _stored(member, made):
            at += len(piece)
            yield piece
        written.append(made)
    directory = b"".join(made.central() for made in written)
    yield directory + _end(len(written), len(directory), at)


def _stored(member: Member, made: _Written) -> Iterator[bytes]:
    for piece in member.pieces():
        made.crc = zlib.crc32(piece, made.crc)
        made.size += len(piece)
    made.packed = made.size
    yield made.local()
    yield from member.pieces()


def _deflated(member: Member, made: _Written, level: int) -> Iterator[bytes]:
    made.flags |= DESCRIPTOR
    yield made.local()
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    for piece in member.pieces():
        made.crc = zlib.crc32(piece, made.crc)
        made.size += len(piece)
        packed = packer.compress(piece)
        made.packed += len(packed)
        yield packed
    rest = packer.flush()
    made.packed += len(rest)
    big = max(made.size, made.packed) >= LIMIT
    yield rest + struct.pack("<4sLQQ" if big else "<4sLLL", b"PK\7\10", made.crc, made.packed, made.size)


def _end(count: int, size: int, at: int) -> bytes:
    zip64 = b""
    if max(size, at) >= LIMIT or count >= 0xFFFF:
        zip64 = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, at)
        zip64 += struct.pack("<4sLQL", b"PK\6\7", 0, at + size, 1)
    numbers = (min(count, 0xFFFF), min(count, 0xFFFF), min(size, LIMIT), min(at, LIMIT))
    return zip64 + struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, *numbers, 0)
