"""Run prearchive watch: a line for each session, and for each change of one."""

import time
from datetime import datetime

from xnatfs.cli import options, streams
from xnatfs.cli.ctl.command import Context, command, option, project_option
from xnatfs.cli.ctl.prearchive import owner_of, waiting_cells
from xnatfs.cli.output import STRUCTURED_FORMATS, Cells, by_key, painted, print_lines, print_structured, print_text
from xnatfs.common.sanitize import plain
from xnatfs.rest import prearchive

# Seconds between two listings: receiving a session takes minutes, and a listing of a busy site is long.
LISTING_PAUSE_SECONDS = 5.0
GONE = "gone"  # archived, moved or deleted


@command(
    "prearchive watch",
    "xnatctl prearchive watch --project MYPROJECT",
    project_option,
    option("--session", metavar="NAME", default="", help="sessions of this name only, or like NAM*"),
    option(
        "--interval",
        metavar="TIME",
        type=options.positive_seconds,
        default=LISTING_PAUSE_SECONDS,
        help="time between two requests, as 30 (seconds) or 1m (default: 5 s)",
    ),
)
async def prearchive_watch(context: Context) -> None:
    """Show the sessions in the prearchive and each change of them, until Ctrl-C."""
    import trio

    arguments, project = context.arguments, context.project(needed=False)
    known: dict[str, Cells] = {}
    async with context.xnat() as xnat:
        while True:
            with context.about(f"project {project}" if project else "the prearchive"):
                listed = prearchive.matching(await xnat.prearchive(owner_of(project)), arguments.session)
            rows = {row["id"]: row for row in map(waiting_cells, listed)}
            gone = [{**row, "status": GONE} for key, row in known.items() if key not in rows]
            changed = [row for key, row in rows.items() if row["status"] != known.get(key, {}).get("status")]
            for row in sorted([*gone, *changed], key=by_key("id")):
                _print_change(context, row)
            streams.flush_for_reader()
            known = rows
            await trio.sleep(arguments.interval)


def _print_change(context: Context, row: Cells) -> None:
    arguments = context.arguments
    if arguments.quiet:
        print_lines([row["id"]])
    elif arguments.output in STRUCTURED_FORMATS:  # a stream of objects, one a line
        keys = ("project", "timestamp", "name", "status", "id")
        print_structured("jsonl", {"time": datetime.now(), **{key: row[key] for key in keys}})
    else:
        state = painted(arguments, "status", plain(row["status"]))
        print_text(f"{time.strftime('%H:%M:%S')}  {plain(row['id'])}  {state}")


COMMANDS = [prearchive_watch]
