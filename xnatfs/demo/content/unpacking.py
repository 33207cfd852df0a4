"""Read the files of an uploaded archive: zip, tar or tar.gz."""

import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import IO

from xnatfs.demo.server.reply import PIECE_BYTES, Failed
from xnatfs.demo.server.request_bodies import Body, Part

EXTENSION_KINDS = {".zip": "zip", ".tar": "tar", ".tgz": "tar", ".tar.gz": "tar"}
MEDIA_TYPE_KINDS = {"application/zip": "zip", "application/x-tar": "tar", "application/x-gtar": "tar"}
ENDING = re.compile(r"\.(?:zip|tar|tgz|tar\.gz)$", re.IGNORECASE)

Member = tuple[str, Iterator[bytes]]


def kind(name: str, type: str) -> str:
    """Return "zip" or "tar", by the extension of the name or else by the media type; "" for any other file."""
    ending = ENDING.search(name)
    return (
        EXTENSION_KINDS[ending[0].lower()]
        if ending
        else MEDIA_TYPE_KINDS.get(type.partition(";")[0].strip().lower(), "")
    )


def members(part: Part, kind: str, charset: str = "utf-8") -> Iterator[Member]:
    """Yield the path and the content of each member. A content must be read before the next member is requested.

    `charset` is the encoding of names in a tar. Raises Failed if the archive cannot be read.
    """
    if (part.start, part.end) == (0, part.body.size):
        yield from opened(part.body.file, kind, charset)
        return
    with closing(Body(part.pieces())) as copy:
        yield from opened(copy.file, kind, charset)


def opened(file: IO[bytes], kind: str, charset: str = "utf-8") -> Iterator[Member]:
    file.seek(0)
    try:
        if kind == "zip":
            with zipfile.ZipFile(file) as found:
                for info in found.infolist():
                    if not info.is_dir():
                        with found.open(info) as content:
                            yield info.filename, _pieces(content)
        else:
            with tarfile.open(fileobj=file, mode="r:*", encoding=charset) as tar:
                for member in tar:
                    content_file = tar.extractfile(member) if member.isfile() else None
                    if content_file is not None:
                        yield member.name.removeprefix("./"), _pieces(content_file)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
    ) as error:
        raise Failed(400, f"Unable to read the archive: {error}") from None


def _pieces(content: IO[bytes]) -> Iterator[bytes]:
    while piece := content.read(PIECE_BYTES):
        yield piece
