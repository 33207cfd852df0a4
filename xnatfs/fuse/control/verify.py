"""Compare what a mount shows and has cached with the server, and find what a data manager has to repair there."""

from dataclasses import dataclass, field

import pyfuse3
import trio

from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.common.tasks import gather
from xnatfs.fuse.control.places import ancestors, content_version, files_below, find, split
from xnatfs.fuse.control.protocol import Message
from xnatfs.fuse.control.server import ReportProgress
from xnatfs.fuse.operations import Operations
from xnatfs.rest.models import FileRow
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.node import Dir, Node
from xnatfs.tree.resource_view import ResourceView

# Files that are compared in parallel, a HEAD request each: as many as the client sends at once.
VERIFIED_IN_PARALLEL = 8
# Problems that are reported of one resource.
MAX_PROBLEMS = 1000


@dataclass
class ResourceFindings:
    """The findings about one resource."""

    path: str
    uri: str
    needs_refresh: bool = False
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str, *, on_server: bool) -> None:
        self.needs_refresh |= on_server
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


class Verifier:
    """Verifies what is below one path.

    Args:
        operations: The calls of the kernel, which may have pages of damaged files.
        report: Receives the progress.
        listings_only: Send no request for single files.
    """

    def __init__(self, operations: Operations, report: ReportProgress, listings_only: bool) -> None:
        self._operations = operations
        self._report = report
        self._listings_only = listings_only
        self._files = self._cached = self._undigested = 0
        self._resources: dict[str, ResourceFindings] = {}

    async def verify(self, root: Dir, path: str) -> Message:
        """Compare all files below a path, and return the problems, resource by resource.

        Its listings should be new. A damaged file is removed from the cache. Raises Unreachable.
        """
        await self._look(await find(root, split(path)))
        found = [each for each in self._resources.values() if each.problems]
        return {
            "files": self._files,
            "cached_files": self._cached,
            "without_digest": self._undigested,
            "resources": [
                {"path": each.path, "uri": each.uri, "needs_refresh": each.needs_refresh, "problems": each.problems}
                for each in found
            ],
        }

    async def _look(self, node: Node) -> None:
        if isinstance(node, ResourceView):
            await self._look_at_resource(node)
        elif resource := next((each for each in ancestors(node) if isinstance(each, ResourceView)), None):
            await self._compare(resource, [file async for file in files_below(node)])  # type: ignore[misc]
        elif isinstance(node, Dir):
            for child in (await node.children()).listed():
                await self._look(child)

    async def _look_at_resource(self, node: ResourceView) -> None:
        found = self._found(node)
        try:
            files = [file async for file in files_below(node)]
        except (NotFound, BadReply) as error:
            found.add(f"its files cannot be listed: {error}", on_server=True)
            return
        row = node.resource
        if row.file_count is not None and row.file_count != len(files):
            found.add(f"it states {row.file_count} files, and lists {len(files)}", on_server=True)
        await self._compare(node, files)  # type: ignore[arg-type]

    def _found(self, node: ResourceView) -> ResourceFindings:
        uri = f"/archive/{'/'.join(node.address.base)}/resources/{node.resource.id}"
        return self._resources.setdefault(uri, ResourceFindings("/".join(node.path), uri))

    async def _compare(self, node: ResourceView, files: list[CatalogueFile]) -> None:
        found, waiting = self._found(node), iter(files)

        async def work() -> None:
            for file in waiting:
                await self._compare_file(found, file)
                self._files += 1
                self._report({"files": self._files, "problems": sum(len(r.problems) for r in self._resources.values())})

        await gather(*[work] * VERIFIED_IN_PARALLEL)

    async def _compare_file(self, found: ResourceFindings, file: CatalogueFile) -> None:
        row, folders = file.row, file.files
        self._undigested += not row.digest
        size = row.size
        has_name = folders.resource_dir.address.has_name(row.path, folders.catalogue)
        if has_name and not self._listings_only:  # else the server might answer with another file's head
            try:
                size = (await file.site.xnat.head(folders.resource_dir.address.base, row)).size
            except (NotFound, Denied) as error:
                found.add(f"{row.path}: listed, and not there: {error}", on_server=True)
                return
            except BadReply as error:
                found.add(f"{row.path}: {error}", on_server=True)
                return
            if None not in (size, row.size) and size != row.size:
                found.add(f"{row.path}: listed with {row.size} bytes, and has {size}", on_server=True)
        await self._compare_cached(found, file, row)

    async def _compare_cached(self, found: ResourceFindings, file: CatalogueFile, row: FileRow) -> None:
        content, version = file.site.content, content_version(file)
        digest = await content.upkeep.rehash(version)
        if digest is None:
            return
        self._cached += 1
        if not row.digest or digest == row.digest:
            return
        found.add(f"{row.path}: damaged in the cache, and removed there: its MD5 is {digest}", on_server=False)
        content.distrust(version)
        await content.upkeep.remove([version])
        inode = self._operations.inodes.find(file.identity)
        if inode is not None:
            await trio.to_thread.run_sync(_forget_pages, inode, abandon_on_cancel=True)


def _forget_pages(inode: pyfuse3.InodeT) -> None:
    try:
        pyfuse3.invalidate_inode(inode)
    except OSError:
        return  # the kernel has forgotten it by itself
