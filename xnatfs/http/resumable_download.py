"""Download files by range where the server supports it, check the headers, and resume broken connections.

Rules: a range is never requested past the end, because the server does not clamp; a whole file is accepted as the
answer to a range, but no other range than the requested one; the bytes of two replies are joined only if a strong
validator (RFC 9110, 8.8) or a digest proves them to be of one version, or if all earlier bytes come again.
"""

import hashlib
import logging
import math
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import httpx
import trio

from xnatfs.common.errors import BadReply, Stale, Unreachable
from xnatfs.content.source import Body
from xnatfs.http.messages import HttpRequest
from xnatfs.http.replies import close, content_length, is_framed, last_modified, strong_validator
from xnatfs.http.retry import LOWEST_BYTES_PER_SECOND, SpeedLimit, retry_backoff
from xnatfs.http.transport import Transport

log = logging.getLogger(__name__)

# Statuses of a server that supports ranges but not this one, or of a proxy that fails on them.
RANGE_REFUSED_STATUSES = frozenset({400, 416, 500, 501})

# Refusals in a row after which a server that has granted ranges before counts as one that no longer does. One of
# several servers behind a balancer may differ, or fail for a moment.
MAX_REFUSALS = 3

# Seconds until a range is requested again: during weeks of a mount the server may change, and a refusal costs only a
# request.
WITHOUT_RANGES_SECONDS = 600.0

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to download.

    Attributes:
        path: Its path, relative to the server's URL.
        size: Its known length in bytes, or None; a range is never requested past it.
        is_big: A download process receives the file.
        has_digest: A digest decides in the end whether the bytes are of one version.
    """

    path: str
    size: int | None
    is_big: bool
    has_digest: bool


@dataclass(frozen=True, slots=True)
class FileReply:
    """The reply to a request of a file, its body not yet read, and what its headers promise."""

    response: httpx.Response
    start: int
    stop: int | None  # the end of the bytes that follow, exclusive
    size: int | None  # of the whole file in bytes
    modified: str  # Last-Modified, as sent
    validator: str  # a strong one, or ""
    is_range: bool


class _NoRange(Exception):
    """A reply lacks the requested range. Its text is the reason, or '' if there is no such range."""


class Downloads:
    """The downloads of one server, and its support of Range as far as it is known."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._granted = False  # whether the server has ever granted a range
        self._refusals = 0  # of ranges, in a row
        self._without_until = -math.inf

    @property
    def ranged(self) -> bool | None:
        """Return whether the server supports Range: False for a while after a refusal, None while not known."""
        if trio.current_time() < self._without_until:
            return False
        return self._granted or None

    @asynccontextmanager
    async def open(self, file: RemoteFile, start: int, stop: int | None) -> AsyncIterator[Body]:
        """Download a file, from `start` if the server supports that, to `stop` (exclusive; None: to its end)."""
        reply = await self.begin(file, start, stop)
        if reply.is_range and start == 0 and not (file.has_digest or reply.validator):
            # Nothing proves that the next range is of the same version: request the whole file at once.
            await close(reply.response)
            reply = await self.begin(file, 0, None)
        transfer = _Transfer(self, file, reply)
        try:
            async with aclosing(transfer.chunks()) as chunks:
                yield Body(
                    reply.start,
                    reply.size,
                    reply.modified,
                    chunks,
                    into=transfer.write if transfer.is_writable else None,
                    validator=reply.validator,
                    framed=reply.is_range or is_framed(reply.response),
                    whole=not reply.is_range,
                )
        finally:
            await transfer.close()

    async def begin(
        self, file: RemoteFile, start: int, stop: int | None, validator: str = "", within: float = math.inf
    ) -> FileReply:
        """Request a file, or a range of it if its size or `stop` is known.

        A server without Range answers a range from the first byte with the whole file, so that it costs nothing to
        request one.

        Args:
            file: The file.
            start: The first byte to request.
            stop: Where the range ends, exclusive; None for the end of the file.
            validator: A strong validator: the range is of the version that has it, or the whole file comes.
            within: The retry budget, in seconds.
        """
        end = min((each for each in (stop, file.size) if each is not None), default=0)
        wanted = None
        headers = {}
        if (start > 0 or stop is not None) and start < end and self.ranged is not False:
            wanted = (start, end)
            headers = {"Range": f"bytes={start}-{end - 1}", **({"If-Range": validator} if validator else {})}
        request = HttpRequest("GET", file.path, "file", headers=headers, is_big=file.is_big)
        response = await self.transport.send(request, within)
        try:
            return await self._check(file, response, wanted, validator)
        except _NoRange as error:
            reason = str(error)
            await close(response)
        except BaseException:
            await close(response)
            raise
        whole = await self.begin(file, 0, None, within=within)
        if reason:
            self._record_refusal(reason)  # only now: if the whole file is unavailable, too, it was not the range
        return whole

    async def _check(
        self, file: RemoteFile, response: httpx.Response, wanted: tuple[int, int] | None, validator: str
    ) -> FileReply:
        """Check the headers of a reply against the requested range. Raises _NoRange."""
        where = f"{self.transport.url}{file.path}"
        if wanted and response.status_code in RANGE_REFUSED_STATUSES:
            raise _NoRange(f"answers {response.status_code} to a range")
        await self.transport.check(file.path, response, "file", allow=(200, 206) if wanted else (200,))
        if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise BadReply(f"{where} came with a Content-Encoding, which was not requested")
        modified, found, length = last_modified(response), strong_validator(response), content_length(response)
        if response.status_code == 200:
            if wanted and not validator:  # with If-Range, the whole file is a correct answer
                self._record_refusal("answers a range with the whole file")
            return FileReply(response, 0, length, length, modified, found, is_range=False)
        assert wanted is not None
        start, stop = wanted
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        first, last, total = (int(each) for each in match.groups()) if match else (-1, -1, -1)
        if match and file.size is not None and total != file.size:
            raise Stale(f"{where} is {total} bytes now, not {file.size}")
        if match and total < stop:
            raise _NoRange  # the file is shorter than it is listed
        if (first, last + 1) != wanted or length not in (None, stop - start):
            raise _NoRange("answers with another range than the requested one")
        if validator and not found:
            raise _NoRange("sends a range without a validator")
        self._granted, self._refusals, self._without_until = True, 0, -math.inf
        return FileReply(response, start, stop, total, modified, found, is_range=True)

    def _record_refusal(self, reason: str) -> None:
        """Stop requesting ranges for a while; after several refusals if the server has granted a range before."""
        self._refusals += 1
        enough = MAX_REFUSALS if self._granted else 1
        if self._refusals >= enough:
            self._without_until = trio.current_time() + WITHOUT_RANGES_SECONDS
        if self._refusals == enough:  # not at each later attempt
            log.info("%s %s: files are read from their start, a seek waits", self.transport.url, reason)


class _Transfer:
    """The bytes of a file that has begun to arrive, over as many connections as it takes."""

    def __init__(self, downloads: Downloads, file: RemoteFile, reply: FileReply) -> None:
        self._downloads = downloads
        self._transport = downloads.transport
        self._file = file
        self._reply = reply
        self._position = reply.start
        self._skip = 0  # bytes to be received again, if a download begins anew
        # Whether the next reply can be proved to be of the same version. If not, the received bytes are hashed, come
        # again, and are hashed again, so that bytes of another version never follow those already served.
        self._provable = bool(file.has_digest or reply.validator)
        self._hash = self._hash_again = hashlib.blake2b()
        self._chunks: AsyncGenerator[bytes] | None = None  # in use once no download process writes
        self._unwritten = b""  # received in this process, but not written yet
        self._limit = SpeedLimit(self._transport.policy.timeout)  # over all connections, and the time between them
        self._retry_seconds = self._transport.policy.retry_budget  # what is left of the budget
        self._progress_at = reply.start  # the position where the budget began anew
        self._backoff = retry_backoff()

    @property
    def is_writable(self) -> bool:
        body = self._reply.response.extensions.get("file_body")
        return self._provable and body is not None and body.length is not None

    async def chunks(self) -> AsyncGenerator[bytes]:
        while True:
            try:
                body = self._transport.read_body(self._file.path, self._reply.response, self._limit)
                async with aclosing(body):
                    async for chunk in body:
                        if fresh := self._fresh(chunk):
                            yield fresh
                if self._reply.stop is None or self._position >= self._reply.stop:
                    return
                raise Unreachable(f"{self._where} ended after {self._position} of {self._reply.stop} bytes")
            except Unreachable as error:
                await self._resume(error)

    def _fresh(self, chunk: bytes) -> bytes:
        """Return the bytes of a chunk that were not received before.

        Raises Stale if the repeated bytes differ from those received before, BadReply after the end.
        """
        again, fresh = chunk[: self._skip], chunk[self._skip :]
        self._skip -= len(again)
        if not self._provable:
            self._hash_again.update(again)
            if again and not self._skip and self._hash_again.digest() != self._hash.digest():
                raise self._changed()
            self._hash.update(fresh)
        self._position += len(fresh)
        if self._reply.stop is not None and self._position > self._reply.stop:
            raise BadReply(f"{self._where}: more came than the announced {self._reply.stop} bytes")
        return fresh

    async def write(self, descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
        """Write the next bytes to a file, as `FileBody.write` does, over as many connections as it takes."""
        while length:
            by_process = self.is_writable and self._chunks is None
            write = self._write_by_process if by_process else self._write_here
            try:
                async with aclosing(write(descriptor, offset, length)) as counts:
                    async for count in counts:
                        offset, length = offset + count, length - count
                        yield count
            except Unreachable as error:
                await self._resume(error)

    async def _write_by_process(self, descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
        body, path = self._reply.response.extensions["file_body"], self._file.path
        if self._skip:
            async with aclosing(self._transport.receive(path, body.write(None, 0, self._skip), self._limit)) as skipped:
                async for count in skipped:
                    self._skip -= count
        written = self._transport.receive(path, body.write(descriptor, offset, length), self._limit)
        async with aclosing(written):
            async for count in written:
                self._position += count
                yield count

    async def _write_here(self, descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
        """Write in this process, once a download process was lost and there is no other."""
        self._chunks = self._chunks or self.chunks()  # which resumes a broken connection by itself
        while length:
            while not self._unwritten:
                if (piece := await anext(self._chunks, None)) is None:
                    raise BadReply(f"{self._where} ended after {self._position} bytes")
                self._unwritten = piece
            part = self._unwritten[:length]
            count = len(part) if descriptor is None else os.pwrite(descriptor, part, offset)
            self._unwritten = self._unwritten[count:]
            offset, length = offset + count, length - count
            yield count

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            if self._chunks is not None:
                await self._chunks.aclose()
            await self._reply.response.aclose()

    @property
    def _where(self) -> str:
        return f"{self._transport.url}{self._file.path}"

    async def _resume(self, error: Unreachable) -> None:
        """Resume on another connection where this one broke. Raises `error` if the retry budget is spent."""
        await close(self._reply.response)
        budget = self._transport.policy.retry_budget
        if self._position - self._progress_at >= LOWEST_BYTES_PER_SECOND * budget:
            self._retry_seconds, self._progress_at, self._backoff = budget, self._position, retry_backoff()
        if self._reply.size is None or self._retry_seconds <= 0:
            self._transport.give_up(error)
        began = trio.current_time()
        try:
            with self._limit.waiting():
                await self._reconnect()
        except trio.TooSlowError:
            self._transport.give_up(error)
        finally:
            self._retry_seconds -= trio.current_time() - began

    async def _reconnect(self) -> None:
        """Request the rest of the file or, without proof of its version, all of it."""
        log.info("%s broke off at byte %d, resuming", self._where, self._position)
        pause = min(self._backoff.pause(), self._retry_seconds)
        await trio.sleep(pause)
        before = self._reply
        start = self._position if self._provable else before.start
        stop = before.stop if before.is_range else None
        file, within = replace(self._file, size=before.size), self._retry_seconds - pause
        reply = await self._downloads.begin(file, start, stop, before.validator, within)
        # From here on `close` closes it. The whole file may replace the rest of a range.
        self._reply = replace(before, response=reply.response, stop=reply.stop)
        if (reply.size, reply.modified) != (before.size, before.modified):
            raise self._changed()
        if before.validator not in ("", reply.validator) or (not self._provable and reply.start != before.start):
            raise self._changed()
        self._skip = self._position - reply.start
        self._hash_again = hashlib.blake2b()

    def _changed(self) -> Stale:
        return Stale(f"{self._where} changed on the server while it was read")
