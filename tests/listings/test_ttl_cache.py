"""Test that listings are fetched once, and cached while fresh."""

from dataclasses import dataclass

import pytest
import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import NotFound, Unreachable
from xnatfs.listings.ttl_cache import REFUSAL_SECONDS, Listing, MetadataCache, listing


@dataclass(frozen=True)
class Value:
    text: str
    expires: float

    def __len__(self) -> int:
        return len(self.text)


class Fetcher:
    """A fetcher that counts its calls; each takes a second."""

    def __init__(self, ttl: float = 60.0, error: Exception | None = None) -> None:
        self.calls = 0
        self._ttl = ttl
        self._error = error

    async def __call__(self) -> Value:
        self.calls += 1
        await trio.sleep(1)
        if self._error:
            raise self._error
        return Value(f"answer {self.calls}", trio.current_time() + self._ttl)


async def test_a_value_is_fetched_once_while_fresh(autojump_clock):
    cache, fetch = MetadataCache(), Fetcher()
    first = await cache.get("key", fetch)
    await trio.sleep(59)
    assert await cache.get("key", fetch) is first
    await trio.sleep(2)
    assert (await cache.get("key", fetch)).text == "answer 2"


async def test_ten_callers_share_one_fetch(autojump_clock):
    cache, fetch = MetadataCache(), Fetcher()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(cache.get, "key", fetch)
    assert fetch.calls == 1


async def test_a_cancelled_fetch_is_handed_to_the_next_waiter(autojump_clock):
    cache, fetch = MetadataCache(), Fetcher()
    found = []

    async def wait() -> None:
        found.append(await cache.get("key", fetch))

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as first:
                first.start_soon(cache.get, "key", fetch)
                await trio.sleep(0.1)
                nursery.start_soon(wait)
                await trio.sleep_forever()
    assert [value.text for value in found] == ["answer 2"]


async def test_a_missing_thing_is_remembered_for_a_short_while(autojump_clock):
    cache, fetch = MetadataCache(), Fetcher(error=NotFound("not there"))
    for _ in range(3):
        with pytest.raises(NotFound, match="not there"):
            await cache.get("key", fetch)
    assert fetch.calls == 1
    await trio.sleep(REFUSAL_SECONDS + 1)
    with pytest.raises(NotFound):
        await cache.get("key", fetch)
    assert fetch.calls == 2


async def test_an_outage_is_not_remembered(autojump_clock):
    cache, fetch = MetadataCache(), Fetcher(error=Unreachable("away"))
    for _ in range(2):
        with pytest.raises(Unreachable):
            await cache.get("key", fetch)
    assert fetch.calls == 2


async def test_peek_asks_for_nothing(autojump_clock):
    cache = MetadataCache()
    assert cache.peek("key") is None
    value = await cache.get("key", Fetcher())
    assert cache.peek("key") is value
    cache.forget("key")
    assert cache.peek("key") is None


async def test_of_values_larger_than_all_that_fits_the_last_is_kept(autojump_clock):
    cache, fetch = MetadataCache(max_rows=4), Fetcher()
    cache.put("small", Value("a", trio.current_time() + 1000))
    first = await cache.get("key", fetch)
    assert await cache.get("key", fetch) is first
    assert cache.peek("small") is not None
    other = await cache.get("other", fetch)
    assert (cache.peek("key"), cache.peek("other")) == (None, other)
    await trio.sleep(61)
    assert cache.peek("other") is None
    cache.put("other", Value("b", trio.current_time() + 60))
    cache.forget("other")
    assert cache.peek("other") is None


async def test_what_is_old_can_be_let_go_of(autojump_clock):
    cache = MetadataCache(max_rows=4)
    for key, text in (("small", "a"), ("large", "abcde")):
        cache.put(key, Value(text, trio.current_time() + 60))
    await cache.expire()
    assert len(cache) == 2
    await trio.sleep(61)
    await cache.expire()
    assert len(cache) == 0


async def test_to_let_go_of_old_values_is_no_use_of_the_others(autojump_clock):
    cache, expires = MetadataCache(max_rows=9), trio.current_time() + 60
    for key in ("a", "b", "c"):
        cache.put(key, Value("12", expires))
    assert cache.peek("a") is not None
    await cache.expire()
    cache.put("d", Value("12", expires))
    assert [cache.peek(key) is None for key in "abcd"] == [False, True, False, False]


async def test_the_values_used_least_recently_make_way(autojump_clock):
    cache, expires = MetadataCache(max_rows=9), trio.current_time() + 60
    for key in ("a", "b", "c"):
        cache.put(key, Value("12", expires))
    assert cache.peek("a") is not None
    cache.put("d", Value("12", expires))
    assert [cache.peek(key) is not None for key in "abcd"] == [True, False, True, True]
    cache.put("d", Value("12345", expires))
    assert [cache.peek(key) is not None for key in "abcd"] == [False, False, True, True]
    cache.forget("c")
    cache.put("a", Value("12", expires))
    assert [cache.peek(key) is not None for key in "abcd"] == [True, False, False, True]


async def test_a_fetch_that_nothing_waits_for_lets_no_other_task_run(autojump_clock):
    cache, ran = MetadataCache(), []

    async def fetch() -> Value:
        return Value("made of what is there", trio.current_time() + 60)

    async def other() -> None:
        ran.append("a task")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await cache.get("key", fetch)
        assert not ran


async def test_who_waits_for_a_fetch_hears_how_it_failed(autojump_clock):
    cache, fetch = MetadataCache(), Fetcher(error=Unreachable("away", status=503))
    heard: list[Unreachable] = []

    async def wait() -> None:
        with pytest.raises(Unreachable, match="away") as caught:
            await cache.get("key", fetch)
        heard.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(wait)
    assert fetch.calls == 1
    assert len({id(error) for error in heard}) == 5
    assert {error.status for error in heard} == {503}
    await wait()
    assert fetch.calls == 2, "who comes later asks again"


async def test_a_value_is_renewed_while_it_is_fresh(autojump_clock):
    cache, fetch = MetadataCache(), Fetcher()
    await cache.get("key", fetch)
    await cache.renew("key", fetch)
    assert (await cache.get("key", fetch)).text == "answer 2"
    await cache.renew("key", fetch, lambda value: False)
    assert fetch.calls == 2, "there is one that is not old"


async def test_a_renewal_that_is_refused_takes_the_value_away(autojump_clock):
    cache = MetadataCache()
    await cache.get("key", Fetcher())
    for error in (Unreachable("away"), NotFound("gone")):
        with pytest.raises(type(error)):
            await cache.renew("key", Fetcher(error=error))
        assert (cache.peek("key") is None) == isinstance(error, NotFound)


@pytest.mark.parametrize("most", [100, 2])
async def test_an_expired_listing_is_held_as_long_as_it_may_be_served(autojump_clock, most):
    """Hold it even where it is larger than the cache, but no other value."""
    cache = MetadataCache(most)
    cache.stale_seconds = 100.0
    made = listing([1, 2, 3], lambda row: row, trio.current_time(), 60.0)
    cache.put("list", made)
    await trio.sleep(61)
    cache.put("other", Value("x", trio.current_time() + 1))
    await trio.sleep(2)
    await cache.expire()
    assert (cache.peek("list"), cache.last("list"), cache.last("other")) == (None, made, None)
    assert (await cache.get("list", Fetcher())).text == "answer 1"
    assert cache.last("list") is None
    cache.put("list", made)
    cache.forget_all(lambda key, value: True)
    assert cache.last("list") is None
    cache.put("list", made)
    await trio.sleep(100)
    await cache.expire()
    assert (cache.last("list"), len(cache)) == (None, 0)


@pytest.mark.parametrize("refuses", [False, True])
async def test_what_was_requested_before_a_change_is_returned_and_not_kept(autojump_clock, refuses):
    cache, requests = MetadataCache(), 0

    async def fetch() -> Listing[str]:
        nonlocal requests
        requests += 1
        number, started = requests, now()
        await trio.sleep(1)
        if refuses and number == 1:
            raise NotFound("it is not there yet")
        return listing([str(number)], hash, started, 60.0)

    found: list[object] = []

    async def get() -> None:
        try:
            found.append((await cache.get("key", fetch)).rows)
        except NotFound:
            found.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        await trio.sleep(0.5)
        cache.outdate()
    await get()
    assert found == [None if refuses else ["1"], ["2"]]
    await get()
    assert requests == 2
