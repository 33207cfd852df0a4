"""Test the demo on a socket: the wire carries valid HTTP, whatever is requested."""

import http.client
import socket
from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest

from xnatfs.demo.archive.model import Archive, Resource, User
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.socket import serve

LOGIN = {"Authorization": "Basic " + b64encode(b"u:p").decode()}
SIZE = 1000


@pytest.fixture(scope="module")
def archive() -> Archive:
    made = Archive()
    made.users["u"] = User("u", "p")
    project = made.project("P", "P", u="Owners")
    resource = made.resource(project.resources, "R")
    made.file(resource, "plain.txt", b"x" * SIZE)
    made.file(resource, "new\nSet-Cookie: stolen=1.txt", b"newline")
    made.file(resource, "größe.txt", b"umlaut")
    return made


@pytest.fixture(scope="module")
def resource(archive: Archive) -> Resource:
    return archive.projects["P"].resources[0]


@pytest.fixture(scope="module")
def url(archive: Archive) -> Iterator[str]:
    with serve(DemoXnat(archive)) as made:
        yield made


@pytest.fixture
def connection(url: str) -> Iterator[http.client.HTTPConnection]:
    made = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    yield made
    made.close()


def exchange(url: str, sent: bytes) -> bytes:
    """Return all that arrives until the server closes the connection."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connected:
        connected.sendall(sent)
        received = b""
        while piece := connected.recv(65536):
            received += piece
    return received


def get(connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str):
    connection.request(method, path, headers={**LOGIN, **headers})
    return connection.getresponse()


def file_path(resource: Resource, name: str) -> str:
    return f"/data/projects/P/resources/{resource.id}/files/{quote(name)}"


def test_one_connection_serves_request_after_request(connection, resource):
    for _ in range(3):
        reply = get(connection, file_path(resource, "plain.txt"))
        assert (reply.status, len(reply.read()), reply.will_close) == (200, SIZE, False)


def test_head_has_the_headers_of_get_and_no_body(connection, resource):
    reply = get(connection, file_path(resource, "plain.txt"), "HEAD")
    assert (reply.status, reply.getheader("Content-Length"), reply.read()) == (200, str(SIZE), b"")
    assert get(connection, "/data/projects").status == 200


def test_a_chunked_request_is_read_to_its_end(url):
    first = b"POST /data/JSESSION HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    second = b"GET /xapi/siteConfig/buildInfo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert exchange(url, first + second).count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("header", [b"Content-Length: many", b"Transfer-Encoding: chunked"])
def test_a_body_without_a_readable_length_ends_the_connection(url, header):
    received = exchange(url, b"POST /data/JSESSION HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\nzz\r\n")
    assert received.startswith(b"HTTP/1.1 400")


def test_clients_of_http_1_0_get_no_chunks(url):
    received = exchange(url, f"GET /data/projects HTTP/1.0\r\nAuthorization: {LOGIN['Authorization']}\r\n\r\n".encode())
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body.startswith(b'{"ResultSet"')


def test_the_name_of_a_file_adds_no_header(connection, resource):
    reply = get(connection, file_path(resource, "new\nSet-Cookie: stolen=1.txt"))
    assert reply.read() == b"newline"
    assert not any("stolen" in cookie for cookie in reply.headers.get_all("Set-Cookie", []))
    assert "stolen" in reply.getheader("Content-Disposition", "")


def test_other_than_latin_names_are_sent(connection, resource):
    assert get(connection, file_path(resource, "größe.txt")).read() == b"umlaut"


def test_a_range_beyond_the_end_promises_more_than_comes(connection, resource):
    reply = get(connection, file_path(resource, "plain.txt"), Range=f"bytes=990-{SIZE + 9}")
    assert (reply.status, reply.getheader("Content-Range")) == (206, f"bytes 990-{SIZE + 9}/{SIZE}")
    with pytest.raises(http.client.IncompleteRead) as cut:
        reply.read()
    assert cut.value.partial == b"x" * 10


def test_a_range_after_the_end_is_no_416_and_no_good(connection, resource):
    for wanted, length, stated in (
        (f"bytes={SIZE}-", "0", f"bytes {SIZE}-{SIZE - 1}/{SIZE}"),
        (f"bytes={SIZE + 9}-", None, f"bytes {SIZE + 9}-{SIZE - 1}/{SIZE}"),
    ):
        reply = get(connection, file_path(resource, "plain.txt"), Range=wanted)
        assert (reply.status, reply.getheader("Content-Length"), reply.read()) == (206, length, b"")
        assert reply.getheader("Content-Range") == stated
    assert get(connection, file_path(resource, "plain.txt")).status == 200


@pytest.mark.parametrize(
    ("wanted", "stated", "promised", "comes"),
    [
        (f"bytes={SIZE + 100}-{SIZE + 200}", f"bytes {SIZE + 100}-{SIZE + 200}/{SIZE}", 101, 0),
        (f"bytes=-{SIZE + 94}", f"bytes -94-{SIZE - 1}/{SIZE}", SIZE + 94, SIZE),
    ],
)
def test_what_a_range_promises_beyond_either_end_does_not_come(connection, resource, wanted, stated, promised, comes):
    reply = get(connection, file_path(resource, "plain.txt"), Range=wanted)
    assert (reply.status, reply.getheader("Content-Range"), reply.getheader("Content-Length")) == (
        206,
        stated,
        str(promised),
    )
    with pytest.raises(http.client.IncompleteRead) as cut:
        reply.read()
    assert cut.value.partial == b"x" * comes


@pytest.mark.parametrize(
    ("wanted", "status", "stated", "length"),
    [
        ("bytes=x-y", 500, None, SIZE),
        ("items=0-1", 200, None, SIZE),
        ("bytes=990-2", 206, f"bytes 990-{SIZE - 1}/{SIZE}", SIZE - 990),
        ("bytes=-2", 206, f"bytes {SIZE - 2}-{SIZE - 1}/{SIZE}", 2),
    ],
)
def test_ranges_that_make_no_sense(connection, resource, wanted, status, stated, length):
    reply = get(connection, file_path(resource, "plain.txt"), Range=wanted)
    assert (reply.status, reply.getheader("Content-Range"), reply.read()) == (status, stated, b"x" * length)
