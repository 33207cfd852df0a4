"""Request the lists that bids/ needs: labels of resources by session, demographics, and maps of names."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial

from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.common.tasks import gather
from xnatfs.rest.bids import NO_LINE, BidsMapRow, Demographics, ResourceLabels, map_rows
from xnatfs.rest.client import SHARED_INTO, Xnat

log = logging.getLogger(__name__)

RESOURCE_LABEL = "xnat:imageSessionData/resources/resource/label"  # of a resource that a session has itself

Labels = dict[str, set[str]]  # by accession ID


async def image_labels(xnat: Xnat, project: str) -> list[ResourceLabels]:
    """List the labels of the resources of all scans of a project, and of sessions shared into it.

    Servers that refuse the latter list leave these sessions out.
    """

    async def labels(shared: bool) -> Labels:
        found = await xnat.scans_of_project(project, shared=shared)
        return {session: set().union(*scans.labels.values()) for session, scans in found.items()}

    return ResourceLabels.of(await _with_shared(labels))


async def session_labels(xnat: Xnat, project: str) -> list[ResourceLabels]:
    """List the labels of the resources that the sessions of a project have themselves, and those shared into it.

    Servers that refuse the latter list leave these sessions out. Raises BadReply if the server ignores the column.
    """

    async def labels(shared: bool) -> Labels:
        params = {"xsiType": "xnat:imageSessionData", SHARED_INTO if shared else "project": project}
        found: Labels = {}
        for row in await xnat.rows("experiments", columns=f"ID,{RESOURCE_LABEL}", **params):
            if not row.has(RESOURCE_LABEL):
                raise BadReply(f"{xnat.url} does not list the resources of sessions: {sorted(row.cells)}")
            session = row.need("session_ID", "ID", "xnat:imagesessiondata/id", "xnat:experimentdata/id")
            found.setdefault(session, set()).add(row.text(RESOURCE_LABEL))
        return found

    return ResourceLabels.of(await _with_shared(labels))


async def _with_shared(labels: Callable[[bool], Awaitable[Labels]]) -> Labels:
    """Return what a list states of a project's sessions, and of those shared into it unless that is refused."""

    async def shared() -> Labels:
        try:
            return await labels(True)
        except (NotFound, Denied, BadReply):
            return {}

    own, others = await gather(partial(labels, False), shared)
    return {**others, **own}


async def demographics(xnat: Xnat, project: str) -> list[Demographics]:
    """List sex, group, age and handedness of a project's subjects, as far as the account may read them."""
    rows = await xnat.rows("projects", project, "subjects", columns="ID,gender,group,age,handedness")
    return [Demographics.parse(row) for row in rows]


async def bids_map(xnat: Xnat, project: str = "") -> list[BidsMapRow]:
    """Fetch a project's map of BIDS names, or the site's: where there is none, a row without a name.

    The text comes in a table, as UTF-8; as plain text it would lose letters on most servers. A reply that is no map is
    a row that says so: another map may count more.
    """
    where = ("projects", project, "config") if project else ("config",)
    name = f"the BIDS map of {project or 'the site'}"
    try:
        return map_rows(await xnat.rows(*where, "bids", "bidsmap"), name) or [NO_LINE]
    except (NotFound, Denied):
        return [NO_LINE]
    except BadReply as error:
        text = str(error)
        wrong = text if text.startswith(name) else f"{name} cannot be read: {text}"
        log.warning("%s; no line of it is used", wrong)
        return [BidsMapRow("", "", wrong=wrong)]
