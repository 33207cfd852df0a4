"""Test that a malicious server can do nothing but fail. docs/SECURITY.md has the list."""

import gzip
import io
import json
import os
import posixpath
import re
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.support.commanding import SESSION, shell
from tests.support.hostile import TOKEN, Hostile, answer, endless, hostile, listing, ok
from tests.support.mounting import SCRIPTS, environment, run
from tests.support.scripted import Scripted, opened, resource, session, subject
from xnatfs.cli.ctl.progress import Silent
from xnatfs.common.errors import BadReply, ConfigError, LoginRequired, NotFound, Unreachable, XnatError
from xnatfs.fuse.attributes import Ownership
from xnatfs.fuse.inodes import ROOT
from xnatfs.http import documents, transport
from xnatfs.http.replies import page_message
from xnatfs.prefetch.tar_stream import members
from xnatfs.rest.client import Xnat, open_xnat
from xnatfs.rest.json_rows import MAX_ROW_CHARACTERS, Table
from xnatfs.rest.models import natural
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.transfer import download as transfer
from xnatfs.transfer.local_files import Draft
from xnatfs.transfer.manifest import FOLDER, Owner
from xnatfs.transfer.plan import plan, session_dir
from xnatfs.transfer.uploads import dicom_files as images
from xnatfs.tree import Root, folders, names
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.node import Dir, File, Link, Node

HARM = "\x1b[2J\x9b31m\u202egnp.exe\x07"  # clears a screen, colours it, turns text around, rings
UGLY = [
    "..",
    ".",
    "/etc/passwd",
    "../../x",
    "a\0b",
    "a\nb",
    "a\rb",
    HARM,
    "n" * 300,
    "é" * 200,
    "\ud800",
    "",
    "-rf",
    "~",
]
PASSWORD = "hush-hush"


@pytest.fixture
async def server() -> AsyncIterator[Hostile]:
    with hostile() as made:
        yield made


async def asking(server: Hostile, ask: Callable[[Xnat], Any], patience: float = 2.0) -> Any:
    """Call a method of the client against a server that answers so."""
    async with open_xnat(Config(server.url, timeout=patience), Credentials("u", PASSWORD)) as xnat:
        with trio.fail_after(20):
            return await ask(xnat)


async def below(node: Node) -> list[Node]:
    """Return all that is in a directory, whatever it is."""
    found = [node]
    if isinstance(node, Dir):
        for child in (await node.children()).listed():
            found += await below(child)
    return found


# -- names -------------------------------------------------------------------------------------------------------


def ugly() -> Scripted:
    """Make a server whose every item has a name chosen to break programs."""
    server = Scripted()
    server.lists["projects/P/subjects"] = [subject("X_S1", name or "S") for name in UGLY[:1]]
    server.lists["projects/P/experiments"] = [session(f"X_E{n}", name) for n, name in enumerate(UGLY, 1)]
    server.lists["experiments/X_E1/scans"] = [{"ID": name} for name in UGLY if name not in ("", "\ud800")]
    server.lists["experiments/X_E1/resources"] = [resource(str(n), name, "resources") for n, name in enumerate(UGLY, 7)]
    for name in UGLY:
        if name:
            server.add(name, b"x", number="7")
            server.add(f"in/{name}/deep", b"x", number="7")
    return with_the_rest(server)


def with_the_rest(server: Scripted) -> Scripted:
    """Serve its lists, lone surrogates in them and all, and empty ones where it has none."""

    def answered(request: httpx.Request) -> httpx.Response:
        found = server.lists.get(request.url.path.removeprefix("/data/")) or []
        return httpx.Response(200, content=json.dumps({"ResultSet": {"Result": found}}))

    server.by_pattern.append(("[^?]*(projects|subjects|experiments|resources|scans|assessors|files)", answered))
    return server


async def test_names_of_a_server_are_only_names(tmp_path):
    async with opened(ugly(), tmp_path) as site:
        found = await below(Root(site))
        assert len(found) > 3 * len(UGLY)
        for node in found[1:]:
            assert node.name not in ("", ".", "..")
            assert not set(node.name) & {"/", "\0"}
            assert len(names.encode(node.name)) <= 255


async def test_nothing_that_a_server_lists_leads_out_of_the_mount(tmp_path):
    async with opened(ugly(), tmp_path) as site:
        links = [node for node in await below(Root(site)) if isinstance(node, Link)]
        assert links
        for link in links:
            assert link.parent is not None
            place = posixpath.normpath("/".join(("/MNT", *link.parent.path, link.target)))
            assert place.startswith("/MNT/projects/")
            assert link.target.split("/").count("..") == len(link.parent.path)


async def test_a_path_of_many_folders_is_as_deep_as_programs_can_go(tmp_path):
    server = with_the_rest(Scripted())
    server.add("a/" * 10_000 + "f", b"x")
    server.add("b/" * 10_000 + "f", b"x")
    async with opened(server, tmp_path) as site:
        tracemalloc.start()
        try:
            found = await below(Root(site))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        depths = [len(node.path) for node in found if isinstance(node, CatalogueFile)]
        assert len(depths) == 2
        assert max(depths) <= names.MAX_PATH_LEVELS + 8
        assert peak < 20 * 2**20


async def test_a_resource_of_too_many_folders_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MOST_FOLDERS", 50)
    server = with_the_rest(Scripted())
    for number in range(60):
        server.add(f"{number}/f", b"x")
    async with opened(server, tmp_path) as site:
        with pytest.raises(BadReply, match="more than 50 folders"):
            await below(Root(site))


async def test_a_catalogue_that_lists_one_path_for_ever_is_two_lines_of_the_log(tmp_path, caplog):
    server = with_the_rest(Scripted())
    for _ in range(100):
        server.add("d/f", b"x")
    async with opened(server, tmp_path) as site:
        await below(Root(site))
    assert len(caplog.messages) == 2
    assert "99" in caplog.messages[1]


async def test_what_is_listed_again_and_again_is_there_once_and_costs_no_more(tmp_path):
    server = with_the_rest(Scripted())
    server.lists["experiments/X_E1/scans"] = [{"ID": "1"}] * 5000
    server.lists["projects/P/experiments"] = [session("X_E1", "E")] * 5000
    server.add("a" * 250, b"x")
    for _ in range(5000):
        server.add("a", b"x")
    server.add("a/f", b"x")
    server.add("a" * 250 + "/f", b"x")
    began = time.thread_time()
    async with opened(server, tmp_path) as site:
        found = await below(Root(site))
    assert time.thread_time() - began < 5  # the square of them would be minutes
    files = {"/".join(node.path[7:]) for node in found if isinstance(node, CatalogueFile)}
    assert {"a~file", "a/f"} < files
    assert len(files) == 4
    assert all(len(name) <= 255 for path in files for name in path.split("/"))


async def test_a_name_that_no_url_can_carry_is_no_row(server):
    server.says["GET /data/projects"] = ok(listing(['{"ID":"\\ud800"}']))
    with pytest.raises(BadReply):
        await asking(server, lambda xnat: xnat.projects())


async def test_a_name_that_says_where_to_go_leads_nowhere_else(server):
    server.says["GET /data/"] = ok(listing([]))
    await asking(server, lambda xnat: xnat.subjects(".."))
    await asking(server, lambda xnat: xnat.scans("../projects"))
    asked = [
        head.split(" ")[1].partition("?")[0] for head in server.heads if "/data/" in head and "JSESSION " not in head
    ]
    assert asked == ["/data/projects/%2E%2E/subjects", "/data/experiments/..%2Fprojects/scans"]


def test_sort_keys_take_numbers_of_any_length():
    longest = "1" + "0" * 5000
    assert sorted(["9" * 5000, longest + "0", "2", longest], key=natural) == ["2", "9" * 5000, longest, longest + "0"]


# -- downloads of xnatctl ----------------------------------------------------------------------------------------


OWNER = Owner("http://x", "X_E1")


def test_a_download_writes_through_no_link(tmp_path):
    with shell(tmp_path / "home") as made:
        listed = made.ctl("scan", "download", "-E", SESSION, "-s", "1", "--out", "data", "--dry-run").lines
        place = made.home / next(line for line in listed if line.endswith("1.0.dcm"))
        victim, other = tmp_path / "victim", tmp_path / "other"
        for precious in (victim, other):
            precious.write_text("precious")
        place.parent.mkdir(parents=True)
        begun = Draft(place)
        (draft,) = place.parent.iterdir()
        begun.discard()
        draft.symlink_to(victim)
        place.symlink_to(other)
        made.ctl("scan", "download", "-E", SESSION, "-s", "1", "--out", "data")
        assert victim.read_text() == other.read_text() == "precious"
        assert place.is_file()
        assert not place.is_symlink()
        assert not draft.exists()


async def test_a_file_that_no_file_system_can_name_fails_alone(tmp_path):
    server = with_the_rest(Scripted())
    server.add("half-\ud800", b"x")
    server.add("plain", b"y")
    async with opened(server, tmp_path / "cache") as site:
        planned = await plan(session_dir(site, "X_E1", "E", "xnat:mrSessionData"))
        for attempt in range(2):
            report = await transfer.download(planned.files, tmp_path / "out", owner=OWNER, progress=Silent())
            assert (report.files, len(report.failed), report.copied) == (1, 1, 1 - attempt)
        assert (await transfer.verify(planned.files, tmp_path / "out", OWNER)).files == 1


def zipped(method: int, content: bytes = b"x" * 1000) -> bytearray:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        archive.writestr("a/files/f", content)
    return bytearray(made.getvalue())


def encrypted() -> bytearray:
    """Make an archive that is encrypted as far as its headers go."""
    made = zipped(zipfile.ZIP_STORED)
    made[6] |= 1
    made[made.rindex(b"PK\1\2") + 8] |= 1
    return made


def damaged() -> bytearray:
    made = zipped(zipfile.ZIP_DEFLATED, os.urandom(100) * 20)
    made[45:60] = bytes(15)
    return made


ZIPS = {
    "of another method": lambda: zipped(zipfile.ZIP_LZMA),
    "encrypted": encrypted,
    "damaged": damaged,
    "cut": lambda: zipped(zipfile.ZIP_STORED)[:-30],
    "none": lambda: bytearray(b"<html>"),
}


@pytest.mark.parametrize("kind", ZIPS)
async def test_an_archive_that_is_none_gets_no_name(tmp_path, kind):
    server = Scripted()
    answered = httpx.Response(200, content=bytes(ZIPS[kind]()), headers={"content-type": "application/zip"})
    server.answers["experiments/X_E1/scans/ALL/files"] = lambda request: answered
    async with opened(server, tmp_path / "cache") as site:
        with pytest.raises(BadReply):
            await transfer.download_zip(site, OWNER, None, tmp_path / "out" / "scans.zip", progress=Silent())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FOLDER]


@pytest.mark.parametrize("kind", ["encrypted", "damaged"])
def test_an_archive_to_be_sent_that_cannot_be_read_is_one_line(tmp_path, kind):
    path = tmp_path / "images.zip"
    path.write_bytes(ZIPS[kind]())
    with pytest.raises(ConfigError, match=r"images\.zip is not a whole archive"):
        images.find(path)


# -- terminals and logs ------------------------------------------------------------------------------------------


def on_a_terminal(home: Path, server: Hostile, *words: str) -> str:
    """Return what a command writes to a terminal, stdout and stderr."""
    terminal, theirs = os.openpty()
    env = environment(home, XNAT_URL=server.url, XNAT_USER="u", XNAT_PASS=PASSWORD, TERM="xterm", LC_ALL="C.UTF-8")
    try:
        command = [str(SCRIPTS / "xnatctl"), *words]
        with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            shown = b""
            try:
                while data := os.read(terminal, 65536):
                    shown += data
            except OSError:  # how a terminal reports that its other end is closed
                pass
            process.wait(60)
    finally:
        os.close(terminal)
    return shown.decode()


def test_a_terminal_obeys_no_server(tmp_path):
    row = '{"ID":"P\\u001b]0;x","name":"\\u009b31m\\u202e\\u001b[2J","description":"\\ud800\\u0007"}'
    page = answer(404, f"<html><h3>Not {HARM} here</h3>", "Content-Type: text/html")
    with hostile({"GET /data/projects[?]": ok(listing([row])), "GET /data/": page}) as server:
        shown = [
            on_a_terminal(tmp_path, server, "project", "list"),
            on_a_terminal(tmp_path, server, "project", "list", "-o", "json"),
            on_a_terminal(tmp_path, server, "scan", "list", "-E", "E"),
            on_a_terminal(tmp_path, server, "api", "GET", "/data/projects?format=json"),
        ]
    assert "P?]0;x" in shown[0]
    assert "?]0;x" in shown[1] or "\\u001b" in shown[1]
    assert "not found" in shown[2]
    assert '"ResultSet"' in shown[3]
    for text in shown:
        assert not re.search("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", text.replace("\t", "")), ascii(text)


def test_programs_get_names_as_they_are_one_a_line(tmp_path):
    with hostile({"GET /data/projects": ok(listing(['{"ID":"P\\u001b\\nQ\\ud800"}', '{"ID":"R"}']))}) as server:
        server.says["GET /data/projects"] = ok(listing(['{"ID":"P\\u001b\\nQ"}', '{"ID":"R"}']))
        env = environment(tmp_path, XNAT_URL=server.url, XNAT_USER="u", XNAT_PASS=PASSWORD)
        done = run(SCRIPTS / "xnatctl", "project", "list", "-q", env=env)
    assert done.stdout.splitlines() == ["P\x1b?Q", "R"]


def test_an_exception_is_one_line_that_nothing_obeys():
    error = NotFound(f"a\nb {HARM} {'x' * 10_000}")
    assert str(error).startswith("a b ?[2J?31m?gnp.exe?")
    assert len(str(error)) < 2100


# -- listings that are too much ----------------------------------------------------------------------------------

SCRIPT = """
import resource, sys, trio
from xnatfs.rest.client import open_xnat
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def main():
    async with open_xnat(Config(sys.argv[1], timeout=30.0), Credentials("u", "p")) as xnat:
        await xnat.log_in()
        before = peak()
        try:
            files = await xnat.files(("experiments", "E"), below=True)
            print(len(files), peak() - before)
        except Exception as error:
            print(type(error).__name__, peak() - before)

trio.run(main)
"""


def memory(server: Hostile) -> tuple[str, int]:
    """List a session's files in a process of its own; return the result, and by how many MiB memory grows."""
    done = run(sys.executable, "-c", SCRIPT, server.url, env=environment(Path("/")))
    said, grown = done.stdout.split()
    return said, int(grown)


def test_a_hundred_megabytes_of_files_take_less_memory_than_that():
    kinds = '"file_format":"DICOM","file_content":"RAW","collection":"DICOM","file_tags":""'
    folder = "/data/experiments/XNAT_E00001/scans/1/resources/34/files/" + "1.2.840.113654.2.70.1." * 8
    rows = [
        f'{{"Name":"f{n}","Size":"{n}","digest":"{n:032x}",{kinds},"URI":"{folder}{n}.dcm","cat_ID":"34"}}'
        for n in range(1000)
    ]
    block = ",".join(rows).encode()
    count = 100 * 2**20 // len(block) + 1

    def say(link: Any) -> None:
        link.sendall(
            b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{"ResultSet":{"Result":['
        )
        for _ in range(count - 1):
            link.sendall(block + b",")
        link.sendall(block + b"]}}")

    with hostile({"GET /data/experiments/E/files": say}) as server:
        said, grown = memory(server)
    assert said == str(1000 * count)
    assert grown < 80


@pytest.mark.parametrize(
    ("first", "again", "why"),
    [
        (b'{"ResultSet":{"Result":[', b'{"ID":"a"},', "too much"),  # rows
        (b'{"ResultSet":{"Result":[{"a":"', b"x", "as JSON"),  # one row
        (b'{"ResultSet":{"', b"x", "as JSON"),  # one key
        (b'{"ResultSet":{"Result":[', b" ", "as JSON"),
        (b'{"ResultSet":{"Result":[', b"[", "as a list"),
        (b'{"ResultSet":{"Result":[{"a":', b'{"a":', "as JSON"),
        (b"", b"[", "too long to be looked at"),
        (b"", b" ", "too long to be looked at"),
        (b"<html>", b"x", "too long to be looked at"),
    ],
)
async def test_a_list_without_end_is_an_error(server, monkeypatch, first, again, why):
    monkeypatch.setattr("xnatfs.rest.lists.LIST_LIMITS", (2**23, 20_000))
    monkeypatch.setattr("xnatfs.rest.json_rows.MAX_ROW_CHARACTERS", 2**18)
    monkeypatch.setattr("xnatfs.rest.json_rows.MAX_DOCUMENT_CHARACTERS", 2**20)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    server.says["GET /data/projects"] = endless(head + first, again * 10_000)
    with pytest.raises(BadReply, match=why):
        await asking(server, lambda xnat: xnat.projects())


async def test_a_document_without_end_is_an_error(server, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 2**20)
    server.says["GET /data/"] = endless(b"HTTP/1.1 200 OK\r\n\r\n", b"[" * 10_000)
    with pytest.raises(BadReply, match="is larger than"):
        await asking(server, lambda xnat: xnat.item("projects", "P"))


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"items":[' + b'{"children":[' * 50_000])
async def test_json_that_is_nested_too_deep_is_an_error(server, body):
    table = Table()
    table.feed(b'{"ResultSet":{"Result":[{"a":')
    with pytest.raises(ValueError, match="nested too deep"):
        table.feed(body)
    server.says["GET /data/"] = ok(body)
    for ask in (lambda xnat: xnat.item("projects", "P"), lambda xnat: xnat.projects()):
        with pytest.raises(BadReply):
            await asking(server, ask)


def test_a_list_of_too_many_rows_or_bytes_is_none():
    row = b'{"ID":"a"},'
    for most in ((1000, 10**9), (10**9, 1000)):
        table = Table(*most)
        table.feed(b'{"ResultSet":{"Result":[')
        table.feed(row * 50)
        with pytest.raises(ValueError, match="too much"):
            table.feed(row * 1000)


def spent(work: Callable[[], object]) -> float:
    """Return the seconds of this thread's own, however busy the machine is."""
    before = time.thread_time()
    work()
    return time.thread_time() - before


def test_one_long_row_takes_no_longer_than_many():
    row = b"{" + b'"k":1,' * (MAX_ROW_CHARACTERS // 6 - 1000) + b'"ID":"x"}'

    def read() -> None:
        table = Table()
        found = table.feed(b'{"ResultSet":{"Result":[')
        for start in range(0, len(row), 2**15):
            found += table.feed(row[start : start + 2**15])
        found += table.feed(b"]}}")
        assert found + table.close() == [{"k": 1, "ID": "x"}]

    assert spent(read) < 3 * spent(lambda: json.loads(row)) + 0.1


@pytest.mark.parametrize(
    "page",
    [
        "<h3" * 30_000,
        "<h3>" + "<" * 60_000 + "</h3>",
        "<h3>" + "<" * 90_000,
        "<h3>" * 20_000,
        "<h3 " + "x" * 90_000 + "</h3>",
    ],
)
def test_an_error_page_takes_no_longer_to_read_than_it_is_long(page):
    assert spent(lambda: page_message(page)) < 0.2


def test_an_error_page_says_what_it_says():
    assert page_message("<html><H3 class='x'>A &amp; <b>B</b>\n</H3>") == "A & B"
    assert page_message("<h3>&#" + "9" * 1900 + ";</h3>").startswith(("&#", "�"))


# -- rows of other things ----------------------------------------------------------------------------------------

SIZES = ["-1", "9" * 30, str(2**63), str(2**63 - 1), "NaN", "1e9", "Infinity", " 5", "٣", "0x10", "9" * 5000, "5.0"]
DIGESTS = ["\ud800", "z" * 32, "0" * 32, "f" * 31, "f" * 64, "a b" * 20, "F" * 32]


async def test_sizes_and_digests_that_are_none_are_as_good_as_none(tmp_path):
    server = with_the_rest(Scripted())
    for size in SIZES:
        server.add(f"size {size[-9:]} {len(size)}", b"content", size=size)
    for number, digest in enumerate(DIGESTS):
        server.add(f"digest {number}", b"content", digest=digest)
    async with opened(server, tmp_path) as site:
        files = [node for node in await below(Root(site)) if isinstance(node, CatalogueFile)]
        assert len(files) == len(SIZES) + len(DIGESTS)
        for file in files:
            await file.size()
            assert 0 <= Ownership(1, 1).attributes(file, ROOT, 0.0).st_size < 10**18
            assert file.inode_hint() > 0
            is_md5 = file.name == f"digest {len(DIGESTS) - 1}"
            try:
                blob = await file.open()
            except XnatError:
                assert file.name.startswith("size") or is_md5
                continue
            assert file.name.startswith("size") or blob.size == 7
            with_content = b""
            with pytest.raises(BadReply) if is_md5 else trio.CancelScope():
                with_content = await blob.read(0, 100)
            assert with_content == (b"" if is_md5 else b"content")
            blob.close()


@pytest.mark.parametrize(
    "row",
    [
        {
            "cat_ID": ["7"],
            "URI": "/resources/7/files/a",
            "Size": "1",
            "digest": "",
            "file_format": "",
            "file_content": "",
        },
        {"cat_ID": "7", "URI": "/resources/7/files/a", "Size": {}, "digest": [], "file_format": [], "file_content": {}},
        {"cat_ID": 7, "URI": "/resources/7/files/a", "Size": 5, "digest": None, "file_format": None, "file_content": 1},
        {"cat_ID": "7", "URI": ["x"], "Size": "1"},
        {"cat_ID": None},
        {},
    ],
)
async def test_cells_of_other_kinds_are_text_or_an_error(tmp_path, row):
    server = Scripted()
    server.lists["experiments/X_E1/files"] = [row]
    async with opened(server, tmp_path) as site:
        try:
            files = await site.xnat.files(("experiments", "X_E1"), below=True)
        except BadReply:
            return
        assert [(file.path, file.resource_id) for file in files] == [("a", "7")]


@pytest.mark.parametrize(
    "date", ["0001-01-01 00:00:00.0", "9999-12-31 23:59:59.9", "99999-01-01 00:00:00", "2024-02-30 00:00:00"]
)
async def test_dates_that_are_none_are_shown_or_left_out(tmp_path, date):
    server = with_the_rest(Scripted())
    server.lists["projects/P/experiments"] = [session("X_E1", "E", insert_date=date)]
    server.add("f", b"x")
    async with opened(server, tmp_path / "cache") as site:
        for node in await below(Root(site)):
            if not isinstance(node, File) or node.measured:
                Ownership(1, 1).attributes(node, ROOT, 0.0)
        row = (await site.experiments("P")).rows[0]
        directory = session_dir(site, "X_E1", "E", "xnat:mrSessionData")
        object.__setattr__(directory.experiment, "modified", row.modified)
        planned = await plan(directory)
        report = await transfer.download(planned.files, tmp_path / "out", owner=OWNER, progress=Silent())
    assert (report.files, report.failed) == (1, [])


async def test_a_session_of_many_assessors_takes_no_longer_than_many_sessions(server):
    columns = '"label":"a","date":"","xsiType":"x","session_ID"'
    server.says["GET /data/experiments"] = ok(listing(f'{{"ID":"A{n}",{columns}:"E"}}' for n in range(8000)))
    began = time.thread_time()
    found = await asking(server, lambda xnat: xnat.assessors_of_many(["E"]), patience=30)
    assert len(found["E"]) == 8000
    assert time.thread_time() - began < 2  # the square of them would be 20 s


async def test_too_many_resources_in_one_list_are_an_error(server, monkeypatch):
    monkeypatch.setattr("xnatfs.rest.file_table.MOST_RESOURCES", 100)
    server.says["GET /data/"] = ok(listing(f'{{"cat_ID":"{n}","URI":"/resources/{n}/files/a"}}' for n in range(200)))
    with pytest.raises(BadReply, match="more than 100 resources"):
        await asking(server, lambda xnat: xnat.files(("experiments", "E"), below=True))


# -- tars --------------------------------------------------------------------------------------------------------


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def negative(kind: bytes = tarfile.REGTYPE) -> bytes:
    """Make a member with a negative size in base 256, which would lead back to the header; tarfile writes none."""
    block = bytearray(header("/files/f", 0, kind))
    block[124:136] = (-512).to_bytes(12, signed=True)
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return bytes(block)


async def unpacked(*blocks: bytes) -> list[tuple[str, int]]:
    async def chunks() -> AsyncGenerator[bytes]:
        for block in blocks:
            yield block

    async with aclosing(chunks()) as come, aclosing(members(come)) as archive:
        with trio.fail_after(20):
            return [(member.name, len(await member.read_rest())) async for member in archive]


BOMBS = {
    "a file of negative size": ("file of -512 bytes", [negative()]),
    "a header of negative size": ("header of -512 bytes", [negative(tarfile.XHDTYPE)]),
    "a name of megabytes": ("header of", [header("L", 2**24, tarfile.GNUTYPE_LONGNAME), bytes(2**24)]),
    "a header of gigabytes": ("header of", [header("x", 2**33, tarfile.XHDTYPE), bytes(2**20)]),
    "headers without a file": (
        "header of 512 bytes",
        [header("x", 512, tarfile.XHDTYPE) + (b"512 k%06d=" % n).ljust(511, b"v") + b"\n" for n in range(200)],
    ),
    "a record whose length is long": ("damaged header", [header("x", 8192, tarfile.XHDTYPE), b"9" * 8192]),
    "a size of many digits": (
        "file of 999",
        [header("x", 8192, tarfile.XHDTYPE), b"8192 size=" + b"9" * 8181 + b"\n", header("f", 0)],
    ),
    "an end in the middle": ("ends in the middle", [header("/files/f", 10_000), bytes(100)]),
    "no tar": ("damaged", [b"<html>" * 200]),
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_tar_that_means_harm_is_an_error(bomb):
    why, blocks = BOMBS[bomb]
    with pytest.raises(BadReply, match=why):
        await unpacked(*blocks)


async def test_of_a_tar_only_files_count():
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    others = [header("../../etc/passwd", 0, kind) for kind in kinds]
    sparse = [header("s", 512, tarfile.GNUTYPE_SPARSE), bytes(512)]
    pax = b"22 GNU.sparse.major=1\n"
    also_sparse = [header("x", len(pax), tarfile.XHDTYPE), pax.ljust(512, b"\0"), header("p", 0)]
    files = [header("/etc/passwd", 3), b"abc".ljust(512, b"\0"), header("../up", 0)]
    found = await unpacked(*others, *sparse, *also_sparse, *files, bytes(1024))
    assert found == [("/etc/passwd", 3), ("../up", 0)]  # names, to be compared with those that are listed


async def test_what_is_passed_over_in_a_tar_takes_no_memory():
    async def chunks() -> AsyncGenerator[bytes]:
        yield header("g", 2**28, tarfile.XGLTYPE)
        for _ in range(2**28 // 2**16):
            yield piece
        yield bytes(1024)

    piece = bytes(2**16)
    tracemalloc.start()
    try:
        async with aclosing(chunks()) as come:
            assert [member async for member in members(come)] == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**21


# -- replies -----------------------------------------------------------------------------------------------------

REDIRECTS = [
    "http://{other}/steal",
    "https://{other}/steal",
    "//{other}/steal",
    "file:///etc/passwd",
    "http://[",
    "ftp://x/",
]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed_whatever_is_asked(server, status):
    with hostile() as other:
        host = other.url.removeprefix("http://")
        for where in REDIRECTS if status == 302 else REDIRECTS[:1]:
            moved = answer(status, "", f"Location: {where.format(other=host)}")
            server.says = {"GET /data/projects": moved, "(GET|PUT|POST) /data/ex": moved}
            for ask in (
                lambda xnat: xnat.projects(),
                lambda xnat: xnat.item("experiments", "E"),
                lambda xnat: fetched(xnat, 100),
            ):
                with pytest.raises(XnatError):
                    await asking(server, ask, patience=0.3)
            changed = asking(server, lambda xnat: xnat.change("PUT", "/data/ex/f", body=b"secret bytes"), patience=0.3)
            try:
                assert (await changed).status == status
            except XnatError:
                assert where in ("http://[", "ftp://x/")
            server.says = {"(GET|POST) /data/JSESSION": moved}
            with pytest.raises(XnatError):
                await asking(server, lambda xnat: xnat.log_in(), patience=0.3)
        assert other.heads == []


async def fetched(xnat: Xnat, size: int) -> bytes:
    from xnatfs.rest.models import FileRow

    row = FileRow("7", "f", size, "", "", "", 0)
    async with xnat.download(("experiments", "E"), row) as download:
        assert download is not None
        return b"".join([chunk async for chunk in download.chunks])


async def test_a_process_that_carries_big_files_follows_no_redirect(server):
    with hostile() as other:
        server.says["GET /data/experiments/E"] = answer(302, "", f"Location: {other.url}/steal")
        with pytest.raises(XnatError):
            await asking(server, lambda xnat: fetched(xnat, 10**8))
        assert other.heads == []
    assert any("/resources/7/files/f" in head for head in server.heads)


async def test_only_our_own_session_is_sent_and_only_to_its_server(server):
    cookies = [
        "Set-Cookie: JSESSIONID=bad\x01id; Path=/",
        "Set-Cookie: JSESSIONID=sh\xe4rt; Path=/",
        "Set-Cookie: evil=1; Domain=.example.org",
        "Set-Cookie: track=me; Path=/; Max-Age=99999999999999999999; Expires=Mon, 99 Foo 99999 99:99:99 GMT",
        f"Set-Cookie: SESSION_EXPIRATION_TIME={'9' * 500},{'9' * 500}",
        "Set-Cookie: SESSION_EXPIRATION_TIME=1,999999999999",
    ]
    server.says["GET /data/projects"] = ok(listing(['{"ID":"P"}']), "application/json", *cookies)
    server.says["POST /data/JSESSION"] = ok(TOKEN, "text/plain", *cookies)

    async def ask(xnat: Xnat) -> None:
        for _ in range(2):
            await xnat.projects()

    await asking(server, ask)
    sent = {line for head in server.heads for line in head.split("\r\n") if line.lower().startswith("cookie")}
    assert sent == {f"Cookie: JSESSIONID={TOKEN}"}


@pytest.mark.parametrize(
    "flood",
    [
        ["Set-Cookie: a=" + "x" * 4000] * 20,
        ["X-Long: " + "x" * 60_000],
        [f"X-{n}: y" for n in range(5000)],
    ],
)
async def test_a_flood_of_headers_is_read_or_refused(server, flood):
    server.says["GET /data/projects"] = ok(listing(['{"ID":"P"}']), "application/json", *flood)
    assert spent_on(await asking(server, lambda xnat: xnat.projects())) == ["P"]


def spent_on(projects: list[Any]) -> list[str]:
    return [project.id for project in projects]


@pytest.mark.parametrize("again", [b"X-Endless: header\r\n", b"x"])
async def test_headers_without_end_are_an_error(server, again):
    server.says["GET /data/projects"] = endless(b"HTTP/1.1 200 OK\r\nX: ", again * 1000)
    with pytest.raises(Unreachable):
        await asking(server, lambda xnat: xnat.projects(), patience=0.3)


@pytest.mark.parametrize("big", [100, 10**8])
async def test_replies_that_say_to_go_on_and_never_come_are_an_error(server, monkeypatch, big):
    monkeypatch.setattr(transport, "PROCESS_START_SECONDS", 1.0)
    server.says["GET /data/experiments/E"] = endless(b"", b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 100)
    with pytest.raises(Unreachable):
        await asking(server, lambda xnat: fetched(xnat, big), patience=0.5)


@pytest.mark.parametrize("kind", ["text/plain", "text/html"])
async def test_an_answer_to_a_login_is_read_no_further_than_it_counts(server, kind):
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode()
    server.says["(GET|POST) /"] = endless(head, b"version " * 10_000)
    with pytest.raises((LoginRequired, BadReply)):
        await asking(server, lambda xnat: xnat.log_in())


@pytest.mark.parametrize("charset", ["zip_codec", "bz2_codec", "idna", "rot13", "hex", "undefined", "no-such"])
async def test_the_charset_of_a_reply_is_nobodys_command(server, charset):
    bomb = zlib.compress(bytes(10**7))
    server.says["POST /data/JSESSION"] = ok(bomb, f"text/plain; charset={charset}")
    with pytest.raises(XnatError):
        await asking(server, lambda xnat: xnat.log_in())
    server.says["POST /data/JSESSION"] = ok(TOKEN, f"text/plain; charset={charset}")
    await asking(server, lambda xnat: xnat.log_in())


async def test_nothing_that_comes_packed_is_unpacked(server):
    packed = gzip.compress(listing(['{"ID":"P"}']))
    bomb = gzip.compress(bytes(10**8), 1)
    server.says["GET /data/projects"] = ok(packed, "application/json", "Content-Encoding: gzip")
    server.says["GET /data/experiments"] = ok(bomb, "application/dicom", "Content-Encoding: gzip")
    tracemalloc.start()
    try:
        for ask in (
            lambda xnat: xnat.projects(),
            lambda xnat: fetched(xnat, 100),
            lambda xnat: xnat.item("experiments", "E"),
        ):
            with pytest.raises(BadReply):
                await asking(server, ask)
        server.says["POST /data/JSESSION"] = ok(bomb, "text/plain", "Content-Encoding: gzip")
        with pytest.raises(XnatError):
            await asking(server, lambda xnat: xnat.log_in())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20


async def test_a_date_of_a_file_is_one_or_nothing(server):
    for date in ("Tue, 02 J\xe4n 2024", "x" * 5000, "\x01"):
        server.says["GET /data/experiments"] = ok(b"content", "application/dicom", f"Last-Modified: {date}")
        async with open_xnat(Config(server.url, timeout=1.0), Credentials("u", PASSWORD)) as xnat:
            from xnatfs.rest.models import FileRow

            row = FileRow("7", "f", 7, "", "", "", 0)
            try:
                async with xnat.download(("experiments", "E"), row) as download:
                    assert download is not None
                    assert download.modified == ""
            except Unreachable:
                assert date == "\x01"  # which is no header at all


async def test_a_server_that_wants_to_be_left_alone_for_ever_is(server):
    server.says["GET /data/projects"] = answer(503, b"", f"Retry-After: {'9' * 400}")
    began = trio.current_time()
    with pytest.raises(Unreachable):
        await asking(server, lambda xnat: xnat.projects())
    assert trio.current_time() - began < 10
    assert sum("/data/projects" in head for head in server.heads) == 1


async def test_a_file_without_end_is_an_error_and_nothing_of_it_stays(tmp_path):
    class Endless(httpx.AsyncByteStream):
        def __aiter__(self) -> "Endless":
            return self

        async def __anext__(self) -> bytes:
            return bytes(2**16)

    server = with_the_rest(Scripted())
    server.add("f", b"", size="5")
    server.by_pattern.append((".*/files/f", lambda request: httpx.Response(200, stream=Endless())))
    async with opened(server, tmp_path) as site:
        site.content._store.limit = 2**20
        (file,) = [node for node in await below(Root(site)) if isinstance(node, CatalogueFile)]
        with pytest.raises(BadReply, match="unknown length"):
            await file.open()
    assert list(tmp_path.rglob("partial/*")) == []
