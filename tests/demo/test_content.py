"""Test the contents of the demo, and the demo as a program."""

import base64
import json
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest

from tests.support.bids_trees import TREES
from tests.support.demos import USER
from tests.support.manifest import manifest
from tests.support.mounting import SCRIPTS, run
from xnatfs.demo.archive.model import Archive
from xnatfs.demo.fixtures import phantom
from xnatfs.demo.fixtures.folder import publish
from xnatfs.demo.fixtures.lab import BIG_PROJECT, PASSWORDS, DemoArchive
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.releases import RELEASES, XNAT_1_8


@pytest.fixture(scope="module")
def archive() -> DemoArchive:
    return DemoArchive()


def contents(archive: Archive) -> dict[tuple[int, str], bytes]:
    return {
        (resource.id, entry.path): entry.content
        for resource, _ in archive.resources()
        for entry in resource.entries
        if isinstance(entry.content, bytes)
    }


def test_it_is_the_same_every_time_and_another_with_another_seed(archive):
    assert contents(DemoArchive()) == contents(archive)
    assert contents(DemoArchive(seed=1)) != contents(archive)


def test_it_is_at_most_60_megabytes(archive):
    assert sum(len(content) for content in contents(archive).values()) < 60e6


def test_manifests_have_one_entry_a_path(archive):
    for user in PASSWORDS:
        paths = [entry.path for entry in manifest(archive, user)]
        assert len(set(paths)) == len(paths)


def test_users_see_different_things(archive):
    seen = {user: len(manifest(archive, user)) for user in PASSWORDS}
    assert seen["demo-outsider"] < seen["demo-owner"] < seen["demo-admin"]


def test_the_big_project_has_fifty_sessions(archive):
    assert len(list(archive.experiments_in(BIG_PROJECT))) == 50


@pytest.mark.parametrize(
    "series",
    [
        phantom.Series("test", 1, "T1", slices=24),
        phantom.Series("test", 2, "CT", "CT", 64, 96, 12, 2.0, 4.0),
        phantom.Series("test", 3, "PET", "PT", 32, 32, 10, 4.0, 4.0),
        phantom.Series("test", 4, "moved", slices=8, shift=20.0, seed=7),
    ],
)
def test_a_series_becomes_the_volume_it_was_made_of(series, tmp_path):
    source, target = tmp_path / "dicom", tmp_path / "nifti"
    for made in (source, target):
        made.mkdir()
    for name, content in phantom.dicom_series(series, "P"):
        (source / name).write_bytes(content)
    done = run(SCRIPTS / "dcm2niix", "-b", "n", "-z", "n", "-f", "volume", "-o", target, source)
    assert done.returncode == 0, done.stdout
    (path,) = target.glob("*.nii")
    volume = nibabel.as_closest_canonical(nibabel.load(path))
    assert np.array_equal(np.asarray(volume.dataobj), to_the_right_and_to_the_front(series))
    steps = [series.spacing, series.spacing, series.thickness]
    # DICOM counts to the left and to the back, from half the field of view to the other side.
    corner = [-(series.columns / 2 - 1) * series.spacing, -(series.rows / 2 - 1) * series.spacing, 0]
    assert np.allclose(volume.affine, nibabel.affines.from_matvec(np.diag(steps), corner))


def to_the_right_and_to_the_front(series: phantom.Series) -> Any:
    """Return the pixels of a series in the order of a NIfTI: columns, rows, slices."""
    return np.transpose(voxels(series), (2, 1, 0))[::-1, ::-1]


def voxels(series: phantom.Series) -> Any:
    """Return the pixels of a series as an array of slices, rows and columns."""
    shape = (series.slices, series.rows, series.columns)
    return np.frombuffer(b"".join(phantom.pixels(series)), "<u2").reshape(shape)


def test_the_ball_moves(archive):
    one, other = (voxels(phantom.Series("t", 1, "BOLD", shift=shift)) for shift in (0.0, 20.0))
    centre = [np.argwhere(image > 800)[:, 2].mean() for image in (one, other)]
    assert centre[1] - centre[0] == pytest.approx(20, abs=2)


def test_a_nifti_says_what_its_series_is(tmp_path):
    series = phantom.Series("test", 1, "T1", slices=12)
    path = tmp_path / "t1.nii.gz"
    path.write_bytes(phantom.nifti(series))
    volume: Any = nibabel.load(path)
    assert volume.shape == (128, 128, 12)
    assert np.array_equal(np.asarray(volume.dataobj), to_the_right_and_to_the_front(series))
    assert json.loads(phantom.sidecar(series))["SeriesDescription"] == "T1"


def test_a_snapshot_is_a_picture():
    assert phantom.snapshot(phantom.Series("t", 1, "T1", slices=4)).startswith(b"\x89PNG\r\n\x1a\n")


# -- a directory as an archive -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scans = tmp_path / "data" / "P" / "S" / "E" / "scans"
    (scans / "1" / "DICOM" / "deep").mkdir(parents=True)
    (scans / "1" / "DICOM" / "deep" / "1.dcm").write_bytes(b"dicom")
    (scans / "2%2F3" / "NIFTI").mkdir(parents=True)
    (scans / "2%2F3" / "NIFTI" / "a.nii").write_bytes(b"nifti")
    notes = scans.parent / "resources" / "notes"
    notes.mkdir(parents=True)
    (notes / "n.txt").write_bytes(b"n")
    table = "id\ttype\tseries_description\tquality\txsitype\n1\tT1 & T2\tt1\tquestionable\txnat:mrScanData\n"
    (scans.parent / "scans.tsv").write_text(table)
    return tmp_path / "data"


def test_a_directory_is_published_with_what_its_table_tells(folder):
    archive = Archive()
    publish(archive, folder, {USER: "Owners"})
    (session,) = archive.experiments.values()
    one, other = session.scans
    assert (one.id, one.type, one.quality, one.series_description) == ("1", "T1 & T2", "questionable", "t1")
    assert (other.id, other.type, other.quality) == ("2/3", "", "usable")
    assert [entry.path for entry in one.resources[0].entries] == ["deep/1.dcm"]
    assert session.resources[0].label == "notes"


def test_what_is_no_archive_is_refused(tmp_path):
    with pytest.raises(OSError, match="holds no PROJECT/SUBJECT"):
        publish(Archive(), tmp_path / "nowhere", {})


# -- the program -------------------------------------------------------------------------------------------------


def started(*options: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xnatfs.demo", *(str(option) for option in options)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_it_serves_on_a_socket_until_its_input_ends(folder, tmp_path):
    log = tmp_path / "requests.jsonl"
    with started("--only-data", "--data", folder, "--request-log", log, "--until-eof", "--open") as process:
        with httpx.Client(base_url=url_of(process)) as client:
            client.post("/data/JSESSION", auth=(USER, PASSWORDS[USER]))
            listing = client.get("/data/projects?format=json").json()["ResultSet"]["Result"]
            assert [row["ID"] for row in listing] == ["P"]
            files = client.get("/data/experiments/DEMO_E00001/files?all=true").json()["ResultSet"]["Result"]
            content = client.get(next(row["URI"] for row in files if row["Name"] == "1.dcm"))
            assert content.content == b"dicom"
            assert client.head("/data/projects").headers["transfer-encoding"] == "chunked"
        out, errors = process.communicate(timeout=30)  # which closes its input
        assert (process.returncode, out, errors) == (0, "", "")
    assert json.loads(log.read_text().splitlines()[1])["path"] == "/data/projects"


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_it_answers_as_the_release_that_is_asked_for(folder, release):
    chosen = [] if release is XNAT_1_8 else ["--xnat", release.name]
    with started("--only-data", "--data", folder, "--until-eof", "--open", *chosen) as process:
        with httpx.Client(base_url=url_of(process)) as client:
            assert client.get("/data/projects").headers["server"] == release.server
            assert (client.get("/xapi/siteConfig/buildInfo").status_code == 200) == release.has_xapi
        process.communicate(timeout=30)


def test_a_signal_ends_it(folder):
    with started("--only-data", "--data", folder) as process:
        assert url_of(process).startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    "options", [["--port", "much"], ["--nonsense"], ["--data", "/nowhere"], ["--port", "99999999"], ["--xnat", "1.7"]]
)
def test_wrong_options_are_one_line(options):
    with started(*options) as process:
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors.count("\n")) == (2, "", 1), errors
    assert "Traceback" not in errors


def test_schemas_are_served_under_their_names(tmp_path):
    (tmp_path / "xnat.xml").write_text("<schema/>")
    (tmp_path / "notes.txt").write_text("not one")
    app = DemoXnat(DemoArchive(empty=True), schemas=tmp_path)
    basic = {"authorization": "Basic " + base64.b64encode(b"demo-owner:owner-of-the-demo").decode()}
    assert app.handle("GET", "/xapi/schemas", "", basic, b"").body == b'["xnat"]'
    assert app.handle("GET", "/xapi/schemas/xnat", "", basic, b"").body == b"<schema/>"
    assert app.handle("GET", "/xapi/schemas/notes", "", basic, b"").status == 404


def test_a_catalogue_of_dicom_has_the_order_of_a_hash_and_no_other_has():
    archive = Archive()
    project = archive.project("P", "P")
    found = {}
    for label in ("DICOM", "NIFTI"):
        resource = archive.resource(project.resources, label)
        for number in range(20):
            archive.file(resource, f"{number:02}", b"x")
        found[label] = [entry.path for entry in resource.listed()]
    assert found["NIFTI"] == sorted(found["NIFTI"])
    assert found["DICOM"] != found["NIFTI"]
    assert sorted(found["DICOM"]) == found["NIFTI"]
    beside = sum(abs(int(a) - int(b)) <= 2 for a, b in pairwise(found["DICOM"]))
    assert beside < 10, "neighbours by name are none in there"


@pytest.mark.parametrize(
    ("options", "projects"),
    [
        ([], {"BRAINS", "CLOSED", "OPEN"}),
        (
            ["--fixtures"],
            {"BRAINS", "CLOSED", "FAULTS", "FIFTY", "OPEN", "POOL", "UGLY", "BIDS_DONORS", "BIDS_TREES", *TREES},
        ),
    ],
    ids=["newcomers", "fixtures"],
)
def test_newcomers_see_an_archive_that_looks_like_a_lab(options, projects):
    with started("--until-eof", *options) as process:
        with httpx.Client(base_url=url_of(process)) as client:
            client.post("/data/JSESSION", auth=(USER, PASSWORDS[USER]))
            listing = client.get("/data/projects?format=json").json()["ResultSet"]["Result"]
        process.communicate(timeout=30)
    assert {row["ID"] for row in listing} == projects


def test_the_archive_of_newcomers_is_that_of_the_tests_without_its_fixtures():
    shown = {entry.path for entry in manifest(DemoArchive(fixtures=False), USER)}
    both = {entry.path for entry in manifest(DemoArchive(), USER)}
    assert shown <= both
    assert {path for path in both if path[:2] == ("projects", "BRAINS")} <= shown
