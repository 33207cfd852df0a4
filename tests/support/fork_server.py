"""Run xnatfs and xnatctl in forked children of a process that has imported them.

A child gets its arguments, environment, directory, standard streams and exit status as a new process would, and ends as
one does. What it starts itself, such as the process of a mount, is an interpreter of its own. Its imports are what it
shares with others, so tests of imports, of the installed program and of terminals start it themselves. The server ends
when the test process closes its socket.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xnatfs.cli import main, main_xnatctl
from xnatfs.cli.ctl.main import commands

PROGRAMS = {"xnatfs": main, "xnatctl": main_xnatctl}
# What commands import when they need it.
MODULES = ("trio", "httpx", "xnatfs.site", "xnatfs.cli.run", "xnatfs.cli.mounts", "xnatfs.cli.daemon")
# The largest message: a command line and an environment.
MOST_BYTES = 128 * 1024
# Variables that an interpreter reads when it starts, before its first import.
AT_START = ("PYTHON", "LC_", "LANG", "LD_")


class ForkServer:
    """The process that forks, and the socket to it; one for all tests of a test process."""

    def __init__(self, env: dict[str, str]) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        self._env = env
        # Python makes its streams at the start, and as most children have them: pipes.
        self._process = subprocess.Popen(
            command,
            env=env,
            cwd=Path(__file__).parents[2],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        atexit.register(self.close)

    def close(self) -> None:
        self._requests.close()
        self._process.communicate()

    def can_run(self, env: Mapping[str, str]) -> bool:
        """Return whether a child may have this environment: it must not change how the interpreter itself starts."""
        return all(env.get(key) == self._env.get(key) for key in {*env, *self._env} if key.startswith(AT_START))

    def run(
        self, words: list[str], env: Mapping[str, str], cwd: Path, timeout: float, typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with its input and output as text; raise TimeoutExpired after killing it.

        Args:
            words: The path of the program, and its arguments.
            env: The environment.
            cwd: The directory.
            timeout: Seconds until it is killed.
            typed: The input, of less than a pipe holds; "" stands for /dev/null.
        """
        request = json.dumps({"argv": words, "env": dict(env), "cwd": str(cwd)}).encode()
        source = _holding(typed.encode(errors="surrogateescape")) if typed else os.open(os.devnull, os.O_RDONLY)
        out, err, state = os.pipe(), os.pipe(), os.pipe()
        theirs = [source, out[1], err[1], state[1]]
        try:
            socket.send_fds(self._requests, [request], theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        with open(out[0], "rb") as output, open(err[0], "rb") as errors, open(state[0], "rb") as states:
            child = os.read(states.fileno(), 64)  # its number, which comes first, and the status if it has ended
            if not child:
                raise RuntimeError(f"the fork server has ended: {self._process.communicate()[1].decode()}")
            ended, texts = _read_all([output.fileno(), errors.fileno(), states.fileno()], timeout)
        number, _, status = (child.decode() + texts[2]).partition("\n")
        if not ended:
            with contextlib.suppress(ProcessLookupError):  # what it has started has its output
                os.kill(int(number), signal.SIGKILL)
            raise subprocess.TimeoutExpired(words, timeout)
        return subprocess.CompletedProcess(words, int(status), *texts[:2])


def _holding(data: bytes) -> int:
    """Return the end of a pipe from which this is read."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(writing, "wb") as pipe:
        pipe.write(data)
    return reading


def _read_all(descriptors: list[int], timeout: float) -> tuple[bool, list[str]]:
    """Read pipes until all have ended or time is over; return whether they have, and the texts."""
    deadline = time.monotonic() + timeout
    found = {descriptor: io.BytesIO() for descriptor in descriptors}
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(deadline - time.monotonic()):
                piece = os.read(key.fd, 2**16)
                found[key.fd].write(piece)
                if not piece:
                    selector.unregister(key.fd)
        ended = not selector.get_map()
    for each in found.values():
        each.seek(0)
    return ended, [io.TextIOWrapper(each, errors="surrogateescape").read() for each in found.values()]


# -- in the process that forks ---------------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork a child for each request, report its process and its status; return request and streams in the child."""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data:
                    selector.unregister(key.fd)
                    _report(key.fd, *key.data)
                    continue
                message, streams, _, _ = socket.recv_fds(requests, MOST_BYTES, 4)
                if not message:
                    os._exit(0)
                child = os.fork()
                if not child:
                    return json.loads(message), streams
                os.write(streams[3], f"{child}\n".encode())
                selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, streams[3]))
                for stream in streams[:3]:
                    os.close(stream)


def _report(process: int, child: int, state: int) -> None:
    """Report the status of a child that has ended."""
    os.close(process)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):  # it was killed, having taken too long
        os.write(state, str(os.waitstatus_to_exitcode(status)).encode())
    os.close(state)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Take the arguments, the environment, the directory and the streams of a command."""
    for number in (0, 1, 2):
        os.dup2(streams[number], number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.argv[:] = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["cwd"])


def _main() -> int:
    for name in MODULES:
        importlib.import_module(name)
    commands()
    gc.freeze()  # else each child looks through all of it as it ends
    requests = socket.socket(fileno=int(sys.argv[1]))
    request, streams = _serve(requests)
    requests.close()
    _become(request, streams)
    return PROGRAMS[Path(sys.argv[0]).name]()


if __name__ == "__main__":
    sys.exit(_main())
