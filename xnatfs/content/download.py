"""Receive the ranges of one file: request them, check that their replies are of one version, write their bytes.

Invariants:
- The first reply decides length, date and validator; a later one that differs is Stale. Where there is neither a strong
  validator nor a digest, nothing proves that two replies are of one version: the file is received by one download after
  the other, each from the first byte, and what is present already is compared with what arrives again.
- Without a digest, another length than the listed one is believed only if the server, requested again, states it. One
  that nothing states is never believed where the body has no end of its own.
- A download that would only bring what is present stops.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext

import trio

from xnatfs.common.errors import BadReply, Stale
from xnatfs.content.blob import Blob
from xnatfs.content.planner import Planner, RangeDownload
from xnatfs.content.source import Body, Source, Version, WriteInto, find_contradiction
from xnatfs.content.writer import Writer

# How long a download that is far ahead of its readers holds its connection, in seconds. Other files may wait for that;
# and for a reader that comes back later a request is sent, from where the download ended.
PAUSE_SECONDS = 2.0


class Receiver:
    """Receive the bytes of one blob, and hold what their first reply stated."""

    def __init__(self, blob: Blob, version: Version, writer: Writer, planner: Planner) -> None:
        self.modified = ""  # Last-Modified of the first reply
        self.validator = ""
        self._blob = blob
        self._version = version
        self._writer = writer
        self._planner = planner
        self._extended: int | None = None  # the length that a HEAD stated of a body longer than listed

    @property
    def date(self) -> str:
        """Return Last-Modified; '' where it may be of two versions, as within a second, and so proves nothing later."""
        return self.modified if self.validator == self.modified else ""

    async def receive(self, download: RangeDownload) -> bool:
        """Receive a range, and return False if the download ended early because it was far ahead of its readers.

        Raises:
            XnatError: What the source raises; BadReply and Stale for replies that are not of the file or the version.
            CacheError: The bytes cannot be written.
        """
        blob = self._blob
        size = blob.size if blob.size >= 0 else None
        async with download.source.open(download.position, size, download.stop) as body:
            if await self._accept(download, body):
                if body.into is not None and blob.size >= 0 and self._is_provable:
                    await self._receive_by_process(download, body.into)
                else:
                    await self._receive_chunks(download, body)
        return not download.has_paused

    async def _receive_chunks(self, download: RangeDownload, body: Body) -> None:
        chunks = body.chunks
        async with aclosing(chunks) if isinstance(chunks, AsyncGenerator) else nullcontext():
            async for chunk in chunks:
                await self._put(download, chunk)
                if self._planner.is_done(download) or not await self._pause(download):
                    return
                await trio.lowlevel.checkpoint()
        await self._check_end(download, body.framed)

    async def _receive_by_process(self, download: RangeDownload, into: WriteInto) -> None:
        """Let another process write what is missing, and skip what is present, step by step."""
        while download.position < self._blob.size and not self._planner.is_done(download):
            if not await self._pause(download):
                return
            stop, is_missing = self._planner.next_step(download, trio.current_time())
            if stop == download.position:
                return  # another download continues from here
            try:
                fd, start = self._blob.fd if is_missing else None, download.position
                async with aclosing(into(fd, start, stop - start)) as written:
                    async for count in written:
                        self._writer.note_written(download.position, count)
                        download.position += count
            except OSError as exc:
                raise self._writer.error(exc) from exc

    async def _pause(self, download: RangeDownload) -> bool:
        """Wait while enough has arrived; return False if no reader requests more in time."""
        while self._planner.pauses(download):
            download.wakeup, read_end = trio.Event(), download.read_end
            with trio.move_on_after(PAUSE_SECONDS):
                await download.wakeup.wait()
            if self._planner.pauses(download) and download.read_end == read_end and self._planner.can_seek:
                download.has_paused = True
                return False
        return True

    async def _accept(self, download: RangeDownload, body: Body) -> bool:
        """Check how a reply begins; return False if its bytes are not to be used. Raises BadReply or Stale."""
        if download.start and body.start == 0:
            self._planner.ranges_refused = True
            if any(other.start == 0 for other in self._planner.downloads if other is not download):
                return False
            download.start = download.position = download.read_end = 0
            download.stop = None
        if body.whole:
            download.stop = None
        if body.start != download.start:
            raise BadReply(
                f"{self._version.key}: bytes from {download.start} were requested, the reply starts at {body.start}"
            )
        if self._writer.partial is not None:
            return self._continues(download, body)
        if body.size is not None and self._version.size is not None:
            await self._confirm(body.size, download.source)
        await self._begin(body)
        return True

    async def _begin(self, body: Body) -> None:
        """Take length, date and validator of the file from its first reply."""
        blob = self._blob
        await self._writer.begin(body.size)
        self.modified, self.validator = body.modified, body.validator
        self._planner.ranges_refused = not self._is_provable
        blob.stamp = self._version.stamp(self.date or repr(trio.current_time()))
        if body.size is not None:
            blob.size = body.size
            try:
                await self._writer.reserve(body.size)
            finally:
                blob.ready.set()  # also where that is refused, or cancelled: a later open joins this blob

    def _continues(self, download: RangeDownload, body: Body) -> bool:
        """Check that a later reply is of the version of the first one. Raises Stale where it has another one."""
        if body.size not in (None, self._blob.size) or (body.modified and body.modified != self.modified):
            raise self._changed()
        if self._version.digest or (self.validator and body.validator == self.validator):
            return True
        if download.start:  # a range of an unknown version
            self._planner.ranges_refused = True
            return False
        if self._is_provable:
            raise self._changed()
        return True

    @property
    def _is_provable(self) -> bool:
        """Return whether replies can be proved to be of one version."""
        return bool(self._version.digest or self.validator)

    def _changed(self) -> Stale:
        return Stale(f"{self._version.key}: it changed on the server while it was read; open it again")

    async def _put(self, download: RangeDownload, chunk: bytes) -> None:
        end = download.position + len(chunk)
        if self._blob.size >= 0 and end > self._blob.size:
            raise BadReply(f"{self._version.key}: more than the announced {self._blob.size} bytes arrived")
        if self._blob.size < 0 and end > self._longest:  # it may have no end
            await self._extend(end, download.source)
        if not self._is_provable and not self._writer.has_same(download.position, chunk):
            raise self._changed()
        await self._writer.put(download.position, chunk)
        download.position = end

    async def _confirm(self, length: int, source: Source, *, framed: bool = False) -> None:
        """Raise BadReply if a length differs from the listed one, and the server does not confirm it."""
        if found := await find_contradiction(self._version, length, source, framed=framed):
            raise BadReply(f"{self._version.key}: {found}, refresh the listing and read it again")

    @property
    def _longest(self) -> int:
        """Return how many bytes a body of unknown length may have."""
        if self._extended is not None:
            return self._extended
        return self._writer.store.limit if self._version.size is None else self._version.size

    async def _extend(self, end: int, source: Source) -> None:
        """Let a body of unknown length be longer than listed, up to what a HEAD states. Raises BadReply."""
        stated = None if self._version.digest else (await source.head()).size
        if stated is None or stated < end:
            raise BadReply(f"{self._version.key}: of unknown length, and longer than it can be ({end} bytes)")
        self._extended = stated

    async def _check_end(self, download: RangeDownload, framed: bool) -> None:
        """Check the end of a body that was received to its end. Raises BadReply."""
        if self._blob.size < 0:
            if download.position != self._extended:
                await self._confirm(download.position, download.source, framed=framed)
            self._blob.size = download.position
        elif download.position < self._blob.size:
            raise BadReply(f"{self._version.key}: it ended after {download.position} of {self._blob.size} bytes")
