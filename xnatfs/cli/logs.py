"""Write the log: one line a record, without control characters and without secrets.

Logs are read on terminals, and contain text of a server. Tracebacks have lines of their own.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from xnatfs.cli import streams
from xnatfs.common.errors import ConfigError
from xnatfs.common.sanitize import line, plain


class LineFormatter(logging.Formatter):
    """Format a record as one line, without control characters."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(plain, super().formatException(ei).split("\n")))


class LogHandler(logging.StreamHandler[Any]):
    """Report the first write error on stderr, and continue."""

    failed = False

    @property
    def file(self) -> str:
        return getattr(self.stream, "name", "")

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed and self.stream is not sys.stderr:
            self.failed = True
            streams.report(f"cannot write the log {self.file}: {error.strerror}")


def log_to_stream(file: str | Path | None, level: int) -> None:
    """Log to a file, else to stderr. Raises ConfigError if the file cannot be opened."""
    stream = sys.stderr
    if file:
        try:
            stream = open(file, "a", encoding="utf-8", opener=lambda p, f: os.open(p, f, 0o600))  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"cannot write the log {file}: {error.strerror}") from None
    log_by(LogHandler(stream), level)


def log_by(handler: logging.Handler, level: int) -> None:
    """Log by this handler, records of libraries as well, except for those that hold secrets."""
    handler.setFormatter(LineFormatter())
    handler.setLevel(level)
    logging.basicConfig(handlers=[handler], level=level)
    # httpcore logs the headers of replies, and with them session IDs, which no log may hold.
    logging.getLogger("httpcore").setLevel(logging.WARNING)
