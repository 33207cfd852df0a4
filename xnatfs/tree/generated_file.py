"""Make files from listings: tables, descriptions, documents of the server.

A directory lists such a file without its length, which the kernel then requests by a lookup: so `ls` and `find` send
no request, while the first `stat` or `open` makes the bytes, and every size is right before the file is read. The bytes
are cached until the listings that they were made of expire. Equal bytes are one version, whenever they were made.
"""

import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from xnatfs.common.clock import now
from xnatfs.content import Blob, blob_of
from xnatfs.listings.keys import ChangeKey, GeneratedKey, ListKey
from xnatfs.listings.revocation import Permit
from xnatfs.site import TICK_SECONDS, Change
from xnatfs.tree.node import Dir, File, Node

# Bytes that count as one row of a listing, against the limit of the metadata cache.
BYTES_PER_ROW = 100


@dataclass(frozen=True, slots=True)
class Generated:
    """The bytes of a file, for as long as the listings that they were made of are fresh."""

    data: bytes
    expires: float  # on the clock of common/clock.py

    def __len__(self) -> int:
        return len(self.data) // BYTES_PER_ROW + 1


Make = Callable[[], Awaitable[Generated]]


class GeneratedFile(File):
    """A file that is made when it is first looked at.

    Args:
        parent: Its directory.
        name: Its name, which nothing else in the directory has.
        make: Make the bytes: the same ones for the same data. Raises as the listings do.
        sources: The keys of the listings that the bytes are made of, as far as they are known before.
        made: The bytes, where they are known already; these count, whatever was made before.
    """

    __slots__ = ("_changed_at", "_digest", "_directory", "_made", "_make", "_sources")

    is_generated = True

    def __init__(
        self, parent: Dir, name: str, make: Make, sources: Sequence[ListKey] = (), made: Generated | None = None
    ) -> None:
        super().__init__(parent.site, parent, name)
        self._directory = parent
        self._make = make
        self._sources = sources
        self._made: Generated | None = None
        self._digest = 0  # of the bytes, once they are made
        self._changed_at = 0.0  # when this mount saw the bytes change, in seconds since the epoch; 0 if it did not
        known = made or self.site.metadata.peek(GeneratedKey(self.path))
        if isinstance(known, Generated):
            self._take(known)

    def _take(self, made: Generated) -> None:
        self._made = made
        self._digest = int.from_bytes(hashlib.blake2b(made.data, digest_size=8).digest())
        change = self.site.metadata.peek(self._change_key())
        self._changed_at = change.at if isinstance(change, Change) and change.stated == self._digest else 0.0

    def _change_key(self) -> ChangeKey:
        return ChangeKey("", "/".join(self.path))  # no file of a resource: those have a number

    async def content(self) -> Generated:
        """Return the bytes of this node; they are made once, and stay."""
        if self._made is None:
            self._take(await self.site.metadata.get(GeneratedKey(self.path), self._make))
        assert self._made is not None
        return self._made

    # -- attributes ----------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        return self._digest

    @property
    def rank(self) -> tuple[float, int]:
        return (self._made.expires if self._made else -math.inf, 0)

    def shown_until(self) -> float:
        """Return until when the size is valid; before the bytes exist, the past, so that the kernel looks it up."""
        return min(super().shown_until(), self.rank[0])

    def renewed(self) -> "GeneratedFile":
        is_fresh = self._made is None or self._made.expires > now()
        return self if is_fresh else GeneratedFile(self._directory, self.name, self._make, self._sources)

    def supersede(self, shown: Node) -> None:
        """Date a change that was found between the bytes before and these."""
        if not isinstance(shown, GeneratedFile) or self._made is None or shown._made is None or self._changed_at:
            return
        if shown.rank < self.rank and shown._digest != self._digest:
            self._changed_at = time.time() - TICK_SECONDS
            self.site.metadata.put(self._change_key(), Change(self._digest, "", self._changed_at))

    def modified(self) -> float:
        return self._changed_at or super().modified()

    def modified_ns(self) -> int:
        """Return the time of the item, with nanoseconds of the content: `rsync` then sees a change of equal length."""
        if self._changed_at:
            return int(self._changed_at * 1e9)
        return round(self.modified() * 1000) * 10**6 + self._digest % 10**6

    def sources(self) -> Sequence[ListKey]:
        return self._sources

    @property
    def measured(self) -> bool:
        return self._made is not None

    @property
    def measured_size(self) -> int:
        return len(self._made.data) if self._made else 0

    async def size(self) -> int:
        return len((await self.content()).data)

    # -- content -------------------------------------------------------------------------------------------------

    def permit(self) -> Permit:
        """Permit reads for as long as the file could be made anew, for which the server checks the account."""
        return self.site.access.permit(GeneratedKey(self.path), self, self.rank[0])

    async def confirm_shown(self) -> float:
        """Make it anew, for which the server must permit what it is made of; return when that expires."""
        return (await self.site.metadata.get(GeneratedKey(self.path), self._make)).expires

    async def open(self) -> Blob:
        return blob_of("/".join(self.path), (await self.content()).data)

    async def unchanged_since(self, size: int, stamp: str) -> str:
        return ""

    def is_another(self, before: str, stamp: str) -> bool:
        return False

    def replaced(self, before: str, stamp: str) -> None:
        """Do nothing: its version is made of its bytes, and it has no stamp."""
