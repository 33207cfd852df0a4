"""Test that reads of a connection return all that has arrived."""

# ruff: noqa: ASYNC109  the parameters are httpcore's

import ssl
from typing import Any

import httpcore
import pytest

from xnatfs.http import clients
from xnatfs.http.clients import RecordsBackend
from xnatfs.settings.config import Config


class Records:
    """TLS records that have arrived, as `ssl.SSLObject` returns them."""

    def __init__(self, *records: bytes) -> None:
        self.records = list(records)

    def read(self, most: int) -> bytes:
        if not self.records:
            raise ssl.SSLWantReadError
        record, rest = self.records[0][:most], self.records[0][most:]
        self.records[:1] = [rest] if rest else []
        return record


class Stream(httpcore.AsyncNetworkStream):
    """trio's stream: a read returns one record."""

    def __init__(self, records: Records | None, data: bytes = b"") -> None:
        self.records, self.data = records, data

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.data[:max_bytes] if self.records is None else self.records.read(max_bytes)

    async def start_tls(self, *args: Any) -> httpcore.AsyncNetworkStream:
        return Stream(Records(*[b"a" * 10, b"b" * 10, b"c" * 10]))

    def get_extra_info(self, info: str) -> Any:
        return self.records if info == "ssl_object" else None


@pytest.fixture
async def connection(monkeypatch: pytest.MonkeyPatch) -> httpcore.AsyncNetworkStream:
    async def connect_tcp(self: object, *args: object) -> httpcore.AsyncNetworkStream:
        return Stream(None, b"plain")

    monkeypatch.setattr(httpcore.TrioBackend, "connect_tcp", connect_tcp)
    return await RecordsBackend().connect_tcp("host", 443)


@pytest.mark.parametrize("requested", [1, 100])
async def test_a_read_returns_all_records(connection, requested):
    assert await connection.read(requested) == b"plain"
    secure = await connection.start_tls(ssl.create_default_context(), "host")
    assert await secure.read(requested) == b"a" * 10 + b"b" * 10 + b"c" * 10


async def test_a_read_returns_no_more_than_its_limit_or_what_was_requested(connection, monkeypatch):
    monkeypatch.setattr(clients, "SOCKET_READ_BYTES", 15)
    secure = await connection.start_tls(ssl.create_default_context(), "host")
    assert await secure.read(1) == b"a" * 10 + b"b" * 5
    assert await secure.read(100) == b"b" * 5 + b"c" * 10
    with pytest.raises(ssl.SSLWantReadError):
        await secure.read(100)
    monkeypatch.setattr(clients, "SOCKET_READ_BYTES", 5)
    another = await connection.start_tls(ssl.create_default_context(), "host")
    assert await another.read(15) == b"a" * 10 + b"b" * 5


@pytest.mark.parametrize("proxy", ["", "http://proxy.example.org:3128"])
async def test_connections_read_so_through_a_proxy_too(monkeypatch, proxy):
    for name in ("https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    async with clients.open_clients(Config("https://xnat.example.org")) as found:
        pools = [pool for client in (found.http, found.probe) for pool in clients._pools(client)]
        assert any(isinstance(pool, httpcore.AsyncHTTPProxy) for pool in pools) is bool(proxy)
        assert {type(pool._network_backend) for pool in pools} == {RecordsBackend}
