"""Write files and make directories that belong to one user: 0600 and 0700 from their creation."""

import contextlib
import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Replace a file of ours by another one, 0600 from its creation; its directory is made, 0700. Raises OSError."""
    make_private(path.parent)
    temporary = path.with_name(f".{path.name}.{os.urandom(16).hex()}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_private(directory: Path) -> None:
    """Make a directory of ours and those that it is in, where they are not there: 0700 from their creation.

    Path.mkdir(parents=True) gives its mode to the last one only. Raises OSError.
    """
    for each in (*reversed(directory.parents), directory):
        if not each.exists():
            with contextlib.suppress(FileExistsError):
                each.mkdir(mode=0o700)
