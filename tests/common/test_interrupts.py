"""Test that Ctrl-C ends a command wherever it arrives."""

import subprocess
import sys

import pytest

# A callback of a weak reference, in which the signal arrives.
PROGRAM = """
import signal, sys, weakref, trio
from xnatfs.common.tasks import kept_interrupts

class Thing:
    pass

def arrive(_):
    signal.raise_signal(signal.SIGINT)

async def main():
    thing = Thing()
    reference = weakref.ref(thing, arrive)
    del thing
    with trio.move_on_after(float(sys.argv[1])):
        await trio.sleep_forever()
    print("lost")

try:
    if sys.argv[2] == "kept":
        with kept_interrupts():
            trio.run(main)
    else:
        trio.run(main)
except KeyboardInterrupt:
    print("interrupted")
"""


def run(*words: str, program: str = PROGRAM) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)


def test_an_interrupt_in_a_callback_ends_the_command():
    done = run("300", "kept")
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_python_loses_it_by_itself():
    """Show that what keeps it is needed."""
    done = run("0.1", "not kept")
    assert done.stdout == "lost\n"
    assert "Exception ignored in" in done.stderr


@pytest.mark.parametrize("error", ["ValueError('x')", "SystemExit(3)"])
def test_other_exceptions_of_callbacks_are_printed(error):
    done = run("0.1", "kept", program=PROGRAM.replace("signal.raise_signal(signal.SIGINT)", f"raise {error}"))
    assert done.stdout == "lost\n"
    assert error.partition("(")[0] in done.stderr
