"""Test the output on a terminal: hints that work as pasted, help and tables that fit, waits, and Ctrl-C."""

import argparse
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.fuse.test_mount import wait_for
from tests.support.changing import images
from tests.support.commanding import SESSION, Shell
from tests.support.mounting import LIMIT, SCRIPTS, daemons, end, environment, mounted_file_system, run
from tests.transfer.uploads.test_sessions import IMPORT, SMALL
from xnatfs.cli.commands import add_commands
from xnatfs.cli.ctl import main as ctl
from xnatfs.cli.output import ELLIPSIS
from xnatfs.cli.parsing import CommandParser
from xnatfs.cli.statusline import ERASE_LINE
from xnatfs.demo import PASSWORDS
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.reply import Reply

SHELLS = ("scripts on PATH", "in the checkout", "elsewhere")


def user(home: Path, place: str) -> tuple[Path, dict[str, str]]:
    """Return a current directory and an environment: with the scripts on PATH, in a `.venv` there, or neither."""
    env = {**environment(home), "LC_ALL": "C.UTF-8"}
    here = home / "here"
    here.mkdir()
    if place != "scripts on PATH":
        env["PATH"] = os.environ["PATH"].replace(f"{SCRIPTS}:", "")
    if place == "in the checkout":
        (here / ".venv").symlink_to(SCRIPTS.parent)
    return here, env


def hints(text: str) -> list[str]:
    return re.findall(r"^    (.+?)\r?$", text, re.MULTILINE)


@pytest.mark.fuse
@pytest.mark.parametrize("where", SHELLS)
def test_hints_of_the_demo_work_as_pasted(tmp_path, where):
    here, env = user(tmp_path, where)
    script = ".venv/bin/xnatfs" if where == "in the checkout" else str(SCRIPTS / "xnatfs")
    place = tmp_path / "a mount"
    try:
        printed = run(script, "demo", "--mkdir", place, cwd=here, env=env)
        assert printed.returncode == 0, printed.stderr
        pasted = hints(printed.stdout)
        for line in pasted:
            done = run("sh", "-c", line, cwd=here, env=env)
            assert done.returncode == 0, (line, done.stderr)
            if "session list" in line:
                assert "SUB001_MR1" in done.stdout
        assert (here / "NIFTI" / "t1.nii.gz").stat().st_size > 0
    finally:
        end(place, tmp_path)
    called = {"scripts on PATH": "xnatctl", "in the checkout": ".venv/bin/xnatctl", "elsewhere": f"{SCRIPTS}/xnatctl"}
    assert any(f"{called[where]} session list" in line for line in pasted)
    assert any(line.endswith("--password-stdin") for line in pasted)


@pytest.mark.fuse
@pytest.mark.parametrize("account", PASSWORDS)
def test_hints_suit_every_account_of_the_demo(tmp_path, account):
    here, env = user(tmp_path, "scripts on PATH")
    place = tmp_path / "mnt"
    place.mkdir()
    try:
        printed = run(SCRIPTS / "xnatfs", "demo", "--as", account, place, cwd=here, env=env)
        for line in hints(printed.stdout):
            done = run("sh", "-c", line, cwd=here, env=env)
            assert done.returncode == 0, (line, done.stderr)
    finally:
        end(place, tmp_path)


class Terminal:
    """A terminal of a given width, and all that programs have shown on it."""

    def __init__(self, columns: int = 80) -> None:
        import fcntl
        import struct
        import termios

        self._main, self.device = pty.openpty()
        fcntl.ioctl(self.device, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._seen = bytearray()
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._main, 4096)
            except OSError:
                return
            with self._changed:
                self._seen += data
                self._changed.notify_all()

    @property
    def text(self) -> str:
        return self._seen.decode(errors="replace").replace("\r\n", "\n")

    def wait_for(self, text: str) -> None:
        """Wait until a program has shown this text."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.text, LIMIT), self.text[-1000:]

    def type(self, data: bytes) -> None:
        os.write(self._main, data)

    def close(self) -> None:
        os.close(self.device)
        self._reader.join()
        os.close(self._main)


@contextmanager
def terminal(columns: int = 80) -> Iterator[Terminal]:
    made = Terminal(columns)
    try:
        yield made
    finally:
        made.close()


def test_hints_of_the_server_alone_work_as_pasted(tmp_path):
    here, env = user(tmp_path, "elsewhere")
    with terminal() as shown:
        command = [str(SCRIPTS / "python"), "-m", "xnatfs.demo"]
        with subprocess.Popen(command, cwd=here, env=env, stdout=shown.device, stderr=shown.device) as server:
            try:
                shown.wait_for("Ctrl-C ends it.\n")
                for line in hints(shown.text):
                    done = run("sh", "-c", line, cwd=here, env=env)
                    assert done.returncode == 0, (line, done.stderr)
                assert "BRAINS" in done.stdout
            finally:
                server.terminate()


@pytest.mark.parametrize("module", ["xnatfs", "xnatfs.cli", "xnatfs.demo"])
def test_modules_run_from_the_directory_above_a_checkout(tmp_path, module):
    """The checkout is a directory without __init__.py there, which Python takes for a package of that name."""
    (tmp_path / "xnatfs" / "xnatfs").mkdir(parents=True)
    done = run(SCRIPTS / "python", "-m", module, "--help", cwd=tmp_path, env=environment(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


# -- help ------------------------------------------------------------------------------------------------------


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from parsers(below)


def every_parser() -> list[argparse.ArgumentParser]:
    xnatctl, xnatfs = CommandParser(prog="xnatctl"), CommandParser(prog="xnatfs")
    ctl.build(xnatctl)
    add_commands(xnatfs.add_subparsers())
    return [*parsers(xnatctl), *parsers(xnatfs)]


@pytest.mark.parametrize("columns", [80, 50])
def test_help_is_broken_at_blanks_and_examples_are_not_broken(monkeypatch, columns):
    found = every_parser()
    assert len(found) > 40
    for parser in found:
        monkeypatch.setenv("COLUMNS", "2000")
        whole = parser.format_help()
        monkeypatch.setenv("COLUMNS", str(columns))
        narrow = parser.format_help()
        assert narrow.split() == whole.split()
        examples = [line for line in whole.splitlines() if line.startswith("example:")]
        assert [line for line in narrow.splitlines() if line.startswith("example:")] == examples


# -- tables ----------------------------------------------------------------------------------------------------

SENTENCE = "A description that is longer than the fifty characters at which another program cuts it off"
TABLES = {
    "projects": ("project", "list"),
    "a project": ("project", "show", "MYPROJECT"),
    "subjects": ("subject", "list", "-P", "MYPROJECT"),
    "sessions": ("session", "list", "-P", "MYPROJECT"),
    "a session": ("session", "show", "-E", SESSION),
    "files": ("resource", "show", "-E", SESSION, "--scan", "1", "DICOM"),
    "waiting": ("prearchive", "list"),
}


def on_terminal(prompt: Shell, columns: int, *words: str) -> str:
    """Run a command on a terminal of that width, check that it succeeds, and return what stays on it."""
    with terminal(columns) as screen:
        environment = {"TERM": "xterm", **prompt.environment()}
        command = [*prompt.program, *words]
        done = subprocess.run(command, env=environment, cwd=prompt.home, stdout=screen.device, stderr=screen.device)
        assert done.returncode == 0
    return re.sub(r"[^\n]*\r\x1b\[K", "", screen.text)  # a command that takes a second shows that it waits


@pytest.mark.parametrize("columns", [80, 50, 30])
@pytest.mark.parametrize("table", TABLES)
def test_tables_fit_a_terminal_and_are_broken_at_blanks(prompt, table, columns):
    whole = prompt.ctl(*TABLES[table]).out
    shown = on_terminal(prompt, columns, *TABLES[table], "--no-color")
    text, _, note = shown.partition("Words are cut to fit")
    # An address stays whole: a terminal opens it, and wraps it by itself.
    assert max(len(line) for line in text.splitlines() if "http://" not in line) <= columns
    words = set(whole.split())
    for word in text.split():
        assert word in words or any(each.startswith(word.removesuffix(ELLIPSIS)) for each in words if ELLIPSIS in word)
    assert bool(note) == (ELLIPSIS in text)
    if columns == 80 and table != "files":
        assert sorted(text.split()) == sorted(whole.split())


@pytest.mark.parametrize("columns", [80, 50, 40])
@pytest.mark.parametrize("table", ["sessions", "a session", "a subject"])
def test_accession_ids_are_whole_on_any_terminal(prompt, table, columns):
    """An ID is copied to other commands, so that labels and dates are cut before it."""
    words = {**TABLES, "a subject": ("subject", "show", "-P", "MYPROJECT", "SUB001")}[table]
    whole = re.findall(r"XNAT_E\d+", prompt.ctl(*words).out)
    assert whole
    assert re.findall(r"XNAT_E\d+", on_terminal(prompt, columns, *words)) == whole


@pytest.mark.parametrize("columns", [80, 40])
def test_characters_of_two_columns_keep_the_columns_of_a_table(fresh, columns):
    archive = fresh.app.archive
    project = archive.project("ASIA", "Asia", jane="Owners")
    for number, label in enumerate(("頭部MR_1", "머리_2", "HEAD_3")):
        archive.experiment(archive.subject(project, f"KARL{number}"), label, f"XNAT_E0009{number}")
    text, _, _ = on_terminal(fresh, columns, "session", "list", "-P", "ASIA").partition("Words are cut")
    head, *rows = text.splitlines()
    begins = cell_len(head.partition("Subj")[0])
    assert len(rows) == 3
    for row in rows:
        assert cell_len(row) <= columns
        assert cell_len(row.partition("KARL")[0]) == begins


def test_nothing_is_cut_or_folded_where_there_is_no_terminal(prompt):
    narrow = replace(prompt, env={**prompt.env, "COLUMNS": "20"})
    done = narrow.ctl("project", "list")
    assert any(line.endswith(SENTENCE) for line in done.lines)
    assert len(done.lines) == 1 + len(prompt.ctl("project", "list", "-q").lines)


# -- waiting ---------------------------------------------------------------------------------------------------


class HeldReplies:
    """Hold the answers to requests for some paths until they are released, except for the first `passing` ones."""

    def __init__(self, prompt: Shell, pattern: str, passing: int = 0, seconds: float = LIMIT) -> None:
        self.met, self.free, self._seconds = threading.Event(), threading.Event(), seconds
        self._pattern, self._passing = pattern, passing
        self._faults = prompt.app.faults
        self._faults.append(self._hold)

    def end(self) -> None:
        """Let all requests pass from now on."""
        self.free.set()
        self._faults.remove(self._hold)

    def _hold(self, request: Request) -> Reply | None:
        if re.search(self._pattern, request.path):
            self._passing -= 1
            if self._passing < 0:
                self.met.set()
                self.free.wait(self._seconds)
        return None


# The terminal of a process is the one that Ctrl-C is typed on.
TAKE = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


@contextmanager
def running(prompt: Shell, *words: str | Path, columns: int = 80) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """Run a command in the foreground of a terminal."""
    command = [sys.executable, "-c", TAKE, *prompt.program, *map(str, words)]
    with terminal(columns) as screen:
        device = screen.device
        env = {**prompt.environment(), "TERM": "xterm"}
        with subprocess.Popen(
            command, env=env, cwd=prompt.home, start_new_session=True, stdin=device, stdout=device, stderr=device
        ) as process:
            try:
                yield process, screen
            finally:
                process.kill()


LIST = ("session", "list", "-P", "MYPROJECT")


def test_a_listing_that_takes_long_says_what_is_asked(fresh):
    held = HeldReplies(fresh, "/experiments")
    with running(fresh, *LIST) as (process, screen):
        screen.wait_for(f"Asking {fresh.url}: list the sessions of a project (")
        held.free.set()
        assert process.wait(LIMIT) == 0
    before, _, after = screen.text.rpartition(ERASE_LINE)
    assert after == fresh.ctl(*LIST).out, "the line has gone, and the table is whole"
    assert all(len(line) < 80 for line in before.split(ERASE_LINE))


@pytest.mark.parametrize("words", [(), ("-q",), ("-v",)])
def test_nothing_is_shown_to_programs_and_by_quiet_commands(fresh, words):
    HeldReplies(fresh, "/experiments", seconds=2.5)
    if not words:
        assert fresh.ctl(*LIST).err == ""
        return
    with running(fresh, *LIST, *words) as (process, screen):
        assert process.wait(LIMIT) == 0
    assert "Asking" not in screen.text


def on_shell(prompt: Shell, line: str) -> Shell:
    """Return a prompt whose command is a line of a shell that starts xnatctl."""
    return replace(prompt, program=("/bin/sh", "-c", f"{SCRIPTS / 'xnatctl'} {line}"))


def test_the_line_fits_the_terminal_though_the_output_goes_elsewhere(fresh):
    """A wrapped line could not be erased."""
    held = HeldReplies(fresh, "/experiments")
    with running(on_shell(fresh, f"{shlex.join(LIST)} >table"), columns=50) as (process, screen):
        screen.wait_for("... (1 s)")
        held.free.set()
        assert process.wait(LIMIT) == 0
    assert all(len(line) < 50 for line in screen.text.split(ERASE_LINE))


def test_a_pager_has_the_terminal_while_it_lets_the_command_wait(fresh):
    files = fresh.session().scans[0].resources[0]
    for number in range(2000):
        fresh.app.archive.file(files, f"{number:099d}.dcm", b"")
    pager = "(read line; echo BEGIN >&2; sleep 2; echo END >&2; cat >/dev/null)"
    with running(on_shell(fresh, f"session download -E {SESSION} --dry-run | {pager}")) as (process, screen):
        assert process.wait(LIMIT) == 0
    assert "Asking" not in screen.text.partition("BEGIN")[2].partition("END")[0]


def test_a_question_is_not_written_over(fresh):
    fresh.receive("W")
    with running(fresh, "prearchive", "delete", "-P", "MYPROJECT", "--session", "W") as (process, screen):
        screen.wait_for("[y/N] ")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.5)
        screen.type(b"y\n")
        assert process.wait(LIMIT) == 0
    assert "Asking" not in screen.text.partition("[y/N] ")[2].partition("Deleted")[0]


DOWNLOAD = ("scan", "download", "-E", SESSION, "-s", "1,2", "--out", "data")


@pytest.mark.parametrize("words", [DOWNLOAD, (*DOWNLOAD, "--zip")], ids=["files", "zip"])
def test_a_copy_takes_as_long_as_its_user_waits(fresh, words):
    """The listing before the copy counts as well."""
    HeldReplies(fresh, "/scans$", seconds=2.0)
    said = fresh.ctl(*words, "-o", "json")
    seconds = re.search(r"in (\d+\.\d) s", said.err)
    assert seconds
    assert float(seconds[1]) >= 2.0
    if "--zip" not in words:
        assert said.rows["duration_seconds"] >= 2.0


@pytest.mark.parametrize("columns", [80, 50])
def test_progress_of_a_copy_takes_one_line(fresh, columns):
    shown = re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", on_terminal(fresh, columns, *DOWNLOAD))
    *drawn, last = shown.splitlines()
    assert last.startswith("Downloaded 7 of 7 files")
    assert any("downloading 7/7 files" in line for line in drawn)
    assert all(re.match(r"downloading|Asking|\s*$", line) for line in drawn)
    assert all(len(line.rstrip()) <= columns for line in drawn)


# -- Ctrl-C ----------------------------------------------------------------------------------------------------

CTRL_C = b"\x03"


def pasted(prompt: Shell, line: str) -> "subprocess.CompletedProcess[str]":
    done = run("sh", "-c", line, cwd=prompt.home, env=prompt.environment())
    assert done.returncode == 0, done.stderr
    return done


def interrupted(prompt: Shell, held: HeldReplies, *words: str | Path) -> str:
    """Type Ctrl-C while a command waits for a held answer, and return the line that the command reports."""
    with running(prompt, *words) as (process, screen):
        assert held.met.wait(LIMIT)
        screen.type(CTRL_C)
        assert process.wait(LIMIT) == 130
    held.free.set()
    assert "Traceback" not in screen.text
    return screen.text.rpartition("\nxnatctl: ")[2].rstrip("\n")


def test_an_interrupted_listing_says_so(fresh):
    assert interrupted(fresh, HeldReplies(fresh, "/experiments"), *LIST) == "interrupted"


def test_an_interrupted_question_ends_at_once(fresh):
    fresh.receive("W")
    with running(fresh, "prearchive", "delete", "-P", "MYPROJECT", "--session", "W") as (process, screen):
        screen.wait_for("[y/N] ")
        screen.type(CTRL_C)
        assert process.wait(LIMIT) == 130
    assert screen.text.endswith("\nxnatctl: interrupted\n")
    assert fresh.ctl("prearchive", "list", "-q").lines != []


def test_an_interrupted_download_names_what_is_there_and_how_to_go_on(fresh):
    last = fresh.session().scans[0].resources[0].entries[-1].path
    held = HeldReplies(fresh, f"/files/{last}$")
    said = interrupted(fresh, held, *DOWNLOAD, "-w", "1")
    found = re.fullmatch(r"interrupted: (\d+) of (\d+) files are in (\S+), and stay; for the others: (.*)", said)
    assert found, said
    there = [path for path in (fresh.home / found[3]).rglob("*") if path.is_file() and ".xnatctl" not in path.parts]
    assert len(there) == int(found[1]) > 0
    done = pasted(fresh, found[4])
    assert f"{found[1]} were there already" in done.stderr


def test_an_interrupted_archive_is_begun_again(fresh):
    words = (*DOWNLOAD, "--zip")
    said = interrupted(fresh, HeldReplies(fresh, "/scans/1,2/files$"), *words)
    assert said.startswith(f"interrupted: data/{SESSION}/scans.zip comes whole or not at all; to begin again: ")
    pasted(fresh, said.rpartition(": ")[2])
    assert (fresh.home / "data" / SESSION / "scans.zip").exists()


@pytest.fixture
def folder(fresh: Shell) -> Path:
    """20 images of one study; they are several batches of the program in `small`."""
    directory = fresh.home / "a folder"
    for number in range(1, 11):
        for name, content in images("1.2.3", number).items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize("more", [(), ("--no-resume",), ("--overwrite", "delete")], ids=" ".join)
def test_an_interrupted_upload_names_what_is_there_and_how_to_go_on(fresh, folder, more):
    small = replace(fresh, program=(sys.executable, "-c", SMALL))
    held = HeldReplies(fresh, IMPORT, passing=2)
    words = ("session", "upload", folder, "-P", "MYPROJECT", "-S", "SUB001", "-E", "NEW", "-w", "1", *more)
    said = interrupted(small, held, *words)
    text = r"interrupted: the server has (\d+) of 20 files, and keeps them; for the others: (.*)"
    found = re.fullmatch(text, said)
    assert found, said
    assert 0 < int(found[1]) < 20
    done = pasted(fresh, found[2])
    assert "Resuming an upload" in done.stderr
    (session,) = [waiting.session for waiting in fresh.app.writing.prearchive.sessions]
    assert sum(len(resource.entries) for scan in session.scans for resource in scan.resources) == 20


def test_an_interrupted_upload_to_a_resource_goes_on(fresh, folder):
    words = ("resource", "upload", "-E", SESSION, "PAPERS", folder)
    said = interrupted(fresh, HeldReplies(fresh, "/PAPERS/files/"), *words)
    assert re.match(r"interrupted: \d+ files are sent, and stay there; for the others: ", said)
    pasted(fresh, said.rpartition(": ")[2])
    assert len(fresh.ctl("resource", "show", "-E", SESSION, "PAPERS", "-q").lines) == 20


def test_an_upload_to_a_resource_that_is_interrupted_on_its_way_has_sent_nothing(fresh, folder):
    """Bytes that were read here may not have reached the server."""
    words = ("resource", "upload", "-E", SESSION, "PAPERS", folder)
    said = interrupted(fresh, HeldReplies(fresh, "/PAPERS/files/"), *words)
    assert said.startswith("interrupted: 0 files are sent")


def test_an_interrupted_archiving_goes_on(fresh):
    fresh.receive("W")
    words = ("prearchive", "archive", "-P", "MYPROJECT", "--session", "W")
    said = interrupted(fresh, HeldReplies(fresh, "^/data/services/archive$"), *words)
    assert said.startswith("interrupted: the server may go on with W all the same; to look again: ")
    pasted(fresh, said.rpartition(": ")[2])
    assert not fresh.app.writing.prearchive.sessions


def test_an_interrupted_wait_goes_on(fresh):
    fresh.receive("W", ready=False)
    with running(fresh, "prearchive", "archive", "-P", "MYPROJECT", "--session", "W", "--wait") as (process, screen):
        screen.wait_for("RECEIVING")
        screen.type(CTRL_C)
        assert process.wait(LIMIT) == 130
    said = screen.text.rpartition("\nxnatctl: ")[2].strip()
    assert re.match(r"interrupted: W is RECEIVING\S*, and the server goes on with it; to wait on: .* --wait$", said)


def test_an_upload_that_is_interrupted_after_it_was_sent(fresh, folder):
    words = ("session", "upload", folder, "-P", "MYPROJECT", "-S", "SUB001", "-E", "NEW")
    said = interrupted(fresh, HeldReplies(fresh, "/data/prearchive/.*/NEW$"), *words)
    assert said.startswith("interrupted: all files are sent, and the server goes on with them; to look again: ")
    assert "20 files" in pasted(fresh, said.rpartition(": ")[2]).stderr


# -- Ctrl-C to a mount -----------------------------------------------------------------------------------------


@pytest.mark.fuse
@pytest.mark.parametrize("when", ["mounted", "logging in", "logging in, in the background"])
def test_ctrl_c_ends_a_mount_at_once(fresh, tmp_path, when):
    place = tmp_path / "mnt"
    place.mkdir()
    xnatfs = replace(fresh, program=(str(SCRIPTS / "xnatfs"),))
    options = [] if "background" in when else ["--foreground"]
    held = HeldReplies(fresh, "^/data/JSESSION$") if when != "mounted" else None
    try:
        with running(xnatfs, "mount", *options, "--log-file", tmp_path / "log", place) as (process, screen):
            if held:
                assert held.met.wait(LIMIT)
                if when == "logging in":
                    process.send_signal(signal.SIGUSR1)
                    assert wait_for(lambda: "logging in to" in (tmp_path / "log").read_text()), "it ends nothing"
            else:
                while not mounted_file_system(place):
                    assert process.poll() is None, screen.text
            screen.type(CTRL_C)
            assert process.wait(LIMIT) == 130
            assert mounted_file_system(place) == ""
            unmounted = f": {place} is unmounted" if when == "mounted" else ""
            said = screen.text.rpartition("\nxnatfs: ")[2]
            assert said == f"interrupted{unmounted}\n"
            assert wait_for(lambda: not daemons(fresh.home))
    finally:
        if held:
            held.free.set()
        end(place, fresh.home)
