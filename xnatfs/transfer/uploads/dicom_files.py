"""Find the DICOM objects in a folder, a zip or a tar, by the content of the files, not by their names.

An upload needs three UIDs of each. pydicom takes 0.16 s to import and 0.2 ms a file, most of it for other elements; so
the usual encodings are read here, in 0.02 ms, and what is encoded in any other way, or damaged, is left to pydicom.
"""

import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from xnatfs.common.errors import ConfigError

TAGS = ["SOPInstanceUID", "StudyInstanceUID"]
# The SOP class of a DICOMDIR, which is a table of contents of the files around it, and no image.
DIRECTORY = "1.2.840.10008.1.3.10"

# Bytes of a file that are read: a header of one image reaches its UIDs within some 2 KB, more with private elements.
HEAD_BYTES = 16 * 1024
PREAMBLE_BYTES = 132  # with the letters DICM

SOP_CLASS, TRANSFER_SYNTAX, INSTANCE, STUDY = 0x0002_0002, 0x0002_0010, 0x0008_0018, 0x0020_000D
ITEM_END, SEQUENCE_END = 0xFFFE_E00D, 0xFFFE_E0DD
UID = re.compile(rb"[0-9.]+")
META_GROUP, DELIMITERS_GROUP = 0x0002, 0xFFFE
UNDEFINED_LENGTH = 0xFFFF_FFFF
IMPLICIT_SYNTAX = "1.2.840.10008.1.2"
# Deflated, and explicit in big-endian order.
OTHER_SYNTAXES = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
# Value representations whose length has two bytes, and four (PS3.5, 7.1.2). UN may hold anything in another encoding.
SHORT_LENGTHS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG_LENGTHS = frozenset(b"OB OD OF OL OV OW SQ SV UC UR UT UV".split())


@dataclass(frozen=True, slots=True)
class Image:
    """One DICOM object. `instance` and `study` are its SOP and Study Instance UIDs."""

    name: str
    size: int
    modified: float
    instance: str
    study: str
    open: Callable[[], BinaryIO]


@dataclass
class DicomFiles:
    """Contents of a folder or an archive."""

    images: list[Image] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # no DICOM objects; they are not sent
    copies: list[str] = field(default_factory=list)  # further files of instances that are among the images
    broken: list[tuple[str, str]] = field(default_factory=list)  # DICOM that cannot be read, and why
    ordered: bool = False  # whether only reading one after the other, in this order, is efficient

    @property
    def size(self) -> int:
        return sum(image.size for image in self.images)


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of any content."""

    name: str
    size: int
    modified: float
    open: Callable[[], BinaryIO]


def find(path: Path) -> DicomFiles:
    """Find all that is below a folder, in an archive or in one file. Raises ConfigError if it cannot be read."""
    found = DicomFiles()
    instances: set[str] = set()
    try:
        for member in _members(path, found):
            _sort(member, found, instances)
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror or error}") from None
    # zipfile raises RuntimeError for members that are encrypted, or compressed in a way that it does not know.
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
        ValueError,
    ) as error:
        raise ConfigError(f"{path} is not a whole archive: {error}") from None
    return found


def _members(path: Path, found: DicomFiles) -> Iterator[_Member]:
    if path.is_dir():
        return _in_folder(path)
    with open(path, "rb") as file:
        compressed = file.read(4)[:3] in (b"\x1f\x8b\x08", b"BZh", b"\xfd7z")
    if zipfile.is_zipfile(path) and not _is_dicom(path):
        return _in_zip(path)
    if not _is_dicom(path) and tarfile.is_tarfile(path):
        found.ordered = compressed
        return _in_compressed_tar(path) if compressed else _in_tar(path)
    return iter([_file(path, path.name)])


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _in_folder(path: Path) -> Iterator[_Member]:
    for directory, names, files in os.walk(path, onerror=raise_error):
        names.sort()
        for name in sorted(files):
            place = Path(directory, name)
            if stat.S_ISREG(place.stat().st_mode):
                yield _file(place, place.relative_to(path).as_posix())


def raise_error(error: OSError) -> None:
    """Raise an error of `os.walk`, which passes over folders that it cannot read unless it is given this."""
    raise error


def _file(path: Path, name: str) -> _Member:
    status = path.stat()
    return _Member(name, status.st_size, status.st_mtime, lambda: cast(BinaryIO, open(path, "rb")))


def _in_zip(path: Path) -> Iterator[_Member]:
    archive = zipfile.ZipFile(path)  # open as long as its members may be read: until the process ends
    modified = path.stat().st_mtime
    for info in archive.infolist():
        if not info.is_dir():
            yield _Member(info.filename, info.file_size, modified, lambda i=info: cast(BinaryIO, archive.open(i)))  # type: ignore[misc]


def _in_tar(path: Path) -> Iterator[_Member]:
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            if info.isreg():
                begin = _section(path, info.offset_data, info.size)
                yield _Member(info.name, info.size, info.mtime, begin)


def _section(path: Path, offset: int, size: int) -> Callable[[], BinaryIO]:
    return lambda: cast(BinaryIO, io.BufferedReader(_Section(path, offset, size)))


def _in_compressed_tar(path: Path) -> Iterator[_Member]:
    archive = tarfile.open(path)  # noqa: SIM115  open as long as its members may be read
    for info in archive:
        if info.isreg():
            yield _Member(info.name, info.size, info.mtime, lambda i=info: cast(BinaryIO, archive.extractfile(i)))  # type: ignore[misc]


class _Section(io.RawIOBase):
    """A section of a file as a file; each has a position of its own, so that several can be read in parallel."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by close()
        self._begin, self._size, self._at = offset, size, 0
        self.name = str(path)  # an attribute that libraries expect of a file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        length = min(len(buffer), max(0, self._size - self._at))
        self._file.seek(self._begin + self._at)
        data = self._file.read(length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _sort(member: _Member, found: DicomFiles, instances: set[str]) -> None:
    """Add a file to the images, the others, the copies or the broken ones, by its content."""
    with member.open() as file:
        head = file.read(HEAD_BYTES)
        if head[128:132] != b"DICM":
            found.others.append(member.name)
            return
        try:
            instance, study, kind = read_uids(head) or _identity(file)
        except Exception as error:  # whatever a parser raises for a damaged file, it cannot be sent
            found.broken.append((member.name, str(error) or type(error).__name__))
            return
    if kind == DIRECTORY:
        found.others.append(member.name)
    elif not instance or not study:
        found.broken.append((member.name, "it does not state which instance of which study it is"))
    elif instance in instances:
        found.copies.append(member.name)
    else:
        instances.add(instance)
        found.images.append(Image(member.name, member.size, member.modified, instance, study, member.open))


def _identity(file: BinaryIO) -> tuple[str, str, str]:
    """Return the SOP and Study Instance UIDs of an open file, and its SOP class UID; '' for one that is missing."""
    import pydicom  # most uploads do without it

    file.seek(0)
    # Errors in other elements do not matter here.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS)
    instance, study = (str(header.get(tag) or "").strip() for tag in TAGS)
    return instance, study, str(header.file_meta.get("MediaStorageSOPClassUID") or "")


# -- the UIDs of the usual encodings -----------------------------------------------------------------------------


class _UnusualEncoding(Exception):
    """The header is encoded in a way that is not read here, or damaged."""


def read_uids(head: bytes) -> tuple[str, str, str] | None:
    """Return the SOP Instance, Study Instance and SOP Class UIDs of an object; None where a library is to read them.

    Args:
        head: The first HEAD_BYTES of its file, or all of it.
    """
    found: dict[int, str] = {}
    try:
        at = PREAMBLE_BYTES
        while struct.unpack_from("<H", head, at)[0] == META_GROUP:
            _, at = _read_element(head, at, found, is_implicit=False)
        if found[TRANSFER_SYNTAX] in OTHER_SYNTAXES:
            return None
        is_implicit, tag = found[TRANSFER_SYNTAX] == IMPLICIT_SYNTAX, 0
        while tag < STUDY:
            tag, at = _read_element(head, at, found, is_implicit=is_implicit)
        return found[INSTANCE], found[STUDY], found[SOP_CLASS]
    except (_UnusualEncoding, struct.error, KeyError, RecursionError):
        return None


def _read_element(head: bytes, at: int, found: dict[int, str], *, is_implicit: bool) -> tuple[int, int]:
    """Read the element at a place, keep its value if it is wanted, and return its tag and where it ends."""
    tag, begin, length = _element(head, at, is_implicit)
    end = _end(head, begin, length, is_implicit)
    if tag in (SOP_CLASS, TRANSFER_SYNTAX, INSTANCE, STUDY):
        uid = head[begin:end].rstrip(b"\0 ")
        if end > len(head) or not UID.fullmatch(uid):
            raise _UnusualEncoding
        found[tag] = uid.decode()
    return tag, end


def _element(head: bytes, at: int, is_implicit: bool) -> tuple[int, int, int]:
    """Return the tag of the element at a place, where its value begins, and the value's length in bytes."""
    group, number = struct.unpack_from("<HH", head, at)
    representation = head[at + 4 : at + 6]
    if is_implicit or group == DELIMITERS_GROUP:
        begin, (length,) = at + 8, struct.unpack_from("<I", head, at + 4)
    elif representation in SHORT_LENGTHS:
        begin, (length,) = at + 8, struct.unpack_from("<H", head, at + 6)
    elif representation in LONG_LENGTHS:
        begin, (length,) = at + 12, struct.unpack_from("<I", head, at + 8)
    else:
        raise _UnusualEncoding
    return group << 16 | number, begin, length


def _end(head: bytes, begin: int, length: int, is_implicit: bool) -> int:
    """Return where a value ends. A sequence, or an item, of undefined length ends with a delimiter."""
    if length != UNDEFINED_LENGTH:
        return begin + length
    while True:
        tag, begin, length = _element(head, begin, is_implicit)
        if tag in (ITEM_END, SEQUENCE_END):
            return begin
        begin = _end(head, begin, length, is_implicit)
