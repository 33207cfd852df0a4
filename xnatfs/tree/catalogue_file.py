"""Represent one file of a resource: as listed, corrected by what replies to its requests state.

A node is made when it is looked at, out of the packed catalogue: a million files as objects would be half a gigabyte.
So nothing that must last is in a node: `ResourceFiles` has the sizes that were learnt, the site's cache the changes.
"""

import hashlib
import math
from email.utils import parsedate_to_datetime

from xnatfs.common.errors import BadReply, Denied, NotFound, Stale
from xnatfs.content import Blob
from xnatfs.listings.keys import ChangeKey
from xnatfs.listings.revocation import Permit
from xnatfs.prefetch.file_version import version
from xnatfs.rest.models import FileRow
from xnatfs.site import Change, TrueSize
from xnatfs.tree.names import split
from xnatfs.tree.node import Dir, File, Node, number
from xnatfs.tree.resource_files import PLACE_BITS, ResourceFiles, size_key

# Seconds by which the clocks of a server and of this machine may differ; Kerberos allows as much.
SKEW_SECONDS = 300.0


class CatalogueFile(File):
    """One file of a resource."""

    __slots__ = ("_change", "_identity", "_learnt", "_name", "_size", "files", "place")

    def __init__(self, files: ResourceFiles, parent: Dir, name: str | None, place: int) -> None:
        self.site = files.site
        self.parent = parent
        self._name = name  # None: its path, which the catalogue has, 64 bytes less for each of a million files
        self.files = files
        self.place = place
        self._identity = b""
        self._size = files.size(place)
        self._change: Change | None = None  # its last change, if this mount has observed it
        self._learnt = files.learnt
        if self._size is None or self.site.sizes_learnt:
            learnt = self.site.metadata.peek(size_key(self.row))
            if isinstance(learnt, TrueSize):
                self._size = learnt.size
            self._change = self._known_change()

    @property
    def name(self) -> str:
        return self.files.catalogue.path(self.place) if self._name is None else self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    @property
    def is_in_views(self) -> bool:  # type: ignore[override]
        return self.files.resource_dir.in_views

    @property
    def row(self) -> FileRow:
        return self.files.catalogue.at(self.place)

    @property
    def identity(self) -> object:
        """Return a hash of the resource and the path: 16 bytes, because the kernel may know a million of them."""
        if not self._identity:
            self._identity = hashlib.blake2b(self.files.catalogue.identity(self.place), digest_size=16).digest()
        return self._identity

    @property
    def _stated(self) -> int:
        """Return what the listing states of the content: the digest or, where there is none, the length."""
        return self.files.catalogue.version(self.place) or self.files.catalogue.size(self.place) or 0

    @property
    def version(self) -> int:
        """Return a number of what the listing states, the stamp of a change that it does not show, and the length."""
        stated = self._stated
        if self._change and self._change.stamp:
            stated = number(f"{stated} {self._change.stamp}", 64)
        return stated << 64 | (0 if self._size is None else self._size + 1)

    @property
    def rank(self) -> tuple[float, int]:
        return (self.files.expires, self._learnt)

    # -- changes -------------------------------------------------------------------------------------------------

    def _change_key(self) -> ChangeKey:
        row = self.row
        return ChangeKey(row.resource_id, row.path)

    def _known_change(self) -> Change | None:
        change = self.site.metadata.peek(self._change_key())
        return change if isinstance(change, Change) and change.stated == self._stated else None

    def supersede(self, shown: Node) -> None:
        """Record a change between the previous listing and this one, dated now."""
        if isinstance(shown, CatalogueFile) and shown.rank < self.rank and shown._stated != self._stated:
            self._change = self._known_change() or self.site.learn_change(self._change_key(), self._stated, "")

    def is_another(self, before: str, stamp: str) -> bool:
        """Compare HTTP dates; archive members have none, so they never prove a replacement."""
        return before != stamp and math.inf not in (_date(before), _date(stamp))

    def replaced(self, before: str, stamp: str) -> None:
        since = self._change.at if self._change else 0.0
        at = None if self.is_another(before, stamp) else since
        self.site.learn_change(self._change_key(), self._stated, stamp, at)
        self.files.learnt += 1
        self._forget_nodes()

    def _forget_nodes(self) -> None:
        """Discard the outdated nodes of its folders, here and in projects/, so that they are made again."""
        assert self.parent is not None
        self.site.shown.forget(self.parent.path)
        self.site.shown.forget((*self.files.resource_dir.path, *split(self.row.path)[:-1]))

    # -- attributes ----------------------------------------------------------------------------------------------

    def inode_hint(self) -> int:
        """Return a number of resource and place in its listing: reading in inode order is reading in listing order."""
        return self.files.first_inode | self.place & (1 << PLACE_BITS) - 1

    def modified(self) -> float:
        return (self._change and self._change.at) or self.files.modified

    def modified_ns(self) -> int:
        """Return a time that no reading changes: not Last-Modified, which is known only of what was fetched.

        After a change that this mount has seen it is the time of that; until then the session's, as exact as servers
        state it, with nanoseconds below a millisecond of the digest, or without one of the listed length: what replaces
        a file of its own size has another time.
        """
        if self._change and self._change.at:
            return int(self._change.at * 1e9)
        return round(self.files.modified * 1000) * 10**6 + self._stated % 10**6

    def xattrs(self) -> dict[str, str]:
        row = self.row
        address = self.files.resource_dir.address
        uri = f"/data/{'/'.join(address.base)}/resources/{address.resource}/files/{row.path}"
        return {"uri": uri, "digest": row.digest, "format": row.format, "content": row.content}

    @property
    def measured(self) -> bool:
        if self._size is None:
            self._size = self.files.size(self.place)  # another node of this file may have requested it
        return self._size is not None

    @property
    def measured_size(self) -> int:
        size = self._size if self._size is not None else self.files.size(self.place)
        assert size is not None
        return size

    async def size(self) -> int:
        if not self.measured:
            self._size = await self.files.measure(self.place)
            self._learnt = self.files.learnt
        return self.measured_size

    # -- content -------------------------------------------------------------------------------------------------

    def permit(self) -> Permit:
        return self.files.resource_dir.permit(self.files.expires)

    async def open(self) -> Blob:
        row, resource_dir, groups = self.row, self.files.resource_dir, self.files.groups
        if resource_dir.has_archive:
            await self.site.series_prefetch.before_open(resource_dir.place.item, groups, row, resource_dir)
        try:
            blob = await self.site.content.open(version(row), resource_dir.source(row, groups))
        except NotFound as error:
            await resource_dir.check_listed(row.path)
            raise BadReply(f"the server lists {'/'.join(self.path)}, but has lost it: {error}") from error
        if blob.size != await self.size():
            await _believe(blob, row.digest)
            blob.close()
            self.site.learn_size(size_key(row), blob.size)
            self.files.learn(self.place, blob.size)
            self._forget_nodes()
            raise Stale(f"{'/'.join(self.path)} is {blob.size} bytes, not {self._size} as listed")
        return blob

    async def unchanged_since(self, size: int, stamp: str) -> str:
        """Compare length and date by HEAD; return the date to compare with next time, '' where the file is another.

        Members of archives come without a date. Their stamp is the time of their arrival: the file must not have
        changed since, by the server's clock. A file that has no URL, or is refused, does not count as unchanged. One
        that proves to be another is fetched anew at its next open.
        """
        row, resource_dir = self.row, self.files.resource_dir
        if not resource_dir.address.has_name(row.path, self.files.catalogue):
            return ""
        try:
            found, modified = await self.site.xnat.head(resource_dir.address.base, resource_dir.address.named(row))
        except (NotFound, Denied, BadReply):
            return ""
        if (
            found in (size, None)
            and modified
            and (modified == stamp or _date(modified) < _number(stamp) - SKEW_SECONDS)
        ):
            return modified
        self.site.content.distrust(version(row))
        return ""


def _date(modified: str) -> float:
    """Return an HTTP date as seconds since the epoch; infinity where it is none."""
    try:
        return parsedate_to_datetime(modified).timestamp()
    except (ValueError, OverflowError):
        return math.inf


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -math.inf


async def _believe(blob: Blob, digest: str) -> None:
    """Wait until a length other than the listed one is proved: by the digest, or by all of a small file.

    Otherwise a damaged empty reply would make an empty file, of which no program reads anything, so that none gets an
    error. Without a digest, the server has confirmed the length (`content/download.py`).
    """
    try:
        if digest:
            await blob.wait_until_verified()
        else:
            await blob.read(0, 1)
    except BaseException:
        blob.close()
        raise
