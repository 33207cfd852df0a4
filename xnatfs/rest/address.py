"""Choose how a file of a resource is requested: by its name, out of an archive, or by its index in a list.

The server answers a request that can mean two files with one of them, and with status 200. So each form of request is
used only where it is unambiguous (XNAT REST contract 3.1, 6.4, 6.6, 8.5):

- The number of a resource also means any resource that has it as its label, at every level of the item in the URL. So a
  resource is addressed below the part that it belongs to, and by its number where no label there is the same.
- A path is compared with the catalogue as it was sent, before it is decoded: `hash#tag` is sent as `hash%23tag`.
- A path below a folder that is named like a zip is looked up in that zip.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from xnatfs.rest.file_table import Catalogue
from xnatfs.rest.models import FileRow, Item, Resource
from xnatfs.rest.urls import has_url, quoted

# The parts of a session that have resources and a URL of their own.
_PARTS = ("scans", "assessors", "reconstructions")
# An ID that means one part. Others are lists (`1,2`), wildcards (`*`), words (`ALL`, `NULL`), or are decoded in several
# ways (blanks, '+', '[SLASH]').
_PLAIN = re.compile(r"(?!(?:all|null)$)[a-z0-9_-][a-z0-9_.-]*", re.IGNORECASE)
# The extensions of archives in XNAT's default configuration.
_INSIDE_ARCHIVE = re.compile(r"\.(?:zip|jar|rar|ear|gar|mrb)!?/", re.IGNORECASE)
# Characters that old servers accept in a URL, and later ones refuse.
_REFUSED_LATER = str.maketrans("", "", "%;")


class Route(Enum):
    """A form of request for the bytes of a file."""

    NAME = auto()
    ARCHIVE = auto()
    INDEX = auto()


@dataclass(frozen=True, slots=True)
class Address:
    """The address by which the files of one resource are requested."""

    home: Item  # the item or part that it belongs to
    base: Item  # the item or part below which its number is requested
    resource: str
    label: str
    rivals: tuple[Resource, ...] = ()  # other resources that its number means below `base`
    archived_at: Item = ()  # the item or part below which its archive is requested

    @classmethod
    def for_resource(
        cls, resource: Resource, item: Item, home: Item, base: Item, digits: Iterable[Resource] = ()
    ) -> "Address":
        """Make the address of a resource.

        Args:
            resource: The resource.
            item: The item with whose resources it is listed.
            home: The item or part that it belongs to.
            base: The narrowest URL that means it, as `base` returns it.
            digits: The resources of the item whose labels are numbers.
        """
        same = [other for other in digits if other.label == resource.id and other.id != resource.id]
        rivals = tuple(other for other in same if base == item or other.group == resource.group)
        return cls(home, base, resource.id, resource.label, rivals, base if same else item)

    def routes(self, path: str, catalogue: Catalogue) -> tuple[Route, ...]:
        """Return the forms of request for a file of the resource, in the order in which they are to be tried."""
        sent = quoted(path)
        if self.rivals or _INSIDE_ARCHIVE.search(path) or (sent != path and sent in catalogue.escaped_paths):
            return Route.ARCHIVE, Route.INDEX
        if has_url(path):
            return (Route.NAME,)
        if has_url(path.translate(_REFUSED_LATER)):
            return Route.ARCHIVE, Route.INDEX, Route.NAME
        return Route.ARCHIVE, Route.INDEX

    def named(self, row: FileRow) -> FileRow:
        """Return the row of a file as a request names it: its resource as URLs have it, not as caches know it."""
        return row if row.resource_id == self.resource else row._replace(resource_id=self.resource)

    def has_name(self, path: str, catalogue: Catalogue) -> bool:
        """Return whether a file is requested by its name."""
        return self.routes(path, catalogue)[0] is Route.NAME


def base(item: Item, group: tuple[str, str]) -> Item:
    """Return the narrowest item or part whose URL means what a group of resources belongs to, and nothing else."""
    category, cat_id = group
    return (*item, category, cat_id) if category in _PARTS and _PLAIN.fullmatch(cat_id) else item


def with_digits(resources: Iterable[Resource]) -> list[Resource]:
    """Return the resources whose label can be mistaken for the number of another one."""
    return [resource for resource in resources if resource.label.isascii() and resource.label.isdigit()]
