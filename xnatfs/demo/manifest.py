"""What a mount of the demo must show: an oracle written by hand where it matters.

Ordinary labels are shown as they are. How an ugly one must be shown stands as a literal where it is planted
(`content.py`), not computed by the rule under test.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from xnatfs.demo.archive import Archive, Experiment, Resource, Subject

Names = tuple[str, ...]


@dataclass(frozen=True)
class ManifestEntry:
    """One entry below the mount's root. `mtime` is None where the server states no date; `error` an errno's name."""

    path: Names
    kind: str  # dir, file or link
    size: int = 0
    md5: str = ""
    mtime: float | None = None
    target: str = ""
    error: str = ""


class Shown:
    """How items are shown that are not shown as their label."""

    def __init__(self) -> None:
        self.names: dict[object, str] = {}
        self.files: dict[tuple[int, str], Names] = {}
        self.errors: dict[tuple[int, str], str] = {}

    def name(self, key: object, label: str) -> str:
        return self.names.get(key, label)


def manifest(archive: Archive, shown: Shown, user: str) -> list[ManifestEntry]:
    """Everything this user must see."""
    entries = [ManifestEntry((view,), "dir") for view in ("projects", "experiments", "subjects")]
    for project in archive.projects.values():
        if not archive.sees(user, project.id):
            continue
        path = ("projects", project.id)
        if not archive.reads(user, project.id):
            entries.append(ManifestEntry(path, "dir", error="EACCES"))
            continue
        entries += [ManifestEntry(path, "dir"), ManifestEntry((*path, "resources"), "dir")]
        entries += _resources(shown, (*path, "resources"), project.resources, None)
        for subject, label in archive.subjects_in(project.id):
            entries += _subject(archive, shown, project.id, subject, label)
    return entries + list(_links(archive, shown, user))


def _subject(archive: Archive, shown: Shown, project: str, subject: Subject, label: str) -> Iterator[ManifestEntry]:
    path = ("projects", project, shown.name((project, subject.id), label))
    mtime = seconds(subject.last_modified or subject.inserted)
    yield ManifestEntry(path, "dir", mtime=mtime)
    yield ManifestEntry((*path, "resources"), "dir", mtime=mtime)
    yield from _resources(shown, (*path, "resources"), subject.resources, mtime)
    for experiment, session_label in archive.experiments_in(project):
        if experiment.subject == subject.id and not experiment.session:
            name = shown.name((project, experiment.id), session_label)
            yield from _session(archive, shown, (*path, name), experiment)


def _session(archive: Archive, shown: Shown, path: Names, session: Experiment) -> Iterator[ManifestEntry]:
    mtime = seconds(session.last_modified or session.inserted)
    yield ManifestEntry(path, "dir", mtime=mtime)
    for part in ("scans", "resources", "assessors", "reconstructions"):
        yield ManifestEntry((*path, part), "dir", mtime=mtime)
    yield from _resources(shown, (*path, "resources"), session.resources, mtime)
    for scan in session.scans:
        scan_path = (*path, "scans", shown.name((session.id, scan.id), scan.id))
        yield ManifestEntry(scan_path, "dir", mtime=mtime)
        yield from _resources(shown, scan_path, scan.resources, mtime)
    for assessor in archive.assessors_of(session):
        own = seconds(assessor.last_modified or assessor.inserted)
        assessor_path = (*path, "assessors", shown.name(assessor.id, assessor.label))
        yield ManifestEntry(assessor_path, "dir", mtime=own)
        yield from _resources(shown, assessor_path, [*assessor.resources, *assessor.out], own)
    for recon in session.reconstructions:
        recon_path = (*path, "reconstructions", recon.id)
        yield ManifestEntry(recon_path, "dir", mtime=mtime)
        yield from _resources(shown, recon_path, recon.out, mtime)


def _resources(shown: Shown, path: Names, resources: list[Resource], mtime: float | None) -> Iterator[ManifestEntry]:
    for resource in resources:
        place = (*path, shown.name(resource.id, resource.label))
        yield ManifestEntry(place, "dir", mtime=mtime)
        folders: set[Names] = set()
        for entry in resource.listed():
            names = shown.files.get((resource.id, entry.path)) or tuple(entry.path.split("/"))
            folders |= {names[:depth] for depth in range(1, len(names))}
            content = entry.content.read_bytes() if isinstance(entry.content, Path) else entry.content
            error = shown.errors.get((resource.id, entry.path), "")
            size = len(content) if isinstance(content, bytes) else int(entry.size)
            md5 = hashlib.md5(content).hexdigest() if isinstance(content, bytes) else ""
            yield ManifestEntry((*place, *names), "file", size, md5, mtime, error=error)
        for folder in folders:
            yield ManifestEntry((*place, *folder), "dir", mtime=mtime)


def _links(archive: Archive, shown: Shown, user: str) -> Iterator[ManifestEntry]:
    """One for each subject and session in a project that can be read; to the owning project."""
    seen = {project for project in archive.projects if archive.reads(user, project)}
    for subject in archive.subjects.values():
        if not seen & {subject.project, *subject.shared}:
            continue
        home = subject.project if subject.project in seen else min(seen & subject.shared.keys())
        label = subject.label if home == subject.project else subject.shared[home]
        name = shown.name((home, subject.id), label)
        yield ManifestEntry(("subjects", subject.id), "link", target=f"../projects/{home}/{name}")
        for experiment in archive.experiments.values():
            if experiment.subject != subject.id or experiment.session:
                continue
            if not seen & {experiment.project, *experiment.shared}:
                continue
            place = experiment.project if experiment.project in seen else min(seen & experiment.shared.keys())
            own = experiment.label if place == experiment.project else experiment.shared[place]
            there = subject.label if place == subject.project else subject.shared.get(place, subject.label)
            path = f"{shown.name((place, subject.id), there)}/{shown.name((place, experiment.id), own)}"
            yield ManifestEntry(("experiments", experiment.id), "link", target=f"../projects/{place}/{path}")
            for assessor in archive.assessors_of(experiment):
                if seen & {assessor.project, *assessor.shared}:
                    target = f"../projects/{place}/{path}/assessors/{shown.name(assessor.id, assessor.label)}"
                    yield ManifestEntry(("experiments", assessor.id), "link", target=target)


def seconds(stamp: str) -> float:
    return datetime.fromisoformat(f"{stamp:0<26}"[:26]).replace(tzinfo=UTC).timestamp()
