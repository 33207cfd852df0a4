"""Create, change, rename, share, move and delete items (XNAT REST contract 10.1, 10.2, 10.6, 10.7)."""

import re
from collections.abc import Mapping
from datetime import datetime

from xnatfs.demo.archive.addresses import Place
from xnatfs.demo.archive.data_types import EXPERIMENTS, SCANS
from xnatfs.demo.archive.item_documents import fields_of
from xnatfs.demo.archive.model import Experiment, Project, Reconstruction, Scan, Subject
from xnatfs.demo.archive.rights import need_editor, need_owner, need_visible
from xnatfs.demo.archive.vault import Vault
from xnatfs.demo.rest.resources import Asked
from xnatfs.demo.rest.tables import true
from xnatfs.demo.server.reply import Failed, Reply, text
from xnatfs.demo.server.site import DemoSite

LABEL = re.compile(r"[A-Za-z0-9_-]+")
ACCESS_LEVELS = ("private", "protected", "public")
FIELD_CHARACTERS = 255
NUMERIC_FIELDS = ("yob", "age", "education", "gestational_age", "post_menstrual_age")
# Parameters that control a change; they are not fields of the item.
CONTROL_PARAMETERS = {
    "label", "xsiType", "format", "method", "media", "primary", "removeFiles", "XNAT_CSRF", "event_reason",
    "event_action", "event_type", "event_comment", "allowDataDeletion", "pullDataFromHeaders", "fixScanTypes",
    "triggerPipelines", "ID", "project", "subject_ID", "subject_label", "accessibility", "req_format",
}  # fmt: skip


class Changes:
    """Apply changes of items."""

    def __init__(self, site: DemoSite, vault: Vault) -> None:
        self.site = site
        self.archive = site.archive
        self.vault = vault
        self._deleted: set[str] = set()  # IDs of deleted projects, which cannot be used again

    def answer(self, asked: Asked, place: Place | None, rest: tuple[str, ...], body: bytes) -> Reply:
        """Apply the change that a request makes.

        Args:
            asked: The request.
            place: The item that its URL addresses; None for a collection of the site.
            rest: The path below the item.
            body: The body.

        Raises:
            Failed: The change is refused.
        """
        if self.site.justification and not asked.query.get("event_reason"):
            raise Failed(403, "Justification required.")
        match asked.method, rest:
            case "POST", (collection,) if collection in (place.below() if place else ("projects",)):
                return self._post(asked, place, collection, body)
            case _ if place is None:
                raise Failed(405 if len(asked.segments) == 1 else 404, "")
            case "PUT", ():
                return self._put(asked, place, fields_of(asked.query, body))
            case "DELETE", ():
                return self._delete(asked, place)
            case (("PUT" | "DELETE"), ("projects", other)) if place.kind in ("subject", "experiment"):
                return self._share(asked, place, other)
            case "PUT", ("accessibility", level) if place.kind == "project":
                return self._accessibility(asked, place, level)
            case "PUT", ("prearchive_code", code) if place.kind == "project":
                self._owned(asked, place).prearchive_code = code
                return text("")
            case "POST", ():
                raise Failed(405, "Method Not Allowed")
        raise Failed(400, "")

    # -- making and changing -----------------------------------------------------------------------------------

    def _put(self, asked: Asked, place: Place, fields: Mapping[str, str]) -> Reply:
        _check(fields)
        match place.kind:
            case "project":
                self._project(asked, place, fields)
                return text("")
            case "subject":
                made, new = self._subject(asked, place, fields)
            case "scan":
                self._scan(asked, place, fields)
                return text("")
            case "reconstruction":
                need_editor(self.archive, asked.user, place.session().project)
                recon = place.item or Reconstruction(place.key)
                assert isinstance(recon, Reconstruction)
                recon.type = fields.get("type", recon.type)
                if place.item is None:
                    place.session().reconstructions.append(recon)
                return text("")
            case _:
                made, new = self._experiment(asked, place, fields)
        return text(made, 201 if new else 200)

    def _post(self, asked: Asked, place: Place | None, collection: str, body: bytes) -> Reply:
        """Create an item and reply with its URL."""
        fields = dict(fields_of(asked.query, body))
        kind = {"projects": "project", "subjects": "subject", "scans": "scan", "assessors": "assessor"}.get(collection)
        kind = kind or ("reconstruction" if collection == "reconstructions" else "experiment")
        key = fields.get("ID", "") if kind in ("project", "scan", "reconstruction") else fields.pop("label", "")
        if not key:
            raise Failed(417, "Need PUT Contents")
        if place is not None and place.item is None and kind != "experiment":
            raise Failed(404, f"Unable to identify {place.kind}")
        above = "/".join(asked.segments)
        if kind == "project" and key in self.archive.projects:
            raise Failed(409, "Specified project already exists.")
        reply = self._put(asked, Place(kind, key, None, place), fields)
        made = reply.body.decode() if isinstance(reply.body, bytes) else ""
        url = f"{self.site.url}/data/{above}/{made or key}"
        return Reply(200, url.encode(), headers={"Location": url})

    def _project(self, asked: Asked, place: Place, fields: Mapping[str, str]) -> None:
        project = place.item
        if project is None:
            user = self.archive.users.get(asked.user)
            if user is None or not (user.admin or self.site.users_create_projects):
                raise Failed(403, "This user may not create projects.")
            if not LABEL.fullmatch(place.key):
                raise Failed(417, "Invalid character in project ID.")
        else:
            need_editor(self.archive, asked.user, place.key)
        names = [place.key] if project is None else []
        names += [fields[name] for name in ("name", "secondary_ID", "alias") if fields.get(name)]
        level = fields.get("accessibility", project.access if isinstance(project, Project) else "private")
        if level not in ACCESS_LEVELS:
            raise Failed(400, f"Unknown accessibility: {level}")
        taken = {
            name.lower() for other in self.archive.projects.values() if other is not project for name in _of(other)
        }
        if (taken | self._deleted) & {name.lower() for name in names}:
            raise Failed(409, "Conflict: Duplicate project ID, title or alias")
        if project is None:
            project = self.archive.project(place.key, place.key)
            project.members[asked.user] = "Owners"
        assert isinstance(project, Project)
        project.name = fields.get("name", project.name)
        project.description = fields.get("description", project.description)
        project.secondary_id = fields.get("secondary_ID", project.secondary_id)
        project.alias = fields.get("alias", project.alias)
        project.access = level

    def _subject(self, asked: Asked, place: Place, fields: Mapping[str, str]) -> tuple[str, bool]:
        subject, new = place.item, place.item is None
        if subject is None:
            if place.above is None or fields.get("label", place.key) != place.key:
                raise Failed(404, "Unable to identify subject")
            subject = self.new_subject(asked.user, place.above.project(), place.key)
        assert isinstance(subject, Subject)
        need_editor(self.archive, asked.user, subject.project)
        if not new and fields.get("label", subject.label) != subject.label:
            _check_label(fields["label"])
            if any(label == fields["label"] for _, label in self.archive.subjects_in(subject.project)):
                raise Failed(409, "Conflict: Duplicate subject label")
            subject.label = fields["label"]
        subject.fields.update(_values(fields))
        return subject.id, new

    def new_subject(self, user: str, project: str, label: str) -> Subject:
        need_editor(self.archive, user, project)
        _check_label(label)
        return self.archive.subject(self.archive.projects[project], label)

    def _experiment(self, asked: Asked, place: Place, fields: Mapping[str, str]) -> tuple[str, bool]:
        """Create or change a session, another subject assessment, or an assessor."""
        found, new = place.item, place.item is None
        if found is None:
            found = self._new_experiment(asked, place, fields)
        assert isinstance(found, Experiment)
        need_editor(self.archive, asked.user, found.project)
        if not new and place.above and isinstance(place.above.item, Subject) and found.subject != place.above.item.id:
            raise Failed(409, "Conflict: Duplicate experiment label")
        if not new and fields.get("label", found.label) != found.label:
            _check_label(fields["label"])
            self._check_free(found.project, fields["label"])
            found.label = fields["label"]
        found.date = day(fields["date"]) if "date" in fields else found.date
        found.fields.update({key: value for key, value in _values(fields).items() if key != "date"})
        return found.id, new

    def _new_experiment(self, asked: Asked, place: Place, fields: Mapping[str, str]) -> Experiment:
        if place.above is None or fields.get("label", place.key) != place.key:
            raise Failed(404, "Unable to identify experiment")
        if "xsiType" not in fields:
            raise Failed(417, "Need PUT Contents")
        xsi_type = EXPERIMENTS.get(fields["xsiType"].lower())
        if xsi_type is None:
            raise Failed(400, f"Unknown data type: {fields['xsiType']}")
        if place.kind == "assessor":
            session = place.session()
            need_editor(self.archive, asked.user, session.project)
            _check_label(place.key)
            self._check_free(session.project, place.key)
            return self.archive.assessor(session, place.key, xsi_type)
        listing = place.above if place.above.kind == "project" else place.above.above
        project = listing.project() if listing else place.above.project()
        need_editor(self.archive, asked.user, project)
        _check_label(place.key)
        self._check_free(project, place.key)
        subject = place.above.item
        if subject is None:  # the request creates it as well
            subject = self.new_subject(asked.user, project, place.above.key)
        if isinstance(subject, Project):
            key = fields.get("subject_ID") or fields.get("subject_label", "")
            subject = self.archive.find_subject(project, key) or self.new_subject(asked.user, project, key)
        assert isinstance(subject, Subject)
        return self.archive.experiment(subject, place.key, project=project, xsi_type=xsi_type, date="")

    def _check_free(self, project: str, label: str) -> None:
        if any(taken == label for _, taken in self.archive.experiments_in(project)):
            raise Failed(409, "Conflict: Duplicate experiment label")

    def _scan(self, asked: Asked, place: Place, fields: Mapping[str, str]) -> None:
        scan, session = place.item, place.session()
        need_editor(self.archive, asked.user, session.project)
        xsi_type = SCANS.get(fields.get("xsiType", "").lower())
        if scan is None:
            if xsi_type is None:
                raise Failed(400, "A concrete data type is required.")
            scan = self.archive.scan(session, place.key, xsi_type=xsi_type, quality="")
        assert isinstance(scan, Scan)
        if "xsiType" in fields and xsi_type != scan.xsi_type:
            raise Failed(409, "Conflict: the scan is of another type")
        for name in ("type", "quality", "series_description", "note"):
            setattr(scan, name, fields.get(name, getattr(scan, name)))

    def _accessibility(self, asked: Asked, place: Place, level: str) -> Reply:
        project = self._owned(asked, place)
        if level not in ACCESS_LEVELS:
            raise Failed(400, f"Unknown accessibility: {level}")
        if level != "private" and not self.site.non_private_projects:
            raise Failed(403, "Projects must be private on this site.")
        project.access = level
        return text(level)

    def _owned(self, asked: Asked, place: Place) -> Project:
        """Return the project, whose settings the user may change. Raises Failed."""
        if not isinstance(place.item, Project):
            raise Failed(404, f"Unable to identify project: {place.key}")
        need_owner(self.archive, asked.user, place.item.id)
        return place.item

    # -- sharing -----------------------------------------------------------------------------------------------

    def _share(self, asked: Asked, place: Place, other: str) -> Reply:
        item, query = place.item, asked.query
        if not isinstance(item, Subject | Experiment):
            raise Failed(404, f"Unable to identify {place.kind}")
        need_visible(self.archive, asked.user, other)
        if asked.method == "DELETE":
            return self._unshare(asked, item, other)
        need_editor(self.archive, asked.user, other)
        label = query.get("label", item.shared.get(other, item.label))
        if query.get("primary") == "true":
            need_editor(self.archive, asked.user, item.project)
        elif other in (item.project, *item.shared):
            raise Failed(409, "Already shared into this project")
        rows = self.archive.subjects_in(other) if isinstance(item, Subject) else self.archive.experiments_in(other)
        if any(taken == label and row is not item for row, taken in rows):
            raise Failed(409, f"Conflict: Duplicate {place.kind} label")
        if query.get("primary") == "true":
            item.shared.pop(other, None)
            item.project, item.label = other, label
        else:
            item.shared[other] = label
        return text("")

    def _unshare(self, asked: Asked, item: Subject | Experiment, other: str) -> Reply:
        if other == item.project:
            raise Failed(400, "Cannot remove an item from the project that owns it.")
        if other not in item.shared:
            raise Failed(404, "Not shared into this project")
        need_owner(self.archive, asked.user, other)
        del item.shared[other]
        return text("")

    # -- deleting ----------------------------------------------------------------------------------------------

    def _delete(self, asked: Asked, place: Place) -> Reply:
        if place.item is None:
            raise Failed(404, f"Unable to identify {place.kind}")
        listing = place.above.above if place.above and place.above.kind == "subject" else place.above
        shared = isinstance(place.item, Subject | Experiment) and listing is not None and listing.kind == "project"
        if shared and listing is not None and listing.project() != place.project():
            assert isinstance(place.item, Subject | Experiment)
            return self._unshare(asked, place.item, listing.project())
        need_owner(self.archive, asked.user, place.project())
        if not self.site.deletion:
            raise Failed(403, "Data deletion is disabled on this site.")
        before = [resource for resource, _ in self.archive.resources()]
        self._remove(place)
        if true(asked.query, "removeFiles"):
            left = {resource.id for resource, _ in self.archive.resources()}
            self.vault.drop(entry for resource in before if resource.id not in left for entry in resource.entries)
        return text("")

    def _remove(self, place: Place) -> None:
        match place.item:
            case Project() as project:
                for subject in [s for s in self.archive.subjects.values() if s.project == project.id]:
                    self._remove_subject(subject)
                for experiment in [e for e in self.archive.experiments.values() if e.project == project.id]:
                    self._remove_experiment(experiment)
                shares = [item.shared for item in self.archive.subjects.values()]
                for shared in shares + [item.shared for item in self.archive.experiments.values()]:
                    shared.pop(project.id, None)
                del self.archive.projects[project.id]
                self._deleted.add(project.id.lower())
            case Subject() as subject:
                self._remove_subject(subject)
            case Experiment() as experiment:
                self._remove_experiment(experiment)
            case Scan() as scan:
                place.session().scans.remove(scan)
            case Reconstruction() as recon:
                place.session().reconstructions.remove(recon)

    def _remove_subject(self, subject: Subject) -> None:
        for experiment in [e for e in self.archive.experiments.values() if e.subject == subject.id]:
            self._remove_experiment(experiment)
        del self.archive.subjects[subject.id]

    def _remove_experiment(self, experiment: Experiment) -> None:
        for assessor in self.archive.assessors_of(experiment):
            self._remove_experiment(assessor)
        self.archive.experiments.pop(experiment.id, None)


def _of(project: Project) -> list[str]:
    return [project.id, project.name, *(name for name in (project.secondary_id, project.alias) if name)]


def _check_label(label: str) -> None:
    if not LABEL.fullmatch(label):
        raise Failed(417, f"Invalid characters in label: {label}")


def _check(fields: Mapping[str, str]) -> None:
    """Raise Failed if a value cannot be stored."""
    for key, value in fields.items():
        name = key.rpartition("/")[2]
        if len(value) > FIELD_CHARACTERS:
            raise Failed(400, f"{name} is too long")
        if name in ("date", "dob") and value:
            day(value)
        if name in NUMERIC_FIELDS and value and not value.isdigit():
            raise Failed(400, f"Invalid value for {name}: {value}")


def _values(fields: Mapping[str, str]) -> dict[str, str]:
    return {key.rpartition("/")[2]: value for key, value in fields.items() if key not in CONTROL_PARAMETERS}


def day(text: str) -> str:
    """Return a date in the database's form, YYYY-MM-DD. Raises Failed if it is none."""
    for form in ("%m/%d/%Y", "%Y-%m-%d"):
        try:
            return datetime.strptime(text, form).date().isoformat()
        except ValueError:
            continue
    raise Failed(400, f"Invalid date: {text}")
