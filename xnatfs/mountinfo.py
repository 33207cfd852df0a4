"""What the kernel says is mounted where. No mount is touched for that: one that hangs would hang whoever asks."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    device: str  # "0:53"
    kind: str  # "fuse.xnatfs"


def mount_on(mountpoint: Path) -> Mount | None:
    """What was mounted there last and is so still; None for nothing. See proc_pid_mountinfo(5)."""
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            before, _, after = line.partition(" - ")
            cells = before.split(" ")
            path = cells[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            if path.encode("latin-1", "replace").decode("utf-8", "surrogateescape") == str(mountpoint):
                found = Mount(cells[2], after.split(" ")[0])
    return found
