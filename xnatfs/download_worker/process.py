"""The process that carries big files, one at a time: `python -m xnatfs.download_worker.process`.

A gigabyte that comes through the daemon's own event loop keeps its interpreter busy for two seconds; here it is
received and written into the cache file beside the daemon. Nothing is known here of XNAT: what a reply means is decided
by who asked.

Messages are lines of JSON over the socket that is its standard input. From the daemon, and what is answered:

    {"get": TARGET, "host", "port", "tls", "headers", "connect", "read"}
        {"status", "headers", "length"}: `length` of the body, null where only "take" can tell its end
    {"take": N}
        {"data": n} and so many bytes, at most N; 0 at the end of the body
    {"write": N, "at": OFFSET} and a file descriptor beside it; {"skip": N}
        {"wrote": n} again and again, until all N of them are in the file or are skipped
    {"stop": true}
        {"stopped": true}; the connection is kept if the body is at its end

Anything may be answered by {"error": KIND, "text", "errno"}, KIND being a key of `pool.ERRORS`. The connection is gone
then; the process is not, it ends with its socket. An error of the file keeps the connection, and the piece that could
not be written: the next "write" begins with that.
"""

import contextlib
import json
import os
import select
import signal
import socket
import threading
from typing import Any

import h11

from xnatfs.common.errors import ConfigError
from xnatfs.download_worker.connection import LINE, NO_PIPES, Connection, Failed, NoPipes, Stopped, readable
from xnatfs.download_worker.splice import PIPE, Pipe

# Received, and then written, at a time. Measured on loopback: 64 KiB cost half as much processor again.
PIECE = PIPE
# What comes without a pause is told of in larger steps, since each costs the daemon 0.15 ms: as much as the kernel
# has asked for at a time, two requests of 1 MiB.
SAID = 2 * 1024 * 1024


class Worker:
    """Does what the daemon says, until it is gone."""

    def __init__(self, daemon: socket.socket) -> None:
        self._daemon = daemon
        self._server = Connection(daemon)
        self._lines = b""
        self._descriptors: list[int] = []
        self._buffer = memoryview(bytearray(PIECE))
        self._rest = self._buffer[:0]  # what has come and has no place yet, because a file could not take it
        self._pipe: Pipe | None = Pipe()  # None: splicing does not work here

    def run(self) -> None:
        while (message := self._message()) is not None:
            try:
                self._do(message)
            except Stopped:
                continue  # the message that says so is read next
            except Failed as failure:
                if failure.kind != "file":
                    self._server.close()
                self._say({"error": failure.kind, "text": str(failure), "errno": failure.number})
            except (ConfigError, h11.LocalProtocolError) as error:
                self._server.close()
                self._say({"error": "protocol", "text": str(error), "errno": None})

    def _do(self, message: dict[str, Any]) -> None:
        if "get" in message:
            self._say(self._server.get(message))
        elif "take" in message:
            data = self._server.take(message["take"])
            self._say({"data": len(data)})
            self._daemon.sendall(data)
        elif "stop" in message:
            self._out_of_pipe()
            self._rest = self._buffer[:0]
            self._server.end()
            self._say({"stopped": True})
        elif "write" in message:
            descriptor = self._descriptors.pop()
            try:
                self._carry(message["write"], descriptor, message["at"])
            finally:
                os.close(descriptor)
        else:
            self._carry(message["skip"], None, 0)

    def _carry(self, length: int, descriptor: int | None, offset: int) -> None:
        """So many bytes of the body into the file; without one, nowhere."""
        unsaid = 0
        try:
            while length:
                if readable(self._daemon):
                    raise Stopped
                count = self._more(length, descriptor, offset, wait=not unsaid)
                offset, length, unsaid = offset + count, length - count, unsaid + count
                if unsaid >= SAID or not count:
                    self._say({"wrote": unsaid})
                    unsaid = 0
        finally:
            if unsaid:  # before any error is told of: it is about what comes after these
                self._say({"wrote": unsaid})

    def _more(self, length: int, descriptor: int | None, offset: int, *, wait: bool) -> int:
        """Write some bytes where they belong; 0 where none have come and they are not waited for."""
        if descriptor is not None and self._pipe is not None and not self._rest:
            try:
                if not self._pipe.held and self._server.splices:
                    self._server.into_pipe(self._pipe, length, wait=wait)
                    if not self._pipe.held:
                        return 0
                if self._pipe.held:
                    return _emptied(self._pipe, descriptor, offset, length)
            except NoPipes:
                self._out_of_pipe()
                self._pipe = None
        self._out_of_pipe()
        if not self._rest:
            self._rest = self._buffer[: self._server.into(self._buffer[:length], wait=wait)]
        taken = self._rest[:length]
        if descriptor is not None:
            _write(descriptor, taken, offset)
        self._rest = self._rest[len(taken) :]
        return len(taken)

    def _out_of_pipe(self) -> None:
        if self._pipe is not None and self._pipe.held:
            self._rest = memoryview(self._pipe.drain())

    def _message(self) -> dict[str, Any] | None:
        """Return the next line of the daemon; None when it is gone. Descriptors that come with it are kept."""
        while b"\n" not in self._lines:
            data, descriptors, _, _ = socket.recv_fds(self._daemon, LINE, 1)
            self._descriptors += descriptors
            if not data:
                return None
            self._lines += data
        line, _, self._lines = self._lines.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _say(self, message: dict[str, Any]) -> None:
        self._daemon.sendall(json.dumps(message).encode() + b"\n")


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        try:
            written = os.pwrite(descriptor, data, offset)
        except OSError as error:
            raise _of_file(error) from None
        data, offset = data[written:], offset + written


def _emptied(pipe: Pipe, descriptor: int, offset: int, most: int) -> int:
    try:
        return pipe.empty(descriptor, offset, most)
    except OSError as error:
        if error.errno in NO_PIPES:
            raise NoPipes from None
        raise _of_file(error) from None


def _of_file(error: OSError) -> Failed:
    return Failed("file", error.strerror or str(error), error.errno)


def _end_with(daemon: socket.socket) -> None:
    """End when the daemon does, at once, whatever is waited for: a slow server or disk, with a cache file open."""
    gone = select.poll()
    gone.register(daemon, select.POLLRDHUP)
    gone.poll()
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the daemon decides when it is over
    with socket.socket(fileno=0) as daemon:
        threading.Thread(target=_end_with, args=(daemon,), daemon=True).start()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the daemon is gone
            Worker(daemon).run()


if __name__ == "__main__":
    main()
