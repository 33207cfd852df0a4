"""Show SESSION/: scans, resources, assessors and reconstructions, and files that are made of their listings.

All of them always exist, so that it takes no request to list them.
"""

from collections.abc import Iterable, Sequence

from xnatfs.common.sanitize import decoded
from xnatfs.listings.keys import AssessorsKey, ListKey, ResourcesKey, ScansKey
from xnatfs.rest.models import Assessor, Experiment, Item, Scan
from xnatfs.site import Site
from xnatfs.tree.metadata.session_files import session_files
from xnatfs.tree.metadata.session_parts import SessionParts
from xnatfs.tree.names import assign, by_label
from xnatfs.tree.node import INODE_BITS, Children, Dir, Node, StaticDir, number
from xnatfs.tree.resource_view import ResourcePlace
from xnatfs.tree.resources import ResourcesDir

INPUTS = "in"  # an assessor's input; found by lookup, not listed: it costs a request each


class SessionDir(StaticDir):
    """One experiment, under its label in this project."""

    __slots__ = ("experiment", "project")

    def __init__(self, site: Site, parent: Dir, name: str, experiment: Experiment, project: str = "") -> None:
        super().__init__(site, parent, name)
        self.experiment = experiment
        self.project = project  # through which it is accessed; '' if nothing is to be prefetched

    @property
    def item(self) -> Item:
        return ("experiments", self.experiment.id)

    def modified(self) -> float:
        return self.experiment.modified or super().modified()

    def xattrs(self) -> dict[str, str]:
        return _xattrs(self.experiment)

    @property
    def parts(self) -> SessionParts:
        """Return its listings."""
        return SessionParts(self.site, self.experiment, self.project)

    def entries(self) -> Iterable[Node]:
        yield ScansDir(self.site, self, "scans")
        yield ResourcesDir(self.site, self, "resources", self.place("resources", ""))
        yield AssessorsDir(self.site, self, "assessors")
        yield ReconstructionsDir(self.site, self, "reconstructions")
        yield from session_files(self, self.parts)

    async def look_into(self) -> None:
        await self.parts.look_into()

    def place(self, category: str, cat_id: str, *, ambiguous: bool = False) -> ResourcePlace:
        """Return the place of one part's resources: the listing of all resources of the session.

        Args:
            category: "scans", "assessors", "reconstructions" or "resources".
            cat_id: The ID of the part; '' for the session's own resources.
            ambiguous: The ID means another part of the session, too.
        """
        home: Item = self.item if category == "resources" else (*self.item, category, cat_id)
        return ResourcePlace(self.item, home, True, (category, cat_id), self.project, ambiguous)


def _xattrs(row: Experiment | Assessor) -> dict[str, str]:
    uri = f"/data/experiments/{row.id}"
    return {"id": row.id, "label": row.label, "uri": uri, "xsitype": row.xsi_type, "date": row.date}


class _PartsDir(Dir):
    """A directory of parts of one session."""

    __slots__ = ("session",)

    def __init__(self, site: Site, session: SessionDir, name: str) -> None:
        super().__init__(site, session, name)
        self.session = session


class ScansDir(_PartsDir):
    """The directory scans/, with a directory for each scan ID."""

    __slots__ = ()

    async def load(self) -> Children:
        listing = await self.session.parts.scans()
        named = assign(listing.rows, lambda row: decoded(row.id), lambda row: row.id)
        types = {row.type for row in listing.rows if row.type != row.id}  # `scans/T1` names all of that type, too
        nodes = {
            name: ScanDir(self, name, row, place, ambiguous=row.id in types)
            for place, (name, row) in enumerate(named.items())
            if self.site.views.shows_scan(row.type, row.quality)
        }
        return Children(nodes, listing.expires)

    def sources(self) -> Sequence[ListKey]:
        return [ScansKey(self.session.experiment.id)]


class ScanDir(ResourcesDir):
    """The resources of one scan."""

    __slots__ = ("order", "scan")

    def __init__(self, parent: ScansDir, name: str, scan: Scan, order: int, *, ambiguous: bool) -> None:
        place = parent.session.place("scans", scan.id, ambiguous=ambiguous)
        super().__init__(parent.site, parent, name, place)
        self.scan = scan
        self.order = order  # in the server's listing

    def inode_hint(self) -> int:
        """Return a number made of session and place in its listing: `cp -r` and others go by inode numbers.

        So they read one series after the other.
        """
        assert self.parent is not None
        return number(repr(self.parent.path), INODE_BITS - 17) << 16 | min(self.order, 0xFFFF)

    async def all_xattrs(self) -> dict[str, str]:
        """Return the attributes, with the scan's type, which the list of a whole project does not report."""
        experiment = self.place.item[1]
        if not self.scan.xsi_type and await self.site.confirm([ScansKey(experiment)]):
            rows = (await self.site.scans(experiment)).rows
            self.scan = next((row for row in rows if row.id == self.scan.id), self.scan)
        return self.xattrs()

    def xattrs(self) -> dict[str, str]:
        row = self.scan
        return {
            "id": row.id,
            "uri": "/data/" + "/".join(self.place.home),
            "type": row.type,
            "xsitype": row.xsi_type,
            "quality": row.quality,
            "note": row.note,
            "series_description": row.series_description,
        }


class AssessorsDir(_PartsDir):
    """The directory assessors/, with a directory for each label."""

    __slots__ = ()

    async def load(self) -> Children:
        listing = await self.session.parts.assessors()
        named = by_label(listing.rows)
        labels = {row.label for row in listing.rows if row.label != row.id}  # in a URL they name assessors, too

        def make(name: str, row: Assessor) -> AssessorDir:
            return AssessorDir(self, name, row, ambiguous=row.id in labels)

        nodes = {name: make(name, row) for name, row in named.items()}
        by_id = {row.id: make(row.id, row) for row in listing.rows if row.id not in named}
        return Children(nodes, listing.expires, by_id)

    def sources(self) -> Sequence[ListKey]:
        return [AssessorsKey(self.session.experiment.id)]


class AssessorDir(ResourcesDir):
    """The resources of one assessor: its own and its output."""

    __slots__ = ("assessor",)

    reserved = frozenset({INPUTS})

    def __init__(self, parent: AssessorsDir, name: str, assessor: Assessor, *, ambiguous: bool) -> None:
        place = parent.session.place("assessors", assessor.id, ambiguous=ambiguous)
        super().__init__(parent.site, parent, name, place)
        self.assessor = assessor

    def modified(self) -> float:
        return self.assessor.modified or super().modified()

    def xattrs(self) -> dict[str, str]:
        return _xattrs(self.assessor)

    async def child(self, name: str) -> Node:
        if name == INPUTS:
            item = (*self.place.home, INPUTS)
            place = ResourcePlace(item, item, group=("assessors", self.assessor.id), project=self.place.project)
            return ResourcesDir(self.site, self, name, place)
        return await super().child(name)


class ReconstructionsDir(_PartsDir):
    """The directory reconstructions/, by ID: those that have resources, known from the listing of all resources."""

    __slots__ = ()

    async def load(self) -> Children:
        listing = await self.session.parts.resources()
        ids = sorted({row.cat_id for row in listing.rows if row.category == "reconstructions"})
        named = assign(ids, decoded, lambda cat_id: cat_id)
        nodes = {name: ReconstructionDir(self, name, cat_id) for name, cat_id in named.items()}
        return Children(nodes, listing.expires)

    def sources(self) -> Sequence[ListKey]:
        return [ResourcesKey(self.session.item, True)]


class ReconstructionDir(ResourcesDir):
    """The resources of one reconstruction."""

    __slots__ = ()

    def __init__(self, parent: ReconstructionsDir, name: str, cat_id: str) -> None:
        super().__init__(parent.site, parent, name, parent.session.place("reconstructions", cat_id))

    def xattrs(self) -> dict[str, str]:
        return {"id": self.place.group[1], "uri": "/data/" + "/".join(self.place.home)}
