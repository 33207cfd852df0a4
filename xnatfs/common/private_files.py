"""Write files and make directories that belong to one user: 0600 and 0700 from their creation."""

import contextlib
import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600, atomically, and create its directory with mode 0700.

    The mode holds from the creation of the file on; an existing file is replaced. Raises OSError.
    """
    make_private(path.parent)
    temporary = path.with_name(f".{path.name}.{os.urandom(16).hex()}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
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
