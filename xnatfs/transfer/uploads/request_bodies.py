"""Build request bodies from files while they are sent: a tar, a zip, or one file as it is. Nothing is copied to disk.

XNAT requires the length of everything but a zip in advance. For a tar of plain files it is a sum.
"""

import contextlib
import hashlib
import tarfile
import zipfile
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

import trio

from xnatfs.common.errors import XnatError
from xnatfs.transfer.copying import NoProgress, Progress

# Bytes of the files in a body: what a broken connection loses, and what a proxy before a server normally accepts.
UPLOAD_BATCH_BYTES = 64 * 2**20

BLOCK = tarfile.BLOCKSIZE
# The end of a tar: two empty blocks.
END = bytes(2 * BLOCK)
# Bytes made in one call of a thread: a call costs 0.1 ms, and more than this is a long pause on a fast line.
BODY_PIECE_BYTES = 2**20

# The level of a zip. On images with noise, level 1 makes 68 % of them at 64 MB/s, level 6 makes 67 % at 28 MB/s.
ZIP_LEVEL = 1


class Piece(NamedTuple):
    """Bytes of a body, and how many bytes of files were read for them."""

    data: bytes
    read: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A file to be sent under a name. Each call of `open` reads it from its beginning."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Sending:
    """A body, its headers, and the MD5 sums of its parts by name, which are known once it was sent."""

    pieces: Callable[[], AsyncGenerator[bytes]]
    headers: dict[str, str]
    digests: dict[str, str]


def as_tar(parts: Sequence[Part], progress: Progress) -> Sending:
    digests: dict[str, str] = {}

    def pieces() -> Generator[Piece]:
        for part in parts:
            yield Piece(_header(part))
            yield from _read(part, digests)
            yield Piece(bytes(-part.size % BLOCK))
        yield Piece(END)

    length = sum(len(_header(part)) + part.size + -part.size % BLOCK for part in parts) + len(END)
    headers = {"Content-Type": "application/x-tar", "Content-Length": str(length)}
    return Sending(lambda: _in_threads(pieces(), progress), headers, digests)


def _header(part: Part) -> bytes:
    """Return a header without times and owners, which are private; this format limits neither sizes nor names."""
    info = tarfile.TarInfo(part.name)
    info.size = part.size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8")


def as_zip(parts: Sequence[Part], progress: Progress) -> Sending:
    """Build a deflated zip, whose length is not known in advance; XNAT accepts a zip without it."""
    digests: dict[str, str] = {}

    def pieces() -> Generator[Piece]:
        sink = _Sink()
        archive = zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=ZIP_LEVEL)  # type: ignore[call-overload]
        for part in parts:
            info = zipfile.ZipInfo(part.name)
            info.compress_type = zipfile.ZIP_DEFLATED
            setattr(info, "_compresslevel", ZIP_LEVEL)  # noqa: B010  an info of one's own does not inherit it
            with archive.open(info, "w", force_zip64=part.size >= 2**31) as member:
                for piece in _read(part, digests):
                    member.write(piece.data)
                    yield Piece(sink.take(), piece.read)
        archive.close()
        yield Piece(sink.take())

    return Sending(lambda: _in_threads(pieces(), progress), {"Content-Type": "application/zip"}, digests)


async def with_length(parts: Sequence[Part], progress: Progress) -> Sending:
    """Build a zip of known length by packing it twice, for servers that require the length."""
    length = 0
    async with aclosing(as_zip(parts, NoProgress()).pieces()) as pieces:
        async for piece in pieces:
            length += len(piece)
    body = as_zip(parts, progress)
    return replace(body, headers={**body.headers, "Content-Length": str(length)})


class _Sink:
    """Buffer that a zip is written to; it cannot seek."""

    def __init__(self) -> None:
        self._made = bytearray()

    def write(self, data: bytes) -> int:
        self._made += data
        return len(data)

    def flush(self) -> None:
        """Do nothing: the bytes wait for `take`."""

    def take(self) -> bytes:
        made, self._made = bytes(self._made), bytearray()
        return made


def as_file(part: Part, content_type: str, progress: Progress) -> Sending:
    digests: dict[str, str] = {}

    headers = {"Content-Type": content_type, "Content-Length": str(part.size)}
    return Sending(lambda: _in_threads(_read(part, digests), progress), headers, digests)


async def _in_threads(pieces: Generator[Piece], progress: Progress) -> AsyncGenerator[bytes]:
    """Yield the pieces of a body, made in threads, about BODY_PIECE_BYTES at a time."""

    def make() -> Piece:
        made: list[bytes] = []
        size = read = 0
        for piece in pieces:
            made.append(piece.data)
            size, read = size + len(piece.data), read + piece.read
            if size >= BODY_PIECE_BYTES:
                break
        return Piece(b"".join(made), read)

    with contextlib.closing(pieces):
        while (piece := await trio.to_thread.run_sync(make)).data:
            progress.advance(piece.read)
            yield piece.data


def _read(part: Part, digests: dict[str, str]) -> Generator[Piece]:
    """Yield the bytes of a file, exactly as many as its stated size. Raises XnatError if it has more or fewer."""
    digest, left = hashlib.md5(usedforsecurity=False), part.size
    with _opened(part) as file:
        while left >= 0 and (data := file.read(min(BODY_PIECE_BYTES, left + 1))):
            digest.update(data)
            left -= len(data)
            yield Piece(data if left >= 0 else b"", len(data))
    if left:
        raise XnatError(f"{part.name} changed while it was sent")
    digests[part.name] = digest.hexdigest()


@contextlib.contextmanager
def _opened(part: Part) -> Iterator[BinaryIO]:
    try:
        file = part.open()
    except OSError as error:
        raise XnatError(f"{part.name} cannot be read: {error.strerror}") from None
    with file:
        yield file
