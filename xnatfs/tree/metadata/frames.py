"""Find the numbers of frames of scans where the session's list of scans lacks them.

The own list of a session has them. Those of an iteration over a project come from lists of several sessions, which have
none: the first table of such a session has the scans of the whole project requested with their frames, for all others.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.listings.keys import FramesKey, ScansKey
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.models import Scan
from xnatfs.site import Site
from xnatfs.tree.metadata.project_scans import joined_scans
from xnatfs.tree.metadata.session_parts import SessionParts

ByScan = Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Frames:
    """The numbers of frames of a project's scans, by session."""

    sessions: Mapping[str, ByScan]
    expires: float = math.inf

    def __len__(self) -> int:
        return sum(map(len, self.sessions.values())) + 1


async def frames_of(parts: SessionParts, scans: Listing[Scan]) -> ByScan:
    """Return the numbers of frames of a session's scans, by scan ID; none where the server does not state them.

    Args:
        parts: The session.
        scans: Its list of scans.
    """
    own = {scan.id: scan.frames for scan in scans.rows}
    if not scans.pieced or any(frames is not None for frames in own.values()):  # the latter of an earlier mount
        return own
    site, project, session = parts.site, parts.project, parts.experiment.id
    known = await site.metadata.get(FramesKey(project), lambda: _of_project(site, project))
    if session in known.sessions:
        return known.sessions[session]
    with contextlib.suppress(NotFound, Denied, BadReply):
        await site.listings.confirm(ScansKey(session))
    return {scan.id: scan.frames for scan in (await parts.scans()).rows}


async def _of_project(site: Site, project: str) -> Frames:
    started = now()
    try:
        found = await joined_scans(site, project)
    except (NotFound, Denied, BadReply):
        found = {}
    sessions = {session: {id: scan.frames for id, scan in scans.items()} for session, scans in found.items()}
    return Frames(sessions, started + site.ttl)
