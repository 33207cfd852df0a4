"""Receive big files, one at a time, in a process of its own: `python -m xnatfs.download_worker.process`.

A gigabyte that passes through the daemon's own event loop keeps its interpreter busy for two seconds; here it is
received and written into the cache file beside the daemon. Nothing is known here of XNAT: the daemon decides what a
reply means.

Messages are lines of JSON over the socket that is its standard input. From the daemon, and the answers:

    {"get": TARGET, "headers", "tls", "connect", "read"}, the last two in seconds
        {"status", "headers", "length"}: `length` of the body, null where only "read" finds its end
        {"connect": true} if there is no connection: the message comes again, with a connected socket beside it
    {"read": true}
        {"data": n} and n bytes; 0 at the end of the body
    {"write": N, "at": OFFSET} and a file descriptor beside it, or {"skip": N}
        {"wrote": n} again and again, until all N of them are in the file or are skipped

The answer to any may be {"error": KIND, "text", "errno"}, where KIND is a key of `pool.TRANSPORT_ERRORS`, or "file".
The connection is closed then, and the process waits for the next "get". After an error of the file, the connection
stays open, and the next "write" begins with the bytes that could not be written.
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
from xnatfs.download_worker.connection import Connection, ConnectionFailed

# Bytes received, and then written, at a time. Measured on loopback: 64 KiB cost half as much processor time again.
PIECE_BYTES = 1024 * 1024
# Bytes that arrive without a pause are reported in steps of this size, since each report costs the daemon 0.15 ms: as
# much as the kernel requests at a time, two requests of 1 MiB.
REPORTED_BYTES = 2 * 1024 * 1024
# Bytes of a message of the daemon read at a time.
MESSAGE_BYTES = 64 * 1024


class Worker:
    """Carry out the messages of the daemon, until it is gone."""

    def __init__(self, daemon: socket.socket) -> None:
        self._daemon = daemon
        self._server = Connection()
        self._lines = b""
        self._descriptors: list[int] = []
        self._buffer = memoryview(bytearray(PIECE_BYTES))
        self._piece = self._buffer[:0]  # received, and not yet written

    def run(self) -> None:
        while (message := self._message()) is not None:
            try:
                self._do(message)
            except ConnectionFailed as failure:
                if failure.kind != "file":
                    self._server.close()
                self._send({"error": failure.kind, "text": str(failure), "errno": failure.number})
            except (ConfigError, h11.LocalProtocolError) as error:
                self._server.close()
                self._send({"error": "protocol", "text": str(error), "errno": None})

    def _do(self, message: dict[str, Any]) -> None:
        if "get" in message:
            self._piece = self._buffer[:0]
            if self._descriptors:
                self._server.use(socket.socket(fileno=self._descriptors.pop()), message)
            elif not self._server.is_idle():
                return self._send({"connect": True})
            self._send(self._server.get(message))
        elif "read" in message:
            data = self._server.read()
            self._send({"data": len(data)})
            self._daemon.sendall(data)
        elif "write" in message:
            descriptor = self._descriptors.pop()
            try:
                self._write(message["write"], descriptor, message["at"])
            finally:
                os.close(descriptor)
        else:
            self._write(message["skip"], None, 0)

    def _write(self, length: int, descriptor: int | None, offset: int) -> None:
        """Write the next bytes of the body into a file, or drop them where there is none, and report them."""
        unreported = 0
        try:
            while length:
                if not self._piece:
                    if unreported >= REPORTED_BYTES or (unreported and not self._server.is_ready()):
                        self._send({"wrote": unreported})
                        unreported = 0
                    self._piece = self._buffer[: self._server.receive(self._buffer[:length])]
                part = self._piece[:length]
                if descriptor is not None:
                    _write_all(descriptor, part, offset)
                self._piece = self._piece[len(part) :]
                offset, length, unreported = offset + len(part), length - len(part), unreported + len(part)
        finally:
            if unreported:  # before any error is reported, which is about the bytes after these
                self._send({"wrote": unreported})

    def _message(self) -> dict[str, Any] | None:
        """Return the next message of the daemon; None when it is gone. Descriptors that come with it are kept."""
        while b"\n" not in self._lines:
            data, descriptors, _, _ = socket.recv_fds(self._daemon, MESSAGE_BYTES, 1)
            self._descriptors += descriptors
            if not data:
                return None
            self._lines += data
        line, _, self._lines = self._lines.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _send(self, message: dict[str, Any]) -> None:
        self._daemon.sendall(json.dumps(message).encode() + b"\n")


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        try:
            written = os.pwrite(descriptor, data, offset)
        except OSError as error:
            raise ConnectionFailed.of_system("file", error) from None
        data, offset = data[written:], offset + written


def _end_with(daemon: socket.socket) -> None:
    """End when the daemon does, at once, whatever the process waits for: a slow server or disk, with a file open."""
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
