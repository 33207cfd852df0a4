"""Show bids/PROJECT/sub-LABEL/ses-LABEL/DATATYPE/FILE: other names of the files in projects/.

A file here is the same one as there: it has the same inode number, and its bytes are cached once. What no server stores
is generated. `bids/PROJECT` takes the lists of its subjects and sessions, and of their resources' labels; a session its
own lists, which are those of its directory in projects/.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from xnatfs.common.errors import NotFound
from xnatfs.content import Blob
from xnatfs.listings.keys import (
    AuthorsKey,
    BidsMapKey,
    DemographicsKey,
    ExperimentsKey,
    FilesKey,
    ListKey,
    ProjectsKey,
    ResourcesKey,
    ScansKey,
)
from xnatfs.prefetch.file_version import version
from xnatfs.prefetch.sidecars import SessionSidecars
from xnatfs.rest.models import natural
from xnatfs.site import Site
from xnatfs.tree.bids import generated
from xnatfs.tree.bids.dataset import Dataset, SessionFolder, SubjectFolder
from xnatfs.tree.bids.planning import PlannedSession
from xnatfs.tree.bids.report import DatasetReport
from xnatfs.tree.bids.rules.images import StoredFile
from xnatfs.tree.bids.rules.names import DATA_TYPES, is_image
from xnatfs.tree.bids.trees import Tree, TreeNodes
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.generated_file import Generated, GeneratedFile
from xnatfs.tree.node import Children, Dir, LazyNodes, Node
from xnatfs.tree.projects import ProjectDir, Projects
from xnatfs.tree.resource_files import ResourceFiles


class BidsProjects(Dir):
    """The directory bids/: each project as a dataset."""

    __slots__ = ("_projects",)

    def __init__(self, site: Site, parent: Dir, name: str, projects: Projects) -> None:
        super().__init__(site, parent, name)
        self._projects = projects

    async def load(self) -> Children:
        found = await self._projects.load()
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
        nodes: dict[str, Node] = {node.name: node for node in self._descriptions(outline.expires)}
        for label, subject in outline.subjects.items():
            nodes[f"sub-{label}"] = BidsSubjectDir(self, f"sub-{label}", subject)
        nodes["sourcedata"] = SourceDataDir(self, "sourcedata", outline.tree)
        return Children(TreeNodes(self, outline.tree, nodes), outline.expires)

    def sources(self) -> Sequence[ListKey]:
        return self.dataset.sources()

    def _descriptions(self, expires: float) -> Iterable[Node]:
        row = self.dataset.project
        yield GeneratedFile(self, "dataset_description.json", self._description, [*self.sources(), AuthorsKey(row.id)])
        columns = generated.described(generated.PARTICIPANTS, self.dataset.participant_columns)
        files = {"README": generated.readme(row.id, row.name, self.site.xnat.url), "participants.json": columns}
        yield from (fixed_file(self, name, data, expires) for name, data in files.items())
        yield GeneratedFile(self, "participants.tsv", self._participants, [*self.sources(), DemographicsKey(row.id)])

    async def _description(self) -> Generated:
        row, found = self.dataset.project, await self.dataset.authors()
        page = f"{self.site.xnat.url}/data/projects/{row.id}"
        names = [author.id for author in found.rows] if found else [row.investigator]
        expires = found.expires if found else (await self.dataset.outline()).expires
        return Generated(generated.dataset_description(row.name or row.id, page, list(filter(None, names))), expires)

    async def _participants(self) -> Generated:
        outline, found = await self.dataset.outline(), await self.dataset.demographics()
        known = {row.id: row for row in found.rows} if found else {}
        columns, rows = self.dataset.participant_columns, []
        for label in sorted({*outline.subjects, *outline.tree.subjects}):
            cells = {"participant_id": f"sub-{label}"}
            if person := outline.people.get(label):
                cells |= {"xnat_subject_id": person.id, "xnat_label": person.label}
                if row := known.get(person.id):
                    cells |= {"sex": row.sex, "group": row.group, "age": row.age, "handedness": row.handedness}
            rows.append([cells.get(column, "") for column in columns])
        expires = min(outline.expires, found.expires) if found else outline.expires
        return Generated(generated.table(columns, rows), expires)


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

    async def child(self, name: str) -> Node:
        children = await self.children()
        if name not in children.nodes and not name.startswith(("sub-", "ses-")):  # no listing could bring it
            raise NotFound(f"{'/'.join((*self.path, name))} is no name of BIDS")
        return await super().child(name)

    async def load(self) -> Children:
        outline = await self.dataset.outline()
        subject = outline.subjects.get(self.subject.label)
        if subject is None:
            raise NotFound(f"{'/'.join(self.path)} is gone")
        tree, own = await self.dataset.stored(outline, subject)
        nodes: dict[str, Node] = {
            f"ses-{session.label}": BidsSessionDir(self, f"ses-{session.label}", session) for session in own
        }
        if own:
            columns = generated.described(generated.SESSIONS, self.dataset.session_columns)
            tables = {".tsv": self.dataset.sessions_table(own), ".json": columns}
            for extension, data in tables.items():
                name = f"{self.name}_sessions{extension}"
                nodes[name] = fixed_file(self, name, data, outline.expires)
        return Children(TreeNodes(self, tree, nodes), outline.expires)

    def sources(self) -> Sequence[ListKey]:
        return [ExperimentsKey(self.dataset.project.id)]


class _PlannedDir(Dir):
    """A directory that is a view of a session's plan, which is cached; it is not cached itself."""

    __slots__ = ()

    async def planned(self) -> PlannedSession:
        """Return the plan. Subclasses implement it."""
        raise NotImplementedError(type(self).__name__)

    def show(self, planned: PlannedSession) -> Mapping[str, Node]:
        """Return the children. Subclasses implement it."""
        raise NotImplementedError(type(self).__name__)

    async def children(self) -> Children:
        planned = await self.planned()
        self._expires = planned.expires
        return Children(self.show(planned), planned.expires)

    async def child(self, name: str) -> Node:
        """Return the node of a name; without asking the server again where no listing could bring that name.

        Programs look for their own files in every directory.
        """
        if name.startswith("sub-") or name in DATA_TYPES:
            return await super().child(name)
        raise NotFound(f"{'/'.join((*self.path, name))} is no name of BIDS")


class BidsSessionDir(_PlannedDir):
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

    def show(self, planned: PlannedSession) -> Mapping[str, Node]:
        types = sorted(planned.plan.by_type)
        nodes: dict[str, Node] = {name: DataTypeDir(self, name) for name in types}
        stem = f"{self.subject.name}_{self.name}"
        files = {f"{each}.json": generated.json_bytes(fields) for each, fields in planned.plan.metadata.items()}
        if types:
            files[f"{stem}_scans.tsv"] = planned.scans_table(self.session.experiment.id)
            files[f"{stem}_scans.json"] = generated.json_bytes(generated.SCAN_DESCRIPTIONS)
        for name in sorted(files, key=natural):
            nodes[name] = fixed_file(self, name, files[name], planned.expires)
        return nodes

    def sources(self) -> Sequence[ListKey]:
        item, project = self.session.home.item, self.subject.dataset.project.id
        keys: list[ListKey] = [ScansKey(self.session.experiment.id), ResourcesKey(item, True), FilesKey(item, True)]
        return [*keys, BidsMapKey(project), BidsMapKey("")]


class DataTypeDir(_PlannedDir):
    """The images of one type of data, with their sidecars and gradient tables."""

    __slots__ = ("session",)

    def __init__(self, parent: BidsSessionDir, name: str) -> None:
        super().__init__(parent.site, parent, name)
        self.session = parent

    async def planned(self) -> PlannedSession:
        return await self.session.planned()

    def show(self, planned: PlannedSession) -> Mapping[str, Node]:
        return _Files(self, planned, planned.plan.by_type.get(self.name, {}))

    def sources(self) -> Sequence[ListKey]:
        return self.session.sources()


class _Files(LazyNodes):
    """Files by name, made on demand, with the sizes that are known by then."""

    def __init__(self, parent: Dir, planned: PlannedSession, files: Mapping[str, StoredFile]) -> None:
        self._parent = parent
        self._planned = planned
        self._files = files

    def __getitem__(self, name: str) -> Node:
        file, planned = self._files[name], self._planned
        files = planned.resources[file.resource]
        if is_image(name):
            return CatalogueFile(files, self._parent, name, file.place)
        return _SidecarFile(files, self._parent, name, file.place, planned.sidecars)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def listed(self) -> Sequence[Node]:
        return [self[name] for name in self._files]


class _SidecarFile(CatalogueFile):
    """A small file beside an image, which comes together with those of the other images of its session."""

    __slots__ = ("_together",)

    def __init__(self, files: ResourceFiles, parent: Dir, name: str, place: int, together: SessionSidecars) -> None:
        super().__init__(files, parent, name, place)
        self._together = together

    async def open(self) -> Blob:
        if not self.site.content.has(version(self.row)):
            await self._together.fetch()
        return await super().open()


class SourceDataDir(Dir):
    """The directory sourcedata/, of which BIDS prescribes nothing."""

    __slots__ = ("_tree", "dataset")

    def __init__(self, parent: DatasetDir, name: str, tree: Tree) -> None:
        super().__init__(parent.site, parent, name)
        self.dataset = parent.dataset
        self._tree = tree

    async def load(self) -> Children:
        stored = self._tree.folders.get(self.name, Tree())
        assert self.parent is not None
        return Children(TreeNodes(self, stored, {"xnatfs": ReportDir(self, "xnatfs")}), self.parent.fresh_until())


class ReportDir(Dir):
    """Tables of the view itself: the origin of each file, and what is left out."""

    __slots__ = ("dataset",)

    def __init__(self, parent: SourceDataDir, name: str) -> None:
        super().__init__(parent.site, parent, name)
        self.dataset = parent.dataset

    async def load(self) -> Children:
        made = {"left-out.tsv": DatasetReport.left_out_table, "map.tsv": DatasetReport.map_table}
        return Children({name: GeneratedFile(self, name, partial(self._make, table)) for name, table in made.items()})

    async def _make(self, table: Callable[[DatasetReport], bytes]) -> Generated:
        report = await DatasetReport.build(self.dataset)
        return Generated(table(report), report.expires)


def fixed_file(parent: Dir, name: str, data: bytes, expires: float) -> GeneratedFile:
    """Return a file whose bytes are known, for as long as those of its directory's listings are."""

    async def make() -> Generated:
        node = await parent.child(name)
        if not isinstance(node, GeneratedFile):
            raise NotFound(f"{'/'.join(node.path)} is a file of the server now")
        return await node.content()

    return GeneratedFile(parent, name, make, made=Generated(data, expires))
