"""Run project|subject|session|scan|resource list|show: the archive, level by level."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from xnatfs.cli.ctl.command import Context, command, option, project_option, refresh_option
from xnatfs.cli.ctl.experiments import (
    about_scan,
    experiment,
    experiment_options,
    find,
    item_of,
    mounted_at,
    mounted_list,
    one_of,
    resource_label,
    resource_rows,
    resource_words,
    scan_option,
    scan_rows,
    session_argument,
    wanted_experiment,
    web_page,
)
from xnatfs.cli.options import day, find_day
from xnatfs.cli.output import Cells, by_key
from xnatfs.common.errors import BadReply, ConfigError, Denied, NotFound
from xnatfs.common.tasks import gather

if TYPE_CHECKING:  # imported by the commands that send requests
    from xnatfs.rest.client import Xnat
    from xnatfs.rest.models import Document, FileRow, Row

SESSION_REQUEST = "ID,label,subject_label,date,xsiType,subject_ID"
# The data type of optical coherence tomography has an older name.
OLDER_MODALITIES = {"OCT": "OPT"}


# -- rows --------------------------------------------------------------------------------------------------------


def project_cells(row: Row) -> Cells:
    return {
        "id": row.need("ID", "id"),
        "name": row.text("name"),
        "pi": row.text("pi_lastname", "pi"),
        "description": row.text("description"),
    }


def session_cells(row: Row) -> Cells:
    xsi_type = row.get("xsiType")
    return {
        "id": row.need("ID", "session_ID", "xnat:subjectassessordata/id"),
        "label": row.text("label", "session_label"),
        "subject": row.text("subject_label"),
        "date": row.get("date"),
        "modality": modality(xsi_type),
        "subject_id": row.get("subject_ID"),
        "xsi_type": xsi_type,
    }


def modality(xsi_type: str) -> str:
    """Return the modality of a data type, as MR of xnat:mrSessionData; '' if it is no imaging session."""
    match = re.fullmatch(r"\w+:(\w+)SessionData", xsi_type)
    return match[1].upper() if match else ""


def scan_cells(row: Row) -> Cells:
    return {
        "id": row.text("ID"),
        "type": row.text("type"),
        "series_description": row.text("series_description"),
        "quality": row.text("quality"),
        "frames": row.number("frames"),
        "note": row.text("note"),
    }


def resource_cells(row: Row) -> Cells:
    return {
        "label": row.text("label"),
        "format": row.text("format"),
        "file_count": row.number("file_count"),
        "size": row.number("file_size"),
        "content": row.text("content"),
        "id": row.get("xnat_abstractresource_id"),
    }


def file_cells(file: FileRow) -> Cells:
    keys = ("size", "format", "digest")
    return {"name": file.path, **{key: getattr(file, key) for key in keys}, "resource": file.resource_id}


def shared_into(document: Document, owner: str) -> list[str]:
    """Return the projects that an item is shared into, as its document lists them."""
    projects = [child.fields.get("project", "") for child in document.children.get("sharing/share", ())]
    return [project for project in projects if project not in ("", owner)]


async def _if_allowed(request: Awaitable[Any]) -> Any:
    """Return a result, or None if the account may not see it: the other results are still shown."""
    try:
        return await request
    except (NotFound, Denied, BadReply):
        return None


# -- projects and subjects ---------------------------------------------------------------------------------------


@command(
    "project list",
    "xnatctl project list",
    option("--all", action="store_true", help="all projects of the site (for its administrators)"),
    refresh_option,
    columns=("id", "name", "pi", "description"),
)
async def project_list(context: Context) -> list[Cells]:
    """List the projects that you may see."""
    more = {"allDataOverride": "true"} if context.arguments.all else {}
    rows = None if more else context.mounted_rows("projects")
    if rows is None:
        async with context.xnat() as xnat:
            rows = await xnat.rows("projects", columns="ID,name,pi_lastname,description", **more)
        context.remember(xnat, ("projects",), rows)
    return sorted(map(project_cells, rows), key=by_key("id"))


@command(
    "project show", "xnatctl project show MYPROJECT", option("project_id", metavar="PROJECT", nargs="?"), project_option
)
async def project_show(context: Context) -> Cells:
    """Show a project."""
    arguments = context.arguments
    project = one_of("-P", arguments.project, "PROJECT", arguments.project_id) or context.project()

    async def count(xnat: Xnat, level: str) -> int:
        return len(await xnat.rows("projects", project, level, columns="ID"))

    async with context.xnat() as xnat:
        with context.about(f"project {project}", "Collaborator"):
            document, access, subjects, sessions = await gather(
                lambda: xnat.item("projects", project),
                lambda: _if_allowed(xnat.text(f"/data/projects/{xnat.segment(project)}/accessibility")),
                lambda: _if_allowed(count(xnat, "subjects")),
                lambda: _if_allowed(count(xnat, "experiments")),
            )
    fields = document.fields
    investigators = document.children.get("PI")
    pi = investigators[0].fields if investigators else {}
    return {
        "id": fields.get("ID", project),
        "name": fields.get("name"),
        "secondary_id": fields.get("secondary_ID"),
        "pi": " ".join(filter(None, (pi.get("firstname"), pi.get("lastname")))) or None,
        "description": fields.get("description"),
        "accessibility": access,
        "subjects": subjects,
        "sessions": sessions,
    }


@command(
    "subject list",
    "xnatctl subject list --project MYPROJECT",
    project_option,
    option("--no-counts", action="store_true", help="do not count sessions, which saves a request"),
    refresh_option,
    columns=("id", "label", "sessions"),
    identifier="label",
)
async def subject_list(context: Context) -> list[Cells]:
    """List the subjects of a project."""
    project, is_counting = context.project(), not context.arguments.no_counts
    item = ("projects", project)
    subjects = context.mounted_rows(*item, "subjects")
    sessions = context.mounted_rows(*item, "experiments") if is_counting else []
    if subjects is None or sessions is None:
        async with context.xnat() as xnat:
            with context.about(f"project {project}"):
                subjects, sessions = await gather(
                    lambda: xnat.rows(*item, "subjects", columns="ID,label"),
                    (lambda: xnat.rows(*item, "experiments", columns="ID,subject_ID")) if is_counting else None,
                )
        context.remember(xnat, ("subjects", project), subjects)
    counts = Counter(row.get("subject_ID") for row in sessions or ())
    rows = [
        {"id": row.need("ID"), "label": row.text("label"), "sessions": counts[row.get("ID")] if is_counting else None}
        for row in subjects
    ]
    return sorted(rows, key=by_key("label"))


@command(
    "subject show",
    "xnatctl subject show --project MYPROJECT SUB001",
    option("subject_id", metavar="SUBJECT", nargs="?"),
    option("-S", "--subject", metavar="SUBJECT", help="the same"),
    project_option,
    identifier="label",
)
async def subject_show(context: Context) -> Cells:
    """Show a subject and its sessions."""
    arguments = context.arguments
    project, subject = context.project(), one_of("-S", arguments.subject, "SUBJECT", arguments.subject_id)
    if not subject:
        raise ConfigError("which subject? Give its label or accession ID")
    item = ("projects", project, "subjects", subject)
    async with context.xnat() as xnat:
        with context.about(f"subject {subject} in project {project}"):
            document, rows = await gather(
                lambda: xnat.item(*item), lambda: xnat.rows(*item, "experiments", columns=SESSION_REQUEST)
            )
    fields = document.fields
    sessions = sorted(map(session_cells, rows), key=lambda row: (row["date"], row["label"]))
    return {
        "id": fields.get("ID", subject),
        "label": fields.get("label", subject),
        "project": fields.get("project", project),
        "session_count": len(sessions),
        "sessions": [{key: row[key] for key in ("id", "label", "date", "modality")} for row in sessions],
        "shared_projects": shared_into(document, fields.get("project", project)),
    }


# -- sessions and scans ------------------------------------------------------------------------------------------


@command(
    "session list",
    "xnatctl session list -P MYPROJECT --modality MR",
    project_option,
    option("-S", "--subject", metavar="SUBJECT", help="sessions of this subject only: label or accession ID"),
    option("--modality", metavar="MR|PET|CT|...", help="sessions of this modality only"),
    option("--since", type=day, metavar="YYYY-MM-DD", help="sessions of this day or later"),
    option("--label", metavar="PATTERN", help="sessions whose label matches, as SUB00*"),
    refresh_option,
    columns=("id", "label", "subject", "date", "modality"),
)
async def session_list(context: Context) -> list[Cells]:
    """List the sessions of a project."""
    arguments, project = context.arguments, context.project()
    listed = context.mounted_rows("projects", project, "experiments")
    if listed is None:
        async with context.xnat() as xnat:
            with context.about(f"project {project}"):
                listed = await xnat.rows("projects", project, "experiments", columns=SESSION_REQUEST)
        context.remember(xnat, ("sessions", project), listed)
    rows = [session_cells(row) for row in listed]
    if arguments.subject:
        rows = [row for row in rows if arguments.subject in (row["subject"], row["subject_id"])]
    if arguments.modality:
        wanted = arguments.modality.upper()
        rows = [row for row in rows if row["modality"] in (wanted, OLDER_MODALITIES.get(wanted))]
    if arguments.since:
        rows = [row for row in rows if (date := find_day(row["date"])) and date >= arguments.since]
    if arguments.label:
        rows = [row for row in rows if fnmatchcase(row["label"], arguments.label)]
    if not rows:
        context.hint = f"Data sent recently may be in the prearchive: xnatctl prearchive list --project {project}"
    return sorted(rows, key=by_key("label"))


@command("session show", "xnatctl session show -E XNAT_E00001", session_argument, experiment_options)
async def session_show(context: Context) -> Cells:
    """Show a session, its scans and resources."""
    async with context.xnat() as xnat:
        document = await experiment(context, xnat)
        fields = document.fields
        accession = fields.get("ID") or wanted_experiment(context)
        session = await _if_allowed(xnat.item("experiments", document.session)) if document.session else None
        subject_id = (session or document).fields.get("subject_ID", "")
        scans, resources, subject = await gather(
            (lambda: xnat.rows("experiments", accession, "scans")) if document.has_scans else None,
            lambda: xnat.rows(*item_of(document, accession), "resources"),
            (lambda: _if_allowed(xnat.item("subjects", subject_id))) if subject_id else None,
        )
    return {
        "id": accession,
        "label": fields.get("label"),
        **({"session": session.fields.get("label") if session else document.session} if document.session else {}),
        "subject": subject.fields.get("label", subject_id) if subject else subject_id,
        "project": fields.get("project"),
        "date": fields.get("date"),
        "xsi_type": document.xsi_type,
        "scans": sorted(map(scan_cells, scans or ()), key=by_key("id")),
        "resources": sorted(map(resource_cells, resources), key=by_key("label")),
        "shared_projects": shared_into(document, fields.get("project", "")),
        "web_page": web_page(context.config.url, "experiments", accession),
        "mounted_at": mounted_at(context.config.url, accession),
    }


@command(
    "scan list",
    "xnatctl scan list -E XNAT_E00001",
    session_argument,
    experiment_options,
    refresh_option,
    columns=("id", "type", "series_description", "quality", "frames", "note"),
)
async def scan_list(context: Context) -> list[Cells]:
    """List the scans of a session."""
    rows = mounted_list(context, "scans")
    if rows is None:
        async with context.xnat() as xnat:
            accession, rows = await scan_rows(context, xnat)
        context.remember(xnat, ("scans", accession), rows)
    return sorted(map(scan_cells, rows), key=by_key("id"))


@command("scan show", "xnatctl scan show -E XNAT_E00001 2", option("scan", metavar="SCAN"), experiment_options)
async def scan_show(context: Context) -> Cells:
    """Show a scan and its resources."""
    scan = context.arguments.scan
    async with context.xnat() as xnat:
        accession, _ = await find(context, xnat)
        item = ("experiments", accession, "scans", scan)
        async with about_scan(context, xnat, accession, scan):
            document, resources = await gather(lambda: xnat.item(*item), lambda: xnat.rows(*item, "resources"))
    keys = ("ID", "type", "series_description", "quality", "frames", "note", "UID")
    return {
        **{key.lower(): document.fields.get(key) for key in keys},
        "resources": sorted(map(resource_cells, resources), key=by_key("label")),
        "xsi_type": document.xsi_type,
    }


# -- resources ---------------------------------------------------------------------------------------------------


@command(
    "resource list",
    "xnatctl resource list -E XNAT_E00001 --scan 1",
    session_argument,
    experiment_options,
    scan_option,
    refresh_option,
    columns=("label", "format", "file_count", "size", "content", "id"),
    identifier="label",
)
async def resource_list(context: Context) -> list[Cells]:
    """List the resources of a session or of a scan."""
    scan = context.arguments.scan
    rows = mounted_list(context, *(("scans", scan) if scan else ()), "resources")
    if rows is None:
        async with context.xnat() as xnat:
            item, rows = await resource_rows(context, xnat)
        of_session = scan is None
        context.remember(xnat, ("resources", item[-1]) if of_session else ("scan resources", *item[1::2]), rows)
    return sorted(map(resource_cells, rows), key=by_key("label"))


@command(
    "resource show",
    "xnatctl resource show -E XNAT_E00001 --scan 1 DICOM",
    resource_words,
    experiment_options,
    scan_option,
    columns=("name", "size", "format", "digest", "resource"),
    identifier="name",
)
async def resource_show(context: Context) -> list[Cells]:
    """List the files of a resource."""
    label = resource_label(context.arguments)
    files: list[FileRow] = []
    async with context.xnat() as xnat:
        item, rows = await resource_rows(context, xnat)
        resources = list(map(resource_cells, rows))
        chosen = [row for row in resources if label in (row["label"], row["id"])]
        if not chosen:
            known = ", ".join(sorted(row["label"] or row["id"] for row in resources)) or "none"
            text = f"resource {label} not found on {'/'.join(item)} (resources there: {known})"
            raise NotFound(text, status=404, url=xnat.url)
        for row in chosen:
            listed = await xnat.resource_files(item, row["id"])
            if row["file_count"] and not listed:
                stated = f"the server states that resource {row['id']} has {row['file_count']} files, and lists none"
                raise BadReply(stated, url=xnat.url)
            files += listed
    return sorted(map(file_cells, files), key=by_key("name"))


COMMANDS = [
    *(project_list, project_show, subject_list, subject_show, session_list, session_show, scan_list, scan_show),
    *(resource_list, resource_show),
]
