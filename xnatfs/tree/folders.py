"""Make the folders of one resource: each file of its catalogue once, in its folder, under a name of its own."""

import logging
from collections.abc import Iterator, Sequence

import trio

from xnatfs.common.errors import BadReply, NotFound
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.models import FileRow
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.names import are_simple, escape, shorten, split
from xnatfs.tree.node import Children, Dir, LazyNodes, Node, NodesByPlace
from xnatfs.tree.resource_files import ResourceFiles
from xnatfs.tree.resource_view import ResourceView

log = logging.getLogger(__name__)

# Folders of one resource: each takes 1.5 KB, and two bytes of a path make one.
MOST_FOLDERS = 200_000
# Files that are sorted into folders between two checkpoints: a millisecond.
FILES_AT_ONCE = 100

Inner = tuple[str, ...]


class Folder(LazyNodes):
    """One folder: the folders in it, then its files in the order of the catalogue."""

    __slots__ = ("_places", "aliases", "dirs", "files", "is_plain", "node")

    def __init__(self, files: ResourceFiles, node: Dir, places: dict[str, int] | None) -> None:
        self.files = files
        self.node = node
        self.dirs: dict[str, Dir] = {}
        # Each path of the catalogue is a name, and this the only folder: names and places are looked up there.
        self.is_plain = places is None
        self._places = places
        self.aliases: dict[str, str] = {}  # names by which files are found, too

    @property
    def places(self) -> dict[str, int]:
        """Return the places of its files in the catalogue, by name; of a plain folder made for lookups by name."""
        if self._places is None:
            self._places = {path: place for place, path in enumerate(self.files.catalogue.paths())}
        return self._places

    def children(self) -> Children:
        aliases = {raw: self[name] for raw, name in self.aliases.items() if name in self} if self.aliases else {}
        return Children(self, self.files.expires, aliases)

    def file(self, name: str | None, place: int) -> CatalogueFile:
        return CatalogueFile(self.files, self.node, None if self.is_plain else name, place)

    def __getitem__(self, name: str) -> Node:
        found = self.dirs.get(name)
        return self.file(name, self.places[name]) if found is None else found

    def __contains__(self, name: object) -> bool:
        return name in self.dirs or name in self.places

    def __iter__(self) -> Iterator[str]:
        yield from self.dirs
        yield from self.files.catalogue.paths() if self.is_plain else self.places

    def __len__(self) -> int:
        return len(self.dirs) + len(self.files.catalogue if self.is_plain else self.places)

    def listed(self) -> Sequence[Node]:
        shown = self.files.site.shown
        found = shown.peek(self.node.path)
        if not isinstance(found, _Nodes) or found.folder is not self:
            found = _Nodes(self)
            shown.put(self.node.path, found)
        return found


class _Nodes(NodesByPlace):
    """The nodes of a folder, one after the other; those that were made stay as long as this does."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.expires = folder.files.expires
        self._files = None if folder.is_plain else list(folder.places.items())
        self._made: list[Node | None] = [*folder.dirs.values(), *[None] * (len(folder) - len(folder.dirs))]

    def __len__(self) -> int:
        return len(self._made)

    def make(self, place: int) -> Node:
        node = self._made[place]
        if node is None:
            index = place - len(self.folder.dirs)
            name, index = self._files[index] if self._files is not None else (None, index)
            node = self._made[place] = self.folder.file(name, index)
        return node


class FolderDir(Dir):
    """A folder within a resource. It exists because a file is below it."""

    __slots__ = ("_above", "folder")

    def __init__(self, above: Folder, name: str) -> None:
        super().__init__(above.files.site, above.node, name)
        self._above = above.node
        self.folder = Folder(above.files, self, {})

    async def children(self) -> Children:
        """Return what the folder of this name holds now. Raises NotFound if it no longer exists."""
        found = (await self._above.children()).nodes.get(self.name)
        if not isinstance(found, FolderDir):
            raise NotFound(f"the folder {'/'.join(self.path)} is gone")
        return found.folder.children()

    def fresh_until(self) -> float:
        return self._above.fresh_until()


class Folders:
    """The folders of a resource, by path."""

    def __init__(self, files: ResourceFiles) -> None:
        self.files = files
        self.expires = files.expires
        self.root = Folder(files, files.resource_dir, None)
        self._by_path: dict[Inner, Folder] = {(): self.root}
        self._twice = 0  # files that are listed under the path of another one

    def __len__(self) -> int:
        return len(self.files.catalogue) + len(self._by_path)

    async def sort(self) -> None:
        """Make the folders and, unless each path is a name as it is and no other's, put each file into its own."""
        catalogue, plain = self.files.catalogue, set[str]()
        for start in range(0, len(catalogue), FILES_AT_ONCE):
            await _checkpoint(start)
            paths = list(catalogue.paths(start, start + FILES_AT_ONCE))
            if are_simple(paths):
                plain.update(paths)
                continue
            for path in paths:
                names = split(path)
                if names[0] == path:
                    plain.add(path)
                else:
                    self._folder(names[:-1])
        if len(plain) < len(catalogue):
            await self._sort_files()

    def _folder(self, inner: Inner) -> Folder:
        """Return the folder of this path, made if need be, with those that it is in."""
        found = self._by_path.get(inner)
        if found is None:
            if len(self._by_path) > MOST_FOLDERS:
                raise BadReply(f"resource {self.files.catalogue.resource_id} has more than {MOST_FOLDERS} folders")
            above = self._folder(inner[:-1])
            node = above.dirs[inner[-1]] = FolderDir(above, inner[-1])
            found = self._by_path[inner] = node.folder
        return found

    async def _sort_files(self) -> None:
        catalogue = self.files.catalogue
        also_folders: dict[Inner, int] = {}
        self.root.is_plain, self.root._places = False, {}
        for start in range(0, len(catalogue), FILES_AT_ONCE):
            await _checkpoint(start)
            for place, path in enumerate(catalogue.paths(start, start + FILES_AT_ONCE), start):
                names = split(path)
                folder = self._by_path[names[:-1]]
                if names in also_folders:
                    self._note_twice(path)
                elif names[-1] in folder.dirs:
                    also_folders[names] = place
                else:
                    self._enter(folder, names[-1], place, path)
        for (*inner, name), place in also_folders.items():
            folder = self._by_path[tuple(inner)]
            while name in folder:
                name = shorten(f"{name}~file")
            self._enter(folder, name, place, catalogue.path(place))
        if self._twice > 1:
            log.warning("the catalogue of resource %s has %d such paths", catalogue.resource_id, self._twice)
        for folder in self._by_path.values():
            folder.aliases = {raw: name for raw, name in folder.aliases.items() if raw not in folder}

    def _note_twice(self, path: str) -> None:
        self._twice += 1
        if self._twice == 1:  # a line for each would let a server fill the disk with the log
            log.warning("the catalogue of resource %s has %r twice", self.files.catalogue.resource_id, path)

    def _enter(self, folder: Folder, name: str, place: int, path: str) -> None:
        if name in folder.places:
            self._note_twice(path)
            return
        folder.places[name] = place
        raw = path.rpartition("/")[2]
        if raw != name and escape(raw) != raw:
            folder.aliases[raw] = name


async def build(resource_dir: ResourceView, listing: Listing[FileRow]) -> Folders:
    """Build the folders of a resource from its catalogue; other tasks have their turn meanwhile."""
    folders = Folders(ResourceFiles(resource_dir, listing))
    await folders.sort()
    return folders


async def _checkpoint(start: int) -> None:
    """Let other tasks run; not for the few files that most resources have."""
    if start:
        await trio.lowlevel.checkpoint()
