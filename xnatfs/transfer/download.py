"""Copy files of the archive to a local folder, except those that are there already.

Small files come in tars (`xnatfs.transfer.tars`), other files one by one. A file gets its final name only when it is
whole, verified and on the disk; until then it is a draft beside it, which the next run removes. A manifest
(`xnatfs.transfer.manifest`) records what was written: only files that agree with it, or with the server, are replaced.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path, PurePosixPath
from stat import S_ISREG

import trio

from xnatfs.common.errors import BadReply, Conflict, LoginRequired, Unreachable, XnatError, first_error
from xnatfs.common.tasks import background, in_parallel
from xnatfs.prefetch.file_version import version
from xnatfs.site import Site
from xnatfs.transfer import manifest, single_files, tars
from xnatfs.transfer.copying import Copying, DownloadReport, Missing, Progress
from xnatfs.transfer.local_files import DRAFT_NAMES, Draft, LocalState, fingerprint, inspect, md5, remove_drafts
from xnatfs.transfer.manifest import Manifest, Owner, Written
from xnatfs.transfer.plan import Wanted, plan
from xnatfs.tree.node import measure
from xnatfs.tree.sessions import AssessorDir, SessionDir

# Files copied in parallel: as many as the client has requests in flight; more would only wait there.
PARALLEL_COPIES = 8
# Local files that a thread looks at in one call.
INSPECTED_TOGETHER = 100
# The folders of a session's files. Anything else in the folder of a session belongs to the user.
PARTS = ("scans", "resources", "assessors")
ZIP_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a download.

    Attributes:
        workers: Number of single files copied in parallel.
        force: Fetch every file anew and replace edited ones, and accept the record of a server that has moved.
        on_wait: Called once if another command holds the lock of the folder.
    """

    workers: int = PARALLEL_COPIES
    force: bool = False
    on_wait: Callable[[], None] = lambda: None


async def download(
    wanted: Sequence[Wanted],
    out: Path,
    owner: Owner,
    progress: Progress,
    options: Options = Options(),
    session: SessionDir | AssessorDir | None = None,
) -> DownloadReport:
    """Copy the files of a session, several in parallel. An unavailable file is reported, and the others go on.

    Args:
        wanted: The files.
        out: Folder to copy to.
        owner: Session that the folder holds, as its record names it.
        progress: Receives the progress.
        options: Options of the download.
        session: The tree of the session; its files may prove that a folder without a record belongs to it.

    Raises:
        Conflict: `out` holds another session, or is locked by a command that is stopped.
        LoginRequired, Unreachable: These concern all files.
        OSError: `out` cannot be written at all.
    """
    report = DownloadReport()
    await _measure_all(wanted)
    async with manifest.opened(out, options.on_wait) as record:
        if not record.check_owner(owner, force=options.force):
            record.forget()
            if not options.force:
                await _check_files(record, owner, wanted, session)
        record.claim(owner)
        if record.locked:
            folders = {str(each.place).rpartition("/")[0] for each in wanted}
            await trio.to_thread.run_sync(remove_drafts, [out / folder for folder in folders])
        progress.begin(len(wanted), sum(each.file.measured_size for each in wanted))
        await _copy_all(wanted, Copying(record, report, progress), options)
    return report


async def _check_files(
    record: Manifest, owner: Owner, wanted: Sequence[Wanted], session: SessionDir | AssessorDir | None
) -> None:
    """Raise Conflict unless most of the files in a folder without a record are as the server has them in this session.

    Earlier versions have left such folders. Two sessions may share a file, and a file of this one may have changed.
    """
    there = await trio.to_thread.run_sync(files_in, record.out)
    if not there:
        return
    if session is not None:
        wanted = (await plan(session, of_session=True, of_assessors=True)).files
    agreeing = [each for each in wanted if each.place in there and await _agrees(each, record.out / each.place)]
    if 2 * len(agreeing) <= len(there):
        text = f"{record.out} holds files that are not those of {owner}"
        raise Conflict(f"{text}: give another --out, or --force to add to them")


def files_in(out: Path) -> set[PurePosixPath]:
    """Return the paths of session files in a folder; links do not count, and are replaced."""
    found = (path for part in PARTS for path in (out / part).rglob("*") if not DRAFT_NAMES.fullmatch(path.name))
    return {
        PurePosixPath(path.relative_to(out).as_posix()) for path in found if path.is_file() and not path.is_symlink()
    }


async def _agrees(wanted: Wanted, target: Path) -> bool:
    """Return whether a local file has the server's bytes; if the server states no digest, they are fetched."""
    try:
        _, now = await trio.to_thread.run_sync(inspect, target, wanted.digest, None)
        if now is None or now.size != await wanted.file.size():
            return False
        return now.md5 == (wanted.digest or (await single_files.fetch_md5(wanted))[0])
    except (LoginRequired, Unreachable):
        raise
    except (XnatError, OSError, UnicodeError):
        return False


async def _copy_all(wanted: Sequence[Wanted], copying: Copying, options: Options) -> None:
    """Find out what is missing, and fetch it: by tars, then what these have not brought, one by one."""
    workers = max(1, min(options.workers, PARALLEL_COPIES))
    missing = await _find_missing(wanted, copying, options.force)
    try:
        async with background() as nursery:
            nursery.start_soon(copying.publish_often)
            cached, others = await _by_cache(missing) if not options.force else ([], missing)
            others = await tars.fetch(others, copying)
            others = await tars.fetch(others, copying, together=False)
            await in_parallel(cached, lambda each: single_files.fetch_cached(each, copying), workers)
            await in_parallel(others, lambda each: single_files.fetch(each, copying), workers)
    except BaseExceptionGroup as group:  # of the publisher
        raise first_error(group) from None
    finally:
        await copying.publish()


# -- what is there -----------------------------------------------------------------------------------------------


async def _find_missing(wanted: Sequence[Wanted], copying: Copying, force: bool) -> list[Missing]:
    """Return the files to fetch. Those that are right are counted, those that are edited reported."""
    missing: dict[int, Missing] = {}

    async def look(start: int) -> None:
        some = wanted[start : start + INSPECTED_TOGETHER]
        found = await trio.to_thread.run_sync(_inspect_all, some, copying, abandon_on_cancel=True)
        for place, (each, (before, seen)) in enumerate(zip(some, found, strict=True), start):
            with copying.failing(each):
                if isinstance(seen, Exception):
                    raise seen
                if force or await _is_missing(each, *seen, copying):
                    missing[place] = Missing(each, None if force else before)

    await in_parallel(range(0, len(wanted), INSPECTED_TOGETHER), look, PARALLEL_COPIES)
    return [each for _, each in sorted(missing.items(), key=itemgetter(0))]


Seen = tuple[LocalState, Written | None]


def _inspect_all(wanted: Sequence[Wanted], copying: Copying) -> list[tuple[tuple[int, ...], Seen | Exception]]:
    """Return the fingerprint and the state of each local file, or why it is unreadable."""
    found: list[tuple[tuple[int, ...], Seen | Exception]] = []
    for each in wanted:
        target = copying.target(each)
        try:
            before = fingerprint(target)
            seen = inspect(target, each.digest, copying.record.get(each.place)) if before else (LocalState.ABSENT, None)
            found.append((before, seen))
        except (OSError, UnicodeError) as error:
            found.append(((), error))
    return found


async def _is_missing(wanted: Wanted, state: LocalState, now: Written | None, copying: Copying) -> bool:
    """Return whether a file is to be fetched; count one that is right, report one that is edited."""
    if now is None:
        return True
    is_right = state is LocalState.RIGHT
    if not wanted.digest:
        is_right, now = await _is_right(wanted, state, now, copying.record.get(wanted.place))
    if is_right:
        copying.report.up_to_date += 1
        copying.progress.advance(now.size)
        copying.has(wanted, now)
    elif state is LocalState.OTHER:
        copying.report.kept.append(wanted.place)
    else:
        return True
    return False


async def _is_right(wanted: Wanted, state: LocalState, now: Written, written: Written | None) -> tuple[bool, Written]:
    """Return whether a file without a digest on the server has the server's bytes, and its state with its stamp."""
    if (
        state is LocalState.OURS
        and written
        and (stamp := await wanted.file.unchanged_since(written.size, written.stamp))
    ):
        return True, replace(now, stamp=stamp)
    theirs, stamp = await single_files.fetch_md5(wanted)
    return theirs == now.md5, replace(now, stamp=stamp)


async def _measure_all(wanted: Sequence[Wanted]) -> None:
    await measure(each.file for each in wanted if not each.file.measured)


async def _by_cache(missing: Sequence[Missing]) -> tuple[list[Missing], list[Missing]]:
    """Separate the files that the content cache has, which a mount has read, from the others."""
    content = missing[0].wanted.file.site.content if missing else None
    if content is None or not content.bytes_used:
        return [], list(missing)
    versions = {version(each.wanted.file.row): each for each in missing}
    kept = await content.find_cached(list(versions))
    return [versions[key] for key in kept], [each for key, each in versions.items() if key not in kept]


# -- verifying ---------------------------------------------------------------------------------------------------


async def verify(wanted: Sequence[Wanted], out: Path, owner: Owner) -> DownloadReport:
    """Compare the files on disk with the server's digests, or else with the recorded ones. Nothing is changed.

    Raises Conflict if `out` holds another session.
    """
    report, record = DownloadReport(), Manifest(out)
    record.check_owner(owner)
    record.load()
    await _measure_all(wanted)
    for each in wanted:
        written, target = record.get(each.place), out / each.place
        try:
            status = target.stat()
            size, right = status.st_size, S_ISREG(status.st_mode)
            right = right and (bool(each.digest) or size == each.file.measured_size)
            if right and (known := each.digest or (written.md5 if written else "")):
                right = await trio.to_thread.run_sync(md5, target) == known
        except (OSError, UnicodeError) as error:
            report.failed.append((each.place, getattr(error, "strerror", "") or str(error)))
            continue
        if not right:
            report.failed.append((each.place, "is not what the server has"))
            continue
        report.files += 1
        report.size += size
        report.unverified += not each.digest
    return report


# -- the server's own archive --------------------------------------------------------------------------------------


async def download_zip(
    site: Site,
    owner: Owner,
    scans: Sequence[str] | None,
    target: Path,
    progress: Progress,
    options: Options = Options(),
) -> int:
    """Download the server's own zip of scans, verify that it is readable, and return its length in bytes.

    Args:
        site: The server.
        owner: Session that the folder of `target` holds, as its record names it.
        scans: IDs of the scans; None for all.
        target: The file to write.
        progress: Receives the progress; the length is unknown beforehand.
        options: Options of the download.

    Raises:
        Conflict: `target` exists and is not to be replaced, or its folder holds another session.
    """
    out = target.parent
    async with manifest.opened(out, options.on_wait) as record:
        if not record.check_owner(owner) and not await trio.to_thread.run_sync(files_in, out):
            record.claim(owner)
        if not options.force and await trio.to_thread.run_sync(os.path.lexists, target):
            raise Conflict(f"{target} exists already (--force fetches it anew)")
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
        with open(os.dup(descriptor), "rb") as file, zipfile.ZipFile(file) as archive:
            # Deflate expands a byte to a thousand at most; XNAT sends no method that expands it to millions.
            if other := next((info for info in archive.infolist() if info.compress_type not in ZIP_METHODS), None):
                raise BadReply(f"{target.name} holds {other.filename} in a form that XNAT does not use")
            bad = archive.testzip()
    # Besides errors of its own, zipfile lets errors of its parts pass: of encrypted members, of damaged ones.
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise BadReply(f"{target.name} did not come as a whole archive: {error}") from None
    if bad:
        raise BadReply(f"{target.name} came damaged: {bad}")
