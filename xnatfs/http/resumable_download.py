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
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import NamedTuple

import httpx
import trio

from xnatfs.common.errors import BadReply, Stale, Unreachable
from xnatfs.common.sanitize import size as size_of
from xnatfs.http.retry import FIRST_PAUSE, SLOWEST, Patience, jitter
from xnatfs.http.transport import Question, Transport

log = logging.getLogger(__name__)

# Statuses of a server that supports ranges but not this one, or of a proxy that fails on them.
RANGE_REFUSED = frozenset({400, 416, 500, 501})

# So many refusals in a row, from a server that has granted ranges before, mean that it does not support them any more:
# one of several servers behind a balancer may differ, or fail for a moment.
REFUSALS = 3

# Seconds until a range is requested again. In the weeks of a mount the server may change, and a refusal costs no more
# than a request.
WITHOUT_RANGES = 600.0

# A date identifies a version if it is at least so many seconds older than the reply (RFC 9110, 8.8.2.2): within the
# second of its date a file may change again.
STRONG_AGE = 1

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
# A date in any of HTTP's forms: it is sent back, in If-Range, and persisted.
_DATE = re.compile(r"[ -~]{1,64}")
# A strong entity tag, not too long to be sent back; a weak one begins with W/.
_STRONG_TAG = re.compile(r'"[!#-~]{1,256}"')

# Called with a descriptor or None, an offset and a length: writes the next bytes to the file, or skips them (None), and
# yields the size of each part.
Into = Callable[[int | None, int, int], AsyncGenerator[int]]


@dataclass(frozen=True, slots=True)
class Download:
    """A file that has begun to arrive, from `start` to the end of the file or of the requested range.

    Either iterate over `chunks`, or call `into`, if there is one, with the place where the bytes go. Both raise
    XnatErrors; `into` also raises the OSError of the file, and may then be called again for the same bytes.
    """

    start: int
    size: int | None  # of the whole file in bytes, by the headers
    modified: str  # Last-Modified, as sent
    chunks: AsyncIterator[bytes]
    into: Into | None
    validator: str = ""  # a strong one, or ""
    framed: bool = True  # False: it ends with its connection, so that a break looks like its end
    name: bytes = b""  # from Content-Disposition, if the file was requested by its number
    whole: bool = False  # no range: it goes to the end of the file, wherever a range was requested to end


class Head(NamedTuple):
    """The length and date that the reply to a HEAD states."""

    size: int | None
    modified: str  # Last-Modified, as sent


class Promise(NamedTuple):
    """The range, length and version that the headers of a file's reply promise."""

    start: int
    stop: int | None  # the end of the bytes that follow, exclusive
    size: int | None
    modified: str
    validator: str  # a strong one, or ""
    framed: bool  # False: it ends with its connection
    is_range: bool = False


class Downloads:
    """The downloads of one server, and its support of Range as far as it is known."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._granted = False  # whether the server has ever granted a range
        self._refusals = 0  # of ranges, in a row
        self._without_until = -math.inf

    @property
    def ranged(self) -> bool | None:
        """Return whether the server supports Range; None until a range was requested, and a while after a refusal."""
        if trio.current_time() < self._without_until:
            return False
        return self._granted or None

    @asynccontextmanager
    async def open(
        self, path: str, start: int, stop: int | None, size: int | None, *, big: bool, verified: bool
    ) -> AsyncIterator[Download]:
        """Download a file, as `Xnat.download` does.

        Args:
            path: The file's path, relative to the server's URL.
            start: The first byte to request.
            stop: Where a range ends, exclusive; None for the end of the file.
            size: The known length in bytes; a range is never requested past it.
            big: A download process receives the file.
            verified: A digest decides in the end whether the bytes are of one version.
        """
        begun = await self.begin(path, start, stop, size, big)
        if begun[1].is_range and start == 0 and not (verified or begun[1].validator):
            # Nothing proves that the next range is of the same version: request the whole file at once.
            await _closed(begun[0])
            begun = await self.begin(path, 0, None, size, big)
        arrival = _Arrival(self, path, big, verified, *begun)
        try:
            async with aclosing(arrival.chunks()) as chunks:
                promise = begun[1]
                into = arrival.into if arrival.writable else None
                start, _, size, modified, validator, framed, is_range = promise
                yield Download(start, size, modified, chunks, into, validator, framed, whole=not is_range)
        finally:
            await arrival.close()

    async def begin(
        self,
        path: str,
        start: int,
        stop: int | None,
        size: int | None,
        big: bool,
        within: float = math.inf,
        validator: str = "",
    ) -> tuple[httpx.Response, Promise]:
        """Request a file, or a range of it if `size` or `stop` is known.

        A server without Range answers a range from the first byte with the whole file, so that it costs nothing to
        request one.

        Args:
            path: The file's path, relative to the server's URL.
            start: The first byte to request.
            stop: Where the range ends, exclusive; None for the end of the file.
            size: The known length in bytes, or None.
            big: A download process receives the file.
            within: The retry budget, in seconds.
            validator: A strong validator: the range is of the version that has it, or the whole file comes.

        Returns:
            The reply, its body not yet read, and what its headers promise.
        """
        headers = {}
        end = min((each for each in (stop, size) if each is not None), default=0)
        ranging = (start > 0 or stop is not None) and start < end and self.ranged is not False
        if ranging:
            headers["Range"] = f"bytes={start}-{end - 1}"
            if validator:
                headers["If-Range"] = validator
        question = Question("GET", path, "file", headers=headers, big=big)
        response = await self.transport.exchange(question, within)
        begun: Promise | str = ""
        try:
            begun = await self._promise(path, response, (start, end) if ranging else None, size, validator)
        finally:
            if isinstance(begun, str):
                await _closed(response)
        if isinstance(begun, str):
            whole = await self.begin(path, 0, None, size, big, within)
            if begun:
                self._refused(begun)  # only now: if the whole file is unavailable, too, the range was not the reason
            return whole
        return response, begun

    async def _promise(
        self, path: str, response: httpx.Response, asked: tuple[int, int] | None, size: int | None, validator: str
    ) -> Promise | str:
        """Return the promise of a reply or, if it lacks the requested range, the reason as text.

        The reason is "" if there is no such range, because the file is shorter than it is listed.
        """
        where = f"{self.transport.url}{path}"
        if asked and response.status_code in RANGE_REFUSED:
            return f"answers {response.status_code} to a range"
        await self.transport.check(path, response, "file", allow=(200, 206) if asked else (200,))
        if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise BadReply(f"{where} came encoded, though it was asked for as it is")
        modified, found, length = last_modified(response), strong_validator(response), content_length(response)
        if response.status_code == 200:
            if asked and not validator:  # with If-Range, the whole file is a correct answer
                self._refused("answers a range with the whole file")
            return Promise(0, length, length, modified, found, is_framed(response))
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match and size is not None and int(match[3]) != size:
            raise Stale(f"{where} is {match[3]} bytes now, not {size}")
        if match and asked and int(match[3]) < asked[1]:
            return ""
        if not match or (int(match[1]), int(match[2]) + 1) != asked or length not in (None, asked[1] - asked[0]):
            return "answers another range than was asked for"
        if validator and not found:
            return "does not say of which version a range is"
        self._granted, self._refusals, self._without_until = True, 0, -math.inf
        return Promise(*asked, int(match[3]), modified, found, framed=True, is_range=True)

    def _refused(self, why: str) -> None:
        """Stop requesting ranges for a while; after several refusals if the server has granted a range before."""
        self._refusals += 1
        enough = REFUSALS if self._granted else 1
        if self._refusals >= enough:
            self._without_until = trio.current_time() + WITHOUT_RANGES
        if self._refusals == enough:  # not at each later attempt
            log.info("%s %s: files are read from their start, a seek waits", self.transport.url, why)


class _Arrival:
    """The bytes of a file that has begun to arrive, over as many connections as it takes."""

    def __init__(
        self,
        downloads: Downloads,
        path: str,
        big: bool,
        verified: bool,
        response: httpx.Response,
        promise: Promise,
    ) -> None:
        self._downloads = downloads
        self._transport = downloads.transport
        self._path = path
        self._big = big
        self._response = response
        self._promise = promise
        self._position = promise.start
        self._skip = 0  # bytes to come again, if a download begins anew
        # Whether the next reply can be proved to be of the same version. If not, the received bytes are hashed, come
        # again, and are hashed again, so that bytes of another version never follow those already served.
        self._provable = bool(verified or promise.validator)
        self._hash = self._hash_again = hashlib.blake2b()
        self._by_hand: AsyncGenerator[bytes] | None = None  # the chunks, once no download process writes any more
        self._rest = b""  # received in this process, but not written yet
        self._left = self._transport.patience  # the retry budget in seconds, over all connections
        self._counted = promise.start  # bytes up to here were added to the budget
        self._patience = Patience(self._transport.timeout)  # the timeout of this connection

    @property
    def writable(self) -> bool:
        body = self._response.extensions.get("file_body")
        return self._provable and body is not None and body.length is not None

    async def chunks(self) -> AsyncGenerator[bytes]:
        while True:
            try:
                async with aclosing(self._transport.raw(self._path, self._response, patience=self._patience)) as body:
                    async for chunk in body:
                        if fresh := self._fresh(chunk):
                            yield fresh
                if self._promise.stop is None or self._position >= self._promise.stop:
                    return
                raise Unreachable(f"{self._where} ended after {self._position} of {self._promise.stop} bytes")
            except Unreachable as error:
                await self._take_up_again(error)

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
        if self._promise.stop is not None and self._position > self._promise.stop:
            raise BadReply(f"{self._where}: more came than the announced {self._promise.stop} bytes")
        return fresh

    async def into(self, descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
        while length:
            placed = self._written if self.writable and self._by_hand is None else self._put
            try:
                async with aclosing(placed(descriptor, offset, length)) as counts:
                    async for count in counts:
                        offset, length = offset + count, length - count
                        yield count
            except Unreachable as error:
                await self._take_up_again(error)

    async def _written(self, descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
        """Have the download process write the next bytes."""
        body, patience = self._response.extensions["file_body"], self._patience
        async with aclosing(self._transport.written(self._path, body, None, 0, self._skip, patience)) as skipped:
            async for count in skipped:
                self._skip -= count
        async with aclosing(self._transport.written(self._path, body, descriptor, offset, length, patience)) as written:
            async for count in written:
                self._position += count
                yield count

    async def _put(self, descriptor: int | None, offset: int, length: int) -> AsyncGenerator[int]:
        """Write the next bytes in this process, once a download process was lost and there is no other.

        `chunks` resumes a broken connection by itself.
        """
        self._by_hand = self._by_hand or self.chunks()
        while length:
            self._rest = self._rest or await anext(self._by_hand, b"")
            if not self._rest:
                raise BadReply(f"{self._where} ended after {self._position} bytes")
            taken = self._rest[:length]
            count = len(taken) if descriptor is None else os.pwrite(descriptor, taken, offset)
            self._rest = self._rest[count:]
            offset, length = offset + count, length - count
            yield count

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            if self._by_hand is not None:
                await self._by_hand.aclose()
            await self._response.aclose()

    @property
    def _where(self) -> str:
        return f"{self._transport.url}{self._path}"

    async def _take_up_again(self, error: Unreachable) -> None:
        """Resume on another connection where this one broke. Raises `error` if the retry budget is spent."""
        await _closed(self._response)
        transport, patience = self._transport, self._patience
        self._left = min(transport.patience, patience.left, self._left - patience.waited + self._bought())
        if self._promise.size is None or self._left <= 0:
            transport.give_up(error)
        log.info("%s broke off at byte %d, taking it up again", self._where, self._position)
        began = trio.current_time()
        await trio.sleep(min(FIRST_PAUSE * jitter(), self._left))
        promise, within = self._promise, self._left - (trio.current_time() - began)
        start = self._position if self._provable else promise.start
        stop = promise.stop if promise.is_range else None
        resumed = await self._downloads.begin(
            self._path, start, stop, promise.size, self._big, within, promise.validator
        )
        self._response, again = resumed  # from here on `close` closes it
        if (again.size, again.modified) != (promise.size, promise.modified):
            raise self._changed()
        if promise.validator not in ("", again.validator) or (not self._provable and again.start != promise.start):
            raise self._changed()
        self._promise = promise._replace(stop=again.stop)  # the whole file may replace the rest of a range
        self._skip = self._position - again.start
        self._hash_again = hashlib.blake2b()
        self._left -= trio.current_time() - began
        self._patience = Patience(transport.timeout, transport.timeout - transport.patience + self._left)

    def _changed(self) -> Stale:
        return Stale(f"{self._where} changed on the server while it was read")

    def _bought(self) -> float:
        """Return the seconds that the bytes new since the last call add to the budget; repeated bytes add none."""
        fresh, self._counted = self._position - self._counted, self._position
        return fresh / SLOWEST


async def _closed(response: httpx.Response) -> None:
    with trio.CancelScope(shield=True):
        await response.aclose()


def content_length(response: httpx.Response) -> int | None:
    return size_of(response.headers.get("content-length", ""))


def is_framed(response: httpx.Response) -> bool:
    """Return whether a body is delimited by a length or by chunks; else it ends with its connection."""
    return content_length(response) is not None or "transfer-encoding" in response.headers


def last_modified(response: httpx.Response) -> str:
    """Return Last-Modified as it was sent; '' if it is no date."""
    value = response.headers.get("last-modified", "")
    return value if _DATE.fullmatch(value) else ""


def strong_validator(response: httpx.Response) -> str:
    """Return a strong validator of a reply, to be sent in If-Range; '' if there is none."""
    tag: str = response.headers.get("etag", "")
    if _STRONG_TAG.fullmatch(tag):
        return tag
    modified = last_modified(response)
    changed, sent = _seconds(modified), _seconds(response.headers.get("date", ""))
    if sent is None:  # the time of receipt counts then (RFC 9110, 6.6.1)
        sent = time.time()
    return modified if changed is not None and sent - changed >= STRONG_AGE else ""


def _seconds(date: str) -> float | None:
    """Parse an HTTP date to seconds since the epoch; None if it is no date."""
    try:
        parsed = parsedate_tz(date)
        return mktime_tz(parsed) if parsed else None
    except (ValueError, OverflowError, TypeError, IndexError):  # an untrusted date may contain any number
        return None
