"""Play recorded replies of real servers to the client's own parsers, and hold the demo to their shape.

Where XNATFS_RECORDED names a directory of recordings, which the project does not hold, each of them is played to the
client method that makes its request. What must come out is read from the recording by a few lines of this module. A
synthetic set in the same form is always played: replies of the demo as it is in the oldest release.
"""

import html
import io
import json
import os
import re
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from tests.support import recordings
from tests.support.recordings import Recording, answer, key, response
from xnatfs.common.errors import BadReply, Conflict, Denied, LoginRequired, NotFound, Stale, Unreachable, XnatError
from xnatfs.demo.archive.model import Archive, Experiment, Reconstruction, Resource, Scan, User
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.releases import XNAT_1_6
from xnatfs.prefetch.tar_stream import members
from xnatfs.rest import prearchive
from xnatfs.rest.client import Xnat, open_xnat
from xnatfs.rest.models import FileRow, PrearchiveSession, Row
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials

REAL = os.environ.get("XNATFS_RECORDED", "")
URL = "http://xnat.example.org/xnat"
TOKEN = "A" * 32
ERRORS = {401: LoginRequired, 403: Denied, 404: NotFound}

Cells = dict[str, str]
Params = dict[str, str]
Check = Callable[[Any, Recording], None]


# -- a made-up set -------------------------------------------------------------------------------------------------


def site() -> Archive:
    """Make a site like the one that was recorded: the same kinds of things under the same addresses."""
    archive = Archive()
    for name in ("owner", "member", "collab", "outsider", "admin"):
        archive.users[name] = User(name, f"{name}pw", admin=name == "admin")
    private = archive.project("PRIV", "Private", owner="Owners", member="Members", collab="Collaborators")
    public, protected = (archive.project(id, id, level, owner="Owners") for id, level in OPEN_PROJECTS)
    move = archive.project("MOVE", "MOVE", owner="Owners")
    private.resources.append(_filled(11, "docs", {"readme.txt": b"private\n", "a/b/c.txt": b"deep\n"}))
    protected.resources.append(_filled(4, "docs", {"readme.txt": b"project file\n"}))
    public.resources.append(_filled(90, "docs", {"readme.txt": b"open\n"}))
    subject = archive.subject(private, "S1", "XNAT_S00001")
    subject.shared[move.id] = "SX"
    subject.resources.append(_filled(12, "NOTES", {"notes.txt": b"notes\n"}))
    archive.subject(private, "S2", "XNAT_S00002")
    session = archive.experiment(subject, "S1_MR1", "XNAT_E00001", date="2020-01-02")
    session.shared[move.id] = "SHARED_MR1"
    _fill_session(archive, session)
    for project, accession, number in ((public, "XNAT_E00002", 1), (protected, "XNAT_E00003", 3)):
        other = archive.experiment(archive.subject(project, f"S_{project.id}"), f"{project.id}_MR", accession)
        other.scans.append(Scan("1", "T1", resources=[_filled(number, "DICOM", {"a.dcm": bytes(5000)})], pk=number))
        other.resources.append(_filled(70 + number, "MISC", {"a.txt": b"a"}))
    digits = archive.experiment(subject, "DIG_MR", "XNAT_E00030")
    digits.resources.append(_filled(65, "64", {"a.dcm": b"B" * 99}))
    digits.scans.append(Scan("1", "T1", resources=[_filled(64, "DICOM", {"a.dcm": b"A" * 99})], pk=8))
    archive.changed()
    return archive


OPEN_PROJECTS = (("PUBL", "public"), ("PROT", "protected"))
NAMES = ("plain.txt", "with blank.txt", "plus+sign.txt", "per%cent.txt", "semi;colon.txt", "umläut.txt")


def _filled(id: int, label: str, files: dict[str, bytes]) -> Resource:
    made = Resource(id, label, "DICOM" if label == "DICOM" else "", "RAW" if label == "DICOM" else "")
    for name, content in files.items():
        Archive.file(made, name, content)
    return made


def _fill_session(archive: Archive, session: Experiment) -> None:
    names = {name: f"of {name}\n".encode() for name in NAMES}
    images = {f"img{number:03}.dcm": bytes([number]) * (70000 + number) for number in range(6)}
    nifti = _filled(6, "NIFTI", {"big.nii": bytes(10_000_200), "small.nii": b"nii"})
    session.scans += [
        Scan("1", "T1", "t1_mprage", resources=[_filled(5, "DICOM", images), nifti], pk=1),
        Scan("2", "a & b", "desc <b> & ü", pk=4),
        Scan("4", "EMPTY", quality="", pk=6),
        Scan("10", "T1", resources=[_filled(10, "DICOM", {"x.dcm": b"x" * 901})], pk=7),
    ]
    session.scans[1].resources.append(_filled(9, "DICOM", {"x.dcm": b"2" * 5000}))
    session.resources += [
        _filled(13, "MISC", {"plain.txt": b"plain\n"}),
        _filled(15, "NAMES2", names),
        _filled(17, "NAMES4", names),
        _filled(18, "DUP", {"one.txt": b"dup one"}),
        _filled(24, "DUP", {"two.txt": b"dup two"}),
        _filled(25, "", {"u.txt": b"u"}),
        _filled(63, "ZIPS", {"foo.zip/inner.txt": b"inner"}),
        _filled(66, "ORDER", {"n" * 124: b"long", "b.txt": b"b"}),
    ]
    rating = archive.experiment(
        archive.subjects[session.subject], "QC1", "XNAT_E00005", xsi_type="xnat:qcManualAssessorData", date="2020-01-03"
    )
    rating.session = session.id
    rating.out += [_filled(21, "QCOWN", {"own.txt": b"own\n"}), _filled(22, "QCOUT", {"out.txt": b"out\n"})]
    rating.inputs.append(_filled(23, "QCIN", {"in.txt": b"in\n"}))
    recon = Reconstruction(
        "REC1", "mean", [_filled(26, "RO", {"ro.txt": b"ro"})], [_filled(27, "RI", {"ri.txt": b"ri"})]
    )
    session.reconstructions.append(recon)


SCAN_COLUMNS = ",".join(
    ["ID", *(f"xnat:imagescandata/{n}" for n in ("id", "type", "quality", "series_description", "note", "file/label"))]
)
SUBJECTS = "columns=ID,label,project,insert_date,last_modified"
EXPERIMENTS = "columns=ID,label,xsiType,date,subject_ID,subject_label,project,insert_date,last_modified"
SESSION, PLAIN = "/data/experiments/XNAT_E00001", "/data/experiments/XNAT_E00001/resources/13/files/plain.txt"
# Name, user, request, header. Of what the client asks, something for each route and for each way it may end.
REQUESTS = (
    ("projects", "owner", "GET /data/projects?format=json"),
    ("projects-nologin", "-", "GET /data/projects?format=json"),
    ("subjects", "owner", f"GET /data/projects/PRIV/subjects?format=json&{SUBJECTS}"),
    ("subjects-denied", "outsider", f"GET /data/projects/PRIV/subjects?format=json&{SUBJECTS}"),
    ("subjects-protected", "outsider", f"GET /data/projects/PROT/subjects?format=json&{SUBJECTS}"),
    ("subjects-labels", "owner",
     "GET /data/projects/PRIV/subjects?format=json&columns=ID,label,xnat:subjectData/resources/resource/label"),
    ("experiments", "owner", f"GET /data/projects/PRIV/experiments?format=json&{EXPERIMENTS}"),
    ("experiments-shared", "owner", f"GET /data/projects/MOVE/experiments?format=json&{EXPERIMENTS}"),
    ("experiments-protected", "outsider", f"GET /data/projects/PROT/experiments?format=json&{EXPERIMENTS}"),
    ("experiments-limit", "owner", "GET /data/projects/PRIV/experiments?format=json&limit=1"),
    ("scans", "owner", f"GET {SESSION}/scans?format=json"),
    ("scans-nosuch", "owner", "GET /data/experiments/NOSUCH/scans?format=json"),
    ("assessors", "owner", f"GET {SESSION}/assessors?format=json"),
    ("assessors-of-many", "owner",
     "GET /data/experiments?format=json&xsiType=xnat:imageAssessorData&session_ID=XNAT_E00001,XNAT_E00002"
     "&columns=ID,label,date,xsiType,session_ID,insert_date"),
    ("scans-of-project", "owner",
     f"GET /data/experiments?format=json&xsiType=xnat:imageSessionData&project=PRIV&columns={SCAN_COLUMNS}"),
    ("scans-of-project-shared", "owner",
     "GET /data/experiments?format=json&xsiType=xnat:imageSessionData"
     f"&xnat:imagesessiondata/sharing/share/project=MOVE&columns={SCAN_COLUMNS}"),
    ("resources-all", "owner", f"GET {SESSION}/resources?format=json&all=true"),
    ("resources", "owner", f"GET {SESSION}/resources?format=json"),
    ("resources-denied", "outsider", f"GET {SESSION}/resources?format=json&all=true"),
    ("resources-of-assessor", "owner", "GET /data/experiments/XNAT_E00005/resources?format=json"),
    ("files-all", "owner", f"GET {SESSION}/files?format=json&all=true"),
    ("files", "owner", f"GET {SESSION}/files?format=json"),
    ("files-many", "owner", "GET /data/experiments/XNAT_E00001,NOSUCH/files?format=json&all=true"),
    ("files-denied", "outsider", f"GET {SESSION}/files?format=json&all=true"),
    ("files-resource", "owner", f"GET {SESSION}/resources/5/files?format=json"),
    ("files-nosuch-number", "owner", f"GET {SESSION}/resources/99999/files?format=json"),
    ("doc-project", "owner", "GET /data/projects/PRIV?format=json"),
    ("doc-subject", "owner", "GET /data/subjects/XNAT_S00001?format=json"),
    ("doc-experiment", "owner", f"GET {SESSION}?format=json"),
    ("doc-by-label", "owner", "GET /data/projects/PRIV/experiments/S1_MR1?format=json"),
    ("doc-nosuch", "owner", "GET /data/experiments/NOSUCH?format=json"),
    ("prearchive", "owner", "GET /data/prearchive?format=json"),
    ("prearchive-project", "owner", "GET /data/prearchive/projects/PRIV?format=json"),
    ("tar", "owner", f"GET {SESSION}/resources/5/files?format=tar"),
    ("tar-names", "owner", f"GET {SESSION}/resources/15/files?format=tar"),
    ("tar-breaks", "owner", f"GET {SESSION}/resources/66/files?format=tar"),
    ("tar-nosuch", "owner", f"GET {SESSION}/resources/99999/files?format=tar"),
    ("zip", "owner", f"GET {SESSION}/scans/1,2/files?format=zip"),
    ("zip-all", "owner", f"GET {SESSION}/scans/ALL/files?format=zip"),
    ("head", "owner", f"HEAD {PLAIN}"),
    ("head-nosuch", "owner", f"HEAD {SESSION}/resources/13/files/nosuch.txt"),
    ("file", "owner", f"GET {PLAIN}"),
    ("file-nosuch", "owner", f"GET {SESSION}/resources/13/files/nosuch.txt"),
    ("file-percent", "owner", f"GET {SESSION}/resources/15/files/per%25cent.txt"),
    ("file-denied", "outsider", f"GET {PLAIN}"),
    ("file-unmodified", "owner", f"GET {PLAIN}", "If-Modified-Since: Sat, 28 Nov 2026 18:02:54 GMT"),
    ("range", "owner", f"GET {PLAIN}", "Range: bytes=1-3"),
    ("range-end-beyond", "owner", f"GET {PLAIN}", "Range: bytes=2-100"),
    ("range-start-beyond", "owner", f"GET {PLAIN}", "Range: bytes=100-200"),
    ("range-at-end", "owner", f"GET {PLAIN}", "Range: bytes=6-"),
    ("range-suffix-big", "owner", f"GET {PLAIN}", "Range: bytes=-100"),
    ("range-bad", "owner", f"GET {PLAIN}", "Range: bytes=x-y"),
    ("range-multi", "owner", f"GET {PLAIN}", "Range: bytes=0-1,3-4"),
    ("index", "owner", f"GET {SESSION}/files?index=0"),
    ("index-out", "owner", f"GET {SESSION}/files?index=999"),
    ("auth", "owner", "GET /data/auth"),
    ("auth-nologin", "-", "GET /data/auth"),
    ("xapi", "owner", "GET /xapi/users/username"),
    ("xapi-buildinfo", "-", "GET /xapi/siteConfig/buildInfo"),
    ("token", "owner", "GET /data/services/tokens/issue"),
    ("login", "-", "POST /data/JSESSION", "Authorization: Basic b3duZXI6b3duZXJwdw=="),
    ("login-wrong", "-", "POST /data/JSESSION", "Authorization: Basic b3duZXI6eA=="),
    ("login-get", "-", "GET /data/JSESSION", "Authorization: Basic b3duZXI6b3duZXJwdw=="),
    ("archive-unknown", "owner", "POST /data/services/archive?src=/prearchive/projects/PRIV/20200101_000000000/NOSUCH"),
    ("delete-denied", "member", "DELETE /data/projects/PRIV/subjects/S2?removeFiles=true"),
)  # fmt: skip


def asked(demo: DemoXnat, recording: Recording) -> Recording:
    """Record what the demo answers to the same request of the same user."""
    headers = {"accept": "*/*", **recording.sent}
    if recording.user != "-":
        session = demo.sessions.create(recording.user)
        headers["cookie"] = f"JSESSIONID={session.id}"
    path, _, query = recording.target.partition("?")
    reply = demo.handle(recording.method, path, query, headers)
    length = reply.length()
    sent = [("Content-Type", reply.content_type)] if reply.content_type else []
    sent += reply.headers.items()
    sent.append(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length)))
    sent += [("Set-Cookie", cookie) for cookie in reply.cookies]
    body = b"" if recording.method == "HEAD" else b"".join(reply.pieces())
    request = (recording.name, recording.user, recording.method, recording.target, recording.sent)
    return Recording(*request, reply.status, sent, body, length is not None and len(body) < length)


def made_up(directory: Path) -> None:
    demo = DemoXnat(site(), release=XNAT_1_6, context_path="")
    made = []
    for name, user, request, *sent in REQUESTS:
        method, target = request.split(" ", 1)
        headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in sent)}
        made.append(asked(demo, Recording(name, user, method, target, headers)))
    recordings.write(directory, made)


@dataclass
class Set:
    """A set of recordings of one server."""

    recorded: list[Recording]

    def whole(self, recording: Recording) -> Recording | None:
        """Find the recording of the whole file, not of a part of it."""
        return next(
            (r for r in self.recorded if r.key == recording.key and not r.sent.keys() & CONDITIONS and r.status == 200),
            None,
        )


CONDITIONS = {"range", "if-modified-since", "if-none-match"}


@pytest.fixture(scope="module", params=["made up", *([REAL] if REAL else [])])
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Set:
    directory = tmp_path_factory.mktemp("replies") if request.param == "made up" else Path(request.param)
    if request.param == "made up":
        made_up(directory)
    found = [r for index in sorted(directory.rglob("INDEX.md")) for r in recordings.read(index.parent)]
    assert len(found) >= len(REQUESTS)
    return Set(found)


# -- playing -------------------------------------------------------------------------------------------------------


class Player(httpx.AsyncBaseTransport):
    """A server that answers one request as recorded, and those of a session; any other request fails the test."""

    def __init__(self, recording: Recording, whole: Recording | None = None) -> None:
        self.recording = recording
        self.whole = whole
        self.answered = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path, _, query = request.url.raw_path.decode().removeprefix("/xnat").partition("?")
        found = key(request.method, path, query)
        if path.endswith("/scans"):  # recorded with the server's default columns, which lack the frames only
            found = (*found[:2], tuple(pair for pair in found[2] if pair[0] != "columns"))
        if found == self.recording.key or self._is_change(found):
            if self.whole is not None and "range" not in request.headers:
                return response(self.whole)
            self.answered += 1
            return response(self.recording)
        match found[:2]:
            case "POST", "/data/JSESSION":
                return answer(405 if self.recording.path == "/data/JSESSION" else 200, TOKEN)
            case "DELETE", "/data/JSESSION":
                return answer(200)
            case "GET", "/xapi/users/username":
                return answer(404, "<h3>Apache Tomcat/9.0.70</h3>")
            case "GET", "/xapi/siteConfig/buildInfo":
                return answer(404)
            case "GET", "/data/auth":
                return answer(200, "User 'owner' is logged in.", server="Noelios-Restlet-Engine/1.1.6")
            case "GET", place if place.startswith("/data/prearchive"):
                return answer(200, '{"ResultSet": {"Result": []}}')
            case "GET", place if "/experiments/" in place and self.recording.method == "POST":
                return answer(404)
        raise AssertionError(f"{request.method} {request.url} is not {self.recording.target}")

    def _is_change(self, found: recordings.Key) -> bool:
        """Tell a change by its path: other tests look at the words that are sent."""
        return found[:2] == self.recording.key[:2] and found[0] == "POST"


@asynccontextmanager
async def client(player: Player, directory: Path) -> AsyncIterator[Xnat]:
    config = Config(URL, cache_dir=directory, timeout=5.0)
    async with open_xnat(config, Credentials("owner", "ownerpw"), player) as xnat:
        yield xnat


# -- what must come out, read by other means than the client's -----------------------------------------------------


def document(recording: Recording) -> Any:
    return json.loads(recording.body.decode())


def cells(recording: Recording) -> list[Cells]:
    found: list[Cells] = document(recording)["ResultSet"]["Result"]
    return found


def words(recording: Recording) -> str:
    """Return what an error page says to people."""
    page = recording.body.decode("utf-8", "replace")
    found = re.search(r"<b>Message</b>(.*?)</p>", page, re.DOTALL) or re.search(r"<h3>(.*?)</h3>", page, re.DOTALL)
    said = " ".join(html.unescape(found[1]).split()) if found else ""
    return "" if said.startswith("Apache Tomcat") else said


def inner(row: Cells) -> str:
    return row["URI"].split(f"/resources/{row['cat_ID']}/files/", 1)[1]


def same_rows(*columns: str) -> Callable[[Sequence[Any], Recording], None]:
    """Compare fields that are text with the columns they come from."""
    pairs = [column.split("=") for column in columns]

    def check(found: Sequence[Any], recording: Recording) -> None:
        wanted = [tuple(html.unescape(row[name]) for _, name in pairs) for row in cells(recording)]
        assert [tuple(getattr(each, field) for field, _ in pairs) for each in found] == wanted

    return check


def same_files(found: Sequence[FileRow], recording: Recording) -> None:
    wanted = [(row["cat_ID"], inner(row), int(row["Size"]), row.get("digest", "")) for row in cells(recording)]
    assert [(row.resource_id, row.path, row.size, row.digest) for row in found] == wanted


def same_files_of_one(found: Sequence[FileRow], recording: Recording) -> None:
    number = recording.path.split("/")[-2]
    wanted = [inner(row) for row in cells(recording) if row["cat_ID"] == number]
    assert [row.path for row in found] == wanted


def same_joined(found: dict[str, Any], recording: Recording) -> None:
    id, label = "xnat:imagescandata/id", "xnat:imagescandata/file/label"
    wanted: dict[str, dict[str, set[str]]] = {}
    for row in cells(recording):
        scans = wanted.setdefault(row["ID"], {})
        if row[id]:
            scans.setdefault(row[id], set()).update(filter(None, [html.unescape(row[label])]))
    assert {session: set(joined.scans) for session, joined in found.items()} == {
        session: set(scans) for session, scans in wanted.items()
    }
    for session, scans in wanted.items():
        assert {scan: found[session].labels.get(scan, set()) for scan in scans} == scans


def same_assessors(found: dict[str, Any], recording: Recording) -> None:
    pairs = {(row["session_ID"], row["ID"], row["label"]) for row in cells(recording)}
    assert {(session, each.id, each.label) for session, many in found.items() for each in many} == pairs
    assert set(found) == set(recording.query["session_ID"].split(","))


def same_labels(found: dict[str, set[str]], recording: Recording) -> None:
    wanted: dict[str, set[str]] = {}
    for row in cells(recording):
        label = html.unescape(row["xnat:subjectdata/resources/resource/label"])
        wanted.setdefault(row["ID"], set()).update(filter(None, [label]))
    assert found == wanted


def same_prearchive(found: Sequence[PrearchiveSession], recording: Recording) -> None:
    project = recording.path.partition("/projects/")[2]
    wanted = [row for row in cells(recording) if not project or row["project"] == project]
    assert [(*each.key, each.name, each.status) for each in found] == [
        (row["project"], row["timestamp"], row["folderName"], row["name"], row["status"]) for row in wanted
    ]
    assert [each.path for each in found] == [row["url"] for row in wanted]


def same_document(found: Any, recording: Recording) -> None:
    item = document(recording)["items"][0]
    wanted = {name: html.unescape(str(value)) for name, value in item["data_fields"].items()}
    assert found.fields == wanted
    assert found.xsi_type == item["meta"]["xsi:type"]
    assert {name: len(below) for name, below in found.children.items()} == {
        child["field"]: len(child["items"]) for child in item["children"]
    }


def same_cells(found: Sequence[Row], recording: Recording) -> None:
    assert [row.cells for row in found] == cells(recording)


def ends_early(recording: Recording) -> bool:
    """Return true for a tar without an end: it was cut, or an old server left it at the first long name."""
    return recording.cut or not recording.body.endswith(bytes(1024))


def same_tar(found: list[tuple[str, int]], recording: Recording) -> None:
    """Compare members as far as the tar goes: of a cut one, to the last that is whole."""
    wanted = []
    try:
        with tarfile.open(fileobj=io.BytesIO(recording.body), errors="surrogateescape", encoding="utf-8") as archive:
            for member in archive:
                if archive.fileobj is not None and member.offset_data + member.size <= len(recording.body):
                    wanted.append((member.name, member.size))
    except tarfile.ReadError:
        assert ends_early(recording)
    assert found == wanted
    assert found


def same_bytes(found: bytes, recording: Recording) -> None:
    assert found == recording.body


def length_stated(found: int | None, recording: Recording) -> None:
    stated = dict(recording.headers).get("Content-Length")
    assert found == (int(stated) if stated else None)


# -- which method makes which request --------------------------------------------------------------------------------


def item(text: str) -> list[str]:
    return [unquote(part) for part in text.split("/")]


def row_of(path: str, size: int | None = None) -> tuple[list[str], FileRow]:
    home, _, rest = path.removeprefix("/data/").partition("/resources/")
    number, _, name = rest.partition("/files/")
    return item(home), FileRow(unquote(number), unquote(name), size, "", "", "", 0)


async def tar(xnat: Xnat, recording: Recording) -> list[tuple[str, int]]:
    home, _, rest = recording.path.removeprefix("/data/").partition("/resources/")
    found = []
    async with xnat.archive(item(home), *(unquote(key) for key in rest.split("/")[0].split(","))) as chunks:
        async with aclosing(members(chunks)) as archive:
            try:
                async for member in archive:
                    assert len(await member.read_rest()) == member.size
                    found.append((member.name, member.size))
            except (BadReply, Unreachable):
                assert ends_early(recording)
    return found


async def zip_of(xnat: Xnat, recording: Recording) -> bytes:
    experiment, scans = recording.path.split("/")[3], recording.path.split("/")[5]
    found = b""
    async with xnat.zip(experiment, None if scans == "ALL" else scans.split(",")) as chunks:
        try:
            async for chunk in chunks:
                found += chunk
        except Unreachable:
            assert recording.cut
    return found


async def head(xnat: Xnat, recording: Recording) -> int | None:
    return (await xnat.head(*row_of(recording.path))).size


async def indexed(xnat: Xnat, recording: Recording) -> bytes:
    home = item(recording.path.removeprefix("/data/").removesuffix("/files"))
    async with xnat.indexed(home, int(recording.query["index"])) as (body, _):
        return b"".join([chunk async for chunk in body.chunks])


async def download(xnat: Xnat, recording: Recording) -> bytes | None:
    """Download a file; None for "not modified", which answers nothing that this client asks and so is no data."""
    try:
        async with xnat.download(*row_of(recording.path)) as found:
            return b"".join([chunk async for chunk in found.chunks])
    except BadReply:
        if recording.status != 304:
            raise
        return None


def same_download(found: bytes | None, recording: Recording) -> None:
    assert found == (None if recording.status == 304 else recording.body)


async def username(xnat: Xnat, recording: Recording) -> str:
    return await xnat.username()


def same_username(found: str, recording: Recording) -> None:
    assert f"User '{found}' is logged in" in recording.body.decode()


def same_token(found: tuple[str, str], recording: Recording) -> None:
    assert found == (document(recording)["alias"], document(recording)["secret"])


def one_list(name: str) -> Callable[[Xnat, Recording], Awaitable[Any]]:
    """Call a method that takes the third segment of the path."""
    return lambda xnat, recording: getattr(xnat, name)(*item(recording.path)[3:4])


def of_item(name: str, end: str, **more: Any) -> Callable[[Xnat, Recording], Awaitable[Any]]:
    return lambda xnat, recording: getattr(xnat, name)(
        item(recording.path.removeprefix("/data/").removesuffix(end)), **more
    )


async def rows(xnat: Xnat, recording: Recording) -> list[Row]:
    params = {name: value for name, value in recording.query.items() if name != "format"}
    return await xnat.rows(*item(recording.path.removeprefix("/data/")), **params)


@dataclass(frozen=True)
class Route:
    """A recorded request, the method that makes it, and the result that must come out."""

    path: str  # a pattern
    params: Params
    call: Callable[[Xnat, Recording], Awaitable[Any]]
    check: Check
    method: str = "GET"

    def fits(self, recording: Recording) -> bool:
        if recording.method != self.method or not re.fullmatch(self.path, recording.path):
            return False
        query = recording.query
        return query.keys() == self.params.keys() and all(value in ("*", query[k]) for k, value in self.params.items())


JSON = {"format": "json"}
ALL = {"format": "json", "all": "true"}
ANY = "(?:[^/]+)"
NUMBERS = r"\d+(?:,\d+)*"
FILE = r"/data/.+/resources/\d+/files/.*[^/]"
RESOURCES = same_rows(
    "id=xnat_abstractresource_id", "label=label", "category=category", "cat_id=cat_id", "format=format",
    "content=content",
)  # fmt: skip
JOINED = {"xsiType": "xnat:imageSessionData", "columns": SCAN_COLUMNS, **JSON}
SHARE = "xnat:imagesessiondata/sharing/share/project"
SUBJECT_LABEL = "xnat:subjectData/resources/resource/label"
ROUTES = (
    Route("/data/projects", JSON, lambda xnat, r: xnat.projects(),
          same_rows("id=ID", "name=name", "secondary_id=secondary_ID")),
    Route(f"/data/projects/{ANY}/subjects", {**JSON, "columns": SUBJECTS[8:]}, one_list("subjects"),
          same_rows("id=ID", "label=label", "project=project")),
    Route(f"/data/projects/{ANY}/subjects", {**JSON, "columns": f"ID,label,{SUBJECT_LABEL}"},
          one_list("subject_resource_labels"), same_labels),
    Route(f"/data/projects/{ANY}/experiments", {**JSON, "columns": EXPERIMENTS[8:]}, one_list("experiments"),
          same_rows("id=ID", "label=label", "xsi_type=xsiType", "date=date", "subject_id=subject_ID",
                    "subject_label=subject_label")),
    Route(f"/data/experiments/{ANY}/scans", JSON, one_list("scans"),
          same_rows("id=ID", "type=type", "quality=quality", "xsi_type=xsiType", "note=note",
                    "series_description=series_description")),
    Route(f"/data/experiments/{ANY}/assessors", JSON, one_list("assessors"),
          same_rows("id=ID", "label=label", "xsi_type=xsiType", "date=date")),
    Route("/data/experiments",
          {**JSON, "xsiType": "xnat:imageAssessorData", "session_ID": "*",
           "columns": "ID,label,date,xsiType,session_ID,insert_date"},
          lambda xnat, r: xnat.assessors_of_many(r.query["session_ID"].split(",")), same_assessors),
    Route("/data/experiments", {**JOINED, "project": "*"},
          lambda xnat, r: xnat.scans_of_project(r.query["project"]), same_joined),
    Route("/data/experiments", {**JOINED, SHARE: "*"},
          lambda xnat, r: xnat.scans_of_project(r.query[SHARE], shared=True), same_joined),
    Route("/data/(?!prearchive).+/resources", ALL, of_item("resources", "/resources", below=True), RESOURCES),
    Route("/data/(?!prearchive).+/resources", JSON, of_item("resources", "/resources"), RESOURCES),
    Route(r"/data/experiments/[^/,]+,[^/]+/files", ALL,
          lambda xnat, r: xnat.files_of_many(item(r.path)[3].split(",")), same_files),
    Route(f"/data/{ANY}/{ANY}/files", ALL, of_item("files", "/files", below=True), same_files),
    Route("/data/(?!prearchive)(?!.+/resources/).+/files", JSON, of_item("files", "/files"), same_files),
    Route(r"/data/(?!prearchive).+/resources/\d+/files", JSON,
          lambda xnat, r: xnat.resource_files(item(r.path.removeprefix("/data/"))[:-3], item(r.path)[-2]),
          same_files_of_one),
    Route("/data/prearchive(?:/projects/[^/]+)?", JSON,
          lambda xnat, r: xnat.prearchive(*item(r.path)[4:]), same_prearchive),
    Route(f"/data/(?:projects/{ANY}(?:/subjects/{ANY})?(?:/experiments/{ANY})?|subjects/{ANY}"
          f"|experiments/{ANY}(?:/scans/{ANY})?)", JSON,
          lambda xnat, r: xnat.item(*item(r.path.removeprefix("/data/"))), same_document),
    Route(f"/data/.+/resources/(?:{NUMBERS}|[A-Z]+)/files", {"format": "tar"}, tar, same_tar),
    Route(f"/data/experiments/{ANY}/scans/{ANY}/files", {"format": "zip"}, zip_of, same_bytes),
    Route(FILE, {}, head, length_stated, "HEAD"),
    Route(FILE, {}, download, same_download),
    Route("/data/experiments/[^/]+/files", {"index": "*"}, indexed, same_bytes),
    Route("/data/auth", {}, username, same_username),
    Route("/data/services/tokens/issue", {}, lambda xnat, r: xnat.issue_token(), same_token),
    Route("/data/services/tokens/invalidate/.+", {},
          lambda xnat, r: xnat.invalidate_token(item(r.path)[-1]), lambda found, r: None),
    Route("/xapi/siteConfig/buildInfo", {}, lambda xnat, r: xnat.text(r.path), same_bytes),
)  # fmt: skip
# Any other list is asked for by `xnatctl`, or by hand with `xnatctl api`.
LIST = Route("/data/.*[^/]", {}, rows, same_cells)


def route_of(recording: Recording) -> Route | None:
    found = next((route for route in ROUTES if route.fits(recording)), None)
    if found is None and recording.method == "GET" and recording.query.get("format") == "json":
        return LIST if re.fullmatch(LIST.path, recording.path) and b'{"items"' not in recording.body[:9] else None
    return found


async def play(recording: Recording, directory: Path) -> None:
    """Let the client ask, and look at what comes out, or at how it ends."""
    route = route_of(recording)
    assert route is not None
    player = Player(recording)
    async with client(player, directory) as xnat:
        if recording.status in (200, 304):
            route.check(await route.call(xnat, recording), recording)
        else:
            with pytest.raises(XnatError) as raised:
                await route.call(xnat, recording)
            _check_error(raised.value, recording)
    assert player.answered


def _check_error(error: XnatError, recording: Recording) -> None:
    assert isinstance(error, ERRORS.get(recording.status, BadReply)), repr(error)
    text = " ".join(str(error).split())
    assert words(recording)[:60] in text
    assert "Tomcat" not in text
    if type(error) is BadReply:
        assert re.search(rf"answers {recording.status} [A-Z]", text), text


def ours(played: Set) -> list[Recording]:
    return [recording for recording in played.recorded if route_of(recording) and "range" not in recording.sent]


async def failures(found: Sequence[Recording], act: Callable[[Recording], Awaitable[None]]) -> dict[str, str]:
    """Collect what goes wrong, by name: one recording must not hide another."""
    wrong = {}
    for recording in found:
        try:
            await act(recording)
        except (AssertionError, Exception) as error:
            wrong[recording.name] = f"{recording.method} {recording.target}: {error!r}"[:600]
    return wrong


async def test_each_recorded_reply_is_understood(played, tmp_path, autojump_clock):
    found = ours(played)
    used = {route.path + repr(route.params) for recording in found if (route := route_of(recording))}
    assert len(used) >= len(ROUTES) - 1, "all but that a token is given back, whose name no request can know before"
    assert await failures(found, lambda recording: play(recording, tmp_path)) == {}


# What was recorded and is no request of the client's: other formats, pages for people, services that it does not use.
FOREIGN = re.compile(
    r"GET .*(?:format=(?:csv|xml|html|nosuch|xcat|tar\.gz)|nosuchtail.*|/nosuchroute|/files/a/\?.*)$"
    r"|GET /data/(?:user|version)$"
    r"|GET /data/(?:projects|experiments/[^/?]+|experiments/[^/?]+/resources/\d+|prearchive/.*)$"
    r"|GET .*/files(?:/[^?]+)?\?format=zip(?:&all=true)?$"
    r"|GET .*/scans/[^/]+/files\?format=tar$"
    r"|GET /data/projects/.*/experiments/[^/]+/scans\?format=json$"
    r"|GET /data/services/tokens/(?:show|validate/.*)$"
    r"|GET .*/accessibility$"
    r"|GET /REST/.*$"
    r"|HEAD .*/files\?format=json$"
)


def test_what_is_not_played_is_no_request_of_the_client(played):
    rest = [r for r in played.recorded if r.method in ("GET", "HEAD") and route_of(r) is None]
    left = [f"{r.method} {r.target}" for r in rest if r.path not in ("/data/JSESSION", "/xapi/users/username")]
    assert [request for request in left if not FOREIGN.match(request)] == []


# -- sessions, ranges, changes -------------------------------------------------------------------------------------


async def log_in(recording: Recording, directory: Path) -> None:
    """Log in by POST, and by GET where a server in front of XNAT refuses that."""
    async with client(Player(recording), directory) as xnat:
        if recording.status != 200:
            with pytest.raises(LoginRequired, match="refused the login of owner"):
                await xnat.log_in()
            return
        await xnat.log_in()
        cookies = [value for name, value in recording.headers if name == "Set-Cookie" and "JSESSIONID=" in value]
        newest = cookies[-1].partition("=")[2].partition(";")[0] if cookies else recording.body.decode()
        assert xnat.login.current == newest


async def test_each_recorded_login_is_understood(played, tmp_path, autojump_clock):
    found = [r for r in played.recorded if r.path == "/data/JSESSION" and r.method != "DELETE"]
    assert {r.status for r in found} == {200, 401}
    assert await failures(found, lambda recording: log_in(recording, tmp_path)) == {}


async def test_a_server_without_xapi_tells_the_name_elsewhere(played, tmp_path, autojump_clock):
    found = [r for r in played.recorded if r.path == "/xapi/users/username"]

    async def ask(recording: Recording) -> None:
        async with client(Player(recording), tmp_path) as xnat:
            assert await xnat.username() == "owner"

    assert found
    assert await failures(found, ask) == {}


async def part(recording: Recording, played: Set, directory: Path) -> None:
    """Ask for a part of a file in the one way in which the client does, and get this in answer."""
    whole = played.whole(recording)
    wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", recording.sent["range"])
    start, stop = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (1, 4)
    if stop <= start:
        wanted, start, stop = None, 1, 4
    stated = dict(recording.headers).get("Content-Range", "").rpartition("/")[2]
    size = int(stated) if stated else len(whole.body) if whole else stop
    listed = max(size, stop)  # a catalogue may say more than there is
    async with client(Player(recording, whole), directory) as xnat:
        place, row = row_of(recording.path, listed)
        try:
            async with xnat.download(place, row, start, listed, stop=stop) as download:
                assert download is not None
                data = b"".join([chunk async for chunk in download.chunks])
        except (Stale, BadReply, Unreachable):
            assert listed > size or recording.cut
            return
    if recording.status == 206 and wanted:
        assert (download.start, data) == (start, recording.body)
    else:  # what came was not what was asked for: the whole file was fetched
        assert whole is not None
        assert data == whole.body[download.start :]


async def test_each_recorded_range_gives_the_right_bytes_or_an_error(played, tmp_path, autojump_clock):
    found = [r for r in played.recorded if "range" in r.sent and re.fullmatch(FILE, r.path)]
    assert {r.status for r in found} >= {206, 500, 501}
    assert await failures(found, lambda recording: part(recording, played, tmp_path)) == {}


async def change(recording: Recording, directory: Path) -> None:
    async with client(Player(recording), directory) as xnat:
        answer = await xnat.change(recording.method, recording.path, recording.query)
    text = recording.body.decode("utf-8", "replace")
    assert (answer.status, answer.text) == (recording.status, text.strip())
    assert answer.location == dict(recording.headers).get("Location", "")
    assert answer.ok == (recording.status in (200, 201))
    if text.lstrip().startswith("<"):
        assert answer.message() == (words(recording)[:200] or f"status {recording.status}")


def is_table(recording: Recording) -> bool:
    """Return true for the table with which services that act on several sessions answer, in XML by default."""
    return recording.status == 200 and recording.body.startswith(b"<ResultSet")


async def test_each_recorded_answer_to_a_change_is_understood(played, tmp_path, autojump_clock):
    changes = [r for r in played.recorded if r.method in ("PUT", "POST", "DELETE") and r.path != "/data/JSESSION"]
    found = [r for r in changes if not is_table(r)]
    assert found
    assert await failures(found, lambda recording: change(recording, tmp_path)) == {}


PREARCHIVED = re.compile(r"/prearchive/projects/([^/]+)/([^/]+)/([^/]+)$")
ARCHIVED = re.compile(r"/archive/projects/([^/]+)/subjects/([^/]+)/experiments/([^/]+)$")
# What a refusal means. A 500 may be about what is there, or about the server.
REFUSALS = {403: (Denied, Conflict), 404: (NotFound,), 409: (Conflict,), 500: (Conflict, BadReply, Unreachable)}


def waiting(recording: Recording) -> PrearchiveSession:
    """Make the session that a recording is about, under the name that it has afterwards."""
    place = PREARCHIVED.search(recording.query.get("src", recording.path)) or ("", "PRIV", "20200101_000000000", "X")
    home = ARCHIVED.search(recording.body.decode("latin-1").strip()) or ("", "", "S1", "X")
    return PrearchiveSession(place[1], place[2], place[3], home[3], home[2], "READY", None, Row({}))


async def act(recording: Recording, directory: Path) -> None:
    """Do what `xnatctl prearchive` does with the recorded answer of the server."""
    async with client(Player(recording), directory) as xnat:
        if recording.status in (200, 301) and not is_table(recording):
            assert await _acted(xnat, recording) == recording.body.decode().strip()
        else:
            kinds = (XnatError,) if is_table(recording) else REFUSALS.get(recording.status, (BadReply,))
            with pytest.raises(kinds):
                await _acted(xnat, recording)


async def _acted(xnat: Xnat, recording: Recording) -> str:
    """Return where the session is then, by the server's word."""
    session = waiting(recording)
    match recording.method, recording.query.get("action", ""):
        case "DELETE", _:
            await prearchive.delete(xnat, session)
            return ""
        case _, "move":
            return await prearchive.move(xnat, session, recording.query.get("newProject", "X"))
        case _, "commit":
            return await prearchive.commit(xnat, session)
        case _, "build":
            await prearchive.rebuild(xnat, session)
            return recording.body.decode().strip()
    return (await prearchive.archive(xnat, session)).uri


async def test_each_recorded_act_on_the_prearchive_is_understood(played, tmp_path, autojump_clock):
    found = [
        r for r in played.recorded
        if r.path == "/data/services/archive"
        or (r.method in ("POST", "DELETE") and PREARCHIVED.search(r.path) and r.query.get("action") != "rebuild")
    ]  # fmt: skip
    assert found
    assert await failures(found, lambda recording: act(recording, tmp_path)) == {}


# -- the demo in the same shape ------------------------------------------------------------------------------------


def shape(recording: Recording) -> tuple[Any, ...]:
    """Return the class of the status, the content type, and the keys of what is in the body."""
    known = (recording.status // 100, recording.content_type())
    if recording.content_type() != "application/json" or recording.cut or not recording.body:
        return known
    found = document(recording)
    if "ResultSet" in found:  # a user's number ends the name of a column
        columns = {re.sub(r"_\d+$", "_N", name) for row in cells(recording) for name in row}
        return (*known, sorted(found["ResultSet"]), sorted(columns))
    return (*known, sorted(found), *(sorted(item) for item in found.get("items", [])))


def same_shape(recorded: tuple[Any, ...], answered: tuple[Any, ...]) -> bool:
    """Compare two shapes; of a list without rows no columns are known."""
    empty = len(recorded) == len(answered) == 4 and [] in (recorded[3], answered[3])
    return recorded[: 3 if empty else None] == answered[: 3 if empty else None]


# What was recorded and the demo does not have, with the reason.
WITHOUT = {
    "/data/services/tokens/invalidate/.*": "the token was issued by the recorded server",
    "/data/prearchive/projects/[^/]+/.+": "the session was received by the recorded server",
}


def lacks(recording: Recording) -> bool:
    """Return true where the demo has no such thing, or where the login was by a token."""
    stranger = recording.user in ("-", "outsider")
    by_token = stranger and recording.status == 200 and recording.name.startswith("token-")
    return by_token or any(re.fullmatch(pattern, recording.path) for pattern in WITHOUT)


def test_the_demo_answers_in_the_shape_of_the_oldest_release(played):
    closed, opened = (
        DemoXnat(site(), release=XNAT_1_6, context_path="", require_login=login) for login in (True, False)
    )
    wrong = {}
    found = [r for r in played.recorded if r.method in ("GET", "HEAD") and route_of(r) and not lacks(r)]
    for recording in found:
        reply = asked(opened if recording.name.startswith("open-") else closed, recording)
        if not same_shape(shape(recording), shape(reply)):
            wrong[recording.name] = f"{recording.method} {recording.target}: {shape(recording)} not {shape(reply)}"
    assert wrong == {}
