"""Fixtures of the tests of the demo: an archive, its server and clients of it. A module overrides what differs."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.changing import OWNER, Client, Clock, clients, small_archive
from xnatfs.demo.archive.model import Archive
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.releases import XNAT_1_8, Release


@pytest.fixture
def archive() -> Archive:
    return small_archive()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def release() -> Release:
    return XNAT_1_8


@pytest.fixture
def demo(archive: Archive, clock: Clock, release: Release) -> DemoXnat:
    return DemoXnat(archive, release=release, clock=clock, wait=clock.wait)


@pytest.fixture
def client(demo: DemoXnat) -> Iterator[Client]:
    """Make clients of the demo, each with cookies of its own; logged in where a user is given."""
    with clients(demo) as make:
        yield make


@pytest.fixture
def owner(client: Client) -> httpx.Client:
    return client(OWNER)


@pytest.fixture
def jane(client: Client) -> httpx.Client:
    return client("jane")
