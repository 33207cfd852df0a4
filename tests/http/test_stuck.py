"""Test the deadlines on real sockets and with real processes: whatever hangs, its caller gets an error."""

import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.download_worker.test_process import OK, Act, ScriptedServer, answering, children, descriptor, silent_after
from tests.rest.test_client import ITEM
from tests.support.content_fakes import BIG, MiB
from xnatfs.common.errors import BadReply, TimedOut, Unreachable
from xnatfs.download_worker.pool import connect
from xnatfs.http.messages import HttpRequest
from xnatfs.rest.client import Xnat, open_xnat
from xnatfs.rest.models import FileRow
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials

TIMEOUT = 0.5
# Far beyond that, and far below what a process may take that is waited for instead.
SOON = 8.0
FILE = FileRow("34", "big.bin", len(BIG), "", "", "", 0)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
LOGIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 32\r\n\r\n" + b"A" * 32


@asynccontextmanager
async def connected(*acts: Act) -> AsyncIterator[tuple[ScriptedServer, Xnat]]:
    """Connect to a server that accepts a login, and then does as it likes."""
    server = ScriptedServer(answering(LOGIN), *acts)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, server, [listener])
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with open_xnat(Config(url, timeout=TIMEOUT), Credentials("u", "p")) as xnat:
            yield server, xnat
            server.acts = [answering(LOGIN)]  # and out again
        nursery.cancel_scope.cancel()


async def write(xnat: Xnat, path: Path, begun: Callable[[], Awaitable[None]] | None = None) -> None:
    """Write a big file as the mount takes it; `begun` is called when the first bytes are there."""
    with descriptor(path) as file:
        async with xnat.download(ITEM, FILE) as download:
            assert download is not None
            assert download.into is not None
            async for _ in download.into(file, 0, len(BIG)):
                if begun is not None:
                    await begun()
                    begun = None


async def soon(kind: type[Exception], wait: Callable[[], Awaitable[object]]) -> None:
    began = trio.current_time()
    with pytest.raises(kind):
        await wait()
    assert trio.current_time() - began < SOON


def chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


def dripping(head: bytes, drop: bytes) -> Act:
    async def act(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(head)
        while True:
            await stream.send_all(drop)
            await trio.sleep(TIMEOUT / 10)

    return act


async def test_a_server_that_says_nothing():
    async with connected(silent_after()) as (_, xnat):
        await soon(TimedOut, xnat.projects)


async def test_a_list_that_drips():
    async with connected(dripping(HEAD, chunk(b" "))) as (_, xnat):
        await soon(TimedOut, xnat.projects)


async def test_a_list_that_does_not_end(monkeypatch):
    monkeypatch.setattr("xnatfs.rest.lists.LIST_LIMITS", (10_000, 1_000_000))

    async def endless(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(HEAD + chunk(b'{"ResultSet": {"Result": ['))
        while True:
            await stream.send_all(chunk(b'{"ID": "P"}, '))

    async with connected(endless) as (_, xnat):
        await soon(BadReply, xnat.projects)


async def test_a_big_file_that_drips(tmp_path):
    async with connected(dripping(OK + BIG[:MiB], b"x")) as (_, xnat):
        await soon(TimedOut, lambda: write(xnat, tmp_path / "file"))
    assert children() == []


async def test_a_big_file_of_a_server_that_says_nothing(tmp_path):
    async with connected(silent_after()) as (_, xnat):
        await soon(TimedOut, lambda: write(xnat, tmp_path / "file"))


async def test_a_process_that_stands_still_in_the_middle_of_a_file(tmp_path):
    go_on = trio.Event()

    async def halting(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(OK + BIG[:MiB])
        await go_on.wait()
        await stream.send_all(BIG[MiB:])

    async def stand_still() -> None:
        os.kill(children()[0], signal.SIGSTOP)
        go_on.set()

    async with connected(halting, answering(OK, BIG)) as (_, xnat):
        await soon(Unreachable, lambda: write(xnat, tmp_path / "file", stand_still))
        await write(xnat, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == BIG
    assert children() == []


async def test_a_process_that_stood_still_before_it_was_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("xnatfs.http.transport.PROCESS_START_SECONDS", 1.0)
    async with connected(answering(OK, BIG)) as (_, xnat):
        await write(xnat, tmp_path / "first")
        os.kill(children()[0], signal.SIGSTOP)
        await soon(TimedOut, lambda: write(xnat, tmp_path / "second"))
        await write(xnat, tmp_path / "third")
    assert (tmp_path / "third").read_bytes() == BIG


async def test_a_host_that_takes_no_connections(tmp_path):
    """Fill the queue of the host, so that the client's SYN packets are dropped."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        fillers = [trio.socket.socket() for _ in range(3)]
        with trio.move_on_after(0.1):
            async with trio.open_nursery() as nursery:
                for each in fillers:
                    nursery.start_soon(each.connect, listener.getsockname())
        async with open_xnat(Config(url, timeout=TIMEOUT), Credentials("u", "p")) as xnat:
            await soon(TimedOut, xnat.projects)
        for each in fillers:
            each.close()


async def test_the_kernel_is_told_when_a_line_is_lost(tmp_path):
    """Set TCP_USER_TIMEOUT, so that a connection that is silent after suspend fails in time to try another one."""
    async with connected(answering(OK, BIG)) as (_, xnat):
        response = await xnat._transport.send(HttpRequest("GET", "/", "file"))
        link = response.extensions["network_stream"].get_extra_info("socket")
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * TIMEOUT / 2
        await response.aclose()
        port = int(xnat.url.rpartition(":")[2])
        async with await connect("127.0.0.1", port, {"connect": 1, "read": 0.154}) as made:
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 77
