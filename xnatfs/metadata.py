"""MetadataCache: listings, kept until they expire, fetched once for everybody who waits for them.

A value says itself when it expires, on trio's clock: a listing carries the time of its fetch on into all that is
made from it, so that nothing shown is older than the listing's TTL, however often it was derived.
A missing or forbidden thing is remembered too, for a short while.
"""

from collections.abc import Awaitable, Callable, Hashable
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

import trio
from cachetools import TLRUCache

from xnatfs.errors import Denied, NotFound, XnatError

# A million rows, at some 300 bytes each, are what a mount may hold in memory for its listings.
MAX_ROWS = 1_000_000
# Long enough for the burst of questions one `ls` asks; short enough for who was just let into a project.
REFUSAL_TTL = 5.0


class Expiring(Protocol):
    """What the cache can hold."""

    @property
    def expires(self) -> float: ...

    def __len__(self) -> int: ...


T = TypeVar("T", bound=Expiring)


class _Refusal:
    """The answer that something is not there, or not for us."""

    def __init__(self, error: XnatError) -> None:
        self._kind, self._text = type(error), str(error)
        self.expires = trio.current_time() + REFUSAL_TTL

    def __len__(self) -> int:
        return 1

    def error(self) -> XnatError:
        return self._kind(self._text)  # a new one each time: a raised exception collects tracebacks


class MetadataCache:
    """Values by key. Never awaits while it changes its state."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._values: TLRUCache[Hashable, Expiring] = TLRUCache(
            maxsize=max_rows,
            ttu=lambda _key, value, _now: value.expires,
            timer=trio.current_time,
            getsizeof=lambda value: len(value) + 1,
        )
        self._locks: WeakValueDictionary[Hashable, trio.Lock] = WeakValueDictionary()

    async def get(self, key: Hashable, fetch: Callable[[], Awaitable[T]]) -> T:
        """The value under this key, fetched unless it is there and fresh. Raises what `fetch` raises.

        Of several callers one fetches and the others wait; if that one is cancelled, the next one fetches.
        """
        found: T | None = self._fresh(key)
        if found is not None:
            return found
        async with self._locks.setdefault(key, trio.Lock()):
            found = self._fresh(key)
            if found is not None:
                return found
            try:
                value = await fetch()
            except (NotFound, Denied) as error:
                self._keep(key, _Refusal(error))
                raise
            self._keep(key, value)
            return value

    def peek(self, key: Hashable) -> Expiring | None:
        """The value under this key if it is there and fresh."""
        value = self._values.get(key)
        return None if isinstance(value, _Refusal) else value

    def put(self, key: Hashable, value: Expiring) -> None:
        self._keep(key, value)

    def forget(self, key: Hashable) -> None:
        self._values.pop(key, None)

    def _fresh(self, key: Hashable) -> T | None:
        value = self._values.get(key)
        if isinstance(value, _Refusal):
            raise value.error()
        return value  # type: ignore[return-value]  # what a key holds is what its fetch returned

    def _keep(self, key: Hashable, value: Expiring) -> None:
        if len(value) < self._values.maxsize:  # a larger one is used once and not kept
            self._values[key] = value
