"""Fill a blob: start and end its downloads, verify the file when it is complete, and store it.

Invariants:
- A download is a task in the cache's nursery; no exception leaves it.
- The blob is verified once, when all of it is present and every download has ended well: one that is too long is
  noticed.
- A reader never waits while nothing runs: when the last download ends and bytes are missing, the next one starts.
- An older copy is used again if the server still states its date and its length.
- A file that the cache directory refuses moves elsewhere once all downloads that write there have ended.
- Downloads of a file that no reader has open end after LINGER_SECONDS, or when the next big file is opened.
"""

import enum
import logging
import math
import os
from contextlib import AsyncExitStack
from typing import Protocol

import trio

from xnatfs.common.errors import BadReply, CacheError, XnatError
from xnatfs.content.blob import Blob, is_small
from xnatfs.content.disk.index import BlobRow
from xnatfs.content.download import Receiver
from xnatfs.content.planner import NextDownload, Planner, RangeDownload
from xnatfs.content.source import Source, Version, identity
from xnatfs.content.writer import Backing, Writer

log = logging.getLogger(__name__)

# How long downloads pause for a file that no reader has open, in seconds: programs open a file several times in a row,
# and without ranges the next download would begin with the first byte.
LINGER_SECONDS = 5.0


class State(enum.Enum):
    """The states of a fill."""

    DOWNLOADING = enum.auto()  # bytes are missing; downloads may run
    REFUSED = enum.auto()  # the cache directory accepts no more of the file: downloads are ending
    RECOVERING = enum.auto()  # room is made, or the file is copied elsewhere
    VERIFYING = enum.auto()  # all bytes are present; they are verified and stored
    COMPLETE = enum.auto()
    FAILED = enum.auto()


class FillOwner(Protocol):
    """The cache, as its fills see it."""

    def on_idle(self, blob: Blob) -> None:
        """Release what is not needed any more: the fill of this blob has failed, or nothing of it runs."""

    def row_for(self, blob: Blob) -> BlobRow | None:
        """Return the row under which to store a blob that has just been verified; None if it is outdated."""

    def adopt(self, blob: Blob) -> bool:
        """Serve the copy of a blob that another process has stored meanwhile; return False if there is none."""

    def is_alone(self) -> bool:
        """Return whether only one big file is being downloaded."""


class Fill:
    """Fills one blob.

    Args:
        blob: The blob.
        version: Its version.
        source: Where its bytes are.
        backing: The parts of the cache that it uses.
        owner: The cache.
        older: An older copy, its row and descriptor; it is used if the server confirms it, and closed otherwise.
    """

    def __init__(
        self,
        blob: Blob,
        version: Version,
        source: Source,
        backing: Backing,
        owner: FillOwner,
        older: tuple[BlobRow, int] | None = None,
    ) -> None:
        self.blob = blob
        self.version = version
        self.state = State.DOWNLOADING
        self.stored = trio.Event()  # it is complete, and stored if the directory has room for it
        self.planner = Planner(blob, version, source)
        self.writer = Writer(blob, version, backing)
        self._receiver = Receiver(blob, version, self.writer, self.planner)
        self._backing = backing
        self._owner = owner
        self._older = older
        self._refusal: CacheError  # the error of a write that led to REFUSED
        blob.filler = self

    @property
    def is_running(self) -> bool:
        """Return whether anything but readers uses the blob's file."""
        return bool(self.planner.downloads) or self.state in (State.RECOVERING, State.VERIFYING)

    @property
    def date(self) -> str:
        """Return Last-Modified, as far as it proves anything later."""
        return self._receiver.date

    def start(self) -> None:
        """Begin with the first byte."""
        self._launch(self.planner.plan_start())

    def linger(self, seconds: float = LINGER_SECONDS) -> None:
        """End the downloads after some seconds, since no reader has the file open."""
        for download in self.planner.downloads:
            download.scope.deadline = trio.current_time() + seconds

    def resume(self, source: Source) -> None:
        """Let the downloads go on, since the file was opened again."""
        self.planner.source = source
        for download in self.planner.downloads:
            download.scope.deadline = math.inf
            download.wakeup.set()

    def fail(self, exc: Exception) -> None:
        """End the downloads, and raise an error at all readers, unless the file is complete."""
        if self.blob.failure is not None or self.blob.complete:
            return
        self.state = State.FAILED
        self._cancel_downloads()
        self.close_older()
        self.blob.fail(_translated(self.version.key, exc))
        self._owner.on_idle(self.blob)

    def close_older(self) -> None:
        """Close the older copy."""
        if self._older is not None:
            os.close(self._older[1])
            self._older = None

    def on_wait(self, offset: int) -> None:
        """Fetch the byte at an offset, for a reader that waits."""
        if self.state is State.DOWNLOADING:
            plan = self.planner.plan_wait(offset, trio.current_time())
            if plan is None or not plan.is_share or self._owner.is_alone():
                self._launch(plan)

    def on_read(self, start: int, end: int) -> None:
        """Note that a reader requests a range."""
        plan = self.planner.plan_read(start, end)
        if self.state is State.DOWNLOADING:
            self._launch(plan)

    def _launch(self, plan: NextDownload | None) -> None:
        if plan is None:
            return
        if plan.cancel is not None:
            self.planner.downloads.remove(plan.cancel)
            plan.cancel.scope.cancel()
        if plan.shorten is not None:
            plan.shorten.stop, plan.shorten.is_share = plan.start, True
        now = trio.current_time()
        download = RangeDownload(plan.start, plan.stop, self.planner.source, now, is_share=plan.is_share)
        for read in (self.planner.last_read, *self.blob.waits):
            download.note_read(*read)
        self.planner.downloads.append(download)
        self._backing.nursery.start_soon(self._run, download)

    async def _run(self, download: RangeDownload) -> None:
        paused = False
        async with AsyncExitStack() as turn:  # it ends when the file is stored
            try:
                with download.scope:
                    if not await self._get_copy(turn, download.source):
                        paused = not await self._receiver.receive(download)
            except Exception as exc:
                self._handle_error(_translated(self.version.key, exc))
            finally:
                if download in self.planner.downloads:
                    self.planner.downloads.remove(download)
            await self._settle(paused=paused)

    async def _get_copy(self, turn: AsyncExitStack, source: Source) -> bool:
        """Use a copy of the file that is there or about to be; return False if it is to be downloaded."""
        if await self._adopt_from_other_process(turn) or await self._copy_from_shared_store(turn):
            return True
        return self._older is not None and await self._renew(*self._older, source)

    async def _adopt_from_other_process(self, turn: AsyncExitStack) -> bool:
        """Let another process that fetches this file finish, and use its copy; else claim the file for this process.

        Only of a small file, which no reader receives before it is complete, and that its digest identifies.
        """
        size = self.version.size
        if size is None or not is_small(size) or not self.version.digest or self.writer.partial is not None:
            return False

        def is_stored() -> bool:
            return self.blob.complete or self._owner.adopt(self.blob)

        claim = self._backing.store.claims.turn(identity(self.version).hex(), is_stored)
        if not await turn.enter_async_context(claim) or not is_stored():
            return False
        self.state = State.COMPLETE
        self.stored.set()
        return True

    async def _copy_from_shared_store(self, turn: AsyncExitStack) -> bool:
        """Copy the file from the store that machines share, if that has it; else claim a small file among them."""
        shared, size = self._backing.shared, self.version.size
        if shared is None or size is None or not self.version.digest or self.writer.partial is not None:
            return False
        entry = await shared.open(self.version)
        if entry is None and is_small(size):
            await turn.enter_async_context(shared.file_turn(self.version))
            entry = await shared.open(self.version)  # without a wait, too: it may have been added before the claim
        return entry is not None and await self.writer.copy(shared, entry)

    def _handle_error(self, error: XnatError) -> None:
        if isinstance(error, CacheError) and not self.writer.is_elsewhere and self.state is State.DOWNLOADING:
            self.state, self._refusal = State.REFUSED, error
            self._cancel_downloads()
        elif self.state is not State.REFUSED:
            self.fail(error)

    def _cancel_downloads(self) -> None:
        for download in self.planner.downloads:
            download.scope.cancel()

    async def _settle(self, *, paused: bool) -> None:
        """Decide how to go on after a download has ended, for whatever reason."""
        blob = self.blob
        if not self.planner.downloads:
            if self.state is State.REFUSED:
                await self._recover(self._refusal)
            if self.state is State.DOWNLOADING:
                if blob.size >= 0 and blob.contiguous_end >= blob.size:
                    await self._finish()
                else:
                    self._launch(self.planner.plan_end(paused=paused))
        blob.wake()
        if not self.is_running:
            self._owner.on_idle(blob)

    async def _recover(self, error: CacheError) -> None:
        self.state = State.RECOVERING
        try:
            await self.writer.recover(error)
            self.state = State.DOWNLOADING
        except Exception as exc:
            self.fail(exc)

    async def _finish(self) -> None:
        """Verify the file, serve all of it, and store it."""
        self.state = State.VERIFYING
        try:
            await self.writer.verify()
            self.blob.finish()
            row = self._owner.row_for(self.blob)
            if row is not None and self.writer.partial is not None:
                await self._backing.store.keep(self.writer.partial, row)
            if self._backing.shared is not None and self.blob.size == self.version.size:  # else the listing is wrong
                await self._backing.shared.put(self.version, self.blob.fd)
        except Exception as exc:
            self.fail(exc)
        finally:
            self.state = State.COMPLETE if self.blob.complete else State.FAILED
            self.stored.set()

    async def _renew(self, row: BlobRow, fd: int, source: Source) -> bool:
        """Use the older copy if a HEAD confirms it. Not by If-Modified-Since: files are put back with older dates."""
        head = await source.head() if row.modified else None
        size = head.size if head is not None and head.size is not None else self.version.size
        if self._older is None or head is None or (head.modified, size) != (row.modified, row.size):
            self.close_older()
            return False
        self._older, self.blob.fd = None, fd
        self._receiver.modified = self._receiver.validator = row.modified
        self.blob.size, self.state = row.size, State.COMPLETE
        self.blob.stamp = self.version.stamp(row.stamp)
        self.blob.finish()
        if (renewed := self._owner.row_for(self.blob)) is not None:
            await self._backing.store.renew(renewed)
        self.stored.set()
        return True


def _translated(key: str, exc: BaseException) -> XnatError:
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    if isinstance(exc, XnatError):
        return exc
    log.error("unexpected failure of the download of %s", key, exc_info=exc)
    return BadReply(f"{key}: its download failed in an unexpected way ({type(exc).__name__}); the log has details")
