"""Test `xnatctl project export`: what it writes, and what it leaves alone."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.support.commanding import OWNER, PASSWORD, shell
from tests.support.mounting import mounting
from xnatfs.demo.server.reply import Failed

TABLES = ["subjects.tsv", "sessions.tsv", "scans.tsv"]
PROJECT = "MYPROJECT"


def test_an_export_is_whole_repeatable_and_replaces_nothing_unasked(tmp_path):
    with shell(tmp_path) as prompt:
        rows = json.loads(prompt.ctl("project", "export", PROJECT, "tables", "-o", "json").out)
        assert [Path(row["file"]).name for row in rows] == TABLES
        assert {row["state"] for row in rows} == {"written"}
        again = json.loads(prompt.ctl("project", "export", PROJECT, "tables", "-o", "json").out)
        assert {row["state"] for row in again} == {"unchanged"}
        edited = prompt.home / "tables" / "scans.tsv"
        edited.write_text("mine")
        refused = prompt.ctl("project", "export", PROJECT, "tables", status=1)
        assert "scans.tsv would be replaced" in refused.err
        assert edited.read_text() == "mine"
        prompt.ctl("project", "export", PROJECT, "tables", "--force")
        assert edited.stat().st_size == rows[2]["bytes"]
        assert sorted(os.listdir(prompt.home / "tables")) == sorted(TABLES)
        assert "project NOSUCH not found" in prompt.ctl("project", "export", "NOSUCH", status=5).err
        absent = prompt.ctl("project", "export", PROJECT, "/proc/nowhere", status=74).err
        assert "/proc/nowhere" in absent


def test_a_table_that_the_server_refuses_is_reported_and_the_others_are_written(tmp_path, monkeypatch):
    def refuse(request):
        if request.path == "/data/experiments":
            raise Failed(500, "null")

    with shell(tmp_path) as prompt:
        monkeypatch.setattr(prompt.app, "faults", [refuse])
        done = prompt.ctl("project", "export", PROJECT, "tables", "-o", "json", status=8)
        assert {Path(row["file"]).name: row["state"] for row in done.rows} == {
            **dict.fromkeys(TABLES, "written"),
            "scans.tsv": "failed",
        }
        assert re.search("scans.tsv cannot be made: .*500", done.err)
        assert sorted(os.listdir(prompt.home / "tables")) == ["sessions.tsv", "subjects.tsv"]


@pytest.mark.fuse
def test_the_export_and_a_mount_have_the_same_bytes(tmp_path):
    with shell(tmp_path) as prompt, mounting(prompt.url, tmp_path, user=OWNER, password=PASSWORD) as mount:
        prompt.ctl("project", "export", PROJECT, "tables")
        for name in TABLES:
            shown = mount.path / "projects" / PROJECT / name
            assert shown.stat().st_size == len(shown.read_bytes()) > 0
            assert shown.read_bytes() == (prompt.home / "tables" / name).read_bytes()
