"""Write the log of a mount, which may run for months, into files of limited size."""

import os
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any

from xnatfs.cli import logs
from xnatfs.common.errors import ConfigError

# With the files before it a log takes at most 20 MB: months of an ordinary mount, hours at the level debug.
MAX_LOG_BYTES = 5_000_000
OLD_LOGS = 3


class RotatingLogHandler(logs.LogHandler, RotatingFileHandler):
    """Write to a private file, and to the next one when it is full; report the first error on stderr."""

    def __init__(self, file: Path, takes_stderr: bool) -> None:
        self._takes_stderr = takes_stderr
        self.failed = takes_stderr  # there is no other place to report it
        super().__init__(file, maxBytes=MAX_LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8")

    def _open(self) -> Any:
        stream: IO[str] = open(  # noqa: SIM115
            self.baseFilename, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)
        )
        if self._takes_stderr:  # of a daemon: what an interpreter writes that crashes belongs in the log
            os.dup2(stream.fileno(), 2)
        return stream

    @property
    def file(self) -> str:
        return self.baseFilename


def log_to_rotating_file(file: Path, level: int, *, takes_stderr: bool) -> None:
    """Log to a file, in place of stderr as well if `takes_stderr`. Raises ConfigError if it cannot be opened."""
    try:
        handler = RotatingLogHandler(file, takes_stderr)
    except OSError as error:
        raise ConfigError(f"cannot write the log {file}: {error.strerror}") from None
    logs.log_by(handler, level)
