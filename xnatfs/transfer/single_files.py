"""Fetch single files into drafts: by a request each, or from the content cache if a mount has read them."""

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import aclosing

import trio

from xnatfs.common.errors import BadReply, NotFound
from xnatfs.content import Body, Source
from xnatfs.content.source import find_contradiction
from xnatfs.prefetch.file_version import version
from xnatfs.transfer.copying import Arrived, Copying, Missing
from xnatfs.transfer.local_files import Draft
from xnatfs.transfer.plan import Wanted

log = logging.getLogger(__name__)

# Bytes that are passed to a thread at a time: a call costs 0.1 ms.
DRAFT_PIECE_BYTES = 2**20
# Bytes by which hashing may lag behind a download process that writes: a call of a thread hashes them in 25 ms.
DRAFT_LAG_BYTES = 16 * 2**20

Take = Callable[[bytes], object]


async def fetch(missing: Missing, copying: Copying) -> None:
    """Fetch a file by a request of its own; a failure is reported."""
    wanted = missing.wanted
    with copying.failing(wanted):
        draft = await trio.to_thread.run_sync(Draft, copying.target(wanted))
        try:
            stamp = await _receive(wanted, draft.write, copying.progress.advance, draft)
            if wanted.digest not in ("", draft.md5()):
                text = f"its MD5 is {draft.md5()}, the catalogue says {wanted.digest}"
                raise BadReply(f"{text}; nothing was kept, ask the site's manager to refresh the catalogue")
            draft.close(wanted.file.modified())
            copying.arrive(Arrived(missing, draft, "" if wanted.digest else stamp))
        except BaseException:
            draft.discard()
            raise


async def fetch_cached(missing: Missing, copying: Copying) -> None:
    """Copy a file that the content cache has; a failure is reported. One that the disk has damaged is requested."""
    wanted = missing.wanted
    with copying.failing(wanted):
        if not await _copy(missing, copying):
            log.warning("the cached copy of %s is damaged: it is fetched anew", wanted.place)
            await wanted.file.site.content.upkeep.remove([version(wanted.file.row)])
            await fetch(missing, copying)


async def _copy(missing: Missing, copying: Copying) -> bool:
    """Copy a file from the content cache; return False if it has not the digest that the server states."""
    wanted = missing.wanted
    blob = await wanted.file.site.content.open(version(wanted.file.row), _source(wanted))
    draft = None
    try:
        draft = await trio.to_thread.run_sync(Draft, copying.target(wanted))
        while piece := await blob.read(draft.size, DRAFT_PIECE_BYTES):
            await trio.to_thread.run_sync(draft.write, piece)
            copying.progress.advance(len(piece))
        if wanted.digest not in ("", draft.md5()):
            copying.progress.advance(-draft.size)
            draft.discard()
            return False
        draft.close(wanted.file.modified())
        copying.arrive(Arrived(missing, draft, blob.stamp))
        return True
    except BaseException:
        if draft is not None:
            draft.discard()
        raise
    finally:
        blob.close()


async def fetch_md5(wanted: Wanted) -> tuple[str, str]:
    """Return the MD5 and the stamp of a file for which the server states no digest."""
    digest = hashlib.md5(usedforsecurity=False)
    stamp = await _receive(wanted, digest.update, lambda size: None)
    return digest.hexdigest(), stamp


def _source(wanted: Wanted) -> Source:
    files = wanted.file.files
    return files.resource_dir.source(wanted.file.row, files.groups)


async def _receive(wanted: Wanted, take: Take, advance: Callable[[int], object], draft: Draft | None = None) -> str:
    """Download a file, and return its stamp: Last-Modified if that proves its version, or else when it was requested.

    A length that is not as listed has to be confirmed by the server, unless the file has a digest.

    Args:
        wanted: The file.
        take: Called in a thread with each piece, unless a download process writes to the draft.
        advance: Called with the number of bytes that have come.
        draft: The draft that a download process may write to.
    """
    source, listed, stamp = _source(wanted), wanted.file.row.size, repr(time.time())
    try:
        async with source.open(0, listed) as body:
            if body.size is not None:
                await _confirm(wanted, body.size, source)
            if draft is not None and body.into is not None and body.size:
                await _write_by_process(body, draft, advance)
                size = draft.size
            else:
                size = await _take_pieces(wanted, body, take, advance)
            if body.size is None:
                await _confirm(wanted, size, source, framed=body.framed)
            elif size < body.size:
                raise BadReply(f"{wanted.path} ended after {size} of {body.size} bytes")
            return body.modified if body.modified == body.validator else stamp
    except NotFound as error:
        raise BadReply(f"the server lists it, but has lost it: {error}") from error


async def _take_pieces(wanted: Wanted, body: Body, take: Take, advance: Callable[[int], object]) -> int:
    """Pass a body to a thread, piece by piece; return its length."""
    size, batch = 0, bytearray()
    most = wanted.file.row.size if body.size is None else None

    async def flush() -> None:
        piece = bytes(batch)
        batch.clear()
        await trio.to_thread.run_sync(take, piece)
        advance(len(piece))

    async for chunk in body.chunks:
        size += len(chunk)
        batch += chunk
        if most is not None and size > most:  # it may have no end
            stated = None if wanted.digest else (await _source(wanted).head()).size
            if stated is None or stated < size:
                raise BadReply(f"{wanted.path}: of unknown length, and longer than it can be ({size} bytes)")
            most = stated
        if len(batch) >= DRAFT_PIECE_BYTES:
            await flush()
    await flush()
    return size


async def _write_by_process(body: Body, draft: Draft, advance: Callable[[int], object]) -> None:
    """Let a download process write a body into the draft, and hash what it has written."""
    assert body.into is not None
    assert body.size is not None
    written = 0
    async with aclosing(body.into(draft.fileno(), 0, body.size)) as counts:
        async for count in counts:
            written += count
            advance(count)
            if written - draft.size >= DRAFT_LAG_BYTES:
                await trio.to_thread.run_sync(draft.hash_written, written)
    await trio.to_thread.run_sync(draft.hash_written, written)


async def _confirm(wanted: Wanted, length: int, source: Source, *, framed: bool = False) -> None:
    """Raise BadReply if a length differs from the listed one, and the server does not confirm it."""
    if found := await find_contradiction(version(wanted.file.row), length, source, framed=framed):
        raise BadReply(f"{found}, run the command again")
