"""Count the functions of the product that a call of the kernel crosses in the daemon: python -m scripts.crossings.

A mount of the demo server runs in a process of its own, with a profile function in each of its threads; this process
makes the calls. Only the daemon is counted: the server is elsewhere, and download processes are none of its threads.
A coroutine or generator that goes on is no call. With `--functions N`, the N functions that are called most often in
each step follow.
"""

import argparse
import dis
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from xnatfs.demo.fixtures.lab import PASSWORDS, DemoArchive
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.socket import serve

PACKAGE = str(Path(__file__).parents[1] / "xnatfs")
USER = "demo-owner"
SESSION = "projects/BRAINS/SUB001/SUB001_MR1"
SERIES = f"{SESSION}/scans/1/DICOM"
# Seconds without a call after which all that a step has started in the background is over.
QUIET_SECONDS = 0.5
RESUME = dis.opmap["RESUME"]

Crossed = Counter[tuple[str, str]]  # calls by file and function


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="show the N most called functions")
    parser.add_argument("--daemon", nargs=2, metavar=("URL", "DIRECTORY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.daemon:
        return _serve(arguments.daemon[0], Path(arguments.daemon[1]))
    with serve(DemoXnat(DemoArchive())) as url, tempfile.TemporaryDirectory() as directory:
        steps = _measure(url, Path(directory))
    print(f"{'':40}{'files':>8}{'functions':>11}{'calls':>8}")
    for name, crossed in steps.items():
        files = {file for file, _ in crossed}
        print(f"{name:40}{len(files):8}{len(crossed):11}{crossed.total():8}")
        for (file, function), calls in crossed.most_common(arguments.functions):
            print(f"    {calls:6}  {file}: {function}")
    return 0


def _measure(url: str, directory: Path) -> dict[str, Crossed]:
    """Mount the server, make the calls, and return what each of them crosses."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir()
    command = [sys.executable, "-m", "scripts.crossings", "--daemon", url, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        orders, replies = daemon.stdin, daemon.stdout
        assert replies.readline() == "ready\n"

        def counted(step: Callable[[], object]) -> Crossed:
            for work in (lambda: None, step):
                work()
                orders.write("count\n")
                orders.flush()
                found = json.loads(replies.readline())
            return Counter({(file, function): calls for file, function, calls in found})

        try:
            session, series = mountpoint / SESSION, mountpoint / SERIES
            steps = {"cold ls of a session": counted(lambda: os.listdir(session))}
            steps["cold ls of a series"] = counted(lambda: os.listdir(series))
            first = series / sorted(os.listdir(series))[0]
            counted(first.stat)
            opened: list[int] = []

            def read() -> None:
                opened.append(os.open(first, os.O_RDONLY))
                os.read(opened[0], 4096)

            steps["cold open and read"] = counted(read)
            os.posix_fadvise(opened[0], 0, 0, os.POSIX_FADV_DONTNEED)  # the kernel's pages, so that it asks again
            steps["warm read"] = counted(lambda: os.pread(opened[0], 4096, 0))
            os.close(opened[0])
        finally:
            subprocess.run(["fusermount3", "-u", mountpoint], check=True)
    return steps


def _serve(url: str, directory: Path) -> int:
    """Serve the mount, and write what was crossed since the last time for each line that comes."""
    import trio

    from xnatfs.fuse.mount import MountOptions, mount
    from xnatfs.settings.config import Config
    from xnatfs.settings.credentials import Credentials

    crossed: Counter[Any] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and _begins(frame):
            crossed[code] += 1

    threading.Thread(target=_answer, args=(crossed,), daemon=True).start()  # before the profile: it is not counted
    threading.setprofile(count)
    sys.setprofile(count)
    config = Config(url, ttl=3600.0, cache_dir=directory / "cache")
    options = MountOptions(directory / "mnt")
    trio.run(mount, config, Credentials(USER, PASSWORDS[USER]), None, options, lambda: print("ready", flush=True))
    return 0


def _begins(frame: FrameType) -> bool:
    """Return whether a call begins, which the argument of RESUME says: 0 at the start, more after a yield or await."""
    code, place = frame.f_code.co_code, frame.f_lasti
    return place < 0 or code[place] != RESUME or code[place + 1] & 3 == 0


def _answer(crossed: Counter[Any]) -> None:
    pause = threading.Event()
    for _ in sys.stdin:
        while True:
            before = crossed.total()
            pause.wait(QUIET_SECONDS)
            if crossed.total() == before:
                break
        found = [
            (os.path.relpath(code.co_filename, PACKAGE), code.co_qualname, calls) for code, calls in crossed.items()
        ]
        crossed.clear()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
