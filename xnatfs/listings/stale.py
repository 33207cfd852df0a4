"""Serve expired listings while the server is unreachable (stale-if-error; `--offline`).

Invariants:
- They replace an answer only while the server is unreachable. A list that the server refuses, and an item that it does
  not list any more, are forgotten with everything below them; all listings are, where it refuses the login. That is
  done on the disk, too.
- Each has the time at which it was fetched. None is older than persisted listings may be: a day.
- Each is valid for AGAIN seconds only: then the list is requested again, since the server may be reachable.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

from xnatfs.common.clock import now
from xnatfs.common.errors import XnatError
from xnatfs.listings.keys import ExperimentsKey, ListKey, ProjectsKey, SubjectsKey, keys_below
from xnatfs.listings.persisted import OLDEST, Kept
from xnatfs.listings.ttl_cache import Listing, MetadataCache, listing
from xnatfs.rest.file_table import Catalogues
from xnatfs.rest.models import FileRow

log = logging.getLogger(__name__)

# Seconds for which a stale listing is served until the list is requested again: the longest time that it takes to
# notice the end of an outage.
AGAIN = 5.0


class Past:
    """The last listings of this mount, and of the one before it."""

    def __init__(self, kept: Kept, clock: Callable[[], float] = time.time) -> None:
        self._kept = kept
        self._clock = clock
        self._listings = MetadataCache()
        self._told = False

    def note(self, key: ListKey, found: Listing[Any]) -> None:
        """Store a listing that was served, if it is a new one of the server, and forget what it lacks."""
        before = self.peek(key)
        if found.stale or (before is not None and before.rows is found.rows):
            return
        self._told = False
        if before is not None and isinstance(key, ProjectsKey | SubjectsKey | ExperimentsKey):
            there = {row.id for row in found.rows}
            self._lose(key, [row for row in before.rows if row.id not in there])
        at = self._clock() - (now() - found.fetched)
        self._listings.put(key, replace(found, expires=found.fetched + OLDEST, stale=at))
        if isinstance(found.rows, Catalogues):
            self._kept.put(key, () if found.broken else found.rows)  # the file cannot hold which groups are broken

    async def get(self, key: ListKey, kind: type, group: Callable[[Any], Hashable], why: XnatError) -> Listing[Any]:
        """Return the last listing, marked as stale.

        Args:
            key: The key of the listing.
            kind: The class of its rows, for a persisted one.
            group: Return the group of a row.
            why: The error for which the listing is a substitute.

        Raises:
            XnatError: `why`, where no listing of the last day is stored.
        """
        found = self.peek(key)
        if found is None:
            found = await self._kept_from_before(key, kind, group)
        if found is None or not 0 <= self._clock() - found.stale <= OLDEST:
            raise why
        if not self._told:
            log.warning("listings are shown as they were: %s", why)
        self._told = True
        return replace(found, expires=now() + AGAIN, pieced=False)

    async def _kept_from_before(
        self, key: ListKey, kind: type, group: Callable[[Any], Hashable]
    ) -> Listing[Any] | None:
        dated: tuple[float, list[Any]] | None = await self._kept.dated(key, kind)
        if dated is None:
            return None
        at, rows = dated
        found_at = now()
        if kind is FileRow:
            files = Catalogues.of(rows)
            return Listing(files, files.groups, found_at, found_at, stale=at)
        return replace(listing(rows, group, found_at, 0.0), stale=at)

    def peek(self, key: ListKey) -> Listing[Any] | None:
        """Return the last listing of this mount; None where there is none."""
        found = self._listings.peek(key)
        return found if isinstance(found, Listing) else None

    def forget(self, key: ListKey) -> None:
        """Forget a list that the server does not have, or refuses, and all lists below it."""
        before = self.peek(key)
        self._listings.forget(key)
        self._kept.put(key, ())
        if before is not None:
            self._lose(key, before.rows)

    def _lose(self, key: ListKey, rows: Iterable[Any]) -> None:
        """Forget the lists below rows that a list does not have any more."""
        if isinstance(key, ProjectsKey | SubjectsKey | ExperimentsKey):
            for row in rows:
                for each in keys_below(key, row.id):
                    self.forget(each)

    def forget_all(self) -> None:
        """Forget all listings: the server has refused the login."""
        self._listings.forget_all(lambda key, value: True)
        self._kept.forget_all()
