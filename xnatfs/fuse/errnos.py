"""Map exceptions to errnos: the border to the kernel, which understands FUSEError only.

Any other exception would end the mount.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import pyfuse3

from xnatfs.common.errnos import errno_of
from xnatfs.common.errors import (
    Busy,
    Denied,
    LoginRequired,
    NotFound,
    ReadOnly,
    Stale,
    Unreachable,
    XnatError,
    first_error,
)

log = logging.getLogger(__name__)

# Answers, not faults. An unreachable server or a refused login is logged once where it is found out, and not for every
# read that it fails.
QUIET = (NotFound, Denied, Busy, Stale, ReadOnly, Unreachable, LoginRequired)

Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, Any]])


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
