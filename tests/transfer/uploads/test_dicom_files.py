"""Test that the UIDs read from the first bytes of a file are those that pydicom reads, or none."""

import io
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from xnatfs.transfer.uploads.dicom_files import HEAD_BYTES, _identity, read_uids

UIDS = ("1.2.3.7", "1.2.3", "1.2.840.10008.5.1.4.1.1.4")


def written(syntax: UID = ExplicitVRLittleEndian, undefined: bool = False, **elements: object) -> bytes:
    """Return a DICOM file; `undefined`: with sequences in sequences, of undefined length."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, UID(UIDS[2])
    meta.MediaStorageSOPInstanceUID = UID(UIDS[0])
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    image.SOPInstanceUID, image.StudyInstanceUID, image.SeriesInstanceUID = UID(UIDS[0]), UID(UIDS[1]), UID("1.2.9")
    for name, value in elements.items():
        setattr(image, name, value)
    inner, outer = Dataset(), Dataset()
    inner.ReferencedSOPInstanceUID, inner.StudyInstanceUID = UID("1.2.8"), UID("1.2.7")
    outer.ReferencedImageSequence = Sequence([inner, inner])
    image.ReferencedStudySequence = Sequence([outer, inner])
    for sequence in (image["ReferencedStudySequence"], outer["ReferencedImageSequence"]):
        sequence.is_undefined_length = undefined
    inner.is_undefined_length_sequence_item = outer.is_undefined_length_sequence_item = undefined
    made = io.BytesIO()
    image.save_as(made, enforce_file_format=True)
    return made.getvalue()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_the_usual_encodings_are_read(syntax, undefined):
    made = written(syntax, undefined)
    assert (b"\xfe\xff\xdd\xe0" in made) is undefined
    assert read_uids(made[:HEAD_BYTES]) == UIDS


def test_what_is_unusual_is_left_to_the_library():
    assert read_uids(written(DeflatedExplicitVRLittleEndian)) is None
    assert read_uids(written(SOPInstanceUID=[UID("1.2"), UID("1.3")])) is None
    private = b"\x09\x00\x10\x10UN\0\0" + HEAD_BYTES.to_bytes(4, "little") + bytes(HEAD_BYTES)
    made = written()
    study = made.index(b"\x20\x00\x0d\x00")
    assert read_uids((made[:study] + private + made[study:])[:HEAD_BYTES]) is None
    assert read_uids(b"\0" * 128 + b"DICM") is None
    nested = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 2000
    assert read_uids(made[: made.index(b"\x08\x00\x18\x00")] + nested) is None


def test_a_file_that_is_cut_off_has_its_uids_or_is_left_to_the_library():
    for undefined in (False, True):
        made = written(ImplicitVRLittleEndian, undefined)
        assert {read_uids(made[:length]) for length in range(132, len(made))} == {None, UIDS}


def test_the_files_that_pydicom_is_tested_with_are_read_as_it_reads_them():
    found = 0
    for path in Path(pydicom.__file__).parent.rglob("test_files/*.dcm"):
        head = path.read_bytes()[:HEAD_BYTES]
        if head[128:132] == b"DICM" and (uids := read_uids(head)):
            with open(path, "rb") as file:
                assert uids == _identity(file), path.name
            found += 1
    assert found >= 20
