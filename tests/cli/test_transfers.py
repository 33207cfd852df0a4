"""Test downloads of several sessions, and of scans by what they are."""

import json

import pytest

from tests.support.commanding import LABEL, SESSION, Shell


@pytest.fixture
def user(fresh: Shell) -> Shell:
    """Return a user whose sessions SUB001_MR1 and SUB002_MR1 have scans of types T0 to T4."""
    archive = fresh.app.archive
    for subject in ("SUB001", "SUB002"):
        found = next(each for each in archive.subjects.values() if each.label == subject)
        session = archive.experiment(found, f"{subject}_MR1", f"XNAT_E1{subject}")
        for number, quality in enumerate(("usable", "usable", "unusable")):
            scan = archive.scan(session, str(number), f"T{number}", quality=quality, series_description=f"s {number}")
            archive.file(archive.resource(scan.resources, "DICOM"), f"{number}.dcm", b"image" * (number + 1))
    return fresh


def copied(user: Shell) -> set[str]:
    out = user.home / "out"
    files = (path.relative_to(out) for path in out.rglob("*") if path.is_file() and ".xnatctl" not in path.parts)
    return {f"{path.parts[0]}/{path.name}" for path in files}


def both(*names: str) -> set[str]:
    return {f"{subject}_MR1/{name}" for subject in ("SUB001", "SUB002") for name in names}


MANY = {
    ("session", "download", "-P", "MYPROJECT", "SUB00?_MR1"): both("0.dcm", "1.dcm", "2.dcm"),
    ("session", "download", "-P", "MYPROJECT", "SUB001_MR1", "SUB002_MR1"): both("0.dcm", "1.dcm", "2.dcm"),
    ("session", "download", "-P", "MYPROJECT", "-E", "*_MR1", "--type", "T[01]"): both("0.dcm", "1.dcm"),
    ("session", "download", "-P", "MYPROJECT", "*_MR1", "--quality", "unusable"): both("2.dcm"),
    ("session", "download", "-P", "MYPROJECT", "*_MR1", "--type", "T0", "--type", "t2"): both("0.dcm", "2.dcm"),
    ("subject", "download", "-P", "MYPROJECT", "SUB002", "--series", "s 1"): {"SUB002_MR1/1.dcm"},
    ("scan", "download", "-P", "MYPROJECT", "-E", "SUB001_MR1", "--quality", "usable"): {
        "SUB001_MR1/0.dcm", "SUB001_MR1/1.dcm",
    },
    ("scan", "download", "-P", "MYPROJECT", "-E", "SUB001_MR1", "-s", "1,2", "--quality", "usable"): {
        "SUB001_MR1/1.dcm",
    },
}  # fmt: skip


@pytest.mark.parametrize("words", MANY, ids=" ".join)
def test_what_is_chosen_is_copied(user, words):
    done = user.ctl(*words, "--out", "out")
    assert copied(user) == MANY[words]
    assert done.out == ""


def test_a_project_is_copied_and_a_second_run_copies_nothing(user):
    words = ("project", "download", "MYPROJECT", "--out", "out", "-o", "json")
    first, second = user.ctl(*words).rows, user.ctl(*words).rows
    assert copied(user) > both("0.dcm", "1.dcm", "2.dcm")
    assert {row["session_id"] for row in first} >= {SESSION, "XNAT_E1SUB001", "XNAT_E1SUB002"}
    assert sum(row["copied"] for row in first) == len(copied(user))
    assert [row["copied"] for row in second] == [0] * len(first)


def test_a_session_that_fails_does_not_stop_the_others(user):
    done = user.ctl("session", "download", "-P", "MYPROJECT", "NOPE", "SUB001_MR1", "--out", "out", status=8)
    assert "session NOPE in project MYPROJECT not found" in done.err
    assert "Downloaded 1 of 2 sessions" in done.err
    assert len(copied(user)) == 3


def test_a_dry_run_has_totals_and_copies_nothing(user):
    done = user.ctl("session", "download", "-P", "MYPROJECT", "*_MR1", "--out", "out", "--dry-run")
    assert len(done.lines) == 6
    assert done.err.splitlines() == ["3 files, 30 B", "3 files, 30 B", "Listed 2 of 2 sessions: 6 files, 60 B"]
    assert not (user.home / "out").exists()


def test_what_a_download_leaves_out_is_said_and_all_takes_everything(user):
    words = ("session", "download", "-E", SESSION, "--out", "out")
    line = "Left out: resources of the session (QC, odd # 100% label?); --all copies them, too"
    assert line in user.ctl(*words, "--dry-run").err.splitlines()
    assert user.ctl(*words).err.splitlines()[-1] == line
    scans = copied(user)
    done = user.ctl(*words, "--all")
    assert "Left out" not in done.err
    assert {name.rpartition("/")[2] for name in copied(user) - scans} == {"qc.txt", "a b.txt"}
    for more in (("-r", "DICOM"), ("--type", "T1"), ("--session-resources",), ("-q",)):
        assert "Left out" not in user.ctl(*words, *more).err


def test_sessions_without_a_scan_that_matches_are_reported_and_are_no_failure(user):
    done = user.ctl("subject", "download", "-P", "MYPROJECT", "SUB002", "--type", "T1", "--out", "out", "-o", "json")
    assert sorted(row["status"] for row in done.rows) == ["skipped", "skipped", "skipped", "success"]
    assert "no scan of session SUB002_CT matches T1" in done.err
    assert "XNAT_E00004 is no imaging session" in done.err or "SUB002_EEG matches" in done.err
    assert "Downloaded 1 of 4 sessions" in done.err


WRONG = {
    ("session", "download", "SUB*"): (2, "which project?"),
    ("session", "download", "-P", "MYPROJECT", "Y*"): (5, "no session of project MYPROJECT matches Y*"),
    ("session", "download", "-E", SESSION, LABEL): (2, "not both"),
    ("session", "download"): (2, "which session?"),
    ("session", "download", "-E", SESSION, "--type", "X*"): (5, f"no scan of session {SESSION} matches X*"),
    ("scan", "download", "-E", SESSION, "-s", "99", "--type", "T*"): (5, "scan 99 is not in the session"),
    ("subject", "download", "-P", "MYPROJECT"): (2, "which subject?"),
    ("subject", "download", "-P", "MYPROJECT", "NOPE"): (5, "subject NOPE in project MYPROJECT not found"),
    ("project", "download", "NOPE"): (5, "project NOPE not found"),
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_what_cannot_be_chosen_is_named(user, words):
    status, said = WRONG[words]
    assert said in user.ctl(*words, status=status).err


def test_an_archive_is_never_overwritten(user):
    words = ("session", "download", "-P", "MYPROJECT", "*_MR1", "--zip", "--out", "out")
    user.ctl(*words)
    files = [user.home / "out" / f"{subject}_MR1" / "scans.zip" for subject in ("SUB001", "SUB002")]
    for file in files:
        file.write_bytes(b"mine")
    done = user.ctl(*words, status=1)
    assert done.err.count("exists already (--force fetches it anew)") == 2
    assert [file.read_bytes() for file in files] == [b"mine", b"mine"]
    assert json.loads(user.ctl(*words, "--force", "-o", "json").out)[0]["status"] == "success"
