"""Link experiments/ACCESSION and subjects/ACCESSION to an item's place under its label, in the project that owns it.

Any accession ID resolves by lookup, with a request if need be. A listing shows all that the server lists for the whole
site, and what else the listings of projects report. The target of a link is certain once the link is followed: clashes
of labels are settled in a project's own listings, and to fetch those of each project at once would take thousands of
requests. Until then the target, and so its length, is guessed from the labels.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.common.tasks import run_in_thread_if_large
from xnatfs.listings.keys import (
    AllExperimentsKey,
    AllSubjectsKey,
    ChildrenKey,
    LinkKey,
    LinksOfProjectKey,
    ListKey,
    NodePath,
    ProjectsKey,
)
from xnatfs.listings.ttl_cache import Expiring, Listing
from xnatfs.rest.models import Accession
from xnatfs.site import Site
from xnatfs.tree.names import expected, file_name, unescape
from xnatfs.tree.node import Children, Dir, LazyNodes, Link, Node, NodesByPlace
from xnatfs.tree.projects import PROJECT_NAMES, RESOURCES, ProjectDir, Projects, SubjectDir
from xnatfs.tree.sessions import AssessorsDir, SessionDir


@dataclass(frozen=True, slots=True)
class ItemPaths:
    """The paths of items, by accession ID, and which of them their project certainly owns."""

    paths: Mapping[str, NodePath]
    owned: frozenset[str]
    expires: float

    def __len__(self) -> int:
        return len(self.paths)


class UnresolvedLink(Link):
    """A link made of a row of the site's list; its target is resolved when it is followed."""

    __slots__ = ("directory", "row")

    def __init__(self, directory: "LinksDir", name: str, target: NodePath, row: Accession) -> None:
        super().__init__(directory.site, directory, name, target)
        self.directory = directory
        self.row = row

    async def follow(self) -> str:
        self.lead_to(await self.directory.locate(self.row))
        return self.target


class Links(LazyNodes):
    """The links of one directory, made on demand: there may be hundreds of thousands."""

    __slots__ = ("_directory", "_known", "_listing", "_names", "_rows", "paths")

    def __init__(self, directory: "LinksDir", listing: Listing[Accession], known: Sequence[ItemPaths]) -> None:
        self._directory = directory
        self._listing = listing
        self._rows: dict[str, Accession] = {}  # by the name of the link
        self._names: list[str] = []
        self._known = known
        self.paths: dict[str, NodePath] = {}  # by accession ID: in the project that owns the item, or another

    def fill(self) -> None:
        """Fill the table project by project. Items that only a project's listings report, being shared, come last.

        A client that follows the links in this order needs the listings of one project at a time.
        """
        shown, groups = self._directory.site.views.shows_project, self._listing.groups
        rows = chain.from_iterable(rows for project, rows in groups.items() if shown(str(project)))
        for row in rows:
            self._rows.setdefault(file_name(row.id), row)
        for project in self._known:
            for accession, path in project.paths.items():
                row = self._rows.setdefault(file_name(accession), Accession(accession, "", "", "", "", ""))
                if accession not in self.paths or path[1] == file_name(row.project):
                    self.paths[accession] = path
        self._names = list(self._rows)

    def is_of(self, listing: Listing[Accession], known: Sequence[ItemPaths]) -> bool:
        """Return whether the links were made of these very listings."""
        same = self._listing is listing and len(self._known) == len(known)
        return same and all(a is b for a, b in zip(self._known, known, strict=True))

    def row(self, accession: str) -> Accession | None:
        """Return the row of an item in the site's list."""
        return self._rows.get(file_name(accession))

    def __getitem__(self, name: str) -> Node:
        return self._directory.link(name, self._rows[name], self)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def listed(self) -> Sequence[Node]:
        return _ByPlace(self, self._names)


class _ByPlace(NodesByPlace):
    """The links in the order in which they are listed."""

    def __init__(self, links: Links, names: Sequence[str]) -> None:
        self._links = links
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def make(self, place: int) -> Node:
        return self._links[self._names[place]]


class LinksDir(Dir):
    """A directory of links into `projects`."""

    __slots__ = ("projects",)

    key: AllSubjectsKey | AllExperimentsKey  # the site's list of all of them

    def __init__(self, site: Site, parent: Dir, name: str, projects: Projects) -> None:
        super().__init__(site, parent, name)
        self.projects = projects

    async def children(self) -> Children:
        """Return links to all items that the account may see. Raises BadReply if the server does not list them."""
        try:
            listing = await self.site.accessions(self.key)
        except (NotFound, BadReply) as error:
            raise BadReply(f"the server does not list all {self.name}, but each is found by its ID: {error}") from error
        known = await self._known()
        kept = self.site.metadata.peek(ChildrenKey(self.path))
        if isinstance(kept, Children) and isinstance(kept.nodes, Links) and kept.nodes.is_of(listing, known):
            return kept
        links = Links(self, listing, known)
        await run_in_thread_if_large(len(listing) + sum(map(len, known)), links.fill)
        made_of: list[Expiring] = [await self.site.projects(), listing, *known]
        children = Children(links, min(each.expires for each in made_of))
        self.site.metadata.put(ChildrenKey(self.path), children)
        return children

    def sources(self) -> Sequence[ListKey]:
        return [self.key]

    def fresh_until(self) -> float:
        projects = self.site.metadata.peek(ProjectsKey())
        return projects.expires if projects else super().fresh_until()

    async def child(self, name: str) -> Node:
        """Return the link of any accession ID that the account may see. Raises NotFound."""
        kept = self.site.metadata.peek(ChildrenKey(self.path))
        if isinstance(kept, Children) and name in kept.nodes:
            return kept.nodes[name]
        if name.startswith("."):  # no accession ID does, but many lookups: .git, .hidden
            raise NotFound(f"{self.name}/{name} does not exist")
        return Link(self.site, self, name, await self._path(unescape(name), await self._known()))

    def link(self, name: str, row: Accession, links: Links) -> Link:
        """Make the link of one row, without a request."""
        path, certain = self.likely_path(row, links)
        return Link(self.site, self, name, path) if certain else UnresolvedLink(self, name, path, row)

    def likely_path(self, row: Accession, links: Links) -> tuple[NodePath, bool]:
        """Return the path of an item, by a cached listing or else by its labels, and whether it is certain."""
        path, owner = links.paths.get(row.id), file_name(row.project)
        if path is None:
            return self.path_by_labels(row, owner, links), False
        return path, not row.project or path[1] == owner

    async def locate(self, row: Accession) -> NodePath:
        """Find the path of an item in the site's list."""
        try:
            return await self.in_owner(row)
        except (NotFound, Denied):
            return await self._path(row.id, await self._known())

    def path_by_labels(self, row: Accession, owner: str, links: Links) -> NodePath:
        """Return the path that the labels of a row make. Subclasses implement it."""
        raise NotImplementedError(type(self).__name__)

    async def in_owner(self, row: Accession) -> NodePath:
        """Return the path of an item in the project that owns it. Raises NotFound, Denied."""
        return await self.path_in(row.project, row.id)

    async def _path(self, accession: str, known: Sequence[ItemPaths]) -> NodePath:
        """Return the path of an item, without a request if the cached listings are certain."""
        found = [project for project in known if accession in project.paths]
        if len(found) == 1 and accession in found[0].owned:
            return found[0].paths[accession]

        async def resolve() -> ItemPaths:
            expires = (await self.site.projects()).expires
            try:
                path = await self.resolve(accession)
            except (NotFound, Denied):
                if not found:
                    raise
                path = found[0].paths[accession]  # access to its owner is denied
            return ItemPaths({accession: path}, frozenset(), expires)

        return (await self.site.metadata.get(LinkKey(self.name, accession), resolve)).paths[accession]

    async def _known(self) -> list[ItemPaths]:
        """Return what the cached listings report, project by project; only the list of projects may be requested."""
        return [
            await self.in_project(project.id)
            for project in (await self.site.projects()).rows
            if self.site.views.shows_project(project.id)
            and self.site.known_experiments(project.id)
            and self.site.known_subjects(project.id)
        ]

    async def in_project(self, project: str) -> ItemPaths:
        """Return the items of one project."""

        async def build() -> ItemPaths:
            node = await self.projects.child(file_name(project))
            assert isinstance(node, ProjectDir)
            return await self.collect(node)

        return await self.site.metadata.get(LinksOfProjectKey(self.name, project), build)

    async def collect(self, project_dir: ProjectDir) -> ItemPaths:
        """Collect the items of one project from its directory. Subclasses implement it."""
        raise NotImplementedError(type(self).__name__)

    async def resolve(self, accession: str) -> NodePath:
        """Request the project of an item, and return its path. Raises NotFound. Subclasses implement it."""
        raise NotImplementedError(type(self).__name__)

    async def path_of(self, owner: str, accession: str) -> NodePath:
        """Return the path of an item in its project or, if access to that is denied, in one that it is shared into."""
        try:
            return await self.path_in(owner, accession)
        except (NotFound, Denied):
            for row in await self.site.xnat.rows(self.name, accession, "projects"):
                with contextlib.suppress(NotFound, Denied):
                    return await self.path_in(row.get("ID"), accession)
            raise

    async def path_in(self, project: str, accession: str) -> NodePath:
        path = (await self.in_project(project)).paths.get(accession)
        if path is None:
            raise NotFound(f"{accession} is not visible in its project {project}")
        return path


async def _subjects(project_dir: ProjectDir) -> list[SubjectDir]:
    nodes = (await project_dir.children()).nodes.values()
    return [node for node in nodes if isinstance(node, SubjectDir)]


class SubjectLinks(LinksDir):
    """The links subjects/ACCESSION -> ../projects/PROJECT/SUBJECT."""

    __slots__ = ()

    key = AllSubjectsKey()

    def path_by_labels(self, row: Accession, owner: str, links: Links) -> NodePath:
        return ("projects", owner, expected(row.label, row.id, PROJECT_NAMES))

    async def collect(self, project_dir: ProjectDir) -> ItemPaths:
        subjects = await _subjects(project_dir)
        return ItemPaths(
            {node.subject.id: node.path for node in subjects},
            frozenset(node.subject.id for node in subjects if node.subject.project == project_dir.project.id),
            (await project_dir.children()).expires,
        )

    async def resolve(self, accession: str) -> NodePath:
        fields = (await self.site.xnat.item("subjects", accession)).fields
        return await self.path_of(fields.get("project", ""), accession)


class ExperimentLinks(LinksDir):
    """The links experiments/ACCESSION -> ../projects/PROJECT/SUBJECT/SESSION, or to an assessor within one."""

    __slots__ = ()

    key = AllExperimentsKey()

    def path_by_labels(self, row: Accession, owner: str, links: Links) -> NodePath:
        if row.session:
            session = links.row(row.session)
            # An item that has a session is no session itself: two that name each other would be followed for ever.
            above = self.likely_path(session, links)[0] if session and not session.session else ()
            return (*above, "assessors", expected(row.label, row.id))
        subject = expected(row.subject_label, row.subject, PROJECT_NAMES)
        return ("projects", owner, subject, expected(row.label, row.id, {RESOURCES}))

    async def in_owner(self, row: Accession) -> NodePath:
        if not row.session:
            return await super().in_owner(row)
        return await self._assessor(await self.path_in(row.project, row.session), row.id)

    async def collect(self, project_dir: ProjectDir) -> ItemPaths:
        """Collect the sessions.

        A row does not report sharing. A session below a subject that the project owns counts as owned.
        """
        subjects = await _subjects(project_dir)
        listing = await self.site.experiments(project_dir.project.id)

        def make() -> ItemPaths:
            paths: dict[str, NodePath] = {}
            owned: set[str] = set()
            for subject in subjects:
                found = {row.id: (*subject.path, name) for name, row in subject.named(listing).items()}
                paths |= found
                if subject.subject.project == project_dir.project.id:
                    owned.update(found)
            return ItemPaths(paths, frozenset(owned), listing.expires)

        return await run_in_thread_if_large(len(listing), make)

    async def resolve(self, accession: str) -> NodePath:
        fields = (await self.site.xnat.item("experiments", accession)).fields
        project, session = fields.get("project", ""), fields.get("imageSession_ID", "")
        if not session:
            return await self.path_of(project, accession)
        return await self._assessor(await self.path_of(project, session), accession)

    async def _assessor(self, session_path: NodePath, accession: str) -> NodePath:
        node: Node = self.projects
        for name in session_path[1:]:
            assert isinstance(node, Dir)
            node = await node.child(name)
        assert isinstance(node, SessionDir)
        for name, assessor in (await AssessorsDir(self.site, node, "assessors").children()).nodes.items():
            if assessor.xattrs()["id"] == accession:
                return (*session_path, "assessors", name)
        raise NotFound(f"assessor {accession} is not visible in its session")
