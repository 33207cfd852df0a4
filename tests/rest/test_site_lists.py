"""Test lists of a whole site or of many items, documents as XML, and the record of what a client has changed."""

from urllib.parse import unquote_plus

import httpx
import pytest

from tests.rest.test_client import RecordingServer, always, connected, table
from xnatfs.common.errors import BadReply, Denied, Uncertain
from xnatfs.rest.changes import ANY_PROJECT
from xnatfs.rest.lists import JoinedScans
from xnatfs.rest.models import SCAN_COLUMNS, SCAN_LABEL, Accession, Resource, Row, Scan

ID, TYPE, QUALITY, DESCRIPTION, NOTE = SCAN_COLUMNS
SUBJECTS = [{"ID": "S1", "label": "L", "project": "P"}]
EXPERIMENTS = [{"ID": "E1", "label": "L", "project": "P", "subject_ID": "S1", "subject_label": "S"}]
ASSESSORS = [{"ID": "A1", "label": "M", "project": "P", "session_ID": "E1"}]


async def test_subjects_of_the_site_are_one_list():
    server = RecordingServer(always(lambda: table(SUBJECTS)))
    async with connected(server) as xnat:
        assert await xnat.all_subjects() == [Accession("S1", "L", "P", "", "", "")]
    assert list(map(unquote_plus, server.asked())) == ["GET /site/data/subjects?format=json&columns=ID,label,project"]


async def test_experiments_of_the_site_are_two_lists():
    """Request those of subjects apart from assessors: a column of one kind leaves out the other kind."""
    server = RecordingServer(lambda request: table(ASSESSORS if "imageAssessor" in str(request.url) else EXPERIMENTS))
    async with connected(server) as xnat:
        assert await xnat.all_experiments() == [
            Accession("E1", "L", "P", "S1", "S", ""),
            Accession("A1", "M", "P", "", "", "E1"),
        ]
    asked = [dict(request.url.params) for request in server.requests if request.url.path == "/site/data/experiments"]
    for each in asked:
        assert each.pop("format") == "json"
    experiments = {"xsiType": "xnat:subjectAssessorData", "columns": "ID,label,project,subject_ID,subject_label"}
    assert sorted(asked, key=lambda each: each["xsiType"], reverse=True) == [
        experiments,
        {"xsiType": "xnat:imageAssessorData", "columns": "ID,label,project,session_ID"},
    ]


async def test_resources_of_many_sessions_are_one_list():
    server = RecordingServer(always(lambda: table([{"xnat_abstractresource_id": "7", "label": "DICOM"}])))
    async with connected(server) as xnat:
        found = await xnat.resources_of_many(["E1", "E/2"])
    assert found == {"7": Resource("7", "DICOM", "resources", "", "", "")}
    assert server.asked() == ["GET /site/data/experiments/E1,E%2F2/resources?format=json&all=true"]


@pytest.mark.parametrize("text", ["<a/>", '\ufeff<?xml version="1.0"?><a/>', "\r\n\t <a></a>\n", "\ufeff <a/> \n"])
async def test_a_document_comes_as_it_is_written(text):
    server = RecordingServer(always(lambda: httpx.Response(200, content=text.encode())))
    async with connected(server) as xnat:
        assert await xnat.item_xml("experiments", "E/1") == text.encode()
    assert server.asked() == ["GET /site/data/experiments/E%2F1?format=xml"]


@pytest.mark.parametrize("text", ["", "X<a/>", "a>", "<a/>X", "<a", '{"items": []}'])
async def test_what_is_no_document_is_a_bad_reply(text):
    server = RecordingServer(always(lambda: httpx.Response(200, content=text.encode())))
    async with connected(server) as xnat:
        with pytest.raises(BadReply, match="/site/data/experiments/E was requested as XML and came as something else"):
            await xnat.item_xml("experiments", "E")


# -- scans of a project ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["session_ID", "ID", "xnat:imagesessiondata/id", "xnat:experimentdata/id"])
def test_a_joined_row_names_its_session_in_one_of_four_columns(key):
    """Find it by each of the names that servers give the column."""
    found: dict[str, JoinedScans] = {}
    cells = {key: "E1", ID: "4", TYPE: "T1", QUALITY: "usable", NOTE: "n", DESCRIPTION: "MPRAGE"}
    JoinedScans.parse([Row({**cells, SCAN_LABEL: "DICOM"}), Row({**cells, SCAN_LABEL: "NIFTI"})], found)
    assert found == {"E1": JoinedScans({"4": Scan("4", "T1", "usable", "", "n", "MPRAGE")})}
    assert found["E1"].labels == {"4": {"DICOM", "NIFTI"}}


@pytest.mark.parametrize("row", [{"ID": "E1"}, {"ID": "E1", TYPE: "T1"}, {ID: "4", TYPE: "T1"}])
def test_a_joined_row_without_its_session_or_its_scan_is_a_bad_reply(row):
    with pytest.raises(BadReply):
        JoinedScans.parse([Row(row)], {})


def test_a_session_without_scans_has_none():
    """Take a row without a scan as that of a session which has none."""
    found: dict[str, JoinedScans] = {}
    JoinedScans.parse([Row({"ID": "E1", ID: ""})], found)
    assert found == {"E1": JoinedScans({})}


# -- what was changed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said", "projects", "experiments"),
    [
        ("/data/projects/P%201/subjects/S", "", {"P 1"}, set()),
        ("/data/experiments/E1/scans/1", "", set(), {"E1"}),
        ("/data/services/import", "/data/prearchive/projects/Q/2024/x\n", {"Q"}, set()),
        ("/data/services/refresh/catalog", "", {ANY_PROJECT}, set()),
    ],
)
async def test_a_change_is_recorded_by_its_url_and_its_answer(path, said, projects, experiments):
    server = RecordingServer(always(lambda: httpx.Response(200, text=said)))
    async with connected(server) as xnat:
        await xnat.change("POST", path)
        assert (xnat.changed.projects, xnat.changed.experiments) == (projects, experiments)


async def test_a_change_is_recorded_by_its_place_its_query_and_its_form():
    """Take projects from parameters that name them, and items from URLs in others."""
    server = RecordingServer(always(lambda: httpx.Response(201, headers={"location": "/data/experiments/E3"})))
    async with connected(server) as xnat:
        await xnat.change("PUT", "/data/x", {"project": "P", "src": "/archive/experiments/E1"})
        await xnat.change("POST", "/data/y", form={"PROJECT_ID": "Q", "resource": "/archive/experiments/E2"})
        assert (xnat.changed.projects, xnat.changed.experiments) == ({"P", "Q"}, {"E1", "E2", "E3"})


async def test_a_change_that_failed_is_recorded_as_well():
    """Record it: the server may have made it, or a part of it."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("connection reset")

    async with connected(RecordingServer(answer)) as xnat:
        with pytest.raises(Uncertain, match="may have been carried out"):
            await xnat.change("DELETE", "/data/projects/P/subjects/S", {"src": "/archive/experiments/E1"})
        assert (xnat.changed.projects, xnat.changed.experiments) == ({"P"}, {"E1"})


@pytest.mark.parametrize(("method", "projects"), [("GET", set()), ("PUT", {"P"}), ("DELETE", {"P"})])
async def test_any_request_but_a_get_is_recorded(method, projects):
    """Count it as a change in any case: it is not sent again if its reply is lost."""
    server = RecordingServer(always(lambda: httpx.Response(200)))
    async with connected(server) as xnat:
        assert [piece async for piece in xnat.raw(method, "data/projects/P", b"", None)] in ([], [b""])
        assert xnat.changed.projects == projects
        assert xnat.transport.requests_by_kind["change"] == 1


async def test_a_change_that_is_refused_is_an_answer():
    """Return the reply of any status, and raise only for a request made by hand."""
    server = RecordingServer(always(lambda: httpx.Response(403, text="no")))
    async with connected(server) as xnat:
        assert (await xnat.change("PUT", "/data/x")).status == 403
        with pytest.raises(Denied):
            [piece async for piece in xnat.raw("PUT", "/data/x", b"", None)]
