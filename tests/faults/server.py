"""Run a proxy in front of any URL, one thread for each connection, on blocking sockets.

With an empty script it passes everything on unchanged, so that real clients can use it. A step of the script breaks
the request that meets it; `stop`, `freeze` and `restart` break them all at once.
"""

import contextlib
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from tests.faults.answers import CHANGES, IN_ITS_PLACE, RANGE, filler, first_bytes, made, other_range, redate, start_of
from tests.faults.messages import HOP_BY_HOP, PIECE, Answer, Broken, Head, cut_at, read_body, read_head
from tests.faults.script import Script, Step

# Of a connection that is to be reset and not closed.
NO_LINGER = struct.pack("ii", 1, 0)
# Between two looks whether a client that is left waiting has gone, and between two pieces of a drip.
TICK = 0.05
LAST_CHUNK = b"0\r\n\r\n"

SESSION = re.compile(r"JSESSIONID=(\w+)")

Steps = str | Iterable[dict[str, Any]]
Certificate = tuple[Path, Path]  # and its key


@dataclass(frozen=True, slots=True)
class Met:
    """A fault that really occurred."""

    fault: str
    method: str
    path: str  # with its query
    status: int = field(default=0, compare=False)  # of a fault that is one
    at: float = field(default_factory=time.monotonic, compare=False)


@dataclass(slots=True)
class Asked:
    """A request and the status of its answer; 0 where there is none, or none yet."""

    method: str
    path: str  # with its query
    status: int = 0


@dataclass(slots=True)
class Altered:
    """A body that a step has changed, as it was sent: what a client may have been given in place of the file."""

    path: str  # with its query
    start: int  # in the file, of its first byte
    body: bytearray = field(default_factory=bytearray)

    def take(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the same pieces, and record them."""
        for piece in pieces:
            self.body += piece
            yield piece


class _Reset(Exception):
    """Raised to reset the connection."""


class _Close(Exception):
    """Raised to close the connection, so that what was sent arrives."""


class Faulty:
    """A fault server. Every method may be called by any thread."""

    def __init__(self, upstream: str, steps: Steps, seed: int, certificate: Certificate | None) -> None:
        self.upstream = urlsplit(upstream)
        self._seed = seed
        self._script = Script(steps, seed)
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self.certify(certificate)
        self.met: list[Met] = []
        self.asked: list[Asked] = []
        self.altered: list[Altered] = []
        self.sessions: set[str] = set()  # that clients have shown
        self.in_flight = 0
        self.changed = threading.Condition()
        self.frozen = False
        self._closed = False
        self._listener: socket.socket | None = None
        self._connections: set[_Connection] = set()
        # Bound and never listening: no other process is given the port while the server is away.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port = self._place.getsockname()[1]
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}{self.upstream.path}"
        self.start()

    def script(self, steps: Steps) -> None:
        """Replace the steps from now on; the record of faults and requests stays."""
        self._script = Script(steps, self._seed)

    def forget(self) -> None:
        """Forget the faults and requests so far."""
        with self.changed:
            self.met.clear()
            self.asked.clear()
            self.altered.clear()

    def certify(self, certificate: Certificate) -> None:
        """Show another certificate to clients that connect from now on."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)

    # -- outages -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, on the same port each time."""
        with self.changed:
            if self._listener is not None or self._closed:
                return
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("127.0.0.1", self.port))
            self._listener.listen(128)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self, *, keep_sessions: bool = False) -> None:
        """Stop as a server does: close the listener and all connections, and lose its sessions."""
        self._deaf()
        for connection in list(self._connections):
            connection.end()
        if not keep_sessions:
            self.lose_sessions()

    def wait_until_idle(self) -> None:
        """Wait for requests to end that were under way when it was stopped."""
        with self.changed:
            self.changed.wait_for(lambda: not self.in_flight, 10)

    def restart(self, seconds: float) -> None:
        self.stop()
        time.sleep(seconds)
        self.start()

    def freeze(self) -> None:
        """Accept connections and send nothing; what is under way stands still."""
        with self.changed:
            self.frozen = True

    def thaw(self) -> None:
        with self.changed:
            self.frozen = False
            self.changed.notify_all()

    def close(self) -> None:
        self._closed = True  # a restart that is under way does not come back
        self.stop(keep_sessions=True)
        self.thaw()
        self._place.close()
        for connection in list(self._connections):
            connection.thread.join(10)

    def refuse(self, seconds: float | None) -> None:
        """Refuse connections for so long, or until `start`; open connections stay."""
        self._deaf()
        if seconds is not None:
            timer = threading.Timer(seconds, self.start)
            timer.daemon = True
            timer.start()

    def _deaf(self) -> None:
        with self.changed:
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.shutdown(socket.SHUT_RDWR)
                listener.close()

    def lose_sessions(self) -> None:
        """Make the upstream server forget its sessions, as it does when it restarts."""
        lost, self.sessions = self.sessions, set()
        for session in lost:
            head = Head(f"DELETE {self.upstream.path}/data/JSESSION HTTP/1.1")
            head.headers = [("Host", self.upstream.netloc), ("Cookie", f"JSESSIONID={session}")]
            with contextlib.suppress(OSError, Broken), self.ask(head, ()) as answer:
                answer.whole()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            connection = _Connection(self, client, self._context)
            with self.changed:
                if self._listener is not listener:  # stopped meanwhile: no call would end this connection
                    client.close()
                    return
                self._connections.add(connection)
            connection.thread.start()

    # -- for connections -----------------------------------------------------------------------------------------

    def begin(self, head: Head) -> tuple[Asked, Step | None]:
        """Record a request, and return it with the step that it meets."""
        if found := SESSION.search(head.get("cookie")):
            self.sessions.add(found[1])
        asked = Asked(head.method, head.target)
        with self.changed:
            self.in_flight += 1
            self.asked.append(asked)
            return asked, self._script.pick(head, self.in_flight)

    def finish(self) -> None:
        with self.changed:
            self.in_flight -= 1
            self.changed.notify_all()

    def left(self, connection: "_Connection") -> None:
        self._connections.discard(connection)

    @contextmanager
    def ask(self, head: Head, body: Iterable[bytes]) -> Iterator[Answer]:
        """Send a request to the upstream server; raise OSError or Broken."""
        port = self.upstream.port or (443 if self.upstream.scheme == "https" else 80)
        sent = Head(head.first, list(head.headers))
        sent.drop("expect", "connection", "keep-alive")
        sent.put("Connection", "close")
        with contextlib.ExitStack() as stack:
            behind = stack.enter_context(socket.create_connection((self.upstream.hostname, port)))
            if self.upstream.scheme == "https":
                behind = stack.enter_context(_trusting().wrap_socket(behind, server_hostname=self.upstream.hostname))
            behind.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            behind.sendall(sent.encode())
            with contextlib.suppress(ConnectionError):  # it may answer before it has heard all
                for piece in _framed(body, chunked="chunked" in head.get("transfer-encoding").lower()):
                    behind.sendall(piece)
            yield self._answer(head, stack.enter_context(_stream(behind)))

    def _answer(self, request: Head, stream: BinaryIO) -> Answer:
        head = read_head(stream)
        while head is not None and 100 <= head.status < 200:
            head = read_head(stream)
        if head is None:
            raise Broken("the server behind says nothing")
        bodiless = request.method == "HEAD" or head.status in (204, 304)
        body = iter(()) if bodiless else read_body(stream, head, to_the_end=True)
        chunked = "chunked" in head.get("transfer-encoding").lower()
        length = int(head.get("content-length")) if head.get("content-length") and not chunked else None
        if request.get("authorization"):
            cookies = [value for name, value in head.headers if name.lower() == "set-cookie"]
            self.sessions.update(found[1] for cookie in cookies if (found := SESSION.match(cookie)))
        head.drop(*HOP_BY_HOP)
        if chunked:
            head.headers.append(("Transfer-Encoding", "chunked"))
        behind = self.upstream.geturl()
        if head.get("location").startswith(behind):
            head.put("Location", self.url + head.get("location").removeprefix(behind))
        return Answer(head, body, length, bodiless)


class _Connection:
    """A client's connection, and its requests one after the other."""

    def __init__(self, server: Faulty, client: socket.socket, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._client = client
        self._context = context
        self._ended = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def end(self) -> None:
        """Shut the connection in both directions, from another thread."""
        with self._server.changed:
            self._ended = True
            self._server.changed.notify_all()
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._gate()
            if self._context is not None:
                self._secure(self._context)
            with _stream(self._client) as stream:
                while (head := read_head(stream)) is not None and self._served(head, stream):
                    """The next one."""
        except _Reset:
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        except (_Close, Broken, OSError, ValueError):
            """A client that went away, or is to see its connection closed."""
        finally:
            self._client.close()
            self._server.left(self)

    def _secure(self, context: ssl.SSLContext) -> None:
        try:
            self._client = context.wrap_socket(self._client, server_side=True)
        except OSError as error:  # a client that does not trust us says so, or is gone before that is read
            with self._server.changed:
                self._server.met.append(Met("tls", "", getattr(error, "reason", "") or ""))
                self._server.changed.notify_all()
            raise _Close from None

    def _served(self, head: Head, stream: BinaryIO) -> bool:
        """Answer a request; return whether another may follow."""
        self._gate()
        asked, step = self._server.begin(head)
        try:
            if "100-continue" in head.get("expect").lower():
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = read_body(stream, head, to_the_end=False)
            _Exchange(self, self._server, head, body, asked, step).run()
        finally:
            self._server.finish()
        return "close" not in head.get("connection").lower() and not head.first.endswith("HTTP/1.0")

    def _gate(self) -> None:
        """Block while the server is frozen."""
        with self._server.changed:
            self._server.changed.wait_for(lambda: self._ended or not self._server.frozen)
        if self._ended:
            raise _Close

    def send(self, data: bytes) -> None:
        if self._server.frozen or self._ended:
            self._gate()
        self._client.sendall(data)

    def stand(self, seconds: float | None) -> None:
        """Send nothing for so long, or until the client has gone or the server is stopped."""
        poll = select.poll()
        poll.register(self._client.fileno(), select.POLLRDHUP)
        end = time.monotonic() + (float("inf") if seconds is None else seconds)
        while (left := end - time.monotonic()) > 0:
            if poll.poll(min(TICK, left) * 1000) or self._ended:
                raise _Close


class _Exchange:
    """One request and its answer, and the changes that a step makes to them."""

    def __init__(
        self,
        connection: _Connection,
        server: Faulty,
        head: Head,
        body: Iterator[bytes],
        asked: Asked,
        step: Step | None,
    ) -> None:
        self._connection = connection
        self._server = server
        self._head = head
        self._body = body
        self._asked = asked
        self._step = step
        self._noted = False

    def met(self) -> None:
        """Record that the fault has occurred, once in an exchange."""
        assert self._step is not None
        if not self._noted:
            self._noted = True
            status = self._step.status if self._step.fault == "status" else 0
            self._server.met.append(Met(self._step.fault, self._head.method, self._head.target, status))

    def run(self) -> None:
        step = self._step
        if step is None:
            self._passed(lambda answer: self._give(answer))
        elif step.received is not None:
            self._broken_off(step, step.received)
        elif step.fault == "refuse":
            self.met()
            self._server.refuse(step.seconds)
            raise _Reset
        elif step.fault == "restart":
            self.met()
            threading.Thread(target=self._server.restart, args=(step.seconds or 0.0,), daemon=True).start()
            self._connection.stand(None)
        elif step.fault in IN_ITS_PLACE:
            self._in_its_place(step)
        elif step.after < 0 and step.carried_out is False:
            self._drain()
            self._silent(step)
        else:
            self._altered(step)

    def _passed(self, give: Any) -> None:
        try:
            with self._server.ask(self._head, self._body) as answer:
                give(answer)
        except ConnectionRefusedError:
            self._give(made(502, "", "text/html", b"<html>nobody is behind this server</html>"))

    def _drain(self) -> None:
        for _ in self._body:
            """Heard, and not passed on."""

    def _broken_off(self, step: Step, count: int) -> None:
        """Break off in the middle of what the client sends."""
        for piece in self._body:
            count -= len(piece)
            if count <= 0:
                break
        else:
            raise _Close
        self._silent(step)

    def _silent(self, step: Step) -> None:
        """Give no answer: reset the connection, close it, or stand."""
        self.met()
        if step.fault == "reset":
            raise _Reset
        if step.fault == "stall":
            self._connection.stand(step.seconds)
        raise _Close

    def _in_its_place(self, step: Step) -> None:
        """Send an answer of our own; the upstream server carries the request out first if the step says so."""
        if step.carried_out:
            with self._server.ask(self._head, self._body) as answer:
                answer.whole()
        else:
            self._drain()
        own = IN_ITS_PLACE[step.fault](step)
        own.bodiless = own.bodiless or self._head.method == "HEAD"
        self.met()
        self._give(own)

    def _altered(self, step: Step) -> None:
        asked_range = self._head.get("range")
        if step.fault == "guest":
            self._head.drop("cookie", "authorization")
            self.met()
        if step.fault == "range-wrong" and asked_range:
            self._head.put("Range", other_range(asked_range, step.by))
        if step.fault in ("range-ignored", "range-500", "resized"):
            self._head.drop("range")

        def give(answer: Answer) -> None:
            redate(answer, step)
            if step.fault == "range-500" and not asked_range:
                self._give(answer)
            elif step.fault in CHANGES:
                if answer.head.status in (200, 206):
                    _change(answer, step, self.met, asked_range)
                    altered = Altered(self._head.target, start_of(answer))
                    self._server.altered.append(altered)
                    answer.body = altered.take(answer.body)
                self._give(answer)
            elif step.fault in ("guest", "range-ignored"):
                if step.fault == "range-ignored" and asked_range and answer.head.status == 200:
                    self.met()
                self._give(answer)
            else:
                self._otherwise(answer, step)

        self._passed(give)

    # -- answers that end otherwise --------------------------------------------------------------------------------

    def _otherwise(self, answer: Answer, step: Step) -> None:
        after, chunked = step.after, answer.length is None
        if step.fault == "slow":
            self.met()
            self._connection.stand(step.seconds or 1.0)
            self._give(answer)
            return
        if after < 0:
            self._silent(step)
        if answer.bodiless:
            self._give(answer)
            return
        if step.fault in ("unframed", "rechunked"):
            self.met()
            self._head_of(answer, "close" if step.fault == "unframed" else "chunked")
            self._pieces(_framed(answer.body, chunked=step.fault == "rechunked"), 0)
            if step.fault == "unframed":
                raise _Close
            return
        if step.fault == "endless":
            self.met()
            self._head_of(answer, "chunked")
            self._pieces(_framed(answer.body, chunked=True, last=False), 0)
            self._pieces(_framed(filler(answer), chunked=True), step.rate)
            return
        if step.fault in ("stall", "drip"):
            self._halting(answer, step, chunked)
            return
        if answer.length is None:
            body = answer.whole()
            answer.body, answer.length = [body], len(body)
        if answer.length <= after:  # nothing to break off
            self._give(answer, chunked=chunked)
            return
        self._broken(answer, step, chunked)

    def _broken(self, answer: Answer, step: Step, chunked: bool) -> None:
        """Send some of the body, and then what the step says."""
        fault, some = step.fault, first_bytes(iter(answer.body), step.after)
        if fault in ("short-length", "short-chunked"):
            answer.replace(b"".join(some))
            self.met()
            self._give(answer, chunked=fault == "short-chunked")
            return
        how = {"cut-chunked": "chunked", "cut-unframed": "close"}.get(fault, "chunked" if chunked else "length")
        self._head_of(answer, how)
        for piece in some:
            self._connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if how == "chunked" else piece)
        self.met()
        if fault == "reset":
            raise _Reset
        raise _Close

    def _halting(self, answer: Answer, step: Step, chunked: bool) -> None:
        """Send a part as if nothing were the matter; then stall before the rest, or drip it."""
        self._head_of(answer, "chunked" if chunked else "length")
        rest = PIECE if step.fault == "stall" else max(1, int(step.rate * TICK))
        for place, piece in cut_at(answer.body, step.after, rest):
            if place >= step.after and (step.fault == "drip" or not self._noted):
                self.met()
                self._connection.stand(len(piece) / step.rate if step.fault == "drip" else step.seconds)
            for part in _framed([piece], chunked=chunked, last=False):
                self._connection.send(part)
        if chunked:
            self._connection.send(LAST_CHUNK)

    def _pieces(self, pieces: Iterator[bytes], rate: int) -> None:
        for piece in pieces:
            step = max(1, int(rate * TICK)) if rate else len(piece)
            for place in range(0, len(piece), step):
                if rate:
                    self._connection.stand(TICK)
                self._connection.send(piece[place : place + step])

    # -- giving ----------------------------------------------------------------------------------------------------

    def _give(self, answer: Answer, chunked: bool | None = None) -> None:
        """Send the whole answer."""
        if answer.bodiless:
            self._head_of(answer, "as it is")
            return
        chunked = answer.length is None if chunked is None else chunked
        if chunked and self._head.first.endswith("HTTP/1.0"):
            self._head_of(answer, "close")
            chunked = False
        else:
            self._head_of(answer, "chunked" if chunked else "length")
        sent = 0
        for piece in _framed(answer.body, chunked=chunked):
            self._connection.send(piece)
            sent += len(piece)
        if not chunked and sent != answer.length:
            raise _Close  # more was promised

    def _head_of(self, answer: Answer, how: str) -> None:
        """Send the head, for a body that is framed this way."""
        head = answer.head
        if how in ("chunked", "close"):
            head.drop("content-length")
        if how in ("length", "close"):
            head.drop("transfer-encoding")
        if how == "chunked":
            head.put("Transfer-Encoding", "chunked")
        if how == "close":
            head.put("Connection", "close")
        self._asked.status = head.status
        self._connection.send(head.encode())


def _change(answer: Answer, step: Step, met: Any, asked_range: str) -> None:
    """Apply what a step does to the bytes or their headers."""
    if answer.bodiless and step.fault in ("resized", "gzip"):
        if answer.length is not None:
            answer.head.put("Content-Length", max(0, answer.length + step.by))
            met()
        return
    CHANGES[step.fault](answer, step, met)
    if step.fault == "resized" and (found := RANGE.match(asked_range)):
        body = answer.whole()
        first, last = int(found[1]), min(int(found[2] or len(body) - 1), len(body) - 1)
        answer.replace(body[first : last + 1])
        answer.head.first = "HTTP/1.1 206 Partial Content"
        answer.head.put("Content-Range", f"bytes {first}-{last}/{len(body)}")


def _framed(body: Iterable[bytes], *, chunked: bool, last: bool = True) -> Iterator[bytes]:
    """Yield a body as it is sent."""
    for piece in body:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
    if chunked and last:
        yield LAST_CHUNK


def _stream(link: socket.socket) -> BinaryIO:
    return cast(BinaryIO, link.makefile("rb", PIECE))


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@contextmanager
def faulty(
    upstream: str, steps: Steps = (), *, seed: int = 0, certificate: Certificate | None = None
) -> Iterator[Faulty]:
    """Run a fault server in front of this URL; `certificate` is file and key. It ends with all its connections."""
    server = Faulty(upstream, steps, seed, certificate)
    try:
        yield server
    finally:
        server.close()
