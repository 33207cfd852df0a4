"""Copy files of the archive to a local folder, except those that are there already.

The bytes come through the content cache that mounts use: a file that one has read the other does not fetch again. A
file gets its final name only when it is whole and verified; until then it is a draft beside it, which the next run
removes. A manifest (`xnatfs.transfer.manifest`) records what was written: only files that agree with it, or with the
server, are replaced.
"""

import contextlib
import enum
import errno
import hashlib
import os
import re
import secrets
import struct
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Protocol

import trio

from xnatfs.common.errors import (
    BadReply,
    Conflict,
    Denied,
    LoginRequired,
    NotFound,
    Stale,
    Unreachable,
    XnatError,
    first_error,
)
from xnatfs.content import Blob
from xnatfs.rest.models import Experiment, Row
from xnatfs.site import Site
from xnatfs.transfer import manifest
from xnatfs.transfer.manifest import Manifest, Owner, Written
from xnatfs.tree.node import Dir, File, Node, StaticDir, measure
from xnatfs.tree.resources import ResourceDir
from xnatfs.tree.sessions import AssessorDir, ScanDir, SessionDir

# Files copied in parallel: as many as the client has requests in flight; more would only wait there.
WORKERS = 8
# Bytes read from the cache and written at a time: they block the event loop for a fraction of a millisecond.
PIECE = 2**20
DRAFT = ".part"
# Names of drafts: a hash of the file's name, and a random part for the command. Earlier versions left the second out.
DRAFTS = re.compile(r"\.[0-9a-f]{16}(\.[0-9a-f]{16})?\.part")
# The folders of a session's files. Anything else in the folder of a session belongs to the user.
PARTS = ("scans", "resources", "assessors")
# Errors of a disk that would occur for the next file, too.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
ZIP_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file and its path below the target directory. No part of the path is '..', or holds a '/'."""

    file: File
    place: PurePosixPath


class Progress(Protocol):
    """Receive progress events of a transfer."""

    def begin(self, files: int, size: int) -> None: ...

    def advance(self, size: int) -> None: ...

    def done(self, place: PurePosixPath) -> None: ...


@dataclass
class Plan:
    """Files to copy, and what could not be listed."""

    files: list[Wanted] = field(default_factory=list)
    failed: list[tuple[PurePosixPath, XnatError]] = field(default_factory=list)


class Local(enum.Enum):
    """State of the local file relative to the server and the record."""

    ABSENT = enum.auto()
    RIGHT = enum.auto()  # has the digest that the server states
    OURS = enum.auto()  # has the bytes that an earlier run wrote
    OTHER = enum.auto()  # has bytes of unknown origin: edited, or of another program


@dataclass
class Report:
    """Result of a transfer. `files` and `size` count what is on disk and verified afterwards."""

    files: int = 0
    size: int = 0
    copied: int = 0
    up_to_date: int = 0
    unverified: int = 0  # without a digest: only their length is known to be right
    requests: int = 0
    seconds: float = 0.0
    kept: list[PurePosixPath] = field(default_factory=list)  # edited here, so not replaced
    failed: list[tuple[PurePosixPath, str]] = field(default_factory=list)


def session_dir(site: Site, accession: str, label: str, xsi_type: str, modified: float | None = None) -> SessionDir:
    """Return the tree of one session, as it is below its project in a mount."""
    row = Experiment(accession, label, xsi_type, "", "", "", modified)
    return SessionDir(site, StaticDir(site, None, ""), accession, row)


async def assessor_dir(site: Site, session: str, accession: str) -> AssessorDir:
    """Return the tree of one assessor, as it is below its session in a mount. Raises NotFound."""
    part = await _part(session_dir(site, session, "", "xnat:imageSessionData"), "assessors")
    for node in (await part.children()).nodes.values():
        assert isinstance(node, AssessorDir)
        if node.assessor.id == accession:
            return node
    raise NotFound(f"assessor {accession} is not listed in its session {session}")


async def last_modified(site: Site, accession: str, project: str, label: str) -> float | None:
    """Return when a session was last modified, in seconds since the epoch; lists report it, documents do not."""
    columns = "ID,label,insert_date,last_modified"
    try:
        rows: list[Row] = await site.xnat.rows("experiments", columns=columns, project=project, label=label)
    except (NotFound, Denied, BadReply):
        return None
    return next((row.modified() for row in rows if row.get("ID", "xnat:experimentdata/id") == accession), None)


async def plan(
    session: SessionDir | AssessorDir,
    *,
    scans: Collection[str] | None = None,
    resources: Collection[str] = (),
    excluded: Collection[str] = (),
    of_session: bool = False,
    of_assessors: bool = False,
) -> Plan:
    """List the files to copy from a session or an assessor.

    An assessor has no scans, and nothing but resources of its own.

    Args:
        scans: IDs of scans; None for all.
        resources: labels or numbers of resources; empty for all but the excluded.
        excluded: labels or numbers of resources to leave out.
        of_session: include the session's own resources.
        of_assessors: include the resources of the session's assessors.

    Returns:
        The files, and the directories that the server cannot list.

    Raises:
        NotFound: names every scan, or every label, that does not exist.
        XnatError: the first failure, if there is no file.
    """
    found = Plan()
    labels: set[str] = set()

    def chosen(resource: ResourceDir) -> bool:
        names = {resource.resource.label, resource.resource.id, resource.name}
        if names & set(excluded) or (resources and not names & set(resources)):
            return False
        labels.update(names)
        return True

    if isinstance(session, AssessorDir):
        await _add_resources(found, session, PurePosixPath(), chosen)
    else:
        for scan in await _scans(session, scans):
            await _add_resources(found, scan, PurePosixPath("scans", scan.name), chosen)
        if of_session:
            await _add_resources(found, await _part(session, "resources"), PurePosixPath(), chosen)
        if of_assessors:
            for assessor in await _children(found, await _part(session, "assessors"), PurePosixPath("assessors")):
                assert isinstance(assessor, Dir)
                await _add_resources(found, assessor, PurePosixPath("assessors", assessor.name), chosen)
    if found.failed and not found.files:
        raise found.failed[0][1]
    if (absent := sorted(set(resources) - labels)) and not found.failed:
        raise NotFound(f"resource {', '.join(absent)} is not there")
    return found


async def _scans(session: SessionDir, wanted: Collection[str] | None) -> list[ScanDir]:
    """Return these scans (None: all). Raises NotFound that names every one that is not there."""
    listed = (await (await _part(session, "scans")).children()).nodes.values()
    scans = [node for node in listed if isinstance(node, ScanDir)]
    known = {node.scan.id for node in scans}
    if missing := sorted(set(wanted or ()) - known):
        raise NotFound(
            f"scan {', '.join(missing)} is not in the session (its scans: {', '.join(sorted(known)) or 'none'})"
        )
    return [node for node in scans if wanted is None or node.scan.id in wanted]


async def _part(session: SessionDir, name: str) -> Dir:
    node = await session.child(name)
    assert isinstance(node, Dir)
    return node


async def _children(plan: Plan, directory: Dir, place: PurePosixPath) -> list[Node]:
    """List a directory; one that the server cannot list is among the plan's failures."""
    try:
        return list((await directory.children()).nodes.values())
    except (NotFound, Denied, BadReply) as error:
        plan.failed.append((place, error))
        return []


async def _add_resources(plan: Plan, item: Dir, place: PurePosixPath, chosen: Callable[[ResourceDir], bool]) -> None:
    for node in await _children(plan, item, place):
        assert isinstance(node, ResourceDir)
        if chosen(node):
            below = place / "resources" / node.name
            try:
                plan.files += [each async for each in _files(node, below / "files")]
            except (NotFound, Denied, BadReply) as error:
                plan.failed.append((below, error))


async def _files(directory: Dir, place: PurePosixPath) -> AsyncIterator[Wanted]:
    for node in (await directory.children()).nodes.values():
        if isinstance(node, File):
            yield Wanted(node, place / node.name)
        elif isinstance(node, Dir):
            async for each in _files(node, place / node.name):
                yield each


async def download(
    wanted: Sequence[Wanted],
    out: Path,
    *,
    owner: Owner,
    progress: Progress,
    workers: int = WORKERS,
    force: bool = False,
    on_wait: Callable[[], None] = lambda: None,
    session: SessionDir | AssessorDir | None = None,
) -> Report:
    """Copy the files of a session, several in parallel. An unavailable file is reported, and the others go on.

    Args:
        out: folder to copy to.
        owner: session that the folder holds, as its record names it.
        workers: number of files copied in parallel.
        force: fetch every file anew and replace edited ones, and accept the record of a server that has moved.
        on_wait: called once if another command holds the lock of the folder.
        session: its files, all of them, may show that a folder without a record belongs to it.

    Raises:
        Conflict: `out` holds another session, or is locked by a command that is stopped.
        LoginRequired, Unreachable: these concern all files.
        OSError: `out` cannot be written at all.
    """
    report, began = Report(), time.monotonic()
    await _measure_all(wanted)
    async with manifest.opened(out, on_wait) as record:
        if not record.check_owner(owner, force=force):
            record.forget()
            if not force:
                await _check_files(record, owner, wanted, session)
        record.claim(owner)
        if record.locked:
            await trio.to_thread.run_sync(_remove_drafts, {(out / each.place).parent for each in wanted})
        progress.begin(len(wanted), sum(each.file.measured_size for each in wanted))
        await _copy_all(wanted, _Copying(record, force, report, progress), workers)
    report.seconds = time.monotonic() - began
    return report


async def _check_files(
    record: Manifest, owner: Owner, wanted: Sequence[Wanted], session: SessionDir | AssessorDir | None
) -> None:
    """Raise Conflict unless most of the files in a folder without a record are as the server has them in this session.

    Earlier versions have left such folders. Two sessions may share a file, and a file of this one may have changed.
    """
    there = await trio.to_thread.run_sync(_files_in, record.out)
    if not there:
        return
    if session is not None:
        wanted = (await plan(session, of_session=True, of_assessors=True)).files
    agreeing = [each for each in wanted if each.place in there and await _agrees(each, record.out / each.place)]
    if 2 * len(agreeing) <= len(there):
        text = f"{record.out} holds files that are not those of {owner}"
        raise Conflict(f"{text}: give another --out, or --force to add to them")


def _files_in(out: Path) -> set[PurePosixPath]:
    """Return the paths of session files in a folder; links do not count, and are replaced."""
    found = (path for part in PARTS for path in (out / part).rglob("*") if not DRAFTS.fullmatch(path.name))
    return {PurePosixPath(path.relative_to(out)) for path in found if path.is_file() and not path.is_symlink()}


async def _agrees(wanted: Wanted, target: Path) -> bool:
    """Return whether a local file has the server's bytes; if the server states no digest, they are fetched."""
    digest = wanted.file.xattrs().get("digest", "")
    try:
        _, now = await trio.to_thread.run_sync(_inspect, target, digest, None)
        if now is None or now.size != await wanted.file.size():
            return False
        return now.md5 == (digest or (await _fetch_md5(wanted.file))[0])
    except (LoginRequired, Unreachable):
        raise
    except (XnatError, OSError, UnicodeError):
        return False


def _remove_drafts(directories: Iterable[Path]) -> None:
    """Remove the drafts of killed commands; the caller holds the lock, so no other command is writing one."""
    for directory in directories:
        try:
            found = [path for path in directory.iterdir() if DRAFTS.fullmatch(path.name)]
        except (OSError, UnicodeError):
            continue
        for path in found:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Copying:
    """Shared state of one download."""

    record: Manifest
    force: bool
    report: Report
    progress: Progress


async def _copy_all(wanted: Sequence[Wanted], copying: _Copying, workers: int) -> None:
    report, places = copying.report, iter(wanted)

    async def work() -> None:
        for each in places:  # shared: each worker takes the next one
            try:
                await _one(each, copying)
            except (LoginRequired, Unreachable):
                raise
            except OSError as error:
                if error.errno in DISK_ERRORS:
                    raise OSError(error.errno, error.strerror, str(copying.record.out / each.place)) from error
                report.failed.append((each.place, error.strerror or str(error)))
            except (XnatError, UnicodeError) as error:  # UnicodeError: a name that no file system accepts
                report.failed.append((each.place, str(error)))

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(max(1, min(workers, WORKERS))):
                nursery.start_soon(work)
    except BaseExceptionGroup as group:
        raise first_error(group) from None


async def _measure_all(wanted: Sequence[Wanted]) -> None:
    await measure(each.file for each in wanted if not each.file.measured)


async def _one(wanted: Wanted, copying: _Copying) -> None:
    file, target = wanted.file, copying.record.out / wanted.place
    digest, written = file.xattrs().get("digest", ""), copying.record.get(wanted.place)
    report, progress = copying.report, copying.progress
    before = _status(target)
    local, now = await trio.to_thread.run_sync(_inspect, target, digest, written)
    if copying.force or now is None:
        right = False
    elif not digest:
        right, now = await _is_right(file, local, now, written)
    else:
        right = local is Local.RIGHT
    if right:
        assert now is not None
        report.up_to_date += 1
        progress.advance(now.size)
    elif local is Local.OTHER and not copying.force:
        report.kept.append(wanted.place)
        return
    else:
        try:
            now = await _copy(file, target, progress, None if copying.force else before)
        except _Edited:
            report.kept.append(wanted.place)
            return
        report.copied += 1
    if now != written:
        copying.record.put(wanted.place, now)
    report.files += 1
    report.size += now.size
    report.unverified += not digest
    progress.done(wanted.place)


def _inspect(target: Path, digest: str, written: Written | None) -> tuple[Local, Written | None]:
    """Return how a local file relates to the server, and its state; it is read only if not as it was written."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return Local.ABSENT, None
    if not S_ISREG(status.st_mode):
        raise FileExistsError(errno.EEXIST, "is there already, and is not a regular file", str(target))
    held = written.md5 if written and written.is_untouched(status) else md5(target)
    now = Written.of(status, held)
    if held == digest:
        return Local.RIGHT, now
    if written and held == written.md5:
        return Local.OURS, now
    # A link is replaced, and its target stays. An empty file may be left by a power failure, and holds no work.
    return (Local.ABSENT, None) if target.is_symlink() or not now.size else (Local.OTHER, now)


async def _is_right(file: File, local: Local, now: Written, written: Written | None) -> tuple[bool, Written]:
    """Return whether a file without a digest on the server has the server's bytes, and its state with its stamp."""
    if local is Local.OURS and written and (stamp := await file.unchanged_since(written.size, written.stamp)):
        return True, replace(now, stamp=stamp)
    theirs, stamp = await _fetch_md5(file)
    return theirs == now.md5, replace(now, stamp=stamp)


class _Edited(Exception):
    """The file was edited during the download of its replacement."""


def _status(path: Path) -> tuple[int, ...]:
    """Return what changes when a file, or the link in its place, is written or replaced; empty if it is absent."""
    try:
        status = path.lstat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_edited(path: Path, before: tuple[int, ...], digest: str) -> bool:
    """Return whether a file changed since `before` and holds other bytes than those of `digest`."""
    if _status(path) in (before, ()):  # a removed file has nothing to lose
        return False
    try:
        return md5(path) != digest
    except FileNotFoundError:  # a dangling link, unless it has been removed by now
        return path.is_symlink()


async def _copy(file: File, target: Path, progress: Progress, before: tuple[int, ...] | None) -> Written:
    """Copy a file; return its state under its final name. Raises _Edited if its status is not a given `before`."""
    file, blob = await _open(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _draft(target) as draft:

            def write(piece: bytes) -> None:
                draft.write(piece)
                progress.advance(len(piece))

            held = await _read(blob, file.xattrs().get("digest", ""), write)
            os.utime(draft.fileno(), (time.time(), file.modified()))
            await _sync(draft)
            if before is not None and await trio.to_thread.run_sync(_is_edited, target, before, held):
                raise _Edited
        return Written.of(draft.status, held, blob.stamp)
    finally:
        blob.close()


async def _sync(draft: "_Writer") -> None:
    """Write a draft to the disk: a power failure must not leave less of it under the final name."""
    await trio.to_thread.run_sync(os.fdatasync, draft.fileno())


async def _open(file: File) -> tuple[File, Blob]:
    """Open a file, or, if its listing had a wrong length, the node in its place, which has the true one."""
    try:
        return file, await file.open()
    except Stale:
        assert file.parent is not None
        again = await file.parent.child(file.name)
        assert isinstance(again, File)
        return again, await again.open()


async def _fetch_md5(file: File) -> tuple[str, str]:
    """Return the MD5 and the stamp of a file for which the server states no digest."""
    _, blob = await _open(file)
    try:
        return await _read(blob, "", lambda piece: None), blob.stamp
    finally:
        blob.close()


async def _read(blob: Blob, digest: str, take: Callable[[bytes], None]) -> str:
    """Read a file to its end, piece by piece; return its MD5. A digest that is known was verified on the way."""
    hashed = None if digest else hashlib.md5(usedforsecurity=False)
    offset = 0
    while piece := await blob.read(offset, PIECE):
        take(piece)
        if hashed is not None:
            hashed.update(piece)
        offset += len(piece)
    return digest if hashed is None else hashed.hexdigest()


@contextlib.contextmanager
def _draft(target: Path) -> Iterator["_Writer"]:
    """Yield a draft that gets its final name on success, and is removed on failure.

    Its own name is short, for file systems that limit names. No other command uses it, which matters where locks do not
    work: so no command renames the unfinished draft of another.
    """
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    path = target.with_name(f".{name}.{secrets.token_hex(8)}{DRAFT}")
    try:
        with open(path, "xb", buffering=0) as file:
            draft = _Writer(file.fileno())
            yield draft
            os.replace(path, target)
            draft.status = os.fstat(file.fileno())  # read again, since the rename changed it
    except BaseException:
        path.unlink(missing_ok=True)
        raise


class _Writer:
    """A descriptor; `write` does not return before all bytes are written."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.status = os.fstat(descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


async def verify(wanted: Sequence[Wanted], out: Path, owner: Owner) -> Report:
    """Compare the files on disk with the server's digests, or else with the recorded ones. Nothing is changed.

    Raises Conflict if `out` holds another session.
    """
    report, record = Report(), Manifest(out)
    record.check_owner(owner)
    record.load()
    await _measure_all(wanted)
    for each in wanted:
        digest, written, target = each.file.xattrs().get("digest", ""), record.get(each.place), out / each.place
        try:
            status = target.stat()
            size, right = status.st_size, S_ISREG(status.st_mode)
            right = right and (bool(digest) or size == each.file.measured_size)
            if right and (known := digest or (written.md5 if written else "")):
                right = await trio.to_thread.run_sync(md5, target) == known
        except (OSError, UnicodeError) as error:
            report.failed.append((each.place, getattr(error, "strerror", "") or str(error)))
            continue
        if not right:
            report.failed.append((each.place, "is not what the server has"))
            continue
        report.files += 1
        report.size += size
        report.unverified += not digest
    return report


async def download_zip(
    site: Site,
    owner: Owner,
    scans: Sequence[str] | None,
    target: Path,
    *,
    progress: Progress,
    force: bool = False,
    on_wait: Callable[[], None] = lambda: None,
) -> int:
    """Download the server's own zip of these scans (None: all), verify that it is readable, and return its length.

    Raises Conflict if `target` exists and `force` is false, or if its folder holds another session.
    """
    out, size = target.parent, 0
    async with manifest.opened(out, on_wait) as record:
        if not record.check_owner(owner) and not await trio.to_thread.run_sync(_files_in, out):
            record.claim(owner)
        if not force and await trio.to_thread.run_sync(os.path.lexists, target):
            raise Conflict(f"{target} is there already (--force fetches it anew)")
        if record.locked:
            _remove_drafts([out])
        progress.begin(1, 0)
        with _draft(target) as draft:
            async with site.xnat.zip(owner.session, scans) as chunks:
                async for chunk in chunks:
                    draft.write(chunk)
                    size += len(chunk)
                    progress.advance(len(chunk))
            await trio.to_thread.run_sync(_check_zip, draft.fileno(), target)
            await _sync(draft)
    progress.done(PurePosixPath(target.name))
    return size


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
