"""python -m scripts.stressing.reader: one reader, which runs programs until its standard input ends.

What it sees goes to a file, a line of JSON for each event.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from scripts.stressing.programs import PROGRAMS, WEIGHTS, Event, Reader, stat, written

# The limit of one program, in seconds. A session in a tar took up to 200, beside 31 other readers and with other load
# on the machine's two cores.
LIMIT = 600


class Stuck(Exception):
    """A program did not end within LIMIT."""


class Over(BaseException):
    """The reader is to end."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.stressing.reader", description=__doc__)
    parser.add_argument("--projects", type=Path, required=True, help="the directory of projects")
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--place", type=Path, required=True, help="for copies")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--stat", action="store_true", help="nothing but stat(2)")
    arguments = parser.parse_args()
    arguments.place.mkdir()
    with contextlib.suppress(Over), open(arguments.log, "w", buffering=1) as log:
        signal.signal(signal.SIGALRM, _stuck)
        signal.signal(signal.SIGTERM, _over)
        threading.Thread(target=_until_eof, daemon=True).start()
        note = written(log)
        reader = Reader(arguments.projects, arguments.sessions, arguments.seed, arguments.place, note)
        while True:
            _one(reader, "stat" if arguments.stat else "")
    return 0


def _one(reader: Reader, name: str) -> None:
    name = name or reader.chance.choices(list(PROGRAMS), WEIGHTS)[0]
    began = time.monotonic()
    signal.alarm(LIMIT)
    try:
        PROGRAMS.get(name, stat)(reader)
    except Stuck:
        wrong = f"{name} has not ended after {LIMIT} s"
        reader.log(Event(name, "", began, time.monotonic(), error="STUCK", wrong=wrong))
    finally:
        signal.alarm(0)
    reader.log(Event("ran", name, began, time.monotonic()))


def _stuck(number: int, frame: FrameType | None) -> None:
    raise Stuck


def _over(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: the current program is being ended
    raise Over


def _until_eof() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
