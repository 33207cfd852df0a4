"""Test that the demo server answers what an XNAT answers, traps included.

The client of xnatfs takes no part in this.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.changing import rows
from xnatfs.demo.fixtures.lab import PASSWORDS, DemoArchive
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.reply import Reply

OWNER, COLLABORATOR, OUTSIDER, ADMIN = "demo-owner", "demo-collaborator", "demo-outsider", "demo-admin"
SESSION = "DEMO_E00001"
ACCESSIONS = f"/data/experiments/{SESSION}"
SUBJECT_PATH = "/data/projects/BRAINS/subjects/SUB001"

Clients = Callable[..., httpx.Client]


@pytest.fixture(scope="module")
def archive() -> DemoArchive:
    return DemoArchive()


@pytest.fixture
def owner(client: Clients) -> httpx.Client:
    return client(OWNER)


def column(response: httpx.Response, name: str) -> list[str]:
    return [row[name] for row in rows(response)]


def resource_id(owner: httpx.Client, scan: str, label: str) -> str:
    listing = rows(owner.get(f"{ACCESSIONS}/scans/{scan}/resources"))
    return next(row["xnat_abstractresource_id"] for row in listing if row["label"] == label)


def test_documents_have_what_belongs_to_an_item(owner):
    def children(path: str) -> dict[str, list[str]]:
        (item,) = owner.get(f"{path}?format=json").json()["items"]
        return {child["field"]: [each["meta"]["xsi:type"] for each in child["items"]] for child in item["children"]}

    resource = ["xnat:resourceCatalog"]
    assert children(SUBJECT_PATH)["resources/resource"] == resource
    assert children(SUBJECT_PATH)["sharing/share"] == ["xnat:projectParticipant"]
    session = children(ACCESSIONS)
    assert session["reconstructions/reconstructedImage"] == ["xnat:reconstructedImageData"]
    assert session["sharing/share"] == ["xnat:experimentData_share"]
    segmentation = children(f"{ACCESSIONS}/assessors/SUB001_MR1_SEG")
    assert (segmentation["out/file"], segmentation["in/file"]) == (resource, resource)


def test_the_users_and_the_data_types_of_a_site_are_lists(owner):
    people = owner.get("/data/users?format=json").json()["ResultSet"]
    assert people["title"] == "Projects"
    assert OUTSIDER in [row["login"] for row in people["Result"]]
    kinds = owner.get("/data/search/elements?format=json").json()["ResultSet"]
    assert kinds["title"] == "Data-Types"
    assert {"MR Session", "PET Session"} <= {row["SINGULAR"] for row in kinds["Result"]}


# -- sessions --------------------------------------------------------------------------------------------------


def test_a_closed_site_wants_a_login_and_tells_browsers_where(client):
    refused = client().get("/data/projects")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic realm=")
    shown = client(**{"user-agent": "Mozilla/5.0"}).get("/data/projects")
    assert (shown.status_code, shown.headers["location"]) == (302, "/app/template/Login.vm")


def test_even_a_refused_request_opens_a_session(client):
    cookies = client().get("/data/projects").headers.get_list("set-cookie")
    assert any(cookie.startswith("JSESSIONID=") and "HttpOnly" in cookie for cookie in cookies)
    assert any(cookie.startswith('SESSION_EXPIRATION_TIME="') for cookie in cookies)


def test_basic_makes_a_session_and_the_body_is_its_id(demo, client):
    session = client()
    reply = session.get("/data/JSESSION", auth=(OWNER, PASSWORDS[OWNER]))
    assert reply.text == session.cookies["JSESSIONID"]
    assert len(reply.text) == 32
    assert demo.sessions.alive(OWNER) == 1
    assert session.get("/data/auth").text == f"User '{OWNER}' is logged in"


def test_the_expiration_cookie_states_the_idle_time(owner):
    cookies = owner.get("/data/projects").headers.get_list("set-cookie")
    assert 'SESSION_EXPIRATION_TIME="1704164645000,900000"; Version=1; Path=/' in cookies


def test_a_session_dies_of_idleness_not_of_age(owner, clock):
    for _ in range(5):
        clock.now += 800
        assert owner.get("/data/projects").status_code == 200
    clock.now += 901
    assert owner.get("/data/projects").status_code == 401


def test_asking_for_the_session_is_no_check_of_it(client):
    reply = client().get("/data/JSESSION")
    assert (reply.status_code, len(reply.text)) == (200, 32)  # a guest's


def test_delete_ends_the_session(demo, owner):
    assert owner.delete("/data/JSESSION").status_code == 200
    assert demo.sessions.alive(OWNER) == 0
    assert owner.get("/data/projects").status_code == 401


def test_an_open_site_goes_on_as_guest_and_does_not_say_so(demo, owner, clock):
    demo.site.require_login = False
    clock.now += 1000
    assert column(owner.get("/data/projects"), "ID") == ["OPEN", "CLOSED"]
    assert owner.get("/data/projects/BRAINS").status_code == 404
    assert owner.get("/xapi/users/username").status_code == 401
    assert owner.get("/data/auth").text == "User 'guest' is logged in"


def test_wrong_passwords_lock_the_account_for_an_hour(client, clock):
    for _ in range(20):
        assert client().get("/data/projects", auth=(OWNER, "wrong")).status_code == 401
    assert client().get("/data/projects", auth=(OWNER, PASSWORDS[OWNER])).status_code == 401
    clock.now += 3601
    assert client().get("/data/projects", auth=(OWNER, PASSWORDS[OWNER])).status_code == 200


def test_too_many_sessions_look_like_a_wrong_password(demo, client):
    demo.site.max_sessions = 2
    replies = [client().get("/data/projects", auth=(OWNER, PASSWORDS[OWNER])).status_code for _ in range(3)]
    assert replies == [200, 200, 401]


def test_a_password_is_not_looked_at_again_in_its_own_session(owner):
    assert owner.get("/data/projects", auth=(OWNER, "whatever")).status_code == 200


def test_the_form_login(client):
    session = client()
    form = {"username": OWNER, "password": PASSWORDS[OWNER]}
    assert len(session.put("/data/services/auth", data=form).text) == 32
    assert session.get("/xapi/users/username").text == OWNER
    assert client().put("/data/services/auth", data={**form, "password": "x"}).status_code == 401


def test_an_alias_token_is_a_login(client, owner):
    token = owner.get("/data/services/tokens/issue").json()
    session = client()
    session.get("/data/JSESSION", auth=(token["alias"], token["secret"]))
    assert session.get("/xapi/users/username").text == OWNER
    valid = owner.get(f"/data/services/tokens/validate/{token['alias']}/{token['secret']}")
    assert valid.json() == {"valid": OWNER}
    assert owner.get("/data/services/tokens/validate/nobody/x").status_code == 404


def test_browsers_need_a_csrf_token(client):
    browser = client(OWNER, **{"user-agent": "python"})
    assert browser.delete("/data/projects/BRAINS", headers={"user-agent": "Mozilla/5.0"}).status_code == 500


def test_build_information_needs_no_login_and_there_is_no_data_version(client, owner):
    assert client().get("/xapi/siteConfig/buildInfo").json()["version"]
    assert owner.get("/data/version").status_code == 404


# -- tables ----------------------------------------------------------------------------------------------------


def test_every_cell_is_a_string_and_the_total_is_one_too(owner):
    body = owner.get("/data/projects?format=json").json()["ResultSet"]
    assert body["totalRecords"] == str(len(body["Result"]))
    assert {type(value) for row in body["Result"] for value in row.values()} == {str}


@pytest.mark.parametrize("path", ["/data/projects", "/data/archive/projects", "/REST/projects"])
def test_every_item_has_three_addresses(owner, path):
    assert "BRAINS" in column(owner.get(path), "ID")


def test_lists_have_no_length(owner):
    response = owner.get("/data/projects")
    assert response.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in response.headers


def test_columns_replace_the_default_ones_but_for_key_and_uri(owner):
    listing = rows(owner.get("/data/projects/BRAINS/experiments?columns=label,nonsense"))
    assert set(listing[0]) == {"label", "xnat:subjectassessordata/id", "URI"}


def test_other_formats(owner):
    assert owner.get("/data/projects?format=csv").text.splitlines()[0].startswith('"')
    assert owner.get("/data/projects?format=xml").text.startswith("<ResultSet")
    assert "<table" in owner.get("/data/projects?format=html").text


def test_sorting(owner):
    up = column(owner.get("/data/projects?sortBy=ID"), "ID")
    assert up == sorted(up)
    assert column(owner.get("/data/projects?sortBy=ID&sortOrder=DESC"), "ID") == up[::-1]


def test_pages_have_no_total(owner):
    body = owner.get("/data/projects/FIFTY/experiments?limit=7&offset=3").json()["ResultSet"]
    assert len(body["Result"]) == 7
    assert "totalRecords" not in body


def test_asking_for_a_role_is_another_handler_with_other_columns(owner):
    assert {"id", "secondary_id"} <= set(rows(owner.get("/data/projects?owner=true"))[0])


def test_text_is_stored_escaped(owner):
    types = column(owner.get("/data/experiments/0123456789abcdef0123456789abcdef/scans"), "type")
    assert "*a^wk.ward/ scan\\type%?~@&amp;" in types


def test_image_assessors_are_not_among_a_projects_experiments_but_among_the_sites(owner):
    assert "SUB001_MR1_QC" not in column(owner.get("/data/projects/BRAINS/experiments"), "label")
    assert "SUB001_MR1_QC" in column(owner.get("/data/experiments"), "label")
    (rating, *_) = rows(owner.get(f"{ACCESSIONS}/assessors"))
    assert rating["session_ID"] == SESSION


def test_shared_items_have_the_label_of_the_project_that_is_listed(owner):
    subjects = {row["label"]: row for row in rows(owner.get("/data/projects/POOL/subjects"))}
    assert subjects["POOLED-1"]["project"] == "BRAINS"
    sessions = {row["label"]: row for row in rows(owner.get("/data/projects/POOL/experiments"))}
    assert sessions["POOLED-1_MR"]["project"] == "POOL"
    assert column(owner.get(f"{ACCESSIONS}/projects"), "ID") == ["BRAINS", "POOL"]


def test_the_scans_of_a_whole_project_in_one_call(owner):
    columns = "ID,label,subject_label,project,xnat:imagescandata/id,xnat:imagescandata/type"
    path = f"/data/experiments?project=BRAINS&xsiType=xnat:imageSessionData&columns={columns}"
    found = rows(owner.get(path))
    assert {row["xnat:imagescandata/id"] for row in found if row["label"] == "SUB001_MR1"} >= {"1", "2", "4-MR2"}


# -- documents and traps ---------------------------------------------------------------------------------------


def test_a_document_is_html_unless_asked_for(owner):
    assert owner.get(ACCESSIONS).headers["content-type"].startswith("text/html")
    item = owner.get(f"{ACCESSIONS}?format=json").json()["items"][0]
    assert item["data_fields"]["label"] == "SUB001_MR1"
    scan = next(child for child in item["children"] if child["field"] == "scans/scan")["items"][0]
    assert isinstance(scan["data_fields"]["xnat_imagescandata_id"], int)


def test_who_accepts_only_json_gets_no_document(owner):
    headers = {"accept": "application/json"}
    assert owner.get(f"{ACCESSIONS}?format=json", headers=headers).status_code == 406
    assert owner.get("/data/projects", headers=headers).status_code == 200


def test_who_accepts_what_no_list_is_gets_none_whatever_the_format(owner):
    assert owner.get("/data/projects?format=json", headers={"accept": "application/zip"}).status_code == 406


@pytest.mark.parametrize("part", ["scans", "assessors", "reconstructions", "files", "nonsense"])
def test_what_has_no_route_below_a_project_is_the_sessions_document(owner, part):
    document = owner.get(f"/data/projects/BRAINS/experiments/SUB001_MR1/{part}?format=json").json()
    assert document["items"][0]["data_fields"]["ID"] == SESSION


def test_below_a_project_itself_an_unknown_part_is_refused(owner):
    assert owner.get("/data/projects/BRAINS/nonsense").status_code == 400


def test_resources_of_a_missing_session_are_those_of_what_is_above_it(owner):
    above = rows(owner.get("/data/projects/BRAINS/experiments/BAD/resources"))
    assert [row["label"] for row in above] == ["protocol"]
    below = rows(owner.get(f"{SUBJECT_PATH}/experiments/SUB001_MR1/scans/BAD/resources"))
    assert [row["label"] for row in below] == ["notes"]
    assert owner.head("/data/projects/BRAINS/experiments/BAD/resources").status_code == 404
    assert owner.get("/data/projects/BAD/resources").status_code == 404


def test_without_anything_above_it_is_an_error(owner):
    assert owner.get(f"{ACCESSIONS}/scans/BAD/resources").status_code == 404
    assert owner.get(f"{ACCESSIONS}/scans/BAD/files").status_code == 500


def test_scans_of_a_missing_session(owner):
    assert owner.get("/data/experiments/BAD/scans").status_code == 500
    assert owner.get(f"{SUBJECT_PATH}/experiments/BAD/scans").status_code == 404


def test_a_missing_resource_lists_no_files(owner):
    assert rows(owner.get(f"{ACCESSIONS}/resources/NOSUCH/files")) == []
    assert owner.get(f"{ACCESSIONS}/resources/NOSUCH").status_code == 404


def test_labels_are_found_below_their_project_only(owner):
    assert owner.get("/data/experiments/SUB001_MR1").status_code == 404
    assert owner.get("/data/projects/BRAINS/experiments/SUB001_MR1").status_code == 200
    assert owner.get("/data/projects/BRAINS/experiments/sub001_mr1").status_code == 404


# -- resources and files ---------------------------------------------------------------------------------------


def test_what_a_resource_hangs_on_is_told_differently_from_call_to_call(owner):
    plain = rows(owner.get(f"{ACCESSIONS}/resources"))
    assert {(row["category"], row["cat_id"], row["cat_desc"]) for row in plain} == {("resources", SESSION, " ")}
    everything = rows(owner.get(f"{ACCESSIONS}/resources?all=true"))
    assert {(row["category"], row["cat_id"]) for row in everything} >= {
        ("resources", ""),
        ("scans", "1"),
        ("assessors", "DEMO_E00003"),
        ("assessors", "DEMO_E00004"),
        ("reconstructions", "mean"),
    }
    assert {row["cat_id"] for row in rows(owner.get("/data/projects/BRAINS/resources"))} == {""}


def test_files_of_everything_are_grouped_by_their_resource(owner):
    listing = owner.get(f"{ACCESSIONS}/files?all=true").json()["ResultSet"]
    assert "totalRecords" not in listing
    assert listing["Columns"] == [{"key": "URI", "serverRoot": ""}]
    for row in listing["Result"]:
        assert f"/resources/{row['cat_ID']}/files/" in row["URI"]
        assert row["URI"].endswith(row["Name"])


def test_one_resource_is_addressed_as_it_was_asked_for_and_several_canonically(owner):
    number = resource_id(owner, "1", "DICOM")
    path = f"{SUBJECT_PATH}/experiments/SUB001_MR1/scans/1/resources/DICOM/files"
    single = column(owner.get(path), "URI")[0]
    prefix = f"/data/projects/BRAINS/subjects/DEMO_S00001/experiments/{SESSION}/scans/1/resources/{number}/files/"
    assert single.startswith(prefix)
    several = column(owner.get(f"{ACCESSIONS}/scans/ALL/files"), "URI")[0]
    assert several.startswith(f"{ACCESSIONS}/scans/1/resources/")


@pytest.mark.parametrize("scans", ["1,2", "T1"])
def test_scans_by_list_and_by_type(owner, scans):
    one = len(rows(owner.get(f"{ACCESSIONS}/scans/1/resources/DICOM/files")))
    both = rows(owner.get(f"{ACCESSIONS}/scans/{scans}/resources/DICOM/files"))
    assert len(both) > one
    assert {row["URI"].split("/")[5] for row in both} == {"1", "2"}


def test_several_sessions_in_one_list(owner):
    both = column(owner.get(f"/data/experiments/{SESSION},DEMO_E00002/files?all=true"), "URI")
    assert {uri.split("/")[3] for uri in both} >= {SESSION, "DEMO_E00002"}


def test_digits_are_a_number_whatever_is_above_them(owner):
    number = resource_id(owner, "1", "DICOM")
    elsewhere = owner.get(f"/data/projects/BRAINS/resources/{number}/files")
    assert len(rows(elsewhere)) == 40
    assert owner.get("/data/projects/BRAINS/resources/999999/files").status_code == 404


def test_equal_labels_are_listed_together(owner):
    ugly = "/data/experiments/0123456789abcdef0123456789abcdef/scans/1"
    assert len(rows(owner.get(f"{ugly}/resources/MISC/files"))) == 3
    assert owner.get(f"{ugly}/resources/MISC").status_code == 404  # more than one
    assert len(rows(owner.get(f"{ugly}/resources/NULL/files"))) == 2


def test_a_folder_is_listed_by_its_slash(owner):
    ugly = "/data/experiments/0123456789abcdef0123456789abcdef/resources/files/files"
    assert column(owner.get(f"{ugly}/both/"), "Name") == ["below.txt"]
    assert rows(owner.get(f"{ugly}/nowhere/")) == []


def test_recursive_is_the_wrong_way_round(owner):
    ugly = "/data/experiments/0123456789abcdef0123456789abcdef/resources/files/files"
    assert "below.txt" in column(owner.get(f"{ugly}?recursive=false"), "Name")
    assert "what?.txt" not in column(owner.get(f"{ugly}?recursive=false"), "Name")


def test_a_file_by_its_number(owner):
    assert owner.get(f"{ACCESSIONS}/files?index=0").headers["content-disposition"].startswith("attachment")
    assert owner.get(f"{ACCESSIONS}/files?index=99").status_code == 404


def test_one_broken_catalogue_spoils_the_list_of_all(archive, owner):
    logs = next(r for r in archive.experiments[SESSION].resources if r.label == "logs")
    logs.broken = True
    try:
        refused = owner.get(f"{ACCESSIONS}/files?all=true")
        assert refused.status_code == 404
        assert "<b>Message</b> Unable to find file.<" in refused.text
        assert len(rows(owner.get(f"{ACCESSIONS}/scans/1/resources/DICOM/files"))) == 40
    finally:
        logs.broken = False


def test_sizes_and_digests_as_the_catalogue_has_them(owner):
    session = next(row for row in rows(owner.get("/data/projects/FAULTS/experiments")) if row["label"] == "F1_MR")
    files = {row["Name"]: row for row in rows(owner.get(f"/data/experiments/{session['ID']}/files?all=true"))}
    assert files["no-size.dcm"]["Size"] == ""
    assert files["no-digest.dcm"]["digest"] == ""
    assert (files["stale-longer.dcm"]["Size"], files["lost.dcm"]["Size"]) == ("9999", "5000")


# -- downloads -------------------------------------------------------------------------------------------------

BIG = f"{ACCESSIONS}/resources/BIG/files/functional.nii"
LENGTH = 12_000_000


def test_a_file_comes_with_its_headers(owner):
    for response in (owner.get(BIG), owner.head(BIG)):
        assert response.headers["content-length"] == str(LENGTH)
        assert response.headers["content-disposition"] == 'attachment; filename="functional.nii";'
        assert response.headers["cache-control"] == "must-revalidate"
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["last-modified"] == "Tue, 02 Jan 2024 03:04:05 GMT"


def test_a_file_that_was_not_modified(owner):
    headers = {"if-modified-since": "Tue, 02 Jan 2024 03:04:05 GMT"}
    reply = owner.get(BIG, headers=headers)
    assert (reply.status_code, reply.content) == (304, b"")
    assert "last-modified" not in reply.headers


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("bytes=10-19", 10, 19), ("bytes=11999990-", 11_999_990, LENGTH - 1), ("bytes=-5", LENGTH - 5, LENGTH - 1)],
)
def test_ranges(owner, wanted, first, last):
    whole = owner.get(BIG).content
    response = owner.get(BIG, headers={"range": wanted})
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {first}-{last}/{LENGTH}"
    assert response.content == whole[first : last + 1]


def test_the_end_of_a_range_is_not_clamped(owner):
    response = owner.get(BIG, headers={"range": f"bytes={LENGTH - 10}-{LENGTH + 9}"})
    assert response.headers["content-length"] == "20"
    assert len(response.content) == 10


def test_several_ranges_are_not_implemented(owner):
    assert owner.get(BIG, headers={"range": "bytes=0-1,5-6"}).status_code == 501


def test_ranges_can_be_ignored(demo, owner):
    demo.site.ranges = False
    response = owner.get(BIG, headers={"range": "bytes=10-19"})
    assert (response.status_code, len(response.content)) == (200, LENGTH)


def test_a_lost_file_is_not_found(owner):
    session = next(row for row in rows(owner.get("/data/projects/FAULTS/experiments")) if row["label"] == "F1_MR")
    path = f"/data/experiments/{session['ID']}/scans/1/resources/DICOM/files"
    lost = owner.get(f"{path}/lost.dcm")
    assert lost.status_code == 404
    assert "<b>Message</b> Unable to find file.<" in lost.text
    assert owner.get(f"{path}/lost.dcm?accept-not-found=true").status_code == 204
    assert "catalog entry" in owner.get(f"{path}/never.dcm").text


@pytest.mark.parametrize(
    ("encoded", "found"),
    [
        ("LCModelExam%234896-6.pdf", True),
        ("scan%20with%20spaces.bin", True),
        ("what%3F.txt", True),
        ("gr%C3%B6%C3%9Fe/%C3%BC.txt", True),
        ("a%2Bb.txt", True),
        ("a+b.txt", True),
        ("a%2Bb%20c.txt", True),
        ("a+b%20c.txt", False),  # a raw plus is a blank as soon as anything has to be decoded
    ],
)
def test_how_a_path_is_decoded(owner, encoded, found):
    path = f"/data/experiments/0123456789abcdef0123456789abcdef/resources/files/files/{encoded}"
    assert owner.get(path).status_code == (200 if found else 404)


@pytest.mark.parametrize("part", ["100%25.txt", "semi%3Bcolon.txt", "back%5Cslash.txt", "a%2Fb", "a//b", "%2E%2E/x"])
def test_what_the_firewall_refuses(demo, part):
    reply = demo.handle("GET", f"/data/experiments/X/resources/1/files/{part}", "", {}, b"")
    assert reply.status == 400


# -- archives --------------------------------------------------------------------------------------------------


def members(content: bytes) -> dict[str, int]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {info.name: info.size for info in tar}


def test_a_tar_of_a_scan(owner):
    response = owner.get(f"{ACCESSIONS}/scans/1/resources/NIFTI/files?format=tar")
    assert response.headers["content-type"] == "application/x-tar"
    assert "content-length" not in response.headers
    assert set(members(response.content)) == {
        f"SUB001_MR1/scans/1-T1/resources/NIFTI/files/{name}" for name in ("t1.nii.gz", "t1.json")
    }


@pytest.mark.parametrize(
    ("structure", "name"),
    [
        ("simplified", "SUB001_MR1/scans/1/NIFTI/t1.json"),
        ("legacy", "SUB001_MR1/SCANS/1/NIFTI/t1.json"),
        ("improved", "scans/1_T1/NIFTI/t1.json"),
    ],
)
def test_other_layouts_of_an_archive(owner, structure, name):
    path = f"{ACCESSIONS}/scans/1/resources/NIFTI/files?format=tar.gz&structure={structure}"
    assert name in members(owner.get(path).content)


def test_a_tar_writes_names_in_its_own_way(owner):
    ugly = "/data/experiments/0123456789abcdef0123456789abcdef/resources/files/files?format=tar"
    names = {name.partition("/resources/files/files/")[2] for name in members(owner.get(ugly).content)}
    assert "back/slash.txt" in names
    assert "gr??e/?.txt" in names
    assert any(len(name) > 100 for name in names)


def test_a_zip_leaves_out_what_is_lost(owner):
    session = next(row for row in rows(owner.get("/data/projects/FAULTS/experiments")) if row["label"] == "F1_MR")
    response = owner.get(f"/data/experiments/{session['ID']}/scans/1/files?format=zip")
    with zipfile.ZipFile(io.BytesIO(response.content)) as made:
        assert made.testzip() is None
        names = [name.rpartition("/")[2] for name in made.namelist()]
    assert "fine.dcm" in names
    assert "lost.dcm" not in names


def test_an_archive_of_nothing_is_not_found(owner):
    assert owner.get(f"{ACCESSIONS}/resources/NOSUCH/files?format=zip").status_code == 404


# -- access ----------------------------------------------------------------------------------------------------


def statuses(who: httpx.Client, project: str) -> tuple[int, int, int]:
    paths = [f"/data/projects/{project}", f"/data/projects/{project}/subjects", f"/data/projects/{project}/resources"]
    found = [who.get(path).status_code for path in paths]
    return found[0], found[1], found[2]


@pytest.mark.parametrize("user", [OWNER, COLLABORATOR, OUTSIDER])
def test_who_sees_what(client, user):
    who = client(user)
    inside = (200, 200, 200) if user != OUTSIDER else (404, 404, 404)
    assert statuses(who, "BRAINS") == inside
    assert statuses(who, "CLOSED") == (200, 403, 200)
    assert statuses(who, "OPEN") == (200, 200, 200)
    assert statuses(who, "SECRET") == (404, 404, 404)
    assert statuses(client(ADMIN), "SECRET") == (200, 200, 200)


def test_an_outsider_reads_nothing_by_number_either(client, owner):
    number = resource_id(owner, "1", "DICOM")
    outsider = client(OUTSIDER)
    assert outsider.get(f"/data/projects/OPEN/resources/{number}/files").status_code == 404
    assert outsider.get(f"{ACCESSIONS}/resources/{number}/files").status_code == 404
    assert outsider.get(ACCESSIONS).status_code == 404


# -- odds and ends ---------------------------------------------------------------------------------------------


def test_a_site_below_a_path(archive):
    demo = DemoXnat(archive, context_path="/xnat")
    with httpx.Client(transport=httpx.MockTransport(demo), base_url="http://xnat/xnat") as session:
        login = session.post("/data/JSESSION", auth=(OWNER, PASSWORDS[OWNER]))
        assert "JSESSIONID" in login.headers["set-cookie"]
        assert "Path=/xnat" in login.headers["set-cookie"]
        listing = session.get(f"{ACCESSIONS}/files?all=true").json()["ResultSet"]
    assert listing["Columns"][0]["serverRoot"] == "/xnat"
    assert listing["Result"][0]["URI"].startswith("/data/")


def test_faults_can_be_planted(demo, owner):
    demo.faults.append(lambda request: Reply(502, b"<html>", "text/html") if "projects" in request.path else None)
    assert owner.get("/data/projects").status_code == 502
    assert owner.get("/data/auth").status_code == 200


def test_requests_are_remembered(demo, owner):
    owner.get("/data/projects?format=json")
    record = demo.requests[-1]
    assert (record.method, record.path, record.query, record.user, record.status) == (
        "GET",
        "/data/projects",
        {"format": "json"},
        OWNER,
        200,
    )


def test_it_does_not_matter_who_asks(demo, client):
    answers: list[Any] = []
    for agent in ("xnatfs/0.1.0", "curl/8", "python-requests/2"):
        answers.append(json.dumps(client(OWNER, **{"user-agent": agent}).get(f"{ACCESSIONS}/scans").json()))
    assert len(set(answers)) == 1


def test_the_fields_of_a_data_type_are_a_table(owner):
    rows = owner.get("/data/search/elements/xnat:mrSessionData?format=json").json()["ResultSet"]["Result"]
    assert {"EXPT_ID", "LABEL"} <= {row["FIELD_ID"] for row in rows}
    assert {row["ELEMENT_NAME"] for row in rows} == {"xnat:mrSessionData"}
    assert owner.get("/data/search/elements/nonsense?format=json").status_code == 404
