"""Show RESOURCE/FILE...: named folders of files, at every level of the archive.

All resources of a session are listed at once, and all its files at once, when anything below it is looked up.
"""

import math
from collections.abc import Sequence

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, NotFound
from xnatfs.listings.keys import FilesKey, FoldersKey, ListKey, ResourcesKey
from xnatfs.listings.revocation import Permit
from xnatfs.listings.ttl_cache import Listing
from xnatfs.prefetch.read_pattern import Groups
from xnatfs.rest.address import Address, with_digits
from xnatfs.rest.models import FileRow, Resource
from xnatfs.site import Site
from xnatfs.tree.file_source import FileSource, reading_order
from xnatfs.tree.folders import Folders, build
from xnatfs.tree.names import assign
from xnatfs.tree.node import Children, Dir
from xnatfs.tree.resource_view import Place, ResourceView


class ResourcesDir(Dir):
    """The resources of one item."""

    __slots__ = ("place",)

    reserved: frozenset[str] = frozenset()

    def __init__(self, site: Site, parent: Dir, name: str, place: Place) -> None:
        super().__init__(site, parent, name)
        self.place = place

    async def look_into(self) -> None:
        """Prefetch the listings of a batch of items, where there are any. Called before the resources are listed."""

    async def load(self) -> Children:
        await self.look_into()
        listing = await self.site.resources(self.place.item, self.place.below)
        resources = listing.groups.get(self.place.group, ())
        named = assign(resources, lambda row: row.label, lambda row: row.id, self.reserved)
        digits, place = with_digits(listing.rows), self.place
        nodes = {
            name: ResourceDir(self, name, row, Address.of(row, place.item, place.home, place.base, digits))
            for name, row in named.items()
        }
        return Children(nodes, listing.expires)

    def sources(self) -> Sequence[ListKey]:
        return [self.place.key]


class ResourceDir(ResourceView):
    """The directory of one resource, the root of its files."""

    __slots__ = ()

    def __init__(self, parent: ResourcesDir, name: str, resource: Resource, address: Address) -> None:
        super().__init__(parent, name, parent.place, resource, address)

    def sources(self) -> Sequence[ListKey]:
        return [FilesKey(self.place.item, self.place.below)]

    async def all_xattrs(self) -> dict[str, str]:
        """Return the attributes, with format and content, which a list of files does not report."""
        item, below = self.place.item, self.place.below
        told = self.resource.format or self.resource.content
        if not told and await self.site.confirm([ResourcesKey(item, below)]):
            rows = (await self.site.resources(item, below)).rows
            self.resource = next((row for row in rows if row.id == self.resource.id), self.resource)
        return self.xattrs()

    def xattrs(self) -> dict[str, str]:
        row = self.resource
        uri = f"/data/{'/'.join(self.address.base)}/resources/{row.id}"
        return {"id": row.id, "label": row.label, "uri": uri, "format": row.format, "content": row.content}

    async def listing(self) -> Listing[FileRow]:
        return await self.site.files(self.place.item, self.place.below)

    async def folders(self) -> Folders:
        """Return all files and folders of the resource. Raises BadReply if the server cannot read its catalogue."""

        async def made() -> Folders:
            listing = await self.listing()
            if reason := listing.broken.get(self.resource.id):
                raise BadReply(reason)
            return await build(self, listing)

        folders = await self.site.metadata.get(FoldersKey(self.path), made)
        self._expires = folders.expires
        return folders

    async def children(self) -> Children:
        """Return the root folder's children, a view of the cached folders that is not cached itself."""
        return await self.folder(())

    async def folder(self, inner: tuple[str, ...]) -> Children:
        return (await self.folders()).children(inner)

    def fresh_until(self) -> float:
        if self._expires <= now():
            folders = self.site.metadata.peek(FoldersKey(self.path))
            self._expires = folders.expires if folders else -math.inf
        return self._expires

    @property
    def owners(self) -> tuple[str, ...]:
        """Return the owners of its files, for the content cache."""
        return self.site.access.owners(self.place.project, self.place.item)

    def permit(self, until: float) -> Permit:
        """Return the permit to read its files, shown by a listing that is fresh until `until`."""
        return self.site.access.permit((self.place.key, self.resource.id), self._shown, until)

    async def _shown(self) -> float:
        """Return until when a listing shows the resource to the account. Raises NotFound, Denied."""
        place = self.place
        for certain in (False, True):
            if certain:  # it is not there: does the list of a batch leave it out, or one of the last mount?
                await self.site.confirm([place.key])
            found = await self.site.resources(place.item, place.below)
            if any(row.id == self.resource.id for row in found.rows):
                return found.expires
        raise NotFound(f"resource {self.resource.id} is not listed in {'/'.join(place.item)}")

    def source(self, row: FileRow, groups: Groups) -> FileSource:
        """Return the source of one of its files."""
        return FileSource(self.site.xnat, self.address, row, groups)

    def reading_order(self) -> Sequence[tuple[str, str]]:
        """Return all resources that are listed together with this one, in the order in which the tree shows them."""
        return reading_order(self.site, self.place.item, self.place.below)
