"""Test the view bids/ over a demo server: the names, the bytes and the requests."""

import json
from collections import Counter

import pytest

from tests.support.nodes import find
from tests.tree.bids.support import archive, content, convert, opened, put_map, resource, session, tree
from xnatfs.common.errors import BadReply, NotFound
from xnatfs.demo.server.reply import Failed
from xnatfs.settings.views import ViewOptions
from xnatfs.tree.node import Dir

ONE = "bids/P/sub-CASE1/ses-CASE1MR1"


def as_xnat_converts():
    """Make a session as XNAT's own converter leaves it."""
    made = archive()
    one = session(made, "CASE 1", "CASE 1_MR-1")
    for run, id in enumerate(("2", "8", "10"), 1):
        convert(made, made.scan(one, id, "T1", series_description="T1 3D"), f"sub-CASE1_ses-x_run-0{run}_T1w")
    convert(made, made.scan(one, "3", "REST", series_description="rest"), "sub-CASE1_ses-x_task-rest_bold")
    return made


def as_dcm2niix_leaves_it(**lines):
    """Make a session of images with sidecars beside them, named by a map."""
    made = archive()
    one = session(made)
    for id, description in (("2", "T1 3D"), ("8", "T1 3D"), ("3", "rest")):
        convert(made, made.scan(one, id, series_description=description), f"{description}_{id}", apart=False)
    put_map(made, "", T1_3D="t1w", rest="task-rest_bold")
    if lines:
        put_map(made, "P", **lines)
    return made


def images(found):
    return sorted(name for name in found if name.endswith(".nii.gz"))


async def table(site, path):
    lines = (await content(await find(site, path))).decode().splitlines()
    return [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]


async def test_a_session_of_xnats_converter_has_its_names_and_bytes(tmp_path):
    async with opened(as_xnat_converts(), tmp_path) as (site, _):
        found = await tree(await find(site, ONE))
        stem = "sub-CASE1_ses-CASE1MR1"
        names = [f"anat/{stem}_run-0{run}_T1w" for run in (1, 2, 3)] + [f"func/{stem}_task-rest_bold"]
        shown = {f"{name}{extension}" for name in names for extension in (".nii.gz", ".json")}
        assert found.keys() == shown | {f"{stem}_task-rest_bold.json", f"{stem}_scans.tsv", f"{stem}_scans.json"}
        image = found[f"anat/{stem}_run-02_T1w.nii.gz"]
        assert await content(image) == b"image 8 sub-CASE1_ses-x_run-02_T1w"
        same = await find(site, "projects/P/CASE 1/CASE 1_MR-1/scans/8/NIFTI/sub-CASE1_ses-x_run-02_T1w.nii.gz")
        assert (image.identity, image.version, image.inode_hint()) == (same.identity, same.version, same.inode_hint())
        assert json.loads(await content(found[f"{stem}_task-rest_bold.json"])) == {"TaskName": "rest"}


async def test_looking_at_all_of_a_dataset_reads_nothing_and_lists_a_session_once(tmp_path):
    async with opened(as_xnat_converts(), tmp_path) as (site, demo):
        await tree(await find(site, "bids/P"))
        asked = [record.path for record in demo.requests]
        assert not [path for path in asked if "/files/" in path]
        of_session = [path for path in asked if path.startswith("/data/experiments/DEMO_E00001/")]
        assert sorted(path.rpartition("/")[2] for path in of_session) == ["files", "resources", "scans"]
        before = len(asked)
        await tree(await find(site, "bids/P"))
        await tree(await find(site, "projects/P/CASE 1/CASE 1_MR-1/scans"))
        assert len(demo.requests) == before


async def test_the_listings_of_projects_serve_the_view(tmp_path):
    async with opened(as_xnat_converts(), tmp_path) as (site, demo):
        await tree(await find(site, "projects/P"))
        before = len(demo.requests)
        await tree(await find(site, "bids/P"))
        more = [record.path for record in demo.requests[before:]]
        labels = ["/data/experiments"] * 2
        assert sorted(more) == ["/data/config/bids/bidsmap", *labels, "/data/projects/P/config/bids/bidsmap"]


async def test_the_top_of_the_mount_lists_it_without_a_request(tmp_path):
    async with opened(as_xnat_converts(), tmp_path) as (site, demo):
        assert (await find(site, "bids")).name == "bids"
        assert demo.requests == []


async def test_a_map_names_images_and_the_project_counts_more_than_the_site(tmp_path):
    async with opened(as_dcm2niix_leaves_it(REST="func/task-movie_bold"), tmp_path) as (site, _):
        assert images(await tree(await find(site, "bids/P/sub-S1/ses-E1"))) == [
            "anat/sub-S1_ses-E1_run-01_T1w.nii.gz",
            "anat/sub-S1_ses-E1_run-02_T1w.nii.gz",
            "func/sub-S1_ses-E1_task-movie_bold.nii.gz",
        ]
        (row,) = await table(site, "bids/P/sourcedata/xnatfs/left-out.tsv")
        assert "task-rest_bold by the map of the site" in row["reason"]


async def test_a_map_of_this_machine_counts_most(tmp_path):
    path = tmp_path / "map.json"
    path.write_text('[{"series_description": " Rest", "bidsname": "task-own_bold"}]')
    async with opened(as_dcm2niix_leaves_it(REST="func/task-movie_bold"), tmp_path) as (site, _):
        site.views = ViewOptions(bids_map=str(path))
        assert "func/sub-S1_ses-E1_task-own_bold.nii.gz" in await tree(await find(site, "bids/P/sub-S1/ses-E1"))


async def test_a_map_that_is_none_is_an_error_and_no_other_names(tmp_path):
    made = as_dcm2niix_leaves_it()
    made.configurations.put("bids", "bidsmap", "{", project="P")
    async with opened(made, tmp_path) as (site, _):
        with pytest.raises(BadReply, match="the BIDS map of P is not JSON"):
            await tree(await find(site, "bids/P/sub-S1/ses-E1"))


@pytest.mark.parametrize("text", ["{", "{}", '[{"bidsname": "T1w"}]', "\xff"])
async def test_a_map_of_the_site_that_is_none_leaves_what_the_projects_names(tmp_path, text):
    made = as_dcm2niix_leaves_it(T1_3D="T1w", REST="func/task-movie_bold")
    made.configurations.put("bids", "bidsmap", text, project="")
    async with opened(made, tmp_path) as (site, demo):
        assert len(images(await tree(await find(site, "bids/P/sub-S1/ses-E1")))) == 3
        (row,) = await table(site, "bids/P/sourcedata/xnatfs/left-out.tsv")
        assert "the BIDS map of the site" in row["reason"]
        assert [record.path for record in demo.requests].count("/data/config/bids/bidsmap") == 1


async def test_a_map_of_the_site_that_the_server_fails_to_send_leaves_what_the_projects_names(tmp_path):
    async with opened(as_dcm2niix_leaves_it(T1_3D="T1w", REST="func/task-movie_bold"), tmp_path) as (site, demo):

        def fail(request):
            if request.path == "/data/config/bids/bidsmap":
                raise Failed(500, "null")

        demo.faults.append(fail)
        assert len(images(await tree(await find(site, "bids/P/sub-S1/ses-E1")))) == 3
        (row,) = await table(site, "bids/P/sourcedata/xnatfs/left-out.tsv")
        assert "the BIDS map of the site cannot be read" in row["reason"]
        demo.faults.clear()
        site.reload(None)
        rows = await table(site, "bids/P/sourcedata/xnatfs/left-out.tsv")
        assert ["which counts more than" in row["reason"] for row in rows] == [True, True]


async def test_what_only_a_map_that_is_none_could_name_is_an_error(tmp_path):
    made = as_dcm2niix_leaves_it(REST="func/task-movie_bold")
    made.configurations.put("bids", "bidsmap", "{", project="")
    convert(made, made.scan(session(made, "S2"), "1", series_description="odd"), "sub-x_T1w")
    async with opened(made, tmp_path) as (site, _):
        with pytest.raises(BadReply, match="the BIDS map of the site is not JSON, and nothing else names scan 2"):
            await tree(await find(site, "bids/P/sub-S1/ses-E1"))
        assert len(images(await tree(await find(site, "bids/P/sub-S2")))) == 1  # its files have names
        whole, row = await table(site, "bids/P/sourcedata/xnatfs/left-out.tsv")
        assert (row["session"], "names scan 2" in row["reason"]) == ("ses-E1", True)
        assert whole["reason"] == "the BIDS map of the site is not JSON: no line of it is used"


async def test_a_map_of_this_machine_replaces_one_that_is_none(tmp_path):
    path = tmp_path / "map.json"
    lines = {"T1 3D": "T1w", "rest": "task-own_bold"}
    path.write_text(json.dumps([{"series_description": key, "bidsname": name} for key, name in lines.items()]))
    made = as_dcm2niix_leaves_it()
    made.configurations.put("bids", "bidsmap", "{", project="P")
    async with opened(made, tmp_path) as (site, _):
        site.views = ViewOptions(bids_map=str(path))
        assert len(images(await tree(await find(site, "bids/P/sub-S1/ses-E1")))) == 3
        path.write_text("{")
        site.reload(None)
        with pytest.raises(BadReply, match="map.json is not JSON"):
            await tree(await find(site, "bids/P/sub-S1/ses-E1"))


async def test_a_map_of_the_site_does_not_replace_a_projects_that_is_none(tmp_path):
    made = as_dcm2niix_leaves_it()
    made.configurations.put("bids", "bidsmap", "{", project="P")
    async with opened(made, tmp_path) as (site, _):
        with pytest.raises(BadReply, match="the BIDS map of P is not JSON, and nothing else names"):
            await tree(await find(site, "bids/P/sub-S1/ses-E1"))


async def test_what_is_left_out_has_a_reason_and_a_line_that_names_it(tmp_path):
    made = as_dcm2niix_leaves_it()
    one = made.experiments["DEMO_E00001"]
    convert(made, made.scan(one, "11", series_description="AX FLAIR"), "flair")
    convert(made, made.scan(one, "12", series_description="rest", quality="unusable"), "rest_12")
    async with opened(made, tmp_path) as (site, _):
        rows = {row["scan"]: row for row in await table(site, "bids/P/sourcedata/xnatfs/left-out.tsv")}
        assert rows["11"]["map_line"] == '{"series_description": "AX FLAIR", "bidsname": "FLAIR"}'
        assert (rows["12"]["file"], rows["12"]["reason"]) == ("rest_12.nii.gz", "the scan is marked as unusable")
        found = images(await tree(await find(site, "bids/P/sub-S1/ses-E1")))
        assert "func/sub-S1_ses-E1_task-rest_run-01_bold.nii.gz" in found
        site.views = ViewOptions(bids_quality="any")
        site.reload(None)
        found = images(await tree(await find(site, "bids/P/sub-S1/ses-E1")))
        assert "func/sub-S1_ses-E1_task-rest_run-02_bold.nii.gz" in found


async def test_the_origin_of_each_file_is_listed(tmp_path):
    async with opened(as_xnat_converts(), tmp_path) as (site, _):
        rows = await table(site, "bids/P/sourcedata/xnatfs/map.tsv")
        files = [name for name in await tree(await find(site, ONE)) if "/" in name]
        assert [row["path"] for row in rows] == [f"sub-CASE1/ses-CASE1MR1/{name}" for name in files]
        assert all(row["uri"].startswith("/data/experiments/DEMO_E00001/scans/") for row in rows)


async def test_subjects_without_converted_images_are_not_in_the_dataset(tmp_path):
    made = as_xnat_converts()
    scan = made.scan(session(made, "DICOM only"), "1")
    made.file(resource(made, scan, "DICOM"), "1.dcm", b"1")
    async with opened(made, tmp_path) as (site, _):
        with pytest.raises(NotFound):
            await find(site, "bids/P/sub-DICOMonly")
        assert [row["participant_id"] for row in await table(site, "bids/P/participants.tsv")] == ["sub-CASE1"]


async def test_a_server_that_does_not_join_shows_all_subjects(tmp_path):
    made = as_xnat_converts()
    session(made, "EMPTY")
    async with opened(made, tmp_path) as (site, demo):
        demo.site.joins = "refused"
        assert [row["participant_id"] for row in await table(site, "bids/P/participants.tsv")] == [
            "sub-CASE1",
            "sub-EMPTY",
        ]
        assert await tree(await find(site, "bids/P/sub-EMPTY/ses-E1")) == {}


async def test_participants_have_what_the_server_states(tmp_path):
    made = as_xnat_converts()
    fields = {"gender": "female", "group": "control\tgroup", "age": "31", "handedness": "left"}
    made.subjects["DEMO_S00001"].fields = fields
    async with opened(made, tmp_path) as (site, _):
        (row,) = await table(site, "bids/P/participants.tsv")
        assert "age" not in row
        site.views = ViewOptions(bids_options=("demographics",))
        site.reload(None)
        (row,) = await table(site, "bids/P/participants.tsv")
        assert (row["age"], row["handedness"]) == ("31", "L")
        assert (row["sex"], row["group"], row["xnat_label"]) == ("F", "control group", "CASE 1")


async def test_other_resources_are_reported_and_not_shown(tmp_path):
    made = as_xnat_converts()
    one = made.experiments["DEMO_E00001"]
    for resources, label, name in (
        (one.scans[0].resources, "DICOM", "1.dcm"),
        (one.scans[0].resources, "secondary", "1.dcm"),
        (one.scans[3].resources, "PHYSIO", "log.puls"),
        (one.resources, "brain_mask@", "mask.nii.gz"),  # as FrameTree keeps derivatives
        (one.resources, "PROVENANCE", "brain_mask@.json"),
        (made.assessor(one, "FS").resources, "DATA", "mri/T1.mgz"),
    ):
        made.file(made.resource(resources, label), name, b"1")
    async with opened(made, tmp_path) as (site, _):
        rows = await table(site, "bids/P/sourcedata/xnatfs/left-out.tsv")
        assert {(row["scan"], row["file"]) for row in rows} == {
            ("2", "secondary"), ("3", "PHYSIO"), ("n/a", "brain_mask@"), ("n/a", "assessors/DEMO_E00002/DATA"),
        }  # fmt: skip
        assert len(await tree(await find(site, ONE))) == 11
        site.views = ViewOptions(hidden=("secondary",))
        site.reload(None)
        assert "secondary" not in {row["file"] for row in await table(site, "bids/P/sourcedata/xnatfs/left-out.tsv")}


async def test_authors_are_all_investigators_where_the_server_tells_them(tmp_path):
    async with opened(as_xnat_converts(), tmp_path) as (site, demo):
        described = json.loads(await content(await find(site, "bids/P/dataset_description.json")))
        assert described["Authors"] == ["Pat Demo", "Robin Sample"]

        def refuse(request):
            if request.path == "/data/projects/P":
                raise Failed(403, "no")

        demo.faults.append(refuse)
        site.reload(None)
        described = json.loads(await content(await find(site, "bids/P/dataset_description.json")))
        assert described["Authors"] == ["Demo"]  # the list of projects states no more


async def test_options_decide_about_sessions(tmp_path):
    async with opened(as_xnat_converts(), tmp_path) as (site, _):
        site.views = ViewOptions(bids_options=("ses=suffix", "dates"))
        assert await table(site, "bids/P/sub-CASE1/sub-CASE1_sessions.tsv") == [
            {"session_id": "ses-MR1", "xnat_session_id": "DEMO_E00001", "acq_time": "2024-01-02T00:00:00"}
        ]


async def test_a_new_scan_shows_after_its_listing_was_renewed(tmp_path):
    made = as_xnat_converts()
    async with opened(made, tmp_path) as (site, _):
        directory = await find(site, f"{ONE}/anat")
        assert len(await tree(directory)) == 6
        convert(made, made.scan(made.experiments["DEMO_E00001"], "12"), "sub-CASE1_ses-x_T2w")
        await site.renew(directory.sources())
        assert len(await tree(await find(site, ONE))) == 13
        assert (await find(site, f"{ONE}/anat/sub-CASE1_ses-CASE1MR1_T2w.nii.gz")).name


async def test_a_file_of_another_length_than_listed_is_read_whole(tmp_path):
    made = as_xnat_converts()
    entry = made.experiments["DEMO_E00001"].scans[1].resources[0].entries[0]
    entry.size, entry.digest = "3", ""
    async with opened(made, tmp_path) as (site, _):
        stem = "sub-CASE1_ses-CASE1MR1_run-02_T1w.nii.gz"
        assert await content(await find(site, f"{ONE}/anat/{stem}")) == b"image 8 sub-CASE1_ses-x_run-02_T1w"


async def test_hidden_scans_keep_their_numbers(tmp_path):
    made = as_dcm2niix_leaves_it()
    made.experiments["DEMO_E00001"].scans[0].quality = "questionable"
    async with opened(made, tmp_path) as (site, _):
        site.views = ViewOptions(qualities=("usable",))
        assert images(await tree(await find(site, "bids/P/sub-S1/ses-E1/anat"))) == ["sub-S1_ses-E1_run-02_T1w.nii.gz"]


async def test_sidecars_are_read_for_echoes_alone_and_no_image_with_them(tmp_path):
    made = archive()
    scan = made.scan(session(made), "9", series_description="me")
    for stem, time in (("x_e1", 0.009), ("x_e1a", 0.06), ("x_e2", 0.02), ("x_e2a", 0.04)):
        convert(made, scan, stem, apart=False, EchoTime=time)
    put_map(made, me="MEGRE")
    async with opened(made, tmp_path) as (site, demo):
        found = await tree(await find(site, "bids/P/sub-S1/ses-E1/anat"))
        third = await content(found["sub-S1_ses-E1_echo-3_MEGRE.json"])
        assert json.loads(third)["stem"] == "x_e2a"
        read = Counter(record.path.rpartition("/")[2] for record in demo.requests if "/files/" in record.path)
        assert read == dict.fromkeys(("x_e1.json", "x_e1a.json", "x_e2.json", "x_e2a.json"), 1)
        assert not [record for record in demo.requests if "tar" in str(record.query)]


async def test_the_sidecars_of_a_session_come_in_one_request(tmp_path):
    async with opened(as_xnat_converts(), tmp_path) as (site, demo):
        found = await tree(await find(site, ONE))
        before = len(demo.requests)
        for name, node in found.items():
            if name.endswith(".json") and "/" in name:
                assert json.loads(await content(node))["stem"]
        (record,) = demo.requests[before:]
        assert (record.path, record.query["format"]) == (
            "/data/experiments/DEMO_E00001/resources/102,104,106,108/files",
            "tar",
        )


async def test_sidecars_that_no_tar_brings_are_requested_singly(tmp_path):
    made = as_xnat_converts()
    for scan in made.experiments["DEMO_E00001"].scans:
        for entry in scan.resources[1].entries:
            entry.digest = ""
    async with opened(made, tmp_path) as (site, demo):
        found = await tree(await find(site, f"{ONE}/anat"))
        before = len(demo.requests)
        for name in [name for name in found if name.endswith(".json")]:
            assert json.loads(await content(found[name]))["stem"]
        assert len(demo.requests) - before == 3


async def test_a_session_of_which_images_cannot_be_listed_is_an_error_and_is_reported(tmp_path):
    made = as_xnat_converts()
    made.experiments["DEMO_E00001"].scans[1].resources[0].broken = True
    convert(made, made.scan(session(made, "S2"), "1"), "sub-x_T1w")
    async with opened(made, tmp_path) as (site, _):
        with pytest.raises(BadReply, match="the files of NIFTI of scan 8 cannot be listed"):
            await tree(await find(site, ONE))
        assert "sub-S2_ses-E1_T1w.nii.gz" in await tree(await find(site, "bids/P/sub-S2/ses-E1/anat"))
        (row,) = await table(site, "bids/P/sourcedata/xnatfs/left-out.tsv")
        assert (row["subject"], row["scan"]) == ("sub-CASE1", "n/a")
        assert "scan 8" in row["reason"]


async def test_tables_of_a_session_are_those_of_its_present_names(tmp_path):
    made = as_xnat_converts()
    path = f"{ONE}/sub-CASE1_ses-CASE1MR1_scans.tsv"
    async with opened(made, tmp_path) as (site, _):
        assert len(await table(site, path)) == 4
        convert(made, made.scan(made.experiments["DEMO_E00001"], "12"), "sub-CASE1_ses-x_T2w")
        await site.renew((await find(site, ONE)).sources())
        images_now = images(await tree(await find(site, ONE)))
        assert [row["filename"] for row in await table(site, path)] == images_now


async def test_a_session_whose_resources_are_refused_hides_no_other_and_is_reported(tmp_path):
    made = as_xnat_converts()
    two = session(made, "CASE 1", "later")
    convert(made, made.scan(two, "1"), "sub-x_T2w")
    async with opened(made, tmp_path) as (site, demo):

        def refuse(request):
            if request.path == f"/data/experiments/{two.id}/resources":
                raise Failed(500, "null")

        demo.faults.append(refuse)
        found = await find(site, "bids/P/sub-CASE1")
        assert isinstance(found, Dir)
        names = [node.name for node in (await found.children()).listed()]
        assert names[:2] == ["ses-CASE1MR1", "ses-later"]
        assert len(await tree(await find(site, ONE))) == 11
        with pytest.raises(BadReply):
            await tree(await find(site, "bids/P/sub-CASE1/ses-later"))
        (row,) = await table(site, "bids/P/sourcedata/xnatfs/left-out.tsv")
        assert (row["session"], "500" in row["reason"]) == ("ses-later", True)


async def test_a_shared_session_is_shown_though_the_server_joins_the_own_ones_alone(tmp_path):
    made = as_xnat_converts()
    made.project("Q", "Another project", other="Owners")
    other = made.experiment(made.subject(made.projects["Q"], "S9"), "E9")
    convert(made, made.scan(other, "1"), "sub-x_T1w")
    other.shared["P"] = "E9"
    session(made, "DICOM only")
    async with opened(made, tmp_path) as (site, demo):

        def refuse(request):
            if any("share" in key for key, _ in request.query.pairs):
                raise Failed(403, "no")

        demo.faults.append(refuse)
        found = await tree(await find(site, "bids/P"))
        assert "sub-S9/ses-E9/anat/sub-S9_ses-E9_T1w.nii.gz" in found
        assert "sub-DICOMonly" not in {name.partition("/")[0] for name in found}
