"""Test libraries that read `xnat://` through fsspec, as the table in docs/PYTHON.md names them."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import h5py
import nibabel
import numpy
import pandas
import pydicom
import pytest
import zarr
from joblib import Parallel, delayed
from upath import UPath

from tests.api.conftest import DICOM, NIFTI
from tests.support.demos import Demo, serving
from xnatfs.demo.fixtures.lab import DemoArchive

RESOURCES = "projects/BRAINS/resources"
CUBE: Any = numpy.arange(4 * 50 * 60, dtype=numpy.int32).reshape(4, 50, 60)


@pytest.fixture(scope="module")
def shared_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Serve the demo with a table, an HDF5 file, a zarr store and an image without compression."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "table.tsv").write_text("participant_id\tage\nSUB001\t31\nSUB002\t44\n")
    with h5py.File(folder / "cube.h5", "w") as file:
        file.create_dataset("cube", data=CUBE, chunks=(1, 50, 60), compression="gzip")
    zarr.save_array(folder / "cube.zarr", CUBE)
    nibabel.save(nibabel.Nifti1Image(CUBE, numpy.eye(4)), folder / "cube.nii")

    def fill(archive: DemoArchive) -> None:
        resource = archive.resource(archive.projects["BRAINS"].resources, "made")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.file(resource, path.relative_to(folder).as_posix(), path.read_bytes())

    with serving(change=fill) as demo:
        yield demo


@pytest.fixture
def made(user):
    return user.url(f"{RESOURCES}/made")


def test_pandas_reads_a_table(made):
    table = pandas.read_csv(f"{made}/table.tsv", sep="\t")
    assert table.age.tolist() == [31, 44]


def test_zarr_opens_a_store(made, user):
    array: Any = zarr.open(f"{made}/cube.zarr", mode="r")
    assert (array[1:3] == CUBE[1:3]).all()


def test_h5py_reads_by_a_file_object_and_by_the_cached_file(made):
    fs, path = fsspec.url_to_fs(f"{made}/cube.h5")
    for source in (fs.open(path), fs.local(path)):
        with h5py.File(source) as file:
            assert (file["cube"][2] == CUBE[2]).all()


def test_nibabel_reads_bytes_streams_and_the_cached_file(made, user):
    fs, path = fsspec.url_to_fs(f"{made}/cube.nii")
    assert (nibabel.Nifti1Image.from_bytes(fs.cat_file(path)).get_fdata() == CUBE).all()
    linked = Path(user.home) / "cube.nii"  # nibabel goes by the ending of the name
    linked.symlink_to(fs.local(path))
    image: Any = nibabel.load(linked)
    assert isinstance(image.dataobj.get_unscaled(), numpy.memmap)
    with fs.open(f"/{NIFTI}") as file, gzip.open(file) as stream:
        assert nibabel.Nifti1Image.from_stream(stream).shape == (128, 128, 40)
    path_object: Any = UPath(f"{made}/cube.nii")
    with pytest.raises(TypeError):
        nibabel.load(path_object)


def test_pydicom_reads_a_file_object_and_its_head_only(user):
    fs, path = fsspec.url_to_fs(user.url(DICOM))
    first = fs.ls(path, detail=False)[0]
    with fs.open(first) as file:
        assert pydicom.dcmread(file, stop_before_pixels=True).Modality == "MR"
    assert pydicom.dcmread(io.BytesIO(fs.cat_file(first))).pixel_array.shape == (128, 128)
    path_object: Any = UPath(fs.unstrip_protocol(first))
    with pytest.raises(TypeError):
        pydicom.dcmread(path_object)


def size(url: str) -> int:
    with fsspec.open(url) as file:
        return len(file.read())


def test_joblib_reads_in_its_processes_with_one_login(user):
    fs, path = fsspec.url_to_fs(user.url(DICOM))
    names = fs.ls(path)
    urls = [fs.unstrip_protocol(name["name"]) for name in names]
    assert Parallel(2)(delayed(size)(url) for url in urls[:8]) == [name["size"] for name in names[:8]]
    assert user.logins() == 1
