"""List the files of a session or an assessor that a download copies, by walking the tree."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from xnatfs.common.errors import BadReply, Denied, NotFound, XnatError
from xnatfs.common.tasks import gather
from xnatfs.rest.models import Document, Experiment, Row
from xnatfs.site import Site
from xnatfs.transfer.local_files import local_name
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.node import Dir, Node, StaticDir
from xnatfs.tree.resources import ResourceDir
from xnatfs.tree.sessions import AssessorDir, ScanDir, SessionDir


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file and its path below the target directory. No part of the path is '..', or holds a '/'."""

    file: CatalogueFile
    place: PurePosixPath

    @property
    def digest(self) -> str:
        """Return the MD5 that the server states; '' if it states none."""
        return self.file.files.catalogue.digest(self.file.place)

    @property
    def path(self) -> str:
        """Return the path in the resource, as the server lists it."""
        return self.file.files.catalogue.path(self.file.place)


@dataclass
class Plan:
    """Files to copy, and what could not be listed."""

    files: list[Wanted] = field(default_factory=list)
    failed: list[tuple[PurePosixPath, XnatError]] = field(default_factory=list)


def session_dir(site: Site, accession: str, label: str, xsi_type: str, modified: float | None = None) -> SessionDir:
    """Return the tree of one session, as it is below its project in a mount."""
    row = Experiment(accession, label, xsi_type, "", "", "", modified)
    return SessionDir(site, StaticDir(site, None, ""), accession, row)


async def assessor_dir(site: Site, session: str, accession: str) -> AssessorDir:
    """Return the tree of one assessor, as it is below its session in a mount. Raises NotFound."""
    part = await _part(session_dir(site, session, "", "xnat:imageSessionData"), "assessors")
    for node in (await part.children()).nodes.values():
        assert isinstance(node, AssessorDir)
        if node.assessor.id == accession:
            return node
    raise NotFound(f"assessor {accession} is not listed in its session {session}")


async def last_modified(site: Site, accession: str, project: str, label: str) -> float | None:
    """Return when a session was last modified, in seconds since the epoch; lists report it, documents do not."""
    columns = "ID,label,insert_date,last_modified"
    try:
        rows: list[Row] = await site.xnat.rows("experiments", columns=columns, project=project, label=label)
    except (NotFound, Denied, BadReply):
        return None
    return next((row.modified() for row in rows if row.get("ID", "xnat:experimentdata/id") == accession), None)


async def tree_of(site: Site, document: Document, accession: str) -> SessionDir | AssessorDir:
    """Return the tree of a session or an assessor; the listings of a session are requested beside its date."""
    if document.session:
        return await assessor_dir(site, document.session, accession)
    label, project = document.fields.get("label", accession), document.fields.get("project", "")
    modified, _ = await gather(
        lambda: last_modified(site, accession, project, label),
        lambda: _list_together(site, accession, document.has_scans),
    )
    return session_dir(site, accession, label, document.xsi_type, modified)


async def _list_together(site: Site, accession: str, has_scans: bool) -> None:
    """Request the listings that a plan of a session needs, all at the same time; an error occurs again in the plan."""
    item = ("experiments", accession)
    listings: list[Callable[[], Awaitable[object]]]
    listings = [lambda: site.resources(item, True), lambda: site.files(item, True)]
    if has_scans:
        listings.append(lambda: site.scans(accession))

    async def request(listing: Callable[[], Awaitable[object]]) -> None:
        with suppress(NotFound, Denied, BadReply):
            await listing()

    await gather(*(partial(request, each) for each in listings))


async def plan(
    session: SessionDir | AssessorDir,
    *,
    scans: Collection[str] | None = None,
    resources: Collection[str] = (),
    excluded: Collection[str] = (),
    of_session: bool = False,
    of_assessors: bool = False,
) -> Plan:
    """List the files to copy from a session or an assessor.

    An assessor has no scans, and nothing but resources of its own.

    Args:
        session: The session or the assessor.
        scans: IDs of scans; None for all.
        resources: Labels or numbers of resources; empty for all but the excluded.
        excluded: Labels or numbers of resources to leave out.
        of_session: Include the session's own resources.
        of_assessors: Include the resources of the session's assessors.

    Returns:
        The files, and the directories that the server cannot list.

    Raises:
        NotFound: Names every scan, or every label, that does not exist.
        XnatError: The first failure, if there is no file.
    """
    found = Plan()
    labels: set[str] = set()

    def chosen(resource: ResourceDir) -> bool:
        names = {resource.resource.label, resource.resource.id, resource.name}
        if names & set(excluded) or (resources and not names & set(resources)):
            return False
        labels.update(names)
        return True

    if isinstance(session, AssessorDir):
        await _add_resources(found, session, PurePosixPath(), chosen)
    else:
        for scan in await _scans(session, scans):
            await _add_resources(found, scan, PurePosixPath("scans", local_name(scan.name)), chosen)
        if of_session:
            await _add_resources(found, await _part(session, "resources"), PurePosixPath(), chosen)
        if of_assessors:
            for assessor in await _children(found, await _part(session, "assessors"), PurePosixPath("assessors")):
                assert isinstance(assessor, Dir)
                await _add_resources(found, assessor, PurePosixPath("assessors", local_name(assessor.name)), chosen)
    if found.failed and not found.files:
        raise found.failed[0][1]
    if (absent := sorted(set(resources) - labels)) and not found.failed:
        raise NotFound(f"resource {', '.join(absent)} is not there")
    return found


async def _scans(session: SessionDir, wanted: Collection[str] | None) -> list[ScanDir]:
    """Return these scans (None: all). Raises NotFound that names every one that is not there."""
    listed = (await (await _part(session, "scans")).children()).nodes.values()
    scans = [node for node in listed if isinstance(node, ScanDir)]
    check_listed(wanted or (), {node.scan.id for node in scans})
    return [node for node in scans if wanted is None or node.scan.id in wanted]


def check_listed(wanted: Collection[str], known: Collection[str]) -> None:
    """Raise NotFound that names every scan that is not in the session."""
    if missing := sorted(set(wanted) - set(known)):
        names = ", ".join(sorted(known)) or "none"
        raise NotFound(f"scan {', '.join(missing)} is not in the session (its scans: {names})")


async def _part(session: SessionDir, name: str) -> Dir:
    node = await session.child(name)
    assert isinstance(node, Dir)
    return node


async def _children(plan: Plan, directory: Dir, place: PurePosixPath) -> list[Node]:
    """List a directory; one that the server cannot list is among the plan's failures."""
    try:
        return list((await directory.children()).nodes.values())
    except (NotFound, Denied, BadReply) as error:
        plan.failed.append((place, error))
        return []


async def _add_resources(plan: Plan, item: Dir, place: PurePosixPath, chosen: Callable[[ResourceDir], bool]) -> None:
    for node in await _children(plan, item, place):
        assert isinstance(node, ResourceDir)
        if chosen(node):
            below = place / "resources" / local_name(node.name)
            try:
                plan.files += [each async for each in _files(node, below / "files")]
            except (NotFound, Denied, BadReply) as error:
                plan.failed.append((below, error))


async def _files(directory: Dir, place: PurePosixPath) -> AsyncIterator[Wanted]:
    for node in (await directory.children()).nodes.values():
        if isinstance(node, CatalogueFile):
            yield Wanted(node, place / local_name(node.name))
        elif isinstance(node, Dir):
            async for each in _files(node, place / local_name(node.name)):
                yield each
