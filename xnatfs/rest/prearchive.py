"""Archive, move, rebuild and delete sessions in the prearchive, and verify the outcome.

The server works during the request, or later, or continues after a proxy has given up. What its answer leaves open is
settled by looking at the prearchive and the archive. No change is made twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from xnatfs.common.errors import BadReply, Conflict, Denied, LoginRequired, NotFound, Uncertain, Unreachable, XnatError
from xnatfs.common.sanitize import loads
from xnatfs.rest.models import PrearchiveSession, total

if TYPE_CHECKING:  # commands that change nothing start without the client
    from xnatfs.http.messages import ChangeReply
    from xnatfs.rest.client import Xnat

log = logging.getLogger(__name__)

# Seconds without new files after which XNAT builds a session; its default for sessionXmlRebuilderInterval.
RECEIVING_SECONDS = 300.0
# Seconds between two polls of a state: short at first, because small sessions take seconds.
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 1.0, 5.0
# In seconds. A row disappears a moment before the archived session is visible (the server caches that for about 1 s).
APPEARS_WITHIN_SECONDS = 10.0

# The values of `overwrite` that allow it: with one session, append and delete act alike. The field is always sent:
# every release reads `src` from the query, but only in a request that has a field in its form, too.
OVERWRITE = {"overwrite": "append", "overwrite_files": "true"}
KEEP = {"overwrite": "none"}

Watch = Callable[[PrearchiveSession], None]


@dataclass(frozen=True, slots=True)
class Archived:
    """The place of a session in the archive."""

    project: str
    session: str
    uri: str  # '' if the server did not report it
    accession: str  # '' if the server did not report it


def matching(
    rows: Sequence[PrearchiveSession], session: str = "", timestamp: str = "", status: str = ""
) -> list[PrearchiveSession]:
    """Return the sessions of this folder or name (or pattern), timestamp and status; '' matches any.

    Args:
        rows: Sessions in the prearchive.
        session: A folder, a name, or a pattern of either (fnmatch).
        timestamp: The timestamp in the session's path.
        status: The status, in any case.
    """
    return [
        row
        for row in rows
        if (not session or any(fnmatchcase(name, session) or name == session for name in (row.folder, row.name)))
        and (not timestamp or row.timestamp == timestamp)
        and (not status or row.status.upper() == status.upper())
    ]


async def archived(xnat: Xnat, project: str, label: str) -> dict[str, str]:
    """Fetch the fields of a session in the archive; empty if there is none."""
    try:
        return (await xnat.item("projects", project, "experiments", label)).fields
    except NotFound:
        return {}


async def project_id(xnat: Xnat, project: str) -> str:
    """Fetch the ID of a project, given by its ID or an alias."""
    return (await xnat.item("projects", project)).fields.get("ID", project)


def origin(fields: Mapping[str, str]) -> tuple[str, str]:
    """Return timestamp and folder of the prearchive entry that an archived session came from; '' if unknown."""
    parts = fields.get("prearchivePath", "").strip("/").split("/")  # .../PROJECT/TIME/FOLDER, below a site's own path
    return (parts[-2], parts[-1]) if len(parts) >= 3 else ("", "")


def is_same(fields: Mapping[str, str], waiting: PrearchiveSession) -> bool:
    """Check whether an archived session is the one that waited, by its prearchive entry or by its study.

    An archived session keeps the entry that it first came from when more is added to it.
    """
    if origin(fields) == (waiting.timestamp, waiting.folder):
        return True
    return bool(fields.get("UID")) and fields["UID"] == waiting.row.get("tag")


async def archive(
    xnat: Xnat, waiting: PrearchiveSession, *, overwrite: bool = False, subject: str = "", label: str = ""
) -> Archived:
    """Archive a session, and return when it is in the archive.

    Args:
        xnat: The client.
        waiting: The session in the prearchive.
        overwrite: Add to an archived session of the same label, and replace its files.
        subject: The subject to archive it under; '' for the one that the server has chosen.
        label: The label to archive it under; '' for the session's own.

    Raises:
        Conflict: Existing data prevents it.
        XnatError: The server archived it under another project, subject or label.
        Denied: The account may not archive it.
        Unreachable: The server did not archive it.
        BadReply: The server's answer is not understood.
    """
    form = (OVERWRITE if overwrite else KEEP) | _named(subject, label)
    try:
        answer = await xnat.change("POST", "/data/services/archive", {"src": waiting.path}, form=form)
    except Uncertain as error:
        log.info("%s: the state of the session is requested", error)
        return await outcome(xnat, waiting, subject=subject, label=label, said=str(error))
    said = answer.message()
    if answer.ok or answer.status == 303:
        if uri := _place(answer):
            return await _compared(xnat, waiting, uri, subject, label)
        if not answer.text:
            return await outcome(xnat, waiting, subject=subject, label=label, said=said)
        try:  # "200 OK" with the text of a failure, which may be that of another request: the state decides
            if await look(xnat, waiting) is None:
                return await outcome(xnat, waiting, subject=subject, label=label, said=said)
        except NotFound:
            log.info("%s is gone", _name(waiting))
        raise Conflict(f"{_name(waiting)} was not archived: {said}")
    if answer.status in (404, 502, 504):  # it may be archived; a proxy's timeout may be shorter than the server's
        return await outcome(xnat, waiting, subject=subject, label=label, said=said)
    if answer.status == 500 and "did not complete" in answer.text:
        return await outcome(xnat, waiting, subject=subject, label=label, said=said)
    if answer.status in (409, 500) or "already in progress" in answer.text:
        raise Conflict(f"{_name(waiting)} was not archived: {said}", status=answer.status, url=xnat.url)
    raise failure(xnat, answer, f"archiving {_name(waiting)}")


def _named(subject: str, label: str) -> dict[str, str]:
    """Return the form fields that name the archived session. No release accepts `dest`: it is ignored, or it fails."""
    return {**({"subject": subject} if subject else {}), **({"session": label} if label else {})}


def _place(answer: ChangeReply) -> str:
    """Return the URI in the archive, from the first line of the body or from Location; '' if there is none."""
    uri = (answer.location if answer.status == 303 else answer.text.partition("\n")[0]).strip()
    _, found, path = uri.partition("/archive/")
    return f"/data/archive/{path}" if found else uri if uri.startswith("/") and "/experiments/" in uri else ""


async def _compared(xnat: Xnat, waiting: PrearchiveSession, uri: str, subject: str, label: str) -> Archived:
    """Compare the place that the server reports with the one requested. Raises XnatError if they differ."""
    project, owner = waiting.project, ""
    match uri.strip("/").split("/"):
        case [*_, "projects", project, "subjects", owner, "experiments", session]:
            pass
        case [*_, session]:
            pass
    if (project, session) == (waiting.project, label or waiting.name) and subject in ("", owner):
        return Archived(project, session, uri, "")
    # The URI may have accession IDs in the place of labels.
    fields = await appeared(xnat, project, [session], lambda fields: True) or {"project": project, "label": session}
    return await _checked(xnat, waiting, fields, uri, subject, label)


async def _checked(
    xnat: Xnat, waiting: PrearchiveSession, fields: Mapping[str, str], uri: str, subject: str, label: str
) -> Archived:
    """Compare an archived session with the one requested. Raises XnatError if they differ."""
    project, session, owner = (fields.get(name, "") for name in ("project", "label", "subject_ID"))
    if subject and owner and subject != owner:
        owner = (await xnat.item("subjects", owner)).fields.get("label", owner)
    if project == waiting.project and label in ("", session) and subject in ("", owner, fields.get("subject_ID")):
        return Archived(project, session, uri, fields.get("ID", ""))
    asked = ", ".join(f"{what} {name}" for what, name in (("subject", subject), ("label", label)) if name)
    there = f"{session} of project {project}" + (f", subject {owner}" if subject and owner else "")
    where = uri or f"/data/experiments/{fields.get('ID', session)}"
    text = f"{_name(waiting)} was archived, but not as requested ({asked or f'project {waiting.project}'})"
    raise XnatError(f"{text}: it is {there} ({where})", url=xnat.url)


async def outcome(
    xnat: Xnat, waiting: PrearchiveSession, *, subject: str = "", label: str = "", said: str = ""
) -> Archived:
    """Find out whether a session was archived if no answer reports it. Raises as `archive` does.

    Args:
        xnat: The client.
        waiting: The session in the prearchive.
        subject: The subject that was requested, or ''.
        label: The label that was requested, or ''.
        said: The server's answer, for error messages.
    """
    row = await settled(xnat, waiting, lambda row: None)
    if row is None:
        names = dict.fromkeys((label or waiting.name, waiting.name))
        if fields := await appeared(xnat, waiting.project, names, lambda fields: is_same(fields, waiting)):
            return await _checked(xnat, waiting, fields, "", subject, label)
        raise NotFound(f"{_name(waiting)} is neither in the prearchive nor in the archive ({said})")
    if row.status == "READY":
        raise Unreachable(f"{_name(waiting)} was not archived, and is READY still ({said})")
    raise Conflict(f"{_name(waiting)} was not archived: its state is {row.status} ({said})")


async def appeared(
    xnat: Xnat, project: str, labels: Iterable[str], wanted: Callable[[Mapping[str, str]], bool]
) -> dict[str, str]:
    """Fetch the fields of a session that was archived a moment ago; empty if it does not appear.

    Args:
        xnat: The client.
        project: The project to look in.
        labels: The labels that the session may have.
        wanted: Returns whether the fields found are those of the session.
    """
    import trio

    with trio.move_on_after(APPEARS_WITHIN_SECONDS):
        while True:
            for label in labels:
                if (fields := await archived(xnat, project, label)) and wanted(fields):
                    return fields
            await trio.sleep(FIRST_POLL_SECONDS)
    return {}


async def settled(xnat: Xnat, waiting: PrearchiveSession, watch: Watch) -> PrearchiveSession | None:
    """Poll a session until the server has finished with it, without a time limit; call `watch` while it has not.

    Return it with its final status, such as READY, CONFLICT or ERROR; None if it is gone.
    """
    import trio

    pause = FIRST_POLL_SECONDS
    while True:
        row = await look(xnat, waiting)
        if row is None or not row.busy:
            return row
        watch(row)
        await trio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_POLL_SECONDS)


async def look(xnat: Xnat, waiting: PrearchiveSession) -> PrearchiveSession | None:
    """Fetch the current state of a session; None if it is not in the prearchive."""
    rows = await xnat.prearchive(waiting.project)
    return next((row for row in rows if row.key == waiting.key), None)


async def conflicts(xnat: Xnat, waiting: PrearchiveSession, *, subject: str = "", label: str = "") -> list[str]:
    """Fetch the server's reasons against archiving a session; empty if there are none, or it cannot report any.

    Args:
        xnat: The client.
        waiting: The session in the prearchive.
        subject: The subject to archive it under, or ''.
        label: The label to archive it under, or ''.
    """
    query, form = {"format": "json", "src": waiting.path}, KEEP | _named(subject, label)
    try:
        answer = await xnat.change("POST", "/data/services/validate-archive", query, form=form)
    except Uncertain as error:
        if error.status is None:
            raise
        log.info("validate-archive of %s: %s", waiting.path, error)  # a web page: no result
        return []
    if not answer.ok:
        log.info("validate-archive of %s answers %d: %s", waiting.path, answer.status, answer.message())
        return []
    try:
        return list(dict.fromkeys(_messages(loads(answer.text))))
    except (ValueError, RecursionError):
        return [answer.message()] if answer.message() else []


def _messages(found: Any) -> list[str]:
    """Collect every `message` in a JSON document of any shape."""
    if isinstance(found, list):
        return [text for each in found for text in _messages(each)]
    if not isinstance(found, dict):
        return []
    own = [str(value) for key, value in found.items() if key.lower() == "message" and value]
    return own + [text for value in found.values() if isinstance(value, dict | list) for text in _messages(value)]


async def move(xnat: Xnat, waiting: PrearchiveSession, project: str) -> str:
    """Move a session to another project, and return its new URI. Raises Conflict, Denied, NotFound."""
    answer = await _act(xnat, waiting, {"action": "move", "newProject": project})
    if answer.status == 301 or (answer.ok and answer.text):
        return _uri(answer)
    if answer.ok:
        moved = replace(waiting, project=project)
        if found := await look(xnat, moved):
            return f"/data{found.path}"
        # The server leaves a session that it is processing where it is, without an error.
        raise Conflict(f"{_name(waiting)} was not moved: the server is at work on it")
    raise failure(xnat, answer, f"moving {_name(waiting)} to project {project}")


async def delete(xnat: Xnat, waiting: PrearchiveSession) -> None:
    """Delete a session permanently. Raises Conflict, Denied, NotFound."""
    answer = await xnat.change("DELETE", _path(xnat, waiting))
    if not answer.ok:
        raise failure(xnat, answer, f"deleting {_name(waiting)}")


async def rebuild(xnat: Xnat, waiting: PrearchiveSession) -> None:
    """Rebuild a session's document from its images. Raises Conflict, Denied, NotFound."""
    answer = await _act(xnat, waiting, {"action": "build"})
    if not answer.ok:
        raise failure(xnat, answer, f"rebuilding {_name(waiting)}")


async def commit(xnat: Xnat, waiting: PrearchiveSession) -> str:
    """Report to the server that a session is complete, and return its URI, in the prearchive or in the archive."""
    answer = await _act(xnat, waiting, {"action": "commit"})
    if answer.ok or answer.status == 301:
        return _uri(answer)
    raise failure(xnat, answer, f"completing {_name(waiting)}")


async def held(xnat: Xnat, waiting: PrearchiveSession) -> int | None:
    """Fetch the number of scan files in a session; None if the server does not know it yet."""
    try:
        rows = await xnat.rows("prearchive", "projects", *waiting.key, "resources")
    except (NotFound, BadReply):
        return None
    return total(row.number("file_count") for row in rows if row.get("category") == "scans")


def _path(xnat: Xnat, waiting: PrearchiveSession) -> str:
    return "/data/prearchive/projects/" + "/".join(xnat.segment(part) for part in waiting.key)


async def _act(xnat: Xnat, waiting: PrearchiveSession, parameters: dict[str, str]) -> ChangeReply:
    return await xnat.change("POST", _path(xnat, waiting), parameters)


def _uri(answer: ChangeReply) -> str:
    return answer.text.partition("\n")[0].strip()


def _name(waiting: PrearchiveSession) -> str:
    return f"{waiting.name} ({waiting.id})"


def failure(xnat: Xnat, answer: ChangeReply, what: str) -> XnatError:
    """Map the refusal of a change to an exception, with a one-line message."""
    facts: Any = {"status": answer.status, "url": xnat.url}
    text = f"{what}: {xnat.url} answers {answer.message()}"
    match answer.status:
        case 401:
            text = f"{what}: {xnat.url} refuses it to {xnat.login.username} ({answer.message()})"
            return LoginRequired(text, **facts)
        case 403 if "already in progress" not in answer.text:
            return Denied(f"{what}: your account may not do this, which normally takes the role Member", **facts)
        case 404 | 410:
            return NotFound(f"{what}: {answer.message()}", **facts)
        case 403 | 409:
            return Conflict(text, **facts)
        case 502 | 503 | 504 | 429:
            return Unreachable(text, **facts)
    return BadReply(text, **facts)
