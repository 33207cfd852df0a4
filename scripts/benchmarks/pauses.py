"""Run xnatfs and record the pauses of its event loop: python -m scripts.benchmarks.pauses FILE ARGUMENT...

A pause is a round of the loop: the time from the arrival of events until the loop looks for the next ones, in which no
other call of the kernel is answered. FILE gets a line for each one of more than SHORTEST_SECONDS, as JSON: when it
began (on the monotonic clock, which all processes share), its duration, the processor time of the loop's thread in it,
that of the garbage collector in this thread, and the task of its longest step. Processor time excludes the waits for a
busy machine.
"""

import gc
import json
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import trio

from xnatfs.cli import main as run_xnatfs

SHORTEST_SECONDS = 0.005


class Pause(NamedTuple):
    """One pause of the loop, in seconds."""

    began: float
    took: float
    worked: float
    collected: float
    task: str


class Monitor(trio.abc.Instrument):
    """Record the pauses of the loop of this thread."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._began = self._work_began = self._step_began = 0.0
        self._longest = (0.0, "")
        self._collected = self._collecting = 0.0
        gc.callbacks.append(self._collect)

    def close(self) -> None:
        gc.callbacks.remove(self._collect)

    def _collect(self, phase: str, information: dict[str, int]) -> None:
        if threading.current_thread() is threading.main_thread():
            if phase == "start":
                self._collecting = time.thread_time()
            else:
                self._collected += time.thread_time() - self._collecting

    def after_io_wait(self, timeout: float) -> None:
        self._began, self._work_began, self._longest = time.monotonic(), time.thread_time(), (0.0, "")
        self._collected = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step_began = time.monotonic()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._longest = max(self._longest, (time.monotonic() - self._step_began, task.name))

    def before_io_wait(self, timeout: float) -> None:
        took = time.monotonic() - self._began
        if self._began and took > SHORTEST_SECONDS:
            worked = time.thread_time() - self._work_began
            found = Pause(self._began, took, worked, self._collected, self._longest[1])
            print(json.dumps(found), file=self._file, flush=True)


def recorded(path: Path, since: float) -> list[Pause]:
    """Return the pauses that began after a moment of the monotonic clock."""
    found = [Pause(*json.loads(line)) for line in path.read_text().splitlines()]
    return [pause for pause in found if pause.began > since]


def main(file: str, *words: str) -> int:
    with open(file, "a") as pauses:
        trio.run = partial(trio.run, instruments=[Monitor(pauses)])  # type: ignore[assignment]
        return run_xnatfs(words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
