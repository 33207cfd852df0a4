"""Define the calls that a mount answers on its control socket."""

import logging
from collections.abc import Mapping
from pathlib import Path

from xnatfs.common.errors import ConfigError
from xnatfs.common.tasks import background
from xnatfs.fuse.control.protocol import LOG_LEVELS, Message
from xnatfs.fuse.control.server import Call, Report, serve_control
from xnatfs.fuse.control.status import Status
from xnatfs.fuse.mountpoint import control_socket
from xnatfs.fuse.operations import Operations
from xnatfs.settings.config import Config
from xnatfs.site import Site

log = logging.getLogger(__name__)


async def control_mount(site: Site, operations: Operations, config: Config, mountpoint: Path) -> None:
    """Serve the control socket of a mount until cancelled."""
    control = Control(site, operations, config, mountpoint)
    async with background() as nursery:
        nursery.start_soon(control.status.run)
        await serve_control(control_socket(mountpoint), control.calls())


class Control:
    """The calls of one mount."""

    def __init__(self, site: Site, operations: Operations, config: Config, mountpoint: Path) -> None:
        self.status = Status(site, operations, config, mountpoint)
        self._site = site
        self._operations = operations

    def calls(self) -> Mapping[str, Call]:
        """Return every call by its name."""
        return {
            "status": Call(self._status),
            "log_level": Call(self._log_level, {"level": str}),
        }

    async def _status(self, report: Report) -> Message:
        return self.status.report()

    async def _log_level(self, report: Report, level: str) -> Message:
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
