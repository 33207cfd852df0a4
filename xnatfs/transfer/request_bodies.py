"""Build request bodies from files while they are sent: a tar, a zip, or one file as it is. Nothing is copied to disk.

XNAT requires the length of everything but a zip in advance. For a tar of plain files it is a sum.
"""

import contextlib
import hashlib
import tarfile
import zipfile
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import BinaryIO

import trio

from xnatfs.common.errors import XnatError
from xnatfs.transfer.copying import NoProgress, Progress

BLOCK = tarfile.BLOCKSIZE
# The end of a tar: two empty blocks.
END = bytes(2 * BLOCK)
# Bytes read in one call of a thread: a call costs 0.1 ms, and more than this is a long pause on a fast line.
PIECE = 2**20

# The level of a zip. On images with noise, level 1 makes 68 % of them at 64 MB/s, level 6 makes 67 % at 28 MB/s.
COMPRESSION = 1

Pieces = Callable[[], AsyncGenerator[bytes]]


@dataclass(frozen=True, slots=True)
class Part:
    """A file to be sent under a name. Each call of `open` reads it from its beginning."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Sending:
    """A body, its headers, and the MD5 sums of its parts by name, which are known once it was sent."""

    pieces: Pieces
    headers: dict[str, str]
    digests: dict[str, str]


def as_tar(parts: Sequence[Part], progress: Progress) -> Sending:
    digests: dict[str, str] = {}

    async def pieces() -> AsyncGenerator[bytes]:
        for part in parts:
            yield _header(part)
            async with aclosing(_read(part, digests, progress)) as content:
                async for piece in content:
                    yield piece
            yield bytes(-part.size % BLOCK)
        yield END

    length = sum(len(_header(part)) + part.size + -part.size % BLOCK for part in parts) + len(END)
    return Sending(pieces, {"Content-Type": "application/x-tar", "Content-Length": str(length)}, digests)


def _header(part: Part) -> bytes:
    """Return a header without times and owners, which are private; this format limits neither sizes nor names."""
    info = tarfile.TarInfo(part.name)
    info.size = part.size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8")


def as_zip(parts: Sequence[Part], progress: Progress) -> Sending:
    """Build a deflated zip, whose length is not known in advance; XNAT accepts a zip without it."""
    digests: dict[str, str] = {}

    async def pieces() -> AsyncGenerator[bytes]:
        sink = _Sink()
        archive = zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION)  # type: ignore[call-overload]
        for part in parts:
            info = zipfile.ZipInfo(part.name)
            info.compress_type = zipfile.ZIP_DEFLATED
            setattr(info, "_compresslevel", COMPRESSION)  # noqa: B010  an info of one's own does not inherit it
            member = archive.open(info, "w", force_zip64=part.size >= 2**31)
            async with aclosing(_read(part, digests, progress)) as content:
                async for piece in content:
                    await trio.to_thread.run_sync(member.write, piece)
                    if made := sink.take():
                        yield made
            member.close()
        archive.close()
        yield sink.take()

    return Sending(pieces, {"Content-Type": "application/zip"}, digests)


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

    async def pieces() -> AsyncGenerator[bytes]:
        async with aclosing(_read(part, digests, progress)) as content:
            async for piece in content:
                yield piece

    return Sending(pieces, {"Content-Type": content_type, "Content-Length": str(part.size)}, digests)


async def _read(part: Part, digests: dict[str, str], progress: Progress) -> AsyncGenerator[bytes]:
    """Yield the bytes of a file, exactly as many as its stated size. Raises XnatError if it has more or fewer."""
    digest, left = hashlib.md5(usedforsecurity=False), part.size

    def take(file: BinaryIO) -> bytes:
        piece = file.read(min(PIECE, left + 1))
        digest.update(piece)
        return piece

    with _opened(part) as file:
        while piece := await trio.to_thread.run_sync(take, file):
            left -= len(piece)
            if left < 0:
                break
            progress.advance(len(piece))
            yield piece
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
