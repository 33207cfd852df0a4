"""Answer requests for the prearchive, and those of its services (XNAT REST contract 12)."""

from collections.abc import Sequence
from functools import partial
from urllib.parse import parse_qsl, unquote

from xnatfs.demo.archive.rights import need_admin, need_editor, need_visible
from xnatfs.demo.content.resource_changes import allowed, stored_name
from xnatfs.demo.prearchive import views
from xnatfs.demo.prearchive.archiver import Overwrite, Target, conflicts
from xnatfs.demo.prearchive.sessions import ARCHIVING, BUILDING, DELETING, MOVING, UNASSIGNED, Prearchive, Received
from xnatfs.demo.rest.resources import Asked
from xnatfs.demo.rest.tables import Query, table, true
from xnatfs.demo.server.reply import HTML, Failed, Reply, text
from xnatfs.demo.server.request_bodies import Body, sent

URIS = "text/uri-list"
SETTABLE = ("RECEIVING", "RECEIVING_INTERRUPT", "BUILDING", "READY", "CONFLICT", "ERROR")


class PrearchiveRequests:
    """Answer requests for the prearchive."""

    def __init__(self, prearchive: Prearchive) -> None:
        self.site = prearchive.site
        self.prearchive = prearchive
        self.archive = prearchive.archive

    def answer(self, asked: Asked, parts: Sequence[str], body: Body) -> Reply | None:
        """Return the reply, or None for any other path. The caller must not hold the lock."""
        match parts:
            case ["services", "archive"]:
                return self._archive(asked, self._service(asked, body))
            case ["services", "validate-archive"]:
                return self._validate(asked, self._service(asked, body))
            case ["services", "prearchive", ("move" | "delete" | "rebuild") as service]:
                return self._batch(asked, self._service(asked, body), service)
            case ["prearchive", project] if project == "experiments":
                return self._list(asked, [])
            case ["prearchive"] | ["prearchive", "projects"]:
                return self._list(asked, [])
            case ["prearchive", "projects", projects]:
                return self._list(asked, projects.split(","))
            case ["prearchive", "projects", project, timestamp, folder, *tail]:
                return self._one(asked, (project, timestamp, unquote(folder)), tuple(tail), body)
            case ["prearchive", *_]:
                raise Failed(404, "")
        return None

    # -- listing -----------------------------------------------------------------------------------------------

    def _list(self, asked: Asked, projects: list[str]) -> Reply:
        """List sessions. For users with access to all data, every list includes all Unassigned sessions."""
        user, archive = asked.user, self.archive
        all_data = archive.is_admin(user)
        with archive.lock:
            if asked.method == "PUT" and not projects:
                need_admin(archive, user)
                return text("")
            if asked.method not in ("GET", "HEAD"):
                raise Failed(405, "Method Not Allowed")
            if "tag" in asked.query and not all_data or len(projects) > 1 and not all_data:
                raise Failed(404, "")
            for project in projects:
                known = project in archive.projects and archive.reads(user, project)
                if not known and not self.site.release.open_prearchive and not (project == UNASSIGNED and all_data):
                    raise Failed(404, "")
            found = [one for one in self.prearchive.sessions if not one.direct]
            if projects:
                wanted = {*projects, UNASSIGNED} if all_data else set(projects)
                found = [one for one in found if one.project in wanted]
            else:
                found = [one for one in found if self.prearchive.edits(user, one)]
            found = [one for one in found if asked.query.get("tag", one.session.uid) == one.session.uid]
            return views.listing(self.prearchive, found, asked.query)

    # -- one session -------------------------------------------------------------------------------------------

    def _one(self, asked: Asked, key: tuple[str, str, str], tail: tuple[str, ...], body: Body) -> Reply:
        with self.archive.lock:
            received = self._found(asked.user, *key)
            if asked.method in ("GET", "HEAD"):
                return views.show(self.prearchive, received, asked, tail, ranges=self.site.ranges)
            if asked.method == "DELETE":
                return self._delete(received, tail)
            if asked.method == "PUT":
                return self._put(asked, received, tail, body)
        if tail:
            raise Failed(400, "")
        return self._act(asked, received, _parameters(asked, body))

    def _found(self, user: str, project: str, timestamp: str, folder: str) -> Received:
        """Return a session that the user may change. Raises Failed."""
        archive = self.archive
        if project != UNASSIGNED and (project not in archive.projects or not archive.reads(user, project)):
            raise Failed(404, "")
        if project == UNASSIGNED:
            need_admin(archive, user)
        else:
            need_editor(archive, user, project)
        found = self.prearchive.find(project, timestamp, folder)
        if found is None:
            raise Failed(404, "Unable to find the session in the prearchive.")
        return found

    def _delete(self, received: Received, tail: tuple[str, ...]) -> Reply:
        session = received.session
        match tail:
            case ():
                if self.prearchive.locked(received):
                    raise Failed(409, "session document locked")
                self.prearchive.deleting(received)()
            case ("scans", id):
                views.of_scan(received, id)
                session.scans[:] = [scan for scan in session.scans if scan.id != id]
            case ("scans", _, "resources", _) | ("resources", _):
                ((resource, _),) = views.located(received, tail)
                for among in (session.resources, *(scan.resources for scan in session.scans)):
                    among[:] = [other for other in among if other is not resource]
            case ("scans", _, "resources", _, "files", *path) | ("resources", _, "files", *path) if path:
                ((resource, _),) = views.located(received, tail)
                gone = resource.remove(stored_name("/".join(path)))
                if not gone:
                    raise Failed(404, "Unable to find catalog entry for given uri.")
                self.prearchive.vault.drop(gone)
            case _:
                raise Failed(400, "")
        return text("")

    def _put(self, asked: Asked, received: Received, tail: tuple[str, ...], body: Body) -> Reply:
        match tail:
            case ("scans", _, "resources", _, "files", *path) | ("resources", _, "files", *path) if path:
                ((resource, _),) = views.located(received, tail)
            case _:
                raise Failed(400, "")
        got = sent(body, asked.headers, inbody=true(asked.query, "inbody"))
        if len(got.files) != 1:
            raise Failed(400, "You tried to PUT a file but didn't provide any data")
        name = allowed(stored_name("/".join(path)))
        entry = self.prearchive.vault.keep(name, got.files[0].pieces(), self.prearchive.clock())
        self.prearchive.vault.drop(resource.put([entry]))
        return text("")

    def _act(self, asked: Asked, received: Received, parameters: Query) -> Reply:
        prearchive = self.prearchive
        match parameters.get("action"):
            case "build":
                with self.archive.lock:
                    self._unlocked(received)
                    prearchive.begin(received, BUILDING, partial(prearchive.build, received))
                    prearchive.settle()
                return Reply(200, received.uri().encode(), URIS)
            case "commit":
                automatic = true(parameters, "AA") or true(parameters, "auto-archive")
                return self.committed(received, automatic, waits="http-session-listener" not in parameters)
            case "move":
                return self._move(asked, received)
            case "reset-status":
                return self._set(received, "READY" if received.built else "RECEIVING")
            case "set-status":
                return self._set(received, parameters.get("status", ""))
        raise Failed(400, "Unsupported action")

    def committed(self, received: Received, automatic: bool, *, waits: bool = True) -> Reply:
        """Build a session, and archive it if that is automatic.

        Args:
            received: The session.
            automatic: Archive it even if its own mode is manual.
            waits: Whether the reply waits for the end of the archiving.

        Raises:
            Failed: The session is locked, or an operation failed.
        """
        prearchive = self.prearchive
        with self.archive.lock:
            self._unlocked(received)
        uri = prearchive.complete(received, BUILDING, partial(prearchive.build, received))
        if (automatic or received.auto != "Manual") and received.project != UNASSIGNED and received.status == "READY":
            act = prearchive.archiving(received, received.target(), received.automatic())
            if not waits:
                with self.archive.lock:
                    prearchive.begin(received, ARCHIVING, act)
                return Reply(200, uri.encode(), URIS, reason="Archival initiated")
            return Reply(301, prearchive.complete(received, ARCHIVING, act).encode(), URIS)
        return Reply(200, uri.encode(), URIS)

    def _unlocked(self, received: Received) -> None:
        if self.prearchive.locked(received):
            raise Failed(409, "session document locked")

    def _set(self, received: Received, status: str) -> Reply:
        if status not in SETTABLE:
            raise Failed(400, f"Invalid status: {status}")
        with self.archive.lock:
            received.status, received.job = status, None
        return text("")

    def _need_new_project(self, user: str, project: str) -> None:
        """Raise Failed unless the user may move sessions into the project."""
        if not project:
            raise Failed(400, "A new project is needed.")
        need_visible(self.archive, user, project)
        need_editor(self.archive, user, project)

    def _move(self, asked: Asked, received: Received) -> Reply:
        project = asked.query.get("newProject", "")
        with self.archive.lock:
            self._need_new_project(asked.user, project)
            if self.prearchive.locked(received):
                return text("")  # the session is not moved
        uri = self.prearchive.complete(received, MOVING, self.prearchive.moving(received, project))
        return Reply(301, uri.encode(), URIS)

    # -- services ----------------------------------------------------------------------------------------------

    def _service(self, asked: Asked, body: Body) -> Query:
        """Return the parameters of a service, with each `src` that the release reads from the query and the form."""
        form = _form(asked, body)
        sources = asked.query.every("src")
        named = [value for name, value in form if name == "src"]
        if sources or self.site.release.form_src:
            sources += [source for source in named if self.site.release.src_adds_up or source not in sources]
        others = [pair for pair in (*asked.query.pairs, *form) if pair[0] != "src"]
        return asked.query.holding([*others, *(("src", source) for source in sources)])

    def _sources(self, asked: Asked, parameters: Query, malformed: int) -> list[Received]:
        if asked.method != "POST":
            raise Failed(405, "Method Not Allowed")
        sources = [source.strip() for source in parameters.every("src") if source.strip()]
        if not sources:
            raise Failed(self.site.release.archive_without_src, "Unknown prearchive session.")
        found = []
        for source in sources:
            # xnatpy sends the session's own URL, with /data, and servers accept it.
            match source.removeprefix("/data").rstrip("/").split("/"):
                case ["", "prearchive", "projects", project, timestamp, folder]:
                    found.append((project, timestamp, folder))
                case _:
                    raise Failed(malformed, f"Invalid src: {source}")
        if malformed == 400 and any(project == UNASSIGNED for project, _, _ in found):
            raise Failed(400, "Cannot archive sessions from the Unassigned folder.")
        return [self._found(asked.user, *key) for key in found]

    def _batch(self, asked: Asked, parameters: Query, service: str) -> Reply:
        prearchive = self.prearchive
        with self.archive.lock:
            found = self._sources(asked, parameters, 500)
            project = parameters.get("newProject", "")
            if service == "move":
                self._need_new_project(asked.user, project)
            for one in found:
                self._unlocked(one)
            for one in found:
                match service:
                    case "move":
                        prearchive.begin(one, MOVING, prearchive.moving(one, project))
                    case "delete":
                        prearchive.begin(one, DELETING, prearchive.deleting(one))
                    case _:
                        prearchive.begin(one, BUILDING, partial(prearchive.build, one))
            return self._queued(asked, parameters, found)

    def _queued(self, asked: Asked, parameters: Query, found: list[Received]) -> Reply:
        """List the sessions as they are now; the work begins after that."""
        if "http-session-listener" in parameters:
            location = f"{self.site.url}/app/template/XDATScreen_prearchives.vm"
            return Reply(303, b"", HTML, {"Location": location})
        return views.listing(self.prearchive, found, asked.query)

    def _archive(self, asked: Asked, parameters: Query) -> Reply:
        prearchive = self.prearchive
        overwrite = _overwrite(parameters)
        with self.archive.lock:
            found = self._sources(asked, parameters, 400)
            targets = [self._target(one, parameters) for one in found]
            if any(prearchive.locked(one) for one in found):
                raise Failed(403, "Operation already in progress on this prearchive entry.")
            if "dest" in parameters and self.site.release.archive_dest == "fails":
                for one in found:
                    one.status = "ERROR"
                raise Failed(500, "java.io.NotSerializableException")  # of the queued request
            if len(found) > 1:
                for one, target in zip(found, targets, strict=True):
                    prearchive.begin(one, ARCHIVING, prearchive.archiving(one, target, overwrite))
                return self._queued(asked, parameters, found)
        received = found[0]
        automatic = received.auto != "Manual"
        try:
            uri = prearchive.complete(received, ARCHIVING, prearchive.archiving(received, targets[0], overwrite))
        except Failed as failed:
            if failed.status == 409 == self.site.release.archive_conflict:
                raise
            raise Failed(500, f"FAILED: {failed.message}") from None
        if true(parameters, "redirect") or automatic:
            return Reply(303, b"", HTML, {"Location": f"{self.site.url}{uri}"})
        return Reply(200, f"{uri}\r\n".encode(), URIS)

    def _target(self, received: Received, parameters: Query) -> Target:
        """Return the destination: that of the parameters, or else that of the upload. Raises Failed."""
        project = parameters.get("project", "") or received.project
        if project != received.project:
            raise Failed(400, "The session is of another project.")
        subject = parameters.get("subject", "") or received.subject
        label = parameters.get("session", "") or received.session.label
        found = self.archive.find_subject(project, subject)
        return Target(project, found.label if found else subject, label)

    def _validate(self, asked: Asked, parameters: Query) -> Reply:
        with self.archive.lock:
            found = self._sources(asked, parameters, 400)
            target = self._target(found[0], parameters)
            kinds = {"hard": "FAIL", "exists": "WARN"}
            against = conflicts(self.archive, found[0].session, target)
            rows = [{"type": kinds.get(kind, "CONFLICT"), "message": words} for kind, words in against]
            return table(rows, asked.query, columns=("type", "message"), ordered=True)


def _overwrite(parameters: Query) -> Overwrite:
    how = parameters.get("overwrite", "none")
    if how not in ("none", "append", "delete"):
        raise Failed(400, f"Invalid overwrite: {how}")
    return Overwrite(how, true(parameters, "overwrite_files"))


def _form(asked: Asked, body: Body) -> list[tuple[str, str]]:
    """Return the fields of an urlencoded form. Services do not read multipart forms."""
    encoded = asked.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    return parse_qsl(body.small().decode("utf-8", "replace"), keep_blank_values=True) if encoded else []


def _parameters(asked: Asked, body: Body) -> Query:
    """Return the parameters of the query and of a form, urlencoded or multipart."""
    pairs = _form(asked, body)
    if asked.headers.get("content-type", "").startswith("multipart/form-data"):
        pairs = sent(body, asked.headers, inbody=False).fields
    return asked.query.holding([*asked.query.pairs, *pairs])
