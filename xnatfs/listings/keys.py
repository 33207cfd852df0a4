"""Define the keys of the metadata cache.

Each kind of entry has a type of its own, so that no two kinds can share a key, whatever the names on the server.
"""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from xnatfs.rest.models import Item
from xnatfs.rest.prearchive_lists import Revision

# Seconds for which a list of the prearchive is fresh: its sessions change all the time.
PREARCHIVE_TTL_SECONDS = 5.0

NodePath = tuple[str, ...]  # the names of a path, from the root of the mount


@dataclass(frozen=True, slots=True)
class ListKey:
    """A list that the server returns. Such entries can be persisted."""

    longest_ttl: ClassVar[float] = math.inf  # seconds

    def as_cells(self) -> list[object]:
        """Return values that identify this key among all others, and that JSON can hold."""
        return [type(self).__name__, *(getattr(self, field.name) for field in fields(self))]


@dataclass(frozen=True, slots=True)
class ProjectsKey(ListKey):
    """The projects that the account may see."""


@dataclass(frozen=True, slots=True)
class SubjectsKey(ListKey):
    """The subjects of a project."""

    project: str


@dataclass(frozen=True, slots=True)
class ExperimentsKey(ListKey):
    """The experiments of a project."""

    project: str


@dataclass(frozen=True, slots=True)
class AllSubjectsKey(ListKey):
    """The subjects of the site."""


@dataclass(frozen=True, slots=True)
class AllExperimentsKey(ListKey):
    """The experiments of the site, image assessors among them."""


@dataclass(frozen=True, slots=True)
class ScansKey(ListKey):
    """The scans of a session, by its accession ID."""

    experiment: str


@dataclass(frozen=True, slots=True)
class AssessorsKey(ListKey):
    """The assessors of a session, by its accession ID."""

    experiment: str


@dataclass(frozen=True, slots=True)
class ResourcesKey(ListKey):
    """The resources of an item; with `below`, also those of the items below it."""

    item: Item
    below: bool


@dataclass(frozen=True, slots=True)
class FilesKey(ListKey):
    """The files of an item's resources; with `below`, also those of the items below it."""

    item: Item
    below: bool


@dataclass(frozen=True, slots=True)
class BidsMapKey(ListKey):
    """The map of BIDS names of a project, or of the site."""

    project: str  # '' for the site


@dataclass(frozen=True, slots=True)
class ImageLabelsKey(ListKey):
    """The labels of the resources of a project's scans, by session."""

    project: str


@dataclass(frozen=True, slots=True)
class SessionLabelsKey(ListKey):
    """The labels of the resources that a project's sessions have themselves, by session."""

    project: str


@dataclass(frozen=True, slots=True)
class DemographicsKey(ListKey):
    """The demographics of a project's subjects."""

    project: str


@dataclass(frozen=True, slots=True)
class AuthorsKey(ListKey):
    """The investigators of a project."""

    project: str


@dataclass(frozen=True, slots=True)
class PrearchiveListKey(ListKey):
    """A list of the prearchive. None is persisted: sessions stay there for minutes."""

    longest_ttl: ClassVar[float] = PREARCHIVE_TTL_SECONDS


@dataclass(frozen=True, slots=True)
class PrearchiveKey(PrearchiveListKey):
    """The sessions in the prearchive, of all projects that the account may edit."""


@dataclass(frozen=True, slots=True)
class ReceivedResourcesKey(PrearchiveListKey):
    """The resources of a session in the prearchive."""

    revision: Revision


@dataclass(frozen=True, slots=True)
class ReceivedFilesKey(PrearchiveListKey):
    """The files of one of its resources."""

    revision: Revision
    group: tuple[str, str]  # category and ID of the part that has the resource
    label: str


@dataclass(frozen=True, slots=True)
class ReceivedLogKey(PrearchiveListKey):
    """The last message about a session in the prearchive."""

    revision: Revision
    status: str


@dataclass(frozen=True, slots=True)
class ChildrenKey:
    """The children of a directory."""

    path: NodePath


@dataclass(frozen=True, slots=True)
class FoldersKey:
    """The folders within a resource, by the path of its directory."""

    path: NodePath


@dataclass(frozen=True, slots=True)
class BidsOutlineKey:
    """The folders of subjects and sessions of a BIDS dataset, by the ID of its project."""

    project: str


@dataclass(frozen=True, slots=True)
class BidsPlanKey:
    """The names that the files of a session have in a BIDS dataset, in the folder of these labels."""

    project: str
    experiment: str
    subject: str
    session: str


@dataclass(frozen=True, slots=True)
class GeneratedKey:
    """The bytes of a file that is made from listings, by its path."""

    path: NodePath


@dataclass(frozen=True, slots=True)
class FramesKey:
    """The frames of the scans of a project's sessions."""

    project: str


@dataclass(frozen=True, slots=True)
class LinkKey:
    """The target of a link, by its directory (`experiments`, `subjects`) and accession ID."""

    directory: str
    accession: str


@dataclass(frozen=True, slots=True)
class LinksOfProjectKey:
    """The targets of all links into one project, by their directory."""

    directory: str
    project: str


@dataclass(frozen=True, slots=True)
class SizeKey:
    """The length of a file whose listing lacks it, or has a wrong one."""

    resource: str
    path: str
    listed_size: int | None
    digest: str


@dataclass(frozen=True, slots=True)
class ChangeKey:
    """The last change of a file that the mount has noticed."""

    resource: str
    path: str


def experiment_keys(accession: str) -> list[ListKey]:
    """Return the keys of the four lists that describe a session."""
    item = ("experiments", accession)
    return [ScansKey(accession), AssessorsKey(accession), ResourcesKey(item, True), FilesKey(item, True)]


def item_keys(item: Item) -> list[ListKey]:
    """Return the keys of every list below a project, subject or experiment, and of the lists of the whole site."""
    made: list[ListKey] = [ResourcesKey(item, True), ResourcesKey(item, False), FilesKey(item, True)]
    made.append(FilesKey(item, False))
    if item[0] == "experiments":
        made += [ScansKey(item[1]), AssessorsKey(item[1])]
    if item[0] == "projects":
        made += [BidsMapKey(item[1]), ImageLabelsKey(item[1]), SessionLabelsKey(item[1]), DemographicsKey(item[1])]
        made.append(AuthorsKey(item[1]))
    return [*made, AllSubjectsKey(), AllExperimentsKey()]


def keys_below(key: ListKey, row: str) -> list[ListKey]:
    """Return the keys of the lists below one row of a list; `row` is its ID."""
    match key:
        case ProjectsKey():
            return [SubjectsKey(row), ExperimentsKey(row), *item_keys(("projects", row))]
        case SubjectsKey():
            return item_keys(("subjects", row))
        case ExperimentsKey():
            return item_keys(("experiments", row))
    return []
