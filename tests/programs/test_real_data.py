"""Compare two sessions from a GE scanner, mounted, with the same files on a local disk."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from tests.support.demos import Demo, serving
from tests.support.mounting import SCRIPTS, run
from tests.support.real_data import PROJECT, WITHOUT, list_as_on_disk, sample_sessions
from tests.support.walk import MADE
from xnatfs.tree.names import escape

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.real_data,
    pytest.mark.skipif(os.environ.get(WITHOUT) == "1", reason=f"{WITHOUT}=1: asked to leave real images out"),
]

DICOM_FILES = 670  # 324 and 346, and two snapshots
SERIES = 15  # 10 and 3, and the snapshots' two


@pytest.fixture(scope="module")
def local() -> Path:
    return sample_sessions()


@pytest.fixture(scope="module")
def demo(local: Path) -> Iterator[Demo]:
    with serving(local) as served:
        list_as_on_disk(served.archive, local)
        yield served


def files(directory: Path) -> dict[tuple[str, ...], str]:
    """Return the MD5 of each file by its path below the project, without tables: the demo's and those of a mount."""
    script = (
        "import hashlib, json, os, sys\n"
        "found = {}\n"
        "for top, _, names in os.walk(sys.argv[1]):\n"
        "    for name in names:\n"
        "        path = os.path.join(top, name)\n"
        "        with open(path, 'rb') as file:\n"
        "            found[os.path.relpath(path, sys.argv[1])] = hashlib.file_digest(file, 'md5').hexdigest()\n"
        "print(json.dumps(found))\n"
    )
    done = run(sys.executable, "-c", script, directory)
    assert done.returncode == 0, done.stderr
    return {Path(path).parts: md5 for path, md5 in json.loads(done.stdout).items() if Path(path).name not in MADE}


def test_every_file_is_the_same(local, mount):
    here, there = files(local / PROJECT), files(mount.path / "projects" / PROJECT)
    assert len(here) == DICOM_FILES + 2
    assert there == here


def test_pydicom_reads_every_image_the_same(local, mount):
    paths = [path for path in sorted((local / PROJECT).rglob("*.dcm"))]
    assert len(paths) == DICOM_FILES
    for path in paths:
        mounted = mount.path / "projects" / path.relative_to(local)
        ours, theirs = pydicom.dcmread(mounted), pydicom.dcmread(path)
        assert ours == theirs
        assert ours.PixelData == theirs.PixelData


def scans(local: Path) -> list[Path]:
    return sorted(path.relative_to(local) for path in (local / PROJECT).glob("*/*/scans/*/DICOM"))


def converted(source: Path, target: Path) -> dict[str, str]:
    """Convert a series with dcm2niix; return MD5 by name."""
    target.mkdir()
    done = run(SCRIPTS / "dcm2niix", "-b", "y", "-z", "n", "-f", "%s_%d_%e", "-o", target, source)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in target.iterdir()}


def test_dcm2niix_makes_the_same_of_every_scan(local, mount, tmp_path):
    volumes = 0
    for number, scan in enumerate(scans(local)):
        theirs = converted(local / scan, tmp_path / f"local-{number}")
        ours = converted(mount.path / "projects" / scan, tmp_path / f"mounted-{number}")
        # Several volumes of one scan are named and lettered in the order of the directory, which is the same here.
        assert ours == theirs, scan
        volumes += sum(name.endswith(".nii") for name in ours)
    assert volumes >= 13


def test_labels_and_types_are_the_real_ones(local, mount):
    tables = sorted((local / PROJECT).glob("*/*/scans.tsv"))
    assert tables
    for table in tables:
        header, *rows = [line.split("\t") for line in table.read_text().splitlines()]
        for row in rows:
            fields = dict(zip(header, row, strict=True))
            scan = mount.path / "projects" / table.parent.relative_to(local) / "scans" / escape(fields["id"])
            assert os.getxattr(scan, "user.xnat.type").decode() == fields["type"]


def test_all_of_it_took_one_login_and_two_requests_a_series(demo, mount):
    bodies = [line for line in demo.asked() if re.match(r"GET .*/resources/\d+/files", line)]
    assert demo.logins() == 2  # the mount's own, and none after it
    assert len(bodies) == len(set(bodies)) <= 2 * SERIES
