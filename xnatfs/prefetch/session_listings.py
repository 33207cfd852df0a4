"""Prefetch the listings of upcoming sessions when a client iterates over a project.

A session that is opened alone costs its own four requests, sent together. An iteration is recognised at the second
session if that is the next one in order, and at the fourth in quick succession in any order. Then sessions are
requested in batches of 2, 4 ... 128, or 2, 8, 32, 128 of a quick server: their files with one list, their scans and
their assessors from lists of the project.

Invariants:
- The prefetch only puts listings into the cache that single requests would have put there, under the same keys. It
  leaves out every listing that it cannot confirm; that is then requested singly. Any failure here is such a case.
- A list of files is compared with the list of their resources, which states how many files each has. A session that
  lacks one is requested singly; so is the whole batch where it is not known to which session the missing files belong.
  An absence of files counts only from a server that has listed those of several sessions at once.
- Other lists are compared with single answers until they agreed about something (`prefetch/checked_list.py`).
- No more is fetched ahead than an iteration at its pace reaches in half of the TTL.

A batch cannot show a resource without files of anything but a scan. So everything put here is marked `pieced`, and for
a name that it lacks the item itself is requested (`Dir.child` in `tree/node.py`).
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar
from urllib.parse import quote

import trio

from xnatfs.common.clock import now
from xnatfs.common.tasks import gather, run_and_log_errors, run_in_thread_if_large
from xnatfs.listings.keys import (
    AssessorsKey,
    ExperimentsKey,
    FilesKey,
    ListKey,
    ResourcesKey,
    ScansKey,
    SubjectsKey,
    experiment_keys,
)
from xnatfs.listings.server_listings import ServerListings
from xnatfs.listings.ttl_cache import Expiring, Listing, listing
from xnatfs.prefetch.checked_list import fetch_in_bulk
from xnatfs.prefetch.iteration import Iteration
from xnatfs.prefetch.project_lists import (
    AssessorsOfSessions,
    LabelsOfSubjects,
    OwnLists,
    ProjectSessions,
    ScansOfProject,
)
from xnatfs.prefetch.session_batch import SessionBatch
from xnatfs.rest.client import Xnat
from xnatfs.rest.file_table import Catalogues
from xnatfs.rest.models import Experiment

log = logging.getLogger(__name__)

# Sessions in one list of files. The server parses the catalogues of all before it answers. Each batch is three or four
# requests, so that an iteration over 1,000 sessions takes 56 in all.
MAX_BATCH = 128
# With fewer sessions ahead before a listing expires, a list of the whole project costs the server more than it saves.
MIN_BATCH = 4
# A batch that takes longer than this, in seconds, is followed by smaller ones.
SLOW_BATCH_SECONDS = 5.0
# One that takes less than this is followed by one of four times its size, any other by one of twice its size: what is
# fetched in vain costs the server a few seconds then. Always twice is 64 requests for 1,000 sessions.
QUICK_BATCH_SECONDS = 1.0
# Characters of IDs in a URL: servers and proxies accept URLs of 8 KB, and the rest of the URL needs some of it.
MAX_ID_CHARACTERS = 7000

R = TypeVar("R")


class SessionListings:
    """Recognise iterations over the sessions and the subjects of one project, and prefetch listings.

    Args:
        project: The ID of the project.
        xnat: The client of the server.
        listings: The listings of the server, to which prefetched ones are added.
        ttl: Seconds for which a listing is valid.
        nursery: Runs the batches that are requested ahead.
    """

    def __init__(self, project: str, xnat: Xnat, listings: ServerListings, ttl: float, nursery: trio.Nursery) -> None:
        self._project = project
        self._xnat = xnat
        self._listings = listings
        self._metadata = listings.cache
        self._ttl = ttl
        self._nursery = nursery
        self._listed: tuple[object, object] = (None, None)  # the listings that the next two are made of
        self._sessions = ProjectSessions()
        self._iteration, self._subject_iteration = Iteration(ttl), Iteration(ttl)
        self._looked_at: set[str] = set()  # sessions opened during this iteration
        self._begun: dict[str, float] = {}  # when the single requests for a session began
        self._under_way: dict[str, trio.Event] = {}
        self._batch, self._batch_begun, self._growth = 1, -float("inf"), 2
        self._middle = ""  # of the last batch: the next one is begun when the client opens it
        self._lists_several = False  # the server has listed the files of several sessions at once
        self._is_ended = False
        own = OwnLists(self._metadata, ttl)
        self._scans = ScansOfProject(project, xnat, ttl, self._sessions, own)
        self._assessors = AssessorsOfSessions(xnat, ttl, self._sessions, own)
        self._labels = LabelsOfSubjects(project, xnat, ttl, own)

    def end(self) -> None:
        """Cache nothing more: what is on its way was requested before listings were dropped as outdated."""
        self._is_ended = True

    async def enter_session(self, accession: str, *, assessors: bool = True) -> None:
        """Prefetch for a session that a client opens; its listings are cached on return, or being requested singly.

        Without `assessors`, a single session's are not requested: the client does not show them.
        """
        await self._sort()
        is_iterating = self._iteration.step(accession)
        if not is_iterating:
            self._batch = 1
            self._looked_at.clear()
        self._looked_at.add(accession)
        if accession in self._under_way:
            await self._under_way[accession].wait()
        if is_iterating and accession == self._middle:
            self._middle = ""  # a client may open a session several times
            what = "a batch that was requested ahead"
            self._nursery.start_soon(run_and_log_errors, what, logging.DEBUG, self._fetch_ahead, accession)
        asked_at = now()
        if self._is_known(accession) or asked_at - self._begun.get(accession, -float("inf")) < self._ttl:
            return
        if is_iterating and accession in self._sessions.rows and (size := self._next_size(self._batch)):
            await self._fetch_batch(self._choose(accession, size))
        if not self._is_known(accession):
            self._begun[accession] = asked_at
            unwanted: set[type[ListKey]] = set() if assessors else {AssessorsKey}
            if not self._sessions.is_imaging(accession):
                unwanted |= {ScansKey, AssessorsKey}
            for key in experiment_keys(accession):
                if type(key) not in unwanted:
                    self._listings.begin(key)

    async def enter_subject(self, accession: str) -> None:
        """Prefetch for a subject whose resources a client lists: an absence of resources is cached on return."""
        await self._sort()
        key = ResourcesKey(("subjects", accession), False)
        if not self._subject_iteration.step(accession) or self._metadata.peek(key) is not None:
            return
        labels = await self._labels.rows([accession], _given(self._subject_iteration.alone))
        if labels is not None and labels.get(accession) == set():
            self._give(key, listing([], lambda row: row, self._labels.fetched, self._ttl, pieced=True))

    async def _sort(self) -> None:
        """Sort new listings of the project's sessions and subjects; meanwhile other tasks use the previous ones."""
        sessions = self._metadata.peek(ExperimentsKey(self._project))
        subjects = self._metadata.peek(SubjectsKey(self._project))
        before, self._listed = self._listed, (sessions, subjects)
        if isinstance(sessions, Listing) and sessions is not before[0]:
            self._sessions.rows = await run_in_thread_if_large(len(sessions), lambda: self._in_order(sessions.rows))
            self._begun = {each: begun for each, begun in self._begun.items() if now() - begun < self._ttl}
        if isinstance(subjects, Listing) and subjects is not before[1]:
            labels = {row.id: (row.label,) for row in subjects.rows}
            await run_in_thread_if_large(len(subjects), lambda: self._subject_iteration.sort(labels))

    def _in_order(self, rows: Sequence[Experiment]) -> dict[str, Experiment]:
        by_id = {row.id: row for row in rows}
        order = self._iteration.sort({row.id: (row.subject_label, row.label) for row in by_id.values()})
        return {each: by_id[each] for each in order}

    def _is_known(self, accession: str) -> bool:
        return all(self._metadata.peek(key) is not None for key in experiment_keys(accession))

    # -- batches -------------------------------------------------------------------------------------------------

    def _next_size(self, passed: int) -> int:
        """Return the size of the next batch: a multiple of the last, if so many are reached in half of the TTL.

        0 where so few are reached that single requests cost the least. `passed` sessions of the last were opened.
        """
        elapsed = self._iteration.gap if self._batch == 1 else now() - self._batch_begun
        reached = MAX_BATCH if elapsed <= 0 else int(self._ttl / 2 * passed / elapsed)
        return min(self._growth * self._batch, MAX_BATCH, reached) if reached >= MIN_BATCH else 0

    def _choose(self, accession: str, size: int) -> list[str]:
        """Choose this session and the next ones without listings; where there are no more, those before it."""
        order = list(self._sessions.rows)
        at = order.index(accession)
        chosen: list[str] = []
        room = MAX_ID_CHARACTERS
        for each in (*order[at:], *reversed(order[:at])):
            if each == accession or not (each in self._looked_at or each in self._under_way or self._is_known(each)):
                room -= len(quote(each)) + len("%2C")
                if len(chosen) == size or room < 0:
                    break
                chosen.append(each)
        return chosen or [accession]

    async def _fetch_ahead(self, accession: str) -> None:
        """Fetch the batch after the one of which the client opens the middle, so that it need not wait for it."""
        order, size = list(self._sessions.rows), self._next_size(max(1, self._batch // 2))
        following = order[order.index(accession) + 1 :] if accession in self._sessions.rows else []
        unknown = (each for each in following if each not in self._under_way and not self._is_known(each))
        if size and (first := next(unknown, "")):
            await self._fetch_batch(self._choose(first, size))

    async def _fetch_batch(self, chosen: Sequence[str]) -> None:
        self._batch, self._batch_begun, self._middle = len(chosen), now(), chosen[len(chosen) // 2]
        done = trio.Event()
        self._under_way |= dict.fromkeys(chosen, done)
        try:
            await self._fetch_lists(chosen)
        finally:
            for each in chosen:
                self._under_way.pop(each, None)
            done.set()
        took = now() - self._batch_begun
        self._growth = 4 if took < QUICK_BATCH_SECONDS else 2
        if took > SLOW_BATCH_SECONDS:
            self._batch = max(1, self._batch // 2)

    async def _fetch_lists(self, chosen: Sequence[str]) -> None:
        """Request all listings of these sessions, and cache those that are confirmed."""
        started, alone = now(), _given(self._iteration.alone)
        imaging = [each for each in chosen if self._sessions.is_imaging(each)]
        what, is_batch = f"files of {len(chosen)} sessions", len(chosen) > 1
        scans, assessors, files, resources = await gather(
            lambda: self._scans.rows(chosen, alone),
            (lambda: self._assessors.rows(imaging, alone)) if imaging else None,
            (lambda: fetch_in_bulk(what, lambda: self._xnat.files_of_many(chosen))) if is_batch else None,
            (lambda: fetch_in_bulk(what, lambda: self._xnat.resources_of_many(chosen))) if is_batch else None,
        )
        for each in chosen:
            if scans is not None and (each in scans or not self._sessions.is_imaging(each)):
                rows = list(scans[each].scans.values()) if each in scans else []
                self._give(ScansKey(each), self._pieced(rows, lambda scan: scan.id, self._scans.fetched))
            if assessors is not None and each in assessors or not self._sessions.is_imaging(each):
                rows = list(assessors[each]) if assessors and each in assessors else []
                self._give(AssessorsKey(each), self._pieced(rows, lambda row: row.id, started))
        if files is not None and resources is not None:
            await self._give_files(SessionBatch(chosen, scans or {}, assessors or {}, files, resources), started)
        elif is_batch:  # one broken catalogue makes the whole list fail: the next batch is small, and without it
            self._batch = 1

    async def _give_files(self, batch: SessionBatch, started: float) -> None:
        lacking = await batch.lacking(self._xnat)
        if not lacking <= batch.files.groups.keys():
            log.info("a list of the files of %d sessions lacks resources %s", len(batch.sessions), sorted(lacking))
            self._batch = 1
            return
        by_session = batch.by_session()
        self._lists_several = self._lists_several or sum(map(bool, by_session.values())) > 1
        for each, found in by_session.items():
            scans = batch.scans.get(each)
            if not found and (not self._lists_several or (scans and scans.labels)):
                continue  # an absence of files is not confirmed
            rows = batch.resources_of(each, found)
            if rows is None or any(catalogue.resource_id in lacking for catalogue, _ in found):
                continue
            if unlisted := batch.unlisted_scans(each, rows):
                log.info("the list of scans is not used: scans %s have files and are not in it", sorted(unlisted))
                self._scans.distrust()
                self._metadata.forget(ScansKey(each))
                continue
            own = Catalogues()
            for catalogue, _ in found:
                own.join(catalogue)
            item = ("experiments", each)
            self._give(FilesKey(item, True), Listing(own, own.groups, started, started + self._ttl))
            self._give(ResourcesKey(item, True), self._pieced(rows, lambda row: row.group, started))

    # -- listings ------------------------------------------------------------------------------------------------

    def _give(self, key: ListKey, made: Expiring) -> None:
        """Put a listing into the cache, unless there is one: that is as good, or better."""
        if self._metadata.peek(key) is None and not self._is_ended:
            self._metadata.put(key, made)

    def _pieced(self, rows: Sequence[R], group: Callable[[R], Hashable], started: float) -> Listing[R]:
        return listing(rows, group, started, self._ttl, pieced=True)


class ProjectPrefetches:
    """The prefetch of the listings of each project.

    Args:
        xnat: The client of the server.
        listings: The listings of the server.
        ttl: Seconds for which a listing is valid.
        nursery: Runs the batches that are requested ahead.
    """

    def __init__(self, xnat: Xnat, listings: ServerListings, ttl: float, nursery: trio.Nursery) -> None:
        self._xnat = xnat
        self._listings = listings
        self._ttl = ttl
        self._nursery = nursery
        self._found: dict[str, SessionListings] = {}

    def get(self, project: str) -> SessionListings:
        """Return the prefetch of one project."""
        if project not in self._found:
            made = SessionListings(project, self._xnat, self._listings, self._ttl, self._nursery)
            self._found[project] = made
        return self._found[project]

    def forget(self) -> None:
        """Drop the project-wide lists: listings of sessions that are derived from them are as old."""
        for prefetch in self._found.values():
            prefetch.end()
        self._found.clear()


def _given(accession: str) -> list[str]:
    return [accession] if accession else []
