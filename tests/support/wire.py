"""Provide a network of one process: requests go to a callable, and bodies come in pieces, as from a socket."""

import inspect
from collections.abc import Awaitable, Callable

import httpx

App = Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]

PIECE = 64 * 1024  # what httpcore reads from a socket at a time


class _Body(httpx.AsyncByteStream):
    """A body in pieces. It is no generator: it needs no close."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        piece = self._content[self._at : self._at + PIECE]
        self._at += len(piece)
        if not piece:
            raise StopAsyncIteration
        return piece


class Wire(httpx.AsyncBaseTransport):
    """A transport that leaves reading a body to the client; the bodies of httpx's MockTransport are read already."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        answered = self._app(request)
        response = await answered if inspect.isawaitable(answered) else answered
        if isinstance(response.stream, httpx.SyncByteStream) and not response.is_closed:
            response.read()
        if not response.is_closed:
            return response
        headers = response.headers.copy()
        return httpx.Response(response.status_code, headers=headers, stream=_Body(response.content))
