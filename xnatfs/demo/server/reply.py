"""Replies of the server and their errors, independent of the transport."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from itertools import chain
from pathlib import Path

from xnatfs.demo.archive.entries import Computed, Content
from xnatfs.demo.server.releases import XNAT_1_8, Release

HTML = "text/html;charset=utf-8"
PIECE_BYTES = 256 * 1024  # read from disk and sent at a time
BUFFER_BYTES = 8192  # bytes of a body that the container keeps until it has to send headers


@dataclass(frozen=True)
class Slice:
    """A part of a file."""

    content: bytes | Path | Computed
    start: int
    length: int  # as the headers state it; the file may be shorter

    @classmethod
    def whole(cls, content: Content) -> "Slice":
        if content is None:
            raise FileNotFoundError
        return cls(content, 0, content.stat().st_size if isinstance(content, Path) else len(content))

    def pieces(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content[self.start : self.start + self.length]
            return
        if not isinstance(self.content, Path):
            yield from self.content.pieces(self.start, self.length)
            return
        with open(self.content, "rb") as file:
            file.seek(self.start)
            left = self.length
            while left and (piece := file.read(min(left, PIECE_BYTES))):
                left -= len(piece)
                yield piece


@dataclass
class Reply:
    """A reply. A body of bytes or a Slice has a known length; any other is sent in chunks."""

    status: int = 200
    body: bytes | Slice | Iterable[bytes] = b""
    content_type: str = "text/plain;charset=ISO-8859-1"  # '' for none
    headers: dict[str, str] = field(default_factory=dict)
    cookies: list[str] = field(default_factory=list)
    reason: str = ""

    def pieces(self) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            return iter([self.body] if self.body else [])
        return self.body.pieces() if isinstance(self.body, Slice) else iter(self.body)

    def length(self) -> int | None:
        if isinstance(self.body, bytes):
            return len(self.body)
        return self.body.length if isinstance(self.body, Slice) else None


def text(body: str, status: int = 200) -> Reply:
    return Reply(status, body.encode())


def chunked(body: bytes, content_type: str) -> Reply:
    """Return a reply whose length the server does not know beforehand."""
    pieces = [body[start : start + PIECE_BYTES] for start in range(0, len(body), PIECE_BYTES)]
    return Reply(200, iter(pieces), content_type)


def buffered(pieces: Iterator[bytes]) -> bytes | Iterator[bytes]:
    """Join a body that fits into the container's buffer, whose length is known before the headers are sent."""
    begun = b""
    for piece in pieces:
        begun += piece
        if len(begun) > BUFFER_BYTES:
            return chain([begun], pieces)
    return begun


def page(title: str, status: int = 200) -> Reply:
    body = f"<html><head><title>{escape(title)}</title></head><body><h1>{escape(title)}</h1></body></html>"
    return Reply(status, body.encode(), HTML)


def disposition(name: str) -> str:
    """Return a Content-Disposition header. Control characters in the name are replaced, since they could end it."""
    safe = "".join("_" if character < " " or character == "\x7f" else character for character in name)
    return f'attachment; filename="{safe.encode("latin-1", "replace").decode("latin-1")}";'


def container_page(status: int, message: str, release: Release) -> Reply:
    """Return an error page of the container below XNAT; its <h3> names the container, not the error."""
    words = f"<p><b>Message</b> {escape(message).replace('/', '&#47;')}</p>" if message else ""
    title = f"HTTP Status {status} \N{EN DASH} {HTTPStatus(status).phrase}"
    body = (
        f'<!doctype html><html lang="en"><head><title>{title}</title></head><body><h1>{title}</h1><hr class="line" />'
        f"<p><b>Type</b> Status Report</p>{words}<p><b>Description</b> {HTTPStatus(status).description}</p>"
        f'<hr class="line" /><h3>{release.container}</h3></body></html>'
    )
    return Reply(status, body.encode(), HTML)


class Failed(Exception):
    """The request failed with this status. The message is in XNAT's page or, if `empty`, in the container's."""

    def __init__(self, status: int, message: str = "", *, empty: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.empty = empty

    def reply(self, release: Release = XNAT_1_8) -> Reply:
        if self.empty:
            return container_page(self.status, self.message, release)
        body = (
            "<html><head><title>Status page</title></head><body>"
            f"<h3>{escape(self.message or 'Error')}</h3><p>{self.status}</p></body></html>"
        )
        return Reply(self.status, body.encode(), HTML, reason=self.message)
