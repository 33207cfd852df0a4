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

from xnatfs.common import program
from xnatfs.common.errors import CacheError, Reported
from xnatfs.common.files import make_private
from xnatfs.settings.credentials import Credentials, for_children

READY = "ready"
# Size from which on a daemon begins another log.
MAX_SHARED_LOG_BYTES = 5_000_000


def launch(
    arguments: Sequence[str],
    login: str,
    log_file: Path,
    descriptors: Sequence[int] = (),
    *,
    stays_in_group: bool = False,
) -> tuple["subprocess.Popen[str]", str]:
    """Run `xnatfs ARGUMENTS --report-fd N` detached, and wait until it is ready.

    Args:
        arguments: Command line of the child, without secrets.
        login: The login for the child, as `pack_login` returns it.
        log_file: Receives the child's stderr.
        descriptors: Open files that the child inherits.
        stays_in_group: Keep the child in this session and process group; it begins a session of its own later.

    Returns:
        The child, and the text that it reported with 'ready'.

    Raises:
        Reported: The child's exit status and its line for the user.
        CacheError: The log cannot be written.
    """
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as reports:
        with os.fdopen(writing, "w"), _open_log(log_file) as log:
            child = subprocess.Popen(
                [*program.run_module("xnatfs"), *arguments, "--report-fd", str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
                env=for_children(),
                pass_fds=[writing, *descriptors],
                start_new_session=not stays_in_group,
            )
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:  # a child that ends at once reports the reason
                child.stdin.write(login)
            status, _, text = reports.readline().rstrip("\n").partition(" ")
        except BaseException:
            child.terminate()
            raise
    if status == READY:
        return child, text
    code = child.wait()
    if status.isdigit():
        raise Reported(int(status), text)
    raise Reported(1, f"the background process ended without a report (exit status {code}); see {log_file}")


def _open_log(log_file: Path) -> IO[bytes]:
    """Open the log for appending, private from its creation. Raises CacheError."""
    try:
        make_private(log_file.parent)
        with contextlib.suppress(FileNotFoundError):  # daemons that share a log do not rotate it
            if log_file.is_file() and log_file.stat().st_size > MAX_SHARED_LOG_BYTES:
                os.replace(log_file, f"{log_file}.1")
        return open(log_file, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))
    except OSError as error:
        raise CacheError(f"cannot write the log {log_file}: {error.strerror}; --log-file names another") from None


class Reporter:
    """The child's end of the pipe. Without a pipe, as in the foreground, it reports nothing."""

    def __init__(self, descriptor: int | None) -> None:
        self._pipe = None if descriptor is None else open(descriptor, "w", encoding="utf-8")  # noqa: SIM115

    def ready(self, text: str = "") -> None:
        self._report(READY, text)

    def failed(self, status: int, text: str) -> None:
        self._report(str(status), text)

    def _report(self, status: str, text: str) -> None:
        if self._pipe is not None:
            with self._pipe as pipe:
                pipe.write(f"{status} {text}\n")
            self._pipe = None


def pack_login(credentials: Credentials | None, token: str) -> str:
    """Return the login for the child: a login, a session of the environment, or nothing if a session is stored."""
    return json.dumps({"credentials": credentials and asdict(credentials), "token": token})


def receive_login() -> tuple[Credentials | None, str]:
    """Read the login that the parent has sent."""
    received = json.loads(sys.stdin.read())
    return received["credentials"] and Credentials(**received["credentials"]), received["token"]
