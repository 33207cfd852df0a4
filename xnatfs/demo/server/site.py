"""Hold the archive that the demo serves, and the settings of its site."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xnatfs.demo.archive.model import Archive, Home, Resource
from xnatfs.demo.server.releases import XNAT_1_8, Release

# For joins that the contract calls unconfirmed: a server answers as described, without the column, or with an error.
Joins = Literal["answered", "ignored", "refused"]


@dataclass
class DemoSite:
    """The archive and the settings of a site. They may be changed while it is served. Times are in seconds."""

    archive: Archive
    release: Release = XNAT_1_8  # the release of XNAT to answer as
    context_path: str = ""  # the path below which it is served; "" for the root
    url: str = "http://xnat"  # with the context path
    schemas: Path | None = None  # a directory of XML schemas to serve under /xapi/schemas
    latency: float = 0.0  # before each reply
    clock: Callable[[], float] = time.time  # since the epoch
    wait: Callable[[float], None] = time.sleep

    require_login: bool = True  # else the site is open to guests
    session_ttl: float = 900.0  # idle time after which a session expires
    max_sessions: int = 1000  # per user

    users_create_projects: bool = True
    non_private_projects: bool = True
    deletion: bool = True  # of data
    justification: bool = False  # changes need an `event_reason`

    ranges: bool = True  # range requests are served
    digests: bool = True  # file lists state digests
    joins: Joins = "answered"
    # These make file lists incomplete, as real ones can be although the number of files is stated: the first in every
    # list, the second in lists of several resources.
    nameless: Callable[[Resource], bool] = lambda resource: False
    left_out: Callable[[Resource, Home], bool] = lambda resource, home: False

    work: float = 0.0  # the duration of each operation of the prearchive
    idle: float = 300.0  # time without uploads after which a received session is complete
    timeout: float = 600.0  # of requests that wait for an operation of the prearchive

    def __post_init__(self) -> None:
        self.context_path = self.context_path.rstrip("/")
