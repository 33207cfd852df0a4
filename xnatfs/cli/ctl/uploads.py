"""Run session upload and resource upload: images through the import service, files unchanged."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnatfs.cli import options
from xnatfs.cli.ctl.command import Context, command
from xnatfs.cli.ctl.experiments import below, check_has_scans, experiment, experiment_options, item_of
from xnatfs.cli.ctl.progress import StateReport, show_progress, wait_options
from xnatfs.cli.output import STRUCTURED_FORMATS, human_size, print_data, print_message, print_structured
from xnatfs.cli.parsing import PARTIAL_STATUS
from xnatfs.common.errors import ConfigError, NotFound, Unreachable

# What uploads is imported by the commands that upload: completion and all other commands start without it.
if TYPE_CHECKING:
    from xnatfs.rest.client import Xnat
    from xnatfs.transfer.uploads import dicom_files as dicom
    from xnatfs.transfer.uploads import resources
    from xnatfs.transfer.uploads.import_service import Target
    from xnatfs.transfer.uploads.journal import Journal
    from xnatfs.transfer.uploads.server_state import Outcome

MODES = ("tar", "zip", "gradual")
OVERWRITES = ("none", "append", "delete")
RECEIVING_TEXT = "RECEIVING: the server waits for more files, for 5 minutes by default"


# -- session upload ----------------------------------------------------------------------------------------------


def _session_upload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a folder, a zip or a tar of DICOM, or one file")
    parser.add_argument("-P", "--project", metavar="PROJECT", help="else the profile's default_project")
    parser.add_argument("-S", "--subject", metavar="SUBJECT", required=True, help="its label; made if it is new")
    parser.add_argument(
        "-E", "--experiment", "--session", metavar="LABEL", required=True, help="the session's label to be"
    )
    parser.add_argument(
        "--mode", choices=MODES, help="how files are sent, if accepted: packed, or one by one (default: tar)"
    )
    parser.add_argument("-w", "--workers", type=options.number, metavar="N", help="requests at once (default: 4)")
    parser.add_argument(
        "--overwrite", choices=OVERWRITES, help="what may happen to a session of that label (default: none)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--direct-archive", action="store_true", default=None, help="straight to the archive, past the prearchive"
    )
    where.add_argument(
        "--prearchive", action="store_false", dest="direct_archive", help="to the prearchive (the default)"
    )
    wait_options(parser)
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="resume an earlier run of the same files (the default)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent")


@command(
    "session upload", "xnatctl session upload ./dicoms -P MYPROJECT -S SUB001 -E SUB001_MR1 --wait", _session_upload
)
async def session_upload(context: Context) -> int:
    """Send a session's DICOM to the server."""
    import trio

    from xnatfs.transfer.uploads import dicom_files as dicom
    from xnatfs.transfer.uploads.import_service import Target

    arguments, profile = context.arguments, context.config.profile
    direct = profile.direct_archive if arguments.direct_archive is None else arguments.direct_archive
    target = Target(context.project(), arguments.subject, arguments.experiment, bool(direct))
    _one_of("archive_mode", _mode(context), MODES)
    _one_of("overwrite", _overwrite(context), OVERWRITES)
    found = await trio.to_thread.run_sync(dicom.find, arguments.path, abandon_on_cancel=True)
    if not found.images:
        damaged = f"; {len(found.broken)} are damaged DICOM, {found.broken[0][0]} for one" if found.broken else ""
        count = len(found.others) + len(found.broken)
        raise ConfigError(f"{arguments.path} holds no DICOM that could be sent (none of its {count} files{damaged})")
    _tell_found(context, found)
    if not arguments.dry_run:
        return await _upload(context, found, target)
    for image in found.images:
        print_data(image.name)
    context.note(f"{len(found.images)} files ({human_size(found.size)}) would go to {_goal(target)}")
    return 0


def _mode(context: Context) -> Any:
    return context.arguments.mode or context.config.profile.archive_mode or "tar"


def _overwrite(context: Context) -> Any:
    return context.arguments.overwrite or context.config.profile.overwrite or "none"


async def _upload(context: Context, found: dicom.DicomFiles, target: Target) -> int:
    """Send the images, and find out where they have arrived."""

    from xnatfs.transfer.uploads import server_state
    from xnatfs.transfer.uploads.journal import Journal
    from xnatfs.transfer.uploads.sessions import PARALLEL_BATCHES, Upload

    arguments = context.arguments
    names = (context.config.url, target.project, target.subject, target.session, str(target.direct))
    journal = Journal(names, found.images)
    async with context.xnat() as xnat:
        await _begin(context, xnat, target, journal, found)
        with show_progress(context, "uploading") as progress, context.resumable(_left(journal, found)):
            workers = 1 if found.ordered else arguments.workers or context.config.profile.workers or PARALLEL_BATCHES
            upload = Upload(xnat, found.images, target, journal, progress, context.note)
            sent = await upload.send(_mode(context), _overwrite(context), workers)
        context.note(f"Sent {sent} files in {context.seconds:.1f} s")
        with context.resumable(lambda: "all files are sent, and the server goes on with them; to look again"):
            outcome = await server_state.complete(xnat, target, journal)
            done = await server_state.look(xnat, target, outcome, journal)
            if arguments.wait and not done:
                await _wait(context, xnat, target, outcome, journal)
    outcome.files, outcome.size, outcome.sent = len(found.images), found.size, sent
    outcome.seconds = context.seconds
    if outcome.arrived is not None and outcome.arrived >= outcome.files:
        journal.remove()
    return _tell(context, outcome, found, target)


async def _begin(context: Context, xnat: Xnat, target: Target, journal: Journal, found: dicom.DicomFiles) -> None:
    """Resume an earlier run of the upload, or check that the session may be made."""
    from xnatfs.transfer.uploads import server_state
    from xnatfs.transfer.uploads.journal import DONE

    studies, is_exact = {image.study for image in found.images}, _overwrite(context) == "none"
    resumes = context.arguments.resume and journal.resume()
    if resumes and await server_state.reconcile(xnat, target, journal, studies, exact=is_exact):
        context.note(f"Resuming an upload that ended with {journal.count(DONE)} of {len(found.images)} files")
    elif is_exact:
        await server_state.check_free(xnat, target)
        journal.before = {}
    else:
        journal.before = await server_state.count_before(xnat, target)


def _left(journal: Journal, found: dicom.DicomFiles) -> Callable[[], str]:
    from xnatfs.transfer.uploads.journal import DONE

    return lambda: f"the server has {journal.count(DONE)} of {len(found.images)} files, and keeps them; for the others"


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Check a setting of the profile, which may be anything. Raises ConfigError."""
    if value not in known:
        raise ConfigError(f"{name}: {value} in the profile is none of {', '.join(known)}")


def _goal(target: Target) -> str:
    return f"{target.project}/{target.subject}/{target.session} in the {'archive' if target.direct else 'prearchive'}"


def _tell_found(context: Context, found: dicom.DicomFiles) -> None:
    for name, why in found.broken:
        print_message(f"xnatctl: {name} is not sent: it is damaged ({why})")
    for names, what in ((found.others, "no DICOM images"), (found.copies, "copies of instances that are sent")):
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            context.note(f"{len(names)} files are not sent, since they are {what}: {some}")
    studies = {image.study for image in found.images}
    if len(studies) > 1:
        context.note(f"These are images of {len(studies)} studies; they are sent as one session all the same")


async def _wait(context: Context, xnat: Xnat, target: Target, outcome: Outcome, journal: Journal) -> None:
    """Poll until the server is done with the session. Raises Unreachable after --wait-timeout."""
    import trio

    from xnatfs.transfer.uploads import server_state

    longest, pause, progress = context.arguments.wait_timeout, 1.0, StateReport(context, target.session, "")
    with trio.move_on_after(longest):
        while not await server_state.look(xnat, target, outcome, journal):
            progress.report(_state(outcome))
            await trio.sleep(pause)
            pause = min(pause * 1.5, 5.0)
        return
    raise Unreachable(
        f"{target.session} is not there after {longest:g} s ({_state(outcome)}): the server goes on with it, and the "
        "same command resumes the wait",
        url=xnat.url,
    )


def _state(outcome: Outcome) -> str:
    if outcome.where == "prearchive":
        return RECEIVING_TEXT if outcome.status.startswith("RECEIVING") else outcome.status
    return "on its way into the archive" + (f", {outcome.arrived} files are there" if outcome.arrived else "")


def _tell(context: Context, outcome: Outcome, found: dicom.DicomFiles, target: Target) -> int:
    missing = outcome.files - outcome.arrived if outcome.arrived is not None else 0
    status = "success" if missing <= 0 and not found.broken else "partial"
    place = f"{outcome.place} ({outcome.status})" if outcome.status else outcome.place
    name = {"archive": "archive", "prearchive": "prearchive", "direct": "archive, which is at work on it"}
    if outcome.arrived is None:
        there = f"{outcome.files} files ({human_size(outcome.size)}) went to"
    elif missing > 0:
        there = f"{outcome.arrived} of {outcome.files} files are in"
    else:
        there = f"{outcome.files} files ({human_size(outcome.size)}) are in"
    context.note(f"{there} the {name[outcome.where]}: {place}")
    if target.direct and outcome.where == "prearchive":
        context.note("The server has not archived it directly: xnatctl prearchive archive does it")
    if outcome.accession:
        context.note(f"Accession ID: {outcome.accession}")
    if outcome.where == "prearchive" and outcome.status in ("CONFLICT", "ERROR"):
        print_message(f"xnatctl: its state is {outcome.status}: xnatctl prearchive archive explains it")
        status = "partial"
    if outcome.changed:
        context.note(
            f"{outcome.changed} files are not the bytes that were sent: the site's anonymization rewrites them"
        )
    if outcome.arrived is None and outcome.before != 0:
        others = "Files" if outcome.before is None else f"{outcome.before} files"
        context.note(f"{others} were there before: the server does not state whether all of these arrived")
    elif outcome.arrived is None:
        context.note("The server does not state yet how many files it has; --wait polls until it does")
    elif missing > 0:
        print_message(f"xnatctl: {missing} of {outcome.files} files did not arrive")
    _print(context, outcome, target, status)
    return 0 if status == "success" else PARTIAL_STATUS


def _print(context: Context, outcome: Outcome, target: Target, status: str) -> None:
    if context.arguments.quiet:
        if outcome.accession:
            print_data(outcome.accession)
    elif context.arguments.output in STRUCTURED_FORMATS:
        cells = {
            "operation": "upload",
            "source": str(context.arguments.path),
            "project": target.project,
            "subject": target.subject,
            "session": target.session,
            "session_id": outcome.accession or None,
            "destination": outcome.where,
            "uri": outcome.place,
            "state": outcome.status or None,
            "files": outcome.files,
            "sent": outcome.sent,
            "resumed": outcome.resumed,
            "arrived": outcome.arrived,
            "changed": outcome.changed,
            "bytes": outcome.size,
            "duration_seconds": round(outcome.seconds, 3),
            "status": status,
        }
        print_structured(context.arguments.output, cells)


# -- resource upload ---------------------------------------------------------------------------------------------


def _resource_upload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="[SESSION] RESOURCE PATH", help="label, and a file or a folder")
    experiment_options(parser)
    parser.add_argument("--scan", metavar="SCAN", help="into a resource of this scan, not of the session")
    parser.add_argument("--overwrite", action="store_true", help="replace files of the same names")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent")


@command("resource upload", "xnatctl resource upload -E XNAT_E00001 NIFTI ./image.nii.gz --scan 1", _resource_upload)
async def resource_upload(context: Context) -> int:
    """Send files to a resource of a session, a scan, a subject or a project."""
    import trio

    from xnatfs.transfer.uploads import resources

    arguments = context.arguments
    label, path = _words(arguments)
    files = await trio.to_thread.run_sync(resources.find, path, abandon_on_cancel=True)
    if not files:
        raise ConfigError(f"{path} holds no files")
    if arguments.dry_run:
        for file in files:
            print_data(file.name)
        return 0
    async with context.xnat() as xnat:
        item = await _item(context, xnat)
        with (
            show_progress(context, "uploading") as progress,
            context.resumable(lambda: f"{progress.count} files are sent, and stay there; for the others"),
        ):
            target = resources.ResourceTarget(xnat, item, label, context.note)
            report = await resources.upload(target, files, overwrite=arguments.overwrite, progress=progress)
    _note_resource(context, report, label)
    if arguments.output in STRUCTURED_FORMATS and not arguments.quiet:
        print_structured(arguments.output, _resource_cells(context, report, item, label))
    return 0 if not report.failed else PARTIAL_STATUS if report.files else 1


def _note_resource(context: Context, report: resources.UploadReport, label: str) -> None:
    for name, why in report.failed:
        print_message(f"xnatctl: {name} {why}")
    if report.sent:
        there = f", {report.up_to_date} were there already" if report.up_to_date else ""
        context.note(f"Uploaded {report.sent} files to resource {label} in {context.seconds:.1f} s{there}")
    elif not report.failed:
        context.note(f"Up to date: {report.files} files in resource {label}")
    if report.unverified:
        context.note(f"{report.unverified} files have no digest on the server: only their length is known to be right")


def _resource_cells(
    context: Context, report: resources.UploadReport, item: Sequence[str], label: str
) -> dict[str, object]:
    return {
        "operation": "resource upload",
        "resource": label,
        "uri": "/data/" + "/".join((*item, "resources", label)),
        "files": report.files,
        "sent": report.sent,
        "up_to_date": report.up_to_date,
        "unverified": report.unverified,
        "bytes": report.size,
        "duration_seconds": round(context.seconds, 3),
        "status": "success" if not report.failed else "partial" if report.files else "failed",
        "failed": [{"path": name, "error": why} for name, why in report.failed],
    }


def _words(arguments: argparse.Namespace) -> tuple[str, Path]:
    """Return the label and the path; a session before them has the effect of -E. Raises ConfigError."""

    words: list[str] = arguments.words
    if len(words) == 3 and not arguments.experiment:
        arguments.experiment, words = words[0], words[1:]
    if len(words) != 2:
        raise ConfigError("what goes where? Give RESOURCE PATH with -E, or SESSION RESOURCE PATH")
    path = Path(words[1])
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    return words[0], path


async def _item(context: Context, xnat: Xnat) -> tuple[str, ...]:
    """Return the item of the resource, which must exist. Raises NotFound, ConfigError."""
    arguments = context.arguments
    if arguments.experiment:
        document = await experiment(context, xnat)
        accession = document.fields.get("ID") or arguments.experiment
        if arguments.scan is None:
            return item_of(document, accession)
        check_has_scans(document, accession)
        scans = [row.text("ID") for row in await below(context, xnat, accession, "scans")]
        if arguments.scan not in scans:
            known = ", ".join(sorted(scans)) or "none"
            raise NotFound(f"scan {arguments.scan} is not in session {arguments.experiment} (its scans: {known})")
        return ("experiments", accession, "scans", arguments.scan)
    if arguments.scan is not None:
        raise ConfigError("--scan is a scan of a session: give -E, too")
    project = context.project()
    if not arguments.subject:
        with context.about(f"project {project}"):
            await xnat.item("projects", project)
        return ("projects", project)
    with context.about(f"subject {arguments.subject} in project {project}"):
        await xnat.item("projects", project, "subjects", arguments.subject)
    return ("projects", project, "subjects", arguments.subject)


COMMANDS = [session_upload, resource_upload]
