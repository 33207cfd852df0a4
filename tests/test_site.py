"""Test the cache that a site has on systems without mounts."""

import pytest

from tests.support.content_fakes import SMALL, FakeSource, version
from xnatfs.common.errors import BadReply
from xnatfs.content import Version
from xnatfs.site import MemoryCache


async def test_a_file_is_requested_once_and_not_at_all_if_it_was_put():
    cache, source, other = MemoryCache(), FakeSource(SMALL), version(b"other", "34/other")
    await cache.put(other, b"other")
    for _ in range(2):
        blob = await cache.open(version(SMALL), source)
        assert await blob.read(0, blob.size) == SMALL
    assert source.starts == [0]
    assert await cache.find_cached([version(SMALL), other, version(b"")]) == {version(SMALL), other}


@pytest.mark.parametrize("wanted", [version(SMALL[1:]), Version("34/a", len(SMALL) + 1, "")], ids=["digest", "length"])
async def test_other_bytes_than_listed_are_an_error_and_are_not_held(wanted):
    cache, source = MemoryCache(), FakeSource(SMALL[:-1])
    source.head_size = len(SMALL) + 1  # the server confirms the listing, not the body
    with pytest.raises(BadReply):
        await cache.open(wanted, source)
    assert await cache.find_cached([wanted]) == set()
