"""The lists of items: projects, subjects, experiments, scans, assessors, reconstructions, shares."""

from html import escape

from xnatfs.demo.archive import Archive, Experiment, Project, Subject
from xnatfs.demo.reply import Failed, Reply
from xnatfs.demo.tables import Query, Rows, filtered, paged, select, table

PROJECT = ("ID", "secondary_ID", "name", "description", "pi_firstname", "pi_lastname", "URI")
SUBJECT = ("ID", "project", "label", "insert_date", "insert_user", "URI")
EXPERIMENT = ("ID", "project", "date", "xsiType", "label", "insert_date", "URI")
ROLES = {"owner": "Owners", "member": "Members", "collaborator": "Collaborators"}
OTHER_HANDLER = {"accessible", "owner", "member", "collaborator", "admin", "users", "data", "prearc_code", "recent"}


def projects(archive: Archive, user: str, query: Query) -> Reply:
    seen = [project for project in archive.projects.values() if archive.sees(user, project.id)]
    if OTHER_HANDLER & query.keys():
        return _projects_by_role(archive, user, seen, query)
    if query.get("restrict") in ("edit", "delete"):
        allowed = ("Owners", "Members") if query["restrict"] == "edit" else ("Owners",)
        seen = [project for project in seen if archive.role(user, project.id) in allowed]
    rows = [
        {
            "ID": project.id,
            "secondary_ID": project.id,
            "name": escape(project.name),
            "description": escape(project.description),
            "pi_firstname": "",
            "pi_lastname": "Demo",
            "URI": f"/data/projects/{project.id}",
        }
        for project in seen
    ]
    return table(select(rows, query, PROJECT, ("URI",)), query, columns=PROJECT)


def _projects_by_role(archive: Archive, user: str, seen: list[Project], query: Query) -> Reply:
    wanted = {role for name, role in ROLES.items() if query.get(name) == "true"}
    if wanted:
        seen = [project for project in seen if archive.role(user, project.id) in wanted]
    if query.get("accessible") == "false":
        seen = [project for project in seen if not archive.role(user, project.id)]
    rows = [
        {
            "id": project.id,
            "secondary_id": project.id,
            "name": escape(project.name),
            "description": escape(project.description),
            "pi": "Demo",
            "project_access": project.access,
            "user_role_1": archive.role(user, project.id),
            "insert_date": "2024-01-02 03:04:05.678",
        }
        for project in sorted(seen, key=lambda project: project.id)
    ]
    return table(rows, query, title="Projects", extra={"xdat_user_id": "1"})


def _subject_row(archive: Archive, subject: Subject, label: str) -> dict[str, str]:
    return {
        "ID": subject.id,
        "project": subject.project,
        "label": escape(label),
        "insert_date": subject.inserted,
        "insert_user": "admin",
        "last_modified": subject.last_modified,
        "group": "",
        "gender": "",
        "URI": f"/data/subjects/{subject.id}",
    }


def subjects(archive: Archive, project: str, query: Query) -> Reply:
    rows = [_subject_row(archive, subject, label) for subject, label in archive.subjects_in(project)]
    return _people(rows, query)


def all_subjects(archive: Archive, user: str, query: Query) -> Reply:
    seen = [subject for subject in archive.subjects.values() if archive.reads_item(user, subject)]
    return _people([_subject_row(archive, subject, subject.label) for subject in seen], query)


def _people(rows: Rows, query: Query) -> Reply:
    page, whole = paged(filtered(rows, query, ("ID", "label", "project")), query)
    return table(select(page, query, SUBJECT, ("ID", "URI")), query, total=whole, columns=SUBJECT)


def _experiment_row(archive: Archive, experiment: Experiment, label: str, project: str) -> dict[str, str]:
    subject = archive.subjects[experiment.subject]
    subject_label = subject.label if subject.project == project else subject.shared.get(project, subject.label)
    return {
        "ID": experiment.id,
        "xnat:subjectassessordata/id": experiment.id,
        "project": project,
        "date": experiment.date,
        "xsiType": experiment.xsi_type,
        "label": escape(label),
        "insert_date": experiment.inserted,
        "last_modified": experiment.last_modified,
        "subject_ID": subject.id,
        "subject_label": escape(subject_label),
        "URI": f"/data/experiments/{experiment.id}",
    }


def experiments(archive: Archive, project: str, query: Query, subject: Subject | None = None) -> Reply:
    """Subject assessors only: sessions and other assessments, not the assessors of sessions."""
    rows = [
        _experiment_row(archive, experiment, label, project)
        for experiment, label in archive.experiments_in(project)
        if not experiment.session and (subject is None or experiment.subject == subject.id)
    ]
    return _assessments(rows, query)


def all_experiments(archive: Archive, user: str, query: Query) -> Reply:
    seen = [e for e in archive.experiments.values() if archive.reads_item(user, e)]
    if "xnat:imagescandata/id" in query.get("columns", "").lower():
        return _scan_join(archive, seen, query)
    rows = [_experiment_row(archive, e, e.label, e.project) for e in seen]
    return _assessments(rows, query, title="Matching experiments")


def _assessments(rows: Rows, query: Query, title: str = "") -> Reply:
    if "xsiType" in query:
        rows = (
            filtered(rows, query, ("xsiType",))
            if "imageSession" not in query["xsiType"]
            else [row for row in rows if row["xsiType"].endswith("SessionData")]
        )
    page, whole = paged(filtered(rows, query, ("ID", "label", "project", "subject_ID", "subject_label")), query)
    chosen = select(page, query, EXPERIMENT, ("xnat:subjectassessordata/id", "URI"))
    return table(chosen, query, title=title, total=whole, columns=EXPERIMENT)


def _scan_join(archive: Archive, seen: list[Experiment], query: Query) -> Reply:
    """One row per session and scan, and per resource label where that is asked for."""
    labels = "xnat:imagescandata/file/label" in query["columns"].lower()
    rows: Rows = []
    owners = query.get("project", "").split(",") if query.get("project") else None
    shared = query.get("xnat:imagesessiondata/sharing/share/project")
    for session in seen:
        if not session.xsi_type.endswith("SessionData") or (owners and session.project not in owners):
            continue
        if shared and shared not in session.shared:
            continue
        base = _experiment_row(archive, session, session.label, session.project)
        base["session_ID"] = session.id
        for scan in session.scans:
            cells = {
                **base,
                "xnat:imagescandata/id": scan.id,
                "xnat:imagescandata/type": escape(scan.type),
                "xnat:imagescandata/quality": scan.quality,
                "xnat:imagescandata/series_description": escape(scan.series_description),
            }
            for resource in scan.resources if labels else [None]:
                rows.append({**cells, "xnat:imagescandata/file/label": resource.label} if resource else cells)
        if not session.scans:
            names = ("id", "type", "quality", "series_description", *(["file/label"] if labels else []))
            rows.append({**base, **{f"xnat:imagescandata/{name}": "" for name in names}})
    return table(select(rows, query, EXPERIMENT, ("session_ID", "URI")), query)


def scans(session: Experiment, query: Query) -> Reply:
    rows = [
        {
            "xnat_imagescandata_id": str(scan.pk),
            "ID": scan.id,
            "type": escape(scan.type),
            "quality": scan.quality,
            "xsiType": scan.xsi_type,
            "note": escape(scan.note),
            "series_description": escape(scan.series_description),
            "URI": f"/data/experiments/{session.id}/scans/{scan.id}",
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
            "label": escape(assessor.label),
            "date": assessor.date,
            "xsiType": assessor.xsi_type,
            "insert_date": assessor.inserted,
            "session_ID": session.id,
            "session_label": escape(session.label),
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
            "ID": recon.id,
            "type": recon.type,
            "baseScanType": "",
            "URI": f"/data/experiments/{session.id}/reconstructions/{recon.id}",
        }
        for n, recon in enumerate(session.reconstructions)
    ]
    return table(rows, query)


def shares(archive: Archive, item: Subject | Experiment, query: Query) -> Reply:
    places = {item.project: item.label, **item.shared}
    rows = [
        {"label": escape(label), "ID": id, "Secondary_ID": id, "Name": escape(archive.projects[id].name)}
        for id, label in places.items()
    ]
    return table(rows, query)


def need_reader(archive: Archive, user: str, project: str, what: str) -> None:
    """404 for a project that is not seen, 403 for a protected one. Raises Failed."""
    if project not in archive.projects or not archive.sees(user, project):
        raise Failed(404, f"Unable to identify project: {project}")
    if not archive.reads(user, project):
        raise Failed(403, f"Unable to read {what} for Project: {project}")
