"""Tasks that run beside somebody's work, and end with it."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from xnatfs.common.errors import XnatError

log = logging.getLogger(__name__)


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """For what nobody waits for: it is cancelled when the context ends.

    An error of whoever works in the context goes past the nursery, which would wrap it in a group.
    """
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def unattended(what: str, level: int, work: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Do what nobody is there to hear of: how it fails is logged, and must not end the mount."""
    try:
        await work(*arguments)
    except XnatError as error:
        log.log(level, "%s: %s", what, error)
    except Exception:
        log.exception(what)
