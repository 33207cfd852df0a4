"""Resources and files: lists, downloads, archives."""

import io
import re
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from email.utils import formatdate, parsedate_to_datetime
from html import escape
from typing import IO, Any, cast
from urllib.parse import unquote, unquote_plus
from xml.sax.saxutils import quoteattr

from xnatfs.demo.archive import Entry, Home, Resource
from xnatfs.demo.reply import Failed, Reply, Slice, chunked
from xnatfs.demo.tables import Query, Rows, table

Found = Sequence[tuple[Resource, Home]]

TYPES = {
    "bmp": "image/bmp",
    "gif": "image/gif",
    "html": "text/html",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
    "tiff": "image/tiff",
    "txt": "text/plain",
    "xml": "text/xml",
}
ARCHIVES = {
    "zip": "application/zip",
    "tar": "application/x-tar",
    "tar.gz": "application/x-gtar",
    "application/zip": "application/zip",
    "application/x-gtar": "application/x-gtar",
    "application/x-tar": "application/x-tar",
}
RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


def list_resources(found: Found, query: Query, *, session_rows_blank: bool) -> Reply:
    rows = []
    for resource, home in found:
        own = home.category == "resources" and session_rows_blank
        rows.append(
            {
                "xnat_abstractresource_id": str(resource.id),
                "label": escape(resource.label),
                "element_name": "xnat:resourceCatalog",
                "category": home.category,
                "cat_id": "" if own else home.cat_id,
                "cat_desc": ""
                if own or (session_rows_blank and home.category == "assessors")
                else escape(home.cat_desc),
                "file_count": str(len(resource.entries)),
                "file_size": str(sum(int(entry.size or 0) for entry in resource.entries)),
                "tags": "",
                "content": resource.content,
                "format": resource.format,
            }
        )
    return table(rows, query, title="Resources")


def catalogue(found: Found) -> Reply:
    """The catalogue of one resource, as XML."""
    if len(found) != 1:
        raise Failed(404, "Unable to find the specified resource")
    resource = found[0][0]
    entries = "".join(
        f"<cat:entry URI={quoteattr(e.path)} name={quoteattr(e.path.rpartition('/')[2])} digest={quoteattr(e.digest)}/>"
        for e in resource.entries
    )
    body = f'<cat:Catalog ID="{resource.id}" xmlns:cat="http://nrg.wustl.edu/catalog"><cat:entries>{entries}</cat:entries></cat:Catalog>'
    return chunked(body.encode("utf-8", "surrogatepass"), "text/xml;charset=UTF-8")


def list_files(found: Found, query: Query, *, single_base: str, context: str, digests: bool, folder: str = "") -> Reply:
    """Catalogue entries. One resource's URIs begin as its parent was addressed, `single_base`; else canonically."""
    if any(resource.broken for resource, _ in found):
        raise Failed(404, "Unable to find file.", empty=True)
    rows: Rows = []
    for resource, home in found:
        base = single_base if single_base and len(found) == 1 else home.base()
        for entry in resource.entries:
            if folder and not entry.path.startswith(folder):
                continue
            if query.get("recursive") == "false" and "/" not in entry.path[len(folder) :]:
                continue  # the server has this the wrong way round
            rows.append(
                {
                    "Name": entry.path.rpartition("/")[2],
                    "Size": entry.size,
                    "URI": f"{base}/resources/{resource.id}/files/{entry.path}",
                    "collection": resource.label,
                    "file_tags": entry.tags,
                    "file_format": resource.format,
                    "file_content": resource.content,
                    "cat_ID": str(resource.id),
                    "digest": entry.digest if digests else "",
                }
            )
    for column in ("file_format", "file_content"):
        if column in query:
            wanted = "" if query[column] == "NULL" else query[column]
            rows = [row for row in rows if row[column] == wanted]
    if "locator" in query:
        name = query["locator"]
        for row in rows:
            row[name] = "/archive/" + row.pop("URI").partition("/files/")[2]
    return table(rows, query, title="Files", total=False, extra={"Columns": [{"key": "URI", "serverRoot": context}]})


def find_entry(found: Found, path: str) -> Entry:
    """The entry of a path, in the first resource only. Raises Failed."""
    if not found:
        raise Failed(404, "Unable to find catalog entry for given uri.")
    resource = found[0][0]
    if resource.broken:
        raise Failed(404, "Unable to find file.", empty=True)
    candidates = [unquote_plus(path)] if "%20" in path or "%2B" in path else [path, unquote(path)]
    for candidate in candidates:
        for entry in resource.entries:
            if entry.path == candidate:
                return entry
    raise Failed(404, "Unable to find catalog entry for given uri.")


def by_index(found: Found, index: str, *, single: bool, query: Query) -> Entry:
    """The n-th file of a listing. On one resource it works only together with a filter."""
    if single and not query.keys() & {"file_format", "file_content"}:
        raise Failed(404, "index")
    entries = [entry for resource, _ in found for entry in resource.entries]
    if not index.isdigit() or int(index) >= len(entries):
        raise Failed(404, "Unable to find file.", empty=True)
    return entries[int(index)]


def download(entry: Entry, headers: dict[str, str], query: Query, *, ranges: bool) -> Reply:
    """One file, whole or a range of it."""
    if entry.content is None:
        if query.get("accept-not-found") == "true":
            return Reply(204)
        raise Failed(404, "Unable to find file.", empty=True)
    name = entry.path.rpartition("/")[2]
    size = entry.length()
    kind = TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream")
    sent = {
        "Last-Modified": formatdate(entry.modified, usegmt=True),
        "Content-Disposition": disposition(name),
        "Cache-Control": "must-revalidate",
    }
    if _not_modified(entry, headers):
        return Reply(304, b"", kind, sent)
    wanted = headers.get("range", "")
    if ranges and wanted:
        return _ranged(entry, wanted, size, kind, sent)
    return Reply(200, Slice(entry.content, 0, size), kind, sent)


def disposition(name: str) -> str:
    """The header; a control character in a name must not end it."""
    safe = "".join("_" if character < " " or character == "\x7f" else character for character in name)
    return f'attachment; filename="{safe.encode("latin-1", "replace").decode("latin-1")}";'


def _not_modified(entry: Entry, headers: dict[str, str]) -> bool:
    try:
        return parsedate_to_datetime(headers["if-modified-since"]).timestamp() >= int(entry.modified)
    except (KeyError, ValueError, TypeError):
        return False


def _ranged(entry: Entry, wanted: str, size: int, kind: str, sent: dict[str, str]) -> Reply:
    """A range. Its end is not clamped: the headers promise what was asked for."""
    assert entry.content is not None
    if "," in wanted:
        raise Failed(501, "Multiple ranges are not supported")
    match = RANGE.match(wanted)
    if not match or match[0] == "bytes=-" or (match[1] and match[2] and int(match[2]) < int(match[1])):
        return Reply(200, Slice(entry.content, 0, size), kind, sent)
    if not match[1]:
        first, last = max(0, size - int(match[2])), size - 1
    else:
        first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    sent["Content-Range"] = f"bytes {first}-{last}/{size}"
    if last < first:  # begins after the end: no 416, but a reply that is good for nothing
        return Reply(206, iter(()), kind, sent)
    return Reply(206, Slice(entry.content, first, last - first + 1), kind, sent)


# -- archives ----------------------------------------------------------------------------------------------------


def archive(found: Found, query: Query, name: str, labels: dict[str, str], *, typed: bool, digests: bool) -> Reply:
    """All files of these resources as one archive, made while it is sent; lost files are left out."""
    form = query["format"]
    if any(resource.broken for resource, _ in found):
        raise Failed(404, "Unable to find file.", empty=True)
    members = [
        (_member_name(resource, home, entry, query.get("structure", ""), labels, typed), entry)
        for resource, home in found
        for entry in resource.entries
        if entry.content is not None
    ]
    if not members:
        raise Failed(404, "No files found")
    kind = ARCHIVES[form]
    ending = {"application/zip": "zip", "application/x-tar": "tar", "application/x-gtar": "tar.gz"}[kind]
    headers = {"Content-Disposition": disposition(f"{name}.{ending}")}
    body: Iterator[bytes]
    if ending == "zip":
        body = _zip(members)
    else:
        body = _tar(members)
        if ending == "tar.gz":
            body = _gzip(body)
    return Reply(200, body, kind, headers)


def _member_name(
    resource: Resource, home: Home, entry: Entry, structure: str, labels: dict[str, str], typed: bool
) -> str:
    label = resource.label or str(resource.id)
    top = labels.get(home.experiment.id if home.experiment else "", "") or "files"
    kind = re.sub(r"\W", "_", home.cat_desc.strip())
    if structure == "improved":
        if home.category == "resources":
            return f"resources/{label}/{entry.path}"
        safe = re.sub(r'[/\\:*?"<>|]', "_", f"{home.cat_id}_{home.cat_desc}" if typed else home.cat_id)
        return f"{home.category}/{safe}/{label}/{entry.path}"
    if home.category == "resources":
        part = ""
    elif home.category == "scans" and typed and kind and structure not in ("simplified", "legacy"):
        part = f"scans/{home.cat_id}-{kind}/"
    else:
        part = f"{home.category}/{home.cat_id}/"
    if structure == "simplified":
        return f"{top}/{part}{label}/{entry.path}"
    if structure == "legacy":
        return f"{top}/{part.upper() if home.category == 'scans' else 'RESOURCES/'}{label}/{entry.path}"
    return f"{top}/{part}resources/{label}/files/{entry.path}"


def _tar(members: list[tuple[str, Entry]]) -> Iterator[bytes]:
    for name, entry in members:
        info = tarfile.TarInfo(name.replace("\\", "/").encode("ascii", "replace").decode())
        info.size, info.mtime = entry.length(), entry.modified
        yield info.tobuf(tarfile.PAX_FORMAT)
        assert entry.content is not None
        yield from Slice(entry.content, 0, info.size).pieces()
        yield b"\0" * (-info.size % 512)
    yield b"\0" * 1024


class _Sink(io.RawIOBase):
    """What zipfile writes, to be taken away piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self.pieces.append(piece)
        self.at += len(piece)
        return len(piece)

    def taken(self) -> bytes:
        piece, self.pieces = b"".join(self.pieces), []
        return piece


def _zip(members: list[tuple[str, Entry]]) -> Iterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(cast(IO[bytes], sink), "w", zipfile.ZIP_STORED) as made:
        for name, entry in members:
            info = zipfile.ZipInfo(name, time.gmtime(entry.modified)[:6])
            assert entry.content is not None
            with made.open(info, "w") as member:
                for piece in Slice(entry.content, 0, entry.length()).pieces():
                    member.write(piece)
                    yield sink.taken()
    yield sink.taken()


def _gzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def unquoted(path: str) -> str:
    return unquote_plus(path) if "%20" in path or "%2B" in path else unquote(path)
