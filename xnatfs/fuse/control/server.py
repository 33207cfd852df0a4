"""Serve requests on the control socket of a mount, beside those of the kernel.

Invariants:
- Only processes of the user who mounted are served: the socket is 0600 in a directory of 0700, and the uid of each
  peer is compared as well.
- A client cannot harm the mount. A request is of bounded length and has to arrive in time, a reply has to be read in
  time, the number of connections is bounded, and no exception leaves a connection.
- A call that reports progress sends a line of it twice a second, and is cancelled if its client has left.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from xnatfs.common.errors import Denied, UsageError, XnatError, first_error
from xnatfs.common.tasks import background
from xnatfs.fuse.control.protocol import (
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    Message,
    pack,
    pack_error,
    peer_uid,
    short_path,
    unpack,
)

log = logging.getLogger(__name__)

# Connections at a time: a user runs a handful of commands, and each watcher holds one.
MAX_CLIENTS = 32
# Seconds that a client may take to send its next request.
NEXT_REQUEST_SECONDS = 60.0
# Seconds that a client may take to read a line before its connection is closed.
REPLY_SECONDS = 5.0
# Seconds between two lines of progress.
PROGRESS_SECONDS = 0.5
# Bytes that are received at a time.
REQUEST_PIECE_BYTES = 16 * 1024

# Receives the progress of a call.
ReportProgress = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a client can make.

    Attributes:
        run: Answers it, given the report of progress and the arguments by keyword. It raises XnatError.
        takes: Names and types of the arguments.
        may_take: Names and types of arguments that can be left out.
    """

    run: Callable[..., Awaitable[Message]]
    takes: Mapping[str, type] = field(default_factory=dict)
    may_take: Mapping[str, type] = field(default_factory=dict)

    def arguments(self, message: Message) -> Message:
        """Return the arguments of a request. Raises UsageError for a missing, unknown or wrong one."""
        found = {name: value for name, value in message.items() if name not in ("version", "call")}
        types = {**self.takes, **self.may_take}
        for name, value in found.items():
            if name not in types:
                raise UsageError(f"there is no argument {name!r}: this call takes {', '.join(types) or 'none'}")
            if type(value) is not types[name]:  # a bool is an int otherwise
                raise UsageError(f"{name} must be of type {types[name].__name__}")
        if missing := self.takes.keys() - found.keys():
            raise UsageError(f"{', '.join(sorted(missing))} is missing")
        return found


async def serve_control(
    path: Path, calls: Mapping[str, Call], *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve calls on a socket until cancelled. If the socket cannot be made, log that: the mount works without it."""
    try:
        with _listening(path) as listener:
            async with background() as nursery:
                serve = _Server(calls).serve
                await trio.serve_listeners(serve, [listener], handler_nursery=nursery, task_status=task_status)
    except (OSError, BaseExceptionGroup) as error:
        if not isinstance(cause := first_error(error), OSError):
            raise
        log.warning("the control socket %s is unavailable: %s", path, cause.strerror)


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[trio.SocketListener]:
    """Bind the socket, in place of one that a dead process has left, and remove it at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        os.fchmod(bound.fileno(), 0o600)  # bind(2) makes the file with the mode of the socket
        path.unlink(missing_ok=True)
        with short_path(path) as short:
            bound.bind(short)
        made = path.stat()
        bound.listen(MAX_CLIENTS)
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(bound))
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), made):  # else another process serves the mountpoint by now
                    path.unlink()


class _ClientLeft(Exception):
    """The client has closed the connection, or does not read."""


class _Connection:
    """Lines to and from one client."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = bytearray()

    async def receive_line(self) -> bytes | None:
        """Return the next line; None if there is none. Raises UsageError for one that is too long."""
        with trio.move_on_after(NEXT_REQUEST_SECONDS):
            while True:
                line, end, rest = self._received.partition(b"\n")
                if len(line) > MAX_REQUEST_BYTES:
                    raise UsageError(f"the line is longer than {MAX_REQUEST_BYTES} bytes")
                if end:
                    self._received = rest
                    return bytes(line)
                data = await self._stream.receive_some(REQUEST_PIECE_BYTES)
                if not data:
                    return None
                self._received += data
        return None

    async def send(self, line: bytes) -> None:
        """Send a line. Raises _ClientLeft."""
        try:
            with trio.fail_after(REPLY_SECONDS):
                await self._stream.send_all(line)
        except (trio.BrokenResourceError, trio.TooSlowError):
            raise _ClientLeft from None


class _Server:
    def __init__(self, calls: Mapping[str, Call]) -> None:
        self._calls = calls
        self._connections = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection. Nothing is raised: an exception would end the mount."""
        self._connections += 1
        try:
            async with stream:
                await self._converse(stream)
        except (_ClientLeft, trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("a client of the control socket has left")
        except Exception:
            log.exception("the control socket")
        finally:
            self._connections -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = _Connection(stream)
        try:
            if peer_uid(stream.socket) != os.geteuid():
                raise Denied("this is the mount of another user")
            if self._connections > MAX_CLIENTS:
                raise XnatError(f"{MAX_CLIENTS} clients are connected already: end some of them")
            while (line := await connection.receive_line()) is not None:
                await connection.send(await self._reply(connection, line))
        except XnatError as error:  # what follows on this connection is of no use
            await connection.send(pack_error(error))

    async def _reply(self, connection: _Connection, line: bytes) -> bytes:
        try:
            message = unpack(line)
            name = message.get("call")
            call = self._calls.get(name) if isinstance(name, str) else None
            if call is None:
                raise UsageError(f"there is no such call: take one of {', '.join(self._calls)}")
            reply = pack(result=await self._run(connection, call, call.arguments(message)))
            if len(reply) > MAX_REPLY_BYTES:
                raise XnatError("the answer is too long: take a smaller part of the mount")
            return reply
        except XnatError as error:
            return pack_error(error)
        except _ClientLeft:
            raise
        except Exception as error:
            if isinstance(cause := first_error(error), XnatError):
                return pack_error(cause)
            log.exception("a call on the control socket")
            return pack_error(XnatError(f"this is a fault of xnatfs ({type(cause).__name__}); the log has details"))

    async def _run(self, connection: _Connection, call: Call, arguments: Message) -> Message:
        """Run a call, and send its progress meanwhile; cancel it if the client leaves. Raises _ClientLeft then."""
        progress: Message = {}
        result: Message = {}
        with trio.CancelScope() as running:
            async with background() as nursery:

                async def send_progress() -> None:
                    try:
                        while True:
                            await trio.sleep(PROGRESS_SECONDS)
                            if progress:
                                await connection.send(pack(progress=progress))
                    except _ClientLeft:
                        running.cancel()

                nursery.start_soon(send_progress)
                result = await call.run(progress.update, **arguments)
        if running.cancelled_caught:
            raise _ClientLeft
        return result
