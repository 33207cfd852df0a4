"""Route URLs to lists, documents and files, with the pitfalls of XNAT's prefix routing.

A path is matched from its beginning, and the rest of it is passed to the item found: a known item with an unknown tail
is answered with the item's document. A missing session or scan in a resource route is no error for GET: the listing
falls through to the existing item above it.
"""

from collections.abc import Sequence
from urllib.parse import unquote_plus

from xnatfs.demo.archive.model import Experiment, Found, Home, Project, Resource, Subject
from xnatfs.demo.archive.rights import need_reader, need_visible
from xnatfs.demo.rest import documents, experiments, lists
from xnatfs.demo.rest.resources import Asked, Level, Levels
from xnatfs.demo.rest.tables import true
from xnatfs.demo.server.reply import Failed, Reply, text
from xnatfs.demo.server.site import DemoSite


class Routes:
    """The routes of /data."""

    def __init__(self, site: DemoSite) -> None:
        self.site = site
        self.archive = site.archive
        self.levels = Levels(site)

    def answer(self, asked: Asked) -> Reply:
        segments = asked.segments
        if not segments:
            raise Failed(404, "")
        tail = segments[1:]
        match segments[0]:
            case "projects":
                return self._projects(asked, tail)
            case "subjects":
                return self._subjects(asked, tail)
            case "experiments":
                return self._experiments(asked, tail)
            case "scan_types":
                return lists.scan_types(self.archive, asked.user, asked.query)
            case "search" if segments[1:2] == ("elements",) and len(segments) <= 3:
                if segments[2:]:
                    return documents.fields(segments[2], asked.query)
                return documents.elements(self.archive, asked.user, asked.query)
        raise Failed(404, "")

    # -- items -------------------------------------------------------------------------------------------------

    def _projects(self, asked: Asked, tail: Sequence[str]) -> Reply:
        archive, user = self.archive, asked.user
        if not tail:
            return lists.projects(archive, user, asked.query)
        project_id, rest = archive.project_id(tail[0]), tail[1:]
        need_visible(archive, user, project_id)
        return self._project(asked, archive.projects[project_id], rest)

    def _project(self, asked: Asked, project: Project, rest: Sequence[str]) -> Reply:
        archive, user = self.archive, asked.user
        match rest[:1]:
            case ():
                return documents.project(archive, project, asked)
            case ("accessibility",):
                return text(project.access)
            case ("subjects",) if len(rest) == 1:
                if self.site.release.protected_subjects_403:
                    need_reader(archive, user, project.id, "subjects")
                readable = archive.reads(user, project.id)
                return lists.subjects(archive, project.id if readable else "", asked.query, self.site.joins)
            case ("experiments",) if len(rest) == 1:
                need_reader(archive, user, project.id, "experiments")
                return experiments.experiments(archive, project.id, asked.query)
            case ("subjects",):
                subject = archive.find_subject(project.id, rest[1])
                if subject is None or not archive.reads_item(user, subject):
                    raise Failed(404, "Unable to identify subject")
                return self._subject(asked, subject, rest[2:], project.id)
            case ("experiments",):
                return self._project_experiment(asked, project.id, rest[1], rest[2:])
            case ("resources",) | ("files",):
                return self.levels.answer(asked, _project_level(project), rest)
            case ("scan_types",):
                return lists.scan_types(archive, user, asked.query, project.id)
            case ("users",):
                return lists.members(archive, project, asked.query)
            case ("groups",):
                return lists.groups(project, asked.query)
            case ("quarantine_code",) | ("prearchive_code",):
                return text(project.prearchive_code if rest[0] == "prearchive_code" else "0")
            case ("current_arc",):
                return text("arc001")
        raise Failed(400, "")

    def _subjects(self, asked: Asked, tail: Sequence[str]) -> Reply:
        if not tail:
            return lists.all_subjects(self.archive, asked.user, asked.query)
        subject = self.archive.subjects.get(tail[0])
        if subject is None or not self.archive.reads_item(asked.user, subject):
            raise Failed(404, "Unable to identify subject")
        if tail[1:2] == ("experiments",):  # no route: the subject's document
            return documents.subject(self.archive, subject, asked)
        return self._subject(asked, subject, tail[1:], subject.project)

    def _subject(self, asked: Asked, subject: Subject, tail: Sequence[str], project: str) -> Reply:
        base = f"/data/projects/{project}/subjects/{subject.id}"
        above = Level(subject.held(), base, subject.label)
        match tail[:1]:
            case ("resources",) | ("files",):
                return self.levels.answer(asked, above, tail)
            case ("projects",):
                return lists.shares(self.archive, subject, asked.query)
            case ("experiments",) if len(tail) == 1:
                need_reader(self.archive, asked.user, project, "experiments")
                return experiments.experiments(self.archive, project, asked.query, subject)
            case ("experiments",):
                found = self.archive.find_experiment(project, tail[1], accession_first=len(tail) > 2)
                if found is None or not self.archive.reads_item(asked.user, found):
                    return self._missing(asked, tail[2:], above)
                return self._experiment(asked, [found], tail[2:], above, f"{base}/experiments/{found.id}")
        return documents.subject(self.archive, subject, asked)

    def _project_experiment(self, asked: Asked, project: str, key: str, tail: Sequence[str]) -> Reply:
        """Answer resources of the experiment. Scans, assessors and files have no route here, and get its document."""
        found = self.archive.find_experiment(project, key, accession_first=bool(tail))
        if found is not None and not self.archive.reads_item(asked.user, found):
            found = None
        if tail[:1] == ("resources",):
            if found is None and not self.site.release.falls_to_project:
                raise Failed(404, "Unable to find the specified experiment.")
            if found is None:
                return self._missing(asked, tail, _project_level(self.archive.projects[project]))
            return self._experiment(asked, [found], tail, None, f"/data/experiments/{found.id}")
        if found is None:
            raise Failed(404, "Unable to identify experiment")
        if tail[:1] == ("projects",):
            return lists.shares(self.archive, found, asked.query)
        return documents.experiment(self.archive, found, asked)

    def _experiments(self, asked: Asked, tail: Sequence[str]) -> Reply:
        if not tail:
            return experiments.all_experiments(self.archive, asked.user, asked.query, self.site.joins)
        keys = tail[0].split(",") if len(tail) > 1 else [tail[0]]
        found = [e for key in keys if (e := self.archive.experiments.get(key))]
        found = [e for e in found if self.archive.reads_item(asked.user, e)]
        if not found:
            if tail[1:2] in (("scans",), ("reconstructions",)) and len(tail) == 2:
                raise Failed(500, "")
            return self._missing(asked, tail[1:], None)
        if len(found) != len(keys) and asked.head:
            raise Failed(404, "Unable to identify image session")
        base = f"/data/experiments/{','.join(e.id for e in found)}"
        return self._experiment(asked, found, tail[1:], None, base)

    def _missing(self, asked: Asked, tail: Sequence[str], above: Level | None) -> Reply:
        """Answer for an experiment that is missing, or that the user may not read."""
        if "resources" not in tail and "files" not in tail or asked.head:
            raise Failed(404, "Unable to identify experiment")
        start = tail.index("resources") if "resources" in tail else tail.index("files")
        if above is None and self.site.release.missing_lists_empty:
            if tuple(tail[start:]) == ("files",):
                above = Level((), "")
            else:
                raise Failed(500 if len(tail) > start + 3 else 404, "")
        if above is None:
            raise Failed(404 if tail[start] == "resources" else 500, "")
        return self.levels.answer(asked, above, tail[start:])

    def _experiment(
        self, asked: Asked, found: list[Experiment], tail: Sequence[str], above: Level | None, base: str
    ) -> Reply:
        first = found[0]
        if len(tail) == 1 and tail[0] in ("scans", "assessors", "reconstructions") and not first.is_session:
            # The server looks for a session and finds none: the list of assessors reports that, the others crash.
            raise Failed(404 if tail[0] == "assessors" else 500, "")
        match tail[:1]:
            case ("scans",) if len(tail) == 1:
                return lists.scans(first, asked.query)
            case ("assessors",) if len(tail) == 1:
                return lists.assessors(self.archive, first, asked.query)
            case ("reconstructions",) if len(tail) == 1:
                return lists.reconstructions(first, asked.query)
            case ("projects",):
                return lists.shares(self.archive, first, asked.query)
            case ("scans",):
                return self._scan(asked, first, tail[1], tail[2:], above, base)
            case ("assessors",):
                return self._assessor(asked, first, tail[1], tail[2:], above, base)
            case ("reconstructions",):
                return self._reconstruction(asked, first, tail[1], tail[2:], above, base)
            case ("resources",) | ("files",):
                everything = true(asked.query, "all")
                return self.levels.answer(asked, self._session_level(asked, found, base, everything), tail)
        return documents.experiment(self.archive, first, asked)

    def _session_level(self, asked: Asked, found: list[Experiment], base: str, everything: bool) -> Level:
        resources: list[tuple[Resource, Home]] = []
        for session in found:
            if session.session:  # an assessor's resources are `out` ones, listed below its session only
                continue
            if not everything:
                resources += session.held()
                continue
            resources += [pair for pair in session.held_at_any_level() if not pair[1].part.endswith("/in")]
            for assessor in self._readable_assessors(asked, session):
                resources += _of_assessor(assessor)
        # The base of a single resource keeps the whole list of sessions.
        any_level = [pair for session in found for pair in self._any_level(asked, session)]
        return Level(resources, base, found[0].label, blank=everything, everywhere=any_level)

    def _any_level(self, asked: Asked, session: Experiment) -> Found:
        """Return the resources of a session, of its scans and reconstructions, and of its assessors."""
        below = [*self._readable_assessors(asked, session)] if not session.session else []
        return [pair for item in (session, *below) for pair in item.held_at_any_level()]

    def _scan(
        self, asked: Asked, session: Experiment, key: str, tail: Sequence[str], above: Level | None, base: str
    ) -> Reply:
        found = [scan for scan in session.scans if _scan_matches(scan.id, scan.type, unquote_plus(key))]
        if tail[:1] not in (("resources",), ("files",)):
            exact = next((scan for scan in session.scans if scan.id == key), None)
            if exact is None:
                raise Failed(404, "Unable to identify scan")
            return documents.scan(session, exact, asked)
        if asked.head and len(found) != 1:
            raise Failed(404, "Unable to identify scan")
        if not found:
            return self._missing(asked, tail, above)
        resources = [pair for scan in found for pair in session.held_by_scan(scan)]
        part = ",".join(scan.id for scan in found) if key.upper() not in ("ALL", "*") else "ALL"
        return self.levels.answer(asked, Level(resources, f"{base}/scans/{part}", session.label, typed=True), tail)

    def _readable_assessors(self, asked: Asked, session: Experiment) -> list[Experiment]:
        return [a for a in self.archive.assessors_of(session) if self.archive.reads_item(asked.user, a)]

    def _assessor(
        self, asked: Asked, session: Experiment, key: str, tail: Sequence[str], above: Level | None, base: str
    ) -> Reply:
        found = [
            assessor
            for assessor in self._readable_assessors(asked, session)
            if key in (assessor.id, assessor.label, assessor.xsi_type, "*") or key.upper() == "ALL"
        ]
        side = tail[0] if tail[:1] in (("in",), ("out",)) else ""
        rest = tail[1:] if side else tail
        if rest[:1] not in (("resources",), ("files",)):
            if not found:
                raise Failed(404, "Unable to identify assessor")
            return documents.experiment(self.archive, found[0], asked)
        if asked.head and len(found) != 1:
            raise Failed(404, "Unable to identify assessor")
        if not found:
            return self._missing(asked, rest, above)
        of_side = (lambda assessor: assessor.held_as_assessor("in")) if side == "in" else _of_assessor
        resources = [pair for assessor in found for pair in of_side(assessor)]
        part = f"{base}/assessors/{','.join(a.id for a in found)}" + (f"/{side}" if side else "")
        any_level = [pair for assessor in found for pair in assessor.held_at_any_level()]
        return self.levels.answer(asked, Level(resources, part, session.label, everywhere=any_level), rest)

    def _reconstruction(
        self, asked: Asked, session: Experiment, key: str, tail: Sequence[str], above: Level | None, base: str
    ) -> Reply:
        key = unquote_plus(key)
        found = [r for r in session.reconstructions if key == r.id or key.upper() in ("ALL", "*")]
        side = tail[0] if tail[:1] in (("in",), ("out",)) else "out"
        rest = tail[1:] if tail[:1] in (("in",), ("out",)) else tail
        if not found:
            return self._missing(asked, rest, above)
        resources = [pair for recon in found for pair in session.held_by_reconstruction(recon, side)]
        part = f"{base}/reconstructions/{','.join(r.id for r in found)}"
        return self.levels.answer(asked, Level(resources, part, session.label), rest)


def _project_level(project: Project) -> Level:
    return Level(project.held(), f"/data/projects/{project.id}", project.id)


def _of_assessor(assessor: Experiment) -> Found:
    """Return the resources and the outputs of an assessor; the server lists them alike."""
    return [*assessor.held_as_assessor(""), *assessor.held_as_assessor("out")]


def _scan_matches(id: str, type: str, key: str) -> bool:
    if key.upper() in ("ALL", "*"):
        return True
    wanted = [part.replace("[SLASH]", "/").replace("[COMMA]", ",") for part in key.split(",")]
    return id in wanted or type in wanted or ("NULL" in wanted and not type)
