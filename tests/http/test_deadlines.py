"""Test that every request ends in time, in virtual time to the second, however a server delays it."""

import errno
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from tests.rest.test_client import FILE, ITEM, table
from tests.support.wire import Wire
from xnatfs.common.errnos import errno_of
from xnatfs.common.errors import BadReply, NoRoute, NotFound, TimedOut, Unavailable, Unreachable, XnatError
from xnatfs.http.documents import MAX_BODY_ATTEMPTS
from xnatfs.http.retry import LOWEST_BYTES_PER_SECOND, SpeedLimit
from xnatfs.http.transport import CHANGE_TIMEOUT_SECONDS
from xnatfs.rest.client import Xnat, open_xnat
from xnatfs.rest.models import FileRow
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials

TIMEOUT = 30.0
LOGIN = "/data/JSESSION"
DATED = {"last-modified": "Tue, 02 Jan 2024 03:04:05 GMT"}

Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Site:
    """An XNAT that lets any user in, answers as a test wants, and records each request with its time."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[float, str]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == LOGIN:
            return httpx.Response(200, text="A" * 32)
        self.asked.append((trio.current_time(), request.url.path))
        return await self.answer(request)


@asynccontextmanager
async def connected(app: Callable[[httpx.Request], Awaitable[httpx.Response]]) -> AsyncIterator[Xnat]:
    async with open_xnat(Config("http://xnat.example.org", timeout=TIMEOUT), Credentials("u", "p"), Wire(app)) as xnat:
        yield xnat


class Dripping(httpx.AsyncByteStream):
    """Pieces, each after so many seconds; then nothing for ever, or the end. It is no generator: it needs no close."""

    def __init__(self, pieces: list[bytes], pause: float, *, ends: bool = True) -> None:
        self._pieces = iter(pieces)
        self._pause = pause
        self._ends = ends

    def __aiter__(self) -> "Dripping":
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            await trio.sleep(self._pause)
            return piece
        if not self._ends:
            await trio.sleep_forever()
        raise StopAsyncIteration


async def silent(request: httpx.Request) -> httpx.Response:
    await trio.sleep_forever()
    raise AssertionError


async def read(xnat: Xnat, file: FileRow = FILE) -> bytes:
    async with xnat.download(ITEM, file) as download:
        assert download is not None
        return b"".join([chunk async for chunk in download.chunks])


async def fails(kind: type[XnatError], ask: Callable[[], Awaitable[object]]) -> float:
    """Return how long the call takes to fail with this error."""
    began = trio.current_time()
    with pytest.raises(kind) as caught:
        await ask()
    assert type(caught.value) is kind
    return trio.current_time() - began


# -- until the answer begins -------------------------------------------------------------------------------------


async def test_a_server_that_says_nothing(autojump_clock):
    async with connected(Site(silent)) as xnat:
        assert await fails(TimedOut, xnat.projects) == pytest.approx(TIMEOUT)


async def test_a_try_that_is_begun_just_before_the_end_waits_no_longer(autojump_clock, monkeypatch):
    monkeypatch.setattr("xnatfs.http.retry.random.uniform", lambda low, high: low)  # short pauses: one ends in time

    async def answer(request: httpx.Request) -> httpx.Response:
        if trio.current_time() - began < 0.8 * TIMEOUT:
            return httpx.Response(503)
        return await silent(request)

    site = Site(answer)
    async with connected(site) as xnat:
        began = trio.current_time()
        assert await fails(TimedOut, xnat.projects) == pytest.approx(TIMEOUT)
    assert site.asked[-1][0] - began >= 0.8 * TIMEOUT


async def test_a_login_a_request_and_a_look_at_the_session_have_one_time_together(autojump_clock):
    async def slow(request: httpx.Request) -> httpx.Response:
        await trio.sleep(0.4 * TIMEOUT)
        if request.url.path == LOGIN:
            return httpx.Response(200, text="A" * 32)
        if request.url.path.endswith("/username"):
            return httpx.Response(200, text="u")
        return httpx.Response(200, html="<html>")  # is the session lost?

    async with connected(slow) as xnat:
        assert await fails(TimedOut, xnat.projects) == pytest.approx(TIMEOUT)


async def test_a_login_that_hangs_holds_up_nobody_longer(autojump_clock):
    took: list[float] = []

    async def wait(xnat: Xnat) -> None:
        took.append(await fails(TimedOut, xnat.projects))

    async with connected(silent) as xnat, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(wait, xnat)
    assert took == [pytest.approx(TIMEOUT)] * 5


async def test_the_mounts_first_login_ends_too(autojump_clock):
    async def slow(request: httpx.Request) -> httpx.Response:
        await trio.sleep(0.4 * TIMEOUT)
        return httpx.Response(405 if request.method == "POST" else 404)  # by GET, then: is it an XNAT at all?

    async with connected(slow) as xnat:
        assert await fails(TimedOut, xnat.log_in) == pytest.approx(TIMEOUT)


async def test_a_server_that_cannot_say_who_we_are_has_not_forgotten_it(autojump_clock):
    """Keep the session: a page in place of data raises doubt, and the query for the session's user meets a gateway."""
    asked: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path.rpartition("/")[2])
        if asked[-1] == "username":
            return httpx.Response(502)
        return httpx.Response(200, html="<html>") if len(asked) == 1 else table([{"ID": "P"}])

    async with connected(Site(answer)) as xnat:
        assert len(await xnat.projects()) == 1
        assert xnat.login.logins == 1
    assert asked == ["projects", "username", "projects"]


async def test_retry_after_beyond_the_end_is_not_waited_for(autojump_clock):
    async def busy(request: httpx.Request) -> httpx.Response:
        return httpx.Response(429, headers={"retry-after": "25"})

    site = Site(busy)
    async with connected(site) as xnat:
        assert await fails(Unavailable, xnat.projects) == pytest.approx(25)
    assert len(site.asked) == 2


# -- bodies ------------------------------------------------------------------------------------------------------


def dripping(pieces: list[bytes], pause: float, *, ends: bool = True) -> Answer:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Dripping(pieces, pause, ends=ends))

    return answer


async def test_a_list_of_which_a_byte_comes_from_time_to_time(autojump_clock):
    async with connected(Site(dripping([b" "] * 10_000, 1.0))) as xnat:
        assert await fails(TimedOut, xnat.projects) == pytest.approx(TIMEOUT, abs=1.1)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_error_page_of_which_a_byte_comes_from_time_to_time(autojump_clock, method):
    """Report the status without the page's message."""

    async def missing(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, stream=Dripping([b" "] * 10_000, 1.0))

    async def call() -> None:
        if method == "GET":
            await xnat.projects()
        assert (await xnat.change("POST", "/data/x")).status == 404
        raise NotFound("the answer to a change has a status, and is no exception")

    async with connected(Site(missing)) as xnat:
        assert await fails(NotFound, call) == pytest.approx(
            TIMEOUT if method == "GET" else CHANGE_TIMEOUT_SECONDS, abs=1.1
        )


async def test_a_list_that_stops_in_the_middle_is_not_asked_for_again(autojump_clock):
    """Give up, because the time of the list is over."""
    site = Site(dripping([bytes(100)], 0.0, ends=False))
    async with connected(site) as xnat:
        assert await fails(TimedOut, xnat.projects) == pytest.approx(TIMEOUT)
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    ("slow", "asked"),
    [
        (0.0, MAX_BODY_ATTEMPTS),
        (0.3 * TIMEOUT, MAX_BODY_ATTEMPTS),
        (0.4 * TIMEOUT, MAX_BODY_ATTEMPTS),
        (TIMEOUT - 1, 2),
    ],
)
async def test_a_list_that_breaks_off_each_time_is_given_up_in_time(autojump_clock, slow, asked):
    """Give up in time although each attempt starts over, and report the break rather than a late answer."""

    class Breaking(Dripping):
        async def __anext__(self) -> bytes:
            try:
                return await super().__anext__()
            except StopAsyncIteration:
                raise httpx.ReadError("connection reset") from None

    async def answer(request: httpx.Request) -> httpx.Response:
        await trio.sleep(slow)
        return httpx.Response(200, stream=Breaking([b" " * 100_000] * 10, 0.01))

    site = Site(answer)
    async with connected(site) as xnat:
        took = await fails(Unreachable, xnat.projects)
    assert took == pytest.approx(min(3 * slow + 1, TIMEOUT), abs=0.5)
    assert [path for _, path in site.asked] == ["/data/projects"] * asked


async def test_a_file_of_which_a_byte_comes_from_time_to_time(autojump_clock):
    async with connected(Site(dripping([b" "] * 10_000, 1.0))) as xnat:
        assert await fails(TimedOut, lambda: read(xnat)) == pytest.approx(TIMEOUT, abs=1.1)


async def test_a_body_that_stops(autojump_clock):
    async with connected(Site(dripping([bytes(100_000)], 0.0, ends=False))) as xnat:
        assert await fails(TimedOut, lambda: read(xnat)) == pytest.approx(TIMEOUT)


async def test_a_line_that_is_slow_goes_on_for_as_long_as_it_takes(autojump_clock):
    """Fetch 8 MiB at a tenth of 100 KB/s, as when ten downloads share it."""
    content = [bytes(10_000)] * (8 * 2**20 // 10_000)
    async with connected(Site(dripping(content, 1.0))) as xnat:
        began = trio.current_time()
        assert len(await read(xnat)) == sum(map(len, content))
        assert trio.current_time() - began > 10 * TIMEOUT


async def test_who_does_not_take_what_has_come_is_not_held_against_the_server(autojump_clock):
    async with connected(Site(dripping([b"x"] * 5, 0.1))) as xnat:
        async with xnat.download(ITEM, FILE) as download:
            assert download is not None
            async for _ in download.chunks:
                await trio.sleep(2 * TIMEOUT)


async def test_a_list_that_does_not_end(autojump_clock, monkeypatch):
    monkeypatch.setattr("xnatfs.rest.lists.LIST_LIMITS", (100_000, 1_000_000))
    row = b'{"ID": "P"}, ' * 100
    async with connected(Site(dripping([b'{"ResultSet": {"Result": [', *[row] * 1000], 0.0))) as xnat:
        with pytest.raises(BadReply, match="too much"):
            await xnat.projects()


async def test_a_document_that_does_not_end(autojump_clock, monkeypatch):
    monkeypatch.setattr("xnatfs.http.documents.MAX_DOCUMENT_BYTES", 100_000)
    async with connected(Site(dripping([b"x" * 10_000] * 100, 0.0))) as xnat:
        with pytest.raises(BadReply, match="is larger than 100000 bytes"):
            await xnat.item("projects", "P")


@pytest.mark.parametrize("ranged", [True, False])
async def test_connections_that_bring_a_byte_each(ranged, autojump_clock):
    """End connections that each make progress, and all together do not."""
    position = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal position
        position += 1
        headers = {"content-length": "1000"}
        if ranged and (wanted := request.headers.get("range")):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers = {"content-length": str(1000 - start), "content-range": f"bytes {start}-999/1000"}
        return httpx.Response(
            206 if "content-range" in headers else 200,
            headers=headers,
            stream=Dripping([b"x" if ranged else b"x" * position], 0.0),
        )

    async with connected(Site(answer)) as xnat:
        began = trio.current_time()
        with pytest.raises(Unreachable):
            await read(xnat)
        assert TIMEOUT / 2 < trio.current_time() - began <= TIMEOUT + 1


async def test_a_server_that_goes_still_under_a_download_has_the_timeout_to_come_back(autojump_clock):
    content = bytes(range(256)) * 100
    away_until = 0.0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal away_until
        if not away_until:
            away_until = trio.current_time() + 0.8 * TIMEOUT
            headers = {"content-length": str(len(content)), **DATED}
            return httpx.Response(200, headers=headers, stream=Dripping([content[:99]], 0))
        if trio.current_time() < away_until:
            raise httpx.ConnectError("refused")
        headers = {"content-range": f"bytes 99-{len(content) - 1}/{len(content)}", **DATED}
        return httpx.Response(206, headers=headers, content=content[99:])

    async with connected(Site(answer)) as xnat:
        assert await read(xnat) == content


@pytest.mark.parametrize(("piece", "is_enough"), [(int(1.1 * LOWEST_BYTES_PER_SECOND * TIMEOUT), True), (1000, False)])
async def test_the_retry_budget_begins_anew_with_progress(piece, is_enough, autojump_clock):
    """Break each connection after so many bytes, and refuse the next one for more than a third of the budget."""
    content = bytes(range(256)) * (5 * piece // 256)
    refused_until = 0.0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal refused_until
        if trio.current_time() < refused_until:
            raise httpx.ConnectError("refused")
        start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        refused_until = trio.current_time() + 0.4 * TIMEOUT
        headers = {"content-length": str(len(content) - start), **DATED}
        if start:
            headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return httpx.Response(206 if start else 200, headers=headers, stream=Dripping([content[start:][:piece]], 0))

    async with connected(Site(answer)) as xnat:
        if is_enough:
            assert await read(xnat) == content
        else:
            with pytest.raises(Unreachable):  # refused or broken, as the random pauses have it
                await read(xnat)


async def test_a_period_is_used_up_by_waiting_and_begins_anew_with_bytes(autojump_clock):
    limit = SpeedLimit(10.0)
    for received in (4 * LOWEST_BYTES_PER_SECOND, 6 * LOWEST_BYTES_PER_SECOND, 9 * LOWEST_BYTES_PER_SECOND):
        with limit.waiting():
            await trio.sleep(4)
        limit.received(received)
        await trio.sleep(100)
    began = trio.current_time()
    with pytest.raises(trio.TooSlowError):
        with limit.waiting():
            await trio.sleep(11)
    assert trio.current_time() - began == pytest.approx(6)
    with pytest.raises(trio.TooSlowError):
        with limit.waiting():
            await trio.sleep(1)


# -- what it is called -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (httpx.ConnectError("Name or service not known"), errno.EHOSTUNREACH),
        (httpx.ConnectError("refused"), errno.EHOSTUNREACH),
        (httpx.ProxyError("none"), errno.EHOSTUNREACH),
        (httpx.ConnectTimeout(""), errno.ETIMEDOUT),
        (httpx.ReadTimeout(""), errno.ETIMEDOUT),
        (httpx.ReadError("reset"), errno.EIO),
        (httpx.RemoteProtocolError("no HTTP"), errno.EIO),
        (503, errno.EIO),
        (429, errno.EIO),
        (500, errno.EIO),
        (403, errno.EACCES),
        (404, errno.ENOENT),
    ],
)
async def test_a_program_hears_what_is_wrong(error, number, autojump_clock):
    async def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(error, int):
            return httpx.Response(error)
        raise error

    async with connected(Site(answer)) as xnat:
        with pytest.raises(XnatError) as caught:
            await xnat.projects()
    assert errno.errorcode[errno_of(caught.value)] == errno.errorcode[number]


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (ssl.SSLError(1, "CERTIFICATE_VERIFY_FAILED"), NoRoute),
        (OSError(errno.ETIMEDOUT, ""), TimedOut),
        (OSError(errno.EHOSTUNREACH, ""), NoRoute),
        (OSError(errno.ECONNRESET, ""), Unreachable),
    ],
)
@pytest.mark.parametrize("where", ["head", "body"])
async def test_what_the_system_says_of_a_connection_counts(cause, kind, where, autojump_clock):
    if isinstance(cause, ssl.SSLError) and where == "body":
        return

    def broken() -> Exception:
        error: Exception = httpx.ReadError("") if not isinstance(cause, ssl.SSLError) else httpx.ConnectError("")
        error.__cause__ = cause
        return error

    class Breaking(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"["
            raise broken()

    async def answer(request: httpx.Request) -> httpx.Response:
        if where == "body":
            return httpx.Response(200, stream=Breaking())
        raise broken()

    async with connected(Site(answer)) as xnat:
        await fails(kind, xnat.projects)


async def test_lists_have_the_shape_the_tests_think(autojump_clock):
    async def answer(request: httpx.Request) -> httpx.Response:
        return table([{"ID": "P"}])

    async with connected(Site(answer)) as xnat:
        assert [project.id for project in await xnat.projects()] == ["P"]
