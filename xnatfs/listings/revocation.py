"""Revoke access: stop reads of open files, and drop cached data, once the account has lost access to them.

The listings that should contain an item show its loss: a project is not among the projects, a session is not in its
project, or the server refuses an item. Listings that a client requests anyway are checked at no cost. For a file that
stays open, its `Permit` requests one listing per TTL, the one in which the mount shows the file's resource.

Invariants:
- Access counts as lost only after two answers, between which the server has confirmed our session: an open site that
  has dropped the session shows what a guest may see.
- A server that does not answer, or answers nonsense, revokes nothing.
- No later open finds revoked data. Readers with an open file get the error from its permit.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable
from typing import Protocol
from weakref import WeakValueDictionary

import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import Denied, LoginRequired, NotFound, Stale, XnatError, fresh
from xnatfs.common.tasks import run_and_log_errors
from xnatfs.listings.background_store import ListingStore
from xnatfs.listings.keys import (
    ExperimentsKey,
    ListKey,
    PrearchiveKey,
    ProjectsKey,
    ResourcesKey,
    SubjectsKey,
    item_keys,
)
from xnatfs.listings.server_listings import ServerListings
from xnatfs.listings.store import ReadPlace, Resources
from xnatfs.rest.models import Item

log = logging.getLogger(__name__)

# Seconds that a reader waits for the check of its access: more than a round trip, and less than an outage. An answer
# that arrives later counts for the next read.
CHECK_SECONDS = 2.0
# Seconds until the next check after an answer that decides nothing; with a TTL of 0 also after one that does.
RECHECK_SECONDS = 5.0


class ShownItem(Protocol):
    """An item whose files may be read while a listing shows it."""

    async def confirm_shown(self) -> float:
        """Fetch the listing that shows the item, and return when it expires.

        Raises NotFound or Denied where the item is no longer shown.
        """


class CachedFiles(Protocol):
    """The cache of files, by the numbers of their resources."""

    async def drop(self, resources: Collection[str], /) -> None:
        """Remove the files of these resources."""


class Permit:
    """Permission to read the files of one resource; all its open files share it.

    Args:
        access: The access of the account.
        item: What shows the files.
        until: When the permission expires, on the clock of `common/clock.py`.
    """

    __slots__ = ("__weakref__", "_access", "_answered", "_asked_at", "_item", "_next", "_refusal", "until")

    def __init__(self, access: "Access", item: ShownItem, until: float) -> None:
        self.until = until  # compared at each read; after this moment the permit is renewed
        self._access = access
        self._item = item
        self._refusal: XnatError | None = None
        self._answered: trio.Event | None = None  # set when the check that is under way ends; None without one
        self._asked_at = -float("inf")
        self._next = -float("inf")  # the earliest moment of the next check

    @property
    def refused(self) -> bool:
        """Return whether the permission was refused for good."""
        return self._refusal is not None and self._next == float("inf")

    async def renew(self) -> None:
        """Check whether the files may still be read.

        Raises Denied or Stale where they may not, and LoginRequired where the server refuses the credentials.
        """
        if self._answered is None and now() >= self._next:
            self._answered, self._asked_at = trio.Event(), now()
            self._access.begin(self._ask, self._answered)
        if self._answered is not None:
            with trio.move_on_after(max(0.0, self._asked_at + CHECK_SECONDS - now())):
                await self._answered.wait()
        if self._refusal is not None:
            raise fresh(self._refusal)

    async def _ask(self, answered: trio.Event) -> None:
        """Run the check in a task of its own, so that a cancelled reader does not end it for the others."""
        again = self._asked_at + RECHECK_SECONDS
        try:
            self.until, self._refusal = max(await self._look(), again), None
        except NotFound as error:
            self._refusal, again = Stale(f"it was open, and no longer exists: {error}"), float("inf")
        except Denied as error:
            self._refusal, again = fresh(error), float("inf")
        except LoginRequired as error:
            self._refusal = fresh(error)
        except XnatError as error:
            log.debug("whether an open file may still be read is not known: %s", error)
            if self._refusal is None:
                self.until = again
        finally:
            self._next, self._answered = again, None
            answered.set()

    async def _look(self) -> float:
        try:
            return await self._item.confirm_shown()
        except (NotFound, Denied):  # perhaps for a guest, of an expired session: then the next request logs in
            await self._access.listings.has_session()
        return await self._item.confirm_shown()


class Access:
    """The access of one account to the items on one server from which it has read.

    Args:
        files: The cache of files.
        store: The store of what was read.
        listings: The listings of the server.
        nursery: The nursery of the background checks.
    """

    def __init__(
        self, files: CachedFiles, store: ListingStore, listings: ServerListings, nursery: trio.Nursery
    ) -> None:
        self.listings = listings
        self._files = files
        self._store = store
        self._nursery = nursery
        self._permits: WeakValueDictionary[object, Permit] = WeakValueDictionary()
        self._read: dict[ReadPlace, Resources] = {}
        self._projects: frozenset[str] | None = None  # the IDs in the last list of projects

    def begin(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Start a task in the background."""
        what = "what the account may read is not known"
        self._nursery.start_soon(run_and_log_errors, what, logging.INFO, work, *arguments)

    def permit(self, key: object, item: ShownItem, until: float) -> Permit:
        """Return the permit for the files of a resource.

        Args:
            key: The key of the resource; its open files share one permit.
            item: What shows the resource.
            until: When the current listing expires.
        """
        permit = self._permits.get(key)
        if permit is None or permit.refused:
            permit = self._permits[key] = Permit(self, item, until)
        permit.until = max(permit.until, until)
        return permit

    # -- cached files --------------------------------------------------------------------------------------------

    def note_read(self, project: str, item: Item, resource: str, listed: Collection[Hashable]) -> None:
        """Record that a file is read; others of its item may be prefetched with it.

        Args:
            project: The project through which it is read, or ''.
            item: The item with whose resources its resource is listed; what is below it is revoked with it.
            resource: The number of its resource.
            listed: The numbers of all resources of the item that have files.
        """
        place = (project, item[:2])
        known = set(self._read.get(place, "").split())
        if not known.issuperset((resource, *map(str, listed))):
            self._add(place, (resource, *map(str, listed)))
            self._store.note_read(place, self._read[place])

    def _add(self, place: ReadPlace, resources: Iterable[str]) -> None:
        self._read[place] = " ".join({*self._read.get(place, "").split(), *resources})

    async def recall(self) -> None:
        """Record what earlier mounts and commands have read."""
        for place, resources in (await self._store.reads()).items():
            self._add(place, resources.split())
        if self._projects is not None:
            self._lose(ProjectsKey(), self._projects)

    def on_listed(self, key: ListKey, ids: Iterable[str]) -> None:
        """Revoke cached items that are absent from a complete list of the server; `ids` are the IDs in it."""
        if isinstance(key, ProjectsKey | SubjectsKey | ExperimentsKey | PrearchiveKey):
            found = frozenset(ids)
            if isinstance(key, ProjectsKey):
                self._projects = found
            self._lose(key, found)

    def on_refused(self, key: ListKey) -> None:
        """Revoke cached items below a list that the server has refused, or does not have."""
        self._lose(key, None)

    def _lose(self, key: ListKey, ids: frozenset[str] | None) -> None:
        gone = _gone(key, ids, self._read)
        if gone:
            self.begin(self._take_away, key, {place: self._read.pop(place) for place in gone})

    async def _take_away(self, key: ListKey, lost: dict[ReadPlace, Resources]) -> None:
        sure: list[ReadPlace] = []
        try:
            sure = await self._confirm_loss(key, lost)
        finally:
            for place in lost.keys() - sure:
                self._add(place, lost[place].split())
        if sure:
            # Also what was read meanwhile, while the previous listing was served.
            gone = [*(lost[place] for place in sure), *(self._read.pop(place, "") for place in sure)]
            await self._files.drop({number for resources in gone for number in resources.split()})
        for place in sure:
            self._store.note_read(place, self._read.get(place, ""))
            log.info("dropped all cached files of %s: it is absent from %s", "/".join(place[1]), key)
            for each in item_keys(place[1]):  # its project's lists are requested anew, or refused
                self.listings.forget(each)

    async def _confirm_loss(self, key: ListKey, lost: Iterable[ReadPlace]) -> list[ReadPlace]:
        """Return the items that a second answer confirms as lost.

        The first one may have been an answer for a guest: whether the server knew the session then is unknown.
        """
        if not await self.listings.has_session():
            return []
        try:
            ids = frozenset(await self.listings.ids(key))
        except (NotFound, Denied):
            return _gone(key, None, lost)
        return _gone(key, ids, lost)


def _gone(key: ListKey, ids: frozenset[str] | None, among: Iterable[ReadPlace]) -> list[ReadPlace]:
    """Return the lost items, each with the project through which it was read.

    Args:
        key: The list.
        ids: The IDs in it, or None where the server refused it.
        among: The items to check, each with its project.
    """
    match key:
        case ProjectsKey() if ids is not None:
            return [(project, item) for project, item in among if project and project not in ids]
        case SubjectsKey(of) | ExperimentsKey(of) if ids is not None:
            kind = "subjects" if isinstance(key, SubjectsKey) else "experiments"
            return [(p, item) for p, item in among if p == of and item[0] == kind and item[1] not in ids]
        case SubjectsKey(of) | ExperimentsKey(of):  # a project's resources may be readable where its subjects are not
            return [(project, item) for project, item in among if project == of and item[0] != "projects"]
        case PrearchiveKey():
            return [place for place in among if place[1][0] == "prearchive" and place[1][1] not in (ids or ())]
        case ResourcesKey(refused) if ids is None:
            return [(project, item) for project, item in among if item == refused]
    return []
