"""Test xnatctl bids report and bids map."""

import json
from dataclasses import replace

import pytest

from tests.support.commanding import PASSWORD, shell
from tests.support.mounting import SCRIPTS
from tests.tree.bids.support import archive, convert, put_map, session
from xnatfs.demo.archive.model import User
from xnatfs.demo.server.reply import Failed


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
    assert "1 image is shown" in done.err


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


def test_a_map_is_drafted_of_each_session_where_the_server_joins_none(images, monkeypatch):
    before = images.ctl("bids", "map", "P").rows

    def refuse(request):
        if request.path == "/data/experiments":
            raise Failed(403, "no")

    monkeypatch.setattr(images.app, "faults", [refuse])
    assert images.ctl("bids", "map", "P").rows == before


def test_a_file_that_is_no_map_is_named(images):
    path = images.home / "no.json"
    path.write_text("{}")
    done = images.ctl("bids", "report", "P", "--bids-map", path, status=2)
    assert done.err.strip().endswith("is not a list")


def test_a_map_of_the_site_that_is_none_is_named_and_the_projects_is_used(images):
    images.app.archive.configurations.put("bids", "bidsmap", "{", project="")
    done = images.ctl("bids", "map", "P")
    assert "the BIDS map of the site is not JSON: no line of it is copied" in done.err
    assert {"series_description": "T1 3D", "bidsname": "acq-spgr_T1w"} in done.rows
    rows = [(row["scan"], row["reason"]) for row in images.ctl("bids", "report", "P", "-o", "json").rows]
    assert rows[0] == (None, "the BIDS map of the site is not JSON: no line of it is used")
    assert rows[1] == (None, "the BIDS map of the site is not JSON, and nothing else names scan 3")
    images.app.archive.configurations.put("bids", "bidsmap", "[]", project="")


@pytest.mark.parametrize("option", ["--cache-dir", "--ca-bundle", "--shared-cache", "--bids-map"])
def test_a_home_that_is_none_is_named(images, option):
    mount = replace(images, program=(str(SCRIPTS / "xnatfs"),))
    done = mount.ctl("mount", "mnt", option, "~nobody-here/x", status=2)
    assert "~nobody-here/x: there is no such home directory" in done.err


def test_a_map_is_utf_8_in_every_locale(images, monkeypatch):
    path = images.home / "unicode.json"
    path.write_text('[{"series_description": "Schädel", "bidsname": "T1w"}]', "utf-8-sig")
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setitem(images.env, name, value)
    images.ctl("bids", "report", "P", "--bids-map", path)


def test_a_project_that_is_not_there_is_named(images):
    assert "project NONE not found" in images.ctl("bids", "report", "NONE", status=5).err
