"""Request the lists that bids/ needs: maps of names, demographics, and labels of resources by session."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.common.sanitize import loads
from xnatfs.common.tasks import gather
from xnatfs.rest.client import SHARED_INTO, Xnat
from xnatfs.rest.models import Row

log = logging.getLogger(__name__)

RESOURCE_LABEL = "xnat:imageSessionData/resources/resource/label"  # of a resource that a session has itself

Labels = dict[str, set[str]]  # by accession ID


@dataclass(frozen=True, slots=True)
class BidsMapRow:
    """A line of a map: the name of the scans with a series description."""

    series_description: str
    bidsname: str
    targets: str = ""  # names of the images that a field map is for, separated by blanks
    wrong: str = ""  # what is wrong with the map, of which this is the only row

    @property
    def id(self) -> str:
        return self.series_description


NO_LINE = BidsMapRow("", "")  # of a map that is not there, which is known without the server, too


@dataclass(frozen=True, slots=True)
class ResourceLabels:
    """The labels of the resources that a session, or that its scans have."""

    id: str  # the accession ID of the session
    labels: str  # separated by newlines

    @property
    def has_nifti(self) -> bool:
        return any(is_converted(label) for label in self.labels.split("\n"))

    @property
    def has_tree(self) -> bool:
        return any(may_hold_tree(label) for label in self.labels.split("\n"))

    @classmethod
    def from_labels(cls, labels: Mapping[str, Iterable[str]]) -> "list[ResourceLabels]":
        """Return a row for each session, given its labels."""
        return [cls(session, "\n".join(sorted(set(found)))) for session, found in labels.items()]


# Labels of resources that hold whole trees, in lower case, as they are found at sites.
_TREE_LABELS = frozenset({"rawdata", "bids", "bids_rawdata", "rawdata_bids"})
# As BIDS writes what the server has in words.
_HANDS = {"right": "R", "left": "L", "ambidextrous": "A", "r": "R", "l": "L", "a": "A"}
_SEXES = {"male": "M", "female": "F", "other": "O", "m": "M", "f": "F", "o": "O"}


@dataclass(frozen=True, slots=True)
class Demographics:
    """Sex, group, age and handedness of a subject; '' where the server states none."""

    id: str  # the accession ID
    sex: str  # M, F or O
    group: str
    age: str  # in years
    handedness: str  # R, L or A

    @classmethod
    def parse(cls, row: Row) -> Self:
        sex = _SEXES.get(row.text("gender").strip().lower(), "")
        hand = _HANDS.get(row.text("handedness").strip().lower(), "")
        years = row.text("age").strip()
        age = years if years.isascii() and years.replace(".", "", 1).isdigit() else ""
        return cls(row.need("ID", "xnat:subjectdata/id"), sex, row.text("group"), age, hand)


@dataclass(frozen=True, slots=True)
class Author:
    """An investigator of a project."""

    id: str  # the name, given name first


def is_converted(label: str) -> bool:
    """Return whether a resource with this label holds converted images or their sidecars."""
    return label.strip().upper() in ("NIFTI", "BIDS")


def may_hold_tree(label: str) -> bool:
    """Return whether a resource with this label may hold a whole BIDS tree."""
    return label.strip().lower() in _TREE_LABELS


def parse_map(text: str, where: str) -> list[BidsMapRow]:
    """Parse a map: a JSON list of objects with `series_description` and `bidsname`. Raises BadReply."""
    try:
        lines = loads(text.encode("utf-8", "surrogatepass")) if text.strip() else []
    except ValueError:
        raise BadReply(f"{where} is not JSON") from None
    if not isinstance(lines, list):
        raise BadReply(f"{where} is not a list")
    return list(_rows(lines, where))


def _rows(lines: Iterable[Any], where: str) -> Iterable[BidsMapRow]:
    for number, line in enumerate(lines, 1):
        description = line.get("series_description") if isinstance(line, dict) else None
        name = line.get("bidsname") if isinstance(line, dict) else None
        if not isinstance(description, str) or not isinstance(name, str):
            raise BadReply(f"line {number} of {where} has no series_description, or no bidsname")
        targets = line.get("for", [])
        targets = [targets] if isinstance(targets, str) else targets
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise BadReply(f"line {number} of {where}: `for` is not a list of names")
        yield BidsMapRow(description, name, " ".join(targets))


async def image_labels(xnat: Xnat, project: str) -> list[ResourceLabels]:
    """List the labels of the resources of all scans of a project, and of sessions shared into it.

    Servers that refuse the latter list leave these sessions out.
    """

    async def labels(shared: bool) -> Labels:
        found = await xnat.scans_of_project(project, shared=shared)
        return {session: set().union(*scans.labels.values()) for session, scans in found.items()}

    return ResourceLabels.from_labels(await _with_shared(labels))


async def session_labels(xnat: Xnat, project: str) -> list[ResourceLabels]:
    """List the labels of the resources that the sessions of a project have themselves, and those shared into it.

    Servers that refuse the latter list leave these sessions out. Raises BadReply if the server ignores the column.
    """

    async def labels(shared: bool) -> Labels:
        params = {"xsiType": "xnat:imageSessionData", SHARED_INTO if shared else "project": project}
        found: Labels = {}
        for row in await xnat.rows("experiments", columns=f"ID,{RESOURCE_LABEL}", **params):
            if not row.has(RESOURCE_LABEL):
                raise BadReply(f"{xnat.url} does not list the resources of sessions: {sorted(row.cells)}")
            session = row.need("session_ID", "ID", "xnat:imagesessiondata/id", "xnat:experimentdata/id")
            found.setdefault(session, set()).add(row.text(RESOURCE_LABEL))
        return found

    return ResourceLabels.from_labels(await _with_shared(labels))


async def _with_shared(labels: Callable[[bool], Awaitable[Labels]]) -> Labels:
    """Return what a list states of a project's sessions, and of those shared into it unless that is refused."""

    async def shared() -> Labels:
        try:
            return await labels(True)
        except (NotFound, Denied, BadReply):
            return {}

    own, others = await gather(partial(labels, False), shared)
    return {**others, **own}


async def demographics(xnat: Xnat, project: str) -> list[Demographics]:
    """List sex, group, age and handedness of a project's subjects, as far as the account may read them."""
    rows = await xnat.rows("projects", project, "subjects", columns="ID,gender,group,age,handedness")
    return [Demographics.parse(row) for row in rows]


async def authors(xnat: Xnat, project: str) -> list[Author]:
    """Return the principal investigator of a project, and then the others; a row without a name if there are none."""
    document = await xnat.item("projects", project)
    people = [*document.children.get("PI", ()), *document.children.get("investigators/investigator", ())]
    names = (" ".join(filter(None, map(each.fields.get, ("firstname", "lastname")))) for each in people)
    return [Author(name) for name in dict.fromkeys(names) if name] or [Author("")]


async def bids_map(xnat: Xnat, project: str = "") -> list[BidsMapRow]:
    """Fetch a project's map of BIDS names, or the site's: where there is none, a row without a name.

    The text comes in a table, as UTF-8; as plain text it would lose letters on most servers. A text that is no map is
    returned as a row that states that: another map may override it.
    """
    where = ("projects", project, "config") if project else ("config",)
    name = f"the BIDS map of {project or 'the site'}"
    try:
        rows = await xnat.rows(*where, "bids", "bidsmap")
    except (NotFound, Denied):
        return [NO_LINE]
    if not rows or rows[0].get("status") == "disabled":  # the versions of the map, the current one first or alone
        return [NO_LINE]
    try:
        return parse_map(rows[0].get("contents"), name) or [NO_LINE]
    except BadReply as error:
        log.warning("%s: no line of it is used", error)
        return [BidsMapRow("", "", wrong=str(error))]
