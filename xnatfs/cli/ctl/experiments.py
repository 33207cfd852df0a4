"""Find the experiment that a command line names, by accession ID or label, and explain why it lacks something.

An experiment is looked up once, by the value of -E; everything below it is requested by accession ID, because the
server answers a list below a project's URL with the session's document.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from xnatfs.cli.ctl.command import Context, option, options_of, project_option
from xnatfs.common.errors import BadReply, ConfigError, NotFound

if TYPE_CHECKING:  # imported by the commands that send requests
    from xnatfs.rest.client import Xnat
    from xnatfs.rest.models import Document, Row

experiment_options = options_of(
    option("-E", "--experiment", "--session", metavar="ID|LABEL", help="accession ID; or label, with -P"),
    project_option,
    option("-S", "--subject", metavar="SUBJECT", help="subject of the session; with -P"),
)
session_argument = option("session_id", metavar="SESSION", nargs="?", help="the same as -E")
scan_option = option("--scan", metavar="SCAN", help="a scan of the session, instead of the session itself")
resource_words = option("words", nargs="+", metavar="[SESSION] RESOURCE", help="label or number; with -E no SESSION")

LABEL_HINT = "an accession ID is found without a project; a label needs -P/--project or default_project"


def resource_label(arguments: argparse.Namespace) -> str:
    """Return the named resource; a session before it has the effect of -E. Raises ConfigError."""
    *session, label = arguments.words
    if len(session) > 1 or (session and arguments.experiment):
        raise ConfigError("which resource? Give RESOURCE with -E, or SESSION RESOURCE")
    if session:
        arguments.experiment = session[0]
    return str(label)


def one_of(flag: str, value: str | None, name: str, positional: str | None) -> str | None:
    """Return the value of an option or a positional argument. Raises ConfigError if both are given and differ."""
    if value and positional and value != positional:
        raise ConfigError(f"give either {name} or {flag}, not both ({positional} and {value})")
    return value or positional


def wanted_experiment(context: Context) -> str:
    """Return the label or accession ID that the command line has for the experiment. Raises ConfigError."""
    arguments = context.arguments
    value = one_of("-E", arguments.experiment, "SESSION", getattr(arguments, "session_id", None))
    if not value:
        raise ConfigError("which session? Give -E/--experiment, with its accession ID, or its label and -P")
    if arguments.subject and not context.project(needed=False):
        raise ConfigError("-S/--subject is a subject of a project: give -P/--project, too")
    return value


async def experiment(context: Context, xnat: Xnat) -> Document:
    """Fetch the document of the named experiment: in its project first, then as an accession ID. Raises NotFound."""
    value, project = wanted_experiment(context), context.project(needed=False)
    if not project:
        with context.about(f"session {value}"):
            try:
                return await xnat.item("experiments", value)
            except NotFound as error:
                raise NotFound(str(error), hint=LABEL_HINT) from error
    subject = context.arguments.subject
    where = ("subjects", subject, "experiments") if subject else ("experiments",)
    try:
        with context.about(f"session {value} in project {project}"):
            return await xnat.item("projects", project, *where, value)
    except NotFound as error:
        try:
            return await xnat.item("experiments", value)
        except NotFound:
            raise error from None


async def find(context: Context, xnat: Xnat) -> tuple[str, Document | None]:
    """Find the accession ID of the named experiment, and its document if one was fetched for that.

    Without a project the value is taken for an accession ID, and the server reports if it is not.
    """
    if not context.project(needed=False):
        return wanted_experiment(context), None
    document = await experiment(context, xnat)
    return document.fields.get("ID") or wanted_experiment(context), document


async def below(context: Context, xnat: Xnat, accession: str, *rest: str) -> list[Row]:
    """Fetch a list of the experiment. Raises NotFound if that does not exist, for which servers answer 500.

    Args:
        context: The command, which names the experiment.
        xnat: The client of the server.
        accession: The accession ID of the experiment.
        rest: The segments of the list's URL after it.
    """
    try:
        return await xnat.rows("experiments", accession, *rest)
    except (NotFound, BadReply):
        await experiment(context, xnat)
        raise


def web_page(url: str, kind: str, key: str) -> str:
    """Return the address of the page of an item for a browser; `kind` is experiments or projects."""
    return f"{url}/data/{kind}/{quote(key, safe='')}?format=html"


def mounted_at(url: str, accession: str) -> str | None:
    """Return where a mount of this server shows an experiment; None without one that answers."""
    from xnatfs.cli.control.client import find_live
    from xnatfs.tree.names import escape

    mountpoint = find_live(url)
    return str(mountpoint / "experiments" / escape(accession)) if mountpoint else None


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
async def about_scan(context: Context, xnat: Xnat, accession: str, scan: str) -> AsyncIterator[None]:
    """Explain in the error for a missing scan whether the experiment exists, and can have scans."""
    try:
        with context.about(f"scan {scan} of session {wanted_experiment(context)}"):
            yield
    except (NotFound, BadReply) as error:
        check_has_scans(await experiment(context, xnat), accession, error)
        raise


def mounted_list(context: Context, *rest: str) -> list[Row] | None:
    """Return a list of the named experiment from a mount that holds it fresh; None otherwise.

    Args:
        context: The command.
        rest: The segments of the list's URL after the experiment.
    """
    value, project = wanted_experiment(context), context.project(needed=False)
    if context.arguments.subject:
        return None
    if project:
        sessions = context.mounted_rows("projects", project, "experiments") or ()
        value = next((row.get("ID") for row in sessions if value in (row.text("label"), row.get("ID"))), "")
    return context.mounted_rows("experiments", value, *rest) if value else None


async def scan_rows(context: Context, xnat: Xnat) -> tuple[str, list[Row]]:
    """Return the accession ID of the experiment that the command line names, and its scans."""
    from xnatfs.rest.models import OWN_SCAN_COLUMNS

    rows: list[Row] = []
    accession, document = await find(context, xnat)
    if document is None or document.has_scans:
        try:
            rows = await xnat.rows("experiments", accession, "scans", columns=OWN_SCAN_COLUMNS)
        except (NotFound, BadReply):
            document = document or await experiment(context, xnat)
            if document.has_scans:
                raise
    if not rows:
        document = document or await experiment(context, xnat)
        context.no_rows_text = lack_of_scans(document, accession) or context.no_rows_text
    return accession, rows


async def resource_rows(context: Context, xnat: Xnat) -> tuple[tuple[str, ...], list[Row]]:
    """Return the item that the command line names, and its resources."""
    (accession, document), scan = await find(context, xnat), context.arguments.scan
    if scan is None:
        return await _own_resources(context, xnat, accession, document)
    item = ("experiments", accession, "scans", scan)
    async with about_scan(context, xnat, accession, scan):
        return item, await xnat.rows(*item, "resources")


async def _own_resources(
    context: Context, xnat: Xnat, accession: str, document: Document | None
) -> tuple[tuple[str, ...], list[Row]]:
    """List the resources of an experiment itself. Only if that list is empty or missing may it be an assessor."""
    from xnatfs.listings.completion import PART_CATEGORIES

    item: tuple[str, ...] = ("experiments", accession)
    rows: list[Row] = []
    if document is None or not document.session:
        try:
            # Resources of its scans have another category.
            rows = [row for row in await xnat.rows(*item, "resources") if row.get("category") not in PART_CATEGORIES]
        except (NotFound, BadReply):
            document = document or await experiment(context, xnat)
            if not document.session:
                raise
    if not rows:
        document = document or await experiment(context, xnat)
        if document.session:
            item = item_of(document, accession)
            rows = await xnat.rows(*item, "resources")
    return item, rows
