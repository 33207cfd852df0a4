"""List the experiments of a project, of a subject or of the site, optionally joined with their scans."""

from dataclasses import replace

from xnatfs.demo.archive.model import Archive, Experiment, Resource, Subject
from xnatfs.demo.rest.columns import SCAN, SESSION_RESOURCE, Chosen, choose, without_joins
from xnatfs.demo.rest.tables import Query, Rows, filtered, free, paged, stored, table
from xnatfs.demo.server.reply import Reply
from xnatfs.demo.server.site import Joins

DEFAULT = ("ID", "project", "date", "xsiType", "label", "insert_date")
FILTERS = (
    "ID", "label", "project", "date", "xsiType", "subject_ID", "subject_label", "session_ID", "session_label",
    "insert_date", "last_modified",
)  # fmt: skip
FILE_COLUMNS = tuple(f"{SCAN}file/{name}" for name in ("label", "file_count", "file_size"))
SHARED_INTO = "xnat:imagesessiondata/sharing/share/project"


def experiments(archive: Archive, project: str, query: Query, subject: Subject | None = None) -> Reply:
    """List the sessions and other subject assessments of a project, without the assessors of sessions."""
    chosen = choose(query, DEFAULT, "xnat:subjectAssessorData")
    rows = [
        _shared(archive, experiment, label, project, query) if chosen.shares else _own(archive, experiment, query)
        for experiment, label in archive.experiments_in(project)
        if not experiment.session and (subject is None or experiment.subject == subject.id)
    ]
    page, whole = paged(_wanted(rows, query, chosen), query)
    return table(chosen.rows(page), query, total=whole, columns=chosen.names)


def all_experiments(archive: Archive, user: str, query: Query, joins: Joins = "answered") -> Reply:
    """List the experiments of the site, image assessors included. Pages are cut before permissions are checked.

    It is not confirmed that this list can be joined with the scans of sessions and the sessions of assessors: `joins`.
    """
    chosen = choose(query, DEFAULT, "xnat:experimentData")
    chosen, query = without_joins(chosen, query, joins)
    # The server checks permissions by these columns, and leaves them in the list.
    chosen = replace(chosen, names=list(dict.fromkeys([*chosen.names, "project", "xsiType"])))
    found = [e for e in archive.experiments.values() if query.get(SHARED_INTO, "") in ("", *e.shared)]
    rows = _wanted([_own(archive, e, query) for e in found], query, chosen)
    page, whole = paged(rows, query)
    page = [row for row in page if _reads(archive, user, archive.experiments[row["id"]], query)]
    if not query.release.typed_site_key:
        chosen = replace(chosen, names=[name for name in chosen.names if name != "xnat:experimentdata/id"])
    if any(name.lower().startswith(SCAN) for name in chosen.names):
        page = _with_scans(archive, page, query, any(name.lower() in FILE_COLUMNS for name in chosen.names))
    if any(name.lower() == SESSION_RESOURCE for name in chosen.names):
        page = _with_resources(archive, page)
    return table(chosen.rows(page), query, title="Matching experiments", total=whole, columns=chosen.names)


def _reads(archive: Archive, user: str, experiment: Experiment, query: Query) -> bool:
    if query.release.shares_in_site_list:
        return archive.reads_item(user, experiment)
    return archive.reads(user, experiment.project)


def _own(archive: Archive, experiment: Experiment, query: Query) -> dict[str, str]:
    return _row(archive, experiment, experiment.label, experiment.project, query)


def _shared(archive: Archive, experiment: Experiment, label: str, project: str, query: Query) -> dict[str, str]:
    """Return the row of an experiment in the list of a project, which may have it as a share."""
    there = project if query.release.substitutes_shares else experiment.project
    return _row(archive, experiment, label, there, query)


def _row(archive: Archive, experiment: Experiment, label: str, project: str, query: Query) -> dict[str, str]:
    """Return all columns by their lower-case names."""
    subject = archive.subjects[experiment.subject]
    there = subject.shared.get(project, subject.label)
    modality = experiment.xsi_type.partition(":")[2].removesuffix("SessionData").upper()
    row = {
        "id": experiment.id,
        "project": project,
        "date": experiment.date,
        "xsitype": experiment.xsi_type,
        "label": stored(label),
        "insert_date": experiment.inserted,
        "insert_user": "admin",
        "last_modified": experiment.last_modified,
        "note": free(experiment.fields.get("note", ""), query),
        "time": "10:11:12",
        "subject_id": subject.id,
        "subject_label": stored(subject.label if subject.project == project else there),
        "subject_project": subject.project,
        "uri": f"/data/experiments/{experiment.id}",
    }
    above = "xnat:imageassessordata" if experiment.session else "xnat:subjectassessordata"
    keys = ("xnat:experimentdata", above, experiment.xsi_type.lower())
    row |= {f"{key}/id": experiment.id for key in keys}
    if experiment.session:  # of an assessor this is the session that it belongs to
        parent = archive.experiments[experiment.session]
        row |= {"session_id": parent.id, "session_label": stored(parent.label)}
    if experiment.xsi_type.endswith("SessionData"):
        row |= {"session_id": experiment.id, "session_label": row["label"], "modality": modality, "scanner": ""}
        row |= {
            "uid": experiment.uid,
            "studyinstanceuid": experiment.uid,
            "fieldstrength": "3.0" if modality == "MR" else "",
        }
    return row


def _wanted(rows: Rows, query: Query, chosen: Chosen) -> Rows:
    """Return the rows of the listed type that pass the filters of the query."""
    rows = [row for row in rows if chosen.holds(row)]
    lowered = query.holding([(key.lower(), value) for key, value in query.pairs if key != "xsiType"])
    return filtered(rows, lowered, [name.lower() for name in FILTERS])


def _with_scans(archive: Archive, sessions: Rows, query: Query, labels: bool) -> Rows:
    """Return one row per session and scan and, with `labels`, per resource label."""
    rows: Rows = []
    for row in sessions:
        session = archive.experiments[row["id"]]
        if not session.scans and row["xsitype"].endswith("SessionData"):
            rows.append(row | {f"{SCAN}{name}": "" for name in ("id", "type", "quality", "series_description")})
        for scan in session.scans:
            cells = {"id": stored(scan.id), "quality": scan.quality, "frames": scan.frames}
            texts = {"type": scan.type, "note": scan.note, "series_description": scan.series_description}
            cells |= {name: free(text, query) for name, text in texts.items()}
            joined: list[Resource | None] = [*scan.resources] if labels and scan.resources else [None]
            names = {f"{SCAN}{key}": value for key, value in cells.items()}
            for resource in joined:
                rows.append(row | names | (_joined(resource) if resource else {}))
    return [{**dict.fromkeys(FILE_COLUMNS, ""), **row} for row in rows]


def _with_resources(archive: Archive, sessions: Rows) -> Rows:
    """Return one row per session and label of its own resources; one with an empty cell if it has none."""
    return [
        row | {SESSION_RESOURCE: label}
        for row in sessions
        for label in [stored(each.label) for each in archive.experiments[row["id"]].resources] or [""]
    ]


def _joined(resource: Resource) -> dict[str, str]:
    """Return the columns of one resource of a scan."""
    cells = (stored(resource.label), str(len(resource.entries)), str(resource.size()))
    return dict(zip(FILE_COLUMNS, cells, strict=True))
