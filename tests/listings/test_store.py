"""Test listings that an earlier mount persisted: shown at once, not for long, and never an error."""

import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trio

from tests.prefetch.test_session_listings import asked, entries, find, made, served
from tests.support.walk import MADE
from tests.support.wire import Wire
from xnatfs.common.errors import NotFound
from xnatfs.demo.server.app import DemoXnat
from xnatfs.listings.background_store import ListingStore, open_store
from xnatfs.listings.keys import ExperimentsKey, ListKey, ProjectsKey, ResourcesKey, ScansKey
from xnatfs.listings.server_listings import REVALIDATE_SECONDS
from xnatfs.listings.store import MAX_AGE_SECONDS, MAX_STORED_ROWS
from xnatfs.rest.models import Experiment, Project, Resource, Scan
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site

R = TypeVar("R")
ROWS = [Experiment("E1", "größe", "t", "2024-01-02", "S1", "S & Co", 1.5), Experiment("E2", "b", "", "", "", "", None)]
KEY = ExperimentsKey("P")


async def kept(directory: Path, clock: Callable[[], float] = lambda: 1000.0, account: str = "u") -> ListingStore:
    """Open the stored listings as the next mount does."""
    return ListingStore(directory, lambda: account, clock)


async def rows_of(store: ListingStore, key: ListKey, kind: type[R]) -> list[R] | None:
    found = await store.find(key, kind)
    return found[1] if found else None


async def test_what_is_kept_is_what_was_put(tmp_path):
    first = await kept(tmp_path)
    first.put(KEY, ROWS)
    first.put(ResourcesKey(("experiments", "E1"), True), [Resource("7", "L", "scans", "1", "", "")])
    await first.flush()
    second = await kept(tmp_path)
    assert await rows_of(second, KEY, Experiment) == ROWS
    assert await rows_of(second, ResourcesKey(("experiments", "E1"), True), Resource) != []
    assert await rows_of(second, ResourcesKey(("experiments", "E1"), False), Resource) is None
    assert await rows_of(second, ProjectsKey(), Project) is None


async def test_files_of_earlier_versions_are_removed(tmp_path):
    old, other = (tmp_path / "listings" / f"{name}.json" for name in ("0f" * 16, "mine"))
    old.parent.mkdir()
    for path in (old, other):
        path.write_text("{}")
    store = await kept(tmp_path / "server")
    store.put(KEY, ROWS)
    await store.flush()
    assert (old.exists(), other.exists(), store.path.exists()) == (False, True, True)


async def test_all_can_be_forgotten_at_once(tmp_path):
    first = await kept(tmp_path)
    first.put(KEY, ROWS)
    await first.flush()
    first.put(ProjectsKey(), [Project("P", "n", "s")])
    first.forget_all()
    assert await rows_of(first, KEY, Experiment) is None
    first.put(ScansKey("E1"), [Scan("1", "T1", "usable", "xnat:mrScanData", "", "desc")])
    await first.flush()
    second = await kept(tmp_path)
    assert await rows_of(second, KEY, Experiment) is None
    assert await rows_of(second, ProjectsKey(), Project) is None
    assert await rows_of(second, ScansKey("E1"), Scan) is not None


async def test_it_is_not_closed_while_a_thread_reads(tmp_path, monkeypatch):
    begun, closed, events = threading.Event(), threading.Event(), []
    read, close = ListingStore.read, ListingStore.close

    def slowly(self: ListingStore, key: ListKey, kind: type[Any]) -> Any:
        events.append("reads")
        begun.set()
        closed.wait(0.2)
        events.append("has read")
        return read(self, key, kind)

    def noted(self: ListingStore) -> None:
        events.append("closes")
        closed.set()
        close(self)

    monkeypatch.setattr(ListingStore, "read", slowly)
    monkeypatch.setattr(ListingStore, "close", noted)
    async with trio.open_nursery() as nursery, open_store(tmp_path, lambda: "u") as store:
        nursery.start_soon(store.find, KEY, Experiment)
        await trio.to_thread.run_sync(begun.wait)
    assert events == ["reads", "has read", "closes"]


async def test_it_is_private_and_of_one_account(tmp_path):
    first = await kept(tmp_path / "a" / "b")
    first.put(KEY, ROWS)
    await first.flush()
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (first.path, first.path.parent)]
    assert modes == [0o600, 0o700]
    assert await rows_of(await kept(tmp_path / "a" / "b", account="v"), KEY, Experiment) is None


@pytest.mark.parametrize("seconds", [-1.0, MAX_AGE_SECONDS + 1])
async def test_what_is_too_old_or_of_the_future_is_not_there(tmp_path, seconds):
    first = await kept(tmp_path)
    first.put(KEY, ROWS)
    await first.flush()
    assert await rows_of(await kept(tmp_path, lambda: 1000.0 + seconds), KEY, Experiment) is None


async def test_a_listing_that_is_gone_or_too_large_is_not_there(tmp_path):
    first = await kept(tmp_path)
    for rows in ([], ROWS[:1] * (MAX_STORED_ROWS + 1)):
        first.put(KEY, ROWS)
        await first.flush()
        first.put(KEY, rows)
        await first.flush()
        assert await rows_of(first, KEY, Experiment) is None


@pytest.mark.parametrize("damage", [b"", b"no database at all", None])
async def test_a_damaged_file_is_begun_anew(tmp_path, damage):
    first = await kept(tmp_path)
    first.put(KEY, ROWS)
    await first.flush()
    first.close()
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[: len(whole) // 2] + os.urandom(len(whole)) if damage is None else damage)
    second = await kept(tmp_path)
    assert await rows_of(second, KEY, Experiment) is None
    second.put(KEY, ROWS)
    await second.flush()
    second.put(KEY, ROWS)
    await second.flush()
    assert await rows_of(second, KEY, Experiment) == ROWS


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE listings SET rows = 'no JSON'",
        "UPDATE listings SET rows = '[[1, 2, 3]]'",
        "UPDATE listings SET rows = '{}'",
        'UPDATE listings SET rows = \'[["E1", 5, "", "", "", "", null]]\'',
        'UPDATE listings SET fields = \'["Experiment", "id"]\'',
        "UPDATE listings SET rows = x'00ff'",
        "PRAGMA user_version = 99",
        "DROP TABLE listings",
    ],
)
async def test_a_foreign_file_is_none(tmp_path, change):
    first = await kept(tmp_path)
    first.put(KEY, ROWS)
    await first.flush()
    first.close()
    with sqlite3.connect(first.path) as database:
        database.execute(change)
    database.close()
    assert await rows_of(await kept(tmp_path), KEY, Experiment) is None


async def test_a_directory_that_cannot_be_used_is_no_error(tmp_path):
    (tmp_path / "listings").write_text("a file")
    first = await kept(tmp_path)
    first.put(KEY, ROWS)
    await first.flush()
    assert await rows_of(first, KEY, Experiment) is None


# -- what was read ------------------------------------------------------------------------------------------------

E1, E2 = ("P", ("experiments", "E1")), ("", ("subjects", "S1"))


async def test_what_was_read_is_known_to_the_next_mount(tmp_path):
    async with open_store(tmp_path, lambda: "u") as first:
        first.note_read(E1, "1 2")
        first.note_read(E2, "3")
    async with open_store(tmp_path, lambda: "U") as second:
        assert await second.reads() == {E1: "1 2", E2: "3"}
        second.note_read(E1, "")
        second.forget_all()
    async with open_store(tmp_path, lambda: "v") as other:
        assert await other.reads() == {}
    assert await (await kept(tmp_path)).reads() == {E2: "3"}


async def test_of_what_was_read_the_latest_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr("xnatfs.listings.store.MAX_STORED_READS", 2)
    first = await kept(tmp_path)
    for number in range(4):
        first.note_read(("P", ("experiments", f"E{number}")), "1")
        await first.flush()
    assert {item for _, item in await first.reads()} == {("experiments", "E2"), ("experiments", "E3")}


async def test_what_was_read_is_written_later_where_the_file_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr("xnatfs.listings.store.LOCK_SECONDS", 0.0)
    monkeypatch.setattr("xnatfs.listings.store.LOCKED_PAUSE_SECONDS", 0.0)
    first = await kept(tmp_path)
    first.put(KEY, ROWS)
    await first.flush()
    other = sqlite3.connect(first.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    first.close()
    first.note_read(E1, "1")
    await first.flush()
    other.close()
    assert await first.reads() == {}
    first.note_read(E2, "2")
    await first.flush()
    assert await first.reads() == {E1: "1", E2: "2"}


async def test_what_is_about_to_be_removed_is_not_there(tmp_path):
    first = await kept(tmp_path)
    first.put(KEY, ROWS)
    await first.flush()
    first.put(KEY, ())
    assert await rows_of(first, KEY, Experiment) is None


# -- a second mount ----------------------------------------------------------------------------------------------


class Line:
    """A demo behind a wire that may be held, or cut."""

    def __init__(self, demo: DemoXnat) -> None:
        self.demo = demo
        self.open = trio.Event()
        self.open.set()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith(("/JSESSION", "/username")):
            await self.open.wait()
        return self.demo(request)

    def hold(self) -> None:
        self.open = trio.Event()


@asynccontextmanager
async def mounted(line: Line, directory: Path, user: str = "u", ttl: float = 60.0) -> AsyncIterator[Site]:
    config = Config("https://xnat.example.org", cache_dir=directory, timeout=30.0, ttl=ttl)
    async with open_site(config, Credentials(user, "p"), Wire(line)) as site:
        await site.xnat.log_in()
        site.start_background_tasks()
        yield site


async def names(site: Site, path: str) -> list[str]:
    """Return the names in a directory, without files that are made from listings."""
    return [name for name in (await (await find(site, path)).children()).nodes if name not in MADE]


SESSION = "projects/P/S1/S1_MR"


@pytest.fixture
def line() -> Line:
    return Line(served(made(3)))


async def first_mount(line: Line, directory: Path) -> None:
    async with mounted(line, directory) as site:
        await entries(await find(site, SESSION))


async def test_the_second_mount_waits_for_no_listing(line, tmp_path):
    await first_mount(line, tmp_path)
    line.hold()
    line.demo.requests.clear()
    async with mounted(line, tmp_path) as site:
        assert await names(site, "projects") == ["P"]
        assert await names(site, "projects/P") == ["resources", "S0", "S1", "S2"]
        assert await names(site, f"{SESSION}/scans") == ["1", "2"]
        assert await names(site, f"{SESSION}/scans/1") == ["DICOM"]
        assert asked(line.demo) == []
        line.open.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert set(asked(line.demo)) >= {"projects", "projects/P/subjects", "projects/P/experiments"}


async def test_what_is_shown_of_before_is_not_shown_for_long(line, tmp_path):
    await first_mount(line, tmp_path)
    line.demo.archive.projects["P"].members.clear()
    async with mounted(line, tmp_path, ttl=0.5) as site:
        assert await names(site, "projects") == ["P"]
        await trio.sleep(0.6)
        assert await names(site, "projects") == []
        with pytest.raises(NotFound):
            await names(site, "projects/P")
    async with mounted(line, tmp_path) as site:
        assert await names(site, "projects") == [], "and it is not kept any more"


def test_the_time_for_which_it_is_shown_is_short():
    assert REVALIDATE_SECONDS <= 5.0


async def test_a_name_that_is_new_is_asked_for(line, tmp_path):
    """Request a name that a persisted listing lacks."""
    await first_mount(line, tmp_path)
    archive = line.demo.archive
    subject = archive.subject(archive.projects["P"], "NEW")
    session = archive.experiment(subject, "NEW_MR")
    archive.scan(session, "9")
    archive.project("Q", "A new project", u="Owners")
    async with mounted(line, tmp_path) as site:
        assert await names(site, "projects/P/NEW/NEW_MR/scans") == ["9"]
        assert await names(site, "projects/Q") == ["resources"]


async def test_files_are_never_shown_of_before(line, tmp_path):
    await first_mount(line, tmp_path)
    archive = line.demo.archive
    session = list(archive.experiments.values())[1]
    archive.file(session.scans[0].resources[0], "new.dcm", b"new")
    line.demo.requests.clear()
    async with mounted(line, tmp_path) as site:
        assert "new.dcm" in await names(site, f"{SESSION}/scans/1/DICOM")


async def test_another_account_sees_nothing_of_it(line, tmp_path):
    await first_mount(line, tmp_path)
    from xnatfs.demo.archive.model import User

    line.demo.archive.users["v"] = User("v", "p")
    async with mounted(line, tmp_path, user="v") as site:
        assert await names(site, "projects") == []


async def test_programs_that_do_not_mount_see_nothing_of_it(line, tmp_path):
    await first_mount(line, tmp_path)
    line.demo.archive.scan(list(line.demo.archive.experiments.values())[1], "9")
    config = Config("https://xnat.example.org", cache_dir=tmp_path)
    async with open_site(config, Credentials("u", "p"), Wire(line)) as site:
        assert await names(site, f"{SESSION}/scans") == ["1", "2", "9"]


async def test_rows_of_every_kind_survive(tmp_path):
    rows: dict[ListKey, list[Any]] = {
        ScansKey("E1"): [Scan("1", "T1", "usable", "xnat:mrScanData", "", "desc")],
        ProjectsKey(): [Project("P", "n", "s")],
    }
    first = await kept(tmp_path)
    for key, listed in rows.items():
        first.put(key, listed)
    await first.flush()
    for key, listed in rows.items():
        assert await rows_of(first, key, type(listed[0])) == listed
