"""xnatctl prearchive: chosen by name, done once, explained, and taken up again."""

import os
import pty
import signal
import subprocess
import time

import pytest

from tests.commanding import COLLABORATOR, MEMBER, Done, Shell, shell
from tests.mounting import LIMIT
from xnatfs.demo.app import Request
from xnatfs.demo.reply import Reply

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
    for words in ((*MINE, "--session", "SESS001"), place.split("/"), (*MINE, "--session", "SESS*")):
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


def test_move(fresh):
    fresh.receive("SESS001")
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
    assert "--yes" in fresh.ctl(*words, status=2).err  # nobody is there to be asked
    for answer, left in ((b"n\n", ["SESS001"]), (b"y\n", [])):
        main, terminal = pty.openpty()
        process = subprocess.Popen(
            [*fresh.program, *words], env=fresh.environment(), stdin=terminal, stderr=subprocess.PIPE
        )
        os.write(main, answer)
        _, said = process.communicate(timeout=LIMIT)
        os.close(main)
        os.close(terminal)
        assert b"for good? [y/N]" in said
        assert names(fresh) == left


def test_rebuild_waits_for_the_state(tmp_path):
    with shell(tmp_path, work=1.5) as fresh:
        fresh.receive("SESS001", ready=False)
        fresh.ctl("prearchive", "rebuild", *MINE, "--session", "SESS001", "--wait")
        assert [row["status"] for row in fresh.ctl("prearchive", "list", "-o", "json").rows] == ["READY"]


def test_another_subject_and_label(fresh):
    fresh.receive("SESS001")
    archive(fresh, "--session", "SESS001", "--subject", "SUB002", "--label", "BETTER")
    (made,) = [e for e in fresh.app.archive.experiments.values() if e.label == "BETTER"]
    assert made.subject == "XNAT_S00002"


def test_who_may_not(fresh):
    fresh.receive("SESS001")
    carol, mike = fresh.as_user(COLLABORATOR), fresh.as_user(MEMBER)
    done = carol.ctl("prearchive", "archive", *MINE, "--session", "SESS001", status=6)
    assert "Member" in done.err
    mike.ctl("prearchive", "archive", *MINE, "--session", "SESS001")


def test_what_is_archived_already_is_no_mistake(fresh):
    fresh.receive("SESS001")
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
    """It is archived, and says 401: said again, there is nothing left to archive, which is success."""
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
    """Its state is."""
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
    with shell(tmp_path, idle=6.0, work=0.5) as fresh:
        fresh.receive("SESS001", ready=False)
        words = (*fresh.program, "prearchive", "archive", *MINE, "--session", "SESS001", "--wait")
        process = subprocess.Popen(words, env=fresh.environment(), stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert "RECEIVING" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT)
        assert process.returncode == 130
        assert fresh.requests("POST", ARCHIVE) == []
        archive(fresh, "--session", "SESS001", "--wait")
        assert "SESS001" in labels(fresh)


def test_a_wait_has_an_end(fresh):
    fresh.receive("SESS001", ready=False)
    began = time.monotonic()
    done = archive(fresh, "--session", "SESS001", "--wait", "--wait-timeout", "1.5", status=4)
    assert "takes up the wait again" in done.err
    assert time.monotonic() - began < LIMIT
