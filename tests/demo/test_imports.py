"""Test the demo's import service (XNAT REST contract 11)."""

import re
from typing import Any

import httpx
import pytest

from tests.support.changing import (
    COLLABORATOR,
    MEMBER,
    OUTSIDER,
    OWNER,
    column,
    images,
    rows,
    tar_of,
    zip_of,
)
from xnatfs.demo.fixtures import phantom
from xnatfs.demo.server.releases import XNAT_1_6, XNAT_1_8, XNAT_1_11

IMPORT = "/data/services/import"
PREARCHIVE = "/data/prearchive/projects/P"
NAMED = "project=P&subject=NEW&session=NEW_MR"
ZIP = "application/zip"


def send(who: httpx.Client, query: str, content: Any = None, type: str = ZIP) -> httpx.Response:
    """Send a raw body; without content, a zip of one series."""
    content = zip_of(images()) if content is None else content
    return who.post(f"{IMPORT}?inbody=true&{query}", content=content, headers={"content-type": type})


def status(who: httpx.Client) -> list[str]:
    return column(who.get(PREARCHIVE), "status")


def files_of(who: httpx.Client, session: str) -> dict[str, list[str]]:
    """Return the names of the files of each scan of an archived session."""
    base = f"/data/projects/P/experiments/{session}?format=json"
    accession = who.get(base).json()["items"][0]["data_fields"]["ID"]
    below = f"/data/experiments/{accession}/scans"
    return {id: column(who.get(f"{below}/{id}/files"), "Name") for id in column(who.get(below), "ID")}


# -- what is sent ----------------------------------------------------------------------------------------------


def test_a_zip_becomes_a_session_of_the_prearchive_and_the_answer_is_its_uri(owner):
    reply = send(owner, NAMED)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/uri-list")
    assert re.fullmatch(r"/data/prearchive/projects/P/\d{8}_\d{9}/NEW_MR\r\n", reply.text)
    (row,) = rows(owner.get(PREARCHIVE))
    assert (row["subject"], row["name"], row["status"]) == ("NEW", "NEW_MR", "RECEIVING")
    assert row["tag"] == phantom.uid("study", "study")
    assert (row["scan_date"], row["scan_time"]) == ("2024-01-02 00:00:00.0", "10:11:01")


@pytest.mark.parametrize(
    ("type", "content"),
    [
        ("application/x-tar", tar_of(images())),
        ("application/x-gtar", tar_of(images(), "w:gz")),
        (ZIP, zip_of(images())),
    ],
)
def test_the_format_of_a_raw_body_is_told_by_its_type(owner, type, content):
    assert send(owner, NAMED, content, type).status_code == 200


def test_a_type_that_says_nothing_is_an_unsupported_format(owner):
    reply = send(owner, NAMED, type="application/octet-stream")
    assert (reply.status_code, "Unsupported format" in reply.text) == (400, True)


@pytest.mark.parametrize(
    ("name", "content"), [("a.zip", zip_of(images())), ("a.tar", tar_of(images())), ("a.tgz", tar_of(images(), "w:gz"))]
)
def test_a_form_holds_one_file_and_may_hold_the_parameters(owner, name, content):
    form = {"project": "P", "subject": "NEW", "session": "NEW_MR"}
    reply = owner.post(IMPORT, data=form, files={"image": (name, content)})
    assert reply.text.endswith("/NEW_MR\r\n")
    two = [("a", (name, content)), ("b", (name, content))]
    assert owner.post(f"{IMPORT}?{NAMED}", files=two).status_code == 400
    assert owner.post(f"{IMPORT}?{NAMED}&inbody=true", files=two[:1]).status_code == 406


def test_nothing_sent(owner):
    assert owner.post(f"{IMPORT}?{NAMED}").status_code == 400
    assert send(owner, NAMED, b"").status_code == 400
    assert send(owner, NAMED, b"", "application/x-tar").status_code == 500
    assert send(owner, NAMED, zip_of({})).status_code == 400
    assert status(owner) == []


def test_a_raw_body_of_a_known_type_need_not_be_called_one(owner):
    for type, status in ((ZIP, 200), ("application/json", 400)):
        reply = owner.post(f"{IMPORT}?{NAMED}", content=zip_of(images()), headers={"content-type": type})
        assert reply.status_code == status


def test_only_a_zip_may_come_without_a_length(owner):
    assert send(owner, NAMED, iter([zip_of(images())])).status_code == 200
    assert send(owner, NAMED, iter([tar_of(images())]), "application/x-tar").status_code == 500


def test_archives_in_archives_are_unpacked(owner):
    inner = tar_of(images(number=2), "w:gz")
    outer = zip_of({**images(), "more/inner.tgz": inner})
    uri = send(owner, NAMED, outer).text.strip()
    assert column(owner.get(f"{uri}/scans"), "ID") == ["1", "2"]


def test_what_is_no_dicom_spoils_a_zip_unless_it_may_be_there(owner):
    content = zip_of({**images(), "README.txt": b"hello"})
    assert send(owner, NAMED, content).status_code == 400
    assert send(owner, f"{NAMED}&Ignore-Unparsable=true", content).status_code == 200
    assert send(owner, f"{NAMED}&import-handler=SI", content).status_code == 200
    assert send(owner, f"{NAMED}&Ignore-Unparsable=true", zip_of({"a": b"a"})).status_code == 400
    assert send(owner, NAMED, b"no zip").status_code == 400


@pytest.mark.parametrize("handler", ["si", "DICOM-ZIP", "nonsense"])
def test_handlers_have_exact_names(owner, handler):
    assert send(owner, f"{NAMED}&import-handler={handler}").status_code == 404


def test_single_objects_gather_in_one_session(owner):
    uris = {send(owner, NAMED, one, "application/dicom").text for one in images().values()}
    (uri,) = uris
    (row,) = rows(owner.get(f"{uri.strip()}/scans/1/resources"))
    assert (row["label"], row["file_count"]) == ("DICOM", "2")
    assert send(owner, NAMED, b"none", "application/dicom").status_code == 400


def test_it_is_posted(owner):
    assert owner.put(f"{IMPORT}?{NAMED}").status_code == 405


# -- where it goes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["project=P&subject=A&session=B", "PROJECT_ID=P&SUBJECT_ID=A&EXPT_LABEL=B"])
def test_parameters_have_two_names(owner, names):
    send(owner, names)
    assert (column(owner.get(PREARCHIVE), "subject"), column(owner.get(PREARCHIVE), "name")) == (["A"], ["B"])


def test_without_labels_the_header_says_who_it_is(owner):
    uri = send(owner, "dest=/prearchive/projects/P", zip_of(images(patient="PAT 1"))).text
    assert uri.endswith("/PAT_1\r\n")


def test_without_a_project_it_is_unassigned(client, owner):
    uri = send(owner, "").text
    assert uri.startswith("/data/prearchive/projects/Unassigned/")
    assert rows(owner.get("/data/prearchive")) == []
    assert column(client("admin").get("/data/prearchive"), "project") == ["Unassigned"]


@pytest.mark.parametrize("dest", ["/nowhere", "archive", "/archive/projects", "/prearchive/projects/P/x"])
def test_other_destinations_are_none(owner, dest):
    assert send(owner, f"dest={dest}&{NAMED}").status_code == 400


def test_into_the_archive(owner):
    reply = send(owner, "import-handler=SI&dest=/archive/projects/P/subjects/NEW/experiments/NEW_MR")
    assert reply.text == "/data/archive/projects/P/subjects/NEW/experiments/NEW_MR\r\n"
    assert status(owner) == []
    assert column(owner.get("/data/projects/P/experiments"), "label") == ["E", "NEW_MR"]
    assert files_of(owner, "NEW_MR") == {"1": ["IM0", "IM1"]}
    session = owner.get("/data/projects/P/subjects/NEW/experiments/NEW_MR/scans/1/resources/DICOM/files/IM0")
    assert session.content == images()["1/IM0"]
    archive = owner.get("/data/projects/P/subjects/NEW/experiments/NEW_MR/scans/ALL/files?format=zip")
    assert images()["1/IM1"] in archive.content


def test_a_prearchive_session_is_ready_at_once_by_si_only(owner):
    send(owner, f"{NAMED}&import-handler=SI")
    assert status(owner) == ["READY"]


def test_a_commit_builds_and_where_wanted_archives(owner):
    assert "/data/prearchive/" in send(owner, f"{NAMED}&action=commit").text
    assert status(owner) == ["READY"]
    reply = send(owner, "project=P&subject=B&session=B_MR&action=commit&AA=true")
    assert reply.text == "/data/archive/projects/P/subjects/B/experiments/B_MR\r\n"


def test_silence_ends_receiving(owner, clock):
    send(owner, NAMED)
    clock.now += 299
    assert status(owner) == ["RECEIVING"]
    clock.now += 1
    assert status(owner) == ["READY"]


def test_a_project_that_archives_by_itself(owner, clock):
    assert owner.put("/data/projects/P/prearchive_code/4").status_code == 200
    send(owner, NAMED)
    assert column(owner.get(PREARCHIVE), "autoarchive") == ["AutoArchive"]
    clock.now += 300
    assert status(owner) == []
    assert "NEW_MR" in column(owner.get("/data/projects/P/experiments"), "label")
    reply = send(owner, "project=P&subject=B&session=B_MR&import-handler=SI")
    assert reply.text == "/data/archive/projects/P/subjects/B/experiments/B_MR\r\n"


def test_directly_into_the_archive(demo, owner, clock):
    demo.site.work = 2.0
    uid = phantom.uid("study", "study")
    for one in images().values():
        reply = send(owner, f"{NAMED}&Direct-Archive=true", one, "application/dicom")
        assert reply.text == f"/xapi/direct-archive/P/{uid}/NEW_MR\r\n"
    assert status(owner) == []
    clock.now += 6
    assert len(files_of(owner, "NEW_MR")["1"]) == 2


# -- what it is made of ----------------------------------------------------------------------------------------


def test_series_become_scans(owner):
    content = zip_of({**images(), **images(number=2, modality="CT"), **images(number=3)})
    send(owner, f"{NAMED}&import-handler=SI&dest=/archive", content)
    listing = rows(owner.get("/data/projects/P/subjects/NEW/experiments/NEW_MR/scans?sortBy=ID"))
    assert [(row["ID"], row["type"], row["xsiType"]) for row in listing] == [
        ("1", "series 1", "xnat:mrScanData"),
        ("2", "series 2", "xnat:ctScanData"),
        ("3", "series 3", "xnat:mrScanData"),
    ]
    assert set(files_of(owner, "NEW_MR")) == {"1", "2", "3"}


def test_studies_become_sessions(owner):
    content = zip_of({**images(), **{f"b/{name}": one for name, one in images("other").items()}})
    lines = send(owner, "project=P", content).text.split("\r\n")
    assert len(lines) == 3
    assert len(rows(owner.get(PREARCHIVE))) == 2


def test_another_series_of_the_same_number_gets_an_id_of_its_own(owner):
    send(owner, f"{NAMED}&import-handler=SI&dest=/archive")
    again, uid = images(), phantom.uid("series", "study", 1).encode()
    other = {name: one.replace(uid, b"1" * 2 + uid[2:]) for name, one in again.items()}
    assert other != again
    send(owner, f"{NAMED}&import-handler=SI&dest=/archive&overwrite=append", zip_of(other))
    assert set(files_of(owner, "NEW_MR")) == {"1", "1-MR1"}


@pytest.mark.parametrize(("query", "renamed"), [("", True), ("&rename=false", False)])
def test_files_are_called_by_their_uids(owner, query, renamed):
    send(owner, f"{NAMED}{query}&action=commit&AA=true")
    names = files_of(owner, "NEW_MR")["1"]
    assert all(name.startswith(phantom.uid("study", "study")) == renamed for name in names)


# -- what is there already -------------------------------------------------------------------------------------


def test_a_session_that_is_there_is_a_conflict(owner):
    into = f"{NAMED}&dest=/archive"
    assert send(owner, f"{into}&import-handler=SI").status_code == 200
    assert send(owner, f"{into}&import-handler=SI").status_code == 409
    assert send(owner, f"{into}&action=commit").status_code == 400
    assert status(owner) == ["CONFLICT"]


def test_appending_adds_scans_and_replaces_files_only_if_told(owner):
    into = f"{NAMED}&dest=/archive&import-handler=SI"
    send(owner, into)
    assert send(owner, f"{into}&overwrite=append", zip_of(images(number=2))).status_code == 200
    assert set(files_of(owner, "NEW_MR")) == {"1", "2"}
    assert send(owner, f"{into}&overwrite=append").status_code == 409
    assert send(owner, f"{into}&overwrite=append&overwrite_files=true").status_code == 200
    assert files_of(owner, "NEW_MR")["1"] == ["IM0", "IM1"]


def test_replacing_needs_the_right_to_delete(client, owner):
    into = f"{NAMED}&dest=/archive&import-handler=SI"
    send(owner, into)
    assert send(client(MEMBER), f"{into}&overwrite=delete").status_code == 403
    assert send(owner, f"{into}&overwrite=delete").status_code == 200


@pytest.mark.parametrize("query", ["overwrite=nonsense", "prearchive_code=1&overwrite=none"])
def test_overwrites_that_are_none(owner, query):
    assert send(owner, f"{NAMED}&{query}").status_code == 400


def test_straight_into_the_archive_by_a_code(owner):
    reply = send(owner, f"{NAMED}&import-handler=SI&prearchive_code=1")
    assert reply.text.startswith("/data/archive/")


def test_a_session_at_work_takes_nothing_for_the_moment(demo, owner, clock):
    demo.site.work = 10.0
    uri = send(owner, NAMED).text.strip()
    owner.post(f"{uri}?action=build")
    clock.now += 6
    assert status(owner) == ["_BUILDING"]
    assert send(owner, NAMED).status_code == 400
    clock.now += 6
    assert send(owner, NAMED).status_code == 200


# -- permissions -----------------------------------------------------------------------------------------------


def test_who_may_import(client):
    assert send(client(MEMBER), NAMED).status_code == 200
    assert send(client(""), NAMED).status_code == 401
    si = f"{NAMED}&import-handler=SI"
    assert send(client(COLLABORATOR), si).status_code == 403
    assert send(client(OUTSIDER), si).status_code == 404
    assert send(client(OWNER), "project=BAD&import-handler=SI").status_code == 404


@pytest.mark.parametrize("release", [XNAT_1_6, XNAT_1_8, XNAT_1_11], ids=lambda release: release.name)
@pytest.mark.parametrize("query", ["import-handler=DICOM-zip", "import-handler=gradual-DICOM"])
@pytest.mark.parametrize(("user", "project"), [(COLLABORATOR, "P"), (OUTSIDER, "P"), (MEMBER, "BAD")])
def test_without_the_right_to_create_it_is_taken_and_unassigned(client, query, user, project):
    gradual = "gradual" in query
    content, type = (images()["1/IM0"], "application/dicom") if gradual else (zip_of(images()), ZIP)
    named = f"dest=/prearchive/projects/{project}&project={project}&subject=NEW&session=NEW_MR"
    reply = send(client(user), f"{named}&{query}", content, type)
    assert (reply.status_code, reply.text[:39]) == (200, "/data/prearchive/projects/Unassigned/20")
    assert column(client("admin").get("/data/prearchive"), "project") == ["Unassigned"]


# -- releases --------------------------------------------------------------------------------------------------

OURS = f"import-handler=DICOM-zip&{NAMED}&dest=/prearchive/projects/P"


@pytest.mark.parametrize("release", [XNAT_1_6])
def test_an_old_release_answers_a_tar_with_nothing_and_stores_nothing(owner):
    reply = send(owner, OURS, tar_of(images()), "application/x-tar")
    assert (reply.status_code, reply.content) == (200, b"")
    assert rows(owner.get(PREARCHIVE)) == []


@pytest.mark.parametrize("release", [XNAT_1_6])
def test_an_old_release_takes_no_zip_without_a_length_and_names_it_by_its_header(owner):
    refused = send(owner, OURS, iter([zip_of(images())]))
    assert (refused.status_code, "must include the file directly as the body" in refused.text) == (400, True)
    assert send(owner, OURS).text.endswith("/PAT\r\n")
    assert send(owner, NAMED).text.startswith("/data/prearchive/projects/Unassigned/")  # without `dest`
    for content in images().values():
        reply = send(owner, NAMED.replace("NEW_MR", "OTHER") + "&import-handler=gradual-DICOM", content)
        assert reply.text.endswith("/OTHER\r\n")
    assert send(owner, f"{NAMED}&Direct-Archive=true&import-handler=gradual-DICOM", content).text.startswith(PREARCHIVE)
    assert send(owner, "project=BAD&import-handler=SI").status_code == 500


@pytest.mark.parametrize("release", [XNAT_1_11])
def test_a_new_release_builds_what_comes_with_a_destination(owner):
    send(owner, NAMED)
    assert status(owner) == ["RECEIVING"]
    send(owner, OURS)
    assert status(owner) == ["READY"]


# -- from the user's own space ---------------------------------------------------------------------------------

CACHE = "/data/user/cache/resources"


def test_files_wait_in_a_space_of_ones_own(client, owner):
    put = owner.put(f"{CACHE}/mine/files/a/b.zip", content=b"new", headers={"content-type": ZIP})
    assert put.status_code == 201
    assert owner.put(f"{CACHE}/mine").status_code == 412
    assert rows(owner.get(CACHE)) == [{"Resource": "mine", "URI": f"{CACHE}/mine"}]
    (row,) = rows(owner.get(f"{CACHE}/mine/files"))
    assert row == {"Name": "a/b.zip", "Size": "3", "URI": f"{CACHE}/mine/files/a/b.zip"}
    assert owner.get(row["URI"]).content == b"new"
    assert rows(client(MEMBER).get(CACHE)) == []
    assert owner.delete(row["URI"]).status_code == 200
    assert owner.get(row["URI"]).status_code == 404


def test_they_are_imported_from_there(client, owner):
    owner.put(f"{CACHE}/mine/files/a.zip", content=zip_of(images()), headers={"content-type": ZIP})
    source = "/user/cache/resources/mine/files/a.zip"
    assert owner.post(f"{IMPORT}?{NAMED}", data={"src": source}).text.endswith("/NEW_MR\r\n")
    assert client(MEMBER).post(f"{IMPORT}?{NAMED}", data={"src": source}).status_code == 400
