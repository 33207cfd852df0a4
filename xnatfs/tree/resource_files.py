"""Hold the files of one resource, and find their lengths: as listed, or requested where the listing is doubtful."""

import logging
from collections.abc import Sequence
from functools import partial

import trio

from xnatfs.common.errors import BadReply, Denied, NotFound, XnatError
from xnatfs.common.tasks import gather
from xnatfs.listings.keys import SizeKey
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.models import FileRow
from xnatfs.site import TrueSize
from xnatfs.tree.file_source import catalogue_of
from xnatfs.tree.node import number
from xnatfs.tree.resource_view import ResourceView

log = logging.getLogger(__name__)

# An inode number is one bit that marks a file, RESOURCE_BITS of the resource, and PLACE_BITS of the place in its
# listing: enough for a million files. Among ten thousand resources two collide in one mount of a hundred; a collision,
# or a higher place, takes another free number, and inode order is then not listing order.
RESOURCE_BITS, PLACE_BITS = 32, 20
# Where a listing gives a reason to doubt its sizes, so many are requested before any is shown, in one batch of HEADs:
# if one is wrong, each of the others is requested as well. After so many resources without a wrong one, the listings
# of this server are not doubted any more.
SAMPLED_FILES, MIN_RIGHT_RESOURCES = 32, 4


class ResourceFiles:
    """The data that the nodes of one resource's files share; a node lasts for as long as it is used."""

    def __init__(self, resource_dir: ResourceView, listing: Listing[FileRow]) -> None:
        self.resource_dir = resource_dir
        self.site = resource_dir.site
        self.groups = listing.groups
        self.catalogue = catalogue_of(listing.groups, resource_dir.resource.id)
        self.expires = listing.expires
        self.first_inode = (1 << RESOURCE_BITS | number(self.catalogue.resource_id, RESOURCE_BITS)) << PLACE_BITS
        self.modified = resource_dir.modified()
        self.learnt = 0  # how often one of the files proved to be another than listed
        self._sizes: dict[int, int] = {}  # requested, or stated by a reply; by place
        self._sampling = trio.Lock()
        self._sample = self._doubtful()

    def size(self, place: int) -> int | None:
        """Return the length of a file, as far as it is known: what is listed, unless there is a reason to doubt it.

        A program or a file system on top keeps the first length that it gets, and cuts a longer file without an error.
        """
        if place in self._sizes:
            return self._sizes[place]
        if self._sample or self.site.sizes_right.get(self.catalogue.resource_id) is False:
            return None
        size = self.catalogue.size(place)
        return None if size == 0 and not self.catalogue.version(place) else size

    def _doubtful(self) -> Sequence[int]:
        """Return the places of files to request before a size is shown; none where the listing is not doubtful.

        It is if the stated total differs, or if some entries have no digest, and so are older than others.
        """
        site, resource, catalogue = self.site, self.resource_dir.resource, self.catalogue
        if catalogue.resource_id in site.sizes_right or sum(site.sizes_right.values()) >= MIN_RIGHT_RESOURCES:
            return ()
        stated = resource.file_size if resource.file_count == len(catalogue) else None
        if stated and catalogue.total() not in (None, stated):
            return range(min(len(catalogue), SAMPLED_FILES))
        return catalogue.lacking_digests

    async def measure(self, place: int) -> int:
        """Return the length of a file: as listed if a sample shows no wrong one, else as the server states it now."""
        async with self._sampling:
            if self._sample:
                await gather(*(partial(self._request, each) for each in self._sample))
                self._sample = ()
                if not self.site.xnat.away:
                    self.site.sizes_right.setdefault(self.catalogue.resource_id, True)
        size = self.size(place)
        return await self._request(place) if size is None else size

    async def _request(self, place: int) -> int:
        """Return the length of a file as the server states it now, one HEAD; as listed, or 0, where it does not."""
        row = self.catalogue.at(place)
        found = await self.site.metadata.get(size_key(row), partial(self._head, row))
        self.learn(place, found.size)
        return found.size

    async def _head(self, row: FileRow) -> TrueSize:
        address, size = self.resource_dir.address, None
        if address.has_name(row.path, self.catalogue):
            try:
                size = (await self.site.xnat.head(address.base, address.named(row))).size
            except XnatError as error:
                if row.size is None and not isinstance(error, NotFound | Denied | BadReply):
                    raise
                log.debug("the size of %s is unavailable: %s", row.path, error)
        if size is None:
            return TrueSize(row.size or 0, self.expires)
        if row.size is None:
            return TrueSize(size, self.expires)
        self.site.sizes_learnt = True
        return TrueSize(size)

    def learn(self, place: int, size: int) -> None:
        """Record the length of a file."""
        self._sizes[place] = size
        if self.catalogue.size(place) not in (None, size):
            self.learnt += 1
            self.site.sizes_right[self.catalogue.resource_id] = False


def size_key(row: FileRow) -> SizeKey:
    return SizeKey(row.resource_id, row.path, row.size, row.digest)
