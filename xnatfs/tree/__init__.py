"""The tree: what an XNAT looks like as directories and files. It knows XNAT and nothing of FUSE."""

from collections.abc import Callable, Iterable

from xnatfs.site import Site
from xnatfs.tree.archive.layout import ArchiveDir
from xnatfs.tree.bids.view import BidsProjects
from xnatfs.tree.links import ExperimentLinks, SubjectLinks
from xnatfs.tree.node import Dir, Node, StaticDir
from xnatfs.tree.prearchive import PrearchiveDir
from xnatfs.tree.projects import Projects

__all__ = ["VIEWS", "Root"]

# The top-level directories, each made of its site, the root and its own name; `settings/views.py` has all names.
VIEWS: dict[str, Callable[[Site, Dir, str], Dir]] = {
    "projects": Projects,
    "experiments": lambda site, root, name: ExperimentLinks(site, root, name, Projects(site, root, "projects")),
    "subjects": lambda site, root, name: SubjectLinks(site, root, name, Projects(site, root, "projects")),
    "prearchive": PrearchiveDir,
    "bids": lambda site, root, name: BidsProjects(site, root, name, Projects(site, root, "projects")),
    "archive": ArchiveDir,
}


class Root(StaticDir):
    """The mount's own directory."""

    __slots__ = ()

    def __init__(self, site: Site) -> None:
        super().__init__(site, None, "")

    def entries(self) -> Iterable[Node]:
        shown = self.site.views.shown
        return [view(self.site, self, name) for name, view in VIEWS.items() if name in shown]

    async def child(self, name: str) -> Node:
        """Return a view. Links lead into `projects`, so that it is found even if it is not shown."""
        return Projects(self.site, self, name) if name == "projects" else await super().child(name)
