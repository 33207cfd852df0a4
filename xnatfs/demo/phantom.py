"""Made-up images: a ball in a box, that moves; as DICOM series, as NIfTI, as a snapshot. The same every time."""

import gzip
import hashlib
import io
import json
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Any UID may be made up under this root (DICOM PS3.5 B.2: derived from a UUID).
ROOT = "2.25"


@dataclass(frozen=True)
class Series:
    """A series to be made. Lengths in mm."""

    study: str  # what the UIDs of the study are made of
    number: int
    description: str
    modality: str = "MR"
    rows: int = 128
    columns: int = 128
    slices: int = 24
    spacing: float = 1.5
    thickness: float = 3.0
    shift: float = 0.0  # of the ball, along the first axis, in voxels
    volume: int = 1
    seed: int = 0


def uid(*parts: object) -> str:
    """A UID made of these."""
    digest = hashlib.sha256(repr(parts).encode()).digest()[:15]
    return f"{ROOT}.{int.from_bytes(digest)}"


def pixels(series: Series) -> "np.ndarray[Any, np.dtype[np.uint16]]":
    """Slices, rows, columns."""
    import numpy as np

    z, y, x = np.meshgrid(
        np.linspace(-1, 1, series.slices), np.linspace(-1, 1, series.rows), np.linspace(-1, 1, series.columns),
        indexing="ij",
    )  # fmt: skip
    head = (x / 0.75) ** 2 + (y / 0.9) ** 2 + (z / 0.95) ** 2 < 1
    moved = x - 0.2 - series.shift / series.columns * 2
    ball = moved**2 + (y + 0.1) ** 2 + z**2 < 0.09
    noise = np.random.default_rng(series.seed + series.number).integers(0, 20, x.shape)
    image: np.ndarray[Any, np.dtype[np.uint16]] = (head * 400 + ball * 500 + noise).astype(np.uint16)
    return image


def dicom_series(series: Series, patient: str) -> list[tuple[str, bytes]]:
    """File name, as XNAT has it, and content of each slice."""
    volume = pixels(series)
    return [_slice(series, patient, index, volume[index]) for index in range(series.slices)]


def _slice(series: Series, patient: str, index: int, image: "np.ndarray[Any, Any]") -> tuple[str, bytes]:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        CTImageStorage,
        ExplicitVRLittleEndian,
        MRImageStorage,
        PositronEmissionTomographyImageStorage,
    )

    kinds = {"MR": MRImageStorage, "CT": CTImageStorage, "PT": PositronEmissionTomographyImageStorage}
    made = Dataset()
    made.SOPClassUID = kinds[series.modality]
    made.SOPInstanceUID = uid(series, index)
    made.StudyInstanceUID = uid("study", series.study)
    made.SeriesInstanceUID = uid("series", series.study, series.number)
    made.FrameOfReferenceUID = uid("frame", series.study)
    made.Modality = series.modality
    made.Manufacturer = "xnatfs"
    made.PatientName = made.PatientID = patient
    made.StudyDate = made.SeriesDate = made.AcquisitionDate = "20240102"
    made.StudyTime = made.SeriesTime = made.AcquisitionTime = f"1011{series.number % 60:02}"
    made.StudyID, made.SeriesNumber, made.InstanceNumber = "1", series.number, index + 1
    made.AcquisitionNumber = series.volume
    made.SeriesDescription = series.description
    made.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    made.Rows, made.Columns = image.shape
    made.PixelSpacing = [series.spacing, series.spacing]
    made.SliceThickness = made.SpacingBetweenSlices = series.thickness
    made.PatientPosition = "HFS"
    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    corner = [-series.spacing * series.columns / 2, -series.spacing * series.rows / 2]
    made.ImagePositionPatient = [*corner, series.thickness * index]
    made.SliceLocation = series.thickness * index
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
    if series.modality == "MR":
        made.ScanningSequence, made.SequenceVariant, made.MRAcquisitionType = "GR", "SP", "3D"
        made.RepetitionTime, made.EchoTime, made.FlipAngle, made.MagneticFieldStrength = 2300, 2.98, 9, 3
    else:
        made.RescaleSlope, made.RescaleIntercept = 1, 0
    made.PixelData = image.tobytes()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    name = f"{made.StudyInstanceUID}-{series.number}-{index + 1}-{_base36(made.SOPInstanceUID)}.dcm"
    return name, out.getvalue()


def _base36(text: str) -> str:
    value, digits = zlib.crc32(text.encode()), ""
    while value:
        value, digit = divmod(value, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


def nifti(series: Series, *, packed: bool = True) -> bytes:
    """The same volume as NIfTI-1, in RAS+ order."""
    import numpy as np

    volume = np.transpose(pixels(series), (2, 1, 0))[::-1, ::-1]  # DICOM's LPS as RAS
    shape, steps = volume.shape, (series.spacing, series.spacing, series.thickness)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 512, 16)  # uint16
    struct.pack_into("<8f", header, 76, 1.0, *steps, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352.0)
    struct.pack_into("<f", header, 112, 1.0)
    header[123] = 10  # mm, s
    struct.pack_into("<hh", header, 252, 0, 1)
    for row, step in enumerate(steps):
        struct.pack_into("<4f", header, 280 + 16 * row, *[step if column == row else 0.0 for column in range(4)])
    header[344:348] = b"n+1\0"
    raw = bytes(header) + np.asfortranarray(volume).tobytes(order="F")
    return gzip.compress(raw, 1, mtime=0) if packed else raw


def sidecar(series: Series) -> bytes:
    """The JSON beside a NIfTI."""
    fields = {"Modality": series.modality, "SeriesDescription": series.description, "RepetitionTime": 2.3}
    return json.dumps(fields, indent=2).encode() + b"\n"


def snapshot(series: Series) -> bytes:
    """The middle slice as a PNG."""
    import numpy as np

    image = (pixels(series)[series.slices // 2] // 4).clip(0, 255).astype(np.uint8)
    rows, columns = image.shape
    lines = b"".join(b"\0" + image[row].tobytes() for row in range(rows))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
