"""Call XNAT's REST API, one method per resource. Only this module and `http/transport.py` below it speak XNAT's HTTP.

Rules that keep it right on a real server: request with `Accept: */*` and `format=json`, and check the envelope of the
reply; address items by accession ID and resources by number, never by label.
"""

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from typing import TypeVar
from urllib.parse import quote, urlencode

import httpx
import trio

from xnatfs.common.errors import BadReply, NotFound, first_error
from xnatfs.content.source import Body, Head
from xnatfs.http.clients import PARALLEL_DOWNLOADS
from xnatfs.http.documents import fetch, fetch_json, fetch_text
from xnatfs.http.messages import ChangeReply, HttpRequest, RequestBody
from xnatfs.http.replies import close, content_length, is_framed, last_modified, strong_validator
from xnatfs.http.resumable_download import Downloads, RemoteFile
from xnatfs.http.transport import Transport, open_transport
from xnatfs.rest.changes import ChangedItems
from xnatfs.rest.file_table import Catalogue, Catalogues
from xnatfs.rest.json_rows import MOST_BYTES, MOST_ROWS, Cells, NotAList, Table
from xnatfs.rest.models import (
    SCAN_COLUMNS,
    SCAN_LABEL,
    Accession,
    Assessor,
    Document,
    Experiment,
    FileRow,
    JoinedScans,
    PrearchiveSession,
    Project,
    Resource,
    Row,
    Scan,
    Subject,
)
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import SessionStore

log = logging.getLogger(__name__)

R = TypeVar("R")
# The object that a list becomes, and the function that puts rows into it.
Collected = tuple[R, Callable[[list[Cells]], None]]

SUBJECT_RESOURCE_LABEL = "xnat:subjectData/resources/resource/label"

# A listing is parsed in pieces of this many bytes: a millisecond each, between which other tasks run.
PIECE = 32 * 1024

# The largest list of anything but files, in bytes and in rows: a project of a hundred thousand sessions is 30 MB, and
# as objects its rows take up to 20 times as much.
LISTED = (2**28, 1_000_000)
# The largest list of files, in bytes and in rows.
FILES = (MOST_BYTES, MOST_ROWS)

# At most half of all downloads are of long files, so that a copy of eight volumes does not keep all other readers
# waiting until the first of them is complete. LONG is in bytes: 32 MiB take a second or two on a slow line.
LONG_DOWNLOADS = PARALLEL_DOWNLOADS // 2
LONG = 32 * 2**20

# From this size in bytes on, a download process receives a file. It takes 80 ms to start (measured), as long as this
# many bytes take at 1 Gbit/s, and serves the next file, too; a smaller file is complete before it is read, so that less
# is gained.
BIG = 8 * 2**20


@asynccontextmanager
async def open_xnat(
    config: Config,
    credentials: Credentials | None,
    wire: httpx.AsyncBaseTransport | None = None,
    sessions: SessionStore | None = None,
) -> AsyncIterator["Xnat"]:
    """Open a client of one server, without sending a request yet.

    Args:
        config: The server's URL, timeouts and TLS settings.
        credentials: The login; None if only a session in `sessions` can be used.
        wire: Replaces the network in tests.
        sessions: Shares the session with other programs and keeps it at the end; without it, the client ends the
            session on exit.
    """
    async with open_transport(config, credentials, wire, sessions) as transport:
        yield Xnat(transport)


class Xnat:
    """A client of one XNAT server, as one account.

    Every method raises NotFound, Denied, LoginRequired, Unreachable or BadReply.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.login = transport.login
        self.url = transport.url
        self._downloads = trio.CapacityLimiter(PARALLEL_DOWNLOADS)
        self._long_downloads = trio.CapacityLimiter(LONG_DOWNLOADS)
        self._heads = trio.CapacityLimiter(PARALLEL_DOWNLOADS)
        self._files = Downloads(transport)
        self.changed = ChangedItems()

    @property
    def requests(self) -> int:
        return self._transport.requests

    def counters(self) -> dict[str, int]:
        """Return the numbers of requests and logins so far, and of the downloads and HEAD requests in flight."""
        return {
            "requests": self.requests,
            "logins": self.login.logins,
            "downloads": self._downloads.borrowed_tokens,
            "heads": self._heads.borrowed_tokens,
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
        return await self._listed(Project.parse, "/data/projects")

    async def subjects(self, project: str) -> list[Subject]:
        columns = "ID,label,project,insert_date,last_modified"
        return await self._listed(Subject.parse, f"/data/projects/{_segment(project)}/subjects", columns=columns)

    async def experiments(self, project: str) -> list[Experiment]:
        # Base columns only: with a column of a subtype, the server drops all experiments of other types.
        columns = "ID,label,xsiType,date,subject_ID,subject_label,project,insert_date,last_modified"
        return await self._listed(Experiment.parse, f"/data/projects/{_segment(project)}/experiments", columns=columns)

    async def all_subjects(self) -> list[Accession]:
        """List the subjects of all projects, each with its own project and its label there."""
        return await self._listed(Accession.of_subject, "/data/subjects", columns="ID,label,project")

    async def all_experiments(self) -> list[Accession]:
        """List the experiments of all projects: those of subjects, then the assessors of sessions.

        This takes two requests at the same time: a column that only one kind has leaves the other kind out.
        """
        found: dict[str, list[Accession]] = {}

        async def ask(parse: Callable[[Row], Accession], kind: str, columns: str) -> None:
            found[kind] = await self._listed(
                parse, "/data/experiments", xsiType=f"xnat:{kind}AssessorData", columns=f"ID,label,project,{columns}"
            )

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, Accession.of_experiment, "subject", "subject_ID,subject_label")
                nursery.start_soon(ask, Accession.of_assessor, "image", "session_ID")
        except ExceptionGroup as group:
            raise first_error(group) from None
        return [*found["subject"], *found["image"]]

    async def scans(self, experiment: str) -> list[Scan]:
        return await self._listed(Scan.parse, f"/data/experiments/{_segment(experiment)}/scans")

    async def assessors(self, experiment: str) -> list[Assessor]:
        return await self._listed(Assessor.parse, f"/data/experiments/{_segment(experiment)}/assessors")

    async def resources(self, item: Sequence[str], *, below: bool = False) -> list[Resource]:
        """List the resources of an item, given as the segments of its URL after /data.

        With `below`, include the resources of everything the item holds.
        """
        return await self._listed(Resource.parse, f"{_item(item)}/resources", **_all(below))

    async def resources_of_many(self, experiments: Sequence[str]) -> dict[str, Resource]:
        """List the resources of everything these experiments hold, by number, without the experiment of each."""
        rows = await self._listed(Resource.parse, f"/data/experiments/{_list(experiments)}/resources", all="true")
        return {row.id: row for row in rows}

    async def files(self, item: Sequence[str], *, below: bool = False) -> Catalogues:
        """List the files of all resources of an item. Raises NotFound if a single one of the catalogues is broken."""
        return await self._catalogues(f"{_item(item)}/files", **_all(below))

    async def resource_files(self, item: Sequence[str], resource: str) -> Catalogue:
        """List the files of one resource."""
        found = await self._catalogues(f"{_item(item)}/resources/{_segment(resource)}/files")
        return found.groups.get(resource) or Catalogue(resource)

    async def files_of_many(self, experiments: Sequence[str]) -> Catalogues:
        """List the files of everything these experiments hold, without those that are missing or denied."""
        return await self._catalogues(f"/data/experiments/{_list(experiments)}/files", all="true")

    async def scans_of_project(self, project: str, *, shared: bool = False) -> dict[str, JoinedScans]:
        """List the scans of all sessions that a project owns, or of those shared into it, by accession ID.

        The server joins over the whole project, which takes seconds with thousands of sessions. Raises BadReply if it
        does not support that.
        """
        where = {"xnat:imagesessiondata/sharing/share/project" if shared else "project": project}
        columns = ",".join(("ID", *SCAN_COLUMNS, SCAN_LABEL))

        def collect() -> Collected[dict[str, JoinedScans]]:
            found: dict[str, JoinedScans] = {}  # made of rows as they arrive: all rows would take twice the memory
            return found, lambda rows: JoinedScans.parse(map(Row, rows), found)

        params = {"xsiType": "xnat:imageSessionData", "columns": columns, **where}
        return await self._read("/data/experiments", collect, params, LISTED)

    async def assessors_of_many(self, experiments: Sequence[str]) -> dict[str, list[Assessor]]:
        """List the assessors of these sessions, by the session's accession ID.

        Raises BadReply if the server does not report the session of an assessor.
        """
        rows = await self._listed(
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
        for row in await self._table(f"/data/projects/{_segment(project)}/subjects", columns=columns):
            if not row.has(SUBJECT_RESOURCE_LABEL):
                raise BadReply(f"{self.url} does not list the resources of subjects: {sorted(row.cells)}")
            labels = found.setdefault(row.need("ID", "xnat:subjectdata/id"), set())
            labels.update(filter(None, [row.text(SUBJECT_RESOURCE_LABEL)]))
        return found

    async def document(self, *item: str) -> dict[str, str]:
        """Fetch the fields of one project, subject or experiment."""
        return (await self.item(*item)).fields

    async def item(self, *item: str) -> Document:
        """Fetch the document of one project, subject, experiment or scan, with its children."""
        path = _item(item)
        document = await fetch_json(self._transport, path, {"format": "json"})
        try:
            return Document.parse(document["items"][0])
        except (KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise BadReply(f"{self.url}{path} did not come as the document of an item") from None

    async def rows(self, *item: str, columns: str = "", **params: str) -> list[Row]:
        """Fetch a list as the server has it, given as the segments of its URL after /data."""
        return await self._table(_item(item), **({"columns": columns} if columns else {}), **params)

    async def text(self, path: str) -> str:
        """Fetch a short plain-text reply."""
        return await fetch_text(self._transport, path)

    @staticmethod
    def segment(text: str) -> str:
        """Quote one segment of a URL's path."""
        return _segment(text)

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
        request = HttpRequest(method, path, "any", params or {}, headers or {}, body, is_change=True)
        said = ""
        try:
            answer = await self._transport.change(request)
            said = f"{answer.location}\n{answer.text}"
            return answer
        finally:  # an error may come of a change that was made
            self.changed.note(path, said, parameters=[*(params or {}).items(), *(form or {}).items()])

    async def prearchive(self, project: str = "") -> list[PrearchiveSession]:
        """List the sessions in the prearchive of a project, or of all projects that the account may edit."""
        where = f"/projects/{_segment(project)}" if project else ""
        rows = [PrearchiveSession.parse(row) for row in await self._table(f"/data/prearchive{where}")]
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
        await fetch_json(self._transport, f"/data/services/tokens/invalidate/{_segment(alias)}", {}, is_change=True)

    async def username(self) -> str:
        """Fetch the user name that the server knows the session by. Raises LoginRequired if it knows none."""
        try:
            return await self.text("/xapi/users/username")
        except NotFound:  # a server from before /xapi
            found = re.search(r"User '([^'\n]*)' is logged in", await self.text("/data/auth"))
            if not found:
                raise BadReply(f"{self.url} does not say who is logged in") from None
            return found[1]

    # -- content -------------------------------------------------------------------------------------------------

    async def head(self, item: Sequence[str], file: FileRow) -> Head:
        """Request the headers of a file, without its bytes."""
        async with self._heads, self._transport.reply("HEAD", _file_path(item, file)) as response:
            return Head(content_length(response), last_modified(response))

    @property
    def ranged(self) -> bool | None:
        """Return whether the server supports Range; None until a range was requested."""
        return self._files.ranged

    @asynccontextmanager
    async def download(
        self,
        item: Sequence[str],
        file: FileRow,
        start: int = 0,
        size: int | None = None,
        stop: int | None = None,
    ) -> AsyncIterator[Body]:
        """Download a file, from `start` if the server supports that, else from 0.

        A connection that breaks is resumed where it broke.

        Args:
            item: The item that has the resource, as the segments of its URL after /data.
            file: The file's row in the listing.
            start: The first byte to request.
            size: The known length in bytes; a range is never requested past it.
            stop: Where a range ends, exclusive; None for the end of the file.

        Raises:
            Stale: The file changed on the server meanwhile.
        """
        remote = RemoteFile(_file_path(item, file), size, (file.size or 0) > BIG, bool(file.digest))
        async with self._patience(file), self._downloads, self._files.open(remote, start, stop) as body:
            yield body

    @asynccontextmanager
    async def archive(self, item: Sequence[str], *resources: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Download resources as one tar, in pieces as they arrive. Its length is not known beforehand."""
        path = f"{_item(item)}/resources/{','.join(_segment(resource) for resource in resources)}/files"
        async with self._downloads, self._transport.reply("GET", path, {"format": "tar"}) as response:
            async with aclosing(self._transport.read_body(path, response)) as chunks:
                yield chunks

    @asynccontextmanager
    async def zip(self, experiment: str, scans: Sequence[str] | None) -> AsyncIterator[AsyncIterator[bytes]]:
        """Download the server's own ZIP archive of some scans of an experiment, or of all (None)."""
        chosen = ",".join(_segment(scan) for scan in scans) if scans is not None else "ALL"
        path = f"/data/experiments/{_segment(experiment)}/scans/{chosen}/files"
        async with self._downloads, self._transport.reply("GET", path, {"format": "zip"}) as response:
            async with aclosing(self._transport.read_body(path, response)) as chunks:
                yield chunks

    @asynccontextmanager
    async def indexed(self, item: Sequence[str], index: int) -> AsyncIterator[tuple[Body, bytes]]:
        """Download the n-th file (from 0) of all resources of an item, in the order in which `files` lists them.

        Yields the file and its name in Content-Disposition, b"" if there is none.
        """
        path = f"{_item(item)}/files"
        query = {"index": str(index)}
        async with self._downloads, self._transport.reply("GET", path, query) as response:
            async with aclosing(self._transport.read_body(path, response)) as chunks:
                size, modified = content_length(response), last_modified(response)
                validator, framed = strong_validator(response), is_framed(response)
                yield Body(0, size, modified, chunks, None, validator, framed), _file_name(response)

    def _patience(self, file: FileRow) -> AbstractAsyncContextManager[object]:
        """Return the limiter of long downloads for a large file, so that these never take the places of all others."""
        return self._long_downloads if (file.size or 0) > LONG else nullcontext()

    # -- requests ------------------------------------------------------------------------------------------------

    async def _listed(self, parse: Callable[[Row], R], path: str, **params: str) -> list[R]:
        def collect() -> Collected[list[R]]:
            found: list[R] = []
            return found, lambda rows: found.extend(parse(Row(cells)) for cells in rows)

        return await self._read(path, collect, params, LISTED)

    async def _table(self, path: str, **params: str) -> list[Row]:
        return await self._listed(lambda row: row, path, **params)

    async def _catalogues(self, path: str, **params: str) -> Catalogues:
        def collect() -> Collected[Catalogues]:
            found = Catalogues()
            return found, found.add

        return await self._read(path, collect, params, FILES)

    async def _read(
        self, path: str, collect: Callable[[], Collected[R]], params: Mapping[str, str], most: tuple[int, int]
    ) -> R:
        """Fetch a list and collect its rows as they arrive; `collect` begins anew each time the list is requested."""
        params = {"format": "json", **params}

        async def rows(chunks: AsyncGenerator[bytes]) -> tuple[R, int]:
            found, take = collect()
            return found, await _fed(Table(*most), chunks, take)

        try:
            found, count = await fetch(self._transport, path, params, rows)
            if not count and self.login.is_doubtful() and not await self._transport.session_lives(path):
                # An open site that has dropped the session answers as to a guest, with an empty list.
                found, _ = await fetch(self._transport, path, params, rows)
        except NotAList as error:
            raise BadReply(f"{self.url}{path} was requested as a list and came as {error}") from None
        except (ValueError, RecursionError):  # the latter from a nested cell, when it is converted to text
            raise BadReply(f"{self.url}{path} was requested as JSON and came as something else") from None
        return found


async def _fed(table: Table, chunks: AsyncGenerator[bytes], take: Callable[[list[Cells]], None]) -> int:
    """Parse a list as it arrives, pass its rows to `take`, and return their number."""
    count = 0
    async for chunk in chunks:
        for start in range(0, len(chunk), PIECE):
            rows = table.feed(chunk[start : start + PIECE])
            take(rows)
            count += len(rows)
            await trio.lowlevel.checkpoint()
    rows = table.close()
    take(rows)
    return count + len(rows)


def has_url(path: str) -> bool:
    """Return whether a file's path can be part of a URL.

    XNAT's firewall refuses encoded '%', ';' and '\\', empty segments and dot segments; control characters are
    refused by the server below it.
    """
    if any(character in "%;\\" or character < " " or character == "\x7f" for character in path):
        return False
    return not any(segment in ("", ".", "..") for segment in path.split("/"))


def _segment(text: str) -> str:
    """Quote one segment of a path, dot segments too: unquoted, they would lead to another item."""
    return text.replace(".", "%2E") if text in (".", "..") else quote(text, safe="", errors="surrogatepass")


def _list(keys: Iterable[str]) -> str:
    """Join several items to one segment of a path."""
    return ",".join(_segment(key) for key in keys)


def _all(below: bool) -> dict[str, str]:
    return {"all": "true"} if below else {}


def _item(segments: Sequence[str]) -> str:
    return "/data/" + "/".join(_segment(segment) for segment in segments)


def quoted(path: str) -> str:
    """Quote a file's path for a URL."""
    return "/".join(_segment(segment) for segment in path.split("/"))


def _file_path(item: Sequence[str], file: FileRow) -> str:
    return f"{_item(item)}/resources/{_segment(file.resource_id)}/files/{quoted(file.path)}"


def _file_name(response: httpx.Response) -> bytes:
    """Return the file name in Content-Disposition, as the bytes that the server sent; b'' if there is none."""
    said = next((value for key, value in response.headers.raw if key.lower() == b"content-disposition"), b"")
    _, _, name = said.partition(b'filename="')
    return name.rpartition(b'"')[0]
