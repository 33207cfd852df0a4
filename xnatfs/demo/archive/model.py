"""Hold an archive in memory: projects, subjects, experiments, scans, resources, catalogue entries, users, roles."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from xnatfs.demo.archive.configurations import Configurations
from xnatfs.demo.archive.entries import Content, Entry

STAMP = "2024-01-02 03:04:05.678"


@dataclass
class Resource:
    id: int
    label: str
    format: str = ""
    content: str = ""
    entries: list[Entry] = field(default_factory=list)
    broken: bool = False  # its catalogue cannot be read
    ordered: bool = False  # its catalogue is in the order of `entries`, though it is of DICOM

    def size(self) -> int:
        """Return the sum of the sizes that the catalogue states."""
        return sum(int(entry.size or 0) for entry in self.entries)

    def put(self, entries: Sequence[Entry]) -> list[Entry]:
        """Add entries in place of those with the same paths, and return the replaced ones."""
        new = {entry.path for entry in entries}
        replaced = [entry for entry in self.entries if entry.path in new]
        self.entries[:] = [entry for entry in self.entries if entry.path not in new] + [*entries]
        return replaced

    def remove(self, path: str) -> list[Entry]:
        """Remove the entry with this path, or all with "", and return what was removed."""
        gone = [entry for entry in self.entries if path in ("", entry.path)]
        self.entries[:] = [entry for entry in self.entries if entry not in gone]
        return gone

    def listed(self) -> list[Entry]:
        """Return the entries in the order of the catalogue; DICOM entries have that of a hash table (2 7 17 5 ...)."""
        if self.ordered or self.label != "DICOM":
            return self.entries
        return sorted(self.entries, key=lambda entry: hashlib.md5(entry.path.encode("utf-8", "replace")).digest())


@dataclass
class Scan:
    id: str
    type: str = ""
    series_description: str = ""
    quality: str = "usable"
    xsi_type: str = "xnat:mrScanData"
    note: str = ""
    resources: list[Resource] = field(default_factory=list)
    pk: int = 0
    uid: str = ""  # of the series
    modality: str = ""

    @property
    def frames(self) -> str:
        """Return how many images its DICOM has; '' without DICOM."""
        counts = [len(resource.entries) for resource in self.resources if resource.label == "DICOM"]
        return str(sum(counts)) if counts else ""


@dataclass
class Reconstruction:
    id: str
    type: str = ""
    out: list[Resource] = field(default_factory=list)
    inputs: list[Resource] = field(default_factory=list)


@dataclass
class Experiment:
    """A session, another assessment of a subject, or an assessor of a session (`session` then)."""

    id: str
    label: str
    project: str
    subject: str
    xsi_type: str = "xnat:mrSessionData"
    date: str = "2024-01-02"
    inserted: str = STAMP
    last_modified: str = ""
    session: str = ""
    scans: list[Scan] = field(default_factory=list)
    resources: list[Resource] = field(default_factory=list)
    out: list[Resource] = field(default_factory=list)
    inputs: list[Resource] = field(default_factory=list)
    reconstructions: list[Reconstruction] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)  # project -> label there
    uid: str = ""  # of the study
    fields: dict[str, str] = field(default_factory=dict)  # any other fields

    @property
    def is_session(self) -> bool:
        return self.xsi_type.endswith("SessionData")

    def held(self) -> "Found":
        """Return the experiment's own resources."""
        return _at(self.resources, Home("resources", self.id, " ", experiment=self))

    def held_by_scan(self, scan: Scan) -> "Found":
        return _at(scan.resources, Home("scans", scan.id, scan.type, experiment=self, part=f"scans/{scan.id}"))

    def held_by_reconstruction(self, recon: Reconstruction, side: str) -> "Found":
        """Return the resources of a reconstruction on one side, "in" or "out"."""
        part = f"reconstructions/{recon.id}/{side}"
        home = Home("reconstructions", recon.id, recon.type, experiment=self, part=part)
        return _at(recon.inputs if side == "in" else recon.out, home)

    def held_as_assessor(self, side: str) -> "Found":
        """Return the resources of an assessor on one side: "in", "out" or, of the assessor itself, ""."""
        home = Home("assessors", self.id, self.xsi_type, experiment=self, part=side)
        return _at({"in": self.inputs, "out": self.out}.get(side, self.resources), home)

    def held_at_any_level(self) -> "Iterator[tuple[Resource, Home]]":
        """Yield the own resources, those of scans and reconstructions, inputs and outputs."""
        yield from self.held()
        for scan in self.scans:
            yield from self.held_by_scan(scan)
        for recon in self.reconstructions:
            for side in ("out", "in"):
                yield from self.held_by_reconstruction(recon, side)
        for side in ("out", "in"):
            yield from self.held_as_assessor(side)


@dataclass
class Subject:
    id: str
    label: str
    project: str
    inserted: str = STAMP
    last_modified: str = ""
    resources: list[Resource] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)

    def held(self) -> "Found":
        return _at(self.resources, Home("resources", "", " ", subject=self))


@dataclass
class Project:
    id: str
    name: str
    access: str = "private"
    description: str = ""
    members: dict[str, str] = field(default_factory=dict)  # user -> Owners, Members, Collaborators
    resources: list[Resource] = field(default_factory=list)
    secondary_id: str = ""
    alias: str = ""
    prearchive_code: str = "0"  # 0: archived by hand, 4: at once, 5: at once, replacing existing data

    def held(self) -> "Found":
        return _at(self.resources, Home("resources", "", " ", project=self))


@dataclass(frozen=True)
class Home:
    """The item that a resource belongs to, and the listing's `category`, `cat_id` and `cat_desc` for it."""

    category: str
    cat_id: str
    cat_desc: str
    project: Project | None = None
    subject: Subject | None = None
    experiment: Experiment | None = None
    part: str = ""  # of the experiment: 'scans/1', 'reconstructions/r', 'out', 'in'

    def owner(self) -> str:
        """Return the ID of the owning project."""
        item = self.subject or self.experiment
        return self.project.id if self.project else item.project if item else ""

    def base(self) -> str:
        """Return the part of the URI before /resources."""
        if self.project:
            return f"/data/projects/{self.project.id}"
        if self.subject:
            return f"/data/projects/{self.subject.project}/subjects/{self.subject.id}"
        assert self.experiment is not None
        return f"/data/experiments/{self.experiment.id}" + (f"/{self.part}" if self.part else "")


Found = Sequence[tuple[Resource, Home]]


def _at(resources: list[Resource], home: Home) -> Found:
    return [(resource, home) for resource in resources]


@dataclass
class User:
    name: str
    password: str
    admin: bool = False
    method: str = "localdb"  # by which the password is checked, where a login names one
    expired: bool = False  # the password must be changed before anything else


class Archive:
    """The whole archive, with the server's lookups. A thread that reads or changes it must hold `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users: dict[str, User] = {}
        self.projects: dict[str, Project] = {}
        self.subjects: dict[str, Subject] = {}
        self.experiments: dict[str, Experiment] = {}
        self._resource_ids = 100
        self._scan_ids = 10
        self._by_id: dict[int, tuple[Resource, Home]] = {}
        self._indexed = 0
        self._accessions = {"S": 0, "E": 0}
        self.configurations = Configurations()

    # -- making ------------------------------------------------------------------------------------------------

    def project(self, id: str, name: str, access: str = "private", **members: str) -> Project:
        """Add a project.

        Args:
            id: Its ID.
            name: Its title.
            access: Its accessibility: "private", "protected" or "public".
            members: The roles of its users, by user name with underscores for hyphens.
        """
        roles = {user.replace("_", "-"): role for user, role in members.items()}
        self.projects[id] = Project(id, name, access, members=roles)
        return self.projects[id]

    def subject(self, project: Project, label: str, accession: str = "") -> Subject:
        """Add a subject to a project, with a generated accession ID unless one is given."""
        accession = accession or self._accession("S", len(self.subjects))
        self.subjects[accession] = Subject(accession, label, project.id)
        return self.subjects[accession]

    def experiment(self, subject: Subject, label: str, accession: str = "", **more: Any) -> Experiment:
        """Add an experiment to a subject.

        Args:
            subject: The subject.
            label: The label of the experiment.
            accession: Its accession ID; "" generates one.
            more: Other fields of Experiment; `project` is by default that of the subject.
        """
        accession = accession or self._accession("E", len(self.experiments))
        project = more.pop("project", subject.project)
        self.experiments[accession] = Experiment(accession, label, project, subject.id, **more)
        return self.experiments[accession]

    def _accession(self, kind: str, count: int) -> str:
        """Return a new accession ID. None is issued twice, even after items were deleted."""
        self._accessions[kind] = max(self._accessions[kind], count) + 1
        return f"DEMO_{kind}{self._accessions[kind]:05}"

    def assessor(self, session: Experiment, label: str, xsi_type: str = "xnat:qcManualAssessorData") -> Experiment:
        made = self.experiment(self.subjects[session.subject], label, project=session.project, xsi_type=xsi_type)
        made.session = session.id
        return made

    def scan(self, session: Experiment, id: str, type: str = "", **more: Any) -> Scan:
        self._scan_ids += 1
        session.scans.append(Scan(id, type, pk=self._scan_ids, **more))
        return session.scans[-1]

    def resource(
        self, among: list[Resource], label: str, format: str = "", content: str = "", least: int = 0
    ) -> Resource:
        """Add a resource.

        Args:
            among: The resources of the item that owns it.
            label: Its label; "" for a resource without one.
            format: Its format, which its files inherit.
            content: Its content, such as RAW, which its files inherit.
            least: The least resource number to assign; the number is also greater than any assigned before.
        """
        self._resource_ids = max(self._resource_ids + 1, least)
        among.append(Resource(self._resource_ids, label, format, content))
        return among[-1]

    @staticmethod
    def file(
        resource: Resource, path: str, content: Content, size: str | None = None, digest: str | None = None
    ) -> Entry:
        """Add a file to a resource.

        Args:
            resource: The resource to add it to.
            path: Its path within the resource.
            content: Its bytes, or the file that holds them; None for a file that only the catalogue lists.
            size: The size in bytes that the catalogue states; by default that of `content`, if it is bytes.
            digest: The MD5 that the catalogue states, in hex; by default that of `content`, if it is bytes.
        """
        if isinstance(content, bytes):
            size = str(len(content)) if size is None else size
            digest = hashlib.md5(content).hexdigest() if digest is None else digest
        made = Entry(path, content, size or "", digest or "", format=resource.format, note=resource.content)
        resource.entries.append(made)
        return resource.entries[-1]

    # -- looking up --------------------------------------------------------------------------------------------

    def project_id(self, key: str) -> str:
        """Return the project ID for an ID or an alias; any other key is returned unchanged."""
        aliases = {project.alias: project.id for project in self.projects.values() if project.alias}
        return key if key in self.projects else aliases.get(key, key)

    def is_admin(self, user: str) -> bool:
        return user in self.users and self.users[user].admin

    def role(self, user: str, project: str) -> str:
        if self.is_admin(user):
            return "Owners"
        return self.projects[project].members.get(user, "")

    def sees(self, user: str, project: str) -> bool:
        """Return true if the project is in the user's list."""
        access = self.projects[project].access
        return bool(self.role(user, project)) or access in ("public", "protected")

    def reads(self, user: str, project: str) -> bool:
        """Return true if the user may read the contents of the project."""
        return bool(self.role(user, project)) or self.projects[project].access == "public"

    def edits(self, user: str, project: str) -> bool:
        return self.role(user, project) in ("Owners", "Members")

    def deletes(self, user: str, project: str) -> bool:
        return self.role(user, project) == "Owners"

    def reads_item(self, user: str, item: Subject | Experiment) -> bool:
        return any(self.reads(user, project) for project in (item.project, *item.shared))

    def subjects_in(self, project: str) -> Iterator[tuple[Subject, str]]:
        """Yield the subjects that a project owns and those shared into it, with their labels there."""
        for subject in self.subjects.values():
            if subject.project == project:
                yield subject, subject.label
            elif project in subject.shared:
                yield subject, subject.shared[project]

    def experiments_in(self, project: str) -> Iterator[tuple[Experiment, str]]:
        for experiment in self.experiments.values():
            if experiment.project == project:
                yield experiment, experiment.label
            elif project in experiment.shared:
                yield experiment, experiment.shared[project]

    def find_subject(self, project: str, key: str) -> Subject | None:
        return _by_label_or_id(list(self.subjects_in(project)), key)

    def find_experiment(self, project: str, key: str, accession_first: bool = False) -> Experiment | None:
        """Find an experiment of a project by label or accession ID.

        With `accession_first`, an accession ID takes precedence, even one of another project.
        """
        rows = list(self.experiments_in(project))
        if accession_first and key in self.experiments:
            return self.experiments[key]
        return _by_label_or_id(rows, key)

    def assessors_of(self, session: Experiment) -> list[Experiment]:
        return [e for e in self.experiments.values() if e.session == session.id]

    def resources(self) -> Iterator[tuple[Resource, "Home"]]:
        """Yield every resource with the item it belongs to."""
        for project in self.projects.values():
            yield from project.held()
        for subject in self.subjects.values():
            yield from subject.held()
        for experiment in self.experiments.values():
            yield from experiment.held_at_any_level()

    def changed(self) -> None:
        """Invalidate the index of resource numbers, after a change not made by the methods above."""
        self._indexed = 0

    def resource_by_id(self, number: int) -> tuple[Resource, "Home"] | None:
        if self._indexed != self._resource_ids:  # a resource was added since the index was built
            self._indexed = self._resource_ids
            self._by_id = {pair[0].id: pair for pair in self.resources()}
        return self._by_id.get(number)


T = TypeVar("T", Subject, Experiment)


def _by_label_or_id(rows: list[tuple[T, str]], key: str) -> T | None:
    for item, label in rows:
        if label == key:
            return item
    return next((item for item, _ in rows if item.id == key), None)
