"""Run processes that hold a lock and are stopped, as by Ctrl-Z."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLOCK = """
import fcntl, os, sys
flags = os.O_RDONLY if os.path.isdir(sys.argv[1]) else os.O_RDWR | os.O_CREAT
fcntl.flock(os.open(sys.argv[1], flags, 0o600), fcntl.LOCK_EX)
"""
# In the middle of a transaction that writes; it is completed when the process goes on.
TRANSACTION = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
database.execute("CREATE TABLE IF NOT EXISTS begun_by_another (number)")
"""
# It goes on at the end of its input, and says when it is done.
WAIT = """
print("held", flush=True)
sys.stdin.read()
"""
COMMIT = 'database.execute("COMMIT")'


@contextmanager
def stopped(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a stopped process that holds the lock which `code` takes on a file, or on a directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", code + WAIT + (COMMIT if code == TRANSACTION else ""), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            os.kill(process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            yield process
            if process.returncode is None:
                wake(process)
            assert process.returncode == 0
        finally:
            process.kill()


def wake(process: subprocess.Popen[str]) -> None:
    """Let it go on, and complete what it was in the middle of."""
    os.kill(process.pid, signal.SIGCONT)
    process.communicate()
