"""Test whole BIDS trees in resources: they are passed on as they are, and count more than names of scans."""

import json

import pytest

from tests.support.nodes import find
from tests.tree.bids.support import archive, content, convert, opened, put_map, session, tree
from xnatfs.common.errors import BadReply
from xnatfs.demo.server.reply import Failed
from xnatfs.tree.node import Dir


def with_trees():
    """Make a project with a tree of subject 01, a session with a tree of its own, and one without."""
    made = archive()
    project = made.projects["P"]
    stored = made.resource(project.resources, "rawdata")
    made.file(stored, "dataset_description.json", b'{"Name": "As uploaded"}')
    made.file(stored, "sub-01/ses-base/anat/sub-01_ses-base_T1w.nii.gz", b"uploaded")
    made.file(stored, "sourcedata/raw.txt", b"raw")
    for subject, label in (("01", "base"), ("01", "later"), ("02", "MR1")):
        one = session(made, subject, label)
        convert(made, made.scan(one, "3", series_description="T1"), "t1", apart=False)
    own = made.resource(one.resources, "BIDS")
    made.file(own, "sub-02/ses-first/anat/sub-02_ses-first_T1w.nii.gz", b"of the session")
    made.file(own, "sub-99/ses-first/anat/sub-99_ses-first_T1w.nii.gz", b"of another subject")
    put_map(made, T1="T1w")
    return made


async def test_trees_are_passed_on_and_shadow_the_scans_of_their_sessions(tmp_path):
    async with opened(with_trees(), tmp_path) as (site, _):
        found = await tree(await find(site, "bids/P"))
        images = {name for name in found if name.endswith(".nii.gz")}
        assert images == {
            "sub-01/ses-base/anat/sub-01_ses-base_T1w.nii.gz",
            "sub-01/ses-later/anat/sub-01_ses-later_T1w.nii.gz",
            "sub-02/ses-first/anat/sub-02_ses-first_T1w.nii.gz",
        }
        assert await content(found["sub-01/ses-base/anat/sub-01_ses-base_T1w.nii.gz"]) == b"uploaded"
        assert json.loads(await content(found["dataset_description.json"]))["Name"] == "As uploaded"
        assert await content(found["sourcedata/raw.txt"]) == b"raw"
        stored = await find(site, "projects/P/resources/rawdata/sub-01/ses-base/anat/sub-01_ses-base_T1w.nii.gz")
        assert found["sub-01/ses-base/anat/sub-01_ses-base_T1w.nii.gz"].identity == stored.identity


async def test_what_a_tree_shadows_is_reported(tmp_path):
    async with opened(with_trees(), tmp_path) as (site, _):
        lines = (await content(await find(site, "bids/P/sourcedata/xnatfs/left-out.tsv"))).decode().splitlines()[1:]
        assert [line.split("\t")[:3] for line in lines[1:]] == [["sub-01", "ses-base", "3"], ["sub-02", "ses-MR1", "3"]]
        assert "sub-99 of session MR1, whose subject is sub-02" in lines[0]
        rows = (await content(await find(site, "bids/P/sourcedata/xnatfs/map.tsv"))).decode()
        assert "sub-02/ses-first/anat/sub-02_ses-first_T1w.nii.gz\t/data/experiments/DEMO_E00003/resources/" in rows


def with_bare_trees():
    """Make sessions without converted scans: with a tree, with the files of a converter, with DICOM only."""
    made = with_trees()
    for subject, label, path in (
        ("03", "rawdata", "sub-03/ses-a/anat/sub-03_ses-a_T1w.nii.gz"),
        ("04", "BIDS", "dataset_description.json"),
        ("05", "", ""),
    ):
        one = session(made, subject, "MR1")
        made.file(made.resource(made.scan(one, "1").resources, "DICOM"), "1.dcm", b"1")
        if label:
            made.file(made.resource(one.resources, label), path, b"{}")
    return made


async def top(site):
    found = await find(site, "bids/P")
    assert isinstance(found, Dir)
    return {node.name for node in (await found.children()).listed() if node.name.startswith("sub-")}


async def test_a_session_that_has_only_a_tree_is_shown(tmp_path):
    async with opened(with_bare_trees(), tmp_path) as (site, demo):
        assert await top(site) == {"sub-01", "sub-02", "sub-03", "sub-04"}
        asked = [record.path for record in demo.requests]
        assert [path for path in asked if path.startswith("/data/experiments/")] == []
        assert asked.count("/data/experiments") == 4  # joined with scans and with resources, own and shared
        found = await tree(await find(site, "bids/P"))
        assert {name for name in found if name.startswith(("sub-03", "sub-04"))} == {
            "sub-03/ses-a/anat/sub-03_ses-a_T1w.nii.gz"
        }
        participants = (await content(found["participants.tsv"])).decode()
        assert "sub-03" in participants
        assert "sub-05" not in participants
        rows = (await content(await find(site, "bids/P/sourcedata/xnatfs/map.tsv"))).decode()
        assert "sub-03/ses-a/anat/sub-03_ses-a_T1w.nii.gz\t/data/experiments/" in rows


@pytest.mark.parametrize("status", [500, 403])
async def test_a_session_that_has_only_a_tree_costs_a_request_where_no_list_tells(tmp_path, status):
    made = with_bare_trees()
    async with opened(made, tmp_path) as (site, demo):

        def refuse(request):
            if "resources/resource/label" in str(request.query):
                raise Failed(status, "null")

        demo.faults.append(refuse)
        assert await top(site) == {"sub-01", "sub-02", "sub-03", "sub-04"}
        asked = [record.path for record in demo.requests if record.path.startswith("/data/experiments/")]
        bare = [
            each.id for each in made.experiments.values() if made.subjects[each.subject].label in ("03", "04", "05")
        ]
        assert sorted(asked) == [f"/data/experiments/{id}/resources" for id in bare]


async def test_a_session_that_has_only_a_tree_is_reported_if_its_resources_are_refused(tmp_path):
    made = archive()
    one = session(made, "03", "MR1")
    made.file(made.resource(one.resources, "rawdata"), "sub-03/ses-a/anat/sub-03_ses-a_T1w.nii.gz", b"1")
    async with opened(made, tmp_path) as (site, demo):

        def refuse(request):
            if "/resources" in request.path or "resources/resource/label" in str(request.query):
                raise Failed(500, "null")

        demo.faults.append(refuse)
        assert await top(site) == {"sub-03"}
        with pytest.raises(BadReply):
            await tree(await find(site, "bids/P/sub-03/ses-MR1"))
        assert b"sub-03\tses-MR1" in await content(await find(site, "bids/P/sourcedata/xnatfs/left-out.tsv"))


async def test_a_description_alone_is_no_tree(tmp_path):
    made = archive()
    convert(made, made.scan(session(made), "1"), "sub-1_T1w")
    stored = made.resource(made.projects["P"].resources, "bids")
    made.file(stored, "dataset_description.json", b'{"Name": "Ours"}')
    made.file(stored, "bidsmap.json", b"[]")
    async with opened(made, tmp_path) as (site, _):
        found = await tree(await find(site, "bids/P"))
        assert await content(found["dataset_description.json"]) == b'{"Name": "Ours"}'
        assert "bidsmap.json" not in found
        assert "sub-S1/ses-E1/anat/sub-S1_ses-E1_T1w.nii.gz" in found


async def test_a_tree_whose_catalogue_is_broken_leaves_the_rest(tmp_path):
    made = with_trees()
    made.projects["P"].resources[0].broken = True
    async with opened(made, tmp_path) as (site, _):
        assert "sub-01/ses-base/anat/sub-01_ses-base_T1w.nii.gz" in await tree(await find(site, "bids/P"))


async def test_a_tree_whose_catalogue_is_broken_is_reported(tmp_path):
    made = with_trees()
    broken = [made.projects["P"].resources[0], made.experiments["DEMO_E00003"].resources[0]]
    for each in broken:
        each.broken = True
    async with opened(made, tmp_path) as (site, _):
        rows = (await content(await find(site, "bids/P/sourcedata/xnatfs/left-out.tsv"))).decode().splitlines()[1:]
        assert [f"resource {each.id}" in row for each, row in zip(broken, rows, strict=True)] == [True, True]
