"""Read and write HTTP/1.1 as it is on the wire: heads and bodies, passed on unchanged."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

PIECE = 256 * 1024
# Of one connection: not passed on.
HOP_BY_HOP = ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")


class Broken(Exception):
    """Raised when a message ends before it is complete."""


@dataclass
class Head:
    """First line of a request or an answer and its headers, names and order as they came."""

    first: str
    headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def method(self) -> str:
        return self.first.split(" ")[0]

    @property
    def target(self) -> str:
        return self.first.split(" ")[1]

    @property
    def status(self) -> int:
        return int(self.first.split(" ")[1])

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def drop(self, *names: str) -> None:
        self.headers = [(key, value) for key, value in self.headers if key.lower() not in names]

    def put(self, name: str, value: object) -> None:
        """Set a header, replacing the present one if there is one."""
        for place, (key, _) in enumerate(self.headers):
            if key.lower() == name.lower():
                self.headers[place] = (key, str(value))
                return
        self.headers.append((name, str(value)))

    def encode(self) -> bytes:
        lines = [self.first, *(f"{key}: {value}" for key, value in self.headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass
class Answer:
    """An answer on its way: the body in pieces, without its framing. `length` is what the head promises, if it does."""

    head: Head
    body: Iterable[bytes] = ()
    length: int | None = None
    bodiless: bool = False

    def whole(self) -> bytes:
        return b"".join(self.body)

    def replace(self, body: bytes) -> None:
        """Set another body of known length."""
        self.body, self.length = [body], len(body)
        self.head.drop("transfer-encoding")
        self.head.put("Content-Length", len(body))


def read_head(stream: BinaryIO) -> Head | None:
    """Read the next head; return None where the other side has closed the connection."""
    first = stream.readline(65536)
    if not first:
        return None
    headers = []
    while line := stream.readline(65536).rstrip(b"\r\n"):
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name, value.strip(" ")))
    return Head(first.rstrip(b"\r\n").decode("latin-1"), headers)


def read_body(stream: BinaryIO, head: Head, *, to_the_end: bool) -> Iterator[bytes]:
    """Yield the body that follows. `to_the_end`: one without a length ends with the connection, else it is empty."""
    if "chunked" in head.get("transfer-encoding").lower():
        return _chunks(stream)
    if length := head.get("content-length"):
        return _exactly(stream, int(length))
    return iter(lambda: stream.read1(PIECE), b"") if to_the_end else iter(())  # type: ignore[attr-defined]


def _exactly(stream: BinaryIO, length: int) -> Iterator[bytes]:
    while length:
        piece = stream.read1(min(length, PIECE))  # type: ignore[attr-defined]
        if not piece:
            raise Broken(f"{length} bytes are missing")
        length -= len(piece)
        yield piece


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while True:
        line = stream.readline(1024)
        if not line:
            raise Broken("the last chunk is missing")
        size = int(line.partition(b";")[0], 16)
        if not size:
            break
        yield from _exactly(stream, size)
        stream.readline(1024)
    while stream.readline(65536).strip():
        """Trailers are not passed on."""


def cut_at(body: Iterable[bytes], after: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes with their places: no piece reaches past `after`, none behind it is larger than `size`."""
    place = 0
    for piece in body:
        while piece:
            part = piece[: after - place if place < after else size]
            yield place, part
            place, piece = place + len(part), piece[len(part) :]
