"""Define the exceptions of xnatfs, one class for each situation.

    XnatError
    +-- NotFound          the server has no such item, or hides it from this account (404)
    |   +-- NotDirectory     a path leads through a file as if that was a directory
    |   `-- NothingMatches   it has items, and none that the filters of a command leave
    +-- LoginRequired     there are no credentials, or the server refused them (401)
    +-- Denied            the account may not do this (403)
    +-- Unreachable       no usable answer: the connection broke at every attempt
    |   +-- NoRoute       no connection: DNS, connection refused, TLS
    |   +-- TimedOut      no answer in time, or one that came too slowly
    |   +-- Unavailable   the server or a gateway reports that it cannot answer at the moment (429, 502-504)
    |   `-- Uncertain     no answer to a change: the server may have made it
    +-- Conflict          existing data conflict with a change (409, or words to that effect)
    +-- BadReply          the answer is not what was requested: HTML for data, wrong length, wrong digest
    |   `-- NotXnat       the address answers, but not as an XNAT
    +-- Busy              the server is at work on the item, and shows only a part of it
    +-- Stale             the file on the server is not the version that was opened
    +-- ReadOnly          the mount is read-only
    +-- ConfigError       a profile, a setting or an option cannot be used
    |   `-- UsageError    a command line cannot be parsed
    +-- MountpointError   the mount point cannot be used
    +-- FuseMissing       the machine lacks FUSE 3
    +-- NamespaceError    the machine does not let this user mount in a namespace of its own
    `-- CacheError        the cache directory cannot be used
        +-- CacheLocked   another process holds a lock there
        `-- CacheFull     it has no room for a file, nor has any other place

Exceptions are translated at three boundaries, each in one place: from httpx to these classes (`http/transport.py`), to
an errno (`common/errnos.py`), and to an exit status with one line of text (`cli/run.py`).
The text of an exception is one line for a user: what failed, where, and what to do. It goes to terminals and logs, so
control characters in a server's words are replaced here.
"""

from copy import copy
from typing import TypeVar

from xnatfs.common.sanitize import line

E = TypeVar("E", bound=Exception)


class XnatError(Exception):
    """Base class of all exceptions that xnatfs raises on purpose.

    Args:
        message: One line for a user; control characters in it are replaced.
        status: The HTTP status of the reply, or None where no reply caused the error.
        url: The URL of the request, likewise.
        hint: A suggestion what to do, or ''.
    """

    def __init__(self, message: str, *, status: int | None = None, url: str | None = None, hint: str = "") -> None:
        super().__init__(line(message))
        self.status = status
        self.url = url
        self.hint = hint


class NotFound(XnatError):
    """The server has no such item, or hides it from this account."""


class NotDirectory(NotFound):
    """A path leads through a file as if that was a directory."""


class NothingMatches(NotFound):
    """The server has such items, and none that the filters of a command leave."""


class LoginRequired(XnatError):
    """There are no credentials, or the server refused them."""


class Denied(XnatError):
    """The account may see the item, but may not do what was requested."""


class Unreachable(XnatError):
    """The server did not answer, or reported that it cannot answer at the moment."""


class NoRoute(Unreachable):
    """No connection could be made: unknown host, closed port, or an untrusted TLS certificate."""


class TimedOut(Unreachable):
    """The server did not answer in time, or so slowly that it amounts to that."""


class Unavailable(Unreachable):
    """The server, or a gateway before it, reports that it cannot answer at the moment."""

    asks_to_wait = False  # whether the reply asks for a later retry: then the server is reachable


class Uncertain(Unreachable):
    """A change was sent, and no answer reports whether the server made it."""


class Conflict(XnatError):
    """Existing data on the server conflict with a change; nothing was changed."""


class BadReply(XnatError):
    """The server's answer is not what was requested."""


class NotXnat(BadReply):
    """The address answers, but not as an XNAT."""


class Busy(XnatError):
    """The server is at work on the item: what it shows of it may be a part."""


class Stale(XnatError):
    """The file on the server is not the version that was opened."""


class ReadOnly(XnatError):
    """The mount is read-only."""


class ConfigError(XnatError):
    """A profile, a setting or an option cannot be used."""


class UsageError(ConfigError):
    """A command line cannot be parsed."""


class MountpointError(XnatError):
    """The mount point cannot be used."""


class FuseMissing(XnatError):
    """The machine lacks FUSE 3: /dev/fuse or fusermount3."""


class NamespaceError(XnatError):
    """The machine does not let this user mount in a namespace of its own."""


class CacheError(XnatError):
    """The cache directory cannot be used."""


class CacheLocked(CacheError):
    """Another process, perhaps a stopped one, holds a lock on the cache directory."""


class CacheFull(CacheError):
    """Neither the cache directory nor another place has room for a file."""


class Reported(Exception):
    """A command ends with this exit status and one line of text, or none, as another process has reported."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def fresh(error: E) -> E:
    """Return a copy of an error to raise again: an exception that is raised collects tracebacks."""
    return copy(error)


def first_error(error: BaseException) -> BaseException:
    """Return the first exception inside the groups that nurseries wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
