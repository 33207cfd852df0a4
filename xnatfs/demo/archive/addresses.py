"""Resolve the URL of a change: it addresses exactly one item, or one that may be created.

Unlike with GET, a missing item does not fall through to the item above it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus

from xnatfs.demo.archive.model import Archive, Experiment, Project, Reconstruction, Resource, Scan, Subject
from xnatfs.demo.server.reply import Failed

Item = Project | Subject | Experiment | Scan | Reconstruction

KINDS = {
    "projects": "project",
    "subjects": "subject",
    "experiments": "experiment",
    "scans": "scan",
    "assessors": "assessor",
    "reconstructions": "reconstruction",
}


@dataclass(frozen=True)
class Place:
    """An item, or the position of one named `key` that may be created."""

    kind: str
    key: str
    item: Item | None
    above: "Place | None"

    def below(self) -> tuple[str, ...]:
        """Return the collections that have a route below this item. Not every meaningful one has."""
        if self.kind == "project":
            return ("subjects", "experiments")
        if self.kind == "subject" and self.above is not None:
            return ("experiments",)
        if self.kind == "experiment" and (self.above is None or self.above.kind == "subject"):
            return ("scans", "assessors", "reconstructions")
        return ()

    def project(self) -> str:
        """Return the ID of the project whose members may change the item."""
        match self.item:
            case Project(id=id):
                return id
            case Subject() | Experiment():
                return self.item.project
        assert self.above is not None
        return self.above.project()

    def session(self) -> Experiment:
        assert self.above is not None
        assert isinstance(self.above.item, Experiment)
        return self.above.item

    def base(self) -> str:
        """Return the item's URI."""
        key = self.item.id if self.item is not None else self.key
        return f"{self.above.base() if self.above else '/data'}/{_collection(self.kind)}/{key}"

    def resources(self, side: str = "") -> list[Resource]:
        """Return the item's resources; `side` ("in", "out") selects those of an assessor or a reconstruction."""
        match self.item:
            case Reconstruction(out=out, inputs=inputs):
                return inputs if side == "in" else out
            case Experiment(out=out, inputs=inputs) if side:
                return inputs if side == "in" else out
            case None:
                raise Failed(404, f"Unable to identify {self.kind}")
        return self.item.resources


def resolve(archive: Archive, user: str, segments: Sequence[str]) -> tuple[Place | None, tuple[str, ...]]:
    """Resolve a path.

    Args:
        archive: The archive.
        user: The user, who must be able to read the items.
        segments: The path below /data.

    Returns:
        The item that the path addresses, None for a collection of the site, and the rest of the path.

    Raises:
        Failed: An item above it is missing.
    """
    place: Place | None = None
    rest = tuple(segments)
    while len(rest) >= 2 and rest[0] in (place.below() if place else ("projects", "subjects", "experiments")):
        implicit = place is not None and place.kind == "subject" and rest[0] == "experiments"
        if place is not None and place.item is None and not implicit:
            raise Failed(404, f"Unable to identify {place.kind}")
        kind, key = KINDS[rest[0]], rest[1]
        rest = rest[2:]
        key = unquote_plus(key) if kind in ("scan", "reconstruction") and rest else key
        place = Place(kind, key, _find(archive, user, kind, key, place, bool(rest)), place)
    return place, rest


def _find(archive: Archive, user: str, kind: str, key: str, above: Place | None, more: bool) -> Item | None:
    match kind:
        case "project":
            key = archive.project_id(key)
            return archive.projects[key] if key in archive.projects and archive.sees(user, key) else None
        case "subject":
            subject = archive.find_subject(above.project(), key) if above else archive.subjects.get(key)
            return subject if subject and archive.reads_item(user, subject) else None
        case "experiment":
            found = archive.experiments.get(key)
            if above is not None:
                listing = above if above.above is None else above.above
                found = archive.find_experiment(listing.project(), key, accession_first=more)
            return found if found and archive.reads_item(user, found) else None
    assert above is not None
    assert isinstance(above.item, Experiment)
    session = above.item
    if kind == "scan":
        return next((scan for scan in session.scans if scan.id == key), None)
    if kind == "reconstruction":
        return next((made for made in session.reconstructions if made.id == key), None)
    assessors = [a for a in archive.assessors_of(session) if archive.reads_item(user, a)]
    return next((a for a in assessors if key in (a.id, a.label)), None)


def _collection(kind: str) -> str:
    return next(name for name, value in KINDS.items() if value == kind)
