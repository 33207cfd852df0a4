"""Past: listings as they were, for who wants to see them while the server is away (`--offline`).

Invariants:
- They stand in for an answer only where there is none for want of a server. What the server refuses, or does not list
  any more, is forgotten with all below it, and everything where it refuses the login; on the disk, too.
- Each says of when it is. None is older than the listings that are kept from one mount to the next: a day.
- Each is good for a moment only: the server is asked again, as soon as it may be back.
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

# How long one is shown until the server is asked anew, in seconds: as long as an outage may take to be known as over.
AGAIN = 5.0


class Past:
    """What was listed last, in this mount or in the one before it."""

    def __init__(self, kept: Kept, clock: Callable[[], float] = time.time) -> None:
        self._kept = kept
        self._clock = clock
        self._listings = MetadataCache()
        self._told = False

    def note(self, key: ListKey, found: Listing[Any]) -> None:
        """This was shown; if the server has said so now, it is what is shown later on."""
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
            self._kept.put(key, () if found.broken else found.rows)  # what is missing is not told there

    async def get(self, key: ListKey, kind: type, group: Callable[[Any], Hashable], why: XnatError) -> Listing[Any]:
        """The listing as it was. Raises `why` where there is none."""
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
        """The same, of this mount only."""
        found = self._listings.peek(key)
        return found if isinstance(found, Listing) else None

    def forget(self, key: ListKey) -> None:
        """The server has no such list, or not for us; so nothing of what is below."""
        before = self.peek(key)
        self._listings.forget(key)
        self._kept.put(key, ())
        if before is not None:
            self._lose(key, before.rows)

    def _lose(self, key: ListKey, rows: Iterable[Any]) -> None:
        """These rows of a list are there no more: nor is what was listed below them."""
        if isinstance(key, ProjectsKey | SubjectsKey | ExperimentsKey):
            for row in rows:
                for each in keys_below(key, row.id):
                    self.forget(each)

    def forget_all(self) -> None:
        """The login was refused."""
        self._listings.forget_all(lambda key, value: True)
        self._kept.forget_all()
