"""Read the parts of a project's dataset: its folders from two or three lists, its names session by session."""

import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, NotFound, TimedOut, Unreachable
from xnatfs.common.tasks import gather
from xnatfs.listings.keys import (
    AuthorsKey,
    BidsMapKey,
    BidsOutlineKey,
    BidsPlanKey,
    DemographicsKey,
    FilesKey,
    ImageLabelsKey,
    ListKey,
    ResourcesKey,
    SessionLabelsKey,
)
from xnatfs.listings.ttl_cache import Expiring, Listing
from xnatfs.prefetch.checked_list import LIST_TIMEOUT_SECONDS, UNTRUSTED_SECONDS
from xnatfs.rest.bids import Author, BidsMapRow, Demographics, ResourceLabels, may_hold_tree, parse_map
from xnatfs.rest.models import Experiment, Item, Subject
from xnatfs.site import Site
from xnatfs.tree.bids import generated
from xnatfs.tree.bids.planning import PlannedSession, SessionPlanning
from xnatfs.tree.bids.rules.entries import Rules
from xnatfs.tree.bids.rules.labels import Labelled, folder_labels, without_subject
from xnatfs.tree.bids.rules.maps import BidsMap
from xnatfs.tree.bids.trees import Tree, stored_tree
from xnatfs.tree.projects import ProjectDir, SubjectDir
from xnatfs.tree.sessions import SessionDir

T = TypeVar("T", bound=Expiring)

log = logging.getLogger(__name__)

# Subjects of an outline that are looked at between two checkpoints: a millisecond.
SUBJECTS_AT_ONCE = 20


@dataclass(frozen=True)
class SessionFolder:
    """A session of the dataset and its directory in projects/."""

    label: str
    home: SessionDir
    is_converted: bool  # it has, or may have converted scans; else only a whole tree
    is_renamed: bool  # its plain label is another one's, or too long

    @property
    def experiment(self) -> Experiment:
        return self.home.experiment


@dataclass(frozen=True)
class SubjectFolder:
    """A subject of the dataset, with its sessions by label."""

    label: str
    home: SubjectDir
    sessions: Mapping[str, SessionFolder]
    is_renamed: bool

    @property
    def subject(self) -> Subject:
        return self.home.subject


@dataclass(frozen=True)
class Outline:
    """The subjects of a dataset by label: those with a session that has, or may have, converted images."""

    subjects: Mapping[str, SubjectFolder]
    people: Mapping[str, Subject]  # all subjects of the project by label
    tree: Tree  # that a resource of the project holds
    made_of: Mapping[ListKey, Listing[Any]]
    expires: float

    def __len__(self) -> int:
        return 1 + sum(1 + len(subject.sessions) for subject in self.subjects.values())


class Dataset:
    """One project as a BIDS dataset.

    Args:
        home: The project's directory in projects/. Its site has the options of the view.
    """

    def __init__(self, home: ProjectDir) -> None:
        self.home = home
        self.site: Site = home.site
        self.project = home.project
        views = home.site.views
        options = frozenset(views.bids_options)
        self.rules = Rules(views.bids_quality == "any", "notes" in options, "intendedfor=path" in options)
        self.session_columns = ["session_id", "xnat_session_id", *(["acq_time"] if "dates" in options else [])]
        hidden = set() if "demographics" in options else {"age", "handedness"}
        self.participant_columns = [column for column in generated.PARTICIPANTS if column not in hidden]
        self._cut_subject = "ses=suffix" in options
        self._map_path = views.bids_map

    def sources(self) -> Sequence[ListKey]:
        """Return the keys of the listings that its folders are made of, but for those that not every server has."""
        return [*self.home.sources(), ResourcesKey(self._item, False)]

    @property
    def _item(self) -> Item:
        return ("projects", self.project.id)

    # -- folders -------------------------------------------------------------------------------------------------

    async def outline(self) -> Outline:
        return await self._current(BidsOutlineKey(self.project.id), self._outline)

    async def _current(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """Return what is made of listings, from the cache as long as these are the current ones."""
        found: Any = self.site.metadata.peek(key)
        if found is not None and any(self.site.listings.peek(each) is not old for each, old in found.made_of.items()):
            self.site.metadata.forget(key)
        return await self.site.metadata.get(key, make)

    def _made_of(self, keys: Iterable[ListKey]) -> dict[ListKey, Listing[Any]]:
        return {key: found for key in keys if (found := self.site.listings.peek(key)) is not None}

    async def _outline(self) -> Outline:
        image_labels = partial(self._labels, ImageLabelsKey(self.project.id), "sessions without converted images")
        children, labels, tree = await gather(self.home.load, image_labels, self._tree)
        unconverted = {row.id for row in labels.rows if not row.has_nifti}
        hidden, keys = await self._without_trees(unconverted)
        homes = [node for node in children.nodes.values() if isinstance(node, SubjectDir)]
        named, renamed = folder_labels(
            Labelled(home.subject.id, home.subject.label, home.subject.project not in ("", self.project.id))
            for home in homes
        )
        experiments = await self.site.experiments(self.project.id)
        subjects = {}
        for count, home in enumerate(homes):
            if count % SUBJECTS_AT_ONCE == SUBJECTS_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            rows = experiments.groups.get(home.subject.id, ())
            if hidden.issuperset(row.id for row in rows if row.is_imaging):
                continue
            sessions = await self._sessions(home, unconverted, hidden)
            if sessions:
                label = named[home.subject.id]
                subjects[label] = SubjectFolder(label, home, sessions, home.subject.id in renamed)
        people = {named[home.subject.id]: home.subject for home in homes}
        keys += [*self.sources(), ImageLabelsKey(self.project.id), FilesKey(self._item, False)]
        made_of = self._made_of(keys)
        expires = min([children.expires, *(listing.expires for listing in made_of.values())])
        return Outline(dict(sorted(subjects.items())), people, tree, made_of, expires)

    async def _tree(self) -> Tree:
        try:
            return await stored_tree(await self.home.child("resources"), self._item, False)
        except Unreachable:
            if not (self.site.offline and self.site.xnat.away):
                raise
            return Tree()  # a list without rows is not stored, and others are
        except (NotFound, Denied, BadReply) as error:
            log.info("bids/%s shows no tree of the project's resources: %s", self.project.id, error)
            return Tree(failures=[str(error)])

    async def subject_tree(self, subject: str, session: SessionFolder) -> Tree | None:
        """Return what a resource of a session holds of the subject's folder; None if its resources cannot be listed.

        Such a session fails when its own folder is listed, and hides no other session.
        """
        home = session.home
        await self.site.look_into(self.project.id, home.experiment.id, assessors=False)
        try:
            tree = await stored_tree(await home.child("resources"), home.item, True)
        except (NotFound, Denied, BadReply) as error:
            log.info("bids/%s shows no tree of session %s: %s", self.project.id, home.experiment.id, error)
            return None
        others = [label for label in tree.subjects if label != subject]
        where = f"of session {home.experiment.label}"
        failures = [*tree.failures, *(f"sub-{label} {where}, whose subject is sub-{subject}" for label in others)]
        return Tree(failures=failures).joined([tree.folders.get(f"sub-{subject}", Tree())])

    async def _labels(self, key: ListKey, what: str) -> Listing[ResourceLabels]:
        """Return the labels of resources by session; without rows if the server does not list them for a project.

        Of a session that is absent it is not known whether it has converted images, or a tree.
        """
        reason = "the list takes too long"
        try:
            with trio.move_on_after(LIST_TIMEOUT_SECONDS):
                return await self.site.listings.get(key)
        except (BadReply, NotFound, Denied, TimedOut) as error:
            reason = str(error)
        log.info("bids/%s does not know %s from one list: %s", self.project.id, what, reason)
        nothing: Listing[ResourceLabels] = Listing((), {}, now(), now() + UNTRUSTED_SECONDS)
        self.site.metadata.put(key, nothing)
        return nothing

    async def _without_trees(self, sessions: Collection[str]) -> tuple[set[str], list[ListKey]]:
        """Return which sessions have no resource for a whole tree, and the keys of the lists that prove it.

        Of a session that the list of the project lacks, its own list is requested.
        """
        if not sessions:
            return set(), []
        key = SessionLabelsKey(self.project.id)
        labels = await self._labels(key, "sessions with a tree")
        found = {row.id: row.has_tree for row in labels.rows}
        absent = [each for each in sessions if each not in found]
        found |= zip(absent, await gather(*(partial(self._may_have_tree, each) for each in absent)), strict=True)
        own = [ResourcesKey(("experiments", each), True) for each in absent]
        return {each for each in sessions if not found[each]}, [key, *own]

    async def _may_have_tree(self, session: str) -> bool:
        try:
            rows = (await self.site.resources(("experiments", session), True)).rows
        except (NotFound, Denied, BadReply):
            return True  # its folder fails, and the report states why
        except Unreachable:
            if not (self.site.offline and self.site.xnat.away):
                raise
            return False
        return any(row.category == "resources" and may_hold_tree(row.label) for row in rows)

    async def _sessions(
        self, home: SubjectDir, unconverted: Collection[str], hidden: Collection[str]
    ) -> dict[str, SessionFolder]:
        nodes = [node for node in (await home.load()).nodes.values() if isinstance(node, SessionDir)]
        imaging = [node for node in nodes if node.experiment.is_imaging]
        subject = home.subject.label if self._cut_subject else ""
        named, renamed = folder_labels(
            Labelled(node.experiment.id, without_subject(node.experiment.label, subject)) for node in imaging
        )
        found = {}
        for node in imaging:
            if (accession := node.experiment.id) not in hidden:
                label = named[accession]
                found[label] = SessionFolder(label, node, accession not in unconverted, accession in renamed)
        return dict(sorted(found.items()))

    async def demographics(self) -> Listing[Demographics] | None:
        """Return sex and group of the subjects; None if the server does not list them to the account."""
        return await self._further(DemographicsKey(self.project.id), "participants without sex and group")

    async def authors(self) -> Listing[Author] | None:
        """Return the investigators of the project; None if the server does not state them."""
        return await self._further(AuthorsKey(self.project.id), "no author beside the principal investigator")

    async def _further(self, key: ListKey, lack: str) -> Listing[Any] | None:
        try:
            return await self.site.listings.get(key)
        except (BadReply, NotFound, Denied) as error:
            log.info("bids/%s has %s: %s", self.project.id, lack, error)
            return None

    async def stored(self, outline: Outline, subject: SubjectFolder) -> tuple[Tree, list[SessionFolder]]:
        """Return a subject's tree from resources, and the sessions that it lacks: the tree takes precedence.

        Other converted images of a session that the tree has are not shown.
        """
        tree = outline.tree.folders.get(f"sub-{subject.label}", Tree())
        own = [session for session in subject.sessions.values() if not tree.shadows(session.label)]
        trees = {session.label: await self.subject_tree(subject.label, session) for session in own}
        rest = [each for each in own if not (stored := trees[each.label]) and (each.is_converted or stored is None)]
        return tree.joined(each for each in trees.values() if each is not None), rest

    def sessions_table(self, sessions: Iterable[SessionFolder]) -> bytes:
        """Return the table of a subject's sessions."""
        rows = []
        for session in sessions:
            date = session.experiment.date
            cells = (f"ses-{session.label}", session.experiment.id, f"{date}T00:00:00" if date else "")
            rows.append(cells[: len(self.session_columns)])
        return generated.table(self.session_columns, rows)

    # -- names ---------------------------------------------------------------------------------------------------

    async def map(self) -> tuple[BidsMap, dict[ListKey, Listing[Any]]]:
        """Return the lines of all maps that apply, and the listings that they are of."""
        keys = BidsMapKey(self.project.id), BidsMapKey("")
        made_of: dict[ListKey, Listing[Any]] = {}
        project, site = await gather(*(partial(self._map_rows, key, made_of) for key in keys))
        own = await trio.to_thread.run_sync(_read_map, self._map_path) if self._map_path else []
        merged = BidsMap.merge(("file", own), ("map of the project", project), ("map of the site", site))
        return merged, made_of

    async def _map_rows(self, key: BidsMapKey, made_of: dict[ListKey, Listing[Any]]) -> Sequence[BidsMapRow]:
        """Return the rows of a map; if it cannot be read, a row that states that: another map may override it."""
        try:
            found = made_of[key] = await self.site.listings.get(key)
        except BadReply as error:
            return [BidsMapRow("", "", wrong=f"the BIDS map of {key.project or 'the site'} cannot be read: {error}")]
        return found.rows

    async def plan(self, subject: str, session: SessionFolder) -> PlannedSession:
        key = BidsPlanKey(self.project.id, session.experiment.id, subject, session.label)
        return await self._current(key, partial(self._plan, subject, session))

    async def _plan(self, subject: str, session: SessionFolder) -> PlannedSession:
        bids_map, made_of = await self.map()
        planning = SessionPlanning(session.home, bids_map, self.rules)
        return await planning.make(subject, session.label, made_of)


def _read_map(path: str) -> list[BidsMapRow]:
    """Read a map from a local file; if that fails, return a row that states that."""
    try:
        return parse_map(Path(path).read_text("utf-8"), f"the BIDS map {path}")
    except BadReply as error:
        wrong = str(error)
    except OSError as error:
        wrong = f"the BIDS map {path}: {error.strerror}"
    except ValueError as error:
        wrong = f"the BIDS map {path}: {error}"
    return [BidsMapRow("", "", wrong=wrong)]
