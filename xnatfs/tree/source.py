"""Where the bytes of one file come from: its URL, or, where its name cannot travel in one, its resource's archive.

XNAT's firewall refuses names with '%', ';' or '\\'. Such a file is taken out of the tar of its resource, and where
that fails asked for by its number in the listing. What comes is checked by name, length and digest all the same.
"""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from xnatfs.client import Xnat, has_url
from xnatfs.content import Body, Head
from xnatfs.downloads import Download
from xnatfs.errors import BadReply, NotFound, XnatError
from xnatfs.metadata import Listing
from xnatfs.models import FileRow
from xnatfs.site import Item, Site
from xnatfs.tree.names import assign
from xnatfs.untar import Member, members
from xnatfs.untrusted import decoded


@dataclass(frozen=True, slots=True)
class FileSource:
    """One file on the server. `item` is any item the resource belongs to, `home` the one it hangs on."""

    xnat: Xnat
    item: Item
    home: Item
    row: FileRow

    @property
    def seekable(self) -> bool:
        return has_url(self.row.path) and self.xnat.ranged is not False

    @property
    def grants(self) -> bool:
        return has_url(self.row.path) and self.xnat.ranged is True

    @asynccontextmanager
    async def open(self, start: int, size: int | None = None, stop: int | None = None) -> AsyncIterator[Body]:
        """The file's bytes, from `start` if the server grants it, and then not beyond `stop`."""
        if not has_url(self.row.path):
            async with self._unnamed() as body:
                yield body
            return
        async with self.xnat.download(self.item, self.row, start, size, stop) as download:
            yield _body(download)

    async def head(self) -> Head:
        """What a HEAD states of the file: nothing, where its name cannot travel in a URL or the server takes none."""
        if has_url(self.row.path):
            with contextlib.suppress(BadReply):
                return Head(*await self.xnat.head(self.item, self.row))
        return Head(None, "")

    @asynccontextmanager
    async def _unnamed(self) -> AsyncIterator[Body]:
        """The file, without its name in a URL. Raises BadReply that says why each way failed."""
        async with AsyncExitStack() as stack:
            try:
                body = await self._from_archive(stack)
            except XnatError as archive:
                try:
                    body = await self._by_index(stack)
                except XnatError as index:
                    raise BadReply(
                        f"{self.row.path!r} of resource {self.row.resource_id} cannot be asked for by name, "
                        f"its archive fails ({archive}), and its number in the listing, too ({index})"
                    ) from index
            yield body

    async def _from_archive(self, stack: AsyncExitStack) -> Body:
        async with AsyncExitStack() as opening:  # closed before another way is tried: nobody holds two downloads
            chunks = await opening.enter_async_context(self.xnat.archive(self.item, self.row.resource_id))
            archive = await opening.enter_async_context(aclosing(members(chunks)))
            async for member in archive:
                if self._is_member(member):
                    rest = await opening.enter_async_context(aclosing(member.chunks()))
                    await stack.enter_async_context(opening.pop_all())
                    return Body(0, member.size, "", rest)
        raise NotFound("it is not in there")

    def _is_member(self, member: Member) -> bool:
        """Whether a member can be our file: the archive writes '/' for a backslash, '?' for what is not ASCII."""
        path = self.row.path.replace("\\", "/")
        if self.row.size is not None and self.row.digest and member.size != self.row.size:
            return False
        plain = path.encode("ascii", "replace").decode()
        return any(member.name.endswith(f"/files/{name}") for name in (path, plain))

    async def _by_index(self, stack: AsyncExitStack) -> Body:
        rows = await self.xnat.files(self.home)
        same_name = [row for row in rows if _base(row) == _base(self.row)]
        index = next((n for n, row in enumerate(rows) if _place(row) == _place(self.row)), None)
        if index is None:
            raise NotFound("it is not listed any more")
        if len(same_name) > 1 and not self.row.digest:
            raise BadReply("other files have its name, and it has no digest to tell them apart")
        download = await stack.enter_async_context(self.xnat.indexed(self.home, index))
        if self.row.size is not None and download.size not in (None, self.row.size):
            raise BadReply("another file came")
        return _body(download)


def _body(download: Download) -> Body:
    start, size, modified = download.start, download.size, download.modified
    return Body(start, size, modified, download.chunks, download.into, download.validator, download.framed)


def reading_order(site: Site, item: Item, below: bool) -> list[tuple[str, str]]:
    """The resources of an item, IDs and labels: scan by scan as these are shown, then the rest. As far as is known."""
    resources = site.metadata.peek(("resources", item, below))
    scans = site.metadata.peek(("scans", item[-1]))
    if not isinstance(resources, Listing):
        return []
    rows = scans.rows if isinstance(scans, Listing) else ()
    shown = assign(rows, lambda scan: decoded(scan.id), lambda scan: scan.id)
    places = {("scans", scan.id): place for place, scan in enumerate(shown.values())}
    ordered = sorted(resources.rows, key=lambda row: places.get((row.category, row.cat_id), len(places)))
    return [(row.id, row.label) for row in ordered]


def _base(row: FileRow) -> str:
    return row.path.rpartition("/")[2]


def _place(row: FileRow) -> tuple[str, str]:
    return row.resource_id, row.path
