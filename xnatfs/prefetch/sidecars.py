"""Fetch the sidecars of a session in one tar: each lies in a resource of its own, and programs read all of them.

A resource counts if it holds small files only. A member is accepted if its digest is that of a listed file; what the
tar does not bring is requested singly when it is read.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from contextlib import aclosing

import trio

from xnatfs.common.errors import XnatError
from xnatfs.content import ContentCache
from xnatfs.prefetch.file_version import version
from xnatfs.prefetch.tar_names import TarNames
from xnatfs.prefetch.tar_stream import Member, members
from xnatfs.rest.client import Xnat
from xnatfs.rest.file_table import Catalogue

log = logging.getLogger(__name__)

# The most bytes of all such resources of a session: a hundred sidecars. No more is fetched to read one of them.
MAX_TOGETHER_BYTES = 2**20
# With fewer files that are not cached, single requests cost no more.
MIN_FILES = 2


class SessionSidecars:
    """The sidecars of one session, fetched at most once.

    Args:
        xnat: The client.
        content: The cache that receives the files.
        item: The segments of the session's URL.
        catalogues: The files of its resources of small files.
    """

    def __init__(self, xnat: Xnat, content: ContentCache, item: Sequence[str], catalogues: Iterable[Catalogue]) -> None:
        self._xnat = xnat
        self._content = content
        self._item = item
        self._catalogues = [each for each in catalogues if len(each)]
        totals = [each.total() for each in self._catalogues]
        self._is_done = None in totals or sum(filter(None, totals)) > MAX_TOGETHER_BYTES
        self._lock = trio.Lock()

    async def fetch(self) -> None:
        """Fetch the files that are not cached; later calls wait for the first. A failure leaves single requests."""
        async with self._lock:
            if self._is_done:
                return
            self._is_done = True
            wanted = [version(row) for catalogue in self._catalogues for row in catalogue if row.digest]
            if len(wanted) - len(await self._content.find_cached(wanted)) < MIN_FILES:
                return
            try:
                await self._stream()
            except XnatError as error:
                log.info("no tar of the sidecars of %s: %s", "/".join(self._item), error)

    async def _stream(self) -> None:
        requested_at, numbers = self._content.clock(), [each.resource_id for each in self._catalogues]
        names = await TarNames.build([(each.label or each.resource_id, each) for each in self._catalogues])
        async with self._xnat.archive(self._item, *numbers) as chunks, aclosing(members(chunks)) as archive:
            async for member in archive:
                await self._receive(member, names, requested_at)

    async def _receive(self, member: Member, names: TarNames, requested_at: float) -> None:
        rows = [row for _, row in names.find(member) if row.digest and row.size == member.size]
        if not rows or member.size > MAX_TOGETHER_BYTES:
            return
        data = await member.read_rest()
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        for row in rows:
            if row.digest == digest:
                await self._content.put(version(row), data, requested_at)
