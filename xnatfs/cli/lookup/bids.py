"""Run bids report and bids map: list what bids/ leaves out of a project, and draft the map that names its scans."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from xnatfs.cli.ctl.command import Context, command, option, options_of
from xnatfs.cli.host.view_options import list_of, map_path
from xnatfs.cli.output import Cells, print_data
from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.common.tasks import gather
from xnatfs.settings.views import BIDS_OPTIONS, LEFT_OUT_COLUMNS, ViewOptions

if TYPE_CHECKING:  # help and errors start in a fifth of the time without these
    from xnatfs.rest.lists import JoinedScans
    from xnatfs.rest.models import Scan
    from xnatfs.tree.bids.dataset import Dataset
    from xnatfs.tree.bids.rules.maps import BidsMap

project_argument = option("project", metavar="PROJECT", help="project ID")
map_option = option(
    "--bids-map", metavar="FILE", type=Path, help="use the BIDS names in FILE before those of the server"
)
rule_options = options_of(
    map_option,
    option(
        "--bids-quality",
        choices=("usable", "any"),
        default="usable",
        help="scans to include, as for 'xnatfs mount' (default: usable)",
    ),
    option(
        "--bids-options",
        metavar="NAMES",
        type=list_of(*BIDS_OPTIONS),
        help=f"as for 'xnatfs mount': {', '.join(BIDS_OPTIONS)}",
    ),
)


@asynccontextmanager
async def opened(context: Context, views: ViewOptions) -> AsyncIterator[Dataset]:
    """Open the dataset that a mount would show in bids/PROJECT."""
    from xnatfs.tree import Root
    from xnatfs.tree.bids.dataset import Dataset
    from xnatfs.tree.projects import ProjectDir, Projects

    project = context.arguments.project
    async with context.site() as site:
        site.views = views
        with context.about(f"project {project}"):
            home = await Projects(site, Root(site), "projects").child(project)
            assert isinstance(home, ProjectDir)
            yield Dataset(home)


@command(
    "bids report",
    "xnatctl bids report MYPROJECT",
    project_argument,
    rule_options,
    columns=LEFT_OUT_COLUMNS,
    identifier="scan",
)
async def bids_report(context: Context) -> list[Cells]:
    """List the images and scans of a project that bids/ leaves out, and why."""
    from xnatfs.tree.bids.report import DatasetReport

    arguments = context.arguments
    options = tuple(arguments.bids_options.split(",")) if arguments.bids_options else ()
    views = ViewOptions(
        bids_map=map_path(arguments.bids_map), bids_quality=arguments.bids_quality, bids_options=options
    )
    async with opened(context, views) as dataset:
        report = await DatasetReport.build(dataset)
    context.no_rows_text = "Nothing is left out"
    images = f"{report.images} image{'s are' if report.images != 1 else ' is'} shown"
    context.hint = images if not arguments.quiet else ""
    return [dict(zip(LEFT_OUT_COLUMNS, row, strict=True)) for row in report.left_out()]


@command("bids map", "xnatctl bids map MYPROJECT > map.json", project_argument, map_option)
async def bids_map(context: Context) -> None:
    """Draft a map of BIDS names for a project, from the series descriptions of its scans.

    Lines of the server's map and of --bids-map are copied; the other names are guesses. `xnatfs mount --bids-map` uses
    the map, and every mount does once an administrator has stored it on the server.
    """
    from xnatfs.rest.models import natural

    async with opened(context, ViewOptions(bids_map=map_path(context.arguments.bids_map))) as dataset:
        known, _ = await dataset.map()
        scans = await _scans(dataset)
    entries = {(entry := _entry(scan, known))["series_description"].casefold(): entry for scan in scans}
    drafted = [entries[key] for key in sorted(entries, key=natural)]
    print_data(json.dumps([entry for entry in drafted if entry["bidsname"]], indent=1, ensure_ascii=False))
    if known.wrong:
        context.note(f"{known.wrong}: no line of it is copied")
    if unknown := [entry["series_description"] for entry in drafted if not entry["bidsname"]]:
        context.note(f"No guess for: {', '.join(unknown)}")


async def _scans(dataset: Dataset) -> list[Scan]:
    """Return the scans of all sessions of a project: from joined lists, or of each session that these lack."""
    site, project = dataset.site, dataset.project.id
    joined: dict[str, JoinedScans] = {}
    for shared in (True, False):
        with suppress(NotFound, Denied, BadReply):  # the server does not list scans of a whole project
            joined |= await site.xnat.scans_of_project(project, shared=shared)
    rows = (await site.experiments(project)).rows
    absent = [partial(site.scans, row.id) for row in rows if row.is_imaging and row.id not in joined]
    own = [scan for listing in await gather(*absent) for scan in listing.rows]
    return [*(scan for found in joined.values() for scan in found.scans.values()), *own]


def _entry(scan: Scan, known: BidsMap) -> dict[str, str]:
    from xnatfs.tree.bids.rules.guess import map_entry

    entry = map_entry(scan)
    line = known.find(scan)
    return {**entry, "bidsname": line.bidsname} if line else entry


COMMANDS = [bids_report, bids_map]
