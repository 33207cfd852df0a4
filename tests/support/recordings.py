"""Read, write and play recorded replies of a server.

A directory of recordings holds NAME.http, each what came over the socket, and an INDEX.md that tells which request it
answers. Bodies may be cut: what is missing is played as a connection that breaks.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote

import httpx

ROW = re.compile(r"^\| (?P<name>\S+) \| (?P<user>\S+) \| `(?P<method>[A-Z]+) (?P<target>\S+)`(?P<headers>[^|]*)\|")
HEADER = re.compile(r"([A-Z][A-Za-z-]+): (.*?)(?= [A-Z][A-Za-z-]+: |$)")
PIECE = 64 * 1024

Key = tuple[str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Recording:
    """A reply, and the request that it answers."""

    name: str
    user: str  # '-': none
    method: str
    target: str  # without the context path
    sent: dict[str, str]  # headers of the request that matter, lower-case names
    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    cut: bool = False  # the body ended before its end

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    @property
    def key(self) -> Key:
        return key(self.method, self.path, self.target.partition("?")[2])

    def content_type(self) -> str:
        found = [value for name, value in self.headers if name.lower() == "content-type"]
        return found[-1].partition(";")[0].strip().lower() if found else ""


def key(method: str, path: str, query: str) -> Key:
    """Return the key of a request, however it is escaped."""
    return method, unquote(path), tuple(sorted(parse_qsl(query, keep_blank_values=True)))


def read(directory: Path) -> Iterator[Recording]:
    """Read all recordings of a directory, in the order of its index."""
    for line in (directory / "INDEX.md").read_text().splitlines():
        row = ROW.match(line)
        path = directory / f"{row['name']}.http" if row else directory
        if row and path.is_file():
            sent = {name.lower(): value.strip() for name, value in HEADER.findall(row["headers"].strip())}
            request = Recording(row["name"], row["user"], row["method"], row["target"], sent)
            yield _parsed(request, path.read_bytes())


def _parsed(request: Recording, raw: bytes) -> Recording:
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    known = {name.lower(): value for name, value in headers}
    number, cut = int(status.split()[1]), False
    if request.method == "HEAD" or number in (204, 304):
        body = b""
    elif known.get("transfer-encoding") == "chunked":
        body, cut = _unchunked(body)
    elif "content-length" in known:
        cut = len(body) < int(known["content-length"])
    return Recording(
        request.name, request.user, request.method, request.target, request.sent, number, headers, body, cut
    )


def _unchunked(body: bytes) -> tuple[bytes, bool]:
    """Join the pieces of a body; the second value is true where its end is missing."""
    whole = b""
    while True:
        size, found, rest = body.partition(b"\r\n")
        if not found:
            return whole, True
        length = int(size, 16)
        whole += rest[:length]
        if not length or len(rest) < length:
            return whole, bool(length)
        body = rest[length + 2 :]


def write(directory: Path, recordings: Sequence[Recording]) -> None:
    """Write replies in the form that `read` reads."""
    lines = ["# Replies", "", "| name | user | request | answer | shows |", "|---|---|---|---|---|"]
    for made in recordings:
        sent = "".join(f" {name.title()}: {value}" for name, value in made.sent.items())
        lines.append(f"| {made.name} | {made.user} | `{made.method} {made.target}`{sent} | {made.status} | |")
        head = "".join(f"{name}: {value}\r\n" for name, value in made.headers)
        body = made.body
        if ("transfer-encoding", "chunked") in [(name.lower(), value) for name, value in made.headers]:
            halves = [piece for piece in (body[: len(body) // 2], body[len(body) // 2 :]) if piece]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in halves) + b"0\r\n\r\n"
        raw = f"HTTP/1.1 {made.status} \r\n{head}\r\n".encode("latin-1") + body
        (directory / f"{made.name}.http").write_bytes(raw)
    (directory / "INDEX.md").write_text("\n".join(lines) + "\n")


class _Played(httpx.AsyncByteStream):
    """A body that is played in pieces, and breaks where it was cut. It is no generator: it needs no close."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._at = 0

    def __aiter__(self) -> "_Played":
        return self

    async def __anext__(self) -> bytes:
        piece = self._recording.body[self._at : self._at + PIECE]
        self._at += len(piece)
        if piece:
            return piece
        if self._recording.cut:
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")
        raise StopAsyncIteration


def answer(status: int, body: str = "", **headers: str) -> httpx.Response:
    """Make a short reply whose body is not read yet."""
    return response(Recording("", "", "GET", "", {}, status, list(headers.items()), body.encode()))


def response(recording: Recording) -> httpx.Response:
    """Make the reply as it came, without a reason phrase: this container sends none."""
    headers = [(name, value) for name, value in recording.headers if name.lower() != "transfer-encoding"]
    stream = _Played(recording)
    return httpx.Response(recording.status, headers=headers, stream=stream, extensions={"reason_phrase": b""})
