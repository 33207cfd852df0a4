"""Run xnatctl as on another system: python -m tests.support.elsewhere darwin|win32 WORDS...

What Python lacks there is missing here, too: names of Linux on both, names of POSIX on Windows, /proc on both. As on
Windows, no file that this process has open is renamed or removed. What libraries do is not simulated: they are imported
before.
"""

import asyncio  # noqa: F401
import concurrent.futures  # noqa: F401
import contextlib
import fcntl
import getpass  # noqa: F401
import importlib
import os
import select
import shutil  # noqa: F401
import signal
import socket
import sqlite3  # noqa: F401
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
import time
import types
import uuid  # noqa: F401
from collections.abc import Callable
from functools import partial
from pathlib import Path

LIBRARIES = ["trio", "httpx", "httpcore", "h11", "anyio", "yaml", "cachetools", "rich.console", "keyring"]

LINUX = {
    os: "O_PATH O_TMPFILE fdatasync memfd_create posix_fadvise posix_fallocate copy_file_range splice eventfd unshare"
    " setns getxattr setxattr listxattr sched_getaffinity pidfd_open",
    time: "CLOCK_BOOTTIME",
    select: "POLLRDHUP",
    socket: "TCP_USER_TIMEOUT SO_PEERCRED",
}
POSIX = {
    os: "O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_DIRECTORY O_ACCMODE pread preadv pwrite pwritev fchmod fchown chown getuid"
    " geteuid getgid getegid getgroups fork forkpty setsid killpg mkfifo statvfs fstatvfs uname register_at_fork umask"
    " nice ttyname sync EX_NOINPUT EX_UNAVAILABLE EX_CANTCREAT EX_IOERR EX_SOFTWARE EX_USAGE",
    time: "CLOCK_MONOTONIC CLOCK_UPTIME_RAW clock_gettime tzset",
    socket: "AF_UNIX SCM_RIGHTS",
    signal: "SIGHUP SIGQUIT SIGKILL SIGPIPE SIGUSR1 SIGUSR2 SIGALRM SIGSTOP SIGCONT SIGCHLD pthread_sigmask setitimer",
    select: "poll",
}
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "readline", "curses", "syslog")


def become(system: str) -> None:
    """Remove what a system lacks."""
    for library in LIBRARIES:
        importlib.import_module(library)
    socket.socketpair = partial(socket.socketpair, socket.AF_UNIX)  # Windows has pairs, of another family
    for removed in (LINUX, POSIX) if system == "win32" else (LINUX,):
        for module, names in removed.items():
            for name in names.split():
                if hasattr(module, name):
                    delattr(module, name)
    # Of macOS: the clock that stands still while the machine sleeps.
    if system == "darwin":
        time.CLOCK_UPTIME_RAW = time.CLOCK_MONOTONIC  # type: ignore[attr-defined]
    else:
        for name in MODULES:
            sys.modules[name] = None  # type: ignore[assignment]
        sys.modules["msvcrt"] = _msvcrt()
        for name in ("replace", "rename", "unlink", "remove"):
            setattr(os, name, partial(_of_closed_files, getattr(os, name)))
    sys.addaudithook(_refuse_proc)
    sys.platform = system


def _msvcrt() -> types.ModuleType:
    found = types.ModuleType("msvcrt")

    def locking(descriptor: int, mode: int, length: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error

    found.__dict__.update(LK_NBLCK=2, locking=locking)
    return found


def _of_closed_files(call: Callable[..., None], *paths: str | Path, **more: object) -> None:
    """Rename or remove files unless this process has one of them open."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) in _open_files():
                raise PermissionError(13, "the file is in use", str(path))
    call(*paths, **more)


def _open_files() -> set[tuple[int, int]]:
    found = set()
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            found.add((status.st_dev, status.st_ino))
    return found


def _refuse_proc(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith("/proc/"):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])
    if event == "ctypes.dlopen" or event == "ctypes.dlsym":
        raise OSError("no library of Linux is to be called")


def main() -> int:
    become(sys.argv[1])
    from xnatfs.cli import main_xnatctl

    return main_xnatctl(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
