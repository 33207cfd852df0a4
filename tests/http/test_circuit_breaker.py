"""Test that an outage is detected once, reported once, and over in time, and that nothing else is taken for one."""

import logging
from collections.abc import AsyncIterator

import httpx
import pytest
import trio
import trio.testing

from tests.http.test_deadlines import TIMEOUT, Dripping, Site, connected, fails, read, silent
from tests.rest.test_client import table
from xnatfs.common.errors import NoRoute, TimedOut, Unavailable, Unreachable, XnatError
from xnatfs.http.circuit_breaker import (
    FIRST_PROBE_PAUSE_SECONDS,
    LOG_PAUSE_SECONDS,
    LONGEST_PROBE_PAUSE_SECONDS,
    SHORT_PROBE_SECONDS,
)
from xnatfs.http.login_request import PROBE_PATH

# From a server that is back to one that is used again, at most.
BACK = 5.0
# From doubt to its end, at most.
VERDICT = SHORT_PROBE_SECONDS + 1.25 * FIRST_PROBE_PAUSE_SECONDS


class Fragile(Site):
    """An XNAT that is unavailable from time to time: it refuses, is silent, or a gateway answers for it."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.away = ""
        self.takes = 0.0  # seconds for an answer
        self.release = trio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.away:
            self.asked.append((trio.current_time(), request.url.path))
        match self.away:
            case "refused":
                raise httpx.ConnectError("refused")
            case "silent":
                await trio.sleep_forever()
            case "gateway":
                return httpx.Response(502)
        return await super().__call__(request)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        await trio.sleep(self.takes)
        return table([{"ID": "P"}])

    def probes(self) -> list[float]:
        return [at for at, path in self.asked if path == PROBE_PATH]

    def others(self) -> list[str]:
        return [path for _, path in self.asked if path != PROBE_PATH]


KINDS: list[tuple[str, type[XnatError]]] = [("refused", NoRoute), ("silent", TimedOut), ("gateway", Unavailable)]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("away", "kind"), KINDS)
async def test_after_the_first_wait_requests_fail_at_once_and_are_not_sent(away, kind, autojump_clock):
    server = Fragile()
    async with connected(server) as xnat:
        await xnat.projects()
        server.away = away
        assert await fails(kind, xnat.projects) == pytest.approx(TIMEOUT, rel=0.2)
        await trio.sleep(VERDICT)
        server.asked.clear()
        for _ in range(100):
            assert await fails(kind, xnat.projects) == 0
            assert await fails(kind, lambda: read(xnat)) == 0
        assert server.others() == []


@pytest.mark.parametrize(
    ("away", "first", "then"),
    [("refused", NoRoute, NoRoute), ("silent", Unreachable, TimedOut), ("gateway", Unavailable, Unavailable)],
)
async def test_what_came_of_a_list_before_the_server_went_does_not_speak_for_it(away, first, then, autojump_clock):
    """Request the list again, in vain: that silence counts."""
    server = Fragile()

    class Leaving(Dripping):
        async def __anext__(self) -> bytes:
            try:
                return await super().__anext__()
            except StopAsyncIteration:
                server.away = away
                raise httpx.ReadError("connection reset") from None

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Leaving([b" " * 1000] * 5, 0.5))

    server.answer = answer
    async with connected(server) as xnat:
        assert await fails(first, xnat.projects) == pytest.approx(TIMEOUT, rel=0.2)
        await trio.sleep(VERDICT)
        assert await fails(then, xnat.projects) == 0


@pytest.mark.parametrize(("away", "kind"), KINDS)
async def test_when_the_server_is_back_so_are_we(away, kind, autojump_clock):
    server = Fragile()
    for outage in (1.0, 60.0, 600.0):
        async with connected(server) as xnat:
            server.away = away
            await fails(kind, xnat.projects)
            await trio.sleep(outage)
            server.away = ""
            await trio.sleep(BACK)
            assert len(await xnat.projects()) == 1


async def test_a_hundred_readers_of_a_dead_server(autojump_clock, caplog):
    """Request files eight at a time: a request that waits for a place fails as soon as the active ones do."""
    server = Fragile()
    took: list[float] = []

    async def reader() -> None:
        took.append(await fails(TimedOut, lambda: read(xnat)))

    async with connected(server) as xnat:
        await xnat.projects()
        server.away = "silent"
        server.asked.clear()
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(reader)
        assert max(took) <= TIMEOUT + VERDICT
        assert max(took[100:]) == 0
        assert len(server.others()) == 8
        server.away = ""
        await trio.sleep(BACK)
        await xnat.projects()
    begins, ends = lines(caplog)
    assert "the server is unreachable: http://xnat.example.org does not answer /data/" in begins
    assert "is reachable again after" in ends


async def test_the_server_is_asked_gently_while_it_is_away(autojump_clock):
    server = Fragile()
    async with connected(server) as xnat:
        server.away = "refused"
        await fails(NoRoute, xnat.projects)
        server.asked.clear()
        await trio.sleep(300)
    pauses = [after - before for before, after in zip(server.probes()[10:], server.probes()[11:], strict=False)]
    # One more from time to time is the patient one.
    assert len(pauses) <= 300 / (0.75 * LONGEST_PROBE_PAUSE_SECONDS) + 300 / TIMEOUT
    assert max(pauses) <= 1.25 * LONGEST_PROBE_PAUSE_SECONDS
    assert len({round(pause, 3) for pause in pauses}) > len(pauses) / 2, "not in step with others"


async def test_a_server_that_is_very_slow_is_not_away(autojump_clock):
    """Give the probe the timeout of any other request."""
    server = Fragile()
    async with connected(server) as xnat:
        server.away = "refused"
        await fails(NoRoute, xnat.projects)
        await trio.sleep(VERDICT)
        server.away, server.takes = "", 0.5 * TIMEOUT
        await trio.sleep(2 * TIMEOUT)
        assert len(await xnat.projects()) == 1


async def test_one_request_that_is_not_answered_is_no_outage(autojump_clock, caplog):
    async def answer(request: httpx.Request) -> httpx.Response:
        return await silent(request) if request.url.path.endswith("/scans") else table([{"ID": "P"}])

    async with connected(Site(answer)) as xnat:
        for _ in range(3):
            assert await fails(TimedOut, lambda: xnat.scans("E")) == pytest.approx(TIMEOUT)
            assert len(await xnat.projects()) == 1, "not even for a moment"
    told = lines(caplog)
    assert len(told) <= 1 + 3 * TIMEOUT / LOG_PAUSE_SECONDS
    assert all("the server is reachable, but" in line for line in told)


async def test_bytes_that_come_are_a_sign_of_life(autojump_clock, caplog):
    """Count arriving bytes as a sign of life, on a line so full that no other reply gets through."""

    async def answer(request: httpx.Request) -> httpx.Response:
        if "/files/" in request.url.path:
            return httpx.Response(200, stream=Dripping([bytes(10_000)] * int(3 * TIMEOUT), 1.0))
        return await silent(request)

    async with connected(Site(answer)) as xnat, trio.open_nursery() as nursery:
        nursery.start_soon(read, xnat)
        await trio.testing.wait_all_tasks_blocked()
        assert await fails(TimedOut, xnat.projects) == pytest.approx(TIMEOUT)
        assert await fails(TimedOut, xnat.projects) == pytest.approx(TIMEOUT), "it was tried"
    assert not any("away" in line for line in lines(caplog))


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_asks_to_be_left_alone_for_a_while_is_not_away(status, autojump_clock, caplog):
    busy = True

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers={"retry-after": "20"}) if busy else table([{"ID": "P"}])

    server = Site(answer)
    async with connected(server) as xnat:
        assert await fails(Unavailable, xnat.projects) == pytest.approx(20)
        assert len(server.asked) == 2
        busy = False
        assert len(await xnat.projects()) == 1
    assert not any("away" in line for line in lines(caplog))


async def test_a_download_under_way_goes_on_after_a_short_silence_and_ends_the_doubt(autojump_clock, caplog):
    """Close the breaker when bytes arrive again, after another request timed out and the probe had no answer."""

    class Halting(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            await trio.sleep(0.1)
            yield bytes(1000)
            await trio.sleep(TIMEOUT - 1)
            yield bytes(1000)

    async def answer(request: httpx.Request) -> httpx.Response:
        if "/files/" in request.url.path:
            return httpx.Response(200, stream=Halting())
        return await silent(request)

    got: list[bytes] = []

    async def download() -> None:
        got.append(await read(xnat))

    async with connected(Site(answer)) as xnat, trio.open_nursery() as nursery:
        nursery.start_soon(download)
        await fails(TimedOut, xnat.projects)
        await trio.sleep(1)
    assert len(got[0]) == 2000
    assert not any("away" in line for line in lines(caplog))


@pytest.mark.parametrize("what", ["list", "file"])
async def test_a_body_that_stops_casts_doubt_as_well(what, autojump_clock, caplog):
    """Fail the next request sooner than by another full timeout."""
    stopped = False

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal stopped
        if stopped:
            return await silent(request)
        stopped = True
        return httpx.Response(200, stream=Dripping([b"[" * 100_000], 0.0, ends=False))

    async with connected(Site(answer)) as xnat:
        ask = xnat.projects if what == "list" else lambda: read(xnat)
        assert await fails(TimedOut, ask) == pytest.approx(TIMEOUT)
        assert await fails(TimedOut, xnat.projects) <= VERDICT
    assert ["is unreachable" in line for line in lines(caplog)] == [True]


async def test_a_fault_of_our_own_in_finding_out_ends_nothing(autojump_clock, caplog):
    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == PROBE_PATH:
            raise RuntimeError("a bug")
        return await silent(request)

    async with connected(Site(answer)) as xnat:
        await fails(TimedOut, xnat.projects)
        assert await fails(TimedOut, xnat.projects) <= VERDICT
    assert "probing the server" in caplog.text


async def test_whoever_asks_while_it_is_in_doubt_hears_the_verdict(autojump_clock):
    server = Fragile()
    async with connected(server) as xnat:
        await xnat.projects()
        server.away = "silent"
        await fails(TimedOut, xnat.projects)
        assert await fails(TimedOut, xnat.projects) == pytest.approx(VERDICT, abs=FIRST_PROBE_PAUSE_SECONDS)


async def test_an_outage_that_is_shorter_than_the_patience_is_nobodys_concern(autojump_clock, caplog):
    server = Fragile()
    async with connected(server) as xnat:
        server.away = "refused"
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(xnat.projects)
            await trio.sleep(0.5 * TIMEOUT)
            server.away = ""
    assert lines(caplog) == []


async def test_repeats_are_few_and_not_in_step(autojump_clock):
    """Repeat in one place only: no other layer repeats a failed request."""
    server = Fragile()
    async with connected(server) as xnat:
        await xnat.projects()
        server.away = "gateway"
        server.asked.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(fails, Unavailable, xnat.projects)
        at = [at for at, path in server.asked if path != PROBE_PATH]
    assert len(at) <= 10 * 12
    assert len({round(each, 4) for each in at}) > 0.8 * len(at) - 10


async def test_a_change_is_not_made_twice(autojump_clock):
    sent: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.method)
        raise httpx.ReadError("reset")

    async with connected(Site(answer)) as xnat:
        with pytest.raises(Unreachable, match="may have been carried out"):
            await xnat.change("POST", "/data/services/archive")
    assert sent == ["POST"]


async def test_the_question_is_asked_in_our_session(autojump_clock):
    """Send the probe with the session cookie, as each without one would open another session on the server."""
    cookies: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == PROBE_PATH:
            cookies.append(request.headers.get("cookie", ""))
            return httpx.Response(200, json={"version": "1.8.11"})
        return await silent(request)

    async with connected(Site(answer)) as xnat:
        await fails(TimedOut, xnat.projects)
        await trio.sleep(1)
    assert cookies == [f"JSESSIONID={'A' * 32}"]


def test_it_is_over_when_it_is_said_to_be():
    assert SHORT_PROBE_SECONDS + 1.25 * LONGEST_PROBE_PAUSE_SECONDS < BACK
