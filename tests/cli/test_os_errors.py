"""Test local files, folders and streams that cannot be read or written: one line that names them, and a status."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.commanding import SESSION, Done, Shell
from tests.support.failing import AS_STRANGER, OWN_MOUNTS
from tests.support.mounting import run
from tests.transfer.test_download import DOWNLOAD, files, many, truth
from xnatfs.cli import run as cli_run
from xnatfs.cli.ctl.command import Command
from xnatfs.cli.ctl.main import commands

IO_ERROR = 74
DOWNLOADING = f"xnatctl session download -E {SESSION}"


@pytest.fixture(scope="module")
def prompt(prompt: Shell) -> Shell:
    """Log in and configure a profile."""
    prompt.ctl("project", "list")
    prompt.config(f"profiles:\n  one:\n    url: {prompt.url}\n")
    return prompt


def script(shell: Shell, text: str) -> Done:
    """Run a /bin/sh script; a traceback, or an error that is reported as a fault of this program, fails."""
    done = run("sh", "-c", text, env=shell.environment(), cwd=shell.home, stdin=subprocess.DEVNULL)
    assert "fault of this program" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def with_a_disk(options: str, then: str) -> str:
    """Return a script that runs commands with another file system mounted at `disk`."""
    return f"""mkdir -p disk; {" ".join(OWN_MOUNTS)} sh -c 'mount -t tmpfs -o {options} none disk; {then}'"""


PRINTING = [
    "project list",
    "project list -o json",
    "project show MYPROJECT",
    f"session show -E {SESSION}",
    f"session download -E {SESSION} --dry-run",
    "api GET /data/projects",
    "whoami",
    "config show",
    "config current-context",
    "completion bash",
    "--version",
    "--help",
    "scan download --help",
]


@pytest.mark.parametrize("words", PRINTING)
def test_output_that_cannot_be_written_is_one_line(prompt, words):
    done = script(prompt, f"xnatctl {words} > /dev/full")
    assert done.status == IO_ERROR
    (line,) = done.err.splitlines()
    assert "standard output: No space left on device" in line
    if "json" in words:
        assert json.loads(line)["error"]["exit_code"] == IO_ERROR


@pytest.mark.parametrize("words", ["--help", "mount --help", "--version"])
def test_xnatfs_says_so_too(prompt, words):
    done = script(prompt, f"xnatfs {words} > /dev/full")
    assert (done.status, done.err) == (IO_ERROR, "xnatfs: standard output: No space left on device\n")


@pytest.mark.parametrize("words", PRINTING)
def test_a_reader_that_has_gone_is_no_error(prompt, words):
    """Close the pipe before its reader has read the first byte."""
    text = f"{{ xnatctl {words}; echo $? >&3; }} 3>status | exec true; cat status"
    done = script(prompt, text)
    assert (done.out, done.err) == ("0\n", "")


def test_streams_that_are_closed(prompt):
    assert script(prompt, "xnatctl project list >&-") == Done(0, "", "")
    listed = script(prompt, "xnatctl project list -q")
    assert script(prompt, "xnatctl project list -q <&- 2>&-") == listed
    assert script(prompt, "xnatctl project show NOPE 2>&-") == Done(5, "", "")
    assert script(prompt, "xnatctl project show NOPE 2>/dev/full") == Done(5, "", "")


def test_a_log_on_a_full_disk_is_one_line_and_the_command_goes_on(prompt):
    done = script(prompt, "xnatctl project list -q -v --log-file /dev/full")
    assert done.status == 0
    assert "MYPROJECT" in done.lines
    assert done.err == "cannot write the log /dev/full: No space left on device\n"


# -- --out -------------------------------------------------------------------------------------------------------


def test_a_read_only_disk_is_one_line(fresh):
    done = script(fresh, with_a_disk("ro", f"{DOWNLOADING} --out disk"))
    assert (done.status, done.err) == (IO_ERROR, f"xnatctl: disk/{SESSION}: Read-only file system\n")


def test_a_full_disk_is_one_line_and_leaves_no_draft(fresh):
    done = script(fresh, with_a_disk("size=20k", f'{DOWNLOADING} --out disk; echo $?; find disk -name "*.part"'))
    assert done.out == f"{IO_ERROR}\n"
    (line,) = done.err.splitlines()
    assert line.startswith(f"xnatctl: disk/{SESSION}/scans/")
    assert line.endswith("No space left on device")


@pytest.mark.parametrize("out", ["file", "file/below", "folder"])
def test_a_file_where_a_folder_is_to_be_is_one_line(fresh, out):
    (fresh.home / "folder").mkdir()
    for name in ("file", f"folder/{SESSION}"):
        (fresh.home / name).write_text("mine")
    done = fresh.ctl(*DOWNLOAD[:-1], out, status=2)
    name = "file" if out != "folder" else f"folder/{SESSION}"
    assert done.err == f"xnatctl: --out {out}: {name} is not a directory\n"
    assert (fresh.home / name).read_text() == "mine"


def test_a_folder_where_a_file_is_to_be_fails_alone(fresh):
    fresh.ctl(*DOWNLOAD)
    whole = files(fresh.home / "data")
    (path,) = (fresh.home / "data").rglob("1.0.dcm")
    path.unlink()
    path.mkdir()
    done = fresh.ctl(*DOWNLOAD, status=8)
    assert f"{path.relative_to(fresh.home)}: exists already, and is not a regular file" in done.err
    path.rmdir()
    fresh.ctl(*DOWNLOAD)
    assert files(fresh.home / "data") == whole


# -- configuration and uploads -----------------------------------------------------------------------------------


def test_a_configuration_that_cannot_be_written_is_one_line(fresh):
    (fresh.home / "disk").mkdir()
    (fresh.home / ".config").symlink_to("disk")
    done = script(
        fresh, with_a_disk("ro", "xnatctl auth login; echo $?; xnatctl config init --url http://x.org; echo $?")
    )
    assert done.out == f"{IO_ERROR}\n2\n"
    assert [line.rpartition(": ")[2] for line in done.err.splitlines()] == ["Read-only file system"] * 2
    assert ".config" in done.err


def test_a_configuration_folder_that_is_none_is_one_line(fresh):
    (fresh.home / ".config").write_text("")
    done = fresh.ctl("project", "list", status=2)
    assert done.err == f"xnatctl: cannot read {fresh.home}/.config/xnatctl/config.yaml: Not a directory\n"


def test_a_file_to_be_sent_that_cannot_be_read_is_named(fresh):
    papers = fresh.home / "papers"
    papers.mkdir()
    (papers / "memory").symlink_to("/proc/self/mem")  # unreadable for root, too
    words = ("resource", "upload", "-E", SESSION, "PAPERS")
    assert fresh.ctl(*words, "papers", status=2).err == "xnatctl: papers/memory: Input/output error\n"
    assert fresh.ctl(*words, "papers/memory", status=2).err == "xnatctl: papers/memory: Input/output error\n"
    assert fresh.requests("PUT") == []


def test_a_folder_to_be_sent_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    """Run as an unprivileged user; root may list all folders."""
    from xnatfs.common.errors import ConfigError
    from xnatfs.transfer.uploads import resources

    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ConfigError, match="closed: Permission denied"):
        resources.find(tmp_path)


# -- given twice -------------------------------------------------------------------------------------------------

TWICE = [
    ("session", "show", "XNAT_E00002", "-E", SESSION),
    ("scan", "list", "XNAT_E00002", "-E", SESSION),
    ("resource", "list", "XNAT_E00002", "-E", SESSION),
    ("scan", "download", "XNAT_E00002", "-E", SESSION, "-s", "1"),
    ("session", "download", "XNAT_E00002", "-E", SESSION),
    ("resource", "download", "XNAT_E00002", "DICOM", "-E", SESSION),
    ("resource", "show", "XNAT_E00002", "DICOM", "-E", SESSION),
    ("subject", "show", "SUB002", "-S", "SUB001", "-P", "MYPROJECT"),
    ("project", "show", "A", "-P", "MYPROJECT"),
    ("prearchive", "archive", "A", "20240101_000000", "S", "-P", "MYPROJECT"),
    ("prearchive", "delete", "A", "20240101_000000", "S", "--timestamp", "20240101_000001"),
    ("session", "show", "-E", SESSION, "-S", "SUB002"),
    ("browse", "XNAT_E00002", "-E", SESSION),
    ("project", "download", "A", "-P", "MYPROJECT"),
    ("subject", "download", "SUB002", "-S", "SUB001", "-P", "MYPROJECT"),
]


@pytest.mark.parametrize("words", TWICE, ids=lambda words: " ".join(words[:2]))
def test_an_argument_that_would_be_ignored_is_refused(prompt, words):
    before = len(prompt.app.requests)
    done = prompt.ctl(*words, status=2)
    assert len(done.err.splitlines()) == 1
    assert "ive " in done.err
    assert len(prompt.app.requests) == before


def test_every_command_with_an_option_for_its_argument_is_in_the_table():
    """Check -E beside SESSION, -S beside SUBJECT and -P beside PROJECT; a new command must be added to the table."""
    import argparse

    def doubled(command: Command) -> bool:
        parser = argparse.ArgumentParser()
        command.arguments(parser)
        options = {option for action in parser._actions for option in action.option_strings}
        names = [str(action.metavar) for action in parser._actions if not action.option_strings]
        pairs = (("SESSION", "--experiment"), ("SUBJECT", "-S"), ("PROJECT", "-P"), ("PROJECT", "--session"))
        optional = [action for action in parser._actions if not action.option_strings and action.nargs in ("?", "+")]
        return (
            bool(optional)
            and any(word in name and option in options for name in names for word, option in pairs)
            and "PATH" not in names
        )

    assert {(each.noun, each.verb) for each in commands() if doubled(each)} <= {words[:2] for words in TWICE} | {
        ("resource", "upload"),  # test_resources has it
        ("", "browse"),  # above, without a noun
    }


# -- days --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "found"),
    [
        ("2024-01-15", [SESSION]),
        ("2024-1-15", [SESSION]),
        ("2024-1-16", []),
        ("2023-01-01", [SESSION, "XNAT_E00002"]),
        ("2023-1-2", [SESSION]),
        ("1999-12-31", [SESSION, "XNAT_E00002"]),
    ],
)
def test_a_day_is_compared_as_one(prompt, since, found):
    words = ("session", "list", "-P", "MYPROJECT", "--since", since, "--label", "SUB001*", "-q")
    assert sorted(prompt.ctl(*words).lines) == found


@pytest.mark.parametrize(
    "since", ["tomorrow", "2024-13-01", "2024-02-30", "2024", "15.01.2024", "2024-01-15x", "", "²024-1-1"]
)
def test_what_is_no_day_is_refused(prompt, since):
    before = len(prompt.app.requests)
    done = prompt.ctl("session", "list", "-P", "MYPROJECT", "--since", since, status=2)
    assert "is not a day like 2024-01-31" in done.err
    assert len(prompt.app.requests) == before


GONE = "{{ xnatctl {}; echo $? >&3; }} 3>status | exec true; cat status"


@pytest.mark.parametrize("edited", [1, 15], ids=["a short answer", "one longer than a buffer"])
def test_a_reader_that_has_gone_does_not_hide_the_status(fresh, edited):
    many(fresh, 300)
    fresh.ctl(*DOWNLOAD)
    for path in sorted((fresh.home / "data").rglob("*.dcm"))[: edited**2]:
        path.write_bytes(b"edited")
    words = "session download -E XNAT_E00001 --out data -o json 2>/dev/null"
    assert script(fresh, GONE.format(words)).out == "8\n"


def test_another_pipe_that_breaks_is_an_error():
    """Break the pipe of a started program, or the pipe to the process that waits for a mount."""

    def broken() -> int:
        raise BrokenPipeError(32, "Broken pipe")

    ended: list[int] = []
    status = cli_run.run_command(broken, lambda error, status, text: ended.append(status))
    assert (status, ended) == (IO_ERROR, [IO_ERROR])


def test_a_read_only_disk_where_all_is_up_to_date_is_no_error(fresh):
    there = f"{DOWNLOADING} --out disk && mount -o remount,ro disk && {DOWNLOADING} --out disk"
    done = script(fresh, with_a_disk("size=9m", there))
    assert done.status == 0
    assert "Up to date" in done.err
    again = f"{DOWNLOADING} --out disk && rm -r disk/{SESSION}/.xnatctl && mount -o remount,ro disk && {DOWNLOADING}"
    assert "Up to date" in script(fresh, with_a_disk("size=9m", f"{again} --out disk")).err
    missing = f"{DOWNLOADING} --out disk && rm -r disk/{SESSION}/scans && mount -o remount,ro disk && {DOWNLOADING}"
    done = script(fresh, with_a_disk("size=9m", f"{missing} --out disk"))
    assert done.status == IO_ERROR
    assert "Read-only file system" in done.err


def test_a_folder_of_a_colleague_needs_no_more_than_reading(fresh):
    fresh.ctl(*DOWNLOAD)
    for path in (fresh.home, *fresh.home.rglob("*")):
        path.chmod(0o777 if path.is_dir() and ".xnatctl" not in path.parts else path.stat().st_mode)
    home = fresh.home.parent / "colleague"
    home.mkdir()
    home.chmod(0o777)
    words = f"export HOME={home}; {DOWNLOADING} --out data; echo $?"
    assert script(fresh, f"{AS_STRANGER} sh -c '{words}'").out == "0\n"
    (path,) = (fresh.home / "data").rglob("1.0.dcm")
    path.unlink()
    assert script(fresh, f"{AS_STRANGER} sh -c '{words}'").out == "0\n"
    assert files(fresh.home / "data" / SESSION) == truth(fresh)
