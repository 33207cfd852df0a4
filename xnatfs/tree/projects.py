"""Show projects/PROJECT/SUBJECT/SESSION: by project ID, then by the labels in that project."""

from collections.abc import Sequence

from xnatfs.listings.keys import ExperimentsKey, ListKey, ProjectsKey, SubjectsKey
from xnatfs.rest.models import Experiment, Project, Subject
from xnatfs.site import Site
from xnatfs.tree.names import assign
from xnatfs.tree.node import Children, Dir, Node
from xnatfs.tree.resource_view import ResourcePlace
from xnatfs.tree.resources import ResourcesDir
from xnatfs.tree.sessions import SessionDir

RESOURCES = "resources"  # beside subjects and sessions; an equal label gets a suffix


class Projects(Dir):
    """The directory of all projects that the account may see."""

    __slots__ = ()

    async def load(self) -> Children:
        listing = await self.site.projects()
        named = assign(listing.rows, lambda row: row.id, lambda row: row.id)
        shown = self.site.views.shows_project
        nodes = {name: ProjectDir(self.site, self, name, row) for name, row in named.items() if shown(row.id)}
        return Children(nodes, listing.expires)

    def sources(self) -> Sequence[ListKey]:
        return [ProjectsKey()]


class ProjectDir(Dir):
    """The directory of one project: its subjects, own and shared into it, and its resources."""

    __slots__ = ("project",)

    def __init__(self, site: Site, parent: Dir, name: str, project: Project) -> None:
        super().__init__(site, parent, name)
        self.project = project

    def xattrs(self) -> dict[str, str]:
        row = self.project
        return {"id": row.id, "label": row.secondary_id, "name": row.name, "uri": f"/data/projects/{row.id}"}

    async def load(self) -> Children:
        subjects, experiments = await self.site.people(self.project.id)
        rows = [*subjects.rows, *_unlisted(subjects.groups.keys(), experiments.rows)]
        named = assign(rows, lambda row: row.label, lambda row: row.id, {RESOURCES})
        nodes: dict[str, Node] = {RESOURCES: self._resources()}
        nodes |= {name: SubjectDir(self, name, row) for name, row in named.items()}
        aliases: dict[str, Node] = {row.id: SubjectDir(self, row.id, row) for row in rows if row.id not in nodes}
        return Children(nodes, min(subjects.expires, experiments.expires), aliases)

    def sources(self) -> Sequence[ListKey]:
        return [SubjectsKey(self.project.id), ExperimentsKey(self.project.id)]

    async def child(self, name: str) -> Node:
        if name == RESOURCES:  # readable in a protected project, unlike its subjects
            return self._resources()
        return await super().child(name)

    def _resources(self) -> Dir:
        item = ("projects", self.project.id)
        return ResourcesDir(self.site, self, RESOURCES, ResourcePlace(item, item, project=self.project.id))


def _unlisted(listed: object, experiments: Sequence[Experiment]) -> list[Subject]:
    """Return the subjects that only sessions report: sessions shared into a project without their subject."""
    found: dict[str, Subject] = {}
    for row in experiments:
        if row.subject_id not in listed and row.subject_id not in found:  # type: ignore[operator]
            found[row.subject_id] = Subject(row.subject_id, row.subject_label, "", None)
    return list(found.values())


class SubjectDir(Dir):
    """The directory of one subject, under its label in this project: its sessions here, and its resources."""

    __slots__ = ("project_dir", "subject")

    def __init__(self, parent: ProjectDir, name: str, subject: Subject) -> None:
        super().__init__(parent.site, parent, name)
        self.project_dir = parent
        self.subject = subject

    def modified(self) -> float:
        return self.subject.modified or super().modified()

    def xattrs(self) -> dict[str, str]:
        row = self.subject
        return {"id": row.id, "label": row.label, "uri": f"/data/subjects/{row.id}", "project": row.project}

    async def load(self) -> Children:
        listing = await self.site.experiments(self.project_dir.project.id)
        rows = listing.groups.get(self.subject.id, ())
        named = assign(rows, lambda row: row.label, lambda row: row.id, {RESOURCES})
        nodes: dict[str, Node] = {RESOURCES: self._resources()}
        project = self.project_dir.project.id
        nodes |= {name: SessionDir(self.site, self, name, row, project) for name, row in named.items()}
        aliases: dict[str, Node] = {
            row.id: SessionDir(self.site, self, row.id, row, project) for row in rows if row.id not in nodes
        }
        return Children(nodes, listing.expires, aliases)

    def sources(self) -> Sequence[ListKey]:
        return [ExperimentsKey(self.project_dir.project.id)]

    async def look_into(self) -> None:
        await self.site.look_into_subject(self.project_dir.project.id, self.subject.id)

    def _resources(self) -> Dir:
        item = ("subjects", self.subject.id)
        place = ResourcePlace(item, item, project=self.project_dir.project.id)
        return ResourcesDir(self.site, self, RESOURCES, place)
