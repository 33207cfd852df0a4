"""Make subjects.tsv, sessions.tsv and scans.tsv of a project: each one request more than its directory.

The rows are those of the directories; what the further request states is added. Where the server refuses that, or does
not know it, the cells are empty.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied
from xnatfs.common.tasks import gather
from xnatfs.listings.keys import ExperimentsKey, SubjectsKey
from xnatfs.rest.models import Experiment, Row, Subject, natural, total
from xnatfs.site import Site
from xnatfs.tree.generated_file import Generated, GeneratedFile
from xnatfs.tree.metadata.project_scans import joined_scans, own_scans
from xnatfs.tree.metadata.tables import SCAN_TABLE_COLUMNS, Cell, table
from xnatfs.tree.node import Dir

DEMOGRAPHICS = ("group", "gender", "age", "yob", "handedness", "education", "race", "ethnicity", "height", "weight")
SUBJECT_TABLE = ("id", "label", "project", *DEMOGRAPHICS, "sessions", "inserted", "modified")
MORE_OF_SESSIONS = ("date", "time", "visit", "note", "inserted", "modified")
SESSION_TABLE = ("id", "label", "subject_id", "subject", "xsi_type", *MORE_OF_SESSIONS)
SCAN_TABLE = ("subject", "session", "session_id", *SCAN_TABLE_COLUMNS)

log = logging.getLogger(__name__)

MakeTable = Callable[[Site, str], Awaitable[Generated]]


async def subjects_table(site: Site, project: str) -> Generated:
    """Make the table of subjects, with the demographics that the account may read."""
    columns = f"ID,label,{','.join(DEMOGRAPHICS)},insert_date,last_modified"
    more, expires = await _more(site, ("projects", project, "subjects"), columns)
    subjects, experiments = await site.list_subjects_and_experiments(project)
    counts: dict[str, int] = {}
    for row in experiments.rows:
        counts[row.subject_id] = counts.get(row.subject_id, 0) + 1
    rows: list[Sequence[Cell]] = []
    for subject in sorted(all_subjects(subjects.rows, experiments.rows), key=lambda row: (natural(row.label), row.id)):
        said = more.get(subject.id, Row({}))
        cells = [said.text(name) for name in DEMOGRAPHICS]
        dates = (said.get("insert_date"), said.get("last_modified"))
        rows.append([subject.id, subject.label, subject.project, *cells, counts.get(subject.id, 0), *dates])
    return Generated(table(SUBJECT_TABLE, rows), min(expires, subjects.expires, experiments.expires))


async def sessions_table(site: Site, project: str) -> Generated:
    """Make the table of sessions and other experiments of subjects."""
    columns = "ID,label,time,visit_id,note,insert_date,last_modified"
    more, expires = await _more(site, ("projects", project, "experiments"), columns)
    listing = await site.experiments(project)
    rows = []
    for row in _sorted(listing.rows):
        said = more.get(row.id, Row({}))
        cells = (row.id, row.label, row.subject_id, row.subject_label, row.xsi_type, row.date)
        texts = (said.get("time"), said.text("visit_id", "visit"), said.text("note"))
        rows.append((*cells, *texts, said.get("insert_date"), said.get("last_modified")))
    return Generated(table(SESSION_TABLE, rows), min(expires, listing.expires))


async def scans_table(site: Site, project: str) -> Generated:
    """Make the table of scans; files and bytes are as the server has stored them. Raises BadReply if it cannot join."""
    started, listing = now(), await site.experiments(project)
    found = dict(await joined_scans(site, project))
    absent = [row.id for row in listing.rows if row.is_imaging and row.id not in found]
    found |= zip(absent, await gather(*(partial(own_scans, site, each) for each in absent)), strict=True)
    rows: list[Sequence[Cell]] = []
    for session in _sorted(listing.rows):
        for scan in sorted(found.get(session.id, {}).values(), key=lambda scan: natural(scan.id)):
            if not site.views.shows_scan(scan.type, scan.quality):
                continue
            shown = {label: counts for label, counts in scan.resources.items() if site.views.shows_resource(label)}
            files, size = (total(counts[place] for counts in shown.values()) for place in (0, 1))
            cells = (session.subject_label, session.label, session.id, scan.id, scan.type, scan.series_description)
            rows.append((*cells, scan.quality, scan.frames, ",".join(sorted(shown)), files, size, scan.note))
    return Generated(table(SCAN_TABLE, rows), min(started + site.ttl, listing.expires))


# The tables of a project, by the names of their files.
PROJECT_TABLES: Mapping[str, MakeTable] = {
    "subjects.tsv": subjects_table,
    "sessions.tsv": sessions_table,
    "scans.tsv": scans_table,
}


def project_files(project_dir: Dir, project: str) -> Sequence[GeneratedFile]:
    """Return the tables in a project's directory."""
    keys = (SubjectsKey(project), ExperimentsKey(project))
    return [
        GeneratedFile(project_dir, name, lambda make=make: make(project_dir.site, project), keys)  # type: ignore[misc]
        for name, make in PROJECT_TABLES.items()
    ]


def all_subjects(listed: Sequence[Subject], experiments: Sequence[Experiment]) -> list[Subject]:
    """Return the listed subjects, and those that only sessions report: sessions shared in without their subject."""
    found = {row.id: row for row in listed}
    for row in experiments:
        if row.subject_id not in found:
            found[row.subject_id] = Subject(row.subject_id, row.subject_label, "", None)
    return list(found.values())


async def _more(site: Site, item: Sequence[str], columns: str) -> tuple[dict[str, Row], float]:
    """Return the rows of a list with further columns by ID, none where it is refused, and when they expire.

    Columns that the account may not read come empty, without an error; an answer that is no list is reported.
    """
    started = now()
    try:
        rows = await site.xnat.rows(*item, columns=columns)
    except (Denied, BadReply) as error:
        level = logging.INFO if isinstance(error, Denied) else logging.WARNING
        log.log(level, "the table of %s lacks what the server has beside labels and dates: %s", "/".join(item), error)
        rows = []
    keys = ("ID", "xnat:subjectdata/id", "xnat:subjectassessordata/id", "xnat:experimentdata/id")
    return {row.get(*keys): row for row in rows}, started + site.ttl


def _sorted(rows: Sequence[Experiment]) -> list[Experiment]:
    return sorted(rows, key=lambda row: (natural(row.subject_label), natural(row.label), row.id))
