"""Run background tasks for as long as a context is open, gather results, and keep interrupts."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from xnatfs.common.errors import XnatError, first_error

if TYPE_CHECKING:  # takes a third of the time of a start, and help and errors do without it
    import trio

log = logging.getLogger(__name__)

T = TypeVar("T")

# Rows that are sorted, or of which nodes are made, in the event loop: 5 ms. A thread costs a tenth of a millisecond,
# and lets the loop have the interpreter every 5 ms.
MOST_ROWS_IN_LOOP = 1000


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """Open a nursery for background tasks, and cancel them when the context ends.

    An error that is raised in the context leaves it as it is: the nursery would wrap it in a group.
    """
    import trio

    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def run_and_log_errors(what: str, level: int, work: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Run a background task that no caller awaits, and log its failure, which must not end the mount.

    Args:
        what: The text of the log line.
        level: The logging level for an XnatError; any other exception is logged as an error, with its traceback.
        work: The async function to call.
        arguments: Its positional arguments.
    """
    try:
        await work(*arguments)
    except XnatError as error:
        log.log(level, "%s: %s", what, error)
    except Exception:
        log.exception(what)


async def run_in_thread_if_large(count: int, work: Callable[[], T]) -> T:
    """Return the result of `work` on this many rows; run it in a thread if other tasks would have to wait."""
    import trio

    return work() if count <= MOST_ROWS_IN_LOOP else await trio.to_thread.run_sync(work)


async def gather(*tasks: Callable[[], Awaitable[Any]] | None) -> list[Any]:
    """Run tasks in parallel, and return their results in their order: None for a task that is None.

    Raises the first error, and cancels the other tasks.
    """
    import trio

    results: list[Any] = [None] * len(tasks)

    async def run(number: int, task: Callable[[], Awaitable[Any]]) -> None:
        results[number] = await task()

    try:
        async with trio.open_nursery() as nursery:
            for number, task in enumerate(tasks):
                if task:
                    nursery.start_soon(run, number, task)
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    return results


async def in_parallel(items: Iterable[T], work: Callable[[T], Awaitable[None]], workers: int) -> None:
    """Do some work for each item, several in parallel. Raises the first error, and cancels the others."""
    waiting = iter(items)

    async def take_items() -> None:
        for item in waiting:  # shared: each worker takes the next one
            await work(item)

    await gather(*[take_items] * workers)


@contextmanager
def kept_interrupts() -> Iterator[None]:
    """Interrupt `trio.run` also where Ctrl-C is typed while a callback of a weak reference runs.

    Python prints and drops an exception of such a callback, so that the program went on as if nothing had been typed.
    """
    import trio

    # Protected, so that a signal which is handled in this function is raised in the main task, and not here.
    before, sys.unraisablehook = sys.unraisablehook, trio.lowlevel.enable_ki_protection(_interrupt_again)
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    if lost.exc_type is KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)
    else:
        sys.__unraisablehook__(lost)
