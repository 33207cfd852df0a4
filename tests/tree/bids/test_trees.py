"""Test whole BIDS trees in resources: they are passed on as they are, and count more than names of scans."""

import json

from tests.tree.bids.support import archive, content, convert, find, opened, put_map, session, tree


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
        assert [line.split("\t")[:3] for line in lines] == [["sub-01", "ses-base", "3"], ["sub-02", "ses-MR1", "3"]]
        rows = (await content(await find(site, "bids/P/sourcedata/xnatfs/map.tsv"))).decode()
        assert "sub-02/ses-first/anat/sub-02_ses-first_T1w.nii.gz\t/data/experiments/DEMO_E00003/resources/" in rows


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
