"""Access: whether the account may still read what it has open, and what is not kept any more once it may not.

What was taken away, the listings tell that have to show it: a project that is not among the projects, a session that is
not in its project, an item that is refused. Where somebody looks, that costs nothing. For a file that stays open its
`Permit` asks for one listing, the same that shows the file's resource to whoever looks, and once in a TTL.

Invariants:
- Nothing counts as taken away that was not said twice, and our name by the server in between: an open site that dropped
  our session shows what a guest may see.
- A server that does not answer, or answers nonsense, takes nothing away.
- What was taken away is found by no later open. Who has it open hears of that from the permit.
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

# A reader waits so long, in seconds, for word that it may read on: more than a round trip, and no outage. The answer
# counts when it comes.
PATIENCE = 2.0
# After an answer that tells nothing the server is left alone for so long; and with a TTL of 0 after each that does.
AGAIN = 5.0

Shown = Callable[[], Awaitable[float]]
Owners = tuple[str, ...]


class Permit:
    """Leave to read the files of one resource, until a moment on the clock of ages. All who have one open share it."""

    __slots__ = ("__weakref__", "_access", "_answered", "_asked_at", "_next", "_refusal", "_shown", "until")

    def __init__(self, access: "Access", shown: Shown, until: float) -> None:
        self.until = until  # to be compared at each read, and renewed after it
        self._access = access
        self._shown = shown
        self._refusal: XnatError | None = None
        self._answered: trio.Event | None = None  # of the question that is under way
        self._asked_at = -float("inf")
        self._next = -float("inf")  # not asked again before

    @property
    def refused(self) -> bool:
        """For good."""
        return self._refusal is not None and self._next == float("inf")

    async def renew(self) -> None:
        """Ask whether it may be read on. Raises Denied or Stale where not, LoginRequired where we are nobody now."""
        if self._answered is None and now() >= self._next:
            self._answered, self._asked_at = trio.Event(), now()
            self._access.begin(self._ask, self._answered)
        if self._answered is not None:
            with trio.move_on_after(max(0.0, self._asked_at + PATIENCE - now())):
                await self._answered.wait()
        if self._refusal is not None:
            raise copy(self._refusal)  # a new one each time: a raised exception collects tracebacks

    async def _ask(self, answered: trio.Event) -> None:
        """In a task of its own: a reader that goes away takes nothing from the others."""
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
            log.debug("whether an open file may be read on is not known: %s", error)
            if self._refusal is None:
                self.until = again
        finally:
            self._next, self._answered = again, None
            answered.set()

    async def _look(self) -> float:
        try:
            return await self._shown()
        except (NotFound, Denied):  # perhaps it was said to a guest; then there is a new session by now
            await self._access.known()
        return await self._shown()


class Bulk(Protocol):
    """What is fetched ahead."""

    def leave(self, owners: Collection[str]) -> None:
        """Nothing more of what belongs to one of these."""


class Content(Protocol):
    """What is kept."""

    async def drop(self, owners: Collection[str]) -> None:
        """Nothing of what belongs to one of these is kept."""

    async def owners(self) -> set[Owners]:
        """What the kept files belong to."""


class Access:
    """What one account may read of one server, as far as it has read of it."""

    def __init__(
        self,
        content: Content,
        bulk: Bulk,
        account: Callable[[], str],
        known: Callable[[], Awaitable[bool]],
        ask: Callable[[ListKey], Awaitable[Iterable[str]]],
        forget: Callable[[ListKey], None],
        nursery: trio.Nursery,
    ) -> None:
        self.known = known  # ask the server whether it knows our session; then refusals of before do not count
        self._ask = ask  # the server for a list, of which the IDs matter
        self._content = content
        self._bulk = bulk
        self._account = account
        self._forget = forget  # a listing of what was taken away
        self._nursery = nursery
        self._permits: WeakValueDictionary[object, Permit] = WeakValueDictionary()
        self._kept: dict[tuple[str, Item], Owners] = {}  # what was read, by project and item
        self._projects: frozenset[str] | None = None  # as listed last

    def begin(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """In the background."""
        what = "what the account may read is not known"
        self._nursery.start_soon(unattended, what, logging.INFO, work, *arguments)

    def permit(self, key: object, shown: Shown, until: float) -> Permit:
        """Leave to read what a listing shows that is good `until` then; afterwards `shown` tells until when it is.

        `shown` raises NotFound or Denied where it is not shown any more.
        """
        permit = self._permits.get(key)
        if permit is None or permit.refused:
            permit = self._permits[key] = Permit(self, shown, until)
        permit.until = max(permit.until, until)
        return permit

    # -- what is kept --------------------------------------------------------------------------------------------

    def owners(self, project: str, item: Item) -> Owners:
        """What the files of an item belong to that are read through a project, as the cache of contents is told.

        By account: what one may not read any more another one may.
        """
        item = item[:2]  # what is below it goes with it
        found = self._kept.get((project, item))
        if found is None:
            named = (("projects", project), item) if project and item != ("projects", project) else (item,)
            found = self._kept[project, item] = tuple(json.dumps([self._account(), *each]) for each in named)
        return found

    async def recall(self) -> None:
        """Learn what earlier mounts have kept. Costs a look at all of the index."""
        for owners in await self._content.owners():
            named = _named(owners)
            if named and all(account == self._account() for account, *_ in named):
                item = tuple(named[-1][1:])
                self._kept.setdefault((named[0][2] if named[0][1] == "projects" else "", item), owners)
        if self._projects is not None:
            self._lose(ProjectsKey(), self._projects)

    def listed(self, key: ListKey, ids: Iterable[str]) -> None:
        """The server's list of this key holds these, and nothing else."""
        if isinstance(key, ProjectsKey | SubjectsKey | ExperimentsKey):
            found = frozenset(ids)
            if isinstance(key, ProjectsKey):
                self._projects = found
            self._lose(key, found)

    def refused(self, key: ListKey) -> None:
        """The server has no such list, or not for us."""
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
        owners = {lost[each][-1] for each in sure}  # of the items: one may be kept through another project as well
        self._bulk.leave(owners)
        await self._content.drop(owners)
        for _, item in sure:
            log.info("nothing of %s is kept any more: %s tells that it is gone", "/".join(item), key)
            for each in item_keys(item):  # its project's lists are made anew, or refused
                self._forget(each)

    async def _sure(self, key: ListKey, lost: Iterable[tuple[str, Item]]) -> list[tuple[str, Item]]:
        """What of this is gone by a second answer, too. The first may have been a guest's, and nobody knows by now."""
        if not await self.known():
            return []
        try:
            ids = frozenset(await self._ask(key))
        except (NotFound, Denied):
            return _gone(key, None, lost)
        return _gone(key, ids, lost)


def _gone(key: ListKey, ids: frozenset[str] | None, among: Iterable[tuple[str, Item]]) -> list[tuple[str, Item]]:
    """Which items, each with the project it was read through, are gone by a list of these; by None it was refused."""
    match key:
        case ProjectsKey() if ids is not None:
            return [(project, item) for project, item in among if project and project not in ids]
        case SubjectsKey(of) | ExperimentsKey(of) if ids is not None:
            kind = "subjects" if isinstance(key, SubjectsKey) else "experiments"
            return [(p, item) for p, item in among if p == of and item[0] == kind and item[1] not in ids]
        case SubjectsKey(of) | ExperimentsKey(of):  # a project's own resources may be open where these are closed
            return [(project, item) for project, item in among if project == of and item[0] != "projects"]
        case ResourcesKey(refused) if ids is None:
            return [(project, item) for project, item in among if item == refused]
    return []


def _named(owners: Owners) -> list[list[str]]:
    """Accounts and items as `owners` wrote them; nothing where somebody else has written."""
    try:
        named = [loads(owner) for owner in owners]
    except ValueError:
        return []
    whole = all(isinstance(each, list) and len(each) >= 3 and all(isinstance(x, str) for x in each) for each in named)
    return named if whole else []
