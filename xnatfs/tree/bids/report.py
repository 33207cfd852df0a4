"""Report on a whole dataset: the address of each file on the server, and the reason of each omission."""

from collections.abc import Iterator
from dataclasses import dataclass

from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.settings.views import LEFT_OUT_COLUMNS
from xnatfs.tree.bids import generated
from xnatfs.tree.bids.dataset import Dataset
from xnatfs.tree.bids.planning import PlannedSession
from xnatfs.tree.bids.rules.maps import BidsMap
from xnatfs.tree.bids.rules.names import is_image
from xnatfs.tree.bids.trees import Tree


@dataclass(frozen=True)
class ReportedSession:
    """A session of the report."""

    path: str  # sub-LABEL/ses-LABEL
    planned: PlannedSession | None  # None if it cannot be listed
    is_shadowed: bool  # by a tree
    failure: str = ""  # why it cannot be listed

    @property
    def shown(self) -> PlannedSession | None:
        """Return its plan, if that is what is shown of it."""
        return None if self.is_shadowed else self.planned

    def left_out(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of what is left out: subject, session, scan, file, reason, line of the map."""
        folders = tuple(self.path.split("/"))
        if self.planned is None:
            yield (*folders, "", "", self.failure, "")
        elif not self.is_shadowed:
            yield from ((*folders, *row) for row in self.planned.plan.left_out)
        else:
            for scan in sorted({entry.scan.id for entry in self.planned.plan.entries}):
                yield (*folders, scan, "", "the session is shown as the whole tree that a resource holds", "")


@dataclass(frozen=True)
class DatasetReport:
    """The plans of all sessions, in the order of the folders, and the trees."""

    sessions: list[ReportedSession]
    tree: Tree
    bids_map: BidsMap
    renamed: list[tuple[str, ...]]  # rows of the folders that could not have their plain labels
    expires: float

    @classmethod
    async def build(cls, dataset: Dataset) -> "DatasetReport":
        """Plan all sessions, one after the other, so that their listings are requested in batches."""
        outline = await dataset.outline()
        bids_map, made_of = await dataset.map()
        expires = min([outline.expires, *(listing.expires for listing in made_of.values())])
        sessions, trees, renamed = [], [], list[tuple[str, ...]]()
        for label, subject in outline.subjects.items():
            if subject.is_renamed:
                renamed.append((f"sub-{label}", "", "", "", _renamed(subject.subject.label), ""))
            stored, own = await dataset.stored(outline, subject)
            trees.append(Tree({f"sub-{label}": stored}, failures=stored.failures))
            for session in subject.sessions.values():
                path, planned, failure = f"sub-{label}/ses-{session.label}", None, ""
                if session.is_renamed:
                    renamed.append((*path.split("/"), "", "", _renamed(session.experiment.label), ""))
                try:
                    planned = await dataset.plan(label, session)
                    expires = min(expires, planned.expires)
                except (BadReply, NotFound, Denied) as error:
                    failure = str(error)
                sessions.append(ReportedSession(path, planned, session not in own, failure))
        return cls(sessions, outline.tree.joined(trees), bids_map, renamed, expires)

    @property
    def images(self) -> int:
        """Return the number of images that are shown."""
        stored = sum(is_image(path) for path, _ in self.tree.leaves())
        return stored + sum(len(each.shown.plan.entries) for each in self.sessions if each.shown)

    def left_out(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of the report: subject, session, scan, file, reason, line of the map."""
        for key, used, unused in self.bids_map.overridden:
            reason = f"{key!r} is {used.bidsname} by the {used.source}, which counts more than {unused.bidsname} by the"
            yield ("", "", "", "", f"{reason} {unused.source}", "")
        if self.bids_map.wrong:
            yield ("", "", "", "", f"{self.bids_map.wrong}: no line of it is used", "")
        for failure in self.tree.failures:
            yield ("", "", "", "", f"a tree in a resource is not shown: {failure}", "")
        yield from self.renamed
        for session in self.sessions:
            yield from session.left_out()

    def left_out_table(self) -> bytes:
        return generated.table(LEFT_OUT_COLUMNS, self.left_out())

    def map_table(self) -> bytes:
        return generated.table(generated.MAP_COLUMNS, self._origins())

    def _origins(self) -> Iterator[tuple[str, ...]]:
        for path, leaf in self.tree.leaves():
            yield (path, leaf.uri, leaf.files.catalogue.digest(leaf.place))
        for session in self.sessions:
            if (planned := session.shown) is None:
                continue
            for path, file in planned.plan.files.items():
                base = "/".join(planned.resources[file.resource].resource_dir.address.base)
                uri = f"/data/{base}/resources/{file.resource}/files/{file.path}"
                yield (f"{session.path}/{path}", uri, file.digest)


def _renamed(label: str) -> str:
    return f"is shown; the label {label!r} alone is too long, empty, or another one's without its special characters"
