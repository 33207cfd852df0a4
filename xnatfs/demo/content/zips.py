"""Stream a zip as XNAT does.

A stored member has its size and CRC in its local header, so its file is read twice; a deflated one ends with a data
descriptor. The modes of `zipfile.ZipFile` for output that cannot be sought write descriptors in both cases.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import gmtime

from xnatfs.demo.server.reply import Slice

UTF8_NAMES = 0x800


@dataclass(frozen=True)
class Member:
    name: str
    modified: float  # seconds since the epoch
    content: Slice


class _Output(io.RawIOBase):
    """A stream that holds what is written until it is taken."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._written.append(data)
        return len(data)

    def take(self) -> bytes:
        taken, self._written = b"".join(self._written), []
        return taken


def zipped(members: Sequence[Member], *, deflates: bool = False) -> Iterator[bytes]:
    """Yield the bytes of the archive."""
    output = _Output()
    with zipfile.ZipFile(output, "w") as archive:
        for member in members:
            moment = max(gmtime(member.modified)[:6], (1980, 1, 1, 0, 0, 0))
            info = zipfile.ZipInfo(member.name.encode("utf-8", "replace").decode(), moment)
            for _ in (_deflate if deflates else _store)(archive, info, member.content):
                yield output.take()
    yield output.take()


def _store(archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: Slice) -> Iterator[None]:
    assert archive.fp is not None
    info.CRC, info.flag_bits, info.header_offset = 0, UTF8_NAMES, archive.fp.tell()
    for piece in content.pieces():
        info.CRC = zlib.crc32(piece, info.CRC)
        info.file_size += len(piece)
    info.compress_size = info.file_size
    archive.fp.write(info.FileHeader())
    for piece in content.pieces():
        archive.fp.write(piece)
        yield
    archive.filelist.append(info)
    archive.start_dir = archive.fp.tell()


def _deflate(archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: Slice) -> Iterator[None]:
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.NameToInfo.clear()  # names may repeat, as those of resources with one label do
    with archive.open(info, "w", force_zip64=content.length >= zipfile.ZIP64_LIMIT) as packed:
        for piece in content.pieces():
            packed.write(piece)
            yield
