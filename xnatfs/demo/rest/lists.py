"""List items: projects, subjects, scans, assessors, reconstructions, shares, members."""

from xnatfs.demo.archive.model import Archive, Experiment, Project, Subject
from xnatfs.demo.rest.tables import Query, Rows, filtered, free, paged, select, stored, table, true
from xnatfs.demo.server.reply import Failed, Reply
from xnatfs.demo.server.site import Joins

PROJECT_COLUMNS = ("ID", "secondary_ID", "name", "description", "pi_firstname", "pi_lastname", "URI")
SUBJECT_COLUMNS = ("ID", "project", "label", "insert_date", "insert_user", "URI")
SUBJECT_RESOURCE = "xnat:subjectdata/resources/resource/label"
# Fields of a subject that have a shortcut; a column of one that is not set is empty.
SUBJECT_FIELDS = (
    "group", "src", "dob", "yob", "age", "gender", "handedness", "ses", "education", "educationDesc", "race",
    "ethnicity", "weight", "height", "gestational_age", "post_menstrual_age", "birth_weight",
)  # fmt: skip
ROLES = {"owner": "Owners", "member": "Members", "collaborator": "Collaborators"}
ROLE_PARAMETERS = {"accessible", "owner", "member", "collaborator", "admin", "users", "data", "prearc_code", "recent"}


def projects(archive: Archive, user: str, query: Query) -> Reply:
    seen = [project for project in archive.projects.values() if archive.sees(user, project.id)]
    if ROLE_PARAMETERS & query.keys():
        return _projects_by_role(archive, user, seen, query)
    if query.get("restrict") in ("edit", "delete"):
        allowed = ("Owners", "Members") if query["restrict"] == "edit" else ("Owners",)
        seen = [project for project in seen if archive.role(user, project.id) in allowed]
    rows = [
        {
            "ID": project.id,
            "secondary_ID": stored(project.secondary_id or project.id),
            "name": free(project.name, query),
            "description": free(project.description, query),
            "pi_firstname": "",
            "pi_lastname": "Demo",
            "URI": f"/data/projects/{project.id}",
        }
        for project in seen
    ]
    return table(select(rows, query, PROJECT_COLUMNS, ("URI",)), query, columns=PROJECT_COLUMNS)


def _projects_by_role(archive: Archive, user: str, seen: list[Project], query: Query) -> Reply:
    wanted = {role for name, role in ROLES.items() if true(query, name)}
    if wanted:
        seen = [project for project in seen if archive.role(user, project.id) in wanted]
    if query.get("accessible") == "false":
        seen = [project for project in seen if not archive.role(user, project.id)]
    rows = [
        {
            "id": project.id,
            "secondary_id": stored(project.secondary_id or project.id),
            "name": free(project.name, query),
            "description": free(project.description, query),
            "pi": "Demo",
            "project_invs": "",
            "project_access": project.access,
            "project_access_img": "/@WEBAPPimages/key.gif",
            "quarantine_status": "active",
            "insert_date": "2024-01-02 03:04:05.678",
            "insert_user": "admin",
            "user_role_1": archive.role(user, project.id),
            "last_accessed_1": "",
        }
        for project in sorted(seen, key=lambda project: project.id)
    ]
    return table(rows, query, title="Projects", xdat_user_id="1", ordered=True)


def _subject_row(archive: Archive, subject: Subject, label: str, query: Query) -> dict[str, str]:
    return {
        "ID": subject.id,
        "project": subject.project,
        "label": stored(label),
        "insert_date": subject.inserted,
        "insert_user": "admin",
        "last_modified": subject.last_modified,
        **dict.fromkeys(SUBJECT_FIELDS, "") | {key: free(value, query) for key, value in subject.fields.items()},
        "URI": f"/data/subjects/{subject.id}",
    }


def subjects(archive: Archive, project: str, query: Query, joins: Joins = "answered") -> Reply:
    """List the subjects of a project. On request, there is one row per resource label (not confirmed: `joins`)."""
    asked = query.get("columns", "ID,label").lower().split(",")
    there = {"id", "label"} <= set(asked) or "default" in asked  # else a share has the label of its own project
    rows = [
        _subject_row(archive, subject, label if there else subject.label, query)
        for subject, label in archive.subjects_in(project)
    ]
    if SUBJECT_RESOURCE in asked and joins == "refused":
        raise Failed(500, "")
    if SUBJECT_RESOURCE in asked and joins == "answered":
        rows = [row | {SUBJECT_RESOURCE: label} for row in rows for label in _labels(archive, row["ID"])]
    return _people(rows, query)


def _labels(archive: Archive, subject: str) -> list[str]:
    return [stored(resource.label) for resource in archive.subjects[subject].resources] or [""]


def all_subjects(archive: Archive, user: str, query: Query) -> Reply:
    seen = [subject for subject in archive.subjects.values() if archive.reads_item(user, subject)]
    return _people([_subject_row(archive, subject, subject.label, query) for subject in seen], query)


def _people(rows: Rows, query: Query) -> Reply:
    page, whole = paged(
        filtered(rows, query, ("ID", "label", "project", "group", "gender", "insert_date", "last_modified")), query
    )
    return table(select(page, query, SUBJECT_COLUMNS, ("ID", "URI")), query, total=whole, columns=SUBJECT_COLUMNS)


def scans(session: Experiment, query: Query) -> Reply:
    rows = [
        {
            "xnat_imagescandata_id": str(scan.pk),
            "ID": stored(scan.id),
            "type": free(scan.type, query),
            "quality": scan.quality,
            "xsiType": scan.xsi_type,
            "note": free(scan.note, query),
            "series_description": free(scan.series_description, query),
            "frames": scan.frames,
            "URI": f"/data/experiments/{session.id}/scans/{stored(scan.id)}",
        }
        for scan in session.scans
    ]
    defaults = ("xnat_imagescandata_id", "ID", "type", "quality", "xsiType", "note", "series_description", "URI")
    return table(select(rows, query, defaults, ("xnat_imagescandata_id", "URI")), query, columns=defaults)


def assessors(archive: Archive, session: Experiment, query: Query) -> Reply:
    rows = [
        {
            "ID": assessor.id,
            "project": assessor.project,
            "label": stored(assessor.label),
            "date": assessor.date,
            "xsiType": assessor.xsi_type,
            "insert_date": assessor.inserted,
            "session_ID": session.id,
            "session_label": stored(session.label),
            "xnat:imageassessordata/id": assessor.id,
            "URI": f"/data/experiments/{assessor.id}",
        }
        for assessor in archive.assessors_of(session)
    ]
    defaults = tuple(rows[0]) if rows else ("ID", "label")
    return table(select(rows, query, defaults, ("xnat:imageassessordata/id", "URI")), query, columns=defaults)


def reconstructions(session: Experiment, query: Query) -> Reply:
    rows = [
        {
            "xnat_reconstructedimagedata_id": str(n + 1),
            "ID": stored(recon.id),
            "type": stored(recon.type),
            "baseScanType": "",
            "URI": f"/data/experiments/{session.id}/reconstructions/{recon.id}",
        }
        for n, recon in enumerate(session.reconstructions)
    ]
    return table(rows, query)


def shares(archive: Archive, item: Subject | Experiment, query: Query) -> Reply:
    places = {item.project: item.label, **item.shared}
    rows = [
        {"label": stored(label), "ID": id, "Secondary_ID": id, "Name": free(archive.projects[id].name, query)}
        for id, label in places.items()
    ]
    return table(rows, query, total=False, ordered=True)


def members(archive: Archive, project: Project, query: Query) -> Reply:
    rows = [
        {
            "login": user,
            "displayname": role,
            "GROUP_ID": f"{project.id}_{role[:-1].lower()}",
            "email": "",
            "xdat_user_id": "",
        }
        for user, role in project.members.items()
    ]
    return table(rows, query, columns=("login", "displayname", "GROUP_ID", "email", "xdat_user_id"))


def groups(project: Project, query: Query) -> Reply:
    rows = [{"id": f"{project.id}_{role}", "displayname": f"{role.title()}s"} for role in ROLES]
    return table(rows, query)


def scan_types(archive: Archive, user: str, query: Query, project: str = "") -> Reply:
    """List the scan types in use, in the data that the user reads, each with the descriptions of all its series."""
    found: dict[str, str] = {}
    for experiment in archive.experiments.values():
        if project in ("", experiment.project) and archive.reads_item(user, experiment):
            for scan in experiment.scans:
                series = f"{scan.series_description}," if scan.series_description else ""
                found[scan.type] = found.get(scan.type, "") + series
    rows = [{"type": free(type, query), "series_descriptions": free(all, query)} for type, all in found.items()]
    return table(rows, query, title="Scan Types", columns=("type", "series_descriptions"))
