"""Upload files to a resource unchanged: without an import, so without anonymization.

A single file whose name needs no escaping in a URL is sent as it is. Several files, and other names, are sent in a tar
or zip that the server unpacks, which is one entry in the catalogue's history and keeps every name. The server answers
200 even if it stores nothing, so that only a listing afterwards shows what it has stored.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import quote

from xnatfs.common.errors import BadReply, ConfigError, Conflict, Denied, NotFound, Uncertain
from xnatfs.common.sanitize import loads
from xnatfs.common.tasks import gather
from xnatfs.rest.address import Address
from xnatfs.rest.client import Xnat
from xnatfs.rest.file_table import Catalogues, file_rows
from xnatfs.rest.models import FileRow
from xnatfs.rest.prearchive import failure
from xnatfs.transfer.copying import Progress
from xnatfs.transfer.local_files import md5
from xnatfs.transfer.uploads.dicom_files import raise_error
from xnatfs.transfer.uploads.request_bodies import UPLOAD_BATCH_BYTES, Part, Sending, as_file, as_tar, with_length
from xnatfs.tree.file_source import FileSource

# Sites that require a reason for every change refuse a change without one.
REASON = {"event_reason": "upload"}


@dataclass(frozen=True, slots=True)
class Local:
    """A local file and its name in the resource, with '/' between folders."""

    path: Path
    name: str
    size: int
    digest: str


@dataclass
class UploadReport:
    """Result of an upload. `files` counts those that the server has afterwards, verified."""

    files: int = 0
    size: int = 0
    sent: int = 0  # of these, by this run
    up_to_date: int = 0
    unverified: int = 0  # no digest on the server
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ResourceTarget:
    """The resource to upload to.

    Attributes:
        xnat: The client of its server.
        item: The path of its item in the REST API, such as `("experiments", accession)`.
        label: Its label.
        note: Called with a line before a comparison of bytes, which may take long.
    """

    xnat: Xnat
    item: Sequence[str]
    label: str
    note: Callable[[str], None] = lambda text: None

    @property
    def name(self) -> str:
        """Return its name in an error."""
        return f"resource {self.label} of {'/'.join(self.item)}"

    @property
    def path(self) -> str:
        """Return the path of its files on the server."""
        return "/data/" + "/".join(map(quote, (*self.item, "resources"))) + f"/{quote(self.label, safe='')}/files"


def find(path: Path) -> list[Local]:
    """List the files to send: a file under its own name, the files below a folder under their paths in it.

    Raises ConfigError if a file cannot be read.
    """
    places = {path.name: path}
    if path.is_dir():
        places = {each.relative_to(path).as_posix(): each for each in sorted(_below(path)) if each.is_file()}
    for name in places:
        if name.endswith("_catalog.xml"):
            raise ConfigError(f"{places[name]}: XNAT keeps names that end in _catalog.xml for itself")
    return [_local(path, name) for name, path in places.items()]


def _below(folder: Path) -> Iterator[Path]:
    """List all that is below a folder. Raises ConfigError if a folder is unreadable: its files would be left out."""
    try:
        for directory, _, names in os.walk(folder, onerror=raise_error):
            yield from (Path(directory, name) for name in names)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None


def _local(path: Path, name: str) -> Local:
    try:
        return Local(path, name, path.stat().st_size, md5(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


async def upload(
    target: ResourceTarget, files: Sequence[Local], *, overwrite: bool, progress: Progress
) -> UploadReport:
    """Send the files that the server does not hold yet, and verify them by its listing afterwards.

    Args:
        target: The resource.
        files: What `find` has listed.
        overwrite: Replace files of the same names that have other bytes.
        progress: Receives the files and bytes that are sent.

    Returns:
        Counts of the files that the server has, and those that it lacks or holds with other bytes.

    Raises:
        Conflict: Before anything is sent, if files of these names have other bytes and `overwrite` is false.
        Denied: The server accepted the files and stored none of them.
        Uncertain: The server may have stored a batch that it did not confirm.
    """
    there = await _listed(target)
    held = await _held(target, files, there)
    todo = [file for file in files if file.name not in held]
    other = [file.name for file in todo if file.name in there]
    if other and not overwrite:
        names = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        hint = "--overwrite replaces them"
        text = f"{target.name} has other files of these names: {names}; nothing was sent ({hint})"
        raise Conflict(text, status=409, url=target.xnat.url, hint=hint)
    progress.begin(len(todo), sum(file.size for file in todo))
    query = {**REASON, **({"overwrite": "true"} if overwrite else {})}
    for batch in _batches(todo):
        await _send(target, query, batch, progress)
    return await _check(target, files, todo, there)


async def _listed(target: ResourceTarget) -> dict[str, FileRow]:
    """Return the files of the resource by path; none if it does not exist.

    Raises Conflict if the label is the number of another resource, because a request for it means that one as well.
    """
    xnat, label = target.xnat, target.label
    try:
        rows = await xnat.rows(*target.item, "resources", label, "files")
    except NotFound:
        return {}
    if label.isdigit() and (
        others := [row for row in rows if row.has("collection") and row.text("collection") != label]
    ):
        text = f"XNAT takes the label {label} for the number of resource {others[0].text('collection')}"
        hint = "choose a label with a letter in it"
        raise Conflict(f"{text}, so nothing can be sent there ({hint})", status=409, url=xnat.url, hint=hint)
    return {row.path: row for row in file_rows(rows)}


async def _held(target: ResourceTarget, files: Sequence[Local], there: Mapping[str, FileRow]) -> frozenset[str]:
    """Return the names of the files that the server holds with these bytes. Files without a digest are fetched."""
    held: set[str] = set()
    groups, where = Catalogues.from_rows(there.values()).groups, tuple(target.item)

    async def compare(file: Local, row: FileRow) -> None:
        address = Address(where, where, row.resource_id, target.label, archived_at=where)
        with suppress(NotFound, Denied, BadReply):  # not known to be the same, so it is sent
            if await _fetch_md5(FileSource(target.xnat, address, row, groups)) == file.digest:
                held.add(file.name)

    alike = [(file, there[file.name]) for file in files if file.name in there]
    alike = [(file, row) for file, row in alike if row.size in (file.size, None)]
    held.update(file.name for file, row in alike if row.digest == file.digest)
    unknown = [(file, row) for file, row in alike if not row.digest]
    if unknown:
        size = sum(file.size for file, _ in unknown) / 1e6
        text = f"Comparing {len(unknown)} files by their bytes ({size:.1f} MB): the server states no digest of them"
        target.note(text)
    await gather(*(partial(compare, file, row) for file, row in unknown))  # the client limits the requests in flight
    return frozenset(held)


async def _fetch_md5(source: FileSource) -> str:
    found = hashlib.md5(usedforsecurity=False)
    async with source.open(0) as body:
        async for chunk in body.chunks:
            found.update(chunk)
    return found.hexdigest()


def _plain(file: Local) -> bool:
    """Return whether a file can be sent as it is: it is not empty, and its name is the same in a URL."""
    return bool(file.size) and quote(file.name) == file.name and not re.search(r"(^|/)\.{1,2}(/|$)|//", file.name)


def _batches(files: Sequence[Local]) -> list[list[Local]]:
    made: list[list[Local]] = []
    size = 0
    for file in files:
        if not made or size + file.size > UPLOAD_BATCH_BYTES:
            made.append([])
            size = 0
        made[-1].append(file)
        size += file.size
    return made


async def _send(target: ResourceTarget, query: dict[str, str], batch: Sequence[Local], progress: Progress) -> None:
    xnat, where = target.xnat, target.name
    parts = [Part(file.name, file.size, _opener(file.path)) for file in batch]
    if len(batch) == 1 and _plain(batch[0]):
        url, params = f"{target.path}/{batch[0].name}", {**query, "inbody": "true"}
        body: Sending = as_file(parts[0], "application/octet-stream", progress)
    else:
        # Old servers decode each byte of a name in a tar as a character; in a zip they decode UTF-8.
        plain = all(file.name.isascii() for file in batch)
        url = f"{target.path}/upload.{'tar' if plain else 'zip'}"
        params = {**query, "inbody": "true", "extract": "true"}
        body = as_tar(parts, progress) if plain else await with_length(parts, progress)
    try:
        answer = await xnat.change("PUT", url, params, body=body.pieces, headers=dict(body.headers))
        if answer.status in (500, 502, 504):
            text = f"{xnat.url} answers {answer.status}, and may have stored it ({answer.message()})"
            raise Uncertain(text, status=answer.status)
    except Uncertain as error:
        text = f"sending to {where}: {error}; the same command sends what is missing"
        raise Uncertain(text, status=error.status, url=xnat.url) from error
    if not answer.ok:
        raise failure(xnat, answer, f"sending to {where}")
    if duplicates := _duplicates(answer.text):
        names = ", ".join(duplicates[:3])
        raise Conflict(f"{where} had these files already: {names} (--overwrite replaces them)", url=xnat.url)
    for file in batch:
        progress.done(PurePosixPath(file.name))


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: cast(BinaryIO, open(path, "rb"))


def _duplicates(text: str) -> list[str]:
    """Return the files that the server did not store because they exist: only the body of its 200 reports them."""
    try:
        found = loads(text)["duplicates"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in found] if isinstance(found, list) else []


async def _check(
    target: ResourceTarget, files: Sequence[Local], todo: Sequence[Local], before: dict[str, FileRow]
) -> UploadReport:
    """Compare the server's listing now with the files that it should hold.

    Name and length of a replaced file may be those of the old one: without a digest its bytes are compared.
    """
    report = UploadReport(up_to_date=len(files) - len(todo))
    after = await _listed(target) if todo else before
    sent, replaced = frozenset(todo), frozenset(file for file in todo if file.name in before)
    held = await _held(target, list(replaced), after)
    for file in files:
        row = after.get(file.name)
        if row is None:
            report.failed.append((file.name, "was sent, and is not there"))
        elif row.digest and row.digest != file.digest:
            report.failed.append((file.name, "differs from what was sent: its digest is another one"))
        elif row.size not in (file.size, None):
            report.failed.append((file.name, f"differs from what was sent: it has {row.size} bytes, not {file.size}"))
        elif file in replaced and file.name not in held:
            report.failed.append((file.name, "differs from what was sent, at the same length"))
        else:
            report.files += 1
            report.sent += file in sent
            report.size += file.size
            report.unverified += not row.digest and file in sent - replaced
    unchanged = all(after.get(file.name) == before.get(file.name) for file in todo)
    if todo and report.files == report.up_to_date and unchanged:
        text = f"{target.name}: the server took {len(todo)} files and stored none of them"
        raise Denied(f"{text}; that is what it does where your account may not change the session", url=target.xnat.url)
    return report
