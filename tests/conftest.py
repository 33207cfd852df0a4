"""Fixtures for more than one module."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.commanding import Shell, shell


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Shell]:
    """A demo of its own and a shell to work with it, for commands that change something."""
    home = tmp_path / "home"
    home.mkdir()
    with shell(home) as made:
        yield made


@pytest.fixture
def patient_clock() -> MockClock:
    """A clock that jumps when nothing goes on, also not in a thread that works on the disk.

    pytest-trio's `autojump_clock` jumps as soon as the event loop has nothing to do: it keeps that busy, takes the
    interpreter from the thread, and has patience run out that is meant for servers. An operation on the disk takes a
    millisecond or two.
    """
    return MockClock(autojump_threshold=0.005)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test has logged of names that are no Unicode cannot be sent by one process of pytest to another."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
