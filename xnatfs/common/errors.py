"""What can go wrong, by situation.

    XnatError
    +-- NotFound          the server has no such item, or does not show it to this account (404)
    +-- LoginRequired     no credentials, or the server refused them (401)
    +-- Denied            the account may not do this (403)
    +-- Unreachable       no answer of use: the connection broke, as often as it was tried
    |   +-- NoRoute       there is no way to it: DNS, connection refused, TLS
    |   +-- TimedOut      it has said nothing in time, or next to nothing
    |   +-- Unavailable   it, or a gateway, says that it cannot at the moment (429, 502-504)
    |   `-- Uncertain     no answer to a change: it may have been made
    +-- Conflict          what is there already stands against a change (409, or words to that effect)
    +-- BadReply          an answer that is not what was asked for: HTML for data, wrong length, wrong digest
    |   `-- NotXnat       the address answers, but not as an XNAT
    +-- Stale             the file on the server is not the version that was opened
    +-- ReadOnly          the mount takes no changes
    +-- ConfigError       a profile, a setting or an option that cannot be used
    |   `-- UsageError    a command line that cannot be parsed
    +-- MountpointError   the place to mount on cannot be used
    +-- FuseMissing       the machine lacks FUSE 3
    `-- CacheError        the cache directory cannot be used
        `-- CacheLocked   another process keeps a lock there

Three borders translate, each in one place: httpx to these (`rest/client.py`), these to an errno
(`fuse/operations.py`), these to an exit status and one line (`cli/__init__.py`).
The text of an exception is one line for a user: what, where, and what to do. Words of a server in it are made harmless
here, because it goes to terminals and logs.
"""

from xnatfs.common.sanitize import line


class XnatError(Exception):
    """Base of everything this package raises on purpose.

    For programs: the HTTP `status` and `url` where the server has said so, and a `hint` at what to do.
    """

    def __init__(self, message: str, *, status: int | None = None, url: str | None = None, hint: str = "") -> None:
        super().__init__(line(message))
        self.status = status
        self.url = url
        self.hint = hint


class NotFound(XnatError):
    """The server has no such item, or does not show it to this account."""


class LoginRequired(XnatError):
    """No credentials, or the server refused them."""


class Denied(XnatError):
    """The account may see this, but not do what was asked."""


class Unreachable(XnatError):
    """The server did not answer, or answered that it cannot at the moment."""


class NoRoute(Unreachable):
    """There is no way to the server: no such host, nobody listens there, no TLS that we trust."""


class TimedOut(Unreachable):
    """The server has said nothing in time, or so little that it comes to the same."""


class Unavailable(Unreachable):
    """The server, or a gateway before it, says that it cannot at the moment.

    `asks_to_wait`: that it will later on, so that it is not away.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        url: str | None = None,
        hint: str = "",
        asks_to_wait: bool = False,
    ) -> None:
        super().__init__(message, status=status, url=url, hint=hint)
        self.asks_to_wait = asks_to_wait


class Uncertain(Unreachable):
    """A change was sent, and no answer came that tells whether it was made."""


class Conflict(XnatError):
    """What the server holds already stands against a change; nothing was changed."""


class BadReply(XnatError):
    """The server answered something that is not what was asked for."""


class NotXnat(BadReply):
    """Something answers at this address, but it is not an XNAT."""


class Stale(XnatError):
    """The file on the server is not the version that was opened."""


class ReadOnly(XnatError):
    """The mount takes no changes."""


class ConfigError(XnatError):
    """A profile, a setting or an option cannot be used."""


class UsageError(ConfigError):
    """A command line cannot be parsed."""


class MountpointError(XnatError):
    """The place to mount on cannot be used."""


class FuseMissing(XnatError):
    """The machine lacks FUSE 3: /dev/fuse or fusermount3."""


class CacheError(XnatError):
    """The cache directory cannot be used."""


class CacheLocked(CacheError):
    """Another process, perhaps a stopped one, keeps a lock on the cache directory."""


class Reported(Exception):
    """What another process has said of its end: an exit status, and its line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def first_error(error: BaseException) -> BaseException:
    """The error itself, out of the groups that nurseries wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
