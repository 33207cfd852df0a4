"""Archive a received session: as a new one, or merged into the one with its label (XNAT REST contract 12.4).

UIDs identify scans: a series that is already archived is the same scan, and another one with the same number gets a
scan ID of its own.
"""

from dataclasses import dataclass

from xnatfs.demo.archive.item_changes import LABEL
from xnatfs.demo.archive.model import Archive, Experiment, Resource, Scan
from xnatfs.demo.prearchive.dicom import free_id


@dataclass(frozen=True)
class Target:
    """The destination in the archive."""

    project: str
    subject: str
    session: str

    def uri(self) -> str:
        return f"/data/archive/projects/{self.project}/subjects/{self.subject}/experiments/{self.session}"


@dataclass(frozen=True)
class Overwrite:
    """The permitted changes of an existing session. With `fresh`, the default permits none, not even new scans."""

    how: str = "none"
    files: bool = False
    fresh: bool = False

    def lifts(self, kind: str) -> bool:
        if kind == "exists":
            return self.how != "none" or not self.fresh
        if kind == "files":
            return self.files or self.how == "delete" or (self.how == "append" and not self.fresh)
        return kind == "soft" and self.how != "none"


class NotArchived(Exception):
    """The session cannot be archived. `status` is its new status: CONFLICT or ERROR."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def conflicts(archive: Archive, received: Experiment, target: Target) -> list[tuple[str, str]]:
    """Return the conflicts with existing data.

    Args:
        archive: The archive.
        received: The received session.
        target: Its destination.

    Returns:
        The kind of each conflict ("exists", "files", "soft" or "hard"), and the server's message.
    """
    there = archive.find_experiment(target.project, target.session)
    if there is None:
        return []
    found = [("exists", "Session already exists, retry with overwrite enabled")]
    if there.project != target.project:
        found.append(("hard", "Session already exists in another project"))
    if archive.subjects[there.subject].label != target.subject:
        found.append(("hard", f"Invalid modification of session subject via archive process: {target.subject}"))
    if there.xsi_type != received.xsi_type:
        found.append(("hard", f"Session already exists with data type {there.xsi_type}"))
    if there.uid and received.uid and there.uid != received.uid:
        found.append(("soft", "Session already exists with a different Study Instance UID"))
    for scan in received.scans:
        same = _same(there, scan)
        if same is not None and same.id != scan.id:
            found.append(("soft", f"Session already contains a scan ({same.id}) with the UID of scan {scan.id}"))
        if same is not None and _paths(same.resources) & _paths(scan.resources):
            found.append(("files", f"Session already contains files of scan {scan.id}"))
    if _paths(there.resources) & _paths(received.resources):
        found.append(("files", "Session already contains files of its resources"))
    return found


def archive(archive: Archive, received: Experiment, target: Target, overwrite: Overwrite) -> Experiment:
    """Archive a received session.

    Args:
        archive: The archive.
        received: The session.
        target: Its destination.
        overwrite: The permitted changes of an existing session.

    Raises:
        NotArchived: There is a conflict that `overwrite` does not lift, or a label is invalid.
    """
    if not LABEL.fullmatch(target.subject) or not LABEL.fullmatch(target.session):
        raise NotArchived("ERROR", "Unable to identify a valid subject and session label")
    against = [words for kind, words in conflicts(archive, received, target) if not overwrite.lifts(kind)]
    if against:
        raise NotArchived("CONFLICT", "; ".join(against))
    there = archive.find_experiment(target.project, target.session)
    if there is None:
        subject = archive.find_subject(target.project, target.subject)
        subject = subject or archive.subject(archive.projects[target.project], target.subject)
        there = archive.experiment(
            subject, target.session, project=target.project, xsi_type=received.xsi_type, date=received.date
        )
    there.uid = there.uid or received.uid
    there.fields |= received.fields
    for scan in received.scans:
        same = _same(there, scan)
        if same is None:
            id = free_id(there.scans, scan.id, scan.modality)
            same = archive.scan(
                there, id, scan.type, series_description=scan.series_description, xsi_type=scan.xsi_type, uid=scan.uid
            )
            same.modality, same.note, same.quality = scan.modality, scan.note, scan.quality
        _merge(archive, same.resources, scan.resources)
    _merge(archive, there.resources, received.resources)
    archive.changed()
    return there


def _same(there: Experiment, scan: Scan) -> Scan | None:
    """Return the scan of the same series or, if a UID is unknown, with the same ID."""
    for other in there.scans:
        if (other.uid and other.uid == scan.uid) or (other.id == scan.id and not (other.uid and scan.uid)):
            return other
    return None


def _paths(resources: list[Resource]) -> set[tuple[str, str]]:
    return {(resource.label, entry.path) for resource in resources for entry in resource.entries}


def _merge(archive: Archive, there: list[Resource], come: list[Resource]) -> None:
    for resource in come:
        same = next((other for other in there if other.label == resource.label), None)
        same = same or archive.resource(there, resource.label, resource.format, resource.content)
        same.put(resource.entries)
