"""Store the names of recent listings for shell completion."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xnatfs.common.sanitize import is_text, plain
from xnatfs.listings.keys import ListKey
from xnatfs.listings.store import ListingFile
from xnatfs.rest.models import Row

# A name that no longer exists costs an error message of the server; a request each time costs a round trip for each key
# that is pressed.
FRESH_NAMES_SECONDS = 3600.0


class Name(NamedTuple):
    """A name that a shell may complete."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class NamesKey(ListKey):
    """The names of a listing: `scans/XNAT_E00001`."""

    listing: str


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
PART_CATEGORIES = ("scans", "reconstructions")
# The name and the description to store for each row of a kind of listing.
NAMES: Mapping[str, Callable[[Sequence[Row]], list[Name]]] = {
    "projects": lambda rows: [Name(row.get("ID"), row.text("name")) for row in rows],
    "subjects": lambda rows: [Name(row.text("label"), row.get("ID")) for row in rows],
    "sessions": lambda rows: [
        Name(row.text("label"), f"{row.get('ID')} {row.get('date')} {row.get('xsiType')}") for row in rows
    ],
    "scans": lambda rows: [Name(row.text("ID"), row.text("type", "series_description")) for row in rows],
    "resources": lambda rows: [
        Name(row.text("label"), "") for row in rows if row.get("category") not in PART_CATEGORIES
    ],
    "scan resources": lambda rows: [Name(row.text("label"), "") for row in rows],
    "prearchive": lambda rows: [
        Name(row.text("folderName", "name"), f"{row.get('timestamp')} {row.get('status')}") for row in rows
    ],
}


def store_names(store: ListingFile, key: Iterable[str], names: Sequence[Name]) -> None:
    """Store the names of a listing."""
    store.write({NamesKey("/".join(key)): names})
    store.close()


def find_names(store: ListingFile, key: Iterable[str]) -> list[Name] | None:
    """Return the names of a listing of the last hour; None where there is none."""
    found = store.read(NamesKey("/".join(key)), Name)
    store.close()
    if found is None or store.clock() - found[0] > FRESH_NAMES_SECONDS:
        return None
    return shown(found[1])


def shown(names: Iterable[Name]) -> list[Name]:
    """Return the names that a shell may put into a command line: those without control characters."""
    return [Name(name, plain(what)) for name, what in names if name == plain(name) and is_text(name)]
