"""Test xnatctl prearchive: sessions are chosen by name, changed once, explained, and resumed."""

import os
import pty
import signal
import subprocess
import time
from dataclasses import replace

import pytest

from tests.support.commanding import COLLABORATOR, EVERY_RELEASE, LABEL, MEMBER, SESSION, Done, Shell, received, shell
from tests.support.mounting import LIMIT
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.reply import Reply
from xnatfs.demo.server.request_bodies import Body

ARCHIVE = "/data/services/archive"
MINE = ("-P", "MYPROJECT")


def labels(shell: Shell) -> list[str]:
    return [e.label for e in shell.app.archive.experiments.values()]


def names(shell: Shell, *more: str) -> list[str]:
    return [line.rpartition("/")[2] for line in shell.ctl("prearchive", "list", *more, "-q").lines]


def archive(shell: Shell, *words: str, status: int = 0) -> Done:
    return shell.ctl("prearchive", "archive", *MINE, *words, status=status)


# -- choosing ----------------------------------------------------------------------------------------------------


def test_a_pattern_means_all_like_it(fresh):
    for label in ("RUN_1", "RUN_2", "OTHER"):
        fresh.receive(label)
    archive(fresh, "--session", "RUN_*")
    assert names(fresh) == ["OTHER"]
    assert {"RUN_1", "RUN_2"} <= set(labels(fresh))


def test_all_ready_means_nothing_else(fresh):
    fresh.receive("ONE")
    fresh.receive("TWO")
    fresh.receive("COMING", ready=False)
    archive(fresh, "--all-ready")
    assert names(fresh) == ["COMING"]


def test_the_newest_of_several(fresh):
    times = [fresh.receive("SAME").split("/")[5] for _ in range(3)]
    fresh.ctl("prearchive", "delete", *MINE, "--session", "SAME", "--newest", "--yes")
    left = fresh.ctl("prearchive", "list", "-o", "json").rows
    assert [row["timestamp"] for row in left] == sorted(times)[:-1]
    fresh.ctl("prearchive", "delete", *MINE, "--session", "SAME", "--all", "--yes")
    assert names(fresh) == []


@pytest.mark.parametrize("verb", ["archive", "move", "delete", "rebuild"])
def test_the_selectors_are_those_of_archive(fresh, verb):
    fresh.receive("SESS001")
    (place,) = fresh.ctl("prearchive", "list", "-q").lines
    more = {"move": ["--to", "A"], "delete": ["--yes"]}.get(verb, [])
    for words in ((*MINE, "--session", "SESS001"), place.split("/"), [place], (*MINE, "--session", "SESS*")):
        assert fresh.ctl("prearchive", verb, *words, *more, "--dry-run").lines == [place]
    fresh.ctl("prearchive", verb, *MINE, "--session", "NOPE", *more, status=5)
    fresh.ctl("prearchive", verb, *MINE, *more, status=2)
    assert names(fresh) == ["SESS001"]


def test_lists_are_chosen_by_state_and_name(fresh):
    fresh.receive("READY_1")
    fresh.receive("COMING_1", ready=False)
    assert names(fresh, "--status", "ready") == ["READY_1"]
    assert names(fresh, "--session", "COM*") == ["COMING_1"]


# -- doing -------------------------------------------------------------------------------------------------------


@EVERY_RELEASE
def test_move(fresh):
    received(fresh, "SESS001")
    done = fresh.ctl("prearchive", "move", *MINE, "--session", "SESS001", "--to", "A")
    assert "/prearchive/projects/A/" in done.err
    assert [row["project"] for row in fresh.ctl("prearchive", "list", "-o", "json").rows] == ["A"]
    (place,) = fresh.ctl("prearchive", "list", "-q").lines
    fresh.ctl("prearchive", "move", *place.split("/"), "B")  # as the other program has it
    assert [row["project"] for row in fresh.ctl("prearchive", "list", "-o", "json").rows] == ["B"]
    fresh.ctl("prearchive", "move", "-P", "B", "--session", "SESS001", "--to", "NOPE", status=5)


def test_delete_asks(fresh):
    fresh.receive("SESS001")
    words = ("prearchive", "delete", *MINE, "--session", "SESS001")
    assert "--yes" in fresh.ctl(*words, status=2).err  # there is no terminal to ask on
    for answer, left in ((b"n\n", ["SESS001"]), (b"y\n", [])):
        main, terminal = pty.openpty()
        process = subprocess.Popen(
            [*fresh.program, *words], env=fresh.environment(), stdin=terminal, stderr=subprocess.PIPE
        )
        os.write(main, answer)
        _, said = process.communicate(timeout=LIMIT)
        os.close(main)
        os.close(terminal)
        assert b"permanently? [y/N]" in said
        assert names(fresh) == left


def test_rebuild_waits_for_the_state(tmp_path):
    with shell(tmp_path, work=1.5) as fresh:
        fresh.receive("SESS001", ready=False)
        fresh.ctl("prearchive", "rebuild", *MINE, "--session", "SESS001", "--wait")
        assert [row["status"] for row in fresh.ctl("prearchive", "list", "-o", "json").rows] == ["READY"]


@EVERY_RELEASE
def test_another_subject_and_label(fresh):
    received(fresh, "SESS001")
    done = archive(fresh, "--session", "SESS001", "--subject", "SUB002", "--label", "BETTER")
    (made,) = [e for e in fresh.app.archive.experiments.values() if e.label == "BETTER"]
    assert made.subject == "XNAT_S00002"
    assert "/subjects/SUB002/experiments/BETTER" in done.err
    assert "SESS001" not in labels(fresh)


@EVERY_RELEASE
def test_every_release_is_asked_in_the_one_form_that_all_take(fresh):
    path = received(fresh, "SESS001")
    done = archive(fresh, "--session", "SESS001", "-o", "json")
    (asked,) = fresh.requests("POST", ARCHIVE)
    assert (asked.query, done.rows["result"]) == ({"src": path}, "archived")
    assert labels(fresh).count("SESS001") == 1
    received(fresh, "SESS001")
    done = archive(fresh, "--session", "SESS001", "--subject", "SUB002", status=1)
    assert "Invalid modification of session subject" in done.err


def own_way(shell: Shell) -> None:
    """Make the server archive sessions under their own labels, whatever the request says."""

    def archived(asked: Request) -> Reply | None:
        if asked.path != ARCHIVE:
            return None
        reply: Reply = shell.app._answer(replace(asked, body=Body(b"overwrite=none")))[0]
        return reply

    shell.app.faults.append(archived)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--label", "BETTER"), "label BETTER"),
        (("--subject", "SUB002"), "subject SUB002"),
        (("--subject", "SUB002", "--label", "BETTER"), "subject SUB002, label BETTER"),
    ],
)
def test_a_session_that_was_archived_as_another_is_told(fresh, words, why):
    fresh.receive("SESS001")
    own_way(fresh)
    done = archive(fresh, "--session", "SESS001", *words, status=1)
    assert f"not as requested ({why})" in done.err
    assert "it is SESS001 of project MYPROJECT" in done.err
    assert "/data/archive/projects/MYPROJECT/subjects/SUB001/experiments/SESS001" in done.err
    assert "Archived" not in done.err


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_lost_answer_is_no_proof_of_the_label(fresh, carried_out):
    """Find the session under its own label, where the server archived it."""
    fresh.receive("SESS001")

    def lost(asked: Request) -> Reply | None:
        if asked.path != ARCHIVE:
            return None
        if carried_out:
            fresh.app._answer(replace(asked, body=Body(b"overwrite=none")))
        return Reply(504, b"", "text/html")

    fresh.app.faults.append(lost)
    done = archive(fresh, "--session", "SESS001", "--label", "BETTER", status=1 if carried_out else 4)
    assert ("not as requested" if carried_out else "READY still") in done.err


def test_accession_ids_in_an_answer_are_the_session(fresh):
    fresh.receive("SESS001")

    def ids(asked: Request) -> Reply | None:
        if asked.path != ARCHIVE:
            return None
        fresh.app._answer(asked)
        (made,) = [e for e in fresh.app.archive.experiments.values() if e.label == "BETTER"]
        uri = f"/data/archive/projects/MYPROJECT/subjects/{made.subject}/experiments/{made.id}\r\n"
        return Reply(200, uri.encode(), "text/uri-list")

    fresh.app.faults.append(ids)
    done = archive(fresh, "--session", "SESS001", "--subject", "SUB002", "--label", "BETTER", "-o", "json")
    (made,) = [e for e in fresh.app.archive.experiments.values() if e.label == "BETTER"]
    assert (done.rows["session"], done.rows["id"]) == ("BETTER", made.id)


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("status", [200, 202, 204])
def test_success_without_a_body_is_one_if_it_is_seen(fresh, status, carried_out):
    fresh.receive("SESS001")

    def silent(asked: Request) -> Reply | None:
        if asked.path != ARCHIVE:
            return None
        if carried_out:
            fresh.app._answer(asked)
        return Reply(status)

    fresh.app.faults.append(silent)
    done = archive(fresh, "--session", "SESS001", status=0 if carried_out else 4)
    assert ("READY still" in done.err) is not carried_out
    assert labels(fresh).count("SESS001") == carried_out


@pytest.mark.parametrize("moved", [True, False])
def test_a_move_without_a_word_is_looked_at(fresh, moved):
    fresh.receive("SESS001")

    def silent(asked: Request) -> Reply | None:
        if asked.method != "POST" or "action" not in asked.query:
            return None
        if moved:
            fresh.app._answer(asked)
        return Reply(204)

    fresh.app.faults.append(silent)
    words = ("prearchive", "move", *MINE, "--session", "SESS001", "--to", "A")
    done = fresh.ctl(*words, status=0 if moved else 1)
    assert ("/data/prearchive/projects/A/" in done.err) is moved


# -- what is gone ------------------------------------------------------------------------------------------------


def delete(shell: Shell, path: str) -> None:
    shell.ctl("prearchive", "delete", *path.split("/")[-3:], "--yes")


def test_a_label_in_the_archive_is_no_proof_that_it_was_archived(fresh):
    """Report failure: the label belongs to another session, and the waiting one was deleted."""
    delete(fresh, fresh.receive(LABEL))
    done = archive(fresh, "--session", LABEL, status=5)
    assert f"the archive has {LABEL} as {SESSION}, but the server does not state that it came from there" in done.err


def test_of_two_that_came_under_one_name_it_is_the_one_of_then(fresh):
    first = fresh.receive("SESS001").split("/")[-3:]
    archive(fresh, "--session", "SESS001")
    second = fresh.receive("SESS001").split("/")[-3:]
    fresh.ctl("prearchive", "delete", *second, "--yes")
    done = fresh.ctl("prearchive", "archive", *first)
    assert f"SESS001, received {first[1]}, is in the archive already" in done.err
    fresh.ctl("prearchive", "archive", *second, status=5)
    assert len(fresh.requests("POST", ARCHIVE)) == 1


def test_what_is_deleted_while_it_is_waited_for_was_not_archived(fresh):
    fresh.receive("SESS001")
    archive(fresh, "--session", "SESS001")
    fresh.receive("SESS001", ready=False)
    seen: list[int] = []

    def leave(asked: Request) -> Reply | None:
        if asked.path.endswith("/prearchive/projects/MYPROJECT"):
            seen.append(1)
            if len(seen) == 2:
                fresh.app.writing.prearchive.sessions.clear()
        return None

    fresh.app.faults.append(leave)
    done = archive(fresh, "--session", "SESS001", "--wait", status=5)
    assert "neither in the prearchive nor in the archive" in done.err


def test_a_site_chooses_the_folder_of_its_prearchive(fresh):
    fresh.receive("SESS001")
    archive(fresh, "--session", "SESS001")
    (made,) = [e for e in fresh.app.archive.experiments.values() if e.label == "SESS001"]
    made.fields["prearchivePath"] = made.fields["prearchivePath"].replace("/data/xnat/prearchive/", "/srv/incoming/")
    done = archive(fresh, "--session", "SESS001")
    assert "is in the archive already" in done.err


@pytest.mark.parametrize("path", ["", "/data/xnat/prearchive/MYPROJECT/20200101_000000000/FIRST"])
def test_a_session_without_its_entry_is_known_by_its_study(fresh, path):
    """Identify the session by its study where the server reports no source for it or for its first images."""
    fresh.receive("SESS001")

    def silent(asked: Request) -> Reply | None:
        if asked.path != ARCHIVE:
            return None
        fresh.app._answer(asked)
        (made,) = [e for e in fresh.app.archive.experiments.values() if e.label == "SESS001"]
        made.fields["prearchivePath"] = path
        return Reply(204)

    fresh.app.faults.append(silent)
    archive(fresh, "--session", "SESS001")
    assert labels(fresh).count("SESS001") == 1


def test_who_may_not(fresh):
    fresh.receive("SESS001")
    carol, mike = fresh.as_user(COLLABORATOR), fresh.as_user(MEMBER)
    done = carol.ctl("prearchive", "archive", *MINE, "--session", "SESS001", status=6)
    assert "Member" in done.err
    mike.ctl("prearchive", "archive", *MINE, "--session", "SESS001")


@EVERY_RELEASE
def test_what_is_archived_already_is_no_mistake(fresh):
    received(fresh, "SESS001")
    archive(fresh, "--session", "SESS001")
    done = archive(fresh, "--session", "SESS001")
    assert "in the archive already" in done.err
    assert len(fresh.requests("POST", ARCHIVE)) == 1


def test_some_that_fail_do_not_keep_the_others(fresh):
    fresh.receive("GOOD")
    fresh.receive("BAD")
    (bad,) = [one for one in fresh.app.writing.prearchive.sessions if one.session.label == "BAD"]
    bad.status = "ERROR"
    done = archive(fresh, "--session", "*", status=8)
    assert "BAD" in done.err
    assert "GOOD" in labels(fresh)
    assert names(fresh) == ["BAD"]


# -- answers that do not tell ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [502, 504])
def test_a_gateway_that_gives_up_does_not_mean_failure(fresh, status):
    fresh.receive("SESS001")

    def gateway(asked: Request) -> Reply | None:
        if asked.path != ARCHIVE:
            return None
        fresh.app._answer(asked)
        return Reply(status, b"<html>Gateway</html>", "text/html")

    fresh.app.faults.append(gateway)
    archive(fresh, "--session", "SESS001")
    assert len(fresh.requests("POST", ARCHIVE)) == 1
    assert labels(fresh).count("SESS001") == 1


def test_a_connection_that_breaks_does_not_mean_failure(fresh):
    fresh.receive("SESS001")

    def broken(asked: Request) -> Reply | None:
        if asked.path != ARCHIVE:
            return None
        fresh.app._answer(asked)
        raise ConnectionResetError

    fresh.app.faults.append(broken)
    archive(fresh, "--session", "SESS001")
    assert labels(fresh).count("SESS001") == 1


def test_a_login_that_is_lost_while_the_server_archives(fresh):
    """Succeed although the server archives and then answers 401: on the repeat there is nothing left to archive."""
    fresh.receive("SESS001")
    first: list[int] = []

    def lost(asked: Request) -> Reply | None:
        if asked.path != ARCHIVE or first:
            return None
        first.append(1)
        fresh.app._answer(asked)
        fresh.app.sessions.end_all()
        return Reply(401, b"", "text/html")

    fresh.app.faults.append(lost)
    archive(fresh, "--session", "SESS001")
    assert labels(fresh).count("SESS001") == 1


def test_200_with_words_of_failure(fresh):
    fresh.receive("SESS001")

    def words(asked: Request) -> Reply | None:
        return Reply(200, b"Session could not be archived", "text/plain") if asked.path == ARCHIVE else None

    fresh.app.faults.append(words)
    done = archive(fresh, "--session", "SESS001", status=1)
    assert "could not be archived" in done.err


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_web_page_is_no_word_of_whether_it_was_archived(fresh, carried_out):
    """Decide by the state of the session, not by the page."""
    fresh.receive("SESS001")

    def page(asked: Request) -> Reply | None:
        if asked.path != ARCHIVE:
            return None
        if carried_out:
            fresh.app._answer(asked)
        return Reply(200, b"<html>Welcome</html>", "text/html")

    fresh.app.faults.append(page)
    done = archive(fresh, "--session", "SESS001", status=0 if carried_out else 4)
    assert ("READY still" in done.err) is not carried_out
    assert labels(fresh).count("SESS001") == carried_out


@pytest.mark.parametrize("verb", ["delete", "rebuild", "move"])
def test_a_web_page_is_no_success(fresh, verb):
    fresh.receive("SESS001")

    def page(asked: Request) -> Reply | None:
        changes = asked.method in ("POST", "DELETE") and "/prearchive/" in asked.path
        return Reply(200, b"\n<!doctype HTML><html>Welcome</html>", "text/html") if changes else None

    fresh.app.faults.append(page)
    more = {"move": ["--to", "A"], "delete": ["--yes"]}.get(verb, [])
    done = fresh.ctl("prearchive", verb, *MINE, "--session", "SESS001", *more, status=4)
    assert "answered with a web page (status 200); the request may have been carried out" in done.err
    assert names(fresh) == ["SESS001"]


def test_an_interrupted_wait_is_taken_up_again(tmp_path):
    with shell(tmp_path, idle=3600.0, work=0.5) as fresh:
        fresh.receive("SESS001", ready=False)
        words = (*fresh.program, "prearchive", "archive", *MINE, "--session", "SESS001", "--wait")
        process = subprocess.Popen(words, env=fresh.environment(), stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert "RECEIVING" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT)
        assert process.returncode == 130
        assert fresh.requests("POST", ARCHIVE) == []
        fresh.app.site.idle = 0.0
        archive(fresh, "--session", "SESS001", "--wait")
        assert "SESS001" in labels(fresh)


def test_a_wait_has_an_end(fresh):
    fresh.receive("SESS001", ready=False)
    began = time.monotonic()
    done = archive(fresh, "--session", "SESS001", "--wait", "--wait-timeout", "1.5", status=4)
    assert "resumes the wait" in done.err
    assert time.monotonic() - began < LIMIT
