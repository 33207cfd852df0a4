"""Model an XNAT that changes, with its state at each moment, and a network before it that fails on request."""

import json
import random
from dataclasses import dataclass
from email.utils import formatdate

import httpx
import trio

from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Archive, Experiment, Resource, User
from xnatfs.demo.server.app import DemoXnat

USER = PASSWORD = "u"
EPOCH = 1_704_164_645.0  # at 0 of trio's clock
LATENCY = 0.05  # seconds before an answer
PIECE, PAUSE = 8192, 0.02  # bytes of a body that come at once, and seconds before the next ones
SMALL_SIZE, BIG_SIZE = 2000, 60_000

Path = tuple[str, ...]
FIRST = ("big.nii", "0.dcm", "deep.txt")

# Names of files that are the same to some route of some server: a request that is decoded once more, an archive that
# has '/' for a backslash and '?' for what is not ASCII, or cuts its members' paths where they say "files".
ODD = {
    "odd": (
        "50%負荷.dcm",
        "50%安静.dcm",
        "50%回復.dcm",
        "hash%23tag.txt",
        "hash#tag.txt",
        "uml%C3%A4ut",
        "uml\u00e4ut",
    ),
    "files": ("a.dcm", "files/a.dcm", "b\\00", "b/00", "c;1", "c"),
}


@dataclass(frozen=True)
class There:
    """A file: its resource, its path in there, and its content."""

    resource: str
    inner: str
    content: bytes


@dataclass(frozen=True)
class Moment:
    """A moment: files, and the names in directories, that the account saw from a time on, by path in the mount."""

    time: float
    files: dict[Path, There]
    names: dict[Path, frozenset[str]]
    resources: frozenset[str]


class Model:
    """A server's past, and the changes that continue it."""

    def __init__(self, *, odd: bool = False) -> None:
        self.archive = Archive()
        self.archive.users[USER] = User(USER, PASSWORD)
        self.demo = DemoXnat(self.archive, clock=now, wait=lambda seconds: None)
        self.moments: list[Moment] = []
        self.changed: dict[str, float] = {}  # when something of a project was changed last
        self._made = 0
        self._fill()
        if odd:
            self._fill_oddly()
        self.note()

    def _fill(self) -> None:
        """Fill P with a series, a big file and notes, and a second session; Q with one more."""
        archive = self.archive
        first = archive.project("P", "P", **{USER: "Owners"})
        second = archive.project("Q", "Q", **{USER: "Owners"})
        session = archive.experiment(archive.subject(first, "S1"), "E1")
        self._series(session, "1", 8)
        big = archive.resource(archive.scan(session, "2", "T1").resources, "NIFTI", "NIFTI")
        archive.file(big, "big.nii", self.content(BIG_SIZE))
        notes = archive.resource(session.resources, "notes")
        archive.file(notes, "a/deep.txt", self.content(10))
        archive.file(notes, "empty.txt", b"")
        self._series(archive.experiment(archive.subject(first, "S2"), "E2"), "1", 4)
        self._series(archive.experiment(archive.subject(second, "S3"), "E3"), "1", 3)

    def _fill_oddly(self) -> None:
        """Add a session whose files are easily taken for others, and a resource whose label is another one's ID."""
        session = self.archive.experiment(self.archive.subject(self.archive.projects["P"], "S4"), "E4")
        for label, names in ODD.items():
            resource = self.archive.resource(session.resources, label)
            for number, name in enumerate(names):
                self.archive.file(resource, name, self.content(SMALL_SIZE + number // 2))  # two each of one size
        digits = self.archive.resource(session.resources, str(resource.id))
        for name in ODD["files"]:
            self.archive.file(digits, name, self.content(SMALL_SIZE))

    def _series(self, session: Experiment, scan: str, count: int) -> None:
        resource = self.archive.resource(self.archive.scan(session, scan, "T1").resources, "DICOM", "DICOM")
        for number in range(count):
            self.archive.file(resource, f"{number}.dcm", self.content(SMALL_SIZE + number))

    def content(self, size: int) -> bytes:
        """Return bytes that no other version of any file has; of 0 there is one only."""
        self._made += 1
        return random.Random(self._made).randbytes(size)

    # -- the past ------------------------------------------------------------------------------------------------

    def note(self, *projects: str) -> None:
        """Record a change: from now on the server is like this."""
        self.archive.changed()
        self.changed |= dict.fromkeys(projects, trio_time())
        self.moments.append(_seen(self.archive, trio_time()))

    @property
    def present(self) -> Moment:
        return self.moments[-1]

    def between(self, since: float, until: float) -> list[Moment]:
        """Return the moments that lasted into this time."""
        return [
            moment
            for moment, after in zip(self.moments, [*self.moments[1:], None], strict=True)
            if moment.time <= until and (after is None or after.time >= since)
        ]

    def paths(self) -> list[Path]:
        """Return the paths of all files there ever were, one of each kind first, for stories about one file."""
        found = sorted({path for moment in self.moments for path in moment.files})
        return sorted(found, key=lambda path: FIRST.index(path[-1]) if path[-1] in FIRST else len(FIRST))

    def directories(self) -> list[Path]:
        return sorted({path for moment in self.moments for path in moment.names})

    def contents(self, path: Path, since: float, until: float) -> set[bytes]:
        """Return the contents that a file of this name had in that time.

        Names and contents come of listings of different moments: what counts is which resource was there by its label,
        and what that had under this path.
        """
        home, inner = split(path)
        moments = self.between(since, until)
        files = [file for moment in moments for file in moment.files.values()]
        there = _resources_at(home, moments)
        return {file.content for file in files if file.resource in there and file.inner == "/".join(inner)}

    def listed(self, path: Path, since: float, until: float) -> tuple[set[str], set[str]]:
        """Return the names that a directory may show then, and those that it must."""
        home, inner = split(path)
        moments = self.between(since, until)
        may = {name for moment in moments for name in moment.names.get(path, ())}
        must = set.intersection(*(set(moment.names.get(path, ())) for moment in moments))
        there = _resources_at(home, moments)
        for file in (file for moment in moments for file in moment.files.values()):
            names = tuple(file.inner.split("/"))
            if len(path) >= len(home) and file.resource in there and names[: len(inner)] == inner != names:
                may.add(names[len(inner)])
        return may, must

    # -- changes -------------------------------------------------------------------------------------------------

    def resources(self) -> list[tuple[Resource, Experiment]]:
        """Return the resources of all sessions, each with its session."""
        return [
            (resource, session)
            for session in self.archive.experiments.values()
            for resource in [*(r for scan in session.scans for r in scan.resources), *session.resources]
        ]

    def entry(self, path: Path) -> tuple[Entry, Resource, Experiment] | None:
        """Return the catalogue's entry of a file that the account sees now."""
        there = self.present.files.get(path)
        for resource, session in self.resources():
            for entry in resource.entries:
                if there is not None and (str(resource.id), entry.path) == (there.resource, there.inner):
                    return entry, resource, session
        return None

    def replace(self, entry: Entry, session: Experiment, size: int, modified: float | None = None) -> None:
        """Put other content under the same name; a file system dates it later, unless it is put back with a date."""
        made = Archive.file(Resource(0, ""), entry.path, self.content(max(0, size)))
        entry.content, entry.size, entry.digest = made.content, made.size, made.digest
        entry.modified = max(entry.modified + 2, now()) if modified is None else modified
        self.note(session.project)

    def replace_again(self, entry: Entry, session: Experiment) -> bool:
        """Replace a file by another of its size; return whether that was within the second of its date, which stays."""
        again = int(now()) == int(entry.modified)
        self.replace(entry, session, entry.length(), entry.modified if again else now())
        return again

    def close(self, project: str, *, protected: bool) -> None:
        """Remove the account from the members of a project."""
        found = self.archive.projects[project]
        found.members.pop(USER, None)
        found.access = "protected" if protected else "private"
        self.note(project)

    def reopen(self, project: str) -> None:
        self.archive.projects[project].members[USER] = "Owners"
        self.note(project)


def trio_time() -> float:
    try:
        return trio.current_time()
    except RuntimeError:  # before the story begins
        return 0.0


def now() -> float:
    """Return the server's time, which goes with the test's clock."""
    return EPOCH + trio_time()


def split(path: Path) -> tuple[Path, Path]:
    """Return the directory of a resource, and what is below it."""
    depth = 7 if path[4:5] == ("scans",) else 6
    return path[:depth], path[depth:]


def _resources_at(home: Path, moments: list[Moment]) -> set[str]:
    """Return the resources that were there under this label."""
    return {file.resource for moment in moments for path, file in moment.files.items() if split(path)[0] == home}


def _seen(archive: Archive, time: float) -> Moment:
    names: dict[Path, set[str]] = {("projects",): set()}
    files: dict[Path, There] = {}
    resources: set[str] = set()

    def enter(path: Path) -> None:
        for depth in range(1, len(path)):
            names.setdefault(path[:depth], set()).add(path[depth])
        names.setdefault(path, set())

    for project in archive.projects:
        if not archive.sees(USER, project):
            continue
        home = ("projects", project)
        names[("projects",)].add(project)
        if not archive.reads(USER, project):
            continue
        enter(home)
        for _, label in archive.subjects_in(project):
            enter((*home, label))
        for session, label in archive.experiments_in(project):
            place = (*home, archive.subjects[session.subject].label, label)
            enter(place)
            parts = [((*place, "scans", scan.id), r) for scan in session.scans for r in scan.resources]
            for path, resource in [*parts, *(((*place, "resources"), r) for r in session.resources)]:
                enter((*path, resource.label))
                resources.add(str(resource.id))
                for entry in resource.entries:
                    file = (*path, resource.label, *entry.path.split("/"))
                    enter(file[:-1])
                    names[file[:-1]].add(file[-1])
                    assert isinstance(entry.content, bytes)
                    files[file] = There(str(resource.id), entry.path, entry.content)
    return Moment(time, files, {path: frozenset(each) for path, each in names.items()}, frozenset(resources))


# -- the network ---------------------------------------------------------------------------------------------------

# Where a fault is met: in requests for a file or a tar, in lists, in any.
PLACES = ("files", "lists", "any")
# fmt: off
KINDS = (
    "refused", "reset", "stall", "500", "503", "401", "404", "html", "cut", "ended", "unframed", "shorter", "empty",
    "corrupt",
)
# fmt: on
# What may be done to a login without being a refusal of it, which is remembered.
ANYWHERE = ("refused", "reset", "stall", "503")
# What a listing does not show that states digests or lengths: a half that is none by its headers; other bytes.
HIDDEN = ("shorter", "empty", "corrupt")


@dataclass
class Fault:
    kind: str
    count: int
    place: str

    def meets(self, request: httpx.Request) -> bool:
        path = request.url.path
        if path.endswith(("/JSESSION", "/username")):
            return self.place == "any" and self.kind in ANYWHERE
        file = "/files/" in path or request.url.params.get("format") == "tar"
        return self.place == "any" or file == (self.place == "files")


# What may be missing in lists of files, of a resource that has some: all of them or every other one, where a list is of
# several resources; or all of them in any list.
SHORT = ("all", "half", "everywhere")


class Network(httpx.AsyncBaseTransport):
    """A network on the way to the server."""

    def __init__(self, demo: DemoXnat, timeout: float) -> None:
        self._demo = demo
        self._timeout = timeout
        self.faults: list[Fault] = []
        self.met_at = -float("inf")  # when a fault was met last
        self.harmed_at = -float("inf")  # when bytes were harmed last, so that only a digest tells
        self.honest_digests = True  # whether every listing that a client has states digests
        self.dates = True  # whether files have a Last-Modified
        self.short: dict[str, str] = {}  # how lists are short of the files of a resource, by its ID

    def fail(self, kind: str, count: int, place: str) -> None:
        if kind == "corrupt" and not self.honest_digests:
            kind = "cut"
        self.faults.append(Fault(kind, count, "files" if kind in HIDDEN else place))

    def mend(self) -> None:
        self.faults.clear()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        await trio.sleep(LATENCY)
        fault = self._met(request)
        if fault == "refused":
            raise httpx.ConnectError("refused")
        if fault == "stall":
            await trio.sleep(self._timeout)
            raise httpx.ReadTimeout("stalled")
        response = self._demo(request)
        if self.short:
            response = self._shortened(request, response)
        if fault == "reset":
            raise httpx.ReadError("reset")
        if fault.isdigit() or fault == "html":
            response = httpx.Response(int(fault) if fault.isdigit() else 200, html="<html><h3>a fault</h3></html>")
        harmless = request.method == "HEAD"  # it is honest of what comes of a GET
        body = _Body(response.content if harmless else _harmed(response, fault), fault)
        response.headers["date"] = formatdate(now(), usegmt=True)
        if not self.dates:
            response.headers.pop("last-modified", None)
        return httpx.Response(response.status_code, headers=response.headers, stream=body)

    def _shortened(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        """Return a list of files as a server sends it that has lost some of them."""
        path, query = request.url.path, request.url.params
        if not path.endswith("/files") or query.get("format") != "json" or response.status_code != 200:
            return response
        single = "/resources/" in path and "," not in path
        listed = response.json()
        rows = listed["ResultSet"]["Result"]
        listed["ResultSet"]["Result"] = [
            row for place, row in enumerate(rows) if not self._lacks(row["cat_ID"], place, single=single)
        ]
        return httpx.Response(200, headers={"content-type": "application/json"}, content=json.dumps(listed).encode())

    def _lacks(self, resource: str, place: int, *, single: bool) -> bool:
        match self.short.get(resource):
            case "all":
                return not single
            case "half":
                return not single and place % 2 == 1
            case "everywhere":
                return True
        return False

    def _met(self, request: httpx.Request) -> str:
        for fault in self.faults:
            if fault.meets(request):
                fault.count -= 1
                if not fault.count:
                    self.faults.remove(fault)
                self.met_at = trio.current_time()
                if fault.kind in HIDDEN and self.honest_digests:
                    self.harmed_at = self.met_at
                return fault.kind
        return ""


def _harmed(response: httpx.Response, fault: str) -> bytes:
    content = response.content
    if response.status_code not in (200, 206) or not content:
        return content
    if fault == "corrupt":
        place = len(content) // 2
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    if fault in ("shorter", "empty", "cut", "ended", "unframed"):
        content = content[: 0 if fault == "empty" else len(content) // 2]
        if fault == "unframed":
            response.headers.pop("content-length", None)
        if fault in HIDDEN and "content-length" in response.headers:
            response.headers["content-length"] = str(len(content))
    return content


class _Body(httpx.AsyncByteStream):
    """A body that takes its time, and breaks off where it is cut."""

    def __init__(self, content: bytes, fault: str) -> None:
        self._content = content
        self._fault = fault

        self._at = 0

    def __aiter__(self) -> "_Body":
        return self  # no generator: it needs no close

    async def __anext__(self) -> bytes:
        await trio.sleep(PAUSE)
        piece = self._content[self._at : self._at + PIECE]
        self._at += len(piece)
        if not piece:
            if self._fault == "cut":
                raise httpx.ReadError("cut")
            raise StopAsyncIteration
        return piece
