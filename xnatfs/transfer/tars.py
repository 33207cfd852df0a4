"""Fetch many small files in a few tars, which are unpacked while they arrive.

A request costs a round trip, and a session has thousands of files. So the missing files of several resources come in
one tar, several tars in parallel. The event loop only finds the members; threads write and hash them. A member is
accepted if it can be one missing file only, and has its length and digest; without a digest, its name must state the
part of the session that has the file, or the tar be of one resource. What a tar does not bring (it breaks off,
lacks a member, has a damaged one, or the server makes none) is returned to the caller, to be fetched otherwise.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import trio

from xnatfs.common.errors import LoginRequired, XnatError
from xnatfs.common.tasks import gather, in_parallel
from xnatfs.prefetch.tar_names import TarNames
from xnatfs.prefetch.tar_stream import Member, members
from xnatfs.rest.models import Item
from xnatfs.transfer.copying import DISK_ERRORS, Arrived, Copying, Missing
from xnatfs.transfer.local_files import Draft
from xnatfs.tree.resource_files import ResourceFiles
from xnatfs.tree.resource_view import ResourceView

log = logging.getLogger(__name__)

# Tars in parallel: on a long line each connection gets its own share, and a server makes one while it sends others.
DOWNLOADED_TARS = 3
# Missing files of a resource from which on a tar is worth a request.
FEWEST_FILES = 4
# A request for one file costs as much time as these bytes: 50 ms, shared by eight requests in flight, at 10 MB/s. A tar
# brings a whole resource, so it is requested if that takes no longer than requests for the missing files.
REQUEST_BYTES = 64 * 2**10
# Files that are larger on average come singly: at this size a request costs little, and a download process receives it.
LARGEST_MEAN_BYTES = 8 * 2**20
# Of one tar: the server reads all its catalogues before the first byte, and what breaks off is requested again.
MAX_TAR_FILES, MIN_TAR_BYTES, MAX_TAR_BYTES = 2000, 8 * 2**20, 256 * 2**20
# Characters of the list of resources in a URL; servers and proxies accept at least 4,000 in all.
MAX_LIST_CHARACTERS = 1500
# Bytes that are passed to a thread at a time: a call costs 0.1 ms. Larger members go in pieces. On a slow line, what
# has arrived is passed on after some seconds.
BATCH_BYTES, BATCH_SECONDS = 2**20, 0.2


@dataclass
class _TarResource:
    """The missing files of one resource."""

    directory: ResourceView
    listed: ResourceFiles
    files: dict[str, Missing] = field(default_factory=dict)  # by path in the catalogue

    @property
    def size(self) -> int:
        return sum(each.wanted.file.measured_size for each in self.files.values())

    @property
    def label(self) -> str:
        return self.directory.resource.label or self.directory.resource.id

    def is_for_tar(self) -> bool:
        """Return whether a tar of the resource takes no longer than a request for each missing file."""
        catalogue, count, size = self.listed.catalogue, len(self.files), self.size
        if count < FEWEST_FILES or size > count * LARGEST_MEAN_BYTES or self.directory.address.rivals:
            return False
        total = catalogue.total()
        beside = total - size if total is not None else (len(catalogue) - count) * size // count
        return beside <= count * REQUEST_BYTES

    @property
    def part(self) -> str:
        """Return the scan, or other part, of the session that has the resource; '' for the session itself."""
        category, cat_id = self.directory.place.group
        return "" if category == "resources" else f"{category}/{cat_id}"


class _Incoming:
    """One file that a tar is bringing."""

    def __init__(self, missing: Missing) -> None:
        self.missing = missing
        self.size = missing.wanted.file.measured_size
        self.draft: Draft | None = None
        self.failure: Exception | None = None

    def write(self, piece: bytes, copying: Copying) -> bool:
        """Write a piece; return whether the file is complete. Raises an error of the disk that concerns all files."""
        if self.failure is not None:
            return False
        target = copying.target(self.missing.wanted)
        try:
            if self.draft is None:
                self.draft = Draft(target)
            self.draft.write(piece)
            if self.draft.size < self.size:
                return False
            self.draft.close(self.missing.wanted.file.modified())
            return True
        except (OSError, UnicodeError) as error:
            self.failure = error
            self.discard()
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise OSError(error.errno, error.strerror, str(target)) from error
            return False

    def discard(self) -> None:
        if self.draft is not None:
            self.draft.discard()


Pieces = list[tuple[_Incoming, bytes]]


async def fetch(missing: Sequence[Missing], copying: Copying, *, together: bool = True) -> list[Missing]:
    """Fetch files by tars where that is quicker; return those that did not come.

    Args:
        missing: The files, resource by resource.
        copying: Where they go.
        together: Whether a tar may be of several resources; one that the server cannot read makes such a tar fail.
    """
    tars = [_TarTransfer(item, group, copying) for item, group in _groups(missing, together)]
    await in_parallel(tars, _TarTransfer.run, DOWNLOADED_TARS)
    came = {id(each.wanted) for tar in tars for each in tar.came}
    return [each for each in missing if id(each.wanted) not in came]


def _groups(missing: Iterable[Missing], together: bool) -> Iterator[tuple[Item, list[_TarResource]]]:
    """Yield for each tar the item to request it from, and its resources."""
    found: dict[str, _TarResource] = {}
    for each in missing:
        listed = each.wanted.file.files
        resource = found.setdefault(listed.catalogue.resource_id, _TarResource(listed.resource_dir, listed))
        resource.files[each.wanted.path] = each
    # The session's own resources have tars of their own: old servers do not write the part into the names of members.
    by_item: dict[tuple[Item, bool], list[_TarResource]] = {}
    for resource in found.values():
        if resource.is_for_tar():
            by_item.setdefault((resource.directory.address.archived_at, not resource.part), []).append(resource)
    for (item, _), resources in by_item.items():
        for group in _cut(resources) if together else ([each] for each in resources):
            yield item, group


def _cut(resources: Sequence[_TarResource]) -> Iterator[list[_TarResource]]:
    """Cut a list of resources into groups of about equal size, as many as are fetched in parallel, or more."""
    size = sum(resource.size for resource in resources)
    most = min(MAX_TAR_BYTES, max(MIN_TAR_BYTES, size // DOWNLOADED_TARS))
    group: list[_TarResource] = []
    files = length = bytes_ = 0
    for resource in resources:
        number = len(resource.directory.resource.id) + 1
        if group and (
            files + len(resource.files) > MAX_TAR_FILES or length + number > MAX_LIST_CHARACTERS or bytes_ >= most
        ):
            yield group
            group, files, length, bytes_ = [], 0, 0, 0
        group.append(resource)
        files, length, bytes_ = files + len(resource.files), length + number, bytes_ + resource.size
    yield group


class _TarTransfer:
    """One tar of several resources."""

    def __init__(self, item: Item, resources: Sequence[_TarResource], copying: Copying) -> None:
        self.came: list[Missing] = []
        self._item = item
        self._resources = resources
        self._copying = copying
        self._places = Counter((each.part, each.label) for each in resources)
        self._begun: set[int] = set()  # files of which a member has been accepted
        self._open: set[_Incoming] = set()
        self._batch: Pieces = []
        self._batch_bytes = 0
        self._flushed_at = trio.current_time()
        self._stamp = repr(time.time())

    async def run(self) -> None:
        """Receive the tar. Raises LoginRequired, and OSError if the disk takes no more files."""
        sending, receiving = trio.open_memory_channel[Pieces](2)
        try:
            await gather(lambda: self._write(receiving), lambda: self._receive(sending))
        finally:
            for each in self._open:
                each.discard()

    async def _receive(self, sending: trio.MemorySendChannel[Pieces]) -> None:
        numbers = [resource.directory.resource.id for resource in self._resources]
        try:
            async with self._resources[0].directory.site.xnat.archive(self._item, *numbers) as chunks:
                names = await TarNames.build([(each.label, each.listed.catalogue) for each in self._resources])
                async with aclosing(members(chunks)) as archive:
                    async for member in archive:
                        await self._take(member, names, sending)
        except LoginRequired:
            raise
        except XnatError as error:
            log.info("the tar of resources %s: %s", ",".join(numbers), error)
        await self._flush(sending)
        sending.close()  # which ends the writer

    async def _take(self, member: Member, names: TarNames, sending: trio.MemorySendChannel[Pieces]) -> None:
        found = [(self._resources[number], row.path) for number, row in names.find(member)]
        part = _part_of(member.name)
        stated = [each for each in found if each[0].part == part]
        found = stated or found
        files = [resource.files[path] for resource, path in found if path in resource.files]
        files = [each for each in files if each.wanted.file.measured_size == member.size]
        data = None
        if len(found) == 1:  # else it may be a file of another resource that is not listed
            is_certain = len(self._resources) == 1 or (stated and self._places[part, found[0][0].label] == 1)
            files = [each for each in files if is_certain or each.wanted.digest]
        elif found:  # only the digest identifies the file
            if not all(each.wanted.digest for each in files) or member.size > LARGEST_MEAN_BYTES:
                return
            data = await member.read_rest()
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
            files = [each for each in files if each.wanted.digest == digest]
        missing = next((each for each in files if id(each) not in self._begun), None)
        if missing is None:
            return
        self._begun.add(id(missing))
        incoming = _Incoming(missing)
        self._open.add(incoming)
        if data is not None or member.size <= BATCH_BYTES:
            await self._put(incoming, await member.read_rest() if data is None else data, sending)
            return
        async with aclosing(member.chunks()) as chunks:
            async for chunk in chunks:
                await self._put(incoming, chunk, sending)

    async def _put(self, incoming: _Incoming, piece: bytes, sending: trio.MemorySendChannel[Pieces]) -> None:
        self._batch.append((incoming, piece))
        self._batch_bytes += len(piece)
        if self._batch_bytes >= BATCH_BYTES or trio.current_time() - self._flushed_at >= BATCH_SECONDS:
            await self._flush(sending)

    async def _flush(self, sending: trio.MemorySendChannel[Pieces]) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        self._flushed_at = trio.current_time()
        await sending.send(batch)

    async def _write(self, receiving: trio.MemoryReceiveChannel[Pieces]) -> None:
        """Write the members in threads, and pass on those that are whole."""

        def write(batch: Pieces) -> list[_Incoming]:
            return [incoming for incoming, piece in batch if incoming.write(piece, self._copying)]

        async for batch in receiving:
            for incoming in await trio.to_thread.run_sync(write, batch):
                self._complete(incoming)
            self._copying.progress.advance(sum(len(piece) for _, piece in batch))

    def _complete(self, incoming: _Incoming) -> None:
        draft, missing = incoming.draft, incoming.missing
        assert draft is not None
        self._open.discard(incoming)
        digest = missing.wanted.digest
        if digest not in ("", draft.md5()):
            log.info("%s is damaged in its tar", missing.wanted.place)
            self._copying.progress.advance(-draft.size)
            draft.discard()
            return
        self.came.append(missing)
        self._copying.arrive(Arrived(missing, draft, "" if digest else self._stamp))


def _part_of(name: str) -> str:
    """Return the scan, or other part, that the name of a member states; '' where it states none."""
    return "/".join(name.partition("/resources/")[0].split("/")[1:3])
