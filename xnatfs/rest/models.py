"""Parse the rows of XNAT's tables into frozen dataclasses.

Every cell of an XNAT table is a string, absent values are empty, keys differ in case and spelling from one call
to the next, and stored text is XML-escaped. `Row` hides these differences from the classes below.
IDs stay exactly as the server has them, because requests contain them; labels and free text are unescaped.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from sys import intern
from typing import Any, NamedTuple, Self

from xnatfs.common.errors import BadReply
from xnatfs.common.sanitize import decoded, is_text, size

Item = tuple[str, ...]  # the segments of an item's URL after /data: ("experiments", "XNAT_E00001")

# The server writes local time without a zone, with 0 to 9 fractional digits.
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?", re.ASCII)

UNASSIGNED = "Unassigned"
# The states of a prearchive session in which the server does no work on it. There are many others, and later releases
# add more.
SETTLED = frozenset({"READY", "CONFLICT", "ERROR"})


def parse_time(text: str) -> float | None:
    """Parse a server's timestamp, and return seconds since the epoch; None where it is absent or invalid.

    The server does not state its time zone. UTC is assumed, so that every client of one server shows the same time.
    """
    text = text.strip()
    if not _TIMESTAMP.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(f"{text}+00:00").timestamp()
    except ValueError:
        return None


def total(numbers: Iterable[int | None]) -> int | None:
    """Return the sum of numbers; None if one of them is not known."""
    known = list(numbers)
    return None if None in known else sum(filter(None, known))


_replace_numbers = re.compile(r"[0-9]+").sub


def natural(text: str) -> str:
    """Return a sort key in which 2 comes before 10. The count of its digits stands before a number of any length."""
    return _replace_numbers(_number, text)


def _number(digits: re.Match[str]) -> str:
    bare = digits[0].lstrip("0")
    return f"\0{chr(min(len(bare), sys.maxunicode))}{bare} {digits[0]}"


class Row:
    """A row of a table, whose keys are looked up without regard to case."""

    __slots__ = ("_lower", "cells")

    def __init__(self, cells: Mapping[str, Any]) -> None:
        self.cells = cells  # as the server sent them
        self._lower: dict[str, Any] | None = None  # by the keys in lower case, where one was looked for

    def get(self, *keys: str) -> str:
        """Return the first non-empty cell of these keys, as the server wrote it, or ''."""
        for key in keys:
            value = self.cells.get(key)  # spelt so in nearly all rows
            if value is None:
                value = self._in_lower_case().get(key.lower())
            if value is not None and value != "":
                return str(value)
        return ""

    def has(self, *keys: str) -> bool:
        """Return whether the row has a cell for one of these keys, even an empty one."""
        return any(key.lower() in self._in_lower_case() for key in keys)

    def _in_lower_case(self) -> dict[str, Any]:
        if self._lower is None:
            self._lower = {key.lower(): value for key, value in self.cells.items()}
        return self._lower

    def text(self, *keys: str) -> str:
        """Return the same cell as `get`, with XML entities decoded."""
        value = self.get(*keys)
        return decoded(value) if "&" in value else value

    def need(self, *keys: str) -> str:
        """Return the same cell as `get`. Raises BadReply where it is empty, or holds text that no URL can."""
        value = self.get(*keys)
        if not value or not (value.isascii() or is_text(value)):
            raise BadReply(f"the server's listing has a row without {keys[0]!r}: {sorted(self._in_lower_case())}")
        return value

    def number(self, key: str) -> int | None:
        """Return a cell that is a count or a size; None where it is empty or not a number."""
        return size(self.get(key))

    def modified(self) -> float | None:
        return parse_time(self.get("last_modified")) or parse_time(self.get("insert_date"))


def _is_session(xsi_type: str) -> bool:
    return xsi_type.endswith("SessionData")


@dataclass(frozen=True, slots=True)
class Document:
    """An item's document: its fields, and the items below it by the name of their field."""

    fields: dict[str, str]
    children: dict[str, "list[Document]"]
    xsi_type: str = ""

    @property
    def session(self) -> str:
        """Return the accession ID of the session that an assessor belongs to; '' for any other experiment."""
        return self.fields.get("imageSession_ID", "")

    @property
    def has_scans(self) -> bool:
        """Return whether an experiment can have scans: a session can, and any other one that has some."""
        return not self.session and (_is_session(self.xsi_type or "SessionData") or "scans/scan" in self.children)

    @classmethod
    def parse(cls, item: Any) -> Self:
        """Parse the JSON of an item. Raises KeyError, TypeError or AttributeError where it is not one."""
        fields = {str(key): decoded(str(value)) for key, value in item["data_fields"].items()}
        children: dict[str, list[Any]] = {}
        for child in item.get("children") or ():
            children.setdefault(str(child["field"]), []).extend(cls.parse(each) for each in child["items"])
        return cls(fields, children, str((item.get("meta") or {}).get("xsi:type", "")))


@dataclass(frozen=True, slots=True)
class Project:
    id: str
    name: str
    secondary_id: str
    description: str = ""
    pi_firstname: str = ""  # the principal investigator's
    pi_lastname: str = ""

    @property
    def investigator(self) -> str:
        """Return the principal investigator's name."""
        return " ".join(filter(None, (self.pi_firstname, self.pi_lastname)))

    @classmethod
    def parse(cls, row: Row) -> Self:
        names = (row.text("pi_firstname"), row.text("pi_lastname"))
        return cls(row.need("ID"), row.text("name"), row.text("secondary_ID"), row.text("description"), *names)


@dataclass(frozen=True, slots=True)
class PrearchiveSession:
    """A session in the prearchive. Project, timestamp and folder identify it; its name does not."""

    project: str  # '' where it is unassigned
    timestamp: str
    folder: str
    name: str  # the label that it will have in the archive
    subject: str
    status: str
    modified: float | None  # seconds since the epoch, in the server's unknown zone
    row: Row

    @classmethod
    def parse(cls, row: Row) -> Self:
        project = row.get("project")
        folder = row.need("folderName", "name")
        return cls(
            "" if project == UNASSIGNED else project,
            row.need("timestamp"),
            folder,
            row.text("name") or folder,
            row.text("subject"),
            row.get("status"),
            parse_time(row.get("lastmod")),
            row,
        )

    @classmethod
    def parse_uri(cls, uri: str) -> Self | None:
        """Return the session that a prearchive URI names, with or without /data; None for any other URI.

        Raises BadReply if its timestamp or folder is empty.
        """
        match uri.removeprefix("/data").strip("/").split("/"):
            case ["prearchive", "projects", project, timestamp, folder]:
                return cls.parse(Row({"project": project, "timestamp": timestamp, "folderName": folder}))
        return None

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.project or UNASSIGNED, self.timestamp, self.folder)

    @property
    def id(self) -> str:
        return "/".join(self.key)

    @property
    def path(self) -> str:
        """Return the path as services expect it in `src`: not encoded."""
        return "/prearchive/projects/" + "/".join(self.key)

    @property
    def busy(self) -> bool:
        """Return whether the server processes or still receives the session, which must not be changed then."""
        return self.status not in SETTLED


@dataclass(frozen=True, slots=True)
class Subject:
    id: str
    label: str  # in the project that was listed
    project: str  # the owner; not the listed project where the subject is shared into that one
    modified: float | None

    @classmethod
    def parse(cls, row: Row) -> Self:
        return cls(
            row.need("ID", "subject_ID", "xnat:subjectdata/id"),
            row.text("label", "subject_label"),
            row.get("project"),
            row.modified(),
        )


@dataclass(frozen=True, slots=True)
class Experiment:
    """A session, or a subject assessment without images."""

    id: str
    label: str
    xsi_type: str
    date: str
    subject_id: str
    subject_label: str
    modified: float | None

    @property
    def is_imaging(self) -> bool:
        """Return whether the experiment can have scans: sessions can, other assessments of a subject cannot."""
        return _is_session(self.xsi_type)

    @classmethod
    def parse(cls, row: Row) -> Self:
        return cls(
            row.need("ID", "session_ID", "xnat:subjectassessordata/id", "xnat:experimentdata/id"),
            row.text("label", "session_label"),
            intern(row.get("xsiType")),
            intern(row.get("date")),
            intern(row.get("subject_ID")),
            intern(row.text("subject_label")),
            row.modified(),
        )


@dataclass(frozen=True, slots=True)
class Accession:
    """A subject, experiment or assessor of the site, with the labels that give its place in the tree."""

    id: str
    label: str
    project: str  # the project that owns it
    subject: str  # the accession ID of an experiment's subject
    subject_label: str
    session: str  # the accession ID of an assessor's session, '' where the server does not list it

    @classmethod
    def of_subject(cls, row: Row) -> Self:
        return cls(row.need("ID", "xnat:subjectdata/id"), row.text("label"), intern(row.get("project")), "", "", "")

    @classmethod
    def of_experiment(cls, row: Row) -> Self:
        accession = row.need("ID", "xnat:subjectassessordata/id", "xnat:experimentdata/id")
        subject, label = intern(row.get("subject_ID")), intern(row.text("subject_label"))
        return cls(accession, row.text("label"), intern(row.get("project")), subject, label, "")

    @classmethod
    def of_assessor(cls, row: Row) -> Self:
        accession = row.need("ID", "xnat:imageassessordata/id", "xnat:experimentdata/id")
        return cls(accession, row.text("label"), intern(row.get("project")), "", "", intern(row.get("session_ID")))


@dataclass(frozen=True, slots=True)
class Scan:
    id: str
    type: str
    quality: str
    xsi_type: str
    note: str
    series_description: str
    frames: int | None = None  # None where the server does not state it, as in a list of several sessions' scans

    @classmethod
    def parse(cls, row: Row) -> Self:
        return cls(
            row.need("ID"),
            intern(row.text("type")),
            intern(row.text("quality")),
            intern(row.get("xsiType")),
            row.text("note"),
            intern(row.text("series_description")),
            row.number("frames"),
        )


# The columns of a session's list of scans: the server's default ones lack the number of frames.
OWN_SCAN_COLUMNS = "ID,type,quality,xsiType,note,series_description,frames"
# The columns of the scans in a list of sessions, and the column of the labels of their resources.
SCAN_COLUMNS = [f"xnat:imagescandata/{name}" for name in ("id", "type", "quality", "series_description", "note")]
SCAN_LABEL = "xnat:imagescandata/file/label"


@dataclass(frozen=True, slots=True)
class Assessor:
    id: str
    label: str
    xsi_type: str
    date: str
    modified: float | None

    @classmethod
    def of_session(cls, row: Row) -> "tuple[str, Assessor]":
        """Parse a row into the accession ID of the session and its assessor. Raises BadReply where one is missing."""
        return row.need("session_ID", "xnat:imagesessiondata/id"), cls.parse(row)

    @classmethod
    def parse(cls, row: Row) -> Self:
        return cls(
            row.need("ID", "xnat:imageassessordata/id"),
            row.text("label"),
            row.get("xsiType"),
            row.get("date"),
            row.modified(),
        )


@dataclass(frozen=True, slots=True)
class Resource:
    """A named folder of files. `category` and `cat_id` name what it belongs to: ('scans', scan ID) and so on."""

    id: str  # the number that addresses it, whatever its label
    label: str  # '' for an unlabelled one; neither unique nor a safe name
    category: str
    cat_id: str
    format: str
    content: str
    file_count: int | None = None  # as stored at the last upload; None where it was never computed
    file_size: int | None = None  # bytes of all files, likewise

    def lacks(self, listed: int) -> bool:
        """Return whether the server states more files than the `listed` number."""
        return listed < self.file_count if self.file_count is not None else not listed and bool(self.file_size)

    @property
    def group(self) -> tuple[str, str]:
        """Return the part that it belongs to. An item's own resources are listed with or without its ID."""
        return (self.category, "" if self.category == "resources" else self.cat_id)

    @classmethod
    def parse(cls, row: Row) -> Self:
        return cls(
            row.need("xnat_abstractresource_id"),
            intern(row.text("label")),
            intern(row.get("category") or "resources"),
            intern(row.get("cat_id")),
            intern(row.text("format")),
            intern(row.text("content")),
            row.number("file_count"),
            row.number("file_size"),
        )


class FileRow(NamedTuple):
    """A catalogue entry. `size` and `digest` are those of the catalogue, and may be stale, wrong or absent."""

    resource_id: str
    path: str  # below the resource, '/' between folders, not unescaped: requests contain it
    size: int | None
    digest: str  # MD5 in lower-case hex, or '' where the server states none
    format: str
    content: str
    place: int  # in the server's listing of the resource
