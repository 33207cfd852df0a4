"""Read the body of a request, which is on disk if it is large, with its form fields and its files."""

import io
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from typing import IO
from urllib.parse import parse_qsl

from xnatfs.demo.server.reply import PIECE_BYTES, Failed

IN_MEMORY_BYTES = 1024 * 1024
# Media types that make a body a file without `inbody`; any other body is a form, or is ignored.
FILE_TYPES = ("image/", "audio/", "video/")
FILES = {
    "application/octet-stream", "application/zip", "application/x-tar", "application/x-gtar", "application/gzip",
    "application/x-gzip", "text/plain", "text/xml", "application/xml", "text/csv", "application/dicom",
    "application/pdf",
}  # fmt: skip

WITHOUT_LENGTH = "In-body File posts must include the file directly as the body of the message."


class Body:
    """The bytes of a request, which can be read repeatedly."""

    def __init__(self, content: bytes | Iterable[bytes] = b"") -> None:
        self.file: IO[bytes] = io.BytesIO()
        try:
            for piece in [content] if isinstance(content, bytes) else content:
                if isinstance(self.file, io.BytesIO) and not isinstance(content, bytes):
                    self._spill(len(piece))
                self.file.write(piece)
        except BaseException:
            self.close()
            raise
        self.size = self.file.tell()

    def _spill(self, more: int) -> None:
        """Move the body to a temporary file if it would exceed IN_MEMORY_BYTES."""
        assert isinstance(self.file, io.BytesIO)
        if self.file.tell() + more > IN_MEMORY_BYTES:
            held = self.file.getvalue()
            self.file = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the request)
            self.file.write(held)

    def close(self) -> None:
        self.file.close()

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        self.file.seek(start)
        left = (self.size if end is None else end) - start
        while left > 0 and (piece := self.file.read(min(left, PIECE_BYTES))):
            left -= len(piece)
            yield piece

    def small(self) -> bytes:
        """Return the whole body, or nothing if it is too large to be a form or a document."""
        return b"".join(self.pieces()) if self.size <= IN_MEMORY_BYTES else b""

    def find(self, wanted: bytes, start: int) -> int:
        """Return the position of the next occurrence of these bytes, or -1."""
        kept, at = b"", start
        for piece in self.pieces(start):
            kept += piece
            if (found := kept.find(wanted)) >= 0:
                return at + found
            cut = max(0, len(kept) - len(wanted) + 1)
            kept, at = kept[cut:], at + cut
        return -1


@dataclass(frozen=True)
class Part:
    """A file in a request. `name` is "" for a raw body."""

    body: Body
    start: int
    end: int
    name: str
    type: str

    def pieces(self) -> Iterator[bytes]:
        return self.body.pieces(self.start, self.end)


@dataclass(frozen=True)
class Sent:
    """A request's fields and files."""

    fields: list[tuple[str, str]]
    files: list[Part]
    raw: bool = False


def sent(
    body: Body, headers: dict[str, str], *, inbody: bool, chunked_zips: bool = True, without_length: int = 500
) -> Sent:
    """Split a body into fields and files. A raw body is a file if `inbody` is set, or by its media type.

    Args:
        body: The body.
        headers: The request's headers, with lower-case names.
        inbody: The query declares the body to be a file.
        chunked_zips: Whether a zip needs no Content-Length.
        without_length: The status for any other raw file without Content-Length.

    Raises:
        Failed: The body is refused.
    """
    kind = _header("content-type", headers.get("content-type", ""))
    type = kind.get_content_type() if headers.get("content-type") else ""
    if type == "multipart/form-data":
        if inbody:
            raise Failed(406, "Not Acceptable")
        return _multipart(body, str(kind.get_param("boundary", "")).encode())
    if inbody or type in FILES or type.startswith(FILE_TYPES):
        lengthless = "chunked" in headers.get("transfer-encoding", "").lower()
        if (lengthless or not body.size) and not (chunked_zips and type == "application/zip"):
            raise Failed(without_length, WITHOUT_LENGTH)
        return Sent([], [Part(body, 0, body.size, "", type)], raw=True)
    if type == "application/x-www-form-urlencoded":
        return Sent(parse_qsl(body.small().decode("utf-8", "replace"), keep_blank_values=True), [])
    return Sent([], [])


def _multipart(body: Body, boundary: bytes) -> Sent:
    if not boundary:
        raise Failed(400, "The request holds no parts")
    fields: list[tuple[str, str]] = []
    files: list[Part] = []
    mark = b"--" + boundary
    at = body.find(mark, 0)
    while at >= 0:
        begin = body.find(b"\r\n", at + len(mark))
        head = body.find(b"\r\n\r\n", begin) if begin == at + len(mark) else -1
        end = body.find(b"\r\n" + mark, head + 2) if head >= 0 else -1
        if end < 0:
            break
        parsed = b"".join(body.pieces(begin + 2, head)).decode("utf-8", "replace")
        disposition = _header("content-disposition", _of(parsed, "content-disposition"))
        name = disposition.get_filename()
        if name is not None:
            files.append(Part(body, head + 4, end, name, _of(parsed, "content-type")))
        else:
            field = str(disposition.get_param("name", "", "content-disposition"))
            fields.append((field, b"".join(body.pieces(head + 4, end)).decode("utf-8", "replace")))
        at = end + 2
    return Sent(fields, files)


def _of(headers: str, name: str) -> str:
    return str(HeaderParser().parsestr(headers).get(name, ""))


def _header(name: str, value: str) -> Message:
    made = Message()
    made[name] = value
    return made
