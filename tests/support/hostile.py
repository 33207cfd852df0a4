"""Run a malicious server: whatever bytes a test wants, over a real socket, and all that it was sent."""

import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

# What is said to a request: bytes, or the socket to say it to.
Saying = bytes | Callable[[socket.socket], None]

TOKEN = "0123456789ABCDEF0123456789ABCDEF"
LOGGED_IN = {
    r"POST /data/JSESSION ": lambda: ok(TOKEN, "text/plain"),
    r"DELETE /data/JSESSION ": lambda: ok("", "text/plain"),
    r"GET /xapi/users/username ": lambda: ok("u", "text/plain"),
}


def ok(body: str | bytes, kind: str = "application/json", *headers: str) -> bytes:
    return answer(200, body, f"Content-Type: {kind}", *headers)


def answer(status: int, body: str | bytes = b"", *headers: str) -> bytes:
    """Make a whole reply, after which the connection is closed."""
    data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    head = [f"HTTP/1.1 {status} Words", *headers, f"Content-Length: {len(data)}", "Connection: close", "", ""]
    return "\r\n".join(head).encode("latin-1") + data


def endless(first: bytes, again: bytes) -> Callable[[socket.socket], None]:
    """Repeat the same bytes, for as long as the client takes them."""

    def say(link: socket.socket) -> None:
        link.sendall(first)
        while True:
            link.sendall(again)

    return say


@dataclass
class Hostile:
    """A server with replies by pattern of "METHOD TARGET ", the first match counting, and all that it was sent."""

    url: str = ""
    says: dict[str, Saying] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def say(self, head: str) -> Saying:
        for pattern, saying in self.says.items():
            if re.match(pattern, head):
                return saying
        return next((made() for pattern, made in LOGGED_IN.items() if re.match(pattern, head)), answer(404))

    def sent(self) -> str:
        """Return all that it was sent, in one text."""
        return "\n".join(self.heads) + "\n".join(body.decode("latin-1") for body in self.bodies)


@contextmanager
def hostile(says: dict[str, Saying] | None = None) -> Iterator[Hostile]:
    """Run one that takes any login, and sends these replies beside."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Hostile(f"http://127.0.0.1:{listener.getsockname()[1]}", says or {})
        links: list[socket.socket] = []
        threads: list[threading.Thread] = []

        def listen() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                links.append(link)
                threads.append(threading.Thread(target=_served, args=(server, link)))
                threads[-1].start()

        listening = threading.Thread(target=listen)
        listening.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listening.join()
            for link in links:
                with suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for link in links:
                link.close()


def _served(server: Hostile, link: socket.socket) -> None:
    """Read one request and send the reply to it."""
    with suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            data = link.recv(65536)
            if not data:
                return
            head += data
        text, _, body = head.partition(b"\r\n\r\n")
        lines = text.decode("latin-1")
        if length := re.search(r"(?i)\r\ncontent-length: *(\d+)", lines):
            while len(body) < int(length[1]):
                body += link.recv(65536)
        server.heads.append(lines)
        server.bodies.append(body)
        saying = server.say(lines)
        if callable(saying):
            saying(link)
        else:
            link.sendall(saying)
        link.shutdown(socket.SHUT_WR)


def listing(rows: Iterable[str]) -> bytes:
    """Make a list of the server, of rows in JSON."""
    return b'{"ResultSet":{"Result":[' + ",".join(rows).encode("utf-8", "surrogatepass") + b"]}}"
