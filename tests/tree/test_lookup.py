"""Test how the node of a path is found, for the Python API and for the control socket of a mount."""

import pytest

from tests.tree.bids.support import archive, convert, opened, session
from xnatfs.api import paths
from xnatfs.common.errors import NotDirectory, NotFound
from xnatfs.fuse.control import places
from xnatfs.tree import Root, find
from xnatfs.tree.node import Dir, Link, Node

IMAGE = "scans/1/NIFTI/image.nii.gz"


@pytest.fixture
def made():
    made = archive()
    convert(made, made.scan(session(made), "1"), "image", apart=False)
    return made


async def test_links_are_followed_and_the_root_has_nothing_above(tmp_path, made):
    async with opened(made, tmp_path) as (site, _):
        root = Root(site)
        for path in (f"experiments/DEMO_E00001/{IMAGE}", f"../../subjects/../projects/P/S1/E1/{IMAGE}"):
            for node in (await paths.find(root, f"/{path}/"), await places.find(root, places.split(path))):
                assert "/".join(node.path) == f"projects/P/S1/E1/{IMAGE}"
        assert await paths.find(root, ".") is root


async def test_a_path_through_a_file_or_to_nothing_is_an_error(tmp_path, made):
    async with opened(made, tmp_path) as (site, _):
        root = Root(site)
        for look in (lambda path: paths.find(root, path), lambda path: places.find(root, places.split(path))):
            with pytest.raises(NotDirectory, match="image.nii.gz is not a directory"):
                await look(f"projects/P/S1/E1/{IMAGE}/x")
            with pytest.raises(NotFound, match="projects/NONE"):
                await look("projects/NONE/x")


async def test_links_that_lead_to_each_other_end(tmp_path, made):
    async with opened(made, tmp_path) as (site, _):
        root = Root(site)

        async def child(parent: Dir, name: str) -> Node:
            return Link(site, parent, name, ("b" if name == "a" else "a",))

        with pytest.raises(NotFound, match="a leads through more than 40 links"):
            await find(root, ["a"], child)
