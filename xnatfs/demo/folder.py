"""A directory as an archive: PROJECT/SUBJECT/SESSION/scans/ID/RESOURCE/files... and SESSION/resources/RESOURCE/files...

The files stay where they are. Their digests are computed when the server starts: they are what a client checks by.
Names may hold '%2F' for a slash. Beside `scans/` a `scans.tsv` may tell types, descriptions and qualities.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

from xnatfs.demo.archive import Archive, Entry, Experiment, Resource


def publish(archive: Archive, directory: Path, members: dict[str, str]) -> None:
    """Add what the directory holds. Raises OSError where it cannot be read."""
    if not any(folders(directory)):
        raise OSError(f"{directory} holds no PROJECT/SUBJECT/SESSION/scans/ID/RESOURCE/files")
    for project_dir in folders(directory):
        project = archive.projects.get(project_dir.name)
        if project is None:
            project = archive.project(project_dir.name, project_dir.name)
            project.members |= members
        for subject_dir in folders(project_dir):
            subject = archive.subject(project, label(subject_dir))
            for session_dir in folders(subject_dir):
                session = archive.experiment(subject, label(session_dir))
                _session(archive, session, session_dir)


def _session(archive: Archive, session: Experiment, directory: Path) -> None:
    facts = _facts(directory / "scans.tsv")
    for scan_dir in folders(directory / "scans"):
        row = facts.get(label(scan_dir), {})
        scan = archive.scan(
            session,
            label(scan_dir),
            row.get("type", ""),
            series_description=row.get("series_description", ""),
            quality=row.get("quality") or "usable",
            xsi_type=row.get("xsitype") or "xnat:mrScanData",
            note=row.get("note", ""),
        )
        for resource_dir in folders(scan_dir):
            _fill(archive.resource(scan.resources, label(resource_dir)), resource_dir)
    for resource_dir in folders(directory / "resources"):
        _fill(archive.resource(session.resources, label(resource_dir)), resource_dir)


def _fill(resource: Resource, directory: Path) -> None:
    resource.format = resource.label if resource.label in ("DICOM", "NIFTI") else ""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            status = path.stat()
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "md5").hexdigest()
            name = path.relative_to(directory).as_posix()
            resource.entries.append(Entry(name, path, str(status.st_size), digest, status.st_mtime))


def _facts(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        return {row["id"]: {k: v for k, v in row.items() if v} for row in csv.DictReader(file, delimiter="\t")}


def folders(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from sorted(path for path in directory.iterdir() if path.is_dir())


def label(path: Path) -> str:
    return path.name.replace("%2F", "/")
