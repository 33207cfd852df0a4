"""List the contents of a session in the prearchive while the server does no work on it.

The server adds, renames and moves files while it receives, builds or archives a session, and lists what is there. So a
list counts only if the session was at rest, and the same revision, after it was made; before, its row said so.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from xnatfs.common.errors import BadReply, Busy, Denied, NotFound, Stale
from xnatfs.rest.file_table import Catalogue, Catalogues, md5
from xnatfs.rest.models import Item, PrearchiveSession, Resource, Row
from xnatfs.rest.urls import segment

if TYPE_CHECKING:  # shell completion reads keys with revisions in them, and needs no client
    from xnatfs.rest.client import Xnat

# How a URL names a resource without a label.
NO_LABEL = "NULL"
SCANS_CATEGORY, OWN = "scans", "resources"  # the categories of resources there
# The path of a file in its resource. Nothing before it is encoded alike by all releases.
_PATH = re.compile(r"/resources/[^/]+/files/(.+)", re.DOTALL)


class Revision(NamedTuple):
    """A session in the prearchive, as of its last change."""

    project: str  # UNASSIGNED where it has none
    timestamp: str
    folder: str
    changed: str  # when, as the server writes it

    @classmethod
    def from_session(cls, session: PrearchiveSession) -> Self:
        return cls(*session.key, session.row.get("lastmod"))

    @property
    def item(self) -> Item:
        return ("prearchive", "projects", *self[:3])


def part(revision: Revision, group: tuple[str, str]) -> Item:
    """Return the item that has the resources of a group: a scan, or the session."""
    category, cat_id = group
    return (*revision.item, category, cat_id) if category == SCANS_CATEGORY else revision.item


def resource_id(revision: Revision, group: tuple[str, str], label: str) -> str:
    """Return the key of a resource in caches, since it has no number. A changed session has other resources."""
    return ":".join(("prearchive", *map(segment, (*revision, *group, label))))


async def resources(xnat: "Xnat", revision: Revision) -> list[Resource]:
    """List the resources of a session and of its scans. Raises Busy or Stale where they may be a part."""
    rows = await _rows(xnat, revision, (*revision.item, "resources"))
    return [_resource(revision, row) for row in rows]


def _resource(revision: Revision, row: Row) -> Resource:
    cat_id = row.get("cat_id")
    category = row.get("category") or (SCANS_CATEGORY if cat_id else OWN)
    group, label = (category, cat_id if category == SCANS_CATEGORY else ""), row.text("label")
    counts = row.number("file_count"), row.number("file_size")
    return Resource(resource_id(revision, group, label), label, *group, "", "", *counts)


async def files(xnat: "Xnat", revision: Revision, group: tuple[str, str], label: str) -> Catalogues:
    """List the files of one resource. Raises Busy or Stale where they may be a part."""
    found = Catalogue(resource_id(revision, group, label), label=label)
    for row in await _rows(xnat, revision, (*part(revision, group), "resources", label or NO_LABEL, "files")):
        match = _PATH.search(row.get("URI"))
        kind = row.text("file_format"), row.text("file_content")
        found.add(match[1] if match else row.need("Name"), row.number("Size"), md5(row.get("digest")), kind)
    listed = Catalogues()
    listed.join(found)
    return listed


async def last_message(xnat: "Xnat", revision: Revision) -> list[str]:
    """Fetch the server's last message about a session, as the only one; empty if there is none."""
    path = "/".join(("/data", *map(segment, revision.item), "logs", "last"))
    try:
        return [await xnat.text(path)]
    except (NotFound, Denied, BadReply):  # a release without logs, or without any of this session
        return []


async def _rows(xnat: "Xnat", revision: Revision, item: Item) -> Sequence[Row]:
    try:
        rows = await xnat.rows(*item)
    except (NotFound, BadReply):
        await _confirm(xnat, revision)
        raise
    await _confirm(xnat, revision)
    return rows


async def _confirm(xnat: "Xnat", revision: Revision) -> None:
    """Raise NotFound, Busy or Stale unless a session is there, at rest, and unchanged."""
    name = "/".join(revision[:3])
    rows = map(PrearchiveSession.parse, await xnat.rows(*revision.item))
    found = next((row for row in rows if row.id == name), None)
    if found is None:
        raise NotFound(f"{name} is no longer in the prearchive")
    if found.busy:
        raise busy(found)
    if Revision.from_session(found) != revision:
        raise Stale(f"{name} has changed in the prearchive: list it again")


def busy(session: PrearchiveSession) -> Busy:
    """Return the error of a session that the server is at work on."""
    return Busy(f"{session.id} is {session.status}: its files are shown when the server has finished")
