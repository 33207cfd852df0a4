"""Request files over a kept connection, with HTTP by h11, as in httpx.

A process that waits for its server has nothing else to do: the daemon kills it where a body is abandoned.
"""

import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import h11

from xnatfs.common.tls import tls_context

# The largest head of a reply, and the most bytes received at a time of a body whose length is not known.
MAX_HEAD_BYTES = 64 * 1024

# Reading the certificate authorities takes 40 ms: once in the life of a process.
_context = cache(tls_context)


class ConnectionFailed(Exception):
    """The connection or the file failed.

    Args:
        kind: A key of `pool.TRANSPORT_ERRORS`, or "file".
        text: The system's or the library's text.
        number: The errno, or None.
    """

    def __init__(self, kind: str, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.number = number

    @classmethod
    def of_system(cls, kind: str, error: OSError) -> "ConnectionFailed":
        return cls(kind, error.strerror or str(error), error.errno)


class Connection:
    """A connection to a server, and the reply that arrives over it.

    A body is either read by `read`, or, if its length is known, received by `receive`.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._timeout = 0.0  # seconds
        self._keep_alive = False
        self._early = b""  # bytes of the body that arrived together with the head
        self.left: int | None = None  # bytes of the body still to be received, if its length is known

    def use(self, connected: socket.socket, message: dict[str, Any]) -> None:
        """Use a new connection, over TLS if the request says so. Raises ConnectionFailed."""
        self.close()
        self._socket = connected
        if trust := message["tls"]:
            connected.settimeout(message["connect"])
            try:
                context = _context(trust["ca_bundle"], trust["verify"])
                self._socket = context.wrap_socket(connected, server_hostname=trust["host"])
            except TimeoutError:
                raise ConnectionFailed("connect timeout", "timed out") from None
            except ssl.SSLError as error:
                raise ConnectionFailed("tls", str(error)) from None
            except OSError as error:
                raise ConnectionFailed.of_system("connect", error) from None

    def get(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request, and return the head of the reply; see `process` for both. Raises ConnectionFailed."""
        assert self._socket is not None
        self._timeout = message["read"]
        self._socket.settimeout(self._timeout)
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._keep_alive = False  # until there is another reply
        request = h11.Request(method="GET", target=message["get"], headers=message["headers"])
        with _failures():
            self._socket.sendall(self._http.send(request) + self._http.send(h11.EndOfMessage()))
        reply = self._event()
        while isinstance(reply, h11.InformationalResponse):
            reply = self._event()
        assert isinstance(reply, h11.Response)
        self._keep_alive = _keeps_alive(reply)
        self.left = length = _length(reply)
        self._early = bytes(self._http.trailing_data[0])[:length] if length is not None else b""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in reply.headers]
        return {"status": reply.status_code, "headers": headers, "length": length}

    def read(self) -> bytes:
        """Read a piece of a body of any framing; b"" at its end. Raises ConnectionFailed."""
        event = self._event()
        if isinstance(event, h11.EndOfMessage):
            self.left, self._early = 0, b""
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    def receive(self, buffer: memoryview) -> int:
        """Receive bytes of a body of known length: wait for the first ones, and take what is there beyond them.

        Returns:
            The number of bytes, at least 1.

        Raises:
            ConnectionFailed: Nothing was received. A failure after the first bytes is reported by the next call.
        """
        assert self._socket is not None
        assert self.left is not None
        self._socket.settimeout(0)
        if not self.left:
            raise ConnectionFailed("protocol", "the body has no more bytes")
        room = min(len(buffer), self.left)
        count = min(len(self._early), room)
        buffer[:count], self._early = self._early[:count], self._early[count:]
        try:
            while count < room and (received := self._receive_into(buffer[count:room], wait=not count)):
                count += received
        except ConnectionFailed:
            if not count:
                raise
        self.left -= count
        return count

    def _receive_into(self, buffer: memoryview, *, wait: bool) -> int:
        """Receive some bytes; 0 if there are none and they are not waited for."""
        assert self._socket is not None
        with _failures():
            while True:
                try:
                    if received := self._socket.recv_into(buffer):
                        return received
                    raise ConnectionFailed("protocol", f"the server closed the connection, {self.left} bytes early")
                except (BlockingIOError, ssl.SSLWantReadError):
                    if not wait:
                        return 0
                    if not select.select([self._socket], [], [], self._timeout)[0]:
                        raise TimeoutError("timed out") from None

    def is_ready(self) -> bool:
        """Return whether bytes have arrived, or the connection has ended."""
        assert self._socket is not None
        pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()
        return bool(self._early or pending or select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def is_idle(self) -> bool:
        """Return whether the next request can be sent: the reply was received, and the server has not hung up since."""
        return self._socket is not None and self._keep_alive and self.left == 0 and not self.is_ready()

    def _event(self) -> Any:
        """Return the next event of h11."""
        assert self._socket is not None
        with _failures():
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(self._socket.recv(MAX_HEAD_BYTES))
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionFailed("protocol", "the server closed the connection without an answer")
        return event


@contextmanager
def _failures() -> Iterator[None]:
    """Map the errors of a connected socket, and of what arrives over it, to ConnectionFailed."""
    try:
        yield
    except h11.RemoteProtocolError as error:
        raise ConnectionFailed("protocol", str(error)) from None
    except TimeoutError as error:
        # The socket's own timeout has no number; ETIMEDOUT is the kernel's, of a connection that is lost.
        kind = "read" if error.errno else "read timeout"
        raise ConnectionFailed.of_system(kind, error) from None
    except ssl.SSLError as error:
        raise ConnectionFailed("read", str(error)) from None
    except OSError as error:
        raise ConnectionFailed.of_system("read", error) from None


def _length(reply: h11.Response) -> int | None:
    """Return the length of a body in bytes; None where nothing states it."""
    if reply.status_code in (204, 304):
        return 0
    found = {name: value for name, value in reply.headers}
    return int(found[b"content-length"]) if b"content-length" in found and b"transfer-encoding" not in found else None


def _keeps_alive(reply: h11.Response) -> bool:
    closes = any(name == b"connection" and b"close" in value.lower() for name, value in reply.headers)
    return reply.http_version >= b"1.1" and not closes
