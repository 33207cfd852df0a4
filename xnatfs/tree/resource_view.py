"""Locate a resource: where its files are listed, whether they may be read, and how they are requested."""

from collections.abc import Sequence
from dataclasses import dataclass

from xnatfs.common.clock import now
from xnatfs.common.errors import NotFound
from xnatfs.listings.keys import ChildrenKey, FilesKey, FoldersKey, ListKey, ResourcesKey
from xnatfs.listings.revocation import Permit
from xnatfs.listings.ttl_cache import Listing
from xnatfs.prefetch.read_pattern import Groups
from xnatfs.rest.address import Address, base
from xnatfs.rest.models import FileRow, Item, Resource
from xnatfs.tree.file_source import FileSource, catalogue_of
from xnatfs.tree.node import Children, Dir

SCANS_NAMES = ("scans", "SCANS")  # of the directory of a session's scans, by view
# A file that is listed and unavailable is lost if the listing is younger than this, in seconds; an older listing is
# requested again, to distinguish a lost file from a deleted one.
LOST_IF_LISTED_WITHIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ResourcePlace:
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
    """The directory of a resource, as its folders and files use it."""

    __slots__ = ("address", "place", "resource")

    has_archive = True  # the server sends it as one tar, from which files can be prefetched
    in_views = True  # other views may have names of its files

    def __init__(self, parent: Dir, name: str, place: ResourcePlace, resource: Resource, address: Address) -> None:
        super().__init__(parent.site, parent, name)
        self.place = place
        self.resource = resource
        self.address = address

    @property
    def shown_by(self) -> ListKey:
        """Return the key of the listing that shows the resource."""
        return self.place.key

    @property
    def files_key(self) -> ListKey:
        """Return the key of the listing of its files."""
        return FilesKey(self.place.item, self.place.below)

    def sources(self) -> Sequence[ListKey]:
        return [self.files_key]

    async def listing(self) -> Listing[FileRow]:
        """Return the files of all resources that are listed together with this one."""
        found: Listing[FileRow] = await self.site.listings.get(self.files_key)
        return found

    async def young_listing(self) -> Listing[FileRow]:
        """Return a listing so young that a file in it is lost, and not deleted, if it is unavailable."""
        listing = await self.listing()
        if now() - listing.fetched <= LOST_IF_LISTED_WITHIN_SECONDS:
            return listing
        self.site.metadata.forget(self.files_key)
        return await self.listing()

    async def check_listed(self, path: str) -> None:
        """Raise NotFound if the server no longer lists one of its files."""
        listing = await self.young_listing()
        self.site.metadata.forget(FoldersKey(self.path))
        if path not in catalogue_of(listing.groups, self.resource.id).paths():
            raise NotFound(f"{'/'.join((*self.path, path))} is gone")

    def permit(self, until: float) -> Permit:
        """Return the permit to read its files, shown by a listing that is fresh until `until`."""
        return self.site.access.permit((self.place.key, self.resource.id), self, until)

    async def confirm_shown(self) -> float:
        """Return until when a listing shows the resource to the account. Raises NotFound, Denied."""
        place = self.place
        for certain in (False, True):
            if certain:  # absent, but perhaps only from a list derived from a batch, or of the last mount
                await self.site.confirm([place.key])
            found = await self.site.resources(place.item, place.below)
            if any(row.id == self.resource.id for row in found.rows):
                return found.expires
        raise NotFound(f"resource {self.resource.id} is not listed in {'/'.join(place.item)}")

    def source(self, row: FileRow, groups: Groups) -> FileSource:
        """Return the source of one of its files, which is about to be read."""
        self.site.access.note_read(self.place.project, self.place.item, row.resource_id, groups)
        return FileSource(self.site.xnat, self.address, row, groups)

    def reading_order(self) -> Sequence[tuple[str, str]]:
        """Return ID and label of the cached resources that are listed with it: scan by scan as shown, then the rest."""
        listing = self.site.metadata.peek(self.place.key)
        if not isinstance(listing, Listing):
            return ()
        session = self.path[: -2 if self.place.group[0] == "resources" else -3]
        listed = [self.site.metadata.peek(ChildrenKey((*session, name))) for name in SCANS_NAMES if self.place.below]
        scans = [node for each in listed if isinstance(each, Children) for node in each.nodes.values()]
        shown = [("scans", node.xattrs()["id"]) for node in scans]
        groups = dict.fromkeys([*shown, *listing.groups])
        return [(row.id, row.label) for group in groups for row in listing.groups.get(group, ())]
