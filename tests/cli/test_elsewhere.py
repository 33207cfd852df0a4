"""Test that xnatctl works on systems that lack what only Linux, or POSIX, has."""

import ntpath
import sys
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import pytest

from tests.support.changing import images
from tests.support.commanding import LABEL, SESSION, Shell, shell
from xnatfs.transfer.local_files import windows_name

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["darwin", "win32"])
def elsewhere(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shell]:
    with shell(tmp_path / "home") as made:
        made.program = (sys.executable, "-m", "tests.support.elsewhere", request.param)
        made.env["PYTHONPATH"] = str(ROOT)
        yield made


def test_a_session_is_listed_and_downloaded_once(elsewhere):
    elsewhere.ctl("auth", "login")
    assert LABEL in elsewhere.ctl("session", "list", "-P", "MYPROJECT").out
    words = ("session", "download", "-E", SESSION, "--out", "data")
    elsewhere.ctl(*words)
    found = sorted((elsewhere.home / "data" / SESSION / "scans").rglob("*.dcm"))
    assert [path.read_bytes() for path in found[:2]] == [b"scan 1, image 0" * 100, b"scan 1, image 1" * 100]
    assert len(found) == 15
    assert [line for line in elsewhere.asked(*words) if "/files/" in line or "format=tar" in line] == []
    for _ in range(2):  # so that the record is written anew
        elsewhere.ctl(*words, "--force")
    elsewhere.ctl("scan", "download", "-E", SESSION, "--out", "zips", "--zip", "-s", "*")
    assert (elsewhere.home / "zips" / SESSION / "scans.zip").stat().st_size
    elsewhere.ctl("auth", "logout")


def test_a_session_and_a_resource_are_uploaded(elsewhere):
    for name, data in images().items():
        (elsewhere.home / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere.home / "images" / name).write_bytes(data)
    new = ("-P", "MYPROJECT", "-S", "SUB001", "-E", "NEW_MR")
    elsewhere.ctl("session", "upload", "images", *new, "--direct-archive")
    (session,) = [each for each in elsewhere.app.archive.experiments.values() if each.label == "NEW_MR"]
    assert [len(scan.resources[0].entries) for scan in session.scans] == [2]
    elsewhere.ctl("resource", "upload", "NOTES", "images", "-E", session.id)
    assert sorted(entry.path for entry in session.resources[0].entries) == ["1/IM0", "1/IM1"]


def test_a_session_of_the_prearchive_is_archived(elsewhere):
    elsewhere.receive("WAITING")
    (name,) = elsewhere.ctl("prearchive", "list", "-q").lines
    elsewhere.ctl("prearchive", "archive", name)
    assert [each for each in elsewhere.app.archive.experiments.values() if each.label == "WAITING"]


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("IM0001.dcm", "IM0001.dcm"),
        ("..\\..\\autostart", "..%5C..%5Cautostart"),
        ("c:stream", "c%3Astream"),
        ("what? 100%2F *", "what%3F 100%252F %2A"),
        ("ends.", "ends%2E"),
        ("ends ", "ends%20"),
        ("..", ".%2E"),
        ("NUL", "%4EUL"),
        ("com1.dcm", "%63om1.dcm"),
        ("comfort", "comfort"),
        ("a\x07b", "a%07b"),
    ],
)
def test_a_name_is_one_name_on_windows(name, escaped):
    """Escape what would be a path, a device or no name at all there."""
    assert windows_name(name) == escaped
    path = PureWindowsPath("out") / escaped
    assert path.parts == ("out", escaped)
    assert not getattr(ntpath, "isreserved", PureWindowsPath.is_reserved)(path)  # the latter until Python 3.12
