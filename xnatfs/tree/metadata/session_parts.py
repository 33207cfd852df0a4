"""List the parts of one session."""

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from xnatfs.common.clock import now
from xnatfs.common.errors import BadReply, NotFound
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.models import Assessor, Experiment, FileRow, Item, Resource, Scan
from xnatfs.site import Site

R = TypeVar("R")


class SessionParts:
    """The listings of a session, for which those of the next sessions are prefetched.

    Args:
        site: Its server.
        experiment: The session.
        project: The project through which it is accessed; '' if nothing is to be prefetched.
    """

    __slots__ = ("experiment", "project", "site")

    def __init__(self, site: Site, experiment: Experiment, project: str) -> None:
        self.site = site
        self.experiment = experiment
        self.project = project

    @property
    def item(self) -> Item:
        return ("experiments", self.experiment.id)

    async def look_into(self) -> None:
        """Begin to request all listings of the session."""
        if self.project:
            await self.site.look_into(self.project, self.experiment.id)

    async def scans(self) -> Listing[Scan]:
        return await self._list(self.site.scans)

    async def assessors(self) -> Listing[Assessor]:
        return await self._list(self.site.assessors)

    async def resources(self) -> Listing[Resource]:
        await self.look_into()
        return await self.site.resources(self.item, True)

    async def files(self) -> Listing[FileRow]:
        await self.look_into()
        return await self.site.files(self.item, True)

    async def _list(self, fetch: Callable[[str], Awaitable[Listing[R]]]) -> Listing[R]:
        """Return a listing; empty where servers answer 404 or 500, as the experiment cannot have such parts."""
        await self.look_into()
        try:
            return await fetch(self.experiment.id)
        except (NotFound, BadReply):
            if self.experiment.is_imaging:
                raise
            return Listing((), {}, now(), math.inf)
