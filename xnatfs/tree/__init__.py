"""Present a server as a tree of directories and files, independent of FUSE."""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from xnatfs.common.errors import NotDirectory, NotFound
from xnatfs.site import Site
from xnatfs.tree.archive.layout import ArchiveDir
from xnatfs.tree.links import ExperimentLinks, SubjectLinks
from xnatfs.tree.node import Dir, Link, Node, StaticDir
from xnatfs.tree.prearchive import PrearchiveDir
from xnatfs.tree.projects import Projects

__all__ = ["VIEWS", "Root", "find"]


def _bids(site: Site, root: Dir, name: str) -> Dir:
    from xnatfs.tree.bids.view import BidsProjects  # 9 ms and 0.9 MB: a mount whose root is not listed goes without

    return BidsProjects(site, root, name, Projects(site, root, "projects"))


# The top-level directories, each made of its site, the root and its own name; `settings/views.py` has all names.
VIEWS: dict[str, Callable[[Site, Dir, str], Dir]] = {
    "projects": Projects,
    "experiments": lambda site, root, name: ExperimentLinks(site, root, name, Projects(site, root, "projects")),
    "subjects": lambda site, root, name: SubjectLinks(site, root, name, Projects(site, root, "projects")),
    "prearchive": PrearchiveDir,
    "bids": _bids,
    "archive": ArchiveDir,
}


# Links that are followed for one path, as path_resolution(7) counts them.
MAX_LINKS = 40


class Root(StaticDir):
    """The mount's own directory."""

    __slots__ = ()

    def __init__(self, site: Site) -> None:
        super().__init__(site, None, "")

    def entries(self) -> Iterable[Node]:
        shown = self.site.views.shown
        return [view(self.site, self, name) for name, view in VIEWS.items() if name in shown]

    async def child(self, name: str) -> Node:
        """Return a view. `projects` is found even if it is not shown, since links lead there."""
        return Projects(self.site, self, name) if name == "projects" else await super().child(name)


async def _child(directory: Dir, name: str) -> Node:
    return await directory.child(name)


async def find(root: Dir, names: Sequence[str], child: Callable[[Dir, str], Awaitable[Node]] = _child) -> Node:
    """Return the node of a path, and follow links on the way.

    Args:
        root: The directory that the path begins at, and does not leave.
        names: The parts of the path; ".." is the directory above.
        child: Return the node of a name in a directory.

    Raises:
        NotFound: It does not exist, or leads through too many links.
        NotDirectory: It leads through a file.
    """
    node: Node = root
    rest, links = list(reversed(names)), 0
    while rest:
        name = rest.pop()
        if name == "..":
            node = node.parent or root
            continue
        if not isinstance(node, Dir):
            raise NotDirectory(f"{'/'.join(node.path)} is not a directory")
        parent, node = node, await child(node, name)
        if isinstance(node, Link):
            links += 1
            if links > MAX_LINKS:
                raise NotFound(f"{'/'.join(names)} leads through more than {MAX_LINKS} links")
            rest += reversed((await node.follow()).split("/"))
            node = parent
    return node
