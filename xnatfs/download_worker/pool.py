"""The processes that carry big files, as a transport of httpx: it is asked like any other, and replies like any other.

But the body of its reply is also `Writable`, and the reply's extension "writable": it can be told to go into a file.
A process is started when a request finds none idle, serves one request at a time, keeps its connection, and ends when
it was idle for long, or when the pool is closed. One that does not answer in time, or is in the middle of a body that
nobody wants, is made to stop or is killed, and awaited: nothing is written into a file after the end of the iteration
that writes there.
"""

import array
import contextlib
import errno
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from xnatfs.common.clock import Sleeps
from xnatfs.common.tasks import background

log = logging.getLogger(__name__)

# Idle processes are kept for so long, in seconds: the next volume of a session comes at once, a viewer's after a while.
IDLE = 30.0
# Beyond the timeouts that the process keeps itself: then it is stuck.
GRACE = 10.0
# How long one that was told to stop may take: it looks up between two pieces, and writes one to a busy disk.
STOP = 5.0
# The same before there is a body: then it writes nothing, and looks up at once unless it hangs.
STOP_EARLY = 1.0
# Read at a time of the messages of a process.
LINE = 64 * 1024
# What of a body is taken through the process, where it is not written to a file: error pages.
TAKE = 64 * 1024

# A line is lost if nothing that is sent over it is acknowledged for so long, in seconds. The other end's kernel does
# that, however slow its server is; on a line that fell asleep with this machine, or that a firewall has forgotten,
# nobody does.
UNACKNOWLEDGED = 10.0

ERRORS: dict[str, type[httpx.TransportError]] = {
    "connect": httpx.ConnectError,
    "connect timeout": httpx.ConnectTimeout,
    "tls": httpx.ConnectError,
    "read": httpx.ReadError,
    "read timeout": httpx.ReadTimeout,
    "protocol": httpx.RemoteProtocolError,
}


def unacknowledged(timeout: float) -> int:
    """For TCP_USER_TIMEOUT, in milliseconds: there must be time for a second try on another connection."""
    return int(1000 * min(UNACKNOWLEDGED, timeout / 2))


class ProcessLost(httpx.ReadError):
    """A process has ended, or none could be started. Nothing is said of the server."""


class _Process:
    """One process and the socket to it."""

    def __init__(self, process: trio.Process, link: trio.socket.SocketType) -> None:
        self._process = process
        self._link = link
        self._lines = b""
        self.idle_since = 0.0
        self.ended = False
        self._owed = 0  # bytes of a body that follow what was said last

    async def ask(self, message: Mapping[str, Any], within: float, descriptor: int | None = None) -> dict[str, Any]:
        """Send a message and wait for what is said to it. Raises httpx.TransportError, OSError of the file."""
        await self.tell(message, descriptor)
        return await self.hear(within)

    async def tell(self, message: Mapping[str, Any], descriptor: int | None = None) -> None:
        beside = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        line = json.dumps(message).encode() + b"\n"
        try:
            sent = await self._link.sendmsg([line], beside)
            while sent < len(line):
                sent += await self._link.send(line[sent:])
        except OSError as error:
            await self.end()
            raise ProcessLost("its download process has ended") from error

    async def hear(self, within: float) -> dict[str, Any]:
        """Return the next message of the process."""
        with trio.move_on_after(within):
            while b"\n" not in self._lines:
                self._lines += await self._more()
            line, _, self._lines = self._lines.partition(b"\n")
            message: dict[str, Any] = json.loads(line)
            if "error" in message:
                raise _error(message)
            self._owed = message.get("data", 0)
            return message
        await self.end()
        raise httpx.ReadTimeout("its download process does not answer")

    async def data(self) -> bytes:
        """Return the bytes that follow a message with "data"."""
        while len(self._lines) < self._owed:
            self._lines += await self._more()
        data, self._lines, self._owed = self._lines[: self._owed], self._lines[self._owed :], 0
        return data

    async def stop(self, within: float) -> None:
        """Have it leave the body, or end it."""
        with trio.CancelScope(shield=True), trio.move_on_after(within):
            try:
                await self.tell({"stop": True})
                while not self.ended:
                    await self.data()
                    with contextlib.suppress(httpx.TransportError, OSError):  # of what is left, or of its own end
                        if "stopped" in await self.hear(within):
                            return
            except (httpx.TransportError, ValueError) as error:
                log.debug("a download process does not stop: %r", error)
        await self.end()

    async def end(self) -> None:
        """Kill it, and see to it that it is gone."""
        if self.ended:
            return
        self.ended = True
        with trio.CancelScope(shield=True):
            self._link.close()
            self._process.kill()
            await self._process.wait()

    async def _more(self) -> bytes:
        try:
            data: bytes = await self._link.recv(LINE)
        except OSError:
            data = b""
        if not data:
            await self.end()
            raise ProcessLost("its download process has ended")
        return data


class Writable(httpx.AsyncByteStream):
    """The body of a reply. `length` bytes are to come, None if that is not known: then it can only be iterated."""

    def __init__(self, workers: "Workers", process: _Process, length: int | None, within: float) -> None:
        self._workers = workers
        self._process: _Process | None = process
        self._within = within
        self.length = length

    def __aiter__(self) -> "Writable":  # no generator: nobody has to close it
        return self

    async def __anext__(self) -> bytes:
        assert self._process is not None
        if not (await self._process.ask({"take": TAKE}, self._within))["data"]:
            raise StopAsyncIteration
        return await self._process.data()

    def write(self, descriptor: int, offset: int, length: int) -> AsyncGenerator[int]:
        """Have the next `length` bytes written to a file; yields how many more are there, as they come.

        Raises httpx.TransportError, and OSError of the file: then the same bytes can be told to go there again.
        When it is left half-way the rest of the body is given up.
        """
        return self._carried({"write": length, "at": offset}, length, descriptor)

    def skip(self, length: int) -> AsyncGenerator[int]:
        """Have the next bytes thrown away."""
        return self._carried({"skip": length}, length, None)

    async def aclose(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await self._workers.release(process, STOP)

    async def _carried(self, message: Mapping[str, Any], length: int, descriptor: int | None) -> AsyncGenerator[int]:
        assert self._process is not None
        await self._process.tell(message, descriptor)
        done = False
        try:
            while length:
                count = (await self._process.hear(self._within))["wrote"]
                length -= count
                done = not length
                yield count
            done = True
        except OSError:
            done = True  # nothing is written until it is told to again
            raise
        finally:
            if not done:
                with trio.CancelScope(shield=True):
                    await self.aclose()


class Workers(httpx.AsyncBaseTransport):
    """The processes of one server."""

    def __init__(self, ca_bundle: str, verify: bool) -> None:
        self._trust = {"ca_bundle": os.path.abspath(ca_bundle) if ca_bundle else "", "verify": verify}
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False
        self._sleeps = Sleeps()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeout = request.extensions["timeout"]
        secure = request.url.scheme == "https"
        message = {
            "get": request.url.raw_path.decode("ascii"),
            "host": request.url.raw_host.decode("ascii"),
            "port": request.url.port or (443 if secure else 80),
            "tls": self._trust if secure else None,
            "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw],
            "connect": timeout["connect"],
            "read": timeout["read"],
            "unacknowledged": unacknowledged(timeout["read"]),
        }
        within = timeout["read"] + GRACE
        if self._sleeps.is_over():  # the other ends of their connections are gone
            await self._end(list(self._idle))
        return await self._replied(message, timeout["connect"] + within, within)

    async def _replied(self, message: Mapping[str, Any], first: float, within: float) -> httpx.Response:
        """Return the answer of a process. An idle one may have died: then another one is asked."""
        while True:
            reused = bool(self._idle)
            process, response = self._idle.pop() if reused else await self._started(), None
            try:
                head = await process.ask(message, first)
                # Bytes as they came: names of files are not always ASCII.
                headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head["headers"]]
                body = Writable(self, process, head["length"], within)
                response = httpx.Response(head["status"], headers=headers, stream=body, extensions={"writable": body})
                return response
            except ProcessLost:
                if not reused:
                    raise
            finally:
                if response is None:
                    await self.release(process, STOP_EARLY)

    async def release(self, process: _Process, within: float) -> None:
        """Give the process up for this request; it has so long to leave it."""
        if not process.ended:
            await process.stop(within)
        if process.ended or self._closed:
            await process.end()
            self._all.discard(process)
            return
        process.idle_since = trio.current_time()
        self._idle.append(process)

    async def aclose(self) -> None:
        """End all of them."""
        self._closed = True
        for process in list(self._all):
            await process.end()
        self._all.clear()

    async def end_idle(self) -> None:
        """End those that were idle for long; runs for ever."""
        while True:
            await trio.sleep(IDLE / 2)
            await self._end([each for each in self._idle if trio.current_time() - each.idle_since > IDLE])

    async def _end(self, old: Sequence[_Process]) -> None:
        """End processes that are idle."""
        self._idle = [process for process in self._idle if process not in old]
        for process in old:
            await process.end()
            self._all.discard(process)

    async def _started(self) -> _Process:
        command = [sys.executable, "-P", "-m", "xnatfs.download_worker.process"]
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
async def open_workers(ca_bundle: str, verify: bool) -> AsyncIterator[Workers]:
    """Open the pool; its processes end with it."""
    workers = Workers(ca_bundle, verify)
    async with background() as nursery:
        nursery.start_soon(workers.end_idle)
        try:
            yield workers
        finally:
            with trio.CancelScope(shield=True):
                await workers.aclose()


def _error(message: Mapping[str, Any]) -> Exception:
    """Return the exception for what a process reports."""
    cause = OSError(message["errno"], os.strerror(message["errno"])) if message["errno"] else None
    if message["error"] == "file":
        return cause or OSError(errno.EIO, message["text"])
    error = ERRORS[message["error"]](message["text"])
    error.__cause__ = cause
    return error
