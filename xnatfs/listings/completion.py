"""Store the names of recent listings for shell completion: one file per server and account, 0600.

A file that is missing, old or unreadable completes fewer names, and is never an error.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from xnatfs.common.private_files import write_private
from xnatfs.common.sanitize import is_text, loads, plain
from xnatfs.common.urls import server_key
from xnatfs.rest.models import Row
from xnatfs.settings.config import cache_home

# A name that no longer exists costs an error message of the server; a request each time costs a round trip for each key
# that is pressed.
FRESH = 3600.0  # seconds

Name = tuple[str, str]  # the name, and a description


# The segments of a listing's URL, and its columns.
PATHS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "projects": (("projects",), "ID,name"),
    "subjects": (("projects", "{0}", "subjects"), "ID,label"),
    "sessions": (("projects", "{0}", "experiments"), "ID,label,date,xsiType"),
    "scans": (("experiments", "{0}", "scans"), ""),
    "resources": (("experiments", "{0}", "resources"), ""),
    "scan resources": (("experiments", "{0}", "scans", "{1}", "resources"), ""),
    "prearchive": (("prearchive", "projects", "{0}"), ""),
}

# Categories of resources that do not belong to the experiment itself: an assessor's are of the category `assessors`.
PARTS = ("scans", "reconstructions")
# The name and the description to store for each row of a kind of listing.
NAMES: Mapping[str, Callable[[Sequence[Row]], list[Name]]] = {
    "projects": lambda rows: [(row.get("ID"), row.text("name")) for row in rows],
    "subjects": lambda rows: [(row.text("label"), row.get("ID")) for row in rows],
    "sessions": lambda rows: [
        (row.text("label"), f"{row.get('ID')} {row.get('date')} {row.get('xsiType')}") for row in rows
    ],
    "scans": lambda rows: [(row.text("ID"), row.text("type", "series_description")) for row in rows],
    "resources": lambda rows: [(row.text("label"), "") for row in rows if row.get("category") not in PARTS],
    "scan resources": lambda rows: [(row.text("label"), "") for row in rows],
    "prearchive": lambda rows: [
        (row.text("folderName", "name"), f"{row.get('timestamp')} {row.get('status')}") for row in rows
    ],
}


class Listings:
    """The stored names of one account on one server. A key names a listing: ('scans', accession ID)."""

    def __init__(self, url: str, username: str) -> None:
        account = hashlib.sha256(f"{server_key(url)}\n{username.lower()}".encode()).hexdigest()[:32]
        self.path = cache_home() / "listings" / f"{account}.json"

    def remember(self, key: Iterable[str], names: Iterable[Name]) -> None:
        """Store the names of a listing, and drop expired listings."""
        kept = {name: value for name, value in self._read().items() if _fresh(value)}
        kept["/".join(key)] = {"at": time.time(), "names": [list(name) for name in names]}
        with contextlib.suppress(OSError):
            write_private(self.path, json.dumps(kept))

    def recall(self, key: Iterable[str]) -> list[Name] | None:
        """Return the names of a listing of the last hour; None where there is none."""
        found: Any = self._read().get("/".join(key))
        if not _fresh(found):
            return None
        return shown((str(name), str(what)) for name, what in found["names"])

    def _read(self) -> dict[str, Any]:
        try:
            found = loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def shown(names: Iterable[Name]) -> list[Name]:
    """Return the names that a shell may put into a command line: those without control characters."""
    return [(name, plain(what)) for name, what in names if name == plain(name) and is_text(name)]


def _fresh(listing: Any) -> bool:
    """Return whether this is a valid listing of the last hour; one from the future is not."""
    try:
        return bool(0 <= time.time() - listing["at"] <= FRESH) and all(len(name) == 2 for name in listing["names"])
    except (TypeError, KeyError):
        return False
