"""Test xnatctl session upload: what arrives, once; interrupted and resumed; the server's traps."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from tests.support.changing import images, tar_of, zip_of
from tests.support.commanding import COLLABORATOR, EVERY_RELEASE, XNAT_1_6_ALONE, Shell
from tests.support.mounting import LIMIT
from tests.support.real_data import PROJECT, WITHOUT, sample_sessions
from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Experiment
from xnatfs.demo.rest.tables import Query
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.reply import Reply, Slice

IMPORT = "/data/services/import"

# The program with small batches, so that a few kilobytes are several.
SMALL = """if True:
    import sys
    from xnatfs.transfer.uploads import import_service, journal
    journal.UPLOAD_BATCH_BYTES = 5000
    import_service.PAUSES = (0.01, 0.01)
    from xnatfs.cli import main_xnatctl
    sys.exit(main_xnatctl(sys.argv[1:]))
"""


@pytest.fixture
def release(fresh: Shell) -> str:
    return fresh.app.site.release.name


@pytest.fixture
def small(fresh: Shell) -> Shell:
    return Shell(fresh.app, fresh.url, fresh.home, fresh.env, (sys.executable, "-c", SMALL))


def series(count: int) -> dict[str, bytes]:
    """Return two images each of `count` series of one study."""
    return {name: content for number in range(1, count + 1) for name, content in images("1.2.3", number).items()}


@pytest.fixture
def folder(fresh: Shell) -> Path:
    """Write a folder of 20 images, and of other files beside them."""
    directory = fresh.home / "dicoms"
    neighbours = {"notes.txt": b"hello", "1/ps": b"%!PS", "report.pdf": b"%PDF-1.4", "empty.dcm": b""}
    for name, content in {**series(10), **neighbours}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def upload(path: Path | str, *more: str, label: str = "NEW") -> tuple[str, ...]:
    return ("session", "upload", str(path), "-P", "MYPROJECT", "-S", "SUB001", "-E", label, *more)


def archived(shell: Shell, label: str = "NEW") -> Experiment:
    (found,) = [e for e in shell.app.archive.experiments.values() if e.label == label]
    return found


def received(shell: Shell, label: str = "NEW") -> Experiment:
    (found,) = [r.session for r in shell.app.writing.prearchive.sessions if r.session.label == label]
    return found


def contents(session: Experiment) -> list[bytes]:
    """Return the bytes of every file of a session's scans."""
    return sorted(data(entry) for scan in session.scans for resource in scan.resources for entry in resource.entries)


def data(entry: Entry) -> bytes:
    return b"".join(Slice.whole(entry.content).pieces())


def imports(shell: Shell) -> list[int]:
    """Return the status of the answer to each import."""
    return [record.status for record in shell.requests("POST", IMPORT)]


# -- sessions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["tar", "zip", "gradual"])
@pytest.mark.parametrize("direct", [False, True])
def test_a_folder_goes_up_in_every_mode(fresh, small, folder, mode, direct):
    done = small.ctl(*upload(folder, "--mode", mode, "--wait", "-o", "json", *(["--direct-archive"] if direct else [])))
    told = done.rows
    assert (told["files"], told["sent"], told["arrived"], told["status"]) == (20, 20, 20, "success")
    assert "4 files are not sent" in done.err
    session = archived(fresh) if direct else received(fresh)
    assert contents(session) == sorted(series(10).values())
    if direct:
        assert (told["destination"], told["session_id"]) == ("archive", session.id)
    else:
        assert (told["destination"], told["state"]) == ("prearchive", "READY")
    sent = fresh.requests("POST", IMPORT)
    assert len(sent) == 20 if mode == "gradual" else 4 <= len(sent) < 20
    types = {"tar": "application/x-tar", "zip": "application/zip", "gradual": "application/dicom"}
    assert {record.headers["content-type"] for record in sent} == {types[mode]}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "one file", "a zip called .tar"])
def test_magic_bytes_decide_what_a_path_is(fresh, small, kind):
    made = series(3)
    path = fresh.home / {"one file": "image", "a zip called .tar": "images.tar"}.get(kind, f"images.{kind}")
    if kind in ("zip", "a zip called .tar"):
        path.write_bytes(zip_of({**made, "notes.txt": b"hello"}))
    elif kind == "one file":
        made = {"1/IM0": made["1/IM0"]}
        path.write_bytes(made["1/IM0"])
    else:
        path.write_bytes(tar_of({**made, "notes.txt": b"hello"}, "w:gz" if kind == "tar.gz" else "w"))
    small.ctl(*upload(path))
    assert contents(received(fresh)) == sorted(made.values())
    assert list(fresh.home.rglob("*.dcm")) == [], "nothing was unpacked here"


def test_copies_of_an_instance_go_once(fresh, folder):
    (folder / "again.dcm").write_bytes((folder / "1" / "IM0").read_bytes())
    done = fresh.ctl(*upload(folder))
    assert "copies of instances" in done.err
    assert len(contents(received(fresh))) == 20


def test_a_damaged_image_is_named_and_the_others_go(fresh, folder):
    whole = (folder / "1" / "IM0").read_bytes()
    (folder / "broken.dcm").write_bytes(whole[:140] + b"\xff" * 40)
    done = fresh.ctl(*upload(folder), status=8)
    assert "broken.dcm" in done.err
    assert len(contents(received(fresh))) == 20


@pytest.mark.parametrize("where", ["archive", "prearchive"])
def test_a_session_that_is_there_is_refused_before_a_byte_is_sent(fresh, folder, where):
    fresh.receive("NEW")
    if where == "archive":
        fresh.ctl("prearchive", "archive", "-P", "MYPROJECT", "--session", "NEW")
    before = len(imports(fresh))
    done = fresh.ctl(*upload(folder), status=1)
    assert f"in the {where} already" in done.err
    assert "--overwrite" in done.err
    assert len(imports(fresh)) == before


@pytest.fixture
def more(fresh: Shell) -> Path:
    """Write a folder with two more images of the study in `folder`."""
    directory = fresh.home / "more"
    directory.mkdir()
    for name, content in images("1.2.3", 99).items():
        (directory / name.replace("/", "-")).write_bytes(content)
    return directory


@pytest.mark.parametrize("overwrite", ["append", "delete"])
def test_files_that_were_there_before_are_no_arrivals(fresh, folder, more, overwrite):
    fresh.ctl(*upload(folder, "--direct-archive", "--wait"))
    before = len(contents(archived(fresh)))
    words = upload(more, "--direct-archive", "--overwrite", overwrite, "-o", "json")
    fresh.app.site.work = LIMIT  # until the end of it the server is at work on them
    done = fresh.ctl(*words)
    assert (done.rows["destination"], done.rows["arrived"], done.rows["changed"]) == ("direct", None, 0)
    assert "anonymization" not in done.err
    assert f"{before} files were there before" in done.err
    assert len(journals(fresh)) == 1
    fresh.ctl(*words, "--wait", "--wait-timeout", "0.1", status=4)
    fresh.app.site.work = 0.0
    done = fresh.ctl(*words, "--wait")
    assert (done.rows["destination"], done.rows["arrived"], done.rows["sent"]) == ("archive", 2, 0)
    assert len(contents(archived(fresh))) == before + 2
    assert [e.label for e in fresh.app.archive.experiments.values()].count("NEW") == 1
    assert journals(fresh) == []


def test_files_added_to_a_session_of_the_prearchive_are_counted_alone(fresh, folder, more):
    fresh.ctl(*upload(folder))
    done = fresh.ctl(*upload(more, "--overwrite", "append", "-o", "json"))
    assert (done.rows["destination"], done.rows["arrived"]) == ("prearchive", 2)
    done = fresh.ctl(*upload(more, "--overwrite", "append", "-o", "json"))
    assert done.rows["arrived"] is None, "the same once more: nothing tells these from those"


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])
def test_files_that_waited_before_are_no_arrivals_in_the_archive(small, fresh, folder, counted):
    """The server reports every batch as stored, has lost all but the first, and archives what it has."""
    small.ctl(*upload(folder))
    fresh.app.archive.projects["MYPROJECT"].prearchive_code = "4"
    (waiting,) = fresh.app.writing.prearchive.sessions
    seen: list[int] = []

    def lose(asked: Request) -> Reply | None:
        if not counted and asked.method == "GET" and asked.path == f"/data{waiting.path}/resources":
            return Reply(404, b"", "text/plain")
        if asked.path != IMPORT:
            return None
        seen.append(1)
        return Reply(200, f"{waiting.uri()}\r\n".encode(), "text/plain") if len(seen) > 1 else None

    fresh.app.faults.append(lose)
    other = fresh.home / "other"
    for number in range(11, 16):
        for name, content in images("1.2.3", number).items():
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            (other / name).write_bytes(content)
    done = small.ctl(*upload(other, "--overwrite", "append", "--wait", "-o", "json"))
    assert (done.rows["destination"], done.rows["arrived"], done.rows["changed"]) == ("archive", None, 0)
    assert 20 < len(contents(archived(fresh))) < 30
    assert "does not state whether all of these arrived" in done.err
    assert "10 files (10.9 KiB) went to the archive" in done.err


@pytest.mark.parametrize("overwrite", ["append", "delete"])
def test_what_is_missing_is_sent_again_though_others_were_there_before(fresh, folder, overwrite):
    """The server holds fewer files than it was sent, whichever of them were there before."""
    words = upload(folder, "--overwrite", overwrite, "-o", "json")
    fresh.ctl(*upload(folder))
    assert fresh.ctl(*words).rows["arrived"] is None
    for scan in received(fresh).scans[:8]:
        scan.resources[0].entries.clear()
    assert fresh.ctl(*words).rows["sent"] == 20
    assert contents(received(fresh)) == sorted(series(10).values())


def test_files_that_were_removed_to_make_room_are_no_arrivals(small, fresh, folder, more):
    """The server removes some of what was there, and stores one of two files."""
    fresh.ctl(*upload(folder, "--direct-archive", "--wait"))

    def replaced(asked: Request) -> Reply | None:
        if asked.path == IMPORT:
            session = archived(fresh)
            for scan in session.scans[:3]:
                scan.resources[0].entries.clear()
            fresh.app.archive.file(session.scans[0].resources[0], "one.dcm", b"rewritten")
            body = b"/data/archive/projects/MYPROJECT/subjects/SUB001/experiments/NEW\r\n"
            return Reply(200, body, "text/plain")
        return None

    fresh.app.faults.append(replaced)
    assert fresh.ctl(*upload(more, "--overwrite", "delete", "-o", "json")).rows["arrived"] is None


def test_a_conflict_with_a_session_that_was_there_is_told(fresh, folder, more):
    """Images to be added to a session of the archive wait in the prearchive, and stay there."""
    fresh.ctl(*upload(folder, "--direct-archive", "--wait"))

    def conflict(asked: Request) -> Reply | None:
        if asked.path == IMPORT:
            reply: Reply = fresh.app._answer(asked)[0]
            for waiting in fresh.app.writing.prearchive.sessions:
                waiting.status = "CONFLICT"
            return replace(reply, body=b"/data/archive/projects/MYPROJECT/subjects/SUB001/experiments/NEW\r\n")
        return None

    fresh.app.faults.append(conflict)
    done = fresh.ctl(*upload(more, "--overwrite", "append"), status=8)
    assert "its state is CONFLICT" in done.err


def test_only_the_first_batch_may_delete(small, fresh, folder):
    small.ctl(*upload(folder, "--overwrite", "delete"))
    said = [record.query["overwrite"] for record in fresh.requests("POST", IMPORT)]
    assert said[0] == "delete"
    assert set(said[1:]) == {"append"}


def test_the_profile_has_defaults(fresh, folder):
    text = "default_project: MYPROJECT\n    direct_archive: true\n    archive_mode: zip\n    workers: 2\n"
    fresh.config(f"profiles:\n  one:\n    url: {fresh.url}\n    {text}")
    fresh.ctl("session", "upload", folder, "-S", "SUB001", "-E", "NEW", "--wait")
    (sent,) = fresh.requests("POST", IMPORT)
    assert sent.headers["content-type"] == "application/zip"
    assert sent.query["Direct-Archive"] == "true"


def test_a_project_that_archives_by_itself(fresh, folder):
    fresh.app.archive.projects["MYPROJECT"].prearchive_code = "4"
    done = fresh.ctl(*upload(folder, "--wait", "-o", "json"))
    assert (done.rows["destination"], done.rows["session_id"]) == ("archive", archived(fresh).id)


# -- faults of the server ----------------------------------------------------------------------------------------


def killed_after(shell: Shell, words: tuple[str, ...], request: int, *, stored: bool) -> None:
    """Run an upload that is killed while the server has its n-th import, before or after storing it."""
    arrived, go_on = threading.Event(), threading.Event()
    seen = 0
    lock = threading.Lock()

    def hold(asked: Request) -> Reply | None:
        nonlocal seen
        if asked.path != IMPORT:
            return None
        with lock:
            seen += 1
            mine = seen == request
        if not mine:
            return None
        reply = shell.app._answer(asked)[0] if stored else Reply(500, b"lost", "text/plain")
        arrived.set()
        assert go_on.wait(LIMIT)
        return reply

    shell.app.faults.append(hold)
    process = subprocess.Popen(
        [*shell.program, *words], env=shell.environment(), cwd=shell.home, stderr=subprocess.PIPE
    )
    try:
        assert arrived.wait(LIMIT)
        while len([batch for batch in journal(shell)["batches"] if batch["state"] == "done"]) < request - 1:
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
        go_on.set()
        shell.app.faults.clear()
    while len(imports(shell)) < request:  # the server has done with it, though nobody listens
        time.sleep(0.01)


def journals(shell: Shell) -> list[Path]:
    return list((shell.home / ".local" / "state" / "xnatfs" / "uploads").glob("*.json"))


def journal(shell: Shell) -> dict[str, list[dict[str, str]]]:
    (path,) = journals(shell)
    found: dict[str, list[dict[str, str]]] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("direct", [False, True])
def test_killed_half_way_it_ends_the_same(small, fresh, folder, stored, direct):
    words = upload(folder, "-w", "1", *(["--direct-archive", "--wait"] if direct else []))
    killed_after(small, words, 3, stored=stored)
    states = [batch["state"] for batch in journal(small)["batches"]]
    assert states.count("sent") == 1
    before = len(imports(fresh))
    done = small.ctl(*words, "-o", "json")
    again = len(imports(fresh)) - before
    missing = states.count("new") + states.count("sent")
    assert missing - 1 <= again <= missing, "at most what was on its way went twice"
    if stored and not direct:
        assert again == missing - 1, "the server was asked, and has it"
    assert (done.rows["resumed"], done.rows["arrived"]) == (True, 20)
    assert contents(archived(fresh) if direct else received(fresh)) == sorted(series(10).values())


def test_what_was_deleted_meanwhile_is_sent_again(small, fresh, folder):
    killed_after(small, upload(folder, "-w", "1"), 3, stored=False)
    fresh.ctl("prearchive", "delete", "-P", "MYPROJECT", "--session", "NEW", "--yes")
    small.ctl(*upload(folder))
    assert contents(received(fresh)) == sorted(series(10).values())


def test_no_answer_is_no_reason_to_send_again(small, fresh, folder):
    """A gateway times out, the server does not; the next run finds out."""
    answers: list[int] = []

    def gateway(asked: Request) -> Reply | None:
        if asked.path == IMPORT:
            answers.append(1)
            if len(answers) == 2:
                fresh.app._answer(asked)
                return Reply(504, b"<html>Gateway Time-out</html>", "text/html")
        return None

    fresh.app.faults.append(gateway)
    done = small.ctl(*upload(folder, "-w", "1"), status=4)
    assert "may have arrived" in done.err
    assert imports(fresh).count(504) == 1
    small.ctl(*upload(folder, "-w", "1"))
    assert len(contents(received(fresh))) == 20
    assert len(imports(fresh)) == len(journalless(folder))


def journalless(folder: Path) -> list[object]:
    """Return the batches that the folder is divided into."""
    from xnatfs.transfer.uploads import dicom_files as found
    from xnatfs.transfer.uploads.journal import batches_of

    return list(batches_of(found.find(folder).images, 5000))


@pytest.mark.parametrize(
    ("status", "body", "times", "ends", "said"),
    [
        (400, b"Session processing in progress", 2, 0, ""),
        (400, b"Session processing in progress", 9, 4, "Session processing in progress"),
        (400, b"Unable to read DICOM object", 9, 4, "Unable to read DICOM object"),
        (429, b"", 1, 0, ""),
        (503, b"", 1, 0, ""),
        (413, b"", 9, 4, "too large"),
        (403, b"", 9, 6, "Member"),
        (200, b"", 9, 4, "does not report where"),
        (200, b"<html>Welcome</html>", 9, 4, "answered with a web page"),
    ],
)
def test_what_the_server_may_say_to_an_import(small, fresh, folder, status, body, times, ends, said):
    left = [None] * times

    def refuse(asked: Request) -> Reply | None:
        if asked.path == IMPORT and left:
            left.pop()
            return Reply(status, body, "text/plain")
        return None

    fresh.app.faults.append(refuse)
    done = small.ctl(*upload(folder, "-w", "1"), status=ends)
    assert said in done.err
    if ends == 0:
        assert len(contents(received(fresh))) == 20
    elif b"processing" not in body:
        tried = 2 if (status, body) == (200, b"") else 1  # an old server's word for a tar: once more, as a single file
        assert imports(fresh) == [status] * tried, "what is refused for good is not sent twice"
    if ends not in (0, 4) or b"read DICOM" in body:
        fresh.app.faults.clear()
        small.ctl(*upload(folder))  # and a refusal leaves nothing that the next run stumbles over
        assert len(contents(received(fresh))) == 20


def test_less_than_was_sent_is_told(small, fresh, folder):
    """The server stores a batch, reports that, and has lost a file of it."""
    small_batch: list[int] = []

    def lose(asked: Request) -> Reply | None:
        if asked.path != IMPORT or small_batch:
            return None
        small_batch.append(1)
        reply: Reply = fresh.app._answer(asked)[0]
        received(fresh).scans[0].resources[0].entries.pop()
        return reply

    fresh.app.faults.append(lose)
    done = small.ctl(*upload(folder), status=8)
    assert "1 of 20 files did not arrive" in done.err
    assert "19 of 20 files are in the prearchive" in done.err
    fresh.app.faults.clear()
    small.ctl(*upload(folder))  # the journal is still there, so that this repairs it
    assert contents(received(fresh)) == sorted(series(10).values())
    assert journals(small) == []


def test_a_session_that_expires_between_batches(small, fresh, folder):
    seen: list[int] = []

    def expire(asked: Request) -> Reply | None:
        if asked.path == IMPORT:
            seen.append(1)
            if len(seen) == 2:
                fresh.app.sessions.end_all()
        return None

    fresh.app.faults.append(expire)
    small.ctl(*upload(folder))
    assert len(contents(received(fresh))) == 20
    assert fresh.logins() == 2


def answer_once(shell: Shell, status: int, *, stored: bool) -> None:
    """Answer the first import with this status, after storing it or without."""
    answers: list[int] = []

    def gateway(asked: Request) -> Reply | None:
        if asked.path != IMPORT or answers:
            return None
        answers.append(1)
        if stored:
            shell.app._answer(asked)
        return Reply(status, b"<html>Gateway Time-out</html>", "text/html")

    shell.app.faults.append(gateway)


@pytest.mark.parametrize("where", ["archive", "prearchive"])
@pytest.mark.parametrize("status", [403, 504])
def test_a_session_that_came_after_a_first_batch_that_failed_is_refused(small, fresh, folder, where, status):
    answer_once(fresh, status, stored=False)
    small.ctl(*upload(folder), status={403: 6, 504: 4}[status])
    fresh.receive("NEW")
    if where == "archive":
        fresh.ctl("prearchive", "archive", "-P", "MYPROJECT", "--session", "NEW")
    before = len(imports(fresh))
    done = small.ctl(*upload(folder), status=1)
    assert f"in the {where} already" in done.err
    assert len(imports(fresh)) == before


@pytest.mark.parametrize("direct", [False, True])
def test_a_first_batch_whose_answer_was_lost_is_known_again(small, fresh, folder, direct):
    answer_once(fresh, 504, stored=True)
    words = upload(folder, *(["--direct-archive", "--wait"] if direct else []))
    small.ctl(*words, status=4)
    small.ctl(*words)
    session = archived(fresh) if direct else received(fresh)
    assert contents(session) == sorted(series(10).values())


# -- rights ------------------------------------------------------------------------------------------------------


@EVERY_RELEASE
@pytest.mark.parametrize("mode", ["tar", "zip", "gradual"])
def test_without_the_right_to_create_the_first_answer_ends_it(small, fresh, folder, mode):
    carol = small.as_user(COLLABORATOR)
    carol = Shell(carol.app, carol.url, carol.home, carol.env, small.program)
    done = carol.ctl(*upload(folder, "--mode", mode), status=6)
    (waiting,) = fresh.app.writing.prearchive.sessions
    assert waiting.project == "Unassigned"
    assert 1 <= len(contents(waiting.session)) < 10, "no more than the first batch"
    assert done.err.count("\n") <= 4
    move = f"xnatctl prearchive move Unassigned {waiting.timestamp} {waiting.folder} --to MYPROJECT"
    for words in ("your account may not create sessions", waiting.uri(), "nothing more was sent", move):
        assert words in done.err
    assert "Sent" not in done.err


@EVERY_RELEASE
def test_what_went_to_no_project_is_moved_and_the_upload_goes_on(small, fresh, folder, release):
    carol = small.as_user(COLLABORATOR)
    carol = Shell(carol.app, carol.url, carol.home, carol.env, small.program)
    carol.ctl(*upload(folder), status=6)
    (waiting,) = fresh.app.writing.prearchive.sessions
    held = len(contents(waiting.session))
    place = (waiting.project, waiting.timestamp, waiting.folder)
    fresh.as_user("root").ctl("prearchive", "move", *place, "--to", "MYPROJECT")
    fresh.app.archive.projects["MYPROJECT"].members[COLLABORATOR] = "Members"
    told = carol.ctl(*upload(folder, "-o", "json")).rows
    again = 20 if release == "1.6" else 20 - held  # of a batch that went file by file, all go again
    assert (told["resumed"], told["sent"], told["arrived"]) == (True, again, 20)
    assert contents(received(fresh)) == sorted(series(10).values())


@EVERY_RELEASE
def test_a_project_that_is_not_there_gets_nothing(fresh, folder):
    done = fresh.ctl("session", "upload", folder, "-P", "NOSUCH", "-S", "SUB001", "-E", "NEW", status=5)
    assert "project NOSUCH not found" in done.err
    assert imports(fresh) == []


def test_an_alias_of_a_project_leads_to_it(small, fresh, folder):
    """The server reports the project's ID, though the upload named an alias."""

    def aliased(asked: Request) -> Reply | None:
        path = asked.path.replace("/projects/ALIAS", "/projects/MYPROJECT")
        if path == asked.path and "ALIAS" not in str(asked.query.pairs):
            return None
        pairs = [(key, value.replace("ALIAS", "MYPROJECT")) for key, value in asked.query.pairs]
        reply: Reply = fresh.app._answer(replace(asked, path=path, query=Query(pairs, asked.query.accept)))[0]
        return reply

    fresh.app.faults.append(aliased)
    small.ctl("session", "upload", folder, "-P", "ALIAS", "-S", "SUB001", "-E", "NEW", "--mode", "gradual")
    assert contents(received(fresh)) == sorted(series(10).values())
    asked = [record for record in fresh.requests("GET") if record.path == "/data/projects/ALIAS"]
    assert len(asked) <= 2, "not once for each file"


@pytest.mark.parametrize("at", [1, 3])
def test_a_form_that_is_not_taken_is_left_at_any_batch(small, fresh, folder, at):
    seen: list[int] = []

    def untaken(asked: Request) -> Reply | None:
        if asked.path == IMPORT and asked.headers["content-type"] == "application/x-tar":
            seen.append(1)
            return Reply(200, b"", "text/plain") if len(seen) >= at else None
        return None

    fresh.app.faults.append(untaken)
    done = small.ctl(*upload(folder, "-w", "1"))
    assert done.err.count("the files go one by one") == 1
    assert len(seen) == at
    assert contents(received(fresh)) == sorted(series(10).values())


@XNAT_1_6_ALONE
def test_another_mode_on_a_resumed_run_finds_the_form_again(small, fresh, folder):
    seen: list[int] = []

    def refuse(asked: Request) -> Reply | None:
        seen.extend([1] if asked.path == IMPORT else [])
        return Reply(413, b"", "text/plain") if asked.path == IMPORT and len(seen) == 10 else None

    fresh.app.faults.append(refuse)
    small.ctl(*upload(folder, "-w", "1", "--mode", "gradual"), status=4)
    small.ctl(*upload(folder, "--mode", "tar"))
    assert contents(received(fresh)) == sorted(series(10).values())


def test_a_label_that_the_server_cleans_is_the_same(small, fresh, folder):
    def cleans(asked: Request) -> Reply | None:
        if asked.path != IMPORT:
            return None
        pairs = [(key, value.replace("SES 1", "SES_1")) for key, value in asked.query.pairs]
        reply: Reply = fresh.app._answer(replace(asked, query=Query(pairs, asked.query.accept)))[0]
        return reply

    fresh.app.faults.append(cleans)
    done = small.ctl(*upload(folder, label="SES 1"))
    assert "prearchive delete" not in done.err
    assert {record.headers["content-type"] for record in fresh.requests("POST", IMPORT)} == {"application/x-tar"}
    assert contents(received(fresh, "SES_1")) == sorted(series(10).values())


# -- releases ----------------------------------------------------------------------------------------------------


@EVERY_RELEASE
@pytest.mark.parametrize("mode", ["tar", "zip", "gradual"])
def test_an_upload_is_archived_on_every_release(small, fresh, folder, release, mode):
    done = small.ctl(*upload(folder, "--mode", mode, "--wait", "-o", "json"))
    assert (done.rows["arrived"], done.rows["state"]) == (20, "READY")
    assert contents(received(fresh)) == sorted(series(10).values())
    fresh.ctl("prearchive", "archive", "-P", "MYPROJECT", "--session", "NEW", "--label", "BETTER")
    assert contents(archived(fresh, "BETTER")) == sorted(series(10).values())
    types = [record.headers["content-type"] for record in fresh.requests("POST", IMPORT)]
    if release == "1.6" and mode != "gradual":
        first = {"tar": ["application/x-tar"], "zip": ["application/zip"] * 2}[mode]
        assert types == first + ["application/dicom"] * 20
        assert "the files go one by one" in done.err


@XNAT_1_6_ALONE
def test_what_an_old_release_names_by_its_header_is_told(small, fresh, folder):
    done = small.ctl(*upload(folder, "--mode", "zip"))
    other, mine = sorted((one.session.label, one) for one in fresh.app.writing.prearchive.sessions)[::-1]
    assert mine[0] == "NEW"
    assert contents(mine[1].session) == sorted(series(10).values())
    assert f"xnatctl prearchive delete MYPROJECT {other[1].timestamp} {other[1].folder}" in done.err
    assert "takes no zip without its length" in done.err


@XNAT_1_6_ALONE
def test_how_the_files_go_is_remembered_for_the_next_run(small, fresh, folder):
    seen: list[int] = []

    def refuse(asked: Request) -> Reply | None:
        if asked.path == IMPORT and len(seen) == 10:
            return Reply(413, b"", "text/plain")
        seen.append(1)
        return None

    fresh.app.faults.append(refuse)
    small.ctl(*upload(folder, "-w", "1"), status=4)
    fresh.app.faults.clear()
    small.ctl(*upload(folder))
    types = [record.headers["content-type"] for record in fresh.requests("POST", IMPORT)]
    assert types.count("application/x-tar") == 1
    assert contents(received(fresh)) == sorted(series(10).values())


@EVERY_RELEASE
def test_straight_into_the_archive_as_far_as_the_release_does_it(small, fresh, folder, release):
    done = small.ctl(*upload(folder, "--direct-archive", "--wait", "-o", "json"))
    if release == "1.6":
        assert (done.rows["destination"], done.rows["arrived"]) == ("prearchive", 20)
        assert "has not archived it directly" in done.err
    else:
        assert (done.rows["destination"], done.rows["session_id"]) == ("archive", archived(fresh).id)


@EVERY_RELEASE
def test_batches_into_a_project_that_archives_by_itself(small, fresh, folder):
    fresh.app.archive.projects["MYPROJECT"].prearchive_code = "4"
    done = small.ctl(*upload(folder, "--wait", "-o", "json"))
    assert (done.rows["destination"], done.rows["arrived"]) == ("archive", 20)
    assert contents(archived(fresh)) == sorted(series(10).values())


# -- real images -------------------------------------------------------------------------------------------------


def by_instance(paths: list[Path]) -> dict[str, bytes]:
    found = {str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID): path for path in paths}
    assert len(found) == len(paths), "no instance is there twice"
    return {uid: path.read_bytes() for uid, path in found.items()}


def test_files_that_go_one_by_one_replace_no_session(fresh, folder):
    fresh.ctl(*upload(folder, "--wait", "--direct-archive"))
    before = sorted(entry.path for scan in archived(fresh).scans for r in scan.resources for entry in r.entries)
    fresh.app.requests.clear()
    done = fresh.ctl(*upload(folder, "--no-resume", "--mode", "gradual", "--overwrite", "delete"), status=1)
    assert "only add to it: delete it there first, or say --overwrite append" in done.err
    assert not [record for record in fresh.app.requests if record.path.endswith("/services/import")]
    after = sorted(entry.path for scan in archived(fresh).scans for r in scan.resources for entry in r.entries)
    assert after == before
    fresh.ctl(*upload(folder, "--mode", "gradual", "--overwrite", "delete", label="OTHER"))  # where there is none
    assert len(received(fresh, "OTHER").scans) > 0


@pytest.fixture(scope="module")
def case() -> Path:
    return sample_sessions() / PROJECT / "Case001" / "Case001"


@pytest.mark.real_data
@pytest.mark.skipif(os.environ.get(WITHOUT) == "1", reason=f"{WITHOUT}=1: asked to leave real images out")
@pytest.mark.parametrize("mode", ["tar", "zip", "gradual"])
@pytest.mark.parametrize("direct", [False, True])
def test_a_real_session_goes_up_and_comes_back(fresh, case, mode, direct):
    fresh.ctl(*upload(case, "--mode", mode, "--wait", *(["--direct-archive"] if direct else [])), timeout=LIMIT)
    if not direct:
        fresh.ctl("prearchive", "archive", "--project", "MYPROJECT", "--session", "NEW")
    fresh.ctl("session", "download", "-P", "MYPROJECT", "-E", "NEW", "--out", "back")
    sent = list(case.rglob("*.dcm"))
    back = [path for path in (fresh.home / "back/NEW/scans").rglob("*") if path.is_file()]
    assert len(sent) == 324
    assert by_instance(back) == by_instance(sent)
