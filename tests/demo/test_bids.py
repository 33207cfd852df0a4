"""Test the demo's projects for the BIDS view: images that programs read, and trees that can be made of them."""

import gzip
import json

import nibabel
import pytest

from tests.support.bids_trees import TREES, expected_tree
from xnatfs.demo.archive.model import Archive
from xnatfs.demo.fixtures.bids import publish_bids

MEMBERS = {"jane": "Owners"}


@pytest.fixture(scope="module")
def archive() -> Archive:
    made = Archive()
    publish_bids(made, MEMBERS)
    return made


def contents(archive: Archive, ending: str) -> list[bytes]:
    entries = (entry for resource, _ in archive.resources() for entry in resource.entries)
    return [entry.content for entry in entries if entry.path.endswith(ending) and isinstance(entry.content, bytes)]


def test_images_are_nifti_and_differ(archive):
    images = contents(archive, ".nii.gz")
    assert len(set(images)) == len(images) > 250
    shapes = {nibabel.Nifti1Image.from_bytes(gzip.decompress(image)).shape for image in images}
    assert shapes == {(8, 8, 6), (8, 8, 6, 3), (8, 8, 6, 4)}


def test_sidecars_state_what_dcm2niix_states(archive):
    for content in contents(archive, ".json"):
        fields = json.loads(content)
        assert fields.get("ConversionSoftware") == "dcm2niix" or "BIDSVersion" in fields
        assert not {"TaskName", "EchoTime1", "EchoTime2", "IntendedFor"} & fields.keys()


def test_each_tree_is_of_files_that_are_there_each_once(archive):
    for project in TREES:
        tree = expected_tree(archive, project)
        assert len({id(entry) for entry in tree.copies.values()}) == len(tree.copies) > 0
        assert archive.projects[project].members == MEMBERS


def test_accessions_and_content_are_the_same_each_time(archive):
    again = Archive()
    publish_bids(again, MEMBERS)
    assert list(again.experiments) == list(archive.experiments)
    assert contents(again, "") == contents(archive, "")
