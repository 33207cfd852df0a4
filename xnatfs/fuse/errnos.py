"""Map exceptions to errnos: the border to the kernel, which understands FUSEError only.

Any other exception would end the mount.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import pyfuse3

from xnatfs.common.errors import (
    BadReply,
    Busy,
    CacheError,
    CacheFull,
    ConfigError,
    Conflict,
    Denied,
    FuseMissing,
    LoginRequired,
    MountpointError,
    NamespaceError,
    NoRoute,
    NotFound,
    ReadOnly,
    Stale,
    TimedOut,
    Unreachable,
    XnatError,
    first_error,
)

log = logging.getLogger(__name__)

# The most specific class decides. Every subclass of XnatError is here or below one that is (tested).
ERRNOS: dict[type[XnatError], int] = {
    NotFound: errno.ENOENT,
    LoginRequired: errno.EACCES,
    Denied: errno.EACCES,
    NoRoute: errno.EHOSTUNREACH,
    TimedOut: errno.ETIMEDOUT,
    Unreachable: errno.EIO,
    BadReply: errno.EIO,
    Busy: errno.EBUSY,
    Stale: errno.ESTALE,
    ReadOnly: errno.EROFS,
    Conflict: errno.EIO,
    ConfigError: errno.EINVAL,
    MountpointError: errno.EIO,
    FuseMissing: errno.EIO,
    NamespaceError: errno.EIO,
    CacheFull: errno.ENOSPC,
    CacheError: errno.EIO,
    XnatError: errno.EIO,
}
# Answers, not faults. An unreachable server or a refused login is logged once where it is found out, and not for every
# read that it fails.
QUIET = (NotFound, Denied, Busy, Stale, ReadOnly, Unreachable, LoginRequired)

Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, Any]])


def errno_of(error: XnatError) -> int:
    return next(ERRNOS[kind] for kind in type(error).__mro__ if kind in ERRNOS)


def handler(method: Handler) -> Handler:
    """Make a method of `Operations` raise FUSEError only."""

    @functools.wraps(method)
    async def wrapped(self: Any, *args: Any) -> Any:
        try:
            return await method(self, *args)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            self.dir_cache.clear()  # a file that is another than listed, or gone, has changed its directory
            number = _logged_errno(method.__name__, error)
            self.record_error(method.__name__, args, number, first_error(error))
            raise pyfuse3.FUSEError(number) from None

    return cast(Handler, wrapped)


def _logged_errno(name: str, error: Exception) -> int:
    cause = first_error(error)
    if isinstance(cause, XnatError):
        log.log(logging.DEBUG if isinstance(cause, QUIET) else logging.WARNING, "%s: %s", name, cause)
        return errno_of(cause)
    log.error("%s failed", name, exc_info=error)
    return errno.EIO
