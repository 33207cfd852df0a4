"""Test the tree over servers that answer oddly: what is shown, what is requested, what is raised."""

import io
import tarfile
import tracemalloc

import httpx
import pytest
import trio

from tests.support.nodes import find, names
from tests.support.scripted import Scripted, opened, resource, session, subject
from xnatfs.common.errors import BadReply, Denied, NotFound, Stale, XnatError
from xnatfs.listings.keys import FilesKey, FoldersKey
from xnatfs.site import Site
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.node import UNDATED_EPOCH_SECONDS, Children, Dir, File, Link, measure
from xnatfs.tree.resource_files import MIN_RIGHT_RESOURCES, SAMPLED_FILES


@pytest.fixture
def server() -> Scripted:
    return Scripted()


async def content(site: Site, path: str) -> bytes:
    node = await find(site, path)
    assert isinstance(node, File)
    blob = await node.open()
    try:
        return await blob.read(0, blob.size + 1)
    finally:
        blob.close()


async def read(site: Site, path: str) -> bytes:
    """Read as the kernel does: look up and open once more where it is stale."""
    try:
        return await content(site, path)
    except Stale:
        return await content(site, path)


SCAN = "projects/P/S/E/scans/1"
TABLES = ("subjects.tsv", "sessions.tsv", "scans.tsv")
FILES = "experiments/X_E1/scans/1/resources/7/files"


# -- what is shown ---------------------------------------------------------------------------------------------


async def test_a_session_is_listed_without_a_request(server, tmp_path):
    async with opened(server, tmp_path) as site:
        await names(site, "projects/P/S")
        server.forget_requests()
        assert await names(site, "projects/P/S/E") == [
            *("scans", "resources", "assessors", "reconstructions"),
            *("session.json", "scans.tsv", "session.xml"),
        ]
    assert server.asked == []


async def test_a_session_shows_though_its_subject_is_not_listed(server, tmp_path):
    server.lists["projects/P/experiments"] = [session("X_E2", "E2", "X_S9", subject_label="FOREIGN")]
    async with opened(server, tmp_path) as site:
        assert await names(site, "projects/P") == ["resources", "FOREIGN", "S", *TABLES]
        assert await names(site, "projects/P/FOREIGN") == ["resources", "E2"]


async def test_a_project_of_many_subjects_is_listed(server, tmp_path, monkeypatch):
    monkeypatch.setattr("xnatfs.common.tasks.MOST_ROWS_IN_LOOP", 0)  # in a thread, as large ones are
    async with opened(server, tmp_path) as site:
        assert await names(site, "projects/P") == ["resources", "S", *TABLES]


async def test_labels_equal_to_reserved_names_give_way(server, tmp_path):
    server.lists["projects/P/subjects"] = [{"ID": "X_S1", "label": "resources", "project": "P"}]
    server.lists["projects/P/experiments"] = [session("X_E1", "resources")]
    async with opened(server, tmp_path) as site:
        assert await names(site, "projects/P") == ["resources", "resources~X_S1", *TABLES]
        assert await names(site, "projects/P/resources~X_S1") == ["resources", "resources~X_E1"]


async def test_a_subject_called_scans_is_not_taken_for_those_of_a_session(server, tmp_path):
    server.lists["projects/P/subjects"] = [subject("X_S1", "scans")]
    server.lists["projects/P/resources"] = [resource("1", "PAPER", "resources")]
    server.add("a", b"12345", number="1")
    server.lists["projects/P/files"] = server.lists["experiments/X_E1/files"]
    async with opened(server, tmp_path) as site:
        assert await names(site, "projects/P/scans") == ["resources", "E"]
        assert await content(site, "projects/P/resources/PAPER/a") == b"12345"


async def test_accession_ids_are_found_but_not_listed(server, tmp_path):
    async with opened(server, tmp_path) as site:
        assert await names(site, "projects/P/X_S1/X_E1/scans") == ["1"]
        assert "X_S1" not in await names(site, "projects/P")


async def test_two_resources_with_one_label_and_one_without(server, tmp_path):
    rows = [resource("10", "A", cat_id="1"), resource("9", "A", cat_id="1"), resource("8", "", cat_id="1")]
    server.lists["experiments/X_E1/resources"] = rows
    async with opened(server, tmp_path) as site:
        assert sorted(await names(site, SCAN)) == ["A", "A~10", "~8"]


async def test_resources_are_shown_where_they_hang(server, tmp_path):
    server.lists["experiments/X_E1/assessors"] = [{"ID": "X_E9", "label": "QC"}]
    server.lists["experiments/X_E1/resources"] = [
        resource("1", "OWN", "resources", "X_E1"),
        resource("2", "OUT", "assessors", "X_E9"),
        resource("3", "REC", "reconstructions", "r&amp;1"),
    ]
    async with opened(server, tmp_path) as site:
        assert await names(site, "projects/P/S/E/resources") == ["OWN"]
        assert await names(site, "projects/P/S/E/assessors/QC") == ["OUT"]
        assert await names(site, "projects/P/S/E/assessors/X_E9") == ["OUT"]
        assert await names(site, "projects/P/S/E/reconstructions") == ["r&1"]
        assert await names(site, SCAN) == []


@pytest.mark.parametrize("status", [404, 500])
async def test_what_is_no_imaging_session_has_empty_parts(server, tmp_path, status, autojump_clock):
    server.lists["projects/P/experiments"] = [session("X_E1", "E", xsiType="xnat:subjectVariablesData")]
    server.lists["experiments/X_E1/scans"] = server.lists["experiments/X_E1/assessors"] = status
    async with opened(server, tmp_path) as site:
        assert await names(site, "projects/P/S/E/scans") == []
        assert await names(site, "projects/P/S/E/assessors") == []


async def test_an_imaging_session_whose_scans_cannot_be_listed_is_an_error(server, tmp_path, autojump_clock):
    server.lists["experiments/X_E1/scans"] = 500
    async with opened(server, tmp_path) as site:
        with pytest.raises(BadReply):
            await names(site, "projects/P/S/E/scans")


async def test_a_protected_project_can_be_seen_and_not_entered(server, tmp_path):
    server.lists["projects/P/subjects"] = 403
    server.lists["projects/P/resources"] = [resource("1", "PAPER", "resources")]
    async with opened(server, tmp_path) as site:
        assert await names(site, "projects") == ["P"]
        with pytest.raises(Denied):
            await names(site, "projects/P")
        assert await names(site, "projects/P/resources") == ["PAPER"]


async def test_a_file_that_is_a_folder_too(server, tmp_path):
    server.add("a", b"file")
    server.add("a/b", b"below")
    async with opened(server, tmp_path) as site:
        assert sorted(await names(site, f"{SCAN}/DICOM")) == ["a", "a~file"]
        assert await content(site, f"{SCAN}/DICOM/a~file") == b"file"
        assert await content(site, f"{SCAN}/DICOM/a/b") == b"below"


async def test_a_path_is_found_by_its_raw_name_too(server, tmp_path):
    server.add("a%2Fb", b"x")
    async with opened(server, tmp_path) as site:
        assert await names(site, f"{SCAN}/DICOM") == ["a%252Fb"]
        assert (await find(site, f"{SCAN}/DICOM/a%2Fb")).name == "a%252Fb"


# -- links -----------------------------------------------------------------------------------------------------


ASSESSOR = {"ID": "X_E9", "label": "QC", "project": "P", "session_ID": "X_E1"}


def with_site_lists(server: Scripted, *more: dict[str, str]) -> None:
    """Add lists of all subjects, sessions and assessors."""
    sessions = [session("X_E1", "E", project="P"), *more]
    server.lists["subjects"] = [subject("X_S1", "S")]
    by_type = {"xnat:subjectAssessorData": sessions, "xnat:imageAssessorData": [ASSESSOR]}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"ResultSet": {"Result": by_type[request.url.params["xsiType"]]}})

    server.answers["experiments"] = answer


async def link(site: Site, path: str) -> Link:
    found = await find(site, path)
    assert isinstance(found, Link)
    return found


async def test_links_to_all_that_the_account_may_see_are_two_requests(server, tmp_path):
    with_site_lists(server)
    async with opened(server, tmp_path) as site:
        assert await names(site, "experiments") == ["X_E1", "X_E9"]
        assert await names(site, "subjects") == ["X_S1"]
        assert sorted(server.asked) == ["GET experiments", "GET experiments", "GET projects", "GET subjects"]
        paths = ("experiments/X_E1", "experiments/X_E9", "subjects/X_S1")
        targets = [(await link(site, path)).target for path in paths]
        await names(site, "experiments")
    assert targets == ["../projects/P/S/E", "../projects/P/S/E/assessors/QC", "../projects/P/S"]
    assert len(server.asked) == 4


async def test_a_link_leads_where_the_project_itself_says(server, tmp_path):
    """Ask the project: of two subjects of one label, the site's list does not tell which has another name in it."""
    with_site_lists(server)
    server.lists["projects/P/experiments"] = [session("X_E1", "E"), session("X_E2", "E", "X_S0")]
    server.lists["experiments/X_E1/assessors"] = [ASSESSOR]
    async with opened(server, tmp_path) as site:
        await names(site, "experiments")
        session_link, assessor_link = await link(site, "experiments/X_E1"), await link(site, "experiments/X_E9")
        assert await session_link.follow() == session_link.target == "../projects/P/S~X_S1/E"
        assert await assessor_link.follow() == "../projects/P/S~X_S1/E/assessors/QC"
        await names(site, "experiments")
        assert (await link(site, "experiments/X_E1")).target == "../projects/P/S~X_S1/E"  # known by now


async def test_links_show_what_is_shared_once_its_project_was_listed(server, tmp_path):
    """Add them to the list of the site, from which XNAT leaves out what a project shares and does not own."""
    with_site_lists(server)
    server.lists["projects/P/experiments"] = [session("X_E1", "E"), session("X_E7", "FROM_AFAR")]
    async with opened(server, tmp_path) as site:
        assert "X_E7" not in await names(site, "experiments")
        await names(site, "projects/P")
        assert "X_E7" in await names(site, "experiments")
        assert await (await link(site, "experiments/X_E7")).follow() == "../projects/P/S/FROM_AFAR"


async def test_a_link_of_which_the_owner_is_closed_leads_to_a_project_that_shares_it(server, tmp_path):
    with_site_lists(server, session("X_E7", "FROM_AFAR", project="CLOSED"))
    server.lists["projects/P/experiments"] = [session("X_E1", "E"), session("X_E7", "HERE")]
    server.answers["experiments/X_E7"] = lambda r: document(ID="X_E7", project="CLOSED")
    server.lists["experiments/X_E7/projects"] = [{"ID": "CLOSED", "label": "FROM_AFAR"}, {"ID": "P", "label": "HERE"}]
    async with opened(server, tmp_path) as site:
        assert "X_E7" in await names(site, "experiments")
        assert await (await link(site, "experiments/X_E7")).follow() == "../projects/P/S/HERE"


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_links_that_cannot_all_be_listed_are_not_listed_in_part(server, tmp_path, status):
    with_site_lists(server)
    server.lists["subjects"] = status
    server.answers["subjects/X_S1"] = lambda r: document(ID="X_S1", project="P")
    async with opened(server, tmp_path) as site:
        await names(site, "projects/P")
        with pytest.raises(XnatError, match="subjects"):
            await names(site, "subjects")
        assert (await link(site, "subjects/X_S1")).target == "../projects/P/S"


async def test_links_to_a_large_site_fit_into_memory(server, tmp_path):
    """Store hundreds of thousands at 510 bytes each (measured by itself; 600 in a process that has run much else)."""
    many = [session(f"X_E{n}", f"SUBJECT{n // 2:05}_MR", f"X_S{n // 2}", project=f"P{n % 100}") for n in range(20_000)]
    with_site_lists(server, *many)
    async with opened(server, tmp_path) as site:
        await site.projects()
        tracemalloc.start()
        try:
            directory = await find(site, "experiments")
            assert isinstance(directory, Dir)
            listed = (await directory.children()).listed()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(listed) == len(many)
        assert held / len(many) < 700
        last = listed[len(many) - 1]
        assert isinstance(last, Link)
        assert (last.name, last.target) == ("X_E19999", "../projects/P99/S/SUBJECT09999_MR")


async def test_links_are_listed_project_by_project(server, tmp_path):
    """A client that follows them in turn would else need the listings of all projects at once, again with each TTL."""
    more = [session(f"X_E{n}", f"E{n}", project="PQ"[n % 2]) for n in range(2, 8)]
    with_site_lists(server, *more)
    server.lists["subjects"] = [subject(f"X_S{n}", f"S{n}", "PQ"[n % 2]) for n in range(4)]
    async with opened(server, tmp_path) as site:
        assert await names(site, "experiments") == ["X_E1", "X_E2", "X_E4", "X_E6", "X_E9", "X_E3", "X_E5", "X_E7"]
        assert await names(site, "subjects") == ["X_S0", "X_S2", "X_S1", "X_S3"]


async def test_assessors_that_are_each_other_s_session_are_listed(server, tmp_path):
    """They led the listing round in a circle until Python ended it: EIO, and the links behind them never came."""
    circle = [{**ASSESSOR, "ID": "X_E3", "session_ID": "X_E4"}, {**ASSESSOR, "ID": "X_E4", "session_ID": "X_E3"}]

    def answer(request: httpx.Request) -> httpx.Response:
        assessors = request.url.params["xsiType"] == "xnat:imageAssessorData"
        return httpx.Response(200, json={"ResultSet": {"Result": circle if assessors else []}})

    server.answers["experiments"] = answer
    async with opened(server, tmp_path) as site:
        directory = await find(site, "experiments")
        assert isinstance(directory, Dir)
        assert [node.name for node in (await directory.children()).listed()] == ["X_E3", "X_E4"]


async def test_a_hidden_file_is_not_asked_for_among_the_links(server, tmp_path):
    """As git and file managers look for `.git` and `.hidden` wherever they are."""
    async with opened(server, tmp_path) as site:
        for directory in ("experiments", "subjects"):
            with pytest.raises(NotFound):
                await find(site, f"{directory}/.git")
    assert server.asked == []


async def test_a_lookup_lists_nothing_of_the_whole_site(server, tmp_path):
    server.answers["experiments/X_E1"] = lambda r: document(ID="X_E1", project="P")
    async with opened(server, tmp_path) as site:
        await find(site, "experiments/X_E1")
    assert "GET experiments" not in server.asked


def document(**fields: str) -> httpx.Response:
    return httpx.Response(200, json={"items": [{"data_fields": fields, "children": []}]})


async def test_any_accession_id_resolves(server, tmp_path):
    server.answers["experiments/X_E1"] = lambda r: document(ID="X_E1", project="P")
    server.answers["experiments/X_E9"] = lambda r: document(ID="X_E9", project="P", imageSession_ID="X_E1")
    server.answers["subjects/X_S1"] = lambda r: document(ID="X_S1", project="P")
    server.lists["experiments/X_E1/assessors"] = [{"ID": "X_E9", "label": "QC"}]
    async with opened(server, tmp_path) as site:
        targets = [await find(site, path) for path in ("experiments/X_E9", "experiments/X_E1", "subjects/X_S1")]
        with pytest.raises(NotFound):
            await find(site, "experiments/NOBODY")
    assert [link.target for link in targets if isinstance(link, Link)] == [
        "../projects/P/S/E/assessors/QC",
        "../projects/P/S/E",
        "../projects/P/S",
    ]


@pytest.mark.parametrize("links", ["experiments", "subjects"])
async def test_a_link_and_a_list_of_the_same_name_are_told_apart(server, tmp_path, links):
    """Show the project's subjects: `ls experiments/BRAINS`, where BRAINS is a project, hid them."""
    for first, second in ((f"{links}/P", "projects/P/S/E"), ("projects/P/S/E", f"{links}/P")):
        async with opened(server, tmp_path) as site:
            for path in (first, second):
                if path.startswith("projects"):
                    assert (await find(site, path)).name == "E"
                else:
                    with pytest.raises(NotFound):
                        await find(site, path)


async def test_a_shared_session_links_to_its_owner(server, tmp_path):
    server.lists["projects"] = [{"ID": "P"}, {"ID": "P2"}]
    server.lists["projects/P2/subjects"] = [{"ID": "X_S1", "label": "SX", "project": "P"}]
    server.lists["projects/P2/experiments"] = [session("X_E1", "EX")]
    server.answers["experiments/X_E1"] = lambda r: document(ID="X_E1", project="P")
    async with opened(server, tmp_path) as site:
        await names(site, "projects/P2")
        link = await find(site, "experiments/X_E1")
        assert isinstance(link, Link)
        assert link.target == "../projects/P/S/E"


# -- what is asked ---------------------------------------------------------------------------------------------


async def test_a_session_costs_four_requests(server, tmp_path):
    server.add("a", b"1")
    server.add("b/c", b"2")
    async with opened(server, tmp_path) as site:
        await names(site, "projects/P/S")
        server.forget_requests()
        for _ in range(2):
            for part in ("scans", "assessors", "resources", "reconstructions", "scans/1", "scans/1/DICOM"):
                await names(site, f"projects/P/S/E/{part}")
    assert sorted(server.asked) == [
        "GET experiments/X_E1/assessors",
        "GET experiments/X_E1/files",
        "GET experiments/X_E1/resources",
        "GET experiments/X_E1/scans",
    ]


async def test_nothing_is_older_than_the_ttl(server, tmp_path, autojump_clock):
    async with opened(server, tmp_path) as site:
        await names(site, "projects/P")
        await trio.sleep(59)
        assert await names(site, "projects/P/S") == ["resources", "E"]
        server.lists["projects/P/experiments"] = []
        await trio.sleep(2)
        assert await names(site, "projects/P/S") == ["resources"]


async def test_a_size_the_listing_lacks_costs_one_head(server, tmp_path):
    server.add("a", b"12345", size="")
    async with opened(server, tmp_path) as site:
        for _ in range(3):
            node = await find(site, f"{SCAN}/DICOM/a")
            assert isinstance(node, File)
            assert await node.size() == 5
        assert await content(site, f"{SCAN}/DICOM/a") == b"12345"
    assert [line for line in server.asked if line.startswith("HEAD")] == [f"HEAD {FILES}/a"]


# -- wrong listings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", ["3", "300", ""])
@pytest.mark.parametrize("digest", [None, ""])
async def test_a_wrong_size_is_corrected_when_the_file_is_opened(server, tmp_path, listed, digest):
    server.add("a", b"12345", size=listed, digest=digest)
    async with opened(server, tmp_path) as site:
        before = await find(site, f"{SCAN}/DICOM/a")
        if listed:
            with pytest.raises(Stale):
                await content(site, f"{SCAN}/DICOM/a")
        assert await content(site, f"{SCAN}/DICOM/a") == b"12345"
        after = await find(site, f"{SCAN}/DICOM/a")
        assert isinstance(after, File)
        assert await after.size() == 5
        if listed:
            assert after.identity == before.identity
            assert after.version != before.version
            assert after.modified_ns() == before.modified_ns()
    assert server.asked.count(f"GET {FILES}/a") == 1


def with_total(server: Scripted, count: int, size: int) -> None:
    """State how many files the resource has, and of how many bytes."""
    stated = {"file_count": str(count), "file_size": str(size)}
    server.lists["experiments/X_E1/resources"] = [{**resource("7", "DICOM", cat_id="1"), **stated}]


async def shown_sizes(site: Site) -> dict[str, int]:
    """Return the lengths that a listing shows, of all files; nothing is opened."""
    nodes = (await _children(site, f"{SCAN}/DICOM")).listed()
    files = [node for node in nodes if isinstance(node, File)]
    await measure(file for file in files if not file.measured)
    return {file.name: file.measured_size for file in files}


async def _children(site: Site, path: str) -> Children:
    node = await find(site, path)
    assert isinstance(node, Dir)
    return await node.children()


def heads(server: Scripted) -> list[str]:
    found = [line.rpartition("/")[2] for line in server.asked if line.startswith("HEAD")]
    server.forget_requests()
    return sorted(found)


@pytest.mark.parametrize("digest", [None, ""])
@pytest.mark.parametrize("stated", [None, 600])
async def test_sizes_that_nothing_speaks_against_are_not_asked_for(server, tmp_path, digest, stated):
    for number in range(6):
        server.add(f"{number}", b"x" * 100, digest=digest)
    if stated:
        with_total(server, 6, stated)
    async with opened(server, tmp_path) as site:
        assert set((await shown_sizes(site)).values()) == {100}
    assert heads(server) == []


async def test_sizes_are_asked_for_where_their_total_is_another_one(server, tmp_path, autojump_clock):
    for number in range(40):
        server.add(f"{number}", b"x" * 100, size="90" if number == 3 else None)
    with_total(server, 40, 4000)
    async with opened(server, tmp_path) as site:
        assert set((await shown_sizes(site)).values()) == {100}
        assert heads(server) == sorted(map(str, range(40)))  # all, since one is wrong
        await trio.sleep(100)
        assert set((await shown_sizes(site)).values()) == {100}
        assert heads(server) == []  # what is listed is what was listed


async def test_a_total_that_is_out_of_date_costs_one_batch(server, tmp_path, autojump_clock):
    for number in range(40):
        server.add(f"{number}", b"x" * 100)
    with_total(server, 40, 4001)
    async with opened(server, tmp_path) as site:
        for asked in (SAMPLED_FILES, 0):
            assert set((await shown_sizes(site)).values()) == {100}
            assert len(heads(server)) == asked
            await trio.sleep(100)


async def test_a_total_of_another_number_of_files_tells_nothing(server, tmp_path):
    server.add("a", b"x" * 100)
    with_total(server, 0, 4001)
    async with opened(server, tmp_path) as site:
        await shown_sizes(site)
    assert heads(server) == []


async def test_totals_are_not_believed_once_they_were_wrong_so_often(server, tmp_path):
    resources = []
    for number in range(MIN_RIGHT_RESOURCES + 2):
        server.add("a", b"x" * 100, number=f"{number}0")
        listed = resource(f"{number}0", f"R{number}", cat_id="1")
        resources.append({**listed, "file_count": "1", "file_size": "99"})
    server.lists["experiments/X_E1/resources"] = resources
    async with opened(server, tmp_path) as site:
        for number in range(MIN_RIGHT_RESOURCES + 2):
            file = await find(site, f"{SCAN}/R{number}/a")
            assert isinstance(file, File)
            assert await file.size() == 100
    assert len(heads(server)) == MIN_RIGHT_RESOURCES


@pytest.mark.parametrize("size", [None, "90"], ids=["right", "wrong"])
async def test_files_without_a_digest_among_others_are_asked_for_first(server, tmp_path, size):
    """Check the oldest entries first: if one of them is wrong, so may the others be."""
    server.add("stale", b"x" * 100, size="90" if size else None)
    server.add("old", b"x" * 100, size=size, digest="")
    server.add("new", b"x" * 100)
    async with opened(server, tmp_path) as site:
        assert await (await _file(site, "stale")).size() == 100
        assert heads(server) == (["old", "stale"] if size else ["old"])
        assert set((await shown_sizes(site)).values()) == {100}
        assert heads(server) == (["new"] if size else [])


async def _file(site: Site, name: str) -> File:
    node = await find(site, f"{SCAN}/DICOM/{name}")
    assert isinstance(node, File)
    return node


async def test_an_empty_file_is_asked_for_unless_its_digest_says_so(server, tmp_path):
    server.add("catalogued", b"x" * 100, size="0", digest="")
    async with opened(server, tmp_path) as site:
        assert await shown_sizes(site) == {"catalogued": 100}
    assert heads(server) == ["catalogued"]
    server.lists["experiments/X_E1/files"] = []
    server.add("empty", b"")
    async with opened(server, tmp_path / "other") as site:
        assert await shown_sizes(site) == {"empty": 0}
    assert heads(server) == []


@pytest.mark.parametrize("status", [403, 404, 405, 500, 503])
async def test_a_doubtful_size_is_as_listed_where_the_server_does_not_say(server, tmp_path, status, autojump_clock):
    server.add("a", b"x" * 100)
    with_total(server, 1, 99)
    server.answers[f"{FILES}/a"] = lambda request: httpx.Response(status)
    async with opened(server, tmp_path) as site:
        assert await shown_sizes(site) == {"a": 100}


async def test_a_damaged_answer_of_another_length_does_not_correct_the_size(server, tmp_path):
    """Check the digest before the length is trusted: a wrong length was shown until the next open (scripts/stress)."""
    server.add("a", b"12345")
    async with opened(server, tmp_path) as site:
        before = await find(site, f"{SCAN}/DICOM/a")
        server.files["7", "a"] = b"12345678"
        with pytest.raises(BadReply, match="MD5"):
            await content(site, f"{SCAN}/DICOM/a")
        after = await find(site, f"{SCAN}/DICOM/a")
        assert isinstance(after, File)
        assert (await after.size(), after.identity) == (5, before.identity)
        server.files["7", "a"] = b"12345"
        assert await content(site, f"{SCAN}/DICOM/a") == b"12345"


async def test_a_corrected_size_outlives_the_listing(server, tmp_path, autojump_clock):
    server.add("a", b"12345", size="3")
    async with opened(server, tmp_path) as site:
        assert await read(site, f"{SCAN}/DICOM/a") == b"12345"
        await trio.sleep(100)
        assert await content(site, f"{SCAN}/DICOM/a") == b"12345"


@pytest.mark.parametrize("digest", ["N/A", "sha256:" + "a" * 64, "a" * 64, " "])
async def test_a_digest_that_is_no_md5_is_as_good_as_none(server, tmp_path, digest):
    server.add("a", b"12345", digest=digest)
    async with opened(server, tmp_path) as site:
        assert await content(site, f"{SCAN}/DICOM/a") == b"12345"


async def test_bytes_that_disagree_with_the_digest_are_an_error(server, tmp_path):
    server.add("a", b"12345", digest="1" * 32)
    async with opened(server, tmp_path) as site:
        with pytest.raises(BadReply, match="MD5"):
            await content(site, f"{SCAN}/DICOM/a")


async def test_a_listed_file_that_the_server_has_lost_is_an_error(server, tmp_path):
    server.add("a", b"12345")
    server.files.clear()
    async with opened(server, tmp_path) as site:
        with pytest.raises(BadReply, match="has lost it"):
            await content(site, f"{SCAN}/DICOM/a")


async def test_a_file_that_was_deleted_meanwhile_is_not_found(server, tmp_path, autojump_clock):
    server.add("a", b"12345")
    async with opened(server, tmp_path) as site:
        await names(site, f"{SCAN}/DICOM")
        await trio.sleep(30)
        server.files.clear()
        server.lists["experiments/X_E1/files"] = []
        with pytest.raises(NotFound):
            await content(site, f"{SCAN}/DICOM/a")


async def test_a_forbidden_file_is_denied(server, tmp_path):
    server.add("a", b"12345")
    server.answers[f"{FILES}/a"] = lambda r: httpx.Response(403)
    async with opened(server, tmp_path) as site:
        with pytest.raises(Denied):
            await content(site, f"{SCAN}/DICOM/a")


async def test_one_broken_catalogue_spoils_only_its_own_resource(server, tmp_path):
    server.lists["experiments/X_E1/resources"] = [
        resource("7", "DICOM", cat_id="1"),
        resource("8", "BROKEN", cat_id="1"),
    ]
    server.add("a", b"12345")
    rows = server.lists["experiments/X_E1/files"]
    server.lists["experiments/X_E1/files"] = 404
    server.lists[FILES] = rows
    async with opened(server, tmp_path) as site:
        assert await names(site, f"{SCAN}/DICOM") == ["a"]
        with pytest.raises(BadReply, match="cannot read the catalogue of resource 8"):
            await names(site, f"{SCAN}/BROKEN")


def counted(number: str, label: str, cat_id: str, count: str, size: str = "") -> dict[str, str]:
    return {**resource(number, label, cat_id=cat_id), "file_count": count, "file_size": size}


@pytest.mark.parametrize(("count", "size"), [("2", "10"), ("2", ""), ("", "10")])
async def test_a_list_without_files_that_are_stated_is_made_good(server, tmp_path, count, size):
    server.lists["experiments/X_E1/resources"] = [counted("7", "DICOM", "1", count, size)]
    server.add("a", b"12345")
    server.add("b", b"12345")
    rows = server.lists["experiments/X_E1/files"]
    server.lists["experiments/X_E1/scans/1/resources/7/files"] = rows
    server.lists["experiments/X_E1/files"] = []
    async with opened(server, tmp_path) as site:
        assert await names(site, f"{SCAN}/DICOM") == ["a", "b"]
        assert await content(site, f"{SCAN}/DICOM/b") == b"12345"
    assert server.asked.count("GET experiments/X_E1/scans/1/resources/7/files") == 1


async def test_a_list_with_some_of_the_files_that_are_stated_is_made_good(server, tmp_path):
    server.lists["experiments/X_E1/resources"] = [
        counted("7", "DICOM", "1", "3"),
        counted("8", "WHOLE", "1", "1"),
        counted("9", "EMPTY", "1", "0"),
        counted("10", "UNCOUNTED", "1", ""),
    ]
    for name in ("a", "b", "c"):
        server.add(name, b"12345")
    server.add("w", b"1", number="8")
    rows = server.lists["experiments/X_E1/files"]
    assert isinstance(rows, list)
    server.lists["experiments/X_E1/scans/1/resources/7/files"] = rows[:3]
    server.lists["experiments/X_E1/files"] = rows[1:]
    async with opened(server, tmp_path) as site:
        assert await names(site, f"{SCAN}/DICOM") == ["a", "b", "c"]
        assert await names(site, f"{SCAN}/WHOLE") == ["w"]
        assert await names(site, f"{SCAN}/EMPTY") == []
        assert await names(site, f"{SCAN}/UNCOUNTED") == []
    assert [line for line in server.asked if "/resources/" in line] == [
        "GET experiments/X_E1/scans/1/resources/7/files"
    ]


async def test_a_resource_that_states_files_and_lists_none_is_an_error(server, tmp_path):
    server.lists["experiments/X_E1/resources"] = [counted("7", "DICOM", "1", "1"), counted("8", "LOST", "1", "176")]
    server.lists["experiments/X_E1/scans/1/resources/8/files"] = []
    server.add("a", b"12345")
    async with opened(server, tmp_path) as site:
        with pytest.raises(BadReply, match="states that resource 8 has 176 files, and lists none"):
            await names(site, f"{SCAN}/LOST")
        assert await names(site, f"{SCAN}/DICOM") == ["a"]


async def test_a_count_that_is_too_high_hides_no_file_and_is_compared_once(server, tmp_path):
    server.lists["experiments/X_E1/resources"] = [counted("7", "DICOM", "1", "5")]
    server.add("a", b"12345")
    server.lists["experiments/X_E1/scans/1/resources/7/files"] = server.lists["experiments/X_E1/files"]
    async with opened(server, tmp_path) as site:
        for _ in range(2):
            assert await names(site, f"{SCAN}/DICOM") == ["a"]
            site.metadata.forget_all(lambda key, value: True)
    assert server.asked.count("GET experiments/X_E1/files") == 2
    assert server.asked.count("GET experiments/X_E1/scans/1/resources/7/files") == 1


@pytest.mark.parametrize("single", [404, 403, 500, []])
async def test_a_list_of_one_resource_takes_away_no_file(server, tmp_path, single):
    """Show every file: the list of all has two of three, and that of the resource fails, or has fewer."""
    server.lists["experiments/X_E1/resources"] = [counted("7", "DICOM", "1", "3")]
    server.add("a", b"12345")
    server.add("b", b"12345")
    server.lists["experiments/X_E1/scans/1/resources/7/files"] = single
    async with opened(server, tmp_path) as site:
        assert await names(site, f"{SCAN}/DICOM") == ["a", "b"]


async def test_where_head_is_refused_a_file_can_be_read(server, tmp_path):
    server.add("a", b"12345", size="", digest="")

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(403) if request.method == "HEAD" else httpx.Response(200, content=b"12345")

    server.answers["experiments/X_E1/scans/1/resources/7/files/a"] = answer
    async with opened(server, tmp_path) as site:
        file = await find(site, f"{SCAN}/DICOM/a")
        assert isinstance(file, CatalogueFile)
        source = file.files.resource_dir.source(file.row, file.files.groups)
        assert await source.head() == (None, "")
        assert await read(site, f"{SCAN}/DICOM/a") == b"12345"


async def test_files_that_were_deleted_meanwhile_are_no_error(server, tmp_path):
    """List resources once more: the count is from before the files were listed."""
    server.lists["experiments/X_E1/resources"] = [counted("7", "DICOM", "1", "1")]
    server.add("a", b"12345")
    async with opened(server, tmp_path) as site:
        assert await names(site, f"{SCAN}/DICOM") == ["a"]
        await trio.sleep(0.001)  # so that the clock tells before from after
        for key in (
            FilesKey(("experiments", "X_E1"), True),
            FoldersKey(("projects", "P", "S", "E", "scans", "1", "DICOM")),
        ):
            site.metadata.forget(key)
        server.lists["experiments/X_E1/files"] = server.lists["experiments/X_E1/scans/1/resources/7/files"] = []
        server.lists["experiments/X_E1/resources"] = [counted("7", "DICOM", "1", "0")]
        assert await names(site, f"{SCAN}/DICOM") == []


# -- names that no URL can carry -------------------------------------------------------------------------------


def tar(files: dict[str, bytes], label: str = "DICOM") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"E/scans/1-T1/resources/{label}/files/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


@pytest.mark.parametrize(("path", "member"), [("100%;x", "100%;x"), ("a\\b", "a/b"), ("ä%", "?%")])
async def test_such_a_file_is_taken_out_of_the_archive(server, tmp_path, path, member):
    server.add(path, b"12345")
    server.answers["experiments/X_E1/resources/7/files"] = lambda r: httpx.Response(
        200, content=tar({"other": b"other", member: b"12345"})
    )
    async with opened(server, tmp_path) as site:
        assert await content(site, f"{SCAN}/DICOM/{path}") == b"12345"


def by_number(server: Scripted) -> None:
    """Serve the scan's second file by its number."""
    listed = server.lists["experiments/X_E1/files"]

    def files(request: httpx.Request) -> httpx.Response:
        if request.url.params.get("index") == "1":
            return httpx.Response(200, content=b"12345")
        return httpx.Response(200, json={"ResultSet": {"Result": listed}})

    server.answers["experiments/X_E1/scans/1/files"] = files


async def test_where_the_archive_fails_it_is_asked_for_by_number(server, tmp_path):
    server.add("other", b"other")
    server.add("100%", b"12345")
    by_number(server)
    async with opened(server, tmp_path) as site:
        assert await content(site, f"{SCAN}/DICOM/100%") == b"12345"


async def test_a_file_that_the_archive_lacks_is_asked_for_by_number(server, tmp_path):
    """Request by number, although the archive is sound: it is closed by then."""
    server.add("other", b"other")
    server.add("100%", b"12345")
    server.answers["experiments/X_E1/resources/7/files"] = lambda request: httpx.Response(
        200, content=tar({"other": b"other"})
    )
    by_number(server)
    async with opened(server, tmp_path) as site:
        assert await content(site, f"{SCAN}/DICOM/100%") == b"12345"


async def test_a_member_that_may_be_an_unlisted_resources_is_not_taken(server, tmp_path):
    """Reject it: the archive names an unlabelled resource like one that is labelled like its number."""
    server.lists["experiments/X_E1/resources"] = [resource("7", "", cat_id="1"), resource("9", "7", cat_id="1")]
    server.add("a", b"12345")
    server.answers["experiments/X_E1/scans/1/resources/7/files"] = lambda request: httpx.Response(
        200, content=tar({"a": b"other"}, "7")
    )
    async with opened(server, tmp_path) as site:
        with pytest.raises(BadReply, match="its files are not listed"):
            await content(site, f"{SCAN}/~7/a")


async def test_an_old_server_is_asked_by_name_in_the_end(server, tmp_path):
    server.add("100%;", b"12345")
    async with opened(server, tmp_path) as site:
        assert await content(site, f"{SCAN}/DICOM/100%;") == b"12345"
    assert server.asked[-1] == f"GET {FILES}/100%25%3B"


async def test_where_nothing_helps_it_is_said_why(server, tmp_path):
    server.add("100%", b"12345")
    server.answers[f"{FILES}/100%25"] = lambda request: httpx.Response(400, html="<html>")
    async with opened(server, tmp_path) as site:
        with pytest.raises(BadReply, match="cannot be requested by name, and .*its archive: .* its number .* its name"):
            await content(site, f"{SCAN}/DICOM/100%")


# -- facts -----------------------------------------------------------------------------------------------------


async def test_facts_of_the_server_are_attributes(server, tmp_path):
    server.lists["experiments/X_E1/scans"] = [{"ID": "1", "type": "T1&amp;T2", "quality": "usable"}]
    server.add("a", b"12345")
    async with opened(server, tmp_path) as site:
        scan = await find(site, SCAN)
        assert scan.xattrs()["type"] == "T1&T2"
        assert scan.xattrs()["quality"] == "usable"
        file = await find(site, f"{SCAN}/DICOM/a")
        assert len(file.xattrs()["digest"]) == 32
        assert file.xattrs()["uri"] == f"/data/{FILES}/a"


async def test_times_are_the_sessions_else_those_of_what_it_is_in(server, tmp_path):
    async with opened(server, tmp_path) as site:
        subject = await find(site, "projects/P/S")
        assert (await find(site, SCAN)).modified() == subject.modified() == 1704164645.0
        assert (await find(site, "projects/P")).modified() == UNDATED_EPOCH_SECONDS  # the same in the next mount
