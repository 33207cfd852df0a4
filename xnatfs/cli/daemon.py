"""Continue in the background: run the same command again, detached, which reports over an inherited pipe.

The child receives the login over its standard input, so that neither its arguments nor its environment hold one.
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
    """Run `xnatfs ARGUMENTS --report-fd N` detached, and wait until it is ready.

    Args:
        arguments: command line of the child, without secrets.
        handover: login for the child, as `pack` returns it.
        log_file: receives the child's stderr.

    Returns:
        The text that the child reported with 'ready'.

    Raises:
        Reported: the child's exit status and its line for the user.
        CacheError: the log cannot be written.
    """
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
    with contextlib.suppress(BrokenPipeError), child.stdin:  # the child may end at once; its report has the reason
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
    """Open the log for appending, private from its creation. Raises CacheError."""
    try:
        make_private(log_file.parent)
        return open(log_file, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))
    except OSError as error:
        raise CacheError(f"cannot write the log {log_file}: {error.strerror}; --log-file names another") from None


class Reporter:
    """The child's end of the pipe. Without a pipe, as in the foreground, it reports nothing."""

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
    """Read the handover of the parent."""
    handed: dict[str, str] = json.loads(sys.stdin.read())
    return handed


def pack(credentials: Credentials | None, token: str) -> dict[str, str]:
    """Return the handover for the child: a login, a session of the environment, or nothing if a session is stored."""
    login = asdict(credentials) if credentials else {}
    return {**login, "token": token}


def unpack(handed: dict[str, str]) -> tuple[Credentials | None, str]:
    login = {key: value for key, value in handed.items() if key != "token"}
    return Credentials(**login) if login else None, handed["token"]
