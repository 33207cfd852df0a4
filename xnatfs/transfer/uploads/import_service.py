"""Send images of a session to the import service, and check where the server has put them.

A request that the server refuses because it is at work on the session is repeated after a pause.
"""

import logging
import re
import shlex
from dataclasses import dataclass
from typing import Literal

import trio

from xnatfs.common.errors import BadReply, Conflict, Denied, NotFound, Uncertain, XnatError
from xnatfs.http.messages import ChangeReply
from xnatfs.rest import prearchive
from xnatfs.rest.client import Xnat
from xnatfs.rest.models import UNASSIGNED, PrearchiveSession
from xnatfs.transfer.uploads.journal import Mode
from xnatfs.transfer.uploads.request_bodies import Sending

log = logging.getLogger(__name__)

Overwrite = Literal["none", "append", "delete"]

# Messages of the server for a condition that passes by itself: two requests concerned one session.
TRANSIENT = (
    "session processing in progress",
    "concurrent modification",
    "duplicate archive attempt",
    "destination session in use",
)
PAUSES = (2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each repetition of those

# Message of an old server for a body of unknown length.
LENGTH_WANTED = "must include the file directly as the body"


@dataclass(frozen=True, slots=True)
class Target:
    """Destination of a session. `direct`: into the archive, bypassing the prearchive."""

    project: str
    subject: str
    session: str
    direct: bool


class NotTaken(Exception):
    """The server did not store a batch sent in this form; retry in `instead`. `left` is a session of another name."""

    def __init__(self, instead: Mode, text: str, left: PrearchiveSession | None = None) -> None:
        super().__init__(text)
        self.instead: Mode = instead
        self.left = left


class ImportService:
    """The import service of a server, for one session.

    A request raises Denied, NotFound or Conflict if the server refuses the images, Uncertain if the server may have
    stored what it did not confirm, and Unreachable or BadReply if it gave no usable answer.

    Args:
        xnat: Client of the server.
        target: Destination of the images.
    """

    def __init__(self, xnat: Xnat, target: Target) -> None:
        self._xnat = xnat
        self._target = target
        self._projects = {"", target.project}  # names of the project in answers; its ID is added for an alias

    async def send_packed(self, body: Sending, overwrite: Overwrite, what: str) -> list[str]:
        """Send a tar or a zip of files, and return the URIs where the server has put them.

        Args:
            body: The tar or the zip.
            overwrite: What becomes of existing files: "append" replaces those of the same names, "delete" all.
            what: Names the body in errors.

        Raises:
            NotTaken: The server does not accept this form, or gives the session another name.
        """
        answer = await self._post(_packed(self._target, overwrite), body, what)
        if not answer.text.strip():  # old servers answer so to what they cannot unpack
            kind = body.headers["Content-Type"].removeprefix("application/").removeprefix("x-")
            text = f"{self._xnat.url} takes no {kind}, and stores nothing of it: the files go one by one"
            raise NotTaken("gradual", text)
        uris = self._uris(answer, what)
        for uri in uris:
            await self._check_label(uri)
        return uris

    async def send_file(self, body: Sending, what: str) -> list[str]:
        """Send one file, named `what` in errors, and return the URIs where the server has put it."""
        return self._uris(await self._post(_gradual(self._target), body, what), what)

    async def check_project(self, uri: str, what: str) -> None:
        """Raise Denied if the server has put images elsewhere: into no project, for lack of a right, or into another.

        Args:
            uri: Where the server has put the images, from its answer.
            what: What was sent, for the error.
        """
        url, target, project = self._xnat.url, self._target, _project(uri)
        if project in self._projects:
            return
        begun = f"sending to project {target.project} on {url}"
        where = f"{what} went to {uri}, nothing more was sent"
        if project == UNASSIGNED:
            place = uri.strip("/").split("/")[-3:]
            move = shlex.join(["xnatctl", "prearchive", "move", *place, "--to", target.project])
            text = f"your account may not create sessions there, which normally takes the role Member: {where}"
            raise Denied(f"{begun}: {text}; an administrator can move it ({move}) or delete it", status=403, url=url)
        self._projects.add(await prearchive.project_id(self._xnat, target.project))
        if project not in self._projects:
            raise Denied(f"{begun}: it belongs to project {project} there: {where}", status=403, url=url)

    async def _check_label(self, uri: str) -> None:
        """Raise NotTaken if the server has given a session in the prearchive another name than the target's."""
        waiting = PrearchiveSession.parse_uri(uri)
        label = _cleaned(self._target.session)
        if waiting is None or waiting.project != self._target.project or _cleaned(waiting.folder) == label:
            return
        row = await prearchive.look(self._xnat, waiting)
        if row is not None and _cleaned(row.name) != label:
            text = f"{self._xnat.url} names packed files by their DICOM headers"
            raise NotTaken("gradual", f"{text}: the files go one by one, as {self._target.session}", row)

    async def _post(self, params: dict[str, str], body: Sending, what: str) -> ChangeReply:
        xnat = self._xnat
        for pause in (*PAUSES, None):
            answer = await xnat.change(
                "POST", "/data/services/import", params, body=body.pieces, headers=dict(body.headers)
            )
            if "Content-Length" not in body.headers and (answer.status == 411 or LENGTH_WANTED in answer.text):
                text = f"{xnat.url} takes no zip without its length: each batch is packed twice, to know it"
                raise NotTaken("sized zip", text)
            if answer.status == 400 and pause is not None and any(word in answer.text.lower() for word in TRANSIENT):
                log.info("%s: %s; again in %g s", what, answer.message(), pause)
                await trio.sleep(pause)
                continue
            break
        if not answer.ok and answer.status != 301:
            raise _refused(xnat, answer, self._target.project, what)
        return answer

    def _uris(self, answer: ChangeReply, what: str) -> list[str]:
        uris = [line.strip() for line in answer.text.splitlines() if line.strip()]
        if not uris or not all(uri.startswith("/") for uri in uris):
            text = f"{self._xnat.url} took {what}, and does not report where it is: {answer.message()}"
            raise BadReply(text, url=self._xnat.url)
        return uris


def _project(uri: str) -> str:
    """Return the project in the URI of imported images; '' if it has none."""
    match uri.removeprefix("/data").strip("/").split("/"):
        case [("prearchive" | "archive"), "projects", project, *_] | ["xapi", "direct-archive", project, *_]:
            return project
    return ""


def _cleaned(label: str) -> str:
    """Return a label as XNAT stores it."""
    return re.sub(r"\W", "_", label)


def _packed(target: Target, overwrite: Overwrite) -> dict[str, str]:
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


def _refused(xnat: Xnat, answer: ChangeReply, project: str, what: str) -> XnatError:
    said = answer.message()
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
