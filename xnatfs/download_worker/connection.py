"""A connection to a server, and the reply that comes over it. HTTP is h11's, as it is httpx's.

The socket does not block: whoever waits for the server looks at the daemon, too, which may want no more of it.
"""

import errno
import json
import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import h11

from xnatfs.common.tls import tls_context
from xnatfs.download_worker.splice import Pipe

# How a kernel, a sandbox or a file system says that it does not splice.
NO_PIPES = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
# Of a line, and of a reply's head.
LINE = 64 * 1024
# Seconds until the next address of a host is tried beside those before, which may swallow what is sent to them: what
# RFC 8305 recommends, and trio takes.
STAGGER = 0.25


# The authorities take 40 ms to read: once in the life of a process.
_context = cache(tls_context)


class Stopped(Exception):
    """The daemon wants no more of this body."""


class NoPipes(Exception):
    """The kernel, or the file system of the cache, does not splice."""


class Failed(Exception):
    """The connection has: what kind of failure it is, and what the system says."""

    def __init__(self, kind: str, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.number = number


class Connection:
    """A connection to a server, and the reply that comes over it."""

    def __init__(self, daemon: socket.socket) -> None:
        self._daemon = daemon
        self._socket: socket.socket | None = None
        self._where: tuple[Any, ...] = ()
        self._http = h11.Connection(h11.CLIENT)
        self._timeout = 0.0
        self._first = b""  # what came of the body together with the head
        self._reusable = False
        self.left = 0  # bytes of the body that are still to come, where its length is known
        self.length: int | None = None

    def get(self, message: dict[str, Any]) -> dict[str, Any]:
        """Ask; the head of the reply."""
        self._timeout = message["read"]
        self.left, self.length, self._first, self._reusable = 0, None, b"", False  # until there is another answer
        where = (message["host"], message["port"], json.dumps(message["tls"]))
        if self._socket is None or where != self._where or not self._idle():
            self.close()
            self._socket = self._connected(message)
            self._where = where
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=LINE)
        request = h11.Request(method="GET", target=message["get"], headers=message["headers"])
        self._send(self._http.send(request) + self._http.send(h11.EndOfMessage()))
        return self._head()

    def take(self, most: int) -> bytes:
        """Return some of the body; b"" at its end."""
        if self.length is not None:
            buffer = bytearray(min(most, self.left))
            return bytes(buffer[: self.into(memoryview(buffer))]) if buffer else b""
        while True:
            event = self._event()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""

    def into(self, buffer: memoryview, *, wait: bool = True) -> int:
        """Read some of the body, at most as much as is left of it and as fits; as much as is there.

        If that is nothing, some is waited for, or 0 says so. Raises Failed where the body is at its end.
        """
        room = min(len(buffer), self.left)
        got = min(len(self._first), room)
        buffer[:got] = self._first[:got]
        self._first = self._first[got:]
        try:
            while got < room:
                count = self._come(partial(self._received, buffer[got:room]), wait=wait and not got)
                if not count:
                    break
                got += count
        except Failed:
            if not got:  # else what came before that is used first: the next call fails again
                raise
        self.left -= got
        return got

    @property
    def splices(self) -> bool:
        """Return whether what comes next can go by a pipe: nothing is decrypted, and nothing has come already."""
        return not self._first and not isinstance(self._socket, ssl.SSLSocket)

    def into_pipe(self, pipe: Pipe, most: int, *, wait: bool) -> None:
        """Do the same into an empty pipe. Raises NoPipes."""
        self.left -= self._come(partial(self._spliced, pipe, min(most, self.left)), wait=wait)

    def end(self) -> None:
        """End a body that is not wanted any more, or has come."""
        if self.left or self.length is None or not self._reusable:
            self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _idle(self) -> bool:
        """Return whether the connection is as it was left; a server that closes it makes it readable."""
        assert self._socket is not None
        return not readable(self._socket)

    def _connected(self, message: dict[str, Any]) -> socket.socket:
        host, trust = message["host"], message["tls"]
        try:
            plain = connect(host, message["port"], message["connect"])
            plain.settimeout(message["connect"])  # of what TLS has to say
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, message["unacknowledged"])
            if trust is None:
                plain.setblocking(False)
                return plain
            context = _context(trust["ca_bundle"], trust["verify"])
            secure = context.wrap_socket(plain, server_hostname=host)
        except TimeoutError:
            raise Failed("connect timeout", "timed out") from None
        except ssl.SSLError as error:
            raise Failed("tls", str(error)) from None
        except OSError as error:
            raise Failed("connect", error.strerror or str(error), error.errno) from None
        secure.setblocking(False)
        return secure

    def _send(self, data: bytes) -> None:
        assert self._socket is not None
        self._socket.settimeout(self._timeout)
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise Failed("read timeout", "timed out") from None
        except OSError as error:
            raise Failed("read", error.strerror or str(error), error.errno) from None
        self._socket.setblocking(False)

    def _head(self) -> dict[str, Any]:
        event = self._event()
        while isinstance(event, h11.InformationalResponse):
            event = self._event()
        assert isinstance(event, h11.Response)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
        self.length = _length(event)
        self._reusable = self._http.their_state is not h11.MUST_CLOSE and not _closes(event)
        if self.length is not None:
            self.left = self.length
            self._first = bytes(self._http.trailing_data[0])[: self.left]
        return {"status": event.status_code, "headers": headers, "length": self.length}

    def _event(self) -> Any:
        """Return the next of h11's events."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                buffer = bytearray(LINE)
                self._http.receive_data(bytes(buffer[: self._some(partial(self._received, memoryview(buffer)))]))
        except h11.RemoteProtocolError as error:
            raise Failed("protocol", str(error)) from None
        if isinstance(event, h11.ConnectionClosed):
            raise Failed("protocol", "the server closed the connection without an answer")
        return event

    def _come(self, take: Callable[[], int], *, wait: bool) -> int:
        """Take some of the body; 0 where there is none and it is not waited for. Raises Failed at the end of all."""
        if not self.left:
            raise Failed("protocol", "the body has no more bytes")
        count = self._some(take) if wait else self._tried(take)
        if count == 0:
            raise Failed("protocol", f"the server closed the connection, {self.left} bytes early")
        return count or 0

    def _some(self, take: Callable[[], int]) -> int:
        """Bytes that have come, or that are waited for; 0 at the end of the connection."""
        assert self._socket is not None
        while (count := self._tried(take)) is None:
            ready, _, _ = select.select([self._socket, self._daemon], [], [], self._timeout)
            if self._daemon in ready:
                raise Stopped
            if not ready:
                raise Failed("read timeout", "timed out")
        return count

    def _tried(self, take: Callable[[], int]) -> int | None:
        """Bytes that have come; None where there are none yet."""
        try:
            return take()
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLError as error:
            raise Failed("read", str(error)) from None
        except OSError as error:
            raise Failed("read", error.strerror or str(error), error.errno) from None

    def _spliced(self, pipe: Pipe, most: int) -> int:
        assert self._socket is not None
        try:
            return pipe.fill(self._socket.fileno(), most)
        except OSError as error:
            if error.errno in NO_PIPES:
                raise NoPipes from None
            raise

    def _received(self, buffer: memoryview) -> int:
        assert self._socket is not None
        return self._socket.recv_into(buffer)


def connect(host: str, port: int, within: float) -> socket.socket:
    """Connect to the first address of a host that answers, trying the next one after STAGGER or a failure.

    Raises the OSError of the last failure, or TimeoutError after `within` seconds.
    """
    until = time.monotonic() + within
    addresses = _alternating(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    failure: OSError = OSError(errno.EADDRNOTAVAIL, "the host has no address")
    begun: list[socket.socket] = []
    try:
        while addresses or begun:
            if addresses:
                try:
                    begun.append(_begun(*addresses.pop(0)))
                except OSError as error:
                    failure = error
                    continue
            left = until - time.monotonic()
            _, ready, _ = select.select([], begun, [], max(0, min(left, STAGGER) if addresses else left))
            for link in ready:
                begun.remove(link)
                if not (number := link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    return link
                link.close()
                failure = OSError(number, os.strerror(number))
            if time.monotonic() >= until:
                raise TimeoutError
        raise failure
    finally:
        for link in begun:
            link.close()


def _alternating(found: list[Any]) -> list[tuple[int, Any]]:
    """Return family and address of each, the first one of another family in the second place (RFC 6555, 5.4)."""
    addresses = [(family, address) for family, _, _, _, address in found]
    for place, (family, _) in enumerate(addresses):
        if family != addresses[0][0]:
            addresses.insert(1, addresses.pop(place))
            break
    return addresses


def _begun(family: int, address: Any) -> socket.socket:
    link = socket.socket(family, socket.SOCK_STREAM)
    link.setblocking(False)
    try:
        link.connect(address)
    except BlockingIOError:
        pass
    except BaseException:
        link.close()
        raise
    return link


def readable(link: socket.socket) -> bool:
    return bool(select.select([link], [], [], 0)[0])


def _length(reply: h11.Response) -> int | None:
    """Return the length of a body in bytes; None where nothing states it."""
    if reply.status_code in (204, 304):
        return 0
    found = {name: value for name, value in reply.headers}
    return int(found[b"content-length"]) if b"content-length" in found and b"transfer-encoding" not in found else None


def _closes(reply: h11.Response) -> bool:
    return reply.http_version < b"1.1" or any(
        name == b"connection" and b"close" in value.lower() for name, value in reply.headers
    )
