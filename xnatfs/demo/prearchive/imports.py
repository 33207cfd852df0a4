"""Serve imports: create sessions from archives and single DICOM objects (XNAT REST contract 11)."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Experiment
from xnatfs.demo.content import unpacking
from xnatfs.demo.prearchive import dicom
from xnatfs.demo.prearchive.archiver import Overwrite
from xnatfs.demo.prearchive.dicom import Image
from xnatfs.demo.prearchive.requests import URIS, PrearchiveRequests
from xnatfs.demo.prearchive.sessions import ARCHIVING, UNASSIGNED, Prearchive, Received
from xnatfs.demo.rest.resources import Asked
from xnatfs.demo.rest.tables import Query, true
from xnatfs.demo.rest.user_cache import UserCache
from xnatfs.demo.server.reply import HTML, Failed, Reply, Slice
from xnatfs.demo.server.request_bodies import Body, Part, Sent, sent

SI, ZIP, GRADUAL = "SI", "DICOM-zip", "gradual-DICOM"
OTHER_HANDLERS = ("XAR", "inbox", "automation")  # handlers of real servers; the demo has no data that they could read
OVERWRITE_MODES = ("none", "append", "delete", "override")
PREARCHIVE_CODES = {"4": "AutoArchive", "5": "AutoArchiveOverwrite"}
SESSION_PARAMETERS = ("SOURCE", "VISIT", "PROTOCOL", "TIMEZONE", "prevent_anon", "prevent_auto_commit")
NESTED_ARCHIVES = 3  # of archives within archives


@dataclass(frozen=True)
class Wanted:
    """The destination of an upload. Empty fields are taken from the images."""

    archived: bool
    project: str
    subject: str
    session: str
    timestamp: str = ""
    folder: str = ""


class Imports:
    """Answer POST /data/services/import."""

    def __init__(self, prearchive: Prearchive, received: PrearchiveRequests, cache: UserCache) -> None:
        self.site = prearchive.site
        self.prearchive = prearchive
        self.received = received
        self.cache = cache
        self.archive = prearchive.archive
        self.vault = prearchive.vault

    def answer(self, asked: Asked, parts: Sequence[str], body: Body) -> Reply | None:
        """Return the reply, or None if the path is not this service's. The caller must not hold the lock."""
        if parts != ["services", "import"]:
            return None
        if asked.method != "POST":
            raise Failed(405, "Method Not Allowed")
        got = sent(
            body,
            asked.headers,
            inbody=true(asked.query, "inbody"),
            chunked_zips=self.site.release.chunked_zips,
            without_length=self.site.release.import_without_length,
        )
        query = asked.query.holding([*asked.query.pairs, *got.fields])
        if "src" not in query:
            return self._import(asked.user, query, got)
        with closing(self._from_cache(asked.user, query["src"])) as kept:
            name = query["src"].rpartition("/")[2]
            return self._import(asked.user, query, Sent([], [Part(kept, 0, kept.size, name, "")]))

    def _from_cache(self, user: str, source: str) -> Body:
        """Return the file in the user's cache that the request imports in place of a body. Raises Failed."""
        with self.archive.lock:
            entry = self.cache.source(user, source)
        if entry is None:
            raise Failed(400, f"Invalid src: {source}")
        return Body(Slice.whole(entry.content).pieces())

    def _import(self, user: str, query: Query, got: Sent) -> Reply:
        single = len(got.files) == 1 and _type(got.files[0]) == "application/dicom"
        handler = query.get("import-handler", GRADUAL if single else ZIP)
        if handler in OTHER_HANDLERS:
            raise Failed(400, f"Nothing to import by {handler}")
        if handler not in (SI, ZIP, GRADUAL):
            raise Failed(404, f"Unsupported import handler: {handler}")
        if len(got.files) != 1:
            raise Failed(400, "Exactly one file is wanted" if got.files else "Unable to locate file data")
        overwrite = query.get("overwrite", "none")
        if overwrite not in OVERWRITE_MODES or (query.get("prearchive_code") == "1" and "overwrite" in query):
            raise Failed(400, f"Invalid overwrite: {overwrite}")
        with self.archive.lock:
            wanted = self._allowed(user, self._wanted(query, handler), handler, overwrite)
        if handler == ZIP and not self.site.release.tar_imports and _kind(got.files[0], raw=got.raw) == "tar":
            return Reply(200, b"", URIS)  # the server stores nothing, and does not report that
        images = self._images(got.files[0], handler, raw=got.raw, lenient=true(query, "Ignore-Unparsable"))
        uris = [self._land(wanted, query, handler, study) for study in dicom.by_study(images).values()]
        lines = "".join(f"{uri}\r\n" for uri in uris)
        return Reply(200, lines.encode(), HTML if query.get("format") == "html" else URIS)

    # -- where to ----------------------------------------------------------------------------------------------

    def _wanted(self, query: Query, handler: str) -> Wanted:
        """Return the destination that the request names. Raises Failed."""
        given = Wanted(
            query.get("prearchive_code") == "1",
            query.get("project") or query.get("PROJECT_ID", ""),
            query.get("subject") or query.get("SUBJECT_ID", ""),
            query.get("session") or query.get("EXPT_LABEL", ""),
        )
        if handler == ZIP and not self.site.release.zip_labels:
            given = Wanted(given.archived, "", "", "")
        if "dest" not in query:
            return given
        match query["dest"].removeprefix("/data").rstrip("/").split("/"):
            case ["", "archive"]:
                return replace(given, archived=True)
            case ["", "archive", "projects", project]:
                return replace(given, archived=True, project=project)
            case ["", "archive", "projects", project, "subjects", subject]:
                return replace(given, archived=True, project=project, subject=subject)
            case ["", "archive", "projects", project, "subjects", subject, "experiments", session]:
                return Wanted(True, project, subject, session)
            case ["", "prearchive"]:
                return given
            case ["", "prearchive", "projects", project]:
                return replace(given, project=project)
            case ["", "prearchive", "projects", project, timestamp, folder]:
                return replace(given, project=project, timestamp=timestamp, folder=folder)
        raise Failed(400, f"Invalid destination: {query['dest']}")

    def _allowed(self, user: str, wanted: Wanted, handler: str, overwrite: str) -> Wanted:
        """Return the permitted destination: DICOM handlers put into Unassigned what SI refuses. Raises Failed."""
        project = wanted.project
        if not project or project == UNASSIGNED:
            if wanted.archived:
                raise Failed(400, "A project is needed to archive into.")
            return wanted
        known = project in self.archive.projects and self.archive.sees(user, project)
        if not known and handler == SI:
            raise Failed(self.site.release.unknown_project, f"No project named {project}")
        if not known or not self.archive.edits(user, project):
            if handler == SI:
                raise Failed(403, f"user {user} does not have create permissions for project {project}")
            return Wanted(False, "", wanted.subject, wanted.session)
        if overwrite in ("delete", "override") and not self.archive.deletes(user, project):
            raise Failed(403, f"Invalid permissions to overwrite in project {project}")
        return wanted

    # -- what was sent -----------------------------------------------------------------------------------------

    def _images(self, part: Part, handler: str, *, raw: bool, lenient: bool) -> list[Image]:
        """Return the DICOM objects of an upload. Raises Failed if there are none, or any other files but `lenient`."""
        now = self.prearchive.clock()
        if handler == GRADUAL:
            entries = [self.vault.keep(part.name or "object", part.pieces(), now)]
        else:
            kind = _kind(part, raw=raw)
            if not kind:
                raise Failed(400, "Unsupported format")
            entries = list(self._unpacked(unpacking.members(part, kind), now, NESTED_ARCHIVES))
        found = [(entry, dicom.read(entry)) for entry in entries]
        images = [image for _, image in found if image is not None]
        self.vault.drop(entry for entry, image in found if image is None)
        if not images or (len(images) < len(found) and handler != SI and not lenient):
            self.vault.drop(image.entry for image in images)
            raise Failed(400, "Unable to read DICOM object" if found else "No files were found")
        return images

    def _unpacked(self, members: Iterator[unpacking.Member], now: float, depth: int) -> Iterator[Entry]:
        for name, pieces in members:
            kind = unpacking.kind(name, "")
            if not kind or not depth:
                yield self.vault.keep(name, pieces, now)
                continue
            with closing(Body(pieces)) as inner:
                yield from self._unpacked(unpacking.opened(inner.file, kind), now, depth - 1)

    # -- what becomes of it ------------------------------------------------------------------------------------

    def _land(self, wanted: Wanted, query: Query, handler: str, images: list[Image]) -> str:
        """Add the images of a study to a session, finish it as the request demands, and return its URI."""
        with self.archive.lock:
            received = self._received(wanted, query, handler, images[0])
            rename = handler != SI and query.get("rename") != "false"
            dicom.add(received.session, images, rename=rename)
            received.status, received.built, received.job = "RECEIVING", False, None
            received.changed = self.prearchive.clock()
            direct = f"/xapi/direct-archive/{received.project}/{received.session.uid}/{received.session.label}"
        automatic = received.auto != "Manual"
        if handler == SI:
            with self.archive.lock:
                self.prearchive.build(received)
            return self._archived(received) if automatic else received.uri()
        if received.direct:
            return direct
        committed = handler == ZIP and "dest" in query and self.site.release.commits_imports
        if query.get("action") != "commit" and not committed:
            return received.uri()
        try:
            reply = self.received.committed(received, automatic)
        except Failed as failed:
            raise Failed(400 if failed.status == 409 else failed.status, failed.message) from None
        return b"".join(reply.pieces()).decode()

    def _archived(self, received: Received) -> str:
        act = self.prearchive.archiving(received, received.target(), received.automatic())
        return self.prearchive.complete(received, ARCHIVING, act)

    def _received(self, wanted: Wanted, query: Query, handler: str, image: Image) -> Received:
        """Return the session for the images: the one that is being received, or a new one."""
        prearchive, header = self.prearchive, image.header
        project = wanted.project or UNASSIGNED
        label = wanted.session or dicom.label(header["PatientID"] or image.study)
        direct = self.site.release.direct_archive and true(query, "Direct-Archive")
        direct = direct and handler != SI and project != UNASSIGNED
        found = next((one for one in prearchive.sessions if self._same(one, wanted, project, label, image)), None)
        if found is not None and (handler != SI or wanted.folder):
            if prearchive.locked(found):
                raise Failed(409 if handler == SI else 400, "Session processing in progress")
            self._say(found, wanted, query)
            return found
        now = prearchive.clock()
        timestamp = wanted.timestamp or prearchive.stamp(project, now)
        subject = wanted.subject or dicom.label(header["PatientName"])
        session = Experiment("", label, project, "", uid=image.study, date=_day(header["StudyDate"]))
        session.fields["time"] = _time(header["StudyTime"])
        made = Received(project, timestamp, wanted.folder or label, subject, session, now, now, direct=direct)
        self._say(made, wanted, query)
        prearchive.sessions.append(made)
        return made

    def _same(self, one: Received, wanted: Wanted, project: str, label: str, image: Image) -> bool:
        if wanted.folder:
            return (one.project, one.timestamp, one.folder) == (project, wanted.timestamp, wanted.folder)
        return (one.project, one.session.label, one.session.uid) == (project, label, image.study)

    def _say(self, received: Received, wanted: Wanted, query: Query) -> None:
        """Record the parameters of the request for the session, and derive its archiving mode."""
        received.said |= {name: query[name] for name in SESSION_PARAMETERS if name in query}
        known = self.archive.projects.get(received.project)
        code = PREARCHIVE_CODES.get(known.prearchive_code, "") if known else ""
        automatic = wanted.archived or true(query, "AA") or true(query, "auto-archive")
        received.auto = code or ("AutoArchive" if automatic else received.auto)
        replaced = code == "AutoArchiveOverwrite"
        derived = "delete" if replaced else "append" if code or query.get("prearchive_code") == "1" else "none"
        how = query.get("overwrite", derived)
        received.overwrite = Overwrite(
            "delete" if how == "override" else how,
            true(query, "overwrite_files") or replaced,
            fresh=not received.direct,
        )


def _kind(part: Part, *, raw: bool) -> str:
    """Return "zip", "tar" or "": the kind of a raw body follows from its media type alone."""
    return unpacking.MEDIA_TYPE_KINDS.get(_type(part), "") if raw else unpacking.kind(part.name, part.type)


def _type(part: Part) -> str:
    return part.type.partition(";")[0].strip().lower()


def _day(text: str) -> str:
    return f"{text[:4]}-{text[4:6]}-{text[6:8]}" if len(text) == 8 and text.isdigit() else ""


def _time(text: str) -> str:
    return f"{text[:2]}:{text[2:4]}:{text[4:6]}" if len(text) >= 6 and text[:6].isdigit() else ""
