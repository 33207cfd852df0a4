"""Fixtures for more than one module."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.support.commanding import Shell, shell
from tests.support.content_fakes import patient
from tests.support.demos import Demo, serving
from xnatfs.demo.server.releases import RELEASES, Release


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Shell]:
    """Provide a demo server of its own and a shell to work with it, for commands that change something."""
    with shell(tmp_path / "home") as made:
        yield made


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """Provide a demo server for the tests of a module."""
    with serving() as served:
        yield served


@pytest.fixture(params=list(RELEASES.values()), ids=list(RELEASES))
def release(request: pytest.FixtureRequest) -> Release:
    """Run a test for each release of XNAT. `DemoXnat`, `demos.serving` and `commanding.shell` take it as an option."""
    found: Release = request.param
    return found


@pytest.fixture
def patient_clock() -> MockClock:
    return patient()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what is not Unicode in a test's log, which one pytest process could not send to another."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
