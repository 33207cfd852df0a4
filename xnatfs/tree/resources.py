"""Show RESOURCE/FILE...: named folders of files, at every level of the archive.

All resources of a session are listed at once, and all its files at once, when anything below it is looked up.
"""

import math
from collections.abc import Iterator, Sequence

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply
from xnatfs.listings.keys import FoldersKey, ListKey
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.address import Address, with_digits
from xnatfs.rest.models import Resource
from xnatfs.site import Site
from xnatfs.tree.folders import Folders, build
from xnatfs.tree.names import by_label
from xnatfs.tree.node import Children, Dir, Node
from xnatfs.tree.resource_view import ResourcePlace, ResourceView


class ResourcesDir(Dir):
    """The resources of one item."""

    __slots__ = ("place",)

    reserved: frozenset[str] = frozenset()

    def __init__(self, site: Site, parent: Dir, name: str, place: ResourcePlace) -> None:
        super().__init__(site, parent, name)
        self.place = place

    async def load(self) -> Children:
        assert self.parent is not None
        await self.parent.look_into()
        listing = await self.site.resources(self.place.item, self.place.below)
        nodes: dict[str, Node] = {node.name: node for node in self.made_of(listing, with_digits(listing.rows))}
        return Children(nodes, listing.expires)

    def made_of(self, listing: Listing[Resource], digits: Sequence[Resource]) -> "Iterator[ResourceDir]":
        """Yield the directories of its resources.

        Args:
            listing: The listing that shows them.
            digits: The resources in it whose label can be mistaken for a number.
        """
        resources, place = listing.groups.get(self.place.group, ()), self.place
        for name, row in by_label(resources, self.reserved).items():
            if self.site.views.shows_resource(row.label):
                address = Address.for_resource(row, place.item, place.home, place.base, digits)
                yield ResourceDir(self, name, place, row, address)

    def sources(self) -> Sequence[ListKey]:
        return [self.place.key]


class ResourceDir(ResourceView):
    """The directory of one resource, the root of its files."""

    __slots__ = ()

    async def all_xattrs(self) -> dict[str, str]:
        """Return the attributes, with format and content, which a list of files does not report."""
        stated = self.resource.format or self.resource.content
        if not stated and await self.site.confirm([self.place.key]):
            rows = (await self.site.resources(self.place.item, self.place.below)).rows
            self.resource = next((row for row in rows if row.id == self.resource.id), self.resource)
        return self.xattrs()

    def xattrs(self) -> dict[str, str]:
        row = self.resource
        uri = f"/data/{'/'.join(self.address.base)}/resources/{row.id}"
        return {"id": row.id, "label": row.label, "uri": uri, "format": row.format, "content": row.content}

    async def children(self) -> Children:
        """Return the root folder's children, a view of the cached folders that is not cached itself."""
        folders = await self.site.metadata.get(FoldersKey(self.path), self._build)
        self._expires = folders.expires
        return folders.root.children()

    async def _build(self) -> Folders:
        """Sort all files into folders. Raises BadReply if the server cannot read the resource's catalogue."""
        listing = await self.listing()
        if reason := listing.broken.get(self.resource.id):
            raise BadReply(reason)
        return await build(self, listing)

    def fresh_until(self) -> float:
        if self._expires <= now():
            folders = self.site.metadata.peek(FoldersKey(self.path))
            self._expires = folders.expires if folders else -math.inf
        return self._expires
