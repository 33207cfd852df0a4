"""Fetch lists and documents: bodies that are parsed, and requested again if they break off."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from xnatfs.common.errors import BadReply, TimedOut, Unreachable
from xnatfs.common.sanitize import loads
from xnatfs.http.messages import HttpRequest
from xnatfs.http.replies import close
from xnatfs.http.retry import Retries
from xnatfs.http.transport import Transport

T = TypeVar("T")

# Requests for a body that breaks off each time, until it counts as unavailable.
MAX_BODY_ATTEMPTS = 3
# The largest body, in bytes, that is read whole before it is parsed. The document of a very large session has a few
# MiB; as Python objects it takes up to 30 times as much.
MAX_DOCUMENT_BYTES = 16 * 2**20


async def fetch(
    transport: Transport,
    path: str,
    params: Mapping[str, str],
    parse: Callable[[AsyncGenerator[bytes]], Awaitable[T]],
    *,
    is_change: bool = False,
) -> T:
    """Fetch a body, and return what `parse` makes of it.

    Received bytes do not extend the retry budget, since each attempt begins with the first byte.

    Args:
        transport: The transport.
        path: The path, relative to the server's URL.
        params: The query.
        parse: Consumes the body; called anew for each attempt.
        is_change: Whether the request has an effect on the server, and is not safe to repeat.

    Raises:
        Unreachable: The body broke off at each attempt, or the budget is spent.
        Uncertain: There was no answer to a request with an effect.
    """
    request = HttpRequest("GET", path, "json", params, is_change=is_change)
    attempts = 1 if is_change else MAX_BODY_ATTEMPTS
    retries = Retries(transport.policy.retry_budget)
    failure: Unreachable | None = None
    while True:
        try:
            response = await transport.send(request, retries.seconds_left)
        except TimedOut:
            if failure is not None:  # the time was too short for another answer
                raise failure from None
            raise
        try:
            await transport.check(path, response, "json")
            async with aclosing(transport.read_body(path, response)) as chunks:
                return await parse(chunks)
        except Unreachable as error:
            failure = error.with_traceback(None)  # the traceback refers to everything made so far
        finally:
            await close(response)
        attempts -= 1
        if not attempts or not await retries.pause():
            transport.give_up(failure)


async def fetch_json(transport: Transport, path: str, params: Mapping[str, str], *, is_change: bool = False) -> Any:
    """Fetch and parse a JSON document. The arguments are those of `fetch`."""
    body = await fetch_bytes(transport, path, params, is_change=is_change)
    try:
        return loads(body)
    except ValueError:
        raise BadReply(f"{transport.url}{path} was requested as JSON and came as something else") from None


async def fetch_text(transport: Transport, path: str) -> str:
    """Fetch a short plain text."""
    return (await fetch_bytes(transport, path, {})).decode("utf-8", "replace").strip()


async def fetch_bytes(transport: Transport, path: str, params: Mapping[str, str], *, is_change: bool = False) -> bytes:
    """Fetch a document as it is. The arguments are those of `fetch`."""

    async def join(chunks: AsyncGenerator[bytes]) -> bytes:
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_DOCUMENT_BYTES:
                raise BadReply(f"{transport.url}{path} is larger than {MAX_DOCUMENT_BYTES} bytes")
        return bytes(body)

    return await fetch(transport, path, params, join, is_change=is_change)
