"""Run session find: sessions of all projects, by label, date or type."""

from fnmatch import fnmatchcase

from xnatfs.cli.ctl.archive import session_cells
from xnatfs.cli.ctl.command import Context, command, option
from xnatfs.cli.lookup.choose import is_pattern
from xnatfs.cli.output import Cells, by_key

# The data type whose list has subjects: a column that only one type has leaves the others out.
SUBJECT_DATA = "xnat:subjectAssessorData"
SITE_COLUMNS = "ID,label,project,subject_ID,subject_label,date,xsiType"


@command(
    "session find",
    "xnatctl session find SUB001 MR 2024-01",
    option(
        "terms",
        nargs="+",
        metavar="LABEL|DATE|TYPE",
        help="part of a label, of a subject's label or of an accession ID, or like SUB*_MR1; a year, month or day; a "
        "modality or data type; all of them have to match",
    ),
    columns=("id", "label", "subject", "project", "date", "modality"),
)
async def session_find(context: Context) -> list[Cells]:
    """Find sessions in all projects."""
    async with context.xnat() as xnat:
        listed = await xnat.rows("experiments", xsiType=SUBJECT_DATA, columns=SITE_COLUMNS)
    rows = [{**session_cells(row), "project": row.get("project")} for row in listed]
    context.no_rows_text = "No session that you may see matches"
    found = [row for row in rows if all(is_match(row, term) for term in context.arguments.terms)]
    return sorted(found, key=by_key("project", "label"))


def is_match(row: Cells, term: str) -> bool:
    """Return whether a session has this label, date or type."""
    wanted = term.lower()
    pattern = wanted if is_pattern(term) else f"*{wanted}*"
    names = (row["id"], row["label"], row["subject"])
    kinds = (row["modality"].lower(), row["xsi_type"].lower())
    return row["date"].startswith(term) or wanted in kinds or any(fnmatchcase(name.lower(), pattern) for name in names)


COMMANDS = [session_find]
