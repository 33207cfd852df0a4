"""The downloads that fill a blob: when one starts, where, and how long it runs.

Invariants:
- At most STREAMS downloads per blob, and helpers (abreast.py). Each is a task in the cache's nursery; no exception
  leaves it.
- The first reply decides length, date and validator; a later one that differs is Stale. Where there is neither a strong
  validator nor a digest, nothing tells that two replies are of one version: the file comes by one download after the
  other, each from the first byte, and what is there already is compared with what comes again.
- Without a digest, another length than the listed one is believed only if the server, asked again, states it. One that
  nothing states is never believed where the body has no end of its own.
- An older copy is used again if the server still states its date and its length.
- A download that would only bring what is present stops.
- The blob is verified once, when all is present and every download has ended well: one that is too long is noticed.
- A reader never waits while nothing runs: when the last download ends and bytes are missing, the next one starts.
- Where a seek is possible, what is requested is a window, until it is read on: then the next window, or the rest.
- Where a seek is possible, a download that is far ahead of its readers pauses, and after PAUSE ends. Of a file that
  nobody has open every download pauses; the next file that is opened ends it, or LINGER.
- What the cache directory refuses goes on in memory, once all downloads that write there have ended.
"""

import logging
import math
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, nullcontext

import trio

from xnatfs.common.errors import BadReply, CacheError, Stale, XnatError
from xnatfs.content.blob import Blob
from xnatfs.content.disk.index import Row
from xnatfs.content.disk.store import Store
from xnatfs.content.download import NEAR, WINDOW, Stream
from xnatfs.content.parallel import SHARE, Abreast
from xnatfs.content.source import Body, Into, Source, Version
from xnatfs.content.stats import Stats
from xnatfs.content.writer import BEHIND, SMALL, THIN_AHEAD, Intake

log = logging.getLogger(__name__)

# Downloads per blob: the one from the start, and one for whoever seeks.
STREAMS = 2

# How long a download that is far ahead of its reader holds its connection. Others may wait for that; and whoever comes
# back later is asked for from there, which costs a request.
PAUSE = 2.0

# The same where the next one would begin with the first byte, of a file of which only a part has room.
LONG_PAUSE = 30.0

# A reader that goes on after a seek is sent windows that double, up to this: such an answer comes to its end, so that
# its connection lives, and at 64 MiB a request costs nothing beside it.
LONGEST = 64 * 1024 * 1024

# How long downloads rest for a file that nobody has open: programs open a file several times in a row, and without
# ranges the next one would begin with the first byte.
LINGER = 5.0


class Fill:
    """Fills one blob."""

    def __init__(
        self,
        blob: Blob,
        version: Version,
        source: Source,
        store: Store,
        stats: Stats,
        nursery: trio.Nursery,
        *,
        strict: bool,
        kept: tuple[Row, int] | None,
        alone: Callable[[], bool],
        changed: Callable[[], None],
        keep: Callable[["Fill"], Row | None],
    ) -> None:
        self.blob = blob
        self.version = version
        self.source = source  # of the latest open; all lead to the same file
        self.intake = Intake(blob, version, store, stats, nursery)
        self.modified = ""
        self.validator = ""
        self.renewed = False  # the older copy is the file still
        self.busy = False  # verifying or keeping
        self._store = store
        self._nursery = nursery
        self._strict = strict
        self._kept = kept  # an older copy, to be used if it is the file still
        self._alone = alone  # ask the cache: is it the only big file that is fetched
        self._changed = changed  # tell the cache: failed, or nothing runs any more
        self._keep = keep  # ask the cache: the row to keep it under
        self._replied = False
        self._most = version.size  # bytes of a body of unknown length; None: as many as the cache may hold
        self._extended = -1  # the same, where a HEAD states more than the listing
        self._no_seek = False
        self._streams: list[Stream] = []
        self._abreast = Abreast()
        self._window = WINDOW  # the length of the last one, and where it ended
        self._window_end = WINDOW
        self._read = (0, 0)  # where the last one began and ended
        self._shared = False  # several connections bring it
        self._rests = False  # the last download ended because enough has come that nobody has asked for
        self._refused = False  # the directory takes no more of it
        blob.want = self._want
        blob.seen = self._seen

    @property
    def running(self) -> bool:
        """Return whether anything but readers uses the blob's file."""
        return bool(self._streams) or self.busy

    @property
    def small(self) -> bool:
        """Return whether it is fetched to the end even if no reader waits."""
        expected = self.blob.size if self.blob.size >= 0 else self.version.size
        return expected is not None and expected <= SMALL

    @property
    def date(self) -> str:
        """Return Last-Modified; '' where it may be of two versions, as within a second, and so tells nothing later."""
        return self.modified if self.validator == self.modified else ""

    def start(self) -> None:
        """Begin with the first byte."""
        windowed = self._may_seek() and not self._strict and self.version.size is not None and not self.small
        self._launch(0, WINDOW if windowed else None)

    def linger(self, seconds: float = LINGER) -> None:
        """Give up after a while, because nobody has it open."""
        for stream in self._streams:
            stream.scope.deadline = trio.current_time() + seconds

    def stay(self, source: Source) -> None:
        """Somebody has opened it again."""
        self.source = source
        for stream in self._streams:
            stream.scope.deadline = math.inf
            stream.moved.set()

    def fail(self, exc: Exception) -> None:
        """Readers get this from now on; downloads end."""
        if self.blob.failure is not None or self.blob.complete:
            return
        for stream in self._streams:
            stream.scope.cancel()
        self.drop_kept()
        self.blob.fail(_translated(self.version.key, exc))
        self._changed()

    def drop_kept(self) -> None:
        """Close the older copy, which is of no use."""
        if self._kept is not None:
            os.close(self._kept[1])
            self._kept = None

    def _want(self, offset: int) -> None:
        # Called by a reader that is about to wait, and again whenever something changed.
        blob = self.blob
        if self._refused:
            return
        gap = blob.spans.next_gap(0 if blob.whole else offset)
        if gap >= blob.size:
            gap = blob.came  # it waits for the verdict, and so for all that is missing
        if gap >= blob.size:
            return
        for stream in self._streams:
            if stream.reaches(gap):
                stream.mark(offset)
                if blob.awaited:
                    stream.moved.set()
                self._help()
                return
        if not self._may_seek():
            for stream in self._streams:
                stream.moved.set()
            if not any(stream.cursor <= gap for stream in self._streams) and len(self._streams) < STREAMS:
                self._launch(0, None)
            return
        if blob.whole and self._streams:
            return
        if len(self._streams) >= STREAMS and not self._replace():
            return
        self._launch(*self._place(gap))

    def _place(self, gap: int) -> tuple[int, int | None]:
        """Choose where a download begins and ends that brings this byte, and nothing that is there already.

        That is a window, or the rest where the file was read from its beginning to there.
        """
        blob = self.blob
        if gap == blob.came and (blob.whole or blob.awaited or 2 * self._requested >= gap):
            return gap, None
        self._window = min(2 * self._window, LONGEST) if gap == self._window_end else WINDOW
        end = min(gap + self._window, blob.size)
        _, stop = next(blob.spans.gaps(gap, end))
        self._window_end = stop
        if stop < end:  # one that reads backwards, piece by piece, would get as many requests
            gap = min(gap, max(stop - WINDOW, blob.spans.start_of_gap(gap)))
        return gap, stop if stop < blob.size else None

    def _go_on(self) -> None:
        """Request what follows a window before it is used up, or what is missing of a file that was mostly read."""
        blob, end = self.blob, self._window_end
        if self.running or self._refused or blob.whole or blob.failure or not blob.users:
            return
        if self.intake.thin or not self._may_seek():
            return
        if self._is_mostly_read():
            self._launch(blob.came, None)
            return
        low, middle, high = end - self._window, end - self._window // 2, end + WINDOW
        is_read_on = any(low <= start < high and stop > middle for start, stop in [self._read, *blob.waits])
        if is_read_on and end < blob.size and blob.spans.next_gap(end) == end:
            self._launch(*self._place(end))

    def _help(self) -> None:
        """Begin one more download for a reader that waits, ahead of what is on its way, where that is faster."""
        size = self.blob.size
        if self.blob.whole or not self._may_seek() or not self.source.grants or self.intake.thin or size < SHARE:
            return
        self._abreast.look(trio.current_time(), self.intake.count)
        if len(self._streams) > self._abreast.helpers or not self._alone():
            return
        last = max(self._streams, key=lambda stream: size if stream.stop is None else stream.stop)
        if last.stop is None and size - last.cursor > 2 * NEAR:
            last.stop = max(last.cursor + min(SHARE, (size - last.cursor) // 2), last.step)
            self._shared = True
        if self._shared and last.stop is not None:
            for start, stop in self.blob.spans.gaps(last.stop, min(last.stop + SHARE, size)):
                self._launch(start, stop)
                return

    def _seen(self, offset: int, end: int) -> None:
        self._read = (offset, end)
        self._go_on()
        for stream in self._streams:
            stream.note(offset, end)

    async def _pause(self, stream: Stream) -> bool:
        """Wait while enough is there; False if nobody comes for it."""
        await self._thin_out(stream)
        while self._pauses(stream):
            if self._is_in_the_way(stream):
                return False
            stream.moved, used = trio.Event(), stream.used
            with trio.move_on_after(PAUSE if self._may_seek() else LONG_PAUSE):
                await stream.moved.wait()
            if self._pauses(stream) and stream.used == used and (self._may_seek() or not stream.moved.is_set()):
                stream.rests = True
                return False
        return True

    def _pauses(self, stream: Stream) -> bool:
        if not self.blob.users and not self.small:
            return True
        if self.blob.whole or not stream.ahead(self.blob.size) or self.blob.awaited:
            return False
        # Without ranges the only way to the rest leads through what nobody wants now.
        return self._may_seek() or (self.intake.thin and all(end <= stream.cursor for _, end in self.blob.waits))

    def _is_in_the_way(self, stream: Stream) -> bool:
        """Return whether a reader waits for what it has passed, and for its place, since it cannot seek."""
        if self._may_seek() or len(self._streams) < STREAMS:
            return False
        return any(start < stream.cursor and not self.blob.spans.covers(start, end) for start, end in self.blob.waits)

    async def _thin_out(self, stream: Stream) -> None:
        """In memory is what is near a reader, where that is all there is room for."""
        if self.intake.thin:
            stream.most = THIN_AHEAD
            if self.blob.spans.total() > THIN_AHEAD + BEHIND:
                ends = [(max(each.used, each.cursor - THIN_AHEAD), each.cursor) for each in self._streams]
                near = [(min(used, cursor) - BEHIND, cursor) for used, cursor in ends]
                self.intake.forget(near + self.blob.waits)
            await self.intake.keep_up()

    def _may_seek(self) -> bool:
        return self.source.seekable and not self._no_seek

    def _replace(self) -> bool:
        # End the download that was unwanted longest, if there is one that nobody waits for.
        idle = [stream for stream in self._streams if not stream.needed(self.blob.waits)]
        if not idle:
            return False
        victim = min(idle, key=lambda stream: stream.wanted)
        self._streams.remove(victim)
        victim.scope.cancel()
        return True

    def _launch(self, start: int, stop: int | None) -> None:
        stream = Stream(start, stop, self.source)
        for wait in self.blob.waits:
            stream.note(*wait)
        self._streams.append(stream)
        self._nursery.start_soon(self._run, stream)

    async def _run(self, stream: Stream) -> None:
        try:
            with stream.scope:
                await self._download(stream)
        except Exception as exc:
            self._ended_by(_translated(self.version.key, exc))
        finally:
            if stream in self._streams:
                self._streams.remove(stream)
        self._rests = stream.rests
        await self._settle()

    def _ended_by(self, error: XnatError) -> None:
        if not isinstance(error, CacheError) or self.intake.in_memory:
            self.fail(error)
            return
        self._refused = True
        for stream in self._streams:
            stream.scope.cancel()

    async def _settle(self) -> None:
        # Whenever a download has ended, for whatever reason.
        blob = self.blob
        if self._refused and not self.running and blob.failure is None:
            await self._to_memory()
        if not self.running and blob.failure is None and not (blob.complete or blob.verified):
            if blob.size >= 0 and blob.came >= blob.size:
                await self._finish()
            elif blob.users and self._is_rest_wanted():
                self._launch(blob.came if self._may_seek() and blob.size >= 0 else 0, None)
            elif not self._rests:
                self._go_on()
        blob.wake()
        if not self.running:
            self._changed()

    def _is_rest_wanted(self) -> bool:
        """Return whether to fetch what is missing unasked. A reader that waits asks again by itself."""
        blob = self.blob
        if blob.size < 0 or blob.whole:
            return True
        if not self._may_seek():
            return bool(blob.waits) or not self._rests
        return self._is_mostly_read()

    def _is_mostly_read(self) -> bool:
        return self.blob.size - self.blob.spans.total() <= self._requested

    @property
    def _requested(self) -> int:
        """Return how many bytes readers have had or wait for, about."""
        reads = {self._read, *self.blob.waits}
        return self.blob.handed_count + sum(end - start for start, end in reads)

    async def _to_memory(self) -> None:
        self.busy = True
        try:
            await self.intake.to_memory()
        except Exception as exc:
            self.fail(exc)
        finally:
            self.busy = self._refused = False

    async def _finish(self) -> None:
        self.busy = True
        try:
            await self.intake.verify()
            if self.intake.thin:
                self.blob.verified = True
                return
            self.blob.finish()
            row = self._keep(self)
            if row is not None and self.intake.partial is not None:
                await self._store.keep(self.intake.partial, row)
        except Exception as exc:
            self.fail(exc)
        finally:
            self.busy = False

    async def _download(self, stream: Stream) -> None:
        blob = self.blob
        if self._kept is not None and await self._renew(self._kept[0], stream.source):
            return
        size = blob.size if blob.size >= 0 else None
        async with stream.source.open(stream.cursor, size, stream.stop) as body:
            if not await self._accept(stream, body):
                return
            if body.into is not None and blob.size >= 0 and self._provable:
                await self._carry(stream, body.into)
                return
            chunks = body.chunks
            async with aclosing(chunks) if isinstance(chunks, AsyncGenerator) else nullcontext(chunks):
                async for chunk in chunks:
                    await self._take(stream, chunk)
                    if self._enough(stream) or not await self._pause(stream):
                        return
                    await trio.lowlevel.checkpoint()
            await self._ended(stream, body.framed)

    async def _carry(self, stream: Stream, into: Into) -> None:
        """Have a process write what is missing, and skip what is there, step by step."""
        full: OSError | None = None
        await self.intake.reserve(self.blob.size)
        while stream.cursor < self.blob.size and not self._enough(stream) and await self._pause(stream):
            stop, missing = self._step(stream)
            if stop == stream.cursor:
                return  # another download goes on from here
            try:
                async with aclosing(
                    into(self.blob.fd if missing else None, stream.cursor, stop - stream.cursor)
                ) as come:
                    async for count in come:
                        full = None
                        self.intake.came(stream.cursor, count)
                        stream.cursor += count
            except OSError as exc:
                if full is not None:
                    raise self._store.error(exc) from exc
                full = exc
                await self.intake.make_room(exc)

    def _step(self, stream: Stream) -> tuple[int, bool]:
        """Up to where bytes are taken next, and whether they are missing. No other download has that place.

        Others begin beyond the step, or before it; a step ends where another download is.
        """
        cursor, spans = stream.cursor, self.blob.spans
        others = [other for other in self._streams if other is not stream]
        ahead = [each.cursor for each in others if (each.cursor, each.origin) > (cursor, stream.origin)]
        ends = [stream.next_step(), self.blob.size if stream.stop is None else stream.stop, *ahead]
        if stream.stop is None and self._may_seek() and not self.blob.whole and not self.blob.awaited:
            ends.append(max(stream.enough(), cursor + 1))
        end = stream.step = min(ends)
        gap = spans.next_gap(cursor)
        if gap > cursor:
            return min(gap, end), False
        return next((stop for _, stop in spans.gaps(cursor, end)), end), True

    async def _accept(self, stream: Stream, body: Body) -> bool:
        blob, key = self.blob, self.version.key
        if stream.origin and body.start == 0:
            self._no_seek = True
            if any(other.origin == 0 for other in self._streams if other is not stream):
                return False
            stream.origin = stream.cursor = stream.used = 0
            stream.stop = None
        if body.whole:
            stream.stop = None
        if body.start != stream.origin:
            raise BadReply(f"{key}: bytes from {stream.origin} were asked for, the answer starts at {body.start}")
        if self._replied:
            return self._goes_on(stream, body)
        if body.size is not None and self.version.size is not None:
            await self._confirm(body.size, stream.source)
        self._replied = True
        self.drop_kept()
        await self.intake.begin()
        self.modified, self.validator = body.modified, body.validator
        self._no_seek = not self._provable
        blob.stamp = self.version.stamp(self.date or repr(trio.current_time()))
        if body.size is not None:
            blob.size = body.size
            blob.whole = self._strict or body.size <= SMALL
            await self.intake.reserve(min(1, body.size))
            blob.ready.set()
        return True

    @property
    def _provable(self) -> bool:
        """Return whether replies can be proved to be of one version."""
        return bool(self.version.digest or self.validator)

    def _goes_on(self, stream: Stream, body: Body) -> bool:
        """Check that a later reply continues the version of the first one. Raises Stale where it has another one."""
        if body.size not in (None, self.blob.size) or (body.modified and body.modified != self.modified):
            raise self._changed_since()
        # In memory, what was verified and given up may be asked for once more: the digest covers it no longer.
        by_digest = bool(self.version.digest) and not (self.intake.thin and stream.cursor < self.blob.floor)
        if by_digest or (self.validator and body.validator == self.validator):
            return True
        if stream.origin:  # a range of nothing tells which version
            self._no_seek = True
            return False
        if self._provable or self.intake.thin:  # with less than all of it here there is not enough to compare
            raise self._changed_since()
        return True

    def _changed_since(self) -> Stale:
        return Stale(f"{self.version.key}: it changed on the server while it was read; open it again")

    async def _confirm(self, length: int, source: Source, *, framed: bool = False) -> None:
        """Confirm by HEAD a length that differs from the listed one. Raises BadReply.

        `framed`: the body has an end of its own, which counts where nothing has stated any length.
        """
        listed = self.version.size
        if self.version.digest or length == listed:
            return
        stated = (await source.head()).size
        if stated == length or (stated is listed is None and framed):
            return
        said, again = ("nothing" if size is None else size for size in (listed, stated))
        raise BadReply(
            f"{self.version.key}: {length} bytes came, the listing states {said}, a HEAD {again}; nothing was kept,"
            " refresh the listing and read it again"
        )

    async def _take(self, stream: Stream, chunk: bytes) -> None:
        end = stream.cursor + len(chunk)
        if self.blob.size >= 0 and end > self.blob.size:
            raise BadReply(f"{self.version.key}: more than the announced {self.blob.size} bytes came")
        most = self._store.limit if self._most is None else self._most
        if self.blob.size < 0 and end > most:  # it may have no end
            await self._extend(end, stream.source)
        if not self._provable and not self.intake.has_same(stream.cursor, chunk):
            raise self._changed_since()
        await self.intake.put(stream.cursor, chunk)
        stream.cursor = end

    async def _extend(self, end: int, source: Source) -> None:
        """Let a body of unknown length be longer than listed, up to what a HEAD states. Raises BadReply."""
        stated = None if self.version.digest else (await source.head()).size
        if stated is None or stated < end:
            raise BadReply(f"{self.version.key}: of unknown length, and longer than it can be ({end} bytes)")
        self._most = self._extended = stated

    def _enough(self, stream: Stream) -> bool:
        # At the very end it goes on: more may come, which is an error.
        if stream.stop is not None and stream.cursor >= stream.stop:
            return True
        gap = self.blob.spans.next_gap(stream.cursor)
        if self.blob.size < 0 or stream.cursor == self.blob.size:
            return False
        return gap == self.blob.size or (self._may_seek() and gap - stream.cursor > NEAR)

    async def _ended(self, stream: Stream, framed: bool) -> None:
        if self.blob.size < 0:
            if stream.cursor != self._extended:
                await self._confirm(stream.cursor, stream.source, framed=framed)
            self.blob.size = stream.cursor
        elif stream.cursor < self.blob.size:
            raise BadReply(f"{self.version.key}: it ended after {stream.cursor} of {self.blob.size} bytes")

    async def _renew(self, row: Row, source: Source) -> bool:
        """Use the older copy if it is the file still. Not by If-Modified-Since: files are put back with older dates."""
        head = await source.head() if row.modified else None
        size = head.size if head is not None and head.size is not None else self.version.size
        if self._kept is None or head is None or (head.modified, size) != (row.modified, row.size):
            self.drop_kept()
            return False
        (_, self.blob.fd), self._kept = self._kept, None
        self.blob.size, self.modified, self.validator, self.renewed = row.size, row.modified, row.modified, True
        self.blob.stamp = self.version.stamp(row.stamp)
        self.blob.finish()
        if (renewed := self._keep(self)) is not None:
            await self._store.renew(renewed)
        return True


def _translated(key: str, exc: BaseException) -> XnatError:
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    if isinstance(exc, XnatError):
        return exc
    log.error("unexpected failure of the download of %s", key, exc_info=exc)
    return BadReply(f"{key}: its download failed in an unexpected way ({type(exc).__name__}); the log has details")
