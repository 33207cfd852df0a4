"""What may be done with sessions in the prearchive, and how to know that it was done.

The server works while it is asked, or later, or goes on after a proxy has given up: what its answer does not settle is
settled by looking at the prearchive and the archive. Nothing here is done twice.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import trio

from xnatfs.client import Xnat
from xnatfs.errors import BadReply, Conflict, Denied, LoginRequired, NotFound, Uncertain, Unreachable, XnatError
from xnatfs.models import PrearchiveSession
from xnatfs.transport import Answer
from xnatfs.untrusted import loads

log = logging.getLogger(__name__)

# XNAT builds a session that nothing has come for in this time; its default for sessionXmlRebuilderInterval.
RECEIVING_FOR = 300.0
# Between two looks at a state: short at first, because small sessions take seconds.
FIRST_LOOK, LATER_LOOKS = 1.0, 5.0
# A row goes a moment before the archived session can be seen (the server keeps that for about a second).
APPEARS_WITHIN = 10.0

# What `overwrite` has to say to allow it: with one session, append and delete act alike.
OVERWRITE = {"overwrite": "append", "overwrite_files": "true"}

Watch = Callable[[PrearchiveSession], None]


@dataclass(frozen=True, slots=True)
class Archived:
    """Where a session has ended up."""

    project: str
    session: str
    uri: str  # '' where the server did not say it
    accession: str  # the same


def matching(
    rows: Sequence[PrearchiveSession], session: str = "", timestamp: str = "", status: str = ""
) -> list[PrearchiveSession]:
    """Those of this folder or name (or pattern), of this time, in this state."""
    return [
        row
        for row in rows
        if (not session or any(fnmatchcase(name, session) or name == session for name in (row.folder, row.name)))
        and (not timestamp or row.timestamp == timestamp)
        and (not status or row.status.upper() == status.upper())
    ]


async def find(xnat: Xnat, project: str, label: str) -> str:
    """The accession ID of a session in the archive, or ''."""
    try:
        return (await xnat.item("projects", project, "experiments", label)).fields.get("ID", "")
    except NotFound:
        return ""


async def archive(
    xnat: Xnat, waiting: PrearchiveSession, *, overwrite: bool = False, subject: str = "", label: str = ""
) -> Archived:
    """Archive a session, and return when it is there.

    Raises Conflict where what is there stands against it, and Denied, Unreachable, BadReply.
    """
    label_there = label or waiting.name
    form = {"src": waiting.path, **(OVERWRITE if overwrite else {})}
    if subject or label:
        where = f"/archive/projects/{waiting.project}/subjects/{subject or waiting.subject}"
        form["dest"] = f"{where}/experiments/{label}" if label else where
    try:
        answer = await xnat.change("POST", "/data/services/archive", form=form)
    except Uncertain as error:
        log.info("%s: its state will tell", error)
        return await _outcome(xnat, waiting, label_there, str(error))
    if answer.ok or answer.status == 303:
        try:
            return _place(waiting, label_there, answer)
        except Conflict:  # by words that may be somebody else's: its state tells
            if await look(xnat, waiting) is None and (accession := await appeared(xnat, waiting.project, label_there)):
                return Archived(waiting.project, label_there, "", accession)
            raise
    said = answer.said()
    if answer.status in (404, 502, 504):  # it may be there; a proxy may have lost patience before the server did
        return await _outcome(xnat, waiting, label_there, said)
    if answer.status == 500 and "did not complete" in answer.text:
        return await _outcome(xnat, waiting, label_there, said)
    if answer.status in (409, 500) or "already in progress" in answer.text:
        raise Conflict(f"{_name(waiting)} was not archived: {said}", status=answer.status, url=xnat.url)
    raise failure(xnat, answer, f"archiving {_name(waiting)}")


def _place(waiting: PrearchiveSession, label: str, answer: Answer) -> Archived:
    """Where it is, by the server's word: a line of the body, or the address that it redirects to."""
    uri = (answer.location if answer.status == 303 else answer.text.partition("\n")[0]).strip()
    _, found, path = uri.partition("/archive/")
    if not found and "/experiments/" not in uri:
        # "200 OK" has come with words of failure in it.
        if answer.text and not uri.startswith("/"):
            raise Conflict(f"{_name(waiting)} was not archived: {answer.said()}")
        return Archived(waiting.project, label, "", "")
    return Archived(waiting.project, label, f"/data/archive/{path}" if found else uri, "")


async def _outcome(xnat: Xnat, waiting: PrearchiveSession, label: str, said: str) -> Archived:
    """What became of it, where no answer tells."""
    row = await settled(xnat, waiting, lambda row: None)
    if row is None:
        accession = await appeared(xnat, waiting.project, label)
        if accession:
            return Archived(waiting.project, label, "", accession)
        raise NotFound(f"{_name(waiting)} is neither in the prearchive nor in the archive ({said})")
    if row.status == "READY":
        raise Unreachable(f"{_name(waiting)} was not archived, and is READY still ({said})")
    raise Conflict(f"{_name(waiting)} was not archived: its state is {row.status} ({said})")


async def appeared(xnat: Xnat, project: str, label: str) -> str:
    """The accession ID of a session that was archived a moment ago, or '' if it does not appear."""
    with trio.move_on_after(APPEARS_WITHIN):
        while True:
            if accession := await find(xnat, project, label):
                return accession
            await trio.sleep(FIRST_LOOK)
    return ""


async def settled(xnat: Xnat, waiting: PrearchiveSession, watch: Watch) -> PrearchiveSession | None:
    """The session once the server has done with it: READY, CONFLICT or ERROR; None when it is gone. Has no end."""
    pause = FIRST_LOOK
    while True:
        row = await look(xnat, waiting)
        if row is None or not row.busy:
            return row
        watch(row)
        await trio.sleep(pause)
        pause = min(pause * 1.5, LATER_LOOKS)


async def look(xnat: Xnat, waiting: PrearchiveSession) -> PrearchiveSession | None:
    """The session as it is now, or None."""
    rows = await xnat.prearchive(waiting.project)
    return next((row for row in rows if row.key == waiting.key), None)


async def conflicts(xnat: Xnat, waiting: PrearchiveSession) -> list[str]:
    """What stands against archiving it, in the server's words; empty where nothing does, or it cannot tell."""
    try:
        answer = await xnat.change("POST", "/data/services/validate-archive?format=json", form={"src": waiting.path})
    except Uncertain as error:
        if error.status is None:
            raise
        log.info("validate-archive of %s: %s", waiting.path, error)  # a page: it cannot tell
        return []
    if not answer.ok:
        log.info("validate-archive of %s answers %d: %s", waiting.path, answer.status, answer.said())
        return []
    try:
        return list(dict.fromkeys(_messages(loads(answer.text))))
    except (ValueError, RecursionError):
        return [answer.said()] if answer.said() else []


def _messages(found: Any) -> list[str]:
    """Every `message` in whatever form the server gives them."""
    if isinstance(found, list):
        return [text for each in found for text in _messages(each)]
    if not isinstance(found, dict):
        return []
    own = [str(value) for key, value in found.items() if key.lower() == "message" and value]
    return own + [text for value in found.values() if isinstance(value, dict | list) for text in _messages(value)]


async def move(xnat: Xnat, waiting: PrearchiveSession, project: str) -> str:
    """Move it to another project; its new URI. Raises Conflict, Denied, NotFound."""
    answer = await _act(xnat, waiting, {"action": "move", "newProject": project})
    if answer.status == 301 or (answer.ok and answer.text):
        return _uri(answer)
    if answer.ok:  # a session that the server is at work on is left where it is, without a word
        raise Conflict(f"{_name(waiting)} was not moved: the server is at work on it")
    raise failure(xnat, answer, f"moving {_name(waiting)} to project {project}")


async def delete(xnat: Xnat, waiting: PrearchiveSession) -> None:
    """Delete it, for good. Raises Conflict, Denied, NotFound."""
    answer = await xnat.change("DELETE", _path(xnat, waiting))
    if not answer.ok:
        raise failure(xnat, answer, f"deleting {_name(waiting)}")


async def rebuild(xnat: Xnat, waiting: PrearchiveSession) -> None:
    """Have its document made again from its images. Raises Conflict, Denied, NotFound."""
    answer = await _act(xnat, waiting, {"action": "build"})
    if not answer.ok:
        raise failure(xnat, answer, f"rebuilding {_name(waiting)}")


async def commit(xnat: Xnat, waiting: PrearchiveSession) -> str:
    """Tell the server that nothing more will come; where the session is then: here, or in the archive."""
    answer = await _act(xnat, waiting, {"action": "commit"})
    if answer.ok or answer.status == 301:
        return _uri(answer)
    raise failure(xnat, answer, f"completing {_name(waiting)}")


async def held(xnat: Xnat, waiting: PrearchiveSession) -> int | None:
    """How many files of scans the session has; None where the server does not know yet."""
    try:
        rows = await xnat.rows("prearchive", "projects", *waiting.key, "resources")
    except (NotFound, BadReply):
        return None
    counts = [row.number("file_count") for row in rows if row.get("category") == "scans"]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _path(xnat: Xnat, waiting: PrearchiveSession) -> str:
    return "/data/prearchive/projects/" + "/".join(xnat.segment(part) for part in waiting.key)


async def _act(xnat: Xnat, waiting: PrearchiveSession, parameters: dict[str, str]) -> Answer:
    return await xnat.change("POST", _path(xnat, waiting), parameters)


def _uri(answer: Answer) -> str:
    return answer.text.partition("\n")[0].strip()


def _name(waiting: PrearchiveSession) -> str:
    return f"{waiting.name} ({'/'.join(waiting.key)})"


def failure(xnat: Xnat, answer: Answer, what: str) -> XnatError:
    """What the refusal of a change means, in one line."""
    facts: Any = {"status": answer.status, "url": xnat.url}
    text = f"{what}: {xnat.url} answers {answer.said()}"
    match answer.status:
        case 401:
            return LoginRequired(f"{what}: {xnat.url} refuses it to {xnat.login.username} ({answer.said()})", **facts)
        case 403 if "already in progress" not in answer.text:
            return Denied(f"{what}: your account may not do this, which normally takes the role Member", **facts)
        case 404 | 410:
            return NotFound(f"{what}: {answer.said()}", **facts)
        case 403 | 409:
            return Conflict(text, **facts)
        case 502 | 503 | 504 | 429:
            return Unreachable(text, **facts)
    return BadReply(text, **facts)
