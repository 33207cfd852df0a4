"""Run project|subject|session|scan|resource list|show: the archive, level by level.

An experiment is looked up once, by the value of -E; everything below it is requested by accession ID, because the
server answers a list below a project's URL with the session's document.
"""

import argparse
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from xnatfs.cli import options
from xnatfs.cli.ctl.command import Command, Context
from xnatfs.cli.options import find_day
from xnatfs.cli.output import natural, show_item, show_rows, tell
from xnatfs.common.errors import BadReply, ConfigError, Denied, NotFound, first_error
from xnatfs.listings.completion import PARTS
from xnatfs.rest.client import Xnat
from xnatfs.rest.models import Document, FileRow, Row

PROJECTS = {"id": "ID", "name": "Name", "pi": "PI", "description": "Description"}
SUBJECTS = {"id": "ID", "label": "Label", "sessions": "Sessions"}
SESSIONS = {"id": "ID", "label": "Label", "subject": "Subject", "date": "Date", "modality": "Modality"}
SCANS = {
    "id": "ID",
    "type": "Type",
    "series_description": "Series Description",
    "quality": "Quality",
    "frames": "Frames",
    "note": "Note",
}
RESOURCES = {
    "label": "Label",
    "format": "Format",
    "file_count": "Files",
    "size": "Size",
    "content": "Content",
    "id": "ID",
}
FILES = {"name": "Name", "size": "Size", "format": "Format", "digest": "Digest", "resource": "Resource"}


# -- options -----------------------------------------------------------------------------------------------------


def project_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-P", "--project", metavar="PROJECT", help="else the profile's default_project; '' for none")


def experiment_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-E", "--experiment", "--session", metavar="ID|LABEL", help="accession ID; or label, with -P")
    project_option(parser)
    parser.add_argument("-S", "--subject", metavar="SUBJECT", help="whose session it is; with -P")


def _project_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="all of the site (for its managers)")


def _project_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project_id", metavar="PROJECT", nargs="?")
    project_option(parser)


def _subject_list(parser: argparse.ArgumentParser) -> None:
    project_option(parser)
    parser.add_argument("--no-counts", action="store_true", help="do not count sessions")


def _subject_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject_id", metavar="SUBJECT", nargs="?")
    parser.add_argument("-S", "--subject", metavar="SUBJECT", help="the same")
    project_option(parser)


def _session_list(parser: argparse.ArgumentParser) -> None:
    project_option(parser)
    parser.add_argument("-S", "--subject", metavar="SUBJECT", help="of this subject only: label or accession ID")
    parser.add_argument("--modality", metavar="MR|PET|CT|...", help="of this kind only")
    parser.add_argument("--since", type=options.day, metavar="YYYY-MM-DD", help="of this day or later")
    parser.add_argument("--label", metavar="PATTERN", help="with a label like this")


def _session_positional(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session_id", metavar="SESSION", nargs="?", help="the same as -E")
    experiment_options(parser)


def _scan_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scan", metavar="SCAN")
    experiment_options(parser)


def _resource_list(parser: argparse.ArgumentParser) -> None:
    _session_positional(parser)
    parser.add_argument("--scan", metavar="SCAN", help="of this scan, not of the session")


def resource_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="+", metavar="[SESSION] RESOURCE", help="its label or number; with -E no SESSION"
    )


def resource_label(arguments: argparse.Namespace) -> str:
    """Return the named resource; a session before it has the effect of -E. Raises ConfigError."""
    *session, label = arguments.words
    if len(session) > 1 or (session and arguments.experiment):
        raise ConfigError("which resource? Give RESOURCE with -E, or SESSION RESOURCE")
    if session:
        arguments.experiment = session[0]
    return str(label)


def _resource_show(parser: argparse.ArgumentParser) -> None:
    resource_words(parser)
    experiment_options(parser)
    parser.add_argument("--scan", metavar="SCAN", help="of this scan, not of the session")


# -- finding an experiment ---------------------------------------------------------------------------------------


def one_of(option: str, value: str | None, name: str, positional: str | None) -> str | None:
    """Return the value of an option or a positional argument. Raises ConfigError if both are given and differ."""
    if value and positional and value != positional:
        raise ConfigError(f"give either {name} or {option}, not both ({positional} and {value})")
    return value or positional


def wanted_experiment(context: Context) -> str:
    """Return the label or accession ID that the command line has for the experiment. Raises ConfigError."""
    arguments = context.arguments
    value = one_of("-E", arguments.experiment, "SESSION", getattr(arguments, "session_id", None))
    if not value:
        raise ConfigError("which session? Give -E/--experiment, with its accession ID, or its label and -P")
    if getattr(arguments, "subject", None) and not context.project(needed=False):
        raise ConfigError("-S/--subject is a subject of a project: give -P/--project, too")
    return str(value)


async def experiment(context: Context, xnat: Xnat) -> Document:
    """Fetch the document of the named experiment: in its project first, then as an accession ID. Raises NotFound."""
    value, project = wanted_experiment(context), context.project(needed=False)
    subject: str | None = getattr(context.arguments, "subject", None)
    if not project:
        return await _flat(context, xnat, value)
    where = ("subjects", subject, "experiments") if subject else ("experiments",)
    try:
        with context.about(f"session {value} in project {project}"):
            return await xnat.item("projects", project, *where, value)
    except NotFound as error:
        try:
            return await xnat.item("experiments", value)
        except NotFound:
            raise error from None


async def _flat(context: Context, xnat: Xnat, value: str) -> Document:
    with context.about(f"session {value}"):
        try:
            return await xnat.item("experiments", value)
        except NotFound as error:
            raise NotFound(str(error), hint=LABELS) from error


LABELS = "an accession ID is found without a project; a label needs -P/--project or default_project"


async def find(context: Context, xnat: Xnat) -> tuple[str, Document | None]:
    """Find the accession ID of the named experiment, and its document if one was fetched for that.

    Without a project the value is taken for an accession ID, and the server reports if it is not.
    """
    if not context.project(needed=False):
        return wanted_experiment(context), None
    document = await experiment(context, xnat)
    return document.fields.get("ID") or wanted_experiment(context), document


async def below(context: Context, xnat: Xnat, found: str, *rest: str, columns: str = "") -> list[Row]:
    """Fetch a list of the experiment. Raises NotFound if that does not exist, for which servers answer 500."""
    try:
        return await xnat.rows("experiments", found, *rest, columns=columns)
    except (NotFound, BadReply):
        await experiment(context, xnat)
        raise


def item_of(document: Document, accession: str) -> tuple[str, ...]:
    """Return the item that the resources of an experiment are listed with.

    An assessor has `out` resources, which no release lists with the experiment that it is, only below its session.
    """
    if document.session:
        return ("experiments", document.session, "assessors", accession)
    return ("experiments", accession)


def lack_of_scans(document: Document, accession: str) -> str:
    """Return why an experiment cannot have scans; '' if it can."""
    if document.has_scans:
        return ""
    kind = f"an assessor of session {document.session}" if document.session else "no imaging session"
    return f"{accession} is {kind} ({document.xsi_type}): it has no scans; its files: resource list, session download"


def check_has_scans(document: Document, accession: str, cause: Exception | None = None) -> None:
    """Raise NotFound for an experiment that cannot have scans."""
    if why := lack_of_scans(document, accession):
        raise NotFound(why, status=404) from cause


@asynccontextmanager
async def about_scan(context: Context, xnat: Xnat, found: str, scan: str) -> AsyncIterator[None]:
    """Explain in the error for a missing scan whether the experiment exists, and can have scans."""
    try:
        with context.about(f"scan {scan} of session {wanted_experiment(context)}"):
            yield
    except (NotFound, BadReply) as error:
        check_has_scans(await experiment(context, xnat), found, error)
        raise


# -- rows --------------------------------------------------------------------------------------------------------


def modality(xsi_type: str) -> str:
    """Return the modality of a data type, as MR of xnat:mrSessionData; '' if it is no imaging session."""
    match = re.fullmatch(r"\w+:(\w+)SessionData", xsi_type)
    return match[1].upper() if match else ""


# The data type of optical coherence tomography has an older name.
SAME = {"OCT": "OPT"}


def of_modality(row: Mapping[str, Any], wanted: str) -> bool:
    wanted = wanted.upper()
    return bool(row["modality"] in (wanted, SAME.get(wanted)))


def project_row(row: Row) -> dict[str, Any]:
    pi = row.text("pi_lastname", "pi")
    return {
        "id": row.need("ID", "id"),
        "name": row.text("name"),
        "pi": pi,
        "description": row.text("description"),
    }


def session_row(row: Row) -> dict[str, Any]:
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


def scan_row(row: Row) -> dict[str, Any]:
    return {
        "id": row.text("ID"),
        "type": row.text("type"),
        "series_description": row.text("series_description"),
        "quality": row.text("quality"),
        "frames": row.number("frames"),
        "note": row.text("note"),
    }


def resource_row(row: Row) -> dict[str, Any]:
    return {
        "label": row.text("label"),
        "format": row.text("format"),
        "file_count": row.number("file_count"),
        "size": row.number("file_size"),
        "content": row.text("content"),
        "id": row.get("xnat_abstractresource_id"),
    }


def by(key: str) -> Callable[[Mapping[str, Any]], tuple[tuple[int, int, str], ...]]:
    return lambda row: natural(row[key])


async def together(*tasks: Callable[[], Any]) -> list[Any]:
    """Run coroutines in parallel, and return their results in their order."""
    results: list[Any] = [None] * len(tasks)

    async def one(number: int, task: Callable[[], Any]) -> None:
        results[number] = await task()

    try:
        async with trio.open_nursery() as nursery:
            for number, task in enumerate(tasks):
                nursery.start_soon(one, number, task)
    except BaseExceptionGroup as group:  # the first error is reported
        raise first_error(group) from None
    return results


def shared_into(document: Document, owner: str) -> list[str]:
    """Return the projects that an item is shared into, as its document lists them."""
    found = [child.fields.get("project", "") for child in document.children.get("sharing/share", ())]
    return [project for project in found if project and project != owner]


# -- projects and subjects ---------------------------------------------------------------------------------------


async def project_list(context: Context) -> None:
    more = {"allDataOverride": "true"} if context.arguments.all else {}
    async with context.xnat() as xnat:
        rows = await xnat.rows("projects", columns="ID,name,pi_lastname,description", **more)
    context.remember(xnat, ("projects",), rows)
    show_rows(context.arguments, PROJECTS, sorted(map(project_row, rows), key=by("id")), "id")


async def project_show(context: Context) -> None:
    arguments = context.arguments
    project = one_of("-P", arguments.project, "PROJECT", arguments.project_id) or context.project()
    async with context.xnat() as xnat:
        with context.about(f"project {project}", "Collaborator"):
            document, access, subjects, sessions = await together(
                lambda: xnat.item("projects", project),
                lambda: _or_none(lambda: xnat.text(f"/data/projects/{xnat.segment(project)}/accessibility")),
                lambda: _or_none(lambda: _count(xnat, project, "subjects", "ID")),
                lambda: _or_none(lambda: _count(xnat, project, "experiments", "ID")),
            )
    fields, pi = document.fields, next(iter(document.children.get("PI", ())), Document({}, {})).fields
    item = {
        "id": fields.get("ID", project),
        "name": fields.get("name"),
        "secondary_id": fields.get("secondary_ID"),
        "pi": " ".join(filter(None, (pi.get("firstname"), pi.get("lastname")))) or None,
        "description": fields.get("description"),
        "accessibility": access,
        "subjects": subjects,
        "sessions": sessions,
    }
    titles = {
        "id": "ID",
        "name": "Name",
        "secondary_id": "Secondary ID",
        "pi": "PI",
        "description": "Description",
        "accessibility": "Accessibility",
        "subjects": "Subjects",
        "sessions": "Sessions",
    }
    show_item(context.arguments, item, "id", titles)


async def _count(xnat: Xnat, project: str, what: str, columns: str) -> int:
    return len(await xnat.rows("projects", project, what, columns=columns))


async def _or_none(ask: Callable[[], Any]) -> Any:
    """Return a result, or None if the account may not see it: the other results are still shown."""
    try:
        return await ask()
    except (NotFound, Denied, BadReply):
        return None


async def subject_list(context: Context) -> None:
    project, counting = context.project(), not context.arguments.no_counts
    async with context.xnat() as xnat:
        with context.about(f"project {project}"):
            subjects, sessions = await together(
                lambda: xnat.rows("projects", project, "subjects", columns="ID,label"),
                lambda: (
                    xnat.rows("projects", project, "experiments", columns="ID,subject_ID") if counting else nothing()
                ),
            )
    context.remember(xnat, ("subjects", project), subjects)
    counts: dict[str, int] = {}
    for row in sessions:
        counts[row.get("subject_ID")] = counts.get(row.get("subject_ID"), 0) + 1
    rows = [
        {
            "id": row.need("ID"),
            "label": row.text("label"),
            "sessions": counts.get(row.get("ID"), 0) if counting else None,
        }
        for row in subjects
    ]
    show_rows(context.arguments, SUBJECTS, sorted(rows, key=by("label")), "label")


async def nothing() -> list[Row]:
    return []


async def _no_document() -> None:
    return None


async def subject_show(context: Context) -> None:
    arguments = context.arguments
    project, subject = context.project(), one_of("-S", arguments.subject, "SUBJECT", arguments.subject_id)
    if not subject:
        raise ConfigError("which subject? Give its label or accession ID")
    columns = "ID,label,date,xsiType,subject_label,subject_ID"
    async with context.xnat() as xnat:
        with context.about(f"subject {subject} in project {project}"):
            document, rows = await together(
                lambda: xnat.item("projects", project, "subjects", subject),
                lambda: xnat.rows("projects", project, "subjects", subject, "experiments", columns=columns),
            )
    fields = document.fields
    sessions = sorted(map(session_row, rows), key=lambda row: (row["date"], row["label"]))
    item = {
        "id": fields.get("ID", subject),
        "label": fields.get("label", subject),
        "project": fields.get("project", project),
        "session_count": len(sessions),
        "sessions": [{key: row[key] for key in ("id", "label", "date", "modality")} for row in sessions],
        "shared_projects": shared_into(document, fields.get("project", project)),
    }
    titles = {"id": "ID", "label": "Label", "project": "Project", "session_count": "Sessions"}
    show_item(context.arguments, item, "label", titles)


# -- sessions and scans ------------------------------------------------------------------------------------------


async def session_list(context: Context) -> None:
    from fnmatch import fnmatchcase

    arguments, project = context.arguments, context.project()
    columns = "ID,label,subject_label,date,xsiType,subject_ID"
    async with context.xnat() as xnat:
        with context.about(f"project {project}"):
            listed = await xnat.rows("projects", project, "experiments", columns=columns)
    context.remember(xnat, ("sessions", project), listed)
    rows = [session_row(row) for row in listed]
    if arguments.subject:
        rows = [row for row in rows if arguments.subject in (row["subject"], row["subject_id"])]
    if arguments.modality:
        rows = [row for row in rows if of_modality(row, arguments.modality)]
    if arguments.since:
        rows = [row for row in rows if (day := find_day(row["date"])) and day >= arguments.since]
    if arguments.label:
        rows = [row for row in rows if fnmatchcase(row["label"], arguments.label)]
    show_rows(arguments, SESSIONS, sorted(rows, key=by("label")), "id")
    if not rows:
        text = f"Something that was sent lately may still wait: xnatctl prearchive list --project {project}"
        tell(text)


async def session_show(context: Context) -> None:
    async with context.xnat() as xnat:
        document = await experiment(context, xnat)
        fields = document.fields
        found = fields.get("ID") or wanted_experiment(context)
        session = await _or_none(lambda: xnat.item("experiments", document.session)) if document.session else None
        subject_id = (session or document).fields.get("subject_ID", "")
        scans, resources, subject = await together(
            lambda: xnat.rows("experiments", found, "scans") if document.has_scans else nothing(),
            lambda: xnat.rows(*item_of(document, found), "resources"),
            lambda: _or_none(lambda: xnat.item("subjects", subject_id)) if subject_id else _no_document(),
        )
    item = {
        "id": found,
        "label": fields.get("label"),
        **({"session": session.fields.get("label") if session else document.session} if document.session else {}),
        "subject": subject.fields.get("label", subject_id) if subject else subject_id,
        "project": fields.get("project"),
        "date": fields.get("date"),
        "xsi_type": document.xsi_type,
        "scans": sorted(map(scan_row, scans), key=by("id")),
        "resources": sorted(map(resource_row, resources), key=by("label")),
        "shared_projects": shared_into(document, fields.get("project", "")),
    }
    titles = {
        "id": "ID",
        "label": "Label",
        **({"session": "Session"} if document.session else {}),
        "subject": "Subject",
        "project": "Project",
        "date": "Date",
        "xsi_type": "Type",
    }
    show_item(context.arguments, item, "id", titles)


async def scan_list(context: Context) -> None:
    async with context.xnat() as xnat:
        found, document = await find(context, xnat)
        rows: list[Row] = []
        if document is None or document.has_scans:
            try:
                rows = await xnat.rows("experiments", found, "scans", columns=SCAN_COLUMNS)
            except (NotFound, BadReply):
                document = document or await experiment(context, xnat)
                if document.has_scans:
                    raise
        if not rows:
            document = document or await experiment(context, xnat)
    context.remember(xnat, ("scans", found), rows)
    why = lack_of_scans(document, found) if document and not rows else ""
    show_rows(context.arguments, SCANS, sorted(map(scan_row, rows), key=by("id")), "id", why or "No results")


# The server's default columns omit the number of frames.
SCAN_COLUMNS = "ID,type,quality,xsiType,note,series_description,frames"


async def scan_show(context: Context) -> None:
    scan = context.arguments.scan
    async with context.xnat() as xnat:
        found, _ = await find(context, xnat)
        async with about_scan(context, xnat, found, scan):
            document, resources = await together(
                lambda: xnat.item("experiments", found, "scans", scan),
                lambda: xnat.rows("experiments", found, "scans", scan, "resources"),
            )
    fields = document.fields
    item = {
        **{key: fields.get(key) for key in ("ID", "type", "series_description", "quality", "frames", "note", "UID")},
        "resources": sorted(map(resource_row, resources), key=by("label")),
    }
    item = {key.lower(): value for key, value in item.items()} | {"xsi_type": document.xsi_type}
    titles = {**SCANS, "uid": "UID", "xsi_type": "Data Type"}
    show_item(context.arguments, item, "id", titles)


# -- resources ---------------------------------------------------------------------------------------------------


async def resource_rows(context: Context, xnat: Xnat) -> tuple[tuple[str, ...], list[Row]]:
    """Return the item that the command line names, and its resources."""
    (found, document), scan = await find(context, xnat), context.arguments.scan
    if scan is None:
        return await _own_resources(context, xnat, found, document)
    item = ("experiments", found, "scans", scan)
    async with about_scan(context, xnat, found, scan):
        return item, await xnat.rows(*item, "resources")


async def _own_resources(
    context: Context, xnat: Xnat, found: str, document: Document | None
) -> tuple[tuple[str, ...], list[Row]]:
    """List the resources of an experiment itself. Only if that list is empty or missing may it be an assessor."""
    item: tuple[str, ...] = ("experiments", found)
    rows: list[Row] = []
    if document is None or not document.session:
        try:
            # Resources of its scans have another category.
            rows = [row for row in await xnat.rows(*item, "resources") if row.get("category") not in PARTS]
        except (NotFound, BadReply):
            document = document or await experiment(context, xnat)
            if not document.session:
                raise
    if not rows:
        document = document or await experiment(context, xnat)
        if document.session:
            item = item_of(document, found)
            rows = await xnat.rows(*item, "resources")
    return item, rows


def _of_scan(item: tuple[str, ...]) -> tuple[str, ...]:
    return ("scan resources", *item[1::2])


async def resource_list(context: Context) -> None:
    async with context.xnat() as xnat:
        item, rows = await resource_rows(context, xnat)
    context.remember(xnat, ("resources", item[-1]) if context.arguments.scan is None else _of_scan(item), rows)
    show_rows(context.arguments, RESOURCES, sorted(map(resource_row, rows), key=by("label")), "label")


async def resource_show(context: Context) -> None:
    label = resource_label(context.arguments)
    async with context.xnat() as xnat:
        item, rows = await resource_rows(context, xnat)
        chosen = [row for row in map(resource_row, rows) if label in (row["label"], row["id"])]
        if not chosen:
            known = ", ".join(sorted(row["label"] or row["id"] for row in map(resource_row, rows))) or "none"
            text = f"resource {label} not found on {'/'.join(item)} (resources there: {known})"
            raise NotFound(text, status=404, url=xnat.url)
        files: list[FileRow] = []
        for row in chosen:
            listed = await xnat.resource_files(item, row["id"])
            if row["file_count"] and not listed:
                stated = f"the server states that resource {row['id']} has {row['file_count']} files, and lists none"
                raise BadReply(stated, url=xnat.url)
            files += listed
    shown = [
        {
            "name": file.path,
            "size": file.size,
            "format": file.format,
            "digest": file.digest,
            "resource": file.resource_id,
        }
        for file in files
    ]
    show_rows(context.arguments, FILES, sorted(shown, key=by("name")), "name")


COMMANDS = [
    Command(
        "project",
        "list",
        "list the projects that you may see",
        "xnatctl project list",
        project_list,
        _project_list,
        PROJECTS,
    ),
    Command("project", "show", "tell about a project", "xnatctl project show MYPROJECT", project_show, _project_show),
    Command(
        "subject",
        "list",
        "list the subjects of a project",
        "xnatctl subject list --project MYPROJECT",
        subject_list,
        _subject_list,
        SUBJECTS,
    ),
    Command(
        "subject",
        "show",
        "tell about a subject and its sessions",
        "xnatctl subject show --project MYPROJECT SUB001",
        subject_show,
        _subject_show,
    ),
    Command(
        "session",
        "list",
        "list the sessions of a project",
        "xnatctl session list -P MYPROJECT --modality MR",
        session_list,
        _session_list,
        SESSIONS,
    ),
    Command(
        "session",
        "show",
        "tell about a session, its scans and resources",
        "xnatctl session show -E XNAT_E00001",
        session_show,
        _session_positional,
    ),
    Command(
        "scan",
        "list",
        "list the scans of a session",
        "xnatctl scan list -E XNAT_E00001",
        scan_list,
        _session_positional,
        SCANS,
    ),
    Command("scan", "show", "tell about a scan", "xnatctl scan show -E XNAT_E00001 2", scan_show, _scan_show),
    Command(
        "resource",
        "list",
        "list the resources of a session or of a scan",
        "xnatctl resource list -E XNAT_E00001 --scan 1",
        resource_list,
        _resource_list,
        RESOURCES,
    ),
    Command(
        "resource",
        "show",
        "list the files of a resource",
        "xnatctl resource show -E XNAT_E00001 --scan 1 DICOM",
        resource_show,
        _resource_show,
        FILES,
    ),
]
