"""Run prearchive list|archive|move|delete|rebuild on sessions of the prearchive, chosen by name."""

import argparse
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from xnatfs.cli import options, statusline
from xnatfs.cli.ctl.archive import project_option
from xnatfs.cli.ctl.command import PARTIAL, Command, Context
from xnatfs.cli.output import natural, say, show_rows, tell
from xnatfs.common.errors import ConfigError, Conflict, NotFound, Unreachable, XnatError
from xnatfs.common.sanitize import plain
from xnatfs.rest import prearchive
from xnatfs.rest.client import Xnat
from xnatfs.rest.models import UNASSIGNED, PrearchiveSession

COLUMNS = {
    "project": "Project",
    "timestamp": "Timestamp",
    "name": "Name",
    "status": "Status",
    "scan_date": "Scan Date",
    "subject": "Subject",
}

# Four hours in seconds: archiving a big session takes over a quarter of an hour, and the other xnatctl waits as long.
WAIT = 4 * 3600.0
SAY_EVERY = 10.0
RECEIVING_SAID = "RECEIVING: the server waits whether more comes, for 5 minutes by default"


# -- options -----------------------------------------------------------------------------------------------------


def _list(parser: argparse.ArgumentParser) -> None:
    project_option(parser)
    parser.add_argument("--status", metavar="STATUS", default="", help="only those in this state, as READY")
    parser.add_argument("--session", metavar="NAME", default="", help="only those of this name, or like NAM*")


def _chosen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", nargs="*", metavar="PROJECT TIMESTAMP SESSION", help="one session, as list names it")
    project_option(parser)
    parser.add_argument("--session", metavar="NAME", default="", help="by its name, or all like NAM*")
    parser.add_argument("--timestamp", metavar="TIME", default="", help="of several with that name, the one of then")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--newest", action="store_true", help="of several with that name, the last")
    which.add_argument("--all", action="store_true", help="of several with that name, all")
    parser.add_argument("--dry-run", action="store_true", help="list what it would be done to")


def _waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="until the server has done with it")
    parser.add_argument(
        "--wait-timeout",
        metavar="S",
        type=options.positive_seconds,
        default=WAIT,
        help="wait no longer than this (default: 4 h)",
    )


def _archive(parser: argparse.ArgumentParser) -> None:
    _chosen(parser)
    parser.add_argument("--all-ready", action="store_true", help="every session of the project that is READY")
    parser.add_argument(
        "--subject", metavar="LABEL", default="", help="archive it as a session of this subject; fails if it is not"
    )
    parser.add_argument("--label", metavar="LABEL", default="", help="archive it under this label; fails if it is not")
    parser.add_argument("--overwrite", action="store_true", help="even where it replaces what is in the archive")
    _waiting(parser)


def _move(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="PROJECT", default="", help="the project to move it to; or as a last argument")
    _chosen(parser)


def _delete(parser: argparse.ArgumentParser) -> None:
    _chosen(parser)
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _rebuild(parser: argparse.ArgumentParser) -> None:
    _chosen(parser)
    _waiting(parser)


# -- choosing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """The sessions that the command line names."""

    project: str
    session: str
    timestamp: str

    @property
    def name(self) -> str:
        return f"prearchive session {self.session}" + (f" of {self.timestamp}" if self.timestamp else "")


def choice(context: Context) -> Choice:
    """Parse which sessions the command line names, before any request. Raises ConfigError."""
    arguments = context.arguments
    place: list[str] = arguments.place
    for option in ("session", "project", "timestamp"):
        if place and getattr(arguments, option):
            raise ConfigError(f"give either PROJECT TIMESTAMP SESSION or --{option}, not both")
    if len(place) == 3:
        return Choice(_owner(place[0]), place[2], place[1])
    if place:
        raise ConfigError(f"which session? Give PROJECT TIMESTAMP SESSION or --session NAME, not {' '.join(place)}")
    everything = getattr(arguments, "all_ready", False)
    if not arguments.session and not everything:
        raise ConfigError("which session? Give PROJECT TIMESTAMP SESSION, or --project and --session")
    if arguments.session and everything:
        raise ConfigError("give either --session or --all-ready, not both")
    return Choice(_owner(context.project()), arguments.session, arguments.timestamp)


def _owner(project: str) -> str:
    return "" if project == UNASSIGNED else project


async def chosen(context: Context, xnat: Xnat, wanted: Choice) -> list[PrearchiveSession]:
    """Return the named sessions, which may be none. Raises ConfigError if several have a name and one is wanted."""
    arguments = context.arguments
    with context.about(f"project {wanted.project or UNASSIGNED}"):
        rows = [row for row in await xnat.prearchive(wanted.project) if wanted.project or not row.project]
    if not wanted.session:
        return [row for row in rows if row.status == "READY"]
    found = sorted(prearchive.matching(rows, wanted.session, wanted.timestamp), key=lambda row: row.timestamp)
    if arguments.all:
        return found
    by_name: dict[str, list[PrearchiveSession]] = {}
    for row in found:
        by_name.setdefault(row.name, []).append(row)
    for name, same in by_name.items():
        if len(same) > 1 and not arguments.newest:
            times = ", ".join(row.timestamp for row in same)
            text = f"there are {len(same)} sessions named {name} in the prearchive: of {times}"
            raise ConfigError(f"{text}; which? Give --timestamp, or --newest, or --all")
    return [same[-1] for same in by_name.values()]


def missing(context: Context, wanted: Choice) -> NotFound:
    where = f"project {wanted.project or UNASSIGNED} on {context.config.url}"
    return NotFound(f"{wanted.name} not found in {where}", status=404, url=context.config.url)


Act = Callable[[Xnat, PrearchiveSession], Awaitable[dict[str, Any]]]


async def _each(
    context: Context, verb: str, act: Act, otherwise: Callable[[Xnat], Awaitable[int]] | None = None
) -> int:
    """Apply `act` to every named session, one after the other; a failure does not stop the others."""
    wanted = choice(context)
    results: list[dict[str, Any]] = []
    errors: list[XnatError] = []
    async with context.xnat() as xnat:
        rows = await chosen(context, xnat, wanted)
        if not rows and wanted.session:
            if otherwise and await otherwise(xnat):
                return 0
            raise missing(context, wanted)
        if context.arguments.dry_run:
            for row in rows:
                say("/".join(row.key))
            return 0
        if not rows:
            context.note("No results: no session is READY")
        for row in rows:
            try:
                results.append(await act(xnat, row))
            except XnatError as error:
                if len(rows) == 1:
                    raise
                errors.append(error)
                tell(f"xnatctl: {error}")
    _tell(context, results)
    if errors:
        context.note(f"{verb} {len(results)} of {len(rows)} sessions")
    return 0 if not errors else PARTIAL if results else 1


def _tell(context: Context, results: Sequence[dict[str, Any]]) -> None:
    if context.arguments.quiet:
        for result in results:
            if result.get("id"):
                say(result["id"])
    elif context.arguments.output == "json" and len(results) == 1 and not context.arguments.all:
        say(json.dumps(results[0], ensure_ascii=False))
    elif context.arguments.output == "json":
        say(json.dumps(results, ensure_ascii=False))
    elif context.arguments.output == "jsonl":
        for result in results:
            say(json.dumps(result, ensure_ascii=False))


# -- commands ----------------------------------------------------------------------------------------------------


async def list_(context: Context) -> None:
    arguments, project = context.arguments, context.project(needed=False)
    async with context.xnat() as xnat:
        with context.about(f"project {project}" if project else "the prearchive"):
            rows = await xnat.prearchive(_owner(project))
    if project:
        context.remember(xnat, ("prearchive", project), [row.row for row in rows])
    rows = prearchive.matching(rows, arguments.session, status=arguments.status)
    shown = sorted(map(_row, rows), key=lambda row: (natural(row["project"]), natural(row["name"]), row["timestamp"]))
    show_rows(arguments, COLUMNS, shown, "id")


def _row(waiting: PrearchiveSession) -> dict[str, Any]:
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


async def archive(context: Context) -> int:
    arguments = context.arguments

    async def act(xnat: Xnat, waiting: PrearchiveSession) -> dict[str, Any]:
        return await archive_one(context, xnat, waiting)

    async def already(xnat: Xnat) -> bool:
        """Return whether the session was archived: by an earlier run that was killed, by another program, by itself.

        A session of that label in the archive is no proof: the one in the prearchive may have been deleted.
        Raises NotFound where the archived session does not show that it came from there.
        """
        wanted = choice(context)
        label = arguments.label or wanted.session
        fields = await prearchive.archived(xnat, wanted.project, label) if wanted.project else {}
        if not fields:
            return False
        accession, (timestamp, folder) = fields.get("ID", ""), prearchive.origin(fields)
        named = bool(timestamp) and wanted.session in (folder, fields.get("label"))
        if not named or wanted.timestamp not in ("", timestamp):
            text = f"the archive has {label} as {accession}, which did not come from there, as far as the server tells"
            raise NotFound(f"{missing(context, wanted)}; {text}", status=404, url=context.config.url)
        context.note(f"{label}, received {timestamp}, is in the archive already, as {accession}")
        _tell(context, [_result(prearchive.Archived(wanted.project, label, "", accession), "already archived")])
        return True

    return await _each(context, "Archived", act, already)


async def archive_one(context: Context, xnat: Xnat, waiting: PrearchiveSession) -> dict[str, Any]:
    """Archive a session if its state allows that. Raises Conflict with the reason if not."""
    arguments = context.arguments
    current: PrearchiveSession | None = waiting
    named = {"subject": arguments.subject, "label": arguments.label}
    if waiting.busy:
        if not arguments.wait:
            hint = "try again later, or give --wait"
            raise Conflict(f"{waiting.name} is {waiting.status}, not READY: {hint}", url=xnat.url, hint=hint)
        current = await wait_for(context, xnat, waiting)
    if current is None:
        found = await prearchive.outcome(xnat, waiting, said="it went while it was waited for", **named)
        context.note(f"{found.session} was archived meanwhile, as {found.accession}")
        return _result(found, "already archived")
    if current.status == "ERROR":
        raise Conflict(f"{current.name} is in state ERROR: have a look at its logs, or rebuild it", url=xnat.url)
    if arguments.overwrite or current.status == "CONFLICT":
        against = await prearchive.conflicts(xnat, current, **named)
        if against and not arguments.overwrite:
            raise _explained(current, "it is in conflict with the archive", against, xnat.url)
        for text in against:
            context.note(f"{current.name}: {text}")
        if current.status == "CONFLICT" and not arguments.overwrite:
            raise _explained(current, "its state is CONFLICT", ["--overwrite archives it nevertheless"], xnat.url)
    try:
        with context.resumable(lambda: f"the server may go on with {waiting.name} all the same; to look again"):
            found = await prearchive.archive(xnat, current, overwrite=arguments.overwrite, **named)
    except Conflict as error:
        if arguments.overwrite:
            raise
        against = await prearchive.conflicts(xnat, current, **named)
        raise _explained(current, str(error), against, xnat.url) from error
    accession = found.accession
    if not accession and (arguments.quiet or arguments.output in ("json", "jsonl")):
        fields = await prearchive.appeared(xnat, found.project, [found.session], lambda fields: True)
        accession = fields.get("ID", "")
    context.note(f"Archived {found.session} from the prearchive" + (f" to {found.uri}" if found.uri else ""))
    return _result(prearchive.Archived(found.project, found.session, found.uri, accession), "archived")


def _explained(waiting: PrearchiveSession, why: str, against: Sequence[str], url: str) -> Conflict:
    words = [text for text in against if text not in why]
    more = f" ({'; '.join(words)})" if words else ""
    begun = why if why.startswith(waiting.name) else f"{waiting.name} was not archived: {why}"
    return Conflict(f"{begun}{more}", status=409, url=url, hint="--overwrite archives it nevertheless")


def _result(found: prearchive.Archived, result: str) -> dict[str, Any]:
    return {
        "success": True,
        "project": found.project,
        "session": found.session,
        "id": found.accession or None,
        "experiment_uri": found.uri or (f"/data/experiments/{found.accession}" if found.accession else None),
        "result": result,
    }


async def wait_for(context: Context, xnat: Xnat, waiting: PrearchiveSession) -> PrearchiveSession | None:
    """Wait until the server is done with a session; return it, or None if it is gone. Raises Unreachable on timeout."""
    said_at, said = float("-inf"), ""
    seen = trio.current_time()

    def watch(row: PrearchiveSession) -> None:
        nonlocal said_at, said
        now = time.monotonic()
        if row.status != said or now - said_at >= SAY_EVERY:
            context.note(f"{row.name}: {state(row, trio.current_time() - seen)}")
            said, said_at = row.status, now

    def left() -> str:
        return f"{waiting.name} is {said or waiting.status}, and the server goes on with it; to wait on"

    longest = context.arguments.wait_timeout
    with context.resumable(left), trio.move_on_after(longest):
        return await prearchive.settled(xnat, waiting, watch)
    text = f"{waiting.name} is {said or waiting.status} after {longest:g} s"
    raise Unreachable(f"{text}: the server goes on with it; the same command takes up the wait again", url=xnat.url)


def state(row: PrearchiveSession, watched: float) -> str:
    """Describe a state for people; RECEIVING with the estimated time until the server ends it."""
    if not row.status.startswith("RECEIVING"):
        return row.status
    left = max(0.0, prearchive.RECEIVING_FOR - watched)
    return f"{row.status}: the server waits for more, for another {left:.0f} s if nothing comes"


async def move(context: Context) -> int:
    arguments = context.arguments
    if not arguments.to and len(arguments.place) in (1, 4):
        arguments.to = arguments.place.pop()
    if not arguments.to:
        raise ConfigError("where to? Give --to PROJECT")

    async def act(xnat: Xnat, waiting: PrearchiveSession) -> dict[str, Any]:
        uri = await prearchive.move(xnat, waiting, arguments.to)
        context.note(f"Moved {waiting.name} to project {arguments.to}: {uri}")
        return {"success": True, "session": waiting.name, "project": arguments.to, "uri": uri, "id": uri}

    return await _each(context, "Moved", act)


async def delete(context: Context) -> int:
    arguments = context.arguments

    async def act(xnat: Xnat, waiting: PrearchiveSession) -> dict[str, Any]:
        if not arguments.yes:
            with statusline.hidden():
                await trio.to_thread.run_sync(_ask, waiting, abandon_on_cancel=True)
        await prearchive.delete(xnat, waiting)
        context.note(f"Deleted {waiting.name} of {waiting.timestamp} from the prearchive")
        return {"success": True, "session": waiting.name, "project": waiting.project, "id": "/".join(waiting.key)}

    return await _each(context, "Deleted", act)


def _ask(waiting: PrearchiveSession) -> None:
    if not sys.stdin.isatty():
        raise ConfigError(f"deleting {'/'.join(waiting.key)} cannot be undone: give --yes to do it without being asked")
    question = plain(f"Delete {'/'.join(waiting.key)} ({waiting.status}) for good?")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise XnatError(f"{waiting.name} was not deleted")


async def rebuild(context: Context) -> int:
    arguments = context.arguments

    async def act(xnat: Xnat, waiting: PrearchiveSession) -> dict[str, Any]:
        await prearchive.rebuild(xnat, waiting)
        status = "being built"
        if arguments.wait:
            row = await wait_for(context, xnat, waiting)
            status = row.status if row else "gone from the prearchive"
        context.note(f"Rebuilt {waiting.name}" if arguments.wait else f"{waiting.name} is {status}")
        return {"success": True, "session": waiting.name, "project": waiting.project, "status": status}

    return await _each(context, "Rebuilt", act)


COMMANDS = [
    Command(
        "prearchive",
        "list",
        "list the sessions that wait to be archived",
        "xnatctl prearchive list --project MYPROJECT",
        list_,
        _list,
        columns=COLUMNS,
    ),
    Command(
        "prearchive",
        "archive",
        "archive a session that waits",
        "xnatctl prearchive archive --project MYPROJECT --session SESS001",
        archive,
        _archive,
    ),
    Command(
        "prearchive",
        "move",
        "move a session that waits to another project",
        "xnatctl prearchive move --project MYPROJECT --session SESS001 --to OTHER",
        move,
        _move,
    ),
    Command(
        "prearchive",
        "delete",
        "delete a session that waits, for good",
        "xnatctl prearchive delete --project MYPROJECT --session SESS001",
        delete,
        _delete,
    ),
    Command(
        "prearchive",
        "rebuild",
        "have the document of a session that waits made again",
        "xnatctl prearchive rebuild --project MYPROJECT --session SESS001",
        rebuild,
        _rebuild,
    ),
]
