"""DatasetReport on a whole dataset: where each of its files is on the server, and what it leaves out and why."""

from collections.abc import Iterator
from dataclasses import dataclass

from xnatfs.tree.bids import generated
from xnatfs.tree.bids.dataset import Dataset, PlannedSession, SessionFolder, SubjectFolder
from xnatfs.tree.bids.rules.maps import BidsMap


@dataclass(frozen=True)
class DatasetReport:
    """The plans of all sessions, in the order of the folders."""

    sessions: list[tuple[SubjectFolder, SessionFolder, PlannedSession]]
    bids_map: BidsMap
    expires: float

    @classmethod
    async def of(cls, dataset: Dataset) -> "DatasetReport":
        """Plan all sessions, one after the other, so that their listings are requested in batches."""
        outline = await dataset.outline()
        bids_map, expires = await dataset.map()
        sessions, expires = [], min(expires, outline.expires)
        for label, subject in outline.subjects.items():
            for session in subject.sessions.values():
                planned = await dataset.plan(label, session)
                sessions.append((subject, session, planned))
                expires = min(expires, planned.expires)
        return cls(sessions, bids_map, expires)

    def left_out(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of the report: subject, session, scan, file, reason, line of the map."""
        for key, used, unused in self.bids_map.overridden:
            reason = f"{key!r} is {used.bidsname} by the {used.source}, which counts more than {unused.bidsname} by the"
            yield ("", "", "", "", f"{reason} {unused.source}", "")
        for subject, session, planned in self.sessions:
            for row in planned.plan.left_out:
                yield (f"sub-{subject.label}", f"ses-{session.label}", *row)

    def left_out_table(self) -> bytes:
        return generated.table(generated.LEFT_OUT_COLUMNS, self.left_out())

    def map_table(self) -> bytes:
        return generated.table(generated.MAP_COLUMNS, self._origins())

    def _origins(self) -> Iterator[tuple[str, ...]]:
        for subject, session, planned in self.sessions:
            for path, file in planned.plan.files.items():
                base = "/".join(planned.resources[file.resource].resource_dir.address.base)
                uri = f"/data/{base}/resources/{file.resource}/files/{file.path}"
                yield (f"sub-{subject.label}/ses-{session.label}/{path}", uri, file.digest)
