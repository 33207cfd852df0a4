"""Let programs that read BIDS look at the BIDS view: the acceptance cases, against trees written down by hand.

The order of the tests matters to what they count: trees are listed before a file is read. A mount that counts the
requests of one program is its own.
"""

import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import pytest

from tests.support.bids_programs import HAS_NIWORKFLOWS, collect, errors, index, validate
from tests.support.bids_trees import TOP, TREES, expected_tree
from tests.support.demos import USER, Demo, serving
from tests.support.mounting import SCRIPTS, Mount, mounting, run
from tests.support.real_data import PROJECT, WITHOUT, sample_sessions
from xnatfs.demo.archive.model import Archive, Home, Resource
from xnatfs.demo.fixtures.bids import REST, SUBJECTS, publish_bids
from xnatfs.demo.fixtures.lab import DemoArchive
from xnatfs.demo.server.app import DemoXnat, Record
from xnatfs.demo.server.releases import RELEASES
from xnatfs.demo.server.socket import serve

pytestmark = pytest.mark.fuse

# Requests for a session that no other one shares: the lists of its scans, of their files, and one more.
SESSION_REQUESTS = 3
# What the view shows of the real session, and the file that each image is. Echoes are in the order of their times.
REAL_IMAGES = {
    "run-01_T1w": "2/NIFTI/2_T1_SPIN_ECHO",
    "run-02_T1w": "8/NIFTI/8_T1_SPIN_ECHO",
    "run-03_T1w": "10/NIFTI/10_T1_SPIN_ECHO",
    "PDT2": "3/NIFTI/3_SCAN_1_T2_SCAN_2_PD",
    "acq-3DSPGR_run-01_T1w": "5/NIFTI/5_3D_SPGR_VOLUME",
    "acq-3DSPGR_run-02_T1w": "6/NIFTI/6_3D_SPGR_VOLUME",
    "acq-3DSPGR_run-03_T1w": "7/NIFTI/7_3D_SPGR_VOLUME",
    "echo-1_MEGRE": "9/NIFTI/9_HEME_SUSEPTIBILITY_e1",  # 9 ms
    "echo-2_MEGRE": "9/NIFTI/9_HEME_SUSEPTIBILITY_e1a",  # 20 ms
    "echo-3_MEGRE": "9/NIFTI/9_HEME_SUSEPTIBILITY_e2a",  # 40 ms
    "echo-4_MEGRE": "9/NIFTI/9_HEME_SUSEPTIBILITY_e2",  # 60 ms
    "task-rest_bold": "11/NIFTI/11_rest",
}


@contextmanager
def bids_demo(**site: Any) -> Iterator[Demo]:
    archive = DemoArchive(empty=True)
    publish_bids(archive, {USER: "Owners"})
    app = DemoXnat(archive, **site)
    with serve(app) as url:
        yield Demo(url, app, archive)


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with bids_demo() as served:
        yield served


@pytest.fixture(scope="module")
def copies(mount: Mount, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the view of each project out of the mount."""
    target = tmp_path_factory.mktemp("copies")
    for project in TREES:
        done = run("cp", "--recursive", mount.path / "bids" / project, target)
        assert (done.returncode, done.stderr) == (0, "")
    return target


def listed(dataset: Path) -> set[str]:
    """Return the paths of all files, as `ls` and `find` see them."""
    assert run("ls", "-lR", dataset).returncode == 0
    done = run("find", dataset, "-type", "f", "-printf", "%P\n")
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.splitlines())


def bodies(records: list[Record]) -> list[str]:
    """Return the requests for the content of files."""
    paths = [f"{r.method} {r.path}?{r.query.get('format', '')}" for r in records]
    return [path for path in paths if re.search(r"GET .*/files/[^?]+\?|\?(tar|zip)", path)]


def has_image(archive: Archive, request: str) -> bool:
    """Return true for a request that fetches images: one by its name, or all files of a resource."""
    if request.endswith("?"):
        return ".nii" in request
    numbers = re.search(r"/resources/([\d,]+)/files", request)
    found = [archive.resource_by_id(int(number)) for number in numbers[1].split(",")] if numbers else []
    return not numbers or any(".nii" in entry.path for pair in found if pair for entry in pair[0].entries)


def table(dataset: Path, path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((dataset / path).read_text()), delimiter="\t"))


def left_out(dataset: Path) -> list[dict[str, str]]:
    return table(dataset, "sourcedata/xnatfs/left-out.tsv")


# -- the trees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", TREES)
def test_the_tree_is_the_expected_one_and_listing_it_reads_no_image(demo, mount, project):
    expected = expected_tree(demo.archive, project)
    demo.forget_requests()
    found = listed(mount.path / "bids" / project)
    assert found == {*expected.copies, *expected.tables, *expected.sidecars}
    assert [line for line in bodies(demo.requests()) if has_image(demo.archive, line)] == []
    ids = {session.id for session in expected.sessions.values()}
    own = [r for r in demo.requests() if ids & set(r.path.split("/")) and not bodies([r])]
    assert len(own) <= SESSION_REQUESTS * len(ids), [(r.path, r.query) for r in own]


def test_sidecars_are_read_for_names_that_depend_on_them_only(demo, mount):
    """The first listing of trees of plain scans has read nothing, however many sessions there are."""
    plain = {"BIDS_CONVERTED", "BIDS_PLAIN", "BIDS_PLAIN_SITE", "BIDS_IDENTITY", "BIDS_HUNDRED", "BIDS_REPROIN"}
    with bids_demo() as fresh:
        with mounting(fresh.url, mount.path.parent / "fresh", **fresh.login) as cold:
            for project in plain:
                listed(cold.path / "bids" / project)
        assert bodies(fresh.requests()) == []
        assert fresh.logins() == 2  # the mount's own, and none after it


@pytest.mark.parametrize("project", TREES)
def test_images_and_sidecars_are_the_resources_byte_for_byte(demo, mount, project):
    expected = expected_tree(demo.archive, project)
    walked = {"/".join(entry["path"]): entry for entry in mount.walk(f"bids/{project}", read=True)}
    for path, entry in expected.copies.items():
        assert (walked[path]["md5"], walked[path]["size"]) == (entry.digest, int(entry.size)), path


def leave_out_images(resource: Resource, home: Home) -> bool:
    return resource.label == "NIFTI"


@pytest.mark.parametrize(
    "site",
    [
        {"release": RELEASES["1.6"]},
        {"release": RELEASES["1.11"]},
        {"joins": "ignored"},
        {"joins": "refused", "digests": False},
        {"left_out": leave_out_images},
    ],
    ids=["XNAT 1.6", "XNAT 1.11", "no joins", "joins refused", "short lists"],
)
def test_trees_are_the_same_on_servers_that_answer_otherwise(tmp_path, site):
    """Test other orders, fewer digests, lists of several resources that are short, and lists that cannot be joined.

    Without joins, subjects with DICOM only are not known as such before they are listed.
    """
    with bids_demo(**site) as own, mounting(own.url, tmp_path, **own.login) as mounted:
        for project in set(TREES) - {"BIDS_HUNDRED"}:
            expected = expected_tree(own.archive, project)
            found = listed(mounted.path / "bids" / project)
            if "joins" in site:
                found = {path for path in found if not path.startswith("sub-DICOMONLY/")}
            assert found == {*expected.copies, *expected.tables, *expected.sidecars}


def test_a_map_of_the_project_wins_over_the_sites_and_renames_one_series_only(mount):
    plain, site = (listed(mount.path / "bids" / project) for project in ("BIDS_PLAIN", "BIDS_PLAIN_SITE"))
    assert {path.replace("acq-3DSPGR", "acq-spgr") for path in site} == plain
    assert len(plain - site) == 6  # three runs, with sidecars


# -- the validator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", sorted(set(TREES) - {"BIDS_HUNDRED"}))
def test_the_validator_finds_no_error_on_the_mount_and_the_same_on_a_copy(mount, copies, project):
    issues = validate(mount.path / "bids" / project)
    assert errors(issues) == {}
    assert validate(copies / project) == issues


def test_without_the_generated_sidecars_the_validator_finds_errors(demo, copies, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(copies / "BIDS_FIELDMAPS", bare)
    for path in expected_tree(demo.archive, "BIDS_FIELDMAPS").sidecars:
        (bare / path).unlink()
    assert errors(validate(bare)) == {
        ("SIDECAR_KEY_REQUIRED", "TaskName"): 4,
        ("SIDECAR_KEY_REQUIRED", "EchoTime1"): 3,
        ("SIDECAR_KEY_REQUIRED", "EchoTime2"): 3,
        ("ECHOTIME1_2_DIFFERENCE_UNREASONABLE", ""): 3,
    }


# -- what is generated ---------------------------------------------------------------------------------------------


def test_every_participant_has_a_folder_and_every_folder_a_row(mount):
    for project in TREES:
        dataset = mount.path / "bids" / project
        folders = {path.name for path in dataset.iterdir() if path.name.startswith("sub-")}
        assert {row["participant_id"] for row in table(dataset, "participants.tsv")} == folders
        for subject in folders:
            sessions = {row["session_id"] for row in table(dataset, f"{subject}/{subject}_sessions.tsv")}
            assert sessions == {path.name for path in (dataset / subject).iterdir() if path.is_dir()}


def test_scans_tables_name_each_image_once_with_where_it_is_from(demo, mount):
    for project in TREES:
        expected = expected_tree(demo.archive, project)
        dataset = mount.path / "bids" / project
        for folder, session in list(expected.sessions.items())[:5]:
            images = {path for path in expected.copies if path.startswith(f"{folder}/") and path.endswith(".nii.gz")}
            if images:
                rows = table(dataset, f"{folder}/{folder.replace('/', '_')}_scans.tsv")
                assert sorted(f"{folder}/{row['filename']}" for row in rows) == sorted(images)
                assert {row["xnat_session_id"] for row in rows} == {session.id}


def generated(dataset: Path, subject: str, name: str) -> dict[str, object]:
    folder = f"sub-{subject}/ses-{subject}MR1"
    found: dict[str, object] = json.loads((dataset / folder / f"{folder.replace('/', '_')}_{name}.json").read_text())
    return found


def test_a_field_map_states_its_echo_times_and_what_it_is_for(mount):
    dataset = mount.path / "bids" / "BIDS_FIELDMAPS"
    phase = generated(dataset, "FM1", "phasediff")
    target = "sub-FM1/ses-FM1MR1/func/sub-FM1_ses-FM1MR1_task-rest_bold.nii.gz"
    assert (phase["EchoTime1"], phase["EchoTime2"]) == (0.00492, 0.00738)
    assert phase["IntendedFor"] == [f"bids::{target}"]
    bold = generated(dataset, "FM1", "task-rest_bold")
    assert bold["TaskName"] == "rest"
    assert bold["B0FieldSource"] == phase["B0FieldIdentifier"]


def test_field_maps_of_two_directions_are_for_what_follows_both(mount):
    dataset = mount.path / "bids" / "BIDS_FIELDMAPS"
    target = "bids::sub-FM3/ses-FM3MR1/func/sub-FM3_ses-FM3MR1_task-rest_bold.nii.gz"
    maps = [generated(dataset, "FM3", f"dir-{direction}_epi") for direction in ("AP", "PA")]
    assert [each["IntendedFor"] for each in maps] == [[target], [target]]
    assert maps[0]["B0FieldIdentifier"] == maps[1]["B0FieldIdentifier"]


def test_every_target_of_a_field_map_exists(mount):
    targets = 0
    for project in TREES:
        dataset = mount.path / "bids" / project
        for path in dataset.rglob("sub-*.json"):
            for target in json.loads(path.read_text()).get("IntendedFor", []):
                assert (dataset / target.removeprefix("bids::")).is_file(), (path, target)
                targets += 1
    assert targets >= 3


def test_two_field_maps_before_one_run_are_for_nothing_and_reported(mount):
    dataset = mount.path / "bids" / "BIDS_FIELDMAPS"
    for name in ("run-01_phasediff", "run-02_phasediff"):
        fields = generated(dataset, "FM2", name)
        assert (fields["EchoTime1"], fields["EchoTime2"]) == (0.00492, 0.00738)
        assert "IntendedFor" not in fields
    assert "B0FieldSource" not in generated(dataset, "FM2", "task-rest_bold")
    assert [row for row in left_out(dataset) if row["subject"] == "sub-FM2"] != []


# -- what is left out ----------------------------------------------------------------------------------------------


def test_what_has_no_name_is_reported_with_the_reason(mount):
    rows = left_out(mount.path / "bids" / "BIDS_AMBIGUOUS")
    reasons = {scan: [row for row in rows if row["scan"] == scan] for scan in ("1", "2", "4", "8", "12", "13")}
    assert [scan for scan, found in reasons.items() if not found] == ["2"]
    assert len(reasons["1"]) == 5  # one per image
    assert "localizer" in reasons["4"][0]["reason"]
    assert "unusable" in reasons["8"][0]["reason"]
    assert "AX FLAIR" in reasons["12"][0]["map_line"]
    assert "pace" in reasons["13"][0]["reason"]
    assert all(row["reason"] for row in rows)


def test_echoes_of_which_one_is_lost_are_not_shown_as_fewer(mount):
    rows = [row for row in left_out(mount.path / "bids" / "BIDS_ECHOES") if row["subject"] == "sub-LOST"]
    assert {row["scan"] for row in rows} == {"9"}
    assert "echo" in rows[0]["reason"]


def test_what_is_missing_beside_an_image_is_reported(mount):
    assert [row["scan"] for row in left_out(mount.path / "bids" / "BIDS_DIFFUSION")] == ["22"]
    phase = [row for row in left_out(mount.path / "bids" / "BIDS_FIELDMAPS") if row["subject"] == "sub-FM4"]
    assert [row["scan"] for row in phase] == ["7"]


def test_maps_that_differ_are_reported(mount):
    rows = left_out(mount.path / "bids" / "BIDS_PLAIN")
    assert any("acq-3DSPGR" in json.dumps(row) or "3D SPGR" in json.dumps(row) for row in rows)


def test_a_whole_tree_is_shown_as_it_is_and_wins_over_scans(demo, mount):
    dataset = mount.path / "bids" / "BIDS_TREES"
    assert json.loads((dataset / "dataset_description.json").read_text())["Name"] == "Trees, as uploaded"
    images = {path for path in listed(dataset) if path.endswith((".nii.gz", ".json")) and path.startswith("sub-")}
    sessions = (("01", "base"), ("02", "first"), ("03", "only"))
    stems = [f"sub-{subject}/ses-{label}/anat/sub-{subject}_ses-{label}_T1w" for subject, label in sessions]
    assert images == {f"{stem}{ending}" for stem in stems for ending in (".nii.gz", ".json")}
    walked = {"/".join(entry["path"]): entry for entry in mount.walk("bids/BIDS_TREES", read=True)}
    for path in images:
        (same,) = [e for r, _ in demo.archive.resources() for e in r.entries if e.path == path]
        assert walked[path]["md5"] == same.digest
    assert "3" in {row["scan"] for row in left_out(dataset)}
    assert errors(validate(dataset)) == {}


# -- names that stay -----------------------------------------------------------------------------------------------


def test_no_name_changes_when_a_subject_is_added_or_a_run_is_unusable(tmp_path):
    with bids_demo() as own, mounting(own.url, tmp_path, "--ttl", "1", **own.login) as mounted:
        dataset = mounted.path / "bids" / "BIDS_IDENTITY"
        before = listed(dataset)
        inodes = {path: os.stat(dataset / path).st_ino for path in before}
        with own.archive.lock:
            _add_subject(own.archive, "BIDS_IDENTITY")
            session = expected_tree(own.archive, "BIDS_IDENTITY").sessions["sub-CASE001/ses-CASE001MR1"]
            next(scan for scan in session.scans if scan.id == "8").quality = "unusable"
        wanted = {path for path in before if "run-02_T1w" not in path}
        for _ in range(100):  # what vanishes while it is listed is an error of `find`
            seen = run("find", dataset, "-type", "f", "-printf", "%P\n").stdout
            if "sub-ALSO/" in seen and "run-02_T1w" not in seen:
                break
            time.sleep(0.2)
        after = listed(dataset)
        assert {path for path in after if "ALSO" not in path} == wanted
        for path in wanted:
            if path.endswith(".nii.gz"):
                assert os.stat(dataset / path).st_ino == inodes[path], path


def _add_subject(archive: Archive, project: str) -> None:
    """Add a subject that sorts before the others, and has the same scans as one of them."""
    like = next(e for e, label in archive.experiments_in(project) if label == "MR-1")
    subject = archive.subject(archive.projects[project], "ALSO", "BIDS_S00000")
    session = archive.experiment(subject, "ALSO_MR", "BIDS_E00000")
    session.scans += like.scans


# -- a hundred subjects, on a mount that has seen nothing, in this order -------------------------------------------


@pytest.fixture(scope="module")
def hundred(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounting(demo.url, tmp_path_factory.mktemp("hundred"), "--ttl", "1h", **demo.login) as cold:
        yield cold.path / "bids" / "BIDS_HUNDRED"


def test_the_top_of_a_data_set_takes_no_request_a_subject(demo, hundred):
    demo.forget_requests()
    names = set(os.listdir(hundred))
    assert len(demo.requests()) < 15, demo.asked()
    assert names == {f"sub-H{number:03}" for number in range(1, SUBJECTS + 1)} | {path.split("/")[0] for path in TOP}


def test_pybids_indexes_a_hundred_subjects_for_one_request_a_session(demo, hundred, copies):
    listed(hundred)
    demo.forget_requests()
    found = index(hundred)
    assert len(demo.requests()) <= SUBJECTS + 5, demo.asked()[:20]
    assert found == index(copies / "BIDS_HUNDRED")
    files, entities = found
    assert files == listed(copies / "BIDS_HUNDRED") - {"sourcedata/xnatfs/left-out.tsv", "sourcedata/xnatfs/map.tsv"}
    assert len(entities) == 2 * SUBJECTS
    bold = entities["sub-H042/ses-H042MR1/func/sub-H042_ses-H042MR1_task-rest_bold.nii.gz"]
    assert (bold["TaskName"], bold["SeriesDescription"], bold["subject"]) == ("rest", REST, "H042")


def test_the_validator_fetches_each_image_once(demo, hundred, copies):
    """It reads a kilobyte of each; images below 8 MiB are fetched whole."""
    demo.forget_requests()
    issues = validate(hundred)
    read = demo.asked()
    assert errors(issues) == {}
    assert validate(copies / "BIDS_HUNDRED") == issues
    assert len(read) == len(set(read)) <= 2 * SUBJECTS + 5, read[:20]


def test_labels_that_are_alike_are_reported(mount):
    rows = [row for row in left_out(mount.path / "bids" / "BIDS_IDENTITY") if row["scan"] == "n/a"]
    assert [(row["subject"], row["session"]) for row in rows] == [
        ("sub-CASE001X90002", "n/a"),
        ("sub-CASE001X90002", "ses-MR1X90003"),
    ]
    assert "'CASE_001'" in rows[0]["reason"]


# -- other programs that index -------------------------------------------------------------------------------------


def test_pybids_reads_labels_that_are_alike_apart(mount):
    _, entities = index(mount.path / "bids" / "BIDS_IDENTITY")
    found = {(entity["subject"], entity["session"]) for entity in entities.values()}
    assert found == {
        ("CASE001", "CASE001MR1"), ("CASE001X90002", "visit12"), ("CASE001X90002", "MR1"),
        ("CASE001X90002", "MR1X90003"), ("GUEST7", "GUEST7MR"),
    }  # fmt: skip


@pytest.mark.skipif(not HAS_NIWORKFLOWS, reason="niworkflows is not installed: 35 s and 500 MB for one function")
@pytest.mark.parametrize("project", ["BIDS_PLAIN", "BIDS_FIELDMAPS", "BIDS_DIFFUSION", "BIDS_REPROIN"])
def test_fmriprep_collects_the_same_files_from_the_mount_and_a_copy(demo, mount, copies, project):
    found = collect(mount.path / "bids" / project)
    assert found == collect(copies / project)
    tree = expected_tree(demo.archive, project)
    wanted = {path for path in tree.copies if path.endswith("nii.gz") and not path.endswith("_PDT2.nii.gz")}
    assert {path for kinds in found.values() for paths in kinds.values() for path in paths} == wanted


# -- real images ---------------------------------------------------------------------------------------------------


def stack(session: Path, source: str, target: str) -> None:
    """Add a run of four volumes to a real session, made of one of its images."""
    first, made = session / "scans" / source, session / "scans" / target
    made.parent.mkdir(parents=True)
    volume = nibabel.Nifti1Image.from_filename(f"{first}.nii.gz")
    run_of_four = nibabel.concat_images([volume] * 4)
    run_of_four.header.set_zooms((*volume.header.get_zooms()[:3], 2.0))
    run_of_four.header.set_xyzt_units("mm", "sec")
    run_of_four.to_filename(f"{made}.nii.gz")
    fields = json.loads(Path(f"{first}.json").read_text())
    Path(f"{made}.json").write_text(json.dumps({**fields, "RepetitionTime": 2.0}))
    with (session / "scans.tsv").open("a") as table:
        table.write("11\trest\trest\tusable\txnat:mrScanData\n")


def real_stem(name: str) -> str:
    return f"sub-001/ses-001MR1/{'func' if name.endswith('bold') else 'anat'}/sub-001_ses-001MR1_{name}"


@pytest.mark.real_data
@pytest.mark.skipif(os.environ.get(WITHOUT) == "1", reason=f"{WITHOUT}=1: asked to leave real images out")
def test_a_real_session_converted_by_dcm2niix_is_valid(tmp_path):
    real = sample_sessions() / PROJECT / "Case001" / "Case001"
    session = tmp_path / "data" / "CASE" / "001" / "001_MR1"
    session.mkdir(parents=True)
    shutil.copy(real / "scans.tsv", session)
    for scan in (real / "scans").iterdir():
        target = session / "scans" / scan.name / "NIFTI"
        target.mkdir(parents=True)
        options = ("-b", "y", "-z", "y", "-f", "%s_%d", "-o", target)
        assert run(SCRIPTS / "dcm2niix", *options, scan / "DICOM").returncode == 0
    stack(session, "10/NIFTI/10_T1_SPIN_ECHO", "11/NIFTI/11_rest")
    with serving(tmp_path / "data", change=lambda archive: publish_bids(archive, {})) as own:
        names = {"SAG LOCALIZER": "inplaneT2", "rest": "task-rest_bold"}
        lines = [{"series_description": description, "bidsname": name} for description, name in names.items()]
        own.archive.configurations.put("bids", "bidsmap", json.dumps(lines), project="CASE")
        with mounting(own.url, tmp_path / "mounted", **own.login) as mounted:
            dataset = mounted.path / "bids" / "CASE"
            stems = {real_stem(name): source for name, source in REAL_IMAGES.items()}
            for stem, source in stems.items():
                for ending in (".nii.gz", ".json"):
                    shown, stored = dataset / f"{stem}{ending}", session / "scans" / f"{source}{ending}"
                    assert run("cmp", shown, stored).returncode == 0, stem
            assert {path for path in listed(dataset) if path.endswith(".nii.gz")} == {f"{s}.nii.gz" for s in stems}
            assert {row["scan"] for row in left_out(dataset)} == {"1", "4"}
            assert errors(validate(dataset)) == {}
