"""Map exceptions to errnos, for callers that know files rather than XNAT: the kernel and Python's file objects."""

import errno

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
    NotDirectory,
    NotFound,
    ReadOnly,
    Stale,
    TimedOut,
    Unreachable,
    XnatError,
)

# The most specific class decides. Every subclass of XnatError is here or below one that is (tested).
ERRNOS: dict[type[XnatError], int] = {
    NotFound: errno.ENOENT,
    NotDirectory: errno.ENOTDIR,
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


def errno_of(error: XnatError) -> int:
    return next(ERRNOS[kind] for kind in type(error).__mro__ if kind in ERRNOS)
