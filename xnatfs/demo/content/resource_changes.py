"""Create and delete resources, and add and delete their files (XNAT REST contract 10.3 to 10.5)."""

import json
from collections.abc import Iterator, Sequence
from urllib.parse import unquote_plus

from xnatfs.demo.archive.addresses import Place
from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Resource
from xnatfs.demo.archive.rights import need_editor, need_owner
from xnatfs.demo.archive.vault import Vault
from xnatfs.demo.content import unpacking
from xnatfs.demo.rest.resources import Asked
from xnatfs.demo.rest.tables import true
from xnatfs.demo.server.reply import HTML, Failed, Reply, text
from xnatfs.demo.server.request_bodies import Body, Sent, sent
from xnatfs.demo.server.site import DemoSite


class Deposits:
    """Apply changes of resources."""

    def __init__(self, site: DemoSite, vault: Vault) -> None:
        self.site = site
        self.archive = site.archive
        self.vault = vault

    def answer(self, asked: Asked, place: Place, rest: Sequence[str], body: Body) -> Reply:
        """Answer [in|out/]resources[/R[/files[/F]]] and [in|out/]files[/F].

        Args:
            asked: The request.
            place: The item that owns the resources.
            rest: The path below the item.
            body: The body.

        Raises:
            Failed: The change is refused.
        """
        side = rest[0] if rest[0] in ("in", "out") else ""
        among = place.resources(side)
        rest = rest[1:] if side else rest
        keys = rest[1:2] if rest[0] == "resources" else ["NULL"]
        path = rest[3:] if rest[0] == "resources" else rest[1:]
        if rest[0] == "files" or rest[2:3] == ("files",):
            if asked.method == "DELETE":
                if rest[0] == "files":
                    raise Failed(400, "A resource must be named.")
                return self._delete_files(asked, place, among, keys[0], "/".join(path))
            return self._put_files(asked, place, among, keys[0] if rest[0] == "resources" else None, path, body)
        match asked.method, len(rest):
            case "PUT", 2:
                return self._put_resource(asked, place, among, keys[0])
            case "POST", 1:
                made = self._made(asked, place, among, asked.query.get("xnat:resourceCatalog/label", ""))
                return text(f"{place.base()}{f'/{side}' if side else ''}/resources/{made.id}")
            case "DELETE", 2:
                return self._delete_resources(asked, place, among, keys[0])
        raise Failed(405 if len(rest) < 3 else 400, "")

    # -- resources ---------------------------------------------------------------------------------------------

    def _put_resource(self, asked: Asked, place: Place, among: list[Resource], key: str) -> Reply:
        if self._selected(asked, among, key):
            raise Failed(409, "Specified resource already exists.")
        self._made(asked, place, among, key)
        return text("")

    def _made(self, asked: Asked, place: Place, among: list[Resource], label: str) -> Resource:
        need_editor(self.archive, asked.user, place.project())
        return self._new(asked, among, label)

    def _new(self, asked: Asked, among: list[Resource], label: str) -> Resource:
        if "'" in label or "%27" in label:
            raise Failed(400, "Invalid resource label")
        made = self.archive.resource(among, "" if label.upper() == "NULL" else label)
        query = asked.query
        made.format = query.get("format") or query.get("xnat:resourceCatalog/format", "")
        made.content = query.get("content") or query.get("xnat:resourceCatalog/content", "")
        return made

    def _selected(self, asked: Asked, among: list[Resource], key: str) -> list[Resource]:
        """Return the resources in `among` with this label, or the one with this number, wherever it is."""
        if not key.isdigit():
            label = "" if key.upper() == "NULL" else key
            return [resource for resource in among if resource.label == label]
        found = self.archive.resource_by_id(int(key))
        if found is None or not self.archive.reads(asked.user, found[1].owner()):
            raise Failed(404, "")
        return [found[0]]

    def _owner(self, place: Place, resource: Resource) -> str:
        """Return the project that a resource belongs to. A number may address it below any other project."""
        found = self.archive.resource_by_id(resource.id)
        return found[1].owner() if found else place.project()

    def _delete_resources(self, asked: Asked, place: Place, among: list[Resource], keys: str) -> Reply:
        need_owner(self.archive, asked.user, place.project())
        for key in keys.split(","):
            for resource in self._selected(asked, among, key):
                if any(resource is own for own in among):
                    among[:] = [own for own in among if own is not resource]
                    self.vault.drop(resource.entries)
        return text("")

    # -- files -------------------------------------------------------------------------------------------------

    def _put_files(
        self, asked: Asked, place: Place, among: list[Resource], key: str | None, path: Sequence[str], body: Body
    ) -> Reply:
        if not self.archive.edits(asked.user, place.project()):
            return text("")  # the server stores nothing, and does not report that
        if self.site.justification and not asked.query.get("event_reason"):
            raise Failed(500, "Justification required.")
        got = sent(body, asked.headers, inbody=true(asked.query, "inbody"), chunked_zips=self.site.release.chunked_zips)
        name = stored_name("/".join(path)) + ("/" if asked.slash and path else "")
        if not got.files or (got.raw and (not name or name.endswith("/"))):
            raise Failed(400, f"You tried to {asked.method} a file but didn't provide any data")
        found = among[:1] if key is None else self._selected(asked, among, key)
        if found and not self.archive.edits(asked.user, self._owner(place, found[0])):
            return text("")
        incoming = list(self._incoming(asked, got, name))
        resource = found[0] if found else self._new(asked, among, key or "")
        duplicates = [entry.path for entry in incoming if not self._add(asked, resource, entry)]
        if duplicates:
            return Reply(200, json.dumps({"duplicates": duplicates}).encode(), HTML)
        return text("")

    def _incoming(self, asked: Asked, got: Sent, name: str) -> Iterator[Entry]:
        """Yield an entry for each file of the request; `extract` unpacks archives. Raises Failed."""
        now = self.site.clock()
        for part in got.files:
            own = part.name.replace("\\", "/").rpartition("/")[2]
            path = name + own if not name or name.endswith("/") else name
            kind = unpacking.kind(path, part.type) or unpacking.kind(own, "")
            if true(asked.query, "extract") and kind:
                folder = path.rpartition("/")[0]
                for member, pieces in unpacking.members(part, kind, self.site.release.tar_charset):
                    inside = f"{folder}/{member}" if folder else member
                    yield self.vault.keep(allowed(inside), pieces, now)
            else:
                yield self.vault.keep(allowed(path), part.pieces(), now)

    def _add(self, asked: Asked, resource: Resource, entry: Entry) -> bool:
        entry.format, entry.note = asked.query.get("format", ""), asked.query.get("content", "")
        entry.tags = asked.query.get("tags", "")
        there = next((number for number, old in enumerate(resource.entries) if old.path == entry.path), None)
        if there is None:
            resource.entries.append(entry)
        elif true(asked.query, "overwrite"):
            self.vault.drop([resource.entries[there]])
            resource.entries[there] = entry
        else:
            self.vault.drop([entry])
            return False
        return True

    def _delete_files(self, asked: Asked, place: Place, among: list[Resource], key: str, path: str) -> Reply:
        """Delete every file whose path begins with `path`; an empty path selects all files."""
        need_owner(self.archive, asked.user, place.project())
        found = self._selected(asked, among, key)
        if not found:
            raise Failed(400, "Unknown resource")
        need_owner(self.archive, asked.user, self._owner(place, found[0]))
        prefix = stored_name(path).removesuffix("*")
        gone = [entry for entry in found[0].entries if entry.path.startswith(prefix)]
        if not gone:
            if asked.query.get("accept-not-found") == "true":
                return Reply(204)
            raise Failed(404, "No matched files")
        found[0].entries[:] = [entry for entry in found[0].entries if not entry.path.startswith(prefix)]
        if true(asked.query, "removeFiles") or "removeFiles" not in asked.query:
            self.vault.drop(gone)
        return text("")


def stored_name(path: str) -> str:
    """Return the name that a path in a URL is stored under. Escapes stay, unless it contains %20 or %2B."""
    return unquote_plus(path) if "%20" in path or "%2B" in path else path


def allowed(path: str) -> str:
    """Return the path. Raises Failed if no file may have this name."""
    parts = path.split("/")
    if not path or path.endswith("_catalog.xml") or "" in parts or ".." in parts or "." in parts:
        raise Failed(400, f"Invalid file name: {path}")
    return path
