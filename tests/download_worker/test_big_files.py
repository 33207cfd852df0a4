"""Test big files over a real socket, through the whole client: by a process, and right or an error."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from tests.download_worker.test_process import ScriptedServer, children
from tests.http.test_failures import made_certificate
from tests.support.content_fakes import BIG, MiB
from tests.support.demos import Demo, serving
from xnatfs.common.errors import Unreachable
from xnatfs.content import open_cache
from xnatfs.prefetch.file_version import version
from xnatfs.rest.address import Address
from xnatfs.rest.client import open_xnat
from xnatfs.rest.models import FileRow
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site
from xnatfs.tree import Root
from xnatfs.tree.file_source import FileSource
from xnatfs.tree.node import Dir, File, Node

NAMES = ("projects", "P", "S", "E", "scans", "1", "RAW", "big.bin")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("data")
    path = top.joinpath(*NAMES[1:])
    path.parent.mkdir(parents=True)
    path.write_bytes(BIG)
    return top


@pytest.fixture(params=["digests, ranges", "digests", "ranges", "neither"])
def demo(request: pytest.FixtureRequest, data: Path) -> Iterator[Demo]:
    with serving(data, digests="digests" in request.param, ranges="ranges" in request.param) as served:
        yield served


@asynccontextmanager
async def opened(demo: Demo, directory: Path, url: str = "", **options: object) -> AsyncIterator[Site]:
    config = Config(url or demo.url, cache_dir=directory, timeout=5.0, **options)  # type: ignore[arg-type]
    async with open_site(config, Credentials(demo.login["user"], demo.login["password"])) as site:
        yield site


async def big_file(site: Site, name: str = NAMES[-1]) -> File:
    node: Node = Root(site)
    for part in (*NAMES[:-1], name):
        assert isinstance(node, Dir)
        node = await node.child(part)
    assert isinstance(node, File)
    return node


async def read(site: Site, *places: tuple[int, int]) -> list[bytes]:
    blob = await (await big_file(site)).open()
    try:
        return [await blob.read(offset, length) for offset, length in places]
    finally:
        blob.close()


async def read_all(site: Site) -> bytes:
    return b"".join(await read(site, *((offset, MiB) for offset in range(0, len(BIG), MiB))))


def downloads(demo: Demo) -> int:
    return sum(line.endswith("/files/big.bin") for line in demo.asked())


def requests(demo: Demo) -> int:
    """Count the requests of a file that is read from its beginning: a small range and the rest, or all at once."""
    return 2 if demo.app.site.ranges else 1


async def test_a_big_file_comes_by_a_process_of_its_own_once(demo, tmp_path):
    async with opened(demo, tmp_path) as site:
        assert await read_all(site) == BIG
        assert len(children()) == 1
        assert await read_all(site) == BIG
        assert downloads(demo) == requests(demo)
    assert children() == []
    async with opened(demo, tmp_path) as site:
        assert await read_all(site) == BIG
    assert (downloads(demo), children()) == (requests(demo), [])


async def test_a_seeker_gets_its_bytes_with_and_without_ranges(demo, tmp_path):
    places = [(len(BIG) - 100, 100), (0, 10), (6 * MiB, MiB), (MiB - 5, 10)]
    async with opened(demo, tmp_path) as site:
        assert await read(site, *places) == [BIG[offset : offset + length] for offset, length in places]
        assert site.xnat.ranged in (None, demo.app.site.ranges)


BEHIND_PROXY = "http://xnat.invalid"


class Cutting:
    """A proxy, or a relay to the server, on which connections break after so many bytes, so many times."""

    def __init__(self, demo: Demo, after: int, times: int) -> None:
        self.target = urlsplit(demo.url)
        self.after, self.times = after, times

    async def __call__(self, client: trio.SocketStream) -> None:
        assert self.target.hostname is not None
        assert self.target.port is not None
        try:
            async with client, await trio.open_tcp_stream(self.target.hostname, self.target.port) as server:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._relay, client, server, False, nursery.cancel_scope)
                    nursery.start_soon(self._relay, server, client, True, nursery.cancel_scope)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _relay(
        self, source: trio.SocketStream, sink: trio.SocketStream, down: bool, both: trio.CancelScope
    ) -> None:
        passed = 0
        while some := await source.receive_some(64 * 1024):
            passed += len(some)
            if down and passed > self.after and self.times:
                self.times -= 1
                break
            await sink.send_all(some if down else some.replace(f" {BEHIND_PROXY}/".encode(), b" /"))
        both.cancel()


@asynccontextmanager
async def cutting(demo: Demo, after: int, times: int) -> AsyncIterator[tuple[Cutting, str]]:
    proxy = Cutting(demo, after, times)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, proxy, [listener])
        yield proxy, f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_connection_that_breaks_twice_is_taken_up_again(demo, tmp_path):
    async with cutting(demo, 5 * MiB, 2) as (proxy, url), opened(demo, tmp_path, url) as site:
        assert await read_all(site) == BIG
        assert proxy.times == 0
        assert downloads(demo) == 2 + requests(demo)
    async with opened(demo, tmp_path, url) as site:
        assert site.content.bytes_used == len(BIG)


async def test_a_connection_that_always_breaks_is_an_error_and_nothing_is_kept(demo, tmp_path):
    if not demo.app.site.ranges:  # with ranges each connection gets on, so that the file comes in the end
        async with cutting(demo, 5 * MiB, 10**9) as (_, url), opened(demo, tmp_path, url, retry_budget=0.1) as site:
            with pytest.raises(Unreachable):
                await read_all(site)
            assert not site.content.stats.damaged
    async with opened(demo, tmp_path) as site:
        assert await read_all(site) == BIG


async def test_a_session_that_has_ended_is_made_again(demo, tmp_path):
    async with opened(demo, tmp_path) as site:
        await big_file(site)
        demo.app.sessions.end_all()
        assert await read_all(site) == BIG
        assert site.xnat.login.logins == 2


async def test_tls_is_checked_there_as_well(data, tmp_path):
    certificate = made_certificate(tmp_path)
    with serving(data, certificate=certificate) as demo:
        async with opened(demo, tmp_path / "cache", ca_bundle=str(certificate[0])) as site:
            assert await read_all(site) == BIG
            assert len(children()) == 1


async def test_through_a_proxy_httpx_fetches_big_files_itself(data, tmp_path, monkeypatch):
    """Fetch in the main process through a proxy, which the download processes do not support."""
    with serving(data) as demo:
        async with cutting(demo, 0, 0) as (_, proxy):
            for name in ("http_proxy", "HTTP_PROXY"):
                monkeypatch.setenv(name, proxy)
            for name in ("no_proxy", "NO_PROXY"):
                monkeypatch.delenv(name, raising=False)
            async with opened(demo, tmp_path, BEHIND_PROXY) as site:
                assert await read_all(site) == BIG
                assert children() == []


async def test_without_processes_httpx_fetches_big_files_itself(data, tmp_path, monkeypatch, caplog):
    with serving(data) as demo:
        async with opened(demo, tmp_path) as site:
            await big_file(site)
            monkeypatch.setattr("sys.executable", "/bin/false")
            assert await read_all(site) == BIG
            assert downloads(demo) == requests(demo)
    assert {record.message for record in caplog.records if record.levelname == "WARNING"} == {
        "no download process (its download process has ended): big files are fetched without one"
    }


async def test_a_process_that_is_lost_on_the_way_and_cannot_be_replaced_is_done_without(data, tmp_path, monkeypatch):
    async def none(*command: object, **options: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    async with served_slowly(BIG) as (release, url):
        config = Config(url, cache_dir=tmp_path, timeout=30.0)
        async with open_xnat(config, Credentials("u", "p")) as xnat, open_cache(tmp_path, 2**30) as cache:
            item, row = ("experiments", "E"), FileRow("7", "a.nii", len(BIG), "", "", "", 0)
            address = Address(item, item, "7", "NIFTI")
            blob = await cache.open(version(row), FileSource(xnat, address, row, {}))
            assert await blob.read(0, MiB) == BIG[:MiB]
            monkeypatch.setattr("trio.lowlevel.open_process", none)
            (process,) = children()
            os.kill(process, signal.SIGKILL)
            release.set()
            assert b"".join([await blob.read(offset, MiB) for offset in range(0, len(BIG), MiB)]) == BIG
            blob.close()


@asynccontextmanager
async def served_slowly(content: bytes) -> AsyncIterator[tuple[trio.Event, str]]:
    """Serve one file, whose second half is sent when it is released, or at the second request."""
    release, asked = trio.Event(), 0

    async def act(stream: trio.SocketStream, head: bytes) -> None:
        nonlocal asked
        text = {b"/data/JSESSION": b"A" * 32, b"/xapi/users/username": b"u"}.get(head.split(b" ")[1])
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text or content))
        if text is None:
            asked += 1
            await stream.send_all(content[: len(content) // 2])
            if asked == 1:
                await release.wait()
        await stream.send_all(text or content[len(content) // 2 :])

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, ScriptedServer(act), [listener])
        yield release, f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_big_file_may_have_an_umlaut_in_its_name(tmp_path):
    path = tmp_path.joinpath("data", *NAMES[1:-1], "Schädel.bin")
    path.parent.mkdir(parents=True)
    path.write_bytes(BIG)
    with serving(tmp_path / "data") as demo:
        async with opened(demo, tmp_path / "cache") as site:
            blob = await (await big_file(site, "Schädel.bin")).open()
            assert await blob.read(MiB, MiB) == BIG[MiB : 2 * MiB]
            blob.close()
            assert not site.content.stats.damaged
