"""Copies of what is in the archive: which files, to where, and what of them is there already.

The bytes come through the content cache that mounts use: what one has read the other does not fetch again. A file has
its name only when it is whole and verified; until then it is a draft beside it, which the next run removes.
"""

import contextlib
import hashlib
import os
import struct
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import trio

from xnatfs.errors import BadReply, LoginRequired, NotFound, Stale, Unreachable, XnatError, first_error
from xnatfs.models import Experiment
from xnatfs.site import Site
from xnatfs.tree.node import Dir, File, StaticDir, measure
from xnatfs.tree.resources import ResourceDir
from xnatfs.tree.sessions import ScanDir, SessionDir

# As many as the client has in flight; more would only wait there.
WORKERS = 8
# Read from the cache and written at a time: a fraction of a millisecond of the event loop.
PIECE = 2**20
DRAFT = ".part"
ZIP_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file and its place below the directory to copy to. No part of a place is '..', or holds a '/'."""

    file: File
    place: PurePosixPath


class Progress(Protocol):
    """Who is told how a transfer goes."""

    def begin(self, files: int, size: int) -> None: ...

    def advance(self, size: int) -> None: ...

    def done(self, place: PurePosixPath) -> None: ...


@dataclass
class Report:
    """What came of a transfer. `files` and `size` count what is on disk and right afterwards."""

    files: int = 0
    size: int = 0
    copied: int = 0
    up_to_date: int = 0
    unverified: int = 0  # without a digest: only their length is known to be right
    requests: int = 0
    seconds: float = 0.0
    failed: list[tuple[PurePosixPath, str]] = field(default_factory=list)


def session_dir(site: Site, accession: str, label: str, xsi_type: str) -> SessionDir:
    """The tree of one session, as it is below its project in a mount."""
    row = Experiment(accession, label, xsi_type, "", "", "", None)
    return SessionDir(site, StaticDir(site, None, ""), accession, row)


async def plan(
    session: SessionDir,
    *,
    scans: Collection[str] | None = None,
    resources: Collection[str] = (),
    excluded: Collection[str] = (),
    of_session: bool = False,
    of_assessors: bool = False,
) -> list[Wanted]:
    """The files of these scans (None: all), of resources with these labels (empty: all but the excluded), and more.

    Raises NotFound that names every scan and label that is not there.
    """
    found: list[Wanted] = []
    labels: set[str] = set()

    def chosen(resource: ResourceDir) -> bool:
        names = {resource.resource.label, resource.resource.id, resource.name}
        if names & set(excluded) or (resources and not names & set(resources)):
            return False
        labels.update(names)
        return True

    scan_dirs = [node for node in (await (await _part(session, "scans")).children()).nodes.values()]
    known = {node.scan.id for node in scan_dirs if isinstance(node, ScanDir)}
    missing = sorted(set(scans or ()) - known)
    if missing:
        raise NotFound(
            f"scan {', '.join(missing)} is not in the session (its scans: {', '.join(sorted(known)) or 'none'})"
        )
    for node in scan_dirs:
        if isinstance(node, ScanDir) and (scans is None or node.scan.id in scans):
            found += await _resources(node, PurePosixPath("scans", node.name), chosen)
    if of_session:
        found += await _resources(await _part(session, "resources"), PurePosixPath(), chosen)
    if of_assessors:
        for assessor in (await (await _part(session, "assessors")).children()).nodes.values():
            assert isinstance(assessor, Dir)
            found += await _resources(assessor, PurePosixPath("assessors", assessor.name), chosen)
    if absent := sorted(set(resources) - labels):
        raise NotFound(f"resource {', '.join(absent)} is not there")
    return found


async def _part(session: SessionDir, name: str) -> Dir:
    node = await session.child(name)
    assert isinstance(node, Dir)
    return node


async def _resources(item: Dir, place: PurePosixPath, chosen: Callable[[ResourceDir], bool]) -> list[Wanted]:
    found: list[Wanted] = []
    for node in (await item.children()).nodes.values():
        assert isinstance(node, ResourceDir)
        if chosen(node):
            found += [each async for each in _files(node, place / "resources" / node.name / "files")]
    return found


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
    progress: Progress,
    workers: int = WORKERS,
    force: bool = False,
) -> Report:
    """Copy the files, several at once. One that cannot be had is reported, and the others go on.

    Raises LoginRequired and Unreachable, which concern them all, and OSError where `out` cannot be made.
    """
    report, began = Report(), time.monotonic()
    await _measure_all(wanted)
    progress.begin(len(wanted), sum(each.file.measured_size for each in wanted))
    await trio.to_thread.run_sync(lambda: out.mkdir(parents=True, exist_ok=True))
    places = iter(wanted)

    async def work() -> None:
        for each in places:  # shared: each takes the next one
            try:
                await _one(each, out, force, report, progress)
            except (LoginRequired, Unreachable):
                raise
            except (XnatError, OSError, UnicodeError) as error:  # the last of a name that no file system takes
                report.failed.append((each.place, str(error)))

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(max(1, min(workers, WORKERS))):
                nursery.start_soon(work)
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    report.seconds = time.monotonic() - began
    return report


async def _measure_all(wanted: Sequence[Wanted]) -> None:
    await measure(each.file for each in wanted if not each.file.measured)


async def _one(wanted: Wanted, out: Path, force: bool, report: Report, progress: Progress) -> None:
    file, target = wanted.file, out / wanted.place
    digest, size = file.xattrs().get("digest", ""), file.measured_size
    if not force and await trio.to_thread.run_sync(is_copy, target, size, digest, file.modified()):
        report.up_to_date += 1
        progress.advance(size)
    else:
        size = await _copy(file, target, progress)
        report.copied += 1
    report.files += 1
    report.size += size
    report.unverified += not digest
    progress.done(wanted.place)


async def _copy(file: File, target: Path, progress: Progress) -> int:
    """The file's length, after its copy has its name."""
    try:
        blob = await file.open()
    except Stale:  # the listing had another length; the node in its place has the true one
        assert file.parent is not None
        again = await file.parent.child(file.name)
        assert isinstance(again, File)
        file, blob = again, await again.open()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _draft(target) as draft:
            offset = 0
            while piece := await blob.read(offset, PIECE):
                draft.write(piece)
                offset += len(piece)
                progress.advance(len(piece))
            os.utime(draft.fileno(), (time.time(), file.modified()))
    finally:
        blob.close()
    return offset


@contextlib.contextmanager
def _draft(target: Path) -> Iterator["_Writer"]:
    """A file that takes its name when all went well, and is gone when not. It fits wherever its name does."""
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    path = target.with_name(f".{name}{DRAFT}")
    try:
        # A new one, whatever is there: somebody who may write here, too, could have put a link to another file there.
        path.unlink(missing_ok=True)
        with open(path, "xb", buffering=0) as file:
            yield _Writer(file.fileno())
            if not os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                raise XnatError(f"{target} is written by another command at the same time")
        os.replace(path, target)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


class _Writer:
    """A descriptor that is written to completely."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


def is_copy(target: Path, size: int, digest: str, modified: float) -> bool:
    """Whether the file is there. One with the time that we gave it is ours; of another the digest decides."""
    try:
        status = target.stat()
    except OSError:
        return False
    if status.st_size != size:
        return False
    if abs(status.st_mtime - modified) < 1e-3:
        return True
    return bool(digest) and md5(target) == digest


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


async def verify(wanted: Sequence[Wanted], out: Path) -> Report:
    """Read what is on disk once more, and compare it with the server's digests. Nothing is changed."""
    report = Report()
    await _measure_all(wanted)
    for each in wanted:
        digest, target = each.file.xattrs().get("digest", ""), out / each.place
        try:
            size = target.stat().st_size
            right = size == each.file.measured_size and (
                not digest or await trio.to_thread.run_sync(md5, target) == digest
            )
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
    site: Site, accession: str, scans: Sequence[str] | None, target: Path, progress: Progress
) -> int:
    """The server's own archive of these scans (None: all), whole and readable as one; its length."""
    await trio.to_thread.run_sync(lambda: target.parent.mkdir(parents=True, exist_ok=True))
    progress.begin(1, 0)
    size = 0
    with _draft(target) as draft:
        async with site.xnat.zip(accession, scans) as chunks:
            async for chunk in chunks:
                draft.write(chunk)
                size += len(chunk)
                progress.advance(len(chunk))
        await trio.to_thread.run_sync(_check_zip, draft.fileno(), target)
    progress.done(PurePosixPath(target.name))
    return size


def _check_zip(descriptor: int, target: Path) -> None:
    """Raise BadReply unless every member can be read: the server sends archives without a length."""
    try:
        with open(f"/proc/self/fd/{descriptor}", "rb") as file, zipfile.ZipFile(file) as archive:
            # Deflate makes a thousand bytes of one at most; what makes millions of one is not what XNAT sends.
            if other := next((info for info in archive.infolist() if info.compress_type not in ZIP_METHODS), None):
                raise BadReply(f"{target.name} holds {other.filename} in a form that XNAT does not use")
            bad = archive.testzip()
    # Beside what it is made to raise, zipfile lets out what its parts raise: of encrypted members, of damaged ones.
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise BadReply(f"{target.name} did not come as a whole archive: {error}") from None
    if bad:
        raise BadReply(f"{target.name} came damaged: {bad}")
