"""Read all TLS records that have arrived in one call.

trio's TLS stream returns one record at a time, of 16 KiB at most, and each passes through the layers of httpcore and
httpx: a tar of 100 MB takes 6,400 such passes.
"""

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore


class RecordsBackend(httpcore.TrioBackend):
    """Open connections of trio whose TLS streams return several records at a time."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._ssl_object = stream.get_extra_info("ssl_object")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        pieces = [await self._stream.read(max_bytes, timeout)]
        left = max_bytes - len(pieces[0])
        if self._ssl_object is not None and pieces[0]:
            try:
                while left > 0 and (piece := self._ssl_object.read(left)):
                    pieces.append(piece)
                    left -= len(piece)
            except ssl.SSLError:  # no whole record is left; an error of the connection is raised by the next read, too
                pass
        return b"".join(pieces)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
