"""Show prearchive/PROJECT/TIMESTAMP/SESSION/: received sessions that wait to be archived.

Nothing here sends a change. A session is shown in each state, but its files only while the server is at rest with it:
while it receives, builds or archives a session, `scans` and `resources` are not listed and fail with EBUSY, so that no
program takes a part of the files for all of them.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Busy, Denied, NotFound, Stale
from xnatfs.listings.keys import (
    PREARCHIVE_TTL_SECONDS,
    ChildrenKey,
    ListKey,
    PrearchiveKey,
    ReceivedFilesKey,
    ReceivedLogKey,
    ReceivedResourcesKey,
)
from xnatfs.listings.revocation import Permit
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.address import Address
from xnatfs.rest.models import FileRow, PrearchiveSession, Resource
from xnatfs.rest.prearchive_lists import NO_LABEL, OWN, SCANS_CATEGORY, Revision, busy, part
from xnatfs.site import Site
from xnatfs.tree.generated_file import Generated, GeneratedFile
from xnatfs.tree.names import assign, by_label, file_name
from xnatfs.tree.node import Children, Dir, Node
from xnatfs.tree.resource_view import ResourcePlace
from xnatfs.tree.resources import ResourceDir

# The states of which the server's log has the reason.
EXPLAINED = ("CONFLICT", "ERROR")

DOCUMENT = "session.json"


class PrearchiveDir(Dir):
    """The prearchive, one project in it, or one moment at which sessions of that project arrived."""

    __slots__ = ("prefix",)

    def __init__(self, site: Site, parent: Dir, name: str, prefix: tuple[str, ...] = ()) -> None:
        super().__init__(site, parent, name)
        self.prefix = prefix  # of the keys of its sessions

    async def load(self) -> Children:
        try:
            listing: Listing[PrearchiveSession] = await self.site.listings.get(PrearchiveKey())
        except (NotFound, Denied):  # the account may edit no project
            return Children({}, now() + PREARCHIVE_TTL_SECONDS)
        depth = len(self.prefix)
        rows = {row.key[depth]: row for row in listing.rows if row.key[:depth] == self.prefix}
        if self.prefix and not rows:
            raise NotFound(f"no session of {'/'.join(self.prefix)} is in the prearchive now")
        named = assign(rows, str, str)
        shown = {name: rows[key] for name, key in named.items() if depth or self.site.views.shows_project(key)}
        return Children({name: self._node(name, row) for name, row in shown.items()}, listing.expires)

    def _node(self, name: str, row: PrearchiveSession) -> Dir:
        depth = len(self.prefix) + 1
        if depth == len(row.key):
            return ReceivedSessionDir(self, name, row)
        return PrearchiveDir(self.site, self, name, row.key[:depth])

    def sources(self) -> Sequence[ListKey]:
        return [PrearchiveKey()]


class ReceivedSessionDir(Dir):
    """One session in the prearchive, in whatever state it is."""

    __slots__ = ("row",)

    def __init__(self, parent: Dir, name: str, row: PrearchiveSession) -> None:
        super().__init__(parent.site, parent, name)
        self.row = row  # as it was when the directory was looked up

    async def current(self) -> tuple[PrearchiveSession, float]:
        """Return its row now, and until when that is valid. Raises NotFound if it has left the prearchive."""
        listing: Listing[PrearchiveSession] = await self.site.listings.get(PrearchiveKey())
        found = next((row for row in listing.groups.get(self.row.project, ()) if row.key == self.row.key), None)
        if found is None:
            raise NotFound(f"{self.row.id} is no longer in the prearchive")
        self.row = found
        return found, listing.expires

    async def at_rest(self) -> Revision:
        """Return its present revision. Raises Busy while the server is at work on it."""
        row, _ = await self.current()
        if row.busy:
            raise busy(row)
        return Revision.from_session(row)

    async def load(self) -> Children:
        row, expires = await self.current()
        nodes: dict[str, Node] = {}
        if not row.busy:
            nodes[SCANS_CATEGORY] = ReceivedScansDir(self.site, self, SCANS_CATEGORY)
            nodes[OWN] = ReceivedResourcesDir(self, OWN, self, (OWN, ""))
        nodes[DOCUMENT] = GeneratedFile(self, DOCUMENT, self._describe, self.sources())
        return Children(nodes, expires)

    async def _describe(self) -> Generated:
        """Make its document: the attributes that it has now, the empty ones too."""
        facts, expires = await self._facts()
        return Generated(f"{json.dumps(facts, ensure_ascii=False, indent=2)}\n".encode("utf-8", "replace"), expires)

    async def child(self, name: str) -> Node:
        if name in (SCANS_CATEGORY, OWN):
            await self.at_rest()
        return await super().child(name)

    def sources(self) -> Sequence[ListKey]:
        return [PrearchiveKey()]

    def modified(self) -> float:
        return self.row.modified or super().modified()

    def xattrs(self) -> dict[str, str]:
        row = self.row
        place = ("projects", row.project, file_name(row.subject), file_name(row.name))
        return {
            "id": row.id,
            "label": row.name,
            "uri": f"/data{row.path}",
            "status": row.status,
            "project": row.project,
            "subject": row.subject,
            "target": "/".join(place) if all(place) else "",
            "study": row.row.get("tag"),
            "date": row.row.get("scan_date")[:10],
            "uploaded": row.row.get("uploaded"),
            "autoarchive": row.row.get("autoarchive"),
        }

    async def all_xattrs(self) -> dict[str, str]:
        """Return the attributes as they are now, with the reason of a conflict or an error."""
        return (await self._facts())[0]

    async def _facts(self) -> tuple[dict[str, str], float]:
        """Return the attributes as they are now, and until when they are valid."""
        row, expires = await self.current()
        reason = ""
        if row.status in EXPLAINED:
            log: Listing[str] = await self.site.listings.get(ReceivedLogKey(Revision.from_session(row), row.status))
            reason, expires = "".join(log.rows), min(expires, log.expires)
        return {**self.xattrs(), "reason": reason}, expires

    async def contents(self, make_key: Callable[[Revision], ListKey]) -> Listing[Any]:
        """Return a listing of what its present revision holds. Raises Busy, Stale or NotFound if that is not certain.

        Then its state is requested anew at the next look.
        """
        try:
            return await self.site.listings.get(make_key(await self.at_rest()))
        except (Busy, Stale, NotFound):
            top = self.path[:1]
            self.site.listings.expire(PrearchiveKey())
            self.site.metadata.forget_all(lambda key, _: isinstance(key, ChildrenKey) and key.path[:1] == top)
            raise

    async def resources(self) -> Listing[Resource]:
        return await self.contents(ReceivedResourcesKey)


class ReceivedScansDir(Dir):
    """The scans of a session in the prearchive that have resources."""

    __slots__ = ()

    @property
    def session(self) -> ReceivedSessionDir:
        assert isinstance(self.parent, ReceivedSessionDir)
        return self.parent

    async def load(self) -> Children:
        listing = await self.session.resources()
        ids = {row.cat_id for row in listing.rows if row.category == SCANS_CATEGORY}
        named = assign(ids, str, str)
        nodes = {
            name: ReceivedResourcesDir(self, name, self.session, (SCANS_CATEGORY, id)) for name, id in named.items()
        }
        return Children(nodes, listing.expires)

    def sources(self) -> Sequence[ListKey]:
        return [ReceivedResourcesKey(Revision.from_session(self.session.row))]


class ReceivedResourcesDir(Dir):
    """The resources of a scan in the prearchive, or those of the session itself."""

    __slots__ = ("group", "session")

    def __init__(self, parent: Dir, name: str, session: ReceivedSessionDir, group: tuple[str, str]) -> None:
        super().__init__(parent.site, parent, name)
        self.session = session
        self.group = group

    async def load(self) -> Children:
        listing = await self.session.resources()
        rows = listing.groups.get(self.group, ())
        if not rows and self.group[0] == SCANS_CATEGORY:
            raise NotFound(f"scan {self.group[1]} is no longer in {self.session.row.id}")
        named = by_label(rows)
        revision = Revision.from_session(self.session.row)
        shown = {name: row for name, row in named.items() if self.site.views.shows_resource(row.label)}
        nodes = {name: ReceivedResourceDir(self, name, revision, row) for name, row in shown.items()}
        return Children(nodes, listing.expires)

    def sources(self) -> Sequence[ListKey]:
        return [ReceivedResourcesKey(Revision.from_session(self.session.row))]

    def xattrs(self) -> dict[str, str]:
        return {
            "id": self.group[1],
            "uri": "/data/" + "/".join(part(Revision.from_session(self.session.row), self.group)),
        }


class ReceivedResourceDir(ResourceDir):
    """One resource of a session in the prearchive: it has a label in place of a number, and comes in no archive."""

    __slots__ = ("revision", "session")

    has_archive = False
    in_views = False

    def __init__(self, parent: ReceivedResourcesDir, name: str, revision: Revision, resource: Resource) -> None:
        self.session = parent.session
        self.revision = revision
        id, home = self.session.row.id, part(revision, parent.group)
        place = ResourcePlace(("prearchive", id), home, group=parent.group, project=self.session.row.project)
        label = resource.label or NO_LABEL
        super().__init__(parent, name, place, resource, Address(home, home, label, resource.label))

    @property
    def shown_by(self) -> ListKey:
        return ReceivedResourcesKey(self.revision)

    @property
    def files_key(self) -> ListKey:
        return ReceivedFilesKey(self.revision, self.place.group, self.resource.label)

    async def listing(self) -> Listing[FileRow]:
        found = await self.session.contents(self._key)
        if self.resource.lacks(0) and not found.groups.get(self.resource.id):
            count = self.resource.file_count or "some"
            raise BadReply(f"the server states that {'/'.join(self.path)} has {count} files, and lists none")
        return found

    def _key(self, present: Revision) -> ListKey:
        if present != self.revision:
            raise Stale(f"{self.session.row.id} has changed in the prearchive: look again")
        return self.files_key

    async def young_listing(self) -> Listing[FileRow]:
        """Return the listing of now: a session can move at any moment."""
        self.site.metadata.forget(self.files_key)
        try:
            return await self.listing()
        except NotFound as error:
            raise Stale(str(error)) from error

    def permit(self, until: float) -> Permit:
        """Return the permit to read its files, shown by the session's place in the prearchive in whatever state."""
        return self.site.access.permit((PrearchiveKey(), self.session.row.id), self, until)

    async def confirm_shown(self) -> float:
        return (await self.session.current())[1]

    async def all_xattrs(self) -> dict[str, str]:
        return self.xattrs()

    def xattrs(self) -> dict[str, str]:
        uri = f"/data/{'/'.join(self.address.base)}/resources/{self.resource.label}"
        return {"label": self.resource.label, "uri": uri}
