"""Test the fault server itself: each fault as a plain client sees it on the wire."""

import base64
import gzip
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime

import httpx
import pytest

from tests.faults import Faulty, Met, faulty
from tests.faults.answers import FRESH, OTHER
from tests.faults.certificates import expired_certificate, made_certificate
from tests.faults.stage import BIG, EXPERIMENT, PASSWORD, SMALL, USER, file_path, stage_archive
from tests.support.changing import images, zip_of
from tests.support.mounting import SCRIPTS, environment, run
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.socket import serve

PROJECTS = "/data/projects?format=json"
TEXTS = f"/data/experiments/{EXPERIMENT}/resources/TEXT/files"


@dataclass
class Demo:
    url: str
    app: DemoXnat


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    app = DemoXnat(stage_archive())
    with serve(app) as url:
        yield Demo(url, app)


@pytest.fixture(scope="module")
def server(demo: Demo) -> Iterator[Faulty]:
    with faulty(demo.url) as server:
        yield server


@pytest.fixture
def content(demo: Demo) -> tuple[str, bytes]:
    """Return the path and the bytes of a file."""
    return file_path(demo.app.archive, "small.bin"), SMALL


@dataclass
class Got:
    """An answer, as far as it came: `error` tells how it ended."""

    status: int = 0
    headers: dict[str, str] | None = None
    body: bytes = b""
    error: str = ""
    seconds: float = 0.0

    def header(self, name: str) -> str:
        return (self.headers or {}).get(name, "")


def get(
    server: Faulty, path: str, *, method: str = "GET", body: bytes | None = None, patience: float = 20.0, **headers: str
) -> Got:
    """Send one request on a connection of its own; a silence of so long ends it."""
    got, came, began = Got(), bytearray(), time.monotonic()
    named = {"Authorization": "Basic " + _basic(), **{key.replace("_", "-"): value for key, value in headers.items()}}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=patience)
    try:
        connection.request(method, path, body, named)
        response = connection.getresponse()
        got.status = response.status
        got.headers = {key.lower(): value for key, value in response.getheaders()}
        while piece := response.read1(65536):
            came += piece
            if len(came) > 3_000_000:
                raise OverflowError
    except http.client.IncompleteRead as error:
        came += error.partial
        got.error = "IncompleteRead"
    except (OSError, http.client.HTTPException, OverflowError) as error:
        got.error = type(error).__name__
    finally:
        connection.close()
    if not got.error and method != "HEAD" and len(came) < int(got.header("content-length") or 0):
        got.error = "short"
    got.body, got.seconds = bytes(came), time.monotonic() - began
    return got


def _basic() -> str:
    return base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@contextmanager
def scripted(server: Faulty, steps: str) -> Iterator[Faulty]:
    server.script(steps)
    server.forget()
    yield server
    server.script(())


def faults(server: Faulty) -> list[str]:
    return [met.fault for met in server.met]


# -- nothing in the script: a proxy like any other -------------------------------------------------------------------


def test_with_an_empty_script_everything_passes(server, demo, content):
    path, body = content
    with scripted(server, ""):
        whole = get(server, path)
        part = get(server, path, Range="bytes=1000-1999")
        head = get(server, path, method="HEAD")
        rows = get(server, PROJECTS)
        lost = get(server, "/data/projects/NOTHING?format=json")
    assert (whole.status, whole.body == body, whole.error) == (200, True, "")
    assert (part.status, part.body) == (206, body[1000:2000])
    assert part.header("content-range") == f"bytes 1000-1999/{len(body)}"
    assert (head.status, head.header("content-length"), head.body) == (200, str(len(body)), b"")
    assert "P" in {row["ID"] for row in json.loads(rows.body)["ResultSet"]["Result"]}
    assert lost.status == 404
    assert [(a.method, a.path, a.status) for a in server.asked] == [
        ("GET", path, 200),
        ("GET", path, 206),
        ("HEAD", path, 200),
        ("GET", PROJECTS, 200),
        ("GET", "/data/projects/NOTHING?format=json", 404),
    ]
    assert server.met == []


def test_a_connection_serves_many_requests_and_bodies_go_both_ways(server):
    text = b"what is sent " * 10_000
    archive = zip_of(images("1.2.3"))

    def pieces() -> Iterator[bytes]:
        yield archive[:1000]
        yield archive[1000:]

    with scripted(server, ""), httpx.Client(base_url=server.url, auth=(USER, PASSWORD)) as client:
        expecting = {"Expect": "100-continue"}
        assert client.put(f"{TEXTS}/a.txt?inbody=true", content=text, headers=expecting).status_code == 200
        assert client.get(f"{TEXTS}/a.txt").content == text
        query = "inbody=true&dest=/prearchive/projects/P&project=P&subject=S&session=IN_CHUNKS"
        done = client.post(
            f"/data/services/import?{query}", content=pieces(), headers={"Content-Type": "application/zip"}
        )
        assert (done.status_code, "IN_CHUNKS" in done.text) == (200, True)


def test_curl_and_xnatctl_are_served_over_tls(tmp_path):
    certificate = made_certificate(tmp_path)
    app = DemoXnat(stage_archive())
    with serve(app) as url, faulty(url, certificate=certificate) as server:
        where = f"{server.url}/data/projects?format=json"
        done = run("curl", "--silent", "--fail", "--cacert", certificate[0], "--user", f"{USER}:{PASSWORD}", where)
        assert "PUBLIC" in done.stdout
        env = environment(tmp_path, XNAT_URL=server.url, XNAT_USER=USER, XNAT_PASS=PASSWORD)
        (tmp_path / ".config" / "xnatctl").mkdir(parents=True)
        profiles = tmp_path / ".config" / "xnatctl" / "config.yaml"
        profiles.write_text(f"profiles:\n  here:\n    url: {server.url}\n    ca_bundle: {certificate[0]}\n")
        assert "PUBLIC" in run(SCRIPTS / "xnatctl", "project", "list", "-q", env=env).stdout


def test_a_certificate_whose_time_is_over_is_one(demo, tmp_path):
    certificate = expired_certificate(tmp_path)
    with faulty(demo.url, certificate=certificate) as server:
        context = ssl.create_default_context(cafile=str(certificate[0]))
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
                context.wrap_socket(plain, server_hostname="127.0.0.1")


# -- the script ------------------------------------------------------------------------------------------------------


def test_a_step_comes_about_as_often_as_it_says(server):
    steps = "[{match: GET /data/projects, fault: status, status: 503, skip: 1, times: 2}]"
    with scripted(server, steps):
        assert [get(server, PROJECTS).status for _ in range(5)] == [200, 503, 503, 200, 200]
        assert get(server, "/data/version").status != 503
    assert server.met == [Met("status", "GET", PROJECTS)] * 2


def test_chance_is_the_same_each_time(demo):
    steps = "[{fault: status, status: 500, chance: 0.3}]"

    def drawn(seed: int) -> list[int]:
        with faulty(demo.url, steps, seed=seed) as server:
            return [get(server, PROJECTS).status for _ in range(20)]

    assert drawn(1) == drawn(1)
    assert {*drawn(1)} == {200, 500}


def test_a_step_that_is_none_is_refused(server):
    for steps in ("[{fault: explode}]", "[{fault: cut, afterr: 1}]", "[{match: '(', fault: cut}]"):
        with pytest.raises(Exception, match=r"is no fault|has no|unterminated"):
            server.script(steps)


def test_under_load_only(demo):
    """Count the requests under way."""
    steps = """
    - {match: GET /data/projects, fault: stall, after: -1}
    - {match: GET /data/version, fault: status, status: 401, in_flight: 1}
    """
    with faulty(demo.url, steps) as server:
        waiting = threading.Thread(target=get, args=(server, PROJECTS))
        waiting.start()
        while not server.met:
            time.sleep(0.001)
        assert get(server, "/data/version").status == 401
        server.stop()
        waiting.join()
        server.start()
        while server.in_flight:
            time.sleep(0.001)
        assert get(server, "/data/version").status != 401
        assert faults(server) == ["stall", "status"]


# -- answers in the server's place -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [302, 401, 403, 404, 409, 429, 500, 502, 503, 504])
def test_a_status(server, status):
    with scripted(server, f"[{{fault: status, status: {status}, retry_after: 7, reason: Because, body: words}}]"):
        got = get(server, PROJECTS)
    assert (got.status, got.body, got.header("retry-after"), got.error) == (status, b"words", "7", "")
    assert faults(server) == ["status"]


def test_pages_and_lists_that_are_none(server):
    expected = {
        "html": (200, "text/html", "It works"),
        "login-page": (200, "text/html", "login_form"),
        "redirect": (302, "text/html", ""),
        "wrong-json": (200, "application/json", '{"ResultSet"'),
    }
    for fault, (status, kind, words) in expected.items():
        with scripted(server, f"[{{fault: {fault}}}]"):
            got = get(server, PROJECTS)
        assert (got.status, got.header("content-type").partition(";")[0]) == (status, kind)
        assert words in got.body.decode()
        assert faults(server) == [fault]
        if fault == "redirect":
            assert got.header("location") == "/app/template/Login.vm"
        if fault in ("redirect", "login-page"):
            assert "JSESSIONID=" in got.header("set-cookie")
        if fault == "wrong-json":
            with pytest.raises(ValueError, match="Unterminated"):
                json.loads(got.body)


def test_a_huge_list_is_a_list(server):
    with scripted(server, "[{fault: huge-json, length: 2000000}]"):
        got = get(server, PROJECTS)
    assert len(got.body) > 2_000_000
    assert len(json.loads(got.body)["ResultSet"]["Result"]) > 8000
    assert faults(server) == ["huge-json"]


def test_a_guest_is_answered(demo, server):
    demo.app.site.require_login = False
    try:
        with scripted(server, "[{fault: guest}]"):
            got = get(server, PROJECTS)
    finally:
        demo.app.site.require_login = True
    listed = {row["ID"] for row in json.loads(got.body)["ResultSet"]["Result"]}
    assert "PUBLIC" in listed
    assert "P" not in listed
    assert faults(server) == ["guest"]


def test_what_is_refused_may_have_been_carried_out(server, demo):
    where = TEXTS + "/carried-{}.txt?inbody=true"
    for carried in (True, False):
        steps = f"[{{match: PUT, fault: status, status: 504, carried_out: {str(carried).lower()}}}]"
        with scripted(server, steps):
            assert get(server, where.format(carried), method="PUT", body=b"text").status == 504
        stored = get(server, where.format(carried).partition("?")[0])
        assert (stored.status == 200) == carried
    with scripted(server, "[{match: PUT, fault: reset, after: -1}]"):
        assert get(server, where.format("reset"), method="PUT", body=b"text").error
    assert get(server, where.format("reset").partition("?")[0]).body == b"text"


# -- bodies that end otherwise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["reset", "cut", "cut-chunked", "cut-unframed", "short-length", "short-chunked", "stall"]
)
def test_so_many_bytes_and_no_more(server, content, fault):
    path, body = content
    with scripted(server, f"[{{fault: {fault}, after: 100001}}]"):
        got = get(server, path, patience=0.3 if fault == "stall" else 20)
    # A reset may overtake what was sent before it.
    assert body.startswith(got.body)
    assert len(got.body) <= 100_001
    assert faults(server) == [fault]
    noticed = {
        "reset": {"ConnectionResetError"},
        "cut": {"IncompleteRead", "short"},
        "cut-chunked": {"IncompleteRead"},
        "cut-unframed": {""},
        "short-length": {""},
        "short-chunked": {""},
        "stall": {"TimeoutError"},
    }
    assert got.error in noticed[fault]
    if fault != "reset":
        assert len(got.body) == 100_001


def test_nothing_at_all_is_said(server):
    for fault, error in (("reset", "ConnectionResetError"), ("stall", "TimeoutError"), ("cut", "RemoteDisconnected")):
        with scripted(server, f"[{{fault: {fault}, after: -1}}]"):
            got = get(server, PROJECTS, patience=0.3 if fault == "stall" else 20)
        assert (got.status, got.error) == (0, error)
        assert faults(server) == [fault]
        assert [asked.status for asked in server.asked] == [0]


def test_a_stall_may_have_an_end(server, content):
    path, body = content
    with scripted(server, "[{fault: stall, after: 1000, seconds: 0.2}]"):
        got = get(server, path)
    assert (got.body == body, got.error) == (True, "")
    assert got.seconds >= 0.2
    assert faults(server) == ["stall"]


def test_a_fault_behind_the_end_is_not_met(server):
    for fault in ("cut", "reset", "stall", "drip", "short-length"):
        with scripted(server, f"[{{fault: {fault}, after: 100000000}}]"):
            assert b"PUBLIC" in get(server, PROJECTS).body
        assert faults(server) == []


def test_bytes_that_drip(server, content):
    path, body = content
    with scripted(server, f"[{{fault: drip, after: {len(body) - 400}, rate: 2000}}]"):
        got = get(server, path)
    assert (got.body == body, got.error) == (True, "")
    assert got.seconds >= 0.2
    assert faults(server) == ["drip"]


def test_an_answer_that_is_slow(server):
    with scripted(server, "[{fault: slow, seconds: 0.2}]"):
        got = get(server, PROJECTS)
    assert got.status == 200
    assert got.seconds >= 0.2
    assert faults(server) == ["slow"]


def test_a_body_without_end(server, content):
    path, body = content
    with scripted(server, "[{fault: endless, rate: 0}]"):
        got = get(server, path)
    assert got.error == "OverflowError"
    assert got.body.startswith(body)
    assert faults(server) == ["endless"]


def test_an_upload_that_breaks_off_in_the_middle(server):
    where = TEXTS + "/never.bin?inbody=true"
    body = bytes(8_000_000)
    for fault in ("reset", "stall", "cut"):
        with scripted(server, f"[{{match: PUT, fault: {fault}, received: 100000}}]"):
            assert get(server, where, method="PUT", body=body, patience=0.3 if fault == "stall" else 20).error
        assert faults(server) == [fault]
    assert get(server, where.partition("?")[0]).status == 404


# -- bytes that are others -------------------------------------------------------------------------------------------


def test_a_byte_is_another_wherever_an_answer_begins(server, content):
    path, body = content
    spoilt = body[:5000] + bytes([body[5000] ^ 0xFF]) + body[5001:]
    with scripted(server, "[{fault: corrupt, at: 5000}]"):
        assert get(server, path).body == spoilt
        assert get(server, path, Range="bytes=4990-5009").body == spoilt[4990:5010]
        assert get(server, path, Range="bytes=6000-6009").body == body[6000:6010]
    assert faults(server) == ["corrupt"] * 2


def test_another_content_under_the_same_name(server, content):
    path, body = content
    with scripted(server, ""):
        before = get(server, path, Range="bytes=0-99")
    with scripted(server, "[{fault: changed}]"):
        whole, part = get(server, path), get(server, path, Range="bytes=100-199")
    assert len(whole.body) == len(body)
    assert whole.body[:100] != body[:100]
    assert part.body == whole.body[100:200]
    assert whole.header("last-modified") != before.header("last-modified")
    assert faults(server) == ["changed"] * 2


@pytest.mark.parametrize("by", [1000, -1000])
def test_another_size_under_the_same_name(server, content, by):
    path, body = content
    other = body.translate(OTHER)
    changed = other + bytes(by) if by > 0 else other[:by]
    with scripted(server, f"[{{fault: resized, by: {by}}}]"):
        whole, head = get(server, path), get(server, path, method="HEAD")
        part = get(server, path, Range=f"bytes=1000-{len(changed) - 1}")
    assert whole.body == changed
    assert head.header("content-length") == str(len(changed))
    assert (part.status, part.body == changed[1000:]) == (206, True)
    assert part.header("content-range") == f"bytes 1000-{len(changed) - 1}/{len(changed)}"
    assert faults(server) == ["resized"] * 3


def test_an_encoding_nobody_asked_for(server):
    with scripted(server, "[{fault: gzip}]"):
        got = get(server, PROJECTS, Accept_Encoding="identity")
    assert got.header("content-encoding") == "gzip"
    assert b"PUBLIC" in gzip.decompress(got.body)
    assert faults(server) == ["gzip"]


def test_a_clock_that_is_wrong(server, content):
    path, body = content
    with scripted(server, ""):
        right = get(server, path, Range="bytes=0-9")
    with scripted(server, "[{fault: clock, by: 86400}]"):
        wrong = get(server, path, Range="bytes=0-9")
    for name in ("date", "last-modified"):
        ahead = parsedate_to_datetime(wrong.header(name)) - parsedate_to_datetime(right.header(name))
        assert 86400 <= ahead.total_seconds() < 86460
    assert wrong.body == body[:10]
    assert faults(server) == ["clock"]


def test_ranges_that_are_not_what_was_asked_for(server, content):
    path, body = content
    asked = "bytes=100000-100999"
    with scripted(server, "[{fault: range-ignored}]"):
        got = get(server, path, Range=asked)
        assert (got.status, got.body == body) == (200, True)
    assert faults(server) == ["range-ignored"]
    with scripted(server, "[{fault: range-wrong, by: 10}]"):
        got = get(server, path, Range=asked)
        assert got.header("content-range") == f"bytes 100010-101009/{len(body)}"
        assert got.body == body[100010:101010]
    assert faults(server) == ["range-wrong"]
    with scripted(server, "[{fault: range-shifted, by: 10}]"):
        got = get(server, path, Range=asked)
        assert got.header("content-range") == f"bytes 100000-100999/{len(body)}"
        assert got.body[:990] == body[100010:101000]
    assert faults(server) == ["range-shifted"]
    with scripted(server, "[{fault: range-unclamped, by: 10}]"):
        got = get(server, path, Range=asked)
        assert got.header("content-range") == f"bytes 100000-101009/{len(body)}"
        assert (got.header("content-length"), got.body, bool(got.error)) == ("1010", body[100000:101000], True)
    assert faults(server) == ["range-unclamped"]
    for fault in ("range-ignored", "range-wrong", "range-shifted", "range-unclamped"):
        with scripted(server, f"[{{fault: {fault}}}]"):
            assert get(server, path).body == body
        assert faults(server) == []


def test_ranges_as_real_servers_grant_them(server, content):
    path, body = content
    last = len(body) - 1
    for fault, says, sent, length in (
        ("range-empty", f"bytes {len(body)}-{last}/{len(body)}", b"", "0"),
        ("range-beyond, by: 6", "bytes 100000-100999/6", b"", "1000"),
        ("range-negative", f"bytes {100000 - len(body)}-100999/{len(body)}", body[100000:101000], "1000"),
    ):
        with scripted(server, f"[{{fault: {fault}}}]"):
            got = get(server, path, Range="bytes=100000-100999")
        assert (got.status, got.header("content-range"), got.body) == (206, says, sent)
        assert (got.header("content-length"), bool(got.error)) == (length, len(sent) != int(length))
        assert faults(server) == [fault.partition(",")[0]]
    with scripted(server, "[{fault: range-500}]"):
        got = get(server, path, Range="bytes=100000-100999")
        assert (got.status, got.body, got.error) == (500, body, "")
        assert get(server, path).status == 200
    assert faults(server) == ["range-500"]
    assert bytes(server.altered[0].body) == body


@pytest.mark.parametrize("fault", ["unframed", "rechunked"])
def test_a_whole_answer_of_no_stated_length(server, content, fault):
    path, body = content
    with scripted(server, f"[{{fault: {fault}}}]"):
        got = get(server, path)
    assert (got.status, got.body, got.error, got.header("content-length")) == (200, body, "", "")
    assert got.header("transfer-encoding") == ("chunked" if fault == "rechunked" else "")
    assert faults(server) == [fault]


def test_another_content_that_no_date_tells(server, content):
    path, body = content
    fresh = formatdate(FRESH, usegmt=True)
    for dates, stated in (("fresh", fresh), ("absent", "")):
        with scripted(server, f"[{{fault: changed, dates: {dates}}}]"):
            got = get(server, path)
            part = get(server, path, Range="bytes=1000-1999")
        assert (got.body, got.header("last-modified")) == (body.translate(OTHER), stated)
        assert (got.header("date") == stated) == (dates == "fresh")
        assert [(sent.start, bytes(sent.body)) for sent in server.altered] == [(0, got.body), (1000, part.body)]
    with scripted(server, "[{fault: cut, after: 1000, dates: absent}]"):
        got = get(server, path)
    assert (got.body, got.header("last-modified")) == (body[:1000], "")


# -- outages ---------------------------------------------------------------------------------------------------------


def test_nobody_listens_while_the_server_is_stopped(demo):
    with faulty(demo.url) as server:
        with socket.create_connection(("127.0.0.1", server.port), 5) as before:
            before.sendall(b"GET /data/version HTTP/1.1\r\n\r\n")
            assert before.recv(1) == b"H"  # it is served
            server.stop()
            while before.recv(1000):
                """What was sent already."""
        assert get(server, PROJECTS).error == "ConnectionRefusedError"
        server.start()
        assert get(server, PROJECTS).status == 200


def test_a_server_that_was_stopped_has_lost_its_sessions(demo):
    with faulty(demo.url) as server, httpx.Client(base_url=server.url) as client:
        token = client.post("/data/JSESSION", auth=(USER, PASSWORD)).text
        cookie = {"Cookie": f"JSESSIONID={token}"}
        client.cookies.clear()
        assert client.get("/data/projects", headers=cookie).status_code == 200
        server.stop(keep_sessions=True)
        server.start()
        client.cookies.clear()
        assert client.get("/data/projects", headers=cookie).status_code == 200
        server.stop()
        server.start()
        client.cookies.clear()
        assert client.get("/data/projects", headers=cookie).status_code == 401


def test_a_step_restarts_it(demo):
    with faulty(demo.url, "[{match: GET, fault: restart, seconds: 0.1, times: 1}]") as server:
        got = get(server, PROJECTS)
        assert (got.status, bool(got.error)) == (0, True)
        while get(server, PROJECTS).error:
            time.sleep(0.01)
        assert get(server, PROJECTS).status == 200
        assert faults(server) == ["restart"]


def test_a_step_has_connections_refused(demo):
    with faulty(demo.url, "[{match: GET, fault: refuse, times: 1}]") as server:
        assert get(server, PROJECTS).error == "ConnectionResetError"
        assert get(server, PROJECTS).error == "ConnectionRefusedError"
        server.start()
        assert get(server, PROJECTS).status == 200
        assert faults(server) == ["refuse"]
    with faulty(demo.url, "[{match: GET, fault: refuse, seconds: 0.1, times: 1}]") as server:
        assert get(server, PROJECTS).error == "ConnectionResetError"
        while get(server, PROJECTS).error:
            time.sleep(0.01)


def _all_that_comes(link: socket.socket) -> int:
    """Count the bytes that arrive before the connection is silent."""
    came = 0
    try:
        while piece := link.recv(1_000_000):
            came += len(piece)
    except TimeoutError:
        return came
    raise AssertionError("it was closed")


def test_a_frozen_server_takes_connections_and_says_nothing(demo):
    path, body = file_path(demo.app.archive, "big.bin"), BIG
    with faulty(demo.url) as server, socket.socket() as running:
        running.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # little is on the way when it freezes
        running.settimeout(20)
        running.connect(("127.0.0.1", server.port))
        running.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {_basic()}\r\n\r\n".encode())
        running.recv(1)
        server.freeze()
        assert get(server, PROJECTS, patience=0.2).error == "TimeoutError"
        running.settimeout(0.5)
        came = _all_that_comes(running)
        assert came < len(body)  # what was on the way arrived, and no more
        server.thaw()
        running.settimeout(20)
        while came < len(body):
            came += len(running.recv(1_000_000))
        assert get(server, PROJECTS).status == 200
