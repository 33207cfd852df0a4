"""Fixtures for more than one module."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.support.commanding import Shell, shell
from tests.support.content_fakes import patient
from tests.support.demos import Demo, serving
from xnatfs.demo.server.releases import RELEASES, XNAT_1_8, Release

# The files that take longest, longest first: begun first, none of them is what the other processes wait for at the end.
LONGEST_FILES = (
    "promises/test_fault_matrix.py",
    "promises/test_stress.py",
    "programs/test_bids.py",
    "programs/test_headers.py",
    "scripts/test_bench.py",
    "cli/test_manners.py",
    "fuse/test_mount.py",
    "cli/test_execute.py",
    "cli/test_logins.py",
    "programs/test_directory.py",
    "transfer/uploads/test_sessions.py",
    "cli/test_boot.py",
    "scripts/test_building.py",
    "cli/test_contract.py",
    "cli/test_completion.py",
)


@pytest.fixture
def fresh(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Provide a demo server of its own and a shell to work with it, for commands that change something.

    The server is an XNAT 1.8, unless `commanding.EVERY_RELEASE` or `commanding.XNAT_1_6_ALONE` marks the test.
    """
    with shell(tmp_path / "home", release=getattr(request, "param", XNAT_1_8)) as made:
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


def pytest_configure(config: pytest.Config) -> None:
    """Leave the order of files to `pytest_collection_modifyitems`; pytest-xdist begins those with most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what is not Unicode in a test's log, which one pytest process could not send to another."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
