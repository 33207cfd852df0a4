"""Define the calls that a mount answers on its control socket."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from xnatfs.common.errors import ConfigError, UsageError
from xnatfs.common.tasks import background
from xnatfs.fuse.control.places import content_version, files_below, find, split
from xnatfs.fuse.control.protocol import LOG_LEVELS, Message
from xnatfs.fuse.control.reasons import explain
from xnatfs.fuse.control.rows import fresh_rows
from xnatfs.fuse.control.server import Call, ReportProgress, serve_control
from xnatfs.fuse.control.status import Status
from xnatfs.fuse.control.verify import Verifier
from xnatfs.fuse.control.warm import warm
from xnatfs.fuse.mountpoint import control_socket
from xnatfs.fuse.operations import Operations
from xnatfs.settings.config import Config
from xnatfs.site import Site

if TYPE_CHECKING:
    from xnatfs.fuse.control.refresh import Refresher

log = logging.getLogger(__name__)


async def control_mount(site: Site, operations: Operations, config: Config, mountpoint: Path) -> None:
    """Serve the control socket of a mount until cancelled."""
    async with background() as nursery:
        control = Control(site, operations, config, mountpoint, nursery)
        nursery.start_soon(control.status.run)
        await serve_control(control_socket(mountpoint), control.calls())


class Control:
    """The calls of one mount."""

    def __init__(
        self, site: Site, operations: Operations, config: Config, mountpoint: Path, nursery: trio.Nursery
    ) -> None:
        self.status = Status(site, operations, config, mountpoint)
        self._config = config
        self._site = site
        self._operations = operations
        self._mountpoint = mountpoint
        self._nursery = nursery

    @cached_property
    def refresher(self) -> "Refresher":
        from xnatfs.fuse.control.refresh import Refresher  # it knows every view, also those that are not used

        return Refresher(self._site, self._operations, self._mountpoint, self._nursery)

    def calls(self) -> Mapping[str, Call]:
        """Return every call by its name."""
        return {
            "status": Call(self._status),
            "refresh": Call(self._refresh, {"path": str}),
            "changed": Call(self._changed, may_take={"projects": list, "experiments": list}),
            "rows": Call(self._rows, {"item": list}),
            "why": Call(self._why, {"path": str}),
            "cache": Call(self._cache),
            "cache_clear": Call(self._cache_clear),
            "warm": Call(self._warm, {"path": str}, {"pin": bool}),
            "verify": Call(self._verify, {"path": str}, {"listings_only": bool}),
            "unpin": Call(self._unpin, may_take={"path": str}),
            "log_level": Call(self._log_level, {"level": str}),
        }

    async def _status(self, report: ReportProgress) -> Message:
        return self.status.report()

    async def _refresh(self, report: ReportProgress, path: str) -> Message:
        return await self.refresher.refresh(path)

    async def _changed(
        self, report: ReportProgress, projects: Sequence[str] = (), experiments: Sequence[str] = ()
    ) -> Message:
        if not all(isinstance(each, str) for each in (*projects, *experiments)):
            raise UsageError("projects and experiments must be lists of IDs")
        return await self.refresher.change(set(projects), set(experiments))

    async def _rows(self, report: ReportProgress, item: Sequence[Any]) -> Message:
        return fresh_rows(self._site, item)

    async def _why(self, report: ReportProgress, path: str) -> Message:
        return await explain(self.refresher.root, self._operations, path)

    async def _cache(self, report: ReportProgress) -> Message:
        return {**self.status.report()["cache"], **await self._site.content.upkeep.usage()}

    async def _cache_clear(self, report: ReportProgress) -> Message:
        before = self._site.content.bytes_used
        await self._site.content.evict(0)
        return {"freed_bytes": before - self._site.content.bytes_used, "used_bytes": self._site.content.bytes_used}

    async def _warm(self, report: ReportProgress, path: str, pin: bool = False) -> Message:
        result = await warm(self.refresher.root, self._operations, path, pin, report)
        return {**result, "offline": self._config.offline}

    async def _verify(self, report: ReportProgress, path: str, listings_only: bool = False) -> Message:
        await self.refresher.refresh(path)
        return await Verifier(self._operations, report, listings_only).verify(self.refresher.root, path)

    async def _unpin(self, report: ReportProgress, path: str = "") -> Message:
        upkeep = self._site.content.upkeep
        if not path:
            return {"unpinned_files": await upkeep.unpin()}
        files = [file async for file in files_below(await find(self.refresher.root, split(path)))]
        return {"unpinned_files": await upkeep.unpin(map(content_version, files))}

    async def _log_level(self, report: ReportProgress, level: str) -> Message:
        """Set the level of the log, of the HTTP client's records as well."""
        if level not in LOG_LEVELS:
            raise ConfigError(f"{level!r} is no log level: take one of {', '.join(LOG_LEVELS)}")
        before = logging.getLevelName(logging.getLogger().level).lower()
        number = logging.getLevelName(level.upper())
        logging.getLogger().setLevel(number)
        for handler in logging.getLogger().handlers:
            handler.setLevel(number)
        logging.getLogger("httpx").setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
        log.info("the log level is %s, it was %s", level, before)
        return {"level": level, "before": before}
