"""Run project export: write the tables that a mount shows in a project's directory."""

import os
from collections.abc import Mapping
from pathlib import Path

from xnatfs.cli.ctl.command import Context, command, option
from xnatfs.cli.output import Cells, print_message
from xnatfs.cli.parsing import PARTIAL_STATUS
from xnatfs.common.errors import BadReply, Conflict, Denied, NotFound, XnatError


@command(
    "project export",
    "xnatctl project export MYPROJECT tables",
    option("project_id", metavar="PROJECT", help="project ID"),
    option(
        "directory",
        metavar="DIR",
        nargs="?",
        type=Path,
        default=Path("."),
        help="directory to write to (default: this one)",
    ),
    option("--force", action="store_true", help="replace files that have other contents"),
    columns=("file", "bytes", "state"),
    identifier="file",
)
async def project_export(context: Context) -> list[Cells]:
    """Write the tables of a project: subjects.tsv, sessions.tsv and scans.tsv.

    A table that the server refuses is reported, and the others are written.
    """
    from xnatfs.tree.metadata.project_tables import PROJECT_TABLES  # completion and other commands start without it

    arguments = context.arguments
    project: str = arguments.project_id
    made, refused = dict[str, bytes](), dict[str, XnatError]()
    async with context.site() as site:
        with context.about(f"project {project}", "Collaborator"):
            for name, make in PROJECT_TABLES.items():
                try:
                    made[name] = (await make(site, project)).data
                except (NotFound, Denied, BadReply) as error:
                    refused[name] = error
            if not made:
                raise next(iter(refused.values()))
    rows = _write_all(arguments.directory, made, arguments.force)
    for name, reason in refused.items():
        print_message(f"xnatctl: {name} cannot be made: {reason}")
        rows.append({"file": str(arguments.directory / name), "bytes": None, "state": "failed"})
    context.exit_status = PARTIAL_STATUS if refused else 0
    return rows


def _write_all(directory: Path, made: Mapping[str, bytes], force: bool) -> list[Cells]:
    """Write files, and return a row for each. Raises Conflict before any is replaced without `force`, and OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    states = {name: _state(directory / name, data) for name, data in made.items()}
    others = [str(directory / name) for name, state in states.items() if state == "replaced"]
    if others and not force:
        raise Conflict(f"{', '.join(others)} would be replaced: give another directory, or --force")
    for name, data in made.items():
        if states[name] != "unchanged":
            _write(directory / name, data)
    return [{"file": str(directory / name), "bytes": len(data), "state": states[name]} for name, data in made.items()]


def _state(path: Path, data: bytes) -> str:
    """Return the state of a file after these bytes are written: written, unchanged or replaced."""
    if not path.exists():
        return "written"
    return "unchanged" if path.is_file() and path.read_bytes() == data else "replaced"


def _write(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


COMMANDS = [project_export]
