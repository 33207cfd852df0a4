"""Fixtures of the tests of the commands."""

from collections.abc import Iterator

import pytest

from tests.support.commanding import Shell, shell
from tests.support.failing import Desk, desk


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Provide a shell for commands that change nothing; a session waits in the prearchive."""
    with shell(tmp_path_factory.mktemp("home")) as made:
        made.receive("WAITING")
        yield made


@pytest.fixture
def sitting() -> Iterator[Desk]:
    with desk() as made:
        yield made
