"""Test the control socket itself: hostile clients, slow ones, other users, and what is left of a dead process."""

import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from xnatfs.common.errors import NotFound, UsageError, XnatError
from xnatfs.fuse.control import server
from xnatfs.fuse.control.places import split
from xnatfs.fuse.control.protocol import MAX_REQUEST_BYTES, short_path, unpack, unpack_error
from xnatfs.fuse.control.server import Call, serve_control

HELLO = b'{"version": 1, "call": "echo", "text": "hello"}\n'


class Calls:
    """Calls of a mount that does nothing."""

    def __init__(self) -> None:
        self.cancelled = trio.Event()

    async def echo(self, report: Any, text: str, loud: bool = False) -> dict[str, Any]:
        return {"text": text.upper() if loud else text}

    async def fail(self, report: Any) -> dict[str, Any]:
        raise NotFound("no such thing")

    async def break_down(self, report: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    async def much(self, report: Any) -> dict[str, Any]:
        return {"text": "x" * 10**7}

    async def work(self, report: Any) -> dict[str, Any]:
        try:
            report({"done": 1})
            await trio.sleep_forever()
        finally:
            self.cancelled.set()
        return {}

    def table(self) -> dict[str, Call]:
        return {
            "echo": Call(self.echo, {"text": str}, {"loud": bool}),
            **{name: Call(getattr(self, name)) for name in ("fail", "break_down", "much", "work")},
        }


@pytest.fixture
def calls() -> Calls:
    return Calls()


@asynccontextmanager
async def served(calls: Calls, path: Path) -> AsyncIterator[Path]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, path, calls.table())
        yield path
        nursery.cancel_scope.cancel()


async def connect(path: Path) -> trio.SocketStream:
    with short_path(path) as short:
        return await trio.open_unix_socket(short)


async def replies(stream: trio.SocketStream, count: int) -> list[dict[str, Any]]:
    received = b""
    with trio.fail_after(20):
        while received.count(b"\n") < count:
            data = await stream.receive_some()
            if not data:
                break
            received += data
    return [json.loads(line) for line in received.splitlines()]


async def ask(path: Path, line: bytes) -> dict[str, Any]:
    async with await connect(path) as stream:
        await stream.send_all(line)
        return (await replies(stream, 1))[0]


async def test_a_call_is_answered_and_the_next_one_too(calls, tmp_path):
    async with served(calls, tmp_path / "s") as path, await connect(path) as stream:
        await stream.send_all(HELLO + b'{"version":1,"call":"echo","text":"a","loud":true}\n')
        assert await replies(stream, 2) == [
            {"version": 1, "result": {"text": "hello"}},
            {"version": 1, "result": {"text": "A"}},
        ]


async def test_only_the_owner_may_open_it(calls, tmp_path):
    async with served(calls, tmp_path / "s") as path:
        status = path.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
    assert not path.exists()


async def test_another_user_is_refused(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "peer_uid", lambda connection: os.geteuid() + 1)
    async with served(calls, tmp_path / "s") as path:
        assert (await ask(path, HELLO))["error"] == {"kind": "Denied", "message": "this is the mount of another user"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\n", "not JSON"),
        (b"hello\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[" * 20000 + b"\n", "not JSON"),
        (b"[]\n", "not a JSON object"),
        (b'"echo"\n', "not a JSON object"),
        (b'{"call": "echo"}\n', "version 1"),
        (b'{"version": true, "call": "echo", "text": ""}\n', "version 1"),
        (b'{"version": 2, "call": "echo", "text": ""}\n', "version 1"),
        (b'{"version": 1}\n', "no such call"),
        (b'{"version": 1, "call": "rm"}\n', "no such call"),
        (b'{"version": 1, "call": ["echo"]}\n', "no such call"),
        (b'{"version": 1, "call": "__class__"}\n', "no such call"),
        (b'{"version": 1, "call": "echo"}\n', "text is missing"),
        (b'{"version": 1, "call": "echo", "text": 1}\n', "text must be of type str"),
        (b'{"version": 1, "call": "echo", "text": null}\n', "text must be of type str"),
        (b'{"version": 1, "call": "echo", "text": "", "loud": 1}\n', "loud must be of type bool"),
        (b'{"version": 1, "call": "echo", "text": "", "more": 1}\n', "no argument 'more'"),
        (b'{"version": 1, "call": "fail"}\n', "no such thing"),
        (b'{"version": 1, "call": "break_down"}\n', "ZeroDivisionError"),
    ],
)
async def test_a_bad_request_is_an_error_and_the_connection_goes_on(calls, tmp_path, line, said, caplog):
    async with served(calls, tmp_path / "s") as path, await connect(path) as stream:
        await stream.send_all(line + HELLO)
        first, second = await replies(stream, 2)
        assert said in first["error"]["message"]
        assert second["result"] == {"text": "hello"}
    assert ("Traceback" in caplog.text) == (b"break_down" in line)


async def test_a_line_without_end_is_an_error(calls, tmp_path):
    async with served(calls, tmp_path / "s") as path:
        async with await connect(path) as stream:
            with trio.fail_after(10):
                await stream.send_all(b"x" * (MAX_REQUEST_BYTES + 1))
            (reply,) = await replies(stream, 2)
            assert "longer than" in reply["error"]["message"]
        assert (await ask(path, HELLO))["result"] == {"text": "hello"}


async def test_a_client_that_does_not_read_blocks_nothing(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "REPLY_SECONDS", 0.2)
    async with served(calls, tmp_path / "s") as path, await connect(path) as deaf:
        await deaf.send_all(b'{"version": 1, "call": "much"}\n' * 10)
        assert (await ask(path, HELLO))["result"] == {"text": "hello"}
        await trio.sleep(1)  # it is left meanwhile
        with trio.fail_after(10):
            while await deaf.receive_some():
                pass


async def test_a_client_that_says_nothing_is_left(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "NEXT_REQUEST_SECONDS", 0.1)
    async with served(calls, tmp_path / "s") as path, await connect(path) as silent:
        await silent.send_all(b'{"version"')
        with trio.fail_after(10):
            assert await silent.receive_some() == b""


async def test_too_many_clients_are_refused_and_the_next_one_served(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)
    async with served(calls, tmp_path / "s") as path:
        async with await connect(path) as first, await connect(path) as second:
            for stream in (first, second):
                await stream.send_all(HELLO)
                await replies(stream, 1)
            assert "clients are connected" in (await ask(path, HELLO))["error"]["message"]
        with trio.fail_after(10):
            while "error" in await ask(path, HELLO):  # until the server has seen that they are gone
                await trio.lowlevel.checkpoint()


async def test_a_call_whose_client_has_left_is_cancelled(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "PROGRESS_SECONDS", 0.01)
    async with served(calls, tmp_path / "s") as path:
        async with await connect(path) as stream:
            await stream.send_all(b'{"version": 1, "call": "work"}\n')
            assert (await replies(stream, 1))[0]["progress"] == {"done": 1}
        with trio.fail_after(10):
            await calls.cancelled.wait()


async def test_it_takes_the_place_of_a_dead_one(calls, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    async with served(calls, tmp_path / "s") as path:
        assert (await ask(path, HELLO))["result"] == {"text": "hello"}


async def test_a_long_path_is_no_obstacle(calls, tmp_path):
    deep = tmp_path.joinpath(*["a" * 100] * 3)
    deep.mkdir(parents=True)
    async with served(calls, deep / "s") as path:
        assert (await ask(path, HELLO))["result"] == {"text": "hello"}


async def test_without_a_place_for_it_the_mount_goes_on(calls, tmp_path, caplog):
    await serve_control(tmp_path / "missing" / "s", calls.table())
    assert "the control socket" in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_message_or_an_error(line):
    with suppress(UsageError):
        assert unpack(line)["version"] == 1


@given(st.dictionaries(st.sampled_from(["text", "loud", "more", "version", "call"]), JSON))
def test_any_arguments_are_those_that_a_call_takes_or_an_error(message):
    call = Call(Calls.echo, {"text": str}, {"loud": bool})
    with suppress(UsageError):
        arguments = call.arguments(message)
        assert type(arguments["text"]) is str
        assert type(arguments.get("loud", True)) is bool
        assert arguments.keys() <= {"text", "loud"}


@given(JSON, st.text(), st.text())
def test_any_error_that_a_reply_reports_is_one_of_ours(cells, kind, message):
    for found in (cells, {"kind": kind, "message": message}, {"kind": "NotFound", "message": message}):
        assert isinstance(unpack_error(found), XnatError)


def test_a_path_that_no_file_system_can_have_is_not_there():
    """JSON can spell half of a character."""
    assert split("a//b") == ("a", "b")
    with pytest.raises(NotFound):
        split("projects/\ud800")
