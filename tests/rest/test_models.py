"""Test rows of the server as dataclasses."""

import pytest

from xnatfs.common.errors import BadReply
from xnatfs.rest.file_table import file_path, file_rows
from xnatfs.rest.models import Experiment, Resource, Row, Scan, parse_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-01-02 03:04:05.678", 1704164645.678),
        ("2024-01-02 03:04:05.6", 1704164645.6),
        ("2024-01-02 03:04:05.225298", 1704164645.225298),
        ("2024-01-02 03:04:05", 1704164645.0),
        ("", None),
        ("2024-01-02", None),
        ("Tue Sep 15 16:14:57 AEST 2020", None),
        ("2024-13-45 99:00:00.0", None),
    ],
)
def test_time_stamps_are_read_as_utc_or_not_at_all(text, seconds):
    assert parse_time(text) == seconds


def test_keys_are_found_in_any_case_and_spelling():
    row = Row({"xnat:subjectassessordata/id": "XNAT_E1", "SUBJECT_LABEL": "S", "XsiType": "xnat:mrSessionData"})
    experiment = Experiment.parse(row)
    assert (experiment.id, experiment.subject_label, experiment.xsi_type) == ("XNAT_E1", "S", "xnat:mrSessionData")


def test_text_is_unescaped_and_ids_are_not():
    scan = Scan.parse(Row({"ID": "1&amp;2", "type": "a&amp;b"}))
    assert (scan.id, scan.type) == ("1&amp;2", "a&b")


def test_a_row_without_its_id_is_no_answer():
    with pytest.raises(BadReply, match="xnat_abstractresource_id"):
        Resource.parse(Row({"label": "DICOM"}))


@pytest.mark.parametrize("cell", ["", "unknown", "-1", "1.5", "²", None])
def test_a_number_that_is_none_is_unknown(cell):
    assert Row({"Size": cell}).number("Size") is None


@pytest.mark.parametrize(
    "uri",
    [
        "/data/experiments/E/scans/1/resources/34/files/a/resources/34/files/b.dcm",
        "/xnat/data/projects/P/subjects/S/resources/34/files/a/resources/34/files/b.dcm",
        "/data/experiments/E/resources/34/files/a/resources/34/files/b.dcm",
    ],
)
def test_a_path_begins_after_the_first_files_of_its_resource(uri):
    assert file_path(uri, "34") == "a/resources/34/files/b.dcm"


def test_a_file_of_another_resource_is_no_answer():
    with pytest.raises(BadReply):
        file_path("/data/experiments/E/resources/35/files/a", "34")


def test_files_know_their_place_in_their_own_resource():
    rows = [
        Row({"cat_ID": number, "URI": f"/data/x/resources/{number}/files/{name}", "Size": "5", "digest": "AB" * 16})
        for number, name in [("1", "a"), ("2", "x"), ("1", "b")]
    ]
    parsed = file_rows(rows)
    assert [(row.resource_id, row.path, row.place) for row in parsed] == [("1", "a", 0), ("2", "x", 0), ("1", "b", 1)]
    assert parsed[0].digest == "ab" * 16
