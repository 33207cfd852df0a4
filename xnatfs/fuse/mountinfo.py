"""Read the kernel's table of mounts. No mount is touched: one that hangs would block the caller."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    device: str  # "0:53"; unique to a FUSE mount as long as it exists
    kind: str  # "fuse.xnatfs"
    source: str = ""  # for xnatfs, the URL of the server
    owner: int | None = None  # for FUSE, the uid of the user who mounted it


def file_system(path: Path) -> str:
    """Return the type of the file system that a path is or would be on, such as "nfs4"; '' if unknown."""
    place, found = os.path.realpath(path), ("", "")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            before, _, after = line.rstrip("\n").partition(" - ")
            point = _decoded(before.split(" ")[4])
            # The last of several mounts on one directory hides the others.
            if Path(place).is_relative_to(point) and len(point) >= len(found[0]):
                found = point, after.split(" ")[0]
    return found[1]


def mount_on(mountpoint: Path) -> Mount | None:
    """Return the topmost mount on a mountpoint; None if there is none."""
    return dict(mounts()).get(mountpoint)


def mounts() -> Iterator[tuple[Path, Mount]]:
    """Yield each mountpoint and its mount, of several on one mountpoint the topmost last: proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            before, _, after = line.rstrip("\n").partition(" - ")
            cells = before.split(" ")
            kind, source, options = after.split(" ")
            owner = re.search(r"\buser_id=(\d+)", options)
            yield Path(_decoded(cells[4])), Mount(cells[2], kind, _decoded(source), int(owner[1]) if owner else None)


def _decoded(cell: str) -> str:
    """Decode a cell of the table, where blanks and backslashes are octal escapes."""
    text = cell.encode("utf-8", "surrogateescape").decode("unicode_escape")
    return text.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
