"""Test the prearchive in the tree: which sessions are shown, when their files are, and what is requested."""

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio

from tests.support.commanding import COLLABORATOR, MEMBER, OUTSIDER, OWNER, PASSWORD, shell
from tests.support.nodes import find, names
from tests.support.scripted import Rows, Scripted, opened
from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Busy, Denied, NotFound, Stale
from xnatfs.listings.background_store import ListingStore
from xnatfs.listings.keys import PREARCHIVE_TTL_SECONDS, PrearchiveKey
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.views import ViewOptions
from xnatfs.site import Site, open_site
from xnatfs.tree.node import Dir, File, measure

TIME = "20240102_030405678"
SESSION = f"prearchive/P/{TIME}/MR1"
HOME = f"prearchive/projects/P/{TIME}/MR1"
SCAN = f"{HOME}/scans/1/resources/DICOM/files"


def received(status: str = "READY", **more: str) -> dict[str, str]:
    row = {"project": "P", "timestamp": TIME, "folderName": "MR1", "name": "MR1_label", "subject": "S1"}
    times = {
        "lastmod": "2024-01-02 03:05:00.0",
        "uploaded": "2024-01-02 03:04:05.0",
        "scan_date": "2020-01-02 00:00:00.0",
    }
    return row | times | {"status": status, "tag": "1.2.3", "autoarchive": "Manual", **more}


class Inbox(Scripted):
    """A server with one session in its prearchive, of two files in one scan."""

    def __init__(self) -> None:
        super().__init__()
        self.become(received())
        self.lists[f"{HOME}/resources"] = [
            {"category": "scans", "cat_id": "1", "label": "DICOM", "file_count": "2", "file_size": "9"}
        ]
        self.contents = {"a.dcm": b"1234", "sub/b c.dcm": b"56789"}
        self.by_pattern.append((rf"{SCAN}/.+", self.file))
        self.list_files()

    def become(self, *rows: dict[str, str]) -> None:
        """Let the prearchive hold these sessions."""
        self.lists["prearchive"] = list(rows)
        self.lists[HOME] = [row for row in rows if row["folderName"] == "MR1"] or 404

    def list_files(self, change: Callable[[dict[str, str]], Any] = lambda row: None) -> None:
        rows: Rows = []
        for path, content in self.contents.items():
            uri = f"/data/{SCAN}/{path}"
            rows.append({"Name": path.rpartition("/")[2], "Size": str(len(content)), "URI": uri})
            change(rows[-1])
        self.lists[SCAN] = rows

    def file(self, request: httpx.Request) -> httpx.Response:
        content = self.contents.get(request.url.path.partition("/files/")[2])
        if content is None:
            return httpx.Response(404, html="<h3>Unable to find catalog entry for given uri.</h3>")
        headers = {"last-modified": self.modified, "content-length": str(len(content))}
        return httpx.Response(200, headers=headers, content=b"" if request.method == "HEAD" else content)


@pytest.fixture
def server() -> Inbox:
    return Inbox()


async def content(site: Site, path: str) -> bytes:
    node = await find(site, path)
    assert isinstance(node, File)
    await measure([node])
    blob = await node.open()
    try:
        assert blob.size == node.measured_size
        return await blob.read(0, blob.size + 1)
    finally:
        blob.close()


def pass_time(site: Site) -> None:
    """Let every listing and directory expire."""
    site.metadata.forget_all(lambda key, value: True)


# -- what is shown ---------------------------------------------------------------------------------------------


async def test_a_session_at_rest_shows_its_files(server, tmp_path):
    async with opened(server, tmp_path) as site:
        assert await names(site, "prearchive") == ["P"]
        assert await names(site, "prearchive/P") == [TIME]
        assert await names(site, f"prearchive/P/{TIME}") == ["MR1"]
        assert await names(site, f"{SESSION}/scans") == ["1"]
        assert await names(site, f"{SESSION}/resources") == []
        assert not (await find(site, f"{SESSION}/scans/1/DICOM/a.dcm")).is_in_views
        assert await names(site, f"{SESSION}/scans/1/DICOM") == ["sub", "a.dcm"]
        assert await content(site, f"{SESSION}/scans/1/DICOM/a.dcm") == b"1234"
        assert await content(site, f"{SESSION}/scans/1/DICOM/sub/b c.dcm") == b"56789"
    assert {asked.partition(" ")[0] for asked in server.asked} == {"GET"}


async def test_resources_of_the_session_itself(server, tmp_path):
    server.lists[f"{HOME}/resources"].append({"category": "resources", "cat_id": "", "label": "NOTES"})
    server.lists[f"{HOME}/resources/NOTES/files"] = [{"Name": "n.txt", "Size": "2"}]
    server.answers[f"{HOME}/resources/NOTES/files/n.txt"] = lambda request: httpx.Response(200, content=b"hi")
    async with opened(server, tmp_path) as site:
        assert await content(site, f"{SESSION}/resources/NOTES/n.txt") == b"hi"


async def test_a_resource_of_which_the_server_lists_no_file_is_an_error(server, tmp_path):
    server.lists[SCAN] = []
    async with opened(server, tmp_path) as site:
        with pytest.raises(BadReply, match="DICOM has 2 files"):
            await names(site, f"{SESSION}/scans/1/DICOM")


async def test_a_resource_without_a_label_is_shown_and_not_left_out(server, tmp_path):
    server.lists[f"{HOME}/resources"].append({"category": "scans", "cat_id": "1", "label": "", "file_count": "1"})
    async with opened(server, tmp_path) as site:
        assert len(await names(site, f"{SESSION}/scans/1")) == 2
        (odd,) = [name for name in await names(site, f"{SESSION}/scans/1") if name != "DICOM"]
        with pytest.raises(NotFound):  # this release cannot address it
            await names(site, f"{SESSION}/scans/1/{odd}")
        server.lists[f"{HOME}/scans/1/resources/NULL/files"] = [{"Name": "n.txt", "Size": "2"}]
        pass_time(site)
        assert await names(site, f"{SESSION}/scans/1/{odd}") == ["n.txt"]


async def test_sessions_without_a_project_are_in_unassigned(server, tmp_path):
    server.become(received(project=""), received(project="Unassigned", folderName="MR2"))
    async with opened(server, tmp_path) as site:
        assert await names(site, "prearchive") == ["Unassigned"]
        assert await names(site, f"prearchive/Unassigned/{TIME}") == ["MR1", "MR2"]
        facts = await (await find(site, f"prearchive/Unassigned/{TIME}/MR2")).all_xattrs()
        assert (facts["project"], facts["target"]) == ("", "")


async def test_filters_hold_here_too(server, tmp_path):
    server.become(received(), received(project="OTHER"))
    async with opened(server, tmp_path) as site:
        site.views = ViewOptions(projects=("P",), hidden=("DICOM",))
        assert await names(site, "prearchive") == ["P"]
        assert await names(site, f"{SESSION}/scans/1") == []


async def test_an_empty_prearchive_is_one_request(server, tmp_path):
    server.become()
    async with opened(server, tmp_path) as site:
        assert await names(site, "prearchive") == []
        with pytest.raises(NotFound):
            await find(site, "prearchive/P")
    assert server.asked == ["GET prearchive"]


@pytest.mark.parametrize("status", [403, 404])
async def test_without_rights_it_is_empty(server, tmp_path, status):
    server.lists["prearchive"] = status
    async with opened(server, tmp_path) as site:
        assert await names(site, "prearchive") == []


async def test_it_shows_what_the_account_may_edit(tmp_path):
    seen = {}
    with shell(tmp_path) as scanner:
        scanner.receive("MINE")
        for user in (OWNER, MEMBER, COLLABORATOR, OUTSIDER):
            config = Config(scanner.url, cache_dir=tmp_path / user, timeout=30.0)
            async with open_site(config, Credentials(user, PASSWORD)) as site:
                seen[user] = await names(site, "prearchive")
    assert seen == {OWNER: ["MYPROJECT"], MEMBER: ["MYPROJECT"], COLLABORATOR: [], OUTSIDER: []}


async def test_the_states_of_a_session_are_its_attributes(server, tmp_path):
    async with opened(server, tmp_path) as site:
        node = await find(site, SESSION)
        facts = await node.all_xattrs()
        assert facts["status"] == "READY"
        assert facts["target"] == "projects/P/S1/MR1_label"
        assert facts["reason"] == ""
        assert server.asked == ["GET prearchive"]
        server.become(received("CONFLICT"))
        server.answers[f"{HOME}/logs/last"] = lambda request: httpx.Response(200, text="Session already exists\n")
        pass_time(site)
        facts = await node.all_xattrs()  # of the directory that a program has open
        assert (facts["status"], facts["reason"]) == ("CONFLICT", "Session already exists")


async def test_its_document_has_its_state(server, tmp_path):
    server.become(received("CONFLICT", subject="a \u00fc"))
    server.answers[f"{HOME}/logs/last"] = lambda request: httpx.Response(200, text="Session already exists")
    async with opened(server, tmp_path) as site:
        assert await names(site, SESSION) == ["scans", "resources", "session.json"]
        assert server.asked == ["GET prearchive"]
        made = json.loads(await content(site, f"{SESSION}/session.json"))
        assert (made["status"], made["reason"], made["subject"]) == ("CONFLICT", "Session already exists", "a \u00fc")
        assert made["target"] == "projects/P/a \u00fc/MR1_label"
        server.become(received("RECEIVING"))
        pass_time(site)
        assert await names(site, SESSION) == ["session.json"]
        assert json.loads(await content(site, f"{SESSION}/session.json"))["status"] == "RECEIVING"


async def test_a_release_without_logs_has_no_reason(server, tmp_path):
    server.become(received("ERROR"))
    async with opened(server, tmp_path) as site:
        assert (await (await find(site, SESSION)).all_xattrs())["reason"] == ""


# -- while the server is at work -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        "RECEIVING",
        "RECEIVING_INTERRUPT",
        "BUILDING",
        "_BUILDING",
        "QUEUED_ARCHIVING",
        "_ARCHIVING",
        "MOVING",
        "NEW_STATE",
    ],
)
async def test_no_part_of_the_files_is_shown(server, tmp_path, status):
    server.become(received(status))
    async with opened(server, tmp_path) as site:
        assert not {"scans", "resources"} & set(await names(site, SESSION))
        for name in ("scans", "resources"):
            with pytest.raises(Busy, match=status):
                await find(site, f"{SESSION}/{name}")
        assert (await (await find(site, SESSION)).all_xattrs())["status"] == status
    assert server.asked == ["GET prearchive"]


@pytest.mark.parametrize("place", ["scans", "scans/1/DICOM"])
async def test_a_list_made_while_the_server_began_to_work_counts_for_nothing(server, tmp_path, place):
    async with opened(server, tmp_path) as site:
        directory = await find(site, f"{SESSION}/{place}")
        assert isinstance(directory, Dir)
        if place == "scans":
            pass_time(site)
            await site.listings.get(PrearchiveKey())
        server.become(received("_ARCHIVING"))  # after its row was listed
        with pytest.raises(Busy, match="_ARCHIVING"):
            await directory.children()
        with pytest.raises(Busy):  # at once, though its directory was listed a moment ago
            await find(site, f"{SESSION}/scans")


async def test_a_list_of_another_revision_is_stale_and_the_next_look_is_right(server, tmp_path):
    async with opened(server, tmp_path) as site:
        directory = await find(site, f"{SESSION}/scans/1/DICOM")
        assert isinstance(directory, Dir)
        server.contents["c.dcm"] = b"new"
        server.list_files()
        server.become(received(lastmod="2024-01-02 03:06:00.0"))
        with pytest.raises(Stale, match="list it again"):
            await directory.children()
        assert await names(site, f"{SESSION}/scans/1/DICOM") == ["sub", "a.dcm", "c.dcm"]


async def test_a_new_revision_has_new_bytes_of_the_same_length(server, tmp_path):
    path = f"{SESSION}/scans/1/DICOM/a.dcm"
    async with opened(server, tmp_path) as site:
        assert await content(site, path) == b"1234"
        server.contents["a.dcm"] = b"4321"
        server.become(received(lastmod="2024-01-02 03:06:00.0"))
        pass_time(site)
        assert await content(site, path) == b"4321"


async def test_a_session_that_moves_leaves_an_error_and_no_bytes(server, tmp_path):
    async with opened(server, tmp_path) as site:
        node = await find(site, f"{SESSION}/scans/1/DICOM/a.dcm")
        assert isinstance(node, File)
        server.contents.clear()  # moved, and still in the list
        server.become(received("_ARCHIVING"))
        pass_time(site)
        with pytest.raises(Busy):
            await node.open()
        server.become()
        pass_time(site)
        with pytest.raises(Stale):
            await node.open()
        with pytest.raises(NotFound):
            await find(site, SESSION)


async def test_a_file_that_is_open_is_stale_when_its_session_is_archived(server, tmp_path):
    async with opened(server, tmp_path) as site:
        node = await find(site, f"{SESSION}/scans/1/DICOM/a.dcm")
        assert isinstance(node, File)
        assert await content(site, f"{SESSION}/scans/1/DICOM/a.dcm") == b"1234"
        permit = node.permit()
        server.become(received("_ARCHIVING"))
        pass_time(site)
        await permit.renew()  # its bytes are cached, and right
        server.become()
        pass_time(site)
        permit._next = 0.0
        with pytest.raises(Stale):
            await permit.renew()


# -- what is requested -----------------------------------------------------------------------------------------


async def test_each_list_is_confirmed_once_and_fresh_for_five_seconds(server, tmp_path):
    async with opened(server, tmp_path) as site:
        for _ in range(3):
            await names(site, f"{SESSION}/scans/1/DICOM")
        directory = await find(site, f"{SESSION}/scans/1/DICOM")
        assert isinstance(directory, Dir)
        assert directory.fresh_until() - now() <= PREARCHIVE_TTL_SECONDS < site.ttl
    assert server.asked == ["GET prearchive", f"GET {HOME}/resources", f"GET {HOME}", f"GET {SCAN}", f"GET {HOME}"]


async def test_a_file_without_a_size_is_measured(server, tmp_path):
    server.list_files(lambda row: row.pop("Size"))
    async with opened(server, tmp_path) as site:
        assert await content(site, f"{SESSION}/scans/1/DICOM/a.dcm") == b"1234"
    assert f"HEAD {SCAN}/a.dcm" in server.asked


async def test_a_wrong_size_is_never_a_shorter_file(server, tmp_path):
    server.list_files(lambda row: row.update(Size="3"))
    async with opened(server, tmp_path) as site:
        assert await content(site, f"{SESSION}/scans/1/DICOM/a.dcm") == b"1234"


async def test_a_digest_counts_if_there_is_one(server, tmp_path):
    server.list_files(lambda row: row.update(digest="0123456789abcdef0123456789abcdef"))
    async with opened(server, tmp_path) as site:
        with pytest.raises(Exception, match="MD5"):
            await content(site, f"{SESSION}/scans/1/DICOM/a.dcm")


async def test_many_files_are_requested_by_name(server, tmp_path):
    """Test that no archive of a resource is requested: the server has none in the prearchive."""
    server.contents = {f"{index}.dcm": b"x" * index for index in range(1, 30)}
    server.list_files()
    async with opened(server, tmp_path) as site:
        for name, sent in server.contents.items():
            assert await content(site, f"{SESSION}/scans/1/DICOM/{name}") == sent
    assert sum(bool(re.search(r"\.dcm$", asked)) for asked in server.asked) == 29


async def test_bytes_of_a_session_that_is_gone_are_dropped(server, tmp_path):
    async with opened(server, tmp_path) as site:
        await content(site, f"{SESSION}/scans/1/DICOM/a.dcm")
        await site.content.evict(2**40)
        assert site.content.bytes_used
        server.become()
        pass_time(site)
        await names(site, "prearchive")
        with trio.fail_after(30):
            while site.content.bytes_used:  # noqa: ASYNC110  # no event tells when they are dropped
                await trio.sleep(0.02)


async def test_nothing_of_it_is_stored_for_the_next_mount(server, tmp_path, monkeypatch):
    stored: list[object] = []
    monkeypatch.setattr(ListingStore, "put", lambda self, key, rows: stored.append(key) if rows else None)
    async with opened(server, tmp_path) as site:
        site.start_background_tasks()
        await names(site, f"{SESSION}/scans/1/DICOM")
        await names(site, "projects")
    assert [type(key).__name__ for key in stored] == ["ProjectsKey"]


async def test_a_refused_session_is_denied(server, tmp_path):
    server.lists[f"{HOME}/resources"] = 403
    async with opened(server, tmp_path) as site:
        with pytest.raises(Denied):
            await names(site, f"{SESSION}/scans")
