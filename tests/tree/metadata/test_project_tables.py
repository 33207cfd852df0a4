"""Test subjects.tsv, sessions.tsv and scans.tsv of a project: what they say, and which requests that takes."""

import io

import httpx
import pandas
import pytest

from tests.support.scripted import Scripted, opened, session, subject
from tests.tree.test_tree import content, names
from xnatfs.common.errors import BadReply
from xnatfs.settings.views import ViewOptions

NOTE = 'first\tline\nsecond "line" =1+1 ☃ '
SCAN = "xnat:imagescandata/"


def joined(session_id: str, scan: str, label: str, files: str, size: str, **more: str) -> dict[str, str]:
    cells = {"id": scan, "frames": "9", "file/label": label, "file/file_count": files, "file/file_size": size, **more}
    return {"session_ID": session_id, **{f"{SCAN}{name}": cell for name, cell in cells.items()}}


@pytest.fixture
def server() -> Scripted:
    made = Scripted()
    made.lists["projects/P/subjects"] = [
        subject("X_S2", "S10", "OTHER"),
        subject("X_S1", "S2") | {"gender": "female", "yob": "1980", "group": "=cmd()"},
    ]
    made.lists["projects/P/experiments"] = [
        session("X_E2", "E2", "X_S2", subject_label="S10", note=NOTE, time="10:11:12", visit_id="v1"),
        session("X_E1", "E1", subject_label="S2", date="2024-01-02"),
        session("X_E3", "E3", "X_S9", subject_label="FOREIGN"),
    ]
    made.lists["experiments"] = [
        joined("X_E1", "10", "DICOM", "3", "30", type="T2", quality="unusable"),
        joined("X_E1", "2", "DICOM", "4", "40", type="T1", note=NOTE, quality="usable"),
        joined("X_E1", "2", "SNAPSHOTS", "1", "", type="T1", note=NOTE, quality="usable"),
        joined("X_E2", "", "", "", ""),
    ]
    return made


async def read(site, name):
    data = await content(site, f"projects/P/{name}")
    return pandas.read_csv(io.BytesIO(data), sep="\t", dtype=str, keep_default_na=False)


async def test_the_table_of_subjects_has_demographics_and_every_subject_shown(server, tmp_path):
    async with opened(server, tmp_path) as site:
        shown = await names(site, "projects/P")
        server.forget_requests()
        frame = await read(site, "subjects.tsv")
        assert server.asked == ["GET projects/P/subjects"]
    assert list(frame["label"]) == ["FOREIGN", "S2", "S10"]
    assert set(frame["label"]) < set(shown)
    assert list(frame["sessions"]) == ["1", "1", "1"]
    assert list(frame["project"]) == ["", "P", "OTHER"]
    found = frame.set_index("id").loc["X_S1"]
    assert (found["gender"], found["yob"], found["group"], found["inserted"]) == (
        *("female", "1980", "=cmd()", "2024-01-02 03:04:05.0"),
    )


async def test_demographics_that_the_account_may_not_read_are_empty(server, tmp_path):
    rows = server.lists["projects/P/subjects"]

    def answer(request: httpx.Request) -> httpx.Response:
        if "gender" in request.url.params["columns"]:
            return httpx.Response(403, html="<html><h3>no</h3>")
        return httpx.Response(200, json={"ResultSet": {"Result": rows}})

    server.answers["projects/P/subjects"] = answer
    async with opened(server, tmp_path) as site:
        frame = await read(site, "subjects.tsv")
    assert list(frame["label"]) == ["FOREIGN", "S2", "S10"]
    assert set(frame["gender"]) == {""}


async def test_the_table_of_sessions_has_notes_as_they_are(server, tmp_path):
    async with opened(server, tmp_path) as site:
        await names(site, "projects/P")
        server.forget_requests()
        frame = await read(site, "sessions.tsv")
        assert server.asked == ["GET projects/P/experiments"]
    assert list(frame["label"]) == ["E3", "E1", "E2"]
    found = frame.set_index("id").loc["X_E2"]
    assert (found["note"], found["time"], found["visit"], found["subject"]) == (NOTE, "10:11:12", "v1", "S10")


async def test_the_table_of_scans_is_one_list_of_the_project(server, tmp_path):
    async with opened(server, tmp_path) as site:
        await names(site, "projects/P")
        server.forget_requests()
        frame = await read(site, "scans.tsv")
        assert server.asked == ["GET experiments", "GET experiments"]  # the second for what is shared in
    assert frame[["session", "id", "resources", "files", "bytes", "note"]].values.tolist() == [
        ["E1", "2", "DICOM,SNAPSHOTS", "5", "", NOTE],
        ["E1", "10", "DICOM", "3", "30", ""],
    ]
    assert set(frame["frames"]) == {"9"}


async def test_a_server_that_does_not_join_is_an_error_and_no_empty_table(server, tmp_path):
    server.lists["experiments"] = [{"session_ID": "X_E1"}]
    async with opened(server, tmp_path) as site:
        with pytest.raises(BadReply, match="nothing of their scans"):
            await content(site, "projects/P/scans.tsv")


async def test_a_server_that_knows_no_stored_sizes_is_asked_without_them(server, tmp_path):
    rows = server.lists["experiments"]

    def answer(request: httpx.Request) -> httpx.Response:
        if "file_size" in request.url.params["columns"]:
            return httpx.Response(500, html="<html><h3>no such path</h3>")
        kept = [{key: cell for key, cell in row.items() if "file_" not in key} for row in rows]
        return httpx.Response(200, json={"ResultSet": {"Result": kept}})

    server.answers["experiments"] = answer
    async with opened(server, tmp_path) as site:
        frame = await read(site, "scans.tsv")
    assert frame[["id", "resources", "files"]].values.tolist() == [["2", "DICOM,SNAPSHOTS", ""], ["10", "DICOM", ""]]


async def test_filters_hold_in_the_table_of_scans(server, tmp_path):
    async with opened(server, tmp_path) as site:
        site.views = ViewOptions(qualities=("usable",), hidden=("SNAPSHOTS",))
        frame = await read(site, "scans.tsv")
    assert frame[["id", "resources", "files", "bytes"]].values.tolist() == [["2", "DICOM", "4", "40"]]


async def test_rows_in_another_order_make_the_same_bytes(server, tmp_path):
    files = ("subjects.tsv", "sessions.tsv", "scans.tsv")
    async with opened(server, tmp_path) as site:
        before = [await content(site, f"projects/P/{name}") for name in files]
    for name in ("projects/P/subjects", "projects/P/experiments", "experiments"):
        server.lists[name].reverse()
    async with opened(server, tmp_path / "again") as site:
        assert [await content(site, f"projects/P/{name}") for name in files] == before
