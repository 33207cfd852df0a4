"""Names that listings have shown lately, for shells to complete: one file per server and account, 0600.

A file that is missing, old or makes no sense is a name less, never an error.
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

# A name completed wrongly costs a message of the server; asking each time costs a round trip for each key pressed.
FRESH = 3600.0  # seconds

Name = tuple[str, str]  # the name, and what it is


# Where a listing is asked for: the segments of its URL, and its columns.
PATHS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "projects": (("projects",), "ID,name"),
    "subjects": (("projects", "{0}", "subjects"), "ID,label"),
    "sessions": (("projects", "{0}", "experiments"), "ID,label,date,xsiType"),
    "scans": (("experiments", "{0}", "scans"), ""),
    "resources": (("experiments", "{0}", "resources"), ""),
    "scan resources": (("experiments", "{0}", "scans", "{1}", "resources"), ""),
    "prearchive": (("prearchive", "projects", "{0}"), ""),
}

# Of what a resource may be that is not of the experiment itself: an assessor's are of the category `assessors`.
PARTS = ("scans", "reconstructions")
# What is remembered of rows, whoever has listed them: the name, and a word on it.
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
    """What is remembered of one account on one server. A key is what was listed, as ('scans', accession ID)."""

    def __init__(self, url: str, username: str) -> None:
        account = hashlib.sha256(f"{server_key(url)}\n{username.lower()}".encode()).hexdigest()[:32]
        self.path = cache_home() / "listings" / f"{account}.json"

    def remember(self, key: Iterable[str], names: Iterable[Name]) -> None:
        """Keep a listing, and drop those that are old."""
        kept = {name: value for name, value in self._read().items() if _fresh(value)}
        kept["/".join(key)] = {"at": time.time(), "names": [list(name) for name in names]}
        with contextlib.suppress(OSError):
            write_private(self.path, json.dumps(kept))

    def recall(self, key: Iterable[str]) -> list[Name] | None:
        """A listing of the last hour; None where there is none."""
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
    """For a command line, into which a shell puts them: without names that a terminal would obey."""
    return [(name, plain(what)) for name, what in names if name == plain(name) and is_text(name)]


def _fresh(listing: Any) -> bool:
    """Whether it is a listing, and of the last hour; one from the future is none."""
    try:
        return bool(0 <= time.time() - listing["at"] <= FRESH) and all(len(name) == 2 for name in listing["names"])
    except (TypeError, KeyError):
        return False
