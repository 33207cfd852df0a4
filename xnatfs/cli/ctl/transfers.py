"""Run scan|session|resource|subject|project download: verified copies of what is not there yet."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnatfs.cli import options, output
from xnatfs.cli.ctl.command import Context, command, project_option
from xnatfs.cli.ctl.experiments import (
    check_has_scans,
    experiment,
    experiment_options,
    resource_label,
    resource_words,
    session_argument,
    wanted_experiment,
)
from xnatfs.cli.ctl.progress import show_progress
from xnatfs.cli.lookup.choose import (
    chosen_sessions,
    filtered_scans,
    given_patterns,
    left_out,
    scan_filters,
    sessions_of_project,
    sessions_of_subject,
    wanted_scans,
    whole_sessions,
)
from xnatfs.cli.output import STRUCTURED_FORMATS, Cells, human_size, print_lines, print_message, print_structured
from xnatfs.cli.parsing import PARTIAL_STATUS
from xnatfs.common.errors import BadReply, ConfigError, Conflict, Denied, NotFound, NothingMatches

# What copies is imported by the commands that copy: completion and all other commands start without it.
if TYPE_CHECKING:
    from xnatfs.site import Site
    from xnatfs.transfer.copying import DownloadReport
    from xnatfs.transfer.download import Options
    from xnatfs.transfer.manifest import Owner
    from xnatfs.transfer.plan import Plan
    from xnatfs.tree.sessions import AssessorDir, SessionDir

DownloadOutcome = tuple[int, Cells]  # an exit status, and what is printed for programs


def _download(parser: argparse.ArgumentParser) -> None:
    experiment_options(parser)
    _choice(parser)


def _choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-r", "--resource", action="append", default=[], metavar="LABEL", help="only these resources")
    scan_filters(parser)
    _copying(parser)


def _copying(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="where to (default: here)")
    parser.add_argument(
        "-w", "--workers", type=options.number, metavar="N", help="files at once (default: 8, the most)"
    )
    parser.add_argument("--force", action="store_true", help="fetch all anew, archives too; replace edited files")
    parser.add_argument("--verify", action="store_true", help="compare what is here with the server; fetch nothing")
    parser.add_argument("--dry-run", action="store_true", help="list what would be fetched")


def _scan_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-s", "--scans", action="append", default=[], metavar="ID,ID...", help="these scans; '*' or ALL for all of them"
    )
    parser.add_argument("--zip", action="store_true", help="the server's own archive, scans.zip")
    parser.add_argument(
        "--extract", action="store_true", help="files and folders, which is what there is without --zip"
    )
    parser.add_argument("--no-extract", dest="zip", action="store_true", help="the same as --zip")
    session_argument(parser)
    _download(parser)


def _session_download(parser: argparse.ArgumentParser) -> None:
    sessions = "labels or accession IDs, or patterns of labels in the project, as 'SUB*_MR1'"
    parser.add_argument("session_ids", metavar="SESSION", nargs="*", help=sessions)
    whole_sessions(parser)
    _download(parser)


def _subject_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject_id", metavar="SUBJECT", nargs="?", help="label or accession ID")
    parser.add_argument("-S", "--subject", metavar="SUBJECT", help="the same")
    _of_project(parser)


def _project_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project_id", metavar="PROJECT", nargs="?", help="the same as -P")
    parser.set_defaults(subject=None)
    _of_project(parser)


def _of_project(parser: argparse.ArgumentParser) -> None:
    project_option(parser)
    parser.set_defaults(experiment=None)
    whole_sessions(parser)
    _choice(parser)


def _resource_download(parser: argparse.ArgumentParser) -> None:
    resource_words(parser)
    parser.add_argument("--scan", metavar="SCAN", help="of this scan, not of the session")
    parser.set_defaults(session_id=None, resource=[])
    experiment_options(parser)
    _copying(parser)


@command("scan download", "xnatctl scan download -E XNAT_E00001 -s 1,2,3 --out ./data", _scan_download)
async def scan_download(context: Context) -> int:
    """Copy scans to this machine."""
    scans = wanted_scans(context)
    return _report(context, [await _run(context, scans, of_session=False, of_assessors=False)])


@command("session download", "xnatctl session download -P MYPROJECT 'SUB*_MR1' --out ./data", _session_download)
async def session_download(context: Context) -> int:
    """Copy the scans of sessions to this machine."""
    return await _download_each(context, await chosen_sessions(context) or [wanted_experiment(context)])


@command("subject download", "xnatctl subject download -P MYPROJECT SUB001 --out ./data", _subject_download)
async def subject_download(context: Context) -> int:
    """Copy all sessions of a subject to this machine."""
    return await _download_each(context, await sessions_of_subject(context))


@command("project download", "xnatctl project download MYPROJECT --type 'T1*' --out ./data", _project_download)
async def project_download(context: Context) -> int:
    """Copy all sessions of a project to this machine."""
    return await _download_each(context, await sessions_of_project(context))


async def _download_each(context: Context, sessions: Sequence[str]) -> int:
    """Copy sessions, one after the other; a failure of one does not stop the others."""
    arguments = context.arguments
    more = {name: getattr(arguments, name) or arguments.all for name in ("of_session", "of_assessors")}
    outcomes: list[DownloadOutcome] = []
    for session in sessions:
        arguments.experiment, arguments.session_ids, context.began = session, [], time.monotonic()
        try:
            outcomes.append(await _run(context, None, **more))
        except (NotFound, Denied, BadReply, Conflict) as error:
            if len(sessions) == 1:
                raise
            is_skipped = isinstance(error, NothingMatches)
            print_message(f"xnatctl: {error}")
            status = "skipped" if is_skipped else "failed"
            outcomes.append((0 if is_skipped else 1, {"session": session, "status": status, "error": str(error)}))
    if not sessions:
        context.note("No results: there are no sessions")
    elif len(sessions) > 1:
        done = sum(status == 0 and summary.get("status") != "skipped" for status, summary in outcomes)
        verb = "Listed" if arguments.dry_run else "Verified" if arguments.verify else "Downloaded"
        files, size = (sum(summary.get(key, 0) for _, summary in outcomes) for key in ("files", "bytes"))
        context.note(f"{verb} {done} of {len(sessions)} sessions: {output.counted(files, 'file')}, {human_size(size)}")
    return _report(context, outcomes)


def _report(context: Context, outcomes: Sequence[DownloadOutcome]) -> int:
    """Print the result of each session as structured output, and return the exit status."""
    arguments = context.arguments
    if arguments.output in STRUCTURED_FORMATS and not arguments.dry_run:
        summaries = [summary for _, summary in outcomes]
        print_structured(arguments.output, summaries[0] if len(summaries) == 1 else summaries)
    states = {status for status, _ in outcomes}
    return max(states, default=0) if len(outcomes) < 2 or states == {0} else 1 if states == {1} else PARTIAL_STATUS


@command("resource download", "xnatctl resource download -E XNAT_E00001 --scan 1 NIFTI", _resource_download)
async def resource_download(context: Context) -> int:
    """Copy a resource to this machine."""
    arguments = context.arguments
    arguments.resource, arguments.zip = [resource_label(arguments)], False
    scans = [arguments.scan] if arguments.scan is not None else []
    of_session = arguments.scan is None
    return _report(context, [await _run(context, scans, of_session=of_session, of_assessors=False)])


async def _run(
    context: Context, scans: Sequence[str] | None, *, of_session: bool, of_assessors: bool
) -> DownloadOutcome:
    """Copy scans (None: all) and resources. `session download` copies the resources of items that cannot have scans."""
    from xnatfs.transfer.local_files import local_name
    from xnatfs.transfer.manifest import Manifest, Owner
    from xnatfs.transfer.plan import tree_of
    from xnatfs.tree.names import file_name

    arguments = context.arguments
    out = arguments.out / local_name(file_name(wanted_experiment(context)))
    _check_out(arguments.out, out)
    _check_zip(arguments)
    of_scans = arguments.command.noun == "scan"
    is_whole = scans is None and not (of_scans or arguments.resource or given_patterns(context))
    async with context.site() as site:
        document = await experiment(context, site.xnat)
        accession = document.fields.get("ID") or wanted_experiment(context)
        project, label = document.fields.get("project", ""), document.fields.get("label", accession)
        owner = Owner(site.xnat.url, accession, project, label)
        if scans or arguments.zip or of_scans:
            check_has_scans(document, owner.session)
        scans = await filtered_scans(context, site, document, scans)
        Manifest(out).check_owner(owner, force=arguments.force)
        if arguments.zip:
            return await _zip(context, site, owner, scans, out)
        session = await tree_of(site, document, accession)
        choice = {"of_session": of_session or not document.has_scans, "of_assessors": of_assessors}
        planned = await _plan(context, session, scans, **choice)
        omitted = await left_out(site, accession, **choice) if is_whole and document.has_scans else ""
        report = await _copy(context, planned, out, owner, session)
    report.seconds = context.seconds
    report.failed[:0] = [(place, str(error)) for place, error in planned.failed]
    outcome = _tell(context, report, owner, out, planned)
    if omitted:
        context.note(omitted)
    return outcome


async def _plan(
    context: Context,
    session: SessionDir | AssessorDir,
    scans: Sequence[str] | None,
    *,
    of_session: bool,
    of_assessors: bool,
) -> Plan:
    from xnatfs.transfer.plan import plan

    excluded = getattr(context.arguments, "exclude_resource", ())
    choice = {"resources": context.arguments.resource, "excluded": excluded}
    try:
        return await plan(session, scans=scans, of_session=of_session, of_assessors=of_assessors, **choice)
    except NotFound as error:
        text = f"session {wanted_experiment(context)}: {error}"
        raise NotFound(text, status=404, url=context.config.url) from error


async def _copy(
    context: Context, planned: Plan, out: Path, owner: Owner, session: SessionDir | AssessorDir
) -> DownloadReport:
    """List, verify or copy the planned files, as the command line says."""
    from xnatfs.transfer import download as transfer
    from xnatfs.transfer.copying import DownloadReport

    arguments = context.arguments
    if arguments.dry_run:
        print_lines(str(out / each.place) for each in planned.files)
        sys.stdout.flush()  # an error of the output comes before the totals
        sizes = [each.file.files.catalogue.size(each.file.place) for each in planned.files]
        least = "at least " if None in sizes else ""
        size = sum(filter(None, sizes))
        context.note(f"{output.counted(len(sizes), 'file')}, {least}{human_size(size)}")
        return DownloadReport(len(planned.files), size=size)
    if arguments.verify:
        return await transfer.verify(planned.files, out, owner)
    with (
        show_progress(context, "downloading") as progress,
        context.resumable(
            lambda: f"{progress.count} of {len(planned.files)} files are in {out}, and stay; for the others"
        ),
    ):
        return await transfer.download(planned.files, out, owner, progress, _options(context, out), session)


def _options(context: Context, out: Path) -> Options:
    from xnatfs.transfer.download import PARALLEL_COPIES, Options

    workers = context.arguments.workers or context.config.profile.workers or PARALLEL_COPIES
    on_wait = partial(context.note, f"Waiting for another command that writes to {out}")
    return Options(workers, context.arguments.force, on_wait)


def _check_out(given: Path, out: Path) -> None:
    """Raise ConfigError if something else is in the place of a folder."""
    there = next((path for path in (out, *out.parents) if path.exists()), out)
    if not there.is_dir():
        raise ConfigError(f"--out {given}: {there} is not a directory")


def _check_zip(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for an option that the server's archive cannot honour."""
    if not arguments.zip:
        return
    for name in ("verify", "resource", "exclude_resource", "of_session", "of_assessors", "all", "extract"):
        if getattr(arguments, name, None):
            raise ConfigError(f"give either --zip or --{name.replace('_', '-')}, not both")


async def _zip(context: Context, site: Site, owner: Owner, scans: Sequence[str] | None, out: Path) -> DownloadOutcome:
    from xnatfs.transfer import download as transfer
    from xnatfs.transfer.plan import check_listed

    check_listed(scans or (), {row.id for row in (await site.scans(owner.session)).rows})
    target, arguments = out / "scans.zip", context.arguments
    if arguments.dry_run:
        print_lines([str(target)])
        return 0, {}
    with (
        show_progress(context, "downloading") as progress,
        context.resumable(lambda: f"{target} comes whole or not at all; to begin again"),
    ):
        size = await transfer.download_zip(site, owner, scans, target, progress, _options(context, out))
    context.note(f"Downloaded scans ({human_size(size)}) to {target} in {context.seconds:.1f} s")
    return 0, {"operation": "scan download", "output_dir": str(out), "files": 1, "bytes": size, "status": "success"}


def _tell(context: Context, report: DownloadReport, owner: Owner, out: Path, plan: Plan) -> DownloadOutcome:
    for place, why in report.failed:
        print_message(f"xnatctl: {out / place}: {why}")
    for place in report.kept:
        why = "it differs from the server, and was not written by xnatctl (--force replaces it)"
        print_message(f"xnatctl: {out / place}: is kept: {why}")
    done = not report.failed and not report.kept
    some = bool(report.files or report.kept)
    exit_status = 0 if done else PARTIAL_STATUS if some else 1
    if context.arguments.dry_run:
        return exit_status, {"files": report.files, "bytes": report.size}
    what = f"{output.counted(report.files, 'file')} ({human_size(report.size)})"
    if context.arguments.verify:
        context.note(f"Verified {what} in {out}")
    elif report.copied == 0 and done:
        context.note(f"Up to date: {what} in {out}")
    else:
        there = f", {report.up_to_date} were there already" if report.up_to_date else ""
        context.note(f"Downloaded {report.copied} of {len(plan.files)} files to {out} in {report.seconds:.1f} s{there}")
    if report.unverified:
        context.note(f"{output.counted(report.unverified, 'file')} without a digest: only the length was compared")
    status = "success" if done else "partial" if some else "failed"
    return exit_status, _summary(context, report, owner, out, status)


def _summary(context: Context, report: DownloadReport, owner: Owner, out: Path, status: str) -> dict[str, Any]:
    return {
        "operation": f"{context.arguments.command.noun} download",
        "session_id": owner.session,
        "project": context.project(needed=False) or None,
        "output_dir": str(out),
        "files": report.files,
        "bytes": report.size,
        "copied": report.copied,
        "up_to_date": report.up_to_date,
        "kept": [str(place) for place in report.kept],
        "unverified": report.unverified,
        "duration_seconds": round(report.seconds, 3),
        "status": status,
        "failed": [{"path": str(place), "error": why} for place, why in report.failed],
    }


COMMANDS = [project_download, subject_download, scan_download, session_download, resource_download]
