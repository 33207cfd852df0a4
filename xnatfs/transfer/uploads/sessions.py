"""Upload a session's images in batches through the import service, and find out where they arrived.

A run does not retry a request that the server may already have applied: the journal records that its batch was on its
way, and the next run queries what the server holds. The server identifies an object by its UIDs, so that an object that
is sent twice is stored once.
"""

import logging
import re
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import trio

from xnatfs.common.errors import BadReply, Conflict, Denied, NotFound, Uncertain, XnatError
from xnatfs.common.tasks import gather, in_parallel
from xnatfs.http.messages import ChangeReply
from xnatfs.rest import prearchive
from xnatfs.rest.client import Xnat
from xnatfs.rest.models import UNASSIGNED, FileRow, PrearchiveSession, Row, total
from xnatfs.transfer.copying import Progress
from xnatfs.transfer.uploads.dicom_files import Image
from xnatfs.transfer.uploads.journal import DONE, NEW, SENT, Batch, Journal, Mode
from xnatfs.transfer.uploads.request_bodies import Part, Sending, as_file, as_tar, as_zip, with_length

log = logging.getLogger(__name__)

Overwrite = Literal["none", "append", "delete"]

# Bytes in a batch: what is lost when a connection breaks, and what a proxy in front of the server normally accepts.
UPLOAD_BATCH_BYTES = 64 * 2**20
PARALLEL_BATCHES = 4

# Messages of the server for a condition that passes by itself: two requests concerned one session.
TRANSIENT = (
    "session processing in progress",
    "concurrent modification",
    "duplicate archive attempt",
    "destination session in use",
)
PAUSES = (2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each repetition of those

# Seconds without a change after which an archived session counts as complete, if older files hide how many have
# arrived: the server pauses between two files for less.
STEADY_SECONDS = 60.0

# Message of an old server for a body of unknown length.
LENGTH_WANTED = "must include the file directly as the body"

# Resources that the server puts images in.
IMAGES = frozenset({"DICOM", "secondary"})

# In a journal, the place of a session in the archive; places in the prearchive are paths.
ARCHIVE = "archive"

Where = Literal["archive", "prearchive", "direct"]


@dataclass(frozen=True, slots=True)
class Target:
    """Destination of a session. `direct`: into the archive, bypassing the prearchive."""

    project: str
    subject: str
    session: str
    direct: bool


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


class _NotTaken(Exception):
    """The server did not store a batch sent in this form; retry in `instead`. `left` is a session of another name."""

    def __init__(self, instead: Mode, text: str, left: PrearchiveSession | None = None) -> None:
        super().__init__(text)
        self.instead: Mode = instead
        self.left = left


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


class Upload:
    """An upload of the batches that its journal does not list as done.

    Args:
        xnat: Client of the server.
        images: All images of the upload, which the batches of the journal refer to.
        target: Destination.
        journal: Updated and written before and after each batch.
        progress: Receives the progress.
        note: Called with a line if the server accepts another form only.
    """

    def __init__(
        self,
        xnat: Xnat,
        images: Sequence[Image],
        target: Target,
        journal: Journal,
        progress: Progress,
        note: Callable[[str], None],
    ) -> None:
        self._xnat = xnat
        self._images = images
        self._target = target
        self._journal = journal
        self._progress = progress
        self._note = note
        self._form: Mode = "tar"
        self._projects = {"", target.project}  # names of the project in answers

    async def send(self, mode: Mode, overwrite: Overwrite, workers: int) -> int:
        """Send the batches, and return how many files they have.

        While nothing has arrived, the first batch is sent alone: it creates the session, shows whether the account may
        do so, and finds the form that the server accepts.

        Args:
            mode: Preferred form of the batches; one that the journal records is used instead, unless this is "gradual".
            overwrite: "delete" removes existing files with the first batch, if nothing has arrived yet.
            workers: Number of batches in flight.

        Raises:
            Denied, NotFound, Conflict: The server refuses the upload.
            Uncertain: The server may have stored a batch that it did not confirm.
            Unreachable, BadReply: The server gave no usable answer.
        """
        journal = self._journal
        todo = [batch for batch in journal.batches if batch.state != DONE]
        files = sum(batch.count for batch in todo)
        self._progress.begin(files, sum(image.size for batch in todo for image in self._images_of(batch)))
        self._form = mode if mode == "gradual" else journal.mode or mode
        journal.write()
        if todo and journal.count(DONE) == 0:
            await self._send_in_some_form(todo.pop(0), "delete" if overwrite == "delete" else "append")
        await in_parallel(todo, lambda batch: self._send_in_some_form(batch, "append"), workers)
        return files

    def _images_of(self, batch: Batch) -> Sequence[Image]:
        return self._images[batch.first : batch.first + batch.count]

    async def _send_in_some_form(self, batch: Batch, overwrite: Overwrite) -> None:
        """Send a batch in the form that the server accepts, which is found by trying."""
        left = None
        while True:
            if (
                self._form == "gradual"
                and overwrite == "delete"
                and any(each != 0 for each in self._journal.before.values())
            ):
                text = f"{self._target.session} is on {self._xnat.url} already"
                text += ", and files that are sent one by one only add to it"
                raise Conflict(f"{text}: delete it there first, or say --overwrite append")
            try:
                await self._send_recorded(batch, overwrite)
                break
            except _NotTaken as error:
                if error.instead != self._form:  # else a parallel batch has reported it
                    self._note(str(error))
                self._form = self._journal.mode = error.instead
                left = error.left or left
        if left and left.key not in [place.key for place in map(_waiting, batch.uris) if place]:
            delete = shlex.join(["xnatctl", "prearchive", "delete", *left.key])
            self._note(f"What {self._xnat.url} has named {left.name} is left there ({delete})")

    async def _send_recorded(self, batch: Batch, overwrite: Overwrite) -> None:
        """Send a batch, with its state in the journal before and after."""
        batch.state, batch.uris = SENT, []
        self._journal.write()
        try:
            await self._send(batch, overwrite)
        except (XnatError, _NotTaken) as error:
            if not batch.uris and not isinstance(error, Uncertain):  # refused as a whole: counts as not sent
                batch.state = NEW
            self._journal.write()
            raise
        batch.state = DONE
        self._journal.write()

    async def _send(self, batch: Batch, overwrite: Overwrite) -> None:
        """Send one batch, and record in it the URIs that the server reports, and the MD5 sums of its files."""
        # The names of the files may repeat, and may identify a patient.
        images = self._images_of(batch)
        parts = [Part(f"{batch.first + n:06d}.dcm", image.size, image.open) for n, image in enumerate(images)]
        batch.digests = []
        if self._form == "gradual":
            for part in parts:
                body = as_file(part, "application/dicom", self._progress)
                await self._import(batch, _gradual(self._target), body, part.name)
            return
        if self._form == "sized zip":
            body = await with_length(parts, self._progress)
        else:
            body = (as_tar if self._form == "tar" else as_zip)(parts, self._progress)
        await self._import(batch, _archive(self._target, overwrite), body, f"a batch of {len(parts)} files")

    async def _import(self, batch: Batch, params: dict[str, str], body: Sending, what: str) -> None:
        """Send one body, and check where the server has put it."""
        uris = await _import(self._xnat, params, body, what)
        if params["import-handler"] != "gradual-DICOM":
            for uri in uris:
                await _check_label(self._xnat, self._target, uri)
        for name in body.digests:
            self._progress.done(PurePosixPath(name))
        batch.uris = list(dict.fromkeys([*batch.uris, *uris]))
        batch.digests += body.digests.values()
        for uri in uris:
            await _check_project(self._xnat, self._target, uri, what, self._projects)


async def _check_project(xnat: Xnat, target: Target, uri: str, what: str, projects: set[str]) -> None:
    """Raise Denied if the server has put images elsewhere: into no project, for lack of a right, or into another.

    Args:
        xnat: Client of the server.
        target: Destination of the upload.
        uri: Where the server has put the images, from its answer.
        what: What was sent, for the error.
        projects: Known names of the project; its ID is added if the target names an alias.
    """
    project = _project(uri)
    if project in projects:
        return
    begun = f"sending to project {target.project} on {xnat.url}"
    where = f"{what} went to {uri}, nothing more was sent"
    if project == UNASSIGNED:
        move = shlex.join(["xnatctl", "prearchive", "move", *uri.strip("/").split("/")[-3:], "--to", target.project])
        text = f"your account may not create sessions there, which normally takes the role Member: {where}"
        raise Denied(f"{begun}: {text}; an administrator can move it ({move}) or delete it", status=403, url=xnat.url)
    projects.add(await prearchive.project_id(xnat, target.project))
    if project not in projects:
        raise Denied(f"{begun}: it belongs to project {project} there: {where}", status=403, url=xnat.url)


def _project(uri: str) -> str:
    """Return the project in the URI of imported images; '' if it has none."""
    match uri.removeprefix("/data").strip("/").split("/"):
        case [("prearchive" | "archive"), "projects", project, *_] | ["xapi", "direct-archive", project, *_]:
            return project
    return ""


async def _check_label(xnat: Xnat, target: Target, uri: str) -> None:
    """Raise _NotTaken if the server has given a session in the prearchive another name than the target's."""
    waiting = _waiting(uri)
    label = _cleaned(target.session)
    if waiting is None or waiting.project != target.project or _cleaned(waiting.folder) == label:
        return
    row = await prearchive.look(xnat, waiting)
    if row is not None and _cleaned(row.name) != label:
        text = f"{xnat.url} names packed files by their DICOM headers: the files go one by one, as {target.session}"
        raise _NotTaken("gradual", text, row)


def _cleaned(label: str) -> str:
    """Return a label as XNAT stores it."""
    return re.sub(r"\W", "_", label)


def _archive(target: Target, overwrite: Overwrite) -> dict[str, str]:
    return {
        "import-handler": "DICOM-zip",
        "inbody": "true",
        "Ignore-Unparsable": "true",
        "project": target.project,
        "subject": target.subject,
        "session": target.session,
        "overwrite": overwrite,
        "overwrite_files": "true",
        "quarantine": "false",
        "triggerPipelines": "true",
        **_destination(target),
    }


def _gradual(target: Target) -> dict[str, str]:
    return {
        "import-handler": "gradual-DICOM",
        "inbody": "true",
        "PROJECT_ID": target.project,
        "SUBJECT_ID": target.subject,
        "EXPT_LABEL": target.session,
        "overwrite": "append",
        "overwrite_files": "true",
        **_destination(target),
    }


def _destination(target: Target) -> dict[str, str]:
    return {"Direct-Archive": "true"} if target.direct else {"dest": f"/prearchive/projects/{target.project}"}


async def _import(xnat: Xnat, params: dict[str, str], body: Sending, what: str) -> list[str]:
    for pause in (*PAUSES, None):
        answer = await xnat.change(
            "POST", "/data/services/import", params, body=body.pieces, headers=dict(body.headers)
        )
        if "Content-Length" not in body.headers and (answer.status == 411 or LENGTH_WANTED in answer.text):
            text = f"{xnat.url} takes no zip without its length: each batch is packed twice, to know it"
            raise _NotTaken("sized zip", text)
        if answer.status == 400 and pause is not None and any(word in answer.text.lower() for word in TRANSIENT):
            log.info("%s: %s; again in %g s", what, answer.message(), pause)
            await trio.sleep(pause)
            continue
        break
    if answer.ok or answer.status == 301:
        uris = [line.strip() for line in answer.text.splitlines() if line.strip()]
        if uris and all(uri.startswith("/") for uri in uris):
            return uris
        if not uris and params["import-handler"] != "gradual-DICOM":  # old servers answer so to what they cannot unpack
            kind = body.headers["Content-Type"].removeprefix("application/").removeprefix("x-")
            text = f"{xnat.url} takes no {kind}, and stores nothing of it: the files go one by one"
            raise _NotTaken("gradual", text)
        raise BadReply(f"{xnat.url} took {what}, and does not report where it is: {answer.message()}", url=xnat.url)
    raise _refused(xnat, answer, params, what)


def _refused(xnat: Xnat, answer: ChangeReply, params: dict[str, str], what: str) -> XnatError:
    said, project = answer.message(), params.get("project") or params.get("PROJECT_ID", "")
    match answer.status:
        case 403:
            text = f"sending to project {project} on {xnat.url}: your account may not do this ({said})"
            return Denied(f"{text}; it normally takes the role Member", status=403, url=xnat.url)
        case 404:
            return NotFound(f"project {project} not found on {xnat.url} ({said})", status=404, url=xnat.url)
        case 413:
            return BadReply(f"a proxy before {xnat.url} refuses {what} as too large (413)", status=413, url=xnat.url)
        case 500 | 502 | 504:
            text = f"{xnat.url} answers {answer.status} to {what}, which may have arrived ({said})"
            return Uncertain(f"{text}; the same command goes on from here", status=answer.status, url=xnat.url)
        case 409:
            return Conflict(f"{xnat.url} refuses {what}: {said}", status=409, url=xnat.url)
    return BadReply(f"{xnat.url} refuses {what}: {said}", status=answer.status, url=xnat.url)


async def complete(xnat: Xnat, target: Target, journal: Journal) -> Outcome:
    """Commit the upload, and find out where its session is. The server may still be processing it."""
    outcome = Outcome(resumed=journal.resumed)
    for uri in journal.places():
        waiting = _waiting(uri)
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
        if _waiting(after) is None:
            outcome.where, outcome.place = "archive", after
    return outcome


async def look(xnat: Xnat, target: Target, outcome: Outcome, journal: Journal) -> bool:
    """Record in `outcome` where the session is and how many files arrived; return whether the server is done."""
    waiting = _waiting(outcome.place)
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
    keys = [place.key for place in map(_waiting, journal.places()) if place]
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


def _waiting(uri: str) -> PrearchiveSession | None:
    """Return the session that a prearchive URI names, with or without /data; None for any other URI."""
    match uri.removeprefix("/data").strip("/").split("/"):
        case ["prearchive", "projects", project, timestamp, folder]:
            cells = {"project": project, "timestamp": timestamp, "folderName": folder}
            return PrearchiveSession.parse(Row(cells))
    return None
