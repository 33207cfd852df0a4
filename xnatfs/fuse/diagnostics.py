"""What a running mount holds and where its tasks are: written to its log for whoever sends it SIGUSR1.

Names of functions, files and lines only: nothing that a task works with, be it a path or a secret, is in a stack.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import PurePath

import trio

from xnatfs.fuse.operations import Operations
from xnatfs.site import Site

log = logging.getLogger(__name__)


def log_state(site: Site, operations: Operations) -> None:
    """One line of counters, as JSON, and one for every other task: where it is, the innermost call last."""
    tasks = list(_tasks(trio.lowlevel.current_root_task()))
    log.info("state: %s", json.dumps({**operations.counters(), **site.counters(), "tasks": len(tasks)}))
    for task in tasks:
        # Not the one that runs: CPython 3.11 may take its instructions for what it awaits, and crashes (seen).
        if task is not trio.lowlevel.current_task():
            log.info("task %s: %s", task.name, _stack(task))


def _tasks(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    """A task and all that it has started."""
    if task is None:
        return
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _tasks(child)


def _stack(task: trio.lowlevel.Task) -> str:
    frames = ((frame.f_code, line) for frame, line in task.iter_await_frames())
    return " > ".join(f"{code.co_name} ({PurePath(code.co_filename).name}:{line})" for code, line in frames)
