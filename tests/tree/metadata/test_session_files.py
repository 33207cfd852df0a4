"""Test session.json, scans.tsv and session.xml: what they say, and which requests that takes."""

import io
import json

import httpx
import pandas
import pytest

from tests.support.nodes import find, names
from tests.support.scripted import Scripted, opened, resource, session, subject
from tests.tree.test_tree import content
from xnatfs.common.errors import BadReply, NotFound
from xnatfs.settings.views import ViewOptions
from xnatfs.tree.node import File

SESSION = "projects/P/S/E"
XML = '<?xml version="1.0"?>\n<xnat:MRSession ID="X_E1"/>\n'
SCAN = "xnat:imagescandata/"
NOTE = 'odd\tone\n"=1+1" ☃ '


def answer(text: str) -> httpx.Response:
    return httpx.Response(200, text=text, headers={"content-type": "text/html" if "html" in text else "text/xml"})


@pytest.fixture
def server() -> Scripted:
    made = Scripted()
    made.lists["experiments/X_E1/scans"] = [
        {"ID": "10", "type": "T2", "quality": "questionable", "series_description": "=1+1", "frames": "4"},
        {"ID": "2", "type": "T1", "quality": "usable", "series_description": "t1 &amp; more", "note": NOTE},
    ]
    made.lists["experiments/X_E1/resources"] = [
        resource("8", "NIFTI", cat_id="2"),
        resource("7", "DICOM", cat_id="2"),
        resource("9", "EMPTY", "resources"),
        resource("5", "QC", "resources"),
    ]
    made.add("a.dcm", b"x" * 100, scan="2")
    made.add("b.dcm", b"x" * 50, scan="2")
    made.add("c.nii", b"x" * 25, number="8", scan="2")
    made.add("q.txt", b"x", number="5")
    made.answers["experiments/X_E1"] = lambda request: answer(XML)
    return made


async def size(site, path):
    node = await find(site, path)
    assert isinstance(node, File)
    return await node.size()


async def test_the_table_of_scans_has_stable_columns_and_comes_back_from_pandas(server, tmp_path):
    async with opened(server, tmp_path) as site:
        data = await content(site, f"{SESSION}/scans.tsv")
    frame = pandas.read_csv(io.BytesIO(data), sep="\t", dtype=str, keep_default_na=False)
    assert list(frame.columns) == [
        *("id", "type", "series_description", "quality", "frames", "resources", "files", "bytes", "note")
    ]
    assert frame.values.tolist() == [
        ["2", "T1", "t1 & more", "usable", "", "DICOM,NIFTI", "3", "175", NOTE],
        ["10", "T2", "=1+1", "questionable", "4", "", "0", "0", ""],
    ]


async def test_the_description_is_made_of_the_listings_alone(server, tmp_path):
    async with opened(server, tmp_path) as site:
        await names(site, f"{SESSION}/scans/2/DICOM")
        server.forget_requests()
        found = json.loads(await content(site, f"{SESSION}/session.json"))
        assert await size(site, f"{SESSION}/session.json") == len(await content(site, f"{SESSION}/session.json"))
    assert server.asked == []
    assert (found["id"], found["label"], found["project"], found["subject"]["label"]) == ("X_E1", "E", "P", "S")
    assert [scan["id"] for scan in found["scans"]] == ["2", "10"]
    assert found["scans"][0]["resources"][0] == {"id": "7", "label": "DICOM", "files": 2, "bytes": 150}
    assert [row["label"] for row in found["resources"]] == ["QC"]


async def test_the_document_is_the_server_s_own_and_one_request(server, tmp_path):
    async with opened(server, tmp_path) as site:
        await names(site, SESSION)
        server.forget_requests()
        assert await content(site, f"{SESSION}/session.xml") == XML.encode()
        assert await size(site, f"{SESSION}/session.xml") == len(XML)
    assert server.asked == ["GET experiments/X_E1"]


async def test_a_web_page_or_half_a_document_is_no_document(server, tmp_path):
    async with opened(server, tmp_path) as site:
        for text in ("<html><body>log in</body></html>", "Service restarts", XML[:-4]):
            server.answers["experiments/X_E1"] = lambda request, text=text: answer(text)
            with pytest.raises(BadReply):
                await content(site, f"{SESSION}/session.xml")


def joined_rows(request: httpx.Request) -> httpx.Response:
    """Answer with one scan of each session, as the list of a project's scans; its frames only where requested."""
    rows = [
        {"session_ID": f"X_E{number}", f"{SCAN}id": "1", f"{SCAN}type": "T1"}
        | ({f"{SCAN}frames": str(number)} if f"{SCAN}frames" in request.url.params["columns"] else {})
        for number in range(1, 12)
    ]
    return httpx.Response(200, json={"ResultSet": {"Result": rows}})


def joined_without_frames(request: httpx.Request) -> httpx.Response:
    is_refused = f"{SCAN}frames" in request.url.params["columns"]
    return httpx.Response(500, html="<html><h3>no</h3>") if is_refused else joined_rows(request)


@pytest.mark.parametrize(
    ("answer_list", "frames", "lists"),
    [
        (joined_rows, ["200", *map(str, range(3, 12))], [1, *[0] * 9]),
        (joined_without_frames, [f"{number}00" for number in range(2, 12)], [1] * 10),
    ],
)
async def test_frames_come_from_the_first_list_and_then_from_one_of_all(server, tmp_path, answer_list, frames, lists):
    """The own list of a session has its frames, here a hundredfold; without it one list of the project is requested."""
    for number in range(2, 12):
        server.lists["projects/P/experiments"].append(session(f"X_E{number}", f"E{number}"))
        server.lists[f"experiments/X_E{number}/scans"] = [{"ID": "1", "type": "T1", "frames": f"{number}00"}]
        for kind in ("assessors", "resources", "files"):
            server.lists[f"experiments/X_E{number}/{kind}"] = []
    server.answers["experiments"] = answer_list
    async with opened(server, tmp_path) as site:
        tables = [await content(site, f"projects/P/S/E{number}/scans.tsv") for number in range(2, 12)]
    assert [table.decode().splitlines()[1].split("\t")[4] for table in tables] == frames
    assert [server.asked.count(f"GET experiments/X_E{number}/scans") for number in range(2, 12)] == lists


async def test_experiments_without_scans_have_an_empty_table(server, tmp_path):
    server.lists["projects/P/experiments"] = [session("X_E1", "E") | {"xsiType": "xnat:qcAssessmentData"}]
    server.lists["experiments/X_E1/scans"] = server.lists["experiments/X_E1/assessors"] = 500
    async with opened(server, tmp_path) as site:
        assert (await content(site, f"{SESSION}/scans.tsv")).count(b"\n") == 1
        assert json.loads(await content(site, f"{SESSION}/session.json"))["scans"] == []


async def test_filters_hold_in_the_tables_too(server, tmp_path):
    async with opened(server, tmp_path) as site:
        site.views = ViewOptions(qualities=("usable",), hidden=("NIFTI",))
        table = (await content(site, f"{SESSION}/scans.tsv")).decode()
        found = json.loads(await content(site, f"{SESSION}/session.json"))
    assert [line.split("\t")[0] for line in table.splitlines()[1:2]] == ["2"]
    assert "NIFTI" not in table
    assert [[row["label"] for row in scan["resources"]] for scan in found["scans"]] == [["DICOM"]]


async def test_subjects_called_like_a_table_give_way(server, tmp_path):
    server.lists["projects/P/subjects"] = [subject("X_S1", "scans.tsv")]
    async with opened(server, tmp_path) as site:
        assert "scans.tsv~X_S1" in await names(site, "projects/P")
        assert isinstance(await find(site, "projects/P/scans.tsv"), File)
        with pytest.raises(NotFound):
            await find(site, "projects/P/tables.tsv")


async def test_files_that_the_server_does_not_list_are_not_counted_as_none(server, tmp_path):
    server.lists["experiments/X_E1/resources"][0] |= {"file_count": "3", "file_size": "30"}
    server.lists["experiments/X_E1/resources"][3] |= {"file_count": "1", "file_size": "1"}
    server.lists["experiments/X_E1/files"] = [
        row for row in server.lists["experiments/X_E1/files"] if row["cat_ID"] == "7"
    ]
    server.lists["experiments/X_E1/scans/2/resources/8/files"] = 500
    async with opened(server, tmp_path) as site:
        found = json.loads(await content(site, f"{SESSION}/session.json"))
        data = await content(site, f"{SESSION}/scans.tsv")
    by_label = {row["label"]: (row["files"], row["bytes"]) for row in found["scans"][0]["resources"]}
    assert by_label == {"DICOM": (2, 150), "NIFTI": (None, None)}
    assert [(row["label"], row["files"]) for row in found["resources"]] == [("QC", None)]
    frame = pandas.read_csv(io.BytesIO(data), sep="\t", dtype=str, keep_default_na=False)
    assert frame[["resources", "files", "bytes"]].values.tolist()[0] == ["DICOM,NIFTI", "", ""]
