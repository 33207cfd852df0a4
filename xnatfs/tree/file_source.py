"""Fetch the bytes of one file by its URL or, if that could mean another file, out of its resource's archive.

XNAT's firewall refuses names with '%', ';' or '\\', and takes other names for those of another file;
`rest/address.py` knows which. Such a file is extracted from the tar of its resource; if that fails, it is requested by
its number in the listing or, from old servers, by its name after all. It is accepted only if it can be no other file:
two that cannot be distinguished are an error. Its length and digest are checked like those of any file.
"""

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property

import trio

from xnatfs.common.errors import BadReply, Denied, NotFound, XnatError
from xnatfs.content import Body, Head
from xnatfs.prefetch.read_pattern import Groups
from xnatfs.prefetch.tar_names import TarNames, spellings
from xnatfs.prefetch.tar_stream import Member, members
from xnatfs.rest.address import Address, Route
from xnatfs.rest.client import Xnat
from xnatfs.rest.file_table import Catalogue
from xnatfs.rest.models import FileRow

# In bytes. A member that only its content distinguishes from others is held in memory until it is identified. A larger
# file is requested by its number.
MAX_HELD_BYTES = 32 * 2**20


@dataclass(slots=True)
class _Clash:
    """The members of one name that can be several files, the wanted one among them."""

    files: Sequence[FileRow]
    sizes: list[int] = field(default_factory=list)
    contents: set[bytes] = field(default_factory=set)  # of those that are as long as the wanted file

    def settled(self) -> bytes | None:
        """Return the wanted file's bytes, if the members have the files' lengths and `contents` is unique."""
        listed = sorted(-1 if row.size is None else row.size for row in self.files)
        return next(iter(self.contents)) if len(self.contents) == 1 and listed == sorted(self.sizes) else None


@dataclass(frozen=True)
class FileSource:
    """One file on the server.

    Attributes:
        xnat: The client.
        address: The address of the file's resource.
        row: The file's row in the listing.
        groups: The files that are listed together with it, by resource.
    """

    xnat: Xnat
    address: Address
    row: FileRow
    groups: Groups

    @property
    def seekable(self) -> bool:
        return self._routes[0] is Route.NAME and self.xnat.ranged is not False

    @property
    def grants(self) -> bool:
        return self._routes[0] is Route.NAME and self.xnat.ranged is True

    @cached_property
    def _routes(self) -> tuple[Route, ...]:
        return self.address.routes(self.row.path, catalogue_of(self.groups, self.row.resource_id))

    @asynccontextmanager
    async def open(self, start: int, size: int | None = None, stop: int | None = None) -> AsyncIterator[Body]:
        """Download the file, from `start` if the server supports that, and then not beyond `stop`.

        Args:
            start: The first byte to request.
            size: The known length in bytes, or None.
            stop: Where a range ends, exclusive; None for the end of the file.
        """
        if self._routes[0] is not Route.NAME:
            async with self._unnamed() as body:
                yield body
            return
        async with self.xnat.download(self.address.base, self.address.named(self.row), start, size, stop) as body:
            yield body

    async def head(self) -> Head:
        """Request length and date of the file; both are unknown without a name route, or if HEAD is refused.

        A proxy may refuse HEAD alone; an error of the file itself shows in the GET.
        """
        if self._routes[0] is Route.NAME:
            with contextlib.suppress(NotFound, Denied, BadReply):
                return await self.xnat.head(self.address.base, self.address.named(self.row))
        return Head(None, "")

    @asynccontextmanager
    async def _unnamed(self) -> AsyncIterator[Body]:
        """Open the file by the first route that certainly yields it. Raises BadReply with each route's failure."""
        ways = {
            Route.ARCHIVE: (self._from_archive, "its archive"),
            Route.INDEX: (self._by_index, "its number in the listing"),
            Route.NAME: (self._by_name, "its name all the same"),
        }
        failures = []
        async with AsyncExitStack() as stack:
            for route in self._routes:
                way, called = ways[route]
                try:
                    async with AsyncExitStack() as opening:  # closed before the next way: no task holds two downloads
                        body = await way(opening)
                        await stack.enter_async_context(opening.pop_all())
                        break
                except XnatError as error:
                    failures.append((f"{called}: {error}", error))
            else:
                said = "; ".join(text for text, _ in failures)
                where = f"{self.row.path!r} of resource {self.row.resource_id}"
                text = f"{where} cannot be requested by name, and not otherwise for certain ({said})"
                raise BadReply(text) from failures[-1][1]
            yield body

    async def _from_archive(self, opening: AsyncExitStack) -> Body:
        """Find the file's member in the archive. Raises NotFound if none is certainly the file."""
        address = self.address
        if not address.label and any(rival.id not in self.groups for rival in address.rivals):
            raise NotFound("another resource has its name in there, and its files are not listed")
        together = [(address.label or address.resource, catalogue_of(self.groups, address.resource))]
        together += [(rival.label, catalogue_of(self.groups, rival.id)) for rival in address.rivals]
        names = await TarNames.build(together, self.row.path)
        clashes: dict[str, _Clash] = {}
        async with AsyncExitStack() as reading:
            chunks = await reading.enter_async_context(self.xnat.archive(address.archived_at, address.resource))
            archive = await reading.enter_async_context(aclosing(members(chunks)))
            async for member in archive:
                found = [row for _, row in names.find(member)]
                if not any(_place(row) == _place(self.row) for row in found):
                    continue
                if len(found) == 1:
                    if self._fits(member):
                        rest = await reading.enter_async_context(aclosing(member.chunks()))
                        await opening.enter_async_context(reading.pop_all())
                        return Body(0, member.size, "", rest)
                    continue
                clash = clashes.setdefault(member.name, _Clash(found))
                clash.sizes.append(member.size)
                if member.size <= MAX_HELD_BYTES and self.row.size in (None, member.size):
                    content = await member.read_rest()
                    if await self._has_its_digest(content):
                        return await _whole(content, opening)
                    if self.row.size is not None and len(clash.contents) < 2:  # two already prove a conflict
                        clash.contents.add(content)
        if not clashes:
            raise NotFound("it is not in there")
        for clash in clashes.values():
            if not self.row.digest and (settled := clash.settled()) is not None:
                return await _whole(settled, opening)
        raise NotFound("other files have its name in there, and nothing distinguishes it from them")

    def _fits(self, member: Member) -> bool:
        """Return whether a member can be this file: a file that is not listed may have the same name."""
        if self.row.size in (None, member.size):
            return True
        return not self.row.digest and member.name.endswith(f"/files/{self.row.path}")

    async def _has_its_digest(self, content: bytes) -> bool:
        return bool(self.row.digest) and await trio.to_thread.run_sync(_md5, content) == self.row.digest

    async def _by_index(self, opening: AsyncExitStack) -> Body:
        """Request the file by its number in the listing; only the reply can prove that the server counts likewise."""
        home = self.address.home
        rows = await self.xnat.files(home)
        index = next((n for n, row in enumerate(rows) if _place(row) == _place(self.row)), None)
        if index is None:
            raise NotFound("it is no longer listed")
        body, name = await opening.enter_async_context(self.xnat.indexed(home, index))
        others = [] if self.row.digest else [row for row in rows if _place(row) != _place(self.row)]
        if not self._is_certain(body.size, name, others):
            raise BadReply("nothing distinguishes the file that came from others")
        return body

    def _is_certain(self, size: int | None, name: bytes, others: Sequence[FileRow]) -> bool:
        """Return whether a reply can only be this file, by digest (compared at the end), by name, or by length."""
        if name and name not in spellings(_base(self.row)):
            return False
        if self.row.size is not None and size not in (None, self.row.size):
            return False
        if self.row.digest:
            return True
        if name:
            others = [row for row in others if name in spellings(_base(row))]
        if not others:
            return True
        return self.row.size == size is not None and all(row.size not in (None, size) for row in others)

    async def _by_name(self, opening: AsyncExitStack) -> Body:
        return await opening.enter_async_context(self.xnat.download(self.address.base, self.address.named(self.row)))


def catalogue_of(groups: Groups, resource: str) -> Catalogue:
    """Return the files of a resource; empty if the listing of a batch leaves the resource out."""
    found = groups.get(resource)
    return found if isinstance(found, Catalogue) else Catalogue(resource)


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


async def _whole(content: bytes, opening: AsyncExitStack) -> Body:
    async def chunks() -> AsyncGenerator[bytes]:
        yield content

    return Body(0, len(content), "", await opening.enter_async_context(aclosing(chunks())))


def _base(row: FileRow) -> str:
    return row.path.rpartition("/")[2]


def _place(row: FileRow) -> tuple[str, str]:
    return row.resource_id, row.path
