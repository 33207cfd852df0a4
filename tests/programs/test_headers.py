"""Compare programs that read headers on a mount and on a local copy; the server sends little for it.

The programs run unmodified on a mount that has fetched nothing, of a server that grants ranges and had no range request
before.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from tests.support.demos import Demo, serving
from tests.support.environments import environment_with, needs_registry
from tests.support.mounting import LIMIT, Mount, mounting, run

pytestmark = pytest.mark.fuse

_, downloaded, unless_without = needs_registry

MiB = 2**20
SCAN = Path("P", "S", "E", "scans", "1")
IMAGES = 20
BIG = 300_000_000
HDF5 = """
import sys, h5py, numpy
with h5py.File(sys.argv[1], "w") as file:
    for number in range(4):
        group = file.create_group(f"group{number}")
        values = numpy.random.default_rng(number).integers(0, 2**15, (112, 280, 280), dtype="int16")
        group.create_dataset("data", data=values, chunks=(1, 70, 70))
"""


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def image(path: Path, number: int, frames: int, side: int, chance: np.random.Generator) -> None:
    """Write a DICOM image as a scanner does."""
    meta, header = FileMetaDataset(), Dataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    storage = UID("1.2.840.10008.5.1.4.1.1.4.1" if frames > 1 else "1.2.840.10008.5.1.4.1.1.4")
    header.SOPClassUID = meta.MediaStorageSOPClassUID = storage
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    header.StudyInstanceUID, header.SeriesInstanceUID = (
        generate_uid(entropy_srcs=["1"]),
        generate_uid(entropy_srcs=["2"]),
    )
    header.PatientName, header.PatientID, header.Modality, header.StudyDate = "A^B", "P1", "MR", "20240101"
    header.StudyTime, header.AccessionNumber, header.StudyID = "120000", "", "1"
    header.SeriesNumber, header.InstanceNumber = 1, number
    header.Rows = header.Columns = side
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    if frames > 1:
        header.NumberOfFrames = frames
    header.PixelData = chance.integers(0, 4096, frames * side * side, dtype=np.uint16).tobytes()
    header["PixelData"].VR = "OW"
    header.file_meta = meta
    header.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("headers")
    big, series = top / SCAN / "BIG", top / SCAN / "SERIES"
    for folder in (big, series):
        folder.mkdir(parents=True)
    chance = np.random.default_rng(1)
    (big / "big.bin").write_bytes(chance.bytes(BIG))
    volume = nibabel.Nifti1Image(chance.integers(0, 2**15, (256, 256, 280, 2), dtype=np.int16), np.eye(4))
    for name in ("volume.nii", "volume.nii.gz"):
        nibabel.save(volume, big / name)
    image(big / "enhanced.dcm", 1, 100, 512, chance)
    for number in range(IMAGES):
        image(series / f"{number:03}.dcm", number + 1, 1, 160, chance)
    for path in top.rglob("*"):
        os.utime(path, (1.7e9, 1.7e9))
    return top


@pytest.fixture(scope="module")
def demo(data: Path) -> Iterator[Demo]:
    with serving(data, digests=False) as served:
        yield served


@pytest.fixture
def mount(demo: Demo, tmp_path: Path) -> Iterator[Mount]:
    with mounting(demo.url, tmp_path, **demo.login) as fresh:
        yield fresh


def said(mount: Mount, data: Path, path: Path, *command: str | Path) -> None:
    """Run a program on a file of the mount and on the local one; compare the output."""
    outputs = []
    for top in (mount.path / "projects", data):
        place = str(top / path)
        full = [str(part).replace("FILE", place) for part in command]
        done = subprocess.run(full, capture_output=True, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.replace(str(top).encode(), b"TOP"))
    assert outputs[0] == outputs[1]


def shape_of(module: str, shape: str) -> tuple[str, ...]:
    return ("-c", f"import sys, {module}; print({shape})", "FILE")


NIBABEL = (sys.executable, *shape_of("nibabel", "nibabel.load(sys.argv[1]).shape"))
LOOKS: dict[str, tuple[str, Sequence[str], int]] = {
    "head": ("big.bin", ("head", "-c", "4096", "FILE"), 1),
    "tail": ("big.bin", ("tail", "-c", "100", "FILE"), 2),
    "dd": ("big.bin", ("dd", "if=FILE", "bs=4096", "skip=40000", "count=1", "status=none"), 2),
    "nibabel": ("volume.nii", NIBABEL, 1),
    "nibabel, packed": ("volume.nii.gz", NIBABEL, 1),
    "mrinfo": ("volume.nii", ("mrinfo", "FILE"), 2),
    "mrinfo, packed": ("volume.nii.gz", ("mrinfo", "FILE"), 2),
}


@pytest.mark.parametrize("look", [pytest.param(look, marks=needs(LOOKS[look][1][0])) for look in LOOKS])
def test_a_look_at_a_header_costs_a_window_or_two(demo, mount, data, look):
    name, command, windows = LOOKS[look]
    sent = demo.count_sent()
    said(mount, data, SCAN / "BIG" / name, *command)
    assert 0 < sum(sent) <= windows * MiB


@pytest.mark.parametrize("program", [pytest.param(each, marks=needs(each)) for each in ("gdcminfo", "gdcmdump")])
def test_programs_that_read_the_pixels_say_the_same(demo, mount, data, program):
    """Compare programs that read the pixels, too."""
    said(mount, data, SCAN / "BIG" / "enhanced.dcm", program, "FILE")


@needs("gdcmscanner")
def test_gdcmscanner_gets_a_series_once(demo, mount, data):
    sent = demo.count_sent()
    said(mount, data, SCAN / "SERIES", "gdcmscanner", "-d", "FILE", "-t", "0020,0013", "-t", "0008,0018")
    total = sum(path.stat().st_size for path in (data / SCAN / "SERIES").iterdir())
    assert sum(sent) <= total  # what comes in a tar is not counted here, and comes once


@downloaded
@unless_without
def test_the_shape_of_an_hdf5(tmp_path):
    python = environment_with("headers", ["h5py==3.16.0"]) / "python"
    file = tmp_path / "data" / SCAN / "HDF5" / "data.h5"
    file.parent.mkdir(parents=True)
    assert run(python, "-c", HDF5, file).returncode == 0
    assert file.stat().st_size > 64 * MiB
    os.utime(file, (1.7e9, 1.7e9))
    with serving(tmp_path / "data") as demo, mounting(demo.url, tmp_path / "mount", **demo.login) as mount:
        sent = demo.count_sent()
        shape = shape_of("h5py", "[group['data'].shape for group in h5py.File(sys.argv[1]).values()]")
        said(mount, tmp_path / "data", SCAN / "HDF5" / "data.h5", str(python), *shape)
        assert 0 < sum(sent) <= 8 * MiB


def test_a_copy_is_few_requests(demo, mount, data):
    """Send a window and the rest, whatever the kernel reads ahead."""
    demo.forget_requests()
    content = (mount.path / "projects" / SCAN / "BIG" / "big.bin").read_bytes()
    assert hashlib.md5(content).digest() == hashlib.md5((data / SCAN / "BIG" / "big.bin").read_bytes()).digest()
    assert sum(line.endswith("big.bin") for line in demo.asked()) <= 2 + BIG / (32 * MiB)


# -- an archive that is fed from the mount ---------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.contextmanager
def orthanc(directory: Path) -> Iterator[tuple[int, httpx.Client]]:
    """Run Orthanc on free ports of this machine; yield the port that takes images, and a client of its REST API."""
    dicom, web = free_port(), free_port()
    directory.mkdir()
    settings = {
        "StorageDirectory": str(directory / "storage"),
        "IndexDirectory": str(directory / "storage"),
        "DicomPort": dicom,
        "HttpPort": web,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
    }
    (directory / "orthanc.json").write_text(json.dumps(settings))
    with open(directory / "orthanc.log", "wb") as log:
        process = subprocess.Popen(["Orthanc", directory / "orthanc.json"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{web}", trust_env=False, timeout=60) as client:
            until = time.monotonic() + LIMIT
            while True:
                with contextlib.suppress(httpx.TransportError):
                    client.get("/system").raise_for_status()
                    break
                assert process.poll() is None, (directory / "orthanc.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.1)
            yield dicom, client
    finally:
        process.terminate()
        process.wait(60)


@needs("Orthanc")
@needs("storescu")
def test_orthanc_gets_a_series_from_the_mount(mount, data, tmp_path):
    with orthanc(tmp_path / "orthanc") as (port, client):
        place = mount.path / "projects" / SCAN / "SERIES"
        done = run("storescu", "--scan-directories", "127.0.0.1", str(port), place)
        assert done.returncode == 0, done.stderr
        found: list[str] = client.get("/instances").json()
        assert len(found) == IMAGES
        arrived = {}
        for identifier in found:
            path = tmp_path / "arrived.dcm"
            path.write_bytes(client.get(f"/instances/{identifier}/file").content)
            arrived.update(pixels(path))
        wanted: dict[Any, bytes] = {}
        for path in (data / SCAN / "SERIES").iterdir():
            wanted.update(pixels(path))
        assert arrived == wanted


def pixels(path: Path) -> dict[Any, bytes]:
    read = pydicom.dcmread(path)
    return {read.SOPInstanceUID: read.PixelData}
