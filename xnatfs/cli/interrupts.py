"""Keep interrupts that Python would lose."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import trio


@contextmanager
def kept_interrupts() -> Iterator[None]:
    """Interrupt `trio.run` also where Ctrl-C is typed while a callback of a weak reference runs.

    Python prints and drops an exception of such a callback, so that the program went on as if nothing had been typed.
    """
    before, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        yield
    finally:
        sys.unraisablehook = before


@trio.lowlevel.enable_ki_protection  # the signal may be handled in this function: then trio raises it in the main task
def _interrupt_again(lost: "sys.UnraisableHookArgs") -> None:
    if lost.exc_type is KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)
    else:
        sys.__unraisablehook__(lost)
