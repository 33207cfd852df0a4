"""Open local files alike on all systems, and keep those private that belong to one user: 0600 and 0700 when created.

xnatctl runs on macOS and Windows as well, where Python lacks some functions of Linux.
"""

import contextlib
import os
from pathlib import Path

# Flags of open(2): Windows has O_BINARY alone, without which it changes the ends of lines.
O_BINARY: int = getattr(os, "O_BINARY", 0)
O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)


def sync_data(descriptor: int) -> None:
    """Write a file to the disk; on macOS, to the disk's own memory. Raises OSError."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600, atomically, and create its directory with mode 0700.

    The mode holds from the creation of the file on; an existing file is replaced. Raises OSError.
    """
    make_private(path.parent)
    temporary = path.with_name(f".{path.name}.{os.urandom(16).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | O_BINARY
    try:
        with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_private(directory: Path) -> None:
    """Create a directory and its missing parents, each with mode 0700 from its creation on.

    Path.mkdir(parents=True) applies its mode to the last directory only. Raises OSError.
    """
    for each in (*reversed(directory.parents), directory):
        if not each.exists():
            with contextlib.suppress(FileExistsError):
                each.mkdir(mode=0o700)
