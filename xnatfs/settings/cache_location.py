"""Choose the directory of the cache on a disk of this machine: its index is not safe on a network file system."""

import os
import stat
from pathlib import Path

from xnatfs.common.errors import ConfigError
from xnatfs.common.files import write_private
from xnatfs.common.mountinfo import file_system
from xnatfs.settings.config import absolute_path, cache_home

# Types of file systems, as the kernel names them, that several machines may have mounted, and that do not share mapped
# memory between machines: SQLite shares the index of a cache by mapped memory.
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "beegfs"}
    | {f"fuse.{name}" for name in ("sshfs", "glusterfs", "ceph-fuse", "s3fs", "rclone", "davfs", "juicefs", "xnatfs")}
)
# Where the cache is if the home is on one of those. Unlike /tmp it survives a restart, and is not in memory.
LOCAL_CACHE_PARENT = "/var/tmp"


def cache_directory(chosen: Path | None = None) -> Path:
    """Return the cache directory: the chosen one, else one of this user on a disk of this machine.

    Raises ConfigError if several machines may share the chosen one.
    """
    directory = absolute_path(chosen or cache_home())
    kind = file_system(directory)
    if kind not in NETWORK_FILE_SYSTEMS:
        return directory
    if chosen is not None:
        why = f"is on a network file system ({kind}), where the index of a cache is not safe"
        raise ConfigError(f"the cache directory {directory} {why}: choose one on this machine with --cache-dir")
    return _local_cache(cache_home() / "local" / os.uname().nodename)


def _local_cache(note: Path) -> Path:
    """Return the local directory that `note` names, or create one with an unpredictable name and note it."""
    try:
        local = Path(note.read_text())
        status = local.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
            return local
    except (OSError, ValueError):
        pass
    import tempfile  # where a home is on a network only

    try:
        local = Path(tempfile.mkdtemp(prefix="xnatfs-", dir=LOCAL_CACHE_PARENT))
        try:
            write_private(note, str(local))
        except OSError:
            local.rmdir()  # nothing leads to it
            raise
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        raise ConfigError(f"no cache can be made on this machine ({why}): set XDG_CACHE_HOME, or --cache-dir") from None
    return local
