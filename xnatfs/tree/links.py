"""experiments/ACCESSION and subjects/ACCESSION: links to where an item is under its label, in the project that owns it.

Any accession ID resolves by lookup, with a request if need be; a listing shows those that other listings have told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xnatfs.errors import Denied, NotFound
from xnatfs.keys import LinkKey, LinksOfProjectKey, Path, ProjectsKey
from xnatfs.site import Site
from xnatfs.tree.names import escape, shorten
from xnatfs.tree.node import Children, Dir, Link, Node
from xnatfs.tree.projects import ProjectDir, Projects, SubjectDir
from xnatfs.tree.sessions import AssessorsDir, SessionDir


@dataclass(frozen=True, slots=True)
class Accessions:
    """Where the items of one project are, by accession ID, and whether the project owns them for sure."""

    paths: Mapping[str, Path]
    owned: frozenset[str]
    expires: float

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True, slots=True)
class _Resolved:
    path: Path
    expires: float

    def __len__(self) -> int:
        return 1


class LinksDir(Dir):
    """Links into `projects`."""

    __slots__ = ("projects",)

    def __init__(self, site: Site, parent: Dir, name: str, projects: Projects) -> None:
        super().__init__(site, parent, name)
        self.projects = projects

    async def children(self) -> Children:
        """Those known already; what is shown grows as projects are looked at."""
        nodes: dict[str, Node] = {}
        known = await self._known()
        for accession in dict.fromkeys(accession for project in known for accession in project.paths):
            name = shorten(escape(accession))
            nodes[name] = Link(self.site, self, name, await self._path(accession, known))
        return Children(nodes, (await self.site.projects()).expires)

    def fresh_until(self) -> float:
        projects = self.site.metadata.peek(ProjectsKey())
        return projects.expires if projects else super().fresh_until()

    async def child(self, name: str) -> Node:
        """The link of any accession ID the account may see. Raises NotFound."""
        return Link(self.site, self, name, await self._path(name, await self._known()))

    async def _path(self, accession: str, known: Sequence[Accessions]) -> Path:
        """Where the item is. What listings tell for sure costs no request."""
        found = [project for project in known if accession in project.paths]
        if len(found) == 1 and accession in found[0].owned:
            return found[0].paths[accession]

        async def resolve() -> _Resolved:
            expires = (await self.site.projects()).expires
            try:
                return _Resolved(await self.resolve(accession), expires)
            except (NotFound, Denied):
                if not found:
                    raise
                return _Resolved(found[0].paths[accession], expires)  # its owner is closed to us

        return (await self.site.metadata.get(LinkKey(self.name, accession), resolve)).path

    async def _known(self) -> list[Accessions]:
        """What the listings at hand tell, project by project. Asks for nothing but the list of projects."""
        return [
            await self.in_project(project.id)
            for project in (await self.site.projects()).rows
            if self.site.known_experiments(project.id) and self.site.known_subjects(project.id)
        ]

    async def in_project(self, project: str) -> Accessions:
        """The items of one project."""

        async def build() -> Accessions:
            node = await self.projects.child(shorten(escape(project)))
            assert isinstance(node, ProjectDir)
            return await self.collect(node)

        return await self.site.metadata.get(LinksOfProjectKey(self.name, project), build)

    async def collect(self, project_dir: ProjectDir) -> Accessions:
        """The items of one project, from its directory. Written by subclasses."""
        raise NotImplementedError(type(self).__name__)

    async def resolve(self, accession: str) -> Path:
        """The path of an item that the server is asked about. Raises NotFound. Written by subclasses."""
        raise NotImplementedError(type(self).__name__)

    async def path_in(self, project: str, accession: str) -> Path:
        path = (await self.in_project(project)).paths.get(accession)
        if path is None:
            raise NotFound(f"{accession} is not to be seen in its project {project}")
        return path


async def _subjects(project_dir: ProjectDir) -> list[SubjectDir]:
    nodes = (await project_dir.children()).nodes.values()
    return [node for node in nodes if isinstance(node, SubjectDir)]


class SubjectLinks(LinksDir):
    """subjects/ACCESSION -> ../projects/PROJECT/SUBJECT"""

    __slots__ = ()

    async def collect(self, project_dir: ProjectDir) -> Accessions:
        subjects = await _subjects(project_dir)
        return Accessions(
            {node.subject.id: node.path for node in subjects},
            frozenset(node.subject.id for node in subjects if node.subject.project == project_dir.project.id),
            (await project_dir.children()).expires,
        )

    async def resolve(self, accession: str) -> Path:
        fields = await self.site.xnat.document("subjects", accession)
        return await self.path_in(fields.get("project", ""), accession)


class ExperimentLinks(LinksDir):
    """experiments/ACCESSION -> ../projects/PROJECT/SUBJECT/SESSION, or to an assessor within one"""

    __slots__ = ()

    async def collect(self, project_dir: ProjectDir) -> Accessions:
        """A row does not tell of sharing; one below a subject that the project owns is taken for its own."""
        paths: dict[str, Path] = {}
        owned: set[str] = set()
        for subject in await _subjects(project_dir):
            sessions = [n for n in (await subject.children()).nodes.values() if isinstance(n, SessionDir)]
            paths |= {node.experiment.id: node.path for node in sessions}
            if subject.subject.project == project_dir.project.id:
                owned |= {node.experiment.id for node in sessions}
        return Accessions(paths, frozenset(owned), (await project_dir.children()).expires)

    async def resolve(self, accession: str) -> Path:
        fields = await self.site.xnat.document("experiments", accession)
        project, session = fields.get("project", ""), fields.get("imageSession_ID", "")
        if not session:
            return await self.path_in(project, accession)
        return await self._assessor(await self.path_in(project, session), accession)

    async def _assessor(self, session_path: Path, accession: str) -> Path:
        node: Node = self.projects
        for name in session_path[1:]:
            assert isinstance(node, Dir)
            node = await node.child(name)
        assert isinstance(node, SessionDir)
        for name, assessor in (await AssessorsDir(self.site, node, "assessors").children()).nodes.items():
            if assessor.xattrs()["id"] == accession:
                return (*session_path, "assessors", name)
        raise NotFound(f"assessor {accession} is not to be seen in its session")
