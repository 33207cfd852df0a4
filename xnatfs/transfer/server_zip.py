"""Download the server's own zip of a session's scans."""

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import trio

from xnatfs.common.errors import BadReply, Conflict
from xnatfs.site import Site
from xnatfs.transfer import manifest
from xnatfs.transfer.download import Options, files_in
from xnatfs.transfer.local_files import Draft, remove_drafts
from xnatfs.transfer.manifest import Owner
from xnatfs.transfer.progress import Progress

ZIP_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


async def download_zip(
    site: Site,
    owner: Owner,
    scans: Sequence[str] | None,
    target: Path,
    progress: Progress,
    options: Options = Options(),  # noqa: B008  it is frozen
) -> int:
    """Download the server's own zip of these scans (None: all), verify that it is readable, and return its length.

    Raises Conflict if `target` exists and is not to be replaced, or if its folder holds another session.
    """
    out = target.parent
    async with manifest.opened(out, options.on_wait) as record:
        if not record.check_owner(owner) and not await trio.to_thread.run_sync(files_in, out):
            record.claim(owner)
        if not options.force and await trio.to_thread.run_sync(os.path.lexists, target):
            raise Conflict(f"{target} is there already (--force fetches it anew)")
        if record.locked:
            remove_drafts([out])
        progress.begin(1, 0)
        draft = Draft(target)
        try:
            async with site.xnat.zip(owner.session, scans) as chunks:
                async for chunk in chunks:
                    await trio.to_thread.run_sync(draft.write, chunk)
                    progress.advance(len(chunk))
            await trio.to_thread.run_sync(_check_zip, draft.fileno(), target)
            await trio.to_thread.run_sync(draft.sync)
            draft.close()
            draft.publish(None)
        finally:
            draft.discard()
    progress.done(PurePosixPath(target.name))
    return draft.size


def _check_zip(descriptor: int, target: Path) -> None:
    """Raise BadReply unless every member can be read: the server sends archives without a length."""
    try:
        with open(f"/proc/self/fd/{descriptor}", "rb") as file, zipfile.ZipFile(file) as archive:
            # Deflate expands a byte to a thousand at most; XNAT sends no method that expands it to millions.
            if other := next((info for info in archive.infolist() if info.compress_type not in ZIP_METHODS), None):
                raise BadReply(f"{target.name} holds {other.filename} in a form that XNAT does not use")
            bad = archive.testzip()
    # Besides errors of its own, zipfile lets errors of its parts pass: of encrypted members, of damaged ones.
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise BadReply(f"{target.name} did not come as a whole archive: {error}") from None
    if bad:
        raise BadReply(f"{target.name} came damaged: {bad}")
