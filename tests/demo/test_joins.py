"""Test the demo's joined lists, whose unconfirmed parts can be switched off (XNAT REST contract 4, 5.4, 6.3, 7)."""

import pytest

from tests.support.changing import archive_of_jane, rows
from xnatfs.demo.archive.model import Archive

ASSESSORS = "/data/experiments?xsiType=xnat:imageAssessorData&columns=ID,label,date,xsiType,session_ID"
LABEL = "xnat:subjectdata/resources/resource/label"
SUBJECTS = "/data/projects/P/subjects?columns=ID,label,xnat:subjectData/resources/resource/label"
SESSION_LABEL = "xnat:imagesessiondata/resources/resource/label"
SESSIONS = f"/data/experiments?project=P&xsiType=xnat:imageSessionData&columns=ID,{SESSION_LABEL}"
SCANS = "/data/experiments?project=P&xsiType=xnat:imageSessionData&columns=ID,xnat:imagescandata/id"


@pytest.fixture
def archive() -> Archive:
    """Make P with a session for each of two subjects; the first has two assessors, one of them of Q, and resources."""
    made = archive_of_jane()
    project, other = made.projects["P"], made.project("Q", "Q", jane="Owners")
    made.project("HIDDEN", "Not for Jane")
    sessions = [made.experiment(made.subject(project, name), f"{name}_MR") for name in ("A", "B")]
    for session in sessions:
        made.scan(session, "1")
    made.assessor(sessions[0], "QC & more")
    made.assessor(sessions[0], "SEG", "icr:roiCollectionData").project = other.id
    made.assessor(sessions[0], "SECRET").project = "HIDDEN"
    subject = made.subjects[sessions[0].subject]
    for label in ("notes", "a & b"):
        made.resource(subject.resources, label)
    made.file(made.resource(sessions[1].scans[0].resources, "DICOM"), "1.dcm", b"one")
    return made


def test_assessors_of_sessions_are_listed_with_their_session(jane):
    found = rows(jane.get(f"{ASSESSORS}&session_ID=DEMO_E00001,DEMO_E00002"))
    assert {(row["label"], row["session_ID"]) for row in found} == {
        ("QC &amp; more", "DEMO_E00001"),
        ("SEG", "DEMO_E00001"),
    }
    assert all(row["xnat:imageassessordata/id"] == row["ID"] for row in found)
    assert rows(jane.get(f"{ASSESSORS}&session_ID=DEMO_E00002")) == []


def test_the_project_of_an_assessor_may_be_another_than_its_sessions(jane):
    assert [row["label"] for row in rows(jane.get(f"{ASSESSORS}&project=P"))] == ["QC &amp; more"]


def test_subjects_are_listed_once_for_each_resource(jane):
    found = rows(jane.get(SUBJECTS))
    assert sorted((row["label"], row[LABEL]) for row in found) == [("A", "a &amp; b"), ("A", "notes"), ("B", "")]


def test_sessions_are_listed_once_for_each_resource_of_their_own(jane, demo):
    with demo.archive.lock:
        demo.archive.resource(demo.archive.experiments["DEMO_E00001"].resources, "rawdata")
        demo.archive.resource(demo.archive.experiments["DEMO_E00001"].resources, "logs")
    found = [(row["ID"], row[SESSION_LABEL]) for row in rows(jane.get(SESSIONS))]
    assert sorted(found) == [("DEMO_E00001", "logs"), ("DEMO_E00001", "rawdata"), ("DEMO_E00002", "")]


def test_a_server_may_ignore_what_it_cannot_join(jane, demo):
    demo.site.joins = "ignored"
    assert all(LABEL not in row for row in rows(jane.get(SUBJECTS)))
    assert all("session_ID" not in row for row in rows(jane.get(f"{ASSESSORS}&session_ID=DEMO_E00002")))
    assert all("xnat:imagescandata/id" not in row for row in rows(jane.get(SCANS)))
    assert all(SESSION_LABEL not in row for row in rows(jane.get(SESSIONS)))
    assert len(rows(jane.get("/data/projects/P/subjects"))) == 2


def test_a_server_may_refuse_what_it_cannot_join(jane, demo):
    demo.site.joins = "refused"
    for url in (SUBJECTS, f"{ASSESSORS}&session_ID=DEMO_E00002", SCANS, SESSIONS):
        assert jane.get(url).status_code == 500
    assert len(rows(jane.get("/data/projects/P/subjects"))) == 2


def test_the_address_of_a_single_resource_keeps_the_list_of_sessions(jane):
    (file,) = rows(jane.get("/data/experiments/DEMO_E00001,DEMO_E00002/files?all=true"))
    assert file["URI"].startswith("/data/experiments/DEMO_E00001,DEMO_E00002/resources/")
    assert jane.get(file["URI"]).content == b"one"
