"""Compare other people's programs on real images: the results on a mount equal those on a local copy.

They run unmodified, in an environment of their own, on the 324 images of one session. Compared are the images they
write, after decompression, what they write beside them, and what they print.
"""

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.support.demos import serving
from tests.support.environments import environment_with, needs_registry
from tests.support.mounting import SCRIPTS, environment, mounting, run
from tests.support.real_data import PROJECT, list_as_on_disk, sample_sessions

pytestmark = needs_registry

PROGRAMS = ["SimpleITK==2.5.7", "dcm2bids==3.3.1", "dicom2nifti==2.6.2", "heudiconv==1.5.1", "dcm2niix==1.0.20260724"]
SPGR = "5"  # its volume of 60 slices


@dataclass
class Places:
    """One session in two places."""

    local: Path
    mounted: Path

    def both(self) -> tuple[Path, Path]:
        return self.local, self.mounted


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    data = sample_sessions()
    below = Path(PROJECT, "Case001", "Case001")
    with serving(data) as demo, mounting(demo.url, tmp_path_factory.mktemp("case"), **demo.login) as mount:
        list_as_on_disk(demo.archive, data)
        yield Places(data / below, mount.path / "projects" / below)


@pytest.fixture(scope="module")
def programs() -> Path:
    return environment_with("programs", PROGRAMS)


def run_in(programs: Path, work: Path, *command: str | Path, **variables: str) -> str:
    """Return what a program prints; its home and working directory are new."""
    env = {**environment(work, **variables), "PATH": f"{programs}:/usr/bin:/bin"}
    done = run(programs / command[0], *command[1:], cwd=work, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def made(directory: Path, plain: Callable[[str], str] = lambda text: text) -> dict[str, str]:
    """Return the files a program has written, by path: images by their decompressed bytes, text made `plain`."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        elif path.suffix in (".json", ".tsv", ".txt", ".bval", ".bvec"):
            content = plain(content.decode()).encode()
        found[path.relative_to(directory).as_posix()] = hashlib.md5(content).hexdigest()
    return found


def twice(case: Places, tmp_path: Path, act: Callable[[Path, Path], Any]) -> list[Any]:
    """Act on the local copy and on the mount, each with a directory to write in; return both results."""
    results = []
    for name, session in zip(("local", "mount"), case.both(), strict=True):
        work = tmp_path / name
        work.mkdir()
        results.append(act(session, work))
    return results


def test_simpleitk_reads_the_same_volumes(case, programs, tmp_path):
    script = (
        "import hashlib, json, sys, SimpleITK as sitk\n"
        "from pathlib import Path\n"
        "found = {}\n"
        "for scan in sorted(Path(sys.argv[1], 'scans').iterdir()):\n"
        "    for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(scan / 'DICOM')):\n"
        "        reader = sitk.ImageSeriesReader()\n"
        "        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(scan / 'DICOM'), series))\n"
        "        image = reader.Execute()\n"
        "        pixels = hashlib.md5(sitk.GetArrayViewFromImage(image).tobytes()).hexdigest()\n"
        "        found[scan.name + ' ' + series] = [image.GetSize(), image.GetSpacing(), pixels]\n"
        "print(json.dumps(found))\n"
    )
    ours, theirs = twice(
        case, tmp_path, lambda session, work: json.loads(run_in(programs, work, "python", "-c", script, session))
    )
    assert ours == theirs
    assert sorted(size[2] for size, _, _ in ours.values()) == [3, 20, 20, 20, 20, 29, 32, 60, 60, 60]


def test_dcm2bids_makes_the_same_dataset(case, programs, tmp_path):
    config = {
        "descriptions": [
            {"datatype": "anat", "suffix": "T1w", "criteria": {"SeriesDescription": "*SPGR*"}},
            {"datatype": "anat", "suffix": "T2w", "criteria": {"SeriesDescription": "*T2*"}},
        ]
    }

    def convert(session: Path, work: Path) -> dict[str, str]:
        (work / "config.json").write_text(json.dumps(config))
        options: list[str | Path] = [
            "-p",
            "001",
            "-s",
            "01",
            "-c",
            work / "config.json",
            "-o",
            work / "bids",
            "--auto_extract_entities",
        ]
        run_in(programs, work, "dcm2bids", "-d", session / "scans", *options)
        return made(work / "bids" / "sub-001")

    ours, theirs = twice(case, tmp_path, convert)
    assert ours == theirs
    assert sum(name.endswith(".nii.gz") for name in ours) > 1


def test_heudiconv_finds_the_same_series(case, programs, tmp_path):
    def convert(session: Path, work: Path) -> dict[str, str]:
        options: list[str | Path] = [
            "-s",
            "001",
            "-ss",
            "01",
            "-f",
            "convertall",
            "-c",
            "none",
            "-o",
            work / "out",
            "--overwrite",
        ]
        run_in(programs, work, "heudiconv", "--files", session / "scans", *options, NO_ET="1")
        return made(work / "out", lambda text: text.replace(str(session), "SESSION"))

    ours, theirs = twice(case, tmp_path, convert)
    assert ours == theirs
    assert any("dicominfo" in name for name in ours)


def test_dicom2nifti_converts_the_same_volume(case, programs, tmp_path):
    def convert(session: Path, work: Path) -> dict[str, str]:
        (work / "out").mkdir()
        run_in(programs, work, "dicom2nifti", session / "scans" / SPGR / "DICOM", work / "out")
        return made(work / "out")

    ours, theirs = twice(case, tmp_path, convert)
    assert ours == theirs
    assert list(ours) == ["5_3d_spgr_volume.nii.gz"]


@pytest.mark.parametrize("program", [["dcmdump"], ["dcmftest"], ["mrinfo", "-quiet"]])
def test_programs_of_the_distribution_say_the_same(case, tmp_path, program):
    if not shutil.which(program[0]):
        pytest.skip(f"{program[0]} is not installed")

    def say(session: Path, work: Path) -> str:
        images = sorted((session / "scans" / SPGR / "DICOM").iterdir())
        arguments = [session / "scans" / SPGR / "DICOM"] if program[0] == "mrinfo" else images
        done = run(*program, *arguments)
        return done.stdout.replace(str(session), "SESSION")

    ours, theirs = twice(case, tmp_path, say)
    assert ours == theirs != ""


# -- NIfTI resources, made by dcm2niix and published -----------------------------------------------------------


@pytest.fixture(scope="module")
def nifti(case: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Provide the volume of one scan as .nii and .nii.gz with its JSON, in a resource of its own."""
    data = tmp_path_factory.mktemp("nifti")
    below = Path("NIFTIS", "S1", "S1_MR", "scans", SPGR, "NIFTI")
    (data / below).mkdir(parents=True)
    for options in (["-z", "n"], ["-z", "y", "-f", "%f_packed"]):
        source = case.local / "scans" / SPGR / "DICOM"
        done = run(SCRIPTS / "dcm2niix", *options, "-o", data / below, source, env=environment(data))
        assert done.returncode == 0, done.stdout
    with serving(data) as demo, mounting(demo.url, tmp_path_factory.mktemp("mount"), **demo.login) as mount:
        yield Places(data / below, mount.path / "projects" / below)


def load(path: Path) -> Any:
    return nibabel.load(path, mmap=True)


def names(places: Places, suffix: str) -> list[str]:
    return [path.name for path in places.local.iterdir() if path.name.endswith(suffix)]


def test_nibabel_maps_an_image(nifti):
    (name,) = names(nifti, ".nii")
    # A fault of a map holds Python's lock, and the server is in this process: the file must be here before it.
    assert run("cmp", *(place / name for place in nifti.both())).returncode == 0
    ours, theirs = (load(place / name) for place in nifti.both())
    assert ours.header == theirs.header
    middle = ours.shape[2] // 2
    assert isinstance(theirs.dataobj.get_unscaled(), np.memmap)
    assert np.array_equal(ours.dataobj[..., middle], theirs.dataobj[..., middle])
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))


def test_nibabel_unpacks_an_image_step_by_step(nifti):
    (name,) = names(nifti, ".nii.gz")
    ours, theirs = (load(place / name) for place in nifti.both())
    assert np.array_equal(ours.dataobj[..., 10], theirs.dataobj[..., 10])
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))


def test_sidecars_and_listings_are_the_same(nifti):
    local, mounted = nifti.both()
    assert sorted(path.name for path in mounted.iterdir()) == sorted(path.name for path in local.iterdir())
    for name in names(nifti, ".json"):
        assert json.loads((mounted / name).read_text()) == json.loads((local / name).read_text())
