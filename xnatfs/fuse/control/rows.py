"""Answer xnatctl from fresh listings of the mount. No request is sent."""

from collections.abc import Sequence
from typing import Any

from xnatfs.common.clock import now
from xnatfs.common.errors import UsageError
from xnatfs.fuse.control.protocol import Message
from xnatfs.listings.keys import ExperimentsKey, ListKey, ProjectsKey, ResourcesKey, ScansKey, SubjectsKey
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.models import Experiment, Item, Project, Resource, Scan, Subject
from xnatfs.site import Site


def fresh_rows(site: Site, item: Sequence[Any]) -> Message:
    """Return a list of the server as its rows, with the account and the age; None as rows if it is not held fresh.

    An empty list is never returned: only the server can say why it is empty.

    Args:
        site: The server.
        item: The segments of the list's URL after /data.
    """
    if not all(isinstance(each, str) for each in item):
        raise UsageError("item must be a list of texts")
    found, rows = _find(site, tuple(item))
    whole = found is not None and not found.pieced and not found.stale
    return {
        "user": site.xnat.login.username,
        "age_seconds": now() - found.fetched if found is not None else None,
        "rows": (list(map(_cells, rows)) or None) if whole else None,
    }


def _find(site: Site, item: Item) -> tuple[Listing[Any] | None, Sequence[Any]]:
    """Return the listing that a list of the server is in, and its rows there."""
    key: ListKey
    match item:
        case ("projects",):
            key, group = ProjectsKey(), None
        case ("projects", project, "subjects"):
            key, group = SubjectsKey(project), None
        case ("projects", project, "experiments"):
            key, group = ExperimentsKey(project), None
        case ("experiments", accession, "scans"):
            key, group = ScansKey(accession), None
        case ("experiments", accession, "resources"):
            key, group = ResourcesKey(("experiments", accession), below=True), ("resources", "")
        case ("experiments", accession, "scans", scan, "resources"):
            key, group = ResourcesKey(("experiments", accession), below=True), ("scans", scan)
        case _:
            return None, ()
    found = site.listings.peek(key)
    if found is None:
        return None, ()
    return found, found.rows if group is None else found.groups.get(group, ())


def _cells(row: Project | Subject | Experiment | Scan | Resource) -> Message:
    """Return a row with the columns and the escapes that it has on the server."""
    match row:
        case Project():
            return {"ID": row.id, **_texts(row, "name", "pi_lastname", "description")}
        case Subject():
            return {"ID": row.id, **_texts(row, "label")}
        case Experiment():
            same = {"date": row.date, "xsiType": row.xsi_type, "subject_ID": row.subject_id}
            return {"ID": row.id, **_texts(row, "label", "subject_label"), **same}
        case Scan():
            texts = _texts(row, "type", "quality", "note", "series_description")
            return {"ID": row.id, "xsiType": row.xsi_type, **texts, **_counts(row, "frames")}
    same = {"xnat_abstractresource_id": row.id, "category": row.category, "cat_id": row.cat_id}
    return {**same, **_texts(row, "label", "format", "content"), **_counts(row, "file_count", "file_size")}


def _texts(row: object, *names: str) -> Message:
    from html import escape  # 0.5 MB, a table of names for `unescape`, which an idle mount does without

    return {name: escape(getattr(row, name)) for name in names}


def _counts(row: object, *names: str) -> Message:
    """Return counts as texts, without those that are not known."""
    return {name: str(count) for name in names if (count := getattr(row, name)) is not None}
