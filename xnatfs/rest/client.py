"""Call XNAT's REST API, one method per resource.

The content of files is requested in `rest/contents.py`, the prearchive in `rest/prearchive.py`.

Rules that keep it right on a real server: request with `Accept: */*` and `format=json`, and check the envelope of the
reply; address items by accession ID and resources by number, never by label.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from urllib.parse import urlencode

import httpx

from xnatfs.common.errors import BadReply, NotFound
from xnatfs.common.tasks import gather
from xnatfs.http.documents import fetch_bytes, fetch_json, fetch_text
from xnatfs.http.messages import ChangeReply, HttpRequest, RequestBody
from xnatfs.http.replies import close
from xnatfs.http.transport import Transport, open_transport
from xnatfs.rest.changes import ChangedItems
from xnatfs.rest.contents import Contents
from xnatfs.rest.file_table import Catalogue, Catalogues
from xnatfs.rest.lists import Collected, JoinedScans, Lists
from xnatfs.rest.models import (
    OWN_SCAN_COLUMNS,
    SCAN_COLUMNS,
    SCAN_LABEL,
    Accession,
    Assessor,
    Document,
    Experiment,
    PrearchiveSession,
    Project,
    Resource,
    Row,
    Scan,
    Subject,
)
from xnatfs.rest.urls import item_path, segment, segments
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import SessionStore

SUBJECT_RESOURCE_LABEL = "xnat:subjectData/resources/resource/label"
SHARED_INTO = "xnat:imagesessiondata/sharing/share/project"


@asynccontextmanager
async def open_xnat(
    config: Config,
    credentials: Credentials | None,
    wire: httpx.AsyncBaseTransport | None = None,
    sessions: SessionStore | None = None,
) -> AsyncIterator["Xnat"]:
    """Open a client of one server, without sending a request yet; the arguments are those of `open_transport`."""
    async with open_transport(config, credentials, wire, sessions) as transport:
        yield Xnat(transport)


class Xnat(Contents):
    """A client of one XNAT server, as one account. Its base class requests the contents of files.

    Every method raises NotFound, Denied, LoginRequired, Unreachable or BadReply.
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.login = transport.login
        self.url = transport.url
        self._lists = Lists(transport)
        self.changed = ChangedItems()

    @property
    def requests(self) -> int:
        return self._transport.requests

    def counters(self) -> dict[str, int]:
        """Return the numbers of requests and logins so far, and of the downloads and HEAD requests in flight."""
        return {
            "requests": self.requests,
            "logins": self.login.logins,
            "downloads": self._download_slots.borrowed_tokens,
            "heads": self._head_slots.borrowed_tokens,
        }

    @property
    def transport(self) -> Transport:
        """Return the transport, for its counters and the state of the server."""
        return self._transport

    async def session_lives(self) -> bool:
        """Return whether the server still accepts the session. If not, the next request logs in."""
        return await self._transport.session_lives("/xapi/users/username")

    @property
    def away(self) -> bool:
        """Return whether the server is known to be unreachable; requests then fail at once."""
        return self._transport.breaker.is_open

    async def log_in(self) -> None:
        """Log in now, to find out whether the server is reachable and accepts the login. Also raises NotXnat."""
        await self._transport.log_in()

    # -- listings ------------------------------------------------------------------------------------------------

    async def projects(self) -> list[Project]:
        return await self._lists.parsed(Project.parse, "/data/projects")

    async def subjects(self, project: str) -> list[Subject]:
        columns = "ID,label,project,insert_date,last_modified"
        return await self._lists.parsed(Subject.parse, f"/data/projects/{segment(project)}/subjects", columns=columns)

    async def experiments(self, project: str) -> list[Experiment]:
        # Base columns only: with a column of a subtype, the server drops all experiments of other types.
        columns = "ID,label,xsiType,date,subject_ID,subject_label,project,insert_date,last_modified"
        return await self._lists.parsed(
            Experiment.parse, f"/data/projects/{segment(project)}/experiments", columns=columns
        )

    async def all_subjects(self) -> list[Accession]:
        """List the subjects of all projects, each with its own project and its label there."""
        return await self._lists.parsed(Accession.of_subject, "/data/subjects", columns="ID,label,project")

    async def all_experiments(self) -> list[Accession]:
        """List the experiments of all projects: those of subjects, then the assessors of sessions.

        This takes two requests at the same time: a column that only one kind has leaves the other kind out.
        """
        path, columns = "/data/experiments", "ID,label,project"
        experiments = {"xsiType": "xnat:subjectAssessorData", "columns": f"{columns},subject_ID,subject_label"}
        assessors = {"xsiType": "xnat:imageAssessorData", "columns": f"{columns},session_ID"}
        found: list[list[Accession]] = await gather(
            lambda: self._lists.parsed(Accession.of_experiment, path, **experiments),
            lambda: self._lists.parsed(Accession.of_assessor, path, **assessors),
        )
        return [*found[0], *found[1]]

    async def scans(self, experiment: str) -> list[Scan]:
        path = f"/data/experiments/{segment(experiment)}/scans"
        return await self._lists.parsed(Scan.parse, path, columns=OWN_SCAN_COLUMNS)

    async def assessors(self, experiment: str) -> list[Assessor]:
        return await self._lists.parsed(Assessor.parse, f"/data/experiments/{segment(experiment)}/assessors")

    async def resources(self, item: Sequence[str], *, below: bool = False) -> list[Resource]:
        """List the resources of an item, given as the segments of its URL after /data.

        With `below`, include the resources of everything the item holds.
        """
        return await self._lists.parsed(Resource.parse, f"{item_path(item)}/resources", **_all(below))

    async def resources_of_many(self, experiments: Sequence[str]) -> dict[str, Resource]:
        """List the resources of everything these experiments hold, by number, without the experiment of each."""
        rows = await self._lists.parsed(
            Resource.parse, f"/data/experiments/{segments(experiments)}/resources", all="true"
        )
        return {row.id: row for row in rows}

    async def files(self, item: Sequence[str], *, below: bool = False) -> Catalogues:
        """List the files of all resources of an item. Raises NotFound if a single one of the catalogues is broken."""
        return await self._lists.files(f"{item_path(item)}/files", **_all(below))

    async def resource_files(self, item: Sequence[str], resource: str) -> Catalogue:
        """List the files of one resource."""
        found = await self._lists.files(f"{item_path(item)}/resources/{segment(resource)}/files")
        return found.groups.get(resource) or Catalogue(resource)

    async def files_of_many(self, experiments: Sequence[str]) -> Catalogues:
        """List the files of everything these experiments hold, without those that are missing or denied."""
        return await self._lists.files(f"/data/experiments/{segments(experiments)}/files", all="true")

    async def scans_of_project(self, project: str, *, shared: bool = False) -> dict[str, JoinedScans]:
        """List the scans of all sessions that a project owns, or of those shared into it, by accession ID.

        The server joins over the whole project, which takes seconds with thousands of sessions. Raises BadReply if it
        does not support that.
        """
        where = {SHARED_INTO if shared else "project": project}
        columns = ",".join(("ID", *SCAN_COLUMNS, SCAN_LABEL))

        def collect() -> Collected[dict[str, JoinedScans]]:
            found: dict[str, JoinedScans] = {}  # made of rows as they arrive: all rows would take twice the memory
            return found, lambda rows: JoinedScans.parse(map(Row, rows), found)

        params = {"xsiType": "xnat:imageSessionData", "columns": columns, **where}
        return await self._lists.collected(collect, "/data/experiments", params)

    async def assessors_of_many(self, experiments: Sequence[str]) -> dict[str, list[Assessor]]:
        """List the assessors of these sessions, by the session's accession ID.

        Raises BadReply if the server does not report the session of an assessor.
        """
        rows = await self._lists.parsed(
            Assessor.of_session,
            "/data/experiments",
            xsiType="xnat:imageAssessorData",
            session_ID=",".join(experiments),
            columns="ID,label,date,xsiType,session_ID,insert_date",
        )
        found: dict[str, dict[Assessor, None]] = {experiment: {} for experiment in experiments}
        for session, assessor in rows:
            if session in found:
                found[session][assessor] = None
        return {session: list(assessors) for session, assessors in found.items()}

    async def subject_resource_labels(self, project: str) -> dict[str, set[str]]:
        """List the labels of each subject's resources, by accession ID.

        Raises BadReply if the server ignores the column.
        """
        found: dict[str, set[str]] = {}
        columns = f"ID,label,{SUBJECT_RESOURCE_LABEL}"
        for row in await self._lists.rows(f"/data/projects/{segment(project)}/subjects", columns=columns):
            if not row.has(SUBJECT_RESOURCE_LABEL):
                raise BadReply(f"{self.url} does not list the resources of subjects: {sorted(row.cells)}")
            labels = found.setdefault(row.need("ID", "xnat:subjectdata/id"), set())
            labels.update(filter(None, [row.text(SUBJECT_RESOURCE_LABEL)]))
        return found

    async def item(self, *item: str) -> Document:
        """Fetch the document of one project, subject, experiment or scan, with its children."""
        path = item_path(item)
        document = await fetch_json(self._transport, path, {"format": "json"})
        try:
            return Document.parse(document["items"][0])
        except (KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise BadReply(f"{self.url}{path} did not come as the document of an item") from None

    async def item_xml(self, *item: str) -> bytes:
        """Fetch the document of one item as XML, as the server writes it."""
        path = item_path(item)
        document = await fetch_bytes(self._transport, path, {"format": "xml"})
        if not (document.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<") and document.rstrip().endswith(b">")):
            raise BadReply(f"{self.url}{path} was requested as XML and came as something else")
        return document

    async def rows(self, *item: str, columns: str = "", **params: str) -> list[Row]:
        """Fetch a list as the server has it, given as the segments of its URL after /data."""
        return await self._lists.rows(item_path(item), **({"columns": columns} if columns else {}), **params)

    async def text(self, path: str) -> str:
        """Fetch a short plain-text reply."""
        return await fetch_text(self._transport, path)

    segment = staticmethod(segment)

    async def raw(self, method: str, path: str, body: bytes, content_type: str | None) -> AsyncGenerator[bytes]:
        """Send any request and yield the body of the reply.

        The request is sent once, and again only if a lost session proves that the server did not act on it.

        Args:
            method: The HTTP method.
            path: Path and query, relative to the server's URL.
            body: The body of the request.
            content_type: The media type of `body`; None sends no Content-Type.
        """
        target = path if path.startswith("/") else f"/{path}"
        if method != "GET":
            self.changed.note(target)
        headers = {"Content-Type": content_type} if content_type else {}
        request = HttpRequest(method, target, headers=headers, body=body, is_change=True)
        response = await self._transport.send_in_session(request)
        target = target.partition("?")[0]
        try:
            await self._transport.check(target, response, "any", allow=(200, 201, 202, 204))
            async with aclosing(self._transport.read_body(target, response)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            await close(response)

    async def change(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        form: Mapping[str, str] | None = None,
        body: RequestBody = b"",
        headers: Mapping[str, str] | None = None,
    ) -> ChangeReply:
        """Make a change, and return the server's answer, whatever its status.

        A change is not retried if the server may already have applied it.

        Args:
            method: The HTTP method.
            path: The path, relative to the server's URL.
            params: The query.
            form: Fields to send as a form, in place of `body` and `headers`.
            body: The body, or a function that begins to yield its pieces, called each time the request is sent.
            headers: Further headers.

        Raises:
            LoginRequired: There is no session and no way to log in.
            Unreachable: The server did not receive the change.
            Uncertain: The server may have applied the change.
        """
        if form is not None:
            body, headers = urlencode(form).encode(), {"Content-Type": "application/x-www-form-urlencoded"}
        request = HttpRequest(method, path, params=params or {}, headers=headers or {}, body=body, is_change=True)
        texts = [path]
        try:
            answer = await self._transport.change(request)
            texts += [answer.location, answer.text]
            return answer
        finally:  # an error may come of a change that was made
            self.changed.note(*texts, parameters=[*(params or {}).items(), *(form or {}).items()])

    async def prearchive(self, project: str = "") -> list[PrearchiveSession]:
        """List the sessions in the prearchive of a project, or of all projects that the account may edit."""
        where = f"/projects/{segment(project)}" if project else ""
        rows = [PrearchiveSession.parse(row) for row in await self._lists.rows(f"/data/prearchive{where}")]
        # For accounts with access to all data, the server appends the rows without a project to those of any project.
        return [row for row in rows if not project or row.project == project]

    async def issue_token(self) -> tuple[str, str]:
        """Issue an alias token: a new alias and its secret, which log in in place of user and password."""
        cells = await fetch_json(self._transport, "/data/services/tokens/issue", {}, is_change=True)
        try:
            return str(cells["alias"]), str(cells["secret"])
        except (KeyError, TypeError):
            raise BadReply(f"{self.url} issued no alias token") from None

    async def invalidate_token(self, alias: str) -> None:
        """Invalidate an alias token. The server allows this only to the token's own session."""
        await fetch_json(self._transport, f"/data/services/tokens/invalidate/{segment(alias)}", {}, is_change=True)

    async def username(self) -> str:
        """Fetch the user name that the server knows the session by. Raises LoginRequired if it knows none."""
        try:
            return await self.text("/xapi/users/username")
        except NotFound:  # a server from before /xapi
            found = re.search(r"User '([^'\n]*)' is logged in", await self.text("/data/auth"))
            if not found:
                raise BadReply(f"{self.url} reports no user name") from None
            return found[1]


def _all(below: bool) -> dict[str, str]:
    return {"all": "true"} if below else {}
