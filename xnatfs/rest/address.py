"""Decide how a file of a resource is requested: by its name, out of its archive, or by its number in a list.

A request that can mean two files is answered with one of them, and with status 200. So each way of asking is taken only
where it can mean nothing else (XNAT REST contract 3.1, 6.4, 6.6, 8.5):

- The number of a resource means any resource so labelled, too, at every level of the item in the URL. So a resource is
  addressed under what it hangs on, and its number where no label there is the same.
- A path is compared with the catalogue as it was sent, before it is decoded: `hash#tag` travels as `hash%23tag`.
- What follows a folder called like a zip is looked up in that zip.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from xnatfs.rest.client import has_url, quoted
from xnatfs.rest.file_table import Catalogue
from xnatfs.rest.models import Item, Resource

# What of a session has resources and a URL of its own.
_PARTS = ("scans", "assessors", "reconstructions")
# An ID that means one part. Others are lists (`1,2`), wildcards (`*`), words (`ALL`, `NULL`), or are decoded in more
# ways than one (blanks, '+', '[SLASH]').
_PLAIN = re.compile(r"(?!(?:all|null)$)[a-z0-9_-][a-z0-9_.-]*", re.IGNORECASE)
# The extensions that XNAT is configured with.
_INSIDE_ARCHIVE = re.compile(r"\.(?:zip|jar|rar|ear|gar|mrb)!?/", re.IGNORECASE)
# Characters that old servers take in a URL, and later ones refuse.
_REFUSED_LATER = str.maketrans("", "", "%;")


class Route(Enum):
    """A way to the bytes of a file."""

    NAME = auto()
    ARCHIVE = auto()
    INDEX = auto()


@dataclass(frozen=True, slots=True)
class Address:
    """How the files of one resource are requested."""

    item: Item  # with whose resources it is listed
    home: Item  # what it hangs on
    base: Item  # below which its number is asked for
    resource: str
    label: str
    rivals: tuple[Resource, ...] = ()  # others that its number means below `base`, too
    archived_at: Item = ()  # below which its archive is asked for

    @classmethod
    def of(cls, resource: Resource, item: Item, home: Item, base: Item, digits: Iterable[Resource] = ()) -> "Address":
        """Make the address of a resource, of whose neighbours `digits` have labels that are numbers."""
        same = [other for other in digits if other.label == resource.id and other.id != resource.id]
        rivals = tuple(other for other in same if base == item or other.group == resource.group)
        return cls(item, home, base, resource.id, resource.label, rivals, base if same else item)

    def routes(self, path: str, catalogue: Catalogue) -> tuple[Route, ...]:
        """Return the ways to a file of the resource, in the order in which they are to be tried."""
        sent = quoted(path)
        if self.rivals or _INSIDE_ARCHIVE.search(path) or (sent != path and sent in catalogue.escaped_paths):
            return Route.ARCHIVE, Route.INDEX
        if has_url(path):
            return (Route.NAME,)
        if has_url(path.translate(_REFUSED_LATER)):
            return Route.ARCHIVE, Route.INDEX, Route.NAME
        return Route.ARCHIVE, Route.INDEX

    def has_name(self, path: str, catalogue: Catalogue) -> bool:
        """Tell whether a file is requested by its name."""
        return self.routes(path, catalogue)[0] is Route.NAME


def base(item: Item, group: tuple[str, str]) -> Item:
    """Return the narrowest item whose URL means what the resources of a group hang on, and nothing else."""
    category, cat_id = group
    return (*item, category, cat_id) if category in _PARTS and _PLAIN.fullmatch(cat_id) else item


def with_digits(resources: Iterable[Resource]) -> list[Resource]:
    """Return those whose label can be taken for the number of another one."""
    return [resource for resource in resources if resource.label.isascii() and resource.label.isdigit()]
