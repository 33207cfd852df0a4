"""Read DICOM headers, and sort images into studies, series and file names as the server does."""

import re
import threading
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xnatfs.demo.archive.data_types import scan_type, session_type
from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Experiment, Resource, Scan

TAGS = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SeriesNumber", "InstanceNumber", "SeriesDescription",
    "Modality", "PatientName", "PatientID", "StudyDate", "StudyTime",
)  # fmt: skip

_PARSING = threading.Lock()  # warning filters apply to all threads


@dataclass(frozen=True)
class Image:
    """A DICOM object: its stored file and its header."""

    entry: Entry
    header: dict[str, str]

    @property
    def study(self) -> str:
        return self.header["StudyInstanceUID"]

    def name(self) -> str:
        """Return the file name that the server gives to a received object."""
        header = self.header
        series, instance = header["SeriesNumber"] or 0, header["InstanceNumber"] or 0
        return file_name(self.study, series, instance, header["SOPInstanceUID"])


def file_name(study: str, series: int | str, instance: int | str, uid: str) -> str:
    """Return the file name of an object: the UID of its study, its numbers, and a hash of its own UID in base 36."""
    value, digits = zlib.crc32(uid.encode()), ""
    while value:
        value, digit = divmod(value, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return f"{study}-{series}-{instance}-{digits or 0}.dcm"


def read(entry: Entry) -> Image | None:
    """Return the DICOM object in a file, or None if it holds none."""
    import pydicom

    assert isinstance(entry.content, Path)
    try:
        with _PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(entry.content, stop_before_pixels=True, specific_tags=list(TAGS))
            found = {tag: str(header.get(tag) or "").strip() for tag in TAGS}
    except Exception:  # untrusted input: whichever error the parser raises, the file is no DICOM
        return None
    return Image(entry, found) if found["StudyInstanceUID"] and found["SOPInstanceUID"] else None


def label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)


def by_study(images: Iterable[Image]) -> dict[str, list[Image]]:
    found: dict[str, list[Image]] = {}
    for image in images:
        found.setdefault(image.study, []).append(image)
    return found


def add(session: Experiment, images: Iterable[Image], *, rename: bool) -> None:
    """Add the images of a study to the scans of a session, renamed as the server does if `rename`."""
    for image in images:
        scan = _scan(session, image)
        resource = scan.resources[0]
        entry = image.entry
        entry.path = image.name() if rename else entry.path.rpartition("/")[2]
        entry.format, entry.note = "DICOM", "RAW"
        if not rename and any(other.path == entry.path for other in resource.entries):
            entry.path = image.name()  # two folders of one archive have a file of this name
        resource.put([entry])
    session.xsi_type = session_type({scan.modality for scan in session.scans})


def _scan(session: Experiment, image: Image) -> Scan:
    header = image.header
    uid = header["SeriesInstanceUID"]
    found = next((scan for scan in session.scans if scan.uid == uid), None)
    if found is None:
        id = free_id(session.scans, header["SeriesNumber"] or label(uid), header["Modality"])
        found = Scan(id, header["SeriesDescription"], header["SeriesDescription"], uid=uid, modality=header["Modality"])
        found.xsi_type = scan_type(found.modality)
        found.resources.append(Resource(0, "DICOM", "DICOM", "RAW"))
        session.scans.append(found)
    return found


def free_id(scans: Iterable[Scan], wanted: str, modality: str) -> str:
    """Return a free scan ID: the wanted one or, if it is taken, the wanted one with the modality and a number."""
    taken, number, id = {scan.id for scan in scans}, 0, wanted
    while id in taken:
        number += 1
        id = f"{wanted}-{modality}{number}"
    return id
