"""Serve each user's own scratch space, /data/user/cache/resources (XNAT REST contract 10.8)."""

from collections.abc import Sequence

from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Home, Resource
from xnatfs.demo.archive.vault import Vault
from xnatfs.demo.content import files
from xnatfs.demo.content.resource_changes import allowed, stored_name
from xnatfs.demo.rest.resources import Asked
from xnatfs.demo.rest.tables import Query, Rows, table, true
from xnatfs.demo.server.accounts import GUEST
from xnatfs.demo.server.reply import Failed, Reply, text
from xnatfs.demo.server.request_bodies import Body, sent
from xnatfs.demo.server.site import DemoSite

BASE = "/data/user/cache/resources"


class UserCache:
    """Resources by user and name. They have no numbers."""

    def __init__(self, site: DemoSite, vault: Vault) -> None:
        self.site = site
        self.archive = site.archive
        self.vault = vault
        self._kept: dict[str, dict[str, Resource]] = {}

    def answer(self, asked: Asked, parts: Sequence[str], body: Body) -> Reply | None:
        """Return the reply, or None if the path is not below this resource. The caller must not hold the lock."""
        if parts[:3] != ["user", "cache", "resources"]:
            return None
        if asked.user == GUEST:
            raise Failed(403, "Forbidden")
        with self.archive.lock:
            mine = self._kept.setdefault(asked.user, {})
            match asked.method, parts[3:]:
                case (("GET" | "HEAD"), []):
                    rows = [{"Resource": name, "URI": f"{BASE}/{name}"} for name in mine]
                    return self._table(rows, asked.query)
                case "PUT", [name]:
                    if name in mine:
                        raise Failed(412, "Resource already exists.")
                    mine[name] = Resource(0, name)
                    return text("", 201)
                case "DELETE", [name]:
                    self.vault.drop(self._named(mine, name).entries)
                    del mine[name]
                    return text("")
                case method, [name, "files", *path]:
                    return self._files(asked, method, mine, name, "/".join(path), body)
        raise Failed(404, "")

    def source(self, user: str, uri: str) -> Entry | None:
        """Return the file with this URI, which the `src` of a service may name, or None."""
        match uri.removeprefix("/data").split("/"):
            case ["", "user", "cache", "resources", name, "files", *path]:
                resource = self._kept.get(user, {}).get(name)
                wanted = stored_name("/".join(path))
                return next((e for e in resource.entries if e.path == wanted), None) if resource else None
        return None

    def _files(self, asked: Asked, method: str, mine: dict[str, Resource], name: str, path: str, body: Body) -> Reply:
        if method in ("PUT", "POST"):
            return self._put(asked, mine.setdefault(name, Resource(0, name)), path, body)
        resource = self._named(mine, name)
        if method == "DELETE":
            gone = resource.remove(stored_name(path))
            if not gone:
                raise Failed(404, "No matched files")
            self.vault.drop(gone)
            return text("")
        if path:
            found = [(resource, Home("resources", "", ""))]
            return files.download(files.find_entry(found, path), asked.headers, asked.query, ranges=True)
        rows = [
            {"Name": entry.path, "Size": entry.size, "URI": f"{BASE}/{name}/files/{entry.path}"}
            for entry in resource.entries
        ]
        return self._table(rows, asked.query)

    def _table(self, rows: Rows, query: Query) -> Reply:
        return table(rows, query, Columns=[{"key": "URI", "serverRoot": self.site.context_path}], ordered=True)

    def _put(self, asked: Asked, resource: Resource, path: str, body: Body) -> Reply:
        got = sent(body, asked.headers, inbody=true(asked.query, "inbody"))
        if not got.files or (got.raw and not path):
            raise Failed(400, "You tried to PUT a file but didn't provide any data")
        for part in got.files:
            name = stored_name(path) or part.name.replace("\\", "/").rpartition("/")[2]
            entry = self.vault.keep(allowed(name), part.pieces(), self.site.clock())
            self.vault.drop(resource.put([entry]))
        return text("", 201)

    def _named(self, mine: dict[str, Resource], name: str) -> Resource:
        if name not in mine:
            raise Failed(404, "Unable to identify resource")
        return mine[name]
