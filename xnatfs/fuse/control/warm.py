"""Fetch all files below a path into the cache, ahead of their use."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from xnatfs.common.clock import now
from xnatfs.common.errnos import errno_of
from xnatfs.common.errors import CacheFull, LoginRequired, Stale, Unreachable, XnatError
from xnatfs.common.tasks import in_parallel
from xnatfs.content import ContentCache
from xnatfs.fuse.control.places import all_files_below, content_version, find, split
from xnatfs.fuse.control.protocol import Message
from xnatfs.fuse.control.server import ReportProgress
from xnatfs.fuse.operations import Operations
from xnatfs.tree.node import Dir, File, measure

# Files that are fetched in parallel, so that a small one does not wait for a round trip of its own.
WARMED_IN_PARALLEL = 6
# Bytes that are read at a time of a big file, which arrives as it is read.
READ_BYTES = 2**20
# Files that could not be fetched, of which the reasons are reported.
MAX_REPORTED = 1000
# Files whose sizes are requested together, where the listing lacks them.
MEASURED_TOGETHER = 32


@dataclass
class _Progress:
    """The progress of one call, as it is reported."""

    report: ReportProgress
    files: int = 0
    size: int = 0
    done_files: int = 0
    done_bytes: int = 0
    failed: list[Message] = field(default_factory=list)

    def show(self) -> None:
        cells = {"files": self.files, "bytes": self.size, "done_files": self.done_files, "done_bytes": self.done_bytes}
        self.report({**cells, "failed_files": len(self.failed)})


async def warm(root: Dir, operations: Operations, path: str, pin: bool, report: ReportProgress) -> Message:
    """Fetch all files below a path, and return what is cached then.

    Args:
        root: The root of the tree.
        operations: The calls of the kernel, whose log of errors receives those of the files.
        path: The path in the mount.
        pin: Exclude the files from eviction.
        report: Receives the progress.

    Raises:
        CacheFull: The cache is too small for files to pin. Nothing is fetched.
        Unreachable: The server does not answer; what was fetched before is cached.
        XnatError: The path does not exist, or a directory below it cannot be listed.
    """
    below = [file async for file in all_files_below(await find(root, split(path)))]
    files = [file for file in below if not file.is_generated]
    for start in range(0, len(files), MEASURED_TOGETHER):
        await measure(files[start : start + MEASURED_TOGETHER])
    content, size = root.site.content, sum(file.measured_size for file in files)
    if pin:
        await _check_room(content, files, size)
    cached_before = await content.find_cached(list(map(content_version, files)))
    progress = _Progress(report, len(files), size)
    await _Fetcher(root, operations, progress).fetch(files)
    await _make([file for file in below if file.is_generated], operations)
    pinned = await content.upkeep.pin(map(content_version, files)) if pin else 0
    left = await _missing(root, files)
    cells = {
        "files": len(files),
        "bytes": size,
        "cached_before": len(cached_before),
        "cached_files": len(files) - len(left),
        "pinned_files": pinned,
        "failed_files": len(progress.failed),
        "failed": progress.failed[:MAX_REPORTED],
        "is_complete": not left and not progress.failed and (not pin or pinned == len(files)),
    }
    return cells


async def _make(files: Sequence[File], operations: Operations) -> None:
    """Generate the files that are made from listings; record a failure for its path and continue."""
    for file in files:
        try:
            await file.size()
        except (Unreachable, LoginRequired):
            raise
        except XnatError as error:
            operations.errors.record(file.path, errno_of(error), str(error))


async def _check_room(content: ContentCache, files: list[File], size: int) -> None:
    """Raise CacheFull unless all files fit into the cache beside those that are pinned."""
    usage, limit = await content.upkeep.usage(), content.counters()["limit"]
    others = usage["pinned_bytes"] - content.upkeep.pinned_bytes(map(content_version, files))
    if others + size > limit:
        text = f"{size} bytes cannot be pinned: the cache has {limit}, and others of {others} are pinned in it"
        raise CacheFull(f"{text}; mount with a larger --cache-size, or 'xnatfs cache unpin'")


async def _missing(root: Dir, files: list[File]) -> list[File]:
    """Return the files that are not in the cache: evicted again, or replaced on the server."""
    content = root.site.content
    await content.evict(content.counters()["limit"])  # or what is still in memory would count as cached
    kept = await content.find_cached(list(map(content_version, files)))
    return [file for file in files if content_version(file) not in kept]


class _Fetcher:
    """Fetches files in their order, some of them in parallel."""

    def __init__(self, root: Dir, operations: Operations, progress: _Progress) -> None:
        self._root = root
        self._operations = operations
        self._progress = progress

    async def fetch(self, files: Sequence[File]) -> None:
        """Fetch all of them. Raises Unreachable and LoginRequired, which every further one would meet as well."""
        self._progress.show()
        await in_parallel(files, self._try, WARMED_IN_PARALLEL)

    async def _try(self, file: File) -> None:
        try:
            await self._fetch(file)
            self._progress.done_files += 1
        except (Unreachable, LoginRequired) as error:
            done = f"{self._progress.done_files} of {self._progress.files} files are cached"
            raise type(error)(f"{error}; {done}, the same command goes on") from error
        except XnatError as error:
            self._operations.errors.record(file.path, errno_of(error), str(error))
            self._progress.failed.append({"path": "/".join(file.path), "reason": str(error)})
        self._progress.show()

    async def _fetch(self, file: File) -> None:
        try:
            await self._read(file)
        except Stale:  # it is longer or shorter than listed, or was replaced: its name leads to the new one
            found = await find(self._root, file.path)
            if not isinstance(found, File):
                raise
            await self._read(found)

    async def _read(self, file: File) -> None:
        permit = file.permit()
        if permit.until <= now():
            await permit.renew()
        blob = await file.open()
        try:
            offset = 0
            while not blob.complete and offset < max(blob.size, 1):
                data = await blob.read(offset, READ_BYTES)
                self._progress.done_bytes += len(data)
                self._progress.show()
                offset += READ_BYTES
            await blob.wait_until_verified()
            self._progress.done_bytes += max(blob.size - offset, 0) if offset < blob.size else 0
        finally:
            blob.close()
