"""Going on in the background: the same command again, detached, which reports over an inherited pipe.

The child is handed the login over its standard input, so that neither its arguments nor its environment hold one.
It answers with one line: 'ready', or its exit status and its one line for the user.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from xnatfs.common.errors import CacheError, Reported
from xnatfs.common.private_files import make_private
from xnatfs.settings.credentials import Credentials, for_children

READY = "ready"


def start(arguments: Sequence[str], handover: dict[str, str], log_file: Path) -> str:
    """Run `xnatfs ARGUMENTS --report-fd N` detached, until it is ready; what it adds to that. Raises Reported."""
    reading, writing = os.pipe()
    with _opened(log_file) as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "xnatfs", *arguments, "--report-fd", str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=for_children(),
            pass_fds=[writing],
            start_new_session=True,
        )
    os.close(writing)
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:  # it may end at once; what it reports says why
        child.stdin.write(json.dumps(handover).encode())
    with open(reading, encoding="utf-8") as reports:
        try:
            line = reports.readline().rstrip("\n")
        except BaseException:
            child.terminate()
            raise
    status, _, text = line.partition(" ")
    if status == READY:
        return text
    if not status.isdigit():
        raise Reported(1, f"the background process ended without a word (exit status {child.wait()}); see {log_file}")
    child.wait()
    raise Reported(int(status), text)


def _opened(log_file: Path) -> IO[bytes]:
    """The log, for appending, private from its creation. Raises CacheError."""
    try:
        make_private(log_file.parent)
        return open(log_file, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))
    except OSError as error:
        raise CacheError(f"cannot write the log {log_file}: {error.strerror}; --log-file names another") from None


class Reporter:
    """The child's end of the pipe. Without one, as in the foreground, it says nothing."""

    def __init__(self, descriptor: int | None) -> None:
        self._pipe = None if descriptor is None else open(descriptor, "w", encoding="utf-8")  # noqa: SIM115

    def ready(self, text: str = "") -> None:
        self._say(f"{READY} {text}")

    def failed(self, status: int, line: str) -> None:
        self._say(f"{status} {line}")

    def _say(self, line: str) -> None:
        if self._pipe is not None:
            with self._pipe as pipe:
                pipe.write(f"{line}\n")
            self._pipe = None


def received() -> dict[str, str]:
    """What the parent handed over."""
    handed: dict[str, str] = json.loads(sys.stdin.read())
    return handed


def pack(credentials: Credentials | None, token: str) -> dict[str, str]:
    """A login for the child, a session that was given to us, or nothing where a session is kept."""
    login = asdict(credentials) if credentials else {}
    return {**login, "token": token}


def unpack(handed: dict[str, str]) -> tuple[Credentials | None, str]:
    login = {key: value for key, value in handed.items() if key != "token"}
    return Credentials(**login) if login else None, handed["token"]
