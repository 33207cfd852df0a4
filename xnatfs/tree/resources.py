"""RESOURCE/FILE...: named folders of files, at every level of the archive.

All the resources of a session are listed at once, all its files at once, when something below it is looked at.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from xnatfs.bulk import version
from xnatfs.client import has_url
from xnatfs.content import Blob
from xnatfs.errors import BadReply, Denied, NotFound, Stale
from xnatfs.models import FileRow, Resource
from xnatfs.site import Item, Listing, Site, TrueSize
from xnatfs.tree.names import assign, escape, split
from xnatfs.tree.node import Children, Dir, File, Node, number
from xnatfs.tree.source import FileSource, reading_order

log = logging.getLogger(__name__)

# A file that is listed and not to be had is lost if the listing is younger than this, in seconds; an older listing is
# asked for again, to tell a lost file from a deleted one.
LOST_IF_LISTED_WITHIN = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where resources are asked for. `item` is listed, with all it holds if `below`; they hang on `home`."""

    item: Item
    home: Item
    below: bool = False
    group: tuple[str, str] = ("resources", "")


class ResourcesDir(Dir):
    """The resources of one item."""

    __slots__ = ("place",)

    reserved: frozenset[str] = frozenset()

    def __init__(self, site: Site, parent: Dir, name: str, place: Place) -> None:
        super().__init__(site, parent, name)
        self.place = place

    async def load(self) -> Children:
        listing = await self.site.resources(self.place.item, self.place.below)
        resources = listing.groups.get(self.place.group, ())
        named = assign(resources, lambda row: row.label, lambda row: row.id, self.reserved)
        nodes = {name: ResourceDir(self.site, self, name, self.place, row) for name, row in named.items()}
        return Children(nodes, listing.expires)


class ResourceDir(Dir):
    """One resource: the root of its files."""

    __slots__ = ("place", "resource")

    def __init__(self, site: Site, parent: Dir, name: str, place: Place, resource: Resource) -> None:
        super().__init__(site, parent, name)
        self.place = place
        self.resource = resource

    def xattrs(self) -> dict[str, str]:
        row = self.resource
        uri = f"/data/{'/'.join(self.place.item)}/resources/{row.id}"
        return {"id": row.id, "label": row.label, "uri": uri, "format": row.format, "content": row.content}

    async def listing(self) -> Listing[FileRow]:
        return await self.site.files(self.place.item, self.place.below)

    async def folders(self) -> "Folders":
        """All its files and folders. Raises BadReply where the server cannot read this catalogue."""

        async def build() -> Folders:
            listing = await self.listing()
            if self.resource.id in listing.broken:
                raise BadReply(f"the server cannot read the catalogue of resource {self.resource.id}")
            return _build(self, listing)

        return await self.site.metadata.get(("folders", self.path), build)

    async def load(self) -> Children:
        return (await self.folders()).children(())

    def source(self, row: FileRow) -> FileSource:
        """Where one of its files comes from."""
        return FileSource(self.site.xnat, self.place.item, self.place.home, row)

    def reading_order(self) -> Sequence[tuple[str, str]]:
        """All resources that are listed together with this one, in the order in which a walk of the tree meets them."""
        return reading_order(self.site, self.place.item, self.place.below)


class FolderDir(Dir):
    """A folder within a resource. It exists because a file is below it."""

    __slots__ = ("inner", "resource_dir")

    def __init__(self, site: Site, parent: Dir, name: str, resource_dir: ResourceDir, inner: tuple[str, ...]) -> None:
        super().__init__(site, parent, name)
        self.resource_dir = resource_dir
        self.inner = inner

    async def load(self) -> Children:
        return (await self.resource_dir.folders()).children(self.inner)


@dataclass(frozen=True, slots=True)
class Folders:
    """The files and folders of a resource, by folder."""

    nodes: dict[tuple[str, ...], dict[str, Node]]
    aliases: dict[tuple[str, ...], dict[str, Node]] = field(repr=False)
    expires: float
    count: int

    def __len__(self) -> int:
        return self.count

    def children(self, inner: tuple[str, ...]) -> Children:
        """What one folder holds. Raises NotFound where there is none."""
        nodes = self.nodes.get(inner)
        if nodes is None:
            raise NotFound(f"the folder {'/'.join(inner)} is gone")
        return Children(nodes, self.expires, self.aliases.get(inner, {}))


class CatalogueFile(File):
    """One file of a resource. What the catalogue says of its size is corrected by what its reply said."""

    __slots__ = ("_size", "folder", "listed", "resource_dir", "row")

    def __init__(
        self,
        parent: Dir,
        name: str,
        resource_dir: ResourceDir,
        row: FileRow,
        folder: dict[str, Node],
        listed: Listing[FileRow],
    ) -> None:
        super().__init__(parent.site, parent, name)
        self.resource_dir = resource_dir
        self.row = row
        self.folder = folder  # where it is listed, so that a corrected node can take its place
        self.listed = listed  # the listing that it is of
        learnt = parent.site.metadata.peek(self._size_key())
        self._size = learnt.size if isinstance(learnt, TrueSize) else row.size

    def _size_key(self) -> tuple[str, str, str, int | None, str]:
        return ("size", self.row.resource_id, self.row.path, self.row.size, self.row.digest)

    @property
    def identity(self) -> object:
        return (self.row.resource_id, self.row.path, self.row.digest, self._size)

    def inode_hint(self) -> int:
        """Resource, place in its listing, version: programs that read in inode order then read in listing order."""
        resource = number(self.row.resource_id, 25)
        version = number(f"{self.row.path} {self.row.digest} {self._size}", 12)
        return 1 << 61 | resource << 36 | (self.row.place & 0xFFFFFF) << 12 | version

    def xattrs(self) -> dict[str, str]:
        row = self.row
        uri = f"/data/{'/'.join(self.resource_dir.place.item)}/resources/{row.resource_id}/files/{row.path}"
        return {"uri": uri, "digest": row.digest, "format": row.format, "content": row.content}

    @property
    def measured(self) -> bool:
        return self._size is not None

    @property
    def measured_size(self) -> int:
        assert self._size is not None
        return self._size

    async def size(self) -> int:
        if self._size is None:
            self._size = (await self.site.metadata.get(self._size_key(), self._ask_size)).size
        return self._size

    async def _ask_size(self) -> TrueSize:
        """One HEAD. A file that will not say is shown as empty; `open` finds out."""
        size = None
        if has_url(self.row.path):
            try:
                size = await self.site.xnat.head(self.resource_dir.place.item, self.row)
            except (NotFound, Denied, BadReply) as error:
                log.debug("the size of %s is not to be had: %s", "/".join(self.path), error)
        return TrueSize(size or 0, self.listed.expires)

    async def open(self) -> Blob:
        await self.site.bulk.opened(self.resource_dir.place.item, self.listed.groups, self.row, self.resource_dir)
        try:
            blob = await self.site.content.open(version(self.row), self.resource_dir.source(self.row))
        except NotFound as error:
            await self._check_listed()
            raise BadReply(f"the server lists {'/'.join(self.path)}, but has lost it: {error}") from error
        if blob.size != await self.size():
            blob.close()
            self._correct(blob.size)
            raise Stale(f"{'/'.join(self.path)} is {blob.size} bytes, not {self._size} as listed")
        return blob

    async def _check_listed(self) -> None:
        """Raise NotFound if the file is not in the server's listing any more."""
        resource_dir = self.resource_dir
        listing = await resource_dir.listing()
        if trio.current_time() - listing.fetched > LOST_IF_LISTED_WITHIN:
            place = resource_dir.place
            self.site.metadata.forget(("files", place.item, place.below))
            self.site.metadata.forget(("folders", resource_dir.path))
            listing = await resource_dir.listing()
        if not any(row.path == self.row.path for row in listing.groups.get(self.row.resource_id, ())):
            self.folder.pop(self.name, None)
            raise NotFound(f"{'/'.join(self.path)} is gone")

    def _correct(self, size: int) -> None:
        """Put a node with the true size in the place of this one."""
        self.site.metadata.put(self._size_key(), TrueSize(size))
        if self.parent is not None:
            self.folder[self.name] = CatalogueFile(
                self.parent, self.name, self.resource_dir, self.row, self.folder, self.listed
            )


def _build(resource_dir: ResourceDir, listing: Listing[FileRow]) -> Folders:
    """The folders of a resource, from its catalogue."""
    rows = listing.groups.get(resource_dir.resource.id, ())
    paths = {row.path: split(row.path) for row in rows}
    dirs: dict[tuple[str, ...], Dir] = {(): resource_dir}
    nodes: dict[tuple[str, ...], dict[str, Node]] = {(): {}}
    for path in paths.values():
        for depth in range(1, len(path)):
            inner = path[:depth]
            if inner not in dirs:
                parent = dirs[inner[:-1]]
                dirs[inner] = FolderDir(resource_dir.site, parent, inner[-1], resource_dir, inner)
                nodes[inner] = {}
                nodes[inner[:-1]][inner[-1]] = dirs[inner]
    taken = {path for path in paths.values()}
    aliases: dict[tuple[str, ...], dict[str, Node]] = {}
    for row in rows:
        inner, name = paths[row.path][:-1], paths[row.path][-1]
        while (*inner, name) in dirs or (name != paths[row.path][-1] and (*inner, name) in taken):
            name += "~file"
        folder = nodes[inner]
        if name in folder:
            log.warning("the catalogue of resource %s has %r twice", row.resource_id, row.path)
            continue
        file = CatalogueFile(dirs[inner], name, resource_dir, row, folder, listing)
        folder[name] = file
        raw = row.path.rpartition("/")[2]
        if raw != name and escape(raw) != raw:
            aliases.setdefault(inner, {})[raw] = file
    return Folders(nodes, _unshadowed(aliases, nodes), listing.expires, len(rows))


def _unshadowed(
    aliases: dict[tuple[str, ...], dict[str, Node]], nodes: Mapping[tuple[str, ...], Mapping[str, Node]]
) -> dict[tuple[str, ...], dict[str, Node]]:
    return {
        inner: {raw: node for raw, node in found.items() if raw not in nodes[inner]} for inner, found in aliases.items()
    }
