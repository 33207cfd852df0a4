"""Show archive/: the layout that the server's containers and notebooks have below /data.

    archive/projects/PROJECT/experiments/SESSION/SCANS/SCAN/RESOURCE/FILE
                                                 RESOURCES/RESOURCE/FILE
                                                 ASSESSORS/ASSESSOR/RESOURCE/FILE
                                                 PROCESSED/RECONSTRUCTION/RESOURCE/FILE
                             resources/RESOURCE/FILE
                             subjects/SUBJECT/RESOURCE/FILE

The files are those of `projects`, with the same inode numbers. On the server a directory without files is absent; here
the fixed ones are always there, as in `projects`.
"""

import math
from collections.abc import Iterable, Sequence

from xnatfs.listings.keys import ExperimentsKey, ListKey, SubjectsKey
from xnatfs.rest.models import Project, Subject
from xnatfs.tree.metadata.project_tables import all_subjects
from xnatfs.tree.names import by_label
from xnatfs.tree.node import Children, Dir, Node, StaticDir
from xnatfs.tree.projects import ProjectDir, Projects, SubjectNode
from xnatfs.tree.resource_view import ResourcePlace
from xnatfs.tree.resources import ResourcesDir
from xnatfs.tree.sessions import AssessorsDir, ReconstructionsDir, ScansDir, SessionDir


class ArchiveDir(StaticDir):
    """The directory that stands for /data."""

    __slots__ = ()

    def entries(self) -> Iterable[Node]:
        return [ArchiveProjectsDir(self.site, self, "projects")]


class ArchiveProjectsDir(Projects):
    """The directory of all projects that the account may see."""

    __slots__ = ()

    def project_dir(self, name: str, row: Project) -> ProjectDir:
        return ArchiveProjectDir(self.site, self, name, row)


class ArchiveProjectDir(ProjectDir):
    """The directory of one project. It takes no request."""

    __slots__ = ()

    async def children(self) -> Children:
        nodes = (ArchiveExperimentsDir(self), self.resources_dir(), ArchiveSubjectsDir(self))
        return Children({node.name: node for node in nodes})

    def fresh_until(self) -> float:
        return math.inf


class ArchiveExperimentsDir(Dir):
    """The sessions and other experiments of a project, of all its subjects."""

    __slots__ = ("project",)

    def __init__(self, parent: ArchiveProjectDir) -> None:
        super().__init__(parent.site, parent, "experiments")
        self.project = parent.project.id

    async def load(self) -> Children:
        listing = await self.site.experiments(self.project)
        named = by_label(listing.rows)
        nodes = {name: ArchiveSessionDir(self.site, self, name, row, self.project) for name, row in named.items()}
        aliases: dict[str, Node] = {
            row.id: ArchiveSessionDir(self.site, self, row.id, row, self.project)
            for row in listing.rows
            if row.id not in nodes
        }
        return Children(nodes, listing.expires, aliases)

    def sources(self) -> Sequence[ListKey]:
        return [ExperimentsKey(self.project)]


class ArchiveSessionDir(SessionDir):
    """The directory of one session, with the server's names of its parts."""

    __slots__ = ()

    def entries(self) -> Iterable[Node]:
        yield ScansDir(self.site, self, "SCANS")
        yield ResourcesDir(self.site, self, "RESOURCES", self.place("resources", ""))
        yield AssessorsDir(self.site, self, "ASSESSORS")
        yield ReconstructionsDir(self.site, self, "PROCESSED")


class ArchiveSubjectsDir(Dir):
    """The subjects of a project, of which the server stores resources here, and sessions elsewhere."""

    __slots__ = ("project",)

    def __init__(self, parent: ArchiveProjectDir) -> None:
        super().__init__(parent.site, parent, "subjects")
        self.project = parent.project.id

    async def load(self) -> Children:
        subjects, experiments = await self.site.list_subjects_and_experiments(self.project)
        rows = all_subjects(subjects.rows, experiments.rows)
        named = by_label(rows)
        nodes = {name: ArchiveSubjectDir(self, name, row) for name, row in named.items()}
        aliases: dict[str, Node] = {row.id: ArchiveSubjectDir(self, row.id, row) for row in rows if row.id not in nodes}
        return Children(nodes, min(subjects.expires, experiments.expires), aliases)

    def sources(self) -> Sequence[ListKey]:
        return [SubjectsKey(self.project), ExperimentsKey(self.project)]


class ArchiveSubjectDir(SubjectNode, ResourcesDir):
    """The resources of one subject."""

    __slots__ = ("subject",)

    def __init__(self, parent: ArchiveSubjectsDir, name: str, subject: Subject) -> None:
        item = ("subjects", subject.id)
        super().__init__(parent.site, parent, name, ResourcePlace(item, item, project=parent.project))
        self.subject = subject

    async def load(self) -> Children:
        await self.site.look_into_subject(self.place.project, self.subject.id)
        return await super().load()
