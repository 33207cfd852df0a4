"""Stream files as one archive: tar, tar.gz or zip, without the files that are lost (XNAT REST contract 9)."""

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from xml.sax.saxutils import escape, quoteattr

from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Archive, Found, Home, Resource
from xnatfs.demo.content.zips import Member, zipped
from xnatfs.demo.rest.tables import Query, stored, true
from xnatfs.demo.server.releases import Release
from xnatfs.demo.server.reply import Failed, Reply, Slice, chunked, disposition

ARCHIVES = {
    "zip": "application/zip",
    "tar": "application/x-tar",
    "tar.gz": "application/x-gtar",
    "application/zip": "application/zip",
    "application/x-gtar": "application/x-gtar",
    "application/x-tar": "application/x-tar",
}
ARCHIVE_EXTENSIONS = {"application/zip": "zip", "application/x-tar": "tar", "application/x-gtar": "tar.gz"}
BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE  # a tar is padded to whole records
UNSAFE = re.compile(r'[/\\:*?"<>|]')


@dataclass(frozen=True)
class Layout:
    """The naming of an archive's members."""

    archive: Archive
    name: str  # label of the session or subject, or ID of the project, that the archive holds
    structure: str = ""
    kind: str = "application/zip"
    typed: bool = False  # scans were addressed in the URL
    blank: bool = False  # all resources of a session were addressed
    above: tuple[bool, bool] = (False, False)  # whether names begin with the project, and with the subject
    parts: bool = True  # resources that were addressed by number are named with their scans

    def member(self, resource: Resource, home: Home, path: str) -> str:
        label = resource.label or str(resource.id)
        if self.structure == "improved":
            return f"{self._improved(home)}/{label}/{path}"
        if self.structure == "legacy":
            place = "RESOURCES" if home.category == "resources" else f"{home.category.upper()}/{home.cat_id}"
            return f"{self._top(home)}/{place}/{label}/{path}"
        name = f"{self._top(home)}{self._part(home)}/resources/{label}/files/{path}"
        # The server removes them from file paths, too.
        return name.replace("/resources", "").replace("/files", "") if self.structure == "simplified" else name

    def _top(self, home: Home) -> str:
        session = home.experiment
        if session is not None and session.session:  # an assessor, below its session
            session = self.archive.experiments[session.session]
        if session is None:
            return self.name
        above = (session.project, self.archive.subjects[session.subject].label)
        return "/".join([*(name for name, wanted in zip(above, self.above, strict=True) if wanted), session.label])

    def _part(self, home: Home) -> str:
        if home.category == "resources" or not (self.typed or self.blank or self.parts):
            return ""
        kind = re.sub(r"\W", "_", stored(home.cat_desc.strip()))
        suffix = f"-{kind}" if home.category == "scans" and self.typed and kind and not self.structure else ""
        return f"/{home.category}/{home.cat_id}{suffix}"

    def _improved(self, home: Home) -> str:
        """Return the folder of a member, without the session; a session's own resources have a blank description."""
        if not home.cat_id or (home.category == "resources" and self.blank):
            return home.category
        described = home.cat_id if self.kind == "application/x-tar" else f"{home.cat_id}_{home.cat_desc}"
        return f"{home.category}/{UNSAFE.sub('_', described)}"


def archive(found: Found, query: Query, layout: Layout) -> Reply:
    """Reply with all files of these resources as one archive. Raises Failed if there are none."""
    if any(resource.broken for resource, _ in found):
        raise Failed(404, "Unable to find file.", empty=True)
    members = [
        (layout.member(resource, home, entry.path), entry)
        for resource, home in found
        for entry in resource.listed()
        if not entry.lost
    ]
    if not members:
        raise Failed(404, "No files found")
    headers = {"Content-Disposition": disposition(f"{layout.name}.{ARCHIVE_EXTENSIONS[layout.kind]}")}
    body = _body(members, query, layout.kind)
    if layout.kind == "application/zip":
        return Reply(200, body, layout.kind, headers)
    fitting = list(takewhile(lambda member: _fits(member[0], query.release), members))
    if len(fitting) < len(members) and sum(_blocks(entry.length()) for _, entry in fitting) < RECORD:
        raise Failed(500, "An exception occured writing the response entity", empty=True)
    return Reply(200, body, layout.kind, headers)


def _fits(name: str, release: Release) -> bool:
    """Return true if a tar of this release can hold a member of this name. The first that does not fit ends the tar."""
    return not release.tar_name or len(name) <= release.tar_name


def _blocks(size: int) -> int:
    """Return the bytes that a member occupies in a tar, with its header."""
    return BLOCK + size - size % -BLOCK


def layout(archive: Archive, query: Query, name: str, *, typed: bool, blank: bool) -> Layout:
    """Return the layout that the query requests.

    Args:
        archive: The archive that holds the items.
        query: The query of the request.
        name: The name of the archive file, without its extension.
        typed: The URL addressed scans.
        blank: The request was for all resources of a session.
    """
    above = (true(query, "projectIncludedInPath"), true(query, "subjectIncludedInPath"))
    kind, parts = ARCHIVES.get(query["format"], ""), query.release.archive_parts
    return Layout(archive, name, query.get("structure", ""), kind, typed, blank, above, parts)


def manifest(found: Found, layout: Layout, url: str) -> Reply:
    """Reply with the URL of each file, and its name in an archive. `url` is that of the site."""
    entries = []
    for resource, home in found:
        for entry in resource.listed():
            name = layout.member(resource, home, entry.path)
            uri = quoteattr(f"{url}{home.base()}/resources/{resource.id}/files/{entry.path}")
            fields = {"RELATIVE_PATH": name, "SIZE": entry.size}
            said = "".join(
                f'<cat:metaField name="{key}">{escape(value)}</cat:metaField>' for key, value in fields.items()
            )
            entries.append(
                f"<cat:entry URI={uri} cachePath={quoteattr(name)}><cat:metaFields>{said}</cat:metaFields></cat:entry>"
            )
    catalogue = f'<cat:Catalog xmlns:cat="http://nrg.wustl.edu/catalog"><cat:entries>{"".join(entries)}</cat:entries>'
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{catalogue}</cat:Catalog>'
    reply = chunked(body.encode("utf-8", "replace"), "application/xcat")
    reply.headers["Content-Disposition"] = 'inline; filename="files.xcat";'
    return reply


def one_file(entry: Entry) -> Reply:
    """Reply with a zip that holds this file alone."""
    name = entry.path.rpartition("/")[2]
    headers = {"Content-Disposition": disposition(f"{name}.zip")}
    return Reply(200, zipped([_zip_member(name, entry)]), "application/zip", headers)


def _body(members: list[tuple[str, Entry]], query: Query, kind: str) -> Iterator[bytes]:
    if kind == "application/zip":
        made = [_zip_member(name, entry) for name, entry in members]
        return zipped(made, deflates=query.get("compression", "0") in {*"123456789"})
    tar = _records(_tar(members, query.release))
    return _gzip(tar) if kind == "application/x-gtar" else tar


def _zip_member(name: str, entry: Entry) -> Member:
    return Member(name, entry.modified, Slice.whole(entry.content))


def _records(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Split a tar into whole records. If it ends too early, its last, incomplete record is dropped."""
    begun = b""
    for piece in pieces:
        begun += piece
        whole = len(begun) - len(begun) % RECORD
        if whole:
            yield begun[:whole]
        begun = begun[whole:]


def _tar(members: list[tuple[str, Entry]], release: Release) -> Iterator[bytes]:
    """Stream a tar. A long name gets a PAX header or, in older releases, ends the tar; backslashes become slashes."""
    written = 0
    for name, entry in members:
        if not _fits(name, release):
            return
        name = name.replace("\\", "/")
        single = bytes(ord(character) & 0xFF for character in name).decode("latin-1")
        info = tarfile.TarInfo(single if release.tar_bytes else name.encode("ascii", "replace").decode())
        content = Slice.whole(entry.content)
        info.size, info.mtime = content.length, int(entry.modified)
        header = info.tobuf(tarfile.GNU_FORMAT if release.tar_name else tarfile.PAX_FORMAT, "latin-1")
        written += len(header) + _blocks(info.size) - BLOCK
        yield header
        yield from content.pieces()
        yield b"\0" * (-info.size % BLOCK)
    yield b"\0" * (2 * BLOCK + -(written + 2 * BLOCK) % RECORD)


def _gzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()
