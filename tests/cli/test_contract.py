"""Test the statements C01 to C45 of the key-concepts page, each in a test named after its number.

Each test runs the program itself, and checks what it prints, where, and what it requests from the server. Exit status 0
and an empty stderr are checked by `Shell.ctl` and `quiet` unless a statement says otherwise.
"""

import json
import os
import re
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.changing import images
from tests.support.commanding import COLLABORATOR, LABEL, MEMBER, OWNER, PASSWORD, SESSION, Done, Shell, shell
from tests.support.mounting import mounting
from tests.support.walk import MADE
from xnatfs.demo.server.app import Record, Request
from xnatfs.demo.server.reply import Failed, Reply
from xnatfs.transfer.manifest import FOLDER

PAGE = """\
profiles:
  production:
    url: {url}
    default_project: MYPROJECT
"""


@pytest.fixture(scope="module")
def prompt(prompt: Shell) -> Shell:
    """Log in first, so that each test counts the same requests."""
    prompt.ctl("project", "list")
    return prompt


def quiet(done: Done) -> Done:
    assert done.err == ""
    return done


def test_the_page_runs_verbatim(fresh):
    """Run the command lines of the page in its order, with its YAML as the whole configuration."""
    fresh.config(PAGE.format(url=fresh.url))
    del fresh.env["XNAT_URL"]
    fresh.receive("SESS001")
    page = """
        xnatctl project list
        xnatctl project show MYPROJECT
        xnatctl subject list --project MYPROJECT
        xnatctl subject show --project MYPROJECT SUB001
        xnatctl session list -P MYPROJECT
        xnatctl session list -P MYPROJECT --subject SUB001
        xnatctl session list -P MYPROJECT --modality MR
        xnatctl scan list -E XNAT_E00001
        xnatctl scan download -E XNAT_E00001 -s 1,2,3 --out ./data
        xnatctl resource list -E XNAT_E00001 --scan 1
        xnatctl session show -E XNAT_E00001
        xnatctl session show -E SUB001_MR_20240115 -P MYPROJECT
        xnatctl session show -E SUB001_MR_20240115
        xnatctl prearchive list --project MYPROJECT
        xnatctl prearchive archive --project MYPROJECT --session SESS001
        xnatctl prearchive list --project MYPROJECT
        xnatctl auth login
        xnatctl whoami
    """
    said = {line: fresh.ctl(*line.split()[1:]) for line in map(str.strip, page.strip().splitlines())}
    assert "SESS001" not in said["xnatctl prearchive list --project MYPROJECT"].out  # by then it is archived
    assert [e.label for e in fresh.app.archive.experiments.values()].count("SESS001") == 1
    assert len([path for path in (fresh.home / "data" / SESSION / "scans").rglob("*") if path.is_file()]) == 10
    assert fresh.logins() == 2  # the first command, and `auth login`


# -- the hierarchy -----------------------------------------------------------------------------------------------


@pytest.mark.fuse
def test_c01_the_levels_have_the_names_that_they_have_in_a_mount(fresh, tmp_path):
    with mounting(fresh.url, tmp_path / "mounted", user=OWNER, password=PASSWORD) as mount:
        projects = mount.path / "projects"
        subject = projects / "MYPROJECT" / "SUB001"
        scan = subject / LABEL / "scans"
        for words, directory in (
            (("project", "list"), projects),
            (("subject", "list", "-P", "MYPROJECT"), projects / "MYPROJECT"),
            (("session", "list", "-P", "MYPROJECT", "-S", "SUB001", "--columns", "label"), subject),
            (("resource", "list", "-E", SESSION, "--scan", "1"), scan / "1"),
            (("resource", "show", "-E", SESSION, "--scan", "1", "NIFTI"), scan / "1" / "NIFTI"),
        ):
            table = fresh.ctl(*words, "-o", "tsv", "--no-headers").lines
            there = {path.name for path in directory.iterdir() if path.name not in {"resources", *MADE}}
            assert {cell for line in table for cell in line.split("\t")} >= there, words
            assert len(table) == len(there), words
        ids = fresh.ctl("scan", "list", "-E", SESSION, "-q").lines
        assert {path.name for path in scan.iterdir()} == set(ids)


def test_c02_project_has_two_spellings_and_any_place(prompt):
    for noun, verb, *rest in (
        ("subject", "list"),
        ("session", "list"),
        ("session", "show", "-E", LABEL),
        ("scan", "list", "-E", LABEL),
        ("resource", "list", "-E", LABEL),
        ("prearchive", "list"),
    ):
        one = quiet(prompt.ctl(noun, verb, "-P", "MYPROJECT", *rest))
        two = quiet(prompt.ctl(noun, verb, *rest, "--project", "MYPROJECT"))
        assert one == two
        assert one.out
    for words in (("subject", "show", "SUB001", "-P", "MYPROJECT"), ("subject", "show", "-P", "MYPROJECT", "SUB001")):
        assert prompt.ctl(*words).out == prompt.ctl("subject", "show", "--project", "MYPROJECT", "SUB001").out


def test_c03_project_list(prompt):
    prompt.ctl("whoami")
    assert prompt.asked("project", "list") == ["GET /data/projects"]
    query = prompt.app.requests[-1].query
    assert query == {"format": "json", "columns": "ID,name,pi_lastname,description"}
    done = quiet(prompt.ctl("project", "list", "-o", "json"))
    assert [row["id"] for row in done.rows] == ["_2-b_", "A", "B", "EMPTY", "MYPROJECT"]
    assert len(done.rows[-1]["description"]) > 50
    assert quiet(prompt.ctl("project", "list")).lines[0].split() == ["ID", "Name", "PI", "Description"]
    assert prompt.ctl("project", "list", "-q").lines[1] == "A"


def test_c04_project_show(prompt):
    asked = prompt.asked("project", "show", "MYPROJECT")
    assert asked[0] == "GET /data/projects/MYPROJECT" or "GET /data/projects/MYPROJECT" in asked
    assert len(asked) <= 4
    found = quiet(prompt.ctl("project", "show", "MYPROJECT", "-o", "json")).rows
    assert (found["id"], found["name"], found["accessibility"]) == ("MYPROJECT", "My project", "private")
    assert (found["subjects"], found["sessions"]) == (2, 5)
    assert quiet(prompt.ctl("project", "show", "-P", "MYPROJECT")).out == prompt.ctl("project", "show", "MYPROJECT").out


def test_c05_a_refusal_names_the_project_and_the_role(prompt, tmp_path):
    carol = prompt.as_user(COLLABORATOR)
    source = tmp_path / "one.dcm"
    source.write_bytes(next(iter(images().values())))
    done = carol.ctl("session", "upload", source, "-P", "MYPROJECT", "-S", "SUB001", "-E", "NEW", status=6)
    assert "MYPROJECT" in done.err
    assert "Member" in done.err
    assert "authenticat" not in done.err.lower()


def test_c06_any_legal_project_id(prompt):
    assert quiet(prompt.ctl("project", "show", "_2-b_", "-q")).out == "_2-b_\n"
    assert quiet(prompt.ctl("subject", "list", "-P", "_2-b_", "-o", "json")).rows == []


def test_c07_subject_list_counts_sessions_with_one_request(prompt):
    asked = prompt.asked("subject", "list", "--project", "MYPROJECT")
    assert sorted(asked) == ["GET /data/projects/MYPROJECT/experiments", "GET /data/projects/MYPROJECT/subjects"]
    rows = quiet(prompt.ctl("subject", "list", "--project", "MYPROJECT", "-o", "json")).rows
    assert [(row["label"], row["id"], row["sessions"]) for row in rows] == [
        ("SUB001", "XNAT_S00001", 2),
        ("SUB002", "XNAT_S00002", 3),
    ]
    assert len(prompt.asked("subject", "list", "--project", "MYPROJECT", "--no-counts")) == 1
    assert prompt.ctl("subject", "list", "--project", "MYPROJECT", "-q").lines == ["SUB001", "SUB002"]


def test_c08_subject_show_by_label_and_accession_id(prompt):
    asked = prompt.asked("subject", "show", "--project", "MYPROJECT", "SUB001")
    assert sorted(asked) == [
        "GET /data/projects/MYPROJECT/subjects/SUB001",
        "GET /data/projects/MYPROJECT/subjects/SUB001/experiments",
    ]
    by_label = quiet(prompt.ctl("subject", "show", "--project", "MYPROJECT", "SUB001"))
    by_id = quiet(prompt.ctl("subject", "show", "XNAT_S00001", "--project", "MYPROJECT"))
    assert by_label == by_id


def test_c09_all_sessions_of_a_subject_oldest_first(fresh):
    archive = fresh.app.archive
    subject = archive.subjects["XNAT_S00001"]
    for month in range(12, 0, -1):
        archive.experiment(subject, f"M{month:02}", date=f"2022-{month:02}-01")
    found = fresh.ctl("subject", "show", "-P", "MYPROJECT", "SUB001", "-o", "json").rows
    assert found["session_count"] == len(found["sessions"]) == 14
    assert [row["label"] for row in found["sessions"]] == [
        *(f"M{month:02}" for month in range(1, 13)),
        "SUB001_PET_20230101",
        LABEL,
    ]


# -- sessions and scans ------------------------------------------------------------------------------------------


def test_c10_session_list(prompt):
    assert prompt.asked("session", "list", "-P", "MYPROJECT") == ["GET /data/projects/MYPROJECT/experiments"]
    done = quiet(prompt.ctl("session", "list", "-P", "MYPROJECT"))
    assert done.lines[0].split() == ["ID", "Label", "Subject", "Date", "Modality"]
    row = next(
        row for row in prompt.ctl("session", "list", "-P", "MYPROJECT", "-o", "json").rows if row["id"] == SESSION
    )
    assert (row["label"], row["subject"], row["date"], row["modality"]) == (LABEL, "SUB001", "2024-01-15", "MR")
    assert SESSION in prompt.ctl("session", "list", "-P", "MYPROJECT", "-q").lines


def test_c11_sessions_of_a_subject_are_picked_here_too(prompt):
    for subject in ("SUB001", "XNAT_S00001"):
        done = quiet(prompt.ctl("session", "list", "-P", "MYPROJECT", "--subject", subject, "-q"))
        assert sorted(done.lines) == ["XNAT_E00001", "XNAT_E00002"]
    # The server of this test answers all of them, whatever it is asked.
    assert "subject_label" not in prompt.app.requests[-1].query


@pytest.mark.parametrize(
    ("modality", "found"),
    [
        ("MR", ["XNAT_E00001", "XNAT_E00005"]),
        ("mr", ["XNAT_E00001", "XNAT_E00005"]),
        ("PET", ["XNAT_E00002"]),
        ("CT", ["XNAT_E00003"]),
        ("EEG", ["XNAT_E00004"]),
        ("US", []),
        ("OCT", []),
        ("PETMR", []),
    ],
)
def test_c12_sessions_of_a_modality(prompt, modality, found):
    done = prompt.ctl("session", "list", "-P", "MYPROJECT", "--modality", modality, "-q")
    assert sorted(done.lines) == found


def test_c12_old_and_new_names_of_a_modality(fresh):
    archive = fresh.app.archive
    subject = archive.subjects["XNAT_S00001"]
    archive.experiment(subject, "EYE", "EYE_E1", xsi_type="xnat:optSessionData")
    archive.experiment(subject, "BOTH", "BOTH_E1", xsi_type="xnat:petmrSessionData")
    assert fresh.ctl("session", "list", "-P", "MYPROJECT", "--modality", "OCT", "-q").lines == ["EYE_E1"]
    assert fresh.ctl("session", "list", "-P", "MYPROJECT", "--modality", "PETMR", "-q").lines == ["BOTH_E1"]


def test_c13_a_session_has_an_id_a_label_and_a_subject_with_a_label(prompt):
    found = quiet(prompt.ctl("session", "show", "-E", SESSION, "-o", "json")).rows
    assert (found["id"], found["label"], found["subject"]) == (SESSION, LABEL, "SUB001")
    assert prompt.ctl("session", "show", "-E", SESSION, "-q").out == f"{SESSION}\n"


def test_c14_scan_list(prompt):
    assert prompt.asked("scan", "list", "-E", SESSION) == [f"GET /data/experiments/{SESSION}/scans"]
    rows = quiet(prompt.ctl("scan", "list", "-E", SESSION, "-o", "json")).rows
    assert [row["id"] for row in rows] == ["1", "2", "3", "4-MR2", "10"]
    assert {"type", "series_description", "quality", "frames"} <= rows[0].keys()
    assert (rows[0]["type"], rows[0]["series_description"]) == ("T0", "series 1")
    assert quiet(prompt.ctl("scan", "list", "-E", SESSION)).lines[0].startswith("ID")


def test_c15_scan_download(fresh):
    done = fresh.ctl("scan", "download", "-E", SESSION, "-s", "1,2,3", "--out", "./data")
    assert done.out == ""
    assert "deprecated" not in done.err
    there = {
        path.relative_to(fresh.home / "data").as_posix(): path.read_bytes()
        for path in (fresh.home / "data").rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }
    truth = {
        f"{SESSION}/scans/{scan.id}/resources/{resource.label}/files/{entry.path}": entry.content
        for scan in fresh.session().scans
        if scan.id in ("1", "2", "3")
        for resource in scan.resources
        for entry in resource.entries
    }
    assert there == truth


def test_c15_a_scan_that_is_not_there_is_named(fresh):
    done = fresh.ctl("scan", "download", "-E", SESSION, "-s", "1,77", "--out", "data", status=5)
    assert "77" in done.err
    assert "scan 77 is not in the session" in done.err
    assert not (fresh.home / "data").exists()


def test_c16_resources_of_a_scan(prompt):
    asked = prompt.asked("resource", "list", "-E", SESSION, "--scan", "1")
    assert asked == [f"GET /data/experiments/{SESSION}/scans/1/resources"]
    rows = quiet(prompt.ctl("resource", "list", "-E", SESSION, "--scan", "1", "-o", "json")).rows
    assert [row["label"] for row in rows] == ["DICOM", "NIFTI"]
    assert all(isinstance(row["file_count"], int | None) for row in rows)


def test_c17_resources_of_a_session(prompt):
    asked = prompt.asked("resource", "list", "-E", SESSION)
    assert asked == [f"GET /data/experiments/{SESSION}/resources"]
    assert prompt.ctl("resource", "list", "-E", SESSION, "-q").lines == ["odd # 100% label?", "QC"]
    assert prompt.ctl("resource", "list", SESSION, "-q").lines == ["odd # 100% label?", "QC"]


def test_c18_any_label_of_a_resource(fresh):
    label = "odd # 100% label?"
    shown = quiet(fresh.ctl("resource", "show", "-E", SESSION, label, "-o", "json")).rows
    assert [(row["name"], row["size"]) for row in shown] == [("a b.txt", 4)]
    fresh.ctl("resource", "download", "-E", SESSION, label, "--out", "data")
    (found,) = [path for path in (fresh.home / "data").rglob("*") if path.is_file() and FOLDER not in path.parts]
    assert (found.name, found.read_bytes()) == ("a b.txt", b"text")


# -- IDs and labels ----------------------------------------------------------------------------------------------


def test_c19_an_accession_id_needs_no_project(prompt):
    asked = prompt.asked("session", "show", "-E", SESSION)
    assert asked[0] == f"GET /data/experiments/{SESSION}"
    assert not any("/projects/" in line for line in asked)


@pytest.mark.parametrize("words", [("session", "show"), ("scan", "list"), ("resource", "list")])
def test_c20_the_value_goes_out_as_it_is(prompt, words):
    asked = prompt.asked(*words, "-E", "No such (1).x", status=5)
    assert asked[0].startswith("GET /data/experiments/No%20such%20%281%29.x")


def test_c21_a_label_alone_is_not_found_and_the_message_says_why(prompt):
    for words in (("session", "show"), ("scan", "list"), ("resource", "list"), ("scan", "download", "-s", "1")):
        done = prompt.ctl(*words, "-E", LABEL, status=5)
        assert "-P" in done.err
        assert "default_project" in done.err


def test_c22_label_and_accession_id_resolve_in_a_project(prompt):
    for value in (LABEL, SESSION):
        asked = prompt.asked("scan", "list", "-E", value, "-P", "MYPROJECT")
        assert asked == [f"GET /data/projects/MYPROJECT/experiments/{value}", f"GET /data/experiments/{SESSION}/scans"]


def test_c23_one_label_in_two_projects(prompt):
    found = [prompt.ctl("session", "show", "-E", "BASELINE_MR", "-P", name, "-q").out.strip() for name in ("A", "B")]
    assert found == ["XNAT_E00011", "CENTRAL_E00012"]


def test_c24_both_examples(prompt):
    by_id = quiet(prompt.ctl("session", "show", "-E", SESSION))
    by_label = quiet(prompt.ctl("session", "show", "-E", LABEL, "-P", "MYPROJECT"))
    assert by_id == by_label
    assert by_id.out


def test_c25_the_default_project_of_the_profile(fresh):
    fresh.config(PAGE.format(url=fresh.url))
    with_default = quiet(fresh.ctl("session", "show", "-E", LABEL))
    assert with_default == quiet(fresh.ctl("session", "show", "-E", LABEL, "-P", "MYPROJECT"))


def test_c26_the_flag_goes_before_the_profile(fresh):
    fresh.config(PAGE.format(url=fresh.url).replace("MYPROJECT", "A"))
    assert fresh.ctl("session", "show", "-E", "BASELINE_MR", "-q").out == "XNAT_E00011\n"
    assert fresh.ctl("session", "show", "-E", "BASELINE_MR", "-P", "B", "-q").out == "CENTRAL_E00012\n"
    asked = fresh.asked("session", "show", "-E", SESSION, "-P", "", "-q")
    assert not any("/projects/" in line for line in asked)


def test_c27_a_foreign_accession_id_is_tried_flat_once(fresh):
    fresh.config(PAGE.format(url=fresh.url))
    fresh.ctl("whoami")
    # What is missing may be missing for a guest: whether the session lives is asked once.
    asked = [line for line in fresh.asked("scan", "list", "-E", "CENTRAL_E00012") if "username" not in line]
    assert asked == [
        "GET /data/projects/MYPROJECT/experiments/CENTRAL_E00012",
        "GET /data/experiments/CENTRAL_E00012",
        "GET /data/experiments/CENTRAL_E00012/scans",
    ]
    assert fresh.ctl("session", "show", "-E", "XNAT_EEG_01", "-q").out == "XNAT_E00005\n"  # which is a label
    assert "Up to date: 0 files" in fresh.ctl("scan", "download", "-E", "XNAT_EEG_01", "-s", "*", "--out", "x").err


def test_c28_a_sole_profile_is_the_default(fresh):
    fresh.config(PAGE.format(url=fresh.url))
    del fresh.env["XNAT_URL"]
    assert fresh.ctl("session", "show", "-E", LABEL, "-q").out == f"{SESSION}\n"


# -- the prearchive ----------------------------------------------------------------------------------------------


def test_c29_prearchive_list(prompt):
    assert prompt.asked("prearchive", "list", "--project", "MYPROJECT") == ["GET /data/prearchive/projects/MYPROJECT"]
    assert prompt.asked("prearchive", "list") == ["GET /data/prearchive"]
    done = quiet(prompt.ctl("prearchive", "list", "--project", "MYPROJECT"))
    assert done.lines[0].split()[:4] == ["Project", "Timestamp", "Name", "Status"]
    (row,) = prompt.ctl("prearchive", "list", "-P", "MYPROJECT", "-o", "json").rows
    assert (row["name"], row["folderName"], row["status"], row["subject"]) == ("WAITING", "WAITING", "READY", "SUB001")
    assert {"url", "lastmod", "autoarchive"} <= row.keys()
    (line,) = prompt.ctl("prearchive", "list", "-P", "MYPROJECT", "-q").lines
    assert re.fullmatch(r"MYPROJECT/\d{8}_\d{9}/WAITING", line)


def test_c30_archive_by_name(fresh):
    uri = fresh.receive("SESS001")
    asked = fresh.asked("prearchive", "archive", "--project", "MYPROJECT", "--session", "SESS001")
    assert [line for line in asked if "JSESSION" not in line] == [
        "GET /data/prearchive/projects/MYPROJECT",
        "POST /data/services/archive",
    ]
    assert "SESS001" in [e.label for e in fresh.app.archive.experiments.values()]
    assert fresh.ctl("prearchive", "list", "-P", "MYPROJECT", "-q").out == ""
    assert uri


def test_c30_none_and_several_of_that_name(fresh):
    done = fresh.ctl("prearchive", "archive", "--project", "MYPROJECT", "--session", "SESS001", status=5)
    assert "SESS001" in done.err
    times = [fresh.receive("SESS001").split("/")[5] for _ in range(2)]
    done = fresh.ctl("prearchive", "archive", "--project", "MYPROJECT", "--session", "SESS001", status=2)
    assert all(time in done.err for time in times)
    assert "--timestamp" in done.err
    assert fresh.requests("POST", "/services/archive") == []
    name = ("prearchive", "archive", "--project", "MYPROJECT", "--session", "SESS001")
    fresh.ctl(*name, "--timestamp", times[0])
    left = fresh.ctl("prearchive", "list", "-P", "MYPROJECT", "-o", "json").rows
    assert [row["timestamp"] for row in left] == [times[1]]


def test_c31_archive_by_position(fresh):
    fresh.receive("SESS001")
    (place,) = fresh.ctl("prearchive", "list", "-P", "MYPROJECT", "-q").lines
    done = fresh.ctl("prearchive", "archive", *place.split("/"), "-o", "json")
    assert done.rows["success"] is True
    assert (done.rows["project"], done.rows["session"]) == ("MYPROJECT", "SESS001")
    assert done.rows["experiment_uri"]


@pytest.mark.fuse
def test_c32_nothing_but_archive_archives(fresh, tmp_path):
    fresh.receive("SESS001")
    for words in (
        ("prearchive", "list"),
        ("prearchive", "list", "-P", "MYPROJECT"),
        ("session", "list", "-P", "MYPROJECT"),
        ("session", "show", "-E", SESSION),
        ("session", "download", "-E", SESSION, "--out", "data"),
        ("prearchive", "archive", "-P", "MYPROJECT", "--session", "SESS001", "--dry-run"),
        ("prearchive", "rebuild", "-P", "MYPROJECT", "--session", "SESS001"),
    ):
        fresh.ctl(*words)
    with mounting(fresh.url, tmp_path / "mounted", user=OWNER, password=PASSWORD) as mount:
        mount.walk(read=True)
    assert fresh.requests("POST", "/services/archive") == []
    assert "SESS001" not in [e.label for e in fresh.app.archive.experiments.values()]


def test_c33_only_what_is_ready_is_archived(tmp_path):
    with shell(tmp_path, idle=3600.0) as fresh:
        fresh.receive("SESS001", ready=False)
        name = ("prearchive", "archive", "-P", "MYPROJECT", "--session", "SESS001")
        done = fresh.ctl(*name, status=1)
        assert "RECEIVING" in done.err
        assert fresh.requests("POST", "/services/archive") == []

        seen: list[str] = []

        def complete(record: Record) -> None:
            """End the silence that the server waits for, once the command has seen the state twice."""
            seen.append(record.path)
            if seen.count("/data/prearchive/projects/MYPROJECT") == 2:
                fresh.app.site.idle = 0.0

        fresh.app.watch = complete
        done = fresh.ctl(*name, "--wait")
        assert "RECEIVING" in done.err
        assert "SESS001" in [e.label for e in fresh.app.archive.experiments.values()]


def test_c33_a_conflict_is_explained_and_archived_with_overwrite(fresh):
    for _ in range(2):
        fresh.receive("SESS001")
        name = ("prearchive", "archive", "-P", "MYPROJECT", "--session", "SESS001")
        done = fresh.start(*name)
    assert done.status == 1
    assert len(done.err.splitlines()) == 1
    assert "--overwrite" in done.err or "was not archived" in done.err
    (row,) = fresh.ctl("prearchive", "list", "-P", "MYPROJECT", "-o", "json").rows
    assert row["status"] == "CONFLICT"
    before = len(fresh.requests("POST", "/services/archive"))
    assert fresh.ctl(*name, status=1).err
    assert len(fresh.requests("POST", "/services/archive")) == before  # explained without another try
    fresh.ctl(*name, "--overwrite")
    assert fresh.ctl("prearchive", "list", "-P", "MYPROJECT", "-q").out == ""


def test_c34_direct_archive_goes_past_the_prearchive(fresh):
    folder = fresh.home / "dicoms"
    for name, content in images("1.2.3").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    words = ("session", "upload", folder, "-P", "MYPROJECT", "-S", "SUB001", "-E", "NEW", "--direct-archive")
    done = fresh.ctl(*words, "--wait", "-o", "json")
    (sent,) = fresh.requests("POST", "/services/import")
    assert sent.query["Direct-Archive"] == "true"
    assert "dest" not in sent.query
    assert done.rows["destination"] == "archive"
    assert done.rows["session_id"] == fresh.ctl("session", "show", "-P", "MYPROJECT", "-E", "NEW", "-q").out.strip()
    assert fresh.requests("POST", "/services/archive") == []


def test_c35_an_empty_list_points_to_the_prearchive(prompt):
    done = prompt.ctl("session", "list", "-P", "EMPTY", "-o", "json")
    assert done.rows == []
    assert "xnatctl prearchive list --project EMPTY" in done.err
    assert len(done.err.splitlines()) == 1


# -- authentication ----------------------------------------------------------------------------------------------


def test_c36_login(fresh):
    asked = fresh.asked("auth", "login")
    assert asked[0] == "POST /data/JSESSION"
    (first, *_) = fresh.app.requests
    assert first.headers["authorization"].startswith("Basic ")
    cells = fresh.ctl("auth", "login", "-o", "json").rows
    assert cells["username"] == OWNER
    assert cells["url"] == fresh.url

    def page(request: Request) -> Reply | None:
        return Reply(200, b"<html>log in</html>", "text/html") if request.path == "/data/JSESSION" else None

    fresh.app.faults.append(page)
    done = fresh.ctl("auth", "login", status=3)
    assert done.out == ""


def test_c37_the_slot_is_private_from_its_creation(fresh):
    """Read every state that the file ever has while a hundred slots are written."""
    from xnatfs.settings.session_store import SessionStore

    modes: set[int] = set()
    directory = fresh.slot.parent
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for path in directory.glob(".session*") if directory.exists() else ():
                try:
                    modes.add(stat.S_IMODE(path.stat().st_mode))
                except OSError:
                    continue  # it has got its name

    before = os.umask(0)
    try:
        watcher = threading.Thread(target=look)
        watcher.start()
        store = SessionStore(fresh.url, OWNER, fresh.home)
        for number in range(100):
            store.save(f"{number:032}", 900.0)
        stop.set()
        watcher.join()
    finally:
        os.umask(before)
    assert modes == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_c38_fifty_commands_and_one_login(fresh):
    fresh.ctl("auth", "login")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fresh.ctl("project", "list"), range(50)))
    assert fresh.logins() == 1


def test_c39_idleness_ends_a_session_and_age_does_not(tmp_path):
    from tests.support.changing import Clock

    clock = Clock()
    with shell(tmp_path, clock=clock) as fresh:
        fresh.ctl("auth", "login")
        for _ in range(5):
            fresh.older(14 * 60)
            clock.now += 14 * 60
            fresh.ctl("project", "list")
        assert fresh.logins() == 1
        fresh.older(16 * 60)
        clock.now += 16 * 60
        fresh.ctl("project", "list")
        assert fresh.logins() == 2


@pytest.mark.parametrize("kind", ["listing", "download", "form"])
def test_c40_a_session_that_dies_in_a_command_is_made_again(fresh, kind):
    fresh.receive("SESS001")
    fresh.ctl("auth", "login")
    words, method, path = {
        "listing": (("project", "list"), "GET", "/data/projects"),
        "download": (("scan", "download", "-E", SESSION, "-s", "1", "--zip", "--out", "x"), "GET", "/scans/1/files"),
        "form": (("prearchive", "archive", "-P", "MYPROJECT", "--session", "SESS001"), "POST", "/services/archive"),
    }[kind]
    killed: list[str] = []

    def kill(request: Request) -> Reply | None:
        if not killed and request.method == method and request.path.endswith(path):
            killed.extend(fresh.app.sessions.end_all(OWNER))
        return None

    fresh.app.faults.append(kill)
    before = len(fresh.app.requests)
    fresh.ctl(*words)
    assert len(killed) == 1
    record = fresh.app.requests[before:]
    assert [r.status for r in record if r.method == method and r.path.endswith(path)] == [401, 200]
    assert len([r for r in record if r.method == "POST" and r.path == "/data/JSESSION"]) == 1


def test_c41_the_new_session_is_kept(fresh):
    fresh.ctl("auth", "login")
    fresh.app.sessions.end_all(OWNER)
    fresh.ctl("project", "list")
    assert fresh.logins() == 2
    fresh.ctl("project", "list")
    assert fresh.logins() == 2
    assert json.loads(fresh.slot.read_text())["token"] == fresh.app.requests[-1].headers["cookie"].partition("=")[2]


@pytest.mark.parametrize(
    "words", [("project", "list"), ("session", "list", "-P", "MYPROJECT"), ("session", "show", "-E", SESSION)]
)
def test_c42_on_an_open_site_a_guests_answer_is_not_taken_for_ours(tmp_path, words):
    with shell(tmp_path, require_login=False) as fresh:
        truth = fresh.ctl(*words).out
        fresh.app.sessions.end_all(OWNER)
        done = fresh.ctl(*words)
        assert done.out == truth
        assert fresh.logins() == 2


def test_c43_without_a_login(fresh):
    other = {"version": 1, "token": "T" * 32, "url": "https://other.example.org", "username": "x"}
    other |= {"created_at": "2099-01-01T00:00:00", "expires_at": None, "last_used_at": "2099-01-01T00:00:00"}
    fresh.slot.parent.mkdir(parents=True)
    fresh.slot.write_text(json.dumps(other))
    del fresh.env["XNAT_USER"], fresh.env["XNAT_PASS"]
    done = fresh.ctl("project", "list", status=3)
    assert all(word in done.err for word in ("auth login", "XNAT_USER", "XNAT_PASS"))
    assert json.loads(fresh.slot.read_text()) == other


def test_c44_three_hundred_commands_over_two_expiries(fresh):
    """Run eight commands at a time; each server session that is replaced is closed or dead."""
    fresh.ctl("auth", "login")
    count, lock = 0, threading.Lock()

    def one(number: int) -> None:
        nonlocal count
        with lock:
            count += 1
            if count in (100, 200):
                fresh.app.sessions.end_all(OWNER)
        words = [("project", "list"), ("scan", "list", "-E", SESSION), ("whoami",)][number % 3]
        fresh.ctl(*words, "-q")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(300)))
    assert fresh.logins() <= 1 + 2
    assert fresh.app.sessions.alive(OWNER) == 1


def test_c45_whoami(fresh):
    fresh.config(PAGE.format(url=fresh.url))
    asked = fresh.asked("whoami")
    assert asked == ["POST /data/JSESSION", "GET /xapi/users/username"]
    assert fresh.asked("whoami") == ["GET /xapi/users/username"]  # the login was kept
    cells = quiet(fresh.ctl("whoami", "-o", "json")).rows
    assert cells["username"] == OWNER
    assert (cells["server"], cells["profile"], cells["default_project"]) == (fresh.url, "production", "MYPROJECT")
    assert cells["auth_mode"]
    assert quiet(fresh.ctl("whoami", "-q")).out == f"{OWNER}\n"

    def old(request: Request) -> Reply | None:
        return Failed(404, "").reply() if request.path.startswith("/xapi/") else None

    fresh.app.faults.append(old)
    assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n"
    assert fresh.as_user(MEMBER).ctl("whoami", "-q").out == f"{MEMBER}\n"
