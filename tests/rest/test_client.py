"""Test the client against servers of a few lines: sessions, envelopes, retries, ranges, broken connections."""

import base64
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
import trio.testing

from tests.support.wire import Wire
from xnatfs.common.errors import BadReply, Denied, LoginRequired, NotFound, NotXnat, Stale, Unreachable
from xnatfs.http.resumable_download import MAX_REFUSALS, WITHOUT_RANGES_SECONDS
from xnatfs.http.transport import MAX_LOST_SESSIONS
from xnatfs.rest.client import Xnat, open_xnat
from xnatfs.rest.models import FileRow
from xnatfs.rest.urls import has_url
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials

URL = "https://xnat.example.org/site"
FILE = FileRow("34", "a b/c#1.dcm", None, "", "", "", 0)
ITEM = ("experiments", "XNAT_E1")
CONTENT = bytes(range(256)) * 40
MODIFIED = "Tue, 02 Jan 2024 03:04:05 GMT"

Answer = Callable[[httpx.Request], httpx.Response]


class Pieces(httpx.AsyncByteStream):
    """A body that breaks off after so many bytes."""

    def __init__(self, content: bytes, breaks_at: int | None = None, size: int = 1000) -> None:
        self._content = content
        self._size = size
        self._breaks_at = len(content) if breaks_at is None else breaks_at
        self._pieces = self._generated()

    def __aiter__(self) -> AsyncGenerator[bytes]:
        return self._pieces

    async def aclose(self) -> None:
        await self._pieces.aclose()

    async def _generated(self) -> AsyncGenerator[bytes]:
        for start in range(0, self._breaks_at, self._size):
            yield self._content[start : min(start + self._size, self._breaks_at)]
        if self._breaks_at < len(self._content):
            raise httpx.ReadError("connection reset")


class RecordingServer:
    """An XNAT with sessions, and with answers that the test writes. It records the requests."""

    def __init__(self, answer: Answer | None = None, *, open_site: bool = False) -> None:
        self.answer = answer or (lambda request: table([]))
        self.open_site = open_site
        self.sessions: list[str] = []
        self.alive: set[str] = set()
        self.requests: list[httpx.Request] = []
        self.responses: list[httpx.Response] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.responses.append(response := self._answered(request))
        return response

    def _answered(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/site")
        basic = request.headers.get("authorization")
        if path == "/data/JSESSION" and request.method == "DELETE":
            self.alive.discard(self.sent(request))
            return httpx.Response(200)
        if basic and base64.b64decode(basic.partition(" ")[2]) == b"u:p":
            self.sessions.append(f"{len(self.sessions):032X}")
            self.alive.add(self.sessions[-1])
            return httpx.Response(200, text=self.sessions[-1])
        known = self.sent(request) in self.alive
        if path == "/xapi/users/username":
            return httpx.Response(200, text="u") if known else httpx.Response(401)
        if not known and not self.open_site:
            return httpx.Response(401, html="<html>")
        response = self.answer(request)
        if not known:
            response.headers["set-cookie"] = "JSESSIONID=0123456789ABCDEF0123456789ABCDEF; Path=/; HttpOnly"
        return response

    @staticmethod
    def sent(request: httpx.Request) -> str:
        return str(request.headers.get("cookie", "")).removeprefix("JSESSIONID=")

    def asked(self) -> list[str]:
        """Return the requests except those for the session itself."""
        return [f"{r.method} {r.url.raw_path.decode()}" for r in self.requests if not r.url.path.endswith("/JSESSION")]


def table(rows: list[dict[str, str]]) -> httpx.Response:
    return httpx.Response(200, json={"ResultSet": {"Result": rows, "totalRecords": str(len(rows))}})


def always(response: Callable[[], httpx.Response]) -> Answer:
    return lambda request: response()


@asynccontextmanager
async def connected(server: RecordingServer, password: str = "p", patience: float = 60.0) -> AsyncIterator[Xnat]:
    config = Config(URL, timeout=patience)
    async with open_xnat(config, Credentials("u", password), Wire(server)) as xnat:
        yield xnat
    assert all(response.is_closed for response in server.responses), "one that is not keeps its connection for ever"


async def read(xnat: Xnat, start: int = 0, size: int | None = None) -> tuple[int, bytes]:
    async with xnat.download(ITEM, FILE, start, size) as download:
        assert download is not None
        return download.start, b"".join([chunk async for chunk in download.chunks])


# -- the session -------------------------------------------------------------------------------------------------


async def test_ten_requests_at_once_make_one_login_and_close_it():
    server = RecordingServer(always(lambda: table([{"ID": "P1"}])))
    async with connected(server) as xnat:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(xnat.projects)
    assert len(server.sessions) == 1
    assert len(server.asked()) == 10
    assert server.alive == set()


async def test_a_session_that_died_is_made_again_once_for_everybody():
    server = RecordingServer(always(lambda: table([{"ID": "P1"}])))
    async with connected(server) as xnat:
        await xnat.projects()
        server.alive.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(xnat.projects)
    assert len(server.sessions) == 2


async def test_an_open_site_that_answers_as_guest_is_noticed_by_its_cookie():
    server = RecordingServer(open_site=True)
    server.answer = lambda r: table([{"ID": "P1"}] * (2 if RecordingServer.sent(r) in server.alive else 1))
    async with connected(server) as xnat:
        server.answer = lambda r: table(
            [{"ID": "P1"}, {"ID": "P2"}][: 2 if RecordingServer.sent(r) in server.alive else 1]
        )
        await xnat.projects()
        server.alive.clear()
        assert [project.id for project in await xnat.projects()] == ["P1", "P2"]
    assert len(server.sessions) == 2


async def test_a_foreign_cookie_from_a_live_session_is_believed_only_once():
    def answer(request: httpx.Request) -> httpx.Response:
        response = table([{"ID": "P1"}])
        response.headers["set-cookie"] = "JSESSIONID=BALANCER0123456789; Path=/"
        return response

    server = RecordingServer(answer)
    async with connected(server) as xnat:
        for _ in range(3):
            await xnat.projects()
    assert len(server.sessions) == 1
    assert server.asked().count("GET /site/xapi/users/username") == 2  # for the user of that session, and of ours


@pytest.mark.parametrize(
    "page",
    [
        lambda: httpx.Response(200, html="<html>log in</html>"),
        lambda: httpx.Response(302, headers={"location": "/app/template/Login.vm"}),
    ],
)
async def test_a_login_page_instead_of_data_is_a_lost_session(page):
    server = RecordingServer()

    def answer(request: httpx.Request) -> httpx.Response:
        if len(server.sessions) == 1:
            server.alive.clear()
            shown: httpx.Response = page()
            return shown
        return table([{"ID": "P1"}])

    server.answer = answer
    async with connected(server) as xnat:
        assert len(await xnat.projects()) == 1


async def test_an_empty_answer_is_doubted_when_the_session_has_long_not_been_confirmed(autojump_clock):
    server = RecordingServer()
    async with connected(server) as xnat:
        await xnat.projects()
        assert server.asked() == ["GET /site/data/projects?format=json"]
        await trio.sleep(120)
        await xnat.projects()
        await xnat.projects()
    assert server.asked().count("GET /site/xapi/users/username") == 1


async def test_a_session_that_idled_longer_than_the_server_allows_is_not_sent(autojump_clock):
    def answer(request: httpx.Request) -> httpx.Response:
        response = table([{"ID": "P1"}])
        response.headers["set-cookie"] = 'SESSION_EXPIRATION_TIME="1719312000000,900000"; Version=1'
        return response

    server = RecordingServer(answer)
    async with connected(server) as xnat:
        for pause in (0, 800, 800, 901):
            await trio.sleep(pause)
            await xnat.projects()
    assert len(server.sessions) == 2


async def test_a_refused_password_is_not_offered_again(autojump_clock):
    server = RecordingServer()
    async with connected(server, password="wrong") as xnat:
        for _ in range(3):
            with pytest.raises(LoginRequired, match="wrong user or password, a locked account, or too many sessions"):
                await xnat.projects()
    assert len([r for r in server.requests if r.method == "POST"]) == 1


async def test_a_401_that_stays_is_not_asked_for_ever():
    server = RecordingServer(always(lambda: httpx.Response(401)))
    async with connected(server) as xnat:
        with pytest.raises(LoginRequired, match="right after logging in"):
            await xnat.projects()
    assert len(server.sessions) == 2, "the second one lives, as the server has said"
    asked = [path.rpartition("/")[2] for path in server.asked()]
    assert asked == ["projects?format=json", "projects?format=json", "username"]


@pytest.mark.parametrize(
    ("times", "ends_well"), [(1, True), (MAX_LOST_SESSIONS, True), (MAX_LOST_SESSIONS + 1, False), (100, False)]
)
async def test_a_session_may_be_lost_again_while_a_request_is_under_way(times, ends_well):
    """Repeat for a server that restarts; give up on one that loses each session for longer than a login takes."""
    left = times

    def forgetful(request: httpx.Request) -> httpx.Response:
        nonlocal left
        if left and not request.headers.get("authorization"):
            left -= request.url.path.endswith("/projects")
            server.alive.clear()
        return server(request)

    server = RecordingServer(always(lambda: table([{"ID": "P1"}])))
    async with open_xnat(Config(URL, timeout=60.0), Credentials("u", "p"), Wire(forgetful)) as xnat:
        if ends_well:
            assert len(await xnat.projects()) == 1
        else:
            with pytest.raises(LoginRequired, match="right after logging in"):
                await xnat.projects()
        assert len(server.sessions) == 1 + (times if ends_well else MAX_LOST_SESSIONS)
        left = times
        change = await xnat.change("PUT", "/data/projects")
        assert change.status == (200 if ends_well else 401)


async def test_what_others_have_lost_is_not_counted(autojump_clock):
    """Ignore sessions that other requests lose again and again while a slow list is under way."""
    server = RecordingServer()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/slow"):
            await trio.sleep(1)
        return server(request)

    server.answer = always(lambda: table([{"ID": "P1"}]))
    async with open_xnat(Config(URL, timeout=60.0), Credentials("u", "p"), Wire(answer)) as xnat:
        await xnat.login.token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(xnat.rows, "slow")
            await trio.sleep(0.1)
            for _ in range(MAX_LOST_SESSIONS + 1):
                server.alive.clear()
                await xnat.projects()
    assert len([path for path in server.asked() if "/slow" in path]) == 2


async def test_the_cookie_of_a_401_says_nothing_of_the_cookies_of_answers():
    """Notice a guest's session still by its cookie."""
    server = RecordingServer(open_site=True)
    refused = {"set-cookie": f"JSESSIONID={'F' * 32}; Path=/"}
    server.answer = lambda request: (
        httpx.Response(401, headers=refused) if request.url.path.endswith("/scans") else table([{"ID": "P1"}])
    )
    async with connected(server) as xnat:
        with pytest.raises(LoginRequired):
            await xnat.scans("XNAT_E1")
        server.alive.clear()
        await xnat.projects()
    assert len(server.sessions) == 3


async def test_what_is_not_an_xnat_is_named_so():
    async def login(status: int, **kwargs: object) -> None:
        transport = Wire(lambda request: httpx.Response(status, **kwargs))  # type: ignore[arg-type]
        async with open_xnat(Config(URL), Credentials("u", "p"), transport) as xnat:
            await xnat.login.token()

    with pytest.raises(NotXnat, match="is not an XNAT"):
        await login(404)
    with pytest.raises(NotXnat, match="is not an XNAT"):
        await login(200, html="<html>It works!</html>")
    with pytest.raises(NotXnat, match="redirects to https://elsewhere.org/"):
        await login(301, headers={"location": "https://elsewhere.org/?token=1"})
    with pytest.raises(Unreachable, match="503"):
        await login(503)


async def test_an_expired_password_is_a_matter_of_logging_in():
    def server(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/buildInfo"):
            return httpx.Response(200, json={"version": "1.8.11"})
        return httpx.Response(200, html="<html><h3>Your password has expired</h3></html>")

    async with open_xnat(Config(URL), Credentials("u", "p"), Wire(server)) as xnat:
        with pytest.raises(LoginRequired, match="Your password has expired"):
            await xnat.login.token()


async def test_requests_say_who_asks_and_want_no_encoding():
    server = RecordingServer()
    async with connected(server) as xnat:
        await xnat.projects()
    request = server.requests[1]
    assert request.headers["user-agent"].startswith("xnatfs/")
    assert request.headers["accept"] == "*/*"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers


# -- envelopes and statuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"items": [{"data_fields": {"ID": "X"}}]},
        {"ResultSet": {"Result": {}}},
        {"ResultSet": {"Result": ["x"]}},
        {"ResultSet": None},
        [],
        "text",
    ],
)
async def test_another_envelope_than_a_list_is_a_bad_reply(body):
    async with connected(RecordingServer(always(lambda: httpx.Response(200, json=body)))) as xnat:
        with pytest.raises(BadReply):
            await xnat.scans("XNAT_E1")


async def test_cut_json_is_a_bad_reply():
    async with connected(RecordingServer(always(lambda: httpx.Response(200, content=b'{"ResultSet": {"Res')))) as xnat:
        with pytest.raises(BadReply, match="as JSON"):
            await xnat.projects()


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, Denied), (404, NotFound), (400, BadReply), (409, BadReply), (301, BadReply), (500, BadReply)],
)
async def test_statuses_have_their_errors(status, error, autojump_clock):
    page = "<html><h3>Unable to read subjects for Project: P</h3></html>"
    async with connected(RecordingServer(always(lambda: httpx.Response(status, html=page)))) as xnat:
        with pytest.raises(error) as caught:
            await xnat.subjects("P")
    assert "Unable to read subjects" in str(caught.value) or status == 301


async def test_a_500_is_asked_once_more_and_no_oftener(autojump_clock):
    server = RecordingServer(always(lambda: httpx.Response(500)))
    async with connected(server) as xnat:
        with pytest.raises(BadReply):
            await xnat.scans("BAD")
    assert len(server.asked()) == 2


# -- retries -----------------------------------------------------------------------------------------------------


async def test_a_gateway_that_fails_is_asked_again_until_it_answers(autojump_clock):
    statuses = [502, 503, 504, 429, 500, 200]

    def answer(request: httpx.Request) -> httpx.Response:
        status = statuses.pop(0)
        return table([{"ID": "P1"}]) if status == 200 else httpx.Response(status)

    async with connected(RecordingServer(answer)) as xnat:
        assert len(await xnat.projects()) == 1
    assert statuses == []


async def test_retry_after_is_obeyed(autojump_clock):
    replies = [httpx.Response(503, headers={"retry-after": "20"}), table([])]
    async with connected(RecordingServer(lambda request: replies.pop(0))) as xnat:
        started = trio.current_time()
        await xnat.projects()
        assert trio.current_time() - started >= 15


async def test_a_server_that_stays_away_is_given_up_within_the_timeout(autojump_clock):
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    server = RecordingServer(answer)
    async with connected(server, patience=30) as xnat:
        await xnat.login.token()
        started = trio.current_time()
        with pytest.raises(Unreachable, match="cannot be reached: refused"):
            await xnat.projects()
        assert trio.current_time() - started <= 30


async def test_a_certificate_that_is_not_trusted_is_said_at_once(autojump_clock):
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("self-signed") from ssl.SSLCertVerificationError(1, "CERTIFICATE_VERIFY_FAILED")

    server = RecordingServer(answer)
    async with connected(server) as xnat:
        await xnat.login.token()
        with pytest.raises(Unreachable, match="is not trusted.*--ca-bundle"):
            await xnat.projects()
    assert len(server.asked()) == 1


# -- downloads ---------------------------------------------------------------------------------------------------


class Files:
    """A handler with answers for one file."""

    def __init__(self, content: bytes = CONTENT, *, ranged: bool = True) -> None:
        self.content = content
        self.ranged = ranged
        self.modified = MODIFIED
        self.breaks: list[int] = []  # after so many bytes, one reply each
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        wanted = request.headers.get("range", "")
        self.asked.append(wanted)
        body, status, headers = self.content, 200, {"last-modified": self.modified}
        if wanted and self.ranged:
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            body, status = self.content[first : last + 1], 206
            headers["content-range"] = f"bytes {first}-{last}/{len(self.content)}"
        headers["content-length"] = str(len(body))
        return httpx.Response(status, headers=headers, stream=Pieces(body, self.breaks.pop(0) if self.breaks else None))


async def test_a_file_is_asked_for_by_number_and_encoded_path():
    server = RecordingServer(Files())
    async with connected(server) as xnat:
        assert await read(xnat) == (0, CONTENT)
    assert server.asked() == ["GET /site/data/experiments/XNAT_E1/resources/34/files/a%20b/c%231.dcm"]


async def test_a_range_is_never_asked_past_the_end():
    files = Files()
    async with connected(RecordingServer(files)) as xnat:
        assert await read(xnat, 10000, len(CONTENT)) == (10000, CONTENT[10000:])
        assert xnat.ranged is True
    assert files.asked == [f"bytes=10000-{len(CONTENT) - 1}"]


async def test_a_server_that_ignores_ranges_is_taken_at_its_word_and_not_asked_again():
    files = Files(ranged=False)
    async with connected(RecordingServer(files)) as xnat:
        assert await read(xnat, 10000, len(CONTENT)) == (0, CONTENT)
        assert await read(xnat, 10000, len(CONTENT)) == (0, CONTENT)
        assert xnat.ranged is False
    assert files.asked == [f"bytes=10000-{len(CONTENT) - 1}", ""]


@pytest.mark.parametrize("content_range", ["bytes 0-239/10240", "bytes 10000-10238/10240", "nonsense", ""])
async def test_another_range_than_was_asked_for_is_not_used(content_range):
    files = Files()

    def answer(request: httpx.Request) -> httpx.Response:
        response = files(request)
        if response.status_code == 206:
            response.headers["content-range"] = content_range
        return response

    async with connected(RecordingServer(answer)) as xnat:
        assert await read(xnat, 10000, len(CONTENT)) == (0, CONTENT)
        assert xnat.ranged is False


async def test_a_refused_range_is_asked_for_whole_once(autojump_clock):
    files = Files()
    server = RecordingServer(lambda r: httpx.Response(501) if "range" in r.headers else files(r))
    async with connected(server) as xnat:
        assert await read(xnat, 10000, len(CONTENT)) == (0, CONTENT)
    assert len(server.asked()) == 2


@pytest.mark.parametrize("refusal", [200, 206, 416, 500])
async def test_a_server_that_has_granted_ranges_is_asked_for_more_until_it_refuses_some_in_a_row(
    autojump_clock, refusal
):
    files, refused = Files(), False

    def answer(request: httpx.Request) -> httpx.Response:
        if refused and "range" in request.headers:
            return httpx.Response(refusal, content=CONTENT)
        return files(request)

    async with connected(RecordingServer(answer)) as xnat:
        assert (await read(xnat, 10000, len(CONTENT)))[0] == 10000
        for granted in (True, True, False):
            refused = True
            for _ in range(MAX_REFUSALS - granted):
                assert xnat.ranged is True
                assert await read(xnat, 10000, len(CONTENT)) == (0, CONTENT)
            refused = False
            assert (await read(xnat, 10000, len(CONTENT)))[0] == (10000 if granted else 0)
            assert xnat.ranged is granted


@pytest.mark.parametrize("granted", [True, False])
async def test_a_server_that_refuses_ranges_is_asked_for_one_again_after_a_while(autojump_clock, granted, caplog):
    files, refuses = Files(), False
    caplog.set_level("INFO")

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(416) if refuses and "range" in request.headers else files(request)

    async with connected(RecordingServer(answer)) as xnat:
        if granted:
            await read(xnat, 10000, len(CONTENT))
        refuses = True
        for round in range(3):
            for _ in range(MAX_REFUSALS if granted and not round else 1):
                assert xnat.ranged is not False
                assert await read(xnat, 10000, len(CONTENT)) == (0, CONTENT)
            await trio.sleep(WITHOUT_RANGES_SECONDS - 1)
            assert xnat.ranged is False
            await trio.sleep(1)
        assert [record.levelname for record in caplog.records if "a seek waits" in record.message] == ["INFO"]
        refuses = False
        assert (await read(xnat, 10000, len(CONTENT)))[0] == 10000
        assert xnat.ranged is True
        refuses = True
        for _ in range(MAX_REFUSALS):
            assert xnat.ranged is True
            await read(xnat, 10000, len(CONTENT))
        assert xnat.ranged is False
    assert len([record for record in caplog.records if "a seek waits" in record.message]) == 2


async def test_a_fault_that_is_not_of_the_range_says_nothing_of_ranges(autojump_clock):
    server = RecordingServer(always(lambda: httpx.Response(500)))
    async with connected(server) as xnat:
        with pytest.raises(BadReply, match="answers 500"):
            await read(xnat, 10, 100)
        assert xnat.ranged is None
    ranges = [request.headers.get("range") for request in server.requests if "/files/" in request.url.path]
    assert ranges == ["bytes=10-99", "bytes=10-99", None, None]


async def test_a_missing_file_says_nothing_of_ranges():
    async with connected(RecordingServer(always(lambda: httpx.Response(404)))) as xnat:
        with pytest.raises(NotFound):
            await read(xnat, 10, 100)
        assert xnat.ranged is None


@pytest.mark.parametrize("ranged", [True, False])
async def test_a_connection_that_breaks_is_taken_up_where_it_broke(ranged, autojump_clock):
    files = Files(ranged=ranged)
    files.breaks = [3000, 5500, 1]
    async with connected(RecordingServer(files)) as xnat:
        assert await read(xnat) == (0, CONTENT)


async def test_a_file_that_changed_meanwhile_is_stale(autojump_clock):
    files = Files()
    files.breaks = [3000]

    def answer(request: httpx.Request) -> httpx.Response:
        response = files(request)
        files.modified = "Wed, 03 Jan 2024 03:04:05 GMT"
        return response

    async with connected(RecordingServer(answer)) as xnat:
        with pytest.raises(Stale):
            await read(xnat)


SOON = "Tue, 02 Jan 2024 03:04:06 GMT"
TAG = '"5f2c8f0e"'
WEAK = [
    {},
    {"last-modified": MODIFIED, "date": MODIFIED},  # it may be changed once more in that second
    {"last-modified": SOON, "date": MODIFIED},
    {"last-modified": "yesterday"},
    {"etag": f"W/{TAG}"},
    {"etag": "no tag"},
]
STRONG = [
    ({"last-modified": MODIFIED}, MODIFIED),
    ({"last-modified": MODIFIED, "date": SOON}, MODIFIED),
    ({"etag": TAG}, TAG),
    ({"etag": TAG, "last-modified": MODIFIED, "date": MODIFIED}, TAG),
]


class Versions:
    """A file whose first reply breaks off; later ones have other headers, and other bytes."""

    def __init__(self, first: dict[str, str], later: dict[str, str], newer: bytes = CONTENT) -> None:
        self.headers = [first, later]
        self.newer = newer
        self.asked: list[tuple[str, str]] = []
        self.breaks_at = 3500
        self.ranged = True
        self.dated_ranges = True

    def __call__(self, request: httpx.Request) -> httpx.Response:
        wanted, began = request.headers.get("range", ""), bool(self.asked)
        self.asked.append((wanted, request.headers.get("if-range", "")))
        content, headers, status = (self.newer if began else CONTENT), dict(self.headers[began]), 200
        if wanted and self.ranged:
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            headers = {
                **(headers if self.dated_ranges else {}),
                "content-range": f"bytes {first}-{last}/{len(content)}",
            }
            content, status = content[first : last + 1], 206
        headers["content-length"] = str(len(content))
        return httpx.Response(status, headers=headers, stream=Pieces(content, None if began else self.breaks_at))


@pytest.mark.parametrize(("headers", "validator"), STRONG)
async def test_a_download_goes_on_by_a_range_of_the_version_that_was_begun(autojump_clock, headers, validator):
    files = Versions(headers, headers)
    async with connected(RecordingServer(files)) as xnat:
        assert await read(xnat) == (0, CONTENT)
    assert files.asked == [("", ""), (f"bytes=3500-{len(CONTENT) - 1}", validator)]


@pytest.mark.parametrize(("headers", "validator"), STRONG)
@pytest.mark.parametrize("ranged", [True, False])
async def test_two_versions_are_never_joined(autojump_clock, headers, validator, ranged):
    """Raise Stale for a server that answers If-Range with the other version, whole, and for one that sends a range."""
    files = Versions(headers, {"last-modified": SOON, "etag": '"another"'}, bytes(len(CONTENT)))
    files.ranged = ranged
    async with connected(RecordingServer(files)) as xnat:
        with pytest.raises(Stale, match="changed on the server"):
            await read(xnat)
        assert (xnat.ranged is False) is False, "to answer If-Range with all of another version is no refusal of ranges"


@pytest.mark.parametrize("headers", WEAK)
@pytest.mark.parametrize("breaks_at", [1, 3500, len(CONTENT) - 1])
async def test_without_a_strong_validator_a_download_begins_anew(autojump_clock, headers, breaks_at):
    files = Versions(headers, headers)
    files.breaks_at = breaks_at
    async with connected(RecordingServer(files)) as xnat:
        assert await read(xnat) == (0, CONTENT)
    assert files.asked == [("", "")] * 2


@pytest.mark.parametrize("headers", WEAK)
@pytest.mark.parametrize("at", [0, 1700, 3499])
async def test_what_comes_anew_must_be_what_came_before(autojump_clock, headers, at):
    """Raise Stale for a body of equal length and headers in which one byte that was already served differs."""
    files = Versions(headers, headers, CONTENT[:at] + b"?" + CONTENT[at + 1 :])
    async with connected(RecordingServer(files)) as xnat:
        with pytest.raises(Stale, match="changed on the server"):
            await read(xnat)


async def test_what_was_not_handed_out_may_be_another_version(autojump_clock):
    """Serve bytes of one version: that of the second reply."""
    newer = CONTENT[:5000] + b"?" * (len(CONTENT) - 5000)
    async with connected(RecordingServer(Versions({}, {}, newer))) as xnat:
        assert await read(xnat) == (0, newer)


async def test_a_range_without_its_version_is_not_joined(autojump_clock):
    """Request the whole file, whose reply states its version."""
    files = Versions({"last-modified": MODIFIED}, {"last-modified": MODIFIED})
    files.dated_ranges = False
    async with connected(RecordingServer(files)) as xnat:
        assert await read(xnat) == (0, CONTENT)
    assert [wanted for wanted, _ in files.asked] == ["", f"bytes=3500-{len(CONTENT) - 1}", ""]


async def test_with_a_digest_a_download_goes_on_by_a_range(autojump_clock):
    """Resume by a range, as the digest reveals in the end what was joined wrongly."""
    files = Versions({}, {})
    async with connected(RecordingServer(files)) as xnat:
        async with xnat.download(ITEM, FILE._replace(digest="0" * 32)) as download:
            assert b"".join([chunk async for chunk in download.chunks]) == CONTENT
    assert files.asked == [("", ""), (f"bytes=3500-{len(CONTENT) - 1}", "")]


@pytest.mark.parametrize(
    ("status", "content_range", "length"),
    [
        (206, "bytes 10240-10239/10240", 0),  # recorded: `bytes=6-` of 6 bytes, 206 `bytes 6-5/6`
        (206, "bytes -94-10239/10240", 10334),  # a suffix longer than the file
        (206, "bytes 10000-10300/10240", 301),  # an end beyond it: not clamped
        (206, "bytes 20000-20100/10240", 101),  # a start beyond it: nothing comes
        (206, "bytes 10000-10239/10240", 10240),  # the range that was asked for, as it says, but the whole is announced
        (206, "items 10000-10239/10240", 240),
        (206, "bytes 10000-10239/*", 240),
        (500, "", 10240),  # with the whole file as its body
    ],
)
async def test_the_odd_ranges_of_real_servers_are_never_data(autojump_clock, status, content_range, length):
    files = Files()

    def answer(request: httpx.Request) -> httpx.Response:
        if "range" not in request.headers:
            return files(request)
        headers = {"content-length": str(length), "last-modified": MODIFIED}
        return httpx.Response(status, headers={**headers, "content-range": content_range}, stream=Pieces(b"?" * 240))

    async with connected(RecordingServer(answer)) as xnat:
        assert await read(xnat, 10000, len(CONTENT)) == (0, CONTENT)


async def test_more_than_the_range_that_was_asked_for_is_an_error():
    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"content-range": f"bytes 10-19/{len(CONTENT)}", "transfer-encoding": "chunked"}
        return httpx.Response(206, headers=headers, stream=Pieces(CONTENT[10:21]))

    async with connected(RecordingServer(answer)) as xnat:
        async with xnat.download(ITEM, FILE, 10, len(CONTENT), 20) as download:
            with pytest.raises(BadReply, match="more came"):
                async for _ in download.chunks:
                    pass


@pytest.mark.parametrize(
    ("headers", "framed"), [({}, False), ({"content-length": "10240"}, True), ({"transfer-encoding": "chunked"}, True)]
)
async def test_a_body_that_ends_with_its_connection_is_told_apart(headers, framed):
    server = RecordingServer(always(lambda: httpx.Response(200, headers=headers, stream=Pieces(CONTENT))))
    async with connected(server) as xnat, xnat.download(ITEM, FILE) as download:
        assert download.framed is framed


async def test_a_file_that_grew_is_stale_to_a_range():
    async with connected(RecordingServer(Files())) as xnat:
        with pytest.raises(Stale):
            await read(xnat, 10, len(CONTENT) - 5)


async def test_a_connection_that_never_gets_on_is_given_up(autojump_clock):
    files = Files()
    files.breaks = [0] * 10000
    async with connected(RecordingServer(files), patience=10) as xnat:
        with pytest.raises(Unreachable):
            await read(xnat)


async def test_a_page_is_no_file_and_an_html_file_is_one():
    headers = {"content-disposition": 'attachment; filename="report.html";'}
    async with connected(RecordingServer(always(lambda: httpx.Response(200, html="<html>", headers=headers)))) as xnat:
        assert await read(xnat) == (0, b"<html>")
    async with connected(RecordingServer(always(lambda: httpx.Response(200, html="<html>")))) as xnat:
        with pytest.raises(BadReply, match="web page"):
            await read(xnat)


async def test_an_encoded_file_is_refused():
    async with connected(
        RecordingServer(always(lambda: httpx.Response(200, headers={"content-encoding": "gzip"})))
    ) as xnat:
        with pytest.raises(BadReply, match="Content-Encoding"):
            await read(xnat)


async def test_heads_tell_the_size_and_the_date():
    headers = {"content-length": "77", "last-modified": MODIFIED}
    async with connected(RecordingServer(always(lambda: httpx.Response(200, headers=headers)))) as xnat:
        assert await xnat.head(ITEM, FILE) == (77, MODIFIED)


async def test_no_more_than_eight_downloads_at_once(autojump_clock):
    now = most = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await trio.sleep(1)
        now -= 1
        return httpx.Response(200, content=b"x")

    server = RecordingServer()

    async def handle(request: httpx.Request) -> httpx.Response:
        if "/files/" in request.url.path:
            return await answer(request)
        return server(request)

    config = Config(URL)
    async with open_xnat(config, Credentials("u", "p"), Wire(handle)) as xnat:
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(read, xnat)
    assert most == 8


async def test_small_files_do_not_wait_for_large_ones():
    release = trio.Event()
    server = RecordingServer()

    async def handle(request: httpx.Request) -> httpx.Response:
        if "/files/" not in request.url.path:
            return server(request)
        if request.url.path.endswith("large"):
            await release.wait()
        return httpx.Response(200, content=b"x")

    large, small = (FileRow("34", name, size, "", "", "", 0) for name, size in (("large", 2**30), ("small", 1)))
    async with open_xnat(Config(URL), Credentials("u", "p"), Wire(handle)) as xnat, trio.open_nursery() as nursery:

        async def fetch(file: FileRow) -> None:
            async with xnat.download(ITEM, file):
                pass

        for _ in range(20):
            nursery.start_soon(fetch, large)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            await fetch(small)
        release.set()


@pytest.mark.parametrize("path", ["a%b", "a;b", "a\\b", "a//b", "a/./b", "../b", "a\rb", "a\x7fb", "/a", "a/"])
def test_paths_that_no_url_can_carry(path):
    assert not has_url(path)


@pytest.mark.parametrize("path", ["a#b?c&d=e+f", "größe", "a b", "..a/b.", "[x]{y}|^", "XX"])
def test_paths_that_a_url_can_carry(path):
    assert has_url(path)


async def test_a_front_that_takes_no_post_is_logged_in_to_by_get():
    def server(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(405)
        return httpx.Response(200, text="A" * 32)

    async with open_xnat(Config(URL), Credentials("u", "p"), Wire(server)) as xnat:
        assert await xnat.login.token() == "A" * 32


async def test_of_the_sessions_a_login_names_the_newest_cookie_is_it():
    def server(request: httpx.Request) -> httpx.Response:
        cookies = [("set-cookie", f"JSESSIONID={letter * 32}; Path=/") for letter in "AB"]
        return httpx.Response(200, text="A" * 32, headers=cookies)

    async with open_xnat(Config(URL), Credentials("u", "p"), Wire(server)) as xnat:
        assert await xnat.login.token() == "B" * 32
