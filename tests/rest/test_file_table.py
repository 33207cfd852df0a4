"""Test catalogues: packed, and row by row what the server has listed."""

import tracemalloc
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from xnatfs.common.errors import BadReply
from xnatfs.rest.file_table import Catalogues
from xnatfs.rest.models import FileRow

MD5 = "0123456789abcdef" * 2
KEYS = ("cat_ID", "URI", "Size", "digest", "file_format", "file_content", "collection")


def cells(number: str, path: str, size: str = "5", digest: str = MD5, format: str = "DICOM") -> dict[str, str]:
    uri = f"/data/experiments/E/scans/1/resources/{number}/files/{path}"
    return dict(zip(KEYS, (number, uri, size, digest, format, "RAW", "A&amp;B"), strict=True))


ROWS = [
    cells("7", "a"),
    cells("7", "b/größe \ud800.dcm", "", ""),
    cells("8", "x", str(2**40), MD5.upper()),
    cells("7", "c", "-1", "0" * 32, "a&amp;b"),
    cells("7", "d", "unknown", "no hex digits"),
    cells("8", "y", "0", " " + MD5[1:], "NIFTI"),
]


def read(rows: Iterable[Mapping[str, Any]]) -> Catalogues:
    found = Catalogues()
    found.add(rows)
    return found


@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_the_rows_are_those_of_the_listing_in_its_order(spell):
    found = read([{spell(key): value for key, value in row.items()} for row in ROWS])
    expected = [
        FileRow("7", "a", 5, MD5, "DICOM", "RAW", 0),
        FileRow("7", "b/größe \ud800.dcm", None, "", "DICOM", "RAW", 1),
        FileRow("8", "x", 2**40, MD5, "DICOM", "RAW", 0),
        FileRow("7", "c", None, "", "a&b", "RAW", 2),
        FileRow("7", "d", None, "", "DICOM", "RAW", 3),
        FileRow("8", "y", 0, "", "NIFTI", "RAW", 1),
    ]
    assert list(found) == expected
    assert len(found) == len(expected)
    for number, catalogue in found.groups.items():
        own = [row for row in expected if row.resource_id == number]
        assert list(catalogue) == own
        assert [catalogue[n] for n in range(-len(own), len(own))] == own * 2
        assert catalogue[1:] == own[1:]
        assert list(catalogue.paths()) == [row.path for row in own]
        assert list(catalogue.paths(1, 2)) == [row.path for row in own[1:2]]
    with pytest.raises(IndexError):
        found.groups["7"][4]


@pytest.mark.parametrize(
    "digest", ["", " ", "N/A", "0" * 32, f"md5:{MD5}", f" {MD5[1:]}", "a" * 64, MD5[:-1], MD5 + "0", "é" * 32, "g" * 32]
)
def test_what_is_no_md5_is_no_digest(digest):
    (row,) = read([cells("7", "a", digest=digest)])
    assert row.digest == ""
    assert read([cells("7", "a", digest=MD5.upper())])[0].digest == MD5


def test_a_cell_that_is_missing_or_null_is_empty():
    row: dict[str, Any] = {"cat_ID": "7", "URI": "/data/x/resources/7/files/a", "Size": None, "digest": None}
    assert list(read([row])) == [FileRow("7", "a", None, "", "", "", 0)]


@pytest.mark.parametrize("broken", [{"cat_ID": ""}, {"URI": ""}, {"URI": "/data/x/resources/9/files/a"}])
def test_a_row_that_is_no_file_is_no_answer(broken):
    with pytest.raises(BadReply):
        read([cells("7", "a") | broken])


def test_catalogues_are_equal_if_the_server_lists_the_same():
    once, again = read(ROWS).groups, read(ROWS).groups
    assert once == again
    for changed in ({"Size": "6"}, {"digest": "1" * 32}, {"file_format": "X"}, {"URI": ROWS[0]["URI"] + "1"}):
        assert read([ROWS[0] | changed, *ROWS[1:]]).groups["7"] != once["7"]
    assert read(ROWS[:-1]).groups["8"] != once["8"]


def test_a_file_takes_less_than_a_hundred_bytes():
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = Catalogues()
        for number in range(20_000):
            found.add([cells("7", f"1.2.840.113654.2.45.2.{number:08}.dcm")])
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / len(found) < 100
