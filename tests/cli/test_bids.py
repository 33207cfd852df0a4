"""Test xnatctl bids report and bids map."""

import json

import pytest

from tests.support.commanding import PASSWORD, shell
from tests.tree.bids.support import archive, convert, put_map, session
from xnatfs.demo.archive.model import User


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    made = archive()
    made.users["jane"] = User("jane", PASSWORD)
    made.projects["P"].members["jane"] = "Owners"
    one = session(made)
    convert(made, made.scan(one, "2", series_description="T1 3D"), "t1", apart=False)
    convert(made, made.scan(one, "3", series_description="AX FLAIR"), "flair", apart=False)
    made.scan(one, "4", series_description="odd")
    made.scan(one, "5", "T2", series_description="")
    put_map(made, T1_3D="acq-spgr_T1w")
    home = tmp_path_factory.mktemp("home")
    with shell(home, made) as opened:
        yield opened


def test_the_report_has_what_is_left_out_and_the_line_that_shows_it(images):
    done = images.ctl("bids", "report", "P", "-o", "json")
    (row,) = done.rows
    assert (row["subject"], row["session"], row["scan"]) == ("sub-S1", "ses-E1", "3")
    assert json.loads(row["map_line"]) == {"series_description": "AX FLAIR", "bidsname": "FLAIR"}
    assert "1 images are shown" in done.err


def test_a_drafted_map_keeps_the_lines_there_are_and_shows_what_was_left_out(images):
    done = images.ctl("bids", "map", "P")
    assert done.rows == [
        {"series_description": "AX FLAIR", "bidsname": "FLAIR"},
        {"series_description": "T1 3D", "bidsname": "acq-spgr_T1w"},
        {"series_description": "T2", "bidsname": "T2w"},
    ]
    assert "No guess for: odd" in done.err
    drafted = images.home / "map.json"
    drafted.write_text(done.out)
    rows = images.ctl("bids", "report", "P", "--bids-map", drafted, "-o", "json").rows
    assert [(row["scan"], row["reason"]) for row in rows] == [("5", "has no NIfTI file")]


def test_a_file_that_is_no_map_is_named(images):
    path = images.home / "no.json"
    path.write_text("{}")
    done = images.ctl("bids", "report", "P", "--bids-map", path, status=2)
    assert done.err.strip().endswith("is not a list")


def test_a_project_that_is_not_there_is_named(images):
    assert "project NONE not found" in images.ctl("bids", "report", "NONE", status=5).err
