"""Generate archives for `--data`, once for each shape, with reproducible bytes.

Each is a separate project, PROJECT/SUBJECT/SESSION/scans/..., so that a server may publish several.
"""

import hashlib
import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from xnatfs.demo.archive.model import Scan
from xnatfs.demo.fixtures.converted import BOLD, PLAIN
from xnatfs.demo.fixtures.converted import files as files_of

BLOCK = 2**20
SESSION = Path("SUBJECT", "SESSION")


def big(directory: Path, size: int, count: int = 1) -> Path:
    """Return an archive of `count` scans, each with one file of `size` bytes."""

    def make(session: Path) -> None:
        chance = random.Random(1)
        for scan in range(1, count + 1):
            path = session / "scans" / str(scan) / "RAW" / f"big-{scan}.bin"
            path.parent.mkdir(parents=True)
            block = bytearray(chance.randbytes(BLOCK))
            with open(path, "wb") as file:
                for number in range(size // BLOCK):
                    block[:8] = number.to_bytes(8, "big")  # no two blocks are the same
                    file.write(block)

    return _made(directory / f"big-{count}x{size >> 20}MiB", "BIG", make)


def series(directory: Path, scans: int, files: int, size: int) -> Path:
    """Return an archive of scans with small files.

    Args:
        directory: The directory of all archives.
        scans: The number of scans.
        files: The number of files of each scan.
        size: The size of each file, in bytes.
    """

    def make(session: Path) -> None:
        chance = random.Random(2)
        for scan in range(1, scans + 1):
            folder = session / "scans" / str(scan) / "DICOM"
            folder.mkdir(parents=True)
            for number in range(files):
                (folder / f"{scan:02}-{number:05}.dcm").write_bytes(chance.randbytes(size))

    return _made(directory / f"series-{scans}x{files}x{size}", "SERIES", make)


def small(directory: Path, files: int, size: int) -> Path:
    """Return an archive of one scan with this number of files, of `size` bytes each."""

    def make(session: Path) -> None:
        chance = random.Random(4)
        folder = session / "scans" / "1" / "DICOM"
        folder.mkdir(parents=True)
        for number in range(files):
            (folder / f"1-{number:05}.dcm").write_bytes(chance.randbytes(size))

    return _made(directory / f"small-{files}x{size}", "SMALL", make)


def many(directory: Path, files: int) -> Path:
    """Return an archive of one scan with this number of files, of 0 to 4,095 bytes."""

    def make(session: Path) -> None:
        chance = random.Random(3)
        folder = session / "scans" / "1" / "DICOM"
        folder.mkdir(parents=True)
        for number in range(files):
            (folder / f"1-{number:05}.dcm").write_bytes(chance.randbytes(chance.randrange(4096)))

    return _made(directory / f"many-{files}", "MANY", make)


def projects(directory: Path, count: int) -> Path:
    """Return an archive of this number of projects, each with one session of one tiny file."""
    top = directory / f"projects-{count}"
    if not (top / "complete").exists():
        shutil.rmtree(top, ignore_errors=True)
        for number in range(count):
            folder = top / "data" / f"PROJECT{number:05}" / SESSION / "scans" / "1" / "DICOM"
            folder.mkdir(parents=True)
            (folder / "1.dcm").write_bytes(b"%d" % number)
        (top / "complete").touch()
    return top / "data"


def converted(directory: Path, subjects: int) -> Path:
    """Return an archive of subjects with two scans each, as XNAT's own converter leaves them."""

    def make(session: Path) -> None:
        for number in range(1, subjects + 1):
            subject = f"S{number:03}"
            for id, name, images in (("2", "T1w", PLAIN), ("3", "task-rest_bold", BOLD)):
                scan = session.parent.with_name(subject) / f"{subject}MR" / "scans" / id
                for _, ending, content in files_of(Scan(id, series_description=name), number, images):
                    target = scan / ("BIDS" if ending == ".json" else "NIFTI")
                    target.mkdir(parents=True)
                    (target / f"sub-{subject}_ses-{subject}MR_{name}{ending}").write_bytes(content)

    return _made(directory / f"converted-{subjects}", "CONVERTED", make)


def images(directory: Path, count: int, size: int) -> Path:
    """Return a folder of DICOM files of one series, each of about `size` bytes of pixels that hardly compress."""
    top = directory / f"images-{count}x{size}"
    if (top / "complete").exists():
        return top / "files"
    shutil.rmtree(top, ignore_errors=True)
    (top / "files").mkdir(parents=True)
    chance = random.Random(4)
    block = bytearray(chance.randbytes(min(size, BLOCK)))
    for number in range(count):
        with open(top / "files" / f"{number:05}.dcm", "wb") as file:
            file.write(_header(number))
            file.write(b"\xe0\x7f\x10\x00OW\0\0" + (size - size % len(block)).to_bytes(4, "little"))
            for place in range(size // len(block)):
                block[:8] = (place << 32 | number).to_bytes(8, "big")
                file.write(block)
    (top / "complete").touch()
    return top / "files"


def _header(number: int) -> bytes:
    """Return a DICOM file without pixels."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{number + 1}")
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.3.0"
    image.Modality, image.PatientID, image.SeriesNumber, image.InstanceNumber = "MR", "S", 1, number + 1
    made = io.BytesIO()
    image.save_as(made, enforce_file_format=True)
    return made.getvalue()


def _made(top: Path, project: str, make: Callable[[Path], None]) -> Path:
    """Return the directory for `--data`. An incomplete one is generated again."""
    if not (top / "complete").exists():
        shutil.rmtree(top, ignore_errors=True)
        make(top / "data" / project / SESSION)
        (top / "complete").touch()
    return top / "data"


def session(data: Path) -> Path:
    """Return the only session below a directory for `--data`."""
    (project,) = data.iterdir()
    return project / SESSION


def tree_md5(top: Path, pattern: str = "*") -> dict[str, str]:
    """Return the MD5 of every file by its path."""
    found = {}
    for path in sorted(top.rglob(pattern)):
        if path.is_file():
            with open(path, "rb") as file:
                found[path.relative_to(top).as_posix()] = hashlib.file_digest(file, "md5").hexdigest()
    return found


def contents(top: Path, pattern: str = "*") -> list[str]:
    """Return the MD5 of every file, sorted, to compare trees with different layouts."""
    return sorted(tree_md5(top, pattern).values())


def difference(found: dict[str, str], truth: dict[str, str]) -> str:
    """Describe the differences of a copy by the MD5 of each file; "" if there are none."""
    missing, more = truth.keys() - found.keys(), found.keys() - truth.keys()
    wrong = [path for path in truth.keys() & found.keys() if truth[path] != found[path]]
    counts = {"missing": len(missing), "too many": len(more), "with wrong bytes": len(wrong)}
    return ", ".join(f"{count} files {what}" for what, count in counts.items() if count)


def in_memory(top: Path) -> None:
    """Read all files, so that they are in the page cache and the disk is not measured."""
    for path in [top] if top.is_file() else top.rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                while file.read(BLOCK):
                    pass
