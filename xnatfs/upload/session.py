"""A session's images, in batches, through the import service, and what became of them.

A request that may have been carried out is not sent again by the run that sent it: the journal says that its batch
was on its way, and the next run asks the server what it holds. The server names an object by its UIDs, so that one
that comes twice is there once.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import trio

from xnatfs import prearchive
from xnatfs.client import Xnat
from xnatfs.errors import BadReply, Conflict, Denied, NotFound, Uncertain, XnatError, first_error
from xnatfs.models import FileRow, PrearchiveSession, Row
from xnatfs.transfer import Progress
from xnatfs.transport import Answer
from xnatfs.upload.bodies import Part, Sending, as_file, as_tar, as_zip
from xnatfs.upload.images import Image
from xnatfs.upload.journal import DONE, NEW, SENT, Batch, Journal

log = logging.getLogger(__name__)

Mode = Literal["tar", "zip", "gradual"]
Overwrite = Literal["none", "append", "delete"]

# What is lost when a connection breaks, and what a proxy in front of the server normally lets through.
BATCH = 64 * 2**20
WORKERS = 4

# Words of the server for what passes by itself: two requests met at one session.
TRANSIENT = (
    "session processing in progress",
    "concurrent modification",
    "duplicate archive attempt",
    "destination session in use",
)
PAUSES = (2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each repetition of those

# Resources that the server puts images in.
IMAGES = frozenset({"DICOM", "secondary"})

Where = Literal["archive", "prearchive", "direct"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a session is to go. `direct`: into the archive, past the prearchive."""

    project: str
    subject: str
    session: str
    direct: bool


@dataclass
class Outcome:
    """What came of an upload. `arrived` is what the server says to hold; None where it does not say yet."""

    files: int = 0
    size: int = 0
    sent: int = 0  # files that this run has sent
    resumed: bool = False
    where: Where = "prearchive"
    place: str = ""
    status: str = ""  # in the prearchive
    accession: str = ""
    arrived: int | None = None
    changed: int = 0  # files whose digest on the server is another: anonymized there
    seconds: float = 0.0


async def check_free(xnat: Xnat, target: Target) -> None:
    """Raise Conflict where there is a session of that label; NotFound where there is no such project."""
    where = f"session {target.session} of project {target.project}"
    hint = "--overwrite append adds to it, --overwrite delete replaces its files"
    try:
        rows = await xnat.prearchive(target.project)
    except NotFound as error:
        text = f"project {target.project} not found on {xnat.url}"
        raise NotFound(text, status=404, url=xnat.url) from error
    if accession := await prearchive.find(xnat, target.project, target.session):
        text = f"{where} is in the archive already, as {accession}; nothing was sent ({hint})"
        raise Conflict(text, status=409, url=xnat.url, hint=hint)
    if found := prearchive.matching(rows, target.session):
        text = f"{where} is in the prearchive already ({', '.join('/'.join(row.key) for row in found)})"
        raise Conflict(f"{text}; nothing was sent ({hint})", status=409, url=xnat.url, hint=hint)


async def take_up(xnat: Xnat, target: Target, journal: Journal, *, exact: bool) -> None:
    """Compare a journal with what the server holds. `exact`: all that it holds there is of this upload."""
    held = await _held(xnat, target, journal)
    log.info("the journal has %d files done, the server %s", journal.count(DONE), held)
    if held is None or not exact:
        return
    if held >= journal.count(DONE, SENT):
        for batch in journal.batches:
            batch.state = DONE if batch.state == SENT else batch.state
    elif held < journal.count(DONE):  # deleted there, or never stored
        for batch in journal.batches:
            batch.state, batch.uris = NEW, []


async def send(
    xnat: Xnat,
    images: Sequence[Image],
    target: Target,
    journal: Journal,
    *,
    mode: Mode,
    workers: int,
    overwrite: Overwrite,
    progress: Progress,
) -> int:
    """Send what the journal has not done; how many files that were. The first batch goes alone: it makes the session.

    Raises Denied, NotFound, Conflict, Unreachable, Uncertain, BadReply.
    """
    todo = [batch for batch in journal.batches if batch.state != DONE]
    progress.begin(sum(batch.count for batch in todo), sum(_size(images, batch) for batch in todo))
    journal.write()
    fresh = all(batch.state == NEW for batch in journal.batches)
    queue = iter(todo)
    sent = 0

    async def one(batch: Batch, how: Overwrite) -> None:
        nonlocal sent
        batch.state = SENT
        journal.write()
        chosen = images[batch.first : batch.first + batch.count]
        try:
            batch.uris, batch.digests = await _send(xnat, chosen, batch.first, target, mode, how, progress)
        except Uncertain:
            raise
        except XnatError:  # refused as a whole: the next run begins as if there had been none
            batch.state = NEW if mode != "gradual" else SENT
            journal.write()
            raise
        batch.state = DONE
        journal.write()
        sent += batch.count

    async def work() -> None:
        for batch in queue:  # shared: each takes the next one
            await one(batch, "append")

    if todo and fresh:
        await one(next(queue), "delete" if overwrite == "delete" else "append")
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(work)
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    return sent


def _size(images: Sequence[Image], batch: Batch) -> int:
    return sum(image.size for image in images[batch.first : batch.first + batch.count])


async def _send(
    xnat: Xnat,
    images: Sequence[Image],
    first: int,
    target: Target,
    mode: Mode,
    overwrite: Overwrite,
    progress: Progress,
) -> tuple[list[str], list[str]]:
    """One batch; where the server has put it, and the MD5 sums of its files."""
    # Their own names may repeat, and say more of a patient than anybody needs to know.
    parts = [Part(f"{first + n:06d}.dcm", image.size, image.open) for n, image in enumerate(images)]
    uris: list[str] = []
    digests: list[str] = []
    if mode == "gradual":
        for part in parts:
            body = as_file(part, "application/dicom", progress)
            uris += await _import(xnat, _gradual(target), body, part.name)
            digests += body.digests.values()
    else:
        body = (as_tar if mode == "tar" else as_zip)(parts, progress)
        uris += await _import(xnat, _archive(target, overwrite), body, f"a batch of {len(parts)} files")
        digests += body.digests.values()
    return list(dict.fromkeys(uris)), digests


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
        if answer.status == 400 and pause is not None and any(word in answer.text.lower() for word in TRANSIENT):
            log.info("%s: %s; again in %g s", what, answer.said(), pause)
            await trio.sleep(pause)
            continue
        break
    if answer.ok or answer.status == 301:
        uris = [line.strip() for line in answer.text.splitlines() if line.strip()]
        if uris and all(uri.startswith("/") for uri in uris):
            return uris
        raise BadReply(f"{xnat.url} took {what}, and does not say where it is: {answer.said()}", url=xnat.url)
    raise _refused(xnat, answer, params, what)


def _refused(xnat: Xnat, answer: Answer, params: dict[str, str], what: str) -> XnatError:
    said, project = answer.said(), params.get("project") or params.get("PROJECT_ID", "")
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
    """Tell the server that this was all, and find out where it is. The server may still be at work on it."""
    outcome = Outcome(resumed=journal.resumed)
    for uri in journal.places():
        waiting = _waiting(uri)
        if waiting is None:
            outcome.where, outcome.place = ("direct" if "/direct-archive/" in uri else "archive"), uri
            continue
        outcome.where, outcome.place = "prearchive", uri
        try:
            after = await prearchive.commit(xnat, waiting)
        except NotFound:  # the project archives by itself, and has done so
            after = ""
        except (Conflict, BadReply, Uncertain) as error:  # it is there, and will be built when nothing more comes
            log.info("not committed: %s", error)
            continue
        if _waiting(after) is None:
            outcome.where, outcome.place = "archive", after
    return outcome


async def look(xnat: Xnat, target: Target, outcome: Outcome, journal: Journal) -> bool:
    """Note in `outcome` where the session is and how much of it; whether the server has done with it."""
    waiting = _waiting(outcome.place)
    row = await prearchive.look(xnat, waiting) if waiting else None
    if row:
        outcome.where, outcome.status = "prearchive", row.status
        outcome.arrived = await prearchive.held(xnat, row)
        return not row.busy
    accession, files = await _in_archive(xnat, target)
    if not accession:
        # A conflict on the way to the archive leaves it in the prearchive, where it can be seen.
        left = prearchive.matching(await xnat.prearchive(target.project), target.session)
        stuck = next((each for each in left if not each.busy), None)
        if stuck:
            outcome.place = f"/data{stuck.path}"
            return await look(xnat, target, outcome, journal)
        return False
    outcome.where, outcome.accession, outcome.status = "archive", accession, ""
    outcome.place = f"/data/experiments/{accession}"
    sent = journal.digests()
    digests = {file.digest for file in files if file.digest}
    outcome.arrived = len(files)
    outcome.changed = len(sent - digests) if digests else 0
    return len(files) >= journal.count(NEW, SENT, DONE)


async def _held(xnat: Xnat, target: Target, journal: Journal) -> int | None:
    """How many files the server holds of what the journal has sent; None where it cannot say."""
    total = 0
    for uri in journal.places():
        waiting = _waiting(uri)
        row = await prearchive.look(xnat, waiting) if waiting else None
        if row is None:
            break
        held = await prearchive.held(xnat, row)
        if held is None:
            return None
        total += held
    else:
        # Without a place nothing was answered yet: what was on its way may be in the prearchive without our knowing.
        return total if journal.places() else None
    accession, files = await _in_archive(xnat, target)
    if accession:
        return len(files)
    # On its way into the archive it is nowhere to be seen.
    return None if target.direct else 0


async def _in_archive(xnat: Xnat, target: Target) -> tuple[str, list[FileRow]]:
    """The accession ID and the images of the session, or nothing."""
    accession = await prearchive.find(xnat, target.project, target.session)
    if not accession:
        return "", []
    item = ("experiments", accession)
    wanted = {row.id for row in await xnat.resources(item, below=True) if row.label in IMAGES}
    return accession, [file for file in await xnat.files(item, below=True) if file.resource_id in wanted]


def _waiting(uri: str) -> PrearchiveSession | None:
    """The session of a prearchive URI, with or without /data; None for any other."""
    match uri.removeprefix("/data").strip("/").split("/"):
        case ["prearchive", "projects", project, timestamp, folder]:
            cells = {"project": project, "timestamp": timestamp, "folderName": folder}
            return PrearchiveSession.parse(Row(cells))
    return None
