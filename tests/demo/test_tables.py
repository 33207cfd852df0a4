"""Test tables and documents of the demo (XNAT REST contract 1.3, 3.4, 4, 5, 13)."""

import xml.etree.ElementTree as ET

import httpx
import pytest

from tests.support.changing import archive_of_jane, rows
from xnatfs.demo.archive.model import Archive

BASE = "/data/projects/P"
NAMES = [f"S{number:02}" for number in range(12)]


@pytest.fixture(scope="module")
def archive() -> Archive:
    """Make P with a dozen subjects with an MR session each, one PET session and one blood test. One is shared."""
    made = archive_of_jane()
    project, other = made.projects["P"], made.project("Q", "Q", jane="Members")
    made.project("HIDDEN", "Not for Jane")
    for name in NAMES:
        session = made.experiment(made.subject(project, name), f"{name}_MR")
        made.scan(session, "1", "T1 & T2")
    first = made.find_subject("P", "S00")
    assert first is not None
    made.experiment(first, "S00_PET", xsi_type="xnat:petSessionData", date="2024-06-01")
    made.experiment(first, "S00_BLOOD", xsi_type="xnat:subjectVariablesData")
    first.shared["Q"] = "GUEST"
    made.experiments["DEMO_E00001"].shared["Q"] = "GUEST_MR"
    scan = made.experiments["DEMO_E00001"].scans[0]
    made.file(made.resource(scan.resources, "DICOM", "DICOM", "RAW"), "1.dcm", b"one")
    scan.resources[0].entries[0].tags = "a,b"
    quoted = made.resource(scan.resources, "A & <B>'s")
    made.file(quoted, "a&b.txt", b"two")
    hidden = made.subject(made.projects["HIDDEN"], "X")
    made.experiment(hidden, "X_MR")
    assert other.id == "Q"
    return made


def column(reply: httpx.Response, name: str) -> list[str]:
    return [row[name] for row in rows(reply)]


# -- form ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "accept", "status", "kind"),
    [
        (f"{BASE}/subjects", "*/*", 200, "application/json"),
        (f"{BASE}/subjects", "text/html", 200, "text/html"),
        (f"{BASE}/subjects", "text/html;q=0.2, application/xml;q=0.9", 200, "text/xml"),
        (f"{BASE}/subjects", "text/csv", 406, "text/html"),
        (f"{BASE}/subjects?format=csv", "text/csv", 406, "text/html"),
        (f"{BASE}/subjects?format=csv", "*/*", 200, "text/csv"),
        (f"{BASE}/subjects?format=nonsense", "*/*", 200, "text/html"),
        (f"{BASE}/subjects?media=text/xml", "text/csv", 200, "text/xml"),
        (f"{BASE}/subjects/S00", "*/*", 200, "text/html"),
        (f"{BASE}/subjects/S00?format=json", "*/*", 200, "application/json"),
        (f"{BASE}/subjects/S00?format=json", "application/json", 406, "text/html"),
        (f"{BASE}/subjects/S00?format=csv", "*/*", 200, "text/xml"),
        ("/data/experiments/DEMO_E00001/scans/1/resources/DICOM", "*/*", 200, "text/xml"),
        ("/data/experiments/DEMO_E00001/scans/1/resources/DICOM", "application/json", 406, "text/html"),
    ],
)
def test_the_form_is_negotiated_first_and_overridden_afterwards(jane, path, accept, status, kind):
    reply = jane.get(path, headers={"Accept": accept})
    assert (reply.status_code, reply.headers["content-type"].partition(";")[0]) == (status, kind)


def test_rows_come_in_no_order_but_the_same_each_time(jane):
    labels = column(jane.get(f"{BASE}/subjects"), "label")
    assert labels != sorted(labels)
    assert sorted(labels) == NAMES
    assert column(jane.get(f"{BASE}/subjects"), "label") == labels
    assert column(jane.get(f"{BASE}/subjects?sortBy=LABEL"), "label") == NAMES
    assert column(jane.get(f"{BASE}/subjects?sortBy=label&sortOrder=DESC"), "label") == NAMES[::-1]


def test_text_is_escaped_wherever_it_came_in_by_a_form_but_paths_of_files_are_not(jane):
    session = "/data/experiments/DEMO_E00001"
    assert column(jane.get(f"{session}/scans"), "type") == ["T1 &amp; T2"]
    label = "A &amp; &lt;B&gt;&apos;s"
    assert label in column(jane.get(f"{session}/scans/1/resources"), "label")
    listed = {row["Name"]: row for row in rows(jane.get(f"{session}/scans/1/files"))}
    assert listed["a&b.txt"]["collection"] == label
    assert listed["a&b.txt"]["URI"].endswith("/files/a&b.txt")
    document = jane.get(f"{session}?format=json").json()["items"][0]
    assert document["children"][0]["items"][0]["data_fields"]["type"] == "T1 &amp; T2"


def test_the_fields_can_be_asked_for_in_place_of_the_rows(jane):
    assert {"ID", "label", "URI"} <= set(column(jane.get(f"{BASE}/experiments?fields=1"), "FIELD"))


# -- columns, filters, pages -----------------------------------------------------------------------------------


def test_the_key_of_the_root_is_always_there(jane):
    assert "xnat:subjectassessordata/id" in rows(jane.get(f"{BASE}/experiments?columns=label"))[0]
    assert "xnat:experimentdata/id" in rows(jane.get("/data/experiments?columns=label"))[0]
    assert "xnat:mrsessiondata/id" in rows(jane.get(f"{BASE}/experiments?xsiType=xnat:mrSessionData"))[0]
    assert "session_ID" in rows(jane.get(f"{BASE}/experiments?xsiType=xnat:imageSessionData"))[0]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 14),
        ("?columns=ID,label,subject_ID", 14),
        ("?columns=ID,modality", 13),
        ("?columns=ID,xnat:mrSessionData/fieldStrength", 12),
        ("?xsiType=xnat:imageSessionData", 13),
        ("?xsiType=xnat:petSessionData", 1),
        ("?label=S0*_MR", 10),
        ("?label=S00_MR,S11_MR", 2),
        ("?subject_label=S00", 3),
        ("?xnat:subjectData/label=S00", 14),  # not a filter of this demo: no client uses it
        ("?date=01/01/2024-02/01/2024", 13),
        ("?date=06/01/2024", 1),
        ("?limit=5", 5),
        ("?limit=*", 14),
    ],
)
def test_what_a_query_leaves_of_the_experiments(jane, query, count):
    assert len(rows(jane.get(f"{BASE}/experiments{query}"))) == count


def test_a_path_with_a_shortcut_is_called_by_it(jane):
    row = rows(jane.get(f"{BASE}/experiments?columns=xnat:imageSessionData/ID,xnat:mrSessionData/fieldStrength"))[0]
    assert {"session_ID", "fieldStrength"} <= row.keys()


def test_columns_are_decoded_twice_and_may_begin_with_the_default_ones(jane):
    assert "subject_label" in rows(jane.get(f"{BASE}/experiments?columns=DEFAULT%252Csubject_label"))[0]
    assert "label" in rows(jane.get(f"{BASE}/experiments?columns=DEFAULT%2Csubject_label"))[0]


def test_lists_of_scans_ignore_filters_and_pages(jane):
    assert len(rows(jane.get("/data/experiments/DEMO_E00001/scans?type=none&limit=0"))) == 1


def test_the_label_of_the_project_that_is_listed_needs_its_column(jane):
    assert column(jane.get("/data/projects/Q/subjects"), "label") == ["GUEST"]
    assert column(jane.get("/data/projects/Q/subjects?columns=label"), "label") == ["S00"]
    assert column(jane.get("/data/projects/Q/experiments"), "label") == ["GUEST_MR"]
    kind = "xsiType=xnat:imageSessionData"
    assert column(jane.get(f"/data/projects/Q/experiments?{kind}"), "label") == ["S00_MR"]
    shared = rows(jane.get("/data/projects/Q/experiments?columns=ID,label,project,subject_label"))
    assert [(row["project"], row["subject_label"]) for row in shared] == [("Q", "GUEST")]


def test_a_page_of_the_site_is_cut_before_permissions_are_looked_at(jane):
    assert len(rows(jane.get("/data/experiments?limit=15"))) == 14
    assert len(rows(jane.get("/data/experiments"))) == 14


def test_all_scans_of_shared_sessions_too(jane):
    join = "/data/experiments?xsiType=xnat:imageSessionData&columns=ID,xnat:imagescandata/id,xnat:imagescandata/type"
    owned = rows(jane.get(f"{join}&project=P"))
    assert len(owned) == 13
    assert [row["xnat:imagescandata/id"] for row in owned].count("") == 1  # the PET session has no scans
    shared = rows(jane.get(f"{join}&xnat:imagesessiondata/sharing/share/project=Q"))
    assert [row["xnat:imagescandata/type"] for row in shared] == ["T1 &amp; T2"]
    labels = rows(jane.get(f"{join},xnat:imagescandata/file/label&ID=DEMO_E00001"))
    assert len({row["xnat:imagescandata/file/label"] for row in labels}) == 2


# -- routes ----------------------------------------------------------------------------------------------------


def test_a_subject_without_its_project_has_no_list_of_experiments(jane):
    reply = jane.get("/data/subjects/DEMO_S00001/experiments?format=json")
    assert reply.json()["items"][0]["data_fields"]["ID"] == "DEMO_S00001"


def test_the_recognised_parts_of_a_project(jane):
    assert column(jane.get(f"{BASE}/users"), "login") == ["jane"]
    assert "P_owner" in column(jane.get(f"{BASE}/groups"), "id")
    for path in (f"{BASE}/scan_types", "/data/scan_types"):
        (found,) = rows(jane.get(path))
        assert found == {"type": "T1 &amp; T2", "series_descriptions": ""}
    assert jane.get(f"{BASE}/prearchive_code").text == "0"
    assert jane.get(f"{BASE}/anything").status_code == 400


# -- documents and files ---------------------------------------------------------------------------------------


def test_an_xml_document_has_what_is_below(jane):
    space = "{http://nrg.wustl.edu/xnat}"
    root = ET.fromstring(jane.get("/data/experiments/DEMO_E00001?format=xml").text)
    assert (root.tag, root.get("label")) == (f"{space}MrSession", "S00_MR")
    scan = root.find(f"{space}scans/{space}scan")
    assert scan is not None
    assert (scan.get("ID"), scan.get("type")) == ("1", "T1 & T2")
    assert {file.get("label") for file in scan.iter(f"{space}file")} == {"DICOM", "A & <B>'s"}


def test_files_as_a_catalogue_of_urls(jane):
    reply = jane.get("/data/experiments/DEMO_E00001/scans/1/files?format=xcat")
    assert reply.headers["content-type"] == "application/xcat"
    assert reply.headers["content-disposition"] == 'inline; filename="files.xcat";'
    space = "{http://nrg.wustl.edu/catalog}"
    entry, _ = ET.fromstring(reply.text).iter(f"{space}entry")
    path = "/data/experiments/DEMO_E00001/scans/1/resources/"
    assert entry.get("URI", "").startswith(f"http://xnat{path}")
    name = "S00_MR/scans/1-T1__amp__T2/resources/DICOM/files/1.dcm"
    assert entry.get("cachePath") == name
    assert [field.text for field in entry.iter(f"{space}metaField")] == [name, "3"]


def test_a_catalogue_states_sizes_and_digests(jane):
    space = "{http://nrg.wustl.edu/catalog}"
    root = ET.fromstring(jane.get("/data/experiments/DEMO_E00001/scans/1/resources/DICOM").text)
    (entry,) = root.iter(f"{space}entry")
    assert (entry.get("URI"), entry.get("format"), len(entry.get("digest", ""))) == ("1.dcm", "DICOM", 32)
    assert [field.text for field in entry.iter(f"{space}metaField")] == ["3"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("file_format=DICOM", ["1.dcm"]),
        ("file_format=NULL", ["a&b.txt"]),
        ("file_format=DICOM&file_format=NULL", ["1.dcm", "a&b.txt"]),
        ("file_content=RAW", ["1.dcm"]),
        ("file_content=none", []),
    ],
)
def test_files_by_format_and_content(jane, query, names):
    path = "/data/experiments/DEMO_E00001/scans/1/files"
    assert sorted(column(jane.get(f"{path}?{query}"), "Name")) == names
    wanted = jane.get(f"{path}?{query}&index=0")
    assert (wanted.status_code == 200) == bool(names)
    assert jane.get(f"{path}?{query}&index={len(names)}").status_code == 404
