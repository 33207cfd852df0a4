"""Run xnatctl in forked children of a process that has imported it: a command costs a fork, not an interpreter.

A child gets its arguments, environment, directory, standard streams and exit status as a new process would, and ends as
one does. Its imports are what it shares with others, so tests of imports, of the installed program and of terminals
start it themselves. The server ends when the test process closes its socket.
"""

import atexit
import functools
import importlib
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.mounting import environment
from xnatfs.cli import main_xnatctl
from xnatfs.cli.ctl import main as ctl

# What commands import when they need it.
MODULES = ("trio", "httpx", "xnatfs.site", "xnatfs.cli.run")
# The largest message: a command line and an environment.
MOST_BYTES = 128 * 1024
# Variables that an interpreter reads when it starts, before its first import.
AT_START = ("PYTHON", "LC_", "LANG", "LD_")


class ForkServer:
    """The process that forks, and the socket to it; one for all tests of a test process."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        # Python makes its streams at the start, and as children have them: nothing to read, and pipes.
        self._env = environment(Path("/nonexistent"))
        self._process = subprocess.Popen(
            command,
            env=self._env,
            cwd=Path(__file__).parents[2],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        atexit.register(self.close)

    def close(self) -> None:
        self._requests.close()
        self._process.communicate()

    def can_run(self, env: Mapping[str, str]) -> bool:
        """Return true unless the environment changes how the interpreter itself starts."""
        return all(env.get(key) == self._env.get(key) for key in {*env, *self._env} if key.startswith(AT_START))

    def run(
        self, program: Path, words: list[str], env: Mapping[str, str], cwd: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with its output as text, and without an input; raise TimeoutExpired after killing it."""
        request = json.dumps({"argv": [str(program), *words], "env": dict(env), "cwd": str(cwd)}).encode()
        out, err, state = os.pipe(), os.pipe(), os.pipe()
        try:
            socket.send_fds(self._requests, [request], [out[1], err[1], state[1]])
        finally:
            for _, writing in (out, err, state):
                os.close(writing)
        with open(out[0], "rb") as output, open(err[0], "rb") as errors, open(state[0], "rb") as states:
            ended, texts = _read_all([output.fileno(), errors.fileno(), states.fileno()], timeout)
        child, _, status = texts[2].partition("\n")
        if not child:
            raise RuntimeError(f"the fork server has ended: {self._process.communicate()[1].decode()}")
        if not ended:
            os.kill(int(child), signal.SIGKILL)
            raise subprocess.TimeoutExpired(words, timeout)
        return subprocess.CompletedProcess([str(program), *words], int(status), *texts[:2])


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


_starting = threading.Lock()


def fork_server() -> ForkServer:
    """Return the server of this process."""
    with _starting:  # a cached function may be called twice by threads
        return _start()


@functools.cache
def _start() -> ForkServer:
    return ForkServer()


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
                message, streams, _, _ = socket.recv_fds(requests, MOST_BYTES, 3)
                if not message:
                    os._exit(0)
                child = os.fork()
                if not child:
                    return json.loads(message), streams
                os.write(streams[2], f"{child}\n".encode())
                selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, streams[2]))
                for stream in streams[:2]:
                    os.close(stream)


def _report(process: int, child: int, state: int) -> None:
    """Report the status of a child that has ended."""
    os.close(process)
    _, status = os.waitpid(child, 0)
    os.write(state, str(os.waitstatus_to_exitcode(status)).encode())
    os.close(state)


def main() -> int:
    for name in MODULES:
        importlib.import_module(name)
    ctl.commands()
    requests = socket.socket(fileno=int(sys.argv[1]))
    request, streams = _serve(requests)
    requests.close()
    os.dup2(streams[0], 1)
    os.dup2(streams[1], 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.argv[:] = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["cwd"])
    return main_xnatctl()


if __name__ == "__main__":
    sys.exit(main())
