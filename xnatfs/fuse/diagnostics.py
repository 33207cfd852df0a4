"""Log the counters of a running mount and the stacks of its tasks, on SIGUSR1.

A stack has names of functions and files, and line numbers only: no data of a task, be it a path or a secret.
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
    """Log one line of counters, as JSON, and one with the stack of every other task, the innermost call last."""
    tasks = list(_tasks(trio.lowlevel.current_root_task()))
    log.info("state: %s", json.dumps({**operations.counters(), **site.counters(), "tasks": len(tasks)}))
    for task in tasks:
        # Not the running task: CPython 3.11 may take its instructions for the object it awaits, and crashes (observed).
        if task is not trio.lowlevel.current_task():
            log.info("task %s: %s", task.name, _stack(task))


def _tasks(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    """Yield a task and all tasks that it has started."""
    if task is None:
        return
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _tasks(child)


def _stack(task: trio.lowlevel.Task) -> str:
    frames = ((frame.f_code, line) for frame, line in task.iter_await_frames())
    return " > ".join(f"{code.co_name} ({PurePath(code.co_filename).name}:{line})" for code, line in frames)
