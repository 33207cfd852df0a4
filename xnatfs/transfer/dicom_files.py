"""Find the DICOM objects in a folder, a zip or a tar, by the content of the files, not by their names."""

import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from xnatfs.common.errors import ConfigError
from xnatfs.transfer.dicom_uids import HEAD_BYTES, read_uids

TAGS = ["SOPInstanceUID", "StudyInstanceUID"]
# The SOP class of a DICOMDIR, which is a table of contents of the files around it, and no image.
DIRECTORY = "1.2.840.10008.1.3.10"


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
class Found:
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


def find(path: Path) -> Found:
    """Find all that is below a folder, in an archive or in one file. Raises ConfigError if it cannot be read."""
    found = Found()
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


def _members(path: Path, found: Found) -> Iterator[_Member]:
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
    for directory, names, files in os.walk(path, onerror=_raise):
        names.sort()
        for name in sorted(files):
            place = Path(directory, name)
            if stat.S_ISREG(place.stat().st_mode):
                yield _file(place, place.relative_to(path).as_posix())


def _raise(error: OSError) -> None:
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
        data = os.pread(self._file.fileno(), length, self._begin + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _sort(member: _Member, found: Found, instances: set[str]) -> None:
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
        found.broken.append((member.name, "it does not say which instance of which study it is"))
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
