"""A project that is all listings: so many subjects, sessions, scans and files, for measuring what huge trees cost.

Its files are there and can be read; all hold the same few bytes, so that a million of them fit.
"""

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from xnatfs.demo.archive import MODIFIED, Archive, Entry

PROJECT = "SHAPED"
CONTENT = b"a file like all the others\n" * 32
DIGEST = hashlib.md5(CONTENT).hexdigest()


def parsed(shape: str) -> tuple[int, int, int, int]:
    """Subjects, sessions of each, scans of each, files of each, of '500x2x20x5'. Raises OSError for another text."""
    words = shape.split("x")
    if len(words) != 4 or not all(word.isdigit() for word in words):
        raise OSError(f"{shape!r} is not SUBJECTSxSESSIONSxSCANSxFILES")
    subjects, sessions, scans, files = map(int, words)
    return subjects, sessions, scans, files


def publish_shape(archive: Archive, shape: str, members: dict[str, str]) -> None:
    """Add a project of that shape. Raises OSError where it is none."""
    subjects, sessions, scans, files = parsed(shape)
    project = archive.project(PROJECT, "Shaped")
    project.members |= members
    size = str(len(CONTENT))
    for s in range(subjects):
        subject = archive.subject(project, f"S{s:05}")
        for e in range(sessions):
            session = archive.experiment(subject, f"S{s:05}_MR{e}")
            for n in range(1, scans + 1):
                scan = archive.scan(session, str(n), "T1", series_description=f"series {n}")
                resource = archive.resource(scan.resources, "DICOM", "DICOM")
                names = (_name(s, e, n, number) for number in range(files))
                resource.entries += [Entry(name, CONTENT, size, DIGEST, MODIFIED, format="DICOM") for name in names]


def _name(subject: int, session: int, scan: int, number: int) -> str:
    """As long as those that are made of UIDs."""
    return f"1.3.12.2.1107.5.2.32.35177.{subject}.{session}.{scan}-{number:05}.dcm"


def paths(shape: str) -> Iterator[PurePosixPath]:
    """Where a mount shows each of its files, below `projects`."""
    subjects, sessions, scans, files = parsed(shape)
    for s in range(subjects):
        for e in range(sessions):
            for n in range(1, scans + 1):
                folder = PurePosixPath(PROJECT, f"S{s:05}", f"S{s:05}_MR{e}", "scans", str(n), "DICOM")
                yield from (folder / _name(s, e, n, number) for number in range(files))
