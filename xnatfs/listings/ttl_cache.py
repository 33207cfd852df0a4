"""MetadataCache: listings, kept until they expire, fetched once for everybody who waits for them.

A value says itself when it expires, on the clock of ages: a listing carries the time of its fetch on into all that is
made from it, so that nothing shown is older than the listing's TTL, however often it was derived.
A missing or forbidden thing is remembered too, for a short while; any other failure is that of all who waited for it.
"""

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import trio
from cachetools import TLRUCache

from xnatfs.common.clock import now
from xnatfs.common.errors import Denied, NotFound, XnatError

# A file counts twice, in its listing (90 bytes) and in its folder (up to 200, where it was asked for by name): a
# million files, and as much again of what they hang on, are what a mount may hold in memory.
MAX_ROWS = 3_000_000
# Long enough for the burst of questions one `ls` asks; short enough for who was just let into a project.
REFUSAL_TTL = 5.0


class Expiring(Protocol):
    """What the cache can hold."""

    @property
    def expires(self) -> float: ...

    def __len__(self) -> int: ...


R = TypeVar("R")
T = TypeVar("T", bound=Expiring)


@dataclass(frozen=True, slots=True)
class Listing(Generic[R]):
    """The rows of one list of the server, all of one moment, and the same rows by group."""

    rows: Sequence[R]
    groups: Mapping[Hashable, Sequence[R]]
    fetched: float  # on the clock of ages
    expires: float
    broken: Mapping[str, str] = field(default_factory=dict)  # why a group could not be listed, by its key
    # Put together from lists of many items, or kept from an earlier mount: a row may be missing.
    pieced: bool = False
    stale: float = 0.0  # seconds since the epoch: the server is away, and this is of then

    def __len__(self) -> int:
        return len(self.rows)


def listing(
    rows: Sequence[R], group: Callable[[R], Hashable], started: float, ttl: float, *, pieced: bool = False
) -> Listing[R]:
    """Rows that were asked for at `started`, good for `ttl` seconds from then."""
    groups: dict[Hashable, list[R]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    return Listing(rows, groups, started, started + ttl, pieced=pieced)


class _Refusal:
    """The answer that something is not there, or not for us."""

    def __init__(self, error: XnatError) -> None:
        self._kind, self._text = type(error), str(error)
        self.expires = now() + REFUSAL_TTL

    def __len__(self) -> int:
        return 1

    def error(self) -> XnatError:
        return self._kind(self._text)  # a new one each time: a raised exception collects tracebacks


class _Turn:
    """Who fetches a key while others wait, and how it failed, if it did."""

    __slots__ = ("__weakref__", "error", "lock")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.error: XnatError | None = None


class MetadataCache:
    """Values by key. Never awaits while it changes its state."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._values: TLRUCache[Hashable, Expiring] = TLRUCache(
            maxsize=max_rows,
            ttu=lambda _key, value, _now: value.expires,
            timer=now,
            getsizeof=lambda value: len(value) + 1,
        )
        self._largest: tuple[Hashable, Expiring] | None = None  # a value that is larger than all that
        self._turns: WeakValueDictionary[Hashable, _Turn] = WeakValueDictionary()

    def __len__(self) -> int:
        """How many values it holds, fresh or not."""
        return len(self._values) + (self._largest is not None)

    async def get(self, key: Hashable, fetch: Callable[[], Awaitable[T]]) -> T:
        """The value under this key, fetched unless it is there and fresh. Raises what `fetch` raises.

        Of several callers one fetches and the others wait, and hear of its failure; if it is cancelled, the next one
        fetches.
        """
        found: T | None = self._fresh(key)
        if found is not None:
            return found
        turn = self._turns.setdefault(key, _Turn())
        waits = turn.lock.locked()
        async with turn.lock:
            found = self._fresh(key)
            if found is not None:
                return found
            if waits and turn.error is not None:
                raise copy(turn.error)  # a new one each time: a raised exception collects tracebacks
            return await self._fetch(key, fetch, turn)

    async def renew(
        self, key: Hashable, fetch: Callable[[], Awaitable[T]], old: Callable[[Expiring], bool] = lambda value: True
    ) -> None:
        """Fetch it anew, unless by now there is one that is not `old`."""
        turn = self._turns.setdefault(key, _Turn())
        async with turn.lock:
            found = self.peek(key)
            if found is None or old(found):
                await self._fetch(key, fetch, turn)

    async def _fetch(self, key: Hashable, fetch: Callable[[], Awaitable[T]], turn: _Turn) -> T:
        turn.error = None
        try:
            value = await fetch()
        except XnatError as error:
            turn.error = copy(error)
            if isinstance(error, NotFound | Denied):
                self._keep(key, _Refusal(error))
            raise
        self._keep(key, value)
        return value

    def peek(self, key: Hashable) -> Expiring | None:
        """The value under this key if it is there and fresh."""
        value = self._find(key)
        return None if isinstance(value, _Refusal) else value

    def put(self, key: Hashable, value: Expiring) -> None:
        self._keep(key, value)

    def expire(self) -> None:
        """Let go of what is not fresh any more; else that happens when something new comes."""
        self._values.expire()
        if self._largest and self._largest[1].expires <= now():
            self._largest = None

    def forget(self, key: Hashable) -> None:
        self._values.pop(key, None)
        if self._largest and self._largest[0] == key:
            self._largest = None

    def forget_all(self, which: Callable[[Hashable, Expiring], bool]) -> None:
        """All of which this is true. Looks at everything there is."""
        largest = [self._largest[0]] if self._largest else []
        for key in [*self._values, *largest]:
            value = self._find(key)
            if value is not None and which(key, value):
                self.forget(key)

    def forget_refusals(self) -> None:
        """That something is not there, or not for us: it was said to somebody else."""
        self.forget_all(lambda _key, value: isinstance(value, _Refusal))

    def _find(self, key: Hashable) -> Expiring | None:
        if self._largest and self._largest[0] == key and self._largest[1].expires > now():
            return self._largest[1]
        return self._values.get(key)

    def _fresh(self, key: Hashable) -> T | None:
        value = self._find(key)
        if isinstance(value, _Refusal):
            raise value.error()
        return value  # type: ignore[return-value]  # what a key holds is what its fetch returned

    def _keep(self, key: Hashable, value: Expiring) -> None:
        self.forget(key)
        if len(value) < self._values.maxsize:
            self._values[key] = value
        else:  # to fetch it for each of its resources would be worse than to hold it
            self._largest = (key, value)
