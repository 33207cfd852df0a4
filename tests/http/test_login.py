"""Test one login: where it comes from, how long it is trusted, the signs of its loss, and how it ends."""

import errno
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.rest.test_client import URL, RecordingServer
from tests.support.wire import App, Wire
from xnatfs.common.errors import BadReply, LoginRequired, NotXnat, Unavailable
from xnatfs.http.login import CONFIRMED_SECONDS, LOGOUT_TIMEOUT_SECONDS, REFUSED_SECONDS, Login
from xnatfs.http.replies import MAX_MESSAGE_LENGTH, MAX_PAGE_BYTES, check_is_data, page_message
from xnatfs.rest.client import open_xnat
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.session_store import IDLE_SESSION_SECONDS, SessionStore

TOKEN = "A" * 32
OTHER = "B" * 32
ACCOUNT = Credentials("u", "p")


class Counted(RecordingServer):
    """A server that answers by itself to `alive`, and records what it was asked, session included."""

    def lines(self) -> list[str]:
        return [f"{r.method} {r.url.path.removeprefix('/site')} {self.sent(r)}".strip() for r in self.requests]


@asynccontextmanager
async def logging_in(
    app: App, credentials: Credentials | None = ACCOUNT, sessions: SessionStore | None = None
) -> AsyncIterator[Login]:
    async with httpx.AsyncClient(base_url=URL, transport=Wire(app)) as http:
        yield Login(http, credentials, sessions)


def store(home: Path, username: str = "u", clock: Callable[[], float] | None = None) -> SessionStore:
    return SessionStore(URL, username, home, clock or time.time)


def reply(status: int = 200, *cookies: str, **kwargs: Any) -> httpx.Response:
    headers = [*(("set-cookie", cookie) for cookie in cookies), *kwargs.pop("headers", {}).items()]
    request = httpx.Request("GET", f"{URL}/data/{kwargs.pop('path', 'projects')}")
    return httpx.Response(status, headers=headers, request=request, **kwargs)


def expiring(seconds: float) -> str:
    return f'SESSION_EXPIRATION_TIME="1719312000000,{int(seconds * 1000)}"; Version=1'


# -- one session, for this program or for all ----------------------------------------------------------------------


async def test_a_login_is_made_once_and_ended_at_the_end():
    server = Counted()
    async with logging_in(server) as login:
        assert (login.username, login.logins) == ("u", 0)
        token = await login.token()
        assert await login.token() == token == server.sessions[0]
        assert (login.logins, server.alive) == (1, {token})
        assert login.is_new(token, 0)
        assert not login.is_new(token, 1)
        assert not login.is_new(OTHER, 0)
        await login.close()
        await login.close()
    assert server.lines() == ["POST /data/JSESSION", f"DELETE /data/JSESSION {token}"]


async def test_a_shared_session_is_found_by_the_next_program_and_left_alive(tmp_path):
    server = Counted()
    async with logging_in(server, sessions=store(tmp_path)) as first:
        token = await first.token()
        await first.close()
    async with logging_in(server, None, store(tmp_path, "")) as second:
        assert second.username == ""
        assert await second.token() == token
        assert (second.username, second.logins) == ("u", 0)
        assert not second.is_new(token, -1)
        assert second.is_doubtful(), "nobody has told yet that it lives"
        await second.close()
    assert server.lines() == ["POST /data/JSESSION"]


async def test_who_has_a_name_keeps_it(tmp_path):
    """Keep the configured name, whatever user a found session has."""
    store(tmp_path, "U").save(TOKEN, 900)
    async with logging_in(RecordingServer(), sessions=store(tmp_path)) as login:
        assert await login.token() == TOKEN
        assert login.username == "u"


async def test_programs_that_begin_together_make_one_login(tmp_path):
    """Wait for the session of the first program, and use it."""
    server = Counted()
    begun = trio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        begun.set()
        await trio.sleep(0.02)
        return server(request)

    tokens = []

    async def program(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with logging_in(slow, sessions=store(tmp_path)) as login:
            tokens.append(await login.token())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(program)
        await begun.wait()
        nursery.start_soon(program)
    assert tokens == server.sessions * 2
    assert len(server.sessions) == 1


async def test_a_dead_session_is_replaced_for_all(tmp_path):
    server = Counted()
    store(tmp_path).save(TOKEN, 900)
    async with logging_in(server, sessions=store(tmp_path)) as login:
        assert await login.token() == TOKEN
        assert await login.check_lost(TOKEN, reply(401), "json")
        token = await login.token()
        assert (token, login.logins) == (server.sessions[0], 1)
    found = store(tmp_path).find()
    assert found is not None
    assert (found.token, found.idle) == (token, IDLE_SESSION_SECONDS)


async def test_every_session_that_was_found_dead_is_passed_over(tmp_path):
    class Asked(SessionStore):
        dead: frozenset[str] = frozenset()

        def find(self, dead: frozenset[str] = frozenset(), *, ended: bool = False) -> None:
            self.dead = dead

    server, sessions = Counted(), Asked(URL, "u", tmp_path)
    async with logging_in(server, sessions=sessions) as login:
        for _ in range(2):
            assert await login.check_lost(await login.token(), reply(401), "json")
        await login.token()
    assert sessions.dead == set(server.sessions[:2])


async def test_a_session_that_cannot_be_shared_is_ones_own(tmp_path, caplog):
    (tmp_path / ".config").write_text("no directory")
    server = Counted()
    async with logging_in(server, sessions=store(tmp_path)) as login:
        assert await login.token() == server.sessions[0]
    assert "cannot be shared" in caplog.text


async def test_a_session_that_cannot_be_stored_is_not_made_twice(tmp_path, caplog):
    """Use the session of the first login if the disk or the quota is full; a second login would leave one open."""

    class Full(SessionStore):
        def save(self, token: str, idle: float, username: str = "") -> None:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    server = Counted()
    async with logging_in(server, sessions=Full(URL, "u", tmp_path)) as login:
        assert await login.token() == server.sessions[0]
    assert server.lines() == ["POST /data/JSESSION"]
    assert "Disk quota exceeded" in caplog.text


async def test_what_the_server_says_of_idling_is_kept_with_the_session(tmp_path):
    server = RecordingServer()

    def answer(request: httpx.Request) -> httpx.Response:
        response = server(request)
        response.headers["set-cookie"] = expiring(600)
        return response

    async with logging_in(answer, sessions=store(tmp_path)) as login:
        await login.token()
    found = store(tmp_path).find()
    assert found is not None
    assert found.idle == 600


async def test_each_answer_lengthens_the_life_of_a_shared_session(tmp_path):
    now = [1_700_000_000.0]
    async with logging_in(RecordingServer(), sessions=store(tmp_path, clock=lambda: now[0])) as login:
        token = await login.token()
        now[0] += 800
        login.record_reply(reply(200, "x=y", expiring(600)))
        now[0] += 599
        found = store(tmp_path, clock=lambda: now[0]).find()
        assert found is not None
        assert (found.token, found.idle) == (token, 600)


@pytest.mark.parametrize("cookie", [expiring(0), expiring(-1), 'SESSION_EXPIRATION_TIME="1719312000000,"'])
async def test_a_session_without_an_idle_limit_is_never_renewed_for_its_age(autojump_clock, cookie):
    """Treat 0 and negative limits as Tomcat does: such sessions do not expire."""
    server = Counted()
    async with logging_in(server) as login:
        for _ in range(3):
            assert await login.token() == server.sessions[0]
            login.record_reply(reply(200, cookie))
            await trio.sleep(10)


@pytest.mark.parametrize(("pause", "logins"), [(900, 1), (900.01, 2)])
async def test_a_session_is_not_sent_after_its_time(autojump_clock, pause, logins):
    server = Counted()
    async with logging_in(server) as login:
        token = await login.token()
        login.record_reply(reply(200, "x=y", expiring(900)))
        await trio.sleep(pause)
        assert (await login.token() == token) == (logins == 1)
        assert await login.token() == server.sessions[-1]
    assert len(server.sessions) == logins


@pytest.mark.parametrize("pause", [0, 400, 401])
async def test_a_session_that_was_found_has_its_own_time(patient_clock, tmp_path, pause):
    server = Counted()
    store(tmp_path).save(TOKEN, 400)
    async with logging_in(server, sessions=store(tmp_path)) as login:
        await trio.sleep(1000)
        assert await login.token() == TOKEN
        store(tmp_path).forget(TOKEN)
        await trio.sleep(pause)
        assert (await login.token() == TOKEN) == (pause <= 400)


async def test_renewing_ends_the_session_before(tmp_path):
    server = Counted()
    store(tmp_path).save(TOKEN, 900)
    server.alive.add(TOKEN)
    async with logging_in(server, sessions=store(tmp_path, "")) as login:
        await login.renew()
        assert await login.token() == server.sessions[0]
    assert server.alive == set(server.sessions)
    found = store(tmp_path).find()
    assert found is not None
    assert (found.token, found.idle, found.username) == (server.sessions[0], IDLE_SESSION_SECONDS, "u")


async def test_renewing_where_there_was_nothing_ends_nothing(tmp_path):
    """End no session where there was none, or where the server returns the same one."""
    same = Counted()
    store(tmp_path).save(TOKEN, 900)
    async with logging_in(
        lambda request: same(request) and httpx.Response(200, text=TOKEN), sessions=store(tmp_path)
    ) as login:
        await login.renew()
    assert same.lines() == ["POST /data/JSESSION"]
    for sessions in (None, store(tmp_path / "new")):
        server = Counted()
        async with logging_in(server, sessions=sessions) as login:
            await login.renew()
            assert await login.token() == server.sessions[0]
        assert server.lines() == ["POST /data/JSESSION"]


async def test_logging_out_ends_it_for_everybody(tmp_path):
    server = Counted()
    async with logging_in(server, sessions=store(tmp_path)) as login:
        assert await login.log_out() is False
        assert server.requests == []
        token = await login.token()
        assert await login.log_out() is True
        assert (server.alive, store(tmp_path).find()) == (set(), None)
        assert await login.token() == server.sessions[1]
    assert server.lines() == ["POST /data/JSESSION", f"DELETE /data/JSESSION {token}", "POST /data/JSESSION"]


async def test_a_server_that_is_gone_holds_up_nobody_who_leaves(autojump_clock, caplog):
    """Exit without delay, also where the server is silent."""
    caplog.set_level("INFO")
    server = Counted()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE" and request.headers["cookie"].endswith(server.sessions[0]):
            raise httpx.ConnectError("gone")
        if request.method == "DELETE":
            await trio.sleep_forever()
        return server(request)

    for text, seconds in (("gone", 0), ("no answer within", LOGOUT_TIMEOUT_SECONDS)):
        async with logging_in(answer) as login:
            await login.token()
            began = trio.current_time()
            await login.close()
            assert trio.current_time() - began == seconds
        assert text in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (httpx.Response(200), ""),
        (httpx.Response(302), ""),
        (httpx.Response(401), ""),
        (httpx.Response(500), "500 Internal Server Error"),
        (httpx.ReadError("gone"), "gone"),
        (httpx.ReadError(""), "ReadError"),
        (None, "no answer"),
    ],
)
async def test_the_reason_why_a_session_was_not_ended_is_stated(autojump_clock, answer, failure):
    async def respond(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, text=TOKEN)
        if answer is None:
            await trio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, httpx.Response)
        return answer

    async with logging_in(respond) as login:
        await login.token()
        await login.close()
        assert login.logout_failure == failure


async def test_logging_out_ends_a_session_that_has_idled(tmp_path):
    server = Counted()
    store(tmp_path, clock=lambda: time.time() - 2000).save(TOKEN, 900)
    async with logging_in(server, sessions=store(tmp_path)) as login:
        assert await login.log_out() is True
    assert server.lines() == [f"DELETE /data/JSESSION {TOKEN}"]


async def test_a_login_shows_how_old_its_session_is_and_how_long_it_lives(autojump_clock, tmp_path):
    async with logging_in(RecordingServer(), sessions=store(tmp_path)) as login:
        assert (login.expires_in, login.began_at) == (0.0, 0.0)
        await login.token()
        assert login.expires_in == float("inf")
        login.record_reply(reply(200, expiring(60)))
        for pause, left in ((20, 40), (50, 0)):
            await trio.sleep(pause)
            assert login.expires_in == pytest.approx(left)
    found = store(tmp_path).find()
    assert found is not None
    async with logging_in(RecordingServer(), sessions=store(tmp_path)) as login:
        await login.token()
        assert login.began_at == found.created.timestamp()


# -- signs of a lost session -------------------------------------------------------------------------------------

PAGE = {"content-type": "text/HTML;charset=UTF-8"}
FILE = {**PAGE, "content-disposition": 'Attachment; filename="x.html"'}
# As a server from before 1.7 sends it.
OLD_FILE = {**PAGE, "last-modified": "Sat, 28 Nov 2026 18:02:54 GMT", "cache-control": "must-revalidate"}
ELSEWHERE = {"location": "/app/Login.vm"}
# The container's own page: its words are not in the <h3>.
TOMCAT = (
    "<!doctype html><html><head><title>HTTP Status 401</title></head><body><h1>HTTP Status 401</h1>"
    "<p><b>Type</b> Status Report</p>{message}<p><b>Description</b> Long.</p><h3>Apache Tomcat/9.0.70 (Debian)</h3>"
)


# As Tomcat 7 writes it, and 8.5 to 10 where an exception was thrown.
TOMCAT_7 = (
    "<html><head><title>Apache Tomcat/7.0.76 - Error report</title></head><body><h1>{}</h1>"
    '<HR size="1" noshade="noshade"><p><b>type</b> {}</p><p><b>message</b> <u>{}</u></p>'
    "<p><b>description</b> <u>An internal error.</u></p><h3>Apache Tomcat/7.0.76</h3></body></html>"
)
TOMCAT_500 = (
    '<!doctype html><html lang="en"><head><title>HTTP Status 500 \N{EN DASH} Internal Server Error</title></head><body>'
    "<h1>HTTP Status 500 \N{EN DASH} Internal Server Error</h1><p><b>Type</b> Exception Report</p>{}"
    "<p><b>Description</b> An unexpected condition.</p><p><b>Exception</b></p><pre>java.lang.X\n</pre>"
    "<p><b>Note</b> The full stack trace is in the server logs.</p><h3>Apache Tomcat/9.0.70</h3></body></html>"
)


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize(
    ("response", "expects", "doubted"),
    [
        (reply(200, json={}), "json", False),
        (reply(200, headers=PAGE), "json", True),
        (reply(200, headers=PAGE), "file", True),
        (reply(200, headers=PAGE), "any", False),
        (reply(200, headers=FILE), "file", False),
        (reply(200, headers=FILE), "json", True),
        (reply(500, headers=PAGE), "json", False),
        (reply(403), "json", False),
        (reply(404, headers=PAGE), "json", False),
        (reply(302, headers=ELSEWHERE), "json", True),
        (reply(302), "file", True),
        (reply(302), "any", False),
        (reply(302, headers=ELSEWHERE), "any", True),
        (reply(303, headers=ELSEWHERE), "any", False),
        (reply(303, headers=ELSEWHERE), "json", True),
        (reply(200, f"JSESSIONID={OTHER}; Path=/"), "json", True),
        (reply(200, f"JSESSIONID={OTHER}; Path=/"), "any", True),
        (reply(200, f'JSESSIONID="{OTHER}"'), "json", True),
        (reply(200, f"JSESSIONID={OTHER}", "JSESSIONID=00000000000000000000000000000000"), "json", False),
        (reply(200, f"XJSESSIONID={OTHER}", "a=JSESSIONID=b"), "json", False),
        (reply(200, "JSESSIONID=; Max-Age=0"), "json", False),
    ],
)
async def test_what_makes_a_session_doubtful(response, expects, doubted, alive):
    """Ask the server once, and trust its answer."""
    server = Counted()
    async with logging_in(server) as login:
        token = await login.token()
        assert token == "0" * 32
        if not alive:
            server.alive.clear()
        assert await login.check_lost(token, response, expects) is (doubted and not alive)
        offered = [OTHER] if OTHER in str(response.headers) and doubted else []  # perhaps it is a new ID of ours
        assert server.lines()[1:] == [f"GET /xapi/users/username {each}" for each in offered + [token] * doubted]
        await login.token()
    assert len(server.sessions) == (2 if doubted and not alive else 1)


async def test_a_401_needs_no_second_question():
    server = Counted()
    async with logging_in(server) as login:
        token = await login.token()
        assert await login.check_lost(token, reply(401), "json") is True
        assert len(server.requests) == 1
        assert await login.token() == server.sessions[1]
        assert await login.check_lost(token, reply(401), "json") is True, "a late reply to the one before"
        assert await login.token() == server.sessions[1]


@pytest.mark.parametrize("status", [403, 404])
async def test_what_is_missing_is_doubted_after_a_while(autojump_clock, status):
    server = Counted()
    async with logging_in(server) as login:
        token = await login.token()
        await trio.sleep(CONFIRMED_SECONDS + 1)
        for response in (reply(status), reply(status)):
            assert not await login.check_lost(token, response, "json")
        assert server.lines()[1:] == [f"GET /xapi/users/username {token}"]
        await trio.sleep(CONFIRMED_SECONDS + 1)
        assert not await login.check_lost(token, reply(500), "json")
        assert len(server.requests) == 2


async def test_the_name_is_believed_for_a_while(autojump_clock):
    """Trust the name for CONFIRMED_SECONDS, or for half the idle timeout of a session where that is less."""
    async with logging_in(RecordingServer()) as login:
        assert login.is_doubtful()
        await login.token()
        for seconds, doubtful in ((CONFIRMED_SECONDS, False), (0.1, True)):
            await trio.sleep(seconds)
            assert login.is_doubtful() is doubtful
        assert await login.verify_session(await login.token())
        login.record_reply(reply(200, expiring(60)))
        for seconds, doubtful in ((30, False), (0.1, True)):
            await trio.sleep(seconds)
            assert login.is_doubtful() is doubtful


async def test_a_foreign_cookie_that_meant_nothing_means_nothing_any_more():
    """Distrust pages still, and cookies again after a page that meant nothing."""
    server = Counted()
    foreign, page = reply(200, f"JSESSIONID={OTHER}"), reply(200, headers=PAGE)
    async with logging_in(server) as login:
        token = await login.token()
        for response, questions in ((page, 1), (foreign, 3), (foreign, 3), (page, 4)):
            assert not await login.check_lost(token, response, "json")
            assert len(server.requests) == 1 + questions


async def test_a_reply_under_a_new_id_is_no_loss_although_another_reply_has_dropped_the_former_id():
    """Behind a proxy that replaces IDs, the request took effect: a change must not be sent again."""
    server = Counted()
    async with logging_in(server) as login:
        token = await login.token()
        server.alive = {OTHER}
        assert await login.check_lost(token, reply(401), "json")
        assert not await login.check_lost(token, reply(200, f"JSESSIONID={OTHER}; Path=/"), "any")
        assert await login.token() == OTHER
    assert login.logins == 1


async def test_a_session_whose_id_changes_is_followed_and_shared(tmp_path):
    """Take a new ID only once the server has confirmed that IDs are replaced."""
    offered = OTHER

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, text=TOKEN)
        return httpx.Response(200, text="u", headers={"set-cookie": f"JSESSIONID={offered}; Path=/"})

    async with logging_in(answer, sessions=store(tmp_path)) as login:
        token = await login.token()
        assert await login.verify_session(token)
        assert (await login.token(), login.current) == (TOKEN, TOKEN)
        for lost in (
            lambda: login.check_lost(TOKEN, reply(200, f"JSESSIONID={OTHER}"), "any"),
            lambda: login.verify_session(OTHER),
        ):
            await lost()
            found = store(tmp_path).find()
            assert found is not None
            assert (await login.token(), found.token, login.current) == (offered, offered, "")
            assert login.is_new(offered, 0)
            async with login.turn():
                assert login._turn.locked()
            offered = "C" * 32


async def test_a_foreign_cookie_of_a_dead_session_goes_on_telling():
    server = Counted()
    async with logging_in(server) as login:
        for _ in range(2):
            token = await login.token()
            server.alive.clear()
            assert await login.check_lost(token, reply(200, f"JSESSIONID={OTHER}"), "json")
    assert len(server.sessions) == 2


@pytest.mark.parametrize(
    ("answers", "alive"),
    [
        ([httpx.Response(200, text="u")], True),
        ([httpx.Response(200, html="<html>")], False),
        ([httpx.Response(401)], False),
        ([httpx.Response(501)], False),
        ([httpx.Response(404), httpx.Response(200, text="User 'u' is logged in")], True),
        ([httpx.Response(404), httpx.Response(200, text="User 'guest' is logged in")], False),
        ([httpx.Response(404), httpx.Response(200, html="User 'u' is logged in")], False),
        ([httpx.Response(404), httpx.Response(403, text="User 'u' is logged in")], False),
    ],
)
async def test_who_is_told_a_name_is_alive(answers, alive):
    asked: list[tuple[str, str, str]] = []
    left: Iterator[httpx.Response] = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, text=TOKEN)
        asked.append((request.method, request.url.path, request.headers["cookie"]))
        return next(left)

    async with logging_in(answer) as login:
        token = await login.token()
        assert await login.verify_session(token) is alive
        assert (login._token == token) is alive
    paths = ["/site/xapi/users/username", "/site/data/auth"]
    assert asked == [("GET", path, f"JSESSIONID={TOKEN}") for path in paths[: len(answers)]]


# -- logging in --------------------------------------------------------------------------------------------------


async def test_without_a_password_there_is_no_login():
    async with logging_in(RecordingServer(), None) as login:
        assert login.username == ""
        with pytest.raises(LoginRequired, match=rf"^the session on {URL}/ has ended.*'xnatctl auth login'"):
            await login.token()


async def test_the_password_goes_to_the_server_as_it_is():
    requests = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(405) if request.method == "POST" else httpx.Response(200, text=f" {TOKEN};x\n")

    async with logging_in(answer, Credentials("u", "p:w")) as login:
        assert await login.token() == TOKEN
    basic = httpx.BasicAuth("u", "p:w")._auth_header
    assert [(r.method, r.url.path, r.headers["authorization"]) for r in requests] == [
        ("POST", "/site/data/JSESSION", basic),
        ("GET", "/site/data/JSESSION", basic),
    ]


@pytest.mark.parametrize(("form", "second"), [(401, "form"), (404, "basic"), (405, "basic")])
async def test_a_wrong_password_with_a_colon_costs_one_refusal_a_try_from_the_second_on(autojump_clock, form, second):
    """Servers lock accounts after so many refusals. Without a login form, each try is refused once, by Basic."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append("form" if request.url.path.endswith("/services/auth") else "basic")
        return httpx.Response(form if asked[-1] == "form" else 401)

    async with logging_in(answer, Credentials("u", "p:w")) as login:
        for _ in range(2):
            with pytest.raises(LoginRequired, match="refused the login of u: wrong user or password"):
                await login.token()
            await trio.sleep(REFUSED_SECONDS)
    refusals = [way for way in asked if way == "basic" or form == 401]
    assert refusals == (["basic", "form", "form"] if second == "form" else ["basic", "basic"])


async def test_a_refused_password_rests(autojump_clock, caplog):
    """Send the password once, so that the account is not locked; all waiting requests get the same error."""
    requests = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(401)

    async with logging_in(answer) as login:
        for pause, tries in ((0, 1), (REFUSED_SECONDS - 1, 1), (1, 2)):
            await trio.sleep(pause)
            with pytest.raises(LoginRequired, match=f"^{URL}/ refused the login of u: wrong user or password"):
                await login.token()
            assert len(requests) == tries
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


async def test_the_form_is_posted_and_a_fault_of_the_server_is_no_refusal():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path))
        return httpx.Response(500, text="out of memory") if request.url.path.endswith("auth") else httpx.Response(401)

    async with logging_in(answer, Credentials("u", "a:b")) as login:
        with pytest.raises(Unavailable):
            await login.token()
    assert asked == [("POST", "/site/data/JSESSION"), ("POST", "/site/data/services/auth")]


async def test_a_page_without_a_known_reason_sends_the_user_to_the_browser():
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("buildInfo"):
            return httpx.Response(200, json={"version": "1.8"})
        return httpx.Response(302, headers={"location": "https://xnat.example.org/page?secret#secret"})

    async with logging_in(answer) as login:
        with pytest.raises(LoginRequired) as raised:
            await login.token()
    where = "(302 Found to https://xnat.example.org/page)"
    why = "log in with a browser once; the password may have expired"
    assert str(raised.value) == f"{URL}/ answered the login of u with a page {where}: {why}"


async def test_a_refusal_is_stated_until_it_is_over_or_other_credentials_are_used(autojump_clock):
    def answer(request: httpx.Request) -> httpx.Response:
        right = request.headers.get("authorization") == httpx.BasicAuth("u", "q")._auth_header
        return httpx.Response(200, text=TOKEN) if right else httpx.Response(401)

    async with logging_in(answer) as login:
        await trio.sleep(REFUSED_SECONDS)
        assert login.refusal == ""
        with pytest.raises(LoginRequired) as refused:
            await login.token()
        for pause, text in ((REFUSED_SECONDS - 1, str(refused.value)), (1, "")):
            await trio.sleep(pause)
            assert login.refusal == text
        with pytest.raises(LoginRequired):
            await login.token()
        login.use(Credentials("u", "q"))
        assert login.refusal == ""
        assert await login.token() == TOKEN


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_busy_server_is_no_answer_to_a_password(status):
    async with logging_in(lambda request: httpx.Response(status)) as login:
        for _ in range(2):
            with pytest.raises(Unavailable, match=f"^{URL}/data/JSESSION answers {status} .*: try again later") as told:
                await login.token()
            assert told.value.asks_to_wait is (status == 429)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("headers", [{}, {"retry-after": "7"}])
async def test_a_busy_server_says_nothing_of_a_session(status, headers):
    """Keep the session."""
    server = Counted()

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=headers) if request.method == "GET" else server(request)

    async with logging_in(answer) as login:
        token = await login.token()
        with pytest.raises(Unavailable, match=f"^{URL}/xapi/users/username answers {status} ") as told:
            await login.verify_session(token)
        assert (told.value.status, told.value.url) == (status, f"{URL}/xapi/users/username")
        assert told.value.asks_to_wait is (status == 429 or bool(headers))
        assert login.current == token
        await login.close()
        assert login.current == ""


async def test_of_an_answer_only_the_beginning_is_read(tmp_path):
    """Read the beginning whatever the encoding, and release the connection, also in a cancelled task."""

    class Endless(httpx.AsyncByteStream):
        sent = closed = 0

        def __aiter__(self) -> "Endless":
            return self

        async def __anext__(self) -> bytes:
            Endless.sent += 1
            await trio.lowlevel.checkpoint()
            return b"<h3>" if Endless.sent == 1 else b"x" * 1000

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()
            Endless.closed += 1

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Endless())

    async with logging_in(answer) as login:
        with pytest.raises(NotXnat):
            await login.token()
        assert Endless.sent <= 2 * (MAX_PAGE_BYTES // 1000 + 3)
        assert Endless.closed == 2
        with trio.move_on_after(0):
            await login.token()
        assert Endless.closed == 2
        with trio.CancelScope() as scope:
            Endless.sent = 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(login.token)
                while Endless.sent < 3:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert Endless.closed == 3


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (httpx.Response(200, json={"version": "1"}), LoginRequired, r"the login of u with a page \(Expired\): "),
        (httpx.Response(200, json={"name": "x"}), NotXnat, "is not an XNAT: it answers 200"),
        (httpx.Response(200, html="version"), NotXnat, "is not an XNAT"),
        (httpx.Response(404, text="version"), NotXnat, "is not an XNAT"),
        (httpx.Response(404, headers={"server": "nginx"}), NotXnat, "is not an XNAT"),
        (httpx.Response(404, headers={"server": "Noelios-Restlet-Engine/1.1.6"}), LoginRequired, "Expired"),
    ],
)
async def test_a_page_means_what_the_server_is(build, error, text):
    paths = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(f"{request.method} {request.url.path}")
        return build if request.method == "GET" else httpx.Response(200, html="<h3>Expired</h3>")

    async with logging_in(answer) as login:
        with pytest.raises(error, match=text):
            await login.token()
    older = ["GET /site/data/auth"] if build.status_code == 404 else []
    assert paths == ["POST /site/data/JSESSION", "GET /site/xapi/siteConfig/buildInfo", *older]


@pytest.mark.parametrize(
    ("response", "error", "text"),
    [
        (httpx.Response(200, text="short"), LoginRequired, r"\(short\)"),
        (
            httpx.Response(200, content=b"<h3>abgelaufen \xfc</h3>"),
            LoginRequired,
            "\\(abgelaufen \N{REPLACEMENT CHARACTER}\\)",
        ),
        (httpx.Response(200, text=f"{TOKEN} and more"), LoginRequired, r"\(A+ and more\)"),
        (httpx.Response(418), LoginRequired, r"\(418 I'm a teapot\)"),
        (httpx.Response(201, text=TOKEN), LoginRequired, r"\(A+\)"),
    ],
)
async def test_no_session_from_an_xnat_is_a_matter_of_logging_in(response, error, text):
    def answer(request: httpx.Request) -> httpx.Response:
        return response if request.method == "POST" else httpx.Response(200, json={"version": "1"})

    async with logging_in(answer) as login:
        with pytest.raises(error, match=text):
            await login.token()


async def test_no_cookie_is_sent_that_a_reply_has_set():
    """Drop even cookies that no header can hold: a login is made by the password alone."""
    said = [httpx.Response(405, headers=[(b"set-cookie", b"\x80"), (b"set-cookie", b"JSESSIONID=of-a-guest")])]
    cookies = []

    def answer(request: httpx.Request) -> httpx.Response:
        cookies.append(request.headers.get("cookie"))
        return said.pop() if said else httpx.Response(200, text=TOKEN)

    async with open_xnat(Config(URL), ACCOUNT, Wire(answer)) as xnat:
        assert await xnat.login.token() == TOKEN
    assert cookies == [None, None, f"JSESSIONID={TOKEN}"]


def filled_in(request: httpx.Request) -> str:
    """Return how a login is offered: the header, or the form."""
    return "Basic" if "authorization" in request.headers else request.content.decode()


FORM = "username=u&password=p"
REFUSED_TWICE = httpx.Response(500, html="<h3>Bad credentials</h3>")  # as releases before 1.7 have it


@pytest.mark.parametrize(
    ("credentials", "answers", "offered", "said"),
    [
        (Credentials("u", "p"), [httpx.Response(401)], ["Basic"], "wrong user or password, a locked account, or"),
        (
            Credentials("u", "p:w"),
            [httpx.Response(401), httpx.Response(200, text=TOKEN)],
            ["Basic", "username=u&password=p%3Aw"],
            "",
        ),
        (
            Credentials("u", "p:ü"),
            [httpx.Response(401), REFUSED_TWICE],
            ["Basic", "username=u&password=p%3A%C3%BC"],
            "wrong user",
        ),
        (
            Credentials("u", "p", provider="ldap"),
            [httpx.Response(200, text=TOKEN)],
            [f"{FORM}&provider=ldap&authenticatorId=ldap"],
            "",
        ),
        (
            Credentials("u", "p", provider="ldap"),
            [httpx.Response(400), httpx.Response(200, headers={"set-cookie": f"JSESSIONID={TOKEN}"})],
            [f"{FORM}&provider=ldap&authenticatorId=ldap", f"{FORM}&provider=ldap"],
            "",
        ),
        (
            Credentials("u", "p", provider="ldap"),
            [httpx.Response(400), httpx.Response(400, html="<h3>Multiple providers</h3>")],
            [f"{FORM}&provider=ldap&authenticatorId=ldap", f"{FORM}&provider=ldap"],
            r"takes no login by 'ldap', which is `provider` in the profile \(Multiple providers\)",
        ),
        (
            Credentials("u", "p", provider="ldap"),
            [httpx.Response(401)],
            [f"{FORM}&provider=ldap&authenticatorId=ldap"],
            "no login method 'ldap'",
        ),
        (
            Credentials("alias", "p", "token", "jane"),
            [httpx.Response(401)],
            ["Basic"],
            "the alias token of jane, which",
        ),
    ],
)
async def test_how_a_login_is_offered(credentials, answers, offered, said):
    """Try once, and use the form where Basic cannot express the password."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        response: httpx.Response = answers[len(requests) - 1]
        return response

    async with logging_in(answer, credentials) as login:
        assert login.username == credentials.user
        if said:
            with pytest.raises(LoginRequired, match=said):
                await login.token()
        else:
            assert await login.token() == TOKEN
    assert [filled_in(request) for request in requests] == offered
    assert {request.url.path for request in requests[-1:]} == {
        "/site/data/JSESSION" if offered[-1] == "Basic" else "/site/data/services/auth"
    }


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ((302, "https://e.org/app/template/XDATScreen_UpdateUser.vm", ""), "the password has expired.*'xnatctl auth"),
        ((302, "/app/template/ChangePassword.vm", ""), "the password has expired"),
        ((403, "", "<b>Message</b> Your password has expired. Please try again</p>"), "the password has expired"),
        ((302, "/app/template/InactiveAccount.vm", ""), "the account is disabled"),
        ((302, "/app/template/VerifyEmail.vm", ""), "e-mail address is not verified"),
        (
            (403, "", "<p><b>Message</b> Your security token has expired or is invalid.</p>"),
            "the alias token has ended",
        ),
        ((200, "", "<title>Two-Factor Authentication</title>"), "a second factor.*Manage Alias Tokens"),
        ((403, "", "<h3>Site has not yet been configured.</h3>"), "has not been set up"),
    ],
)
async def test_what_stands_in_the_way_of_a_login_is_told_from_a_wrong_password(response, text):
    status, location, body = response
    requests = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(status, headers={"location": location} if location else {}, html=body)

    async with logging_in(answer) as login:
        with pytest.raises(LoginRequired, match=rf"^{URL}/ answered the login of u with a page \([^)]+\): .*{text}"):
            await login.token()
        with pytest.raises(LoginRequired, match=text):  # and is not asked again at once
            await login.token()
    assert len(requests) == 1


async def test_a_session_that_has_ended_is_logged_once_until_another_is_there(tmp_path, caplog):
    server, kept = Counted(), store(tmp_path)
    async with logging_in(server, None, sessions=kept) as login:
        for times in (1, 2):
            for _ in range(3):
                with pytest.raises(LoginRequired):
                    await login.token()
            assert [record.levelname for record in caplog.records] == ["WARNING"] * times
            assert "'xnatctl auth login'" in caplog.records[-1].message
            token = str(times) * 32
            server.alive.add(token)
            kept.save(token, IDLE_SESSION_SECONDS)
            assert await login.token() == token
            server.alive.clear()
            await login.check_lost(token, reply(401), "json")


async def test_a_session_is_kept_under_the_name_that_logged_in(tmp_path):
    """Save the session under that name also where none was configured before."""
    async with logging_in(Counted(), ACCOUNT, store(tmp_path, "")) as login:
        token = await login.token()
    found = store(tmp_path).find()
    assert found is not None
    assert (found.token, found.username) == (token, "u")


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("https://e.org/x?token=1?", f"{URL}/ redirects to https://e.org/x:"),
        (None, f"{URL}/ redirects to another address:"),
    ],
)
async def test_a_redirect_names_the_other_address(location, text):
    headers = {"location": location} if location else {}
    async with logging_in(lambda request: httpx.Response(301, headers=headers)) as login:
        with pytest.raises(NotXnat, match=text):
            await login.token()


# -- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<html><H3 class='x'>No <b>such</b>\n &lt;thing&gt; </h3><h3>other</h3>", "No such <thing>"),
        ("<html>nothing", ""),
        ("plain  words \n second line", "plain words"),
        ("\n\n later \n", "later"),
        ("", ""),
        ("<h3>" + "x" * 300 + "</h3>", "x" * 200),
        ("x" * 300, "x" * 200),
        ("<h3>a</h3>", "a"),
        ("<h3>a</H3>", "a"),
        ("<h3>a", ""),
        ("<h3 a='x'>" + " " * (MAX_MESSAGE_LENGTH - 14) + "a</h3>", "a"),
        ("<h3 a='x'>" + " " * (MAX_MESSAGE_LENGTH - 10) + "a</h3>", ""),
        (TOMCAT.format(message="<p><b>Message</b> Login &#47; failed.</p>"), "Login / failed."),
        (TOMCAT.format(message="<p><b>message</b> <u>Login failed.</u></p>"), "Login failed."),
        (TOMCAT.format(message="<p><b>Message</b></p>"), "Long."),
        (TOMCAT.format(message=""), "Long."),
        (TOMCAT.format(message="<p><b>Message</b> " + "very " * 1000 + "long</p>"), ("very " * 40)[:-1] + " "),
        (TOMCAT_7.format("HTTP Status 500 - Out of space", "Exception report", "Out of space"), "Out of space"),
        (TOMCAT_7.format("HTTP Status 500 - ", "Exception report", ""), "An internal error."),
        (TOMCAT_500.format("<p><b>Message</b> Handler dispatch failed</p>"), "Handler dispatch failed"),
        (TOMCAT_500.format(""), "An unexpected condition."),
        ("<html><head><title>Apache Tomcat/7.0.76 - Error report</title></head><h3>Apache Tomcat/7.0.76</h3>", ""),
        (
            "<head><title>502 Bad Gateway</title></head><center><h1>502 Bad Gateway</h1></center>nginx",
            "502 Bad Gateway",
        ),
        ("<html><head>\n<title>403 Forbidden</title>\n</head><h1>Forbidden</h1><p>You don't</p>", "403 Forbidden"),
        ("<b>message</b" * 10_000, ""),
    ],
)
def test_what_a_page_says(text, said):
    assert page_message(text) == said


def test_a_page_is_no_data():
    check_is_data(reply(200, json={}), "json")
    check_is_data(reply(200, headers=FILE), "file")
    report = "resources/7/files/a/Report.HTML"
    check_is_data(reply(200, headers=OLD_FILE, path=report), "file")
    check_is_data(reply(200, headers=OLD_FILE, path="resources/7/files/report.htm"), "file")
    for name in OLD_FILE.keys() - PAGE.keys():
        less = {key: value for key, value in OLD_FILE.items() if key != name}
        with pytest.raises(BadReply):
            check_is_data(reply(200, headers=less, path=report), "file")
    with pytest.raises(BadReply):  # the page of a proxy, which may have a date, too
        check_is_data(reply(200, headers=OLD_FILE, path="resources/7/files/1.dcm"), "file")
    with pytest.raises(BadReply):
        check_is_data(reply(200, headers=OLD_FILE, path=report), "json")
    with pytest.raises(BadReply, match="^/site/data/projects came as a web page"):
        check_is_data(reply(200, headers=PAGE), "file")
