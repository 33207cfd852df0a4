"""Report the trouble that a cache directory has: once when it begins, and once when it is over."""

import errno
import logging
import math
import time
from pathlib import Path

from xnatfs.common import locks
from xnatfs.common.errors import CacheError
from xnatfs.content.disk.directory import why_locked
from xnatfs.content.disk.files import is_full
from xnatfs.content.disk.index import is_busy

log = logging.getLogger(__name__)

# Seconds without an error after which a stored file ends the trouble: a disk that is full accepts one file, and not the
# next.
QUIET_SECONDS = 60.0


class Trouble:
    """The errors of one cache directory, as the log has them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last = -math.inf  # the time of the last error
        self._is_reported = False

    def report(self, what: Exception | str) -> None:
        """Log an error, unless it is part of trouble that was logged before."""
        self._last = time.monotonic()
        if self._is_reported:
            return
        self._is_reported = True
        to = log
        if isinstance(what, TimeoutError) or (isinstance(what, Exception) and is_busy(what)):
            what, to = why_locked(what, self._directory), locks.log
        text = what if isinstance(what, str) and to is log else f"{what}; files are fetched but not kept"
        to.warning("cache directory %s: %s", self._directory, text)

    def error(self, exc: OSError) -> CacheError:
        """Return the exception for an error of the disk, with a remedy, and log the error."""
        if is_full(exc):
            remedy = "make room there or choose another cache directory"
        elif exc.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "raise the limit (ulimit -n) or close files"
        else:
            remedy = "correct that or choose another cache directory"
        self.report(exc)
        return CacheError(f"cache directory {self._directory}: {exc.strerror}; {remedy}")

    def end(self) -> None:
        """Log the end of the trouble, since the directory has just stored a file."""
        if self._is_reported and time.monotonic() - self._last > QUIET_SECONDS:
            self._is_reported = False
            log.info("cache directory %s: files are kept again", self._directory)
