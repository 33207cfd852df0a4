"""Serve the configuration service: documents of tools, of the site and of each project, such as maps of BIDS names.

A project's document does not hide the site's: a tool reads both. These routes are not below /data/archive.
"""

from collections.abc import Sequence

from xnatfs.demo.archive.configurations import DocumentKey
from xnatfs.demo.archive.rights import need_admin, need_editor, need_reader, need_visible
from xnatfs.demo.rest.resources import Asked
from xnatfs.demo.rest.tables import Query, Rows, table, true
from xnatfs.demo.server.reply import Failed, Reply, text
from xnatfs.demo.server.request_bodies import Body, sent
from xnatfs.demo.server.site import DemoSite

DOCUMENT_COLUMNS = (
    "tool",
    "path",
    "project",
    "user",
    "create_date",
    "reason",
    "contents",
    "unversioned",
    "version",
    "status",
)
STATUSES = {"enabled": "enabled", "true": "enabled", "disabled": "disabled", "false": "disabled"}


class ConfigService:
    """Answer /data/config and /data/projects/P/config."""

    def __init__(self, site: DemoSite) -> None:
        self.archive = site.archive

    def answer(self, asked: Asked, parts: Sequence[str], body: Body) -> Reply | None:
        """Return the reply, or None if the path is not one of the service. The caller must not hold the lock."""
        match parts:
            case ["config", *rest]:
                project = ""
            case ["projects", named, "config", *rest]:
                project = self.archive.project_id(named)
            case _:
                return None
        key = DocumentKey(project, "".join(rest[:1]), "/".join(rest[1:]))
        with self.archive.lock:
            if asked.method in ("GET", "HEAD"):
                return self._get(asked, key)
            if asked.method not in ("PUT", "DELETE") or not key.path:
                raise Failed(405, "Method Not Allowed")
            self._need_writer(asked.user, project)
            return self._put(asked, key, body) if asked.method == "PUT" else self._switch(asked, key, "disabled")

    def _need_writer(self, user: str, project: str) -> None:
        if project:
            need_visible(self.archive, user, project)
            need_editor(self.archive, user, project)
        else:
            need_admin(self.archive, user)

    def _get(self, asked: Asked, key: DocumentKey) -> Reply:
        if key.project:
            need_reader(self.archive, asked.user, key.project, "configurations")
        query = asked.query
        rows = self._rows(key, query)
        contents, meta = true(query, "contents"), true(query, "meta")
        plain = contents and not meta and bool(key.path) and query.get("action") != "getHistory"
        if not rows or (plain and rows[0]["status"] == "disabled"):
            raise Failed(404, f"Config not found for user {asked.user} on tool [{key.tool}] path [{key.path}]")
        if plain:
            return Reply(200, rows[0]["contents"].encode(query.release.text_charset, "replace"))
        if meta and not contents:
            rows = [row | {"contents": ""} for row in rows]
        return table(rows, query, columns=DOCUMENT_COLUMNS)

    def _rows(self, key: DocumentKey, query: Query) -> Rows:
        documents = self.archive.configurations
        if not key.tool:
            return [{"tool": tool} for tool in documents.tools(key.project)]
        if query.get("action") == "getHistory" and key.path:
            return documents.versions.get(key, [])
        if query.get("version", "").isdigit() and key.path:
            return documents.version(key, query["version"])
        return documents.latest(key)

    def _put(self, asked: Asked, key: DocumentKey, body: Body) -> Reply:
        if "status" in asked.query:
            status = STATUSES.get(asked.query["status"])
            if status is None:
                raise Failed(400, "Only valid values for the status flag are enabled or true and disabled or false")
            reply = self._switch(asked, key, status)
            if status == "disabled" or not body.size:
                return reply
        files = sent(body, asked.headers, inbody=true(asked.query, "inbody")).files if body.size else []
        if body.size and len(files) != 1:
            raise Failed(400, "Unable to identify upload format.")
        contents = b"".join(piece for file in files for piece in file.pieces()).decode("utf-8", "replace")
        before = self.archive.configurations.latest(key)
        if before and before[0]["contents"] == contents:
            return text("")
        self.archive.configurations.put(key.tool, key.path, contents, project=key.project, user=asked.user)
        return text("", 201)

    def _switch(self, asked: Asked, key: DocumentKey, status: str) -> Reply:
        before = self.archive.configurations.latest(key)
        if not before:
            raise Failed(500, "")
        self.archive.configurations.put(
            key.tool, key.path, before[0]["contents"], project=key.project, user=asked.user, status=status
        )
        return text("")
