"""Declare what the folders and files of a resource use of its directory: its place, and what to request there."""

from collections.abc import Sequence
from dataclasses import dataclass

from xnatfs.listings.keys import ResourcesKey
from xnatfs.listings.revocation import Permit
from xnatfs.listings.ttl_cache import Listing
from xnatfs.prefetch.read_pattern import Groups
from xnatfs.rest.address import Address, base
from xnatfs.rest.models import FileRow, Item, Resource
from xnatfs.tree.file_source import FileSource
from xnatfs.tree.node import Children, Dir


@dataclass(frozen=True, slots=True)
class Place:
    """The place of resources on the server.

    `item` is listed, with everything it holds if `below`; `home` has the resources.
    """

    item: Item
    home: Item
    below: bool = False
    group: tuple[str, str] = ("resources", "")
    project: str = ""  # through which they are accessed; '' if nothing is to be prefetched
    ambiguous: bool = False  # the ID of the item that has them names another part of the session, too

    @property
    def base(self) -> Item:
        """Return the narrowest item that a URL can name: the one that has the resources, if its ID is unambiguous."""
        return self.item if self.ambiguous or self.item == self.home else base(self.item, self.group)

    @property
    def key(self) -> ResourcesKey:
        """Return the key of the listing that shows the resources."""
        return ResourcesKey(self.item, self.below)


class ResourceView(Dir):
    """The directory of a resource, as its folders and files see it."""

    __slots__ = ("address", "place", "resource")

    def __init__(self, parent: Dir, name: str, place: Place, resource: Resource, address: Address) -> None:
        super().__init__(parent.site, parent, name)
        self.place = place
        self.resource = resource
        self.address = address

    async def listing(self) -> Listing[FileRow]:
        """Return the files of all resources that are listed together with this one."""
        raise NotImplementedError(type(self).__name__)

    async def folder(self, inner: tuple[str, ...]) -> Children:
        """Return the children of one of its folders. Raises NotFound if there is no such folder."""
        raise NotImplementedError(type(self).__name__)

    @property
    def owners(self) -> tuple[str, ...]:
        """Return the owners of its files, for the content cache."""
        raise NotImplementedError(type(self).__name__)

    def permit(self, until: float) -> Permit:
        """Return the permit to read its files, shown by a listing that is fresh until `until`."""
        raise NotImplementedError(type(self).__name__)

    def source(self, row: FileRow, groups: Groups) -> FileSource:
        """Return the source of one of its files."""
        raise NotImplementedError(type(self).__name__)

    def reading_order(self) -> Sequence[tuple[str, str]]:
        """Return all resources that are listed together with it, in the order in which the tree shows them."""
        raise NotImplementedError(type(self).__name__)
