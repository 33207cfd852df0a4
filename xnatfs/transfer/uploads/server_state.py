"""Find out what the server holds of an upload: before it begins, when it resumes, and until its session has arrived."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import trio

from xnatfs.common.errors import BadReply, Conflict, NotFound, Uncertain
from xnatfs.common.tasks import gather
from xnatfs.rest import prearchive
from xnatfs.rest.client import Xnat
from xnatfs.rest.models import FileRow, PrearchiveSession, total
from xnatfs.transfer.uploads.import_service import Target
from xnatfs.transfer.uploads.journal import DONE, NEW, SENT, Journal

log = logging.getLogger(__name__)

# Seconds without a change after which an archived session counts as complete, if older files hide how many have
# arrived: the server pauses between two files for less.
STEADY_SECONDS = 60.0

# Resources that the server puts images in.
IMAGES = frozenset({"DICOM", "secondary"})

# In a journal, the place of a session in the archive; places in the prearchive are paths.
ARCHIVE = "archive"

Where = Literal["archive", "prearchive", "direct"]


@dataclass
class Outcome:
    """Result of an upload. `arrived` counts its files that are known to be there; None where that is not known."""

    files: int = 0
    size: int = 0
    sent: int = 0  # files that this run has sent
    resumed: bool = False
    where: Where = "prearchive"
    place: str = ""
    status: str = ""  # in the prearchive
    accession: str = ""
    arrived: int | None = None
    before: int | None = 0  # files that were there before, which hide how many arrived; None if unknown
    changed: int = 0  # files that have another digest on the server: anonymized there
    seconds: float = 0.0
    held: int | None = None  # files that the archived session had when it was last looked at, older ones too
    held_since: float = 0.0  # on trio's clock

    def is_steady(self, held: int) -> bool:
        """Record how many files the session has; return whether these are as many as STEADY_SECONDS ago."""
        if held != self.held:
            self.held, self.held_since = held, trio.current_time()
        return trio.current_time() - self.held_since >= STEADY_SECONDS


async def check_free(xnat: Xnat, target: Target) -> None:
    """Raise Conflict if a session of that label exists, NotFound if the project does not."""
    where = f"session {target.session} of project {target.project}"
    hint = "--overwrite append adds to it, --overwrite delete replaces its files"
    try:
        rows, fields = await gather(
            lambda: xnat.prearchive(target.project),
            lambda: prearchive.archived(xnat, target.project, target.session),
        )
        if not rows:  # old servers list nothing for a missing project, and put uploads to it into Unassigned
            await xnat.item("projects", target.project)
    except NotFound as error:
        text = f"project {target.project} not found on {xnat.url}"
        raise NotFound(text, status=404, url=xnat.url) from error
    if fields:
        text = f"{where} is in the archive already, as {fields.get('ID')}; nothing was sent ({hint})"
        raise Conflict(text, status=409, url=xnat.url, hint=hint)
    if found := prearchive.matching(rows, target.session):
        text = f"{where} is in the prearchive already ({', '.join(row.id for row in found)})"
        raise Conflict(f"{text}; nothing was sent ({hint})", status=409, url=xnat.url, hint=hint)


async def reconcile(xnat: Xnat, target: Target, journal: Journal, studies: Collection[str], *, exact: bool) -> bool:
    """Update a journal by what the server holds; return whether it holds anything of this upload.

    Args:
        xnat: Client of the server.
        target: Destination of the upload.
        journal: The journal, which is not written.
        studies: The Study Instance UIDs of the images.
        exact: Whether all files that the server holds there are of this upload.
    """
    waiting, held = await _own(xnat, target, journal, studies)
    log.info("the journal has %d files done, the server %s in %s", journal.count(DONE), held, waiting)
    found = bool(waiting) or held is not None or any("/direct-archive/" in uri for uri in journal.places())
    if not found or (held is not None and held < journal.count(DONE)):  # deleted there, or never stored
        for batch in journal.batches:
            batch.state, batch.uris = NEW, []
        return found
    there = sorted(f"/data{row.path}" for row in waiting)
    for batch in journal.batches:
        if batch.state == SENT and exact and held is not None and held >= journal.count(DONE, SENT):
            batch.state = DONE
        if batch.state == DONE and there and not (batch.uris and set(batch.uris) <= set(there)):
            batch.uris = there  # its answer was lost, or the session was moved
    return found


async def complete(xnat: Xnat, target: Target, journal: Journal) -> Outcome:
    """Commit the upload, and find out where its session is. The server may still be processing it."""
    outcome = Outcome(resumed=journal.resumed)
    for uri in journal.places():
        waiting = PrearchiveSession.parse_uri(uri)
        if waiting is None:
            outcome.where, outcome.place = ("direct" if "/direct-archive/" in uri else "archive"), uri
            continue
        outcome.where, outcome.place = "prearchive", uri
        try:
            after = await prearchive.commit(xnat, waiting)
        except NotFound:  # the project archives by itself, and has archived it
            after = ""
        except (Conflict, BadReply, Uncertain) as error:  # the server builds the session when it receives nothing more
            log.info("not committed: %s", error)
            continue
        if PrearchiveSession.parse_uri(after) is None:
            outcome.where, outcome.place = "archive", after
    return outcome


async def look(xnat: Xnat, target: Target, outcome: Outcome, journal: Journal) -> bool:
    """Record in `outcome` where the session is and how many files arrived; return whether the server is done."""
    waiting = PrearchiveSession.parse_uri(outcome.place)
    row = await prearchive.look(xnat, waiting) if waiting else None
    if row:
        outcome.where, outcome.status = "prearchive", row.status
        _count(outcome, journal, row.path, await prearchive.held(xnat, row))
        return not row.busy
    accession, files = await _in_archive(xnat, target)
    sent, digests = journal.digests(), {file.digest for file in files if file.digest}
    if accession:
        _count(outcome, journal, ARCHIVE, len(files), len(sent & digests))
    if not accession or outcome.arrived is None:
        # A conflict on the way to the archive leaves the session in the prearchive, which lists it.
        left = prearchive.matching(await xnat.prearchive(target.project), target.session)
        stuck = next((each for each in left if not each.busy and each.path not in journal.before), None)
        if stuck:
            outcome.place = f"/data{stuck.path}"
            return await look(xnat, target, outcome, journal)
    if not accession or (outcome.arrived is None and target.direct and not outcome.is_steady(len(files))):
        return False
    outcome.where, outcome.accession, outcome.status = "archive", accession, ""
    outcome.place = f"/data/experiments/{accession}"
    if outcome.arrived is None:
        return True  # it has left the prearchive
    complete = outcome.arrived >= journal.count(NEW, SENT, DONE)
    outcome.changed = len(sent - digests) if digests and complete else 0
    return complete


def _count(outcome: Outcome, journal: Journal, place: str, held: int | None, recognized: int = 0) -> None:
    """Record how many files have arrived; None if older files hide that, some of which may have been replaced.

    Args:
        outcome: Receives the number.
        journal: States how many files were there before, and are sent.
        place: Path of the session in the prearchive, or ARCHIVE.
        held: Number of files that the session has now; None where the server does not know.
        recognized: How many of these have the digest of a file that was sent.
    """
    outcome.arrived, outcome.before = held, _before(journal, place)
    if held is None or outcome.before == 0:
        return
    grown = 0 if outcome.before is None else held - outcome.before
    arrived = max(grown, recognized)
    outcome.arrived = arrived if arrived >= journal.count(NEW, SENT, DONE) else None


def _before(journal: Journal, place: str) -> int | None:
    """Count the files that may have been in a session before; those in the prearchive may have been archived since."""
    return total(journal.before.values()) if place == ARCHIVE else journal.before.get(place, 0)


async def count_before(xnat: Xnat, target: Target) -> dict[str, int | None]:
    """Count the files of the sessions of this label, by path; None where the server does not know."""
    rows = prearchive.matching(await xnat.prearchive(target.project), target.session)
    before = {row.path: await prearchive.held(xnat, row) for row in rows}
    return before | {ARCHIVE: len((await _in_archive(xnat, target))[1])}


async def _own(
    xnat: Xnat, target: Target, journal: Journal, studies: Collection[str]
) -> tuple[list[PrearchiveSession], int | None]:
    """Find what the server holds of this upload: its sessions in the prearchive, and how many files it has.

    The number is None if the server cannot report it, or has nothing. A session of this label belongs to the upload if
    it is where an answer reported it, or came from there, or has one of its studies: an answer may have been lost.
    """
    keys = [place.key for place in map(PrearchiveSession.parse_uri, journal.places()) if place]
    waiting = [
        row
        for row in await xnat.prearchive(target.project)
        if row.key in keys or (target.session in (row.name, row.folder) and row.row.get("tag") in studies)
    ]
    if waiting:
        return waiting, total([await prearchive.held(xnat, row) for row in waiting])
    fields = await prearchive.archived(xnat, target.project, target.session)
    came = prearchive.origin(fields)
    if fields and (fields.get("UID") in studies or any(key[1:] == came for key in keys)):
        return [], len((await _in_archive(xnat, target))[1])
    return [], None


async def _in_archive(xnat: Xnat, target: Target) -> tuple[str, list[FileRow]]:
    """Return the accession ID and the image files of the archived session, or '' and no files."""
    accession = (await prearchive.archived(xnat, target.project, target.session)).get("ID", "")
    if not accession:
        return "", []
    item = ("experiments", accession)
    wanted = {row.id for row in await xnat.resources(item, below=True) if row.label in IMAGES}
    return accession, [file for file in await xnat.files(item, below=True) if file.resource_id in wanted]
