"""Read what a project's dataset is made of: its folders from two or three lists, its names session by session."""

import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from xnatfs.common.errors import BadReply, Denied, NotFound, Unreachable
from xnatfs.common.sanitize import loads
from xnatfs.common.tasks import gather
from xnatfs.listings.keys import (
    BidsMapKey,
    BidsOutlineKey,
    BidsPlanKey,
    DemographicsKey,
    FilesKey,
    ImageLabelsKey,
    ListKey,
    ResourcesKey,
    ScansKey,
)
from xnatfs.listings.ttl_cache import Expiring, Listing
from xnatfs.prefetch.series_files import version
from xnatfs.prefetch.sidecars import SessionSidecars
from xnatfs.rest.bids import BidsMapRow, Demographics, ImageLabels, is_converted, parse_map
from xnatfs.rest.models import Experiment, FileRow, Item, Resource, Scan, Subject, natural
from xnatfs.site import Site
from xnatfs.tree.bids import generated
from xnatfs.tree.bids.rules.entries import Rules, ScanFiles, SessionPlan
from xnatfs.tree.bids.rules.images import Sidecar, StoredFile
from xnatfs.tree.bids.rules.labels import Labelled, folder_labels, without_subject
from xnatfs.tree.bids.rules.maps import BidsMap
from xnatfs.tree.bids.rules.names import is_image
from xnatfs.tree.bids.rules.plan import SessionPlanner
from xnatfs.tree.bids.trees import Tree, stored_tree
from xnatfs.tree.file_source import catalogue_of
from xnatfs.tree.node import Dir
from xnatfs.tree.projects import ProjectDir, SubjectDir
from xnatfs.tree.resource_files import ResourceFiles
from xnatfs.tree.resources import ResourceDir
from xnatfs.tree.sessions import ScanDir, SessionDir

T = TypeVar("T", bound=Expiring)

log = logging.getLogger(__name__)

# Subjects of an outline that are looked at between two checkpoints: a millisecond.
SUBJECTS_AT_ONCE = 20
# A sidecar has a few kilobytes; a larger file is none, and is not worth reading to find that out.
MAX_SIDECAR_BYTES = 2**20


@dataclass(frozen=True)
class SessionFolder:
    """A session of the dataset and its directory in projects/."""

    label: str
    home: SessionDir

    @property
    def experiment(self) -> Experiment:
        return self.home.experiment


@dataclass(frozen=True)
class SubjectFolder:
    """A subject of the dataset, with its sessions by label."""

    label: str
    home: SubjectDir
    sessions: Mapping[str, SessionFolder]

    @property
    def subject(self) -> Subject:
        return self.home.subject


@dataclass(frozen=True)
class Outline:
    """The subjects of a dataset by label: those with a session that has converted images."""

    subjects: Mapping[str, SubjectFolder]
    people: Mapping[str, Subject]  # all subjects of the project by label
    tree: Tree  # that a resource of the project holds
    made_of: Mapping[ListKey, Listing[Any]]
    expires: float

    def __len__(self) -> int:
        return 1 + sum(1 + len(subject.sessions) for subject in self.subjects.values())


@dataclass(frozen=True)
class PlannedSession:
    """The plan of a session, with the files that its names lead to."""

    plan: SessionPlan
    resources: Mapping[str, ResourceFiles]  # by ID
    sidecars: SessionSidecars
    made_of: Mapping[ListKey, Listing[Any]]
    expires: float

    def __len__(self) -> int:
        return len(self.plan)

    def scans_table(self, experiment: str) -> bytes:
        """Return the table of the images, in the order of their names."""
        rows = [(entry.path, experiment, entry.scan.id, entry.scan.quality) for entry in self.plan.entries]
        return generated.table(list(generated.SCAN_DESCRIPTIONS), rows)


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
        children, labels, tree = await gather(self.home.load, self._image_labels, self._tree)
        converted = {row.id for row in labels.rows if row.has_nifti} if labels is not None else None
        homes = [node for node in children.nodes.values() if isinstance(node, SubjectDir)]
        named, _ = folder_labels(
            Labelled(home.subject.id, home.subject.label, home.subject.project not in ("", self.project.id))
            for home in homes
        )
        experiments = await self.site.experiments(self.project.id)
        subjects = {}
        for count, home in enumerate(homes):
            if count % SUBJECTS_AT_ONCE == SUBJECTS_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            rows = experiments.groups.get(home.subject.id, ())
            if converted is not None and converted.isdisjoint(row.id for row in rows):
                continue
            sessions = await self._sessions(home, converted)
            if sessions:
                label = named[home.subject.id]
                subjects[label] = SubjectFolder(label, home, sessions)
        people = {named[home.subject.id]: home.subject for home in homes}
        made_of = self._made_of([*self.sources(), ImageLabelsKey(self.project.id), FilesKey(self._item, False)])
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
            return Tree()

    async def subject_tree(self, subject: str, session: SessionFolder) -> Tree:
        """Return what a resource of a session holds of the subject's folder."""
        home = session.home
        await self.site.look_into(self.project.id, home.experiment.id, assessors=False)
        tree = await stored_tree(await home.child("resources"), home.item, True)
        return tree.folders.get(f"sub-{subject}", Tree())

    async def _image_labels(self) -> Listing[ImageLabels] | None:
        """Return the labels of resources by session; None if the server does not list them for a whole project."""
        try:
            return await self.site.listings.get(ImageLabelsKey(self.project.id))
        except (BadReply, NotFound, Denied) as error:
            log.info("bids/%s shows sessions without converted images, too: %s", self.project.id, error)
            return None

    async def _sessions(self, home: SubjectDir, converted: set[str] | None) -> dict[str, SessionFolder]:
        nodes = [node for node in (await home.load()).nodes.values() if isinstance(node, SessionDir)]
        imaging = [node for node in nodes if node.experiment.is_imaging]
        subject = home.subject.label if self._cut_subject else ""
        named, _ = folder_labels(
            Labelled(node.experiment.id, without_subject(node.experiment.label, subject)) for node in imaging
        )
        found = {}
        for node in imaging:
            if converted is None or node.experiment.id in converted:
                label = named[node.experiment.id]
                found[label] = SessionFolder(label, node)
        return dict(sorted(found.items()))

    async def demographics(self) -> Listing[Demographics] | None:
        """Return sex and group of the subjects; None if the server does not list them to the account."""
        try:
            return await self.site.listings.get(DemographicsKey(self.project.id))
        except (BadReply, NotFound, Denied) as error:
            log.info("bids/%s has participants without sex and group: %s", self.project.id, error)
            return None

    async def stored(self, outline: Outline, subject: SubjectFolder) -> tuple[Tree, list[SessionFolder]]:
        """Return the tree of a subject that resources hold, and the sessions that it does not have: a tree counts more.

        What else is converted of a session that the tree has is not shown.
        """
        tree = outline.tree.folders.get(f"sub-{subject.label}", Tree())
        own = [session for session in subject.sessions.values() if not tree.shadows(session.label)]
        trees = [await self.subject_tree(subject.label, session) for session in own]
        rest = [session for session, stored in zip(own, trees, strict=True) if not stored]
        return tree.joined(trees), rest

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
        project, site = await gather(*(partial(self.site.listings.get, key) for key in keys))
        own = await trio.to_thread.run_sync(_read_map, self._map_path) if self._map_path else []
        merged = BidsMap.of(("file", own), ("map of the project", project.rows), ("map of the site", site.rows))
        return merged, dict(zip(keys, (project, site), strict=True))

    async def plan(self, subject: str, session: SessionFolder) -> PlannedSession:
        key = BidsPlanKey(self.project.id, session.experiment.id, subject, session.label)
        return await self._current(key, partial(self._plan, subject, session))

    async def _plan(self, subject: str, session: SessionFolder) -> PlannedSession:
        bids_map, made_of = await self.map()
        home = session.home
        await self.site.look_into(self.project.id, home.experiment.id, assessors=False)
        keys = ScansKey(home.experiment.id), ResourcesKey(home.item, True), FilesKey(home.item, True)
        scans, resources, files = await gather(*(partial(self.site.listings.get, key) for key in keys))
        made_of |= zip(keys, (scans, resources, files), strict=True)
        found = _scan_files(scans, resources, files)
        shared = await self._resource_files(session, {row.id for rows in found for row in rows.resources}, files)
        shown = [ScanFiles(each.scan, [file for file in each.files if file.resource in shared]) for each in found]
        tar = self._sidecars(home, shared)
        sidecars: dict[StoredFile, Sidecar] = {}
        while True:
            plan = SessionPlanner(subject, session.label, bids_map, self.rules, sidecars).make(shown)
            if not plan.wanted:
                break
            if len(plan.wanted) > 1:
                await tar.fetch()
            read = await gather(*(partial(self._read, shared, file) for file in plan.wanted))
            sidecars |= zip(plan.wanted, read, strict=True)
        expires = min(listing.expires for listing in made_of.values())
        return PlannedSession(plan, shared, tar, made_of, expires)

    def _sidecars(self, home: SessionDir, resources: Mapping[str, ResourceFiles]) -> SessionSidecars:
        """Return the sidecars in resources without images, which come together."""
        catalogues = [resources[number].catalogue for number in sorted(resources, key=natural)]
        small = [each for each in catalogues if not any(is_image(path) for path in each.paths())]
        return SessionSidecars(self.site.xnat, self.site.content, home.item, small)

    async def _resource_files(
        self, session: SessionFolder, wanted: set[str], listing: Listing[FileRow]
    ) -> dict[str, ResourceFiles]:
        """Return what the nodes of these resources' files share, as far as the mount shows them.

        The directories are made anew: cached ones could be of older listings than the plan.
        """
        found: dict[str, ResourceFiles] = {}
        scans = await session.home.child("scans")
        assert isinstance(scans, Dir)
        for scan in (await scans.load()).nodes.values() if wanted else ():
            assert isinstance(scan, ScanDir)
            for node in (await scan.load()).nodes.values():
                if isinstance(node, ResourceDir) and node.resource.id in wanted:
                    found[node.resource.id] = ResourceFiles(node, listing)
        return found

    async def _read(self, shared: Mapping[str, ResourceFiles], file: StoredFile) -> Sidecar:
        """Return the fields of a sidecar, through the content cache; none of one that is lost, damaged or no JSON."""
        try:
            fields = loads(await read_file(shared[file.resource], file.place, MAX_SIDECAR_BYTES))
        except (NotFound, BadReply, ValueError) as error:
            log.info("the sidecar %s is not used: %s", file.path, error)
            return {}
        return fields if isinstance(fields, dict) else {}


def _read_map(path: str) -> list[BidsMapRow]:
    """Read a map of this machine. Raises BadReply."""
    try:
        return parse_map(Path(path).read_text(), f"the BIDS map {path}")
    except (OSError, ValueError) as error:
        raise BadReply(f"the BIDS map {path}: {error}") from None


@dataclass(frozen=True)
class _Found:
    scan: Scan
    resources: Sequence[Resource]
    files: Sequence[StoredFile]


def _scan_files(scans: Listing[Scan], resources: Listing[Resource], files: Listing[FileRow]) -> list[_Found]:
    """Return the files of each scan that may be shown.

    Raises BadReply if those of one cannot be listed: without it a program would take the session for complete.
    """
    found = []
    for scan in scans.rows:
        rows = [row for row in resources.groups.get(("scans", scan.id), ()) if is_converted(row.label)]
        for row in rows:
            if reason := files.broken.get(row.id):
                raise BadReply(f"the files of {row.label} of scan {scan.id} cannot be listed: {reason}")
        stored = [
            StoredFile(row.id, file.path, file.place, file.size, file.digest)
            for row in rows
            for file in catalogue_of(files.groups, row.id)
        ]
        found.append(_Found(scan, rows, stored))
    return found


async def read_file(files: ResourceFiles, place: int, most: int) -> bytes:
    """Read a small file through the content cache, without fetching what lies beside it.

    Raises:
        BadReply: It has more than `most` bytes.
    """
    row = files.catalogue.at(place)
    if (row.size or 0) > most:
        raise BadReply(f"{row.path} has {row.size} bytes")
    source = files.resource_dir.source(row, files.groups)
    blob = await files.site.content.open(version(row), source)
    try:
        if blob.size > most:
            raise BadReply(f"{row.path} has {blob.size} bytes")
        return await blob.read(0, blob.size)
    finally:
        blob.close()
