"""Test scripts/stress: two minutes of it, that it finds planted errors, and each of its verdicts on synthetic reads."""

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from scripts.benchmarks.rig import processes
from scripts.stressing import archive, contents, holding, programs
from scripts.stressing.faults import FILE, IMAGE, LIST, TAR, WITH_DIGEST, errnos, steps
from scripts.stressing.programs import Event
from scripts.stressing.run import Outcome
from scripts.stressing.verdict import (
    REVALIDATE,
    SLACK,
    TTL,
    Met,
    Truth,
    bytes_right,
    cached_stats,
    errors_caused,
    sessions_left,
)
from scripts.stressing.watch import Sample
from tests.faults import Step
from tests.faults.messages import Head
from tests.support.mounting import mounted_file_system

ROOT = Path(__file__).parents[2]
STRESS = ROOT / "scripts" / "stress"
LIMIT = 400

# The daemon does not close some of its cached files. Others it must: it would wait for the end of a pipe.
LEAKY = """\
import os, sys

if "mount" in sys.orig_argv and "--report-fd" in sys.orig_argv:
    close, calls = os.close, 0

    def leaky(descriptor):
        global calls
        kept = "/blobs/" in os.readlink(f"/proc/self/fd/{descriptor}")
        calls += kept
        if not (kept and calls % 10 == 1):
            close(descriptor)

    os.close = leaky
"""
# Of files without a digest: nothing but a comparison can tell. Without archives each comes singly, and is another.
OTHER_BYTE = """
- {match: "GET .*/part-[0-9]*.raw$", fault: corrupt, at: 5000}
- {match: "GET .*format=tar", fault: status, status: 404}
"""


def stress(*options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [STRESS, *options], env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=LIMIT
    )


@pytest.mark.fuse
def test_two_minutes_of_it(tmp_path):
    done = stress("--minutes", "2", "--local", "3", "--directory", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["broken"] == []
    assert summary["programs"] == ["cp", "dd", "find", "killed", "mmap", "stat", "tar"]
    # A tenth of what a quiet machine reads; and more than the cache holds.
    assert summary["bytes"] > 300e6
    assert summary["evicted"] > 0
    assert summary["faults"] > 30
    assert summary["changes"] > 30


@pytest.mark.fuse
def test_a_wrong_byte_and_a_leaked_descriptor_are_found(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(LEAKY)
    options = ["--minutes", "0.08", "--readers", "6", "--sessions", "1", "--faults", "0", "--local", "0"]
    done = stress(
        *options, "--plant", OTHER_BYTE, "--directory", str(tmp_path / "run"), env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 1, done.stderr
    broken = json.loads((tmp_path / "run" / "summary.json").read_text())["broken"]
    assert "no leaked descriptor" in broken
    assert "after the faults, every file can be read" in broken
    assert "cached files are correct, and there are no others" in broken
    assert "byte 5000 is not that of version" in done.stdout


@pytest.mark.fuse
def test_interrupted_it_leaves_nothing(tmp_path):
    directory = tmp_path / "run"
    words = [str(STRESS), "--minutes", "5", "--readers", "4", "--sessions", "1", "--directory", str(directory)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "readers for" in line:
                break
        time.sleep(1)  # somewhere in the middle of it
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()
        assert running.wait(60) == 130, said
    assert mounted_file_system(directory / "mnt") == ""
    left = [each.arguments for each in processes() if any(f"{directory}/" in word for word in each.arguments)]
    assert left == []
    assert "Traceback" not in said


# -- contents ------------------------------------------------------------------------------------------------------


def test_bytes_are_told_from_those_of_any_other_place_version_and_file():
    path, size = "S01/E01/scans/4/RAW/kspace.dat", 5 * contents.BLOCK + 7
    made = contents.Made(path, 3, size)
    data = b"".join(made.pieces(0, size))
    assert len(data) == size
    assert b"".join(made.pieces(100, 70_000)) == data[100:70_100]
    contents.check(path, data, 0, 3)
    contents.check(path, data[100:70_100], 100, 3)
    assert contents.version_in(data, 0) == contents.version_in(data[100:70_100], 100) == 3
    assert contents.version_in(data[1:200], 1) is None
    for other, offset, version in ((path, 0, 4), (path, contents.BLOCK, 3), (path + "x", 0, 3)):
        with pytest.raises(contents.Wrong):
            contents.check(other, data, offset, version)
    for place in (0, 5000, size - 1):
        bad = bytearray(data)
        bad[place] ^= 1
        with pytest.raises(contents.Wrong, match=f"byte {place} is not"):
            contents.check(path, bytes(bad), 0, 3)


def test_no_two_files_have_the_same_bytes():
    numbers = {contents.number(path) for path in archive.files(8)}
    assert len(numbers) == len(archive.files(8))


def test_working_set_is_two_gigabytes_and_versions_change_both_ways():
    files = archive.files(8)
    assert 1.9e9 < sum(file.base for file in files.values()) < 2.1e9
    file = files["S01/E01/scans/4/RAW/kspace.dat"]
    assert file.size(0) == file.size(1) != file.size(2)
    assert (file.resource, file.inner, file.session) == ("S01/E01/scans/4/RAW", "kspace.dat", "S01/E01")
    nested = files["S02/E02/resources/notes/nested/deep/er/values.csv"]
    assert (nested.resource, nested.inner) == ("S02/E02/resources/notes", "nested/deep/er/values.csv")


def test_the_last_block_of_every_file_says_what_it_is_of():
    """Identify the last block when it is read alone: 14 right bytes have been taken for wrong."""
    for file in archive.files(8).values():
        last = max(0, file.base - 1) // contents.BLOCK * contents.BLOCK
        data = contents.piece(contents.number(file.path), 3, last, file.base) if file.base else b""
        assert contents.version_in(data, last) == (3 if file.base else None), file.path


# -- faults --------------------------------------------------------------------------------------------------------


def test_faults_are_so_many_of_each_kind_of_answers():
    made = [Step(**{key.replace("-", "_"): value for key, value in step.items()}) for step in steps(0.05)]
    base = "/data/experiments/E/resources/1/files"
    for target in ("/data/experiments/E/scans?format=json", f"{base}?format=tar", f"{base}/a.dcm"):
        met = [step.chance for step in made if step.fits(Head(f"GET {target} HTTP/1.1"))]
        assert 0.045 < sum(met) < 0.055
    assert steps(0.0, '[{match: ".*", fault: corrupt}]')[0] == {"match": ".*", "fault": "corrupt"}


def test_no_fault_is_one_that_a_client_cannot_see():
    """Change no byte and no length without a digest, nor where bytes are served before all are verified."""
    for step in steps(1.0):
        if step["fault"] in ("corrupt", "resized", "changed", "short-length"):
            assert not Step(**step).fits(Head("GET /data/experiments/E/resources/1/files/part-0001.raw HTTP/1.1"))
            assert not Step(**step).fits(Head("GET /data/experiments/E/resources/1/files?format=tar HTTP/1.1"))
            assert not Step(**step).fits(Head("GET /data/experiments/E/resources/1/files/volume.nii HTTP/1.1"))
    assert {LIST, TAR, FILE, IMAGE, WITH_DIGEST} <= {step["match"] for step in steps(1.0)}
    assert errnos("slow") == frozenset()
    assert errnos("status 403") == {"EACCES"}


# -- verdicts ------------------------------------------------------------------------------------------------------

PLAIN, DIGESTED = "S01/E01/scans/2/RAW/part-0001.raw", "S01/E01/scans/3/NIFTI/volume.nii"


def truth(made: dict[str, list[float]] | None = None, met: list[Met] | None = None) -> Truth:
    return Truth(archive.files(1), made or {}, met or [])


def read(path: str, version: int, began: float, ended: float = 0.0) -> Event:
    return Event("cat", path, began, ended or began + 1, version, 100)


@pytest.mark.parametrize(("path", "longest"), [(DIGESTED, TTL + SLACK), (PLAIN, TTL + REVALIDATE + SLACK)])
def test_a_version_may_be_read_for_as_long_as_the_mount_says(path, longest):
    known = truth({path: [100.0, 200.0]})
    assert known.wrong(read(path, 0, 50.0)) == ""
    assert known.wrong(read(path, 0, 100.0 + longest - 1)) == ""
    assert "after it was replaced" in known.wrong(read(path, 0, 100.0 + longest + 1))
    assert known.wrong(read(path, 2, 1000.0)) == ""
    assert "before it was made" in known.wrong(read(path, 2, 100.0))
    assert "never made" in known.wrong(read(path, 3, 1000.0))


def test_what_a_program_found_wrong_is_wrong():
    wrong = Event("cp", PLAIN, 1.0, 2.0, wrong="a byte")
    found = bytes_right(truth(), [read(PLAIN, 0, 1.0), wrong])
    assert (found.holds, "a byte" in found.said) == (False, True)
    assert bytes_right(truth(), [read(PLAIN, 0, 1.0)]).holds


def error(errno: str, path: str = PLAIN, began: float = 100.0) -> Event:
    return Event("cat", path, began, began + 1, error=errno)


@pytest.mark.parametrize(
    ("met", "caused"),
    [
        (Met(99.0, "corrupt", frozenset({"EIO"}), path=PLAIN), True),
        (Met(99.0, "corrupt", frozenset({"EIO"}), path=DIGESTED), False),  # another file
        (Met(99.0, "status 403", frozenset({"EACCES"}), path=PLAIN), False),  # another errno
        (Met(105.0, "corrupt", frozenset({"EIO"}), path=PLAIN), False),  # later
        (Met(20.0, "corrupt", frozenset({"EIO"}), path=PLAIN), False),  # long before
        (Met(99.0, "html", frozenset({"EIO"}), sessions=frozenset({"S01/E01"})), True),
        (Met(99.0, "html", frozenset({"EIO"}), sessions=frozenset({"S01/E0"})), False),
        (Met(99.0, "restart", frozenset({"EIO"})), True),
    ],
)
def test_an_error_needs_a_fault_of_its_own(met, caused):
    found, errors = errors_caused(truth(met=[met]), [error("EIO")])
    assert found.holds is caused
    assert errors == {("EIO", met.fault if caused else ""): 1}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("tar: S01/a: File removed before we read it", "ENOENT"),
        ("tar: S01/a: file changed as we read it", "CHANGED"),
        ("tar: S01/a: Cannot open: Stale file handle", "ESTALE"),
        ("tar: S01/a: File shrank by 4096 bytes; padding with zeros", "SHRANK"),
    ],
)
def test_what_tar_says_is_an_errno_or_a_change(line, error):
    event = programs._error(cast(programs.Reader, SimpleNamespace(top=Path("/mnt"))), "tar", line, 1.0, 2.0, "S01")
    assert event is not None
    assert (event.path, event.error, event.wrong) == ("S01/a", error, "")


def test_an_error_in_the_middle_of_a_read_is_what_shrinks_a_file_for_tar():
    for met, caused in (
        (Met(99.0, "cut", frozenset({"EIO"}), path=PLAIN), True),
        (Met(99.0, "slow", frozenset(), path=PLAIN), False),
        (Met(99.0, "cut", frozenset({"EIO"}), path=DIGESTED), False),
        (Met(99.0, "html", frozenset({"EIO"}), sessions=frozenset({"S01/E01"})), False),  # it is open already
        (Met(99.0, "restart", frozenset({"EIO"})), True),
    ):
        assert errors_caused(truth(met=[met]), [error("SHRANK")])[0].holds is caused
        assert not errors_caused(truth(met=[met]), [error("CHANGED")])[0].holds


@pytest.mark.parametrize(("path", "stale"), [(PLAIN, True), ("", False)])
def test_a_file_that_is_gone_is_stale_to_its_readers_only(path, stale):
    met = Met(
        99.0, "status 404", errnos("status 404"), path=path, sessions=frozenset() if path else frozenset({"S01/E01"})
    )
    assert errors_caused(truth(met=[met]), [error("ENOENT")])[0].holds
    assert errors_caused(truth(met=[met]), [error("ESTALE")])[0].holds is stale


@pytest.mark.parametrize(
    ("spoilt", "said", "right"), [(0, 0, True), (5000, 5000, True), (5000, 4000, False), (1, 0, False)]
)
def test_of_a_file_that_shrank_all_before_is_compared(tmp_path, spoilt, said, right):
    """Accept tar's report for the end only, where it puts zeros."""
    file = archive.files(1)[PLAIN]
    data = contents.piece(contents.number(PLAIN), 0, 0, file.size(0))
    tarred = tmp_path / "made.tar"
    with tarfile.open(tarred, "w") as made:
        member = tarfile.TarInfo(PLAIN)
        member.size = len(data)
        made.addfile(member, io.BytesIO(data[: len(data) - spoilt] + bytes(spoilt)))
    program = tmp_path / "tar"
    told = f"echo 'tar: {PLAIN}: File shrank by {said} bytes; padding with zeros' >&2; exit 1" if said else "exit 0"
    program.write_text(f"#!/bin/sh\ncat {tarred}\n{told}\n")
    program.chmod(0o755)
    seen: list[Event] = []
    reader = programs.Reader(tmp_path, 1, "1", tmp_path, seen.append)
    reader._by_resource = {resource: [file] if resource == file.resource else [] for resource in reader._by_resource}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "ENV", {**programs.ENV, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
        patch.setattr(reader, "resource", lambda *names: file.resource)
        patch.setattr(reader.chance, "random", lambda: 1.0)
        programs.tar(reader)
    assert (not [event for event in seen if event.wrong]) is right
    assert [event.bytes for event in seen if not event.error and not event.wrong] == [len(data) - said] * right


def test_a_file_that_is_replaced_may_be_an_error_for_a_while():
    assert errors_caused(truth({PLAIN: [95.0]}), [error("ESTALE")])[0].holds
    assert not errors_caused(truth({PLAIN: [95.0]}), [error("EACCES")])[0].holds
    assert not errors_caused(truth({DIGESTED: [95.0]}), [error("ESTALE")])[0].holds
    assert not errors_caused(truth({PLAIN: [20.0]}), [error("ESTALE")])[0].holds


def test_journals_tell_which_file_a_request_was_for(tmp_path):
    server, proxy = tmp_path / "server", tmp_path / "proxy"
    numbers = {"S01/E01/resources/notes": 7, "S01/E01/scans/2/RAW": 8}
    lines = [
        {"what": "resources", "at": 0.0, "numbers": numbers, "sessions": {"S01/E01": "E1", "STILL": "E9"}},
        {"what": "made", "at": 5.0, "path": PLAIN, "version": 1, "size": 3},
        {"what": "listed", "at": 6.0, "path": "/data/experiments/E1/scans"},
        {"what": "listed", "at": 7.0, "path": "/data/experiments/E9/scans"},
        {"what": "expired", "at": 8.0, "count": 1},
    ]
    server.write_text("".join(json.dumps(line) + "\n" for line in lines))
    targets = [
        "/data/experiments/E1/scans/2/resources/8/files/part-0001.raw",
        "/data/experiments/E1/resources/7/files/read%20me.txt",
        "/data/experiments/E1/resources/8/files?format=tar",
        "/data/experiments/E1/resources/7/files?format=tar",
        "/data/experiments/E1/files?all=true&format=json",
        "/data/projects?format=json",
    ]
    faults = [(1.0, "html", each) for each in targets]
    faults += [(2.0, "status 401", targets[2]), (3.0, "restart", targets[-1])]  # that of an archive is silent
    proxy.write_text(
        "".join(json.dumps({"what": "met", "at": at, "fault": f, "path": path}) + "\n" for at, f, path in faults)
    )
    found = Truth.read(archive.files(1), server, proxy)
    assert [(met.path, set(met.sessions)) for met in found.met] == [
        (PLAIN, set()),
        ("S01/E01/resources/notes/read me.txt", set()),
        ("S01/E01/resources/notes/100% sure.txt", set()),  # comes out of the archive only
        ("", {"S01/E01"}),
        ("", set()),
        ("", set()),
    ]
    assert (found.made, found.expired, found.silent) == ({PLAIN: [5.0]}, [8.0], 2)
    assert found.given_up == [2.0, 3.0]
    assert found.listed == [7.0]


@pytest.mark.parametrize(
    ("alive", "after", "left", "holds"),
    [(1, 0, 0, True), (0, 0, 0, True), (2, 1, 0, False), (1, 1, 0, False), (2, 1, 1, True), (3, 2, 1, False)],
)
def test_sessions_that_stay_on_the_server_are_told(alive, after, left, holds):
    assert sessions_left(alive, after, left).holds is holds


def test_a_session_may_stay_where_a_client_was_told_that_it_is_dead():
    known = truth()
    known.given_up = [5.0, 15.0, 16.0]
    assert known.left_behind() == 3
    known.expired = [10.0]
    assert known.left_behind() == 2


def test_stat_is_of_cached_entries_where_no_listing_was_under_way():
    known = truth()
    known.listed = [10.5]
    seen = [Event("stat", "x", began, began + 0.1) for began in (9.0, 10.45, 12.0)]
    assert cached_stats(known, [*seen, read(PLAIN, 0, 13.0)]) == pytest.approx([0.1, 0.1])


# -- what is held --------------------------------------------------------------------------------------------------

CALM = dict.fromkeys((*holding.ZERO, "partials", "idle"), 0)


def test_counters_that_are_not_zero_are_told():
    assert holding.counters_zero(CALM, 0).holds
    assert holding.counters_zero({**CALM, "partials": 2, "idle": 2}, 0).holds
    for name in holding.ZERO:
        found = holding.counters_zero({**CALM, name: 1}, 0)
        assert (found.holds, f"{name} 1" in found.said) == (False, True)
    assert not holding.counters_zero({**CALM, "partials": 1}, 0).holds
    assert not holding.counters_zero({**CALM, "partials": 5, "idle": 5}, 0).holds
    assert not holding.counters_zero(CALM, 1).holds


@pytest.mark.parametrize(
    ("more", "children", "holds"),
    [
        ([], 0, True),
        (["socket:[7]"] * 10, 0, True),
        (["socket:[7]"] * 11, 0, False),
        (["socket:[7]"] * 11 + ["anon_inode:[pidfd]"], 1, True),
        (["/c/site/blobs/ab/abcd"], 0, False),
        (["/c/site/partial/1"] * 4, 0, True),
        (["/c/site/partial/1"] * 5, 0, False),
        (["pipe:[7]"], 0, False),
    ],
)
def test_descriptors_that_stay_are_told(more, children, holds):
    before = ["socket:[1]", "pipe:[2]", "anon_inode:[eventpoll]"]
    assert holding.descriptors_back(before, [*before, *more], children).holds is holds


def sample(resident: int, daemon: int = 0, on_disk: int = 0, open_bytes: int = 0) -> Sample:
    state = {"limit": 200, "open_bytes": open_bytes}
    return Sample(0.0, resident, daemon or resident, 0, 0, 0, on_disk, 0, state)


def test_memory_that_grows_is_told():
    half = holding.ENOUGH // 2
    flat, more = [sample(100 * holding.MB)] * half, [sample(130 * holding.MB)] * half
    assert holding.memory_bounded((flat + more)[1:-1]).holds, "too short to tell"
    assert holding.memory_bounded(flat + flat).holds
    assert holding.memory_bounded(more + flat).holds
    assert not holding.memory_bounded(flat + more).holds
    assert not holding.memory_bounded([sample(holding.DAEMON_MOST + 1)] * 12).holds
    assert not holding.memory_bounded([sample(150 * holding.MB, daemon=100 * holding.MB)] * 12).holds  # no process
    assert not holding.memory_bounded([]).holds


def test_directory_above_its_limit_is_told():
    most = 200 + holding.UNCOUNTED
    assert holding.directory_bounded([sample(1, on_disk=most)]).holds
    assert not holding.directory_bounded([sample(1, on_disk=most + 1)]).holds
    assert holding.directory_bounded([sample(1, on_disk=most + 50, open_bytes=50)]).holds
    assert not holding.directory_bounded([]).holds


def test_a_log_with_a_traceback_is_told(tmp_path):
    log = tmp_path / "log"
    log.write_text("2026-01-01 INFO xnatfs: fine\n2026-01-01 WARNING xnatfs: a server\n")
    assert holding.log_clean(log).holds
    log.write_text("2026-01-01 ERROR xnatfs: read failed\nTraceback (most recent call last):\n")
    assert not holding.log_clean(log).holds


def test_one_that_does_not_hold_is_enough():
    fine, not_fine = holding.tasks_back(10, 12), holding.tasks_back(10, 99)
    empty: dict[str, object] = dict.fromkeys(("seen", "beside", "samples"), [])
    facts = {**empty, "options": None, "truth": None, "server": {}, "state": {}}
    assert Outcome(findings=[fine, fine], **facts).holds  # type: ignore[arg-type]
    assert not Outcome(findings=[fine, not_fine], **facts).holds  # type: ignore[arg-type]
