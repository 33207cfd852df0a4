"""Find the mounts of this user, and call one over its control socket. Nothing here touches the mount itself."""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xnatfs.common.errors import ConfigError, MountpointError, XnatError
from xnatfs.common.mountinfo import all_mounts
from xnatfs.common.urls import is_same_server
from xnatfs.fuse.control.protocol import (
    MAX_REPLY_BYTES,
    Message,
    pack,
    peer_uid,
    short_path,
    unpack,
    unpack_error,
)
from xnatfs.fuse.mountpoint import KIND, control_socket

log = logging.getLogger(__name__)

# Seconds until a mount that sends nothing counts as hung; a call that takes long sends progress.
CALL_SECONDS = 10.0
# Seconds that a command waits for each mount to record a change: it costs no request.
ANNOUNCE_SECONDS = 2.0
# Seconds that xnatctl waits for a listing from a mount before it requests it from the server; and the age up to
# which it prints one. A mount may keep listings for longer: its user chose that for programs that read files.
LISTING_SECONDS, LISTING_AGE_SECONDS = 0.5, 60.0
# Changed items that are named; of more, all listings are requested anew.
MAX_ANNOUNCED = 500
# Bytes that are received at a time.
REPLY_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class LiveMount:
    """A mount of this user, as the kernel lists it: its process may have ended."""

    mountpoint: Path
    server: str

    def call(
        self,
        name: str,
        *,
        seconds: float = CALL_SECONDS,
        on_progress: Callable[[Message], object] = lambda progress: None,
        **arguments: Any,
    ) -> Message:
        """Make one call, and return its result.

        Args:
            name: The call.
            seconds: How long the mount may send nothing.
            on_progress: Receives the progress that the mount reports.
            arguments: The arguments of the call.

        Raises:
            MountpointError: The process has ended or hangs, or the mount is of an xnatfs without control socket.
            XnatError: What the mount reports.
        """
        try:
            with self._connected(seconds) as connection:
                connection.sendall(pack(call=name, **arguments))
                for line in _lines(connection):
                    reply = unpack(line)
                    if "progress" in reply:
                        on_progress(reply["progress"])
                    elif "error" in reply:
                        raise unpack_error(reply["error"])
                    else:
                        return dict(reply["result"])
        except TimeoutError:
            raise self._silent(f"does not answer for {seconds:g} s: its process hangs") from None
        except OSError as error:
            raise self._silent(f"does not answer: {error.strerror}") from None
        raise self._silent("does not answer: its process has ended")

    @contextlib.contextmanager
    def _connected(self, seconds: float) -> Iterator[socket.socket]:
        path = control_socket(self.mountpoint)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            try:
                with short_path(path) as short:
                    connection.connect(short)
            except FileNotFoundError:
                raise self._silent(f"has no control socket ({path}): mounted with another XDG_CACHE_HOME?") from None
            except ConnectionRefusedError:
                remedy = f"'xnatfs umount {self.mountpoint}' clears it"
                raise self._silent(f"is dead, its process has ended: {remedy}") from None
            if peer_uid(connection) != os.geteuid():
                raise self._silent("is not answered by your own process")
            yield connection

    def _silent(self, text: str) -> MountpointError:
        return MountpointError(f"{self.mountpoint} {text}")


def _lines(connection: socket.socket) -> Iterator[bytes]:
    """Yield the lines of the replies. Raises OSError, and XnatError for a line that is too long."""
    received = bytearray()
    while data := connection.recv(REPLY_PIECE_BYTES):
        received += data
        *lines, received = received.split(b"\n")
        yield from map(bytes, lines)
        if len(received) > MAX_REPLY_BYTES:
            raise XnatError("the mount sends a reply without end")


def live_mounts() -> list[LiveMount]:
    """Return the mounts of this user, in the order of their mountpoints. No mount is touched."""
    own = (each for each in all_mounts().items() if each[1].kind == KIND and each[1].owner == os.getuid())
    return [LiveMount(mountpoint, mounted.source) for mountpoint, mounted in sorted(own)]


def mounts_of(url: str) -> list[LiveMount]:
    """Return the mounts of one server."""
    try:
        return [mount for mount in live_mounts() if is_same_server(mount.server, url)]
    except OSError:  # another system than Linux has no mounts
        return []


def find_rows(url: str, user: str, item: Sequence[str]) -> list[dict[str, str]] | None:
    """Return a list of a server that a mount of the same account holds fresh; None without one.

    Args:
        url: The server.
        user: The account.
        item: The segments of the list's URL after /data.
    """
    for mount in mounts_of(url):
        with contextlib.suppress(XnatError):
            found = mount.call("rows", seconds=LISTING_SECONDS, item=list(item))
            is_ours = str(found["user"]).lower() == user.lower()
            if is_ours and found["rows"] is not None and found["age_seconds"] <= LISTING_AGE_SECONDS:
                log.info(
                    "%s is from the mount on %s, %.0f s old", "/".join(item), mount.mountpoint, found["age_seconds"]
                )
                return list(found["rows"])
    return None


def find_live(url: str) -> Path | None:
    """Return the mountpoint of a mount of this server that answers; None without one."""
    for mount in mounts_of(url):
        with contextlib.suppress(XnatError):
            mount.call("cache", seconds=ANNOUNCE_SECONDS)
            return mount.mountpoint
    return None


def find_mount(given: Path | None) -> LiveMount:
    """Return the mount that a path of the command line is in, or the only one. Raises MountpointError, ConfigError."""
    if given is not None:
        return split_path(given)[0]
    found = live_mounts()
    if not found:
        raise MountpointError("nothing is mounted: 'xnatfs mount' first")
    if len(found) > 1:
        raise ConfigError(f"which mount? Give one of {', '.join(str(mount.mountpoint) for mount in found)}")
    return found[0]


def split_path(path: Path) -> tuple[LiveMount, str]:
    """Return the mount that a path is in, and the path in it; nothing within the mount is looked at.

    Raises MountpointError.
    """
    mounts = {mount.mountpoint: mount for mount in live_mounts()}
    real, *names = Path("/"), *Path(os.path.abspath(path)).parts[1:]
    for place, name in enumerate(names):
        if (real / name) in mounts:
            return mounts[real / name], "/".join(names[place + 1 :])
        real = Path(os.path.realpath(real / name))
        if real in mounts:
            return mounts[real], "/".join(names[place + 1 :])
    raise MountpointError(f"{path} is not in a mount of xnatfs, or not in yours")


def announce(url: str, projects: Collection[str], experiments: Collection[str]) -> None:
    """Report to the mounts of a server which items were changed there; one that does not answer notices later.

    Args:
        url: The server.
        projects: IDs of projects, or '*' for any.
        experiments: Accession IDs.
    """
    if len(projects) + len(experiments) > MAX_ANNOUNCED:
        projects, experiments = ["*"], []
    for mount in mounts_of(url):
        try:
            mount.call("changed", seconds=ANNOUNCE_SECONDS, projects=sorted(projects), experiments=sorted(experiments))
        except XnatError as error:
            log.info("the change is not reported to a mount: %s", error)
