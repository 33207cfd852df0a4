"""Define the working set: its files, the size of each version of a file, and the demo that publishes them.

    LOAD/S01/E01/scans/1/DICOM     160 images of 100 to 400 KB                        digests
    LOAD/S01/E01/scans/2/RAW       120 files of 20 to 100 KB
    LOAD/S01/E01/scans/3/NIFTI     one volume of 48 MB                                digest
    LOAD/S01/E01/scans/4/RAW       one of 96 MB
    LOAD/S01/E01/scans/5/NIFTI     12 files of 2 to 7 MB                              digests
    LOAD/S01/E01/resources/notes   folders, names that are hard to send, an empty file
    STILL/S01/STILL/...            4,000 small files that are never read or changed, for `stat`

and the same in S02/E02 and so on, 246 MB each: eight are 2 GB.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from scripts.stressing.contents import BLOCK, HEAD, Made
from xnatfs.demo.archive.entries import MODIFIED, Entry
from xnatfs.demo.archive.model import Archive, Resource
from xnatfs.demo.fixtures.lab import DemoArchive

PROJECT, STILL = "LOAD", "STILL"
MB = 10**6
# The bytes by which one version in three is longer, so that some changes are visible by size and not only by digest.
LONGER = 4321

NOTES = {
    "read me.txt": 900,
    "größe.json": 5_000,
    "a#b+c&d=e.tsv": 40_000,
    "nested/deep/er/values.csv": 70_000,
    "nested/list.txt": 17_000,
    "100% sure.txt": 3_000,  # no URL can carry it: it is read from its resource's archive
    "empty.txt": 0,
}


@dataclass(frozen=True)
class File:
    """One file of the working set; `path` is below the project's directory."""

    path: str
    base: int  # bytes of its first version
    digest: bool  # whether the catalogue has its MD5

    def size(self, version: int) -> int:
        return self.base + (LONGER if self.base and version % 3 == 2 else 0)

    @property
    def resource(self) -> str:
        """Return the directory of its resource."""
        parts = self.path.split("/")
        return "/".join(parts[: 5 if parts[2] == "scans" else 4])

    @property
    def inner(self) -> str:
        """Return its path within the resource."""
        return self.path.removeprefix(f"{self.resource}/")

    @property
    def session(self) -> str:
        return "/".join(self.path.split("/")[:2])


@lru_cache(maxsize=8)
def files(sessions: int) -> dict[str, File]:
    """Return the files of a working set with this number of sessions, by path."""
    return {file.path: file for number in range(1, sessions + 1) for file in _session(number)}


def _session(number: int) -> Iterator[File]:
    chance = random.Random(number)
    top = f"S{number:02}/E{number:02}"
    for place in range(1, 161):
        name = f"1.3.12.2.1107.5.2.32.{number}-{place:04}.dcm"
        yield File(f"{top}/scans/1/DICOM/{name}", _size(chance, 100_000, 400_000), True)
    for place in range(1, 121):
        yield File(f"{top}/scans/2/RAW/part-{place:04}.raw", _size(chance, 20_000, 100_000), False)
    yield File(f"{top}/scans/3/NIFTI/volume.nii", 48 * MB + 13 * number, True)
    yield File(f"{top}/scans/4/RAW/kspace.dat", 96 * MB + 17 * number, False)
    for place in range(1, 13):
        yield File(f"{top}/scans/5/NIFTI/map-{place:02}.nii.gz", _size(chance, 2 * MB, 7 * MB), True)
    for name, size in NOTES.items():
        yield File(f"{top}/resources/notes/{name}", size, True)


def _size(chance: random.Random, least: int, most: int) -> int:
    """Return the size of a first version. Its last block has a whole head, which a read of that block alone needs."""
    size = chance.randrange(least, most)
    return size if size % BLOCK >= HEAD.size else size + HEAD.size


def still() -> list[str]:
    """Return the paths of the files for `stat`, below the project's directory."""
    return [f"S01/STILL/scans/1/DICOM/{place:05}.dcm" for place in range(4000)]


class Published:
    """The working set in a demo's archive. `replace` gives a file its next version."""

    def __init__(self, sessions: int, owner: str) -> None:
        self.archive = DemoArchive(empty=True)
        self.files = files(sessions)
        self.versions = dict.fromkeys(self.files, 0)
        self.resources: dict[str, int] = {}  # their numbers, by directory
        self.numbers: dict[str, str] = {}  # accession IDs of sessions, by directory
        self._entries: dict[str, Entry] = {}
        project = self.archive.project(PROJECT, PROJECT)
        project.members[owner] = "Owners"
        made: dict[str, Resource] = {}
        for file in self.files.values():
            if file.resource not in made:
                made[file.resource] = self._resource(file)
            self._entries[file.path] = entry = Entry(file.inner, b"", "", "")
            made[file.resource].entries.append(entry)
            self._fill(file.path)
        self._still(owner)

    def replace(self, path: str) -> Made:
        """Give a file its next version; the size of one version in three differs."""
        self.versions[path] += 1
        return self._fill(path)

    def _fill(self, path: str) -> Made:
        version = self.versions[path]
        made = Made(path, version, self.files[path].size(version))
        entry = self._entries[path]
        digest = _md5(made) if self.files[path].digest else ""
        with self.archive.lock:
            entry.content, entry.size, entry.digest = made, str(made.size), digest
            # HTTP dates have whole seconds: two versions never have the same one.
            entry.modified = MODIFIED + version
        return made

    def _resource(self, file: File) -> Resource:
        parts = file.resource.split("/")
        if file.session not in self.numbers:
            subject = self.archive.subject(self.archive.projects[PROJECT], parts[0])
            self.numbers[file.session] = self.archive.experiment(subject, parts[1]).id
        session = self.archive.experiments[self.numbers[file.session]]
        among = session.resources
        if parts[2] == "scans":
            scan = next((each for each in session.scans if each.id == parts[3]), None)
            among = (scan or self.archive.scan(session, parts[3], "MR")).resources
        resource = self.archive.resource(among, parts[-1], parts[-1])
        self.resources[file.resource] = resource.id
        return resource

    def _still(self, owner: str) -> None:
        archive = self.archive
        project = archive.project(STILL, STILL)
        project.members[owner] = "Owners"
        session = archive.experiment(archive.subject(project, "S01"), "STILL")
        self.numbers[STILL] = session.id
        resource = archive.resource(archive.scan(session, "1", "MR").resources, "DICOM", "DICOM")
        for path in still():
            Archive.file(resource, path.rpartition("/")[2], b"a file like all the others\n" * 20)


def _md5(made: Made) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for piece in made.pieces(0, made.size):
        digest.update(piece)
    return digest.hexdigest()
