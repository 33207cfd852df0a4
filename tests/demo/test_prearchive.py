"""Test the demo's prearchive: what it shows, changes of a session, and the services (XNAT REST contract 12)."""

from typing import Any

import httpx
import pytest

from tests.support.changing import (
    ADMIN,
    COLLABORATOR,
    MEMBER,
    OUTSIDER,
    column,
    images,
    rows,
    zip_of,
)
from xnatfs.demo.fixtures import phantom
from xnatfs.demo.server.releases import XNAT_1_6, XNAT_1_8, XNAT_1_11

LIST = "/data/prearchive/projects/P"
SERVICES = "/data/services"
ARCHIVED = "/data/archive/projects/P/subjects/NEW/experiments/NEW_MR"


def received(
    who: httpx.Client,
    subject: str = "NEW",
    session: str = "NEW_MR",
    *,
    project: str = "P",
    handler: str = "SI",
    **more: Any,
) -> str:
    """Send a session; return its URI."""
    query = {"inbody": "true", "import-handler": handler, "project": project, "subject": subject, "session": session}
    reply = who.post(
        f"{SERVICES}/import", params=query, content=zip_of(images(**more)), headers={"content-type": "application/zip"}
    )
    assert reply.status_code == 200
    return reply.text.strip()


def source(uri: str) -> str:
    return uri.removeprefix("/data")


def status(who: httpx.Client) -> list[str]:
    return column(who.get(LIST), "status")


def archive(who: httpx.Client, *uris: str, **more: str) -> httpx.Response:
    return who.post(f"{SERVICES}/archive", data={"src": [source(uri) for uri in uris], **more})


# -- the list --------------------------------------------------------------------------------------------------


def test_the_list_has_its_columns_and_no_total(owner):
    uri = received(owner)
    body = owner.get(LIST).json()["ResultSet"]
    assert set(body) == {"Result"}
    (row,) = body["Result"]
    _, _, _, _, project, timestamp, folder = uri.split("/")
    assert row == {
        "project": project,
        "timestamp": timestamp,
        "lastmod": "2024-01-02 03:04:05.0",
        "uploaded": "2024-01-02 03:04:05.0",
        "scan_date": "2024-01-02 00:00:00.0",
        "scan_time": "10:11:01",
        "subject": "NEW",
        "folderName": folder,
        "name": "NEW_MR",
        "tag": phantom.uid("study", "study"),
        "status": "READY",
        "url": f"/prearchive/projects/P/{timestamp}/NEW_MR",
        "autoarchive": "Manual",
        "prevent_anon": "false",
        "prevent_auto_commit": "false",
        "SOURCE": "",
        "VISIT": "",
        "PROTOCOL": "",
        "TIMEZONE": "",
    }


def test_who_sees_which_list(client, owner):
    received(owner)
    received(owner, project="Q")
    assert column(owner.get("/data/prearchive"), "project") == ["P", "Q"]
    assert column(client(MEMBER).get("/data/prearchive"), "project") == ["P"]
    assert rows(client(COLLABORATOR).get("/data/prearchive")) == []
    assert len(rows(client(COLLABORATOR).get(LIST))) == 1
    assert client(OUTSIDER).get(LIST).status_code == 404
    assert client("").get(LIST).status_code == 401
    assert owner.get("/data/archive/prearchive").status_code == 404


def test_unassigned_ones_come_with_every_list_of_an_admin(client, owner):
    received(owner)
    received(owner, project="")
    admin = client(ADMIN)
    assert column(admin.get(LIST), "project") == ["P", "Unassigned"]
    assert column(admin.get("/data/prearchive/projects/Unassigned"), "project") == ["Unassigned"]
    assert column(admin.get("/data/prearchive/projects/P,Q"), "project") == ["P", "Unassigned"]
    for path in ("/projects/Unassigned", "/projects/P,Q", "?tag=1.2"):
        assert owner.get(f"/data/prearchive{path}").status_code == 404
    assert len(rows(admin.get(f"/data/prearchive?tag={phantom.uid('study', 'study')}"))) == 2
    assert rows(admin.get("/data/prearchive?tag=1.2")) == []


# -- one session -----------------------------------------------------------------------------------------------


def test_a_session_is_xml_unless_asked_for(owner):
    uri = received(owner)
    document = owner.get(uri)
    assert document.headers["content-type"].startswith("text/xml")
    assert "<xnat:MRSession" in document.text
    assert rows(owner.get(f"{uri}?format=json")) == rows(owner.get(LIST))
    assert images()["1/IM0"] in owner.get(f"{uri}?format=zip").content


def test_a_session_that_was_not_built_has_no_document(owner):
    uri = received(owner, handler="DICOM-zip")
    assert owner.get(uri).status_code == 404
    assert owner.get(f"{uri}x").status_code == 404


def test_a_session_is_for_those_who_edit(client, owner):
    uri = received(owner)
    assert client(MEMBER).get(uri).status_code == 200
    assert client(COLLABORATOR).get(uri).status_code == 403
    assert client(OUTSIDER).get(uri).status_code == 404
    assert owner.get(received(owner, project="")).status_code == 403


def test_what_is_in_a_session(owner):
    uri = received(owner)
    assert rows(owner.get(f"{uri}/scans")) == [
        {"ID": "1", "xsiType": "xnat:mrScanData", "series_description": "series 1"}
    ]
    size = str(sum(len(content) for content in images().values()))
    assert rows(owner.get(f"{uri}/scans/1/resources")) == [{"label": "DICOM", "file_count": "2", "file_size": size}]
    (row,) = rows(owner.get(f"{uri}/resources"))
    assert (row["category"], row["cat_id"], row["label"], row["file_count"]) == ("scans", "1", "DICOM", "2")
    assert images()["1/IM1"] in owner.get(f"{uri}/scans/1?format=zip").content


def test_files_of_a_session(owner):
    files = f"{received(owner)}/scans/1/resources/DICOM/files"
    listing = {row["Name"]: row for row in rows(owner.get(files))}
    assert listing["IM0"] == {"Name": "IM0", "Size": str(len(images()["1/IM0"])), "URI": f"{files}/IM0"}
    read = owner.get(f"{files}/IM0")
    assert (read.content, read.headers["content-length"]) == (images()["1/IM0"], listing["IM0"]["Size"])
    assert owner.get(f"{files}/never").status_code == 404
    assert owner.put(f"{files}/new.dcm", content=b"new", headers={"content-type": "text/plain"}).status_code == 200
    assert owner.get(f"{files}/new.dcm").content == b"new"
    assert owner.delete(f"{files}/IM0").status_code == 200
    assert column(owner.get(files), "Name") == ["IM1", "new.dcm"]


def test_parts_of_a_session_are_deleted(client, owner):
    uri = received(owner)
    assert client(COLLABORATOR).delete(uri).status_code == 403
    assert owner.delete(f"{uri}/scans/1/resources/DICOM").status_code == 200
    assert rows(owner.get(f"{uri}/resources")) == []
    assert owner.delete(f"{uri}/scans/1").status_code == 200
    assert rows(owner.get(f"{uri}/scans")) == []
    assert owner.delete(uri).status_code == 200
    assert status(owner) == []


# -- actions ---------------------------------------------------------------------------------------------------


def test_building_takes_its_time(demo, owner, clock):
    demo.site.work = 10.0
    uri = received(owner, handler="DICOM-zip")
    reply = owner.post(uri, data={"action": "build"})
    assert (reply.status_code, reply.text) == (200, uri)
    assert status(owner) == ["QUEUED_BUILDING"]
    clock.now += 6
    assert status(owner) == ["_BUILDING"]
    for action in ("build", "commit"):
        locked = owner.post(f"{uri}?action={action}")
        assert (locked.status_code, "session document locked" in locked.text) == (409, True)
    clock.now += 4
    assert status(owner) == ["READY"]


def test_a_commit_is_waited_for(demo, owner, clock):
    demo.site.work = 10.0
    uri = received(owner, handler="DICOM-zip")
    before = clock.now
    reply = owner.post(f"{uri}?action=commit")
    assert (reply.status_code, reply.text, clock.now - before) == (200, uri, 10.0)
    assert status(owner) == ["READY"]


@pytest.mark.parametrize("switch", ["AA=true", "auto-archive=true"])
def test_a_commit_that_archives_is_a_redirection_to_nowhere(owner, switch):
    reply = owner.post(f"{received(owner, handler='DICOM-zip')}?action=commit&{switch}")
    assert (reply.status_code, reply.text) == (301, ARCHIVED)
    assert "location" not in reply.headers
    assert status(owner) == []


def test_archiving_after_a_commit_need_not_be_waited_for(demo, owner, clock):
    demo.site.work = 10.0
    uri = received(owner, handler="DICOM-zip")
    reply = owner.post(f"{uri}?action=commit&AA=true&http-session-listener=x")
    assert (reply.status_code, reply.text) == (200, uri)
    assert status(owner) == ["QUEUED_ARCHIVING"]
    clock.now += 10
    assert status(owner) == []


def test_moving(client, owner):
    uri = received(owner)
    reply = owner.post(f"{uri}?action=move&newProject=Q")
    assert (reply.status_code, reply.headers["content-type"]) == (301, "text/uri-list")
    assert "location" not in reply.headers
    assert reply.text.startswith("/data/prearchive/projects/Q/")
    assert column(owner.get("/data/prearchive"), "project") == ["Q"]
    again = received(owner)
    assert client(MEMBER).post(f"{again}?action=move&newProject=Q").status_code == 404
    owner.put("/data/projects/Q/accessibility/public")
    assert client(MEMBER).post(f"{again}?action=move&newProject=Q").status_code == 403
    assert owner.post(again, data={"action": "move", "newProject": "Q"}).status_code == 400


def test_moving_what_is_locked_says_nothing_and_does_nothing(demo, owner, clock):
    demo.site.work = 10.0
    uri = received(owner, handler="DICOM-zip")
    owner.post(f"{uri}?action=build")
    clock.now += 6
    reply = owner.post(f"{uri}?action=move&newProject=Q")
    assert (reply.status_code, reply.content) == (200, b"")
    assert len(rows(owner.get(LIST))) == 1


def test_a_status_can_be_set(owner):
    uri = received(owner)
    assert owner.post(f"{uri}?action=set-status&status=ERROR").status_code == 200
    assert status(owner) == ["ERROR"]
    assert owner.post(f"{uri}?action=reset-status").status_code == 200
    assert status(owner) == ["READY"]
    assert owner.post(f"{uri}?action=set-status&status=_ARCHIVING").status_code == 400


@pytest.mark.parametrize("action", ["rebuild", "archive", ""])
def test_there_are_no_other_actions(owner, action):
    assert owner.post(f"{received(owner)}?action={action}").status_code == 400


# -- the archive service ---------------------------------------------------------------------------------------


def test_archiving_one_session_is_waited_for(demo, owner, clock):
    demo.site.work = 10.0
    uri, before = received(owner), clock.now
    reply = archive(owner, uri)
    assert (reply.status_code, reply.text) == (200, f"{ARCHIVED}\r\n")
    assert reply.headers["content-type"] == "text/uri-list"
    assert clock.now - before == 10.0
    assert status(owner) == []
    assert owner.get(f"{ARCHIVED}/scans/1/resources/DICOM/files/IM0").content == images()["1/IM0"]


def test_an_operation_can_take_too_long_and_goes_on(demo, owner, clock):
    demo.site.work = 700.0
    reply = archive(owner, received(owner))
    assert (reply.status_code, "configured timeout interval" in reply.text) == (500, True)
    assert status(owner) == ["_ARCHIVING"]
    clock.now += 100
    assert status(owner) == []


def test_what_is_being_archived_is_left_alone(demo, owner, clock):
    demo.site.work = 10.0
    uris = [received(owner), received(owner, "B", "B_MR")]
    assert column(archive(owner, *uris), "status") == ["QUEUED_ARCHIVING"] * 2
    clock.now += 6
    assert status(owner) == ["_ARCHIVING"] * 2
    again = archive(owner, uris[0])
    assert (again.status_code, "Operation already in progress" in again.text) == (403, True)
    assert owner.delete(uris[0]).status_code == 409
    clock.now += 4
    assert status(owner) == []
    assert column(owner.get("/data/projects/P/experiments"), "label") == ["B_MR", "E", "NEW_MR"]


EVERY_RELEASE = pytest.mark.parametrize("release", [XNAT_1_6, XNAT_1_8, XNAT_1_11], ids=lambda release: release.name)


@EVERY_RELEASE
def test_another_subject_and_session_are_fields_and_dest_is_of_no_use(owner, release):
    fields = {"overwrite": "none", "subject": "T", "session": "T_MR"}
    reply = owner.post(f"{SERVICES}/archive?src={source(received(owner))}", data=fields)
    assert reply.text == "/data/archive/projects/P/subjects/T/experiments/T_MR\r\n"
    fields = {"dest": "/archive/projects/P/subjects/S/experiments/S_MR"}
    reply = owner.post(f"{SERVICES}/archive?src={source(received(owner))}", data=fields)
    if release is XNAT_1_6:
        assert reply.text == f"{ARCHIVED}\r\n"
    else:
        assert (reply.status_code, status(owner)) == (500, ["ERROR"])


@EVERY_RELEASE
def test_where_a_source_may_stand(owner, release):
    service, labels = f"{SERVICES}/archive", iter("VWXYZ")

    def fresh() -> dict[str, str]:
        return {"src": source(received(owner, session=next(labels)))}

    form_only = owner.post(service, data=fresh())
    assert form_only.status_code == (404 if release is XNAT_1_11 else 200)
    assert owner.post(service, params=fresh()).status_code == 200
    assert owner.post(service, params=fresh(), data={"overwrite": "none"}).status_code == 200
    parts = owner.post(service, files={"src": (None, fresh()["src"])})
    assert parts.status_code == (500 if release is XNAT_1_6 else 404)
    twice = fresh()
    both = owner.post(service, params=twice, data=twice)
    assert both.status_code == 200
    assert ("/data/archive/" in both.text) is (release is not XNAT_1_11)


@EVERY_RELEASE
def test_a_conflict_has_its_status(owner, release):
    for expected in (200, 409 if release is XNAT_1_6 else 500):
        reply = owner.post(f"{SERVICES}/archive?src={source(received(owner))}")
        assert reply.status_code == expected
    assert status(owner) == ["CONFLICT"]


@EVERY_RELEASE
def test_success_without_a_body(owner, release):
    status = 204 if release is XNAT_1_11 else 200
    assert owner.delete(received(owner)).status_code == status
    kept = "/data/experiments/DEMO_E00001/resources/R/files/a?inbody=true"
    assert owner.put(kept, content=b"new", headers={"content-type": "text/plain"}).status_code == status


@pytest.mark.parametrize("release", [XNAT_1_6])
def test_an_old_release_shows_its_prearchive_to_everybody(client, owner):
    received(owner)
    assert len(rows(client(OUTSIDER).get(LIST))) == 1
    assert rows(client(OUTSIDER).get("/data/prearchive/projects/NOSUCH")) == []


def test_a_document_says_where_its_session_came_from(owner):
    uri = received(owner)
    archive(owner, uri)
    (item,) = owner.get(f"{ARCHIVED}?format=json").json()["items"]
    project, timestamp, folder = uri.split("/")[4:]
    assert item["data_fields"]["prearchivePath"].endswith(f"/prearchive/{project}/{timestamp}/{folder}")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, 404),
        ({"src": ""}, 404),
        ({"src": "P"}, 400),
        ({"src": "/archive/projects/P/x/y"}, 400),
        ({"src": "/prearchive/projects/P"}, 400),
    ],
)
def test_sources_that_are_none(owner, body, expected):
    assert owner.post(f"{SERVICES}/archive", data=body).status_code == expected


def test_sources_that_are_not_there_or_not_for_this_user(client, owner):
    uri = received(owner)
    assert archive(owner, f"{uri}x").status_code == 404
    assert archive(client(COLLABORATOR), uri).status_code == 403
    assert archive(client(OUTSIDER), uri).status_code == 404
    unassigned = archive(client(ADMIN), received(owner, project=""))
    assert unassigned.status_code == 400
    assert "Cannot archive sessions from the Unassigned folder." in unassigned.text
    assert archive(client(MEMBER), uri).status_code == 200


def test_merging_is_allowed_without_being_asked_for(owner):
    archive(owner, received(owner))
    assert archive(owner, received(owner, number=2)).status_code == 200
    assert column(owner.get(f"{ARCHIVED}/scans"), "ID") == ["1", "2"]


def test_files_are_replaced_only_if_told(owner):
    archive(owner, received(owner))
    uri = received(owner)
    refused = archive(owner, uri)
    assert (refused.status_code, "FAILED: " in refused.text) == (500, True)
    assert status(owner) == ["CONFLICT"]
    assert "files of scan 1" in owner.get(f"{uri}/logs/last").text
    assert archive(owner, uri, overwrite_files="true").status_code == 200


@pytest.mark.parametrize("how", ["append", "delete"])
def test_another_study_is_merged_only_if_told(owner, how):
    archive(owner, received(owner))
    uri = received(owner, study="other")
    assert archive(owner, uri, overwrite_files="true").status_code == 500
    assert archive(owner, uri, overwrite=how).status_code == 200
    assert column(owner.get(f"{ARCHIVED}/scans"), "ID") == ["1", "1-MR1"]


@pytest.mark.parametrize("more", [{"subject": "OTHER"}, {"modality": "CT"}])
def test_a_session_of_another_subject_or_type_is_never_merged(owner, more):
    archive(owner, received(owner))
    assert archive(owner, received(owner, **more), overwrite="delete").status_code == 500
    assert status(owner) == ["CONFLICT"]


def test_labels_that_the_archive_does_not_take(owner):
    assert archive(owner, received(owner, subject="a.b")).status_code == 500
    assert status(owner) == ["ERROR"]


def test_redirecting(demo, owner):
    demo.site.url = "http://site/xnat"
    reply = archive(owner, received(owner), redirect="true")
    assert (reply.status_code, reply.headers["location"]) == (303, f"http://site/xnat{ARCHIVED}")


# -- other services --------------------------------------------------------------------------------------------


def test_services_on_several_sessions_answer_with_their_rows(demo, owner, clock):
    demo.site.work = 10.0
    uris = [received(owner), received(owner, "B", "B_MR")]
    sources = [source(uri) for uri in uris]
    for service, more in (("rebuild", {}), ("move", {"newProject": "Q"}), ("delete", {})):
        listing = rows(owner.post(f"{SERVICES}/prearchive/{service}", data={"src": sources, **more}))
        kind = {"rebuild": "BUILDING", "move": "MOVING", "delete": "DELETING"}[service]
        assert [row["status"] for row in listing] == [f"QUEUED_{kind}"] * 2
        clock.now += 10
        sources = [row["url"] for row in rows(owner.get("/data/prearchive"))]
        assert {url.split("/")[3] for url in sources} == {"rebuild": {"P"}, "move": {"Q"}, "delete": set()}[service]


def test_a_service_does_all_or_nothing(client, owner):
    uri = source(received(owner))
    delete = f"{SERVICES}/prearchive/delete"
    assert owner.post(delete, data={"src": [uri, f"{uri}x"]}).status_code == 404
    assert owner.post(delete, data={"src": [uri, "nonsense"]}).status_code == 500
    assert client(COLLABORATOR).post(delete, data={"src": uri}).status_code == 403
    assert status(owner) == ["READY"]
    listener = owner.post(delete, data={"src": uri, "http-session-listener": "x"})
    assert listener.status_code == 303
    assert status(owner) == []


def test_services_are_posted(owner):
    for service in ("archive", "validate-archive", "prearchive/delete"):
        assert owner.get(f"{SERVICES}/{service}").status_code == 405


def test_conflicts_are_told_beforehand(owner):
    archive(owner, received(owner))
    uri = received(owner)
    told = rows(owner.post(f"{SERVICES}/validate-archive", data={"src": source(uri)}))
    assert any("files of scan 1" in row["message"] for row in told)
    assert status(owner) == ["READY"]
    other = received(owner, "B", "B_MR")
    assert rows(owner.post(f"{SERVICES}/validate-archive", data={"src": source(other)})) == []
