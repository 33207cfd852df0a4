"""Test the directories at the top: which there are, what filters leave out, and the layout of archive/."""

import pytest

from tests.support.nodes import find, names
from tests.support.scripted import Scripted, opened, resource, session, subject
from tests.tree.test_tree import content
from xnatfs.common.errors import NotFound
from xnatfs.settings.views import DEFAULT_VIEWS, ViewOptions
from xnatfs.tree import VIEWS, Root
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.node import Link

SESSION = "archive/projects/P/experiments/E"


@pytest.fixture
def server() -> Scripted:
    made = Scripted()
    made.lists["projects"] = [{"ID": "P"}, {"ID": "Q1"}, {"ID": "Q2"}]
    made.lists["experiments/X_E1/scans"] = [
        {"ID": "1", "type": "T1", "quality": "usable"},
        {"ID": "2", "type": "T1 mprage, axial", "quality": "unusable"},
        {"ID": "3", "type": "T2"},
    ]
    made.lists["experiments/X_E1/resources"] = [
        resource("7", "DICOM", cat_id="1"),
        resource("8", "SNAPSHOTS", cat_id="1"),
        resource("9", "secondary", cat_id="1"),
        resource("4", "QC", "resources"),
        resource("5", "RESULT", "assessors", "X_A1"),
        resource("6", "OUT", "reconstructions", "r1"),
    ]
    made.lists["experiments/X_E1/assessors"] = [{"ID": "X_A1", "label": "FS", "session_ID": "X_E1"}]
    made.lists["projects/P/resources"] = [resource("2", "PAPER", "resources")]
    made.lists["subjects/X_S1/resources"] = [resource("3", "CONSENT", "resources")]
    made.add("a", b"12345")
    return made


async def test_the_default_views_are_listed_and_archive_is_not(server, tmp_path):
    async with opened(server, tmp_path) as site:
        shown = list((await Root(site).children()).nodes)
        assert shown == [name for name in DEFAULT_VIEWS if name in VIEWS]
        with pytest.raises(NotFound):
            await find(site, "archive")


async def test_links_lead_somewhere_even_if_projects_is_not_shown(server, tmp_path):
    async with opened(server, tmp_path) as site:
        site.views = ViewOptions(shown=("experiments",))
        assert list((await Root(site).children()).nodes) == ["experiments"]
        await names(site, "projects/P/S")
        found = await find(site, "experiments/X_E1")
        assert isinstance(found, Link)
        assert await names(site, (await found.follow()).removeprefix("../")) != []


async def test_archive_has_the_server_s_layout(server, tmp_path):
    async with opened(server, tmp_path) as site:
        site.views = ViewOptions(shown=("archive",))
        assert await names(site, "archive") == ["projects"]
        assert await names(site, "archive/projects/P") == ["experiments", "resources", "subjects"]
        assert await names(site, "archive/projects/P/experiments") == ["E"]
        assert await names(site, SESSION) == ["SCANS", "RESOURCES", "ASSESSORS", "PROCESSED"]
        assert await names(site, f"{SESSION}/SCANS/1") == ["DICOM", "SNAPSHOTS", "secondary"]
        assert await names(site, f"{SESSION}/RESOURCES") == ["QC"]
        assert await names(site, f"{SESSION}/ASSESSORS/FS") == ["RESULT"]
        assert await names(site, f"{SESSION}/PROCESSED/r1") == ["OUT"]
        assert await names(site, "archive/projects/P/resources") == ["PAPER"]
        assert await names(site, "archive/projects/P/subjects/S") == ["CONSENT"]
        assert await names(site, "archive/projects/P/experiments/X_E1/SCANS") == ["1", "2", "3"]
        assert await content(site, f"{SESSION}/SCANS/1/DICOM/a") == b"12345"


async def test_a_file_is_one_file_in_every_view_and_no_list_is_requested_twice(server, tmp_path):
    async with opened(server, tmp_path) as site:
        site.views = ViewOptions(shown=("projects", "archive"))
        one = await find(site, "projects/P/S/E/scans/1/DICOM/a")
        await content(site, "projects/P/S/E/scans/1/DICOM/a")
        asked = len(server.asked)
        other = await find(site, f"{SESSION}/SCANS/1/DICOM/a")
        assert await content(site, f"{SESSION}/SCANS/1/DICOM/a") == b"12345"
        assert len(server.asked) == asked
        assert isinstance(one, CatalogueFile)
        assert isinstance(other, CatalogueFile)
        assert (one.identity, one.version, one.inode_hint()) == (other.identity, other.version, other.inode_hint())


async def test_sessions_of_all_subjects_stand_together_in_archive(server, tmp_path):
    server.lists["projects/P/subjects"] = [subject("X_S1", "S"), subject("X_S2", "T")]
    server.lists["projects/P/experiments"] = [session("X_E1", "E"), session("X_E2", "E", "X_S2")]
    async with opened(server, tmp_path) as site:
        site.views = ViewOptions(shown=("archive",))
        assert await names(site, "archive/projects/P/experiments") == ["E", "E~X_E2"]


# -- filters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("views", "shown"),
    [
        (ViewOptions(), ["1", "2", "3"]),
        (ViewOptions(scan_types=("T1",)), ["1"]),
        (ViewOptions(scan_types=("T1*",)), ["1", "2"]),
        (ViewOptions(scan_types=("T1 mprage? axial", "T2")), ["2", "3"]),
        (ViewOptions(qualities=("usable",)), ["1"]),
        (ViewOptions(qualities=("usable", "none")), ["1", "3"]),
        (ViewOptions(scan_types=("T?",), qualities=("unusable",)), []),
    ],
)
@pytest.mark.parametrize("place", ["projects/P/S/E/scans", f"{SESSION}/SCANS"])
async def test_scans_are_left_out_by_type_and_quality_in_every_view(server, tmp_path, views, shown, place):
    async with opened(server, tmp_path) as site:
        site.views = ViewOptions(("projects", "archive"), scan_types=views.scan_types, qualities=views.qualities)
        assert await names(site, place) == shown


@pytest.mark.parametrize(
    ("views", "of_scan", "of_session"),
    [
        (ViewOptions(hidden=("SNAPSHOTS", "secondary")), ["DICOM"], ["QC"]),
        (ViewOptions(resources=("DICOM",)), ["DICOM"], []),
        (ViewOptions(resources=("*C*",), hidden=("QC",)), ["DICOM"], []),
    ],
)
async def test_resources_are_left_out_at_every_level(server, tmp_path, views, of_scan, of_session):
    async with opened(server, tmp_path) as site:
        site.views = views
        assert await names(site, "projects/P/S/E/scans/1") == of_scan
        assert await names(site, "projects/P/S/E/resources") == of_session


async def test_projects_are_left_out_with_their_links(server, tmp_path):
    server.lists["experiments"] = [session("X_E1", "E", project="P"), session("X_E9", "E9", project="Q1")]
    async with opened(server, tmp_path) as site:
        site.views = ViewOptions(projects=("Q?",))
        assert await names(site, "projects") == ["Q1", "Q2"]
        assert await names(site, "experiments") == ["X_E9"]
        with pytest.raises(NotFound):
            await find(site, "projects/P")


async def test_a_filter_that_leaves_no_project_is_reported(server, tmp_path, caplog):
    async with opened(server, tmp_path) as site:
        site.views = ViewOptions(projects=("p", "NONE"))
        assert await names(site, "projects") == []
    assert "no project is shown: --projects p,NONE matches none" in caplog.text


async def test_a_filter_renames_nothing_and_addresses_nothing_else(server, tmp_path):
    """A resource without its equal stays LABEL~ID, and a scan whose ID is the type of a hidden one is not confused."""
    server.lists["experiments/X_E1/scans"] = [{"ID": "1", "type": "x"}, {"ID": "x", "type": "T2"}]
    server.lists["experiments/X_E1/resources"] = [
        resource("7", "DICOM", cat_id="x"),
        resource("9", "DICOM", cat_id="x"),
    ]
    async with opened(server, tmp_path) as site:
        await names(site, "projects/P/S/E/scans/x")
        unfiltered = await find(site, "projects/P/S/E/scans/x/DICOM~9")
    async with opened(server, tmp_path / "again") as site:
        site.views = ViewOptions(scan_types=("T2",))
        assert await names(site, "projects/P/S/E/scans") == ["x"]
        found = await find(site, "projects/P/S/E/scans/x/DICOM~9")
        assert found.xattrs() == unfiltered.xattrs()
