"""Choose what to download: sessions by name or pattern, of a subject or a project, and scans by what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from xnatfs.cli.ctl.command import Context, Option, option, options_of
from xnatfs.cli.ctl.experiments import lack_of_scans, one_of, wanted_experiment
from xnatfs.common.errors import ConfigError, NotFound, NothingMatches

if TYPE_CHECKING:
    from xnatfs.rest.models import Document, Row
    from xnatfs.site import Site

# Options that choose scans, by the attribute of a scan that they compare.
SCAN_FILTERS = {"type": "type", "quality": "quality", "series": "series_description"}

scan_filters: Option = options_of(
    *(
        option(
            f"--{name}",
            dest=f"scan_{name}",
            metavar="PATTERN",
            action="append",
            default=[],
            help=f"only scans of this {text}, as {example}; repeatable",
        )
        for name, text, example in (
            ("type", "type", "T1*"),
            ("quality", "quality", "usable"),
            ("series", "series description", "*MPRAGE*"),
        )
    )
)


whole_sessions: Option = options_of(
    option("--exclude-resource", action="append", default=[], metavar="LABEL", help="all resources but these"),
    option(
        "--session-resources", dest="of_session", action="store_true", help="the resources of the session itself, too"
    ),
    option("--assessors", dest="of_assessors", action="store_true", help="the resources of assessors, too"),
    option("--all", action="store_true", help="all of it, as --session-resources and --assessors together"),
    option("--zip", action="store_true", help="the server's own archive of all scans, scans.zip"),
)


async def left_out(site: Site, accession: str, *, of_session: bool, of_assessors: bool) -> str:
    """Return a line that names the data left out by a copy of all scans; '' if there are none.

    Args:
        site: The server.
        accession: The accession ID of the session.
        of_session: Whether the resources of the session itself are copied.
        of_assessors: Whether its assessors are copied.
    """
    rows = (await site.resources(("experiments", accession), True)).rows
    own = [] if of_session else [row.label or row.id for row in rows if row.category == "resources"]
    assessors = set() if of_assessors else {row.cat_id for row in rows if row.category == "assessors"}
    parts = [f"resources of the session ({', '.join(own)})"] if own else []
    parts += [f"{len(assessors)} assessor{'s' * (len(assessors) > 1)}"] if assessors else []
    return f"Left out: {' and '.join(parts)}; --all copies them, too" if parts else ""


def given_patterns(context: Context) -> Mapping[str, Sequence[str]]:
    """Return the patterns of the command line, by the attribute of a scan that they are for."""
    found = {field: getattr(context.arguments, f"scan_{name}", []) for name, field in SCAN_FILTERS.items()}
    return {field: patterns for field, patterns in found.items() if patterns}


def wanted_scans(context: Context) -> list[str] | None:
    """Return the requested scans; None for all. Raises ConfigError: an empty option does not mean all."""
    given = [scan.strip() for text in context.arguments.scans for scan in text.split(",")]
    if not context.arguments.scans and given_patterns(context):
        return None
    if not given or not all(given):
        raise ConfigError("which scans? Give -s/--scans with their IDs, as 1,2,3; or '*' for all")
    return None if {"*", "ALL"} & set(given) else list(dict.fromkeys(given))


async def filtered_scans(
    context: Context, site: Site, document: Document, scans: Sequence[str] | None
) -> Sequence[str] | None:
    """Return the IDs of the scans that the filters leave; None for all. Raises NothingMatches, and NotFound."""
    wanted, accession = given_patterns(context), document.fields.get("ID") or wanted_experiment(context)
    if not wanted:
        return scans
    if why := lack_of_scans(document, accession):
        raise NothingMatches(why, status=404, url=site.xnat.url)
    rows = (await site.scans(accession)).rows
    from xnatfs.rest.models import natural

    missing = sorted(set(scans or ()) - {row.id for row in rows}, key=natural)
    found = [
        row.id
        for row in rows
        if (scans is None or row.id in scans)
        and all(is_like(str(getattr(row, field)), patterns) for field, patterns in wanted.items())
    ]
    if missing:
        raise NotFound(f"scan {', '.join(missing)} is not in the session", status=404, url=site.xnat.url)
    if not found:
        text = f"no scan of session {wanted_experiment(context)} matches"
        text += f" {', '.join(each for patterns in wanted.values() for each in patterns)}"
        raise NothingMatches(text, status=404, url=site.xnat.url)
    return found


def is_like(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(text.lower(), pattern.lower()) for pattern in patterns)


def is_pattern(name: str) -> bool:
    return any(character in name for character in "*?[")


async def chosen_sessions(context: Context) -> list[str]:
    """Return the sessions that the command line names, with patterns replaced by what matches. Raises NotFound."""
    arguments = context.arguments
    given: list[str] = list(dict.fromkeys(arguments.session_ids))
    if arguments.experiment:
        given = [one_of("-E", arguments.experiment, "SESSION", " ".join(given)) or ""]
    if not any(map(is_pattern, given)):
        return given
    project = context.project()
    labels = await _labels(context, ("projects", project), f"project {project}")
    found: list[str] = []
    for name in given:
        matching = [label for label in labels if fnmatchcase(label, name)]
        if name in labels or not is_pattern(name):
            matching = [name]
        if not matching:
            text = f"no session of project {project} matches {name}"
            raise NotFound(f"{text} on {context.config.url}", status=404, url=context.config.url)
        found += matching
    return list(dict.fromkeys(found))


async def sessions_of_project(context: Context) -> list[str]:
    """Return the labels of all sessions of the project of the command line."""
    arguments = context.arguments
    arguments.project = one_of("-P", arguments.project, "PROJECT", arguments.project_id)
    project = arguments.project = context.project()
    return await _labels(context, ("projects", project), f"project {project}")


async def sessions_of_subject(context: Context) -> list[str]:
    """Return the labels of all sessions of the subject of the command line."""
    arguments, project = context.arguments, context.project()
    subject = one_of("-S", arguments.subject, "SUBJECT", arguments.subject_id)
    if not subject:
        raise ConfigError("which subject? Give its label or accession ID")
    arguments.subject = None  # a session is looked up in the project
    return await _labels(context, ("projects", project, "subjects", subject), f"subject {subject} in project {project}")


async def _labels(context: Context, item: Sequence[str], about: str) -> list[str]:
    from xnatfs.rest.models import natural

    async with context.xnat() as xnat:
        with context.about(about):
            rows: list[Row] = await xnat.rows(*item, "experiments", columns="ID,label")
    return sorted((row.text("label") or row.need("ID") for row in rows), key=natural)
