"""Fixtures for more than one module."""

import pytest
from trio.testing import MockClock


@pytest.fixture
def patient_clock() -> MockClock:
    """A clock that jumps when nothing goes on, also not in a thread that works on the disk.

    pytest-trio's `autojump_clock` jumps as soon as the event loop has nothing to do: it keeps that busy, takes the
    interpreter from the thread, and has patience run out that is meant for servers. An operation on the disk takes a
    millisecond or two.
    """
    return MockClock(autojump_threshold=0.005)
