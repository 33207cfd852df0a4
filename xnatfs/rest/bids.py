"""Parse the replies that bids/ needs: maps of names, demographics, and the resources of scans by session."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from xnatfs.common.errors import BadReply
from xnatfs.common.sanitize import loads
from xnatfs.rest.models import Row


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
    def of(cls, labels: Mapping[str, Iterable[str]]) -> "list[ResourceLabels]":
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


def is_converted(label: str) -> bool:
    """Return whether a resource with this label holds converted images or their sidecars."""
    return label.strip().upper() in ("NIFTI", "BIDS")


def may_hold_tree(label: str) -> bool:
    """Return whether a resource with this label may hold a whole BIDS tree."""
    return label.strip().lower() in _TREE_LABELS


def map_rows(rows: Sequence[Row], where: str) -> list[BidsMapRow]:
    """Parse the reply of the configuration service; no lines if the map is switched off.

    Args:
        rows: The versions of the document, the current one first or alone.
        where: What the map is called in an error.

    Raises:
        BadReply: The document is no map.
    """
    if not rows or rows[0].get("status") == "disabled":
        return []
    return parse_map(rows[0].get("contents"), where)


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
