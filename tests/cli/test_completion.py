"""Test shell completion of commands, options and names, as the shell itself requests it."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace

import pytest

from tests.support.commanding import LABEL, OWNER, SESSION, Shell
from tests.support.mounting import LIMIT, SCRIPTS, run
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.reply import Reply


def complete(shell: Shell, line: str) -> list[str]:
    """Return the completions that the shell offers at the end of the line; any output on stderr fails."""
    out = shell.home / "completions"
    env = {
        **shell.environment(),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
    }
    done = run(*shell.program, env=env, stdin=subprocess.DEVNULL, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return sorted(name.replace("\\", "").strip() for name in out.read_text().split("\n") if name.strip())


def fills(shell: Shell) -> None:
    """Fetch the listings that completion offers names from."""
    for words in (
        ("project", "list"),
        ("subject", "list", "-P", "MYPROJECT"),
        ("session", "list", "-P", "MYPROJECT"),
        ("scan", "list", "-E", SESSION),
        ("resource", "list", "-E", SESSION),
        ("resource", "list", "-E", SESSION, "--scan", "1"),
        ("prearchive", "list", "-P", "MYPROJECT"),
    ):
        shell.ctl(*words)


NAMES = [
    ("xnatctl project show MY", ["MYPROJECT"]),
    ("xnatctl session list -P MY", ["MYPROJECT"]),
    ("xnatctl subject show -P MYPROJECT SUB", ["SUB001", "SUB002"]),
    ("xnatctl session list -P MYPROJECT -S SUB", ["SUB001", "SUB002"]),
    ("xnatctl scan list -P MYPROJECT -E SUB001", ["SUB001_MR_20240115", "SUB001_PET_20230101"]),
    ("xnatctl scan download -E XNAT_E00001 -s 1", ["1", "10"]),
    ("xnatctl scan download -E XNAT_E00001 -s 2,4", ["2,4-MR2"]),
    (f"xnatctl scan download -P MYPROJECT -E {LABEL} -s 3", ["3"]),
    ("xnatctl resource list -E XNAT_E00001 --scan 4", ["4-MR2"]),
    ("xnatctl session download -E XNAT_E00001 -r Q", ["QC"]),
    ("xnatctl resource show -E XNAT_E00001 --scan 1 NIF", ["NIFTI"]),
    ("xnatctl prearchive archive -P MYPROJECT --session WAI", ["WAITING"]),
    ("xnatctl prearchive archive MYP", ["MYPROJECT"]),
    ("xnatctl project list -p la", ["lab"]),
]


@pytest.mark.parametrize(("line", "offered"), NAMES)
def test_names_come_from_what_was_listed(fresh, line, offered):
    fresh.config(f"profiles:\n  lab:\n    url: {fresh.url}\n")
    fresh.receive("WAITING")
    fills(fresh)
    before = len(fresh.app.requests)
    assert complete(fresh, line) == offered
    assert len(fresh.app.requests) == before


@pytest.mark.parametrize(("line", "offered"), [pair for pair in NAMES if "--scan 1 NIF" not in pair[0]])
def test_else_from_one_request(fresh, line, offered):
    fresh.config(f"profiles:\n  lab:\n    url: {fresh.url}\n")
    fresh.receive("WAITING")
    fresh.ctl("auth", "login")
    before = len(fresh.app.requests)
    assert complete(fresh, line) == offered
    assert len(fresh.app.requests) - before <= 1 + (LABEL in line)
    assert complete(fresh, line) == offered
    assert len(fresh.app.requests) - before <= 1 + (LABEL in line), "and it is remembered"


def test_commands_and_options(fresh):
    assert complete(fresh, "xnatctl prearchive re") == ["rebuild"]
    assert complete(fresh, "xnatctl scan download --dry") == ["--dry-run"]
    assert complete(fresh, "xnatctl project list -o js") == ["json", "jsonl"]
    assert complete(fresh, "xnatctl project list --columns id,na") == ["id,name"]
    assert complete(fresh, "xnatctl session list --sort-by mo") == ["modality"]
    assert complete(fresh, "xnatctl scan list --filter qu") == ["quality:"]


def test_xnatfs_is_completed_as_well(fresh):
    fresh.config(f"profiles:\n  lab:\n    url: {fresh.url}\n")
    (fresh.home / "place").mkdir()
    xnatfs = replace(fresh, program=(str(SCRIPTS / "xnatfs"),))
    assert complete(xnatfs, "xnatfs ref") == ["refresh"]
    assert complete(xnatfs, "xnatfs mount --li") == []
    assert complete(xnatfs, "xnatfs mount --off") == ["--offline"]
    assert complete(xnatfs, "xnatfs mount -p la") == ["lab"]
    assert complete(xnatfs, "xnatfs log-level de") == ["debug"]
    assert complete(xnatfs, f"xnatfs warm {fresh.home}/pla") == [f"{fresh.home}/place/"]


def test_the_file_is_private_and_of_one_account(fresh):
    fresh.ctl("project", "list")
    (path,) = (fresh.home / ".cache" / "xnatfs").glob("*/listings/*")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    fresh.env |= {"XNAT_USER": "otto"}
    fresh.ctl("project", "list")
    assert complete(fresh, "xnatctl project show MY") == []


def test_an_old_listing_is_none(fresh):
    fresh.ctl("project", "list")
    (path,) = (fresh.home / ".cache" / "xnatfs").glob("*/listings/*")
    with closing(sqlite3.connect(path)) as stored, stored:
        stored.execute("UPDATE listings SET at = at - 3700")
    fresh.app.sessions.end_all(OWNER)
    before = len(fresh.app.requests)
    complete(fresh, "xnatctl project show MY")
    assert len(fresh.app.requests) > before


def test_a_slow_server_is_not_waited_for(fresh):
    fresh.ctl("auth", "login")
    asked, free = threading.Event(), threading.Event()

    def hold(request: Request) -> Reply | None:
        asked.set()
        free.wait(LIMIT)
        return None

    fresh.app.faults.append(hold)
    try:
        assert complete(fresh, "xnatctl project show MY") == []
        assert asked.is_set()
    finally:
        free.set()


@pytest.mark.parametrize("trouble", ["offline", "logged out", "broken profiles", "no profile"])
def test_whatever_is_wrong_nothing_is_said(fresh, trouble):
    if trouble == "offline":
        fresh.env["XNAT_URL"] = "http://127.0.0.1:9"
    elif trouble == "logged out":
        del fresh.env["XNAT_PASS"]
    elif trouble == "broken profiles":
        fresh.config("profiles: [")
    else:
        del fresh.env["XNAT_URL"]
    assert complete(fresh, "xnatctl project show MY") == []
    assert complete(fresh, "xnatctl project show -p MY") == []


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_shells_own_part(fresh, name):
    text = fresh.ctl("completion", name).out
    assert "xnatctl" in text
    if name == "bash":
        script = fresh.home / "completion.bash"
        script.write_text(text)
        fresh.ctl("project", "list")
        line = "xnatctl project show MY"
        ask = (
            f"source {script}; COMP_LINE='{line}' COMP_POINT={len(line)} COMP_TYPE=9 COMP_WORDS=({line}) COMP_CWORD=3;"
            f' _python_argcomplete xnatctl; echo "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(
            ["bash", "-c", ask], env={**os.environ, **fresh.environment()}, capture_output=True, text=True
        )
        assert done.stdout.split() == ["MYPROJECT"]


@pytest.mark.parametrize(
    ("line", "offered"), [("xnatctl session d", "download"), ("xnatctl project show MY", "MYPROJECT")]
)
def test_completing_a_word_imports_nothing_that_transfers(fresh, line, offered):
    """Start as quickly as possible: a shell waits for each word, also for a name that was listed."""
    fresh.ctl("project", "list")
    code = """if True:
        import os, sys
        exit = os._exit
        def leave(status):
            with open("imported", "w") as file:
                file.write("\\n".join(sys.modules))
            exit(status)
        os._exit = leave
        from xnatfs.cli import main_xnatctl
        main_xnatctl(sys.argv[1:])
    """
    shell = Shell(fresh.app, fresh.url, fresh.home, fresh.env, (sys.executable, "-c", code))
    env = {**shell.environment(), "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    env |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(fresh.home / "out"), "_ARGCOMPLETE_SHELL": "bash"}
    subprocess.run(shell.program, env=env, cwd=fresh.home, capture_output=True, timeout=60)
    imported = (fresh.home / "imported").read_text().split()
    assert offered in (fresh.home / "out").read_text()
    assert "xnatfs.cli.ctl.transfers" in imported
    assert not [name for name in imported if name.startswith(("xnatfs.transfer", "trio", "httpx"))]
