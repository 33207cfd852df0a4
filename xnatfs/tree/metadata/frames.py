"""Find the numbers of frames of scans, which no listing of the tree has.

The first session of a project has its own list requested, the second one that of all scans of the project: a program
that goes through the sessions costs two requests, and one that reads a single table of a big project no join over it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, Denied, NotFound
from xnatfs.listings.keys import FramesKey
from xnatfs.site import Site
from xnatfs.tree.metadata.project_scans import joined_scans
from xnatfs.tree.metadata.session_parts import SessionParts

ByScan = Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Frames:
    """The numbers of frames by session and scan; a session that is absent is not known."""

    sessions: Mapping[str, ByScan]
    expires: float = math.inf
    is_whole: bool = False  # all that a list of the project's scans has

    def __len__(self) -> int:
        return sum(map(len, self.sessions.values())) + 1


async def frames_of(parts: SessionParts) -> ByScan:
    """Return the numbers of frames of a session's scans, by scan ID; none where the server does not state them."""
    site, project, session = parts.site, parts.project, parts.experiment.id
    key = FramesKey(project)
    known = site.metadata.peek(key)
    if isinstance(known, Frames) and session not in known.sessions and not known.is_whole:
        known = await site.metadata.renew(
            key, lambda: _of_project(site, project), lambda old: isinstance(old, Frames) and not old.is_whole
        )
    if isinstance(known, Frames) and session in known.sessions:
        return known.sessions[session]
    own = await site.metadata.get(FramesKey(project, session), lambda: _of_session(site, session))
    if known is None and project:
        site.metadata.put(key, own)
    return own.sessions[session]


async def _of_session(site: Site, session: str) -> Frames:
    started = now()
    try:
        rows = await site.xnat.rows("experiments", session, "scans", columns="ID,frames")
    except (NotFound, Denied, BadReply):
        rows = []
    return Frames({session: {row.get("ID"): row.number("frames") for row in rows}}, started + site.ttl)


async def _of_project(site: Site, project: str) -> Frames:
    started = now()
    try:
        found = await joined_scans(site, project)
    except (NotFound, Denied, BadReply):
        found = {}
    sessions = {session: {id: scan.frames for id, scan in scans.items()} for session, scans in found.items()}
    return Frames(sessions, started + site.ttl, is_whole=True)
