"""Test xnatctl resource upload: what the server holds afterwards, and what it answered about that."""

from pathlib import Path

import pytest

from tests.support.commanding import COLLABORATOR, EVERY_RELEASE, MEMBER, SESSION, Shell
from tests.transfer.uploads.test_sessions import data
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.reply import Reply

NAMES = {"a.txt": b"one", "sub/b c.txt": b"two", "100% #1?.txt": b"three", "empty": b"", "päper.nii": bytes(3000)}


@pytest.fixture
def papers(fresh: Shell) -> Path:
    directory = fresh.home / "papers"
    for name, content in NAMES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def held(shell: Shell, label: str) -> dict[str, bytes]:
    (resource,) = [r for r in shell.session().resources if r.label == label]
    return {entry.path: data(entry) for entry in resource.entries}


@EVERY_RELEASE
def test_a_folder_becomes_a_resource_with_every_name(fresh, papers):
    fresh.ctl("resource", "upload", "-E", SESSION, "PAPERS", papers)
    assert held(fresh, "PAPERS") == NAMES
    before = len(fresh.requests("PUT"))
    assert "Up to date" in fresh.ctl("resource", "upload", "-E", SESSION, "PAPERS", papers).err
    assert len(fresh.requests("PUT")) == before


def test_without_digests_the_same_files_are_known_by_their_bytes(fresh, papers):
    fresh.app.site.digests = False
    words = ("resource", "upload", "-E", SESSION, "PAPERS", papers)
    fresh.ctl(*words)
    before = len(fresh.requests("PUT"))
    done = fresh.ctl(*words, "-o", "json")
    assert "Up to date" in done.err
    assert f"Comparing {len(NAMES)} files by their bytes" in done.err
    assert (done.rows["up_to_date"], done.rows["unverified"]) == (len(NAMES), 0)
    assert len(fresh.requests("PUT")) == before
    (papers / "a.txt").write_bytes(b"eno")  # of the same length
    assert "other files of these names: a.txt" in fresh.ctl(*words, status=1).err
    assert len(fresh.requests("PUT")) == before
    done = fresh.ctl(*words, "--overwrite", "-o", "json")
    assert (done.rows["sent"], done.rows["unverified"]) == (1, 0), "it was read again"
    assert held(fresh, "PAPERS") == {**NAMES, "a.txt": b"eno"}


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
def test_a_file_of_equal_length_that_was_not_replaced_is_told(fresh, papers, digests):
    """For want of the right to change, the server answers 200, and name and length are those of the file before."""
    fresh.app.site.digests = digests
    words = ("resource", "upload", "-E", SESSION, "PAPERS", papers)
    fresh.ctl(*words)
    (papers / "a.txt").write_bytes(b"eno")
    collaborator = fresh.as_user(COLLABORATOR)
    done = collaborator.ctl(*words, "--overwrite", status=6)
    assert "stored none of them" in done.err
    assert held(fresh, "PAPERS") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_one_file_becomes_one_of_a_resource(fresh, papers, name):
    fresh.ctl("resource", "upload", SESSION, "ONE", papers / name)
    assert held(fresh, "ONE") == {Path(name).name: NAMES[name]}


def test_other_files_of_the_same_names_are_refused_before_a_byte_is_sent(fresh, papers):
    fresh.ctl("resource", "upload", "-E", SESSION, "PAPERS", papers)
    (papers / "a.txt").write_bytes(b"changed")
    before = len(fresh.requests("PUT"))
    done = fresh.ctl("resource", "upload", "-E", SESSION, "PAPERS", papers, status=1)
    assert "a.txt" in done.err
    assert len(fresh.requests("PUT")) == before
    fresh.ctl("resource", "upload", "-E", SESSION, "PAPERS", papers, "--overwrite")
    assert held(fresh, "PAPERS") == {**NAMES, "a.txt": b"changed"}


def test_duplicates_that_only_the_body_tells_of(fresh, papers):
    def duplicate(asked: Request) -> Reply | None:
        if asked.method == "PUT":
            return Reply(200, b'{"duplicates":["a.txt"]}', "text/html")
        return None

    fresh.app.faults.append(duplicate)
    done = fresh.ctl("resource", "upload", "-E", SESSION, "PAPERS", papers / "a.txt", status=1)
    assert "a.txt" in done.err


def test_a_web_page_is_no_word_of_whether_it_was_stored(fresh, papers):
    def page(asked: Request) -> Reply | None:
        return Reply(200, b"<!DOCTYPE html><h3>Log in</h3>", "text/html") if asked.method == "PUT" else None

    words = ("resource", "upload", "-E", SESSION, "PAPERS", papers)
    fresh.app.faults.append(page)
    said = fresh.ctl(*words, status=4).err
    assert "answered with a web page (Log in)" in said
    assert "the same command sends what is missing" in said
    assert len(fresh.requests("PUT")) == 1
    fresh.app.faults.clear()
    fresh.ctl(*words)
    assert held(fresh, "PAPERS") == NAMES


def test_200_with_nothing_stored(fresh, papers):
    done = fresh.as_user(COLLABORATOR).ctl(
        "resource", "upload", "-E", SESSION, "PAPERS", papers, "-P", "MYPROJECT", status=6
    )
    assert "stored none" in done.err
    fresh.as_user(MEMBER).ctl("resource", "upload", "-E", SESSION, "PAPERS", papers)
    assert held(fresh, "PAPERS") == NAMES


def test_a_file_that_arrives_damaged_is_told(fresh, papers):
    def damage(asked: Request) -> Reply | None:
        if asked.method != "PUT":
            return None
        reply: Reply = fresh.app._answer(asked)[0]
        entry = fresh.session().resources[-1].entries[0]
        entry.digest = "1" * 32
        return reply

    fresh.app.faults.append(damage)
    done = fresh.ctl("resource", "upload", "-E", SESSION, "PAPERS", papers / "a.txt", status=1)
    assert "its digest is another" in done.err
    assert "Uploaded" not in done.err
    done = fresh.ctl("resource", "upload", "-E", SESSION, "MORE", papers, status=8)
    assert "Uploaded 4 files" in done.err


def test_resources_of_scans_subjects_and_projects(fresh, papers):
    one = papers / "a.txt"
    fresh.ctl("resource", "upload", "-E", SESSION, "QA", one, "--scan", "10")
    fresh.ctl("resource", "upload", "-P", "MYPROJECT", "-S", "SUB001", "QA", one)
    fresh.ctl("resource", "upload", "-P", "MYPROJECT", "QA", one)
    archive = fresh.app.archive
    (scan,) = [scan for scan in fresh.session().scans if scan.id == "10"]
    for found in (scan.resources, archive.subjects["XNAT_S00001"].resources, archive.projects["MYPROJECT"].resources):
        assert [resource.label for resource in found if resource.label == "QA"] == ["QA"]
    done = fresh.ctl("resource", "upload", "-E", SESSION, "QA", one, "--scan", "77", status=5)
    assert "scan 77" in done.err
