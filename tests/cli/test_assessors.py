"""Test assessors and experiments without images, by name: no scans, and an assessor's files below its session."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_completion import complete
from tests.support.commanding import LABEL, SESSION, Shell, page_archive, shell
from xnatfs.demo.archive.model import Archive
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.releases import RELEASES
from xnatfs.demo.server.reply import Reply
from xnatfs.transfer.manifest import FOLDER

QC = "SUB001_QC"
RATING = b'{"motion": 2}\n'


def archive() -> Archive:
    made = page_archive()
    assessor = made.assessor(made.experiments[SESSION], QC)
    made.file(made.resource(assessor.out, "DATA", "JSON"), "rating.json", RATING)
    made.file(made.resource(assessor.out, "LOG", "TXT"), "a/log.txt", b"done\n")
    tests = made.experiment(made.subjects["XNAT_S00001"], "SUB001_TESTS", xsi_type="xnat:subjectVariablesData")
    made.file(made.resource(tests.resources, "SHEETS", "CSV"), "sheet.csv", b"1,2\n")
    return made


@pytest.fixture(scope="module", params=RELEASES)
def prompt(request, tmp_path_factory) -> Iterator[Shell]:
    home = tmp_path_factory.mktemp(request.param)
    with shell(home, archive(), release=RELEASES[request.param]) as made:
        yield made


def accession(prompt: Shell, label: str) -> str:
    (found,) = [each.id for each in prompt.app.archive.experiments.values() if each.label == label]
    return found


def named(prompt: Shell, label: str, way: str) -> tuple[str, ...]:
    """Return the arguments that name an experiment: by its accession ID alone, or by its label and project."""
    return ("-E", accession(prompt, label)) if way == "accession" else ("-E", label, "--project", "MYPROJECT")


WAYS = pytest.mark.parametrize("way", ["accession", "label"])


def copied(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and FOLDER not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@WAYS
def test_an_assessor_is_shown_with_its_session_and_its_resources(prompt, way):
    found = prompt.ctl("session", "show", *named(prompt, QC, way), "-o", "json").rows
    assert (found["label"], found["xsi_type"]) == (QC, "xnat:qcManualAssessorData")
    assert (found["session"], found["subject"], found["scans"]) == (LABEL, "SUB001", [])
    assert [row["label"] for row in found["resources"]] == ["DATA", "LOG"]
    table = prompt.ctl("session", "show", *named(prompt, QC, way)).out
    assert LABEL in table


@WAYS
def test_a_session_is_shown_as_before(prompt, way):
    found = prompt.ctl("session", "show", *named(prompt, LABEL, way), "-o", "json").rows
    assert "session" not in found
    assert len(found["scans"]) == 5


@WAYS
@pytest.mark.parametrize(
    ("label", "said"),
    [
        (QC, f"is an assessor of session {SESSION} (xnat:qcManualAssessorData): it has no scans"),
        ("SUB001_TESTS", "is no imaging session (xnat:subjectVariablesData): it has no scans"),
    ],
)
def test_what_cannot_have_scans_says_so_in_one_line(prompt, way, label, said):
    done = prompt.ctl("scan", "list", *named(prompt, label, way))
    (line,) = done.err.splitlines()
    assert said in line
    assert prompt.ctl("scan", "list", *named(prompt, label, way), "-o", "json").rows == []
    assert prompt.ctl("scan", "list", *named(prompt, label, way), "-q").out == ""


@WAYS
@pytest.mark.parametrize(
    "words",
    [
        ("scan", "show", "1"),
        ("scan", "download", "-s", "1", "--out", "x"),
        ("scan", "download", "-s", "*", "--out", "x"),
        ("session", "download", "--zip", "--out", "x"),
        ("resource", "list", "--scan", "1"),
        ("resource", "download", "DATA", "--scan", "1", "--out", "x"),
        ("resource", "upload", "DATA", "sheet", "--scan", "1"),
    ],
)
def test_scans_of_what_has_none_are_not_found(prompt, way, words):
    (prompt.home / "sheet").write_text("x")
    done = prompt.ctl(*words, *named(prompt, QC, way), status=5)
    (line,) = done.err.splitlines()
    assert f"is an assessor of session {SESSION}" in line
    assert "it has no scans" in line


@WAYS
def test_the_resources_of_an_assessor_are_listed(prompt, way):
    assert prompt.ctl("resource", "list", *named(prompt, QC, way), "-q").lines == ["DATA", "LOG"]
    (row,) = prompt.ctl("resource", "show", *named(prompt, QC, way), "LOG", "-o", "json").rows
    assert (row["name"], row["size"]) == ("a/log.txt", 5)
    tests = named(prompt, "SUB001_TESTS", way)
    assert prompt.ctl("resource", "list", *tests, "-q").lines == ["SHEETS"]
    assert prompt.ctl("session", "show", *tests, "-o", "json").rows["resources"][0]["label"] == "SHEETS"


def test_the_resources_of_an_assessor_are_completed(prompt):
    id = accession(prompt, QC)
    prompt.ctl("resource", "list", "-E", id)
    assert complete(prompt, f"xnatctl session download -E {id} -r D") == ["DATA"]


def test_a_session_without_resources_has_none(prompt):
    assert prompt.ctl("resource", "list", "-E", "XNAT_E00002", "-q").out == ""


@WAYS
def test_what_has_no_scans_is_copied_with_its_resources(prompt, way, tmp_path):
    prompt.ctl("session", "download", *named(prompt, QC, way), "--out", tmp_path)
    (folder,) = tmp_path.iterdir()
    assert copied(folder) == {
        "resources/DATA/files/rating.json": RATING,
        "resources/LOG/files/a/log.txt": b"done\n",
    }
    assert "Up to date: 2 files" in prompt.ctl("session", "download", *named(prompt, QC, way), "--out", tmp_path).err
    assert (
        "Verified 2 files"
        in prompt.ctl("session", "download", *named(prompt, QC, way), "--out", tmp_path, "--verify").err
    )
    tests = named(prompt, "SUB001_TESTS", way)
    prompt.ctl("session", "download", *tests, "--out", tmp_path / "tests")
    (folder,) = (tmp_path / "tests").iterdir()
    assert copied(folder) == {"resources/SHEETS/files/sheet.csv": b"1,2\n"}


@WAYS
def test_one_resource_of_an_assessor_is_copied(prompt, way, tmp_path):
    prompt.ctl("resource", "download", *named(prompt, QC, way), "LOG", "--out", tmp_path)
    (folder,) = tmp_path.iterdir()
    assert copied(folder) == {"resources/LOG/files/a/log.txt": b"done\n"}
    done = prompt.ctl("resource", "download", *named(prompt, QC, way), "NOPE", "--out", tmp_path, status=5)
    assert "resource NOPE is not there" in done.err


@WAYS
def test_files_go_to_where_an_assessor_has_its_own(prompt, way):
    label = f"NEW_{way}"
    (prompt.home / "more.txt").write_text("more")
    prompt.ctl("resource", "upload", *named(prompt, QC, way), label, "more.txt")
    assert label in prompt.ctl("resource", "list", *named(prompt, QC, way), "-q").lines
    (row,) = prompt.ctl("resource", "show", *named(prompt, QC, way), label, "-o", "json").rows
    assert (row["name"], row["size"]) == ("more.txt", 4)
    assert "Up to date" in prompt.ctl("resource", "upload", *named(prompt, QC, way), label, "more.txt").err
    (assessor,) = [each for each in prompt.app.archive.experiments.values() if each.label == QC]
    for resources in (assessor.out, assessor.resources):
        resources[:] = [each for each in resources if each.label != label]
    prompt.app.archive.changed()


@pytest.mark.parametrize("status", [404, 500, 200])
def test_releases_answer_differently(prompt, status):
    """Without scans they answer 500, 404 or an empty list; without resources of its own 404 or an empty list."""
    id = accession(prompt, QC)
    empty = json.dumps({"ResultSet": {"Result": [], "totalRecords": "0"}}).encode()

    def answer(request: Request) -> Reply | None:
        if request.path in (f"/data/experiments/{id}/scans", f"/data/experiments/{id}/resources"):
            return Reply(200, empty, "application/json") if status == 200 else Reply(status, b"", "text/html")
        return None

    prompt.app.faults.append(answer)
    try:
        assert "it has no scans" in prompt.ctl("scan", "list", "-E", id).err
        assert prompt.ctl("resource", "list", "-E", id, "-q").lines == ["DATA", "LOG"]
        assert prompt.ctl("session", "show", "-E", id, "-q").out == f"{id}\n"
    finally:
        prompt.app.faults.remove(answer)


def test_a_server_that_lists_an_assessors_resources_with_it_is_believed(prompt):
    id = accession(prompt, QC)
    row = {"xnat_abstractresource_id": "1", "label": "OWN", "category": "assessors", "cat_id": id}

    def answer(request: Request) -> Reply | None:
        body = json.dumps({"ResultSet": {"Result": [row]}}).encode()
        return Reply(200, body, "application/json") if request.path == f"/data/experiments/{id}/resources" else None

    prompt.app.faults.append(answer)
    try:
        assert prompt.ctl("resource", "list", "-E", id, "-q").lines == ["OWN"]
    finally:
        prompt.app.faults.remove(answer)
