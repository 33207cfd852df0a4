"""Read a login from a file that only its user can read, for mounts that start without a user: at the boot."""

import os
import stat
from pathlib import Path

from xnatfs.common.errors import ConfigError
from xnatfs.common.files import O_NONBLOCK
from xnatfs.settings.credentials import Credentials

# The longest file that is read, in bytes.
MAX_FILE_BYTES = 64 * 1024
KEYS = {"username", "password", "provider"}


def read_credentials(path: Path) -> Credentials:
    """Read `username=`, `password=` and, where a site has several login methods, `provider=`; one a line.

    Raises ConfigError if the file cannot be read or parsed, or if other users can read or replace it. No message
    contains a part of the file.
    """
    try:
        # Not blocking, since the path may be that of a pipe.
        with open(os.open(path, os.O_RDONLY | O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"the credentials {path} are not in a file")
            # Windows has no modes; a home is closed to other users there by its own means.
            owners = (0, os.geteuid()) if hasattr(os, "geteuid") else ()
            if owners and (status.st_mode & 0o077 or status.st_uid not in owners):
                owner = "" if status.st_uid in owners else "chown and "
                raise ConfigError(f"the credentials {path} are open to other users: {owner}chmod 600 {path}")
            text = file.read(MAX_FILE_BYTES).decode()
    except OSError as error:
        raise ConfigError(f"cannot read the credentials {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the credentials {path} are not UTF-8") from None
    return _parsed(text, path)


def _parsed(text: str, path: Path) -> Credentials:
    cells: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, value = line.partition("=")
        key = key.strip().lower()
        if not equals or key not in KEYS or key in cells:
            raise ConfigError(f"{path} line {number} is not username=, password= or provider=, once each")
        cells[key] = value if key == "password" else value.strip()
    if not cells.get("username") or not cells.get("password"):
        raise ConfigError(f"{path} must have a line username= and a line password=")
    return Credentials(cells["username"], cells["password"], f"file {path}", provider=cells.get("provider", ""))
