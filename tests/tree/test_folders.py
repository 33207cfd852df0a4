"""Test folders of a resource: each file once, under a name of its own, looked up by name or listed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.prefetch.test_session_listings import find
from tests.support.scripted import Scripted, opened
from xnatfs.common.errors import NotFound
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.folders import FILES_AT_ONCE, FolderDir
from xnatfs.tree.node import Dir

DICOM = "projects/P/S/E/scans/1/DICOM"
PATHS = st.lists(
    st.lists(st.sampled_from(["a", "b", "a~file", ".", "..", "", "ä", "a%2Fb", "x" * 300]), min_size=1, max_size=3).map(
        "/".join
    ),
    unique=True,
    max_size=12,
)


async def shown(directory: Dir) -> dict[str, str]:
    """Return the files below a directory: the path in the mount, and in the catalogue."""
    children, found = await directory.children(), {}
    listed = children.listed()
    assert [node.name for node in listed] == list(children.nodes)
    assert len(listed) == len(children.nodes) == len(set(children.nodes))
    assert [node.identity for node in listed[1:]] == [listed[n].identity for n in range(1, len(listed))]
    for node in listed:
        assert (await directory.child(node.name)).identity == node.identity
        assert node.path == (*directory.path, node.name)
        if isinstance(node, CatalogueFile):
            found["/".join(node.path[len(DICOM.split("/")) :])] = node.row.path
        else:
            assert isinstance(node, FolderDir)
            found |= await shown(node)
    return found


def catalogue(paths: list[str]) -> Scripted:
    server = Scripted()
    for path in paths:
        server.add(path or "empty", path.encode())
    return server


@given(paths=PATHS)
@settings(deadline=None, max_examples=50)
async def test_every_file_is_shown_once(paths, tmp_path_factory):
    listed = [path for path in paths if path]
    async with opened(catalogue(listed), tmp_path_factory.mktemp("cache")) as site:
        found = await shown(await find(site, DICOM))
    assert len(found) == len(set(found))
    assert set(found.values()) <= set(listed)
    for path in listed:
        if path not in found.values():  # only one that has the name of another
            assert any(path.replace("/", "") == other.replace("/", "") for other in found.values())


@pytest.mark.parametrize("count", [0, 1, FILES_AT_ONCE - 1, FILES_AT_ONCE, FILES_AT_ONCE + 1, 3 * FILES_AT_ONCE])
@pytest.mark.parametrize("form", ["{}.dcm", "a/b{}/{}.dcm", "ä{}"])
async def test_folders_of_any_length_are_whole(tmp_path, count, form):
    paths = [form.format(n, n) for n in range(count)]
    async with opened(catalogue(paths), tmp_path) as site:
        found = await shown(await find(site, DICOM))
    assert list(found) == list(found.values()) == paths


async def test_a_file_listed_twice_is_shown_once(tmp_path, caplog):
    async with opened(catalogue(["a", "b", "a"]), tmp_path) as site:
        assert list(await shown(await find(site, DICOM))) == ["a", "b"]
    assert "twice" in caplog.text


async def test_what_is_not_there_is_not_found_in_a_folder_of_plain_names(tmp_path):
    async with opened(catalogue(["a", "b"]), tmp_path) as site:
        directory = await find(site, DICOM)
        assert isinstance(directory, Dir)
        for name in ("c", "", "a/b"):
            with pytest.raises(NotFound):
                await directory.child(name)
