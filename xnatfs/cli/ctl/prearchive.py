"""Run prearchive list|archive|move|delete|rebuild on sessions of the prearchive, chosen by name."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xnatfs.cli import statusline
from xnatfs.cli.ctl.command import Context, command, exclusive, option, options_of, project_option
from xnatfs.cli.ctl.progress import StateReport, wait_options
from xnatfs.cli.output import STRUCTURED_FORMATS, Cells, by_key, print_lines, print_message, print_structured
from xnatfs.cli.parsing import PARTIAL_STATUS
from xnatfs.common.errors import ConfigError, Conflict, NotFound, Unreachable, XnatError
from xnatfs.common.sanitize import plain
from xnatfs.rest import prearchive
from xnatfs.rest.models import UNASSIGNED, PrearchiveSession

if TYPE_CHECKING:  # imported by the commands that send requests
    from xnatfs.rest.client import Xnat

# -- options -----------------------------------------------------------------------------------------------------

selection_options = options_of(
    option("place", nargs="*", metavar="PROJECT TIMESTAMP SESSION", help="one session, as list prints it"),
    project_option,
    option("--session", metavar="NAME", default="", help="sessions of this name, or like NAM*"),
    option("--timestamp", metavar="TIME", default="", help="the session of this time, if several have the name"),
    exclusive(
        option("--newest", action="store_true", help="the newest session, if several have the name"),
        option("--all", action="store_true", help="all sessions, if several have the name"),
    ),
    option("--dry-run", action="store_true", help="show what would change, change nothing"),
)


# -- choosing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PrearchiveSelection:
    """The sessions that the command line names."""

    project: str  # '' for sessions that are assigned to none
    session: str  # a name or a pattern; '' for all that are READY
    timestamp: str

    def not_found(self, url: str, why: str = "") -> NotFound:
        name = f"prearchive session {self.session}" + (f" of {self.timestamp}" if self.timestamp else "")
        return NotFound(f"{name} not found in project {self.project or UNASSIGNED} on {url}{why}", status=404, url=url)


def parse_selection(context: Context) -> PrearchiveSelection:
    """Parse which sessions the command line names, before any request. Raises ConfigError."""
    arguments = context.arguments
    place: list[str] = arguments.place
    if len(place) == 1:
        place = place[0].split("/", 2)  # as `prearchive list -q` prints it
    for name in ("session", "project", "timestamp"):
        if place and getattr(arguments, name):
            raise ConfigError(f"give either PROJECT TIMESTAMP SESSION or --{name}, not both")
    if len(place) == 3:
        return PrearchiveSelection(owner_of(place[0]), place[2], place[1])
    if place:
        given = " ".join(arguments.place)
        raise ConfigError(f"give PROJECT TIMESTAMP SESSION, or --project and --session NAME, not {given}")
    is_all_ready = getattr(arguments, "all_ready", False)
    if not arguments.session and not is_all_ready:
        raise ConfigError("which session? Give PROJECT TIMESTAMP SESSION, or --project and --session")
    if arguments.session and is_all_ready:
        raise ConfigError("give either --session or --all-ready, not both")
    return PrearchiveSelection(owner_of(context.project()), arguments.session, arguments.timestamp)


def owner_of(project: str) -> str:
    return "" if project == UNASSIGNED else project


async def select(context: Context, xnat: Xnat, selection: PrearchiveSelection) -> list[PrearchiveSession]:
    """Return the named sessions, which may be none. Raises ConfigError if several have a name and one is wanted."""
    arguments, project = context.arguments, selection.project
    with context.about(f"project {project or UNASSIGNED}"):
        rows = [row for row in await xnat.prearchive(project) if project or not row.project]
    if not selection.session:
        return [row for row in rows if row.status == "READY"]
    found = sorted(prearchive.matching(rows, selection.session, selection.timestamp), key=lambda row: row.timestamp)
    if arguments.all:
        return found
    newest = {row.name: row for row in found}
    for name in newest:
        times = [row.timestamp for row in found if row.name == name]
        if len(times) > 1 and not arguments.newest:
            text = f"there are {len(times)} sessions named {name} in the prearchive: of {', '.join(times)}"
            raise ConfigError(f"{text}; which? Give --timestamp, or --newest, or --all")
    return list(newest.values())


# -- changes -----------------------------------------------------------------------------------------------------

# Changes one session, and returns what is printed of it.
Change = Callable[[Context, "Xnat", PrearchiveSession], Awaitable[Cells]]


async def change_each(
    context: Context,
    participle: str,
    change: Change,
    if_none: Callable[[Context, Xnat, PrearchiveSelection], Awaitable[Cells | None]] | None = None,
) -> int:
    """Change every named session, one after the other; a failure does not stop the others.

    Args:
        context: The command line.
        participle: What was done, as Deleted, for the user.
        change: Changes one session.
        if_none: Returns the result for a session that is not in the prearchive, or None if that is an error.
    """
    selection = parse_selection(context)
    results: list[Cells] = []
    errors = 0
    async with context.xnat() as xnat:
        rows = await select(context, xnat, selection)
        if not rows and selection.session:
            if not if_none or not (result := await if_none(context, xnat, selection)):
                raise selection.not_found(xnat.url)
            results.append(result)
        elif not rows:
            context.note("No results: no session is READY")
        if context.arguments.dry_run and rows:
            print_lines(row.id for row in rows)
            return 0
        for row in rows:
            try:
                results.append(await change(context, xnat, row))
            except XnatError as error:
                if len(rows) == 1:
                    raise
                errors += 1
                print_message(f"xnatctl: {error}")
    _print_results(context, results)
    if errors:
        context.note(f"{participle} {len(results)} of {len(rows)} sessions")
    return 0 if not errors else PARTIAL_STATUS if results else 1


def _print_results(context: Context, results: Sequence[Cells]) -> None:
    arguments = context.arguments
    if arguments.quiet:
        print_lines(result["id"] for result in results if result.get("id"))
    elif arguments.output in STRUCTURED_FORMATS:
        is_one = len(results) == 1 and not arguments.all
        print_structured(arguments.output, results[0] if is_one else list(results))


# -- waiting -----------------------------------------------------------------------------------------------------


async def wait_for(context: Context, xnat: Xnat, waiting: PrearchiveSession) -> PrearchiveSession | None:
    """Wait until the server is done with a session; return it, or None if it is gone. Raises Unreachable on timeout."""
    import trio

    progress, timeout = StateReport(context, waiting.name, waiting.status), context.arguments.wait_timeout

    def report(row: PrearchiveSession) -> None:
        rest = max(0.0, prearchive.RECEIVING_SECONDS - progress.seconds)
        countdown = f"{row.status}: the server waits for more files, for another {rest:.0f} s if none comes"
        progress.report(row.status, countdown if row.status.startswith("RECEIVING") else "")

    def describe() -> str:
        return f"{waiting.name} is {progress.status}, and the server goes on with it; to wait on"

    with context.resumable(describe), trio.move_on_after(timeout):
        return await prearchive.settled(xnat, waiting, report)
    text = f"{waiting.name} is {progress.status} after {timeout:g} s"
    raise Unreachable(f"{text}: the server goes on with it; the same command resumes the wait", url=xnat.url)


# -- commands ----------------------------------------------------------------------------------------------------


@command(
    "prearchive list",
    "xnatctl prearchive list --project MYPROJECT",
    project_option,
    option("--status", metavar="STATUS", default="", help="sessions in this state only, as READY"),
    option("--session", metavar="NAME", default="", help="sessions of this name only, or like NAM*"),
    columns=("project", "timestamp", "name", "status", "scan_date", "subject"),
)
async def prearchive_list(context: Context) -> list[Cells]:
    """List the sessions in the prearchive."""
    arguments, project = context.arguments, context.project(needed=False)
    async with context.xnat() as xnat:
        with context.about(f"project {project}" if project else "the prearchive"):
            rows = await xnat.prearchive(owner_of(project))
    if project:
        context.remember(xnat, ("prearchive", project), [row.row for row in rows])
    rows = prearchive.matching(rows, arguments.session, status=arguments.status)
    return sorted(map(waiting_cells, rows), key=by_key("project", "name", "timestamp"))


def waiting_cells(waiting: PrearchiveSession) -> Cells:
    """Return the server's row, with a value for every column."""
    return {
        **{key: str(value or "") for key, value in waiting.row.cells.items()},
        "project": waiting.project or UNASSIGNED,
        "timestamp": waiting.timestamp,
        "name": waiting.name,
        "status": waiting.status,
        "scan_date": waiting.row.get("scan_date").partition(" ")[0],
        "subject": waiting.subject,
        "id": f"{waiting.project or UNASSIGNED}/{waiting.timestamp}/{waiting.name}",
    }


@command(
    "prearchive archive",
    "xnatctl prearchive archive --project MYPROJECT --session SESS001",
    selection_options,
    option("--all-ready", action="store_true", help="every session of the project that is READY"),
    option("--subject", metavar="LABEL", default="", help="subject to archive it under; fails if it gets another"),
    option("--label", metavar="LABEL", default="", help="label to archive it under; fails if it gets another"),
    option("--overwrite", action="store_true", help="archive it even if that replaces existing data"),
    wait_options,
)
async def prearchive_archive(context: Context) -> int:
    """Archive a session of the prearchive."""
    return await change_each(context, "Archived", archive_one, already_archived)


async def already_archived(context: Context, xnat: Xnat, selection: PrearchiveSelection) -> Cells | None:
    """Return the result if the session was archived: by an earlier run that was killed, another program, or by itself.

    A session of that label in the archive is no proof: the one in the prearchive may have been deleted.
    Raises NotFound if the archived session does not show that it came from there.
    """
    label = context.arguments.label or selection.session
    fields = await prearchive.archived(xnat, selection.project, label) if selection.project else {}
    if not fields:
        return None
    accession, (timestamp, folder) = fields.get("ID", ""), prearchive.origin(fields)
    is_same_name = bool(timestamp) and selection.session in (folder, fields.get("label"))
    if not is_same_name or selection.timestamp not in ("", timestamp):
        why = f"; the archive has {label} as {accession}, but the server does not state that it came from there"
        raise selection.not_found(xnat.url, why)
    context.note(f"{label}, received {timestamp}, is in the archive already, as {accession}")
    return _archived_cells(prearchive.Archived(selection.project, label, "", accession), "already archived")


async def archive_one(context: Context, xnat: Xnat, waiting: PrearchiveSession) -> Cells:
    """Archive a session if its state allows that. Raises Conflict with the reason if not."""
    arguments = context.arguments
    names = {"subject": arguments.subject, "label": arguments.label}
    current: PrearchiveSession | None = waiting
    if waiting.busy:
        if not arguments.wait:
            hint = "try again later, or give --wait"
            raise Conflict(f"{waiting.name} is {waiting.status}, not READY: {hint}", url=xnat.url, hint=hint)
        current = await wait_for(context, xnat, waiting)
    if current is None:
        found = await prearchive.outcome(xnat, waiting, said="it disappeared during the wait", **names)
        context.note(f"{found.session} was archived meanwhile, as {found.accession}")
        return _archived_cells(found, "already archived")
    await _check_state(context, xnat, current)
    try:
        with context.resumable(lambda: f"the server may go on with {waiting.name} all the same; to look again"):
            found = await prearchive.archive(xnat, current, overwrite=arguments.overwrite, **names)
    except Conflict as error:
        if arguments.overwrite:
            raise
        raise _explained(current, str(error), await prearchive.conflicts(xnat, current, **names), xnat.url) from error
    accession = found.accession
    if not accession and (arguments.quiet or arguments.output in STRUCTURED_FORMATS):
        fields = await prearchive.appeared(xnat, found.project, [found.session], lambda fields: True)
        accession = fields.get("ID", "")
    context.note(f"Archived {found.session} from the prearchive" + (f" to {found.uri}" if found.uri else ""))
    return _archived_cells(prearchive.Archived(found.project, found.session, found.uri, accession), "archived")


async def _check_state(context: Context, xnat: Xnat, waiting: PrearchiveSession) -> None:
    """Report conflicts with existing data. Raises Conflict if they, or the state, prevent archiving."""
    arguments = context.arguments
    if waiting.status == "ERROR":
        raise Conflict(f"{waiting.name} is in state ERROR: see its logs on the server, or rebuild it", url=xnat.url)
    if not arguments.overwrite and waiting.status != "CONFLICT":
        return  # the server finds conflicts itself
    conflicts = await prearchive.conflicts(xnat, waiting, subject=arguments.subject, label=arguments.label)
    if not arguments.overwrite:
        why = "it is in conflict with existing data" if conflicts else "its state is CONFLICT"
        raise _explained(waiting, why, conflicts or [OVERWRITE_HINT], xnat.url)
    for text in conflicts:
        context.note(f"{waiting.name}: {text}")


OVERWRITE_HINT = "--overwrite archives it nevertheless"


def _explained(waiting: PrearchiveSession, why: str, conflicts: Sequence[str], url: str) -> Conflict:
    details = "; ".join(text for text in conflicts if text not in why)
    begun = why if why.startswith(waiting.name) else f"{waiting.name} was not archived: {why}"
    return Conflict(f"{begun} ({details})" if details else begun, status=409, url=url, hint=OVERWRITE_HINT)


def _archived_cells(found: prearchive.Archived, result: str) -> Cells:
    return {
        "success": True,
        "project": found.project,
        "session": found.session,
        "id": found.accession or None,
        "experiment_uri": found.uri or (f"/data/experiments/{found.accession}" if found.accession else None),
        "result": result,
    }


@command(
    "prearchive move",
    "xnatctl prearchive move --project MYPROJECT --session SESS001 --to OTHER",
    option("--to", metavar="PROJECT", default="", help="target project; or as last argument"),
    selection_options,
)
async def prearchive_move(context: Context) -> int:
    """Move a session of the prearchive to another project."""
    arguments = context.arguments
    if not arguments.to and len(arguments.place) in (1, 4):
        arguments.to = arguments.place.pop()
    if not arguments.to:
        raise ConfigError("where to? Give --to PROJECT")
    return await change_each(context, "Moved", move_one)


async def move_one(context: Context, xnat: Xnat, waiting: PrearchiveSession) -> Cells:
    project = context.arguments.to
    uri = await prearchive.move(xnat, waiting, project)
    context.note(f"Moved {waiting.name} to project {project}: {uri}")
    return {"success": True, "session": waiting.name, "project": project, "uri": uri, "id": uri}


@command(
    "prearchive delete",
    "xnatctl prearchive delete --project MYPROJECT --session SESS001",
    selection_options,
    option("-y", "--yes", action="store_true", help="do not ask"),
)
async def prearchive_delete(context: Context) -> int:
    """Delete a session of the prearchive, permanently."""
    return await change_each(context, "Deleted", delete_one)


async def delete_one(context: Context, xnat: Xnat, waiting: PrearchiveSession) -> Cells:
    import trio

    if not context.arguments.yes:
        with statusline.hidden():
            await trio.to_thread.run_sync(_confirm, waiting, abandon_on_cancel=True)
    await prearchive.delete(xnat, waiting)
    context.note(f"Deleted {waiting.name} of {waiting.timestamp} from the prearchive")
    return {"success": True, "session": waiting.name, "project": waiting.project, "id": waiting.id}


def _confirm(waiting: PrearchiveSession) -> None:
    """Ask on the terminal whether to delete a session. Raises XnatError if not."""
    if not sys.stdin.isatty():
        raise ConfigError(f"deleting {waiting.id} cannot be undone: give --yes to do it without being asked")
    question = plain(f"Delete {waiting.id} ({waiting.status}) permanently?")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise XnatError(f"{waiting.name} was not deleted")


@command(
    "prearchive rebuild",
    "xnatctl prearchive rebuild --project MYPROJECT --session SESS001",
    selection_options,
    wait_options,
)
async def prearchive_rebuild(context: Context) -> int:
    """Rebuild the document of a session of the prearchive from its images."""
    return await change_each(context, "Rebuilt", rebuild_one)


async def rebuild_one(context: Context, xnat: Xnat, waiting: PrearchiveSession) -> Cells:
    await prearchive.rebuild(xnat, waiting)
    status = "being built"
    if context.arguments.wait:
        row = await wait_for(context, xnat, waiting)
        status = row.status if row else "gone from the prearchive"
    context.note(f"Rebuilt {waiting.name}" if context.arguments.wait else f"{waiting.name} is {status}")
    return {"success": True, "session": waiting.name, "project": waiting.project, "status": status}


COMMANDS = [prearchive_list, prearchive_archive, prearchive_move, prearchive_delete, prearchive_rebuild]
