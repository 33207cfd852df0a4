"""Run the processes that receive big files, as a transport of httpx: requests and replies are like any other's.

The body of a reply is also a `FileBody`, and the reply's extension "file_body": its bytes can be written into a file.
A process is started when a request finds none idle, serves one request at a time, keeps its connection, and ends when
it has been idle for long, or when the pool is closed. One that does not answer in time, or whose body is abandoned, is
killed and awaited: nothing is written into a file after the end of the iteration that writes there.
"""

import array
import contextlib
import errno
import json
import logging
import os
import socket
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from xnatfs.common import program
from xnatfs.common.clock import now
from xnatfs.common.errors import first_error
from xnatfs.common.tasks import background

log = logging.getLogger(__name__)

# Seconds that an idle process is kept: the next volume of a session is requested at once, a viewer's after a while.
IDLE_PROCESS_SECONDS = 30.0
# Seconds beyond the timeouts that the process observes itself: then it is stuck.
GRACE_SECONDS = 10.0
# Bytes of the messages of a process received at a time.
LINK_BUFFER_BYTES = 64 * 1024

# A line is lost if nothing that is sent over it is acknowledged for this many seconds. The other end's kernel does so,
# however slow its server is; but not on a line that fell asleep with this machine, or that a firewall has forgotten.
UNACKNOWLEDGED_SECONDS = 10.0

TRANSPORT_ERRORS: dict[str, type[httpx.TransportError]] = {
    "connect": httpx.ConnectError,
    "connect timeout": httpx.ConnectTimeout,
    "tls": httpx.ConnectError,
    "read": httpx.ReadError,
    "read timeout": httpx.ReadTimeout,
    "protocol": httpx.RemoteProtocolError,
}


def tcp_options(timeout: float) -> list[tuple[int, int, int]]:
    """Return the options of a connection: TCP_USER_TIMEOUT, in milliseconds, where the system has it.

    There must be time for a second attempt on another connection.
    """
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return []
    return [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * min(UNACKNOWLEDGED_SECONDS, timeout / 2)))]


class ProcessLost(httpx.ReadError):
    """A process has ended, or none could be started. It says nothing about the server."""


class _Process:
    """One process and the socket to it."""

    def __init__(self, process: trio.Process, link: trio.socket.SocketType) -> None:
        self._process = process
        self._link = link
        self._received = b""
        self.idle_since = 0.0
        self.ended = False

    async def send(self, message: Mapping[str, Any], descriptor: int | None = None) -> None:
        """Send a message. Raises ProcessLost."""
        beside = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        line = json.dumps(message).encode() + b"\n"
        try:
            sent = await self._link.sendmsg([line], beside)
            while sent < len(line):
                sent += await self._link.send(line[sent:])
        except OSError as error:
            await self.end()
            raise ProcessLost("its download process has ended") from error

    async def receive(self, within: float) -> dict[str, Any]:
        """Receive the next message. Raises the httpx.TransportError or the OSError of the file that it reports."""
        with trio.move_on_after(within):
            while b"\n" not in self._received:
                await self._receive_more()
            line, _, self._received = self._received.partition(b"\n")
            message: dict[str, Any] = json.loads(line)
            if "error" in message:
                raise _error(message)
            return message
        await self.end()
        raise httpx.ReadTimeout("its download process does not answer")

    async def receive_data(self, length: int) -> bytes:
        """Receive the bytes that follow a message with "data"."""
        while len(self._received) < length:
            await self._receive_more()
        data, self._received = self._received[:length], self._received[length:]
        return data

    async def _receive_more(self) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = await self._link.recv(LINK_BUFFER_BYTES)
        if not data:
            await self.end()
            raise ProcessLost("its download process has ended")
        self._received += data

    async def end(self) -> None:
        """Kill the process, and wait until it is gone."""
        if self.ended:
            return
        self.ended = True
        with trio.CancelScope(shield=True):
            self._link.close()
            self._process.kill()
            await self._process.wait()


class FileBody(httpx.AsyncByteStream):
    """The body of a reply: to be iterated or, if its `length` in bytes is known (not None), to be written to files."""

    def __init__(self, pool: "ProcessPool", process: _Process, length: int | None, within: float) -> None:
        self._pool = pool
        self._process: _Process | None = process
        self._within = within
        self._is_received = length == 0
        self._left = length or 0
        self.length = length

    def __aiter__(self) -> "FileBody":  # no generator, which would have to be closed
        return self

    async def __anext__(self) -> bytes:
        assert self._process is not None
        await self._process.send({"read": True})
        length = (await self._process.receive(self._within))["data"]
        if not length:
            self._is_received = True
            raise StopAsyncIteration
        return await self._process.receive_data(length)

    async def write(self, descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
        """Write the next bytes to a file.

        If the iteration is abandoned, so is the rest of the body.

        Args:
            descriptor: The file; None skips the bytes.
            offset: Where in the file to write, in bytes.
            length: How many bytes to write or skip.

        Yields:
            The number of bytes of each part that was written.

        Raises:
            httpx.TransportError: The connection or the process failed.
            OSError: The file failed; the same bytes can be written again.
        """
        assert self._process is not None
        message = {"skip": length} if descriptor is None else {"write": length, "at": offset}
        resumable = False
        try:
            await self._process.send(message, descriptor)
            while length:
                count = (await self._process.receive(self._within))["wrote"]
                length, self._left = length - count, self._left - count
                self._is_received = not self._left
                resumable = not length
                yield count
            resumable = True
        except OSError:
            resumable = True  # the process writes no more before the next message
            raise
        finally:
            if not resumable:
                with trio.CancelScope(shield=True):
                    await self.aclose()

    async def aclose(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await self._pool.release(process, reusable=self._is_received)


class ProcessPool(httpx.AsyncBaseTransport):
    """The processes for the big files of one server."""

    def __init__(self, ca_bundle: str, verify: bool) -> None:
        self._trust = {"ca_bundle": os.path.abspath(ca_bundle) if ca_bundle else "", "verify": verify}
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self._end_expired()
        within = request.extensions["timeout"]["read"] + GRACE_SECONDS
        while True:
            is_reused = bool(self._idle)
            process, body = self._idle.pop() if is_reused else await self._started(), None
            try:
                head = await self._request(process, request, within)
                body = FileBody(self, process, head["length"], within)
                # As bytes: names of files are not always ASCII.
                headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head["headers"]]
                return httpx.Response(head["status"], headers=headers, stream=body, extensions={"file_body": body})
            except ProcessLost:  # an idle one may have died
                if not is_reused:
                    raise
            finally:
                if body is None:
                    await self.release(process, reusable=False)

    async def _request(self, process: _Process, request: httpx.Request, within: float) -> dict[str, Any]:
        """Have a process send a request; return the head of the reply."""
        url, timeout = request.url, request.extensions["timeout"]
        host, secure = url.raw_host.decode("ascii"), url.scheme == "https"
        message = {
            "get": url.raw_path.decode("ascii"),
            "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw],
            "tls": {"host": host, **self._trust} if secure else None,
            "connect": timeout["connect"],
            "read": timeout["read"],
        }
        await process.send(message)
        head = await process.receive(within)
        if "connect" in head:
            link = await connect(host, url.port or (443 if secure else 80), timeout)
            with link.socket:
                await process.send(message, link.socket.fileno())
            head = await process.receive(timeout["connect"] + within)
        return head

    async def release(self, process: _Process, *, reusable: bool) -> None:
        """Keep a process for the next request, or end it."""
        if reusable and not process.ended and not self._closed:
            process.idle_since = now()
            self._idle.append(process)
            return
        await process.end()
        self._all.discard(process)

    async def aclose(self) -> None:
        """End all processes."""
        self._closed = True
        for process in list(self._all):
            await process.end()
        self._all.clear()

    async def end_idle(self) -> None:
        """End processes that have been idle for long; runs for ever."""
        while True:
            await trio.sleep(IDLE_PROCESS_SECONDS / 2)
            await self._end_expired()

    async def _end_expired(self) -> None:
        """End processes that have been idle for long, or since before the machine slept: their connections are gone."""
        expired = [process for process in self._idle if process.idle_since < now() - IDLE_PROCESS_SECONDS]
        self._idle = [process for process in self._idle if process not in expired]
        for process in expired:
            await process.end()
            self._all.discard(process)

    async def _started(self) -> _Process:
        command = program.run_module("xnatfs.download_worker.process")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("XNAT_")}
        with contextlib.ExitStack() as unless_started:
            try:
                ours, theirs = socket.socketpair()
                unless_started.enter_context(ours)
                with theirs:
                    child = await trio.lowlevel.open_process(
                        command,
                        stdin=theirs.fileno(),
                        stdout=subprocess.DEVNULL,
                        env=environment,
                        start_new_session=True,
                    )
            except OSError as error:
                raise ProcessLost(f"none can be started: {error.strerror}") from error
            unless_started.pop_all()
        process = _Process(child, trio.socket.from_stdlib_socket(ours))
        self._all.add(process)
        return process


@asynccontextmanager
async def open_pool(ca_bundle: str, verify: bool) -> AsyncIterator[ProcessPool]:
    """Open a pool; its processes end with it."""
    pool = ProcessPool(ca_bundle, verify)
    async with background() as nursery:
        nursery.start_soon(pool.end_idle)
        try:
            yield pool
        finally:
            with trio.CancelScope(shield=True):
                await pool.aclose()


async def connect(host: str, port: int, timeouts: Mapping[str, float]) -> trio.SocketStream:
    """Connect to the first address of a host that answers (RFC 8305), within the timeouts of an httpx request.

    Raises httpx.ConnectError, httpx.ConnectTimeout.
    """
    try:
        with trio.fail_after(timeouts["connect"]):
            link = await trio.open_tcp_stream(host, port)
    except trio.TooSlowError as error:
        raise httpx.ConnectTimeout("timed out") from error
    except OSError as error:
        cause = first_error(error.__cause__ or error)
        raise httpx.ConnectError(str(cause)) from cause
    for option in tcp_options(timeouts["read"]):
        link.setsockopt(*option)
    return link


def _error(message: Mapping[str, Any]) -> Exception:
    """Return the exception for an error that a process reports."""
    cause = OSError(message["errno"], os.strerror(message["errno"])) if message["errno"] else None
    if message["error"] == "file":
        return cause or OSError(errno.EIO, message["text"])
    error = TRANSPORT_ERRORS[message["error"]](message["text"])
    error.__cause__ = cause
    return error
