"""Show projects/PROJECT/SUBJECT/SESSION: by project ID, then by the labels in that project."""

import logging
from collections.abc import Mapping, Sequence

from xnatfs.common.tasks import run_in_thread_if_large
from xnatfs.listings.keys import ExperimentsKey, ListKey, ProjectsKey, SubjectsKey
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.models import Experiment, Project, Subject
from xnatfs.site import Site
from xnatfs.tree.metadata.project_tables import PROJECT_TABLES, all_subjects, project_files
from xnatfs.tree.names import assign, by_label
from xnatfs.tree.node import Children, Dir, Node
from xnatfs.tree.resource_view import ResourcePlace
from xnatfs.tree.resources import ResourcesDir
from xnatfs.tree.sessions import SessionDir

log = logging.getLogger(__name__)

RESOURCES = "resources"  # beside subjects and sessions; an equal label gets a suffix
PROJECT_NAMES = frozenset({RESOURCES, *PROJECT_TABLES})  # likewise, beside subjects


class Projects(Dir):
    """The directory of all projects that the account may see."""

    __slots__ = ()

    async def load(self) -> Children:
        listing = await self.site.projects()
        named = assign(listing.rows, lambda row: row.id, lambda row: row.id)
        shown = self.site.views.shows_project
        nodes = {name: self.project_dir(name, row) for name, row in named.items() if shown(row.id)}
        if named and not nodes:
            log.warning("no project is shown: --projects %s matches none", ",".join(self.site.views.projects))
        return Children(nodes, listing.expires)

    def project_dir(self, name: str, row: Project) -> "ProjectDir":
        return ProjectDir(self.site, self, name, row)

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
        subjects, experiments = await self.site.list_subjects_and_experiments(self.project.id)
        files = {
            node.name: node for node in project_files(self, self.project.id)
        }  # not in a thread: they are looked up
        return await run_in_thread_if_large(
            len(subjects) + len(experiments), lambda: self._make(subjects, experiments, files)
        )

    def _make(
        self, subjects: Listing[Subject], experiments: Listing[Experiment], files: Mapping[str, Node]
    ) -> Children:
        rows = all_subjects(subjects.rows, experiments.rows)
        named = by_label(rows, PROJECT_NAMES)
        nodes: dict[str, Node] = {RESOURCES: self.resources_dir()}
        nodes |= {name: SubjectDir(self, name, row) for name, row in named.items()}
        nodes |= files
        aliases: dict[str, Node] = {row.id: SubjectDir(self, row.id, row) for row in rows if row.id not in nodes}
        return Children(nodes, min(subjects.expires, experiments.expires), aliases)

    def sources(self) -> Sequence[ListKey]:
        return [SubjectsKey(self.project.id), ExperimentsKey(self.project.id)]

    async def child(self, name: str) -> Node:
        if name == RESOURCES:  # readable in a protected project, unlike its subjects
            return self.resources_dir()
        return await super().child(name)

    def resources_dir(self) -> Dir:
        item = ("projects", self.project.id)
        return ResourcesDir(self.site, self, RESOURCES, ResourcePlace(item, item, project=self.project.id))


class SubjectNode(Dir):
    """A directory that stands for a subject, with its time and attributes."""

    __slots__ = ()

    subject: Subject

    def modified(self) -> float:
        return self.subject.modified or super().modified()

    def xattrs(self) -> dict[str, str]:
        row = self.subject
        return {"id": row.id, "label": row.label, "uri": f"/data/subjects/{row.id}", "project": row.project}


class SubjectDir(SubjectNode):
    """The directory of one subject, under its label in this project: its sessions here, and its resources."""

    __slots__ = ("project_dir", "subject")

    def __init__(self, parent: ProjectDir, name: str, subject: Subject) -> None:
        super().__init__(parent.site, parent, name)
        self.project_dir = parent
        self.subject = subject

    async def load(self) -> Children:
        listing = await self.site.experiments(self.project_dir.project.id)
        named = self.named(listing)
        nodes: dict[str, Node] = {RESOURCES: self._resources()}
        project = self.project_dir.project.id
        nodes |= {name: SessionDir(self.site, self, name, row, project) for name, row in named.items()}
        aliases: dict[str, Node] = {
            row.id: SessionDir(self.site, self, row.id, row, project) for row in named.values() if row.id not in nodes
        }
        return Children(nodes, listing.expires, aliases)

    def named(self, listing: Listing[Experiment]) -> dict[str, Experiment]:
        """Return its sessions by name, out of all experiments of the project."""
        rows = listing.groups.get(self.subject.id, ())
        return by_label(rows, {RESOURCES})

    def sources(self) -> Sequence[ListKey]:
        return [ExperimentsKey(self.project_dir.project.id)]

    async def look_into(self) -> None:
        await self.site.look_into_subject(self.project_dir.project.id, self.subject.id)

    def _resources(self) -> Dir:
        item = ("subjects", self.subject.id)
        place = ResourcePlace(item, item, project=self.project_dir.project.id)
        return ResourcesDir(self.site, self, RESOURCES, place)
