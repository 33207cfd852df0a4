"""Define the messages on the control socket of a mount: JSON, one object a line, in UTF-8.

    request   {"version": 1, "call": "refresh", "path": "projects/BRAINS"}
    replies   {"version": 1, "progress": {...}}                               any number, of calls that take long
              {"version": 1, "result": {...}}                                 or
              {"version": 1, "error": {"kind": "NotFound", "message": "..."}}

A connection takes one request after another. Both ends use this module, so it imports neither pyfuse3 nor trio.
"""

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from xnatfs.common import errors
from xnatfs.common.errors import UsageError, XnatError
from xnatfs.common.sanitize import loads

# Changes when a request or a result of an earlier version would be misunderstood. New keys do not change it.
PROTOCOL_VERSION = 1
# Bytes of a request: the longest path has 4096, each of which JSON may spell with six.
MAX_REQUEST_BYTES = 64 * 1024
# Bytes of a reply: a hundred thousand findings of `verify`, a line each.
MAX_REPLY_BYTES = 32 * 2**20
LOG_LEVELS = ("debug", "info", "warning", "error")

Message = dict[str, Any]

# Errors that keep their class over the socket: the exit status of a command depends on it.
_KINDS = {
    kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, XnatError)
}


def pack(**cells: Any) -> bytes:
    """Return one line."""
    return json.dumps({"version": PROTOCOL_VERSION, **cells}, separators=(",", ":")).encode("ascii") + b"\n"


def pack_error(error: XnatError) -> bytes:
    """Return the line that reports an error."""
    return pack(error={"kind": type(error).__name__, "message": str(error)})


def unpack(line: bytes) -> Message:
    """Parse one line. Raises UsageError, whatever the line is."""
    try:
        message = loads(line.decode("utf-8"))
    except ValueError:
        raise UsageError("the line is not JSON in UTF-8") from None
    if not isinstance(message, dict):
        raise UsageError("the line is not a JSON object")
    if (version := message.get("version")) != PROTOCOL_VERSION or isinstance(version, bool):
        raise UsageError(f"this is version {PROTOCOL_VERSION} of the protocol: send {{'version': {PROTOCOL_VERSION}}}")
    return message


def unpack_error(cells: object) -> XnatError:
    """Return the error that a reply reports, as one of xnatfs's own classes."""
    found = cells if isinstance(cells, dict) else {}
    return _KINDS.get(str(found.get("kind")), XnatError)(str(found.get("message", "the mount reports an error")))


class Connected(Protocol):
    """A socket, blocking or trio's."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer_uid(connection: Connected) -> int:
    """Return the user of the process at the other end; see unix(7)."""
    import socket  # the rest of this module is imported for help, too

    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Provide a path of a socket that fits into a sockaddr_un, which has 108 bytes. Raises OSError."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
