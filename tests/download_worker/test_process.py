"""Test download processes: the right bytes in the right place, or an error of httpx, and nothing left behind."""

import os
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tests.support.content_fakes import BIG, MiB, until
from xnatfs.download_worker.pool import FileBody, ProcessLost, ProcessPool, open_pool

TIMEOUT = httpx.Timeout(2.0)
OK = b"HTTP/1.1 200 OK\r\nLast-Modified: Tue, 02 Jan 2024 03:04:05 GMT\r\nContent-Length: %d\r\n\r\n" % len(BIG)

# What a server does with one request: its connection, and the head of the request.
Act = Callable[[trio.SocketStream, bytes], Awaitable[None]]


class ScriptedServer:
    """A server that does with each request what `acts` say, in turn; the last one again and again."""

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.heads: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        try:
            async with stream:
                while head := await self._head(stream):
                    self.heads.append(head)
                    await (self.acts.pop(0) if len(self.acts) > 1 else self.acts[0])(stream, head)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone, or the act has closed it

    async def _head(self, stream: trio.SocketStream) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            more = await stream.receive_some()
            if not more:
                return b""
            head += bytes(more)
        return head


def answering(*parts: bytes) -> Act:
    async def act(stream: trio.SocketStream, head: bytes) -> None:
        for part in parts:
            await stream.send_all(part)

    return act


def cut_after(*parts: bytes) -> Act:
    async def act(stream: trio.SocketStream, head: bytes) -> None:
        await answering(*parts)(stream, head)
        await stream.aclose()

    return act


def silent_after(*parts: bytes) -> Act:
    async def act(stream: trio.SocketStream, head: bytes) -> None:
        await answering(*parts)(stream, head)
        await trio.sleep_forever()

    return act


@asynccontextmanager
async def served(*acts: Act) -> AsyncIterator[tuple[ScriptedServer, httpx.AsyncClient, ProcessPool]]:
    server = ScriptedServer(*acts)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, server, [listener])
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with open_pool("", True) as workers:
            async with httpx.AsyncClient(transport=workers, base_url=url, timeout=TIMEOUT) as client:
                yield server, client, workers
        assert children() == []
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def got(client: httpx.AsyncClient, path: str = "/file", **headers: str) -> AsyncIterator[httpx.Response]:
    async with client.stream("GET", path, headers=headers) as response:
        yield response


def body(response: httpx.Response) -> FileBody:
    found = response.extensions["file_body"]
    assert isinstance(found, FileBody)
    return found


@contextmanager
def descriptor(path: Path) -> Iterator[int]:
    found = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield found
    finally:
        os.close(found)


async def written(response: httpx.Response, path: Path, offset: int = 0, length: int = len(BIG)) -> int:
    """Return how many bytes were written when the body has ended; raise `Ended` with that count when it fails."""
    count = 0
    with descriptor(path) as file:
        try:
            async for more in body(response).write(file, offset, length):
                count += more
        except httpx.TransportError as error:
            raise Ended(count) from error
    return count


class Ended(Exception):
    """A body that broke off, after so many bytes."""


def children() -> list[int]:
    """Return the download processes of this process."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes()
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"xnatfs.download_worker.process" in command and parent == os.getpid():
            found.append(int(place.name))
    return found


async def test_a_body_goes_into_a_file(tmp_path):
    async with served(answering(OK, BIG)) as (server, client, _):
        async with got(client, "/a%20b?c=d", cookie="JSESSIONID=1") as response:
            assert (response.status_code, response.headers["last-modified"]) == (200, "Tue, 02 Jan 2024 03:04:05 GMT")
            assert body(response).length == len(BIG)
            assert await written(response, tmp_path / "file") == len(BIG)
        assert (tmp_path / "file").read_bytes() == BIG
        assert server.heads[0].startswith(b"GET /a%20b?c=d HTTP/1.1\r\n")
        assert b"cookie: jsessionid=1\r\n" in server.heads[0].lower()


async def test_parts_of_a_body_go_to_different_places_and_some_nowhere(tmp_path):
    async with served(answering(OK, BIG)) as (_, client, _), got(client) as response:
        await written(response, tmp_path / "file", 10, MiB)
        assert sum([count async for count in body(response).write(None, 0, 2 * MiB)]) == 2 * MiB
        await written(response, tmp_path / "file", 0, 10)
    assert (tmp_path / "file").read_bytes() == BIG[3 * MiB : 3 * MiB + 10] + BIG[:MiB]


async def test_the_next_request_takes_the_same_process_and_its_connection(tmp_path):
    async with served(answering(OK, BIG)) as (server, client, _):
        for number in range(3):
            async with got(client) as response:
                await written(response, tmp_path / f"{number}")
            assert (tmp_path / f"{number}").read_bytes() == BIG
        assert (server.connections, len(server.heads), len(children())) == (1, 3, 1)


async def test_requests_at_the_same_time_have_a_process_each(tmp_path):
    async with served(answering(OK, BIG)) as (server, client, _):
        async with got(client) as first, got(client) as second:
            await written(first, tmp_path / "first", 0, MiB)
            await written(second, tmp_path / "second")
            await written(first, tmp_path / "first", MiB, len(BIG) - MiB)
            assert len(children()) == 2
        assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes() == BIG
        assert server.connections == 2


@pytest.mark.parametrize(
    ("head", "parts"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n", [b"not found"]),
        (
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n",
            [b"4\r\nnot \r\n", b"5\r\nfound\r\n0\r\n\r\n"],
        ),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", [b"not found"]),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n", [b"not", b" found"]),
    ],
)
async def test_a_page_can_be_read_however_it_is_framed(head, parts):
    act = cut_after if head.startswith(b"HTTP/1.0") else answering
    async with served(act(head, *parts)) as (_, client, _):
        for _ in range(2):
            async with got(client) as response:
                assert response.status_code == 404
                assert b"".join([chunk async for chunk in response.aiter_raw()]) == b"not found"


async def test_a_body_without_a_length_is_not_for_writing():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    async with served(answering(head)) as (_, client, _), got(client) as response:
        assert body(response).length is None
        assert b"".join([chunk async for chunk in response.aiter_raw()]) == b"abc"


async def test_a_body_that_is_cut_is_an_error_after_what_has_come(tmp_path):
    async with served(cut_after(OK, BIG[: 5 * MiB]), answering(OK, BIG)) as (server, client, _):
        async with got(client) as response:
            with pytest.raises(Ended, match=str(5 * MiB)) as raised:
                await written(response, tmp_path / "cut")
        assert isinstance(raised.value.__cause__, httpx.RemoteProtocolError)
        assert (tmp_path / "cut").read_bytes() == BIG[: 5 * MiB]
        async with got(client) as response:
            await written(response, tmp_path / "whole")
        assert (tmp_path / "whole").read_bytes() == BIG
        assert (server.connections, len(children())) == (2, 1)


async def test_a_server_that_does_not_answer_is_given_up():
    async with served(silent_after()) as (_, client, _):
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/")


@pytest.mark.parametrize("some", [0, MiB])
async def test_a_server_that_goes_silent_is_given_up(tmp_path, some):
    async with served(silent_after(OK, BIG[:some])) as (_, client, _), got(client) as response:
        with pytest.raises(Ended, match=str(some)) as raised:
            await written(response, tmp_path / "file")
        assert isinstance(raised.value.__cause__, httpx.ReadTimeout)


async def test_a_server_that_is_not_there_says_so_as_elsewhere():
    async with open_pool("", True) as workers:
        async with httpx.AsyncClient(transport=workers, timeout=TIMEOUT) as client:
            with pytest.raises(httpx.ConnectError, match="Connection refused") as raised:
                await client.get("http://127.0.0.1:1/")
    assert isinstance(raised.value.__cause__, OSError)


async def test_what_is_no_http_is_an_error():
    async with served(answering(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as (_, client, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/")


async def test_nothing_is_written_any_more_once_a_body_is_left(tmp_path):
    """Stop writing, because the range may belong to another download by then."""
    go_on = trio.Event()

    async def slow(stream: trio.SocketStream, head: bytes) -> None:
        await stream.send_all(OK + BIG[:MiB])
        await go_on.wait()
        await stream.send_all(BIG[MiB:])

    async with served(slow, answering(OK, BIG)) as (server, client, _):
        with descriptor(tmp_path / "file") as file:
            async with got(client) as response:
                pieces = body(response).write(file, 0, len(BIG))
                left = MiB
                while left:
                    left -= await anext(pieces)
                await pieces.aclose()
            go_on.set()
            assert os.fstat(file).st_size == MiB
        async with got(client) as response:
            await written(response, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == BIG
        assert (tmp_path / "file").read_bytes() == BIG[:MiB]
        assert (server.connections, len(children())) == (2, 1)


async def test_a_process_that_is_killed_is_an_error_and_the_next_request_has_another(tmp_path):
    async with served(silent_after(OK, BIG[:MiB]), answering(OK, BIG)) as (_, client, _):
        async with got(client) as response:
            (process,) = children()
            os.kill(process, signal.SIGKILL)
            with pytest.raises(Ended) as raised:
                await written(response, tmp_path / "file")
            assert isinstance(raised.value.__cause__, httpx.ReadError | httpx.WriteError)
        async with got(client) as response:
            await written(response, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == BIG
        assert process not in children()


async def test_an_idle_process_that_was_killed_is_replaced(tmp_path):
    async with served(answering(OK, BIG)) as (_, client, _):
        async with got(client) as response:
            await written(response, tmp_path / "first")
        (process,) = children()
        os.kill(process, signal.SIGKILL)
        async with got(client) as response:
            await written(response, tmp_path / "second")
        assert (tmp_path / "second").read_bytes() == BIG


@pytest.mark.parametrize("offset", [0, 3 * MiB])
async def test_bytes_that_a_full_disk_did_not_take_can_be_written_again(tmp_path, offset):
    async with served(answering(OK, BIG)) as (_, client, _), got(client) as response:
        if offset:
            await written(response, tmp_path / "file", 0, offset)
        with pytest.raises(OSError, match="No space left on device"):
            await written(response, Path("/dev/full"), offset, MiB)
        await written(response, tmp_path / "file", offset, len(BIG) - offset)
    assert (tmp_path / "file").read_bytes() == BIG


async def test_processes_hold_no_secrets_and_end_with_the_daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("XNAT_PASS", "secret-of-the-test")
    async with served(silent_after(OK, BIG[:MiB])) as (_, client, _):
        async with got(client, cookie="JSESSIONID=secret-of-the-test"):
            (process,) = children()
            place = Path("/proc", str(process))
            assert b"secret-of-the-test" not in (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
            os.kill(process, signal.SIGSTOP)  # one that hangs does not hinder the end
    await until(lambda: not place.exists())


async def test_idle_processes_end(tmp_path, monkeypatch):
    monkeypatch.setattr("xnatfs.download_worker.pool.IDLE_PROCESS_SECONDS", 0.05)
    async with served(answering(OK, BIG)) as (_, client, _):
        async with got(client) as response:
            await written(response, tmp_path / "file")
        await until(lambda: not children())


async def test_a_request_given_up_before_its_head_does_not_answer_the_next(tmp_path):
    """Close the connection over which the answer is still to come."""
    asked, release = trio.Event(), trio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"

    async def late(stream: trio.SocketStream, _: bytes) -> None:
        asked.set()
        await release.wait()
        await stream.send_all(head + b"X" * 100)

    async with served(answering(OK, BIG), late, answering(head, b"Y" * 100)) as (_, client, _):
        async with got(client) as response:
            await written(response, tmp_path / "first")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.get, "/second")
            await asked.wait()
            nursery.cancel_scope.cancel()
        release.set()
        async with got(client) as response:
            await written(response, tmp_path / "third", 0, 100)
        assert (tmp_path / "third").read_bytes() == b"Y" * 100


async def test_headers_need_not_be_ascii():
    head = b'HTTP/1.1 200 OK\r\nContent-Disposition: attachment; filename="Sch\xe4del"\r\nContent-Length: 2\r\n\r\nab'
    async with served(answering(head)) as (_, client, _):
        for _ in range(3):
            response = await client.get("/")
            assert (response.content, response.headers["content-disposition"][-8:]) == (b"ab", 'Schädel"')
        assert len(children()) == 1


async def test_a_body_without_a_length_can_be_left_half_way():
    piece = os.urandom(60_000)

    async def endless(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"%x\r\n" % len(piece) + piece + b"\r\n")

    async with served(endless) as (server, client, _):
        for number in range(1, 6):
            async with got(client) as response:
                for _ in range(number):
                    assert await anext(body(response))
        assert (server.connections, len(children())) == (5, 0)


async def full_after(response: httpx.Response, path: Path, room: int) -> int:
    """Limit the size of files that the process may write; return how much was written."""
    (process,) = children()
    _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (room, hard))
    count, error = 0, None
    with descriptor(path) as file:
        try:
            async for more in body(response).write(file, 0, len(BIG)):
                count += more
        except OSError as raised:
            error = raised
    assert str(error) == "[Errno 27] File too large"
    resource.prlimit(process, resource.RLIMIT_FSIZE, (hard, hard))
    return count


async def test_what_a_full_disk_did_not_take_is_skipped_first(tmp_path):
    async with served(answering(OK, BIG)) as (_, client, _), got(client) as response:
        count = await full_after(response, tmp_path / "file", 3 * MiB + 5)
        assert sum([more async for more in body(response).write(None, 0, MiB)]) == MiB
        await written(response, tmp_path / "file", count + MiB, len(BIG) - MiB - count)
    assert (tmp_path / "file").read_bytes()[count + MiB :] == BIG[count + MiB :]


async def test_what_a_full_disk_did_not_take_can_be_written_in_smaller_parts(tmp_path):
    async with served(answering(OK, BIG)) as (_, client, _), got(client) as response:
        count = await full_after(response, tmp_path / "file", 3 * MiB + 5)
        assert await written(response, tmp_path / "file", count, 1000) == 1000
        await written(response, tmp_path / "file", count + 1000, len(BIG) - count - 1000)
    assert (tmp_path / "file").read_bytes() == BIG


async def test_without_descriptors_there_is_no_process(monkeypatch):
    def none() -> None:
        raise OSError(24, "Too many open files")

    async with served(answering(OK, BIG)) as (_, client, _):
        monkeypatch.setattr("socket.socketpair", none)
        with pytest.raises(ProcessLost, match="Too many open files"):
            await client.get("/")
        monkeypatch.undo()


async def test_an_idle_process_is_taken_while_another_one_ends(monkeypatch):
    monkeypatch.setattr("xnatfs.download_worker.pool.IDLE_PROCESS_SECONDS", 0.1)
    taken, go_on = trio.Event(), trio.Event()
    async with served(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")) as (_, client, workers):
        async with got(client) as one, got(client) as other:
            await one.aread()
            await other.aread()

        async def request() -> None:
            async with got(client) as response:
                taken.set()
                await go_on.wait()
                assert await anext(body(response)) == b"x"

        async with trio.open_nursery() as nursery:
            first, second = workers._idle
            first.idle_since = second.idle_since  # so that both are old at the same time
            end = first.end

            async def end_slowly() -> None:
                if not taken.is_set():
                    nursery.start_soon(request)
                    await taken.wait()
                await end()

            monkeypatch.setattr(first, "end", end_slowly)
            await taken.wait()
            await until(lambda: first.ended)
            go_on.set()
