"""Test what each method of the client requests, and what it makes of the answer: one request each, word for word."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

import httpx
import pytest
import trio
import trio.testing

from tests.rest.test_client import CONTENT, FILE, ITEM, MODIFIED, URL, Pieces, RecordingServer, always, connected, table
from tests.support.wire import Wire
from xnatfs.common.errors import BadReply, ConfigError, LoginRequired, NotFound, Uncertain, Unreachable
from xnatfs.http.clients import PARALLEL_DOWNLOADS
from xnatfs.http.documents import MAX_BODY_ATTEMPTS
from xnatfs.rest.client import Xnat, open_xnat
from xnatfs.rest.contents import BIG_FILE_BYTES, LONG_DOWNLOADS, LONG_FILE_BYTES, LONG_REQUESTS
from xnatfs.rest.lists import PARSED_BYTES, JoinedScans, Limits
from xnatfs.rest.models import (
    SCAN_COLUMNS,
    SCAN_LABEL,
    Assessor,
    Document,
    Experiment,
    FileRow,
    Project,
    Resource,
    Scan,
    Subject,
)
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials

Rows = list[dict[str, str]]

DAY = "2024-01-02 03:04:05.0"
SECONDS = 1704164645.0
LABELS = "xnat:subjectData/resources/resource/label"
CATALOGUE = [
    {"Name": "x", "Size": "3", "URI": f"/data/experiments/E/resources/{number}/files/x", "cat_ID": number}
    for number in ("7", "8")
]
ENTRIES = [FileRow(number, "x", 3, "", "", "", 0) for number in ("7", "8")]


def asked(server: RecordingServer) -> list[str]:
    """Return the requests as `RecordingServer.asked` does, without the escapes of the query."""
    found = [request.partition("?") for request in server.asked()]
    return [path + mark + unquote_plus(query) for path, mark, query in found]


async def answered(
    call: Callable[[Xnat], Awaitable[Any]], answer: Callable[[], httpx.Response]
) -> tuple[Any, list[str]]:
    """Return the result of a call, and the requests that it sent."""
    server = RecordingServer(always(answer))
    async with connected(server) as xnat:
        found = await call(xnat)
    return found, asked(server)


@pytest.mark.parametrize(
    ("call", "rows", "found", "request_line"),
    [
        (
            lambda xnat: xnat.projects(),
            [{"ID": "P", "name": "N", "secondary_ID": "S", "pi_lastname": "L", "description": "D"}],
            [Project("P", "N", "S", "D", "", "L")],
            "/data/projects?format=json",
        ),
        (
            lambda xnat: xnat.subjects("P 1"),
            [{"ID": "S1", "label": "L", "project": "P", "insert_date": DAY}],
            [Subject("S1", "L", "P", SECONDS)],
            "/data/projects/P%201/subjects?format=json&columns=ID,label,project,insert_date,last_modified",
        ),
        (
            lambda xnat: xnat.experiments("P/1"),
            [{"ID": "E1", "label": "L", "xsiType": "xnat:mrSessionData", "subject_ID": "S1", "subject_label": "S"}],
            [Experiment("E1", "L", "xnat:mrSessionData", "", "S1", "S", None)],
            "/data/projects/P%2F1/experiments?format=json"
            "&columns=ID,label,xsiType,date,subject_ID,subject_label,project,insert_date,last_modified",
        ),
        (
            lambda xnat: xnat.scans("E/1"),
            [{"ID": "1", "type": "T1", "frames": "176"}],
            [Scan("1", "T1", "", "", "", "", 176)],
            "/data/experiments/E%2F1/scans?format=json&columns=ID,type,quality,xsiType,note,series_description,frames",
        ),
        (
            lambda xnat: xnat.assessors("E/1"),
            [{"ID": "A1", "label": "L"}],
            [Assessor("A1", "L", "", "", None)],
            "/data/experiments/E%2F1/assessors?format=json",
        ),
        (
            lambda xnat: xnat.resources(("experiments", "E/1")),
            [{"xnat_abstractresource_id": "7", "label": "DICOM"}],
            [Resource("7", "DICOM", "resources", "", "", "")],
            "/data/experiments/E%2F1/resources?format=json",
        ),
        (
            lambda xnat: xnat.resources(("experiments", "E"), below=True),
            [],
            [],
            "/data/experiments/E/resources?format=json&all=true",
        ),
        (
            lambda xnat: xnat.files(("experiments", "E/1")),
            CATALOGUE,
            ENTRIES,
            "/data/experiments/E%2F1/files?format=json",
        ),
        (
            lambda xnat: xnat.files(("experiments", "E"), below=True),
            CATALOGUE,
            ENTRIES,
            "/data/experiments/E/files?format=json&all=true",
        ),
        (
            lambda xnat: xnat.resource_files(("experiments", "E"), "7"),
            CATALOGUE,
            ENTRIES[:1],
            "/data/experiments/E/resources/7/files?format=json",
        ),
        (
            lambda xnat: xnat.files_of_many(["E/1", "E2"]),
            CATALOGUE,
            ENTRIES,
            "/data/experiments/E%2F1,E2/files?format=json&all=true",
        ),
        (
            lambda xnat: xnat.scans_of_project("P"),
            [{"ID": "E1", SCAN_COLUMNS[0]: "1", SCAN_COLUMNS[1]: "T1", SCAN_LABEL: "DICOM"}],
            {"E1": JoinedScans({"1": Scan("1", "T1", "", "", "", "")})},
            "/data/experiments?format=json&xsiType=xnat:imageSessionData&columns=ID,"
            "xnat:imagescandata/id,xnat:imagescandata/type,xnat:imagescandata/quality,"
            "xnat:imagescandata/series_description,xnat:imagescandata/note,xnat:imagescandata/file/label&project=P",
        ),
        (
            lambda xnat: xnat.scans_of_project("P", shared=True),
            [],
            {},
            "/data/experiments?format=json&xsiType=xnat:imageSessionData&columns=ID,"
            "xnat:imagescandata/id,xnat:imagescandata/type,xnat:imagescandata/quality,"
            "xnat:imagescandata/series_description,xnat:imagescandata/note,xnat:imagescandata/file/label"
            "&xnat:imagesessiondata/sharing/share/project=P",
        ),
        (
            lambda xnat: xnat.assessors_of_many(["E1", "E2"]),
            [{"session_ID": session, "ID": "A1", "label": "L"} for session in ("E1", "E1", "E3")],
            {"E1": [Assessor("A1", "L", "", "", None)], "E2": []},
            "/data/experiments?format=json&xsiType=xnat:imageAssessorData&session_ID=E1,E2"
            "&columns=ID,label,date,xsiType,session_ID,insert_date",
        ),
        (
            lambda xnat: xnat.subject_resource_labels("P/1"),
            [{"ID": "S1", LABELS: "A&amp;B"}, {"ID": "S1", LABELS: "C"}, {"xnat:subjectdata/id": "S2", LABELS: ""}],
            {"S1": {"A&B", "C"}, "S2": set()},
            f"/data/projects/P%2F1/subjects?format=json&columns=ID,label,{LABELS}",
        ),
    ],
)
async def test_a_list_is_one_request(call, rows, found, request_line):
    result, requests = await answered(call, lambda: table(rows))
    assert (list(result) if isinstance(found, list) else result) == found
    assert requests == [f"GET /site{request_line}"]


@pytest.mark.parametrize(("more", "query"), [({}, ""), ({"columns": "ID", "sort": "x"}, "&columns=ID&sort=x")])
async def test_rows_come_as_they_are(more, query):
    found, requests = await answered(lambda xnat: xnat.rows("a/b", "c", **more), lambda: table([{"x": "y"}]))
    assert [row.cells for row in found] == [{"x": "y"}]
    assert requests == [f"GET /site/data/a%2Fb/c?format=json{query}"]


async def test_files_of_a_resource_that_lists_none_are_none():
    found, _ = await answered(lambda xnat: xnat.resource_files(ITEM, "9"), lambda: table(CATALOGUE))
    assert (found.resource_id, len(found)) == ("9", 0)


async def test_a_list_of_subjects_without_their_resources_is_no_answer():
    with pytest.raises(BadReply, match="does not list the resources of subjects"):
        await answered(lambda xnat: xnat.subject_resource_labels("P"), lambda: table([{"ID": "S1"}]))


async def test_a_long_list_comes_in_pieces_and_others_have_their_turn():
    """Parse a megabyte that arrives in one piece, while other tasks run before all of it was parsed."""
    body = table([{"ID": str(number), "name": "n" * 1000} for number in range(1000)]).content
    server = RecordingServer(always(lambda: httpx.Response(200, stream=Pieces(body, size=len(body)))))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with connected(server) as xnat, trio.open_nursery() as nursery:
        await xnat.login.token()
        nursery.start_soon(count)
        found = await xnat.projects()
        nursery.cancel_scope.cancel()
    assert [project.id for project in found] == [str(number) for number in range(1000)]
    assert turns >= len(body) // PARSED_BYTES


async def test_a_list_that_breaks_off_says_where(autojump_clock):
    body = table([{"ID": "P"}] * 1000).content
    server = RecordingServer(always(lambda: httpx.Response(200, stream=Pieces(body, 1500))))
    async with connected(server) as xnat:
        with pytest.raises(Unreachable, match=f"^{URL}/data/projects"):
            await xnat.projects()


CUT = [{"ID": f"P{number}", "label": "L", "session_ID": "E", "name": "N", LABELS: "R"} for number in range(1000)]
JOINED = [{"ID": "E1", **dict.fromkeys((*SCAN_COLUMNS, SCAN_LABEL), "1")}] * 50
DOCUMENT = {"items": [{"data_fields": {"ID": "P" * 2000}}]}


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda xnat: xnat.projects(), table(CUT)),
        (lambda xnat: entries(xnat.files(ITEM)), table(CATALOGUE * 100)),
        (lambda xnat: xnat.assessors_of_many(["E"]), table(CUT)),
        (lambda xnat: xnat.scans_of_project("P"), table(JOINED)),
        (lambda xnat: xnat.subject_resource_labels("P"), table(CUT)),
        (lambda xnat: xnat.item("projects", "P"), httpx.Response(200, json=DOCUMENT)),
        (lambda xnat: xnat.text("/data/version"), httpx.Response(200, text="u" * 2000)),
    ],
)  # fmt: skip
async def test_what_is_read_whole_and_breaks_off_is_asked_for_again_and_read_anew(autojump_clock, call, answer):
    """Return what arrived before a break only once."""
    breaks_at = [1500, len(answer.content) - 1]
    replies = [*(Pieces(answer.content, at) for at in breaks_at), Pieces(answer.content)]
    server = RecordingServer(lambda request: httpx.Response(200, stream=replies.pop(0)))
    unbroken, requests = await answered(call, lambda: httpx.Response(200, stream=Pieces(answer.content)))
    async with connected(server) as xnat:
        await xnat.login.token()
        assert await call(xnat) == unbroken
    assert asked(server) == requests * MAX_BODY_ATTEMPTS


@pytest.mark.parametrize(
    "call",
    [
        lambda xnat: read_all(xnat.archive(ITEM, "R")),
        lambda xnat: read_all(xnat.zip("E", None)),
        lambda xnat: gathered(xnat.raw("GET", "/data/x", b"", None)),
        lambda xnat: xnat.issue_token(),  # a second token would be valid for two days, and unused
        lambda xnat: xnat.invalidate_token("alias"),
    ],
)
async def test_what_is_handed_on_or_does_something_is_not_asked_for_again(autojump_clock, call):
    server = RecordingServer(always(lambda: httpx.Response(200, stream=Pieces(CONTENT, 1500))))
    async with connected(server) as xnat:
        with pytest.raises(Unreachable, match=f"^{URL}/data/.* broke off"):
            await call(xnat)
    assert len(server.asked()) == 1


@pytest.mark.parametrize("path", ["/data/\x01", "/data/\udcff", f"/data/{'x' * 70_000}"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_path_that_no_url_can_have_is_an_error_of_its_own(method, path):
    server = RecordingServer()
    async with connected(server) as xnat:
        with pytest.raises(ConfigError, match="cannot be sent"):
            await gathered(xnat.raw(method, path, b"", None))
    assert server.asked() == []


async def test_a_path_with_two_slashes_names_no_other_host_and_no_other_path():
    server = RecordingServer(always(lambda: httpx.Response(200)))
    async with connected(server) as xnat:
        await xnat.change("DELETE", "//data/projects/P")
    assert server.asked() == ["DELETE /site//data/projects/P"]
    assert server.requests[-2].url.host == "xnat.example.org"


@pytest.mark.parametrize("call", [lambda xnat: xnat.issue_token(), lambda xnat: xnat.invalidate_token("alias")])
async def test_a_request_with_an_effect_is_not_sent_again_if_its_reply_is_lost(autojump_clock, call):
    """Report that the server may have carried it out: each repetition would issue another token."""

    def lost(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("connection reset")

    server = RecordingServer(lost)
    async with connected(server) as xnat:
        with pytest.raises(Uncertain, match="may have been carried out"):
            await call(xnat)
    assert len(server.asked()) == 1


async def entries(files: Awaitable[Sequence[FileRow]]) -> list[FileRow]:
    return list(await files)


async def gathered(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def read_all(archive: AbstractAsyncContextManager[AsyncIterator[bytes]]) -> bytes:
    async with archive as chunks:
        return await gathered(chunks)


@pytest.mark.parametrize(
    "body",
    [
        b'{"ResultSet": {"Result": [{"ID": "P"}]' + b" " * 100_000 + b"}}",
        b'{"of": "an odd kind", "ResultSet": {"Result": [{"ID": "P"}]}}',
    ],
    ids=["with nothing in its last piece", "as a whole"],
)
async def test_a_list_with_rows_is_not_doubted(autojump_clock, body):
    """Trust the list in any form, and however long ago the session's user was confirmed."""
    server = RecordingServer(always(lambda: httpx.Response(200, content=body)))
    async with connected(server) as xnat:
        await xnat.login.token()
        await trio.sleep(120)
        assert [project.id for project in await xnat.projects()] == ["P"]
    assert server.asked() == ["GET /site/data/projects?format=json"]


@pytest.mark.parametrize(("empty_again", "session"), [(True, 2), (False, 1)])
async def test_an_empty_list_is_asked_for_again_where_the_session_is_gone(patient_clock, empty_again, session):
    """Return an empty list where the session is alive."""
    server = RecordingServer(open_site=True)
    server.answer = lambda request: table(
        [{"ID": "P1"}] if server.sent(request) in server.alive and empty_again else []
    )
    async with connected(server) as xnat:
        await xnat.login.token()
        await trio.sleep(120)
        if empty_again:
            server.alive.clear()
        assert len(await xnat.projects()) == (1 if empty_again else 0)
    assert len(server.sessions) == session
    assert server.asked().count("GET /site/data/projects?format=json") == session


async def test_a_guests_answer_without_a_cookie_is_found_out_by_its_emptiness(patient_clock):
    """Ask whose session it is: the server demands no login, and mentions no session."""
    server = RecordingServer(open_site=True)
    server.answer = lambda request: table([{"ID": "P1"}] if server.sent(request) in server.alive else [])
    silent = RecordingServer.__call__

    def without_cookie(request: httpx.Request) -> httpx.Response:
        response = silent(server, request)
        response.headers.pop("set-cookie", None)
        return response

    async with open_xnat(Config(URL), Credentials("u", "p"), Wire(without_cookie)) as xnat:
        await xnat.login.token()
        await trio.sleep(120)
        server.alive.clear()
        assert [project.id for project in await xnat.projects()] == ["P1"]
    assert asked(server) == [
        "GET /site/data/projects?format=json",
        "GET /site/xapi/users/username",
        "GET /site/data/projects?format=json",
    ]


@pytest.mark.parametrize(
    ("answer", "text"), [(httpx.Response(200, json=[]), "as a list"), (httpx.Response(200, text="{"), "as JSON")]
)
async def test_a_list_that_is_none_says_which(answer, text):
    with pytest.raises(BadReply, match=rf"^{URL}/data/projects .*{text}"):
        await answered(lambda xnat: xnat.projects(), lambda: answer)


# -- items and services ------------------------------------------------------------------------------------------


async def test_an_item_is_its_fields_and_what_hangs_on_it():
    item = {"data_fields": {"ID": "E1"}, "meta": {"xsi:type": "t"}}
    found, requests = await answered(
        lambda xnat: xnat.item("experiments", "E/1"), lambda: httpx.Response(200, json={"items": [item, {}]})
    )
    assert found == Document({"ID": "E1"}, {}, "t")
    assert requests == ["GET /site/data/experiments/E%2F1?format=json"]
    found, _ = await answered(
        lambda xnat: xnat.item("experiments", "E1"), lambda: httpx.Response(200, json={"items": [item]})
    )
    assert found.fields == {"ID": "E1"}


@pytest.mark.parametrize("body", [{}, {"items": []}, {"items": 1}, [], {"items": [{"data_fields": []}]}])
async def test_what_is_no_item_is_a_bad_reply(body):
    with pytest.raises(BadReply, match="/data/projects/P did not come as the document of an item"):
        await answered(lambda xnat: xnat.item("projects", "P"), lambda: httpx.Response(200, json=body))


async def test_text_comes_as_it_is():
    found, requests = await answered(lambda xnat: xnat.text("/xapi/x"), lambda: httpx.Response(200, text=" some\n"))
    assert (found, requests) == ("some", ["GET /site/xapi/x"])


@pytest.mark.parametrize(("project", "where"), [("", ""), ("P/1", "/projects/P%2F1")])
async def test_the_prearchive_is_of_all_or_of_one_project(project, where):
    """Leave out of one project what others have in it."""
    rows = [
        {"project": name, "timestamp": "1", "folderName": "F", "name": "N", "status": "READY"}
        for name in ("P/1", "Q", "Unassigned")
    ]
    found, requests = await answered(lambda xnat: xnat.prearchive(project), lambda: table(rows))
    assert [session.project for session in found] == (["P/1"] if project else ["P/1", "Q", ""])
    assert requests == [f"GET /site/data/prearchive{where}?format=json"]


async def test_tokens_are_issued_and_given_back():
    reply = {"alias": "a/b", "secret": 7}
    found, requests = await answered(lambda xnat: xnat.issue_token(), lambda: httpx.Response(200, json=reply))
    assert (found, requests) == (("a/b", "7"), ["GET /site/data/services/tokens/issue"])
    _, requests = await answered(lambda xnat: xnat.invalidate_token("a/b"), lambda: httpx.Response(200, json={}))
    assert requests == ["GET /site/data/services/tokens/invalidate/a%2Fb"]


@pytest.mark.parametrize("body", [{"alias": "a"}, []])
async def test_no_token_is_a_bad_reply(body):
    with pytest.raises(BadReply, match=f"^{URL} issued no alias token"):
        await answered(lambda xnat: xnat.issue_token(), lambda: httpx.Response(200, json=body))


async def test_who_we_are_is_told_by_old_servers_too():
    assert await answered(lambda xnat: xnat.username(), lambda: table([])) == ("u", ["GET /site/xapi/users/username"])
    server = RecordingServer()

    async def old(answer: str) -> str:
        def handle(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/site/xapi/users/username":
                return httpx.Response(404)
            if request.url.path == "/site/data/auth":
                return httpx.Response(200, text=answer)
            return server(request)

        async with open_xnat(Config(URL), Credentials("u", "p"), Wire(handle)) as xnat:
            return await xnat.username()

    assert await old("User 'jo' is logged in") == "jo"
    with pytest.raises(BadReply, match=f"^{URL} reports no user name"):
        await old("hello")


def nested(depth: int) -> bytes:
    return b'{"items": [{"data_fields": {"x": ' + b"[" * depth + b"]" * depth + b"}}]}"


async def test_what_is_nested_without_end_is_a_bad_reply():
    """Reject deep nesting in an item as in a list."""
    with pytest.raises(BadReply):
        await answered(lambda xnat: xnat.item("projects", "P"), lambda: httpx.Response(200, content=nested(100_000)))
    rows = b'{"ResultSet": {"Result": [{"ID": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}}"
    with pytest.raises(BadReply, match="/data/projects"):
        await answered(lambda xnat: xnat.projects(), lambda: httpx.Response(200, content=rows))


@pytest.mark.parametrize("count", [3, 4, 5, 6])
async def test_a_list_may_be_so_long_and_no_longer(monkeypatch, count):
    """Accept a longer list of files than of anything else."""
    monkeypatch.setattr("xnatfs.rest.lists.LIST_LIMITS", Limits(10_000, 3))
    monkeypatch.setattr("xnatfs.rest.lists.FILE_LIMITS", Limits(10_000, 5))
    rows = [{"ID": "P", "URI": f"/x/resources/7/files/{number}", "cat_ID": "7"} for number in range(count)]
    async with connected(RecordingServer(always(lambda: table(rows)))) as xnat:
        if count > 3:
            with pytest.raises(BadReply):
                await xnat.projects()
        else:
            assert len(await xnat.projects()) == count
        if count > 5:
            with pytest.raises(BadReply):
                await xnat.files(ITEM)
        else:
            assert len(await xnat.files(ITEM)) == count


async def test_a_name_that_leads_elsewhere_does_not_lead_there():
    for name, sent in ((".", "%2E"), ("..", "%2E%2E"), ("...", "..."), ("\udcff", "%ED%B3%BF")):
        assert Xnat.segment(name) == sent


async def test_a_client_tells_what_is_under_way():
    server = RecordingServer(always(lambda: httpx.Response(200, stream=Pieces(b"x" * 2500))))
    async with connected(server) as xnat:
        assert xnat.counters() == {"requests": 0, "logins": 0, "downloads": 0, "heads": 0}
        async with xnat.zip("E", None), xnat._head_slots:
            assert xnat.counters() == {"requests": 1, "logins": 1, "downloads": 1, "heads": 1}
        assert xnat.counters() == {"requests": 1, "logins": 1, "downloads": 0, "heads": 0}


async def test_a_session_is_asked_after_and_a_dead_one_is_made_again(autojump_clock):
    server = RecordingServer()
    async with connected(server) as xnat:
        assert await xnat.session_lives() is True
        server.alive.clear()
        assert await xnat.session_lives() is False
        assert xnat.away is False
        await xnat.projects()
    assert len(server.sessions) == 2


async def test_a_server_that_does_not_say_who_we_are_is_told_by_what_was_asked(autojump_clock):
    server = RecordingServer()

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/username"):
            await trio.sleep_forever()
        return server(request)

    async with open_xnat(Config(URL, timeout=10.0), Credentials("u", "p"), Wire(handle)) as xnat:
        await xnat.login.token()
        await trio.sleep(120)
        with pytest.raises(Unreachable, match="a check of the session for /data/projects"):
            await xnat.projects()
        with pytest.raises(Unreachable):
            await xnat.session_lives()
    async with open_xnat(Config(URL, timeout=10.0), Credentials("u", "p"), Wire(handle)) as xnat:
        with pytest.raises(Unreachable, match="a check of the session for /xapi/users/username"):
            await xnat.session_lives()


async def test_a_client_counts_its_requests_and_logs_in_when_told():
    server = RecordingServer()
    async with connected(server) as xnat:
        assert (xnat.url, xnat.requests, server.requests) == (URL, 0, [])
        await xnat.log_in()
        assert (len(server.sessions), xnat.requests) == (1, 0)
        await xnat.projects()
        assert xnat.requests == 1
        assert xnat.segment("a/b c") == "a%2Fb%20c"


async def test_a_session_of_others_is_used_and_left():
    """Pass on what `open_xnat` is given, and leave it open."""

    class Kept:
        def find(self, dead: frozenset[str] = frozenset()) -> Any:
            class Found:
                token, username, idle = "S" * 32, "u", 900.0
                created = datetime.now(UTC)

            return Found()

        def record_use(self, token: str, idle: float) -> None:
            pass

    server = RecordingServer(always(lambda: table([{"ID": "P"}])))
    server.alive.add("S" * 32)
    async with open_xnat(Config(URL), None, Wire(server), Kept()) as xnat:  # type: ignore[arg-type]
        assert [project.id for project in await xnat.projects()] == ["P"]
    assert (server.sessions, server.alive) == ([], {"S" * 32})


# -- changes, and any request ------------------------------------------------------------------------------------


async def test_a_change_is_sent_as_it_is():
    server = RecordingServer(always(lambda: httpx.Response(201, text=" made ", headers={"location": "/x"})))
    async with connected(server) as xnat:
        answer = await xnat.change("PUT", "/data/x", {"a": "b"}, body=b"bytes", headers={"X-Y": "z"})
        assert (answer.status, answer.text, answer.location) == (201, "made", "/x")
        await xnat.change("POST", "/data/y", form={"a": "b c", "d": "&"})
        await xnat.change("DELETE", "/data/z")
    put, post, delete = server.requests[1:4]
    assert asked(server) == ["PUT /site/data/x?a=b", "POST /site/data/y", "DELETE /site/data/z"]
    assert (put.content, put.headers["x-y"]) == (b"bytes", "z")
    assert (post.content, post.headers["content-type"]) == (b"a=b+c&d=%26", "application/x-www-form-urlencoded")
    assert (delete.content, delete.headers.get("content-type")) == (b"", None)


@pytest.mark.parametrize(
    "page",
    [
        "<html><h3>Log in</h3>",
        "<!DOCTYPE html><html><h3>Log in</h3>",
        '\ufeff<?xml version="1.0"?><!DOCTYPE html><h3>Log in</h3>',
        "\n <!-- proxy --><head><h3>Log in</h3>",
    ],
)
async def test_a_change_that_is_answered_with_a_page_may_have_been_made(page):
    server = RecordingServer(always(lambda: httpx.Response(200, text=page)))
    async with connected(server) as xnat:
        with pytest.raises(Uncertain, match=r"web page \(Log in\); the request may have been carried out"):
            await xnat.change("DELETE", "/data/x")
    assert len(server.asked()) == 1


@pytest.mark.parametrize("text", ["", "/data/x\r\n", '{"duplicates":["<html>"]}'])
async def test_what_a_server_says_to_a_change_is_no_page_in_any_type(text):
    server = RecordingServer(always(lambda: httpx.Response(200, text=text, headers={"content-type": "text/html"})))
    async with connected(server) as xnat:
        assert (await xnat.change("PUT", "/data/x")).text == text.strip()


@pytest.mark.parametrize("young", [True, False])
@pytest.mark.parametrize("alive", [200, 401, 503, None])
async def test_a_change_that_went_well_is_sent_again_only_where_an_old_session_is_known_to_be_dead(
    autojump_clock, young, alive
):
    """Ask about the old session when a 200 carries the cookie of another one: a guest's, or a balancer's."""
    carried_out = 0
    server = RecordingServer(open_site=True)

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal carried_out
        if request.url.path.endswith("/username"):
            if alive is None:
                raise httpx.ReadError("connection reset")
            return httpx.Response(alive)
        if request.method == "PUT":
            if young and not carried_out and len(server.sessions) == 1:
                return httpx.Response(401)
            carried_out += 1
            cookie = {"set-cookie": f"JSESSIONID={'F' * 32}; Path=/"} if carried_out == 1 else {}
            return httpx.Response(200, headers=cookie)
        return server(request)

    async with open_xnat(Config(URL, timeout=5.0), Credentials("u", "p"), Wire(answer)) as xnat:
        if not young and alive in (503, None):
            with pytest.raises(Uncertain, match="may have been carried out"):
                await xnat.change("PUT", "/data/x")
        else:
            assert (await xnat.change("PUT", "/data/x")).status == 200
    assert carried_out == (2 if not young and alive == 401 else 1)


@pytest.mark.parametrize("path", ["/JSESSION", "/username"])
async def test_a_change_that_no_session_can_be_had_for_fails_in_our_words(autojump_clock, path):
    """Fail where a login is not answered, or a session is refused and its user cannot be confirmed."""
    server = RecordingServer()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method != "DELETE" and request.url.path.endswith(path):
            raise httpx.ReadError("connection reset")
        return server(request) if request.url.path.endswith("/JSESSION") else httpx.Response(401)

    async with open_xnat(Config(URL, timeout=5.0), Credentials("u", "p"), Wire(answer)) as xnat:
        with pytest.raises(Unreachable, match="^https://xnat.example.org/site failed: connection reset") as caught:
            await xnat.change("PUT", "/data/x")
    assert type(caught.value) is Unreachable, "nothing was done, as a 401 says"


@pytest.mark.parametrize("status", [200, 201, 202, 204])
@pytest.mark.parametrize("path", ["/data/x?a=b", "data/x?a=b"])
async def test_any_request_is_sent_once_and_answered_in_pieces(status, path):
    server = RecordingServer(always(lambda: httpx.Response(status, stream=Pieces(b"x" * 2500))))
    async with connected(server) as xnat:
        pieces = [piece async for piece in xnat.raw("POST", path, b"body", "text/x")]
        assert [piece async for piece in xnat.raw("POST", path, b"", None)] == pieces
    assert [len(piece) for piece in pieces] == [1000, 1000, 500]
    assert asked(server) == ["POST /site/data/x?a=b"] * 2
    first, second = server.requests[1:3]
    assert (first.content, first.headers["content-type"]) == (b"body", "text/x")
    assert "content-type" not in second.headers


@pytest.mark.parametrize("path", ["/data/x", "data/x", "/data/x?secret=1", "/data/x?secret=1?"])
async def test_any_request_that_is_refused_says_which(path):
    """Name the path, and leave out the query."""
    server = RecordingServer(always(lambda: httpx.Response(404)))
    async with connected(server) as xnat:
        with pytest.raises(NotFound, match=f"^{URL}/data/x does not exist"):
            [piece async for piece in xnat.raw("GET", path, b"", None)]


async def test_an_answer_that_is_left_half_way_is_closed():
    """Close it in a cancelled task as well."""
    Closing.closed = 0
    async with connected(RecordingServer(always(lambda: httpx.Response(200, stream=Closing(b"x" * 2500))))) as xnat:
        with trio.CancelScope() as scope:
            async with aclosing(xnat.raw("GET", "/data/x", b"", None)) as pieces:
                await anext(pieces)
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert Closing.closed == 1


async def test_a_page_is_an_answer_to_any_request():
    """Return the page to the user, whose request was made by hand."""
    server = RecordingServer(always(lambda: httpx.Response(200, html="<html>")))
    async with connected(server) as xnat:
        assert b"".join([piece async for piece in xnat.raw("GET", "/app", b"", None)]) == b"<html>"


# -- content -----------------------------------------------------------------------------------------------------


class Closing(httpx.AsyncByteStream):
    """A body that reports whether it was closed."""

    closed = 0

    def __init__(self, content: bytes) -> None:
        self._pieces = Pieces(content).__aiter__()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        await self._pieces.aclose()
        Closing.closed += 1


@pytest.mark.parametrize(
    ("headers", "size"), [({"content-length": "77"}, 77), ({"transfer-encoding": "chunked"}, None)]
)
async def test_heads_are_asked_for_by_number_and_may_say_nothing(headers, size):
    found, requests = await answered(lambda xnat: xnat.head(ITEM, FILE), lambda: httpx.Response(200, headers=headers))
    assert found == (size, "")
    assert requests == ["HEAD /site/data/experiments/XNAT_E1/resources/34/files/a%20b/c%231.dcm"]


@pytest.mark.parametrize(
    ("begin", "path"),
    [
        (lambda xnat: xnat.archive(("experiments", "E/1"), "7", "8/9"), "E%2F1/resources/7,8%2F9/files?format=tar"),
        (lambda xnat: xnat.zip("E/1", ["1", "a/b"]), "E%2F1/scans/1,a%2Fb/files?format=zip"),
        (lambda xnat: xnat.zip("E/1", None), "E%2F1/scans/ALL/files?format=zip"),
    ],
)
async def test_archives_arrive_in_pieces_and_are_closed(begin, path):
    server = RecordingServer(always(lambda: httpx.Response(200, stream=Closing(b"x" * 2500))))
    Closing.closed = 0
    async with connected(server) as xnat:
        async with begin(xnat) as chunks:
            assert [len(chunk) async for chunk in chunks] == [1000, 1000, 500]
        assert Closing.closed
        assert xnat._download_slots.borrowed_tokens == 0
    assert asked(server) == [f"GET /site/data/experiments/{path}"]


@pytest.mark.parametrize(
    "begin",
    [
        lambda xnat: xnat.archive(ITEM, "7"),
        lambda xnat: xnat.zip("E", None),
        lambda xnat: xnat.indexed(ITEM, 0),
        lambda xnat: xnat.download(ITEM, FILE),
    ],
)
async def test_a_page_is_no_content(begin):
    async with connected(RecordingServer(always(lambda: httpx.Response(200, html="<html>")))) as xnat:
        with pytest.raises(BadReply, match="web page"):
            async with begin(xnat):
                pass
        assert xnat._download_slots.borrowed_tokens == 0


@pytest.mark.parametrize(
    "begin",
    [
        lambda xnat: xnat.archive(ITEM, "7"),
        lambda xnat: xnat.zip("E", None),
        lambda xnat: xnat.indexed(ITEM, 0),
    ],
)
async def test_content_may_be_of_any_type_and_says_where_it_broke_off(begin):
    """Return a page that is sent as an attachment as a file, too."""
    headers = {"content-type": "text/html", "content-disposition": "attachment"}
    server = RecordingServer(always(lambda: httpx.Response(200, headers=headers, stream=Pieces(b"x" * 2500, 1500))))
    async with connected(server) as xnat:
        with pytest.raises(Unreachable, match=f"^{URL}/data/experiments/.*/files"):
            await _read(begin(xnat))
        assert await xnat.head(ITEM, FILE) == (None, "")


async def test_a_file_by_its_place_says_what_it_is():
    headers = {"content-length": "2500", "last-modified": MODIFIED, "etag": '"v1"'}
    server = RecordingServer(always(lambda: httpx.Response(200, headers=headers, stream=Pieces(b"x" * 2500))))
    async with connected(server) as xnat:
        async with xnat.indexed(("experiments", "E/1"), 7) as (download, _):
            assert (download.start, download.size, download.modified, download.into) == (0, 2500, MODIFIED, None)
            assert (download.validator, download.framed) == ('"v1"', True)
            assert [len(chunk) async for chunk in download.chunks] == [1000, 1000, 500]
    server.answer = lambda request: httpx.Response(200, stream=Pieces(b""))
    async with connected(server) as xnat:
        async with xnat.indexed(("experiments", "E/1"), 7) as (download, _):
            assert (download.size, download.modified, download.validator, download.framed) == (None, "", "", False)
    assert asked(server) == ["GET /site/data/experiments/E%2F1/files?index=7"] * 2


@pytest.mark.parametrize(
    ("method", "most"),
    [
        (lambda xnat, size: xnat.head(ITEM, FileRow("34", "x", size, "", "", "", 0)), PARALLEL_DOWNLOADS),
        (lambda xnat, size: _whole(xnat.download(ITEM, FileRow("34", "x", size, "", "", "", 0))), PARALLEL_DOWNLOADS),
        (lambda xnat, size: _whole(xnat.archive(ITEM, "7")), LONG_REQUESTS),
        (lambda xnat, size: _whole(xnat.zip("E", None)), PARALLEL_DOWNLOADS),
        (lambda xnat, size: _whole(xnat.indexed(ITEM, 1)), PARALLEL_DOWNLOADS),
    ],
)
@pytest.mark.parametrize("size", [None, LONG_FILE_BYTES, LONG_FILE_BYTES + 1])
async def test_so_many_are_under_way_at_once(autojump_clock, method, most, size):
    """Run half as many downloads of large files."""
    now = highest = 0
    server = RecordingServer()

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal now, highest
        if "JSESSION" in str(request.url):
            return server(request)
        now += 1
        highest = max(highest, now)
        await trio.sleep(1)
        now -= 1
        return httpx.Response(200, content=b"x")

    async with open_xnat(Config(URL), Credentials("u", "p"), Wire(handle)) as xnat, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(method, xnat, size)
    is_download = method.__code__.co_names[:2] == ("_whole", "download")
    large = size == LONG_FILE_BYTES + 1 and is_download
    assert highest == (LONG_DOWNLOADS if large else most)


async def test_large_files_and_archives_leave_room_for_small_files():
    """Wait for one of the requests that take long, whatever they are of."""
    begun: list[str] = []
    server = RecordingServer()

    async def handle(request: httpx.Request) -> httpx.Response:
        if "JSESSION" in str(request.url):
            return server(request)
        begun.append(request.url.path)
        await trio.sleep_forever()
        raise AssertionError

    large = FileRow("34", "x", LONG_FILE_BYTES + 1, "", "", "", 0)
    async with open_xnat(Config(URL), Credentials("u", "p"), Wire(handle)) as xnat, trio.open_nursery() as nursery:
        await xnat.log_in()
        for opened in [xnat.archive(ITEM, "7") for _ in range(LONG_REQUESTS - 1)]:
            nursery.start_soon(_whole, opened)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            nursery.start_soon(_whole, xnat.download(ITEM, large))
        await trio.testing.wait_all_tasks_blocked()
        assert len(begun) == LONG_REQUESTS
        nursery.start_soon(_whole, xnat.download(ITEM, FILE))
        await trio.testing.wait_all_tasks_blocked()
        assert len(begun) == LONG_REQUESTS + 1
        nursery.cancel_scope.cancel()


async def _read(opened: Any) -> None:
    async with opened as content:
        body: Any = content[0] if isinstance(content, tuple) else content
        async for _ in getattr(body, "chunks", body):
            pass


async def _whole(opened: Any) -> None:
    async with opened:
        pass


@pytest.mark.parametrize(("size", "big"), [(None, False), (BIG_FILE_BYTES, False), (BIG_FILE_BYTES + 1, True)])
async def test_files_from_so_many_bytes_on_are_carried_by_a_process(size, big):
    """Use another client of httpx for them, here one of the test."""
    server, carried = RecordingServer(always(lambda: httpx.Response(200, content=b"x"))), []

    async def process(request: httpx.Request) -> httpx.Response:
        carried.append(request.url.path)
        return server(request)

    async with connected(server) as xnat, httpx.AsyncClient(transport=Wire(process)) as client:
        xnat._transport._clients = replace(xnat._transport._clients, big=client)
        await _whole(xnat.download(ITEM, FILE._replace(size=size)))
    assert len(carried) == big


@asynccontextmanager
async def _downloading(answer: Callable[[httpx.Request], httpx.Response], **asked: Any) -> AsyncIterator[Any]:
    async with connected(RecordingServer(answer)) as xnat, xnat.download(ITEM, FILE, **asked) as download:
        yield download


async def test_a_range_ends_where_it_was_told_to():
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["range"] == "bytes=10-19"
        headers = {"content-range": f"bytes 10-19/{len(CONTENT)}", "content-length": "10", "last-modified": MODIFIED}
        return httpx.Response(206, headers=headers, stream=Pieces(CONTENT[10:20]))

    async with _downloading(answer, start=10, size=len(CONTENT), stop=20) as download:
        assert (download.start, download.size, download.modified) == (10, len(CONTENT), MODIFIED)
        assert b"".join([chunk async for chunk in download.chunks]) == CONTENT[10:20]


async def test_what_was_not_asked_whether_it_was_modified_cannot_be_answered():
    with pytest.raises(BadReply, match="/files/"):
        async with _downloading(lambda request: httpx.Response(304)):
            pass


async def test_nobody_is_who_we_are_without_a_login():
    async with open_xnat(Config(URL), None, Wire(RecordingServer())) as xnat:
        with pytest.raises(LoginRequired):
            await xnat.username()
