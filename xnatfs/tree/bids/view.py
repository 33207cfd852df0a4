"""Show bids/PROJECT/sub-LABEL/ses-LABEL/DATATYPE/FILE: other names of the files in projects/.

A file here is the same one as there: it has the same inode number, and its bytes are cached once. What no server stores
is generated. `bids/PROJECT` takes the lists of its subjects and sessions, and of their resources' labels; a session its
own lists, which are those of its directory in projects/.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from xnatfs.listings.keys import (
    BidsMapKey,
    ExperimentsKey,
    FilesKey,
    ImageLabelsKey,
    ListKey,
    ProjectsKey,
    ResourcesKey,
    ScansKey,
)
from xnatfs.rest.models import natural
from xnatfs.site import Site
from xnatfs.tree.bids import generated
from xnatfs.tree.bids.dataset import Dataset, PlannedSession, SessionFolder, SubjectFolder
from xnatfs.tree.bids.report import Report
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.generated_file import Generated, GeneratedFile
from xnatfs.tree.node import Children, Dir, Listed, Node
from xnatfs.tree.projects import ProjectDir, Projects


class BidsProjects(Dir):
    """The directory bids/: each project as a dataset."""

    __slots__ = ("_projects",)

    def __init__(self, site: Site, parent: Dir, name: str, projects: Projects) -> None:
        super().__init__(site, parent, name)
        self._projects = projects

    async def load(self) -> Children:
        found = await self._projects.children()
        nodes: dict[str, Node] = {
            name: DatasetDir(self, name, home) for name, home in found.nodes.items() if isinstance(home, ProjectDir)
        }
        return Children(nodes, found.expires)

    def sources(self) -> Sequence[ListKey]:
        return [ProjectsKey()]


class DatasetDir(Dir):
    """One dataset: its subjects, and what describes it."""

    __slots__ = ("dataset",)

    def __init__(self, parent: Dir, name: str, home: ProjectDir) -> None:
        super().__init__(parent.site, parent, name)
        self.dataset = Dataset(home)

    def xattrs(self) -> dict[str, str]:
        return self.dataset.home.xattrs()

    async def load(self) -> Children:
        outline = await self.dataset.outline()
        nodes: dict[str, Node] = {node.name: node for node in self._descriptions()}
        for label, subject in outline.subjects.items():
            nodes[f"sub-{label}"] = BidsSubjectDir(self, f"sub-{label}", subject)
        nodes["sourcedata"] = SourceDataDir(self, "sourcedata")
        return Children(nodes, outline.expires)

    def sources(self) -> Sequence[ListKey]:
        return self.dataset.sources()

    def _descriptions(self) -> Iterable[Node]:
        row, url = self.dataset.project, self.site.xnat.url
        page = f"{url}/data/projects/{row.id}"
        yield self._file("dataset_description.json", generated.dataset_description(row.name or row.id, page, []))
        yield self._file("README", generated.readme(row.id, row.name, url))
        yield GeneratedFile(self, "participants.tsv", self._participants, self.sources())
        yield self._file("participants.json", generated.json_bytes(generated.PARTICIPANTS))
        yield self._file("scans.json", generated.json_bytes(generated.SCANS))

    def _file(self, name: str, data: bytes) -> GeneratedFile:
        return fixed_file(self, name, data)

    async def _participants(self) -> Generated:
        outline = await self.dataset.outline()
        rows = [
            (f"sub-{label}", subject.subject.id, subject.subject.label) for label, subject in outline.subjects.items()
        ]
        return Generated(generated.table(list(generated.PARTICIPANTS), rows), outline.expires)


class BidsSubjectDir(Dir):
    """One subject: its sessions that have converted images."""

    __slots__ = ("dataset", "subject")

    def __init__(self, parent: DatasetDir, name: str, subject: SubjectFolder) -> None:
        super().__init__(parent.site, parent, name)
        self.dataset = parent.dataset
        self.subject = subject

    def modified(self) -> float:
        return self.subject.home.modified()

    def xattrs(self) -> dict[str, str]:
        return self.subject.home.xattrs()

    async def load(self) -> Children:
        outline = await self.dataset.outline()
        subject = outline.subjects.get(self.subject.label, self.subject)
        nodes = {
            f"ses-{label}": BidsSessionDir(self, f"ses-{label}", session) for label, session in subject.sessions.items()
        }
        return Children(nodes, outline.expires)

    def sources(self) -> Sequence[ListKey]:
        project = self.dataset.project.id
        return [ExperimentsKey(project), ImageLabelsKey(project)]


class BidsSessionDir(Dir):
    """One session: a directory for each type of data, and what describes them."""

    __slots__ = ("session", "subject")

    def __init__(self, parent: BidsSubjectDir, name: str, session: SessionFolder) -> None:
        super().__init__(parent.site, parent, name)
        self.subject = parent
        self.session = session

    def modified(self) -> float:
        return self.session.home.modified()

    def xattrs(self) -> dict[str, str]:
        return self.session.home.xattrs()

    async def planned(self) -> PlannedSession:
        return await self.subject.dataset.plan(self.subject.subject.label, self.session)

    async def load(self) -> Children:
        planned = await self.planned()
        types = sorted({path.partition("/")[0] for path in planned.plan.files})
        nodes: dict[str, Node] = {name: DataTypeDir(self, name) for name in types}
        stem = f"{self.subject.name}_{self.name}"
        files = {f"{each}.json": generated.json_bytes(fields) for each, fields in planned.plan.metadata.items()}
        if types:
            files[f"{stem}_scans.tsv"] = planned.scans_table(self.session.experiment.id)
        for name in sorted(files, key=natural):
            nodes[name] = fixed_file(self, name, files[name], planned.expires)
        return Children(nodes, planned.expires)

    def sources(self) -> Sequence[ListKey]:
        item, project = self.session.home.item, self.subject.dataset.project.id
        keys: list[ListKey] = [ScansKey(self.session.experiment.id), ResourcesKey(item, True), FilesKey(item, True)]
        return [*keys, BidsMapKey(project), BidsMapKey("")]


class DataTypeDir(Dir):
    """The images of one type of data, with their sidecars and gradient tables."""

    __slots__ = ("session",)

    def __init__(self, parent: BidsSessionDir, name: str) -> None:
        super().__init__(parent.site, parent, name)
        self.session = parent

    async def load(self) -> Children:
        planned = await self.session.planned()
        found = {path.partition("/")[2]: path for path in planned.plan.files if path.partition("/")[0] == self.name}
        return Children(_Files(self, planned, found), planned.expires)

    def sources(self) -> Sequence[ListKey]:
        return self.session.sources()


class _Files(Listed):
    """Files by name, made when they are asked for: then they have what was learnt of their sizes meanwhile."""

    def __init__(self, parent: Dir, planned: PlannedSession, paths: Mapping[str, str]) -> None:
        self._parent = parent
        self._planned = planned
        self._paths = paths

    def __getitem__(self, name: str) -> Node:
        file = self._planned.plan.files[self._paths[name]].file
        return CatalogueFile(self._planned.resources[file.resource], self._parent, name, file.place)

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def listed(self) -> Sequence[Node]:
        return [self[name] for name in self._paths]


class SourceDataDir(Dir):
    """The directory sourcedata/, which BIDS leaves to whoever made the dataset."""

    __slots__ = ("dataset",)

    def __init__(self, parent: DatasetDir, name: str) -> None:
        super().__init__(parent.site, parent, name)
        self.dataset = parent.dataset

    async def load(self) -> Children:
        return Children({"xnatfs": ReportDir(self, "xnatfs")})


class ReportDir(Dir):
    """Tables of the view itself: the origin of each file, and what is left out."""

    __slots__ = ("dataset",)

    def __init__(self, parent: SourceDataDir, name: str) -> None:
        super().__init__(parent.site, parent, name)
        self.dataset = parent.dataset

    async def load(self) -> Children:
        made = {"left-out.tsv": Report.left_out_table, "map.tsv": Report.map_table}
        return Children({name: GeneratedFile(self, name, partial(self._make, table)) for name, table in made.items()})

    async def _make(self, table: Callable[[Report], bytes]) -> Generated:
        report = await Report.of(self.dataset)
        return Generated(table(report), report.expires)


def fixed_file(parent: Dir, name: str, data: bytes, expires: float | None = None) -> GeneratedFile:
    """Return a file whose bytes are known."""

    async def make() -> Generated:
        return Generated(data, parent.fresh_until() if expires is None else expires)

    return GeneratedFile(parent, name, make)
