"""Share the state of one download among its tasks: what is missing, what has arrived, what failed."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, TypeVar

import trio

from xnatfs.common.errors import LoginRequired, Unreachable, XnatError
from xnatfs.transfer.local_files import Draft, Edited, sync_drafts
from xnatfs.transfer.manifest import Manifest, Written
from xnatfs.transfer.plan import Wanted

T = TypeVar("T")

# Errors of a disk that would occur for the next file, too.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
# Seconds between two publications of what has arrived: a killed command loses the drafts since the last one. Each sync
# costs a commit of the file system's journal, and works beside the transfer.
PUBLISH_SECONDS = 0.5


class Progress(Protocol):
    """Receive progress events of a transfer."""

    def begin(self, files: int, size: int) -> None: ...

    def advance(self, size: int) -> None: ...

    def done(self, place: PurePosixPath) -> None: ...


class NoProgress:
    """Report nothing."""

    def begin(self, files: int, size: int) -> None: ...

    def advance(self, size: int) -> None: ...

    def done(self, place: PurePosixPath) -> None: ...


class Missing(NamedTuple):
    """A file to fetch, and the fingerprint of what it may replace; None for anything."""

    wanted: Wanted
    before: tuple[int, ...] | None


class Arrived(NamedTuple):
    """A whole, verified and closed draft of a missing file."""

    missing: Missing
    draft: Draft
    stamp: str


@dataclass
class DownloadReport:
    """Result of a download. `files` and `size` count what is on disk and verified afterwards."""

    files: int = 0
    size: int = 0
    copied: int = 0
    up_to_date: int = 0
    unverified: int = 0  # without a digest: only their length is known to be right
    seconds: float = 0.0
    kept: list[PurePosixPath] = field(default_factory=list)  # edited here, so not replaced
    failed: list[tuple[PurePosixPath, str]] = field(default_factory=list)


class Copying:
    """One download into a folder."""

    def __init__(self, record: Manifest, report: DownloadReport, progress: Progress) -> None:
        self.record = record
        self.report = report
        self.progress = progress
        self._arrived: list[Arrived] = []

    def target(self, wanted: Wanted) -> Path:
        return self.record.out / wanted.place

    @contextmanager
    def failing(self, wanted: Wanted) -> Iterator[None]:
        """Report a failure that concerns this file alone; raise one that concerns all."""
        try:
            yield
        except (LoginRequired, Unreachable):
            raise
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise OSError(error.errno, error.strerror, str(self.target(wanted))) from error
            self.report.failed.append((wanted.place, error.strerror or str(error)))
        except (XnatError, UnicodeError) as error:  # UnicodeError: a name that no file system accepts
            self.report.failed.append((wanted.place, str(error)))

    def has(self, wanted: Wanted, now: Written) -> None:
        """Count a file that is on the disk in this state."""
        if now != self.record.get(wanted.place):
            self.record.put(wanted.place, now)
        self.report.files += 1
        self.report.size += now.size
        self.report.unverified += not wanted.digest
        self.progress.done(wanted.place)

    def arrive(self, arrived: Arrived) -> None:
        """Queue a draft, which gets its name with the next ones."""
        self._arrived.append(arrived)

    async def publish_often(self) -> None:
        """Publish what has arrived from time to time, until cancelled."""
        while True:
            await trio.sleep(PUBLISH_SECONDS)
            await self.publish()

    async def publish(self) -> None:
        """Synchronize the disk, and give the drafts that have arrived their names."""
        arrived, self._arrived = self._arrived, []
        if not arrived:
            return
        with trio.CancelScope(shield=True):  # they are whole: an interrupt must not lose them
            published = await trio.to_thread.run_sync(_publish, arrived)
        for each, outcome in zip(arrived, published, strict=True):
            wanted = each.missing.wanted
            with self.failing(wanted):
                if isinstance(outcome, Edited):
                    self.report.kept.append(wanted.place)
                elif isinstance(outcome, Exception):
                    raise outcome
                else:
                    self.report.copied += 1
                    self.has(wanted, outcome)


def _publish(arrived: list[Arrived]) -> list[Written | Exception]:
    try:
        sync_drafts([each.draft for each in arrived])
    except BaseException:
        for each in arrived:
            each.draft.discard()
        raise
    return [_named(each) for each in arrived]


def _named(arrived: Arrived) -> Written | Exception:
    draft = arrived.draft
    try:
        return Written.from_stat(draft.publish(arrived.missing.before), draft.md5(), arrived.stamp)
    except (Edited, OSError) as error:
        draft.discard()
        return error
