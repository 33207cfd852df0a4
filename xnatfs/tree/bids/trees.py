"""Pass on whole BIDS trees that are stored in a resource of a project or a session: paths and files as they are."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from xnatfs.common.errors import NotFound
from xnatfs.rest.bids import may_hold_tree
from xnatfs.rest.models import Item, natural
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.names import split
from xnatfs.tree.node import Children, Dir, LazyNodes, Node
from xnatfs.tree.resource_files import ResourceFiles
from xnatfs.tree.resources import ResourceDir

_SUBJECT = re.compile(r"sub-[0-9A-Za-z+]+")
# Files at the top that count without a tree, too: a converter leaves them alone in a resource.
_TOP_FILE = re.compile(r"dataset_description\.json|(README|LICENSE)(\.md|\.rst|\.txt)?|CHANGES|CITATION\.cff")


class Leaf(NamedTuple):
    """A file of a tree: one of a resource."""

    files: ResourceFiles
    place: int

    @property
    def uri(self) -> str:
        catalogue = self.files.catalogue
        base = "/".join(self.files.resource_dir.address.base)
        return f"/data/{base}/resources/{catalogue.resource_id}/files/{catalogue.path(self.place)}"


@dataclass
class Tree:
    """Folders and files by name."""

    folders: dict[str, "Tree"] = field(default_factory=dict)
    files: dict[str, Leaf] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)  # why it lacks files of resources that cannot be listed

    def __len__(self) -> int:
        return len(self.files) + sum(map(len, self.folders.values()))

    def add(self, names: tuple[str, ...], leaf: Leaf) -> None:
        """Add a file by the names of its path, unless there is something of that name."""
        if len(names) > 1:
            if names[0] not in self.files:
                self.folders.setdefault(names[0], Tree()).add(names[1:], leaf)
        elif names[0] not in self.folders:
            self.files.setdefault(names[0], leaf)

    def joined(self, others: Iterable["Tree"]) -> "Tree":
        """Return a tree of all files of these; of two with one path, the first."""
        joined = Tree()
        for tree in (self, *others):
            joined.failures += tree.failures
            for path, leaf in tree.leaves():
                joined.add(tuple(path.split("/")), leaf)
        return joined

    def shadows(self, session: str) -> bool:
        """Return whether a subject's tree has the session of a label, or has images without sessions."""
        return f"ses-{session}" in self.folders or any(not name.startswith("ses-") for name in self.folders)

    @property
    def subjects(self) -> Iterable[str]:
        """Return the labels of the subjects."""
        return [name.removeprefix("sub-") for name in self.folders if _SUBJECT.fullmatch(name)]

    def leaves(self, path: str = "") -> Iterator[tuple[str, Leaf]]:
        """Yield all files with their paths."""
        yield from ((f"{path}{name}", leaf) for name, leaf in self.files.items())
        for name, folder in self.folders.items():
            yield from folder.leaves(f"{path}{name}/")


def passed_on(resources: Iterable[ResourceFiles]) -> Tree:
    """Return the tree that some resources hold together; of two files with one path, that of the first resource."""
    tree = Tree()
    for files in resources:
        paths = [split(path) for path in files.catalogue.paths()]
        is_whole = any(len(path) > 1 and _SUBJECT.fullmatch(path[0]) for path in paths)
        for place, names in enumerate(paths):
            if is_whole or (len(names) == 1 and _TOP_FILE.fullmatch(names[0])):
                tree.add(names, Leaf(files, place))
    return tree


async def stored_tree(resources: Node, item: Item, below: bool) -> Tree:
    """Return the tree in the resources of a project or a session.

    Args:
        resources: Their directory in projects/.
        item: The item whose listings have them.
        below: Whether these listings have the resources of everything below the item, too.
    """
    assert isinstance(resources, Dir)
    nodes = (await resources.load()).nodes.values()
    found = [node for node in nodes if isinstance(node, ResourceDir) and may_hold_tree(node.resource.label)]
    if not found:
        return Tree()
    listing = await resources.site.files(item, below)
    found.sort(key=lambda node: natural(node.resource.id))
    tree = passed_on(ResourceFiles(node, listing) for node in found if node.resource.id not in listing.broken)
    tree.failures = [listing.broken[node.resource.id] for node in found if node.resource.id in listing.broken]
    return tree


class TreeDir(Dir):
    """A folder of a tree."""

    __slots__ = ("tree",)

    def __init__(self, parent: Dir, name: str, tree: Tree) -> None:
        super().__init__(parent.site, parent, name)
        self.tree = tree

    async def children(self) -> Children:
        """Return what the folder of this name holds now."""
        assert self.parent is not None
        found = (await self.parent.children()).nodes.get(self.name)
        if not isinstance(found, TreeDir):
            raise NotFound(f"the folder {'/'.join(self.path)} is gone")
        return Children(TreeNodes(self, found.tree, {}), self.parent.fresh_until())

    def fresh_until(self) -> float:
        assert self.parent is not None
        return self.parent.fresh_until()


class TreeNodes(LazyNodes):
    """The nodes of one folder of a tree, made on demand, and further nodes, which they override."""

    def __init__(self, parent: Dir, tree: Tree, added: Mapping[str, Node]) -> None:
        self._parent = parent
        self._tree = tree
        self._added = {name: node for name, node in added.items() if name not in tree.files}

    def __getitem__(self, name: str) -> Node:
        if name in self._added:
            return self._added[name]
        if folder := self._tree.folders.get(name):
            return TreeDir(self._parent, name, folder)
        leaf = self._tree.files[name]
        return CatalogueFile(leaf.files, self._parent, name, leaf.place)

    def __contains__(self, name: object) -> bool:
        return name in self._added or name in self._tree.folders or name in self._tree.files

    def __iter__(self) -> Iterator[str]:
        yield from self._added
        yield from (name for name in self._tree.folders if name not in self._added)
        yield from self._tree.files

    def __len__(self) -> int:
        return len(list(iter(self)))

    def listed(self) -> list[Node]:
        return [self[name] for name in self]
