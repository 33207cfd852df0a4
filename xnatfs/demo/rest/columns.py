"""Select the columns of an experiment list, and with them its rows (XNAT REST contract 4, 5.3).

A column may be requested by its shortcut or by its path; the list names it by the shortcut in either case. A column
that only a subtype has makes that subtype the root of the query: all other experiments disappear from the list.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from xnatfs.demo.rest.tables import Query, Rows
from xnatfs.demo.server.reply import Failed
from xnatfs.demo.server.site import Joins

IMAGE, MR, ASSESSOR = "xnat:imageSessionData", "xnat:mrSessionData", "xnat:imageAssessorData"
SUBJECT_ASSESSOR = "xnat:subjectAssessorData"
SCAN = "xnat:imagescandata/"
SESSION_RESOURCE = "xnat:imagesessiondata/resources/resource/label"
BASE_TYPES = {"xnat:experimentdata", "xnat:subjectassessordata", "xnat:subjectdata", ""}
# Paths that belong to a shortcut, in lower case.
SHORTCUTS = {
    "xnat:experimentdata/id": "ID",
    "xnat:experimentdata/label": "label",
    "xnat:experimentdata/project": "project",
    "xnat:experimentdata/date": "date",
    "xnat:experimentdata/meta/insert_date": "insert_date",
    "xnat:experimentdata/meta/last_modified": "last_modified",
    "xnat:subjectassessordata/subject_id": "subject_ID",
    "xnat:subjectdata/label": "subject_label",
    "xnat:imagesessiondata/id": "session_ID",
    "xnat:imagesessiondata/label": "session_label",
    "xnat:imagesessiondata/modality": "modality",
    "xnat:imagesessiondata/scanner": "scanner",
    "xnat:imagesessiondata/uid": "UID",
    "xnat:mrsessiondata/fieldstrength": "fieldStrength",
}
COLUMN_ROOTS = {
    **dict.fromkeys(("session_id", "session_label", "modality", "scanner", "uid", "studyinstanceuid"), IMAGE),
    "fieldstrength": MR,
}


@dataclass(frozen=True)
class Chosen:
    """The columns of one answer."""

    names: list[str]  # as requested, or the default ones; then the key and the URI
    root: str

    @property
    def shares(self) -> bool:
        """Return true if a shared item has the label of the listed project."""
        return "label" in self.names and self.root != IMAGE

    def holds(self, row: Mapping[str, str]) -> bool:
        """Return true if an experiment with these cells is in the list."""
        xsi_type = row["xsitype"]
        if self.root.lower() == SUBJECT_ASSESSOR.lower():
            return f"{SUBJECT_ASSESSOR.lower()}/id" in row
        if self.root.lower() in BASE_TYPES:
            return True
        if self.root.lower() == ASSESSOR.lower():
            return f"{ASSESSOR.lower()}/id" in row
        return xsi_type.endswith("SessionData") if self.root == IMAGE else xsi_type.lower() == self.root.lower()

    def rows(self, rows: Rows) -> Rows:
        """Return the requested columns of rows with lower-case names. Unknown columns are left out without an error."""
        return [{name: row[name.lower()] for name in self.names if name.lower() in row} for row in rows]


def choose(query: Query, defaults: Iterable[str], root: str) -> Chosen:
    """Return the columns of a list and its root data type.

    Args:
        query: The request's query.
        defaults: The columns of a request that names none, or DEFAULT.
        root: The root data type if neither the query nor its columns imply another one.
    """
    asked = unquote(query.get("columns", "")) or "DEFAULT"
    names: list[str] = []
    for name in asked.split(","):
        names += defaults if name == "DEFAULT" else [SHORTCUTS.get(name.lower(), name)]
    root = query.get("xsiType", "").split(",")[0] or _root(asked) or root
    root = IMAGE if root.lower() == IMAGE.lower() else root
    key = "session_ID" if root == IMAGE else f"{root.lower()}/id"
    shown = {name.lower(): _shown(name) for name in (*names, key, "URI")}
    return Chosen(list(shown.values()), root)


def without_joins(chosen: Chosen, query: Query, joins: Joins) -> tuple[Chosen, Query]:
    """Return the columns and the query that a server answers, without joined columns if it does not join.

    Args:
        chosen: The requested columns.
        query: The request's query.
        joins: What the server does: "answered", "ignored" (it drops the joined columns) or "refused".

    Raises:
        Failed: The server refuses the join (500).
    """
    joined = [name for name in chosen.names if name.lower().startswith((SCAN, SESSION_RESOURCE))]
    if chosen.root.lower() == ASSESSOR.lower():
        joined += [name for name in chosen.names if name.lower().startswith("session_")]
    if not joined or joins == "answered":
        return chosen, query
    if joins == "refused":
        raise Failed(500, "")
    names = [name for name in chosen.names if name not in joined]
    return Chosen(names, chosen.root), query.holding(
        [pair for pair in query.pairs if not pair[0].startswith("session_")]
    )


def _root(asked: str) -> str:
    """Return the most specific subtype among the columns. Scans are joined, and never the root."""
    found = {COLUMN_ROOTS.get(name.lower(), name.partition("/")[0] if "/" in name else "") for name in asked.split(",")}
    types = [name for name in found if name.lower() not in BASE_TYPES and not name.lower().endswith("scandata")]
    return min(types, key=lambda name: (name.lower() == IMAGE.lower(), name), default="")


def _shown(name: str) -> str:
    known = {shortcut.lower(): shortcut for shortcut in (*SHORTCUTS.values(), "URI", "xsiType", "insert_user")}
    return known.get(name.lower(), name.lower() if "/" in name else name)
