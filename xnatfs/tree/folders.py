"""FILE... : the files of one resource in their folders.

A file's node is made when somebody asks for it, out of the packed catalogue: a million files as objects would be half
a gigabyte. So nothing that must last is in a node: `Folders` has the sizes that were learnt, `Folder` the names.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from typing import overload

import trio

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, NotFound, Stale, XnatError, first_error
from xnatfs.content import Blob
from xnatfs.listings.keys import ChangeKey, FilesKey, FoldersKey, SizeKey
from xnatfs.listings.revocation import Permit
from xnatfs.listings.ttl_cache import Listing
from xnatfs.prefetch.series_files import version
from xnatfs.rest.file_table import Catalogue
from xnatfs.rest.models import FileRow
from xnatfs.site import Change, TrueSize
from xnatfs.tree.file_source import catalogue_of
from xnatfs.tree.names import escape, shorten, split
from xnatfs.tree.node import Children, Dir, File, Listed, Node, number
from xnatfs.tree.resource_view import ResourceView

log = logging.getLogger(__name__)

# A file that is listed and not to be had is lost if the listing is younger than this, in seconds; an older listing is
# asked for again, to tell a lost file from a deleted one.
LOST_IF_LISTED_WITHIN = 10.0
# Seconds by which the clocks of a server and of this machine may differ; Kerberos allows as much.
SKEW = 300.0
# Of one resource. A folder is 1.5 KB, and two bytes of a path make one.
MOST_FOLDERS = 200_000
# An inode number is a bit that says file, so many bits of the resource, and of the place in its listing. A million
# files have each a place; of ten thousand resources two want the same numbers in one mount of a hundred. (Such two, and
# what has a higher place, are told apart as others are; they are read in another order then.)
RESOURCE_BITS, PLACE_BITS = 32, 20
# A resource whose listing gives a reason to doubt its sizes has so many asked for before any is shown, one batch of
# HEADs: if one is wrong, each of the others is asked for as well. Once so many resources had no wrong one, the reasons
# are none on this server.
SAMPLE, RIGHT_ENOUGH = 32, 4
# Files that are sorted into folders between two looks at who else waits: a millisecond.
AT_ONCE = 100

Inner = tuple[str, ...]


class Folders:
    """The files and folders of a resource, by folder."""

    def __init__(self, resource_dir: ResourceView, listing: Listing[FileRow], catalogue: Catalogue) -> None:
        self.resource_dir = resource_dir
        self.site = resource_dir.site
        self.listing = listing
        self.catalogue = catalogue
        self.expires = listing.expires
        self.number = (1 << RESOURCE_BITS | number(catalogue.resource_id, RESOURCE_BITS)) << PLACE_BITS
        self.modified = resource_dir.modified()
        self.by_path: dict[Inner, Folder] = {(): Folder(self, resource_dir, None)}
        self.sizes: dict[int, int] = {}  # that the server was asked for, or a reply stated, by place
        self.learnt = 0  # how often one of its files proved to be another than listed
        self.twice = 0  # files that are listed under the path of another one
        self._sampled = trio.Lock()
        self._sample = self._doubtful()

    def __len__(self) -> int:
        return len(self.catalogue) + len(self.by_path)

    def children(self, inner: Inner) -> Children:
        """Return what one folder holds. Raises NotFound where there is none."""
        folder = self.by_path.get(inner)
        if folder is None:
            raise NotFound(f"the folder {'/'.join(inner)} is gone")
        return Children(
            folder, self.expires, {raw: folder[name] for raw, name in folder.aliases.items() if name in folder}
        )

    def folder(self, inner: Inner) -> "Folder":
        """Return the folder of this path, made if need be, with those that it is in."""
        found = self.by_path.get(inner)
        if found is None:
            if len(self.by_path) > MOST_FOLDERS:
                raise BadReply(f"resource {self.catalogue.resource_id} has more than {MOST_FOLDERS} folders")
            parent = self.folder(inner[:-1])
            node = FolderDir(parent.node, inner[-1], self.resource_dir, inner)
            parent.dirs[inner[-1]] = node
            found = self.by_path[inner] = Folder(self, node, {})
        return found

    def size(self, place: int) -> int | None:
        """Return the length of a file, as far as it is known: what is listed, unless there is a reason to doubt it.

        What a program or another file system has heard of a length it keeps, and cuts what is longer, without an error.
        """
        if place in self.sizes:
            return self.sizes[place]
        if self._sample or self.site.sizes_right.get(self.catalogue.resource_id) is False:
            return None
        size = self.catalogue.size(place)
        return None if size == 0 and not self.catalogue.version(place) else size

    def _doubtful(self) -> Sequence[int]:
        """Return the places of files to ask for before a size is shown; none where nothing speaks against the listing.

        What does: the stated total is another one, or some entries have no digest, and so are older than others.
        """
        site, resource, catalogue = self.site, self.resource_dir.resource, self.catalogue
        if catalogue.resource_id in site.sizes_right or sum(site.sizes_right.values()) >= RIGHT_ENOUGH:
            return ()
        stated = resource.file_size if resource.file_count == len(catalogue) else None
        if stated and catalogue.total() not in (None, stated):
            return range(min(len(catalogue), SAMPLE))
        return catalogue.lacking_digests

    async def sample(self) -> None:
        """Find out whether sizes are as listed, where that is doubtful."""
        async with self._sampled:
            if not self._sample:
                return
            try:
                async with trio.open_nursery() as nursery:
                    for place in self._sample:
                        nursery.start_soon(self.ask, place)
            except ExceptionGroup as group:
                raise first_error(group) from None
            self._sample = ()
            if not self.site.xnat.away:
                self.site.sizes_right.setdefault(self.catalogue.resource_id, True)

    async def ask(self, place: int) -> int:
        """Return the length of a file as the server states it now, one HEAD; as listed, or 0, where it does not."""
        row = self.catalogue.at(place)
        found = await self.site.metadata.get(size_key(row), partial(self._ask, row))
        self.learn(place, found.size)
        return found.size

    async def _ask(self, row: FileRow) -> TrueSize:
        address, size = self.resource_dir.address, None
        if address.has_name(row.path, self.catalogue):
            try:
                size = (await self.site.xnat.head(address.base, row)).size
            except XnatError as error:
                if row.size is None and not isinstance(error, NotFound | Denied | BadReply):
                    raise
                log.debug("the size of %s is not to be had: %s", row.path, error)
        if size is None:
            return TrueSize(row.size or 0, self.expires)
        if row.size is None:
            return TrueSize(size, self.expires)
        self.site.sizes_learnt = True
        return TrueSize(size)

    def learn(self, place: int, size: int) -> None:
        """Take note of the length of a file."""
        self.sizes[place] = size
        if self.catalogue.size(place) not in (None, size):
            self.learnt += 1
            self.site.sizes_right[self.catalogue.resource_id] = False


class Folder(Listed):
    """One folder: the folders in it, then its files in the order of the catalogue."""

    __slots__ = ("_places", "_plain", "aliases", "dirs", "folders", "node", "site")

    def __init__(self, folders: Folders, node: Dir, places: dict[str, int] | None) -> None:
        self.folders = folders
        self.node = node
        self.site = node.site
        self.dirs: dict[str, Dir] = {}
        self._plain = places is None
        self._places = places  # None: not made yet, as the catalogue has them
        self.aliases: dict[str, str] = {}  # names by which files are found, too

    @property
    def plain(self) -> bool:
        """Return whether each path of the catalogue is a name, and this the only folder."""
        return self._plain

    @property
    def places(self) -> dict[str, int]:
        """Return the places of its files in the catalogue, by name; made for lookups by name."""
        if self._places is None:
            self._places = {path: place for place, path in enumerate(self.folders.catalogue.paths())}
        return self._places

    def __getitem__(self, name: str) -> Node:
        found = self.dirs.get(name)
        return self.file(name, self.places[name]) if found is None else found

    def __contains__(self, name: object) -> bool:
        return name in self.dirs or name in self.places

    def __iter__(self) -> Iterator[str]:
        yield from self.dirs
        yield from (name for name, _ in self._files())

    def _files(self) -> Iterator[tuple[str, int]]:
        if self._places is not None:
            return iter(self._places.items())
        return ((path, place) for place, path in enumerate(self.folders.catalogue.paths()))

    def __len__(self) -> int:
        return len(self.dirs) + (len(self.folders.catalogue) if self._places is None else len(self._places))

    def listed(self) -> Sequence[Node]:
        found = self.site.shown.peek(self.node.path)
        if not isinstance(found, _Nodes) or found.folder is not self:
            found = _Nodes(self, None if self._places is None else list(self._places.items()))
            self.site.shown.put(self.node.path, found)
        return found

    def file(self, name: str, place: int) -> "CatalogueFile":
        return CatalogueFile(self, name, place)

    def remove(self, name: str) -> None:
        """Remove a file that is not there any more."""
        self.places.pop(name, None)
        self.forget()

    def forget(self) -> None:
        """Nodes that were made are not right any more."""
        self.site.shown.forget(self.node.path)


class _Nodes(Sequence[Node]):
    """The nodes of a folder, one after the other; those that were made stay as long as this does."""

    def __init__(self, folder: Folder, files: Sequence[tuple[str, int]] | None) -> None:
        self.folder = folder
        self._files = files  # None: the catalogue's, whose paths are their names
        self._dirs: list[Node] = list(folder.dirs.values())
        count = len(folder.folders.catalogue) if files is None else len(files)
        self._made: list[Node | None] = [*self._dirs, *[None] * count]

    @property
    def expires(self) -> float:
        return self.folder.folders.expires

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> list[Node]: ...
    def __getitem__(self, index: int | slice) -> Node | list[Node]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        node = self._made[index]
        if node is None:
            place = index - len(self._dirs)
            node = self._made[index] = self.folder.file(*self._file(place))
        return node

    def _file(self, place: int) -> tuple[str, int]:
        return (self.folder.folders.catalogue.path(place), place) if self._files is None else self._files[place]


class FolderDir(Dir):
    """A folder within a resource. It exists because a file is below it."""

    __slots__ = ("inner", "resource_dir")

    def __init__(self, parent: Dir, name: str, resource_dir: ResourceView, inner: Inner) -> None:
        super().__init__(parent.site, parent, name)
        self.resource_dir = resource_dir
        self.inner = inner

    async def children(self) -> Children:
        return await self.resource_dir.folder(self.inner)

    def fresh_until(self) -> float:
        return self.resource_dir.fresh_until()


class CatalogueFile(File):
    """One file of a resource. What the catalogue says of its size is corrected by what its reply said."""

    __slots__ = ("_change", "_identity", "_learnt", "_name", "_size", "folder", "place")

    def __init__(self, folder: Folder, name: str, place: int) -> None:
        self.site = folder.site
        self.parent = folder.node
        self._name = None if folder.plain else name  # the catalogue has it: 64 bytes less, of a million files
        self.folder = folder
        self.place = place
        self._identity = b""
        self._size = folder.folders.size(place)
        self._change: Change | None = None  # that made it what it is, if this mount has seen that
        self._learnt = folder.folders.learnt
        if self._size is None or self.site.sizes_learnt:
            learnt = self.site.metadata.peek(size_key(self.row))
            if isinstance(learnt, TrueSize):
                self._size = learnt.size
            self._change = self._known_change()

    @property
    def name(self) -> str:
        return self.folder.folders.catalogue.path(self.place) if self._name is None else self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    @property
    def row(self) -> FileRow:
        return self.folder.folders.catalogue.at(self.place)

    def _change_key(self) -> ChangeKey:
        row = self.row
        return ChangeKey(row.resource_id, row.path)

    @property
    def identity(self) -> object:
        """Return a hash of the resource and the path: 16 bytes, because the kernel may know a million of them."""
        if not self._identity:
            whole = self.folder.folders.catalogue.identity(self.place)
            self._identity = hashlib.blake2b(whole, digest_size=16).digest()
        return self._identity

    @property
    def _stated(self) -> int:
        """Return what the listing says of the content: the digest, or where there is none the length."""
        catalogue = self.folder.folders.catalogue
        return catalogue.version(self.place) or catalogue.size(self.place) or 0

    @property
    def _marked(self) -> int:
        """Return the same with what tells the content from one before it, of which the listing says the same."""
        stamp = self._change.stamp if self._change else ""
        return number(f"{self._stated} {stamp}", 64) if stamp else self._stated

    @property
    def version(self) -> int:
        return self._marked << 64 | (0 if self._size is None else self._size + 1)

    @property
    def rank(self) -> tuple[float, int]:
        return (self.folder.folders.expires, self._learnt)

    def supersede(self, shown: Node) -> None:
        """Date a change that the listing tells of, between the listing before and this one, with the later one."""
        if isinstance(shown, CatalogueFile) and shown.rank < self.rank and shown._stated != self._stated:
            self._change = self._known_change() or self.site.learn_change(self._change_key(), self._stated, "")

    def _known_change(self) -> Change | None:
        change = self.site.metadata.peek(self._change_key())
        return change if isinstance(change, Change) and change.stated == self._stated else None

    def inode_hint(self) -> int:
        """Resource and place in its listing: programs that read in inode order then read in listing order."""
        return self.folder.folders.number | self.place & (1 << PLACE_BITS) - 1

    def modified(self) -> float:
        return (self._change and self._change.at) or self.folder.folders.modified

    def modified_ns(self) -> int:
        """Return a time that no reading changes: not Last-Modified, which is known only of what was fetched.

        After a change that this mount has seen it is the time of that; until then the session's, as exact as servers
        state it, with nanoseconds below a millisecond of the digest, or without one of the listed length: what replaces
        a file of its own size has another time.
        """
        if self._change and self._change.at:
            return int(self._change.at * 1e9)
        return round(self.modified() * 1000) * 10**6 + self._stated % 10**6

    def xattrs(self) -> dict[str, str]:
        row = self.row
        item = "/".join(self.folder.folders.resource_dir.address.base)
        uri = f"/data/{item}/resources/{row.resource_id}/files/{row.path}"
        return {"uri": uri, "digest": row.digest, "format": row.format, "content": row.content}

    @property
    def measured(self) -> bool:
        if self._size is None:
            self._size = self.folder.folders.size(self.place)  # another node of this file may have asked
        return self._size is not None

    @property
    def measured_size(self) -> int:
        size = self._size if self._size is not None else self.folder.folders.size(self.place)
        assert size is not None
        return size

    async def size(self) -> int:
        if not self.measured:
            folders = self.folder.folders
            await folders.sample()
            self._size = folders.size(self.place)
            if self._size is None:
                self._size = await folders.ask(self.place)
            self._learnt = folders.learnt
        return self.measured_size

    async def open(self) -> Blob:
        row, folders = self.row, self.folder.folders
        resource_dir = folders.resource_dir
        await self.site.bulk.opened(resource_dir.place.item, folders.listing.groups, row, resource_dir)
        try:
            source = resource_dir.source(row, folders.listing.groups)
            blob = await self.site.content.open(version(row), source)
        except NotFound as error:
            await self._check_listed()
            raise BadReply(f"the server lists {'/'.join(self.path)}, but has lost it: {error}") from error
        if blob.size != await self.size():
            await _believe(blob, row.digest)
            blob.close()
            self._correct(blob.size)
            raise Stale(f"{'/'.join(self.path)} is {blob.size} bytes, not {self._size} as listed")
        return blob

    async def unchanged_since(self, size: int, stamp: str) -> str:
        """Compare length and date by HEAD; return the date to compare with next time, '' where the file is another.

        Members of archives come without a date. Their stamp is when they came: since then the file must not have
        changed, by the server's clock. What has no URL, or is refused, is not known to be unchanged. A file that proves
        to be another is fetched anew at its next open.
        """
        row, folders = self.row, self.folder.folders
        resource_dir = folders.resource_dir
        if not resource_dir.address.has_name(row.path, folders.catalogue):
            return ""
        try:
            now, modified = await self.site.xnat.head(resource_dir.address.base, row)
        except (NotFound, Denied, BadReply):
            return ""
        if now in (size, None) and modified and (modified == stamp or _date(modified) < _number(stamp) - SKEW):
            return modified
        self.site.content.distrust(version(row))
        return ""

    def is_another(self, before: str, stamp: str) -> bool:
        """Compare dates. What came in an archive has none: its stamp is a number, when it came."""
        return before != stamp and math.inf not in (_date(before), _date(stamp))

    def replaced(self, before: str, stamp: str) -> None:
        since = self._change.at if self._change else 0.0
        at = None if self.is_another(before, stamp) else since
        self.site.learn_change(self._change_key(), self._stated, stamp, at)
        self.folder.folders.learnt += 1
        self.folder.forget()

    def permit(self) -> Permit:
        return self.folder.folders.resource_dir.permit(self.folder.folders.expires)

    async def _check_listed(self) -> None:
        """Raise NotFound if the file is not in the server's listing any more."""
        resource_dir, path = self.folder.folders.resource_dir, self.row.path
        listing = await resource_dir.listing()
        if now() - listing.fetched > LOST_IF_LISTED_WITHIN:
            place = resource_dir.place
            self.site.metadata.forget(FilesKey(place.item, place.below))
            self.site.metadata.forget(FoldersKey(resource_dir.path))
            listing = await resource_dir.listing()
        if path not in catalogue_of(listing.groups, resource_dir.resource.id).paths():
            self.folder.remove(self.name)
            raise NotFound(f"{'/'.join(self.path)} is gone")

    def _correct(self, size: int) -> None:
        """From now on this file is a node with the true size."""
        self.site.learn_size(size_key(self.row), size)
        self.folder.folders.learn(self.place, size)
        self.folder.forget()


def size_key(row: FileRow) -> SizeKey:
    return SizeKey(row.resource_id, row.path, row.size, row.digest)


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
    """Wait for what proves a length that the listing has not: the digest, or of a small file all of it.

    Else a damaged empty reply made an empty file, of which no program reads anything, so that none gets an error. (What
    has no digest was confirmed by the server before: `Fill`.)
    """
    try:
        if digest:
            await blob.verdict()
        else:
            await blob.read(0, 1)
    except BaseException:
        blob.close()
        raise


async def build(resource_dir: ResourceView, listing: Listing[FileRow]) -> Folders:
    """Build the folders of a resource from its catalogue; other tasks have their turn meanwhile."""
    files = catalogue_of(listing.groups, resource_dir.resource.id)
    folders = Folders(resource_dir, listing, files)
    if not await _is_plain(files):
        await _sort(folders)
    return folders


async def _is_plain(catalogue: Catalogue) -> bool:
    """Return whether each path is a name as it is, and no other's."""
    seen: set[str] = set()
    for start in range(0, len(catalogue), AT_ONCE):
        await _turn(start)
        paths = list(catalogue.paths(start, start + AT_ONCE))
        if not all(split(path) == (path,) for path in paths):
            return False
        seen.update(paths)
    return len(seen) == len(catalogue)


async def _turn(start: int) -> None:
    """Let others have theirs; not for the few files that most resources have."""
    if start:
        await trio.lowlevel.checkpoint()


async def _sort(folders: Folders) -> None:
    """Each file into its folder, under a name of its own."""
    catalogue = folders.catalogue
    folders.by_path[()] = Folder(folders, folders.resource_dir, {})
    for start in range(0, len(catalogue), AT_ONCE):
        await _turn(start)
        for path in catalogue.paths(start, start + AT_ONCE):
            folders.folder(split(path)[:-1])
    also_folders: dict[Inner, int] = {}
    for start in range(0, len(catalogue), AT_ONCE):
        await _turn(start)
        for place, path in enumerate(catalogue.paths(start, start + AT_ONCE), start):
            names = split(path)
            folder = folders.by_path[names[:-1]]
            if names in also_folders:
                _twice(folders, path)
            elif names[-1] in folder.dirs:
                also_folders[names] = place
            else:
                _enter(folder, names[-1], place, path)
    for (*inner, name), place in also_folders.items():
        folder = folders.by_path[tuple(inner)]
        while name in folder:
            name = shorten(f"{name}~file")
        _enter(folder, name, place, catalogue.path(place))
    if folders.twice > 1:
        log.warning("the catalogue of resource %s has %d such paths", catalogue.resource_id, folders.twice)
    for folder in folders.by_path.values():
        folder.aliases = {raw: name for raw, name in folder.aliases.items() if raw not in folder}


def _twice(folders: Folders, path: str) -> None:
    folders.twice += 1
    if folders.twice == 1:  # a line for each would let a server fill the disk with the log
        log.warning("the catalogue of resource %s has %r twice", folders.catalogue.resource_id, path)


def _enter(folder: Folder, name: str, place: int, path: str) -> None:
    if name in folder.places:
        _twice(folder.folders, path)
        return
    folder.places[name] = place
    raw = path.rpartition("/")[2]
    if raw != name and escape(raw) != raw:
        folder.aliases[raw] = name
