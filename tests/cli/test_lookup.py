"""Test how sessions are found, opened in a browser, and watched while they arrive."""

import json
import re
import signal
import subprocess

import pytest

from tests.support.commanding import LABEL, SESSION, Shell
from tests.support.mounting import LIMIT, mounting

FOUND = {
    ("SUB001_MR",): [SESSION],
    ("sub001",): [SESSION, "XNAT_E00002"],
    ("*_CT",): ["XNAT_E00003"],
    ("PET",): ["XNAT_E00002"],
    ("xnat:eegSessionData",): ["XNAT_E00004"],
    ("2024-01-15",): [SESSION],
    ("2023",): ["XNAT_E00002"],
    ("BASELINE_MR",): ["XNAT_E00011", "CENTRAL_E00012"],
    ("CENTRAL_E00012",): ["CENTRAL_E00012"],
    ("SUB001", "2023-01"): ["XNAT_E00002"],
    ("NOTHING",): [],
}


@pytest.mark.parametrize("terms", FOUND, ids=" ".join)
def test_sessions_of_all_projects_are_found_with_one_request(prompt, terms):
    prompt.ctl("whoami")
    before = len(prompt.app.requests)
    assert prompt.ctl("session", "find", *terms, "-q").lines == FOUND[terms]
    assert [record.path for record in prompt.app.requests[before:]] == ["/data/experiments"]


def test_a_session_that_is_found_names_its_project(prompt):
    head, row = prompt.ctl("session", "find", SESSION).lines
    assert head.split() == ["ID", "Label", "Subject", "Project", "Date", "Modality"]
    assert row.split() == [SESSION, LABEL, "SUB001", "MYPROJECT", "2024-01-15", "MR"]
    nothing = prompt.ctl("session", "find", "NOTHING")
    assert (nothing.out, nothing.err) == ("", "No session that you may see matches\n")


# -- the web page ------------------------------------------------------------------------------------------------

PAGES = {
    ("-E", SESSION): f"/data/experiments/{SESSION}?format=html",
    ("-P", "MYPROJECT", LABEL): f"/data/experiments/{SESSION}?format=html",
    ("-P", "MYPROJECT"): "/data/projects/MYPROJECT?format=html",
    (): "",
}


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_without_a_display_the_page_is_printed(prompt, words):
    assert prompt.ctl("browse", *words).out == f"{prompt.url}{PAGES[words]}\n"


def test_a_browser_is_started_where_there_is_one(fresh):
    browser = fresh.home / "browser"
    browser.write_text('#!/bin/sh\necho "$1" >opened\n')
    browser.chmod(0o755)
    fresh.env["BROWSER"] = str(browser)
    assert fresh.ctl("browse", SESSION).out == ""
    assert (fresh.home / "opened").read_text() == f"{fresh.url}/data/experiments/{SESSION}?format=html\n"


def test_a_session_that_does_not_exist_has_no_page(prompt):
    assert "session NOPE not found" in prompt.ctl("browse", "NOPE", status=5).err


def test_a_session_shows_its_page_and_no_mount_without_one(prompt):
    item = prompt.ctl("session", "show", SESSION, "-o", "json").rows
    assert item["web_page"] == f"{prompt.url}/data/experiments/{SESSION}?format=html"
    assert item["mounted_at"] is None


@pytest.mark.fuse
def test_a_session_shows_where_it_is_mounted(fresh):
    with mounting(fresh.url, fresh.home, user=fresh.env["XNAT_USER"], password=fresh.env["XNAT_PASS"]) as mount:
        place = mount.path / "experiments" / SESSION
        user = Shell(fresh.app, fresh.url, mount.home, fresh.env)
        assert user.ctl("session", "show", SESSION, "-o", "json").rows["mounted_at"] == str(place)
        assert (place / "scans" / "1").is_dir()


# -- the prearchive ----------------------------------------------------------------------------------------------


def test_each_change_in_the_prearchive_is_a_line(fresh):
    fresh.receive("FIRST")
    command = [*fresh.program, "prearchive", "watch", "-P", "MYPROJECT", "--interval", "200ms", "-o", "jsonl"]
    environment = fresh.environment()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        try:
            seen = json.loads(process.stdout.readline())
            assert (seen["name"], seen["status"]) == ("FIRST", "READY")
            assert re.fullmatch(r"[\d-]{10}T[\d:]{8}[+-]\d\d:\d\d", seen["time"])
            fresh.receive("SECOND", ready=False)
            states = [json.loads(process.stdout.readline())]
            fresh.ctl("prearchive", "delete", "-P", "MYPROJECT", "--session", "FIRST", "--yes")
            while states[-1]["name"] != "FIRST":
                states.append(json.loads(process.stdout.readline()))
            assert states[0]["name"] == "SECOND"
            assert states[-1]["status"] == "gone"
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT) == 130
            assert json.loads(process.stderr.read())["error"]["message"] == "interrupted"
        finally:
            process.kill()


def test_watching_a_project_that_does_not_exist_ends(prompt):
    assert "project NOPE not found" in prompt.ctl("prearchive", "watch", "-P", "NOPE", status=5).err
