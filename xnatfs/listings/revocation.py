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

import json
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from copy import copy
from typing import Protocol
from weakref import WeakValueDictionary

import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import Denied, LoginRequired, NotFound, Stale, XnatError
from xnatfs.common.sanitize import loads
from xnatfs.common.tasks import unattended
from xnatfs.listings.keys import ExperimentsKey, ListKey, ProjectsKey, ResourcesKey, SubjectsKey, item_keys
from xnatfs.rest.models import Item

log = logging.getLogger(__name__)

# Seconds that a reader waits for the check of its access: more than a round trip, and less than an outage. An answer
# that arrives later counts for the next read.
PATIENCE = 2.0
# Seconds until the next check after an answer that decides nothing; with a TTL of 0 also after one that does.
AGAIN = 5.0

Shown = Callable[[], Awaitable[float]]
Owners = tuple[str, ...]


class Permit:
    """Permission to read the files of one resource; all its open files share it.

    Args:
        access: The access of the account.
        shown: Fetch the listing that shows the resource, and return when it expires.
        until: When the permission expires, on the clock of `common/clock.py`.
    """

    __slots__ = ("__weakref__", "_access", "_answered", "_asked_at", "_next", "_refusal", "_shown", "until")

    def __init__(self, access: "Access", shown: Shown, until: float) -> None:
        self.until = until  # compared at each read; after this moment the permit is renewed
        self._access = access
        self._shown = shown
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
            with trio.move_on_after(max(0.0, self._asked_at + PATIENCE - now())):
                await self._answered.wait()
        if self._refusal is not None:
            raise copy(self._refusal)  # a new one each time: a raised exception collects tracebacks

    async def _ask(self, answered: trio.Event) -> None:
        """Run the check in a task of its own, so that a cancelled reader does not end it for the others."""
        again = self._asked_at + AGAIN
        try:
            self.until, self._refusal = max(await self._look(), again), None
        except NotFound as error:
            self._refusal, again = Stale(f"it was open, and is not there any more: {error}"), float("inf")
        except Denied as error:
            self._refusal, again = copy(error), float("inf")
        except LoginRequired as error:
            self._refusal = copy(error)
        except XnatError as error:
            log.debug("whether an open file may still be read is not known: %s", error)
            if self._refusal is None:
                self.until = again
        finally:
            self._next, self._answered = again, None
            answered.set()

    async def _look(self) -> float:
        try:
            return await self._shown()
        except (NotFound, Denied):  # perhaps for a guest, of an expired session: then the next request logs in
            await self._access.listings.has_session()
        return await self._shown()


class Bulk(Protocol):
    """The prefetch of files."""

    def leave(self, owners: Collection[str]) -> None:
        """Stop prefetching files of these owners."""


class Content(Protocol):
    """The cache of file contents."""

    async def drop(self, owners: Collection[str]) -> None:
        """Remove all files of these owners."""

    async def owners(self) -> set[Owners]:
        """Return the owners of the cached files, each combination once."""


class CurrentLists(Protocol):
    """The listings of the server."""

    async def has_session(self) -> bool:
        """Return whether the server knows the session; if not, the next request logs in. Forget earlier refusals."""

    async def ids(self, key: ListKey) -> list[str]:
        """Fetch the IDs in the server's current list."""

    def forget(self, key: ListKey) -> None:
        """Forget a listing of a revoked item."""


class Access:
    """The access of one account to the items on one server from which it has read.

    Args:
        content: The cache of file contents.
        bulk: The prefetch of files.
        account: Return the name of the account.
        listings: The listings of the server.
        nursery: The nursery of the background checks.
    """

    def __init__(
        self,
        content: Content,
        bulk: Bulk,
        account: Callable[[], str],
        listings: CurrentLists,
        nursery: trio.Nursery,
    ) -> None:
        self.listings = listings
        self._content = content
        self._bulk = bulk
        self._account = account
        self._nursery = nursery
        self._permits: WeakValueDictionary[object, Permit] = WeakValueDictionary()
        self._kept: dict[tuple[str, Item], Owners] = {}  # the owners of items that were read, by project and item
        self._projects: frozenset[str] | None = None  # the IDs in the last list of projects

    def begin(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Start a task in the background."""
        what = "what the account may read is not known"
        self._nursery.start_soon(unattended, what, logging.INFO, work, *arguments)

    def permit(self, key: object, shown: Shown, until: float) -> Permit:
        """Return the permit for the files of a resource.

        Args:
            key: The key of the resource; its open files share one permit.
            shown: Fetch the listing that shows the resource, and return when it expires. It raises NotFound or Denied
                where the resource is not shown any more.
            until: When the current listing expires.
        """
        permit = self._permits.get(key)
        if permit is None or permit.refused:
            permit = self._permits[key] = Permit(self, shown, until)
        permit.until = max(permit.until, until)
        return permit

    # -- cached files --------------------------------------------------------------------------------------------

    def owners(self, project: str, item: Item) -> Owners:
        """Return the owners of an item's files that are read through a project, for the cache of contents.

        They contain the account: another account may still read what this one has lost.
        """
        item = item[:2]  # items below it are revoked with it
        found = self._kept.get((project, item))
        if found is None:
            named = (("projects", project), item) if project and item != ("projects", project) else (item,)
            found = self._kept[project, item] = tuple(json.dumps([self._account(), *each]) for each in named)
        return found

    async def recall(self) -> None:
        """Register the files that earlier mounts have cached. Reads all of the index."""
        for owners in await self._content.owners():
            named = _named(owners)
            if named and all(account == self._account() for account, *_ in named):
                item = tuple(named[-1][1:])
                self._kept.setdefault((named[0][2] if named[0][1] == "projects" else "", item), owners)
        if self._projects is not None:
            self._lose(ProjectsKey(), self._projects)

    def listed(self, key: ListKey, ids: Iterable[str]) -> None:
        """Revoke cached items that are absent from a complete list of the server; `ids` are the IDs in it."""
        if isinstance(key, ProjectsKey | SubjectsKey | ExperimentsKey):
            found = frozenset(ids)
            if isinstance(key, ProjectsKey):
                self._projects = found
            self._lose(key, found)

    def refused(self, key: ListKey) -> None:
        """Revoke cached items below a list that the server has refused, or does not have."""
        self._lose(key, None)

    def _lose(self, key: ListKey, ids: frozenset[str] | None) -> None:
        gone = _gone(key, ids, self._kept)
        if gone:
            self.begin(self._take_away, key, {each: self._kept.pop(each) for each in gone})

    async def _take_away(self, key: ListKey, lost: dict[tuple[str, Item], Owners]) -> None:
        sure: list[tuple[str, Item]] = []
        try:
            sure = await self._sure(key, lost)
        finally:
            self._kept |= {each: owners for each, owners in lost.items() if each not in sure}
        owners = {lost[each][-1] for each in sure}  # the items: one may be cached through another project as well
        self._bulk.leave(owners)
        await self._content.drop(owners)
        for _, item in sure:
            log.info("dropped all cached files of %s: it is absent from %s", "/".join(item), key)
            for each in item_keys(item):  # its project's lists are requested anew, or refused
                self.listings.forget(each)

    async def _sure(self, key: ListKey, lost: Iterable[tuple[str, Item]]) -> list[tuple[str, Item]]:
        """Return the items that a second answer confirms as lost.

        The first one may have been an answer for a guest: whether the server knew the session then cannot be told.
        """
        if not await self.listings.has_session():
            return []
        try:
            ids = frozenset(await self.listings.ids(key))
        except (NotFound, Denied):
            return _gone(key, None, lost)
        return _gone(key, ids, lost)


def _gone(key: ListKey, ids: frozenset[str] | None, among: Iterable[tuple[str, Item]]) -> list[tuple[str, Item]]:
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
        case ResourcesKey(refused) if ids is None:
            return [(project, item) for project, item in among if item == refused]
    return []


def _named(owners: Owners) -> list[list[str]]:
    """Parse accounts and items as `owners` wrote them; return [] for any other text."""
    try:
        named = [loads(owner) for owner in owners]
    except ValueError:
        return []
    whole = all(isinstance(each, list) and len(each) >= 3 and all(isinstance(x, str) for x in each) for each in named)
    return named if whole else []
