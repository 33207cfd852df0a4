"""Write the log: one line a record, without control characters and without secrets.

Logs are read on terminals, and contain text of a server. Tracebacks have lines of their own.
"""

import logging
import sys
from typing import IO, Any

from xnatfs.cli import streams
from xnatfs.common.sanitize import line, plain

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Formatter(logging.Formatter):
    """Format a record as one line, without control characters."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(plain, super().formatException(ei).split("\n")))


class Handler(logging.StreamHandler[IO[str]]):
    """Report the first write error on stderr, and continue."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed and self.stream is not sys.stderr:
            self.failed = True
            streams.report(f"cannot write the log {getattr(self.stream, 'name', '')}: {error.strerror}")


def log_to(stream: IO[str], level: int | str) -> None:
    """Log to a stream, records of libraries as well, except for those that hold secrets."""
    handler = Handler(stream)
    handler.setFormatter(Formatter())
    handler.setLevel(level)
    logging.basicConfig(handlers=[handler], level=level)
    # httpcore logs the headers of replies, and with them session IDs, which no log may hold.
    logging.getLogger("httpcore").setLevel(logging.WARNING)
