"""Fixtures of the tests of programs. A module overrides what differs."""

from collections.abc import Iterator

import pytest

from tests.support.demos import Demo
from tests.support.mounting import Mount, mounting


@pytest.fixture(scope="module")
def mount(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Provide a mount for the tests of a module; its listings outlive them, however slow the machine is."""
    with mounting(demo.url, tmp_path_factory.mktemp("mount"), "--ttl", "1h", **demo.login) as mounted:
        yield mounted
