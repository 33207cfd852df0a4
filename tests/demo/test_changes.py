"""Test that the demo takes changes as an XNAT does, traps included (XNAT REST contract 10)."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.changing import (
    ADMIN,
    COLLABORATOR,
    MEMBER,
    OUTSIDER,
    OWNER,
    column,
    rows,
    tar_of,
    zip_of,
)
from xnatfs.demo.fixtures.lab import PASSWORDS
from xnatfs.demo.server.socket import serve

SESSION = "/data/experiments/DEMO_E00001"
BELOW = "/data/projects/P/subjects/S/experiments/E"
DICOM = f"{SESSION}/scans/1/resources/DICOM/files"
MR = "xsiType=xnat:mrSessionData"


def raw(
    who: httpx.Client, path: str, content: bytes = b"new", type: str = "application/octet-stream"
) -> httpx.Response:
    return who.put(path, content=content, headers={"content-type": type})


# -- items -----------------------------------------------------------------------------------------------------


def test_a_project_is_made_and_belongs_to_who_made_it(client):
    jane = client(OUTSIDER)
    assert jane.put("/data/projects/NEW?name=New&accessibility=protected&description=d").status_code == 200
    assert jane.get("/data/projects/NEW/accessibility").text == "protected"
    assert column(jane.get("/data/projects?owner=true"), "id") == ["NEW"]
    assert jane.put("/data/projects/NEW?description=other").status_code == 200


def test_a_project_has_aliases(owner):
    assert owner.put("/data/projects/P?alias=OLD").status_code == 200
    assert column(owner.get("/data/projects/OLD/subjects"), "label") == ["S"]
    assert owner.put("/data/projects/OLD/subjects/S2").status_code == 201
    assert owner.put("/data/projects/old").status_code == 409


def test_a_site_may_keep_projects_to_its_admins(demo, client):
    demo.site.users_create_projects = False
    assert client(OUTSIDER).put("/data/projects/NEW").status_code == 403
    assert client(ADMIN).put("/data/projects/NEW").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [("a.b", 417), ("p", 409), ("NEW?name=another", 409), ("NEW?secondary_ID=q", 409), ("NEW?accessibility=x", 400)],
)
def test_an_id_and_a_title_of_a_project_are_its_own(owner, path, status):
    assert owner.put(f"/data/projects/{path}").status_code == status


def test_the_id_of_a_deleted_project_is_never_given_again(owner):
    assert owner.delete("/data/projects/Q?removeFiles=true").status_code == 200
    assert owner.get("/data/projects/Q").status_code == 404
    assert owner.put("/data/projects/q").status_code == 409


def test_a_subject_is_made_then_changed_and_the_answer_is_its_accession_id(owner):
    made = owner.put("/data/projects/P/subjects/S2?gender=female&yob=1980")
    assert (made.status_code, made.text) == (201, "DEMO_S00002")
    assert made.headers["content-type"].startswith("text/plain")
    assert made.headers["content-length"] == "11"
    again = owner.put("/data/projects/P/subjects/S2?group=b")
    assert (again.status_code, again.text) == (200, "DEMO_S00002")
    (item,) = owner.get("/data/projects/P/subjects/S2?format=json").json()["items"]
    (about,) = [child["items"] for child in item["children"] if child["field"] == "demographics"]
    assert about[0]["data_fields"] == {"gender": "female", "yob": 1980}
    (row,) = [r for r in rows(owner.get("/data/projects/P/subjects?columns=label,gender,group")) if r["label"] == "S2"]
    assert (row["gender"], row["group"]) == ("female", "b")


def test_a_session_is_made_and_its_subject_by_the_way(owner):
    made = owner.put(f"/data/projects/P/subjects/NEW/experiments/E2?{MR}&date=02/03/2024")
    assert (made.status_code, made.text) == (201, "DEMO_E00002")
    (row,) = [r for r in rows(owner.get("/data/projects/P/experiments")) if r["label"] == "E2"]
    assert (row["date"], row["xsiType"]) == ("2024-02-03", "xnat:mrSessionData")
    assert "NEW" in column(owner.get("/data/projects/P/subjects"), "label")
    assert owner.put(f"/data/projects/P/subjects/NEW/experiments/E2?{MR}").status_code == 200


def test_a_session_without_a_type_is_none(owner):
    refused = owner.put("/data/projects/P/subjects/S/experiments/E2")
    assert (refused.status_code, "Need PUT Contents" in refused.text) == (417, True)


@pytest.mark.parametrize("label", ["a.b", "a%20b", "a+b"])
def test_labels_are_letters_digits_underscores_and_hyphens(owner, label):
    assert owner.put(f"/data/projects/P/subjects/{label}").status_code == 417
    assert owner.put(f"/data/projects/P/subjects/S/experiments/{label}?{MR}").status_code == 417


def test_one_label_for_all_experiments_of_a_project(owner):
    assert owner.put("/data/projects/P/subjects/S2").status_code == 201
    assert owner.put(f"/data/projects/P/subjects/S2/experiments/E?{MR}").status_code == 409
    path = f"{SESSION}/assessors/E?xsiType=xnat:qcManualAssessorData"
    assert owner.put(path).status_code == 409


def test_an_assessor(owner):
    made = owner.put(f"{SESSION}/assessors/QC?xsiType=xnat:qcManualAssessorData")
    assert made.status_code == 201
    assert column(owner.get(f"{SESSION}/assessors"), "ID") == [made.text]


def test_scans(owner):
    path = f"{SESSION}/scans/2"
    assert owner.put(path).status_code == 400
    assert owner.put(f"{path}?xsiType=xnat:imageScanData").status_code == 400
    made = owner.put(f"{path}?xsiType=xnat:mrScanData&type=T2&quality=usable")
    assert (made.status_code, made.content) == (200, b"")
    assert owner.put(f"{path}?xsiType=xnat:ctScanData").status_code == 409
    assert owner.put(f"{path}?type=T2w").status_code == 200
    assert column(owner.get(f"{SESSION}/scans"), "type") == ["T1", "T2w"]
    assert owner.put("/data/experiments/BAD/scans/1?xsiType=xnat:mrScanData").status_code == 404


def test_reconstructions(owner):
    assert owner.put(f"{SESSION}/reconstructions/mean?type=average").status_code == 200
    assert column(owner.get(f"{SESSION}/reconstructions"), "type") == ["average"]


@pytest.mark.parametrize("query", ["date=tomorrow", "date=31/12/2024", f"note={'x' * 256}"])
def test_values_that_cannot_be_stored(owner, query):
    assert owner.put(f"{BELOW}?{query}").status_code == 400


def test_a_new_item_of_a_list_is_answered_with_its_address(demo, owner):
    demo.site.url = "http://site/xnat"
    made = owner.post("/data/projects/P/subjects?label=S2")
    assert (made.status_code, made.text) == (200, "http://site/xnat/data/projects/P/subjects/DEMO_S00002")
    assert made.headers["location"] == made.text
    scan = owner.post(f"{SESSION}/scans?ID=7&xsiType=xnat:mrScanData")
    assert scan.text == f"http://site/xnat{SESSION}/scans/7"


def test_documents_make_items_and_the_query_counts_more(owner):
    document = (
        '<xnat:CTSession xmlns:xnat="http://nrg.wustl.edu/xnat"><xnat:date>2024-05-06</xnat:date></xnat:CTSession>'
    )
    path = "/data/projects/P/subjects/S/experiments/CT1"
    assert owner.put(path, content=document).status_code == 201
    (row,) = [r for r in rows(owner.get("/data/projects/P/experiments")) if r["label"] == "CT1"]
    assert (row["xsiType"], row["date"]) == ("xnat:ctSessionData", "2024-05-06")
    assert owner.put(f"{path}?date=01/02/2024", content=document).status_code == 200
    assert owner.put(path, content="<xnat>").status_code == 400
    assert owner.put(path, content="<other/>").status_code == 422


def test_a_site_may_want_reasons(demo, owner):
    demo.site.justification = demo.site.justification = True
    refused = owner.put("/data/projects/P/subjects/S2")
    assert (refused.status_code, "Justification required." in refused.text) == (403, True)
    assert owner.put("/data/projects/P/subjects/S2?event_reason=why").status_code == 201
    assert raw(owner, f"{DICOM}/2.dcm").status_code == 500
    assert raw(owner, f"{DICOM}/2.dcm?event_reason=why").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/data/projects/P/subjects/S2", f"{BELOW}2?{MR}", f"{SESSION}/scans/2?xsiType=xnat:mrScanData", f"{BELOW}?a=b"],
)
def test_who_only_reads_changes_nothing(client, path):
    assert client(COLLABORATOR).put(path).status_code == 403
    assert client(OUTSIDER).put(path).status_code == 404
    assert client("").put(path).status_code == 401


@pytest.mark.parametrize("path", ["/data/projects/P/nonsense", f"{BELOW}/nonsense", f"{SESSION}/scans/1/nonsense"])
def test_unknown_tails_change_nothing(owner, path):
    assert owner.put(path).status_code == 400
    assert owner.delete(path).status_code == 400


def test_what_has_no_route_below_a_project_is_not_changed_there(owner):
    assert owner.delete("/data/projects/P/experiments/E/scans/1").status_code == 400
    assert column(owner.get(f"{SESSION}/scans"), "ID") == ["1"]


def test_a_post_can_stand_for_another_method(owner):
    assert owner.post("/data/projects/P/subjects/S2?method=PUT").status_code == 201


# -- accessibility ---------------------------------------------------------------------------------------------


def test_owners_open_a_project(demo, client, owner):
    opened = owner.put("/data/projects/P/accessibility/public")
    assert (opened.status_code, opened.text) == (200, "public")
    assert client(OUTSIDER).get(SESSION).status_code == 200
    assert client(MEMBER).put("/data/projects/P/accessibility/private").status_code == 403
    assert owner.put("/data/projects/BAD/accessibility/public").status_code == 404
    demo.site.non_private_projects = False
    assert owner.put("/data/projects/P/accessibility/protected").status_code == 403


# -- resources -------------------------------------------------------------------------------------------------


def test_a_resource_is_made_once(owner):
    made = owner.put(f"{SESSION}/resources/logs?format=TXT&content=LOG")
    assert (made.status_code, made.content) == (200, b"")
    (row,) = rows(owner.get(f"{SESSION}/resources"))
    assert (row["label"], row["format"], row["content"], row["file_count"]) == ("logs", "TXT", "LOG", "0")
    again = owner.put(f"{SESSION}/resources/logs")
    assert (again.status_code, "Specified resource already exists." in again.text) == (409, True)


def test_resources_need_the_right_to_edit_and_numbers_must_exist(client, owner):
    assert client(COLLABORATOR).put(f"{SESSION}/resources/logs").status_code == 403
    assert owner.put(f"{SESSION}/resources/99999").status_code == 404
    assert owner.put(f"{SESSION}/resources/it's").status_code == 400


def test_a_resource_without_a_label(owner):
    made = owner.post(f"{SESSION}/resources")
    number = made.text.rpartition("/")[2]
    assert (made.status_code, made.text) == (200, f"{SESSION}/resources/{number}")
    assert column(owner.get(f"{SESSION}/resources"), "label") == [""]


def test_deleting_a_resource_always_succeeds(client, owner):
    assert owner.delete(f"{SESSION}/scans/1/resources/NOSUCH").status_code == 200
    assert client(MEMBER).delete(f"{SESSION}/scans/1/resources/DICOM").status_code == 403
    assert owner.delete(f"{SESSION}/scans/1/resources/DICOM?removeFiles=false").status_code == 200
    assert rows(owner.get(f"{SESSION}/scans/1/resources")) == []


# -- files -----------------------------------------------------------------------------------------------------


def test_a_file_is_put_and_read(owner):
    put = raw(owner, f"{DICOM}/sub/2.dcm?format=DICOM&content=RAW&tags=a,b")
    assert (put.status_code, put.content) == (200, b"")
    assert put.headers["content-type"].startswith("text/plain")
    row = next(row for row in rows(owner.get(DICOM)) if row["Name"] == "2.dcm")
    assert (row["Size"], row["digest"]) == ("3", "22af645d1859cb5ca6da0c484f1f37ea")
    assert (row["file_format"], row["file_content"], row["file_tags"]) == ("DICOM", "RAW", "a,b")
    assert owner.get(f"{DICOM}/sub/2.dcm").content == b"new"


def test_the_resource_is_made_by_the_way_at_every_level(owner):
    for parent in ("/data/projects/P", "/data/projects/P/subjects/S", SESSION, f"{SESSION}/scans/1", BELOW):
        assert raw(owner, f"{parent}/resources/extra/files/{len(parent)}.txt").status_code == 200
        assert str(len(parent)) + ".txt" in column(owner.get(f"{parent}/resources/extra/files"), "Name")
    owner.put(f"{SESSION}/assessors/QC?xsiType=xnat:qcManualAssessorData")
    assert raw(owner, f"{SESSION}/assessors/QC/out/resources/extra/files/a.txt").status_code == 200
    assert column(owner.get(f"{SESSION}/assessors/QC/out/resources/extra/files"), "Name") == ["a.txt"]


def test_who_may_not_edit_is_told_nothing_and_nothing_is_stored(client, owner):
    put = raw(client(COLLABORATOR), f"{DICOM}/2.dcm")
    assert (put.status_code, put.content) == (200, b"")
    assert column(owner.get(DICOM), "Name") == ["1.dcm"]
    assert raw(client(OUTSIDER), f"{DICOM}/2.dcm").status_code == 404


def test_what_is_there_stays_and_only_the_body_says_so(owner):
    put = raw(owner, f"{DICOM}/1.dcm")
    assert (put.status_code, put.json()) == (200, {"duplicates": ["1.dcm"]})
    assert put.headers["content-type"].startswith("text/html")
    assert owner.get(f"{DICOM}/1.dcm").content == b"one"
    assert raw(owner, f"{DICOM}/1.dcm?overwrite=true").content == b""
    assert owner.get(f"{DICOM}/1.dcm").content == b"new"


def test_a_form_holds_one_file_or_several(owner):
    files = [("a", ("x/a.txt", b"A")), ("b", ("größe.txt", b"B")), ("c", ("empty", b""))]
    assert owner.post(f"{DICOM}", files=files).content == b""
    assert {"a.txt", "größe.txt", "empty"} < set(column(owner.get(DICOM), "Name"))
    assert owner.get(f"{DICOM}/empty").content == b""
    assert owner.put(f"{DICOM}/named.txt", files=[("f", ("other.txt", b"C"))]).status_code == 200
    assert owner.get(f"{DICOM}/named.txt").content == b"C"
    assert owner.put(f"{DICOM}/n?inbody=true", files=[("f", ("other.txt", b"C"))]).status_code == 406


def test_large_files_arrive_whole(demo, owner):
    content = bytes(range(256)) * 10_000
    with serve(demo) as url, httpx.Client(base_url=url, auth=("owner", "owner")) as session:
        assert raw(session, f"{DICOM}/raw.bin", content).content == b""
        assert session.post(DICOM, files=[("f", ("form.bin", content)), ("g", ("b", b"x"))]).content == b""
    assert owner.get(f"{DICOM}/raw.bin").content == content
    assert owner.get(f"{DICOM}/form.bin").content == content


def test_a_body_of_no_known_type_is_no_file_unless_it_is_called_one(owner):
    assert raw(owner, f"{DICOM}/2.dcm", type="application/json").status_code == 400
    assert raw(owner, f"{DICOM}/2.dcm?inbody=true", type="application/json").status_code == 200
    nothing = owner.put(f"{DICOM}/3.dcm")
    assert (nothing.status_code, "provide any data" in nothing.text) == (400, True)


def test_a_raw_body_needs_a_length_and_it_must_not_be_0(owner):
    assert raw(owner, f"{DICOM}/2.dcm?inbody=true", b"").status_code == 500
    chunked = owner.put(f"{DICOM}/2.dcm?inbody=true", content=iter([b"new"]))
    assert chunked.status_code == 500
    zipped = owner.put(f"{DICOM}/2.zip", content=iter([b"new"]), headers={"content-type": "application/zip"})
    assert zipped.status_code == 200
    assert column(owner.get(DICOM), "Name") == ["1.dcm", "2.zip"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", zip_of),
        ("a.tar", tar_of),
        ("a.tgz", lambda f: tar_of(f, "w:gz")),
        ("a.tar.gz", lambda f: tar_of(f, "w:gz")),
    ],
)
def test_an_archive_is_unpacked_below_its_folder(owner, name, content):
    files = {"x/y.txt": b"Y", "ü #%.txt": b"U"}
    assert raw(owner, f"{DICOM}/sub/{name}?extract=true", content(files)).content == b""
    uris = [uri.partition("/files/")[2] for uri in column(owner.get(DICOM), "URI")]
    assert set(uris) == {"1.dcm", "sub/x/y.txt", "sub/ü #%.txt"}
    assert owner.get(f"{DICOM}/sub/x/y.txt").content == b"Y"


def test_an_archive_that_was_sent_in_a_form(owner):
    assert owner.post(f"{DICOM}?extract=true", files={"f": ("a.zip", zip_of({"x.txt": b"X"}))}).content == b""
    assert owner.get(f"{DICOM}/x.txt").content == b"X"
    assert owner.post(f"{DICOM}?extract=true", files={"f": ("b.zip", b"no zip")}).status_code == 400


def test_no_file_is_called_like_a_catalogue_and_none_leaves_its_folder(owner):
    assert raw(owner, f"{DICOM}/x_catalog.xml").status_code == 400
    assert raw(owner, f"{DICOM}/a.zip?extract=true", zip_of({"../../x": b"X"})).status_code == 400
    assert raw(owner, f"{DICOM}/a.zip?extract=true", zip_of({"/etc/x": b"X"})).status_code == 400
    assert column(owner.get(DICOM), "Name") == ["1.dcm"]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("a%23b", "a%23b"),
        ("%C3%BC", "%C3%BC"),
        ("a%20%23b", "a #b"),
        ("a%2Bb", "a+b"),
        ("a+b", "a+b"),
        ("a+%20b", "a  b"),
    ],
)
def test_how_a_name_is_stored(owner, sent, stored):
    assert raw(owner, f"{DICOM}/{sent}").content == b""
    assert stored in column(owner.get(DICOM), "Name")


def test_without_a_resource_the_first_one_is_meant(owner):
    assert raw(owner, f"{SESSION}/scans/1/files/2.dcm").content == b""
    assert column(owner.get(DICOM), "Name") == ["1.dcm", "2.dcm"]
    assert raw(owner, f"{SESSION}/files/a.txt").content == b""
    assert column(owner.get(f"{SESSION}/resources"), "label") == [""]


@pytest.mark.parametrize("parent", ["/data/experiments/BAD", f"{SESSION}/scans/9", "/data/projects/P/subjects/X"])
def test_a_missing_parent_is_not_found(owner, parent):
    assert raw(owner, f"{parent}/resources/R/files/a.txt").status_code == 404


@pytest.mark.parametrize(
    ("path", "left"),
    [("/a.txt", ["1.dcm", "c"]), ("/a.t*", ["1.dcm", "c"]), ("/sub", ["1.dcm", "a.txt", "a.txt.bak"]), ("", [])],
)
def test_files_are_deleted_by_how_their_paths_begin(owner, path, left):
    for name in ("a.txt", "a.txt.bak", "sub/c"):
        raw(owner, f"{DICOM}/{name}")
    assert owner.delete(f"{DICOM}{path}").status_code == 200
    assert column(owner.get(DICOM), "Name") == left


def test_deleting_no_file(client, owner):
    missing = owner.delete(f"{DICOM}/never")
    assert (missing.status_code, "No matched files" in missing.text) == (404, True)
    assert owner.delete(f"{DICOM}/never?accept-not-found=true").status_code == 204
    assert owner.delete(f"{SESSION}/resources/NOSUCH/files/x").status_code == 400
    assert client(MEMBER).delete(f"{DICOM}/1.dcm").status_code == 403


def test_a_file_that_is_gone_is_gone_by_number_too(owner):
    number = rows(owner.get(f"{SESSION}/scans/1/resources"))[0]["xnat_abstractresource_id"]
    owner.delete(f"{SESSION}/scans/1/resources/DICOM")
    assert owner.get(f"{SESSION}/resources/{number}/files").status_code == 404


# -- renaming, sharing, moving ---------------------------------------------------------------------------------


def test_renaming(client, owner):
    assert owner.put("/data/projects/P/subjects/S?label=T").status_code == 200
    assert owner.put("/data/projects/P/subjects/T/experiments/E?label=F").status_code == 200
    assert column(owner.get("/data/projects/P/experiments"), "label") == ["F"]
    assert owner.get("/data/projects/P/subjects/S").status_code == 404
    assert owner.put(f"{SESSION}?label=a.b").status_code == 417
    assert client(COLLABORATOR).put(f"{SESSION}?label=G").status_code == 403
    assert owner.put("/data/projects/Q/subjects/T?label=U").status_code == 404


def test_a_label_that_is_taken(owner):
    owner.put(f"/data/projects/P/subjects/S2/experiments/E2?{MR}")
    assert owner.put("/data/projects/P/subjects/S2?label=S").status_code == 409
    assert owner.put("/data/projects/P/experiments/E2?label=E").status_code == 409


def test_sharing(client, owner):
    path = "/data/projects/P/subjects/S/projects/Q"
    assert owner.put(f"{path}?label=SQ").status_code == 200
    assert owner.put(path).status_code == 409
    assert owner.put(f"{SESSION}/projects/Q").status_code == 200
    assert column(owner.get("/data/projects/Q/subjects"), "label") == ["SQ"]
    assert column(owner.get("/data/projects/Q/experiments"), "label") == ["E"]
    assert client(COLLABORATOR).put(f"{SESSION}/projects/Q").status_code == 403
    assert owner.delete(path).status_code == 200
    assert owner.delete(path).status_code == 404


def test_deleting_where_something_is_only_shared_ends_the_sharing(owner):
    owner.put("/data/projects/P/subjects/S/projects/Q")
    assert owner.delete("/data/projects/Q/subjects/S?removeFiles=true").status_code == 200
    assert column(owner.get("/data/projects/P/subjects"), "label") == ["S"]
    assert rows(owner.get("/data/projects/Q/subjects")) == []


def test_moving_to_another_project(owner):
    assert owner.put(f"{BELOW}/projects/Q?primary=true&label=MOVED").status_code == 200
    assert rows(owner.get("/data/projects/P/experiments")) == []
    assert column(owner.get("/data/projects/Q/experiments"), "label") == ["MOVED"]
    assert owner.get(f"{DICOM}/1.dcm").content == b"one"


# -- deleting --------------------------------------------------------------------------------------------------


def test_deleting_items(owner):
    for path, left in ((f"{SESSION}/scans/1", f"{SESSION}/scans"), (SESSION, "/data/projects/P/experiments")):
        assert owner.delete(f"{path}?removeFiles=true").status_code == 200
        assert rows(owner.get(left)) == []
        assert owner.delete(path).status_code == 404
    assert owner.delete("/data/projects/P/subjects/S").status_code == 200
    assert owner.delete("/data/projects/BAD").status_code == 404


def test_deleting_takes_what_is_below_along(owner):
    assert owner.delete("/data/projects/P/subjects/S").status_code == 200
    assert owner.get(SESSION).status_code == 404


def test_only_owners_delete(client, demo):
    for path in (SESSION, f"{SESSION}/scans/1", "/data/projects/P", "/data/projects/P/subjects/S"):
        assert client(MEMBER).delete(path).status_code == 403
        assert client(OUTSIDER).delete(path).status_code == 404
    demo.site.deletion = False
    assert client(OWNER).delete(SESSION).status_code == 403


def test_no_accession_id_is_given_twice(owner):
    owner.delete(SESSION)
    assert owner.put(f"/data/projects/P/subjects/S/experiments/E?{MR}").text == "DEMO_E00002"


# -- many at once ----------------------------------------------------------------------------------------------


def test_many_put_and_read_at_once(demo):
    """Put and list over a connection each; nothing is lost, and no listing is half a listing."""
    with serve(demo) as url:

        def one(number: int) -> int:
            with httpx.Client(base_url=url, auth=("owner", "owner")) as session:
                put = raw(session, f"{SESSION}/resources/many/files/{number}.txt", str(number).encode())
                subject = session.put(f"/data/projects/P/subjects/S{number}")
                listed = session.get("/data/projects/P/subjects")
                return max(put.status_code, subject.status_code, listed.status_code)

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(one, range(40))) == {201}
        with httpx.Client(base_url=url, auth=("owner", "owner")) as session:
            assert len(rows(session.get(f"{SESSION}/resources/many/files"))) == 40
            assert len(rows(session.get("/data/projects/P/subjects"))) == 41


def test_uploads_are_gone_when_the_server_is(tmp_path):
    command = [sys.executable, "-m", "xnatfs.demo", "--until-eof"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with httpx.Client(base_url=url, auth=("demo-owner", PASSWORDS["demo-owner"])) as session:
            path = "/data/projects/BRAINS/resources/protocol/files/big.bin"
            assert raw(session, path, b"x" * 3_000_000).content == b""
            assert session.get(path).content == b"x" * 3_000_000
        assert len(list(tmp_path.rglob("*"))) == 2
        server.communicate()
    assert list(tmp_path.iterdir()) == []
