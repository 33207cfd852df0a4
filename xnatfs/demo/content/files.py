"""Answer requests for lists of resources and files, for catalogues and for downloads."""

import re
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import unquote, unquote_plus
from xml.sax.saxutils import quoteattr

from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Found
from xnatfs.demo.rest.tables import XML, Query, Rows, negotiated, stored, table
from xnatfs.demo.server.releases import XNAT_1_8, Release
from xnatfs.demo.server.reply import Failed, Reply, Slice, chunked, disposition

MEDIA_TYPES = {
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
RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


def list_resources(found: Found, query: Query, *, session_rows_blank: bool) -> Reply:
    """Reply with the list of resources. With `session_rows_blank`, those of the session itself have no `cat_id`."""
    rows = []
    for resource, home in found:
        own = home.category == "resources" and session_rows_blank
        rows.append(
            {
                "xnat_abstractresource_id": str(resource.id),
                "label": stored(resource.label),
                "element_name": "xnat:resourceCatalog",
                "category": home.category,
                "cat_id": "" if own else stored(home.cat_id),
                "cat_desc": ""
                if own or (session_rows_blank and home.category == "assessors")
                else stored(home.cat_desc),
                "file_count": str(len(resource.entries)),
                "file_size": str(resource.size()),
                "tags": "",
                "content": resource.content,
                "format": resource.format,
            }
        )
    return table(rows, query, title="Resources")


def catalogue(found: Found, query: Query) -> Reply:
    """Reply with the catalogue of one resource. XML is its only form."""
    negotiated(query, (XML,))
    if len(found) != 1:
        raise Failed(404, "Unable to find the specified resource")
    resource = found[0][0]
    entries = "".join(_catalogue_entry(entry) for entry in resource.listed())
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<cat:Catalog ID="{resource.id}" '
        f'xmlns:cat="http://nrg.wustl.edu/catalog"><cat:entries>{entries}</cat:entries></cat:Catalog>'
    )
    return chunked(body.encode("utf-8", "replace"), XML)


def _catalogue_entry(entry: Entry) -> str:
    said = {
        "URI": entry.path,
        "ID": entry.path,
        "name": entry.path.rpartition("/")[2],
        "digest": entry.digest,
        "format": entry.format,
        "content": entry.note,
        "createdTime": "2024-01-02 03:04:05.678",
        "createdBy": "admin",
    }
    attributes = "".join(f" {key}={quoteattr(value)}" for key, value in said.items() if value)
    size = f'<cat:metaField name="SIZE">{entry.size}</cat:metaField>' if entry.size else ""
    return f"<cat:entry{attributes}><cat:metaFields>{size}</cat:metaFields></cat:entry>"


def list_files(found: Found, query: Query, *, single_base: str, context: str, digests: bool, folder: str = "") -> Reply:
    """Reply with the list of catalogue entries.

    Args:
        found: The resources, each with its item.
        query: The query, which may filter the entries and selects the form of the list.
        single_base: The start of the URIs if there is a single resource, as the request addressed its parent;
            URIs of several resources are canonical.
        context: The context path of the server.
        digests: Whether the site states digests.
        folder: The start of the paths to list, with a final slash; "" for all.

    Raises:
        Failed: The catalogue of a resource cannot be read.
    """
    if any(resource.broken for resource, _ in found):
        raise Failed(404, "Unable to find file.", empty=True)
    rows: Rows = []
    for resource, home in found:
        base = single_base if single_base and len(found) == 1 else home.base()
        for entry in resource.listed():
            hidden = entry.path.endswith("_catalog.xml") and not query.release.lists_catalogs
            if not entry.path.startswith(folder) or hidden:
                continue
            if query.get("recursive") == "false" and "/" not in entry.path[len(folder) :]:
                continue  # the server's test is inverted
            if not _has(query, "file_format", entry.format) or not _has(query, "file_content", entry.note):
                continue
            rows.append(
                {
                    "Name": entry.path.rpartition("/")[2],
                    "Size": entry.size,
                    "URI": f"{base}/resources/{resource.id}/files/{entry.path}",
                    "collection": stored(resource.label),
                    "file_tags": entry.tags,
                    "file_format": entry.format,
                    "file_content": entry.note,
                    "cat_ID": str(resource.id),
                    "digest": entry.digest if digests else "",
                }
            )
    if not query.release.lists_digests:
        for row in rows:
            del row["digest"]
    if "locator" in query:
        name = query["locator"]
        for row in rows:
            row[name] = "/archive/" + row.pop("URI").partition("/files/")[2]
    return table(rows, query, title="Files", Columns=[{"key": "URI", "serverRoot": context}], total=False, ordered=True)


def find_entry(found: Found, path: str, release: Release = XNAT_1_8) -> Entry:
    """Find the entry for a path, in the first resource only.

    An entry whose path equals the undecoded path takes precedence. Raises Failed if there is none.
    """
    if not found:
        raise Failed(404, "Unable to find catalog entry for given uri.", empty=True)
    resource = found[0][0]
    if resource.broken:
        raise Failed(404, "Unable to find file.", empty=True)
    blanks = "%20" in path or "%2B" in path
    candidates = [unquote_plus(path)] if blanks and release.decodes_blanks_only else [path, unquote(path)]
    for candidate in candidates:
        for entry in resource.entries:
            if entry.path == candidate:
                return entry
    raise Failed(404, "Unable to find catalog entry for given uri.", empty=True)


def by_index(found: Found, index: str, *, single: bool, query: Query) -> Entry:
    """Return the file at a position, from 0, of a listing.

    Args:
        found: The resources, each with its item.
        index: The position, as the query has it.
        single: The request addressed one resource: the server then requires a filter, too.
        query: The query with its filters.

    Raises:
        Failed: There is no such file.
    """
    if single and not query.keys() & {"file_format", "file_content"}:
        raise Failed(404, "index")
    entries = [entry for resource, _ in found for entry in resource.listed()]
    entries = [entry for entry in entries if _has(query, "file_format", entry.format)]
    entries = [entry for entry in entries if _has(query, "file_content", entry.note)]
    if not index.isdigit() or int(index) >= len(entries):
        raise Failed(404, "Unable to find file.", empty=True)
    return entries[int(index)]


def _has(query: Query, name: str, value: str) -> bool:
    return name not in query or (value or "NULL") in query.every(name)


def download(entry: Entry, headers: dict[str, str], query: Query, *, ranges: bool) -> Reply:
    """Reply with a file, or with a range of it.

    Args:
        entry: The catalogue entry of the file.
        headers: The request's headers, with lower-case names.
        query: The request's query.
        ranges: Whether the site serves ranges.

    Raises:
        Failed: The file is lost, or the request is for several ranges.
    """
    if entry.lost or entry.content is None:
        if query.get("accept-not-found") == "true":
            return Reply(204)
        raise Failed(404, "Unable to find file.", empty=True)
    name = entry.path.rpartition("/")[2]
    size = entry.length()
    kind = MEDIA_TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream")
    sent = {
        "Last-Modified": formatdate(entry.modified, usegmt=True),
        "Cache-Control": "must-revalidate",
    }
    if query.release.names_files:
        sent["Content-Disposition"] = disposition(name)
    if _not_modified(entry, headers):
        return Reply(304, b"", kind, {"Cache-Control": sent["Cache-Control"]})
    wanted = headers.get("range", "")
    if ranges and wanted:
        return _ranged(entry, wanted, size, kind, sent)
    return Reply(200, Slice(entry.content, 0, size), kind, sent)


def _not_modified(entry: Entry, headers: dict[str, str]) -> bool:
    try:
        return parsedate_to_datetime(headers["if-modified-since"]).timestamp() >= int(entry.modified)
    except (KeyError, ValueError, TypeError):
        return False


def _ranged(entry: Entry, wanted: str, size: int, kind: str, sent: dict[str, str]) -> Reply:
    """Answer a range request.

    Neither end is clamped: the headers promise the requested length, and the connection closes early.
    """
    assert entry.content is not None
    whole = Slice(entry.content, 0, size)
    if not wanted.startswith("bytes="):
        return Reply(200, whole, kind, sent)
    if "," in wanted:
        raise Failed(501, "Multiple ranges are not supported")
    match = RANGE.match(wanted)
    if not match or match[0] == "bytes=-":
        return Reply(500, whole, kind, sent)
    if not match[1]:
        first, last = size - int(match[2]), size - 1
    else:
        first, last = int(match[1]), int(match[2] or -1)
    if match[1] and last < first:  # the range has no end, or one before its start
        last = size - 1
    sent["Content-Range"] = f"bytes {first}-{last}/{size}"
    if last + 1 < first:  # the range starts after the end of the file: no length can be stated
        return Reply(206, iter(()), kind, sent)
    return Reply(206, Slice(entry.content, max(0, first), last - first + 1), kind, sent)


def unquoted(path: str) -> str:
    return unquote_plus(path) if "%20" in path or "%2B" in path else unquote(path)
