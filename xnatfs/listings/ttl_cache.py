"""Cache listings until they expire, and fetch each once for all tasks that wait for it.

A value holds its own expiry time, on the clock of `common/clock.py`. A listing passes the time of its fetch on to all
values that are derived from it, so that no value is older than the listing's TTL, however often it was derived.
A refusal (NotFound, Denied) is cached as well, for REFUSAL_SECONDS; any other failure is raised in all waiting tasks.
"""

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import trio
from cachetools import Cache, LRUCache

from xnatfs.common.clock import now
from xnatfs.common.errors import Denied, NotFound, XnatError, fresh

# A file counts twice, in its listing (90 bytes) and in its folder (up to 200, where it was looked up by name): a
# million files, and as many other rows, are what a mount may hold in memory.
MAX_CACHED_ROWS = 3_000_000
# Seconds: long enough for the burst of lookups of one `ls`, short enough for an account that was just granted access.
REFUSAL_SECONDS = 5.0
# Values that are looked at between two checkpoints: some 5 ms.
LOOKED_AT_ONCE = 5000


class Expiring(Protocol):
    """A value that the cache can hold; its length counts against the cache's limit."""

    @property
    def expires(self) -> float: ...

    def __len__(self) -> int: ...


R = TypeVar("R")
T = TypeVar("T", bound=Expiring)


@dataclass(frozen=True, slots=True)
class Listing(Generic[R]):
    """The rows of one list of the server, all of one moment, in order and by group."""

    rows: Sequence[R]
    groups: Mapping[Hashable, Sequence[R]]
    fetched: float  # on the clock of common/clock.py
    expires: float
    broken: Mapping[str, str] = field(default_factory=dict)  # why a group could not be listed, by its key
    # It is derived from batch lists, or persisted by an earlier mount: a row may be missing.
    pieced: bool = False
    stale: float = 0.0  # the time of the fetch, in seconds since the epoch, of a listing that is served stale; else 0

    def __len__(self) -> int:
        return len(self.rows)


def listing(
    rows: Sequence[R], group: Callable[[R], Hashable], started: float, ttl: float, *, pieced: bool = False
) -> Listing[R]:
    """Make a listing of rows.

    Args:
        rows: The rows, in the server's order.
        group: Return the group of a row.
        started: When the request was sent, on the clock of `common/clock.py`.
        ttl: Seconds from `started` for which the listing is valid.
        pieced: True where a row may be missing, because the rows are derived from batch lists.
    """
    groups: dict[Hashable, list[R]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    return Listing(rows, groups, started, started + ttl, pieced=pieced)


class _Refusal:
    """The answer that an item does not exist, or is refused to the account."""

    def __init__(self, error: XnatError) -> None:
        self._error = fresh(error)
        self.expires = now() + REFUSAL_SECONDS

    def __len__(self) -> int:
        return 1

    def error(self) -> XnatError:
        return fresh(self._error)


class _Turn:
    """The lock of one fetch for which other tasks wait, and the error of that fetch."""

    __slots__ = ("_key", "_lock", "_turns", "error")

    def __init__(self, turns: dict[Hashable, "_Turn"], key: Hashable) -> None:
        self._turns = turns
        self._key = key
        self._lock = trio.Lock()
        self.error: XnatError | None = None
        turns[key] = self

    async def __aenter__(self) -> bool:
        """Wait until no other task fetches, and return whether one did. No other task runs where none did."""
        waits = self._lock.locked()
        if waits:
            await self._lock.acquire()
        else:
            self._lock.acquire_nowait()
        return waits

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
        if not self._lock.locked():  # else it is the turn of the next task that waits
            del self._turns[self._key]


class MetadataCache:
    """Values by key. It awaits nothing while it changes its state."""

    def __init__(self, max_rows: int = MAX_CACHED_ROWS) -> None:
        self.stale_seconds = 0.0  # for so long after it has expired, a listing is held for `last`
        self._values: LRUCache[Hashable, Expiring] = LRUCache(max_rows, getsizeof=lambda value: len(value) + 1)
        self._largest: tuple[Hashable, Expiring] | None = None  # a value that exceeds the limit alone
        self._turns: dict[Hashable, _Turn] = {}
        self.generation = 0  # counts the calls of `outdate`

    def __len__(self) -> int:
        """Return the number of values, fresh or not."""
        return len(self._values) + (self._largest is not None)

    async def get(self, key: Hashable, fetch: Callable[[], Awaitable[T]]) -> T:
        """Return the fresh value of a key, fetching it where there is none. Raises what `fetch` raises.

        Of several callers one fetches; the others wait for its value or error. If it is cancelled, the next one
        fetches.
        """
        found: T | None = self._fresh(key)
        if found is not None:
            return found
        async with (turn := self._turn(key)) as has_waited:
            if has_waited:
                found = self._fresh(key)
                if found is not None:
                    return found
                if turn.error is not None:
                    raise fresh(turn.error)
            return await self._fetch(key, fetch, turn)

    async def renew(
        self, key: Hashable, fetch: Callable[[], Awaitable[T]], old: Callable[[Expiring], bool] = lambda value: True
    ) -> Expiring:
        """Return a value, fetching it unless by now there is a fresh one for which `old` is false.

        Raises what `fetch` raises.
        """
        async with (turn := self._turn(key)):
            found = self.peek(key)
            return await self._fetch(key, fetch, turn) if found is None or old(found) else found

    def _turn(self, key: Hashable) -> _Turn:
        return self._turns.get(key) or _Turn(self._turns, key)

    async def _fetch(self, key: Hashable, fetch: Callable[[], Awaitable[T]], turn: _Turn) -> T:
        turn.error, generation = None, self.generation
        try:
            value = await fetch()
        except XnatError as error:
            turn.error = fresh(error)
            if isinstance(error, NotFound | Denied) and generation == self.generation:
                self.put(key, _Refusal(error))
            raise
        if generation == self.generation:
            self.put(key, value)
        return value

    def peek(self, key: Hashable) -> Expiring | None:
        """Return the value of a key if it is fresh; None for a refusal, and where there is none."""
        value = self._find(key)
        return None if isinstance(value, _Refusal) else value

    def last(self, key: Hashable) -> Listing[Any] | None:
        """Return the last listing of a key, fresh or not, if it is still held."""
        value = self._held(key)
        return value if isinstance(value, Listing) else None

    def put(self, key: Hashable, value: Expiring) -> None:
        self.forget(key)
        if len(value) < self._values.maxsize:
            self._values[key] = value
        else:  # to fetch it for each of its resources would cost more than to hold it
            self._largest = (key, value)

    async def expire(self) -> None:
        """Release values that are no longer held, which otherwise stay until others need the room."""
        for place, key in enumerate(list(self._values)):
            if place % LOOKED_AT_ONCE == LOOKED_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            if key in self._values and self._held_until(Cache.__getitem__(self._values, key)) <= now():  # no use of it
                del self._values[key]
        if self._largest and self._held_until(self._largest[1]) <= now():
            self._largest = None

    def forget(self, key: Hashable) -> None:
        self._values.pop(key, None)
        if self._largest and self._largest[0] == key:
            self._largest = None

    def forget_all(self, which: Callable[[Hashable, Expiring], bool]) -> None:
        """Forget all values for which `which` is true. Iterates over the whole cache."""
        largest = [self._largest[0]] if self._largest else []
        for key in [*self._values, *largest]:
            value = self._held(key)
            if value is not None and which(key, value):
                self.forget(key)

    def outdate(self) -> None:
        """Keep nothing of which the fetch has begun before now; its callers get it all the same."""
        self.generation += 1

    def forget_refusals(self) -> None:
        """Forget all refusals, which were answers to another login."""
        self.forget_all(lambda _key, value: isinstance(value, _Refusal))

    def _find(self, key: Hashable) -> Expiring | None:
        """Return the fresh value or refusal of a key."""
        value = self._values.get(key) if self._largest is None else self._stored(key)
        return value if value is not None and value.expires > now() else None

    def _held(self, key: Hashable) -> Expiring | None:
        """Return the value or refusal of a key that is still held, fresh or not."""
        value = self._stored(key)
        return value if value is not None and self._held_until(value) > now() else None

    def _stored(self, key: Hashable) -> Expiring | None:
        return self._largest[1] if self._largest and self._largest[0] == key else self._values.get(key)

    def _held_until(self, value: Expiring) -> float:
        return value.expires + (self.stale_seconds if isinstance(value, Listing) else 0.0)

    def _fresh(self, key: Hashable) -> T | None:
        """Return the fresh value of a key. Raises the error of a fresh refusal."""
        value = self._find(key)
        if isinstance(value, _Refusal):
            raise value.error()
        return value  # type: ignore[return-value]  # what a key holds is what its fetch returned
