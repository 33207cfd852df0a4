"""Answer .../resources[/R[/files[/F]]] and .../files[/F] at every level of the archive."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xnatfs.demo.archive.model import Found, Home, Resource
from xnatfs.demo.content import archives, files, files_in_zips
from xnatfs.demo.rest.tables import LIST, Query, negotiated, true
from xnatfs.demo.server.reply import Failed, Reply
from xnatfs.demo.server.site import DemoSite


@dataclass(frozen=True)
class Asked:
    """A request as the routes need it."""

    user: str
    method: str
    segments: tuple[str, ...]
    query: Query
    headers: dict[str, str]
    slash: bool  # the path ended with a slash

    @property
    def head(self) -> bool:
        return self.method == "HEAD"


@dataclass(frozen=True)
class Level:
    """The resources that a route addresses."""

    resources: Found
    base: str  # the URI that one resource's files get; '' for several parents
    name: str = "archive"
    blank: bool = False  # a session's own rows have no ID, because the request has `all`
    typed: bool = False  # scans were addressed in the URL
    everywhere: Found = ()  # of the item at any level; empty: `resources` are all


class Levels:
    """Answer requests for the resources of one level of the archive, and for their files."""

    def __init__(self, site: DemoSite) -> None:
        self.site = site
        self.archive = site.archive

    def answer(self, asked: Asked, level: Level, tail: Sequence[str]) -> Reply:
        """Answer .../resources[/R[/files[/F]]] and .../files[/F].

        Args:
            asked: The request.
            level: The resources that its URL addresses.
            tail: The path from "resources" or "files" on.

        Raises:
            Failed: There is nothing at this path, or it cannot be read.
        """
        if tail[0] == "files":
            return self._files(asked, level, tail[1:], single=False)
        if len(tail) == 1:
            return files.list_resources(level.resources, asked.query, session_rows_blank=level.blank)
        found = self._chosen(asked, level, tail)
        if len(tail) == 2:
            return files.catalogue(found, asked.query)
        if tail[2] != "files":
            raise Failed(400, "")
        chosen = replace(level, resources=found)
        if not found and asked.query.get("format") in archives.ARCHIVES:
            raise Failed(404, "No files found")
        if not found and len(tail) == 3 and not asked.slash:
            return self._list([], asked.query, "")
        return self._files(asked, chosen, tail[3:], single=True)

    def _chosen(self, asked: Asked, level: Level, tail: Sequence[str]) -> Found:
        """Return the resources for a key; for an unknown number none, in releases where that is no error."""
        try:
            return self._selected(asked, level, tail[1])
        except Failed:
            if len(tail) == 2 or not self.site.release.missing_lists_empty:
                raise
            return []

    def _selected(self, asked: Asked, level: Level, keys: str) -> Found:
        found: list[tuple[Resource, Home]] = []
        for key in keys.split(","):
            if key.isdigit():
                found += self._numbered(asked, level, key)
            else:
                label = "" if key.upper() == "NULL" else key
                found += [pair for pair in level.resources if pair[0].label == label]
        return found

    def _numbered(self, asked: Asked, level: Level, key: str) -> Found:
        """Return the resources for a numeric key: those with this label at any level, then the one with this number."""
        labelled = [pair for pair in level.everywhere or level.resources if pair[0].label == key]
        pair = self.archive.resource_by_id(int(key))
        if pair is None or not self._readable(asked.user, pair[1]):
            if not labelled:
                raise Failed(404, "")
            return labelled
        own = next((p for p in level.resources if p[0].id == int(key)), pair)
        return [*(other for other in labelled if other[0].id != int(key)), own]

    def _readable(self, user: str, home: Home) -> bool:
        if home.project:
            return self.archive.sees(user, home.project.id)
        item = home.subject or home.experiment
        return item is not None and self.archive.reads_item(user, item)

    def _files(self, asked: Asked, level: Level, path: Sequence[str], *, single: bool) -> Reply:
        query, found = asked.query, level.resources
        negotiated(query, (*LIST, "image/jpeg"))
        name = "/".join(path)
        folder = files.unquoted(name) + "/" if name and asked.slash else ""
        if query.get("format") in (*archives.ARCHIVES, "xcat") and (not name or folder):
            if folder:
                found = [(replace_entries(r, folder), home) for r, home in found]
            layout = archives.layout(self.archive, query, level.name, typed=level.typed, blank=level.blank)
            if query["format"] == "xcat":
                return archives.manifest(found, layout, self.site.url)
            return archives.archive(found, query, layout)
        if "index" in query and not name:
            entry = files.by_index(found, query["index"], single=single, query=query)
            return files.download(entry, asked.headers, query, ranges=self.site.ranges)
        if not name or folder:
            if folder and not (single and len(found) == 1):
                raise Failed(404, "Unable to find catalog entry for given uri.")
            if asked.head and len(found) != 1:
                raise Failed(404, "")
            return self._list(found, query, level.base, folder)
        outer, within = files_in_zips.split(name)
        entry = files.find_entry(found, outer, self.site.release)
        if true(query, "listContents"):
            return files_in_zips.contents(entry, query)
        if within:
            entry = files_in_zips.inner(entry, files.unquoted(within))
        elif query.get("format") == "zip" and not entry.lost and not entry.path.endswith(".zip"):
            return archives.one_file(entry)
        return files.download(entry, asked.headers, query, ranges=self.site.ranges)

    def _list(self, found: Found, query: Query, base: str, folder: str = "") -> Reply:
        """List the files, without those that the site's switches leave out."""
        shown = [(resource, home) for resource, home in found if not self.site.nameless(resource)]
        if len(found) > 1:
            shown = [(resource, home) for resource, home in shown if not self.site.left_out(resource, home)]
        single = base if len(found) == 1 else ""
        return files.list_files(
            shown, query, single_base=single, context=self.site.context_path, digests=self.site.digests, folder=folder
        )


def replace_entries(resource: Resource, folder: str) -> Resource:
    return replace(resource, entries=[entry for entry in resource.entries if entry.path.startswith(folder)])
