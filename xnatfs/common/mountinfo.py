"""Read the kernel's table of mounts. No mount is touched: one that hangs would block the caller."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    device: str  # "0:53"; unique to a FUSE mount as long as it exists
    kind: str  # "fuse.xnatfs"
    source: str = ""  # for xnatfs, the URL of the server
    owner: int | None = None  # for FUSE, the uid of its user


def file_system(path: Path) -> str:
    """Return the type of the file system that a path is or would be on, such as "nfs4"; '' if unknown."""
    place = Path(os.path.realpath(path))
    above = [(len(point.parts), mounted.kind) for point, mounted in all_mounts().items() if place.is_relative_to(point)]
    return max(above, default=(0, ""))[1]


def mount_on(mountpoint: Path) -> Mount | None:
    """Return the topmost mount on a mountpoint; None if there is none."""
    return all_mounts().get(mountpoint)


def all_mounts() -> dict[Path, Mount]:
    """Return the topmost mount on each mountpoint; see proc_pid_mountinfo(5). Only Linux has that table."""
    found: dict[Path, Mount] = {}
    if sys.platform != "linux":
        return found
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            before, _, after = line.rstrip("\n").partition(" - ")
            cells = before.split(" ")
            kind, source, options = [*after.split(" ", 2), "", ""][:3]
            owner = re.search(r"\buser_id=(\d+)", options)
            found[Path(_decoded(cells[4]))] = Mount(cells[2], kind, _decoded(source), int(owner[1]) if owner else None)
    return found


def _decoded(cell: str) -> str:
    """Decode a cell of the table, where blanks and backslashes are octal escapes."""
    text = cell.encode("utf-8", "surrogateescape").decode("unicode_escape")
    return text.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
