"""Test that prefetching lists many sessions with few requests, and shows no entry less than each listed alone."""

import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.wire import Wire
from xnatfs.demo.archive.model import Archive, Experiment, Reconstruction, Subject, User
from xnatfs.demo.server.app import DemoXnat, Request
from xnatfs.demo.server.reply import Failed, Reply
from xnatfs.demo.server.site import Joins
from xnatfs.prefetch import session_listings
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site
from xnatfs.tree import Root
from xnatfs.tree.node import Dir, File, Node
from xnatfs.tree.projects import SubjectDir

Entries = dict[str, tuple[str, int]]


@pytest.fixture(autouse=True)
def quick_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on the machine's speed: every batch counts as quick."""
    monkeypatch.setattr(session_listings, "QUICK_BATCH_SECONDS", math.inf)


def made(sessions: int, scans: int = 2, change: Callable[[Archive, int, Experiment], None] | None = None) -> Archive:
    """Make a project P of subjects with one session each."""
    archive = Archive()
    archive.users["u"] = User("u", "p")
    project = archive.project("P", "A project", u="Owners")
    for number in range(sessions):
        subject = archive.subject(project, f"S{number}")
        session = archive.experiment(subject, f"S{number}_MR")
        for scan in range(1, scans + 1):
            resource = archive.resource(archive.scan(session, str(scan), "T1").resources, "DICOM", "DICOM")
            archive.file(resource, "a.dcm", f"{number} {scan}".encode())
            archive.file(resource, "b/c.dcm", b"12345")
        if change:
            change(archive, number, session)
    return archive


def served(archive: Archive, joins: Joins = "answered") -> DemoXnat:
    demo = DemoXnat(archive)
    demo.site.joins = joins
    return demo


@asynccontextmanager
async def opened(demo: DemoXnat, directory: Path, ttl: float = 60.0) -> AsyncIterator[Site]:
    config = Config("https://xnat.example.org", cache_dir=directory, timeout=5.0, ttl=ttl)
    async with open_site(config, Credentials("u", "p"), Wire(demo)) as site:
        yield site


async def find(site: Site, path: str) -> Dir:
    node: Node = Root(site)
    for name in path.split("/") if path else []:
        assert isinstance(node, Dir)
        node = await node.child(name)
    assert isinstance(node, Dir)
    return node


async def entries(directory: Dir) -> Entries:
    """Return all entries below a directory, as `find` visits them."""
    found: Entries = {}
    for node in (await directory.children()).listed():
        size = await node.size() if isinstance(node, File) and not node.is_generated else 0
        found["/".join(node.path)] = (type(node).__name__, size)
        if isinstance(node, Dir):
            found |= await entries(node)
    return found


async def subjects(project: Dir) -> list[str]:
    """Return the names of a project's subjects: not its resources, nor what is made of listings."""
    return [name for name, node in (await project.children()).nodes.items() if isinstance(node, SubjectDir)]


def asked(demo: DemoXnat) -> list[str]:
    """Return the requests apart from those for the session, with accession IDs and numbers left out."""
    kept = [r for r in demo.requests if not r.path.endswith(("/JSESSION", "/username"))]
    return ["/".join("*" if part[:5] == "DEMO_" else part for part in r.path.split("/")[2:]) for r in kept]


async def alone(archive: Archive, directory: Path, project: str = "P") -> Entries:
    """List all of a project, each session and each subject by a program that lists nothing else."""
    demo = DemoXnat(archive)
    found: Entries = {}
    async with opened(demo, directory) as site:
        project_dir = await find(site, f"projects/{project}")
        found |= await entries(await find(site, f"projects/{project}/resources"))
        paths = [f"projects/{project}/{name}" for name in (await project_dir.children()).nodes]
        found |= {
            path: (type(node).__name__, 0)
            for path, node in zip(paths, (await project_dir.children()).listed(), strict=True)
        }
    for path in [path for path in paths[1:] if not path.endswith(".tsv")]:
        async with opened(demo, directory) as site:
            subject = await find(site, path)
            names = list((await subject.children()).nodes)
        for name in names:
            async with opened(demo, directory) as site:
                node = await find(site, f"{path}/{name}")
                found[f"{path}/{name}"] = (type(node).__name__, 0)
                found |= await entries(node)
    return found


async def walked(demo: DemoXnat, directory: Path, project: str = "P") -> Entries:
    async with opened(demo, directory) as site:
        return await entries(await find(site, f"projects/{project}"))


# -- one session -------------------------------------------------------------------------------------------------


async def test_a_session_is_four_requests_that_are_sent_together(tmp_path, patient_clock):
    demo = served(made(5))
    slow = Wire(demo)
    at: list[tuple[float, str]] = []
    handle = slow.handle_async_request

    async def delayed(request):
        at.append((trio.current_time(), request.url.path))
        await trio.sleep(0.1)
        return await handle(request)

    slow.handle_async_request = delayed  # type: ignore[method-assign]
    config = Config("https://xnat.example.org", cache_dir=tmp_path)
    async with open_site(config, Credentials("u", "p"), slow) as site:
        await site.xnat.log_in()
        demo.requests.clear()
        at.clear()
        await entries(await find(site, "projects/P/S3/S3_MR"))
        assert sorted(asked(demo)) == [
            "experiments/*/assessors",
            "experiments/*/files",
            "experiments/*/resources",
            "experiments/*/scans",
            "projects",
            "projects/P/experiments",
            "projects/P/subjects",
        ]
        assert len({time for time, _ in at}) == 3, (
            "one after the other: the projects, what is in one, what is in the session"
        )
        demo.requests.clear()
        await entries(await find(site, "projects/P/S3/S3_MR"))
        assert asked(demo) == []


async def test_sessions_that_are_looked_into_now_and_then_cost_only_their_own_requests(tmp_path, patient_clock):
    demo = served(made(9))
    async with opened(demo, tmp_path) as site:
        for number in (1, 5, 3, 8, 2):
            demo.requests.clear()
            await entries(await find(site, f"projects/P/S{number}/S{number}_MR"))
            assert [line for line in asked(demo) if not line.startswith("projects")] != []
            assert all("," not in record.path for record in demo.requests)
            assert sum(line.startswith("experiments/*/") for line in asked(demo)) == 4
            await trio.sleep(11)


# -- walks -------------------------------------------------------------------------------------------------------


async def test_a_walk_is_few_requests(tmp_path):
    archive = made(200)
    demo = served(archive)
    found = await walked(demo, tmp_path)
    assert len(found) > 200 * 10
    counts = Counter(asked(demo))
    # One session alone; 199 more in 2 + 8 + 32 + 128 and the rest, each with a check of an empty list.
    assert counts.pop("experiments/*/scans") == 1
    assert counts.pop("experiments") == 1 + 5, "the scans of all, the assessors of each batch"
    assert sum(counts.values()) < 35, counts


async def test_a_thousand_sessions_are_few_requests(tmp_path):
    demo = served(made(1000, 2))
    async with opened(demo, tmp_path) as site:
        project = await find(site, "projects/P")
        found = 0
        for subject in [node for node in (await project.children()).listed() if not node.is_generated]:
            assert isinstance(subject, Dir)
            for session in (await subject.children()).listed():
                found += len(await entries(session)) if isinstance(session, Dir) else 0
    assert found == 1000 * (4 + 3 + 2 * 5)
    assert len(asked(demo)) <= 56, Counter(asked(demo))


@pytest.mark.parametrize(
    ("quick", "expected"), [(math.inf, [1, 2, 3, 8]), (0.0, [1, 2, 3, 6, 12, 24])], ids=["quick", "not quick"]
)
async def test_the_next_batch_is_requested_in_the_middle_of_the_last_one(tmp_path, monkeypatch, quick, expected):
    monkeypatch.setattr(session_listings, "QUICK_BATCH_SECONDS", quick)
    demo = served(made(40, 1))
    waits, begins = [], []
    async with opened(demo, tmp_path) as site:
        project = await find(site, "projects/P")
        for number, name in enumerate(await subjects(project), 1):
            subject = await project.child(name)
            assert isinstance(subject, Dir)
            (session,) = [node for node in (await subject.children()).listed() if name in node.name]
            before = len(demo.requests)
            assert isinstance(session, Dir)
            await session.look_into()
            waits += [number] * (len(demo.requests) > before)
            await trio.testing.wait_all_tasks_blocked(0.01)
            begins += [number] * (len(demo.requests) > before)
    assert waits == [2], "the batch of 2 is waited for, and those that follow are there"
    assert begins == expected


async def test_a_second_walk_asks_nothing(tmp_path):
    demo = served(made(30))
    async with opened(demo, tmp_path) as site:
        project = await find(site, "projects/P")
        first = await entries(project)
        demo.requests.clear()
        assert await entries(project) == first
    assert asked(demo) == []


def rich(archive: Archive, number: int, session: Experiment) -> None:
    """Add whatever may hang on a session to some of them."""
    if number % 3 == 0:
        rating = archive.assessor(session, f"QC{number}")
        archive.file(archive.resource(rating.resources, "ratings"), "r.json", b"{}")
        archive.file(archive.resource(rating.out, "OUT"), "o.txt", b"out")
        archive.file(archive.resource(rating.inputs, "IN"), "i.txt", b"in")
    if number % 4 == 1:
        archive.assessor(session, f"BARE{number}")
    if number % 5 == 2:
        archive.file(archive.resource(session.resources, "logs & more"), "log.txt", b"log")
        recon = Reconstruction("mean", "average")
        session.reconstructions.append(recon)
        archive.file(archive.resource(recon.out, "NIFTI"), "mean.txt", b"mean")
    if number % 7 == 3:
        scan = archive.scan(session, "4 & 5", "T2 & more", note="a <note>")
        archive.resource(scan.resources, "EMPTY")
        unlabelled = archive.resource(scan.resources, "")
        archive.file(unlabelled, "x", b"x")
    if number % 11 == 4:
        session.scans.clear()
    if number % 13 == 6:
        archive.file(archive.resource(archive.subjects[session.subject].resources, "notes"), "n.txt", b"note")
    if number % 9 == 5:
        archive.experiment(archive.subjects[session.subject], f"BLOOD{number}", xsi_type="xnat:subjectVariablesData")


@pytest.mark.parametrize("joins", ["answered", "ignored", "refused"])
async def test_a_walk_shows_what_each_session_shows_alone(tmp_path, joins, patient_clock):
    archive = made(27, 2, rich)
    demo = served(archive, joins)
    assert await walked(demo, tmp_path / "walk") == await alone(archive, tmp_path / "alone")


async def test_a_walk_of_the_demo_shows_what_each_session_shows_alone(tmp_path, patient_clock):
    from xnatfs.demo.fixtures.lab import DemoArchive

    archive = DemoArchive()
    archive.users["u"] = User("u", "p")
    for project in ("BRAINS", "POOL", "UGLY"):
        archive.projects[project].members["u"] = "Owners"
        demo = served(archive)
        together = await walked(demo, tmp_path / "walk", project)
        assert together == await alone(archive, tmp_path / "alone", project), project


async def test_sessions_shared_into_the_project_are_in_the_walk(tmp_path):
    archive = made(30)
    pool = archive.project("POOL", "Shared", u="Owners")
    for number, session in enumerate(list(archive.experiments.values())):
        session.shared[pool.id] = f"POOLED{number}"
        archive.subjects[session.subject].shared[pool.id] = f"POOLED{number}"
    demo = served(archive)
    together = await walked(demo, tmp_path / "walk", "POOL")
    assert asked(demo).count("experiments/*/scans") <= 2
    assert len(demo.requests) < 40
    assert together == await alone(archive, tmp_path / "alone", "POOL")


async def test_subjects_with_resources_are_asked_and_those_without_are_not(tmp_path):
    def change(archive: Archive, number: int, session: Experiment) -> None:
        if number in (3, 20):
            subject: Subject = archive.subjects[session.subject]
            archive.file(archive.resource(subject.resources, "notes"), "n.txt", b"note")

    archive = made(40, 1, change)
    demo = served(archive)
    together = await walked(demo, tmp_path / "walk")
    assert {path for path in together if path.endswith("n.txt")} == {
        "projects/P/S3/resources/notes/n.txt",
        "projects/P/S20/resources/notes/n.txt",
    }
    assert asked(demo).count("subjects/*/resources") <= 6
    none = served(archive, "ignored")
    assert await walked(none, tmp_path / "none") == together
    assert asked(none).count("subjects/*/resources") == 40


@pytest.mark.parametrize(
    "order", [sorted, lambda names: sorted(names, reverse=True), lambda names: names[::2] + names[1::2]]
)
async def test_a_walk_may_go_in_any_order(tmp_path, order):
    archive = made(60, 1)
    demo = served(archive)
    async with opened(demo, tmp_path) as site:
        project = await find(site, "projects/P")
        for name in order(await subjects(project)):
            node = await project.child(name)
            assert isinstance(node, Dir)
            assert len(await entries(node)) > 6
    assert len([line for line in asked(demo) if line.startswith("experiments/")]) < 60


# -- what may be wrong -------------------------------------------------------------------------------------------


def fault(demo: DemoXnat, answer: Callable[[Request], Reply | None]) -> None:
    demo.faults.append(answer)


async def test_one_broken_catalogue_spoils_only_its_own_resource(tmp_path):
    archive = made(40, 1)
    next(iter(list(archive.experiments.values())[20].scans)).resources[0].broken = True
    demo = served(archive)
    async with opened(demo, tmp_path) as site:
        project = await find(site, "projects/P")
        found = 0
        for name in ["resources", *await subjects(project)]:
            if name in ("resources", "S20"):
                continue
            node = await project.child(name)
            assert isinstance(node, Dir)
            found += sum(path.endswith("a.dcm") for path in await entries(node))
    assert found == 39
    assert len(demo.requests) < 120


async def test_a_list_that_lacks_a_scan_is_not_believed(tmp_path):
    """Compare with the files: the server's join leaves a scan out of one session."""
    archive = made(30)
    demo = served(archive)
    victim = list(archive.experiments.values())[9]

    def lacking(request: Request) -> Reply | None:
        if not request.path.endswith("/experiments") or "imagescandata" not in request.query.get("columns", ""):
            return None
        kept, victim.scans = victim.scans, victim.scans[:1]
        try:
            return demo.routes.answer(_asked(request))
        finally:
            victim.scans = kept

    fault(demo, lacking)
    assert await walked(demo, tmp_path / "walk") == await alone(archive, tmp_path / "alone")


async def test_a_list_of_assessors_that_is_always_empty_is_not_believed(tmp_path):

    def change(archive: Archive, number: int, session: Experiment) -> None:
        archive.assessor(session, f"QC{number}")

    archive = made(30, 1, change)
    demo = served(archive)
    fault(demo, lambda request: empty() if request.query.get("xsiType") == "xnat:imageAssessorData" else None)
    assert await walked(demo, tmp_path / "walk") == await alone(archive, tmp_path / "alone")


async def test_a_server_that_lists_only_the_first_of_several_sessions(tmp_path):
    archive = made(20, 1)
    demo = served(archive)

    def first(request: Request) -> Reply | None:
        head, comma, _ = request.path.partition(",")
        if not comma or not request.path.endswith("/files"):
            return None
        asked = _asked(request)
        return demo.routes.answer(
            type(asked)(**{**vars(asked), "segments": ("experiments", head.split("/")[-1], "files")})
        )

    fault(demo, first)
    assert await walked(demo, tmp_path / "walk") == await alone(archive, tmp_path / "alone")


def without(reply: Reply, lacks: Callable[[dict[str, str]], bool], blank: Collection[str] = ()) -> Reply:
    """Return the same list, less some rows and some cells."""
    found = json.loads(b"".join(reply.pieces()))
    rows = [row for row in found["ResultSet"]["Result"] if not lacks(row)]
    found["ResultSet"]["Result"] = [{key: "" if key in blank else cell for key, cell in row.items()} for row in rows]
    return Reply(200, json.dumps(found).encode(), "application/json")


Missing = Callable[[dict[str, str]], bool]
MISSING: list[Missing] = [
    lambda row: "/scans/2/" in row["URI"],  # the files of one scan of each session
    lambda row: row["collection"] in ("ratings", "OUT"),  # those of assessors
    lambda row: row["collection"].startswith("logs"),  # those of sessions
    lambda row: "/reconstructions/" in row["URI"],
]
BLANK = [(), ("file_count",), ("file_count", "file_size")]


@pytest.mark.parametrize(
    ("missing", "blank"),
    # A resource of which a part is listed, and no count is stated, tells nothing of the other part.
    [(lambda row: row["Name"] == "c.dcm", ()), *product(MISSING, BLANK)],
)
async def test_a_list_of_several_sessions_that_lacks_files_is_not_believed(tmp_path, missing, blank, patient_clock):
    """List each session alone in full."""
    archive = made(30, 2, rich)
    demo = served(archive)
    left_out: list[bool] = []

    def counted(row: dict[str, str]) -> bool:
        left_out.append(missing(row))
        return left_out[-1]

    def lacking(request: Request) -> Reply | None:
        parts = request.path.split("/")
        if parts[-1] == "resources" and "experiments" in parts:
            return without(demo.routes.answer(_asked(request)), lambda row: False, blank)
        if parts[-1] != "files" or "," not in request.path:
            return None
        return without(demo.routes.answer(_asked(request)), counted)

    fault(demo, lacking)
    assert await walked(demo, tmp_path / "walk") == await alone(archive, tmp_path / "alone")
    assert any(left_out), "the server was honest"


@pytest.mark.parametrize("status", [400, 403, 404, 500, 504])
async def test_a_server_that_answers_nothing_in_bulk(tmp_path, status, patient_clock):
    archive = made(12)
    demo = served(archive)

    def refuse(request: Request) -> Reply | None:
        if "," in request.path or "columns" in request.query and "imagescandata" in request.query["columns"]:
            raise Failed(status, "")
        return None

    fault(demo, refuse)
    assert await walked(demo, tmp_path / "walk") == await alone(archive, tmp_path / "alone")


async def test_sessions_without_files_are_believed_of_a_server_that_lists_several(tmp_path):
    def change(archive: Archive, number: int, session: Experiment) -> None:
        if number % 2:
            for scan in session.scans:
                scan.resources.clear()

    archive = made(64, 1, change)
    demo = served(archive)
    assert await walked(demo, tmp_path / "walk") == await alone(archive, tmp_path / "alone")


async def test_a_list_that_fails_takes_back_nothing(tmp_path, patient_clock):
    archive = made(30)
    demo = served(archive)
    async with opened(demo, tmp_path) as site:
        first = await entries(await find(site, "projects/P"))
        prefetch = site.prefetches.get("P")
        fault(demo, lambda request: Reply(500, b"", "text/plain") if request.path.endswith("/experiments") else None)
        demo.requests.clear()
        prefetch._scans.fetched = -float("inf")
        assert await prefetch._scans.rows(["DEMO_E00001"]) is None
        demo.requests.clear()
        assert await entries(await find(site, "projects/P")) == first
        assert asked(demo) == []


async def test_one_join_tells_of_all_sessions_of_a_project(tmp_path, patient_clock):
    """Send one join although it lacks some sessions: those without images, and new ones."""

    def change(archive: Archive, number: int, session: Experiment) -> None:
        if number % 9 == 5:
            archive.experiment(
                archive.subjects[session.subject], f"BLOOD{number}", xsi_type="xnat:subjectVariablesData"
            )

    demo = served(made(150, 1, change))
    await walked(demo, tmp_path)
    joins = [r for r in demo.requests if "imagescandata" in r.query.get("columns", "")]
    assert len(joins) == 1


# -- what cannot be seen in bulk ---------------------------------------------------------------------------------


async def test_a_resource_without_files_is_found_by_its_name(tmp_path):
    def change(archive: Archive, number: int, session: Experiment) -> None:
        archive.resource(session.resources, "EMPTY")

    demo = served(made(20, 1, change))
    async with opened(demo, tmp_path) as site:
        project = await find(site, "projects/P")
        await entries(project)
        demo.requests.clear()
        resources = await find(site, "projects/P/S15/S15_MR/resources")
        assert isinstance(await resources.child("EMPTY"), Dir)
        assert list((await resources.children()).nodes) == ["EMPTY"]
    assert asked(demo) == ["experiments/*/resources"]


async def test_a_reconstruction_without_files_is_found_by_its_name(tmp_path):
    def change(archive: Archive, number: int, session: Experiment) -> None:
        recon = Reconstruction("mean", "average")
        session.reconstructions.append(recon)
        archive.resource(recon.out, "EMPTY")

    demo = served(made(20, 1, change))
    async with opened(demo, tmp_path) as site:
        await entries(await find(site, "projects/P"))
        demo.requests.clear()
        found = await find(site, "projects/P/S15/S15_MR/reconstructions/mean")
        assert isinstance(await found.child("EMPTY"), Dir)
    assert asked(demo) == ["experiments/*/resources"]


async def test_the_facts_of_scans_and_resources_are_whole_after_a_walk(tmp_path):
    demo = served(made(20, 2))
    async with opened(demo, tmp_path) as site:
        await entries(await find(site, "projects/P"))
        demo.requests.clear()
        scan = await find(site, "projects/P/S15/S15_MR/scans/2")
        resource = await find(site, "projects/P/S15/S15_MR/scans/2/DICOM")
        for _ in range(2):
            assert (await scan.all_xattrs())["xsitype"] == "xnat:mrScanData"
            assert (await resource.all_xattrs())["format"] == "DICOM"
        assert asked(demo) == ["experiments/*/scans"]


async def test_names_with_a_dot_are_not_worth_a_request(tmp_path):
    demo = served(made(20, 1))
    async with opened(demo, tmp_path) as site:
        await entries(await find(site, "projects/P"))
        demo.requests.clear()
        resources = await find(site, "projects/P/S15/S15_MR/resources")
        for name in (".git", ".directory"):
            with pytest.raises(Exception, match="does not exist"):
                await resources.child(name)
    assert asked(demo) == []


# -- a good guest ------------------------------------------------------------------------------------------------


async def pauses(demo: DemoXnat, directory: Path, seconds: float) -> list[int]:
    """Look into each session, so long after the one before; return how many sessions each list of files covered."""
    async with opened(demo, directory) as site:
        project = await find(site, "projects/P")
        for name in await subjects(project):
            node = await project.child(name)
            assert isinstance(node, Dir)
            await entries(node)
            await trio.sleep(seconds)
    return [r.path.count(",") + 1 for r in demo.requests if r.path.endswith("/files")]


async def test_nothing_is_asked_ahead_that_is_not_reached_before_it_is_old(tmp_path, patient_clock):
    batches = await pauses(served(made(40, 1)), tmp_path, 4.0)
    assert max(batches) == 7, "7 sessions in 30 s"
    assert sum(batches) == 40


async def test_who_copies_each_session_is_not_asked_ahead(tmp_path, patient_clock):
    demo = served(made(20, 1))
    assert await pauses(demo, tmp_path, 9.0) == [1] * 20
    assert "experiments" not in asked(demo)


async def test_a_url_is_never_longer_than_servers_take(tmp_path):
    archive = made(1, 1)
    project = archive.projects["P"]
    for number in range(100):
        session = archive.experiment(archive.subject(project, f"T{number}"), f"T{number}_MR", f"{'x' * 300}{number}")
        archive.file(archive.resource(session.resources, "r"), "a", b"a")
    demo = served(archive)
    async with opened(demo, tmp_path) as site:
        await entries(await find(site, "projects/P"))
    longest = max(len(r.path) + sum(len(k) + len(v) + 2 for k, v in r.query.items()) for r in demo.requests)
    assert 4000 < longest < 8000


def empty() -> Reply:
    body = b'{"ResultSet": {"Result": [], "totalRecords": "0"}}'
    return Reply(200, body, "application/json")


def _asked(request: Request):
    from xnatfs.demo.rest.resources import Asked

    segments = tuple(part for part in request.path.removeprefix("/data/").split("/") if part)
    return Asked("u", request.method, segments, request.query, request.headers, False)
